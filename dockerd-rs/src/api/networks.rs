//! Routes of `/networks`.

use docker_api::EndpointSettings;
use http::StatusCode;
use serde::Deserialize;

use super::params::quote;
use super::{Answer, Ctx, Reply, Router};
use crate::error::{Error, Result};
use crate::network::manage::{FILTERS, PRUNE_FILTERS};
use crate::network::model::{Driver, Protocol};
use crate::network::spec::{Create, parse_bool};
use crate::network::{Network, membership};

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.get("/networks", list);
    router.get("/networks/", list);
    router.post("/networks/create", create);
    router.post("/networks/prune", prune);
    router.get("/networks/{id*}", inspect);
    router.post("/networks/{id*}/connect", connect);
    router.post("/networks/{id*}/disconnect", disconnect);
    router.delete("/networks/{id*}", remove);
    router.delete("/networks/", remove);
    router.get("/explain/port/{number}", explain);
}

async fn list(ctx: Ctx) -> Answer {
    let filters = ctx.filters(&FILTERS)?;
    let mut networks = ctx.engine.networks.list(&filters)?;
    if !ctx.version.at_least(28) {
        ctx.engine.networks.add_members(&mut networks);
    }
    Ok(Reply::ok(&networks))
}

/// Our own: what decides about a port of the host.
async fn explain(ctx: Ctx) -> Answer {
    let given = ctx.capture("number").to_owned();
    let (number, protocol) = given.split_once('-').unwrap_or((&given, "tcp"));
    let invalid = || Error::invalid(format!("invalid port: {given}"));
    let number: u16 = number.parse().map_err(|_| invalid())?;
    let protocol = Protocol::of(protocol).ok_or_else(invalid)?;
    let networks = ctx.engine.networks.clone();
    let lines = tokio::task::spawn_blocking(move || networks.explain_port(protocol, number))
        .await
        .map_err(|err| Error::system(err.to_string()))?;
    Ok(Reply::ok(&serde_json::json!({ "Lines": lines })))
}

async fn create(mut ctx: Ctx) -> Answer {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Created {
        id: String,
        warning: &'static str,
    }
    let mut create: Create = ctx.json().await?.unwrap_or_default();
    if !ctx.version.at_least(48) {
        // Clients of that age know no networks without IPv4.
        create.enable_ipv4 = None;
    }
    let id = ctx.engine.networks.create(create).await?;
    Ok(Reply::json(StatusCode::CREATED, &Created { id, warning: "" }))
}

async fn inspect(ctx: Ctx) -> Answer {
    let verbose = ctx.params.text("verbose");
    if !verbose.is_empty() && parse_bool(verbose).is_none() {
        return Err(Error::invalid(format!(
            "invalid value for verbose: {verbose}: strconv.ParseBool: parsing {}: invalid syntax",
            quote(verbose)
        )));
    }
    let name = ctx.capture("id");
    let scope = ctx.params.text("scope");
    if !scope.is_empty() && ctx.engine.networks.find(name)?.scope != scope {
        return Err(Error::not_found(format!("network {name} not found")));
    }
    Ok(Reply::ok(&ctx.engine.networks.inspect(name, ctx.version.at_least(52))?))
}

async fn remove(ctx: Ctx) -> Answer {
    ctx.engine.networks.remove(ctx.capture("id")).await?;
    Ok(Reply::no_content())
}

async fn prune(ctx: Ctx) -> Answer {
    #[derive(serde::Serialize)]
    struct Pruned {
        #[serde(rename = "NetworksDeleted")]
        deleted: Option<Vec<String>>,
    }
    let filters = ctx.filters(&PRUNE_FILTERS)?;
    let until = match filters.get("until") {
        [] => None,
        [one] => Some(until(one)?),
        _ => return Err(Error::invalid("more than one until filter specified")),
    };
    let deleted = ctx.engine.networks.prune(&filters, until).await?;
    ctx.engine.events.publish(crate::events::Subject::Network, "prune", "", [("reclaimed", "0")]);
    Ok(Reply::ok(&Pruned { deleted: (!deleted.is_empty()).then_some(deleted) }))
}

