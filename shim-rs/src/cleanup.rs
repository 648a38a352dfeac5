//! `delete`: what a shim that is gone can no longer do.
//!
//! containerd calls this when the connection to a shim broke, and for a shim that never came up. Afterwards nothing of the container is left: no process,
//! cgroup, mount or socket. Every step finds nothing to do if it was done before.

use std::error::Error;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use prost::Message;
use shim_api::task::DeleteResponse;

use crate::args::Args;
use crate::bundle::{self, Left};
use crate::clock::Instant;

/// How long killed processes may take to be gone from their control groups.
const GROUPS: Duration = Duration::from_secs(3);
/// The status of what was killed: 128 + SIGKILL.
const KILLED: u32 = 137;

/// Cleans up and answers with the pid, status and time of the container's end.
pub fn delete(args: &Args) -> Result<(), Box<dyn Error>> {
    let working = std::env::current_dir()?;
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        // As containerd does: the bundle is the sibling named after the id.
        None => working.parent().unwrap_or(&working).join(&args.id),
    };
    let left = Left::read(&bundle).ok().flatten().or_else(|| by_default(args));
    if let Some(left) = &left
        && let Err(why) = runtime_delete(left, &args.id)
    {
        let _ = writeln!(std::io::stderr(), "delete {}: {why}", args.id);
    }
    remove_cgroups(&bundle, &args.id);
    // A runtime that was killed half-way has a directory for a container it does not know.
    if let Some(left) = &left
        && let Err(err) = std::fs::remove_dir_all(left.root.join(&args.id))
        && err.kind() != std::io::ErrorKind::NotFound
    {
        let _ = writeln!(std::io::stderr(), "remove state of {}: {err}", args.id);
    }
    crate::mounts::unmount_below(&bundle.join("rootfs"));
    remove_socket(args, &bundle);
    if let Some(socket) = left.as_ref().and_then(|left| left.attach_socket.as_ref()) {
        let _ = std::fs::remove_file(socket);
    }
    let pid = bundle::read_pid(&bundle.join(crate::task::INIT_PID_FILE)).unwrap_or(0);
    let response = recorded(left.as_ref(), &args.id).unwrap_or(DeleteResponse {
        pid: pid as u32,
        exit_status: KILLED,
        exited_at: Some(Instant::now().timestamp()),
    });
    std::io::stdout().write_all(&response.encode_to_vec())?;
    Ok(())
}

/// What is to be taken back when the bundle does not say, because somebody has emptied it: what the default runtime knows of the container.
fn by_default(args: &Args) -> Option<Left> {
    let root = Path::new(crate::task::RUNTIME_ROOT).join(&args.namespace);
    root.join(&args.id).exists().then(|| Left { binary: "runc".to_owned(), root, ..Left::default() })
}

/// `delete --force`, which kills what still runs.
fn runtime_delete(left: &Left, id: &str) -> Result<(), String> {
    let mut command = Command::new(&left.binary);
    command.arg("--root").arg(&left.root);
    if left.systemd_cgroup {
        command.arg("--systemd-cgroup");
    }
    let output = command
        .args(["delete", "--force", id])
        .stdin(Stdio::null())
        .output()
        .map_err(|err| format!("{}: {err}", left.binary))?;
    let printed = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !printed.contains("does not exist") {
        return Err(printed.trim_end().to_owned());
    }
    Ok(())
}

/// Ends what is in the container's control groups and removes them. The runtime does so, unless it was killed before it had written down that there is
/// such a container.
pub fn remove_cgroups(bundle: &Path, id: &str) {
    let Ok(spec) = bundle::Spec::read(bundle) else { return };
    let Some(groups) = spec
        .cgroups_path
        .as_deref()
        .filter(|path| path.rsplit('/').next() == Some(id) && !path.contains(".."))
    else {
        // Not a group of its own, or one that systemd manages.
        return;
    };
    let deadline = std::time::Instant::now() + GROUPS;
    for directory in sys::cgroup::everywhere(Path::new(groups)) {
        while let Err(err) = sys::cgroup::kill_and_remove(&directory) {
            if std::time::Instant::now() > deadline {
                let _ = writeln!(std::io::stderr(), "remove {}: {err}", directory.display());
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes the socket named in the bundle, unless a shim of a group still listens there for others. One that serves this container alone has nothing
/// left to serve: it is ended.
fn remove_socket(args: &Args, bundle: &Path) {
    let own = crate::bootstrap::socket_path(&args.address, &args.namespace, &args.id);
    let address = std::fs::read_to_string(bundle.join("address")).unwrap_or_default();
    // A shim may be killed after the one and before the other.
    let socket = address.trim().strip_prefix("unix://").map_or(own.as_path(), Path::new);
    if let Ok(connection) = sys::unixpath::connect_nonblocking(socket) {
        if socket != own || is_group(bundle) {
            return;
        }
        end_peer(&connection);
    }
    let _ = std::fs::remove_file(socket);
}

/// Ends a shim that nobody knows of any more, and what runs in the control groups of the container that it would serve: they are to be `id`'s again.
/// What the runtime has of it is cleared away when the container is made.
pub fn end_lost(connection: &UnixStream, bundle: &Path, id: &str) {
    end_peer(connection);
    remove_cgroups(bundle, id);
}

fn end_peer(connection: &UnixStream) {
    if let Ok(peer) = rustix::net::sockopt::socket_peercred(connection) {
        end(peer.pid.as_raw_nonzero().get());
    }
}

fn is_group(bundle: &Path) -> bool {
    bundle::Spec::read(bundle).is_ok_and(|spec| spec.group.is_some())
}

/// Ends a shim, if that is what the process is.
fn end(pid: i32) {
    let same_program = || {
        let ours = std::fs::metadata("/proc/self/exe").ok()?;
        let theirs = std::fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        use std::os::unix::fs::MetadataExt;
        Some((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
    };
    if pid == std::process::id() as i32 || same_program() != Some(true) {
        return;
    }
    let Ok(process) = sys::pidfd::PidFd::open(pid) else { return };
    let _ = process.signal(libc::SIGKILL as u32);
    let mut ended = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    let _ = rustix::event::poll(
        &mut ended,
        rustix::event::Timespec::try_from(Duration::from_secs(2)).ok().as_ref(),
    );
}

/// The exit the shim recorded before it was gone.
fn recorded(left: Option<&Left>, id: &str) -> Option<DeleteResponse> {
    let record = crate::native::record::read(left?.exit_record.as_deref()?)?;
    (record.id == id && record.exec_id.is_empty()).then(|| DeleteResponse {
        pid: record.pid,
        exit_status: record.exit_code,
        exited_at: record.exited_at.parse::<prost_types::Timestamp>().ok(),
    })
}
