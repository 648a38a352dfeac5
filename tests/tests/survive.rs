//! Whatever is killed, no container, no line and no exit code is lost.

use std::thread::sleep;
use std::time::Duration;

use e2e_tests::{Engine, host, wait_for};

/// Numbered lines until told to stop; the last line is the number of lines.
const COUNTER: &str =
    "n=0; trap 'echo end $n; exit 7' TERM; while :; do n=$((n+1)); echo line $n; usleep 5000; done";

fn numbered(log: &str) -> usize {
    for (at, line) in log.lines().filter(|line| line.starts_with("line ")).enumerate() {
        assert_eq!(line, format!("line {}", at + 1), "a line is missing or doubled");
    }
    log.lines().filter(|line| line.starts_with("line ")).count()
}

#[test]
fn containers_outlive_both_daemons() {
    let mut engine = Engine::start();
    engine.load_busybox();
    let names: Vec<String> = (0..20).map(|n| format!("c{n}")).collect();
    for name in &names {
        engine.docker(&["run", "-d", "--name", name, "busybox", "sh", "-c", COUNTER]).ok();
    }
    let pids: Vec<i32> =
        names.iter().map(|name| engine.inspect(name, "{{.State.Pid}}").parse().expect("a pid")).collect();
    engine.kill_dockerd();
    engine.kill_containerd();
    sleep(Duration::from_millis(500));
    assert!(pids.iter().all(|pid| host::alive(*pid)), "a container died with a daemon");
    // Three of them end while nobody looks.
    for pid in &pids[..3] {
        host::kill(*pid, 15);
    }
    wait_for("three to end", || pids[..3].iter().all(|pid| !host::alive(*pid)));
    engine.spawn();
    for (name, pid) in names.iter().zip(&pids).skip(3) {
        assert_eq!(engine.inspect(name, "{{.State.Running}} {{.State.Pid}}"), format!("true {pid}"));
        assert_eq!(engine.docker(&["exec", name, "echo", "here"]).ok(), "here");
    }
    for name in &names[..3] {
        wait_for("the end to be known", || {
            engine.inspect(name, "{{.State.Status}} {{.State.ExitCode}}") == "exited 7"
        });
        let log = engine.docker(&["logs", name]).stdout;
        let lines = numbered(&log);
        assert!(
            log.ends_with(&format!("end {lines}\n")),
            "the last lines are lost: {:?}",
            log.lines().last()
        );
    }
    for name in &names[3..] {
        engine.docker(&["stop", name]).ok();
        let log = engine.docker(&["logs", name]).stdout;
        let lines = numbered(&log);
        assert!(log.ends_with(&format!("end {lines}\n")));
        assert_eq!(engine.inspect(name, "{{.State.ExitCode}}"), "7");
    }
}

#[test]
fn containerd_dies_under_a_living_dockerd() {
    let engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["run", "-d", "--name", "stays", "busybox", "sh", "-c", COUNTER]).ok();
    engine.docker(&["run", "-d", "--name", "goes", "busybox", "sh", "-c", COUNTER]).ok();
    let pid: i32 = engine.inspect("goes", "{{.State.Pid}}").parse().expect("a pid");
    engine.kill_containerd();
    host::kill(pid, 9);
    wait_for("the end to be known", || {
        engine.inspect("goes", "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
    });
    wait_for("exec to work again", || engine.docker(&["exec", "stays", "true"]).code == 0);
    engine.docker(&["stop", "stays"]).ok();
    numbered(&engine.docker(&["logs", "stays"]).stdout);
}

#[test]
fn a_killed_shim_leaves_nothing() {
    let engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["run", "-d", "--name", "c1", "busybox", "sleep", "1000"]).ok();
    let pid: i32 = engine.inspect("c1", "{{.State.Pid}}").parse().expect("a pid");
    host::kill(host::parent(pid).expect("a shim"), 9);
    wait_for("the container to be over", || {
        engine.inspect("c1", "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
    });
    wait_for("init to be gone", || !host::alive(pid));
    engine.docker(&["start", "c1"]).ok();
    engine.docker(&["rm", "-f", "c1"]).ok();
}

#[test]
fn auto_remove_works_without_the_client() {
    let mut engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["run", "-d", "--rm", "--name", "c1", "busybox", "sleep", "1000"]).ok();
    let pid: i32 = engine.inspect("c1", "{{.State.Pid}}").parse().expect("a pid");
    engine.kill_dockerd();
    host::kill(pid, 9);
    engine.spawn();
    wait_for("the container to be removed", || engine.docker(&["ps", "-aq"]).ok().is_empty());
}

#[test]
fn a_restart_policy_outlives_the_daemon() {
    let mut engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["run", "-d", "--restart", "always", "--name", "c1", "busybox", "sleep", "1000"]).ok();
    let pid: i32 = engine.inspect("c1", "{{.State.Pid}}").parse().expect("a pid");
    engine.kill_dockerd();
    host::kill(pid, 9);
    engine.spawn();
    wait_for("the container to run again", || {
        engine.inspect("c1", "{{.State.Running}}") == "true"
            && engine.inspect("c1", "{{.State.Pid}}") != pid.to_string()
    });
}
