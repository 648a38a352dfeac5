//! Networks.

use serde_json::{Value, json};

use super::{Command, Done, Env, Failure, MANY, each, runner, short, text};
use crate::client::segment;
use crate::flags::{list, on, one};
use crate::fmt::template::List;

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["network create"],
        usage: "[OPTIONS] NETWORK",
        about: "Create a network",
        flags: &[&[
            on(None, "attachable", "Enable manual container attachment"),
            list(None, "aux-address", "map", "Auxiliary IPv4 or IPv6 addresses used by Network driver"),
            one(None, "config-from", "string", "The network from which to copy the configuration"),
            on(None, "config-only", "Create a configuration only network"),
            one(Some('d'), "driver", "string", "Driver to manage the Network"),
            list(None, "gateway", "strings", "IPv4 or IPv6 Gateway for the master subnet"),
            on(None, "ingress", "Create swarm routing-mesh network"),
            on(None, "internal", "Restrict external access to the network"),
            list(None, "ip-range", "strings", "Allocate container ip from a sub-range"),
            one(None, "ipam-driver", "string", "IP Address Management Driver"),
            list(None, "ipam-opt", "map", "Set IPAM driver specific options"),
            on(None, "ipv4", "Enable or disable IPv4 address assignment"),
            on(None, "ipv6", "Enable or disable IPv6 address assignment"),
            list(None, "label", "list", "Set metadata on a network"),
            list(Some('o'), "opt", "map", "Set driver specific options"),
            one(None, "scope", "string", "Control the network's scope"),
            list(None, "subnet", "strings", "Subnet in CIDR format that represents a network segment"),
        ]],
        interspersed: true,
        args: (1, 1),
        run: runner!(create),
    },
    Command {
        names: &["network ls", "network list"],
        usage: "[OPTIONS]",
        about: "List networks",
        flags: &[&[
            list(Some('f'), "filter", "filter", "Provide filter values (e.g. \"driver=bridge\")"),
            one(None, "format", "string", "Format output using a custom template"),
            on(None, "no-trunc", "Do not truncate the output"),
            on(Some('q'), "quiet", "Only display network IDs"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(ls),
    },
    Command {
        names: &["network rm", "network remove"],
        usage: "NETWORK [NETWORK...]",
        about: "Remove one or more networks",
        flags: &[&[on(Some('f'), "force", "Do not error if the network does not exist")]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(rm),
    },
    Command {
        names: &["network connect"],
        usage: "[OPTIONS] NETWORK CONTAINER",
        about: "Connect a container to a network",
        flags: &[&[
            list(None, "alias", "strings", "Add network-scoped alias for the container"),
            list(None, "driver-opt", "strings", "driver options for the network"),
            one(None, "gw-priority", "int", "Highest gw-priority provides the default gateway"),
            one(None, "ip", "string", "IPv4 address (e.g., \"172.30.100.104\")"),
            one(None, "ip6", "string", "IPv6 address (e.g., \"2001:db8::33\")"),
            list(None, "link", "list", "Add link to another container"),
            list(None, "link-local-ip", "strings", "Add a link-local address for the container"),
        ]],
        interspersed: true,
        args: (2, 2),
        run: runner!(connect),
    },
    Command {
        names: &["explain port"],
        usage: "PORT[/PROTO]",
        about: "Say which rules decide about a published port",
        flags: &[],
        interspersed: true,
        args: (1, 1),
        run: runner!(explain),
    },
    Command {
        names: &["network disconnect"],
        usage: "[OPTIONS] NETWORK CONTAINER",
        about: "Disconnect a container from a network",
        flags: &[&[on(Some('f'), "force", "Force the container to disconnect from a network")]],
        interspersed: true,
        args: (2, 2),
        run: runner!(disconnect),
    },
    Command {
        names: &["network prune"],
        usage: "[OPTIONS]",
        about: "Remove all unused networks",
        flags: &[&[
            list(None, "filter", "filter", "Provide filter values (e.g. \"until=<timestamp>\")"),
            on(Some('f'), "force", "Do not prompt for confirmation"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(prune),
    },
];

async fn explain(env: &Env) -> Done {
    let found = env.client.get(&format!("/explain/port/{}", segment(&env.arg(0).replace('/', "-")))).await?;
    found["Lines"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .for_each(|line| println!("{line}"));
    Ok(())
}

async fn create(env: &Env) -> Done {
    let parsed = &env.parsed;
    let mut body = json!({
        "Name": env.arg(0),
        "Driver": parsed.last("driver").unwrap_or("bridge"),
        "Scope": parsed.text("scope"),
        "Internal": parsed.on("internal"),
        "Attachable": parsed.on("attachable"),
        "Ingress": parsed.on("ingress"),
        "ConfigOnly": parsed.on("config-only"),
        "Options": super::volume::map(parsed.all("opt")),
        "Labels": super::volume::map(parsed.all("label")),
        "IPAM": {
            "Driver": parsed.last("ipam-driver").unwrap_or("default"),
            "Options": super::volume::map(parsed.all("ipam-opt")),
            "Config": ipam(env)?,
        },
    });
    if let Some(from) = parsed.last("config-from") {
        body["ConfigFrom"] = json!({"Network": from});
    }
    for (flag, field) in [("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")] {
        if parsed.has(flag) {
            body[field] = parsed.on(flag).into();
        }
    }
    let answer = env.client.post("/networks/create", Some(&body)).await?;
    if !text(&answer, "Warning").is_empty() {
        eprintln!("WARNING: {}", text(&answer, "Warning"));
    }
    println!("{}", text(&answer, "Id"));
    Ok(())
}

/// Subnets with the ranges, gateways and reserved addresses that lie inside them.
fn ipam(env: &Env) -> Result<Value, Failure> {
    let parsed = &env.parsed;
    let split = |flag: &str| -> Vec<String> {
        parsed.all(flag).iter().flat_map(|text| text.split(',')).map(str::to_owned).collect()
    };
    let subnets = split("subnet");
    if subnets.is_empty() && !(split("ip-range").is_empty() && split("gateway").is_empty()) {
        return Err(Failure::new("every ip-range or gateway must have a corresponding subnet"));
    }
    let mut configs: Vec<Value> = subnets.iter().map(|subnet| json!({"Subnet": subnet})).collect();
    let family = |text: &str| text.contains(':');
    let mut assign = |field: &str, values: Vec<String>| -> Done {
        for value in values {
            let inside = subnets.iter().position(|subnet| contains(subnet, &value)).or_else(|| {
                let same: Vec<usize> =
                    (0..subnets.len()).filter(|at| family(&subnets[*at]) == family(&value)).collect();
                (same.len() == 1).then(|| same[0])
            });
            match inside {
                Some(at) => configs[at][field] = value.into(),
                None => {
                    return Err(Failure::new(
                        format!("no matching subnet for {field} {value}").to_lowercase(),
                    ));
                }
            }
        }
        Ok(())
    };
    assign("IPRange", split("ip-range"))?;
    assign("Gateway", split("gateway"))?;
    for word in parsed.all("aux-address") {
        let (name, address) = word.split_once('=').unwrap_or((word, ""));
        let Some(at) = subnets.iter().position(|subnet| contains(subnet, address)) else {
            return Err(Failure::new(format!("no matching subnet for aux-address {address}")));
        };
        configs[at]["AuxiliaryAddresses"][name] = address.into();
    }
    Ok(Value::Array(configs))
}

/// Whether an address (or a range's first) lies in a subnet.
fn contains(subnet: &str, address: &str) -> bool {
    let Some((network, length)) = subnet.split_once('/') else { return false };
    let address = address.split('/').next().unwrap_or_default();
    let (Ok(network), Ok(address), Ok(length)) =
        (network.parse::<std::net::IpAddr>(), address.parse::<std::net::IpAddr>(), length.parse::<u32>())
    else {
        return false;
    };
    let bits = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, 32),
        std::net::IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    let ((a, width), (b, other)) = (bits(network), bits(address));
    let mask = if length == 0 { 0 } else { u128::MAX << (128 - length.min(width)) };
    width == other && a & mask == b & mask
}

async fn ls(env: &Env) -> Done {
    let found = env.client.get(&format!("/networks?filters={}", env.filters()?)).await?;
    let full = env.parsed.on("no-trunc");
    let mut rows: Vec<Value> = found
        .as_array()
        .into_iter()
        .flatten()
        .map(|network| {
            let id = text(network, "Id");
            json!({
                "CreatedAt": text(network, "Created").replace('T', " ").replace('Z', " +0000 UTC"),
                "Driver": text(network, "Driver"),
                "ID": if full { id } else { short(id) },
                "IPv4": network["EnableIPv4"].to_string(),
                "IPv6": network["EnableIPv6"].to_string(),
                "Internal": network["Internal"].to_string(),
                "Labels": super::list::pairs(&network["Labels"]),
                "Name": text(network, "Name"),
                "Scope": text(network, "Scope"),
            })
        })
        .collect();
    rows.sort_by(|a, b| text(a, "Name").cmp(text(b, "Name")));
    let format = env.parsed.text("format");
    if env.parsed.on("quiet") && format.is_empty() {
        rows.iter().for_each(|row| println!("{}", text(row, "ID")));
        return Ok(());
    }
    let list = List {
        columns: &[
            ("ID", "NETWORK ID"),
            ("Name", "NAME"),
            ("Driver", "DRIVER"),
            ("Scope", "SCOPE"),
            ("IPv4", "IPV4"),
            ("IPv6", "IPV6"),
            ("Internal", "INTERNAL"),
            ("Labels", "LABELS"),
            ("CreatedAt", "CREATED AT"),
        ],
        shown: &["ID", "Name", "Driver", "Scope"],
        rows,
    };
    print!("{}", list.print(format)?);
    Ok(())
}

async fn rm(env: &Env) -> Done {
    let force = env.parsed.on("force");
    let done = each(env.args(), |name| async move {
        match env.client.delete(&format!("/networks/{}", segment(name))).await {
            Ok(_) => Ok(name.to_owned()),
            Err(crate::client::Error::Engine(status, _)) if force && status.as_u16() == 404 => {
                Ok(String::new())
            }
            Err(err) => Err(err.into()),
        }
    });
    // Docker adds this line here and nowhere else.
    done.await.map_err(|failure| Failure::new(format!("{}\nexit status 1", failure.text)))
}

async fn connect(env: &Env) -> Done {
    let parsed = &env.parsed;
    let mut endpoint = json!({});
    if parsed.has("alias") {
        endpoint["Aliases"] = json!(parsed.all("alias"));
    }
    if parsed.has("link") {
        endpoint["Links"] = json!(parsed.all("link"));
    }
    if parsed.has("driver-opt") {
        endpoint["DriverOpts"] = super::volume::map(parsed.all("driver-opt"));
    }
    if let Some(priority) = parsed.int("gw-priority")? {
        endpoint["GwPriority"] = priority.into();
    }
    for (flag, field) in [("ip", "IPv4Address"), ("ip6", "IPv6Address")] {
        if let Some(address) = parsed.last(flag) {
            endpoint["IPAMConfig"][field] = address.into();
        }
    }
    if parsed.has("link-local-ip") {
        endpoint["IPAMConfig"]["LinkLocalIPs"] = json!(parsed.all("link-local-ip"));
    }
    let body = json!({"Container": env.arg(1), "EndpointConfig": endpoint});
    env.client.post(&format!("/networks/{}/connect", segment(env.arg(0))), Some(&body)).await?;
    Ok(())
}

async fn disconnect(env: &Env) -> Done {
    let body = json!({"Container": env.arg(1), "Force": env.parsed.on("force")});
    env.client.post(&format!("/networks/{}/disconnect", segment(env.arg(0))), Some(&body)).await?;
    Ok(())
}

async fn prune(env: &Env) -> Done {
    if !super::container::confirm(
        env,
        "This will remove all custom networks not used by at least one container.",
    )? {
        return Err(Failure::new("network prune has been cancelled"));
    }
    let answer = env.client.post(&format!("/networks/prune?filters={}", env.filters()?), None).await?;
    let names: Vec<&str> =
        answer["NetworksDeleted"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !names.is_empty() {
        println!("Deleted Networks:");
        names.iter().for_each(|name| println!("{name}"));
        println!();
    }
    Ok(())
}
