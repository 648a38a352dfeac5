//! What a shim logs: lines it writes to the FIFO `log` in its bundle, passed on to our own log.
//!
//! The FIFO is opened for reading and writing, so a shim never finds it without a reader while we live, and never gets an end of
//! file by another shim's leaving. Lines longer than a buffer are cut up.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::Key;

const BUFFER: usize = 4096;

/// Makes the FIFO if it is not there and passes on what is written to it, until cancelled.
pub fn follow(path: &Path, key: Key, until: CancellationToken) {
    let receiver = match open(path) {
        Ok(receiver) => receiver,
        Err(err) => {
            tracing::warn!(task = %key, %err, "cannot open the shim's log");
            return;
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = until.cancelled() => {}
            () = copy(&receiver, &key) => {}
        }
    });
}

fn open(path: &Path) -> std::io::Result<pipe::Receiver> {
    match rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o700),
        0,
    ) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(err) => return Err(err.into()),
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    pipe::Receiver::from_owned_fd(rustix::fs::open(path, flags, Mode::empty())?)
}

async fn copy(receiver: &pipe::Receiver, key: &Key) {
    let mut rest = Vec::new();
    while receiver.readable().await.is_ok() {
        // Not held across the wait: most shims never say anything.
        let mut buffer = [0; BUFFER];
        let read = match receiver.try_read(&mut buffer) {
            Ok(read) => read,
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        rest.extend_from_slice(&buffer[..read]);
        while let Some(end) = memchr::memchr(b'\n', &rest) {
            emit(key, &rest[..end]);
            rest.drain(..=end);
        }
        if rest.len() > BUFFER {
            emit(key, &rest);
            rest = Vec::new();
        }
        if rest.is_empty() {
            rest = Vec::new();
        }
    }
}

fn emit(key: &Key, line: &[u8]) {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end();
    if line.is_empty() {
        return;
    }
    match level(line) {
        Level::Error => tracing::error!(target: "shim", task = %key, "{line}"),
        Level::Warn => tracing::warn!(target: "shim", task = %key, "{line}"),
        Level::Other => tracing::debug!(target: "shim", task = %key, "{line}"),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Level {
    Error,
    Warn,
    Other,
}

/// The severity in a line of logrus (`level=error`) or JSON (`"level":"error"`).
fn level(line: &str) -> Level {
    let Some(at) = line.find("level") else { return Level::Other };
    let word = line[at + "level".len()..].trim_start_matches(['=', '"', ':', ' ']);
    if word.starts_with("err") || word.starts_with("fatal") || word.starts_with("panic") {
        Level::Error
    } else if word.starts_with("warn") {
        Level::Warn
    } else {
        Level::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_found_in_both_forms() {
        assert_eq!(level("time=x level=error msg=y"), Level::Error);
        assert_eq!(level(r#"{"level":"warning","msg":"y"}"#), Level::Warn);
        assert_eq!(level("time=x level=info msg=y"), Level::Other);
        assert_eq!(level("something else"), Level::Other);
        assert_eq!(level("level"), Level::Other);
    }
}
