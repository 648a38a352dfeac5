//! Routes of a swarm, as a node that is in none answers them: its own parameter checks first, then 503.

use serde_json::Value;

use super::params::quote;
use super::request::Ctx;
use super::{Answer, Router};
use crate::error::{Error, Result};

/// What every manager's operation answers.
pub const NOT_A_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.post("/swarm/init", init);
    router.post("/swarm/join", join);
    router.post("/swarm/leave", leave);
    router.get("/swarm", manager);
    router.get("/swarm/unlockkey", manager);
    router.post("/swarm/update", update_swarm);
    router.post("/swarm/unlock", with_body);
    router.get("/services", list_services);
    router.get("/services/{id}", inspect_service);
    router.post("/services/create", with_body);
    router.post("/services/{id}/update", update_service);
    router.delete("/services/{id}", manager);
    router.get("/services/{id}/logs", logs);
    router.get("/nodes", list);
    router.get("/nodes/{id}", manager);
    router.delete("/nodes/{id}", manager);
    router.post("/nodes/{id}/update", update_node);
    router.get("/tasks", list);
    router.get("/tasks/{id}", manager);
    router.get("/tasks/{id}/logs", logs);
    router.get("/secrets", list);
    router.post("/secrets/create", with_body);
    router.delete("/secrets/{id}", manager);
    router.get("/secrets/{id}", manager);
    router.post("/secrets/{id}/update", update_secret);
    router.get("/configs", list);
    router.post("/configs/create", with_body);
    router.delete("/configs/{id}", manager);
    router.get("/configs/{id}", manager);
    router.post("/configs/{id}/update", update_config);
}

fn refused() -> Answer {
    Err(Error::unavailable(NOT_A_MANAGER))
}

async fn manager(_ctx: Ctx) -> Answer {
    refused()
}

/// The body is read and thrown away: a bad one is told first.
async fn with_body(mut ctx: Ctx) -> Answer {
    ctx.json::<Value>().await?;
    refused()
}

async fn list(ctx: Ctx) -> Answer {
    parse_filters(&ctx)?;
    refused()
}

async fn list_services(ctx: Ctx) -> Answer {
    parse_filters(&ctx)?;
    if ctx.version.at_least(41) {
        parse_bool(&ctx, "status")?;
    }
    refused()
}

fn parse_filters(ctx: &Ctx) -> Result<()> {
    docker_api::filters::Filters::parse(ctx.params.text("filters"))
        .map(drop)
        .map_err(|_| Error::invalid("invalid filter"))
}

/// Go's `ParseBool`; missing is fine.
fn parse_bool(ctx: &Ctx, key: &str) -> Result<()> {
    let value = ctx.params.text(key);
    let known = ["", "1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"];
    if known.contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "invalid value for {key}: {value}: strconv.ParseBool: parsing {}: invalid syntax",
        quote(value)
    )))
}

async fn inspect_service(ctx: Ctx) -> Answer {
    parse_bool(&ctx, "insertDefaults")?;
    refused()
}

/// Go's `ParseUint` of the `version` parameter.
fn check_version(ctx: &Ctx, what: &str) -> Result<()> {
    let value = ctx.params.text("version");
    if value.parse::<u64>().is_ok() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "invalid {what} version '{value}': strconv.ParseUint: parsing {}: invalid syntax",
        quote(value)
    )))
}

async fn update_swarm(mut ctx: Ctx) -> Answer {
    ctx.json::<Value>().await?;
    check_version(&ctx, "swarm")?;
    for key in ["rotateWorkerToken", "rotateManagerToken", "rotateManagerUnlockKey"] {
        if parse_bool(&ctx, key).is_err() {
            return Err(Error::invalid(format!("invalid value for {key}: {}", ctx.params.text(key))));
        }
    }
    refused()
}

async fn update_service(mut ctx: Ctx) -> Answer {
    ctx.json::<Value>().await?;
    check_version(&ctx, "service")?;
    refused()
}

async fn update_node(mut ctx: Ctx) -> Answer {
    ctx.json::<Value>().await?;
    check_version(&ctx, "node")?;
    refused()
}

async fn update_secret(mut ctx: Ctx) -> Answer {
    ctx.json::<Value>().await?;
    check_version(&ctx, "secret").map_err(|_| Error::invalid("invalid secret version"))?;
    refused()
}

async fn update_config(mut ctx: Ctx) -> Answer {
    ctx.json::<Value>().await?;
    check_version(&ctx, "config").map_err(|_| Error::invalid("invalid config version"))?;
    refused()
}

async fn logs(ctx: Ctx) -> Answer {
    if !ctx.params.bool("stdout") && !ctx.params.bool("stderr") {
        return Err(Error::invalid("must specify at least one of 'stdout' or 'stderr'"));
    }
    refused()
}

/// `POST /swarm/init`: refused, because there would be no cluster behind it.
async fn init(mut ctx: Ctx) -> Answer {
    let request: Value = ctx.json().await?.unwrap_or_default();
    let listen = request["ListenAddr"].as_str().unwrap_or_default();
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host).trim_matches(['[', ']']);
    if !listen.is_empty() && host.parse::<std::net::IpAddr>().is_err() && !is_interface(host) {
        return Err(Error::invalid(
            "listen address must be an IP address or network interface (with optional port number)",
        ));
    }
    Err(Error::not_implemented("this engine does not form or join swarms"))
}

fn is_interface(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && std::path::Path::new("/sys/class/net").join(name).exists()
}

/// `POST /swarm/join`.
async fn join(mut ctx: Ctx) -> Answer {
    let request: Value = ctx.json().await?.unwrap_or_default();
    let listen = request["ListenAddr"].as_str().unwrap_or_default();
    if listen.is_empty() {
        return Err(Error::invalid("invalid ListenAddr \"\": invalid empty address"));
    }
    if !request["JoinToken"].as_str().is_some_and(|token| token.starts_with("SWMTKN-")) {
        return Err(Error::system("invalid join token"));
    }
    Err(Error::not_implemented("this engine does not form or join swarms"))
}

/// `POST /swarm/leave`.
async fn leave(_ctx: Ctx) -> Answer {
    Err(Error::unavailable("This node is not part of a swarm"))
}
