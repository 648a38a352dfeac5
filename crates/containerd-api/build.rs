//! Compiles the protocol files of `proto/` into clients, servers and a descriptor set for server reflection.
//!
//! Needs no `protoc`: the files are parsed in this process.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    let mut files = Vec::new();
    find(root, &mut files)?;
    files.sort();
    println!("cargo:rerun-if-changed=proto");

    let descriptors = protox::compile(&files, [root])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let mut config = prost_build::Config::new();
    config.enable_type_names();
    // What shims and supervisors share is one set of Rust types: an event or a mount passes through without conversion.
    config.extern_path(".containerd.events", "::shim_api::events");
    config.extern_path(".containerd.v1.types", "::shim_api::task_types");
    for shared in [
        "Mount",
        "ActiveMount",
        "ActivationInfo",
        "Descriptor",
        "Platform",
        "Metric",
        "Envelope",
        "Sandbox",
        "RuntimeRequest",
        "RuntimeVersion",
        "RuntimeInfo",
    ] {
        config.extern_path(format!(".containerd.types.{shared}"), format!("::shim_api::types::{shared}"));
    }
    // Blobs pass through these: shared buffers instead of copies.
    config.bytes([".containerd.services.content.v1", ".containerd.types.transfer.Data"]);
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .include_file("api.rs")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// Every protocol file below `dir`.
fn find(dir: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, into)?;
        } else if path.extension().is_some_and(|ext| ext == "proto") {
            into.push(path);
        }
    }
    Ok(())
}
