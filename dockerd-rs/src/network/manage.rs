//! Making, finding and removing networks.

use std::sync::Arc;

use docker_api::filters::Filters;

use super::groundwork::Groundwork;
use super::model::Network;
use super::settings::{NetworkView, view};
use super::spec::{self, Create, Surroundings};
use super::{Controller, Inner, bridge, ipam, on_thread};
use crate::error::{Error, Kind, Result};
use crate::events::Subject;
use crate::store::{Change, Table};

/// Keys `GET /networks` filters by.
pub const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];
/// Keys `POST /networks/prune` filters by.
pub const PRUNE_FILTERS: [&str; 3] = ["label", "label!", "until"];

impl Controller {
    /// Makes a network; its id.
    ///
    /// # Errors
    /// In Docker's words; nothing is left behind.
    pub async fn create(&self, create: Create) -> Result<String> {
        let inner = Arc::clone(&self.0);
        let task = tokio::spawn(async move { inner.create(create).await });
        task.await.unwrap_or_else(|err| Err(Error::system(format!("network create: {err}"))))
    }

    /// Removes a network.
    ///
    /// # Errors
    /// It is not there, is predefined, or is in use; in Docker's words.
    pub async fn remove(&self, given: &str) -> Result<()> {
        let (inner, given) = (Arc::clone(&self.0), given.to_owned());
        let task = tokio::spawn(async move { inner.remove(&given).await });
        task.await.unwrap_or_else(|err| Err(Error::system(format!("network delete: {err}"))))
    }

    /// The networks the filters leave. `in_use` says whether a container that does not run has the network in its configuration.
    ///
    /// # Errors
    /// A filter's value is none of those there are.
    pub fn list(&self, filters: &Filters) -> Result<Vec<NetworkView>> {
        let dangling = dangling(filters)?;
        for kind in filters.get("type") {
            if !matches!(kind.as_str(), "custom" | "builtin") {
                return Err(Error::system(format!("invalid filter: 'type'='{kind}'")));
            }
        }
        let state = self.0.state();
        let any = |key: &str, test: &dyn Fn(&str) -> bool| {
            let values = filters.get(key);
            values.is_empty() || values.iter().any(|value| test(value))
        };
        let keep = |network: &&Network| {
            let used = state.places.values().any(|place| place.endpoint(&network.id).is_some());
            any("driver", &|value| network.driver.name() == value)
                && any("id", &|value| network.id.starts_with(value))
                && any("name", &|value| name_matches(&network.name, value))
                && any("scope", &|value| network.scope == value)
                && any("type", &|value| (value == "builtin") == network.predefined())
                && filters.labels("label", |name| network.labels.get(name).map(String::as_str))
                && dangling.is_none_or(|wanted| {
                    !network.predefined() && used != wanted || !wanted && network.predefined()
                })
        };
        Ok(state.networks.values().filter(keep).map(view).collect())
    }

    /// Removes the networks nobody uses; their names.
    ///
    /// # Errors
    /// A filter's value makes no sense.
    pub async fn prune(&self, filters: &Filters, until: Option<jiff::Timestamp>) -> Result<Vec<String>> {
        let candidates: Vec<Network> = {
            let state = self.0.state();
            let keep = |network: &&Network| {
                let label = |name: &str| network.labels.get(name).map(String::as_str);
                let unwanted = filters.has("label!") && filters.labels("label!", label);
                let young = until.is_some_and(|until| {
                    network.created.parse::<jiff::Timestamp>().is_ok_and(|created| created > until)
                });
                !network.predefined() && filters.labels("label", label) && !unwanted && !young
            };
            state.networks.values().filter(keep).cloned().collect()
        };
        let mut removed = Vec::new();
        for network in candidates {
            match self.remove(&network.id).await {
                Ok(()) => removed.push(network.name),
                // In use, or somebody else was faster.
                Err(err) if matches!(err.kind(), Kind::Forbidden | Kind::NotFound) => {}
                Err(err) => tracing::warn!(network = network.id, error = %err, "cannot prune network"),
            }
        }
        Ok(removed)
    }

    /// The id and name of the network a client means, and whether it is one of its own kind.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn find(&self, given: &str) -> Result<Network> {
        self.0.state().find(given).cloned()
    }
}

/// Docker matches names as regular expressions; plain text is a part of the name. Anchors are all clients use of it.
fn name_matches(name: &str, pattern: &str) -> bool {
    match (pattern.strip_prefix('^'), pattern.strip_suffix('$')) {
        (Some(_), Some(_)) => name == &pattern[1..pattern.len() - 1],
        (Some(start), None) => name.starts_with(start),
        (None, Some(end)) => name.ends_with(end),
        (None, None) => name.contains(pattern),
    }
}

