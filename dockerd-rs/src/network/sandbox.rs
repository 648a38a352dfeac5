//! A container's place in the networks: taken when it starts, changed while it runs, given back when it ends.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use docker_api::EndpointSettings;

use super::files::{self, HostResolver, Resolver, Style};
use super::ipam;
use super::model::{Driver, Endpoint, Link, Mac, Network, Place, Prefix, Published, Wanted, new_id};
use super::ports::{self, Target};
use super::rules::{Gateway, Pass, Port};
use super::spec::{self, used_pools};
use super::steps::{self, Ground, LinkPlan, Plan, Step};
use super::{Controller, Inner, State, on_thread};
use crate::error::{Error, Kind, Result};
use crate::events::Subject;
use crate::nethelper::wire;
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

/// A change to the network sets of a running container, made and not yet undone.
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

/// What a network gives its containers names by: only users' networks have the resolver.
fn has_resolver(network: &Network) -> bool {
    !network.predefined() && !matches!(network.driver, Driver::Host | Driver::Null)
}

/// Docker's order of a container's networks, for its way out and for its names: those with a way out, priority, both families before one, then by name.
fn preference((a, an): (&Endpoint, &Network), (b, bn): (&Endpoint, &Network)) -> std::cmp::Ordering {
    let both = |endpoint: &Endpoint| endpoint.gateway4.is_some() && endpoint.gateway6.is_some();
    an.internal
        .cmp(&bn.internal)
        .then(b.priority.cmp(&a.priority))
        .then(both(b).cmp(&both(a)))
        .then(an.name.cmp(&bn.name))
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
        let outcome = self.allocate_place(&wanted, &mut place, &asked).await;
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

    async fn allocate_place(
        &self,
        wanted: &Wanted,
        place: &mut Place,
        asked: &[ports::Asked],
    ) -> Result<Sandbox> {
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
        let ((), files) = self.write_files(place)?;
        let mut plan = self.plan(place, None);
        plan.sockets = reserved.sockets;
        self.run(plan, place.own_namespace, true).await.map_err(|err| err.context(FAILED))?;
        self.announce(place, "connect");
        let _ = wanted;
        let mut sandbox = self.sandbox(place);
        sandbox.files = files;
        Ok(sandbox)
    }

    /// Walks the steps of a start, or of a change, on a thread.
    async fn run(&self, mut plan: Plan, own_namespace: bool, start: bool) -> Result<()> {
        let firewall = Arc::clone(self.firewall()?);
        let helper = self.helper_handle();
        let resolver = plan.sandbox.is_some() && plan.resolver;
        on_thread(move || {
            let mut ground = Ground::new(&firewall, &helper)?;
            let mut steps =
                if start { steps::start(&plan, resolver) } else { steps::change(&plan, resolver) };
            if !own_namespace {
                steps.retain(|step| matches!(step, Step::Rules | Step::Names));
            }
            ground.apply(&steps, &mut plan)
        })
        .await
    }

    async fn release(&self, container: &str) -> Result<()> {
        let Some(place) = self.state().places.get(container).cloned() else { return Ok(()) };
        let mut plan = self.plan(&place, None);
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

    async fn connect(&self, container: &str, given: &str, settings: EndpointSettings) -> Result<()> {
        let (before, mut after, network) = {
            let mut state = self.state();
            let network = state.find(given)?.clone();
            if network.config_only {
                return Err(Error::forbidden("cannot create endpoint on configuration-only network"));
            }
            let before = state
                .places
                .get(container)
                .cloned()
                .ok_or_else(|| Error::conflict(format!("container {container} is not running")))?;
            if before.endpoint(&network.id).is_some() {
                return Err(Error::forbidden(format!(
                    "endpoint with name {} already exists in network {}",
                    before.name, network.name
                )));
            }
            let wanted = Wanted {
                container: container.to_owned(),
                name: before.name.clone(),
                naming: before.naming.clone(),
                ..Wanted::default()
            };
            let one = Resolved { network: network.clone(), settings };
            let next =
                (0..).find(|n| !before.endpoints.iter().any(|e| e.link == format!("eth{n}"))).unwrap_or(0);
            let mut after = before.clone();
            let endpoint = new_endpoint(&state, &before, &wanted, &one, next)?;
            after.endpoints.push(endpoint);
            state.places.insert(container.to_owned(), after.clone());
            (before, after, network)
        };
        let done = self.change(&before, &mut after, Some(&network.id)).await;
        if done.is_err() {
            self.state().places.insert(container.to_owned(), before.clone());
            self.store.put(Table::Endpoints, container, &before).await?;
        }
        done?;
        // With where its ports lead now.
        self.state().places.insert(container.to_owned(), after.clone());
        let line = self.own_hosts(&after, Some(&network.id));
        files::edit_hosts(&after.naming.dir.join("hosts"), |_| false, &line)?;
        self.rewrite_resolv_conf(&after);
        self.announce_one(&after, &network, "connect");
        Ok(())
    }

    async fn disconnect(&self, container: &str, given: &str) -> Result<()> {
        let (before, mut after, network) = {
            let state = self.state();
            let network = state.find(given)?.clone();
            let before = state.places.get(container).cloned();
            let not_in = || {
                Error::system(format!("container {container} is not connected to network {}", network.name))
            };
            let before = before.filter(|place| place.endpoint(&network.id).is_some()).ok_or_else(not_in)?;
            let mut after = before.clone();
            after.endpoints.retain(|endpoint| endpoint.network != network.id);
            (before, after, network)
        };
        self.change(&before, &mut after, None).await?;
        let gone = self.own_hosts(&before, Some(&network.id));
        self.state().places.insert(container.to_owned(), after.clone());
        files::edit_hosts(&after.naming.dir.join("hosts"), |line| gone.iter().any(|g| g == line), &[])?;
        self.announce_one(&before, &network, "disconnect");
        Ok(())
    }

    /// Changes a running container from one place to another: with one endpoint more, or one less.
    async fn change(&self, before: &Place, after: &mut Place, added: Option<&str>) -> Result<()> {
        // A port stays where it is; only where it leads may change.
        let (target, _) = self.target(after);
        let mut aims = Vec::new();
        for run in &mut after.ports {
            let carried = run.carry_to;
            let to = if run.host_ip.is_ipv6() { target.v6 } else { target.v4 };
            run.rewrite_to = to;
            // In no network it stays the container's, and leads nowhere.
            run.carry_to = to.or(target.v4).or(target.v6).unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
            if run.carry_to != carried && run.host_port != 0 {
                aims.push(wire::Aim {
                    protocol: run.protocol,
                    host: SocketAddr::new(run.host_ip, run.host_port),
                    carry_to: SocketAddr::new(run.carry_to, run.container_port),
                    count: run.count,
                });
            }
        }
        self.store.put(Table::Endpoints, after.container.clone(), after).await?;
        let old = self.plan(before, None);
        let mut plan = self.plan(after, added);
        plan.before = old.sandbox.clone();
        if added.is_none() {
            plan.links.clear();
        }
        // The resolver is opened with the first network that has one.
        plan.resolver = plan.resolver && !old.resolver;
        plan.drop_routes = old
            .routes
            .iter()
            .filter(|(gateway, _)| !plan.routes.iter().any(|(now, _)| now.is_ipv4() == gateway.is_ipv4()))
            .map(|(gateway, _)| *gateway)
            .collect();
        let same = |port: &Port| plan.ports.contains(port);
        let (close, keep): (Vec<Port>, Vec<Port>) = old.ports.into_iter().partition(|port| !same(port));
        plan.ports.retain(|port| !keep.contains(port));
        let open = std::mem::take(&mut plan.ports);
        let passes_gone: Vec<Pass> =
            old.passes.iter().filter(|pass| !plan.passes.contains(pass)).cloned().collect();
        plan.passes.retain(|pass| !old.passes.contains(pass));
        let removed: Vec<Endpoint> =
            before.endpoints.iter().filter(|e| after.endpoint(&e.network).is_none()).cloned().collect();
        let (firewall, helper) = (Arc::clone(self.firewall()?), self.helper_handle());
        let sandbox = after.id.clone();
        on_thread(move || {
            let mut ground = Ground::new(&firewall, &helper)?;
            let resolver = plan.resolver;
            let mut list = steps::change(&plan, resolver);
            if !removed.is_empty() {
                let routes = list.iter().position(|step| *step == Step::Routes).unwrap_or(list.len());
                ground.apply(&list[..routes], &mut plan)?;
                for endpoint in &removed {
                    ground.remove_link(endpoint)?;
                }
                list.drain(..routes);
            }
            ground.apply(&list, &mut plan)?;
            // Old ways are closed before new ones open: a port leads to one place at a time.
            firewall.remove(&close, &passes_gone)?;
            firewall.add(&open, &[])?;
            helper.aim(&sandbox, aims).map_err(Error::from)
        })
        .await
    }

    /// The endpoints that give the default routes: IPv4, IPv6.
    fn gateways<'a>(&self, state: &State, place: &'a Place) -> [Option<&'a Endpoint>; 2] {
        let network = |endpoint: &Endpoint| state.networks.get(&endpoint.network);
        let mut order: Vec<(&Endpoint, &Network)> = place
            .endpoints
            .iter()
            .filter_map(|e| network(e).map(|n| (e, n)))
            .filter(|(_, n)| !n.internal)
            .collect();
        order.sort_by(|a, b| preference(*a, *b));
        let first = |has: fn(&Endpoint) -> bool| order.iter().map(|(e, _)| *e).find(|e| has(e));
        [first(|e| e.gateway4.is_some()), first(|e| e.gateway6.is_some())]
    }

    /// Whether a container's ports can be published: its way out is a bridge.
    pub(super) fn publishes(&self, state: &State, place: &Place) -> bool {
        self.gateways(state, place).iter().flatten().any(|endpoint| !endpoint.host_link.is_empty())
    }

    /// Where a container's published ports lead, and the id of the endpoint that is named when that fails.
    fn target(&self, place: &Place) -> (Target, Option<String>) {
        let state = self.state();
        let [v4, v6] = self.gateways(&state, place);
        let bridged = |endpoint: Option<&'_ Endpoint>| {
            endpoint.and_then(|e| state.networks.get(&e.network)).filter(|n| n.driver == Driver::Bridge)
        };
        let (net4, net6) = (bridged(v4), bridged(v6));
        let routed = |network: Option<&Network>, at: usize| {
            network.is_some_and(|network| spec::bridge(network).gateway[at] == Gateway::Routed)
        };
        let binding = net4.and_then(|n| n.option("com.docker.network.bridge.host_binding_ipv4"));
        let target = Target {
            v4: v4.filter(|_| net4.is_some()).and_then(|e| e.v4).map(|prefix| prefix.ip),
            v6: v6.filter(|_| net6.is_some()).and_then(|e| e.v6).map(|prefix| prefix.ip),
            routed: [routed(net4, 0), routed(net6, 1)],
            default_v4: binding.and_then(|text| text.parse().ok()).or(Some(self.options.host_ip)),
            host_v6: super::bridge::host_has_v6(),
            carried: self.options.host_firewall,
        };
        let publisher = v4.filter(|_| net4.is_some()).or(v6.filter(|_| net6.is_some())).map(|e| e.id.clone());
        (target, publisher)
    }

    pub(super) fn plan_of(&self, place: &Place) -> Plan {
        self.plan(place, None)
    }

    /// What the steps need for a place; of its links only the one in network `added`, if that is given.
    fn plan(&self, place: &Place, added: Option<&str>) -> Plan {
        let filter = std::fs::read(steps::BRIDGE_FILTER).is_ok_and(|value| value.first() == Some(&b'1'));
        let state = self.state();
        let links = place
            .endpoints
            .iter()
            .filter(|endpoint| added.is_none_or(|network| endpoint.network == network))
            .filter_map(|endpoint| {
                let network = state.networks.get(&endpoint.network)?.clone();
                (!endpoint.link.is_empty()).then(|| LinkPlan {
                    sysctls: endpoint.sysctls.clone(),
                    publishes: !place.ports.is_empty(),
                    bridge_filter: filter,
                    endpoint: endpoint.clone(),
                    network,
                })
            })
            .collect();
        let [v4, v6] = self.gateways(&state, place);
        let route = |endpoint: Option<&Endpoint>, gateway: fn(&Endpoint) -> Option<IpAddr>| {
            endpoint.and_then(|e| gateway(e).map(|ip| (ip, e.link.clone())))
        };
        let routed = |run: &Published| run.host_port == 0;
        let mut ports: Vec<Port> = place
            .ports
            .iter()
            .filter_map(|run| {
                Some(Port {
                    protocol: run.protocol,
                    host_ip: run.host_ip,
                    host_port: run.host_port,
                    to: run.rewrite_to?,
                    port: run.container_port,
                    count: run.count,
                    routed: routed(run),
                })
            })
            .collect();
        for (endpoint, v6) in [(v4, false), (v6, true)] {
            let network = endpoint.and_then(|e| state.networks.get(&e.network));
            if network.is_some_and(|network| self.bridge_rules(network).reached_directly()) {
                let direct = addressed(ports.iter().filter(|port| port.to.is_ipv6() == v6));
                ports.extend(direct);
            }
        }
        let resolver =
            place.endpoints.iter().filter_map(|e| state.networks.get(&e.network)).any(has_resolver);
        let plan = Plan {
            namespace: self.namespace_path(place),
            links,
            routes: [route(v4, |e| e.gateway4), route(v6, |e| e.gateway6)].into_iter().flatten().collect(),
            ports,
            passes: passes(&state, place),
            resolver,
            ..Plan::default()
        };
        drop(state);
        Plan { sandbox: self.helper_view(place), ..plan }
    }

    /// What the helper is to know of a place; `None` if it has nothing to do for it.
    pub(super) fn helper_view(&self, place: &Place) -> Option<wire::Sandbox> {
        let state = self.state();
        let mut named: Vec<(&Endpoint, &Network)> = place
            .endpoints
            .iter()
            .filter_map(|endpoint| state.networks.get(&endpoint.network).map(|network| (endpoint, network)))
            .filter(|(_, network)| has_resolver(network))
            .collect();
        named.sort_by(|a, b| preference(*a, *b));
        if named.is_empty() && place.ports.is_empty() {
            return None;
        }
        let outside = named.iter().any(|(_, network)| !network.internal)
            || place.endpoints.iter().any(|e| state.networks.get(&e.network).is_some_and(|n| !n.internal));
        let host = HostResolver::read();
        let resolver = self.resolver(&host, place);
        Some(wire::Sandbox {
            id: place.id.clone(),
            container: place.container.clone(),
            links: named
                .iter()
                .flat_map(|(e, _)| {
                    e.links.iter().map(|(alias, to)| (alias.clone(), to.clone(), e.network.clone()))
                })
                .collect(),
            endpoints: named
                .iter()
                .map(|(endpoint, network)| wire::Named {
                    network: network.id.clone(),
                    network_name: network.name.clone(),
                    names: endpoint.names.clone(),
                    addresses: endpoint.v4.iter().chain(&endpoint.v6).map(|prefix| prefix.ip).collect(),
                })
                .collect(),
            upstreams: files::upstreams(&resolver)
                .into_iter()
                .map(|(ip, from_host)| wire::Upstream { ip, from_host })
                .collect(),
            forward: outside,
            ndots_set: place
                .naming
                .options
                .iter()
                .any(|option| option.starts_with("ndots:") && option != "ndots:0"),
        })
    }

    fn resolver<'a>(&'a self, host: &'a HostResolver, place: &'a Place) -> Resolver<'a> {
        fn or<'a, T>(own: &'a [T], general: &'a [T]) -> &'a [T] {
            if own.is_empty() { general } else { own }
        }
        Resolver {
            host,
            dns: or(&place.naming.dns, &self.options.dns),
            search: or(&place.naming.search, &self.options.dns_search),
            options: or(&place.naming.options, &self.options.dns_options),
        }
    }

    fn style(&self, place: &Place) -> Style {
        let state = self.state();
        if !place.own_namespace {
            Style::Host
        } else if place.endpoints.iter().filter_map(|e| state.networks.get(&e.network)).any(has_resolver) {
            Style::Internal
        } else {
            Style::Legacy
        }
    }

    fn rewrite_resolv_conf(&self, place: &Place) {
        let host = HostResolver::read();
        let text = files::resolv_conf(self.style(place), &self.resolver(&host, place));
        let path = place.naming.dir.join("resolv.conf");
        if let Err(err) = files::write_resolv_conf(&path, &text) {
            tracing::warn!(container = place.container, error = %err, "cannot write resolv.conf");
        }
    }

    fn write_files(&self, place: &Place) -> Result<((), Files)> {
        let naming = &place.naming;
        let failed = |err: std::io::Error| Error::from(err).context(FAILED);
        std::fs::create_dir_all(&naming.dir).map_err(failed)?;
        let files = Files::in_dir(&naming.dir);
        let extra = files::extra_lines(&naming.extra_hosts, &self.host_gateways());
        let text = if place.own_namespace {
            let links = self.link_lines(place).concat();
            files::hosts(&extra, &links, &self.own_hosts(place, None).concat())
        } else {
            std::fs::read_to_string("/etc/hosts").unwrap_or_default() + &extra
        };
        files::write(&files.hosts, &text).map_err(failed)?;
        let hostname = if naming.hostname.is_empty() {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        } else {
            naming.hostname.clone()
        };
        files::write(&files.hostname, &format!("{hostname}\n")).map_err(failed)?;
        let host = HostResolver::read();
        let text = files::resolv_conf(self.style(place), &self.resolver(&host, place));
        files::write_resolv_conf(&files.resolv_conf, &text).map_err(failed)?;
        self.tell_linking(place);
        Ok(((), files))
    }

    /// The container's own lines in its hosts file: of one network, or of all.
    fn own_hosts(&self, place: &Place, network: Option<&str>) -> Vec<String> {
        let names = files::own_names(&place.naming.hostname, &place.naming.domainname);
        place
            .endpoints
            .iter()
            .filter(|endpoint| network.is_none_or(|id| endpoint.network == id))
            .flat_map(|endpoint| endpoint.v4.iter().chain(&endpoint.v6))
            .map(|prefix| files::host_line(prefix.ip, &names))
            .collect()
    }

    fn host_gateways(&self) -> Vec<IpAddr> {
        if !self.options.host_gateway.is_empty() {
            return self.options.host_gateway.clone();
        }
        let state = self.state();
        let bridge = state.networks.values().find(|network| network.name == "bridge");
        bridge
            .map(|network| used_pools(network).filter_map(|pool| pool.gateway).collect())
            .unwrap_or_default()
    }

    /// Lines for links on the default bridge: `address alias short-id name`.
    fn link_lines(&self, place: &Place) -> Vec<String> {
        let state = self.state();
        let mut lines = Vec::new();
        for endpoint in &place.endpoints {
            if state.networks.get(&endpoint.network).is_none_or(has_resolver) {
                continue;
            }
            for (alias, container) in &endpoint.links {
                let Some(other) = state.places.get(container) else { continue };
                let Some(there) = other.endpoint(&endpoint.network) else { continue };
                for prefix in there.v4.iter().chain(&there.v6) {
                    lines.push(files::host_line(prefix.ip, &link_names(alias, other)));
                }
            }
        }
        lines
    }

    /// Containers that have a link to this one learn its new address.
    fn tell_linking(&self, place: &Place) {
        let state = self.state();
        let mut edits: Vec<(PathBuf, String, Vec<String>)> = Vec::new();
        for other in state.places.values() {
            for endpoint in &other.endpoints {
                if state.networks.get(&endpoint.network).is_none_or(has_resolver) {
                    continue;
                }
                let Some(mine) = place.endpoint(&endpoint.network) else { continue };
                for (alias, _) in endpoint.links.iter().filter(|(_, to)| *to == place.container) {
                    let names = link_names(alias, place);
                    let lines =
                        mine.v4.iter().chain(&mine.v6).map(|p| files::host_line(p.ip, &names)).collect();
                    edits.push((other.naming.dir.join("hosts"), format!("\t{names}\n"), lines));
                }
            }
        }
        drop(state);
        for (path, ending, lines) in edits {
            if let Err(err) = files::edit_hosts(&path, |line| line.ends_with(&ending), &lines) {
                tracing::warn!(path = %path.display(), error = %err, "cannot tell a linking container the new address");
            }
        }
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

fn link_names(alias: &str, other: &Place) -> String {
    let short = other.container.get(..12).unwrap_or(&other.container);
    let mut names = vec![alias, short];
    if other.name != alias {
        names.push(&other.name);
    }
    names.join(" ")
}

/// The ports in the container that published ports lead to, as runs to let through where others may address containers directly. One bound to the
/// host's loopback stays there.
fn addressed<'a>(ports: impl Iterator<Item = &'a Port>) -> Vec<Port> {
    let mut runs: Vec<Port> = ports
        .filter(|port| !port.routed && !port.host_ip.is_loopback())
        .map(|port| Port { host_port: 0, routed: true, ..port.clone() })
        .collect();
    runs.sort_by_key(|run| (run.protocol.number(), run.port));
    let mut merged: Vec<Port> = Vec::new();
    for run in runs {
        let end = |run: &Port| u32::from(run.port) + u32::from(run.count);
        match merged.last_mut() {
            Some(last) if last.protocol == run.protocol && u32::from(run.port) <= end(last) => {
                last.count = (end(last).max(end(&run)) - u32::from(last.port)) as u16;
            }
            _ => merged.push(Port { host_ip: std::net::Ipv4Addr::UNSPECIFIED.into(), ..run }),
        }
    }
    merged
}

