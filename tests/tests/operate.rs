//! What an operator does with an engine: sockets, certificates, settings, plugins, figures; and what it makes of a bad day.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use e2e_tests::plugin::Plugin;
use e2e_tests::{Engine, bin_dir, host, http, wait_for};
use serde_json::{Value, json};

fn openssl(args: &[&str]) {
    let output = Command::new("openssl").args(args).output().expect("openssl runs");
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A certificate authority, and what it signed: `server` for 127.0.0.1 and `client` for alice; `stranger` signed itself.
fn certificates(dir: &Path) {
    std::fs::create_dir_all(dir).expect("a folder");
    let at = |name: &str| dir.join(name).display().to_string();
    let made = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let own = |name: &str, subject: &str| {
        let (key, out) = (at(&format!("{name}-key.pem")), at(&format!("{name}.pem")));
        openssl(&[&["req"][..], &made[..], &["-subj", subject, "-keyout", &key, "-out", &out]].concat());
    };
    own("ca", "/CN=authority");
    own("stranger", "/CN=mallory");
    for (name, subject, extensions) in [
        ("server", "/CN=engine", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth"),
        ("client", "/O=people/CN=alice", "extendedKeyUsage=clientAuth"),
    ] {
        std::fs::write(at("ext"), extensions).expect("extensions");
        let (key, request, out) = (at(&format!("{name}-key.pem")), at("request"), at(&format!("{name}.pem")));
        openssl(
            &[
                &["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"][..],
                &["-subj", subject, "-keyout", &key, "-out", &request][..],
            ]
            .concat(),
        );
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &at("ca.pem"),
            "-CAkey",
            &at("ca-key.pem"),
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &at("ext"),
            "-out",
            &out,
        ]);
    }
}

/// The flags of a client with that certificate.
fn tls_flags(dir: &Path, who: &str) -> Vec<String> {
    let at = |name: &str| dir.join(name).display().to_string();
    vec![
        "-H=tcp://127.0.0.1:2376".into(),
        "--tlsverify".into(),
        format!("--tlscacert={}", at("ca.pem")),
        format!("--tlscert={}", at(&format!("{who}.pem"))),
        format!("--tlskey={}", at(&format!("{who}-key.pem"))),
    ]
}

fn docker(engine: &Engine, flags: &[String], args: &[&str]) -> e2e_tests::Ran {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut command = engine.docker_command(&[flags.as_slice(), args].concat());
    command.env_remove("DOCKER_HOST").output().expect("docker runs").into()
}