fn dangling(filters: &Filters) -> Result<Option<bool>> {
    match filters.get("dangling") {
        [] => Ok(None),
        [one] => match one.as_str() {
            "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(Error::invalid(
                "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" (or \"0\")",
            )),
        },
        _ => Err(Error::invalid("got more than one value for filter key \"dangling\"")),
    }
}

impl Inner {
    /// Where pools are cut from.
    pub(super) fn spaces(&self) -> Vec<ipam::Space> {
        let mut spaces =
            if self.options.pools.is_empty() { ipam::default_spaces() } else { self.options.pools.clone() };
        if !spaces.iter().any(|space| space.base.ip.is_ipv6()) {
            let host = std::fs::read_to_string("/etc/machine-id").unwrap_or_default() + &self.instance;
            spaces.push(ipam::unique_local(&host));
        }
        spaces
    }

    /// The rules' view of a bridge network.
    pub(super) fn bridge_rules(&self, network: &Network) -> super::rules::Bridge {
        super::rules::Bridge { direct: self.options.direct, ..spec::bridge(network) }
    }

    async fn create(&self, create: Create) -> Result<String> {
        let host = on_thread(bridge::host_networks).await?;
        let spaces = self.spaces();
        let network = {
            let mut state = self.state();
            let networks: Vec<&Network> = state.networks.values().collect();
            let around = Surroundings { networks: &networks, host: &host, spaces: &spaces };
            let network = spec::complete(create, &around)?;
            // From here on its name and pools are taken.
            state.networks.insert(network.id.clone(), network.clone());
            network
        };
        let made = self.make(&network).await;
        if let Err(err) = made {
            self.state().networks.remove(&network.id);
            self.store.delete(Table::Networks, network.id.clone()).await?;
            return Err(err);
        }
        let attributes = [("name", network.name.as_str()), ("type", network.driver.name())];
        self.events.publish(Subject::Network, "create", &network.id, attributes);
        Ok(network.id)
    }

    async fn make(&self, network: &Network) -> Result<()> {
        self.store.put(Table::Networks, network.id.clone(), network).await?;
        if network.config_only {
            return Ok(());
        }
        self.with_groundwork(network, |groundwork| groundwork.make()).await
    }

    /// Walks a network's steps on a thread.
    async fn with_groundwork(
        &self,
        network: &Network,
        walk: impl FnOnce(&Groundwork<'_>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let firewall = Arc::clone(self.firewall()?);
        let (rules, network, instance) = (self.bridge_rules(network), network.clone(), self.instance.clone());
        let forward = self.options.forward;
        on_thread(move || {
            walk(&Groundwork {
                firewall: &firewall,
                network: &network,
                rules: &rules,
                instance: &instance,
                forward,
                fail_at: None,
            })
        })
        .await
    }

    async fn remove(&self, given: &str) -> Result<()> {
        let network = {
            let mut state = self.state();
            let network = state.find(given)?.clone();
            if network.predefined() {
                return Err(Error::forbidden(format!(
                    "{} is a pre-defined network and cannot be removed",
                    network.name
                )));
            }
            let dependent =
                |other: &Network| !other.config_from.is_empty() && other.config_from == network.name;
            if network.config_only && state.networks.values().any(dependent) {
                return Err(Error::forbidden(format!(
                    "error while removing network: configuration network {:?} is in use",
                    network.name
                )));
            }
            let mut active: Vec<String> = state
                .places
                .values()
                .filter_map(|place| place.endpoint(&network.id).map(|endpoint| (place, endpoint)))
                .map(|(place, endpoint)| format!("name:{:?} id:{:?}", place.name, &endpoint.id[..12]))
                .collect();
            active.sort();
            if !active.is_empty() {
                return Err(Error::forbidden(format!(
                    "error while removing network: network {} has active endpoints ({})",
                    network.name,
                    active.join(", ")
                )));
            }
            // Nobody can join it any more.
            state.networks.remove(&network.id);
            network
        };
        let undone = self.unmake(&network).await;
        if let Err(err) = undone {
            self.state().networks.insert(network.id.clone(), network);
            return Err(err);
        }
        let attributes = [("name", network.name.as_str()), ("type", network.driver.name())];
        self.events.publish(Subject::Network, "destroy", &network.id, attributes);
        Ok(())
    }

    async fn unmake(&self, network: &Network) -> Result<()> {
        if !network.config_only {
            self.with_groundwork(network, |groundwork| groundwork.unmake()).await?;
        }
        self.store.apply(vec![Change::Delete(Table::Networks, network.id.clone())]).await
    }
}
