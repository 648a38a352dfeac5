//! A running container joins one more network, or leaves one.

use std::net::{IpAddr, Ipv4Addr};

use docker_api::EndpointSettings;

use super::Resolved;
use super::endpoint::new_endpoint;
use crate::error::{Error, Result};
use crate::network::model::{Place, Wanted};
use crate::network::rules::{Pass, Port};
use crate::network::steps::{self, Ground, Plan};
use crate::network::{Inner, files, on_thread};
use crate::store::Table;

impl Inner {
    pub(super) async fn connect(
        &self,
        container: &str,
        given: &str,
        settings: EndpointSettings,
    ) -> Result<()> {
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
            // Its address is taken from here on.
            state.places.insert(container.to_owned(), after.clone());
            (before, after, network)
        };
        self.change(&before, &mut after).await?;
        let line = self.own_hosts(&after, Some(&network.id));
        files::edit_hosts(&after.naming.dir.join("hosts"), |_| false, &line)?;
        self.rewrite_resolv_conf(&after);
        self.announce_one(&after, &network, "connect");
        Ok(())
    }

    pub(super) async fn disconnect(&self, container: &str, given: &str) -> Result<()> {
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
        self.change(&before, &mut after).await?;
        let gone = self.own_hosts(&before, Some(&network.id));
        files::edit_hosts(&after.naming.dir.join("hosts"), |line| gone.iter().any(|g| g == line), &[])?;
        self.announce_one(&before, &network, "disconnect");
        Ok(())
    }

    /// Changes a running container from one place to another: with one endpoint more, or one less. Afterwards the record and the memory say what is
    /// so; after a failure that is the place as it was.
    async fn change(&self, before: &Place, after: &mut Place) -> Result<()> {
        let mut plan = self.plan_change(before, after);
        // While it changes, what is on disk names all that may be on the host.
        let joins = !plan.links.is_empty();
        let noted = match joins {
            true => self.store.put(Table::Endpoints, after.container.clone(), after).await,
            false => Ok(()),
        };
        let done = match noted {
            Ok(()) => {
                let (firewall, helper) = (self.firewall().cloned(), self.helper_handle());
                on_thread(move || {
                    let firewall = firewall?;
                    let mut ground = Ground::new(&firewall, &helper)?;
                    ground.apply(&steps::change(&plan), &mut plan)
                })
                .await
            }
            Err(err) => Err(err),
        };
        let now = if done.is_ok() { &*after } else { before };
        self.state().places.insert(now.container.clone(), now.clone());
        if done.is_ok() != joins {
            self.store.put(Table::Endpoints, now.container.clone(), now).await?;
        }
        done
    }

    /// What the steps from one place to another need to know. Decides where the ports lead in the other.
    pub(in crate::network) fn plan_change(&self, before: &Place, after: &mut Place) -> Plan {
        // A port stays where it is; only where it leads may change.
        let (target, _) = self.target(after);
        let (mut aims, mut aims_before) = (Vec::new(), Vec::new());
        for run in &mut after.ports {
            let before = run.aim();
            let to = if run.host_ip.is_ipv6() { target.v6 } else { target.v4 };
            run.rewrite_to = to;
            // In no network it stays the container's, and leads nowhere.
            run.carry_to = to.or(target.v4).or(target.v6).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
            if run.aim() != before {
                aims.extend(run.aim());
                aims_before.extend(before);
            }
        }
        let (old, new) = (self.plan_of(before), self.plan_of(after));
        let has = |place: &Place, network: &str| place.endpoint(network).is_some();
        let same_family = |a: &IpAddr, b: &IpAddr| a.is_ipv4() == b.is_ipv4();
        let less = |these: &[Port], those: &[Port]| {
            these.iter().filter(|port| !those.contains(port)).cloned().collect::<Vec<_>>()
        };
        let passes_less = |these: &[Pass], those: &[Pass]| {
            these.iter().filter(|pass| !those.contains(pass)).cloned().collect::<Vec<_>>()
        };
        let routes_less = |these: &[(IpAddr, String)], those: &[(IpAddr, String)]| {
            let gone = |(gateway, _): &&(IpAddr, String)| {
                !those.iter().any(|(other, _)| same_family(gateway, other))
            };
            these.iter().filter(gone).map(|(gateway, _)| *gateway).collect::<Vec<_>>()
        };
        // Out of every network of users' it needs the helper no more, but its resolver is open: it answers for the outside.
        let sandbox = new.sandbox.or_else(|| old.sandbox.is_some().then(|| self.names_of(after)));
        Plan {
            closes: less(&old.ports, &new.ports),
            ports: less(&new.ports, &old.ports),
            passes_gone: passes_less(&old.passes, &new.passes),
            passes: passes_less(&new.passes, &old.passes),
            drop_routes: routes_less(&old.routes, &new.routes),
            drop_routes_before: routes_less(&new.routes, &old.routes),
            links: new.links.into_iter().filter(|link| !has(before, &link.endpoint.network)).collect(),
            links_gone: old.links.into_iter().filter(|link| !has(after, &link.endpoint.network)).collect(),
            // The resolver is opened with the first network that has one.
            resolver: new.resolver && !old.resolver,
            namespace: new.namespace,
            id: new.id,
            routes: new.routes,
            routes_before: old.routes,
            sandbox,
            before: old.sandbox,
            aims,
            aims_before,
            sockets: Vec::new(),
        }
    }
}
