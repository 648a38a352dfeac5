//! Dependencies go in one direction: who may use whom, as docs/ARCHITECTURE.md draws it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// For each of our crates the ones of ours it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("docker-rs", &["docker-api"]),
    (
        "dockerd-rs",
        &[
            "docker-api",
            "containerd-api",
            "shim-api",
            "oci",
            "registry",
            "layer",
            "nl",
            "spec",
            "guest",
            "sys",
        ],
    ),
    ("containerd-rs", &["containerd-api", "shim-api", "ttrpc", "oci", "registry", "layer", "sys"]),
    ("shim-rs", &["shim-api", "ttrpc", "sys"]),
    ("containerd-api", &["shim-api"]),
    ("layer", &["oci", "sys"]),
    ("registry", &["oci"]),
    ("spec", &["sys"]),
    ("nl", &["sys"]),
    ("ttrpc", &[]),
    ("shim-api", &[]),
    ("oci", &[]),
    ("docker-api", &[]),
    ("guest", &[]),
    ("sys", &[]),
    ("e2e-tests", &[]),
    ("compat-clients", &[]),
];

#[test]
fn crates_use_only_what_the_design_allows() {
    let manifest = format!("{}/../Cargo.toml", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path", &manifest])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} is not in the design"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let uses = dependency["name"].as_str().expect("a name");
            if ours.contains(uses) && dependency["kind"].is_null() {
                assert!(may.contains(&uses), "{name} may not use {uses}");
            }
        }
    }
}
