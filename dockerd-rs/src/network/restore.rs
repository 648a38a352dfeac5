//! After a start of the engine: the predefined networks, the host brought in line with the records, and what nobody knows of removed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::firewall::Firewall;
use super::model::{Driver, Network, Place, Pool, Prefix, Published};
use super::ports::Ports;
use super::rules::View;
use super::steps::{self, Ground, Plan, Step};
use super::{Controller, Inner, bridge, ipam, membership, on_thread, spec};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::store::{Change, Table};

impl Controller {
    /// Brings records and reality together after a start. Containers whose namespace is still there keep everything; the container registry releases
    /// those that have ended meanwhile.
    pub async fn restore(&self, engine: &Arc<Engine>) {
        if let Err(err) = self.bring_up().await {
            tracing::error!(error = %err, "networks cannot be set up");
        }
        membership::settle(engine).await;
    }

    /// The engine stops. If no container is in any network, the bridges, the rules and the helper go with it: the next start makes them anew from
    /// the records. Otherwise everything stays, for the containers that live on.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn leave(&self) -> Result<()> {
        let inner = Arc::clone(&self.0);
        let bridges: Vec<Network> = {
            let state = inner.state();
            if !state.places.is_empty() {
                return Ok(());
            }
            state.networks.values().filter(|network| network.owns_link).cloned().collect()
        };
        on_thread(move || {
            inner.helper.leave();
            if let Some(firewall) = inner.firewall.get() {
                firewall.remove_all()?;
            }
            bridges.iter().try_for_each(|network| bridge::remove(network, &inner.instance))
        })
        .await
    }

    pub(super) async fn bring_up(&self) -> Result<()> {
        let inner = Arc::clone(&self.0);
        inner.predefine().await?;
        let gone: Vec<Place> = {
            let mut state = inner.state();
            let lost = |place: &Place| {
                place.own_namespace && !sys::netns::is_pinned(&inner.namespace_path(place))
                    || place.endpoints.iter().any(|e| !state.networks.contains_key(&e.network))
            };
            let gone: Vec<Place> = state.places.values().filter(|place| lost(place)).cloned().collect();
            gone.iter().for_each(|place| drop(state.places.remove(&place.container)));
            let mut ports = inner.ports();
            state.places.values().for_each(|place| ports.adopt(&place.ports));
            gone
        };
        let forget =
            gone.iter().map(|place| Change::Delete(Table::Endpoints, place.container.clone())).collect();
        inner.store.apply(forget).await?;
        let (networks, places): (Vec<Network>, Vec<Place>) = {
            let state = inner.state();
            (state.networks.values().cloned().collect(), state.places.values().cloned().collect())
        };
        let plans: Vec<(Place, Plan)> = places.into_iter().map(|p| (p.clone(), inner.plan_of(&p))).collect();
        on_thread(move || inner.align(&networks, plans)).await
    }
}

impl Inner {
    /// The predefined networks exist, with today's configuration of the default bridge.
    async fn predefine(&self) -> Result<()> {
        let host = on_thread(bridge::host_networks).await?;
        let mut changes = Vec::new();
        let mut removed_bridge = None;
        {
            let mut state = self.state();
            for (name, driver) in [("host", Driver::Host), ("none", Driver::Null)] {
                if !state.networks.values().any(|network| network.name == name) {
                    let network = spec::predefined(name, driver);
                    changes.push(Change::put(Table::Networks, network.id.clone(), &network)?);
                    state.networks.insert(network.id.clone(), network);
                }
            }
            let old = state.networks.values().find(|network| network.name == "bridge").cloned();
            if self.options.bridge == "none" {
                if let Some(old) = old {
                    changes.push(Change::Delete(Table::Networks, old.id.clone()));
                    state.networks.remove(&old.id);
                    removed_bridge = Some(old);
                }
            } else {
                let taken: Vec<Prefix> = state
                    .networks
                    .values()
                    .filter(|network| network.name != "bridge" && !network.config_only)
                    .flat_map(|network| spec::used_pools(network).map(|pool| pool.subnet))
                    .chain(host)
                    .collect();
                let network = self.default_bridge(old.as_ref(), &taken)?;
                if old.as_ref() != Some(&network) {
                    changes.push(Change::put(Table::Networks, network.id.clone(), &network)?);
                    if let Some(old) = old.filter(|old| old.link != network.link) {
                        removed_bridge = Some(old);
                    }
                    state.networks.insert(network.id.clone(), network);
                }
            }
        }
        self.store.apply(changes).await?;
        if let Some(old) = removed_bridge {
            // Only if it is ours: another engine's bridge of that name stays.
            let instance = self.instance.clone();
            on_thread(move || bridge::remove(&old, &instance)).await?;
        }
        Ok(())
    }

