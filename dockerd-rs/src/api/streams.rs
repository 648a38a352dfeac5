//! Routes that stream: logs, attach (hijacked and by websocket), statistics.

use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::hijack::{self, RAW, Stream};
use super::request::Ctx;
use super::{Answer, Reply, Router};
use crate::container::detach::DetachKeys;
use crate::container::io::{self, Wanted};
use crate::container::life::decide;
use crate::container::live::PendingAttach;
use crate::container::logs::{self, Follow, Format, Query};
use crate::container::relay::{self, Over};
use crate::container::{Container, stats};
use crate::engine::Engine;
use crate::error::{Error, Result};
use std::sync::Arc;

/// Chunks of a log on their way to a client.
const LOG_CHUNKS: usize = 4;

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.get("/containers/{name*}/logs", container_logs);
    router.get("/containers/{name*}/stats", container_stats);
    router.get("/containers/{name*}/attach/ws", attach_websocket);
    router.post("/containers/{name*}/attach", attach_container);
}

/// `GET /containers/{id}/logs` (ContainerLogs).
async fn container_logs(ctx: Ctx) -> Answer {
    let query = Query::of(&ctx.params)?;
    let json = wants_json(&ctx)?;
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    let record = container.record();
    let place = io::log_place(&ctx.engine.config, &record)?
        .ok_or_else(|| Error::not_implemented("configured logging driver does not support reading"))?;
    let tty = record.config.tty;
    let (format, content_type) = if json {
        (Format::Json, "application/x-ndjson")
    } else if tty {
        (Format::Raw, RAW)
    } else if ctx.version.at_least(42) {
        (Format::Multiplexed, hijack::MULTIPLEXED)
    } else {
        (Format::Multiplexed, RAW)
    };
    let follow = if query.follow { Follow::While(alive(&container)) } else { Follow::No };
    let (reply, body) = Reply::channel(StatusCode::OK, Some(content_type), LOG_CHUNKS);
    let engine = Arc::clone(&ctx.engine);
    tokio::spawn(async move {
        if record.pid().is_some() && !query.follow {
            // What the process wrote before this request is in the answer.
            io::Streams::of_container(&engine.config, &container.id).flush().await;
        }
        let growth = engine.containers.shared.growth();
        if let Err(err) = logs::send(place, query, format, follow, growth, body).await {
            tracing::warn!(container = %container.id, error = %err, "read its log");
        }
    });
    Ok(reply)
}

/// From API 1.54 on a log can be asked for as JSON records.
fn wants_json(ctx: &Ctx) -> Result<bool> {
    if !ctx.version.at_least(54) {
        return Ok(false);
    }
    match ctx.params.text("format") {
        "json" => Ok(true),
        "" => Ok(ctx.header("accept").split(',').any(|kind| {
            kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/x-ndjson")
        })),
        _ => Err(Error::invalid("unsupported log format")),
    }
}

/// True while the container runs or waits for its restart.
fn alive(container: &Arc<Container>) -> watch::Receiver<bool> {
    let mut records = container.watch();
    let (alive, watching) = watch::channel(records.borrow_and_update().life.state.is_running());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = records.changed() => {
                    let running = changed.is_ok() && records.borrow_and_update().life.state.is_running();
                    alive.send_replace(running);
                    if !running {
                        return;
                    }
                }
                () = alive.closed() => return,
            }
        }
    });
    watching
}

/// What an attach asks for.
struct Attach {
    wanted: Wanted,
    stream: bool,
    logs: bool,
    keys: DetachKeys,
}

impl Attach {
    fn of(ctx: &Ctx) -> Result<Self> {
        let flag = |key: &str| ctx.params.bool(key);
        Ok(Self {
            wanted: Wanted { stdin: flag("stdin"), stdout: flag("stdout"), stderr: flag("stderr") },
            stream: flag("stream"),
            logs: flag("logs"),
            keys: DetachKeys::parse(ctx.params.text("detachKeys"))?,
        })
    }

    fn query(&self) -> Query {
        Query { stdout: self.wanted.stdout, stderr: self.wanted.stderr, ..Query::default() }
    }
}

