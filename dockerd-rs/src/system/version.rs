//! `GET /version`.

use serde_json::{Value, json};

use super::host;
use crate::api::ApiVersion;
use crate::engine::Engine;

/// The commit this was built from; empty when built outside `make`.
const COMMIT: &str = match option_env!("SOURCE_REVISION") {
    Some(commit) => commit,
    None => "",
};

/// That commit's time, not the build's, so that equal sources give equal programs.
const COMMIT_TIME: &str = match option_env!("SOURCE_TIME") {
    Some(time) if !time.is_empty() => time,
    _ => "1970-01-01T00:00:00.000000000+00:00",
};

/// The answer: the engine and the programs it works with.
pub async fn version(engine: &Engine) -> Value {
    let own = env!("CARGO_PKG_VERSION");
    let (max, min) = (ApiVersion::MAX.to_string(), ApiVersion::MIN.to_string());
    let architecture = oci::Platform::host().architecture;
    let kernel = host::kernel();
    let containerd = engine.runtime.containerd_version().await;
    let (containerd_version, containerd_commit) =
        containerd.unwrap_or_else(|_| ("not available".into(), String::new()));
    let live = engine.config.live();
    let programs = engine.programs.look(&live).await;
    let runtime = programs.get(&live.default_runtime).or_else(|| programs.get("runc"));
    let (runc_version, runc_commit) = match runtime.map(|program| &program.version) {
        Some(Ok((version, commit))) => (version.clone(), commit.clone()),
        _ => ("not available".into(), String::new()),
    };
    json!({
        "Platform": { "Name": "" },
        "Version": own,
        "ApiVersion": max,
        "MinAPIVersion": min,
        "Os": "linux",
        "Arch": architecture,
        "Components": [
            {
                "Name": "Engine",
                "Version": own,
                "Details": {
                    "ApiVersion": max,
                    "Arch": architecture,
                    "BuildTime": COMMIT_TIME,
                    "Experimental": engine.config.experimental.to_string(),
                    "GitCommit": COMMIT,
                    "GoVersion": "",
                    "KernelVersion": kernel,
                    "MinAPIVersion": min,
                    "Module": "dockerd-rs",
                    "ModuleVersion": own,
                    "Os": "linux",
                },
            },
            { "Name": "containerd", "Version": containerd_version, "Details": { "GitCommit": containerd_commit } },
            { "Name": "runc", "Version": runc_version, "Details": { "GitCommit": runc_commit } },
            { "Name": "docker-init", "Version": own, "Details": { "GitCommit": "" } },
        ],
        "GitCommit": COMMIT,
        "GoVersion": "",
        "KernelVersion": kernel,
        "BuildTime": COMMIT_TIME,
    })
}