#[test]
fn certificates_decide_who_may_ask_and_plugins_what() {
    let dir = tempfile::Builder::new().prefix("e2e-").tempdir().expect("a folder");
    certificates(dir.path());
    let name = format!("authz-{}", std::process::id());
    let secret = Arc::new(Mutex::new(String::new()));
    let seen = Arc::clone(&secret);
    let plugin = Plugin::start(&name, "authz", move |method, ask| {
        let text = ask.to_string();
        if text.contains("hunter2") {
            *seen.lock().expect("the secret") = text;
        }
        let uri = ask["RequestUri"].as_str().unwrap_or_default();
        let denied = match method {
            "AuthZPlugin.AuthZReq" => uri.contains("/volumes/create"),
            _ => uri.contains("/networks"),
        };
        if denied { json!({ "Allow": false, "Msg": "not for you" }) } else { json!({ "Allow": true }) }
    });
    let at = |file: &str| dir.path().join(file).display().to_string();
    let (ca, cert, key) = (at("ca.pem"), at("server.pem"), at("server-key.pem"));
    let engine = Engine::start_with(&[
        "-H",
        "tcp://127.0.0.1:2376",
        "--tlsverify",
        "--tlscacert",
        &ca,
        "--tlscert",
        &cert,
        "--tlskey",
        &key,
        "--authorization-plugin",
        &name,
    ]);
    let alice = tls_flags(dir.path(), "client");
    docker(&engine, &alice, &["ps"]).ok();
    let stranger = docker(&engine, &tls_flags(dir.path(), "stranger"), &["ps"]);
    assert_ne!(stranger.code, 0, "{stranger:?}");
    let plain = docker(&engine, &["-H=tcp://127.0.0.1:2376".into()], &["ps"]);
    assert_ne!(plain.code, 0, "{plain:?}");
    docker(&engine, &alice, &["volume", "create", "v1"])
        .fails(1, &format!("authorization denied by plugin {name}: not for you"));
    assert!(engine.docker(&["volume", "ls", "-q"]).ok().is_empty(), "it was made all the same");
    docker(&engine, &alice, &["network", "ls"]).fails(1, "not for you");
    let (_, ask) = plugin
        .calls()
        .into_iter()
        .find(|(_, ask)| ask["RequestUri"].as_str().is_some_and(|uri| uri.contains("/volumes/create")))
        .expect("the plugin was asked");
    assert_eq!((ask["User"].as_str(), ask["UserAuthNMethod"].as_str()), (Some("alice"), Some("TLS")));
    assert!(ask["RequestBody"].as_str().is_some_and(|body| !body.is_empty()), "{ask}");
    // What a plugin cannot be shown is refused, and passwords are not shown.
    let json = [("Content-Type", "application/json")];
    let large = format!(r#"{{"Image":"x","Env":["{}"]}}"#, "x".repeat(5 << 20));
    let refused =
        http::request(&engine.socket(), "POST", "/containers/create", &json, Some(large.as_bytes()));
    assert_eq!(refused.status, 413, "{refused:?}");
    let login = br#"{"username":"u","password":"hunter2","serveraddress":"127.0.0.1:1"}"#;
    http::request(&engine.socket(), "POST", "/auth", &json, Some(login));
    assert_eq!(*secret.lock().expect("the secret"), "");
    // Without its plugin the engine allows nothing.
    drop(plugin);
    docker(&engine, &alice, &["ps"]).fails(1, &format!("plugin {name} failed with error"));
    let _plugin = Plugin::start(&name, "authz", |_, _| json!({ "Allow": true }));
    docker(&engine, &alice, &["ps"]).ok();
    drop(engine);
}

#[test]
fn a_volume_plugin_keeps_volumes() {
    let dir = tempfile::Builder::new().prefix("e2e-").tempdir().expect("a folder");
    let name = format!("vol-{}", std::process::id());
    let at = dir.path().to_owned();
    let plugin = Plugin::start(&name, "VolumeDriver", move |method, args| {
        let place = at.join(args["Name"].as_str().unwrap_or_default());
        match method {
            "VolumeDriver.Create" if args["Opts"]["fail"].is_string() => json!({ "Err": "no room" }),
            "VolumeDriver.Create" => {
                std::fs::create_dir_all(&place).expect("a place");
                json!({ "Err": "" })
            }
            "VolumeDriver.Remove" => {
                std::fs::remove_dir_all(&place).expect("it is there");
                json!({})
            }
            "VolumeDriver.Mount" | "VolumeDriver.Path" => json!({ "Mountpoint": place }),
            "VolumeDriver.Get" => {
                json!({ "Volume": { "Name": args["Name"], "Mountpoint": place, "Status": { "state": "fine" } } })
            }
            "VolumeDriver.Capabilities" => json!({ "Capabilities": { "Scope": "global" } }),
            _ => json!({}),
        }
    });
    let mut engine = Engine::start();
    engine.load_busybox();
    engine
        .docker(&["volume", "create", "-d", "nosuch", "v0"])
        .fails(1, "create v0: error looking up volume plugin nosuch: plugin \"nosuch\" not found");
    engine.docker(&["volume", "create", "-d", &name, "-o", "fail=yes", "v0"]).fails(1, "create v0: no room");
    engine.docker(&["volume", "create", "-d", &name, "v1"]).ok();
    let shown = engine.docker(&["volume", "inspect", "v1", "--format", "{{.Driver}} {{.Scope}} {{.Status}}"]);
    assert_eq!(shown.ok(), format!("{name} global map[state:fine]"));
    engine.docker(&["run", "--rm", "-v", "v1:/v", "busybox", "sh", "-c", "echo kept > /v/file"]).ok();
    assert_eq!(std::fs::read_to_string(dir.path().join("v1/file")).expect("the file"), "kept\n");
    engine.docker(&["run", "-d", "--name", "c1", "-v", "v1:/v", "busybox", "sleep", "1000"]).ok();
    engine.kill_dockerd();
    engine.spawn();
    assert_eq!(engine.docker(&["exec", "c1", "cat", "/v/file"]).ok(), "kept");
    engine.docker(&["volume", "rm", "v1"]).fails(1, "volume is in use");
    engine.docker(&["rm", "-f", "c1"]).ok();
    engine.docker(&["volume", "prune", "-af"]).ok();
    engine.docker(&["volume", "rm", "v1"]).ok();
    assert!(!dir.path().join("v1").exists());
    let count = |method: &str| plugin.calls().iter().filter(|(called, _)| called == method).count();
    assert_eq!((count("VolumeDriver.Mount"), count("VolumeDriver.Unmount")), (2, 2));
    assert_eq!(count("VolumeDriver.Remove"), 1);
}

#[test]
fn a_socket_handed_over_by_the_service_manager_is_served() {
    let mut engine = Engine::start();
    engine.stop();
    let path = engine.path("handed.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let mut command = engine.netns().command("sh");
    command
        .args(["-c", "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", "sh"])
        .arg(bin_dir().join("dockerd-rs"))
        .args(["--config-file", "/dev/null", "-H", "fd://"])
        .arg("--data-root")
        .arg(engine.path("data"))
        .arg("--exec-root")
        .arg(engine.path("exec"))
        .arg("--pidfile")
        .arg(engine.path("pid"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stderr(std::fs::File::create(engine.path("handed.log")).expect("a log"));
    // Who connects before the engine is up is answered, too: that is what the socket is handed over for.
    let mut daemon = command.spawn().expect("dockerd-rs starts");
    assert_eq!(http::request(&path, "GET", "/_ping", &[], None).text(), "OK");
    host::kill(i32::try_from(daemon.id()).expect("a pid"), 15);
    daemon.wait().expect("dockerd-rs ends");
    assert!(path.exists(), "the socket is not the engine's to remove");
}

#[test]
fn settings_are_read_again_on_a_signal() {
    let dir = tempfile::Builder::new().prefix("e2e-").tempdir().expect("a folder");
    let file: PathBuf = dir.path().join("daemon.json");
    std::fs::write(&file, r#"{"labels":["a=1"],"metrics-addr":"127.0.0.1:9323"}"#).expect("settings");
    let engine = Engine::start_with(&["--config-file", &file.display().to_string()]);
    let labels = || engine.docker(&["info", "--format", "{{.Labels}} {{.Debug}}"]).ok().to_owned();
    assert_eq!(labels(), "[a=1] false");
    let pid = i32::try_from(engine.pid()).expect("a pid");
    std::fs::write(&file, r#"{"labels":["a=2"],"debug":true,"metrics-addr":"127.0.0.1:9323"}"#)
        .expect("settings");
    host::kill(pid, 1);
    wait_for("the new settings", || labels() == "[a=2] true");
    std::fs::write(&file, r#"{"labels":["#).expect("settings");
    host::kill(pid, 1);
    wait_for("the refusal in the log", || engine.log().contains("configuration not reloaded"));
    assert_eq!(labels(), "[a=2] true");
    wait_for("the event", || {
        let events = ["events", "--since", "1h", "--until", "0s", "--filter", "type=daemon"];
        engine.docker(&events).ok().contains("daemon reload")
    });
    // Figures for a collector.
    let mut collector = engine.netns().command("busybox");
    let figures =
        collector.args(["wget", "-qO-", "http://127.0.0.1:9323/metrics"]).output().expect("busybox");
    let figures = String::from_utf8_lossy(&figures.stdout).into_owned();
    for name in
        ["engine_daemon_container_states_containers{state=\"running\"} 0", "engine_daemon_engine_info{"]
    {
        assert!(figures.contains(name), "{name} in {figures}");
    }
}

#[test]
fn permissions_are_narrow() {
    let engine = Engine::start();
    engine.docker(&["volume", "create", "v1"]).ok();
    let mode = |path: PathBuf| std::fs::metadata(&path).map(|it| it.mode() & 0o777).expect("it is there");
    assert_eq!(mode(engine.socket()), 0o660);
    assert_eq!(mode(engine.path("data")), 0o710);
    assert_eq!(mode(engine.path("exec")), 0o711);
    assert_eq!(mode(engine.path("data/volumes")), 0o701);
    assert_eq!(mode(engine.containerd_socket()) & 0o007, 0);
    let validated = Command::new(bin_dir().join("dockerd-rs"))
        .args(["--validate", "--config-file", "/dev/null", "--rootless"])
        .output()
        .expect("dockerd-rs runs");
    assert!(!validated.status.success());
    assert!(
        String::from_utf8_lossy(&validated.stderr).contains("--rootless: rootless mode is not supported")
    );
}

#[test]
fn a_damaged_record_harms_nobody_else() {
    const CONTAINERS: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("containers");
    let mut engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["create", "--name", "whole", "busybox"]).ok();
    let broken = engine.docker(&["create", "--name", "broken", "busybox"]).ok().to_owned();
    engine.stop();
    {
        let store = redb::Database::open(engine.path("data/engine.redb")).expect("the store");
        let change = store.begin_write().expect("a change");
        change
            .open_table(CONTAINERS)
            .and_then(|mut rows| Ok(rows.insert(broken.as_str(), &b"{\"cut"[..]).map(drop)?))
            .expect("the record");
        change.commit().expect("the change");
    }
    engine.spawn();
    assert_eq!(engine.docker(&["ps", "-a", "--format", "{{.Names}}"]).ok(), "whole");
    assert!(engine.log().contains(&broken), "nobody was told");
    engine.docker(&["start", "-a", "whole"]).ok();
    // Its name is free.
    engine.docker(&["create", "--name", "broken", "busybox"]).ok();
}

#[test]
fn no_event_is_lost_or_told_twice_when_the_engine_dies() {
    let mut engine = Engine::start();
    let mut made = Vec::new();
    for round in 0..4 {
        for n in 0..50 {
            let name = format!("v{round}-{n}");
            let body = json!({ "Name": name }).to_string();
            let kind = [("Content-Type", "application/json")];
            let answer =
                http::request(&engine.socket(), "POST", "/volumes/create", &kind, Some(body.as_bytes()));
            assert_eq!(answer.status, 201, "{answer:?}");
            made.push(name);
        }
        if round < 3 {
            engine.kill_dockerd();
            engine.spawn();
        }
    }
    let filters = "%7B%22type%22%3A%5B%22volume%22%5D%7D";
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs() + 1;
    let target = format!("/events?since=1&until={now}&filters={filters}");
    for accept in ["application/x-ndjson", "application/json-seq"] {
        let answer = http::request(&engine.socket(), "GET", &target, &[("Accept", accept)], None);
        assert_eq!(answer.header("content-type"), accept);
        let text = answer.text();
        let names: Vec<String> = text
            .lines()
            .map(|line| {
                let record = line.trim_start_matches('\u{1e}');
                assert_eq!(record.len() < line.len(), accept.ends_with("seq"), "{line}");
                let event: Value = serde_json::from_str(record).expect("an event");
                event["Actor"]["ID"].as_str().unwrap_or_default().to_owned()
            })
            .collect();
        assert_eq!(names, made);
    }
    engine.docker(&["volume", "prune", "-af"]).ok();
}

/// As after a crash between the making of something and the record of it, or with a store from a backup.
#[test]
fn what_has_no_record_is_removed_at_the_start() {
    let mut engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["network", "create", "net"]).ok();
    engine.kill_dockerd();
    engine.kill_containerd();
    let metadata = engine.path("data/containerd/io.containerd.metadata.v1.bolt/meta.redb");
    let stores = [(engine.path("data/engine.redb"), engine.path("old-1")), (metadata, engine.path("old-2"))];
    for (store, kept) in &stores {
        std::fs::copy(store, kept).expect("a copy");
    }
    engine.spawn();
    // First the engine forgets its containers, then containerd does so too.
    for forgotten in [&stores[..1]] {
        let run = ["run", "-d", "--network", "net", "-v", "/v", "-p", "18080:80", "busybox", "sleep", "1000"];
        let id = engine.docker(&run).ok().to_owned();
        let pid: i32 = engine.inspect(&id, "{{.State.Pid}}").parse().expect("a pid");
        let shim = host::parent(pid).expect("a shim");
        engine.kill_dockerd();
        engine.kill_containerd();
        for (store, kept) in forgotten {
            std::fs::copy(kept, store).expect("a copy");
        }
        engine.spawn();
        assert!(engine.docker(&["ps", "-aq"]).ok().is_empty());
        wait_for("its processes to be gone", || !host::alive(pid) && !host::alive(shim));
        wait_for("its directories to be gone", || {
            !engine.path("data/containers").join(&id).exists()
                && !engine.path("exec/containers").join(&id).exists()
        });
        let links = engine.netns().command("ip").args(["-o", "link"]).output().expect("ip runs");
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        assert!(!links.contains("veth"), "{links}");
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        assert!(!mounts.contains(&id), "{mounts}");
        for name in std::fs::read_dir(engine.path("data/volumes")).expect("volumes").flatten() {
            // Content without a record is somebody's data all the same.
            assert!(name.path().join("_data").exists());
        }
    }
}

#[test]
fn an_engine_on_a_read_only_disk_lets_you_look() {
    let mut engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["create", "--name", "c1", "busybox"]).ok();
    engine.docker(&["volume", "create", "v1"]).ok();
    engine.stop();
    let data = engine.path("data");
    let mount = |args: &[&str]| {
        let output = Command::new("mount").args(args).arg(&data).output().expect("mount runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    mount(&["--bind", &data.display().to_string()]);
    mount(&["-o", "remount,bind,ro"]);
    engine.spawn();
    assert_eq!(engine.docker(&["ps", "-a", "--format", "{{.Names}}"]).ok(), "c1");
    assert_eq!(engine.docker(&["volume", "ls", "-q"]).ok(), "v1");
    assert!(engine.docker(&["images", "--format", "{{.Repository}}"]).ok().contains("busybox"));
    assert!(
        engine.docker(&["info", "--format", "{{.Warnings}}"]).ok().contains("the data root is read-only")
    );
    engine.docker(&["rm", "c1"]).ok();
    engine.stop();
    let unmounted = Command::new("umount").arg(&data).status().expect("umount runs");
    assert!(unmounted.success());
    engine.spawn();
    // It was told: nothing that is changed there lasts.
    assert_eq!(engine.docker(&["ps", "-a", "--format", "{{.Names}}"]).ok(), "c1");
    assert!(!engine.path("exec/read-only").exists());
}
