//! Images to registries and back, with Debian's `docker-registry`: with and without passwords, behind a private CA, through a mirror, over a
//! wire that breaks; and archives that other tools write and read.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use e2e_tests::{Engine, image, peer_dir, wait_for};
use serde_json::Value;

const USER: &str = "wanda";
const PASSWORD: &str = "p:a ss\"wört";

/// A process of a test's own, ended with it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A registry beside an engine, in its network namespace.
struct Registry {
    _process: Process,
    log: PathBuf,
}

impl Registry {
    /// Listens at `address`. `more` is added to its configuration, indented below the top.
    fn start(engine: &Engine, name: &str, address: &str, http: &str, more: &str) -> Self {
        let directory = engine.path(name);
        std::fs::create_dir_all(&directory).expect("a directory");
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {:?}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: {address:?}{http}}}\n{more}",
            directory.join("data")
        );
        let (file, log) = (directory.join("config.yml"), directory.join("log"));
        std::fs::write(&file, config).expect("a configuration");
        let out = std::fs::File::create(&log).expect("a log");
        let process = engine
            .netns()
            .command(peer_dir().join("docker-registry"))
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out)
            .spawn()
            .expect("docker-registry runs");
        let registry = Self { _process: Process(process), log };
        wait_for("the registry", || registry.log().contains("listening on"));
        registry
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Removes what the test put below /etc/docker.
struct CertsDir(PathBuf);

impl CertsDir {
    fn new(host: &str, ca: &Path) -> Self {
        let directory = Path::new("/etc/docker/certs.d").join(host);
        std::fs::create_dir_all(&directory).expect("a directory");
        std::fs::copy(ca, directory.join("ca.crt")).expect("a certificate");
        Self(directory)
    }
}

impl Drop for CertsDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        // Only if nobody else has something there.
        let _ = std::fs::remove_dir("/etc/docker/certs.d");
        let _ = std::fs::remove_dir("/etc/docker");
    }
}

fn digest_of(engine: &Engine, name: &str) -> String {
    let digest = engine.docker(&["image", "inspect", "--format", "{{.Id}}", name]);
    digest.ok().to_owned()
}

#[test]
fn an_image_goes_out_and_comes_back() {
    let engine = Engine::start();
    let registry = Registry::start(&engine, "open", "127.0.0.1:5001", "", "");
    engine.load_busybox();
    engine.docker(&["run", "--name", "app", "busybox", "sh", "-c", "echo kept > /file"]).ok();
    engine.docker(&["commit", "-m", "a note", "app", "127.0.0.1:5001/team/app:1"]).ok();
    engine.docker(&["rm", "app"]).ok();
    let id = digest_of(&engine, "127.0.0.1:5001/team/app:1");

    let pushed = engine.docker(&["push", "127.0.0.1:5001/team/app:1"]);
    assert!(pushed.ok().contains(&format!("1: digest: {id} size: ")), "{pushed:?}");
    let again = engine.docker(&["push", "127.0.0.1:5001/team/app:1"]);
    assert!(again.ok().contains("Layer already exists"), "{again:?}");

    // Another repository of the same registry takes the layers over without their bytes.
    engine.docker(&["tag", "127.0.0.1:5001/team/app:1", "127.0.0.1:5001/other/app:2"]).ok();
    engine.docker(&["push", "-q", "127.0.0.1:5001/other/app:2"]).ok();
    let log = registry.log();
    let mounts = log
        .lines()
        .filter(|line| line.contains("/v2/other/app/blobs/uploads/?") && line.contains("mount=sha256"))
        .filter(|line| line.contains("\" 201 "))
        .count();
    assert!(mounts >= 2, "{mounts} mounts\n{log}");
    assert!(!log.contains("\"PUT /v2/other/app/blobs"), "bytes were sent\n{log}");

    engine.docker(&["rmi", "127.0.0.1:5001/team/app:1", "127.0.0.1:5001/other/app:2", "busybox"]).ok();
    assert_eq!(engine.docker(&["images", "-q", "127.0.0.1:5001/team/app"]).ok(), "");
    let by_digest = format!("127.0.0.1:5001/team/app@{id}");
    let pulled = engine.docker(&["pull", &by_digest]);
    assert!(pulled.ok().contains(&format!("Digest: {id}")), "{pulled:?}");
    assert!(pulled.ok().contains("Pull complete"), "{pulled:?}");
    assert_eq!(engine.docker(&["run", "--rm", &by_digest, "cat", "/file"]).ok(), "kept");
    assert_eq!(
        engine.docker(&["pull", "-q", "127.0.0.1:5001/other/app:2"]).ok(),
        "127.0.0.1:5001/other/app:2"
    );
    assert_eq!(digest_of(&engine, "127.0.0.1:5001/other/app:2"), id);
    let all = engine.docker(&["pull", "-a", "127.0.0.1:5001/other/app"]);
    assert!(all.ok().contains("Image is up to date"), "{all:?}");
    engine.docker(&["pull", "127.0.0.1:5001/team/app:none"]).fails(1, "not found");
    engine.docker(&["push", "127.0.0.1:5001/team/app:none"]).fails(1, "tag does not exist");
}

