//! What surrounds a container while it runs: its network, its mounts, the specification its task is made from.
//!
//! The one place where a container's life meets the network controller, the volumes and the specification's builder.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_api::types::Mount;
use prost_types::Any;
use serde_json::Value;

use super::start::OWNER_LABEL;
use super::{Container, Record, links, rootfs, spec};
use crate::engine::Engine;
use crate::error::{Error, Result};

/// The runtime every container gets unless it asks for another.
const RUNTIME: &str = "io.containerd.rs.v2";

/// What a start needs.
pub struct World {
    /// The runtime specification as JSON.
    pub spec: Vec<u8>,
    /// The root file system.
    pub rootfs: Vec<Mount>,
    /// containerd's labels of the container.
    pub labels: HashMap<String, String>,
}

/// Joins the networks, readies the mounts and builds the specification. What was made is taken down by [`leave_networks`] and [`unmount`], also
/// after a failure.
///
/// # Errors
/// Something is not there, or cannot be made.
pub async fn prepare(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<World> {
    let record = container.record();
    let (joined, rootfs) =
        tokio::join!(crate::network::legacy::join(engine, &record), rootfs_of(engine, &record));
    let ((sandbox, link_env), rootfs) = (joined?, rootfs?);
    let network = spec::NetworkPlace {
        namespace: sandbox.namespace_path(),
        resolv_conf: Some(sandbox.files.resolv_conf),
        hostname: Some(sandbox.files.hostname),
        hosts: Some(sandbox.files.hosts),
        link_env,
    };
    let spec = spec::prepare(engine, container, network).await?;
    let labels = HashMap::from([(OWNER_LABEL.to_owned(), owner(engine))]);
    Ok(World { spec, rootfs, labels })
}

async fn rootfs_of(engine: &Arc<Engine>, record: &Record) -> Result<Vec<Mount>> {
    engine.images.rootfs_mounts(&record.snapshot).await
}

/// How this engine marks what is its own in a containerd that others may use too.
pub fn owner(engine: &Arc<Engine>) -> String {
    engine.config.data_root.display().to_string()
}

/// Takes the container out of its networks; what is not there is no error.
pub async fn leave_networks(engine: &Arc<Engine>, container: &Arc<Container>) {
    if let Err(err) = engine.networks.release(&container.id).await {
        tracing::warn!(container = container.id, error = %err, "cannot take the container out of its networks");
    }
}

/// Lets go of what [`prepare`] mounted.
pub async fn unmount(engine: &Arc<Engine>, container: &Arc<Container>) {
    spec::release_sources(engine, &container.record()).await;
}

/// The container is removed: its endpoints go.
///
/// # Errors
/// The network controller cannot write its records.
pub async fn forget(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<()> {
    engine.networks.release(&container.id).await
}

/// The container is gone: with `remove`, its anonymous volumes go too, unless others use them.
pub async fn release_volumes(engine: &Arc<Engine>, record: &Record, remove: bool) {
    if !remove {
        return;
    }
    for mount in record.mounts.values() {
        if let super::mounts::Source::Volume { name, anonymous: true, .. } = &mount.source
            && let Err(err) = engine.volumes.remove(name, false).await
        {
            tracing::debug!(volume = name, error = %err, "remove an anonymous volume");
        }
    }
}

/// `DELETE /containers/{container}/{alias}?link=1`: the name goes, the container stays.
///
/// # Errors
/// There is no such link.
pub async fn remove_link(engine: &Arc<Engine>, name: &str) -> Result<()> {
    let missing = || Error::not_found(format!("No such container: {name}"));
    let name_only = name.trim_start_matches('/');
    let (owner, alias) = name_only.rsplit_once('/').ok_or_else(missing)?;
    let target = engine.containers.names.find(name_only).ok_or_else(missing)?;
    let container = engine.containers.get(owner)?;
    let alias = alias.to_owned();
    let removed = container.update(move |record| {
        let is_it = |text: &String| links::parse(text).is_ok_and(|(_, named)| named == alias);
        if let Some(links) = &mut record.host_config.links {
            links.retain(|text| !is_it(text));
        }
        Ok(())
    });
    removed.await?;
    engine.containers.names.free(name_only, &target);
    Ok(())
}

/// The runtime type of a container, and its options.
///
/// # Errors
/// Its runtime is not known (any more).
pub fn runtime_of(engine: &Arc<Engine>, record: &Record) -> Result<(String, Option<Any>)> {
    let live = engine.config.live();
    let asked = record.host_config.runtime.as_str();
    let name = if asked.is_empty() { live.default_runtime.as_str() } else { asked };
    let systemd = engine.config.cgroup_driver.as_deref() == Some("systemd");
    let options = |binary: String| {
        let options = shim_api::runc_options::Options {
            binary_name: binary,
            systemd_cgroup: systemd,
            ..Default::default()
        };
        containerd_api::any::pack(&options)
    };
    let Some(entry) = live.runtimes.get(name) else {
        // A shim's type or path, as `docker run --runtime io.containerd.…` has it.
        if name.starts_with("io.containerd.") || name.starts_with('/') {
            return Ok((name.to_owned(), None));
        }
        return Err(Error::invalid(format!("unknown or invalid runtime name: {name}")));
    };
    if !entry.kind.is_empty() {
        return Ok((entry.kind.clone(), None));
    }
    let binary = match entry.path.as_str() {
        "" | "runc" => String::new(),
        path if entry.args.is_empty() => path.to_owned(),
        path => wrapper(engine, name, path, &entry.args)?,
    };
    let options = (!binary.is_empty() || systemd).then(|| options(binary));
    Ok((RUNTIME.into(), options))
}

/// A runtime with arguments of its own is run through a script that adds them.
fn wrapper(engine: &Arc<Engine>, name: &str, path: &str, args: &[String]) -> Result<String> {
    let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
    let words: Vec<String> =
        std::iter::once(path).chain(args.iter().map(String::as_str)).map(quoted).collect();
    let script = format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" "));
    let directory = engine.config.exec_root.join("runtimes");
    std::fs::create_dir_all(&directory)?;
    let file = directory.join(hex::encode(name));
    if std::fs::read(&file).ok().as_deref() != Some(script.as_bytes()) {
        sys::atomicfile::write(&file, 0o700, script.as_bytes())?;
    }
    Ok(file.display().to_string())
}

/// The `process` of a runtime specification.
pub fn process_of(spec: &[u8]) -> Option<Value> {
    let mut spec: Value = serde_json::from_slice(spec).ok()?;
    spec.as_object_mut()?.remove("process")
}

/// The `user` of an exec's process.
///
/// # Errors
/// There is no such user or group.
pub async fn exec_user(engine: &Arc<Engine>, record: &Record, wanted: &str) -> Result<Value> {
    let user = rootfs::user(engine, record, wanted).await?;
    serde_json::to_value(&user).map_err(|err| Error::system(err.to_string()))
}

/// Every capability the engine can hand on.
pub fn all_capabilities() -> Vec<String> {
    spec::own_capabilities().into_iter().map(str::to_owned).collect()
}
