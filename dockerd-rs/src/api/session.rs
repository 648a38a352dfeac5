//! Routes of builds. The engine has no builder yet and says so in words a person can act on.

use http::{StatusCode, header};

use super::params::{atoi, quote};
use super::request::Ctx;
use super::{Answer, Reply, Router};
use crate::error::Error;

const NO_BUILDER: &str = "this engine has no builder: build with another tool (buildah, kaniko, BuildKit in a container with `docker buildx create --driver docker-container`) and load the image";

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.post("/session", session);
    router.post("/grpc", grpc);
    router.post("/build", build);
    router.post("/build/prune", prune);
    router.post("/build/cancel", cancel);
}

/// Which protocol the client wants to change to.
fn protocol(ctx: &Ctx) -> Result<String, &'static str> {
    match ctx.header(header::UPGRADE.as_str()) {
        "" => Err("no upgrade proto in request"),
        protocol => Ok(protocol.to_owned()),
    }
}

/// `POST /session`.
async fn session(ctx: Ctx) -> Answer {
    match protocol(&ctx) {
        Err(why) => Err(Error::invalid(why)),
        Ok(protocol) if protocol != "h2c" => {
            Err(Error::invalid(format!("protocol {protocol} not supported")))
        }
        Ok(_) => Err(Error::not_implemented(NO_BUILDER)),
    }
}

/// `POST /grpc`.
async fn grpc(ctx: Ctx) -> Answer {
    match protocol(&ctx) {
        Err(why) => Err(Error::system(why)),
        Ok(protocol) if protocol != "h2c" => Err(Error::system(format!("protocol {protocol} not supported"))),
        Ok(_) => Err(Error::not_implemented(NO_BUILDER)),
    }
}

/// `POST /build`.
async fn build(_ctx: Ctx) -> Answer {
    Err(Error::not_implemented(NO_BUILDER))
}

/// `POST /build/prune`: there is nothing to prune.
async fn prune(mut ctx: Ctx) -> Answer {
    if !ctx.version.at_least(31) {
        return Err(Error::invalid("POST /build/prune requires minimum API version 1.31"));
    }
    ctx.read_form().await?;
    let filters = ctx
        .filters(&["until", "id", "parent", "type", "description", "inuse", "shared", "private"])
        .map_err(|err| err.context("failed to prune build cache"))?;
    if let Some(until) = filters.get("until").first()
        && super::times::moment(until).is_none()
    {
        return Err(Error::invalid(format!(
            "failed to prune build cache: \"until\" filter expects a duration (e.g., '24h') or a timestamp: failed to parse value as time or duration: invalid seconds {}: invalid syntax",
            quote(until)
        )));
    }
    for key in ["keep-storage", "reserved-space", "max-used-space", "min-free-space"] {
        let text = ctx.params.text(key);
        if !text.is_empty() {
            atoi(text).map_err(|err| {
                err.context(format!("{key} is in bytes and expects an integer, got {text}"))
            })?;
        }
    }
    Ok(Reply::ok(&serde_json::json!({ "CachesDeleted": null, "SpaceReclaimed": 0 })))
}

/// `POST /build/cancel`.
async fn cancel(ctx: Ctx) -> Answer {
    if ctx.params.text("id").is_empty() {
        return Err(Error::invalid("build ID not provided"));
    }
    Ok(Reply::status(StatusCode::OK))
}