#[test]
fn passwords_are_asked_for_and_checked() {
    let engine = Engine::start();
    let hashed = Command::new("htpasswd").args(["-nbB", USER, PASSWORD]).output().expect("htpasswd runs");
    let file = engine.path("htpasswd");
    std::fs::write(&file, hashed.stdout).expect("a password file");
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {file:?}}}}}\n");
    let _registry = Registry::start(&engine, "closed", "127.0.0.1:5002", "", &auth);
    engine.load_busybox();
    let name = "127.0.0.1:5002/team/bb:1";
    engine.docker(&["tag", "busybox", name]).ok();
    engine.docker(&["push", name]).fails(1, "no basic auth credentials");
    let login = |password: &str| engine.docker(&["login", "-u", USER, "-p", password, "127.0.0.1:5002"]);
    login("wrong").fails(1, "401 Unauthorized");
    assert!(login(PASSWORD).ok().contains("Login Succeeded"));
    engine.docker(&["push", "-q", name]).ok();
    engine.docker(&["rmi", name]).ok();
    engine.docker(&["pull", "-q", name]).ok();
    engine.docker(&["logout", "127.0.0.1:5002"]).ok();
    engine.docker(&["rmi", name]).ok();
    engine.docker(&["pull", name]).fails(1, "no basic auth credentials");
    // What a client sent with one request is forgotten with it.
    assert!(!engine.log().contains(PASSWORD), "the password is in the log");
}

#[test]
fn a_private_ca_is_trusted_where_it_is_named() {
    let engine = Engine::start();
    let address = "198.51.100.77";
    for args in [
        ["link", "add", "up0", "type", "bridge"].as_slice(),
        &["addr", "add", "198.51.100.77/24", "dev", "up0"],
        &["link", "set", "up0", "up"],
    ] {
        let done = engine.netns().command("ip").args(args).output().expect("ip runs");
        assert!(done.status.success(), "{done:?}");
    }
    let (key, certificate) = (engine.path("key.pem"), engine.path("cert.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=test", "-addext", &format!("subjectAltName=IP:{address}")])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{made:?}");
    // A port of its own: the directory of its certificates is the machine's.
    let port = 20_000 + std::process::id() % 20_000;
    let host = format!("{address}:{port}");
    let tls = format!(", tls: {{certificate: {certificate:?}, key: {key:?}}}");
    let _registry = Registry::start(&engine, "tls", &host, &tls, "");
    engine.load_busybox();
    let name = format!("{host}/bb:1");
    engine.docker(&["tag", "busybox", &name]).ok();
    engine.docker(&["push", &name]).fails(1, "x509: certificate signed by unknown authority");
    let _trusted = CertsDir::new(&host, &certificate);
    engine.docker(&["push", "-q", &name]).ok();
    engine.docker(&["rmi", &name]).ok();
    engine.docker(&["pull", "-q", &name]).ok();
}

