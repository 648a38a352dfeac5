//! `HostConfig` without its limits and network.

use std::net::IpAddr;

use docker_api::HostConfig;
use docker_api::host_config::{RestartPolicy, Ulimit};

use crate::container::mounts;
use crate::container::security::{Seccomp, SecurityOptions};
use crate::error::{Error, Result};

/// Checks how the container shall run.
///
/// # Errors
/// A refusal.
pub fn check_host(host: &HostConfig) -> Result<()> {
    if host.auto_remove && !matches!(host.restart_policy.name.as_str(), "" | "no") {
        return Err(Error::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    for entry in host.extra_hosts.iter().flatten() {
        check_extra_host(entry)?;
    }
    super::parse_host_ports(host)?;
    check_restart(&host.restart_policy)?;
    for (what, names) in [("CapAdd", &host.cap_add), ("CapDrop", &host.cap_drop)] {
        spec::caps::normalize(names.as_deref().unwrap_or_default())
            .map_err(|err| Error::invalid(format!("invalid {what}: {err}")))?;
    }
    if !matches!(host.isolation.as_str(), "" | "default") {
        let text = format!("invalid isolation ({}): linux only supports 'default'", host.isolation);
        return Err(Error::invalid(text));
    }
    if host.annotations.iter().flatten().any(|(name, _)| name.is_empty()) {
        let text = "invalid Annotations: the empty string is not permitted as an annotation key";
        return Err(Error::invalid(text));
    }
    check_namespaces(host)?;
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        let text = format!("Invalid value {}, range for oom score adj is [-1000, 1000]", host.oom_score_adj);
        return Err(Error::invalid(text));
    }
    if host.shm_size < 0 {
        return Err(Error::invalid("SHM size can not be less than 0"));
    }
    for (destination, options) in host.tmpfs.iter().flatten() {
        if !destination.starts_with('/') {
            return Err(Error::invalid(format!(
                "invalid mount path: '{destination}' mount path must be absolute"
            )));
        }
        if mounts::clean(destination) == "/" {
            return Err(Error::invalid("invalid specification: destination can't be '/'"));
        }
        mounts::tmpfs_options(options)?;
    }
    check_security(host)?;
    host.ulimits.iter().flatten().try_for_each(check_ulimit)?;
    host.sysctls.iter().flatten().try_for_each(|(name, value)| check_sysctl(host, name, value))
}

fn check_security(host: &HostConfig) -> Result<()> {
    let options = SecurityOptions::parse(host.security_opt.as_deref().unwrap_or_default())?;
    if let Seccomp::Profile(text) = &options.seccomp {
        spec::seccomp::parse(text)
            .map_err(|err| Error::invalid(format!("Decoding seccomp profile failed: {err}")))?;
    }
    Ok(())
}

fn check_extra_host(entry: &str) -> Result<()> {
    let bad = || Error::invalid(format!("bad format for add-host: {entry:?}"));
    let (name, address) = entry.split_once(['=', ':']).ok_or_else(bad)?;
    if name.is_empty() {
        return Err(bad());
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if address != "host-gateway" && bare.parse::<IpAddr>().is_err() {
        return Err(Error::invalid(format!("invalid IP address in add-host: {address:?}")));
    }
    Ok(())
}

/// Checks a restart policy; `update` does too.
///
/// # Errors
/// A refusal.
pub(in crate::container) fn check_restart(policy: &RestartPolicy) -> Result<()> {
    let refuse = |text: String| Err(Error::invalid(format!("invalid restart policy: {text}")));
    match policy.name.as_str() {
        "always" | "unless-stopped" | "no" | "" if policy.maximum_retry_count != 0 => {
            let text = if policy.maximum_retry_count < 0 {
                "maximum retry count can only be used with 'on-failure' and cannot be negative"
            } else {
                "maximum retry count can only be used with 'on-failure'"
            };
            refuse(text.into())
        }
        "on-failure" if policy.maximum_retry_count < 0 => {
            refuse("maximum retry count cannot be negative".into())
        }
        "" | "no" | "always" | "unless-stopped" | "on-failure" => Ok(()),
        other => refuse(format!(
            "unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )),
    }
}

fn check_namespaces(host: &HostConfig) -> Result<()> {
    let other = |mode: &str| mode.strip_prefix("container:").is_some_and(|id| !id.is_empty());
    if !matches!(host.ipc_mode.as_str(), "" | "none" | "private" | "shareable" | "host")
        && !other(&host.ipc_mode)
    {
        return Err(Error::invalid(format!("invalid IPC mode: {}", host.ipc_mode)));
    }
    if !matches!(host.pid_mode.as_str(), "" | "host") && !other(&host.pid_mode) {
        return Err(Error::invalid(format!("invalid PID mode: {}", host.pid_mode)));
    }
    if !matches!(host.uts_mode.as_str(), "" | "host") {
        return Err(Error::invalid(format!("invalid UTS mode: {}", host.uts_mode)));
    }
    if !matches!(host.cgroupns_mode.as_str(), "" | "private" | "host") {
        return Err(Error::invalid(format!("invalid cgroup namespace mode: {}", host.cgroupns_mode)));
    }
    Ok(())
}

#[rustfmt::skip]
const ULIMITS: &[&str] = &[
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
    "sigpending", "stack", "as",
];

fn check_ulimit(limit: &Ulimit) -> Result<()> {
    if !ULIMITS.contains(&limit.name.to_ascii_lowercase().as_str()) {
        return Err(Error::invalid(format!("invalid ulimit type: {}", limit.name)));
    }
    // -1 is no limit: the largest there is.
    if limit.soft.cast_unsigned() > limit.hard.cast_unsigned() {
        return Err(Error::invalid(format!(
            "ulimit soft limit must be less than or equal to hard limit: {} > {}",
            limit.soft, limit.hard
        )));
    }
    Ok(())
}

const IPC_SYSCTLS: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

fn check_sysctl(host: &HostConfig, name: &str, value: &str) -> Result<()> {
    if name.chars().chain(value.chars()).any(|c| c == '\0' || c == '\n') {
        return Err(Error::invalid(format!("invalid sysctl: {name:?}")));
    }
    let dotted = name.replace('/', ".");
    let own_ipc = host.ipc_mode != "host";
    let namespaced = (IPC_SYSCTLS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.")) && own_ipc
        || dotted.starts_with("net.")
        || matches!(dotted.as_str(), "kernel.domainname" | "kernel.hostname") && host.uts_mode != "host";
    if namespaced {
        return Ok(());
    }
    Err(Error::invalid(format!("sysctl {name:?} is not in a separate kernel namespace")))
}
