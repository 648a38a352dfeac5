//! Routes of `/containers` that make and show containers.

use base64::Engine as _;
use bytes::Bytes;
use docker_api::HostConfig;
use docker_api::container::{CreateRequest, CreateResponse};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use oci::{Platform, Reference};
use serde::Serialize;
use tokio::sync::mpsc;

use super::request::Ctx;
use super::{Answer, Reply, Router};
use crate::container::archive::{self, PathStat, PutOptions};
use crate::container::{changes, commit, create, inspect, list, prune, rename, top, update};
use crate::error::{Error, Result};

/// Filters of the list.
const LIST_FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "isolation",
    "is-task",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.get("/containers/json", container_list);
    router.post("/containers/create", container_create);
    router.post("/containers/prune", container_prune);
    router.get("/containers/{name*}/json", container_inspect);
    router.get("/containers/{name*}/top", container_top);
    router.get("/containers/{name*}/changes", container_changes);
    router.get("/containers/{name*}/export", container_export);
    router.post("/containers/{name*}/update", container_update);
    router.post("/containers/{name*}/rename", container_rename);
    router.add(Method::HEAD, "/containers/{name*}/archive", archive_stat);
    router.get("/containers/{name*}/archive", archive_get);
    router.put("/containers/{name*}/archive", archive_put);
    router.post("/commit", image_commit);
}

/// `GET /containers/json` (ContainerList).
async fn container_list(ctx: Ctx) -> Answer {
    let query = list::Query {
        all: ctx.params.bool("all"),
        limit: ctx.params.int("limit")?.unwrap_or(0),
        size: ctx.params.bool("size"),
        filters: ctx.filters(LIST_FILTERS)?,
    };
    Ok(Reply::ok(&list::list(&ctx.engine, &query, ctx.version).await?))
}

/// `POST /containers/create` (ContainerCreate).
async fn container_create(mut ctx: Ctx) -> Answer {
    let body = ctx.json_bytes().await?.ok_or_else(|| Error::invalid("invalid JSON: EOF"))?;
    let request = CreateRequest::parse(&body).map_err(|err| Error::invalid(err.to_string()))?;
    let platform = platform(&ctx)?;
    let name = ctx.params.text("name");
    let made = create::create(&ctx.engine, request, name, platform, ctx.version).await?;
    let answer = CreateResponse { id: made.container.id.clone(), warnings: made.warnings };
    Ok(Reply::json(StatusCode::CREATED, &answer))
}

/// `platform`, known since API 1.41.
fn platform(ctx: &Ctx) -> Result<Option<Platform>> {
    match ctx.params.text("platform") {
        text if text.is_empty() || !ctx.version.at_least(41) => Ok(None),
        text => Platform::parse(text).map(Some).map_err(|err| Error::invalid(err.to_string())),
    }
}

/// `GET /containers/{id}/json` (ContainerInspect).
async fn container_inspect(ctx: Ctx) -> Answer {
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    let shown = inspect::inspect(&ctx.engine, &container, ctx.version, ctx.params.bool("size")).await?;
    Ok(Reply::ok(&shown))
}

/// `GET /containers/{id}/top` (ContainerTop).
async fn container_top(ctx: Ctx) -> Answer {
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    let shown = top::top(&ctx.engine, &container, ctx.params.text("ps_args")).await?;
    container.publish(&ctx.engine, "top", &[]);
    Ok(Reply::ok(&shown))
}

/// `GET /containers/{id}/changes` (ContainerChanges).
async fn container_changes(ctx: Ctx) -> Answer {
    let record = ctx.engine.containers.get(ctx.capture("name"))?.record();
    Ok(Reply::ok(&changes::changes(&ctx.engine, &record).await?))
}

/// Chunks of an archive on their way to a client.
const DEPTH: usize = 4;

/// `GET /containers/{id}/export` (ContainerExport).
async fn container_export(ctx: Ctx) -> Answer {
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    let (reply, sender) = Reply::channel(StatusCode::OK, Some("application/octet-stream"), DEPTH);
    archive::export(&ctx.engine, &container.record(), sender).await?;
    container.publish(&ctx.engine, "export", &[]);
    Ok(reply)
}

/// `POST /containers/{id}/update` (ContainerUpdate).
async fn container_update(mut ctx: Ctx) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Updated {
        warnings: Option<Vec<String>>,
    }
    let wanted: HostConfig = ctx.json().await?.unwrap_or_default();
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    let warnings = update::update(&ctx.engine, &container, wanted, ctx.version).await?;
    Ok(Reply::ok(&Updated { warnings: (!warnings.is_empty()).then_some(warnings) }))
}

