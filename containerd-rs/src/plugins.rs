//! The parts of the daemon, described as containerd describes its plugins.
//!
//! Clients read this to learn where a snapshotter keeps its directories, what a runtime can do, and whether a part is there at all. The names
//! and dependencies are containerd's; what is listed is what this daemon has.

use containerd_api::introspection::Plugin;
use containerd_api::rpc::Status;
use containerd_api::types::Platform;

use crate::config::Config;

/// Whether a part is bound to the platform.
#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    Any,
    Host,
}

const METADATA: &str = "io.containerd.metadata.v1";
const CONTENT: &str = "io.containerd.content.v1";
const EVENT: &str = "io.containerd.event.v1";
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
const SERVICE: &str = "io.containerd.service.v1";
const GRPC: &str = "io.containerd.grpc.v1";
const WARNING: &str = "io.containerd.warning.v1";
const GC: &str = "io.containerd.gc.v1";

/// Type, id, required types, platform.
const PARTS: &[(&str, &str, &[&str], On)] = &[
    (CONTENT, "content", &[], On::Any),
    (WARNING, "deprecations", &[], On::Any),
    (EVENT, "exchange", &[], On::Any),
    (SNAPSHOTTER, "native", &[], On::Host),
    (SNAPSHOTTER, "overlayfs", &[], On::Host),
    ("io.containerd.monitor.task.v1", "cgroups", &[EVENT], On::Host),
    (METADATA, "bolt", &[CONTENT, EVENT, SNAPSHOTTER], On::Any),
    (GC, "scheduler", &[METADATA], On::Any),
    ("io.containerd.differ.v1", "walking", &[METADATA], On::Host),
    ("io.containerd.lease.v1", "manager", &[METADATA, GC], On::Any),
    (SERVICE, "containers-service", &[EVENT, METADATA], On::Any),
    (SERVICE, "content-service", &[METADATA], On::Any),
    (SERVICE, "diff-service", &["io.containerd.differ.v1"], On::Any),
    (SERVICE, "images-service", &[METADATA, GC, WARNING], On::Any),
    (SERVICE, "introspection-service", &[WARNING], On::Any),
    (SERVICE, "namespaces-service", &[EVENT, METADATA], On::Any),
    (SERVICE, "snapshots-service", &[METADATA], On::Any),
    ("io.containerd.shim.v1", "manager", &[EVENT, METADATA], On::Any),
    ("io.containerd.runtime.v2", "task", &["io.containerd.shim.v1"], On::Host),
    (
        SERVICE,
        "tasks-service",
        &[EVENT, "io.containerd.runtime.v2", METADATA, "io.containerd.monitor.task.v1"],
        On::Any,
    ),
    (GRPC, "containers", &[SERVICE], On::Any),
    (GRPC, "content", &[SERVICE], On::Any),
    (GRPC, "diff", &[SERVICE], On::Any),
    (GRPC, "events", &[EVENT], On::Any),
    (GRPC, "images", &[SERVICE], On::Any),
    (GRPC, "introspection", &[SERVICE], On::Any),
    (GRPC, "leases", &["io.containerd.lease.v1"], On::Any),
    (GRPC, "namespaces", &[SERVICE], On::Any),
    ("io.containerd.sandbox.store.v1", "local", &[METADATA], On::Any),
    ("io.containerd.sandbox.controller.v1", "shim", &["io.containerd.shim.v1", EVENT], On::Any),
    (GRPC, "sandbox-controllers", &["io.containerd.sandbox.controller.v1", EVENT], On::Any),
    (GRPC, "sandboxes", &["io.containerd.sandbox.store.v1"], On::Any),
    (GRPC, "snapshots", &[SERVICE], On::Any),
    ("io.containerd.streaming.v1", "manager", &[METADATA], On::Any),
    (GRPC, "streaming", &["io.containerd.streaming.v1"], On::Any),
    (GRPC, "tasks", &[SERVICE], On::Any),
    (
        "io.containerd.transfer.v1",
        "local",
        &[
            "io.containerd.lease.v1",
            METADATA,
            "io.containerd.differ.v1",
            "io.containerd.image-verifier.v1",
            SNAPSHOTTER,
        ],
        On::Any,
    ),
    (GRPC, "transfer", &["io.containerd.transfer.v1", "io.containerd.streaming.v1"], On::Any),
    (GRPC, "version", &[], On::Any),
    (GRPC, "healthcheck", &[], On::Any),
];

/// Everything there is, in the order it depends on each other.
pub fn list(config: &Config) -> Vec<Plugin> {
    let mut plugins: Vec<Plugin> = PARTS.iter().map(|part| describe(config, part)).collect();
    for (name, proxy) in &config.proxy_plugins {
        let kind = match proxy.kind.as_str() {
            "snapshot" => SNAPSHOTTER,
            "content" => CONTENT,
            "sandbox" => "io.containerd.sandbox.controller.v1",
            "diff" => "io.containerd.differ.v1",
            _ => continue,
        };
        let mut exports = proxy.exports.clone();
        exports.insert("address".to_owned(), proxy.address.display().to_string());
        plugins.push(Plugin {
            r#type: kind.to_owned(),
            id: name.clone(),
            exports: exports.into_iter().collect(),
            capabilities: proxy.capabilities.clone(),
            ..Plugin::default()
        });
    }
    for plugin in &mut plugins {
        let uri = format!("{}.{}", plugin.r#type, plugin.id);
        if config.disabled_plugins.contains(&uri) {
            let message = "skip plugin: disabled by configuration".to_owned();
            plugin.init_err = Some(Status { code: 2, message, details: Vec::new() });
        }
    }
    plugins
}

fn describe(config: &Config, (kind, id, requires, on): &(&str, &str, &[&str], On)) -> Plugin {
    let mut exports = std::collections::HashMap::new();
    let mut export = |key: &str, value: String| exports.insert(key.to_owned(), value);
    let root = config.plugin_root(&format!("{kind}.{id}"));
    match (*kind, *id) {
        (CONTENT, _) => {
            export("root", root.display().to_string());
        }
        (SNAPSHOTTER, _) => {
            export("root", root.display().to_string());
        }
        (METADATA, _) => {
            export("policy", "shared".to_owned());
            export("path", root.join("meta.redb").display().to_string());
        }
        (GC, _) => {
            export("MutationThreshold", "100".to_owned());
            export("ScheduleDelay", "0s".to_owned());
            export("PauseThreshold", "0.02".to_owned());
            export("DeletionThreshold", "0".to_owned());
        }
        _ => {}
    }
    Plugin {
        r#type: (*kind).to_owned(),
        id: (*id).to_owned(),
        requires: requires.iter().map(|name| (*name).to_owned()).collect(),
        platforms: match on {
            On::Any => Vec::new(),
            On::Host => vec![host_platform()],
        },
        exports,
        capabilities: Vec::new(),
        init_err: None,
    }
}

/// What this was built for, in Go's words.
pub fn host_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "aarch64" => ("arm64", "v8"),
        "x86" => ("386", ""),
        "arm" => ("arm", "v7"),
        "powerpc64" => ("ppc64le", ""),
        other => (other, ""),
    };
    Platform {
        os: std::env::consts::OS.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..Platform::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_part_requires_comes_before_it() {
        let plugins = list(&Config::default());
        for (at, plugin) in plugins.iter().enumerate() {
            for required in
                plugin.requires.iter().filter(|kind| plugins.iter().any(|plugin| plugin.r#type == **kind))
            {
                assert!(
                    plugins[..at].iter().any(|before| before.r#type == *required),
                    "{} needs {required}",
                    plugin.id
                );
            }
        }
    }
}
