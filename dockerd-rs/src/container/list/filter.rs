//! Which containers are listed.

use std::collections::BTreeSet;

use docker_api::filters::Filters;
use jiff::Timestamp;
use regex_lite::Regex;

use super::Query;
use crate::container::record::Record;
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};

const STATES: &[&str] = &["created", "running", "paused", "restarting", "removing", "exited", "dead"];
const HEALTH: &[&str] = &["none", "starting", "healthy", "unhealthy"];

/// The filters, read.
pub(super) struct Wanted {
    filters: Filters,
    stopped_too: bool,
    exited: Vec<i32>,
    before: Option<(Timestamp, String)>,
    since: Option<(Timestamp, String)>,
    /// Ids of the images `ancestor` names; `None` without that filter.
    images: Option<BTreeSet<String>>,
    publish: Vec<Ports>,
    expose: Vec<Ports>,
    ids: Vec<Regex>,
    names: Vec<Regex>,
    is_task: Option<bool>,
}

/// A range of ports of a protocol.
struct Ports {
    first: u16,
    last: u16,
    proto: String,
}

impl Wanted {
    pub(super) async fn read(engine: &Engine, query: &Query) -> Result<Self> {
        let filters = query.filters.clone();
        one_of(&filters, "status", "state", STATES)?;
        one_of(&filters, "health", "health", HEALTH)?;
        let exited = filters
            .get("exited")
            .iter()
            .map(|text| {
                let code = crate::api::params::atoi(text).map_err(|err| {
                    Error::invalid(format!("invalid filter 'exited={text}': {}", err.message()))
                })?;
                Ok(i32::try_from(code).unwrap_or(i32::MAX))
            })
            .collect::<Result<_>>()?;
        let is_task = filters
            .bool("is-task")
            .map_err(|text| Error::invalid(format!("invalid filter 'is-task={text}'")))?;
        let point = |key: &str| -> Result<Option<(Timestamp, String)>> {
            let mut found = None;
            for given in filters.get(key) {
                let record = engine.containers.get(given)?.record();
                found = Some((record.created, record.id.clone()));
            }
            Ok(found)
        };
        let (before, since) = (point("before")?, point("since")?);
        let images = match filters.get("ancestor") {
            [] => None,
            given => Some(ancestors(engine, given).await?),
        };
        Ok(Self {
            stopped_too: query.all || query.limit > 0 || filters.has("status"),
            exited,
            before,
            since,
            images,
            publish: ports(&filters, "publish")?,
            expose: ports(&filters, "expose")?,
            ids: regexes(&filters, "id"),
            names: regexes(&filters, "name"),
            is_task,
            filters,
        })
    }

    /// Whether a container is wanted. `names` are all that lead to it.
    pub(super) fn includes(&self, engine: &Engine, record: &Record, names: &[String]) -> bool {
        let state = &record.life.state;
        if !self.stopped_too && !state.is_running() {
            return false;
        }
        if self.filters.has("id") && !self.ids.iter().any(|regex| regex.is_match(&record.id)) {
            return false;
        }
        if self.filters.has("name") {
            let matches = |name: &String| {
                let slashed = format!("/{name}");
                self.names.iter().any(|regex| regex.is_match(name) || regex.is_match(&slashed))
            };
            if !matches(&record.name) && !names.iter().any(matches) {
                return false;
            }
        }
        if self.is_task == Some(true) {
            return false;
        }
        if !self.filters.labels("label", |name| record.config.label(name)) {
            return false;
        }
        if !self.filters.exact("status", state.word()) || !self.filters.exact("isolation", isolation(record))
        {
            return false;
        }
        if !self.exited.is_empty() {
            let ended = !state.is_running() && record.life.finished_at.is_some();
            if !ended || !self.exited.contains(&record.life.exit_code) {
                return false;
            }
        }
        let health = record.health.as_ref().filter(|_| record.config.healthcheck.is_some());
        if !self.filters.exact("health", health.map_or("none", |health| health.status.as_str())) {
            return false;
        }
        let place = (record.created, record.id.clone());
        if self.before.as_ref().is_some_and(|before| place >= *before)
            || self.since.as_ref().is_some_and(|since| place <= *since)
        {
            return false;
        }
        if let Some(images) = &self.images
            && !record
                .image
                .as_ref()
                .is_some_and(|image| images.contains(&image.id) || images.contains(&image.config_digest))
        {
            return false;
        }
        self.has_volume(record) && self.has_network(engine, record) && self.has_ports(engine, record)
    }

