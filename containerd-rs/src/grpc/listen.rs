//! Listening on unix sockets whose earlier owner may have died.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::Sleep;
use tokio_stream::Stream;

use super::authority::Connection;

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{} is not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error("listen on {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Listens at `path`: makes its directory, takes the place of a socket nobody answers on, refuses to take that of a live one.
///
/// The socket belongs to `uid` and `gid` with mode 0660 from the moment it can be connected to by name.
///
/// # Errors
/// See [`BindError`].
pub fn bind(path: &Path, uid: u32, gid: u32) -> Result<UnixListener, BindError> {
    let at = |source| BindError::Io { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(at)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => match sys::unixpath::connect_nonblocking(path) {
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(at)?
            }
            Ok(_) | Err(_) => return Err(BindError::InUse(path.to_owned())),
        },
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(at(err)),
    }
    // Bound under a temporary name and renamed, so that nobody connects before owner and mode are right.
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let listener = sys::unixpath::bind(&temporary, 0o600).map_err(at)?;
    let place = || {
        std::os::unix::fs::chown(&temporary, Some(uid), Some(gid))?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o660))?;
        std::fs::rename(&temporary, path)
    };
    if let Err(err) = place() {
        let _ = std::fs::remove_file(&temporary);
        return Err(at(err));
    }
    listener.set_nonblocking(true).map_err(at)?;
    UnixListener::from_std(listener).map_err(at)
}

/// How long accepting rests after a failure: it is nearly always a lack of descriptors, and those do not come back at once.
const REST: Duration = Duration::from_millis(50);

/// Accepted connections, as gRPC wants them. A failure to accept does not end it: that would end the server.
pub struct Listener {
    listener: UnixListener,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Listener {
    pub fn new(listener: UnixListener) -> Self {
        Self { listener, rest: None }
    }
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(rest) = &mut self.rest {
                std::task::ready!(rest.as_mut().poll(cx));
                self.rest = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => return Poll::Ready(Some(Ok(Connection::new(stream)))),
                Err(err) => {
                    tracing::warn!(%err, "accept");
                    self.rest = Some(Box::pin(tokio::time::sleep(REST)));
                }
            }
        }
    }
}