/// Exceptions a place's links make where containers may not talk to each other.
fn passes(state: &State, place: &Place) -> Vec<Pass> {
    let mut all = Vec::new();
    let mut pair = |from: &Endpoint, to: &Endpoint, whose: &Place| {
        for port in &whose.exposed {
            let protocol = match port.proto.as_str() {
                "tcp" => super::model::Protocol::Tcp,
                "udp" => super::model::Protocol::Udp,
                "sctp" => super::model::Protocol::Sctp,
                _ => continue,
            };
            for (a, b) in [(from.v4, to.v4), (from.v6, to.v6)] {
                if let (Some(a), Some(b)) = (a, b) {
                    all.push(Pass { from: a.ip, to: b.ip, protocol, port: port.number });
                }
            }
        }
    };
    for endpoint in &place.endpoints {
        let icc = state
            .networks
            .get(&endpoint.network)
            // In users' networks a link is only a name.
            .is_none_or(|network| {
                has_resolver(network) || network.flag("com.docker.network.bridge.enable_icc", true)
            });
        if icc {
            continue;
        }
        for other in state.places.values() {
            let Some(there) = other.endpoint(&endpoint.network) else { continue };
            if endpoint.links.iter().any(|(_, to)| *to == other.container) {
                pair(endpoint, there, other);
            }
            if there.links.iter().any(|(_, to)| *to == place.container) {
                pair(there, endpoint, place);
            }
        }
    }
    all
}

