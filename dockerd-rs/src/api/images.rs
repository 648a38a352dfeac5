//! Routes of `/images`.

use http::StatusCode;
use oci::{Platform, Reference};
use serde_json::Value;

use super::request::Ctx;
use super::{Answer, Reply, Router};
use crate::error::{Error, Result};
use crate::image::{DeleteOptions, ListOptions};

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.get("/images/json", list);
    router.get("/images/search", search);
    router.get("/images/get", super::archives::save_many);
    router.get("/images/{name*}/get", super::archives::save_one);
    router.get("/images/{name*}/history", history);
    router.get("/images/{name*}/attestations", attestations);
    router.get("/images/{name*}/json", inspect);
    router.post("/images/load", super::archives::load);
    router.post("/images/create", super::transfers::create);
    router.post("/images/{name*}/push", super::transfers::push);
    router.post("/images/{name*}/tag", tag);
    router.post("/images/prune", prune);
    router.delete("/images/{name*}", delete);
    router.delete("/images/", delete);
}

/// `GET /images/json` (ImageList).
async fn list(ctx: Ctx) -> Answer {
    let filters = ctx.filters(&["dangling", "label", "label!", "before", "since", "reference", "until"])?;
    let manifests = ctx.params.bool("manifests");
    if ctx.version.at_least(54) && ctx.params.bool("identity") && !manifests {
        return Err(Error::invalid("conflicting options: identity requires manifests=1"));
    }
    let options = ListOptions {
        shared_size: ctx.version.at_least(42) && ctx.params.bool("shared-size"),
        manifests: ctx.version.at_least(47) && manifests,
    };
    Ok(Reply::ok(&ctx.engine.images.list(&filters, options, ctx.version).await?))
}

/// `GET /images/{name}/json` (ImageInspect).
async fn inspect(ctx: Ctx) -> Answer {
    let manifests = ctx.version.at_least(48) && ctx.params.bool("manifests");
    let platform = if ctx.version.at_least(49) { platform(&ctx, "platform")? } else { None };
    if manifests && platform.is_some() {
        return Err(Error::invalid("conflicting options: manifests and platform options cannot both be set"));
    }
    let name = ctx.capture("name");
    Ok(Reply::ok(&ctx.engine.images.inspect(name, platform.as_ref(), manifests, ctx.version).await?))
}

/// `GET /images/{name}/history` (ImageHistory).
async fn history(ctx: Ctx) -> Answer {
    let platform = if ctx.version.at_least(48) { platform(&ctx, "platform")? } else { None };
    Ok(Reply::ok(&ctx.engine.images.history(ctx.capture("name"), platform.as_ref()).await?))
}

/// `GET /images/{name}/attestations` (ImageAttestations).
async fn attestations(ctx: Ctx) -> Answer {
    if !ctx.version.at_least(55) {
        return Err(Error::invalid("GET /images/{name:.*}/attestations requires minimum API version 1.55"));
    }
    let platforms = platforms(&ctx, "platform")?;
    if platforms.len() > 1 {
        return Err(Error::invalid("only one platform may be given"));
    }
    let image = ctx.engine.images.resolve(ctx.capture("name"), platforms.first()).await?;
    let kinds: Vec<&str> = ctx.params.all("type").filter(|kind| !kind.is_empty()).collect();
    let statements = ctx.params.bool("statement");
    let shown = ctx.engine.images.attestations(&image, &kinds, statements).await?;
    Ok(Reply::ok(&shown))
}

/// `POST /images/{name}/tag` (ImageTag).
async fn tag(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    let Some(reference) = repo_and_tag(ctx.params.text("repo"), ctx.params.text("tag"))? else {
        // Docker does nothing and says nothing.
        return Ok(Reply::status(StatusCode::OK));
    };
    ctx.engine.images.tag(ctx.capture("name"), &reference).await?;
    Ok(Reply::status(StatusCode::CREATED))
}

/// `DELETE /images/{name}` (ImageDelete).
async fn delete(ctx: Ctx) -> Answer {
    let name = ctx.capture("name");
    if name.trim().is_empty() {
        return Err(Error::invalid("image name cannot be blank"));
    }
    let platforms = if ctx.version.at_least(50) { platforms(&ctx, "platforms")? } else { Vec::new() };
    let options = DeleteOptions { force: ctx.params.bool("force"), platforms };
    Ok(Reply::ok(&ctx.engine.images.delete(name, &options).await?))
}

/// `POST /images/prune` (ImagePrune).
async fn prune(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    let filters = ctx.filters(&["dangling", "label", "label!", "until", "unused-for"])?;
    Ok(Reply::ok(&ctx.engine.images.prune(&filters).await?))
}

/// `GET /images/search` (ImageSearch).
async fn search(ctx: Ctx) -> Answer {
    let limit = match ctx.params.int("limit") {
        Ok(None) => 25,
        Ok(Some(limit)) if (1..=100).contains(&limit) => limit,
        Ok(Some(limit)) => {
            return Err(Error::invalid(format!("limit {limit} is outside the range of [1, 100]")));
        }
        Err(err) => return Err(err.context("invalid limit specified")),
    };
    let filters = ctx.filters(&["is-automated", "is-official", "stars"])?;
    let found = crate::image::search(&ctx.engine, ctx.params.text("term"), limit, &filters).await?;
    Ok(Reply::ok(&found))
}

/// A `platform` parameter: JSON as of the OCI specification.
pub(super) fn platform(ctx: &Ctx, key: &str) -> Result<Option<Platform>> {
    match ctx.params.text(key) {
        "" => Ok(None),
        text => parse_platform(text).map(Some),
    }
}

/// All values of a repeatable platform parameter.
pub(super) fn platforms(ctx: &Ctx, key: &str) -> Result<Vec<Platform>> {
    ctx.params.all(key).filter(|text| !text.is_empty()).map(parse_platform).collect()
}

fn parse_platform(text: &str) -> Result<Platform> {
    let failed = |why: String| Error::invalid(format!("failed to parse platform: {why}"));
    let value: Value = docker_api::json::value(text.as_bytes())
        .map_err(|err| failed(err.to_string().trim_start_matches("invalid JSON: ").to_owned()))?;
    let platform: Platform = serde_json::from_value(value).map_err(|err| failed(err.to_string()))?;
    if platform.is_unspecified() {
        return Err(failed("both OS and Architecture must be provided".into()));
    }
    Ok(platform)
}

/// `repo` and `tag` parameters together; `None` when there is no repository.
///
/// # Errors
/// 400 in Docker's words.
pub(super) fn repo_and_tag(repo: &str, tag: &str) -> Result<Option<Reference>> {
    if repo.is_empty() {
        return Ok(None);
    }
    let reference = Reference::parse(repo).map_err(|err| Error::invalid(err.to_string()))?;
    if reference.digest().is_some() {
        return Err(Error::invalid("cannot import digest reference"));
    }
    if reference.familiar_name() == "sha256" {
        return Err(Error::invalid("refusing to create an ambiguous tag using digest algorithm as name"));
    }
    if tag.is_empty() {
        return Ok(Some(reference.or_latest()));
    }
    reference.with_tag(tag).map(Some).map_err(|err| Error::invalid(err.to_string()))
}
