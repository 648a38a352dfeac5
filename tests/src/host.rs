//! The machine under the tests: network namespaces, processes, sockets.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A network namespace of a test's own, with loopback up. Gone when dropped.
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one.
    pub fn new(name: &str) -> Self {
        run("ip", ["netns", "add", name]);
        run("ip", ["-n", name, "link", "set", "lo", "up"]);
        Self { name: name.to_owned() }
    }

    /// The name under /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside. `ip netns exec` would hide the cgroup mounts, so it is `nsenter`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Kills every process that lives inside or was started for this test: the clean-up of a test that failed.
    pub fn kill_all(&self) {
        for pid in pids() {
            let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&cmdline).contains(&self.name)
                && pid != std::process::id().cast_signed()
            {
                kill(pid, 9);
            }
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run("ip", ["netns", "delete", &self.name]);
    }
}

fn run<const N: usize>(program: &str, args: [&str; N]) {
    let output = Command::new(program).args(args).output().expect("the program runs");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// All processes.
pub fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Sends a signal. The process may be gone.
pub fn kill(pid: i32, signal: i32) {
    let _ = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).output();
}

/// Whether the process lives: exists and is no zombie.
pub fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// The process that listens on a unix socket, as the kernel tells who connects. (/proc/net/unix knows only one network namespace.)
pub fn socket_owner(path: &Path) -> Option<i32> {
    let stream = std::os::unix::net::UnixStream::connect(path).ok()?;
    Some(rustix::net::sockopt::socket_peercred(&stream).ok()?.pid.as_raw_nonzero().get())
}

/// The parent of a process.
pub fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// A process's command line, with spaces between the words.
pub fn cmdline(pid: i32) -> String {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ").trim().to_owned()
}
