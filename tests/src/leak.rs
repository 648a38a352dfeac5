//! What an engine could leave behind on a machine, as lists that can be compared.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host;

/// Names of our programs, and of those we drive: a process with one of them in its command line is ours.
const PROGRAMS: &[&str] =
    &["dockerd-rs", "containerd-rs", "containerd-shim-rs-v2", "runc ", "docker-registry"];

/// Everything on the machine that an engine could have made: one line a thing.
pub fn snapshot() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let kind = words.iter().position(|word| *word == "-").and_then(|at| words.get(at + 1));
        found.insert(format!("mount {} {}", words.get(4).unwrap_or(&""), kind.unwrap_or(&"")));
    }
    for group in cgroups() {
        found.insert(format!("cgroup {}", group.display()));
    }
    for dir in [
        "/run/netns",
        "/run/containerd",
        "/run/containerd/s",
        "/run/docker",
        "/var/run/docker",
        "/dev/shm",
        "/tmp",
    ] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            found.insert(format!("file {}", entry.path().display()));
        }
    }
    for (what, program, args) in [
        ("link", "ip", &["-o", "link", "show"][..]),
        ("addr", "ip", &["-o", "addr", "show", "scope", "global"]),
        ("route", "ip", &["route", "show", "table", "all"]),
        ("nft", "nft", &["list", "tables"]),
    ] {
        let output =
            Command::new(program).args(args).output().map(|output| output.stdout).unwrap_or_default();
        for line in String::from_utf8_lossy(&output).lines() {
            // The rest of a link's line has counters and states that change by themselves.
            let shown = if what == "link" { line.split(": ").nth(1).unwrap_or(line) } else { line };
            found.insert(format!("{what} {shown}"));
        }
    }
    for pid in host::pids() {
        let cmdline = host::cmdline(pid);
        if PROGRAMS.iter().any(|program| cmdline.contains(program))
            && !cmdline.contains("e2e")
            && pid != std::process::id().cast_signed()
        {
            found.insert(format!("process {pid} {cmdline}"));
        }
    }
    found
}

/// Every control group, in every hierarchy.
pub fn cgroups() -> Vec<PathBuf> {
    let mut hierarchies = BTreeSet::new();
    for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        if line.contains(" - cgroup") {
            hierarchies.extend(line.split(' ').nth(4).map(str::to_owned));
        }
    }
    let mut found = Vec::new();
    for hierarchy in hierarchies {
        directories(Path::new(&hierarchy), 4, &mut |dir| found.push(dir.to_owned()));
    }
    found
}

fn directories(dir: &Path, depth: usize, each: &mut impl FnMut(&Path)) {
    if depth == 0 {
        return;
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            each(&entry.path());
            directories(&entry.path(), depth - 1, each);
        }
    }
}
