//! A container's place in a network.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::{Addr, MacAddress, is_empty};

/// `NetworkingConfig` of the API: endpoints by network name or id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkingConfig {
    /// An endpoint that is `null` is refused later, with Docker's words.
    pub endpoints_config: Option<BTreeMap<String, Option<EndpointSettings>>>,
}

/// `EndpointSettings` of the API: what was asked for, and in answers what there is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSettings {
    /// Addresses asked for.
    #[serde(rename = "IPAMConfig")]
    pub ipam_config: Option<EndpointIpamConfig>,
    /// `container:alias` of legacy links in this network.
    #[serde(rename = "Links")]
    pub links: Option<Vec<String>>,
    /// More names in this network.
    #[serde(rename = "Aliases")]
    pub aliases: Option<Vec<String>>,
    /// Options of the driver for this endpoint.
    #[serde(rename = "DriverOpts")]
    pub driver_opts: Option<BTreeMap<String, String>>,
    /// Which endpoint gives the default gateway: the highest wins.
    #[serde(rename = "GwPriority")]
    pub gw_priority: i64,
    /// The network's id.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// The endpoint's id while the container runs.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// The IPv4 gateway.
    #[serde(rename = "Gateway")]
    pub gateway: Addr,
    /// The IPv4 address.
    #[serde(rename = "IPAddress")]
    pub ip_address: Addr,
    /// The hardware address, asked for or given.
    #[serde(rename = "MacAddress")]
    pub mac_address: MacAddress,
    /// The IPv4 prefix's length.
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: i64,
    /// The IPv6 gateway.
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: Addr,
    /// The IPv6 address.
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: Addr,
    /// The IPv6 prefix's length.
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: i64,
    /// All names by which this network's DNS knows the container.
    #[serde(rename = "DNSNames")]
    pub dns_names: Option<Vec<String>>,
}

/// Addresses asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointIpamConfig {
    /// IPv4.
    #[serde(rename = "IPv4Address", skip_serializing_if = "Addr::is_none")]
    pub ipv4_address: Addr,
    /// IPv6.
    #[serde(rename = "IPv6Address", skip_serializing_if = "Addr::is_none")]
    pub ipv6_address: Addr,
    /// Link-local addresses.
    #[serde(rename = "LinkLocalIPs", skip_serializing_if = "is_empty")]
    pub link_local_ips: Option<Vec<Addr>>,
}
