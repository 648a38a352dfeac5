//! Routes that move images: pull, import, push. Their answers are streams of progress.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::StatusCode;
use http_body_util::BodyStream;
use oci::config::ExecConfig;
use oci::{Platform, Reference};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::request::Ctx;
use super::{Answer, Reply};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::fetch;
use crate::image::{Auth, Changes, ImportRequest, Line};

/// Progress records that may wait for a slow client.
const DEPTH: usize = 64;
/// How much of a refused archive a client may still send.
const MOST_UNREAD_BYTES: u64 = 16 << 30;

/// One record as it goes over the wire: escaped for HTML as Go's encoder does, and ended as Docker ends them.
pub(super) fn record(line: &Value) -> Bytes {
    let text = line.to_string();
    let mut out = String::with_capacity(text.len() + 2);
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out.push_str("\r\n");
    Bytes::from(out)
}

/// A failure inside a stream.
pub(super) fn error_record(err: &Error) -> Bytes {
    record(&json!({ "errorDetail": { "message": err.message() }, "error": err.message() }))
}

/// Answers with the records `work` sends. A failure before the first record is an ordinary error answer, a later one is told in the stream.
/// `work` ends when the client goes away: its channel closes.
pub(super) async fn streamed<F, Fut>(work: F) -> Answer
where
    F: FnOnce(mpsc::Sender<Line>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let (lines, mut heard) = mpsc::channel::<Line>(DEPTH);
    let task = tokio::spawn(work(lines));
    let Some(first) = heard.recv().await else {
        task.await.unwrap_or_else(|err| Err(Error::system(err.to_string())))?;
        return Ok(Reply::status(StatusCode::OK));
    };
    let (reply, sink) = Reply::channel(StatusCode::OK, Some("application/json"), DEPTH);
    tokio::spawn(async move {
        let mut next = Some(first);
        while let Some(line) = next {
            if sink.send(record(&line)).await.is_err() {
                // Dropping the receiver tells the work that nobody listens.
                return;
            }
            next = tokio::select! {
                line = heard.recv() => line,
                () = sink.closed() => return,
            };
        }
        let ended = task.await.unwrap_or_else(|err| Err(Error::system(err.to_string())));
        if let Err(err) = ended {
            tracing::info!(error = %err, "told in the stream");
            let _ = sink.send(error_record(&err)).await;
        }
    });
    Ok(reply)
}

/// `POST /images/create` (ImageCreate): pull, or import.
pub async fn create(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    let from = ctx.params.text("fromImage").to_owned();
    let platform = match ctx.params.text("platform") {
        text if !text.is_empty() && ctx.version.at_least(32) => {
            Some(Platform::parse(text).map_err(|err| Error::invalid(err.to_string()))?)
        }
        _ => None,
    };
    if from.is_empty() { import(ctx, platform).await } else { pull(ctx, &from, platform).await }
}

async fn pull(ctx: Ctx, from: &str, platform: Option<Platform>) -> Answer {
    let invalid = |err: oci::ReferenceError| Error::invalid(err.to_string());
    // Old clients end the name in a colon when they have no tag.
    let reference = Reference::parse(from.trim_end_matches(':')).map_err(invalid)?;
    if reference.familiar_name() == "scratch" {
        return Err(Error::forbidden("'scratch' is a reserved name"));
    }
    let reference = match ctx.params.text("tag") {
        "" => reference,
        tag => match oci::Digest::parse(tag) {
            Ok(digest) => reference.without_tag_and_digest().with_digest(digest),
            Err(_) => reference.with_tag(tag).map_err(invalid)?,
        },
    };
    let auth = Auth::from_header(ctx.header("x-registry-auth"));
    let engine = Arc::clone(&ctx.engine);
    streamed(move |lines| async move {
        for reference in all_tags(&engine, reference, &auth).await? {
            engine.images.pull(&reference, platform.as_ref(), &auth, &lines).await?;
        }
        Ok(())
    })
    .await
}

/// A name without a tag means every tag of the repository.
async fn all_tags(engine: &Engine, reference: Reference, auth: &Auth) -> Result<Vec<Reference>> {
    if !reference.is_name_only() {
        return Ok(vec![reference]);
    }
    let client = fetch::client(&engine.images, &reference, auth)?;
    let tags = client.tags().await.map_err(|err| fetch::error(&err))?;
    Ok(tags.iter().filter_map(|tag| reference.with_tag(tag).ok()).collect())
}

