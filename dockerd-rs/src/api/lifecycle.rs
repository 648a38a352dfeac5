//! Routes that start, stop and end containers, and wait for that.

use http::StatusCode;
use serde::Serialize;

use super::params::quote;
use super::request::Ctx;
use super::{Answer, Reply, Router};
use crate::container::life::Outcome;
use crate::container::wait::{Condition, Waiting};
use crate::container::{kill, pause, remove, start, stop};
use crate::error::{Error, Result};

/// Bodies of start requests up to this length are ignored, as Docker does.
const IGNORED_BODY_BYTES: u64 = 7;

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.post("/containers/{name*}/start", start_container);
    router.post("/containers/{name*}/stop", stop_container);
    router.post("/containers/{name*}/restart", restart_container);
    router.post("/containers/{name*}/kill", kill_container);
    router.post("/containers/{name*}/pause", pause_container);
    router.post("/containers/{name*}/unpause", unpause_container);
    router.post("/containers/{name*}/resize", resize_container);
    router.post("/containers/{name*}/wait", wait_container);
    router.get("/containers/{name*}/checkpoints", checkpoints);
    router.post("/containers/{name*}/checkpoints", checkpoints);
    router.delete("/containers/{name*}/checkpoints/{checkpoint}", checkpoints);
    router.delete("/containers/", remove_container);
    router.delete("/containers/{name*}", remove_container);
}

fn done(outcome: Outcome) -> Reply {
    match outcome {
        Outcome::Done => Reply::no_content(),
        Outcome::AlreadySo => Reply::status(StatusCode::NOT_MODIFIED),
    }
}

/// `POST /containers/{id}/start` (ContainerStart).
async fn start_container(ctx: Ctx) -> Answer {
    let length = ctx.header("content-length").parse().unwrap_or(0_u64);
    if length > IGNORED_BODY_BYTES || ctx.headers.contains_key("transfer-encoding") {
        return Err(Error::invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    start::start(&ctx.engine, &container, start::By::Client).await.map(done)
}

fn stop_options(ctx: &Ctx) -> Result<stop::Options> {
    let signal = ctx.version.at_least(42).then(|| ctx.params.get("signal").map(str::to_owned)).flatten();
    Ok(stop::Options { signal, timeout_secs: ctx.params.int("t")? })
}

/// `POST /containers/{id}/stop` (ContainerStop).
async fn stop_container(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    let options = stop_options(&ctx)?;
    let name = ctx.capture("name");
    let container = ctx.engine.containers.get(name)?;
    stop::stop(&ctx.engine, &container, name, options).await.map(done)
}

/// `POST /containers/{id}/restart` (ContainerRestart).
async fn restart_container(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    let options = stop_options(&ctx)?;
    let name = ctx.capture("name");
    let container = ctx.engine.containers.get(name)?;
    stop::restart(&ctx.engine, &container, name, options).await?;
    Ok(Reply::no_content())
}

/// `POST /containers/{id}/kill` (ContainerKill).
async fn kill_container(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    kill::kill(&ctx.engine, ctx.capture("name"), ctx.params.text("signal")).await?;
    Ok(Reply::no_content())
}

/// `POST /containers/{id}/pause` (ContainerPause).
async fn pause_container(ctx: Ctx) -> Answer {
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    pause::pause(&ctx.engine, &container).await?;
    Ok(Reply::no_content())
}

/// `POST /containers/{id}/unpause` (ContainerUnpause).
async fn unpause_container(ctx: Ctx) -> Answer {
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    pause::unpause(&ctx.engine, &container).await?;
    Ok(Reply::no_content())
}

/// Height and width of a resize.
///
/// # Errors
/// One of them is no number, in Docker's words.
pub(super) fn size(ctx: &Ctx) -> Result<(u32, u32)> {
    let number = |key: &str, word: &str| {
        let text = ctx.params.text(key);
        let why = match text.parse::<i64>() {
            Ok(value) if u32::try_from(value).is_ok() => return Ok(u32::try_from(value).unwrap_or(0)),
            Ok(_) => "value out of range",
            Err(err) => match err.kind() {
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                    "value out of range"
                }
                _ => "invalid syntax",
            },
        };
        Err(Error::invalid(format!("invalid resize {word} {}: {why}", quote(text))))
    };
    Ok((number("h", "height")?, number("w", "width")?))
}

/// `POST /containers/{id}/resize` (ContainerResize).
async fn resize_container(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    let (height, width) = size(&ctx)?;
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    pause::resize(&ctx.engine, &container, width, height).await?;
    Ok(Reply::status(StatusCode::OK))
}

/// `POST /containers/{id}/wait` (ContainerWait). The head is sent at once: clients wait for it, and then start the container.
async fn wait_container(mut ctx: Ctx) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Ended {
        status_code: i32,
    }
    ctx.read_form().await?;
    let flushes = ctx.version.at_least(30);
    let condition =
        if flushes { Condition::parse(ctx.params.text("condition"))? } else { Condition::NotRunning };
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    let waiting = Waiting::begin(&container, condition);
    drop(container);
    if !flushes {
        return Ok(Reply::ok(&Ended { status_code: waiting.code().await }));
    }
    let (reply, body) = Reply::channel(StatusCode::OK, Some("application/json"), 1);
    tokio::spawn(async move {
        tokio::select! {
            code = waiting.code() => {
                let text = format!("{{\"StatusCode\":{code}}}\n");
                // The client may be gone.
                let _ = body.send(text.into()).await;
            }
            () = body.closed() => {}
        }
    });
    Ok(reply)
}

/// `/containers/{id}/checkpoints`: an experiment in Docker, which answers so while it is switched off.
async fn checkpoints(_: Ctx) -> Answer {
    Err(Error::not_implemented(
        "This experimental feature is disabled by default. Start the Docker daemon in experimental mode in order to enable it.",
    ))
}

/// `DELETE /containers/{id}` (ContainerDelete).
async fn remove_container(ctx: Ctx) -> Answer {
    let name = ctx.capture("name");
    if ctx.params.bool("link") {
        crate::container::world::remove_link(&ctx.engine, name).await?;
        return Ok(Reply::no_content());
    }
    let container = ctx.engine.containers.get(name)?;
    let options = remove::Options { force: ctx.params.bool("force"), volumes: ctx.params.bool("v") };
    remove::remove(&ctx.engine, &container, options).await?;
    Ok(Reply::no_content())
}
