//! A gRPC channel to a daemon on a unix socket.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a socket that nobody listens on is asked again.
const PROBE: Duration = Duration::from_millis(5);
/// Window of one stream: a content read of 1 MiB chunks goes on without waiting for the receiver.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// A channel to the daemon that listens on `path`.
///
/// The connection is made now and made again when it is lost: calls in flight fail with `Unavailable`, later ones connect anew. Cloning
/// the channel shares the connection. Clients made of it should raise their limit with `max_decoding_message_size(MAX_MESSAGE_BYTES)`.
///
/// # Errors
/// Nobody listens there, or did not answer within ten seconds.
pub async fn connect(path: impl AsRef<Path>) -> Result<Channel, tonic::transport::Error> {
    let path = path.as_ref().to_owned();
    endpoint().connect_with_connector(tower::service_fn(move |_: Uri| dial(path.clone()))).await
}

/// The same, without trying yet: the first call connects. While nobody listens, as when the daemon was killed and is being started again, a call waits
/// for up to `patience` before it fails.
pub fn connect_lazy(path: impl AsRef<Path>, patience: Duration) -> Channel {
    let path = path.as_ref().to_owned();
    let dial = move |_: Uri| dial_patiently(path.clone(), patience);
    endpoint().connect_with_connector_lazy(tower::service_fn(dial))
}

fn endpoint() -> Endpoint {
    // The authority is never resolved; the connector decides where to go.
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

async fn dial_patiently(path: PathBuf, patience: Duration) -> std::io::Result<TokioIo<UnixStream>> {
    let deadline = Instant::now() + patience;
    loop {
        match dial(path.clone()).await {
            // A socket appears without a signal of its own: asking again is the protocol.
            Err(err) if nobody_listens(&err) && Instant::now() < deadline => {
                tokio::time::sleep(PROBE).await;
            }
            other => return other,
        }
    }
}

fn nobody_listens(err: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(err.kind(), ConnectionRefused | NotFound)
}

async fn dial(path: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    Ok(TokioIo::new(UnixStream::connect(path).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_daemon_that_is_being_started_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        assert!(dial_patiently(path.clone(), Duration::ZERO).await.is_err());
        let waiting = tokio::spawn(dial_patiently(path.clone(), Duration::from_secs(30)));
        tokio::time::sleep(PROBE * 3).await;
        // One that was killed leaves its socket behind: bound, and nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        tokio::time::sleep(PROBE * 3).await;
        assert!(!waiting.is_finished());
        std::fs::remove_file(&path).unwrap();
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        waiting.await.unwrap().unwrap();
    }
}
