//! Who has which name: pure.
//!
//! A container is asked about in the networks it is in, the preferred first; the first network that knows the name answers with all that have it,
//! in another order each time. A known name without an address of the family asked for is an answer too: none, at once.

use std::collections::HashMap;
use std::net::IpAddr;

use super::wire::{Named, Sandbox};

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its addresses, of both families.
    Addresses(Vec<IpAddr>),
    /// Nobody here has it.
    Unknown,
}

/// All sandboxes, and an index of their names.
#[derive(Default)]
pub struct Names {
    sandboxes: HashMap<String, Sandbox>,
    /// Per network, by name in lower case: sandbox ids.
    index: HashMap<String, HashMap<String, Vec<String>>>,
    turn: usize,
}

fn indexed(endpoint: &Named) -> impl Iterator<Item = String> + '_ {
    endpoint.names.iter().map(|name| name.to_ascii_lowercase())
}

impl Names {
    /// A sandbox is so from now on.
    pub fn put(&mut self, sandbox: Sandbox) {
        self.remove(&sandbox.id);
        for endpoint in &sandbox.endpoints {
            let names = self.index.entry(endpoint.network.clone()).or_default();
            for name in indexed(endpoint) {
                let holders = names.entry(name).or_default();
                if !holders.contains(&sandbox.id) {
                    holders.push(sandbox.id.clone());
                }
            }
        }
        self.sandboxes.insert(sandbox.id.clone(), sandbox);
    }

    /// A sandbox is gone.
    pub fn remove(&mut self, id: &str) {
        let Some(sandbox) = self.sandboxes.remove(id) else { return };
        for endpoint in &sandbox.endpoints {
            let Some(names) = self.index.get_mut(&endpoint.network) else { continue };
            for name in indexed(endpoint) {
                if let Some(holders) = names.get_mut(&name) {
                    holders.retain(|holder| holder != id);
                    if holders.is_empty() {
                        names.remove(&name);
                    }
                }
            }
            if names.is_empty() {
                self.index.remove(&endpoint.network);
            }
        }
    }

    /// One sandbox.
    pub fn sandbox(&self, id: &str) -> Option<&Sandbox> {
        self.sandboxes.get(id)
    }

    /// All sandboxes' ids.
    pub fn ids(&self) -> impl Iterator<Item = &String> {
        self.sandboxes.keys()
    }

    fn addresses(&self, network: &str, holders: &[String]) -> Vec<IpAddr> {
        holders
            .iter()
            .filter_map(|id| self.sandboxes.get(id))
            .flat_map(|sandbox| sandbox.endpoints.iter().filter(|endpoint| endpoint.network == network))
            .flat_map(|endpoint| endpoint.addresses.iter().copied())
            .collect()
    }

    /// What sandbox `asker` is told of `name` (without the final dot).
    pub fn find(&mut self, asker: &str, name: &str) -> Found {
        let name = name.to_ascii_lowercase();
        let mut found = self.look(asker, &name);
        if let Found::Addresses(addresses) = &mut found
            && addresses.len() > 1
        {
            self.turn = self.turn.wrapping_add(1);
            let by = self.turn % addresses.len();
            addresses.rotate_left(by);
        }
        found
    }

    fn look(&self, asker: &str, name: &str) -> Found {
        let Some(sandbox) = self.sandboxes.get(asker) else { return Found::Unknown };
        for endpoint in &sandbox.endpoints {
            let link = sandbox.links.iter().find(|(alias, _, network)| {
                alias.eq_ignore_ascii_case(name) && (network.is_empty() || *network == endpoint.network)
            });
            if let Some((_, container, _)) = link {
                let holders: Vec<String> = self
                    .sandboxes
                    .values()
                    .filter(|other| other.container == *container)
                    .map(|other| other.id.clone())
                    .collect();
                let addresses = self.addresses(&endpoint.network, &holders);
                if !addresses.is_empty() {
                    return Found::Addresses(addresses);
                }
            }
            if let Some(holders) = self.index.get(&endpoint.network).and_then(|names| names.get(name)) {
                return Found::Addresses(self.addresses(&endpoint.network, holders));
            }
        }
        // `name.network` is the name in that network only.
        for endpoint in &sandbox.endpoints {
            let suffix = format!(".{}", endpoint.network_name.to_ascii_lowercase());
            if let Some(short) = name.strip_suffix(&suffix)
                && let Some(holders) = self.index.get(&endpoint.network).and_then(|names| names.get(short))
            {
                return Found::Addresses(self.addresses(&endpoint.network, holders));
            }
        }
        Found::Unknown
    }

