//! Legacy links: other containers under a name of one's own, in hosts, in the resolver and in the environment.

use std::sync::Arc;

use super::model::{Link, Wanted};
use super::{Namespace, Sandbox};
use crate::container::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// What a container's record asks of the networks: with the engine's directory for its files, and its links followed.
///
/// # Errors
/// A linked container is not there (any more).
pub fn wanted(engine: &Arc<Engine>, record: &Record) -> Result<Wanted> {
    let links = resolve(engine, record)?.into_iter().map(|(link, _)| link).collect();
    let mut wanted = Wanted::of(record, links, engine.config.container_dir(&record.id));
    if wanted.naming.hostname.is_empty() && wanted.mode != "host" {
        record.short_id().clone_into(&mut wanted.naming.hostname);
    }
    Ok(wanted)
}

/// Gives a container its networks; its sandbox, and the variables its links add to its environment. A container that shares another's network gets
/// that one's namespace and files.
///
/// # Errors
/// As [`super::Controller::allocate`].
pub async fn join(engine: &Arc<Engine>, record: &Record) -> Result<(Sandbox, Vec<String>)> {
    if let Some(id) = record.network_of() {
        let other = engine.containers.get(id)?.record();
        if other.pid().is_none() {
            return Err(Error::conflict(format!(
                "cannot join network namespace of a non running container: container {} is {}",
                other.name,
                other.life.state.word()
            )));
        }
    }
    let sandbox = engine.networks.allocate(wanted(engine, record)?).await?;
    Ok((sandbox, environment(engine, record)?))
}

impl Sandbox {
    /// The file of the namespace, if it is not the host's.
    pub fn namespace_path(&self) -> Option<std::path::PathBuf> {
        match &self.namespace {
            Namespace::Path(path) => Some(path.clone()),
            Namespace::Host => None,
        }
    }
}

/// `container:alias` pairs of a record, with the containers they mean.
fn resolve(engine: &Arc<Engine>, record: &Record) -> Result<Vec<(Link, Arc<Record>)>> {
    let mut found = Vec::new();
    for pair in record.host_config.links.iter().flatten() {
        let (name, alias) = pair.split_once(':').unwrap_or((pair, pair));
        // Inspect writes `/db:/web/alias`, and clients post that back.
        let alias = alias.rsplit('/').next().unwrap_or(alias);
        let other = engine.containers.get(name)?.record();
        found.push((Link { container: other.id.clone(), alias: alias.to_owned() }, other));
    }
    Ok(found)
}

/// The variables Docker sets for links on the default bridge.
fn environment(engine: &Arc<Engine>, record: &Record) -> Result<Vec<String>> {
    let mut all = Vec::new();
    if !matches!(record.host_config.network_mode.as_str(), "" | "default" | "bridge") {
        return Ok(all);
    }
    for (link, other) in resolve(engine, record)? {
        let prefix = link.alias.replace('-', "_").to_uppercase();
        let settings = engine.networks.settings(&other);
        let ip = settings
            .networks
            .get("bridge")
            .map(|endpoint| endpoint.ip_address.to_string())
            .unwrap_or_default();
        let mut ports: Vec<_> = other.config.exposed_ports.iter().flatten().map(|(port, _)| port).collect();
        ports.sort_by_key(|port| (port.number, port.proto != "tcp"));
        if let Some(first) = ports.first().filter(|_| !ip.is_empty()) {
            all.push(format!("{prefix}_PORT={}://{ip}:{}", first.proto, first.number));
            for port in &ports {
                let name = format!("{prefix}_PORT_{}_{}", port.number, port.proto.to_uppercase());
                all.push(format!("{name}={}://{ip}:{}", port.proto, port.number));
                all.push(format!("{name}_ADDR={ip}"));
                all.push(format!("{name}_PORT={}", port.number));
                all.push(format!("{name}_PROTO={}", port.proto));
            }
        }
        all.push(format!("{prefix}_NAME=/{}/{}", record.name, link.alias));
        for variable in other.config.env.iter().flatten() {
            if let Some((key, value)) = variable.split_once('=')
                && key != "HOME"
                && key != "PATH"
            {
                all.push(format!("{prefix}_ENV_{key}={value}"));
            }
        }
    }
    Ok(all)
}