/// Decides an endpoint's addresses and names. The caller holds the lock and puts the endpoint where the next one sees it.
fn new_endpoint(
    state: &State,
    place: &Place,
    wanted: &Wanted,
    one: &Resolved,
    number: usize,
) -> Result<Endpoint> {
    let Resolved { network, settings } = one;
    let id = new_id();
    let linked = !matches!(network.driver, Driver::Host | Driver::Null);
    let mut endpoint = Endpoint {
        network: network.id.clone(),
        mac: None,
        v4: None,
        v6: None,
        gateway4: None,
        gateway6: None,
        host_link: if network.driver == Driver::Bridge { format!("veth{}", &id[..7]) } else { String::new() },
        link: if linked { link_name(settings, number)? } else { String::new() },
        names: Vec::new(),
        links: Vec::new(),
        priority: settings.gw_priority,
        sysctls: sysctls(settings),
        id,
    };
    if !linked {
        return Ok(endpoint);
    }
    endpoint.mac = Some(settings.mac_address.0.map_or_else(Mac::random, Mac));
    let mut used = state.used(network);
    // Endpoints of this very place are not in the state yet.
    used.extend(
        place.endpoint(&network.id).iter().flat_map(|e| e.v4.iter().chain(&e.v6)).map(|prefix| prefix.ip),
    );
    let asked = settings.ipam_config.clone().unwrap_or_default();
    for (v6, asked) in [(false, asked.ipv4_address.0), (true, asked.ipv6_address.0)] {
        let pools: Vec<_> = used_pools(network).filter(|pool| pool.subnet.ip.is_ipv6() == v6).collect();
        if pools.is_empty() {
            continue;
        }
        let (pool, ip) = match asked {
            Some(ip) => {
                let pool = pools.iter().find(|pool| pool.subnet.contains(ip)).ok_or_else(|| {
                    Error::invalid(format!(
                        "invalid endpoint settings:\nno configured subnet contains IP address {ip}"
                    ))
                })?;
                if used.contains(&ip) {
                    return Err(Error::forbidden("Address already in use"));
                }
                (*pool, ip)
            }
            None => {
                let free =
                    pools.iter().find_map(|pool| ipam::free_address(pool, &used).map(|ip| (*pool, ip)));
                free.ok_or_else(|| exhausted(state, network, v6))?
            }
        };
        let prefix = Some(Prefix::new(ip, pool.subnet.len));
        let gateway = pool.gateway.filter(|_| !network.internal && !is_isolated(network, v6));
        if v6 {
            (endpoint.v6, endpoint.gateway6) = (prefix, gateway);
        } else {
            (endpoint.v4, endpoint.gateway4) = (prefix, gateway);
        }
    }
    if has_resolver(network) {
        endpoint.names = dns_names(wanted, settings);
        // Links of the container go with its mode's network, those of the endpoint with this one.
        let own: Vec<&str> = settings.links.iter().flatten().map(String::as_str).collect();
        endpoint.links = links_in(state, &own);
    }
    if number == 0 {
        endpoint
            .links
            .extend(wanted.links.iter().map(|Link { container, alias }| (alias.clone(), container.clone())));
    }
    Ok(endpoint)
}