#[test]
fn a_mirror_serves_for_docker_hub_over_a_wire_that_breaks() {
    let engine = Engine::start_with(&["--registry-mirror", "http://127.0.0.1:5004"]);
    let registry = Registry::start(&engine, "mirror", "127.0.0.1:5003", "", "");
    // Two megabytes that no transport shrinks.
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(2 << 20)
    .collect();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(noise.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "noise", noise.as_slice()).expect("memory");
    let layer = tar.into_inner().expect("memory");
    let archive = engine.path("noise.tar");
    let name = "127.0.0.1:5003/library/noise:1";
    std::fs::write(&archive, image::archive(name, &layer, &serde_json::json!({"Cmd": ["x"]})))
        .expect("a file");
    engine.docker(&["load", "-q", "-i", &archive.to_string_lossy()]).ok();
    let id = digest_of(&engine, name);
    engine.docker(&["push", "-q", name]).ok();
    engine.docker(&["rmi", name]).ok();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("registry/cut.py");
    let wire = engine
        .netns()
        .command("python3")
        .arg(script)
        .args(["5004", "5003", "2", "600000"])
        .stdin(Stdio::null())
        .spawn()
        .expect("python3 runs");
    let _wire = Process(wire);
    wait_for("the wire", || {
        let asked = engine.netns().command("curl").args(["-sf", "http://127.0.0.1:5004/v2/"]).output();
        asked.expect("curl runs").status.success()
    });
    let pulled = engine.docker(&["pull", "noise:1"]);
    assert!(pulled.ok().contains("Downloaded newer image for noise:1"), "{pulled:?}");
    assert_eq!(digest_of(&engine, "noise:1"), id);
    let log = registry.log();
    let rests =
        log.lines().filter(|line| line.contains("/v2/library/noise/blobs/") && line.contains("\" 206 "));
    assert_eq!(rests.count(), 2, "each cut is taken up where it was\n{log}");
    assert!(log.contains("ns=docker.io"), "the mirror is told which registry is meant\n{log}");
}

