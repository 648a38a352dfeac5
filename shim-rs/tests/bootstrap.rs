//! `start` as each generation of containerd calls it, and what every one of them gets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::eventually;
use prost::Message;
use shim_api::bootstrap::{BootstrapParams, BootstrapResult};
use shim_api::{service, task};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { directory: tempfile::Builder::new().prefix("shim-rs-test").tempdir().unwrap() }
    }

    fn bundle(&self, id: &str, config: &str) -> PathBuf {
        let bundle = self.directory.path().join(id);
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::write(bundle.join("config.json"), config).unwrap();
        bundle
    }

    fn command(&self, id: &str, bundle: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-rs-v2"));
        command
            .args(["-namespace", "shim-rs-test", "-id", id, "-address"])
            .arg(self.directory.path().join("c.sock"));
        command.arg("start").current_dir(bundle).env_remove("MAX_SHIM_VERSION").env_remove("TTRPC_ADDRESS");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    fn start(&self, id: &str, bundle: &Path, max_version: Option<&str>, input: &[u8]) -> Vec<u8> {
        let mut command = self.command(id, bundle);
        if let Some(max) = max_version {
            command.env("MAX_SHIM_VERSION", max);
        }
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    }
}

/// Asks a shim who it is, by one name of its service, and shuts it down.
fn connect_and_end(address: &str, service: &str) -> i32 {
    let path = address.strip_prefix("unix://").unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pid = runtime.block_on(async {
        let client = ttrpc::Client::connect(&path).await.unwrap();
        let patience = Some(common::PATIENCE);
        let who: task::ConnectResponse = client
            .unary(service, "Connect", &task::ConnectRequest::default(), Vec::new(), patience)
            .await
            .unwrap();
        let unknown: Result<(), _> = client.unary(service, "Dance", &(), Vec::new(), patience).await;
        assert_eq!(unknown.unwrap_err().code(), ttrpc::Code::Unimplemented);
        let missing: Result<task::StateResponse, _> =
            client.unary(service, "State", &task::StateRequest::default(), Vec::new(), patience).await;
        assert_eq!(missing.unwrap_err().to_string(), "container not created: not found");
        let garbage = client.call(service, "Create", vec![0xff; 40], Vec::new(), patience).await;
        assert_eq!(garbage.unwrap_err().code(), ttrpc::Code::InvalidArgument);
        client
            .unary::<_, ()>(service, "Shutdown", &task::ShutdownRequest::default(), Vec::new(), patience)
            .await
            .unwrap();
        who.shim_pid as i32
    });
    eventually("the shim ends", || common::is_zombie(pid));
    assert!(!Path::new(&path).exists());
    pid
}

#[test]
fn every_containerd_is_answered_in_its_own_dialect() {
    let place = Place::new();
    let bundle = place.bundle("plain", "{}");
    let plain = String::from_utf8(place.start("plain", &bundle, None, b"")).unwrap();
    assert_eq!(std::fs::read_to_string(bundle.join("address")).unwrap(), plain);
    connect_and_end(&plain, service::TASK_V2);

    for (max, version) in [("2", 2), ("3", 3), ("7", 3)] {
        let bundle = place.bundle("json", "{}");
        let answer: serde_json::Value =
            serde_json::from_slice(&place.start("json", &bundle, Some(max), b"")).unwrap();
        assert_eq!((answer["version"].as_i64(), answer["protocol"].as_str()), (Some(version), Some("ttrpc")));
        connect_and_end(answer["address"].as_str().unwrap(), service::TASK_V3);
    }

    let params = BootstrapParams {
        instance_id: "new".into(),
        namespace: "shim-rs-test".into(),
        containerd_grpc_address: "/nowhere".into(),
        ..Default::default()
    };
    let bundle = place.bundle("new", "{}");
    let answer = place.start("new", &bundle, Some("4"), &params.encode_to_vec());
    let result = BootstrapResult::decode(answer.as_slice()).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    assert_eq!(result.metadata["io.dockerd-rs.shim.stdio"], "1");
    connect_and_end(&result.address, service::TASK_V3);
}

#[test]
fn containers_of_one_sandbox_share_a_shim_and_a_dead_one_is_replaced() {
    let place = Place::new();
    let config = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#;
    let (pod, other) = (place.bundle("pod", config), place.bundle("other", config));
    let first = String::from_utf8(place.start("pod", &pod, None, b"")).unwrap();
    let second = String::from_utf8(place.start("other", &other, None, b"")).unwrap();
    assert_eq!(first, second);
    assert_eq!(std::fs::read_to_string(other.join("address")).unwrap(), first);
    let pid: i32 = std::fs::read_to_string(pod.join("shim.pid")).unwrap().parse().unwrap();
    sys::pidfd::PidFd::open(pid).unwrap().signal(9).unwrap();
    eventually("the shim is dead", || common::is_zombie(pid));
    // Its socket is still there and nobody answers.
    let third = String::from_utf8(place.start("other", &other, None, b"")).unwrap();
    assert_eq!(third, first);
    assert_ne!(connect_and_end(&third, service::TASK_V3), pid);
}

#[test]
fn a_shim_that_containerd_has_lost_is_replaced() {
    let place = Place::new();
    let bundle = place.bundle("lost", "{}");
    let first = String::from_utf8(place.start("lost", &bundle, None, b"")).unwrap();
    let pid: i32 = std::fs::read_to_string(bundle.join("shim.pid")).unwrap().parse().unwrap();
    // Nobody shares it, and containerd has no task of that name: else it would not ask for a start.
    let second = String::from_utf8(place.start("lost", &bundle, None, b"")).unwrap();
    assert_eq!(second, first);
    eventually("the lost one ends", || common::is_zombie(pid));
    assert_ne!(connect_and_end(&second, service::TASK_V3), pid);
}

#[test]
fn a_shim_holds_nothing_of_its_caller_s() {
    let place = Place::new();
    let bundle = place.bundle("free", "{}");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = place.command("free", &bundle);
    // An inherited descriptor that nobody meant to pass on.
    sys::fork::pass_descriptors(&mut command, vec![writer.into()]);
    let output = command.output().unwrap();
    drop(command);
    assert!(output.status.success());
    let mut nothing = Vec::new();
    std::io::Read::read_to_end(&mut &reader, &mut nothing).unwrap();
    let pid: i32 = std::fs::read_to_string(bundle.join("shim.pid")).unwrap().parse().unwrap();
    for stream in 0..3 {
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap(), Path::new("/dev/null"));
    }
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string());
    // It is there for the container: only SIGKILL ends it.
    let process = sys::pidfd::PidFd::open(pid).unwrap();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        process.signal(signal as u32).unwrap();
    }
    connect_and_end(&String::from_utf8(output.stdout).unwrap(), service::TASK_V3);
}
