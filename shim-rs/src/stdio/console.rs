//! The socket a runtime sends a terminal's master to.
//!
//! It lies in the bundle, whose path is often too long for a socket; the runtime gets a path through our descriptor of the bundle, and the file is gone
//! with the bundle whatever happens.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixListener;

/// How long the master may take to follow the connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// A console socket that is listening.
pub struct Console {
    listener: UnixListener,
    real: PathBuf,
    /// What to give to the runtime.
    pub path: PathBuf,
    _bundle: OwnedFd,
}

impl Console {
    /// Listens in `bundle` under a name made from `token`.
    pub fn listen(bundle: &Path, token: u64) -> io::Result<Console> {
        let name = format!("pty-{token}.sock");
        let directory =
            rustix::fs::open(bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let real = bundle.join(&name);
        let listener = sys::unixpath::bind(&real, 0o600)?;
        listener.set_nonblocking(true)?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}/{name}", std::process::id(), directory.as_raw_fd()));
        Ok(Console { listener: UnixListener::from_std(listener)?, real, path, _bundle: directory })
    }

    /// The master. To be awaited once the runtime has succeeded: it has connected by then.
    pub async fn master(&self) -> io::Result<OwnedFd> {
        let receive = async {
            let (socket, _) = self.listener.accept().await?;
            socket.async_io(tokio::io::Interest::READABLE, || sys::pty::receive_master(&socket)).await
        };
        match tokio::time::timeout(PATIENCE, receive).await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the runtime sent no terminal")),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.real);
    }
}
