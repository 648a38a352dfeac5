//! `docker run`, end to end: the stock command line against the whole chain, with the real engine's exit codes and messages.

use e2e_tests::{Engine, host, wait_for};

#[test]
fn the_carried_image_runs_from_the_first_minute() {
    let engine = Engine::start();
    let ran = engine.docker(&["run", "--rm", "hello-world"]);
    assert!(ran.ok().starts_with("Hello from Docker-RS!"), "{ran:?}");
    assert_eq!(engine.docker(&["ps", "-aq"]).ok(), "");
    assert!(engine.docker(&["images"]).ok().contains("hello-world"));
    // A user's rmi is remembered across a restart.
    engine.docker(&["rmi", "hello-world"]).ok();
    let mut engine = engine;
    engine.stop();
    engine.spawn();
    assert_eq!(engine.docker(&["images", "-q", "hello-world"]).ok(), "");
}

#[test]
fn exit_codes_are_the_real_engines() {
    let engine = Engine::start();
    engine.load_busybox();
    assert_eq!(engine.docker(&["run", "--rm", "busybox", "sh", "-c", "exit 42"]).code, 42);
    assert_eq!(
        engine.docker(&["run", "--rm", "busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).code,
        137
    );
    engine
        .docker(&["run", "--rm", "busybox", "nosuchcommand"])
        .fails(127, "executable file not found in $PATH");
    engine.docker(&["run", "--rm", "busybox", "/etc"]).fails(126, "permission denied");
    engine
        .docker(&["run", "--rm", "--runtime", "bogus", "busybox"])
        .fails(125, "unknown or invalid runtime name: bogus");
    engine
        .docker(&["run", "--rm", "-w", "rel", "busybox"])
        .fails(125, "the working directory 'rel' is invalid");
    engine.docker(&["create", "--name", "bad name", "busybox"]).fails(1, "Invalid container name (bad name)");
    assert_eq!(engine.docker(&["ps", "-aq"]).ok(), "", "refused containers leave nothing");
}

#[test]
fn a_container_lives_its_life() {
    let engine = Engine::start();
    engine.load_busybox();
    let id = engine
        .docker(&[
            "run",
            "-d",
            "--name",
            "c1",
            "-e",
            "A=b",
            "-w",
            "/tmp",
            "--entrypoint",
            "sh",
            "busybox",
            "-c",
            "echo $A $(pwd); trap 'echo bye; exit 5' TERM; while :; do sleep 0.1; done",
        ])
        .ok()
        .to_owned();
    assert_eq!(id.len(), 64);
    wait_for("the first line", || engine.docker(&["logs", "c1"]).stdout == "b /tmp\n");
    assert!(engine.docker(&["ps"]).ok().contains(&id[..12]));
    assert_eq!(engine.inspect("c1", "{{.State.Status}} {{.Config.WorkingDir}}"), "running /tmp");

    assert_eq!(engine.docker(&["exec", "c1", "sh", "-c", "echo $A; exit 3"]).code, 3);
    engine.docker(&["exec", "c1", "nosuch"]).fails(127, "");
    engine.docker(&["run", "--name", "c1", "busybox"]).fails(125, "is already in use by container");

    assert_eq!(engine.docker(&["stop", "c1"]).ok(), "c1");
    assert_eq!(engine.inspect("c1", "{{.State.Status}} {{.State.ExitCode}}"), "exited 5");
    assert_eq!(engine.docker(&["wait", "c1"]).ok(), "5");
    assert!(engine.docker(&["logs", "c1"]).stdout.ends_with("bye\n"));

    engine.docker(&["start", "c1"]).ok();
    let pid = engine.inspect("c1", "{{.State.Pid}}");
    engine.docker(&["restart", "-t", "1", "c1"]).ok();
    assert_ne!(engine.inspect("c1", "{{.State.Pid}}"), pid);
    engine.docker(&["pause", "c1"]).ok();
    assert_eq!(engine.inspect("c1", "{{.State.Status}}"), "paused");
    engine.docker(&["unpause", "c1"]).ok();
    engine.docker(&["kill", "c1"]).ok();
    assert_eq!(engine.docker(&["wait", "c1"]).ok(), "137");
    engine.docker(&["rename", "c1", "d1"]).ok();
    engine.docker(&["rm", "d1"]).ok();
    engine.docker(&["inspect", "d1"]).fails(1, "o such object: d");
}

#[test]
fn bad_input_gets_the_real_engines_words() {
    let engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["run", "--pull", "never", "nosuch:1"]).fails(125, "No such image: nosuch:1");
    engine.docker(&["rm", "nosuch"]).fails(1, "No such container: nosuch");
    engine.docker(&["rmi", "nosuch"]).fails(1, "No such image: nosuch");
    engine.docker(&["run", "--memory", "1m", "busybox"]).fails(125, "Minimum memory limit allowed is 6MB");
    engine.docker(&["create", "--name", "p1", "-p", "127.0.0.1:18080:80", "busybox", "sleep", "60"]).ok();
    engine.docker(&["start", "p1"]).ok();
    let taken = engine.docker(&["run", "--rm", "-p", "127.0.0.1:18080:80", "busybox", "true"]);
    taken.fails(125, "port is already allocated");
    assert_eq!(engine.docker(&["ps", "-aq"]).ok().lines().count(), 1);
}

#[test]
fn the_process_tree_is_the_articles() {
    let engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["run", "-d", "--name", "c1", "busybox", "sleep", "60"]).ok();
    let init: i32 = engine.inspect("c1", "{{.State.Pid}}").parse().expect("a pid");
    let shim = host::parent(init).expect("a parent");
    assert!(host::cmdline(shim).contains("containerd-shim-rs-v2"), "{}", host::cmdline(shim));
    assert_eq!(host::parent(shim), Some(1), "the shim belongs to init, not to a daemon");
    assert!(
        !host::pids()
            .into_iter()
            .any(|pid| host::parent(pid) == Some(shim) && host::cmdline(pid).starts_with("runc"))
    );
    // Stock ctr sees what docker sees.
    let id = engine.inspect("c1", "{{.Id}}");
    assert!(engine.ctr(&["containers", "ls"]).ok().contains(&id));
    let tasks = engine.ctr(&["tasks", "ls"]);
    let line = tasks.ok().lines().find(|line| line.contains(&id)).expect("the task is listed");
    assert!(line.contains(&init.to_string()) && line.contains("RUNNING"), "{line}");
    assert!(engine.ctr(&["images", "ls", "-q"]).ok().contains("docker.io/library/busybox:latest"));
}

#[test]
fn two_engines_do_not_touch_each_other() {
    let (one, two) = (Engine::start(), Engine::start());
    for engine in [&one, &two] {
        engine.load_busybox();
        engine.docker(&["run", "-d", "--name", "same", "busybox", "sleep", "60"]).ok();
    }
    one.docker(&["rm", "-f", "same"]).ok();
    assert_eq!(two.inspect("same", "{{.State.Running}}"), "true");
    assert_eq!(two.docker(&["exec", "same", "echo", "hi"]).ok(), "hi");
}
