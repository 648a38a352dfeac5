//! Legacy links: `--link other:alias` on the default bridge.
//!
//! A link is a second name of the other container, `container/alias`, in the index of names.

use super::names::Reservation;
use super::record::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// A link: the other container and what this one calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The other's id.
    pub id: String,
    /// Its name here.
    pub alias: String,
}

/// Names taken for links.
#[must_use]
pub struct Reserved(Vec<Reservation>);

impl Reserved {
    /// The names stay.
    pub fn keep(self) {
        self.0.into_iter().for_each(Reservation::keep);
    }
}

/// `name:alias`, or `name` for both.
///
/// # Errors
/// The text is neither; Docker answers 500, we 400.
pub fn parse(text: &str) -> Result<(&str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [""] => Err(Error::invalid("empty string specified for links")),
        [name] => Ok((name, name.trim_start_matches('/'))),
        // As inspect shows them.
        [name, alias] => Ok((name, alias.rsplit('/').next().unwrap_or(alias))),
        _ => Err(Error::invalid(format!("bad format for links: {text}"))),
    }
}

/// The links of a container, resolved. One whose other container is gone is left out.
pub fn of(engine: &Engine, record: &Record) -> Vec<Link> {
    let links = record.host_config.links.iter().flatten();
    links
        .filter_map(|text| {
            let (name, alias) = parse(text).ok()?;
            let other = engine.containers.get(name).ok()?;
            Some(Link { id: other.id.clone(), alias: alias.to_owned() })
        })
        .collect()
}

/// Checks a new container's links and takes their names.
///
/// # Errors
/// Another container is not there, or cannot be linked to.
pub fn resolve(engine: &Engine, record: &Record) -> Result<Reserved> {
    let mut reserved = Vec::new();
    for text in record.host_config.links.iter().flatten() {
        let (name, alias) = parse(text)?;
        let other = engine.containers.get(name).map_err(|err| {
            Error::invalid(format!("could not get container for {name}: {}", err.message()))
        })?;
        let other = other.record();
        if other.host_config.network_mode == "host" {
            return Err(Error::invalid(
                "conflicting options: host type networking can't be used with links. This would result in undefined behavior",
            ));
        }
        if is_legacy(record) {
            let full = format!("{}/{alias}", record.name);
            let taken = engine.containers.names.reserve(&full, &other.id);
            reserved.push(taken.map_err(|owner| super::names::conflict(&full, &owner))?);
        }
    }
    Ok(Reserved(reserved))
}

/// Whether the container's links are names in the index: on user networks they are only aliases there.
pub fn is_legacy(record: &Record) -> bool {
    matches!(record.host_config.network_mode.as_str(), "bridge" | "default" | "")
}
