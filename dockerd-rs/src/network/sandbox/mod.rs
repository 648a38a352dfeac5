//! A container's place in the networks: taken when it starts, changed while it runs, given back when it ends.

mod change;
mod endpoint;
mod naming;
mod plan;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use docker_api::EndpointSettings;

pub(super) use self::endpoint::dns_names;
use self::endpoint::new_endpoint;
use super::model::{Driver, Network, Place, Wanted, new_id};
use super::ports;
use super::steps::{self, Ground, Plan, Step};
use super::{Controller, Inner, State, on_thread};
use crate::error::{Error, Result};
use crate::events::Subject;
use crate::store::{Change, Table};

/// Which network namespace a container's processes run in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// The one bound to this path: it goes into the runtime specification.
    Path(PathBuf),
    /// The host's.
    Host,
}

/// The files a container finds its names by; they are mounted at `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// For `/etc/hosts`.
    pub hosts: PathBuf,
    /// For `/etc/hostname`.
    pub hostname: PathBuf,
    /// For `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

impl Files {
    /// The files in a container's directory.
    pub fn in_dir(dir: &std::path::Path) -> Self {
        Self {
            hosts: dir.join("hosts"),
            hostname: dir.join("hostname"),
            resolv_conf: dir.join("resolv.conf"),
        }
    }
}

/// What a container that starts needs to know of its networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Where it runs.
    pub namespace: Namespace,
    /// What to mount.
    pub files: Files,
}

/// Prefix of whatever keeps a container from getting its networks, in Docker's words.
const FAILED: &str = "failed to set up container networking";

/// A network a container asks for, found, and how it wants to be in it.
struct Resolved {
    network: Network,
    settings: EndpointSettings,
}

impl Controller {
    /// Gives a container its networks: namespace, links, addresses, published ports, names. When this returns, the namespace is ready for the
    /// runtime to join. Goes on to its end when the caller stops waiting; a failure leaves nothing behind.
    ///
    /// # Errors
    /// Docker's words and class: a network that does not exist (404), an address or port that is taken, what the kernel refuses.
    pub async fn allocate(&self, wanted: Wanted) -> Result<Sandbox> {
        let inner = Arc::clone(&self.0);
        let task = tokio::spawn(async move { inner.allocate(wanted).await });
        task.await.unwrap_or_else(|err| Err(Error::system(format!("network set-up: {err}"))))
    }

    /// Takes everything away that [`Controller::allocate`] and later changes set up. A container without a place is content.
    ///
    /// # Errors
    /// The store refused; the container's place is still taken then, and the call can be repeated.
    pub async fn release(&self, container: &str) -> Result<()> {
        let (inner, container) = (Arc::clone(&self.0), container.to_owned());
        let task = tokio::spawn(async move { inner.release(&container).await });
        task.await.unwrap_or_else(|err| Err(Error::system(format!("network tear-down: {err}"))))
    }

    /// Puts a running container into one more network. The record of the container is the caller's to change.
    ///
    /// # Errors
    /// As [`Controller::allocate`]; 403 if it is in the network already.
    pub async fn connect(&self, container: &str, network: &str, settings: EndpointSettings) -> Result<()> {
        let (inner, container, network) = (Arc::clone(&self.0), container.to_owned(), network.to_owned());
        let task = tokio::spawn(async move { inner.connect(&container, &network, settings).await });
        task.await.unwrap_or_else(|err| Err(Error::system(format!("network set-up: {err}"))))
    }

    /// Takes a running container out of a network.
    ///
    /// # Errors
    /// 500 if it is not in it, in Docker's words.
    pub async fn disconnect(&self, container: &str, network: &str) -> Result<()> {
        let (inner, container, network) = (Arc::clone(&self.0), container.to_owned(), network.to_owned());
        let task = tokio::spawn(async move { inner.disconnect(&container, &network).await });
        task.await.unwrap_or_else(|err| Err(Error::system(format!("network tear-down: {err}"))))
    }