fn is_isolated(network: &Network, v6: bool) -> bool {
    network.driver == Driver::Bridge && spec::bridge(network).gateway[usize::from(v6)] == Gateway::Isolated
}

/// No address is left: the message says who has them.
fn exhausted(state: &State, network: &Network, v6: bool) -> Error {
    let holders = state.places.values().filter(|place| place.endpoint(&network.id).is_some()).count();
    let family = if v6 { "IPv6" } else { "IPv4" };
    Error::new(
        Kind::System,
        format!(
            "no available {family} addresses on this network's address pools: {} ({}); {holders} containers hold addresses of it",
            network.name, network.id
        ),
    )
}

/// The link's name in the container: the one asked for, or the next number.
fn link_name(settings: &EndpointSettings, number: usize) -> Result<String> {
    const KEY: &str = "com.docker.network.endpoint.ifname";
    let Some(name) = settings.driver_opts.as_ref().and_then(|options| options.get(KEY)) else {
        return Ok(format!("eth{number}"));
    };
    let usable = |byte: u8| !byte.is_ascii_whitespace() && !matches!(byte, b'/' | b':' | 0);
    if name.is_empty() || name.len() > 15 || name.starts_with('.') || !name.bytes().all(usable) {
        return Err(Error::invalid(format!("invalid interface name: {name:?}")));
    }
    Ok(name.clone())
}