/// The sorted lines of a tar's table of contents.
fn listing(tar: &Path) -> Vec<String> {
    let listed = Command::new("tar").arg("-tf").arg(tar).output().expect("tar runs");
    assert!(listed.status.success(), "{listed:?}");
    let mut lines: Vec<String> = String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn archives_are_other_tools_archives() {
    let engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["tag", "busybox", "team/bb:2"]).ok();
    let id = digest_of(&engine, "busybox");
    let path = |name: &str| engine.path(name).to_string_lossy().into_owned();
    let skopeo = |args: &[&str]| {
        let ran: e2e_tests::Ran = Command::new("skopeo").args(args).output().expect("skopeo runs").into();
        ran
    };

    // Ours, read by skopeo in both forms.
    engine.docker(&["save", "-o", &path("saved.tar"), "busybox", "team/bb:2"]).ok();
    let seen = skopeo(&["inspect", "--config", &format!("docker-archive:{}:team/bb:2", path("saved.tar"))]);
    let seen: Value = serde_json::from_str(seen.ok()).expect("a configuration");
    assert_eq!(seen["config"]["Cmd"][0], "sh");
    std::fs::create_dir(engine.path("layout")).expect("a directory");
    engine.docker(&["save", "-o", &path("one.tar"), "team/bb:2"]).ok();
    let unpacked = Command::new("tar").args(["-xf", &path("one.tar"), "-C", &path("layout")]).status();
    assert!(unpacked.expect("tar runs").success());
    let raw = skopeo(&["inspect", "--raw", &format!("oci:{}", path("layout"))]);
    assert!(raw.ok().contains("layers"), "{raw:?}");

    // Theirs, read by us.
    let archive = format!("docker-archive:{}", path("saved.tar"));
    for (form, file, name) in
        [("docker-archive", "s1.tar", "from/docker:1"), ("oci-archive", "s2.tar", "docker.io/from/oci:1")]
    {
        skopeo(&["copy", "-q", &format!("{archive}:team/bb:2"), &format!("{form}:{}:{name}", path(file))])
            .ok();
        let loaded = engine.docker(&["load", "-i", &path(file)]);
        assert!(loaded.ok().contains(name.trim_start_matches("docker.io/")), "{form}: {loaded:?}");
        assert_eq!(engine.docker(&["run", "--rm", name, "echo", "runs"]).ok(), "runs", "{form}");
    }

    // containerd's own client: the same store, the same archives.
    engine.ctr(&["images", "export", &path("ctr.tar"), "docker.io/team/bb:2"]).ok();
    engine.docker(&["rmi", "-f", "team/bb:2", "busybox"]).ok();
    // What others change is heard, not asked for: it takes a moment.
    let known = || engine.docker(&["image", "inspect", "team/bb:2"]).code == 0;
    engine.ctr(&["images", "import", &path("ctr.tar")]).ok();
    wait_for("the engine to hear of the import", known);
    assert_eq!(digest_of(&engine, "team/bb:2"), id);
    engine.ctr(&["images", "rm", "docker.io/team/bb:2"]).ok();
    wait_for("the engine to hear of the removal", || !known());
    engine.docker(&["load", "-q", "-i", &path("ctr.tar")]).ok();
    assert_eq!(digest_of(&engine, "team/bb:2"), id);

    // A container's file system as a tar, and a tar as an image.
    let container = engine.docker(&["create", "team/bb:2"]).ok().to_owned();
    engine.docker(&["export", "-o", &path("root.tar"), &container]).ok();
    let files = listing(&engine.path("root.tar"));
    assert!(files.iter().any(|file| file == "bin/busybox"), "{files:?}");
    engine.docker(&["import", "-c", "CMD [\"sh\"]", &path("root.tar"), "flat:1"]).ok();
    assert_eq!(engine.docker(&["run", "--rm", "flat:1", "sh", "-c", "echo $0"]).ok(), "sh");
    engine.docker(&["rm", &container]).ok();
}

#[test]
fn a_load_that_is_killed_leaves_nothing() {
    use std::io::Write as _;
    let mut engine = Engine::start();
    let archive = image::busybox();
    let mut client = engine.docker_command(&["load"]).stdin(Stdio::piped()).spawn().expect("docker runs");
    let mut input = client.stdin.take().expect("a pipe");
    // Half the layer: the rest of it is waited for.
    input.write_all(&archive[..archive.len() / 2]).expect("the client reads");
    let writes = |engine: &Engine| engine.ctr(&["content", "active"]).stdout.contains("engine-");
    let leases = |engine: &Engine| engine.ctr(&["leases", "list", "-q"]).stdout.contains("engine-");
    wait_for("the blob to be begun", || writes(&engine));
    assert!(leases(&engine));
    engine.kill_dockerd();
    drop(input);
    assert!(!client.wait().expect("docker ends").success());
    engine.spawn();
    wait_for("the former run's work to be given back", || !writes(&engine) && !leases(&engine));
    engine.load_busybox();
    assert_eq!(engine.docker(&["run", "--rm", "busybox", "echo", "whole"]).ok(), "whole");
    // When a container is gone its image's last use stays known.
    assert_ne!(engine.inspect("busybox", "{{.Metadata.LastTagTime}}"), "");
    let raw = engine.docker(&["image", "prune", "-a", "-f", "--filter", "unused-for=1h"]);
    assert!(!raw.ok().contains("busybox"), "{raw:?}");
    let raw = engine.docker(&["image", "prune", "-a", "-f", "--filter", "unused-for=0"]);
    assert!(raw.ok().contains("untagged: busybox:latest"), "{raw:?}");
}
