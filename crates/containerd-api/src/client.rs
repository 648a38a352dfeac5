//! A gRPC channel to a daemon on a unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
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

/// The same, without trying yet: the first call connects.
pub fn connect_lazy(path: impl AsRef<Path>) -> Channel {
    let path = path.as_ref().to_owned();
    endpoint().connect_with_connector_lazy(tower::service_fn(move |_: Uri| dial(path.clone())))
}

fn endpoint() -> Endpoint {
    // The authority is never resolved; the connector decides where to go.
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

async fn dial(path: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    Ok(TokioIo::new(UnixStream::connect(path).await?))
}
