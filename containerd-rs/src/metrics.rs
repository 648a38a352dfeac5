//! Prometheus metrics over HTTP at `/v1/metrics`, when the configuration gives an address.

use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What is counted. Parts add their own to it before the daemon serves.
pub type Metrics = Arc<std::sync::Mutex<Registry>>;

/// Serves `metrics` on `address` until `stop`.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(
    address: &str,
    metrics: Metrics,
    stop: CancellationToken,
) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let listener = TcpListener::bind(address).await?;
    Ok(tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(err) => {
                        tracing::warn!(%err, "accept on the metrics address");
                        continue;
                    }
                },
            };
            let metrics = Arc::clone(&metrics);
            let stop = stop.clone();
            tokio::spawn(async move {
                let service =
                    hyper::service::service_fn(move |request| answer(request, Arc::clone(&metrics)));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    // A client that hangs up is no event.
                    _ = connection => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }))
}

async fn answer<B>(
    request: Request<B>,
    metrics: Metrics,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/v1/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    }
    let mut text = String::new();
    let encoded = {
        let registry = metrics.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)
    };
    match encoded {
        Ok(()) => {
            response.headers_mut().insert(
                http::header::CONTENT_TYPE,
                http::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
            );
            *response.body_mut() = Full::from(text);
        }
        Err(_) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
    }
    Ok(response)
}
