//! What the API version of a create request changes about it.
//!
//! An older client gets what its engine would have given it: fields its version did not know are as if they had not been sent.

use std::collections::BTreeMap;

use docker_api::container::CreateRequest;
use docker_api::{Config, EndpointSettings, HostConfig, MacAddress, Mount};

use crate::api::ApiVersion;
use crate::error::{Error, Result};

/// A request as the newest version would have put it.
pub struct Notes {
    /// What to run.
    pub config: Option<Config>,
    /// How.
    pub host: HostConfig,
    /// The networks.
    pub endpoints: BTreeMap<String, Option<EndpointSettings>>,
    /// What the client should know.
    pub warnings: Vec<String>,
}

/// Applies the differences.
///
/// # Errors
/// The request uses what its version does not allow.
pub fn apply(request: CreateRequest, version: ApiVersion) -> Result<Notes> {
    let CreateRequest { mut config, mut host_config, networking_config, legacy_capabilities } = request;
    let mut endpoints = networking_config.endpoints_config.unwrap_or_default();
    let mut warnings = Vec::new();
    let host = &mut host_config;
    if version == ApiVersion::minor(40) && legacy_capabilities {
        return Err(Error::invalid(
            "the HostConfig.Capabilities field is not supported by this daemon; use CapAdd and CapDrop to set capabilities",
        ));
    }
    if !version.at_least(43) {
        host.annotations = None;
    }
    host.kernel_memory = 0;
    mounts(host, version)?;
    if let Some(health) = config.as_mut().and_then(|config| config.healthcheck.as_mut())
        && !version.at_least(44)
    {
        health.start_interval = 0;
    }
    if !version.at_least(44) && endpoints.len() > 1 {
        let names: Vec<&str> = endpoints.keys().map(String::as_str).collect();
        return Err(Error::invalid(format!(
            "Container cannot be created with multiple network endpoints: {}",
            names.join(", ")
        )));
    }
    if !version.at_least(48) {
        for endpoint in endpoints.values_mut().flatten() {
            endpoint.gw_priority = 0;
        }
    }
    if let Some(config) = config.as_mut() {
        mac_address(config, host, &mut endpoints, version, &mut warnings)?;
    }
    interface_sysctls(host, &mut endpoints, version, &mut warnings)?;
    if version.at_least(48)
        && !host.volume_driver.is_empty()
        && host.mounts.as_ref().is_some_and(|mounts| mounts.iter().any(|mount| mount.kind == "volume"))
    {
        warnings.push("WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'. Use '--mount type=volume,volume-driver=...' instead".into());
    }
    if version.at_least(52) {
        empty_bindings(host, &mut warnings);
    }
    Ok(Notes { config, host: host_config, endpoints, warnings })
}

fn mounts(host: &mut HostConfig, version: ApiVersion) -> Result<()> {
    for mount in host.mounts.iter_mut().flatten() {
        if version.at_least(42) {
            mismatched(mount)?;
        } else {
            drop_mismatched(mount);
        }
        let kind = mount.kind.clone();
        if let Some(bind) = mount.bind_options.as_mut().filter(|_| kind == "bind") {
            if !version.at_least(40) {
                bind.non_recursive = false;
            }
            if !version.at_least(44) {
                if bind.read_only_force_recursive {
                    return Err(Error::invalid(
                        "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer",
                    ));
                }
                bind.read_only_non_recursive = true;
            }
        } else if kind == "bind" && mount.read_only && !version.at_least(44) {
            mount.bind_options.get_or_insert_default().read_only_non_recursive = true;
        }
        let subpath = mount.volume_options.as_ref().is_some_and(|options| !options.subpath.is_empty());
        if subpath && !version.at_least(45) {
            return Err(Error::invalid("VolumeOptions.Subpath needs API v1.45 or newer"));
        }
        if let Some(tmpfs) = mount.tmpfs_options.as_mut().filter(|_| !version.at_least(46)) {
            tmpfs.options = None;
        }
        if kind == "image" && !version.at_least(48) {
            return Err(Error::invalid("Mount type \"Image\" needs API v1.48 or newer"));
        }
    }
    Ok(())
}

fn mismatched(mount: &Mount) -> Result<()> {
    let options = [
        ("BindOptions", "bind", mount.bind_options.is_some()),
        ("VolumeOptions", "volume", mount.volume_options.is_some()),
        ("ImageOptions", "image", mount.image_options.is_some()),
        ("TmpfsOptions", "tmpfs", mount.tmpfs_options.is_some()),
        ("ClusterOptions", "cluster", mount.cluster_options.is_some()),
    ];
    match options.iter().find(|(_, kind, given)| *given && mount.kind != *kind) {
        None => Ok(()),
        Some((name, ..)) => {
            Err(Error::invalid(format!("{name} must not be specified on mount type {:?}", mount.kind)))
        }
    }
}

