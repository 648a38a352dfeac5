//! Finding the shims that were there before us.
//!
//! Every bundle is looked at in a task of its own: we serve at once, a request for a task that is still being looked for waits
//! for that task alone, and a shim that hangs holds up nobody. A bundle without a shim is what a crash or a reboot left: it is
//! cleaned up and the end of its task is announced, once. So is one that no record speaks of any more (the metadata come from a
//! backup): nobody could ask for its task.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use shim_api::task_types::Status;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use ttrpc::{CallError, Code};

use super::bundle::{self, Bundle};
use super::lifecycle::{Exit, Stage};
use super::manager::{GOING_DEADLINE, Inner, Manager, Subject, remove};
use super::shim::{self, Shim};
use super::{Key, Lifecycle, log};

/// How long a shim may take to accept our connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Clean-ups that run at the same time: each forks.
const CLEAN_UPS: usize = 4;

/// What the metadata have under a bundle's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A sandbox: its shim is there without a task of its own.
    Sandbox,
    /// A container.
    Container,
    /// Nothing.
    Nobody,
}

impl Manager {
    /// Looks for bundles and connects to their shims, in the background.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub fn load(&self, owner: impl Fn(&Key) -> Owner + Send + Sync + 'static) -> std::io::Result<usize> {
        let settings = &self.0.settings;
        for (key, binary) in strays(Path::new("/proc"), &settings.launcher.grpc_address) {
            let bundle = Bundle::at(&settings.state, &settings.root, &key);
            // With a directory of its own it is what a crash left, and cleaned up below as that.
            match bundle.adopt(&binary) {
                Ok(true) => tracing::warn!(task = %key, "a shim has lost its bundle"),
                Ok(false) => {}
                Err(err) => tracing::warn!(task = %key, %err, "a shim without a bundle is left alone"),
            }
        }
        let mut found = bundle::find(&self.0.settings.state)?;
        found.rests.extend(bundle::orphaned_work(&self.0.settings.state, &self.0.settings.root)?);
        let owner = Arc::new(owner);
        let count = found.bundles.len();
        let clean_ups = Arc::new(Semaphore::new(CLEAN_UPS));
        for key in found.bundles {
            let (loading, until) = watch::channel(());
            self.0.expect(key.clone(), until);
            let inner = Arc::clone(&self.0);
            let clean_ups = Arc::clone(&clean_ups);
            let owner = Arc::clone(&owner);
            tokio::spawn(async move {
                let owner = owner(&key);
                let shim = inner.load(key, owner, &loading, &clean_ups).await;
                drop(loading);
                if let Some(shim) = shim {
                    inner.catch_up(&shim, owner != Owner::Sandbox).await;
                }
            });
        }
        if !found.rests.is_empty() {
            tokio::task::spawn_blocking(move || {
                for rest in found.rests {
                    if let Err(err) = std::fs::remove_dir_all(&rest) {
                        tracing::warn!(path = %rest.display(), %err, "cannot remove the rest of a bundle");
                    }
                }
            });
        }
        Ok(count)
    }
}

impl Inner {
    /// `loading` ends for those who wait when the caller drops it.
    async fn load(
        self: &Arc<Self>,
        key: Key,
        owner: Owner,
        loading: &watch::Sender<()>,
        clean_ups: &Semaphore,
    ) -> Option<Arc<Shim>> {
        let bundle = self.bundle(&key);
        let lifecycle = Arc::new(Lifecycle::recall(&bundle.path));
        let connection = match bundle.read_bootstrap() {
            _ if owner == Owner::Nobody => Err(containerd_api::Error::new(
                containerd_api::Kind::NotFound,
                "its container has no record any more",
            )),
            Some(bootstrap) => {
                shim::connect(&bootstrap, CONNECT_DEADLINE).await.map(|client| (bootstrap, client))
            }
            // We died between starting it and hearing where it listens: there is no container in it yet.
            None => Err(containerd_api::Error::new(containerd_api::Kind::NotFound, "no address was noted")),
        };
        let (bootstrap, client) = match connection {
            Ok(connection) => connection,
            Err(err) => {
                tracing::info!(task = %key, %err, "no shim that serves it, cleaning up");
                let (over, until) = watch::channel(());
                self.bury(key.clone(), until);
                // Those who asked for it need not wait for the clean-up.
                loading.send_replace(());
                let _permit = clean_ups.acquire().await;
                self.clean_up(&key, bundle, &lifecycle).await;
                self.forget(&key);
                drop(over);
                return None;
            }
        };
        let logging = CancellationToken::new();
        log::follow(&bundle.log(), key.clone(), logging.clone());
        let mut shim = Shim::new(key, bundle, bootstrap, lifecycle, client, logging);
        shim.recalled = true;
        Some(self.adopt(shim))
    }