    fn has_volume(&self, record: &Record) -> bool {
        let wanted = self.filters.get("volume");
        wanted.is_empty()
            || wanted.iter().any(|want| {
                record.mounts.values().any(|mount| {
                    let shown = mount.shown();
                    *want == shown.destination
                        || *want == if shown.name.is_empty() { shown.source } else { shown.name }
                })
            })
    }

    fn has_network(&self, engine: &Engine, record: &Record) -> bool {
        let wanted = self.filters.get("network");
        if wanted.is_empty() {
            return true;
        }
        let networks = crate::container::network_settings(engine, record).networks;
        wanted.iter().any(|want| {
            networks.iter().any(|(name, endpoint)| {
                name == want || !want.is_empty() && endpoint.network_id.starts_with(want.as_str())
            })
        })
    }

    fn has_ports(&self, engine: &Engine, record: &Record) -> bool {
        if !self.publish.is_empty() {
            let published = crate::container::network_settings(engine, record).ports;
            let any = published.iter().any(|(port, bindings)| {
                bindings
                    .iter()
                    .flatten()
                    .filter_map(|binding| binding.host_port.parse::<u16>().ok())
                    .any(|number| self.publish.iter().any(|want| want.has(number, &port.proto)))
            });
            if !any {
                return false;
            }
        }
        self.expose.is_empty()
            || record
                .config
                .exposed_ports
                .iter()
                .flatten()
                .any(|(port, _)| self.expose.iter().any(|want| want.has(port.number, &port.proto)))
    }
}

impl Ports {
    fn has(&self, number: u16, proto: &str) -> bool {
        (self.first..=self.last).contains(&number) && self.proto == proto
    }
}

fn isolation(record: &Record) -> &str {
    match record.host_config.isolation.as_str() {
        "" => "default",
        other => other,
    }
}

fn one_of(filters: &Filters, key: &str, what: &str, known: &[&str]) -> Result<()> {
    match filters.get(key).iter().find(|value| !known.contains(&value.as_str())) {
        None => Ok(()),
        Some(value) => Err(Error::invalid(format!(
            "invalid filter '{key}={value}': invalid value for {what} ({value}): must be one of {}",
            known.join(", ")
        ))),
    }
}

/// A pattern that is none matches nothing.
fn regexes(filters: &Filters, key: &str) -> Vec<Regex> {
    filters.get(key).iter().filter_map(|text| Regex::new(text).ok()).collect()
}

async fn ancestors(engine: &Engine, given: &[String]) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    for name in given {
        match engine.images.find(name).await {
            Ok(found) => {
                ids.insert(found.record.target.digest.to_string());
            }
            Err(err) if matches!(err.kind(), Kind::NotFound | Kind::InvalidParameter) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(ids)
}

/// `80`, `80/udp`, `80-90/tcp`.
fn ports(filters: &Filters, key: &str) -> Result<Vec<Ports>> {
    filters
        .get(key)
        .iter()
        .map(|text| {
            let refuse =
                |why: String| Error::invalid(format!("error while looking up for {key} {text}: {why}"));
            let (range, proto) = text.split_once('/').unwrap_or((text, "tcp"));
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str, which: &str| {
                text.parse::<u16>()
                    .map_err(|_| refuse(format!("invalid {which} port '{text}': invalid syntax")))
            };
            Ok(Ports { first: number(first, "start")?, last: number(last, "end")?, proto: proto.to_owned() })
        })
        .collect()
}
