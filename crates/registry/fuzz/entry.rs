//! What the fuzz target runs; `tests/fuzz.rs` runs the same for a bounded number of inputs.

use std::path::Path;

/// Any text as hosts.toml: an error, never a panic; what parses names hosts that can be put into a URL.
pub fn hosts(text: &str) {
    let Ok(mut defaults) = registry::HostsConfig::default().hosts("registry.test") else { return };
    let Some(registry) = defaults.pop() else { return };
    if let Ok(hosts) = registry::hosts::parse_hosts_toml(text, Path::new("/certs/hosts.toml"), registry) {
        for host in hosts {
            assert!(
                !host.authority.is_empty() && !host.authority.contains(['/', '@']),
                "{:?}",
                host.authority
            );
        }
    }
}
