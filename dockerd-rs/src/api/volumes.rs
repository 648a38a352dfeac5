//! Routes of `/volumes`.

use docker_api::volume::{CreateRequest, ListResponse};
use http::StatusCode;

use super::params::quote;
use super::request::Ctx;
use super::{Answer, Reply, Router};
use crate::error::{Error, Result};
use crate::volume::NewVolume;

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.get("/volumes", list);
    router.get("/volumes/{name*}", inspect);
    router.get("/volumes/", inspect);
    router.post("/volumes/create", create);
    router.post("/volumes/prune", prune);
    router.put("/volumes/{name*}", update);
    router.delete("/volumes/{name*}", remove);
    router.delete("/volumes/", remove);
}

/// `GET /volumes` (VolumeList).
async fn list(ctx: Ctx) -> Answer {
    let filters = ctx.filters(&["dangling", "driver", "label", "name"])?;
    let volumes = ctx.engine.volumes.filtered(&filters)?;
    let mut shown = Vec::with_capacity(volumes.len());
    for volume in &volumes {
        let mut volume = ctx.engine.volumes.describe(volume).await;
        volume.status = None;
        shown.push(volume);
    }
    Ok(Reply::ok(&ListResponse { volumes: shown, warnings: None }))
}

/// `GET /volumes/{name}` (VolumeInspect).
async fn inspect(ctx: Ctx) -> Answer {
    let volume = ctx.engine.volumes.get(ctx.capture("name"))?;
    Ok(Reply::ok(&ctx.engine.volumes.describe(&volume).await))
}

/// `POST /volumes/create` (VolumeCreate).
async fn create(mut ctx: Ctx) -> Answer {
    let request: CreateRequest = ctx.json().await?.unwrap_or_default();
    if request.cluster_volume_spec.is_some() && ctx.version.at_least(42) {
        return Err(Error::unavailable(super::swarm::NOT_A_MANAGER));
    }
    let new = NewVolume {
        name: request.name.unwrap_or_default(),
        driver: request.driver.unwrap_or_default(),
        options: request.driver_opts,
        labels: request.labels,
    };
    let volume = ctx.engine.volumes.create(new).await?;
    Ok(Reply::json(StatusCode::CREATED, &ctx.engine.volumes.describe(&volume).await))
}

/// `PUT /volumes/{name}` (VolumeUpdate): for volumes of a swarm only.
async fn update(ctx: Ctx) -> Answer {
    if !ctx.version.at_least(42) {
        return Err(Error::invalid("PUT /volumes/{name:.*} requires minimum API version 1.42"));
    }
    Err(Error::unavailable("volume update only valid for cluster volumes, but swarm is unavailable"))
}

/// `DELETE /volumes/{name}` (VolumeDelete).
async fn remove(ctx: Ctx) -> Answer {
    ctx.engine.volumes.remove(ctx.capture("name"), ctx.params.bool("force")).await?;
    Ok(Reply::no_content())
}

/// `POST /volumes/prune` (VolumePrune).
async fn prune(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    let filters = ctx.filters(&["label", "label!", "all"])?;
    // Before 1.42 a prune took every unused volume.
    let all = match filters.get("all") {
        [] => !ctx.version.at_least(42),
        [value, ..] => parse_bool(value)?,
    };
    Ok(Reply::ok(&ctx.engine.volumes.prune(&filters, all).await?))
}

/// Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Result<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Error::invalid(format!(
            "invalid filter 'all': strconv.ParseBool: parsing {}: invalid syntax",
            quote(text)
        ))),
    }
}