fn drop_mismatched(mount: &mut Mount) {
    let kind = mount.kind.as_str();
    if kind != "bind" {
        mount.bind_options = None;
    }
    if kind != "volume" {
        mount.volume_options = None;
    }
    if kind != "tmpfs" {
        mount.tmpfs_options = None;
    }
    if kind != "image" {
        mount.image_options = None;
    }
}

/// The network a container-wide setting belongs to.
fn main_network(host: &HostConfig) -> &str {
    match host.network_mode.as_str() {
        "" | "default" => "bridge",
        mode => mode,
    }
}

fn mac_address(
    config: &mut Config,
    host: &HostConfig,
    endpoints: &mut BTreeMap<String, Option<EndpointSettings>>,
    version: ApiVersion,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if version.at_least(52) {
        config.mac_address.clear();
        return Ok(());
    }
    if !version.at_least(44) {
        for endpoint in endpoints.values_mut().flatten() {
            endpoint.mac_address = MacAddress(None);
        }
    }
    if config.mac_address.is_empty() {
        return Ok(());
    }
    let network = main_network(host);
    if network == "host" || network.starts_with("container:") {
        return Err(Error::invalid("conflicting options: mac-address and the network mode"));
    }
    let wanted: MacAddress = config
        .mac_address
        .parse()
        .map_err(|_| Error::invalid(format!("invalid MAC address: {}", config.mac_address)))?;
    if version.at_least(44) {
        warnings.push("The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead.".into());
    }
    let endpoint = endpoints.entry(network.to_owned()).or_insert_with(|| Some(EndpointSettings::default()));
    if let Some(endpoint) = endpoint {
        if !endpoint.mac_address.is_none() && endpoint.mac_address != wanted {
            return Err(Error::invalid(
                "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty",
            ));
        }
        endpoint.mac_address = wanted;
    }
    config.mac_address.clear();
    Ok(())
}

/// The driver option that has an endpoint's settings.
const SYSCTLS: &str = "com.docker.network.endpoint.sysctls";

/// Settings of `ethN`: an interface's name is not known before the network is. Older clients' are moved to the endpoint.
fn interface_sysctls(
    host: &mut HostConfig,
    endpoints: &mut BTreeMap<String, Option<EndpointSettings>>,
    version: ApiVersion,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let Some(sysctls) = &mut host.sysctls else { return Ok(()) };
    let of_interface: Vec<(String, String)> = sysctls
        .iter()
        .filter(|(name, _)| {
            let parts: Vec<&str> = name.split('.').collect();
            matches!(parts.as_slice(), ["net", "ipv4" | "ipv6" | "mpls", "conf" | "neigh", link, ..]
                if link.strip_prefix("eth").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())))
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let Some((first, _)) = of_interface.first() else { return Ok(()) };
    let movable = of_interface.iter().all(|(name, _)| name.contains(".eth0."));
    if version.at_least(48) || !movable {
        return Err(Error::invalid(format!(
            "interface specific sysctl setting {first:?} must be supplied using driver option '{SYSCTLS}'"
        )));
    }
    for (name, _) in &of_interface {
        sysctls.remove(name);
    }
    let mut moved: Vec<String> = Vec::new();
    for (name, value) in &of_interface {
        moved.push(format!("{}={value}", name.replacen(".eth0.", ".IFNAME.", 1)));
    }
    let names: Vec<String> = of_interface.iter().map(|(name, _)| format!("{name:?}")).collect();
    let text = moved.join(",");
    warnings.push(format!("Migrated sysctl {} to DriverOpts{{{SYSCTLS:?}:{text:?}}}.", names.join(",")));
    let network = match host.network_mode.as_str() {
        "" | "default" => "bridge".to_owned(),
        mode => mode.to_owned(),
    };
    let endpoint = endpoints.entry(network).or_insert_with(|| Some(EndpointSettings::default()));
    if let Some(endpoint) = endpoint {
        let options = endpoint.driver_opts.get_or_insert_default();
        let all = options.get(SYSCTLS).map_or(text.clone(), |before| format!("{before},{text}"));
        options.insert(SYSCTLS.into(), all);
    }
    Ok(())
}

fn empty_bindings(host: &HostConfig, warnings: &mut Vec<String>) {
    let empty: Vec<String> = host
        .port_bindings
        .iter()
        .flatten()
        .filter(|(_, bindings)| bindings.as_ref().is_none_or(Vec::is_empty))
        .map(|(port, _)| port.to_string())
        .collect();
    if !empty.is_empty() {
        warnings.push(format!(
            "Following container port(s) have an empty list of port-bindings: {}. Such bindings will be discarded in a future version.",
            empty.join(", ")
        ));
    }
}