    /// The containers that have a place, and the networks they are in.
    pub fn occupied(&self) -> Vec<(String, Vec<String>)> {
        let state = self.0.state();
        let networks = |place: &Place| place.endpoints.iter().map(|e| e.network.clone()).collect();
        state.places.values().map(|place| (place.container.clone(), networks(place))).collect()
    }

    /// The containers that are in networks.
    pub fn containers(&self) -> Vec<String> {
        self.0.state().places.keys().cloned().collect()
    }

    /// Whether a container has a place: it runs, or is about to.
    pub fn has_place(&self, container: &str) -> bool {
        self.0.state().places.contains_key(container)
    }

    /// The container's name has changed: its resolvers' name for it changes too.
    ///
    /// # Errors
    /// The store refused.
    pub async fn rename(&self, container: &str, name: &str) -> Result<()> {
        let inner = Arc::clone(&self.0);
        let place = {
            let mut state = inner.state();
            let Some(place) = state.places.get_mut(container) else { return Ok(()) };
            let old = std::mem::replace(&mut place.name, name.to_owned());
            for endpoint in &mut place.endpoints {
                endpoint.names.iter_mut().filter(|n| **n == old).for_each(|n| name.clone_into(n));
            }
            place.clone()
        };
        inner.store.put(Table::Endpoints, container, &place).await?;
        let sandbox = inner.helper_view(&place);
        on_thread(move || sandbox.map_or(Ok(()), |view| inner.helper.put(&view, None).map_err(Error::from)))
            .await
    }
}

impl Inner {
    async fn allocate(&self, wanted: Wanted) -> Result<Sandbox> {
        if let Some(other) = wanted.mode.strip_prefix("container:") {
            let state = self.state();
            let place = state.places.get(other).ok_or_else(|| {
                Error::conflict(format!("cannot join network namespace of a non running container: {other}"))
            })?;
            return Ok(self.sandbox(place));
        }
        let asked = ports::asked(&wanted.exposed, &wanted.bindings, wanted.publish_all)?;
        // What an earlier run left, if its release did not come through.
        if self.state().places.contains_key(&wanted.container) {
            self.release(&wanted.container).await?;
        }
        let mut place = self.plan_place(&wanted).map_err(|err| err.context(FAILED))?;
        let outcome = self.allocate_place(&mut place, &asked).await;
        if outcome.is_err() {
            self.forget(&place).await?;
        }
        outcome
    }

    /// Decides addresses and names, and takes them in memory.
    pub(super) fn plan_place(&self, wanted: &Wanted) -> Result<Place> {
        let mut state = self.state();
        let resolved = self.resolve(&state, wanted)?;
        let host = resolved.iter().any(|one| one.network.driver == Driver::Host);
        let mut place = Place {
            version: 1,
            id: new_id(),
            container: wanted.container.clone(),
            name: wanted.name.clone(),
            own_namespace: !host,
            endpoints: Vec::new(),
            ports: Vec::new(),
            exposed: wanted.exposed.clone(),
            naming: wanted.naming.clone(),
        };
        for (at, one) in resolved.iter().enumerate() {
            let endpoint = new_endpoint(&state, &place, wanted, one, at)?;
            place.endpoints.push(endpoint);
        }
        state.places.insert(place.container.clone(), place.clone());
        Ok(place)
    }

    /// The networks a container asks for, its mode's first.
    fn resolve(&self, state: &State, wanted: &Wanted) -> Result<Vec<Resolved>> {
        let mode = match wanted.mode.as_str() {
            "" | "default" => "bridge",
            mode => mode,
        };
        let mut all: Vec<Resolved> = Vec::new();
        for name in std::iter::once(mode).chain(wanted.endpoints.keys().map(String::as_str)) {
            let name = if name == "default" { "bridge" } else { name };
            let network = state.find(name)?.clone();
            if network.config_only {
                return Err(Error::forbidden("cannot create endpoint on configuration-only network"));
            }
            if all.iter().any(|other| other.network.id == network.id) {
                continue;
            }
            let keys = [name, network.name.as_str(), network.id.as_str()];
            let settings = wanted
                .endpoints
                .iter()
                .find(|(key, _)| keys.contains(&key.as_str()))
                .map(|(_, settings)| settings.clone())
                .unwrap_or_default();
            all.push(Resolved { network, settings });
        }
        Ok(all)
    }

