//! What a container may do: capabilities, system calls, devices, paths it does not see.

use std::path::Path;

use docker_api::host_config::{DeviceMapping, DeviceRequest};
use spec::model::{Capabilities, DeviceRule, Spec};
use spec::{caps, devices, seccomp};

use super::World;
use crate::container::record::Record;
use crate::container::security::{Seccomp, SecurityOptions};
use crate::error::{Error, Result, sys_text};

pub(super) fn apply(spec: &mut Spec, record: &Record, world: &World) -> Result<()> {
    let host = &record.host_config;
    let options = SecurityOptions::parse(host.security_opt.as_deref().unwrap_or_default())?;
    let named = |names: &Option<Vec<String>>, what: &str| {
        caps::normalize(names.as_deref().unwrap_or_default())
            .map_err(|err| Error::invalid(format!("invalid {what}: {err}")))
    };
    let (add, drop) = (named(&host.cap_add, "CapAdd")?, named(&host.cap_drop, "CapDrop")?);
    let set = caps::tweak(&world.capabilities, &add, &drop, host.privileged);
    spec.linux.seccomp = filter(&options.seccomp, &world.seccomp_profile, host.privileged, &set)?;
    spec.process.capabilities = Some(Capabilities {
        bounding: set.clone(),
        effective: set.clone(),
        permitted: set,
        ..Capabilities::default()
    });
    spec.process.no_new_privileges = options.no_new_privileges.unwrap_or(world.no_new_privileges);
    if !host.privileged {
        spec.linux.masked_paths = host.masked_paths.clone().unwrap_or_default();
        spec.linux.readonly_paths = host.readonly_paths.clone().unwrap_or_default();
    }
    add_devices(spec, record)
}

fn filter(
    wanted: &Seccomp,
    engine_profile: &str,
    privileged: bool,
    capabilities: &[String],
) -> Result<Option<spec::model::Seccomp>> {
    if !Path::new("/proc/sys/kernel/seccomp").exists() {
        return match wanted {
            Seccomp::Default | Seccomp::Unconfined => Ok(None),
            Seccomp::Profile(_) => Err(Error::system(
                "seccomp is not enabled in your kernel, cannot run a custom seccomp profile",
            )),
        };
    }
    let parse = |text: &str| {
        seccomp::parse(text).map_err(|err| Error::invalid(format!("Decoding seccomp profile failed: {err}")))
    };
    let profile = match wanted {
        Seccomp::Unconfined => return Ok(None),
        // A profile the user gave holds for a privileged container too.
        Seccomp::Default if privileged || engine_profile == "unconfined" => return Ok(None),
        Seccomp::Default if matches!(engine_profile, "" | "builtin") => seccomp::default(),
        Seccomp::Default => {
            let text = std::fs::read_to_string(engine_profile).map_err(|err| {
                Error::system(format!(
                    "opening seccomp profile ({engine_profile}) failed: {}",
                    sys_text(&err)
                ))
            })?;
            parse(&text)?
        }
        Seccomp::Profile(text) => parse(text)?,
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let target =
        seccomp::Target { arch: seccomp::machine(), capabilities, kernel: seccomp::kernel(release.trim()) };
    Ok(seccomp::resolve(&profile, &target))
}

/// `--gpus` and CDI names: no driver for either is part of this engine, so a container that asks for one does not start without it.
fn refuse_requests(requests: &[DeviceRequest]) -> Result<()> {
    let Some(request) = requests.first() else { return Ok(()) };
    if request.driver == "cdi" {
        let names = request.device_ids.as_deref().unwrap_or_default().join(", ");
        return Err(Error::system(format!("CDI device injection failed: unresolvable CDI devices {names}")));
    }
    let sets = request.capabilities.iter().flatten().map(|set| format!("[{}]", set.join(" ")));
    Err(Error::system(format!(
        "could not select device driver {} with capabilities: [{}]",
        crate::api::params::quote(&request.driver),
        sets.collect::<Vec<_>>().join(" ")
    )))
}

fn add_devices(spec: &mut Spec, record: &Record) -> Result<()> {
    let host = &record.host_config;
    refuse_requests(host.device_requests.as_deref().unwrap_or_default())?;
    let mut rules = devices::default_rules();
    if host.privileged {
        rules = vec![devices::allow_all()];
        spec.linux.devices = devices::nodes_below(Path::new("/dev"), "/dev");
    }
    for mapping in host.devices.iter().flatten() {
        add_mapping(spec, &mut rules, mapping, host.privileged)?;
    }
    if !host.privileged {
        for text in host.device_cgroup_rules.iter().flatten() {
            let rule = devices::parse_rule(text)
                .ok_or_else(|| Error::invalid(format!("invalid device cgroup rule format: '{text}'")))?;
            rules.push(rule);
        }
    }
    spec.linux.resources.devices = rules;
    Ok(())
}

fn add_mapping(
    spec: &mut Spec,
    rules: &mut Vec<DeviceRule>,
    mapping: &DeviceMapping,
    privileged: bool,
) -> Result<()> {
    let failed = |text: String| {
        Error::system(format!(
            "error gathering device information while adding custom device {:?}: {text}",
            mapping.path_on_host
        ))
    };
    let access = if mapping.cgroup_permissions.is_empty() { "rwm" } else { &mapping.cgroup_permissions };
    let inside =
        if mapping.path_in_container.is_empty() { &mapping.path_on_host } else { &mapping.path_in_container };
    // Symbolic links such as those below /dev/disk are followed.
    let path = Path::new(&mapping.path_on_host);
    let nodes = match devices::node(path, inside) {
        Ok(Some(node)) => vec![node],
        Ok(None) if path.is_dir() => devices::nodes_below(path, inside),
        Ok(None) => return Err(failed("not a device node".into())),
        Err(err) => return Err(failed(sys_text(&err))),
    };
    if nodes.is_empty() {
        return Err(failed("not a device node".into()));
    }
    for node in nodes {
        if !privileged {
            rules.push(devices::rule_for(&node, access));
        }
        spec.linux.devices.retain(|other| other.path != node.path);
        spec.linux.devices.push(node);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_requests_are_refused_by_name() {
        let gpus = DeviceRequest {
            count: -1,
            capabilities: Some(vec![vec!["gpu".into(), "utility".into()], vec!["tpu".into()]]),
            ..DeviceRequest::default()
        };
        let named = DeviceRequest {
            driver: "cdi".into(),
            device_ids: Some(vec!["v.example/gpu=0".into()]),
            ..DeviceRequest::default()
        };
        let text = |request| refuse_requests(&[request]).unwrap_err().message().to_owned();
        assert_eq!(
            text(gpus),
            r#"could not select device driver "" with capabilities: [[gpu utility] [tpu]]"#
        );
        assert_eq!(text(named), "CDI device injection failed: unresolvable CDI devices v.example/gpu=0");
        assert!(refuse_requests(&[]).is_ok());
    }
}
