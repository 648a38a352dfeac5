//! `-info`: what this runtime is and can, for containerd's introspection.

use std::collections::HashMap;
use std::error::Error;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use prost::Message;
use shim_api::types::{RuntimeInfo, RuntimeVersion};

/// The annotation by which a client recognises the native stdio mode.
pub const STDIO_ANNOTATION: &str = "io.dockerd-rs.shim.stdio";

/// Reads the runtime options (an `Any`) and writes a `RuntimeInfo`.
pub fn answer(mut input: impl Read, mut output: impl Write) -> Result<(), Box<dyn Error>> {
    let mut request = Vec::new();
    input.by_ref().take(4 << 20).read_to_end(&mut request)?;
    let options = match request.is_empty() {
        true => None,
        false => Some(prost_types::Any::decode(request.as_slice())?),
    };
    let binary = crate::task::runc_options(options.as_ref()).binary_name;
    let features = runtime_features(if binary.is_empty() { "runc" } else { &binary });
    let info = RuntimeInfo {
        name: "io.containerd.rs.v2".into(),
        version: Some(RuntimeVersion { version: crate::VERSION.into(), revision: String::new() }),
        options,
        features,
        annotations: HashMap::from([(STDIO_ANNOTATION.to_owned(), "1".to_owned())]).into_iter().collect(),
    };
    output.write_all(&info.encode_to_vec())?;
    output.flush()?;
    Ok(())
}

/// What the runtime's `features` command prints; runtimes without it say nothing.
fn runtime_features(binary: &str) -> Option<prost_types::Any> {
    let output =
        Command::new(binary).arg("features").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    if !output.status.success() || serde_json::from_slice::<serde::de::IgnoredAny>(&output.stdout).is_err() {
        return None;
    }
    Some(prost_types::Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".into(),
        value: output.stdout,
    })
}
