//! Whatever is killed, no container, no line and no exit code is lost.

use std::thread::sleep;
use std::time::Duration;

use e2e_tests::{Engine, host, wait_for};

/// Numbered lines until told to stop; the last line is the number of lines.
const COUNTER: &str = "n=0; trap 'stop=1' TERM; while [ -z \"$stop\" ]; do n=$((n+1)); echo line $n; usleep 5000; done; echo end $n; exit 7";

/// The same, as fast as it goes.
fn fast_counter() -> String {
    COUNTER.replace(" usleep 5000;", "")
}

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
fn fifty_containers_lose_no_line_while_the_daemons_are_killed_over_and_over() {
    let mut engine = Engine::start();
    engine.load_busybox();
    let names: Vec<String> = (0..50).map(|n| format!("c{n}")).collect();
    let counter = fast_counter();
    for name in &names {
        // At full speed, but when somebody else wants the processor. Rotation would take the first lines away.
        let options = ["--cpu-shares", "2", "--log-opt", "max-size=1g"];
        let args =
            [&["run", "-d", "--name", name], &options[..], &["busybox", "sh", "-c", &counter]].concat();
        engine.docker(&args).ok();
    }
    let of_each = |format: &str| -> Vec<String> {
        let mut args = vec!["inspect", "--format", format];
        args.extend(names.iter().map(String::as_str));
        engine.docker(&args).ok().lines().map(str::to_owned).collect()
    };
    let logs = of_each("{{.LogPath}}");
    let pids: Vec<i32> = of_each("{{.State.Pid}}").iter().map(|pid| pid.parse().expect("a pid")).collect();
    let size = |log: &String| std::fs::metadata(log).map_or(0, |log| log.len());
    for round in 0..6 {
        if round % 3 != 0 {
            engine.kill_containerd();
        }
        if round % 3 != 1 {
            engine.kill_dockerd();
        }
        let before: Vec<u64> = logs.iter().map(size).collect();
        for (log, before) in logs.iter().zip(before) {
            wait_for("every container to go on printing", || size(log) > before);
        }
        if round == 5 {
            // Some of them end while nobody looks.
            for pid in &pids[..10] {
                host::kill(*pid, 15);
            }
            wait_for("them to end", || pids[..10].iter().all(|pid| !host::alive(*pid)));
        }
        if round % 3 != 1 {
            engine.spawn();
        }
        wait_for("containerd-rs to be there again", || engine.containerd_pid().is_some());
    }
    for pid in &pids[10..] {
        host::kill(*pid, 15);
    }
    for name in &names {
        assert_eq!(engine.docker(&["wait", name]).ok(), "7");
        let log = engine.docker(&["logs", name]).stdout;
        let end = format!("end {}\n", numbered(&log));
        assert!(log.ends_with(&end), "{name} lost its last lines: {:?}", log.lines().last());
    }
    // Each end is told once, with the time it had.
    let told = engine.docker(&[
        "events",
        "--since",
        "1",
        "--until",
        "0s",
        "--filter",
        "event=die",
        "--format",
        "{{json .}}",
    ]);
    let mut told: Vec<(String, String, i64)> = told
        .ok()
        .lines()
        .map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).expect("an event");
            let attribute =
                |name: &str| event["Actor"]["Attributes"][name].as_str().unwrap_or_default().to_owned();
            (attribute("name"), attribute("exitCode"), event["timeNano"].as_i64().unwrap_or_default())
        })
        .collect();
    told.sort();
    let mut ends: Vec<(String, String, i64)> = names
        .iter()
        .map(|name| {
            let finished = engine.inspect(name, "{{json .State.FinishedAt}}");
            let finished = finished.trim_matches('"').parse::<jiff::Timestamp>().expect("a time");
            (name.clone(), "7".to_owned(), i64::try_from(finished.as_nanosecond()).expect("this century"))
        })
        .collect();
    ends.sort();
    assert_eq!(told, ends);
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
