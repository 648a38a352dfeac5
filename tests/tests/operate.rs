//! What an operator does with an engine: sockets, certificates, settings, plugins, figures; and what it makes of a bad day.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use e2e_tests::plugin::Plugin;
use e2e_tests::{Engine, bin_dir, host, http, leak, wait_for};
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

/// The engine as a service manager would start it, through `sh` with that script.
fn as_a_service(engine: &Engine, script: &str, host: &str) -> Command {
    let mut command = engine.netns().command("sh");
    command
        .args(["-c", script, "sh"])
        .arg(bin_dir().join("dockerd-rs"))
        .args(["--config-file", "/dev/null", "-H", host])
        .arg("--data-root")
        .arg(engine.path("data"))
        .arg("--exec-root")
        .arg(engine.path("exec"))
        .arg("--pidfile")
        .arg(engine.path("pid"))
        .stderr(std::fs::File::create(engine.path("service.log")).expect("a log"));
    command
}

#[test]
fn the_service_manager_is_told_how_it_goes() {
    let mut engine = Engine::start();
    engine.stop();
    let manager = engine.path("notify.sock");
    let told = UnixDatagram::bind(&manager).expect("a socket");
    told.set_read_timeout(Some(e2e_tests::PATIENCE)).expect("a time limit");
    let next = || {
        let mut buffer = [0; 4096];
        let count = told.recv(&mut buffer).expect("to be told in time");
        String::from_utf8_lossy(&buffer[..count]).trim().to_owned()
    };
    let host = format!("unix://{}", engine.socket().display());
    let mut command = as_a_service(&engine, "exec \"$@\"", &host);
    let mut daemon = command.env("NOTIFY_SOCKET", &manager).spawn().expect("dockerd-rs starts");
    let pid = i32::try_from(daemon.id()).expect("a pid");
    assert_eq!(next(), "READY=1");
    assert_eq!(http::request(&engine.socket(), "GET", "/_ping", &[], None).text(), "OK");
    host::kill(pid, 1);
    let reloading = next();
    let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").map(str::parse::<u64>);
    assert!(matches!(since, Some(Ok(1..))), "{reloading}");
    assert_eq!(next(), "READY=1");
    host::kill(pid, 15);
    assert_eq!(next(), "STOPPING=1");
    assert!(daemon.wait().expect("dockerd-rs ends").success());
}

#[test]
fn a_stop_waits_for_answers_and_tells_who_is_late() {
    let mut engine = Engine::start_with(&["--shutdown-timeout", "1"]);
    let connect = |request: &str| {
        let mut stream = UnixStream::connect(engine.socket()).expect("the engine listens");
        stream.set_read_timeout(Some(e2e_tests::PATIENCE)).expect("a time limit");
        stream.write_all(request.as_bytes()).expect("a request");
        stream
    };
    // One has its answer and may ask again, one has sent half of what it wants loaded.
    let mut idle = connect("GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n");
    let mut head = [0; 15];
    idle.read_exact(&mut head).expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let asked =
        "POST /images/load HTTP/1.1\r\nHost: docker\r\nContent-Length: 4096\r\nExpect: 100-continue\r\n\r\n";
    let mut stuck = connect(asked);
    stuck.read_exact(&mut head).expect("to be told to go on");
    assert_eq!(&head, b"HTTP/1.1 100 Co");
    stuck.write_all(b"half").expect("half of it");
    engine.stop();
    drop(stuck);
    let log = engine.log();
    assert!(log.contains("connections are cut connections=1"), "{log}");
    assert!(log.contains("late request=\"POST /images/load\" secs="), "{log}");
    assert!(!log.contains("/_ping"), "{log}");
}