    async fn allocate_place(&self, place: &mut Place, asked: &[ports::Asked]) -> Result<Sandbox> {
        let (target, publisher) = self.target(place);
        let reserved = match publisher {
            Some(_) if !asked.is_empty() => self.ports().reserve(asked, target).map_err(|err| {
                let endpoint = publisher.as_deref().unwrap_or_default();
                err.context(format!(
                    "{FAILED}: driver failed programming external connectivity on endpoint {} ({endpoint})",
                    place.name
                ))
            })?,
            _ => ports::Reserved::default(),
        };
        place.ports = reserved.published;
        self.state().places.insert(place.container.clone(), place.clone());
        self.store.put(Table::Endpoints, place.container.clone(), place).await?;
        let files = self.write_files(place)?;
        let mut plan = self.plan_of(place);
        plan.sockets = reserved.sockets;
        self.set_up(plan, place.own_namespace).await.map_err(|err| err.context(FAILED))?;
        self.announce(place, "connect");
        let mut sandbox = self.sandbox(place);
        sandbox.files = files;
        Ok(sandbox)
    }

    /// Walks the steps of a start on a thread.
    async fn set_up(&self, mut plan: Plan, own_namespace: bool) -> Result<()> {
        let firewall = Arc::clone(self.firewall()?);
        let helper = self.helper_handle();
        on_thread(move || {
            let mut ground = Ground::new(&firewall, &helper)?;
            let mut steps = steps::start(&plan);
            if !own_namespace {
                steps.retain(|step| matches!(step, Step::Rules | Step::Names));
            }
            ground.apply(&steps, &mut plan)
        })
        .await
    }

    async fn release(&self, container: &str) -> Result<()> {
        let Some(place) = self.state().places.get(container).cloned() else { return Ok(()) };
        let mut plan = self.plan_of(&place);
        // The links go with the namespace.
        plan.links.clear();
        let (firewall, helper) = (self.firewall().cloned(), self.helper_handle());
        let own = place.own_namespace;
        on_thread(move || {
            let firewall = firewall?;
            let mut ground = Ground::new(&firewall, &helper)?;
            let mut steps = vec![Step::Rules, Step::Names];
            if own {
                steps.insert(0, Step::Namespace);
            }
            ground.revert(&steps, &plan);
            Ok(())
        })
        .await?;
        self.announce(&place, "disconnect");
        self.forget(&place).await
    }

    /// Removes the record, then frees what it named.
    pub(super) async fn forget(&self, place: &Place) -> Result<()> {
        self.store.apply(vec![Change::Delete(Table::Endpoints, place.container.clone())]).await?;
        self.ports().release(&place.ports);
        let mut state = self.state();
        // Unless somebody has put another place there: then this one is gone already.
        if state.places.get(&place.container).is_some_and(|now| now.id == place.id) {
            state.places.remove(&place.container);
        }
        Ok(())
    }

    fn sandbox(&self, place: &Place) -> Sandbox {
        let namespace =
            if place.own_namespace { Namespace::Path(self.namespace_path(place)) } else { Namespace::Host };
        Sandbox { namespace, files: Files::in_dir(&place.naming.dir) }
    }

    fn announce(&self, place: &Place, action: &str) {
        let networks: Vec<Network> = {
            let state = self.state();
            place.endpoints.iter().filter_map(|e| state.networks.get(&e.network).cloned()).collect()
        };
        networks.iter().for_each(|network| self.announce_one(place, network, action));
    }

    fn announce_one(&self, place: &Place, network: &Network, action: &str) {
        let attributes: BTreeMap<&str, &str> = BTreeMap::from([
            ("container", place.container.as_str()),
            ("name", network.name.as_str()),
            ("type", network.driver.name()),
        ]);
        self.events.publish(Subject::Network, action, &network.id, attributes);
    }
}