/// `POST /containers/{id}/attach` (ContainerAttach). Docker has taken the connection over before it looks: refusals are plain text.
async fn attach_container(mut ctx: Ctx) -> Answer {
    match ready_to_attach(&ctx) {
        Ok((attach, container)) => {
            let engine = Arc::clone(&ctx.engine);
            let content_type = hijack::content_type(&ctx, container.record().config.tty);
            // Joined before the answer: a client may start the container once it has that.
            let joined = join(&engine, &container, &attach).await;
            hijack::upgrade(&mut ctx, content_type, move |stream| async move {
                attached(&engine, &container, attach, joined, stream).await;
            })
        }
        Err(err) => hijack::refuse(&mut ctx, err),
    }
}

fn ready_to_attach(ctx: &Ctx) -> Result<(Attach, Arc<Container>)> {
    let name = ctx.capture("name");
    let container = ctx.engine.containers.get(name)?;
    decide::attach(&container.record().life.state, name).proceed()?;
    Ok((Attach::of(ctx)?, container))
}

/// How an attached client gets its connection to the shim.
enum Joined {
    /// It asked for no stream.
    No,
    /// It has it.
    Now(UnixStream),
    /// With the next start.
    Later(oneshot::Receiver<UnixStream>),
}

async fn join(engine: &Arc<Engine>, container: &Arc<Container>, attach: &Attach) -> Joined {
    let wanted = attach.wanted;
    if !attach.stream || wanted == Wanted::default() {
        return Joined::No;
    }
    let record = container.record();
    let wanted = Wanted { stdin: wanted.stdin && record.config.open_stdin, ..wanted };
    container.publish(engine, "attach", &[]);
    if record.pid().is_some() {
        match io::Streams::of_container(&engine.config, &container.id).attach(wanted).await {
            Ok(stream) => return Joined::Now(stream),
            // It ends just now: as if it had before.
            Err(err) => tracing::debug!(container = %container.id, error = %err, "attach"),
        }
    }
    let (give, later) = oneshot::channel();
    container.live.wait_for_start(PendingAttach { wanted, give });
    Joined::Later(later)
}

async fn attached(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    attach: Attach,
    joined: Joined,
    mut client: Stream,
) {
    let record = container.record();
    if attach.logs {
        let format = if record.config.tty { Format::Raw } else { Format::Multiplexed };
        let (to, mut chunks) = tokio::sync::mpsc::channel(LOG_CHUNKS);
        if let Ok(Some(place)) = io::log_place(&engine.config, &record) {
            tokio::spawn(logs::send(place, attach.query(), format, Follow::No, None, to));
            while let Some(chunk) = chunks.recv().await {
                if client.write_all(&chunk).await.is_err() {
                    return;
                }
            }
        }
    }
    let shim = match joined {
        Joined::No => None,
        Joined::Now(stream) => Some(stream),
        Joined::Later(later) => wait_for_start(later, container).await,
    };
    if let Some(shim) = shim {
        let keys = (record.config.tty && attach.wanted.stdin).then_some(attach.keys);
        if relay::run(&mut client, shim, attach.wanted.stdin, keys).await == Over::Detached {
            container.publish(engine, "detach", &[]);
        }
    }
    let _ = client.shutdown().await;
}

/// A start hands the connection over; a removal ends the wait.
async fn wait_for_start(
    later: oneshot::Receiver<UnixStream>,
    container: &Arc<Container>,
) -> Option<UnixStream> {
    let mut ends = container.live.ends();
    tokio::select! {
        stream = later => stream.ok(),
        _ = ends.wait_for(|ends| ends.removed) => None,
    }
}