/// `POST /containers/{id}/rename` (ContainerRename).
async fn container_rename(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    let container = ctx.engine.containers.get(ctx.capture("name"))?;
    rename::rename(&ctx.engine, &container, ctx.params.text("name")).await?;
    Ok(Reply::no_content())
}

/// `POST /containers/prune` (ContainerPrune).
async fn container_prune(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    let filters = ctx.filters(&["label", "label!", "until"])?;
    Ok(Reply::ok(&prune::prune(&ctx.engine, &filters).await?))
}

fn with_stat(reply: &mut Reply, stat: &PathStat) -> Result<()> {
    let json = serde_json::to_vec(stat).map_err(|err| Error::system(err.to_string()))?;
    let text = base64::engine::general_purpose::STANDARD.encode(json);
    reply.header("X-Docker-Container-Path-Stat", &text);
    Ok(())
}

fn archive_path(ctx: &Ctx) -> Result<String> {
    match ctx.params.text("path") {
        "" => Err(Error::invalid("bad parameter: path cannot be empty")),
        path => Ok(path.to_owned()),
    }
}

/// `HEAD /containers/{id}/archive` (ContainerArchiveInfo).
async fn archive_stat(ctx: Ctx) -> Answer {
    let (given, path) = (ctx.capture("name").to_owned(), archive_path(&ctx)?);
    let record = ctx.engine.containers.get(&given)?.record();
    let stat = archive::stat(&ctx.engine, &record, &given, &path).await?;
    let mut reply = Reply::status(StatusCode::OK);
    with_stat(&mut reply, &stat)?;
    Ok(reply)
}

/// `GET /containers/{id}/archive` (ContainerArchive).
async fn archive_get(ctx: Ctx) -> Answer {
    let (given, path) = (ctx.capture("name").to_owned(), archive_path(&ctx)?);
    let container = ctx.engine.containers.get(&given)?;
    let (mut reply, sender) = Reply::channel(StatusCode::OK, Some("application/x-tar"), DEPTH);
    let stat = archive::get(&ctx.engine, &container.record(), &given, &path, sender).await?;
    with_stat(&mut reply, &stat)?;
    container.publish(&ctx.engine, "archive-path", &[]);
    Ok(reply)
}

/// `PUT /containers/{id}/archive` (PutContainerArchive).
async fn archive_put(mut ctx: Ctx) -> Answer {
    let (given, path) = (ctx.capture("name").to_owned(), archive_path(&ctx)?);
    let container = ctx.engine.containers.get(&given)?;
    let options = PutOptions {
        keep_types: ctx.params.bool("noOverwriteDirNonDir"),
        own: ctx.params.bool("copyUIDGID"),
    };
    let (sender, receiver) = mpsc::channel::<Bytes>(DEPTH);
    let body = ctx.body_stream();
    let feed = async move {
        let Some(mut body) = body else { return };
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(chunk) = frame.into_data() else { continue };
            // The extraction ended: what comes still is of no use.
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    };
    let record = container.record();
    let put = archive::put(&ctx.engine, &record, &given, &path, options, receiver);
    let (done, ()) = tokio::join!(put, feed);
    done?;
    container.publish(&ctx.engine, "extract-to-dir", &[]);
    Ok(Reply::status(StatusCode::OK))
}

/// `POST /commit` (ImageCommit).
async fn image_commit(mut ctx: Ctx) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Committed {
        id: String,
    }
    let config: Option<docker_api::Config> = ctx.json().await?;
    let container = ctx.engine.containers.get(ctx.params.text("container"))?;
    let (repo, tag) = (ctx.params.text("repo"), ctx.params.text("tag"));
    let name = match repo {
        "" => None,
        repo => {
            let invalid = |err: oci::ReferenceError| Error::invalid(err.to_string());
            let named = Reference::parse(repo).map_err(invalid)?;
            if named.digest().is_some() {
                return Err(Error::invalid("cannot commit to digest reference"));
            }
            let whole = if tag.is_empty() { repo.to_owned() } else { format!("{repo}:{tag}") };
            Some(Reference::parse(&whole).map_err(|_| Error::invalid("invalid tag format"))?.or_latest())
        }
    };
    let request = commit::Request {
        name,
        comment: ctx.params.text("comment").to_owned(),
        author: ctx.params.text("author").to_owned(),
        pause: ctx.params.bool_or("pause", true),
        changes: ctx.params.all("changes").map(str::to_owned).collect(),
        config: config.filter(|config| *config != docker_api::Config::default()),
    };
    let id = commit::commit(&ctx.engine, &container, request).await?;
    Ok(Reply::json(StatusCode::CREATED, &Committed { id }))
}