    /// Asks a shim what became of its task while we were away. Without a deadline: a shim that hangs may come back.
    async fn catch_up(&self, shim: &Arc<Shim>, has_task: bool) {
        let state = match shim.state_within("", None).await {
            Ok(state) => state,
            Err(CallError::Status(status)) if status.code == Code::NotFound && has_task => {
                tracing::info!(task = %shim.key, "a shim without a task, taking it down");
                return self.take_down_empty(shim).await;
            }
            Err(_) => return,
        };
        if shim.lifecycle.pid() == 0 && state.pid != 0 {
            shim.lifecycle.set_pid(state.pid);
        }
        if state.status != Status::Stopped as i32 {
            return;
        }
        let exit =
            Exit { pid: state.pid, status: state.exit_status, at: state.exited_at.unwrap_or_default() };
        if shim.lifecycle.stage() >= Stage::Exited {
            shim.lifecycle.recall_exit(exit);
            return;
        }
        tracing::info!(task = %shim.key, status = exit.status, "ended while we were away");
        self.announce_exit(&shim.subject(), exit);
    }

    /// Ends a shim that has no task: we died before its task was made, or after it was deleted. Whoever asked for either was
    /// told that it is uncertain, and the shim itself announced what there was to announce.
    async fn take_down_empty(&self, shim: &Arc<Shim>) {
        if !shim.begin_ending() {
            return;
        }
        let _ = shim.shutdown().await;
        let _ = tokio::time::timeout(GOING_DEADLINE, shim.client().closed()).await;
        // A runc that makes the container even now is there as well.
        self.kill_shim(&shim.key, &shim.bundle).await;
        self.clean_up_bundle(&shim.key, &shim.bundle, 0).await;
        self.remove_rest(shim).await;
    }

    /// Cleans up a bundle whose shim is not there, and announces the end of what ran in it.
    async fn clean_up(&self, key: &Key, bundle: Bundle, lifecycle: &Arc<Lifecycle>) {
        self.kill_shim(key, &bundle).await;
        let exit = self.clean_up_bundle(key, &bundle, lifecycle.pid()).await;
        self.announce_end(&Subject { key, lifecycle, recalled: true }, exit);
        if let Err(err) = remove(bundle).await {
            tracing::error!(task = %key, %err, "cannot remove bundle");
        }
    }
}

/// Which processes belong to a task's shim.
#[derive(Clone)]
pub(super) struct Trace {
    key: Key,
    bundle: PathBuf,
    /// Our gRPC address, which the shim was given.
    address: String,
}

impl Inner {
    fn trace(&self, key: &Key, bundle: &Bundle) -> Trace {
        let address = self.settings.launcher.grpc_address.clone();
        Trace { key: key.clone(), bundle: bundle.path.clone(), address }
    }

    /// The process of a task's shim, by the number in its bundle, if that is still one of this task's.
    pub(super) fn shim_process(&self, key: &Key, bundle: &Bundle) -> Option<OwnedFd> {
        let pid = bundle.read_shim_pid()?;
        let process =
            rustix::process::pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty());
        process.ok().filter(|_| self.trace(key, bundle).is_of(pid))
    }

    /// Kills a task's shim, and a runc that works for it, where nobody can reach them by their socket.
    ///
    /// Asked again until there is none: a `start` that was at work may fork while we look.
    pub(super) async fn kill_shim(&self, key: &Key, bundle: &Bundle) {
        let trace = self.trace(key, bundle);
        let work = move || {
            for _ in 0..20 {
                let found = trace.processes();
                if found.is_empty() {
                    return;
                }
                for pid in found {
                    tracing::warn!(pid, task = %trace.key, "killing a shim that nobody can reach");
                    kill(pid);
                }
            }
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

impl Trace {
    fn processes(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid != std::process::id() && self.is_of(*pid))
            .collect()
    }

    /// By its working directory (containerd's shims stay in the bundle, as does runc), or by its arguments (ours leaves it).
    fn is_of(&self, pid: u32) -> bool {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| is_same(&cwd, &self.bundle))
            || std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| self.was_started_with(&line))
    }

    fn was_started_with(&self, command_line: &[u8]) -> bool {
        started_with(command_line, &self.address).is_some_and(|key| key == self.key)
    }
}

/// Whose shim a command line is, if it is one of a shim of the daemon at `address`.
fn started_with(command_line: &[u8], address: &str) -> Option<Key> {
    let args: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let value = |flag: &[u8]| {
        let pair = args.windows(2).find(|pair| pair[0] == flag)?;
        std::str::from_utf8(pair[1]).ok()
    };
    (value(b"-address")? == address).then(|| Some(Key::new(value(b"-namespace")?, value(b"-id")?))).flatten()
}

