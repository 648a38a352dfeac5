//! Compiles `proto/` into Rust, without `protoc`: messages only, services are dispatched by name (see `ttrpc`).

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut files = Vec::new();
    collect(Path::new("proto"), &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, ["proto"])?;
    let mut config = prost_build::Config::new();
    // The name of a message is its `type_url` inside an Any: containerd writes it bare.
    config.enable_type_names();
    config.include_file("messages.rs");
    config.compile_fds(descriptors)?;
    Ok(())
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            into.push(path);
        }
    }
    Ok(())
}
