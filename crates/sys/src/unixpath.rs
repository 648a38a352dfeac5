//! Unix sockets at paths of any length.
//!
//! `sun_path` holds 108 bytes, state directories are often longer. A longer path is reached through the descriptor of its directory:
//! `/proc/self/fd/<directory>/<name>`. Only the last component then has to fit. A socket is never visible with a wider mode than asked for:
//! Linux takes the mode of the new name from the unbound socket.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait for `accept` at most; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// The longest path that fits `sun_path` with its terminating NUL.
const SUN_PATH_MAX: usize = 107;

/// Listens at `path`, which must not exist. The name has exactly the permission bits of `mode`, minus the umask.
pub fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let reachable = Reachable::of(path)?;
    let socket = new_socket(SocketFlags::CLOEXEC)?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
    rustix::net::bind(&socket, &reachable.address()?)?;
    if let Err(err) = rustix::net::listen(&socket, BACKLOG) {
        let _ = std::fs::remove_file(path);
        return Err(err.into());
    }
    Ok(socket.into())
}

/// Connects to the socket at `path`. Blocks only while the listener's backlog is full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let reachable = Reachable::of(path)?;
    let socket = new_socket(SocketFlags::CLOEXEC)?;
    rustix::net::connect(&socket, &reachable.address()?)?;
    Ok(socket.into())
}

/// Connects without ever blocking; the stream is non-blocking. A full backlog is `WouldBlock`.
pub fn connect_nonblocking(path: &Path) -> io::Result<UnixStream> {
    let reachable = Reachable::of(path)?;
    let socket = new_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    rustix::net::connect(&socket, &reachable.address()?)?;
    Ok(socket.into())
}

fn new_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// A path short enough for `sun_path`, and the directory descriptor that makes it valid.
struct Reachable {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl Reachable {
    fn of(path: &Path) -> io::Result<Reachable> {
        if path.as_os_str().len() <= SUN_PATH_MAX {
            return Ok(Reachable { path: path.to_owned(), _directory: None });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket path has no file name"));
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let directory =
            rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let short = through_descriptor(directory.as_raw_fd(), name);
        if short.as_os_str().len() > SUN_PATH_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket file name is too long"));
        }
        Ok(Reachable { path: short, _directory: Some(directory) })
    }

    fn address(&self) -> io::Result<SocketAddrUnix> {
        Ok(SocketAddrUnix::new(&self.path)?)
    }
}

fn through_descriptor(directory: i32, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.to_string()).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    fn talk(path: &Path) {
        let listener = bind(path, 0o600).unwrap();
        assert_eq!(std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut client = connect(path).unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut heard = String::new();
        listener.accept().unwrap().0.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");
        let mut second = connect_nonblocking(path).unwrap();
        drop(listener.accept().unwrap());
        second.set_nonblocking(false).unwrap();
        assert_eq!(second.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn short_and_long_paths_work_alike() {
        let directory = tempfile::tempdir().unwrap();
        talk(&directory.path().join("short.sock"));
        let deep = directory.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        talk(&deep.join("long.sock"));
    }

    #[test]
    fn every_length_around_the_limit_works() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().as_os_str().len();
        for total in 100..115 {
            let inner = directory.path().join("d".repeat(total - base - 3));
            std::fs::create_dir(&inner).unwrap();
            let path = inner.join("s");
            assert_eq!(path.as_os_str().len(), total);
            talk(&path);
        }
    }

    #[test]
    fn an_occupied_name_and_a_missing_listener_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = bind(&path, 0o600).unwrap();
        assert_eq!(bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_name_that_cannot_fit_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n".repeat(120));
        assert_eq!(bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
