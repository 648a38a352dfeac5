//! What `[debug] address` serves: HTTP on a unix socket, with containerd's paths.
//!
//! `/debug/vars` and `/debug/pprof/cmdline` answer as they do there. The profiles of Go's runtime cannot exist in this program; who asks for one
//! is told so and what to use instead, with status 501, never given something that looks like a profile.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// The profiles `ctr pprof` asks for by name.
const PROFILES: &[&str] =
    &["allocs", "block", "goroutine", "heap", "mutex", "profile", "symbol", "threadcreate", "trace"];

/// Serves on `listener` until `stop`.
pub fn serve(listener: UnixListener, stop: CancellationToken) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(err) => {
                        tracing::warn!(%err, "accept on the debug address");
                        tokio::task::yield_now().await;
                        continue;
                    }
                },
            };
            let stop = stop.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request| std::future::ready(answer(&request)));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    // A client that hangs up is no event.
                    _ = connection => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    })
}

fn answer<B>(request: &Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    Ok(match path.strip_prefix("/debug/pprof/") {
        _ if path == "/debug/vars" => {
            reply(StatusCode::OK, "application/json; charset=utf-8", variables().to_string())
        }
        Some("cmdline") => reply(StatusCode::OK, "text/plain; charset=utf-8", arguments().join("\0")),
        Some("") => reply(StatusCode::OK, "text/plain; charset=utf-8", explanation()),
        Some(profile) if PROFILES.contains(&profile) => {
            let text = format!("there is no profile {profile:?} here: {}", explanation());
            reply(StatusCode::NOT_IMPLEMENTED, "text/plain; charset=utf-8", text)
        }
        _ => reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".to_owned()),
    })
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn explanation() -> String {
    format!(
        "containerd-rs is not a Go program and has no pprof profiles; `perf record -g -p {0}` and /proc/{0}/ show what it does\n",
        std::process::id()
    )
}

/// `/debug/vars`: containerd's `cmdline`, and what the kernel says of us in place of its `memstats`.
fn variables() -> serde_json::Value {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    json!({
        "cmdline": arguments(),
        "process": {
            "version": crate::version::SHORT,
            "resident_bytes": number("VmRSS") * 1024,
            "resident_peak_bytes": number("VmHWM") * 1024,
            "threads": number("Threads"),
            "descriptors": std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        },
    })
}

fn arguments() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    async fn get(path: &str) -> (u16, String) {
        let response = answer(&Request::builder().uri(path).body(()).unwrap()).unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn what_there_is_is_answered_and_what_cannot_be_is_said() {
        let (status, text) = get("/debug/vars").await;
        let vars: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, 200);
        assert!(vars["cmdline"][0].is_string() && vars["process"]["resident_bytes"].as_u64().unwrap() > 0);
        assert_eq!(get("/debug/pprof/cmdline").await.0, 200);
        let (status, text) = get("/debug/pprof/goroutine?debug=2").await;
        assert_eq!(status, 501);
        assert!(text.contains("there is no profile \"goroutine\" here"), "{text}");
        assert_eq!(get("/debug/pprof/nosuch").await.0, 404);
        assert_eq!(get("/").await.0, 404);
    }
}