/// A time, or how long ago it was.
pub(crate) fn until(text: &str) -> Result<jiff::Timestamp> {
    let now = jiff::Timestamp::now();
    if let Ok(span) = text.parse::<jiff::Span>()
        && let Ok(time) = now.checked_sub(span)
    {
        return Ok(time);
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time);
    }
    let seconds = text.split('.').next().unwrap_or_default();
    seconds.parse::<i64>().ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()).ok_or_else(
        || {
            Error::invalid(format!(
                "failed to parse value as time or duration: invalid seconds {}: invalid syntax",
                quote(seconds)
            ))
        },
    )
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Connect {
    container: String,
    endpoint_config: Option<EndpointSettings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Disconnect {
    container: String,
    force: bool,
}

async fn connect(mut ctx: Ctx) -> Answer {
    let body: Connect = ctx.json().await?.unwrap_or_default();
    let mut settings = body.endpoint_config.unwrap_or_default();
    if !ctx.version.at_least(54) {
        settings.mac_address = Default::default();
    }
    let engine = &ctx.engine;
    if body.container.is_empty() {
        return Err(Error::invalid("invalid name or ID supplied: \"\""));
    }
    let network = engine.networks.find(ctx.capture("id"))?;
    let container = engine.containers.get(&body.container)?;
    let record = container.record();
    check_endpoint(&network, &settings)?;
    check_connect(&network, &record.host_config.network_mode)?;
    membership::connect(engine, &container, network, settings).await?;
    Ok(Reply::status(StatusCode::OK))
}

/// What Docker refuses before it tries.
fn check_connect(network: &Network, mode: &str) -> Result<()> {
    if network.driver == Driver::Host {
        return Err(Error::invalid(
            "cannot connect container to host network - container must be created in host network mode",
        ));
    }
    if mode == "host" || mode.starts_with("container:") {
        return Err(Error::invalid(
            "container sharing network namespace with another container or host cannot be connected to any other network",
        ));
    }
    if network.driver == Driver::Null || mode == "none" {
        return Err(Error::invalid(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ));
    }
    if network.config_only {
        return Err(Error::forbidden("cannot create endpoint on configuration-only network"));
    }
    Ok(())
}

/// Checks an endpoint's settings against its network; also for containers that are created with them.
///
/// # Errors
/// 400 in Docker's words.
pub fn check_endpoint(network: &Network, settings: &EndpointSettings) -> Result<()> {
    let mut errors = Vec::new();
    let ipam = settings.ipam_config.clone().unwrap_or_default();
    let asked: Vec<_> = [ipam.ipv4_address.0, ipam.ipv6_address.0].into_iter().flatten().collect();
    if network.predefined() {
        if !asked.is_empty() {
            errors.push("user-specified IP address is supported on user-defined networks only".to_owned());
        }
        if settings.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
            errors.push("network-scoped aliases are only supported for user-defined networks".to_owned());
        }
    } else {
        for ip in asked {
            if !network.pools.iter().any(|pool| pool.subnet.contains(ip)) {
                errors.push(format!("no configured subnet contains IP address {ip}"));
            }
        }
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(Error::invalid(format!("invalid endpoint settings:\n{one}"))),
        many => Err(Error::invalid(format!("invalid endpoint settings:\n* {}", many.join("\n* ")))),
    }
}

async fn disconnect(mut ctx: Ctx) -> Answer {
    let body: Disconnect = ctx.json().await?.unwrap_or_default();
    let engine = &ctx.engine;
    let network = engine.networks.find(ctx.capture("id"))?;
    let container = match engine.containers.get(&body.container) {
        Ok(container) => container,
        Err(_) if body.force && !body.container.is_empty() => {
            return Err(Error::not_found(format!("endpoint {} not found", body.container)));
        }
        Err(err) => return Err(err),
    };
    let record = container.record();
    if network.driver == Driver::Host && record.host_config.network_mode == "host" {
        return Err(Error::invalid(
            "cannot disconnect container from host network - container was created in host network mode",
        ));
    }
    membership::disconnect(engine, &container, network).await?;
    Ok(Reply::status(StatusCode::OK))
}
