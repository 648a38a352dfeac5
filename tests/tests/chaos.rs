//! `kill -9` of any process of the chain at any moment of a container's life: exit codes stay true, names get free, nothing is left.
//!
//! Thirty lives; `E2E_CHAOS=1000` tries as many, `E2E_SEED` others.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e_tests::{Engine, Ran, Random, host, number, wait_for};

/// Who may be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Dockerd,
    NetHelper,
    Containerd,
    /// The shim, or the command that starts or cleans up after one.
    Shim,
    Runtime,
    /// A process of the container, or what is about to become it.
    Container,
}

/// The processes of an engine that are there now.
fn parts(engine: &Engine) -> Vec<(Part, i32)> {
    let mine = engine.netns().name();
    let part = |pid: i32| {
        let line = host::cmdline(pid);
        let program = Path::new(line.split(' ').next()?).file_name()?.to_str()?;
        let is_ours = line.contains(mine);
        match program {
            "dockerd-rs" if is_ours && line.contains(" net-helper") => Some(Part::NetHelper),
            "dockerd-rs" if is_ours => Some(Part::Dockerd),
            "containerd-rs" if is_ours => Some(Part::Containerd),
            "containerd-shim-rs-v2" if is_ours => Some(Part::Shim),
            "runc" if is_ours => Some(Part::Runtime),
            _ => {
                let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
                groups.contains(mine).then_some(Part::Container)
            }
        }
    };
    let mut found: Vec<(Part, i32)> =
        host::pids().into_iter().filter_map(|pid| Some((part(pid)?, pid))).collect();
    found.sort_unstable();
    found
}

/// How a life may end that was to end with `code`, after the death of `victim`. `outcome` is `inspect`'s status, code and error.
fn is_true(outcome: &str, code: u64, victim: Option<Part>) -> bool {
    let (state, error) = outcome.split_once('|').unwrap_or((outcome, ""));
    let was_killed = matches!(victim, Some(Part::Shim | Part::Runtime | Part::Container));
    state == format!("exited {code}")
        || state == "created 0"
        || (was_killed && state == "exited 137")
        // The start failed, and that is said.
        || (!error.is_empty() && !state.starts_with("running"))
}

#[test]
fn any_process_of_the_chain_may_be_killed() {
    let mut engine = Engine::start();
    engine.load_busybox();
    let mut random = Random::new(number("E2E_SEED", 0xca05));
    for life in 0..number("E2E_CHAOS", 30) {
        let code = 1 + random.below(100);
        let script = format!("usleep {}; exit {code}", random.below(60_000));
        let args = ["run", "-d", "--name", "one", "busybox", "sh", "-c", &script];
        let client = engine
            .docker_command(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker runs");
        let moment = Instant::now() + Duration::from_micros(random.below(160_000));
        std::thread::sleep(moment.saturating_duration_since(Instant::now()));
        let there = parts(&engine);
        // Each part as often as any other, however many processes it has.
        let mut kinds: Vec<Part> = there.iter().map(|(part, _)| *part).collect();
        kinds.dedup();
        let kind = kinds[random.index(kinds.len())];
        let of_kind: Vec<i32> = there.iter().filter(|(part, _)| *part == kind).map(|(_, pid)| *pid).collect();
        host::kill(of_kind[random.index(of_kind.len())], 9);
        let ran: Ran = client.wait_with_output().expect("docker ends").into();
        if kind == Part::Dockerd {
            engine.kill_dockerd();
            engine.spawn();
        }
        let told = |what: &str| format!("life {life}, {kind:?} killed, {what}: {ran:?}");
        let outcome = || {
            let format = "{{.State.Status}} {{.State.ExitCode}}|{{.State.Error}}";
            let seen = engine.docker(&["inspect", "--type", "container", "--format", format, "one"]);
            (seen.code == 0).then(|| seen.stdout.trim().to_owned())
        };
        let over = || outcome().is_none_or(|outcome| !outcome.starts_with("running"));
        wait_for(&told("to be over"), over);
        let end = outcome();
        if let Some(end) = &end {
            assert!(is_true(end, code, Some(kind)), "{}", told(end));
            if random.below(2) == 0 {
                let again = engine.docker(&["start", "-a", "one"]);
                assert_eq!(again.code, i32::try_from(code).unwrap_or(-1), "{} {again:?}", told("started"));
            }
            engine.docker(&["rm", "-f", "one"]).ok();
        } else {
            assert_ne!(ran.code, 0, "{}", told("lost"));
        }
        let next = engine.docker(&["run", "--rm", "--name", "one", "busybox", "sh", "-c", &script]);
        assert_eq!(next.code, i32::try_from(code).unwrap_or(-1), "{} {next:?}", told("the name again"));
        wait_for("nothing to be left of it", || parts(&engine).iter().all(|(part, _)| *part < Part::Shim));
    }
}
