//! The native stdio mode, end to end: the shim's binary and runc, no containerd.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, Read, Write};
use std::time::Duration;

use common::{Shim, Spec, eventually, frames};
use shim_api::{task, topic};

fn shell(script: &str) -> Vec<&str> {
    vec!["/bin/sh", "-c", script]
}

#[test]
fn output_is_logged_and_the_exit_recorded_before_it_is_told() {
    let args = shell("echo out; echo err >&2; printf 'no end'; exit 7");
    let shim = Shim::start("log", &Spec { args: &args, terminal: false }, true);
    shim.create_native(serde_json::json!({"log": {"attrs": {"k": "v"}}}), false).unwrap();
    let mut client = shim.attach(r#"{"stdout":true,"stderr":true}"#);
    shim.start_task("");
    let exit = shim.wait("");
    // Told: so the record and the whole log are there, without waiting.
    assert_eq!(exit.exit_status, 7);
    let record = shim.record();
    assert_eq!(
        (record["exit_code"].as_u64(), record["signal"].as_u64(), record["oom_killed"].as_bool()),
        (Some(7), Some(0), Some(false))
    );
    assert_eq!(record["id"], shim.id.as_str());
    assert_eq!(shim.logged("stdout"), "out\nno end");
    assert_eq!(shim.logged("stderr"), "err\n");
    assert!(std::fs::read_to_string(shim.log_path()).unwrap().contains(r#","attrs":{"k":"v"},"time":""#));
    let received = frames(&mut client);
    let joined = |stream: u8| {
        received
            .iter()
            .filter(|frame| frame.0 == stream)
            .flat_map(|frame| frame.1.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!((joined(1), joined(2)), (b"out\nno end".to_vec(), b"err\n".to_vec()));
    let seen = shim.topics_until(topic::TASK_EXIT);
    assert_eq!(seen, [topic::TASK_CREATE, topic::TASK_START, topic::TASK_EXIT]);
    assert_eq!(shim.finish().exit_status, 7);
}

#[test]
fn input_comes_from_the_socket_and_ends_with_the_client_s() {
    let args = ["/bin/cat"];
    let shim = Shim::start("stdin", &Spec { args: &args, terminal: false }, false);
    shim.create_native(serde_json::json!({"stdin": true, "stdin_once": true}), false).unwrap();
    let mut client = shim.attach(r#"{"stdin":true,"stdout":true}"#);
    shim.start_task("");
    let data: Vec<u8> = (0..300_000u32).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let mut writer = client.get_ref().try_clone().unwrap();
    let sent = data.clone();
    let sending = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let received = frames(&mut client);
    sending.join().unwrap();
    assert_eq!(received.len(), 1);
    assert!(received[0].1 == data, "{} of {} bytes", received[0].1.len(), data.len());
    assert_eq!(shim.wait("").exit_status, 0);
    assert!(shim.logged("stdout").into_bytes() == data);
    shim.finish();
}

#[test]
fn a_terminal_is_raw_and_keeps_its_input_when_a_client_leaves() {
    let args = ["/bin/sh"];
    let shim = Shim::start("tty", &Spec { args: &args, terminal: true }, false);
    shim.create_native(serde_json::json!({"stdin": true, "stdin_once": true}), true).unwrap();
    let mut first = shim.attach(r#"{"stdin":true,"stdout":true}"#);
    shim.start_task("");
    let resize =
        task::ResizePtyRequest { id: shim.id.clone(), exec_id: String::new(), width: 91, height: 33 };
    shim.call::<_, ()>("ResizePty", &resize).unwrap();
    first.get_mut().write_all(b"stty size; echo first-$((1+1))\n").unwrap();
    let mut seen = String::new();
    while !seen.contains("first-2\r\n") {
        assert!(first.read_line(&mut seen).unwrap() > 0, "{seen}");
    }
    assert!(seen.contains("33 91"), "{seen}");
    drop(first);
    let mut second = shim.attach(r#"{"stdin":true,"stdout":true}"#);
    second.get_mut().write_all(b"exit 3\n").unwrap();
    let mut rest = Vec::new();
    second.read_to_end(&mut rest).unwrap();
    assert_eq!(shim.wait("").exit_status, 3);
    assert!(shim.logged("stdout").contains("first-2\r\n"));
    shim.finish();
}

#[test]
fn a_client_that_does_not_read_holds_nothing_up() {
    let args = shell("seq 1 400000; exit 4");
    let shim = Shim::start("stuck", &Spec { args: &args, terminal: false }, false);
    shim.create_native(serde_json::json!({}), false).unwrap();
    let mut stuck = shim.attach(r#"{"stdout":true}"#);
    shim.start_task("");
    assert_eq!(shim.wait("").exit_status, 4);
    let expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    assert!(shim.logged("stdout") == expected);
    assert_eq!(shim.delete("").unwrap().exit_status, 4);
    let shutdown = task::ShutdownRequest { id: shim.id.clone(), now: false };
    let pid = shim.shim_pid();
    shim.call::<_, ()>("Shutdown", &shutdown).unwrap();
    // The task is gone, and the client still gets everything when it does read.
    let received = frames(&mut stuck);
    assert!(received.len() == 1 && received[0].1 == expected.into_bytes());
    eventually("the shim ends", || common::is_zombie(pid));
    shim.nothing_is_left();
}

#[test]
fn execs_have_streams_of_their_own_and_exit_before_init() {
    let args = shell("sleep 1000");
    let shim = Shim::start("exec", &Spec { args: &args, terminal: false }, true);
    shim.create_native(serde_json::json!({}), false).unwrap();
    shim.start_task("");
    let exec = |name: &str, args: &[&str]| {
        let file = shim.directory.path().join(format!("{name}.json"));
        let socket = shim.directory.path().join(format!("{name}.sock"));
        let description = serde_json::json!({"version": 1, "socket": socket, "stdin": false});
        std::fs::write(&file, description.to_string()).unwrap();
        let process = common::process(&Spec { args, terminal: false }).to_string().into_bytes();
        let request = task::ExecProcessRequest {
            id: shim.id.clone(),
            exec_id: name.into(),
            stdout: format!("shim-io://{}", file.display()),
            spec: Some(prost_types::Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process,
            }),
            ..Default::default()
        };
        shim.call::<_, ()>("Exec", &request).unwrap();
        socket
    };
    let socket = exec("one", &shell("echo hello; exit 9"));
    let mut client = sys::unixpath::connect(&socket).unwrap();
    client.write_all(b"{\"attach\":{\"stdout\":true,\"stderr\":true}}\n").unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"{\"ok\":true}\n");
    shim.start_task("one");
    assert_eq!(shim.wait("one").exit_status, 9);
    assert_eq!(frames(&mut client), [(1, b"hello\n".to_vec())]);
    assert_eq!(shim.delete("one").unwrap().exit_status, 9);
    assert!(!socket.exists());
    // Nothing of an exec is in the container's log.
    assert_eq!(shim.logged("stdout"), "");

    exec("missing", &["/bin/nonexistent"]);
    let start = task::StartRequest { id: shim.id.clone(), exec_id: "missing".into() };
    let error = shim.call::<_, task::StartResponse>("Start", &start).unwrap_err().to_string();
    assert_eq!(
        error,
        "OCI runtime exec failed: exec failed: unable to start container process: exec: \"/bin/nonexistent\": stat /bin/nonexistent: no such file or directory"
    );
    shim.delete("missing").unwrap();

    exec("long", &shell("sleep 1000"));
    shim.start_task("long");
    exec("rt", &shell("sleep 1000"));
    shim.start_task("rt");
    shim.kill("rt", 40).unwrap();
    assert_eq!(shim.wait("rt").exit_status, 128 + 40);
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait("").exit_status, 137);
    assert_eq!(shim.record()["signal"], 9);
    let topics = shim.topics_until(topic::TASK_EXIT);
    assert_eq!(topics.last().unwrap(), topic::TASK_EXIT);
    assert_eq!(shim.wait("long").exit_status, 137);
    assert_eq!(shim.kill("", 9).unwrap_err().to_string(), "process already finished: not found");
    shim.finish();
}

#[test]
fn a_follower_hears_of_growth_and_of_the_end() {
    let args = shell("for i in 1 2 3; do read go; echo $i; done");
    let shim = Shim::start("follow", &Spec { args: &args, terminal: false }, false);
    shim.create_native(serde_json::json!({"stdin": true}), false).unwrap();
    let mut follower = shim.ask(r#"{"rotated":true}"#);
    let mut input = shim.attach(r#"{"stdin":true}"#);
    shim.start_task("");
    let mut hears = |line: &str| {
        let mut heard = String::new();
        follower.read_line(&mut heard).unwrap();
        assert_eq!(heard, line);
    };
    hears("{\"ok\":true}\n");
    hears("{\"log_seq\":0}\n");
    for seq in 1..=3 {
        // One at a time: growth that comes close together is told as one.
        input.get_mut().write_all(b"go\n").unwrap();
        hears(&format!("{{\"log_seq\":{seq}}}\n"));
    }
    let mut rest = String::new();
    follower.read_to_string(&mut rest).unwrap();
    assert!(rest.lines().all(|line| line == "{\"log_seq\":3}"), "{rest}");
    shim.wait("");
    let status = shim.status();
    assert_eq!(
        (status["ok"].as_bool(), status["dropped"].as_u64(), status["log_seq"].as_u64()),
        (Some(true), Some(0), Some(3))
    );
    let mut line = String::new();
    shim.ask("{\"flush\":true}").read_line(&mut line).unwrap();
    assert_eq!(line, "{\"ok\":true}\n");
    line.clear();
    shim.ask("nonsense").read_line(&mut line).unwrap();
    assert!(line.contains("\"error\":\"bad request: ") && line.contains("\"ok\":false"), "{line}");
    shim.finish();
}

#[test]
fn a_kill_for_want_of_memory_is_told_and_recorded() {
    // The shell lives on: what the kernel kills is not init, and the code does not give it away. The limit is far above what the runtime itself needs
    // before it turns into the shell, or that would be what is killed.
    let args = shell("head -c 400000000 /dev/zero | tail; exit 6");
    let shim = Shim::start("oom", &Spec { args: &args, terminal: false }, true);
    shim.configure(|config| {
        config["linux"]["resources"] = serde_json::json!({"memory": {"limit": 64 << 20}})
    });
    shim.create_native(serde_json::json!({}), false).unwrap();
    shim.start_task("");
    assert_eq!(shim.wait("").exit_status, 6);
    assert_eq!(shim.record()["oom_killed"], true);
    let topics = shim.topics_until(topic::TASK_EXIT);
    assert!(topics.contains(&topic::TASK_OOM.to_owned()), "{topics:?}");
    shim.finish();
}

#[test]
fn events_wait_for_a_listener_and_keep_their_order_and_time() {
    let args = shell("exit 12");
    let shim = Shim::start("late", &Spec { args: &args, terminal: false }, false);
    shim.create_native(serde_json::json!({}), false).unwrap();
    shim.start_task("");
    let exited_at = shim.wait("").exited_at.unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let events = common::listen_for_events(&shim.directory.path().join("events.sock"));
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(events.recv_timeout(common::PATIENCE).unwrap());
    }
    let topics: Vec<&str> = seen.iter().map(|event| event.topic.as_str()).collect();
    assert_eq!(topics, [topic::TASK_CREATE, topic::TASK_START, topic::TASK_EXIT]);
    let exit: shim_api::events::TaskExit =
        prost::Message::decode(seen[2].event.as_ref().unwrap().value.as_slice()).unwrap();
    assert_eq!((exit.exit_status, exit.exited_at), (12, Some(exited_at)));
    assert_eq!(seen[2].event.as_ref().unwrap().type_url, "containerd.events.TaskExit");
    shim.finish();
}

#[test]
fn named_pipes_lose_nothing_when_their_reader_is_replaced() {
    let args = shell("read first; echo got $first; seq 1 200000; cat; exit 8");
    let shim = Shim::start("fifo", &Spec { args: &args, terminal: false }, false);
    let [stdin, stdout, stderr] = shim.create_fifos();
    let reader = || std::fs::OpenOptions::new().read(true).open(&stdout).unwrap();
    let mut first = reader();
    let _errors = sys::fifo::open_reader(&stderr).unwrap();
    shim.start_task("");
    let mut writer = std::fs::OpenOptions::new().write(true).open(&stdin).unwrap();
    writer.write_all(b"word\n").unwrap();
    let mut seen = vec![0; 5000];
    first.read_exact(&mut seen).unwrap();
    drop(first);
    // Nobody reads now; the container fills the pipe and waits.
    std::thread::sleep(Duration::from_millis(200));
    let mut second = reader();
    // The writer leaves without a word: the process must not take that for the end of its input.
    drop(writer);
    let mut writer = std::fs::OpenOptions::new().write(true).open(&stdin).unwrap();
    writer.write_all(b"last words").unwrap();
    drop(writer);
    shim.call::<_, ()>(
        "CloseIO",
        &task::CloseIoRequest { id: shim.id.clone(), exec_id: String::new(), stdin: true },
    )
    .unwrap();
    second.read_to_end(&mut seen).unwrap();
    let mut expected = "got word\n".to_owned();
    (1..=200_000).for_each(|n| expected.push_str(&format!("{n}\n")));
    expected.push_str("last words");
    assert!(seen == expected.into_bytes());
    assert_eq!(shim.wait("").exit_status, 8);
    assert_eq!(shim.finish().exit_status, 8);
}

#[test]
fn a_killed_shim_is_cleaned_up_after() {
    let args = shell("sleep 1000");
    let shim = Shim::start("killed", &Spec { args: &args, terminal: false }, false);
    shim.create_native(serde_json::json!({}), false).unwrap();
    let init = shim.start_task("") as i32;
    let pid = shim.shim_pid();
    let process = sys::pidfd::PidFd::open(pid).unwrap();
    process.signal(9).unwrap();
    eventually("the shim is dead", || common::is_zombie(pid));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_containerd-shim-rs-v2"))
        .args(["-namespace", "shim-rs-test", "-id", &shim.id, "-address"])
        .arg(shim.directory.path().join("containerd.sock"))
        .arg("-bundle")
        .arg(&shim.bundle)
        .arg("delete")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer = <task::DeleteResponse as prost::Message>::decode(output.stdout.as_slice()).unwrap();
    assert_eq!((answer.exit_status, answer.pid as i32), (137, init));
    eventually("init is dead", || common::is_zombie(init));
    shim.nothing_is_left();
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let args = shell("true");
    for (description, error) in [
        (serde_json::json!({"version": 9}), "stdio description has version 9, this shim understands 1"),
        (
            serde_json::json!({"log": {"driver": "syslog"}}),
            "log driver \"syslog\" is not one of json-file, local, none",
        ),
    ] {
        let shim = Shim::start("refused", &Spec { args: &args, terminal: false }, false);
        let refused = shim.create_native(description, false).unwrap_err();
        assert_eq!((refused.code(), refused.to_string().as_str()), (ttrpc::Code::InvalidArgument, error));
        let pid = shim.shim_pid();
        shim.call::<_, ()>("Shutdown", &task::ShutdownRequest { id: shim.id.clone(), now: false }).unwrap();
        eventually("the shim ends", || common::is_zombie(pid));
        shim.nothing_is_left();
    }
    let shim = Shim::start("nocmd", &Spec { args: &["/bin/nope"], terminal: false }, false);
    let refused = shim.create_native(serde_json::json!({}), false).unwrap_err().to_string();
    assert_eq!(
        refused,
        "OCI runtime create failed: runc create failed: unable to start container process: exec: \"/bin/nope\": stat /bin/nope: no such file or directory"
    );
    // What runc printed to the container's streams is no output of the container's.
    assert_eq!(std::fs::read_to_string(shim.log_path()).unwrap(), "");
    let pid = shim.shim_pid();
    shim.call::<_, ()>("Shutdown", &task::ShutdownRequest { id: shim.id.clone(), now: false }).unwrap();
    eventually("the shim ends", || common::is_zombie(pid));
    shim.nothing_is_left();
}