    fn default_bridge(&self, old: Option<&Network>, taken: &[Prefix]) -> Result<Network> {
        let options = &self.options;
        let mut network = old.cloned().unwrap_or_else(|| spec::predefined("bridge", Driver::Bridge));
        network.link.clone_from(&options.bridge);
        // A bridge of another name is the operator's own; it is used and not taken away.
        network.owns_link = options.bridge == "docker0"
            || old.is_some_and(|old| old.link == options.bridge && old.owns_link)
            || !link_exists(&options.bridge);
        network.ipv6 = options.ipv6;
        network.options = BTreeMap::from([
            ("com.docker.network.bridge.default_bridge".to_owned(), "true".to_owned()),
            ("com.docker.network.bridge.enable_icc".to_owned(), options.icc.to_string()),
            ("com.docker.network.bridge.enable_ip_masquerade".to_owned(), options.masquerade.to_string()),
            ("com.docker.network.bridge.host_binding_ipv4".to_owned(), options.host_ip.to_string()),
            ("com.docker.network.bridge.name".to_owned(), options.bridge.clone()),
            ("com.docker.network.driver.mtu".to_owned(), options.mtu.unwrap_or(1500).to_string()),
        ]);
        let mut pools = Vec::new();
        for v6 in [false, true] {
            if v6 && !network.ipv6 {
                continue;
            }
            let (address, range) =
                if v6 { (options.bip6, options.fixed_cidr_v6) } else { (options.bip, options.fixed_cidr) };
            let previous =
                old.and_then(|old| old.pools.iter().find(|pool| pool.subnet.ip.is_ipv6() == v6).cloned());
            let present = address.or_else(|| address_of(&options.bridge, v6));
            let mut pool = match (present, range, previous) {
                (Some(address), range, _) => Pool {
                    subnet: address.network(),
                    range,
                    gateway: Some(address.ip),
                    auxiliary: BTreeMap::new(),
                },
                (None, Some(range), previous) => {
                    let subnet = previous
                        .map(|pool| pool.subnet)
                        .filter(|s| s.overlaps(&range))
                        .unwrap_or(range.network());
                    Pool { subnet, range: Some(range), gateway: None, auxiliary: BTreeMap::new() }
                }
                (None, None, Some(previous))
                    if !taken.iter().any(|other| other.overlaps(&previous.subnet)) =>
                {
                    previous
                }
                (None, None, _) => {
                    let subnet = ipam::free_pool(&self.spaces(), v6, taken)?;
                    Pool { subnet, range: None, gateway: None, auxiliary: BTreeMap::new() }
                }
            };
            if !v6 && let Some(gateway) = options.default_gateway {
                // Containers leave by another way than the host; the host's address stays reserved.
                if let Some(own) = pool.gateway.filter(|own| *own != gateway) {
                    pool.auxiliary.insert("DefaultGatewayIPv4".into(), own);
                }
            }
            if pool.gateway.is_none() {
                let first = Pool { range: None, ..pool.clone() };
                let gateway = ipam::free_address(&first, &Default::default());
                pool.gateway = Some(gateway.ok_or_else(|| {
                    Error::invalid(format!("no address for the bridge in {}", pool.subnet))
                })?);
            }
            pools.push(pool);
        }
        network.pools = pools;
        Ok(network)
    }

    /// The host's side, on a thread of its own.
    fn align(&self, networks: &[Network], plans: Vec<(Place, Plan)>) -> Result<()> {
        if self.options.forward {
            steps::sysctl("net/ipv4/ip_forward", "1")?;
            if networks.iter().any(|network| network.ipv6) {
                steps::sysctl("net/ipv6/conf/all/forwarding", "1")?;
            }
        }
        let mut view = View { host_firewall: self.options.host_firewall, ..View::default() };
        for network in networks.iter().filter(|network| !network.config_only) {
            match bridge::make(network, &self.instance) {
                Ok(()) if network.driver == Driver::Bridge => view.bridges.push(self.bridge_rules(network)),
                Ok(()) => {}
                // One broken network keeps the others from nothing.
                Err(err) => {
                    tracing::error!(network = network.name, error = %err, "network cannot be brought up")
                }
            }
        }
        for (_, plan) in &plans {
            view.ports.extend(plan.ports.iter().cloned());
            for pass in &plan.passes {
                if !view.passes.contains(pass) {
                    view.passes.push(pass.clone());
                }
            }
        }
        let firewall = Firewall::open(&self.table, view, self.options.rules)?;
        let _ = self.firewall.set(firewall);
        self.sweep(networks, &plans)?;
        self.restore_helper(plans);
        Ok(())
    }

