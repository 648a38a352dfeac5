//! Connections: HTTP/1.1 over any stream, with limits on what an unfinished request may cost.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::authz::Peer;
use super::preface::Preface;
use super::router::Router;
use crate::engine::Engine;

/// A request's head must be complete within this time of its first byte.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// All headers of one request together, in bytes.
const MAX_HEADER_BYTES: usize = 1 << 20;

/// Where a client is.
pub enum Client {
    /// On this machine: its connection may be idle for as long as it likes, as Docker's may.
    Local,
    /// Elsewhere, with what TLS knows of it. A connection that is idle for [`HEADER_TIMEOUT`] ends.
    Remote(Option<Arc<Peer>>),
}

/// Serves one connection to its end.
pub async fn connection<S>(engine: Arc<Engine>, router: Arc<Router>, stream: S, client: Client)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (peer, idle) = match client {
        Client::Local => (None, None),
        Client::Remote(peer) => (peer, Some(HEADER_TIMEOUT)),
    };
    let (open, phase) = (engine.connections.open(), engine.phase.clone());
    let service = service_fn(|request: http::Request<Incoming>| {
        open.asks(format!("{} {}", request.method(), request.uri().path()));
        let (engine, router, peer) = (Arc::clone(&engine), Arc::clone(&router), peer.clone());
        async move { Ok::<_, Infallible>(super::serve(engine, router, request, peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEADER_BYTES)
        .title_case_headers(true)
        .auto_date_header(false)
        // A client that has sent its request may close its half and still wants the answer (docker run -i < file).
        .half_close(true)
        .serve_connection(TokioIo::new(Preface::new(stream, HEADER_TIMEOUT)), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = phase.stopping() => {
            // An idle one ends at once, another with the answer it is at.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = served {
        tracing::debug!(error = %err, "connection ended");
    }
}