    /// The name of an address, as sandbox `asker` may know it: `name.network`.
    pub fn reverse(&self, asker: &str, ip: IpAddr) -> Option<String> {
        let sandbox = self.sandboxes.get(asker)?;
        sandbox.endpoints.iter().find_map(|mine| {
            let of = |other: &Sandbox| {
                let there = other
                    .endpoints
                    .iter()
                    .find(|e| e.network == mine.network && e.addresses.contains(&ip))?;
                there.names.first().map(|name| format!("{name}.{}", mine.network_name))
            };
            self.sandboxes.values().find_map(of)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, endpoints: &[(&str, &[&str], &str)]) -> Sandbox {
        let endpoints = endpoints
            .iter()
            .map(|(network, names, ip)| Named {
                network: (*network).into(),
                network_name: format!("{network}-net"),
                names: names.iter().map(|name| (*name).into()).collect(),
                addresses: vec![ip.parse().unwrap()],
            })
            .collect();
        Sandbox { id: id.into(), container: format!("c-{id}"), endpoints, ..Sandbox::default() }
    }

    fn v4(last: &[u8]) -> Found {
        Found::Addresses(last.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect())
    }

    #[test]
    fn names_are_known_in_shared_networks_only() {
        let mut names = Names::default();
        names.put(sandbox("a", &[("n1", &["web", "alias"], "10.0.0.2")]));
        names.put(sandbox("b", &[("n1", &["db"], "10.0.0.3"), ("n2", &["db", "only2"], "10.0.0.4")]));
        names.put(sandbox("c", &[("n2", &["x"], "10.0.0.5")]));
        assert_eq!(names.find("a", "DB"), v4(&[3]));
        assert_eq!(names.find("c", "db"), v4(&[4]));
        assert_eq!(names.find("a", "only2"), Found::Unknown);
        assert_eq!(names.find("b", "alias"), v4(&[2]));
        assert_eq!(names.find("b", "web.n1-net"), v4(&[2]));
        assert_eq!(names.reverse("b", [10, 0, 0, 2].into()).as_deref(), Some("web.n1-net"));
        assert_eq!(names.reverse("c", [10, 0, 0, 2].into()), None);
        names.remove("a");
        assert_eq!(names.find("b", "web"), Found::Unknown);
        assert_eq!(names.find("gone", "db"), Found::Unknown);
    }

    #[test]
    fn a_shared_alias_goes_round() {
        let mut names = Names::default();
        names.put(sandbox("a", &[("n", &["a", "svc"], "10.0.0.2")]));
        names.put(sandbox("b", &[("n", &["b", "svc"], "10.0.0.3")]));
        let firsts: std::collections::HashSet<_> = (0..4)
            .map(|_| match names.find("a", "svc") {
                Found::Addresses(all) => {
                    assert_eq!(all.len(), 2);
                    all[0]
                }
                Found::Unknown => panic!("svc is unknown"),
            })
            .collect();
        assert_eq!(firsts.len(), 2);
    }

    #[test]
    fn a_link_is_a_name_of_the_linking_container_only() {
        let mut names = Names::default();
        let mut a = sandbox("a", &[("n", &["a"], "10.0.0.2")]);
        a.links = vec![("db".into(), "c-b".into(), "n".into())];
        names.put(a);
        names.put(sandbox("b", &[("n", &["b"], "10.0.0.3")]));
        assert_eq!(names.find("a", "db"), v4(&[3]));
        assert_eq!(names.find("b", "db"), Found::Unknown);
    }

    #[test]
    fn a_name_said_twice_is_held_once() {
        let mut names = Names::default();
        names.put(sandbox("a", &[("n", &["web", "WEB", "web"], "10.0.0.2")]));
        assert_eq!(names.find("a", "web"), v4(&[2]));
        names.put(sandbox("a", &[("n", &["other"], "10.0.0.2")]));
        assert_eq!(names.find("a", "web"), Found::Unknown);
    }
}
