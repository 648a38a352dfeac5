//! Routes of image archives: save and load.

use std::sync::Arc;

use futures_util::StreamExt;
use http::StatusCode;
use serde_json::json;

use super::images::platforms;
use super::request::Ctx;
use super::transfers::{body_chunks, error_record, record};
use super::{Answer, Reply};
use crate::error::{Error, Result};

/// Chunks of an archive that may wait for a slow client.
const DEPTH: usize = 4;

fn wanted(ctx: &Ctx) -> Result<Vec<oci::Platform>> {
    if !ctx.version.at_least(48) {
        return Ok(Vec::new());
    }
    let wanted = platforms(ctx, "platform")?;
    if wanted.len() > 1 && !ctx.version.at_least(52) {
        return Err(Error::invalid(
            "multiple platform parameters are not supported in this API version; use API version 1.52 or later",
        ));
    }
    Ok(wanted)
}

/// `GET /images/{name}/get` (ImageGet).
pub async fn save_one(ctx: Ctx) -> Answer {
    let names = vec![ctx.capture("name").to_owned()];
    save(ctx, names).await
}

/// `GET /images/get` (ImageGetAll).
pub async fn save_many(ctx: Ctx) -> Answer {
    let names = ctx.params.all("names").map(str::to_owned).collect();
    save(ctx, names).await
}

async fn save(ctx: Ctx, names: Vec<String>) -> Answer {
    let platforms = wanted(&ctx)?;
    let archive = ctx.engine.images.save(&names, &platforms).await?;
    let (reply, sink) = Reply::channel(StatusCode::OK, Some("application/x-tar"), DEPTH);
    tokio::spawn(async move {
        if let Err(err) = archive.send(&sink).await {
            tracing::warn!(error = %err, "archive cut short");
        }
    });
    Ok(reply)
}

/// `POST /images/load` (ImageLoad). Every failure is told in the stream, as Docker does.
pub async fn load(mut ctx: Ctx) -> Answer {
    let platforms = wanted(&ctx)?;
    let engine = Arc::clone(&ctx.engine);
    let body = ctx.body_stream().ok_or_else(|| Error::invalid("no archive in the request"))?;
    let mut chunks = body_chunks(body);
    // A client that waits for `100 Continue` gets it when the body is first asked for, and only before the answer.
    let first = chunks.next().await;
    let chunks = futures_util::stream::iter(first).chain(chunks);
    let (reply, sink) = Reply::channel(StatusCode::OK, Some("application/json"), DEPTH);
    tokio::spawn(async move {
        let loaded = tokio::select! {
            loaded = engine.images.load(chunks, &platforms) => loaded,
            () = sink.closed() => return,
        };
        match loaded {
            Ok(lines) => {
                for line in lines {
                    if sink.send(record(&json!({ "stream": line }))).await.is_err() {
                        return;
                    }
                }
            }
            Err(err) => {
                tracing::info!(error = %err, "load failed");
                let _ = sink.send(error_record(&err)).await;
            }
        }
    });
    Ok(reply)
}