/// Shims of the daemon at `address`, with their binaries, as the process table has them: also those whose directory somebody has removed.
///
/// Who may write a command line is not who may be believed: only root's processes in our own pid and mount namespaces count, and only
/// programs with a shim's name, since the binary will be run.
fn strays(proc: &Path, address: &str) -> Vec<(Key, PathBuf)> {
    use std::os::unix::fs::MetadataExt as _;
    let namespaces =
        |pid: &str| ["pid", "mnt"].map(|kind| std::fs::read_link(proc.join(pid).join("ns").join(kind)).ok());
    let ours = namespaces("self");
    if ours.iter().any(Option::is_none) {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir(proc) else { return Vec::new() };
    let look = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let pid = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?;
        let command_line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let key = started_with(&command_line, address)?;
        for part in [&key.namespace, &key.id] {
            // They become a path.
            containerd_api::ns::validate_identifier(part).ok()?;
        }
        let binary = std::fs::read_link(entry.path().join("exe")).ok()?;
        let is_shim = binary.file_name()?.to_str()?.starts_with("containerd-shim-");
        let trusted = entry.metadata().ok()?.uid() == 0 && namespaces(pid) == ours;
        (is_shim && trusted && binary.exists()).then_some((key, binary))
    };
    entries.flatten().filter_map(look).collect()
}

fn is_same(cwd: &Path, bundle: &Path) -> bool {
    cwd == bundle || cwd.as_os_str().as_bytes() == [bundle.as_os_str().as_bytes(), b" (deleted)"].concat()
}

/// Waits for the end of a process. Whether it came in time.
pub(super) async fn ends(process: OwnedFd, within: Duration) -> bool {
    let wait = move || {
        let within = Timespec::try_from(within).ok();
        rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], within.as_ref()).unwrap_or(0) > 0
    };
    tokio::task::spawn_blocking(wait).await.unwrap_or(false)
}

/// Kills a process and waits for its end, a second at most. By descriptor: a pid that is used again is not hit.
fn kill(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    if rustix::process::pidfd_send_signal(&process, Signal::KILL).is_ok() {
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&second));
    }
}

/// Kills a container's init if that pid is still in a control group with the container's id in its name: when the shim
/// binary itself could not clean up. The kernel ends the rest of its pid namespace.
pub(super) fn kill_container(init: u32, id: &str) {
    if init == 0 {
        return;
    }
    let groups = PathBuf::from(format!("/proc/{init}/cgroup"));
    let ours = std::fs::read_to_string(groups).is_ok_and(|groups| {
        groups.lines().any(|line| line.rsplit('/').next().is_some_and(|name| name.contains(id)))
    });
    if ours {
        kill(init);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_known_by_its_arguments() {
        let trace =
            Trace { key: Key::new("moby", "c1"), bundle: PathBuf::from("/b"), address: "/run/c.sock".into() };
        let line = |words: &str| words.replace(' ', "\0").into_bytes();
        assert!(trace.was_started_with(&line("/x/shim -namespace moby -id c1 -address /run/c.sock")));
        assert!(trace.was_started_with(&line("shim -namespace moby -address /run/c.sock -id c1 start")));
        for other in [
            "shim -namespace moby -id c11 -address /run/c.sock",
            "shim -namespace other -id c1 -address /run/c.sock",
            "shim -namespace moby -id c1 -address /run/other.sock",
            "sh -c -id",
            "",
        ] {
            assert!(!trace.was_started_with(&line(other)), "{other}");
        }
        assert!(is_same(Path::new("/b (deleted)"), Path::new("/b")));
    }

    #[test]
    fn only_roots_shims_in_our_own_namespaces_are_believed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let shim = dir.path().join("containerd-shim-x-v2");
        std::fs::write(&shim, "").unwrap();
        let process = |pid: &str, exe: &Path, mnt: &str, line: &str| {
            let at = dir.path().join("proc").join(pid);
            std::fs::create_dir_all(at.join("ns")).unwrap();
            symlink("pid:[1]", at.join("ns/pid")).unwrap();
            symlink(mnt, at.join("ns/mnt")).unwrap();
            symlink(exe, at.join("exe")).unwrap();
            std::fs::write(at.join("cmdline"), line.replace(' ', "\0")).unwrap();
        };
        let line = "shim -namespace n -id c1 -address /run/c.sock";
        let other = dir.path().join("containerd-shim-gone-v2");
        process("self", &shim, "mnt:[1]", "containerd-rs");
        process("10", &shim, "mnt:[1]", line);
        process("11", &shim, "mnt:[2]", line);
        process("12", &other, "mnt:[1]", line);
        process("13", Path::new("/bin/sh"), "mnt:[1]", line);
        process("14", &shim, "mnt:[1]", "shim -namespace n -id ../x -address /run/c.sock");
        process("15", &shim, "mnt:[1]", "shim -namespace n -id c1 -address /run/other.sock");
        let found = strays(&dir.path().join("proc"), "/run/c.sock");
        let owned_by_root =
            std::fs::metadata(&shim).is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
        let wanted = if owned_by_root { vec![(Key::new("n", "c1"), shim)] } else { Vec::new() };
        assert_eq!(found, wanted);
    }
}
