//! Any text as hosts.toml: an error, never a panic; what parses names hosts that can be put into a URL.
#![no_main]

use std::path::Path;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(mut defaults) = registry::HostsConfig::default().hosts("registry.test") else { return };
    let Some(registry) = defaults.pop() else { return };
    if let Ok(hosts) = registry::hosts::parse_hosts_toml(text, Path::new("/certs/hosts.toml"), registry) {
        for host in hosts {
            assert!(!host.authority.is_empty() && !host.authority.contains(['/', '@']));
        }
    }
});
