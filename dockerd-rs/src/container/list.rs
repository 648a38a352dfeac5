//! The list of containers: filters, order, and the line of each.
//!
//! A thousand containers are cheap: records are read from memory, and only what is shown is put together.

mod filter;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use docker_api::filters::Filters;
use docker_api::inspect::{Summary, SummaryHealth, SummaryHost, SummaryNetworks, SummaryPort};
use jiff::Timestamp;

use super::mounts::Source;
use super::record::Record;
use super::{Container, inspect};
use crate::api::ApiVersion;
use crate::engine::Engine;
use crate::error::Result;
use filter::Wanted;

pub use self::status::{human_duration, status};

/// What a client asks of the list.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Also those that do not run.
    pub all: bool,
    /// The newest this many, running or not; 0 and less is no limit.
    pub limit: i64,
    /// With sizes.
    pub size: bool,
    /// Which.
    pub filters: Filters,
}

/// Lists containers, newest first.
///
/// # Errors
/// A filter has a value it cannot have, or names a container that is not there.
pub async fn list(engine: &Engine, query: &Query, version: ApiVersion) -> Result<Vec<Summary>> {
    let wanted = Wanted::read(engine, query).await?;
    let mut records: Vec<Arc<Record>> =
        engine.containers.all().iter().map(|container| container.record()).collect();
    records.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| b.id.cmp(&a.id)));
    let names = engine.containers.names.by_id();
    let mut images = Images { engine, known: HashMap::new() };
    let now = Timestamp::now();
    let mut lines = Vec::new();
    for record in &records {
        if query.limit > 0 && lines.len() >= usize::try_from(query.limit).unwrap_or(usize::MAX) {
            break;
        }
        let of_it = names.get(&record.id).map_or(&[][..], Vec::as_slice);
        if !wanted.includes(engine, record, of_it) {
            continue;
        }
        let mut line = summary(engine, record, of_it, version, now);
        line.image = images.name(record).await?;
        if query.size {
            let (size_rw, size_root_fs) = inspect::sizes(engine, record).await?;
            line.size_rw = size_rw.unwrap_or_default();
            line.size_root_fs = size_root_fs.unwrap_or_default();
        }
        lines.push(line);
    }
    Ok(lines)
}

fn summary(
    engine: &Engine,
    record: &Record,
    names: &[String],
    version: ApiVersion,
    now: Timestamp,
) -> Summary {
    let mut network = super::network_settings(engine, record);
    for endpoint in network.networks.values_mut() {
        // What was asked for is inspect's to tell.
        (endpoint.aliases, endpoint.driver_opts, endpoint.dns_names) = (None, None, None);
    }
    let mut names: Vec<String> =
        names.iter().filter(|name| **name != record.name).map(|name| format!("/{name}")).collect();
    names.sort();
    names.insert(0, format!("/{}", record.name));
    let mounts = record.mounts.values().map(|mount| {
        let mut shown = mount.shown();
        // Docker has no path here for what only the image, or a bare `-v /path`, asks for.
        let mut asked = record.config.volumes.iter().flatten().map(|(path, _)| super::mounts::clean(path));
        if matches!(mount.source, Source::Volume { anonymous: true, .. })
            && asked.any(|path| path == mount.destination)
        {
            shown.source.clear();
        }
        shown
    });
    Summary {
        id: record.id.clone(),
        names,
        image: record.config.image.clone(),
        image_id: record.image.as_ref().map(|image| image.id.clone()).unwrap_or_default(),
        image_manifest_descriptor: record
            .image
            .as_ref()
            .filter(|_| version.at_least(48))
            .and_then(inspect::descriptor),
        command: command(record),
        created: record.created.as_second(),
        ports: ports(&network.ports),
        labels: record.config.labels.clone().unwrap_or_default(),
        state: record.life.state.word().into(),
        status: status(record, now),
        host_config: SummaryHost {
            network_mode: record.host_config.network_mode.clone(),
            annotations: record.host_config.annotations.clone().filter(|_| version.at_least(46)),
        },
        health: version.at_least(52).then(|| health(record)),
        network_settings: SummaryNetworks { networks: network.networks },
        mounts: mounts.collect(),
        ..Summary::default()
    }
}

/// The command as one line: an argument with a space in it stands between single quotes, as it is.
fn command(record: &Record) -> String {
    let (path, args) = record.argv();
    let mut line = path;
    for arg in &args {
        line.push(' ');
        if arg.contains(' ') {
            line.push('\'');
            line.push_str(arg);
            line.push('\'');
        } else {
            line.push_str(arg);
        }
    }
    line
}

fn health(record: &Record) -> SummaryHealth {
    match record.health.as_ref().filter(|_| record.config.healthcheck.is_some()) {
        Some(health) => {
            SummaryHealth { status: health.status.clone(), failing_streak: health.failing_streak }
        }
        None => SummaryHealth { status: "none".into(), failing_streak: 0 },
    }
}

fn ports(ports: &BTreeMap<docker_api::Port, Option<Vec<docker_api::PortBinding>>>) -> Vec<SummaryPort> {
    let mut lines = Vec::new();
    for (port, bindings) in ports {
        let line =
            SummaryPort { private_port: port.number, kind: port.proto.clone(), ..SummaryPort::default() };
        match bindings {
            None => lines.push(line),
            Some(bindings) => lines.extend(bindings.iter().map(|binding| SummaryPort {
                ip: binding.host_ip,
                public_port: binding.host_port.parse().unwrap_or_default(),
                ..line.clone()
            })),
        }
    }
    lines
}

/// What images are called now: looked up once per name and list.
struct Images<'a> {
    engine: &'a Engine,
    known: HashMap<String, Option<String>>,
}

impl Images<'_> {
    /// The name a container's image was given, or the image's id when that name is gone or another image's.
    async fn name(&mut self, record: &Record) -> Result<String> {
        let given = &record.config.image;
        let Some(image) = record.image.as_ref().filter(|image| !image.reference.is_empty()) else {
            return Ok(given.clone());
        };
        let known = match self.known.get(&image.reference) {
            Some(known) => known,
            None => {
                let found = match self.engine.runtime.image(&image.reference).await {
                    // Containers are listed also while containerd is away; names seldom change.
                    Err(err) if crate::runtime::tasks::is_away(&err) => return Ok(given.clone()),
                    found => found?,
                };
                let id = found.map(|found| found.target.digest.to_string());
                self.known.entry(image.reference.clone()).or_insert(id)
            }
        };
        let same = known.as_ref() == Some(&image.id);
        Ok(if same { given.clone() } else { image.id.clone() })
    }
}

/// The containers a request's `{name}` list means; for prune and the like.
pub fn stopped(engine: &Engine) -> Vec<Arc<Container>> {
    let mut containers = engine.containers.all();
    containers.retain(|container| !container.record().life.state.is_running());
    containers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_list() {
        let mut all = BTreeMap::new();
        let binding =
            docker_api::PortBinding { host_ip: "0.0.0.0".parse().unwrap(), host_port: "8080".into() };
        all.insert(docker_api::Port::new(80, "tcp"), Some(vec![binding]));
        all.insert(docker_api::Port::new(9, "udp"), None);
        let text = serde_json::to_string(&ports(&all)).unwrap();
        assert_eq!(
            text,
            r#"[{"IP":"","PrivatePort":9,"Type":"udp"},{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]"#
        );
    }
}