/// `GET /containers/{id}/attach/ws` (ContainerAttachWebsocket): the bytes in binary frames, output and errors in one stream.
async fn attach_websocket(mut ctx: Ctx) -> Answer {
    let name = ctx.capture("name").to_owned();
    let container = ctx.engine.containers.get(&name)?;
    let key = ctx.header("sec-websocket-key").to_owned();
    if ctx.upgrade.is_none() || key.is_empty() {
        let mut reply =
            Reply::bytes(StatusCode::BAD_REQUEST, "text/plain", b"not websocket protocol".to_vec()).bare();
        reply.header("Connection", "close");
        return Ok(reply);
    }
    decide::attach(&container.record().life.state, &name).proceed()?;
    let mut attach = Attach::of(&ctx)?;
    if !ctx.version.at_least(42) {
        attach.wanted = Wanted { stdin: true, stdout: true, stderr: true };
    }
    let binary = ctx.version.at_least(28);
    let engine = Arc::clone(&ctx.engine);
    let joined = join(&engine, &container, &attach).await;
    let upgraded = hijack::upgrade(&mut ctx, RAW, move |stream| async move {
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        websocket(&engine, &container, attach, joined, socket, binary).await;
    });
    upgraded?;
    let mut reply = Reply::status(StatusCode::SWITCHING_PROTOCOLS).bare();
    reply
        .header("Upgrade", "websocket")
        .header("Connection", "Upgrade")
        .header("Sec-WebSocket-Accept", &derive_accept_key(key.as_bytes()));
    Ok(reply)
}

async fn websocket(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    attach: Attach,
    joined: Joined,
    socket: WebSocketStream<Stream>,
    binary: bool,
) {
    let (mut to_client, mut from_client) = socket.split();
    let message = |bytes: Vec<u8>| {
        if binary {
            Message::Binary(bytes.into())
        } else {
            Message::Text(String::from_utf8_lossy(&bytes).into_owned().into())
        }
    };
    let record = container.record();
    if attach.logs
        && let Ok(Some(place)) = io::log_place(&engine.config, &record)
    {
        let (to, mut chunks) = tokio::sync::mpsc::channel(LOG_CHUNKS);
        tokio::spawn(logs::send(place, attach.query(), Format::Raw, Follow::No, None, to));
        while let Some(chunk) = chunks.recv().await {
            if to_client.send(message(chunk.to_vec())).await.is_err() {
                return;
            }
        }
    }
    let shim = match joined {
        Joined::No => None,
        Joined::Now(stream) => Some(stream),
        Joined::Later(later) => wait_for_start(later, container).await,
    };
    let Some(shim) = shim else {
        let _ = to_client.close().await;
        return;
    };
    let (mut from_shim, mut to_shim) = shim.into_split();
    let framed = !record.config.tty;
    let output = async {
        loop {
            let bytes =
                if framed { read_frame(&mut from_shim).await } else { read_some(&mut from_shim).await };
            let Some(bytes) = bytes else { break };
            if to_client.send(message(bytes)).await.is_err() {
                return;
            }
        }
        let _ = to_client.close().await;
    };
    let input = async {
        while let Some(Ok(message)) = from_client.next().await {
            let written = match &message {
                Message::Binary(bytes) => to_shim.write_all(bytes).await,
                Message::Text(text) => to_shim.write_all(text.as_bytes()).await,
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
            };
            if written.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = output => {}
        () = input => {}
    }
}

/// The payload of the next of Docker's frames.
async fn read_frame(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut header = [0; 8];
    from.read_exact(&mut header).await.ok()?;
    let [.., a, b, c, d] = header;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    let mut payload = Vec::new();
    from.take(length as u64).read_to_end(&mut payload).await.ok()?;
    (payload.len() == length).then_some(payload)
}

async fn read_some(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 32 << 10];
    let count = from.read(&mut buffer).await.ok()?;
    buffer.truncate(count);
    (count > 0).then_some(buffer)
}

/// `GET /containers/{id}/stats` (ContainerStats).
async fn container_stats(ctx: Ctx) -> Answer {
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    let stream = ctx.params.bool_or("stream", true);
    let one_shot = ctx.version.at_least(41) && ctx.params.bool("one-shot");
    if !stream {
        let record = container.record();
        let sample = stats::once(&ctx.engine, &container, one_shot).await?;
        return Ok(Reply::ok(&stats::document(&record, sample)));
    }
    let (reply, body) = Reply::channel(StatusCode::OK, None, 1);
    let engine = Arc::clone(&ctx.engine);
    tokio::spawn(async move { stats::stream(&engine, &container, one_shot, body).await });
    Ok(reply)
}