fn sysctls(settings: &EndpointSettings) -> Vec<String> {
    const KEY: &str = "com.docker.network.endpoint.sysctls";
    let list = settings.driver_opts.as_ref().and_then(|opts| opts.get(KEY));
    list.map(|list| list.split(',').map(|one| one.trim().to_owned()).collect()).unwrap_or_default()
}

/// Names in a user's network: the container's, its aliases, its short id, its host name; each once.
pub(super) fn dns_names(wanted: &Wanted, settings: &EndpointSettings) -> Vec<String> {
    let short = wanted.container.get(..12).unwrap_or(&wanted.container).to_owned();
    let all = std::iter::once(wanted.name.clone())
        .chain(settings.aliases.iter().flatten().cloned())
        .chain([short, wanted.naming.hostname.clone()]);
    let mut names: Vec<String> = Vec::new();
    for name in all {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// `container:alias` pairs of an endpoint, with the containers found among those that have a place.
fn links_in(state: &State, pairs: &[&str]) -> Vec<(String, String)> {
    pairs
        .iter()
        .filter_map(|pair| {
            let (name, alias) = pair.split_once(':').unwrap_or((pair, pair));
            let name = name.trim_start_matches('/');
            let by_name = || {
                state.places.values().find(|place| place.name == name || place.container.starts_with(name))
            };
            let found = state.places.get(name).or_else(by_name)?;
            Some((alias.to_owned(), found.container.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::model::Protocol;

    fn port(host_ip: &str, host_port: u16, port: u16, count: u16) -> Port {
        let host_ip = host_ip.parse().unwrap();
        let to = "172.17.0.2".parse().unwrap();
        Port { protocol: Protocol::Tcp, host_ip, host_port, to, port, count, routed: false }
    }

    #[test]
    fn ports_addressed_directly_are_runs_without_overlaps() {
        let published = [
            port("0.0.0.0", 9000, 85, 1),
            port("0.0.0.0", 8080, 80, 10),
            port("127.0.0.1", 70, 70, 1),
            port("0.0.0.0", 8090, 90, 5),
        ];
        let runs: Vec<(u16, u16, bool)> =
            addressed(published.iter()).iter().map(|run| (run.port, run.count, run.routed)).collect();
        assert_eq!(runs, [(80, 15, true)]);
    }

    #[test]
    fn a_link_may_have_a_name_of_its_own() {
        let named = |name: &str| {
            let options = [("com.docker.network.endpoint.ifname".to_owned(), name.to_owned())];
            EndpointSettings { driver_opts: Some(options.into()), ..EndpointSettings::default() }
        };
        assert_eq!(link_name(&EndpointSettings::default(), 3).unwrap(), "eth3");
        assert_eq!(link_name(&named("lan7"), 3).unwrap(), "lan7");
        for bad in ["", "a/b", "a b", "..", "sixteen-letters!"] {
            assert!(link_name(&named(bad), 0).is_err(), "{bad}");
        }
    }
}
