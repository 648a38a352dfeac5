//! Taking a connection over: attach and exec turn HTTP into a byte stream.
//!
//! The answer is `101 UPGRADED`, or what [`super::preface`] makes of it for clients that asked for no upgrade and for refusals; the stream
//! is handed to the caller once the head has been written.

use http::StatusCode;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use super::preface::{PLAIN_HEADER, STATUS_HEADER};
use super::reply::Reply;
use super::request::Ctx;
use crate::error::{Error, Result};

/// A connection that speaks HTTP no more.
pub type Stream = TokioIo<Upgraded>;

/// Bytes as the process wrote them, and what any hijacked connection is called that was not upgraded.
pub const RAW: &str = "application/vnd.docker.raw-stream";
/// Docker's frames of eight bytes and a payload.
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// The content type of a process' output on this connection.
pub fn content_type(ctx: &Ctx, tty: bool) -> &'static str {
    let plain = ctx.headers.contains_key(PLAIN_HEADER);
    if tty || plain || !ctx.version.at_least(42) { RAW } else { MULTIPLEXED }
}

/// Answers `101 UPGRADED` and runs `then` with the raw stream in a task of its own.
///
/// # Errors
/// The client sent no `Upgrade` header.
pub fn upgrade<F, Fut>(ctx: &mut Ctx, content_type: &'static str, then: F) -> Result<Reply>
where
    F: FnOnce(Stream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let Some(on_upgrade) = ctx.upgrade.take() else {
        return Err(Error::invalid("the request asks for no upgrade"));
    };
    tokio::spawn(async move {
        match on_upgrade.await {
            Ok(upgraded) => then(TokioIo::new(upgraded)).await,
            Err(err) => tracing::debug!(error = %err, "upgrade failed"),
        }
    });
    let mut reply = Reply::status(StatusCode::SWITCHING_PROTOCOLS).reason("UPGRADED").bare();
    reply.header("Content-Type", content_type).header("Connection", "Upgrade").header("Upgrade", "tcp");
    Ok(reply)
}

/// Refuses as Docker does on a connection it has taken over already: a status line, the text, the end.
///
/// # Errors
/// `err` itself, when the connection cannot be taken over.
pub fn refuse(ctx: &mut Ctx, err: Error) -> Result<Reply> {
    if ctx.upgrade.is_none() {
        return Err(err);
    }
    let status = err.kind().status();
    let text = format!("{err}\r\n");
    let mut reply = upgrade(ctx, RAW, |mut stream| async move {
        // A client that is gone does not read it.
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.shutdown().await;
    })?;
    let line = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    reply.header(STATUS_HEADER, &line);
    Ok(reply)
}
