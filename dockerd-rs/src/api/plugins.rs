//! Routes of managed plugins. The engine runs none, so there is none to be found.

use http::StatusCode;

use super::params::{atoi, quote};
use super::request::Ctx;
use super::{Answer, Reply, Router};
use crate::error::Error;

const NO_PLUGINS: &str = "this engine does not run managed plugins";

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.get("/plugins", list);
    router.get("/plugins/privileges", privileges);
    router.get("/plugins/{name*}/json", missing);
    router.post("/plugins/{name*}/enable", enable);
    router.post("/plugins/{name*}/disable", missing);
    router.post("/plugins/{name*}/push", missing);
    router.post("/plugins/{name*}/set", missing);
    router.post("/plugins/{name*}/upgrade", upgrade);
    router.post("/plugins/pull", refused);
    router.post("/plugins/create", refused);
    router.delete("/plugins/{name*}", missing);
}

async fn list(ctx: Ctx) -> Answer {
    ctx.filters(&["capability", "enabled"])?;
    Ok(Reply::json(StatusCode::OK, &[(); 0]))
}

fn not_found(name: &str) -> Error {
    Error::not_found(format!("plugin {} not found", quote(name)))
}

async fn missing(ctx: Ctx) -> Answer {
    Err(not_found(ctx.capture("name")))
}

async fn enable(ctx: Ctx) -> Answer {
    atoi(ctx.params.text("timeout"))?;
    Err(not_found(ctx.capture("name")))
}

async fn upgrade(ctx: Ctx) -> Answer {
    let name = ctx.capture("name");
    let reference = oci::Reference::parse(name).map_err(|err| Error::invalid(err.to_string()))?;
    Err(not_found(&reference.or_latest().familiar()))
}

/// What a plugin asks for is in its image; a reference is checked, and nothing is asked for.
async fn privileges(ctx: Ctx) -> Answer {
    oci::Reference::parse(ctx.params.text("remote")).map_err(|err| Error::invalid(err.to_string()))?;
    Err(Error::not_implemented(NO_PLUGINS))
}

async fn refused(_ctx: Ctx) -> Answer {
    Err(Error::not_implemented(NO_PLUGINS))
}