#[test]
fn contexts_and_a_connection_through_another_program() {
    let engine = Engine::start();
    engine.load_busybox();
    let config = engine.path("contexts");
    let run = |host: Option<&str>, args: &[&str]| -> e2e_tests::Ran {
        let mut command = engine.docker_command(args);
        command.env("DOCKER_CONFIG", &config).env_remove("DOCKER_HOST");
        if let Some(host) = host {
            command.env("DOCKER_HOST", host);
        }
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", engine.path("ssh").display()));
        command.output().expect("docker runs").into()
    };
    let host = format!("host=unix://{}", engine.socket().display());
    run(None, &["context", "create", "here", "--docker", &host]).ok();
    assert_eq!(run(None, &["--context", "here", "images", "-q", "busybox"]).ok().len(), 12);
    run(None, &["context", "use", "here"]).ok();
    assert_eq!(run(None, &["run", "--rm", "busybox", "echo", "through a context"]).ok(), "through a context");
    // Stands in for ssh: what it was to run there it runs here, with ours under docker's name.
    let bin = engine.path("ssh");
    std::fs::create_dir(&bin).expect("a folder");
    std::os::unix::fs::symlink(bin_dir().join("docker-rs"), bin.join("docker")).expect("a link");
    let script = format!(
        "#!/bin/sh\necho \"$*\" >> {log}\nwhile [ \"$1\" != -- ]; do shift; done\nshift 2\n\
         export DOCKER_HOST=unix://{socket} DOCKER_CONFIG=/nonexistent\nexec sh -c \"$*\"\n",
        log = engine.path("ssh.log").display(),
        socket = engine.socket().display()
    );
    std::fs::write(bin.join("ssh"), script).expect("a script");
    std::fs::set_permissions(bin.join("ssh"), PermissionsExt::from_mode(0o755)).expect("a mode");
    let there = Some("ssh://somebody@box");
    assert_eq!(run(there, &["images", "-q", "busybox"]).ok().len(), 12);
    let mut cat = engine.docker_command(&["run", "--rm", "-i", "busybox", "sh", "-c", "cat; echo over"]);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    cat.env("DOCKER_HOST", "ssh://somebody@box")
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut cat = cat.spawn().expect("docker runs");
    cat.stdin.take().expect("a pipe").write_all(b"typed\n").expect("input");
    let output = cat.wait_with_output().expect("docker ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "typed\nover\n");
    let asked = std::fs::read_to_string(engine.path("ssh.log")).expect("it was run");
    assert!(asked.contains("docker system dial-stdio"), "{asked}");
}

#[test]
fn a_socket_handed_over_by_the_service_manager_is_served() {
    let mut engine = Engine::start();
    engine.stop();
    let path = engine.path("handed.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    let mut command = as_a_service(&engine, script, "fd://");
    command.stdin(Stdio::from(OwnedFd::from(listener)));
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
    let mut engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["create", "--name", "whole", "busybox"]).ok();
    let broken = engine.docker(&["create", "--name", "broken", "busybox"]).ok().to_owned();
    engine.stop();
    damage(&engine.path("data/engine.redb"), &broken);
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
    engine.docker(&["network", "create", "kept"]).ok();
    engine.kill_dockerd();
    engine.kill_containerd();
    let stores = [
        engine.path("data/engine.redb"),
        engine.path("data/containerd/io.containerd.metadata.v1.bolt/meta.redb"),
    ];
    let before = |store: &Path| store.with_extension("before");
    for store in &stores {
        std::fs::copy(store, before(store)).expect("a copy");
    }
    engine.spawn();
    let [engines, both, none] = [&stores[..1], &stores[..], &stores[..0]];
    for (loss, lost, by_older) in [
        ("the engine's store is an older one", engines, true),
        ("both stores are older ones", both, true),
        ("the record is damaged", none, true),
        ("the engine's store is gone", engines, false),
        ("both stores are gone", both, false),
    ] {
        eprintln!("--- {loss} ---");
        engine.docker(&["network", "create", "net"]).ok();
        let run = ["run", "-d", "--network", "net", "-v", "/v", "-p", "18080:80", "--init", "--tmpfs", "/t"];
        let id = engine.docker(&[&run[..], &["busybox", "sleep", "1000"]].concat()).ok().to_owned();
        let pid: i32 = engine.inspect(&id, "{{.State.Pid}}").parse().expect("a pid");
        let shim = host::parent(pid).expect("a shim");
        let namespace = engine.inspect(&id, "{{.NetworkSettings.SandboxKey}}");
        assert!(groups_of(&id) > 0 && Path::new(&namespace).exists());
        engine.kill_dockerd();
        engine.kill_containerd();
        for store in lost {
            let done = if by_older {
                std::fs::copy(before(store), store).map(drop)
            } else {
                std::fs::remove_file(store)
            };
            done.expect("the loss");
        }
        if lost.is_empty() {
            damage(&stores[0], &id);
        }
        engine.spawn();
        assert!(engine.docker(&["ps", "-aq"]).ok().is_empty());
        wait_for("its processes to be gone", || !host::alive(pid) && !host::alive(shim));
        wait_for("its control groups to be gone", || groups_of(&id) == 0);
        wait_for("its namespace to be gone", || !Path::new(&namespace).exists());
        wait_for("its records at containerd to be gone", || {
            let lists = [&["containers", "ls", "-q"][..], &["tasks", "ls", "-q"], &["snapshots", "ls"]];
            // Of a damaged record the content stays, as its directories do.
            let gone = if lost.is_empty() { &lists[..2] } else { &lists };
            !gone.iter().any(|list| engine.ctr(list).ok().contains(&id))
        });
        wait_for("its mounts to be gone", || {
            let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
            let state = engine.path("exec/containerd").display().to_string();
            !mounts.lines().any(|line| line.contains(&id) || line.contains(&format!("{state}/io.")))
        });
        wait_for("its links to be gone", || {
            let networks = engine.docker(&["network", "ls", "-q"]).ok().to_owned();
            let links = engine.netns().command("ip").args(["-br", "link"]).output().expect("ip runs");
            let links = String::from_utf8_lossy(&links.stdout).into_owned();
            links.lines().filter_map(|line| line.split_whitespace().next()).all(|link| {
                let of_network = link.strip_prefix("br-").is_none_or(|network| networks.contains(network));
                !link.starts_with("veth") && of_network
            })
        });
        let kept = lost.is_empty();
        wait_for("its directories to be gone", || {
            engine.path("data/containers").join(&id).exists() == kept
                && (kept || !engine.path("exec/containers").join(&id).exists())
        });
        for name in std::fs::read_dir(engine.path("data/volumes")).expect("volumes").flatten() {
            // Content without a record is somebody's data all the same.
            assert!(name.path().join("_data").exists());
        }
        if lost.len() == 2 && !by_older {
            engine.load_busybox();
        }
        // The port is free, and so is the name of the network where that is forgotten, too.
        let again = ["run", "--rm", "-p", "18080:80", "busybox", "true"];
        engine.docker(&again).ok();
        engine.docker(&["network", "rm", "-f", "net"]).ok();
    }
}

/// How many control groups a container has.
fn groups_of(id: &str) -> usize {
    leak::cgroups().iter().filter(|group| group.ends_with(id)).count()
}

/// Makes a container's record unreadable.
fn damage(store: &Path, id: &str) {
    const CONTAINERS: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("containers");
    let store = redb::Database::open(store).expect("the store");
    let change = store.begin_write().expect("a change");
    change
        .open_table(CONTAINERS)
        .and_then(|mut rows| Ok(rows.insert(id, &b"{\"cut"[..]).map(drop)?))
        .expect("the record");
    change.commit().expect("the change");
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