    /// Removes what no record knows: namespaces, bridges, ports of bridges.
    fn sweep(&self, networks: &[Network], plans: &[(Place, Plan)]) -> Result<()> {
        let known: HashSet<&str> = plans.iter().map(|(place, _)| place.namespace_file()).collect();
        for entry in std::fs::read_dir(&self.namespaces).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| !known.contains(name)) {
                tracing::info!(namespace = ?name, "removing a network namespace no container has");
                sys::netns::unpin(&entry.path())?;
            }
        }
        let bridges: Vec<&str> = networks.iter().map(|network| network.link.as_str()).collect();
        let ports: Vec<&str> = plans
            .iter()
            .flat_map(|(place, _)| place.endpoints.iter().map(|endpoint| endpoint.host_link.as_str()))
            .collect();
        for name in bridge::remove_unknown(&bridges, &ports, &self.instance)? {
            tracing::info!(link = name, "removed a link no network has");
        }
        Ok(())
    }

    /// The helper has ended: another takes over what it held.
    pub(super) fn revive_helper(&self) {
        let places: Vec<Place> = self.state().places.values().cloned().collect();
        let plans: Vec<(Place, Plan)> =
            places.into_iter().map(|place| (place.clone(), self.plan_of(&place))).collect();
        if self.firewall.get().is_some() && plans.iter().any(|(_, plan)| plan.sandbox.is_some()) {
            tracing::warn!("the network helper has ended, starting another");
            self.restore_helper(plans);
        }
    }

    /// The helper holds what it should: what it lost is opened again, what it need not hold is let go.
    fn restore_helper(&self, plans: Vec<(Place, Plan)>) {
        let held = match self.helper.holdings() {
            Ok(held) => held,
            Err(err) => {
                tracing::warn!(error = %err, "the network helper is not usable, starting another");
                self.helper.leave();
                Default::default()
            }
        };
        for id in held.keys().filter(|id| !plans.iter().any(|(place, _)| place.id == **id)) {
            if let Err(err) = self.helper.remove(id) {
                tracing::warn!(error = %err, "the network helper does not let go");
            }
        }
        if plans.iter().any(|(_, plan)| plan.sandbox.is_some())
            && let Err(err) = self.helper.ready()
        {
            return tracing::error!(error = %err, "the network helper cannot be started");
        }
        for (place, mut plan) in plans {
            let (resolves, sockets) = held.get(&place.id).copied().unwrap_or_default();
            if plan.sandbox.is_none() {
                continue;
            }
            // A change that was cut short may have left others.
            plan.aims = place.ports.iter().filter_map(Published::aim).collect();
            if sockets == 0 {
                plan.sockets = Ports::rebind(&place.ports, self.options.host_firewall);
            }
            let fresh = plan.resolver && !resolves && place.own_namespace;
            let done = sys::netns::scoped(|| -> Result<()> {
                let mut ground = Ground::new(self.firewall()?, &self.helper)?;
                let steps: &[Step] = if fresh {
                    &[Step::Enter, Step::Resolver, Step::Names, Step::Aims]
                } else {
                    &[Step::Names, Step::Aims]
                };
                ground.repeat(steps, &mut plan)
            });
            if let Err(err) = done.map_err(Error::from).and_then(|inner| inner) {
                tracing::warn!(container = place.container, error = %err, "cannot restore names and ports");
            }
        }
    }
}

fn link_exists(name: &str) -> bool {
    let mut socket = match nl::Socket::route() {
        Ok(socket) => socket,
        Err(_) => return false,
    };
    nl::link::find(&mut socket, name).is_ok_and(|found| found.is_some())
}

/// The address a bridge has already: dockerd takes it over.
fn address_of(name: &str, v6: bool) -> Option<Prefix> {
    let mut socket = nl::Socket::route().ok()?;
    let link = nl::link::find(&mut socket, name).ok()??;
    let usable = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(_) => !v6,
        std::net::IpAddr::V6(ip) => v6 && !ip.is_unicast_link_local(),
    };
    let addresses = nl::addr::list(&mut socket).ok()?;
    addresses
        .into_iter()
        .find(|address| address.link == link.index && usable(address.ip))
        .map(|address| Prefix::new(address.ip, address.prefix))
}
