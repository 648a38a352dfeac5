//! The files a container finds its names by.

use std::net::IpAddr;
use std::path::PathBuf;

use super::plan::has_resolver;
use super::{FAILED, Files};
use crate::error::{Error, Result};
use crate::network::Inner;
use crate::network::files::{self, HostResolver, Resolver, Style};
use crate::network::model::Place;
use crate::network::spec::used_pools;

impl Inner {
    pub(super) fn resolver<'a>(&'a self, host: &'a HostResolver, place: &'a Place) -> Resolver<'a> {
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

    pub(super) fn rewrite_resolv_conf(&self, place: &Place) {
        let host = HostResolver::read();
        let text = files::resolv_conf(self.style(place), &self.resolver(&host, place));
        let path = place.naming.dir.join("resolv.conf");
        if let Err(err) = files::write_resolv_conf(&path, &text) {
            tracing::warn!(container = place.container, error = %err, "cannot write resolv.conf");
        }
    }

    pub(super) fn write_files(&self, place: &Place) -> Result<Files> {
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
        Ok(files)
    }

    /// The container's own lines in its hosts file: of one network, or of all.
    pub(super) fn own_hosts(&self, place: &Place, network: Option<&str>) -> Vec<String> {
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
}

fn link_names(alias: &str, other: &Place) -> String {
    let short = other.container.get(..12).unwrap_or(&other.container);
    let mut names = vec![alias, short];
    if other.name != alias {
        names.push(&other.name);
    }
    names.join(" ")
}
