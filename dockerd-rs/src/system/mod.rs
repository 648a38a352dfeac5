//! The engine about itself and its machine: version, information, disk usage, logins.

pub mod df;
mod host;
mod info;
mod login;
pub mod metrics;
mod runtimes;
mod version;

use std::collections::BTreeMap;

pub use self::host::hostname;
pub use self::info::info;
pub use self::login::login;
pub use self::runtimes::Programs;
pub use self::version::version;
use crate::engine::Engine;

/// Looks at the machine once at the start, and says in the log what is missing.
pub async fn check(engine: &Engine) {
    let programs = engine.programs.look(&engine.config.live()).await;
    for (name, found) in programs.iter() {
        if let Err(why) = &found.version {
            tracing::error!(
                runtime = name,
                path = found.path,
                error = why,
                "containers of this runtime cannot start"
            );
        }
    }
    match engine.runtime.containerd_version().await {
        Ok((version, revision)) => tracing::info!(version, revision, "containerd answers"),
        Err(err) => tracing::error!(error = %err, "containerd does not answer"),
    }
}

/// The attributes of a `reload` event.
pub fn reload_attributes(engine: &Engine) -> BTreeMap<String, String> {
    let live = engine.config.live();
    let list = |items: &[String]| serde_json::to_string(items).unwrap_or_default();
    let runtimes: Vec<String> =
        live.runtimes.iter().map(|(name, entry)| format!("{name}:{}", entry.path)).collect();
    BTreeMap::from([
        ("name".into(), host::hostname()),
        ("debug".into(), live.debug.to_string()),
        ("labels".into(), list(&live.labels)),
        ("insecure-registries".into(), list(&live.insecure_registries)),
        ("registry-mirrors".into(), list(&live.registry_mirrors)),
        ("default-runtime".into(), live.default_runtime.clone()),
        ("runtimes".into(), runtimes.join(" ")),
        ("authorization-plugins".into(), list(&live.authorization_plugins)),
        ("live-restore".into(), "true".into()),
        ("max-concurrent-downloads".into(), live.max_concurrent_downloads.to_string()),
        ("max-concurrent-uploads".into(), live.max_concurrent_uploads.to_string()),
        ("max-download-attempts".into(), live.max_download_attempts.to_string()),
        ("shutdown-timeout".into(), live.shutdown_timeout_secs.to_string()),
    ])
}
