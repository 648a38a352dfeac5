//! Streams arrive whole: through run, logs, stdin, and a terminal.

use std::io::{Read, Write};
use std::process::Stdio;

use e2e_tests::{Engine, Ran, wait_for};

fn sequence(to: u32) -> String {
    (1..=to).map(|n| format!("{n}\n")).collect()
}

#[test]
fn a_million_lines_arrive_every_time() {
    let engine = Engine::start();
    engine.load_busybox();
    let expected = sequence(1_000_000);
    for round in 0..10 {
        let ran = engine.docker(&["run", "--name", "c1", "busybox", "seq", "1000000"]);
        assert_eq!(ran.code, 0);
        assert!(
            ran.stdout == expected,
            "round {round}: run gave {} of {} bytes",
            ran.stdout.len(),
            expected.len()
        );
        let logs = engine.docker(&["logs", "c1"]);
        assert!(
            logs.stdout == expected,
            "round {round}: logs gave {} of {} bytes",
            logs.stdout.len(),
            expected.len()
        );
        engine.docker(&["rm", "c1"]).ok();
    }
    let tail = engine.docker(&["run", "--name", "t1", "busybox", "seq", "100"]);
    tail.ok();
    assert_eq!(engine.docker(&["logs", "--tail", "3", "t1"]).stdout, "98\n99\n100\n");
}

#[test]
fn stdin_comes_back_identical() {
    let engine = Engine::start();
    engine.load_busybox();
    let input: Vec<u8> = (0..100_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut child = engine
        .docker_command(&["run", "--rm", "-i", "busybox", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("docker runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    let to_write = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&to_write));
    let mut output = Vec::new();
    child.stdout.take().expect("a pipe").read_to_end(&mut output).expect("read");
    writer.join().expect("no panic").expect("everything is taken");
    assert!(child.wait().expect("wait").success());
    assert!(output == input, "{} of {} bytes came back", output.len(), input.len());
}

#[test]
fn a_terminal_behaves() {
    let engine = Engine::start();
    engine.load_busybox();
    // script(1) gives the client a real terminal of a known size.
    let run = |command: &str| -> Ran {
        let docker = e2e_tests::peer_dir().join("docker");
        let line =
            format!("stty rows 33 cols 77; {} run --rm -it busybox sh -c '{command}'", docker.display());
        let mut script = engine.netns().command("script");
        script
            .args(["-qec", &line, "/dev/null"])
            .env("DOCKER_HOST", format!("unix://{}", engine.socket().display()));
        script.stdin(Stdio::piped()).output().expect("script runs").into()
    };
    assert!(run("tty; exit 3").stdout.contains("/dev/pts/0"));
    assert_eq!(run("exit 3").code, 3);
    let size = run(
        "for i in 1 2 3 4 5 6 7 8 9 10; do [ \"$(stty size)\" = \"33 77\" ] && break; usleep 100000; done; stty size",
    );
    assert!(size.stdout.contains("33 77"), "{size:?}");
}

#[test]
fn following_a_log_sees_every_line_and_ends() {
    let engine = Engine::start();
    engine.load_busybox();
    engine
        .docker(&["run", "-d", "--name", "c1", "busybox", "sh", "-c", "seq 1 1000; sleep 0.5; seq 1001 2000"])
        .ok();
    let followed = engine.docker(&["logs", "-f", "c1"]);
    assert_eq!(followed.stdout, sequence(2000));
    engine.docker(&["run", "-d", "--name", "both", "busybox", "sh", "-c", "echo out; echo err >&2"]).ok();
    wait_for("the end", || engine.inspect("both", "{{.State.Status}}") == "exited");
    let logs = engine.docker(&["logs", "both"]);
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn a_stuck_reader_holds_nobody_up() {
    let engine = Engine::start();
    engine.load_busybox();
    engine
        .docker(&[
            "run",
            "-d",
            "--name",
            "c1",
            "busybox",
            "sh",
            "-c",
            "while :; do echo 0123456789012345678901234567890123456789012345678901234567890123456789; done",
        ])
        .ok();
    let mut stuck =
        engine.docker_command(&["attach", "c1"]).stdout(Stdio::piped()).spawn().expect("docker runs");
    // Nobody reads the pipe: the client blocks once it is full.
    let size = || engine.docker(&["exec", "c1", "cat", "/proc/1/io"]).stdout;
    let first = size();
    wait_for("the container to write on", || size() != first);
    engine.docker(&["rm", "-f", "c1"]).ok();
    stuck.kill().expect("kill the client");
    stuck.wait().expect("reap the client");
}

/// A client sends its signals on as soon as it sees output, which may be before the engine has noted the start.
#[test]
fn a_signal_at_the_first_line_is_not_lost() {
    let engine = Engine::start();
    engine.load_busybox();
    let script = "trap 'exit 9' TERM; echo up; while true; do usleep 50000; done";
    for round in 0..8 {
        let mut client = engine
            .docker_command(&["run", "--rm", "busybox", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("docker runs");
        let mut line = [0; 3];
        client.stdout.as_mut().expect("a pipe").read_exact(&mut line).expect("a line");
        let pid = rustix::process::Pid::from_child(&client);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the client is there");
        assert_eq!(client.wait().expect("wait").code(), Some(9), "round {round}");
    }
}