async fn import(mut ctx: Ctx, platform: Option<Platform>) -> Answer {
    let name = super::images::repo_and_tag(ctx.params.text("repo"), ctx.params.text("tag"))?;
    let mut config = ExecConfig::default();
    Changes::apply(ctx.params.all("changes"), &mut config)?;
    let from = ctx.params.text("fromSrc").to_owned();
    let message = match ctx.params.text("message") {
        "" => format!("Imported from {from}"),
        message => message.to_owned(),
    };
    let request = ImportRequest { name, message, platform, config };
    let engine = Arc::clone(&ctx.engine);
    let io_error = |err: hyper::Error| std::io::Error::other(err.to_string());
    if from == "-" {
        let body = ctx.body_stream().ok_or_else(|| Error::invalid("no archive in the request"))?;
        let source = body_chunks(body);
        let id = engine.images.import(source, request).await?;
        return streamed(move |lines| async move { told(&lines, json!({ "status": id })).await }).await;
    }
    let url = match from.split_once("://") {
        Some(_) => from.clone(),
        None if from.is_empty() => return Err(Error::system("Get \"http:\": http: no Host in request URL")),
        None => format!("http://{from}"),
    };
    let response = fetch::get(&url, &engine.config.proxies).await?;
    if !response.status().is_success() {
        return Err(Error::system(format!("Got HTTP status code >= 400: {}", response.status())));
    }
    streamed(move |lines| async move {
        told(&lines, json!({ "status": format!("Downloading from {url}") })).await?;
        let body = BodyStream::new(response.into_body());
        let source = body.filter_map(move |frame| {
            std::future::ready(match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(err) => Some(Err(io_error(err))),
            })
        });
        let id = engine.images.import(source, request).await?;
        told(&lines, json!({ "status": id })).await
    })
    .await
}

/// The data of a request's body. When what reads it gives up, the rest is read and forgotten: most clients hear an answer only when they
/// have sent everything.
pub(super) fn body_chunks(
    body: super::request::Upload,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
    let chunks = BodyStream::new(body).filter_map(|frame| {
        std::future::ready(match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(err) => Some(Err(io::Error::other(err.to_string()))),
        })
    });
    Body { chunks: Some(Box::pin(chunks)) }
}

type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

struct Body {
    /// `None` once it has ended.
    chunks: Option<Chunks>,
}

impl Stream for Body {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(chunks) = &mut self.chunks else { return Poll::Ready(None) };
        let polled = chunks.as_mut().poll_next(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.chunks = None;
        }
        polled
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let (Some(mut chunks), Ok(handle)) = (self.chunks.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        handle.spawn(async move {
            let mut left = MOST_UNREAD_BYTES;
            while let Some(Ok(chunk)) = chunks.next().await {
                left = left.saturating_sub(chunk.len() as u64);
                if left == 0 {
                    return;
                }
            }
        });
    }
}

async fn told(lines: &mpsc::Sender<Line>, line: Line) -> Result<()> {
    lines.send(line).await.map_err(|_| Error::system("context canceled"))
}

/// `POST /images/{name}/push` (ImagePush).
pub async fn push(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    // Nothing is asked for in it, but a refusal must not overtake the end of what the client sends: it would meet a closed connection.
    ctx.body_bytes(super::request::MAX_JSON_BYTES).await?;
    let invalid = |err: oci::ReferenceError| Error::invalid(err.to_string());
    let reference = Reference::parse(ctx.capture("name")).map_err(invalid)?;
    let reference = match ctx.params.text("tag") {
        "" => reference,
        tag => reference.with_tag(tag).map_err(invalid)?,
    };
    let platform = if ctx.version.at_least(46) { super::images::platform(&ctx, "platform")? } else { None };
    let auth = Auth::from_header(ctx.header("x-registry-auth"));
    let engine = Arc::clone(&ctx.engine);
    streamed(
        move |lines| async move { engine.images.push(&reference, platform.as_ref(), &auth, &lines).await },
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_escaped_and_ended_as_gos() {
        let bytes = record(&json!({ "status": "<a> & b" }));
        assert_eq!(&bytes[..], b"{\"status\":\"\\u003ca\\u003e \\u0026 b\"}\r\n");
    }
}
