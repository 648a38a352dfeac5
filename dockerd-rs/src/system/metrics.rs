//! `--metrics-addr`: figures about the engine for Prometheus, on a socket of their own.
//!
//! The figures are computed when they are asked for, from what the engine knows anyway; names are those of Docker Engine.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::host;
use crate::api::ApiVersion;
use crate::container::State;
use crate::engine::Engine;
use crate::error::{Error, Result, sys_text};

/// Connections served at the same time; a collector needs one.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may take, from its begin to its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens the socket.
///
/// # Errors
/// The address is wrong or taken.
pub fn open(address: &str) -> Result<TcpListener> {
    let opened = std::net::TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .and_then(TcpListener::from_std);
    opened.map_err(|err| {
        Error::system(format!("starting metrics server: listen tcp {address}: {}", sys_text(&err)))
    })
}

/// Serves until the engine stops.
pub async fn serve(listener: TcpListener, engine: Arc<Engine>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = engine.phase.stopping() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let engine = Arc::clone(&engine);
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let answer = answer(&engine, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(PATIENCE, served).await;
        });
    }
}

fn answer(engine: &Engine, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    if !looks || request.uri().path() != "/metrics" {
        let mut response = Response::new(Full::new(Bytes::from_static(b"404 page not found\n")));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(Full::new(Bytes::from(text(engine))));
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// All figures in Prometheus' text format.
fn text(engine: &Engine) -> String {
    let (mut running, mut paused, mut stopped) = (0, 0, 0);
    for container in engine.containers.all() {
        match &container.record().life.state {
            State::Paused(_) => paused += 1,
            state if state.is_running() => running += 1,
            _ => stopped += 1,
        }
    }
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, rows: &[(String, i64)]| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in rows {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let one = |value: i64| [(String::new(), value)];
    let state = |name: &str, count: i64| (format!("{{state=\"{name}\"}}"), count);
    metric(
        "engine_daemon_container_states_containers",
        "gauge",
        "The count of containers in various states",
        &[state("paused", paused), state("running", running), state("stopped", stopped)],
    );
    let facts = [
        ("architecture", host::machine()),
        ("daemon_id", engine.id.clone()),
        ("graphdriver", crate::runtime::content::SNAPSHOTTER.to_owned()),
        ("kernel", host::kernel()),
        ("os", host::os().0),
        ("os_type", "linux".to_owned()),
        ("os_version", host::os().1),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("api_version", ApiVersion::MAX.to_string()),
    ];
    let labels: Vec<String> =
        facts.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    metric(
        "engine_daemon_engine_info",
        "gauge",
        "The information related to the engine and the OS it is running on",
        &[(format!("{{{}}}", labels.join(",")), 1)],
    );
    metric(
        "engine_daemon_engine_cpus_cpus",
        "gauge",
        "The number of cpus that the host system of the engine has",
        &one(host::processors()),
    );
    metric(
        "engine_daemon_engine_memory_bytes",
        "gauge",
        "The number of bytes of memory that the host system of the engine has",
        &one(host::memory()),
    );
    metric(
        "engine_daemon_events_total",
        "counter",
        "The number of events logged",
        &one(engine.events.count().cast_signed()),
    );
    metric(
        "engine_daemon_events_subscribers_total",
        "gauge",
        "The number of current subscribers to events",
        &one(i64::try_from(engine.events.listeners()).unwrap_or(i64::MAX)),
    );
    metric("process_open_fds", "gauge", "Number of open file descriptors.", &one(host::open_files()));
    metric("process_threads", "gauge", "Number of threads.", &one(host::threads()));
    text
}

/// A label's value: backslash, quote and newline are escaped.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
