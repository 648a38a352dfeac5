//! `ps`.

use serde_json::{Value, json};

use super::{Command, Done, Env, runner, short, text};
use crate::flags::{list, on, one};
use crate::fmt::template::List;
use crate::fmt::units;

/// The commands of this module.
pub const COMMANDS: &[Command] = &[Command {
    names: &["ps", "container ls", "container list", "container ps"],
    usage: "[OPTIONS]",
    about: "List containers",
    flags: &[&[
        on(Some('a'), "all", "Show all containers (default shows just running)"),
        list(Some('f'), "filter", "filter", "Filter output based on conditions provided"),
        one(None, "format", "string", "Format output using a custom template"),
        one(Some('n'), "last", "int", "Show n last created containers (includes all states)"),
        on(Some('l'), "latest", "Show the latest created container (includes all states)"),
        on(None, "no-trunc", "Don't truncate output"),
        on(Some('q'), "quiet", "Only display container IDs"),
        on(Some('s'), "size", "Display total file sizes"),
    ]],
    interspersed: true,
    args: (0, 0),
    run: runner!(ps),
}];

async fn ps(env: &Env) -> Done {
    let parsed = &env.parsed;
    let format = match parsed.text("format") {
        "" => env.global.config_file()?["psFormat"].as_str().unwrap_or_default().to_owned(),
        format => format.to_owned(),
    };
    let size = parsed.on("size") || format.contains(".Size");
    let limit = if parsed.on("latest") { 1 } else { parsed.int("last")?.unwrap_or(-1) };
    let mut path = format!("/containers/json?all={}&size={}", u8::from(parsed.on("all")), u8::from(size));
    if limit > 0 {
        path.push_str(&format!("&limit={limit}"));
    }
    let filters = env.filters()?;
    if !filters.is_empty() {
        path.push_str(&format!("&filters={filters}"));
    }
    let found = env.client.get(&path).await?;
    let full = parsed.on("no-trunc");
    let rows: Vec<Value> = found.as_array().into_iter().flatten().map(|row| shown(row, full)).collect();
    if parsed.on("quiet") && (format.is_empty() || format == "table") {
        rows.iter().for_each(|row| println!("{}", text(row, "ID")));
        return Ok(());
    }
    let columns: &[(&str, &str)] = &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("RunningFor", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Status", "STATUS"),
        ("State", "STATE"),
        ("Ports", "PORTS"),
        ("Names", "NAMES"),
        ("Size", "SIZE"),
        ("Labels", "LABELS"),
        ("Mounts", "MOUNTS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Networks", "NETWORKS"),
        ("Platform", "PLATFORM"),
    ];
    let fields: &[&str] = if size {
        &["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names", "Size"]
    } else {
        &["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"]
    };
    // Fields that exist only per row (`.Label "x"`) are functions in Docker; here the labels are an object beside.
    print!("{}", List { columns, shown: fields, rows }.print(&format)?);
    Ok(())
}

fn shown(row: &Value, full: bool) -> Value {
    let id = text(row, "Id");
    let mut names: Vec<&str> = row["Names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|name| name.trim_start_matches('/'))
        .collect();
    if !full {
        // Links show as OTHER/NAME; only the container's own name counts.
        names.retain(|name| !name.contains('/'));
    }
    let command = text(row, "Command");
    let command = if full { command.to_owned() } else { ellipsis(command, 20) };
    let created = row["Created"].as_i64().unwrap_or(0);
    let image = match text(row, "Image") {
        "" => "<no image>",
        // An image without a name shows as its id, short.
        image if image.starts_with("sha256:") && !full => short(image),
        image => image,
    };
    let labels = pairs(&row["Labels"]);
    let mounts: Vec<String> = row["Mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|mount| {
            let name = match text(mount, "Name") {
                "" => text(mount, "Source"),
                name => name,
            };
            if full { name.to_owned() } else { ellipsis(name, 15) }
        })
        .collect();
    let volumes = row["Mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|mount| text(mount, "Driver") == "local")
        .count();
    let networks: Vec<&str> = row["NetworkSettings"]["Networks"]
        .as_object()
        .into_iter()
        .flat_map(|map| map.keys())
        .map(String::as_str)
        .collect();
    let writable = units::size(row["SizeRw"].as_f64().unwrap_or(0.0));
    let virtual_size = row["SizeRootFs"].as_f64().unwrap_or(0.0);
    let size = if virtual_size > 0.0 {
        format!("{writable} (virtual {})", units::size(virtual_size))
    } else {
        writable
    };
    json!({
        "Command": format!("\"{command}\""),
        "CreatedAt": local_time(created),
        "ID": if full { id } else { short(id) },
        "Image": image,
        "Labels": labels,
        "LocalVolumes": volumes.to_string(),
        "Mounts": mounts.join(","),
        "Names": names.join(","),
        "Networks": networks.join(","),
        "Platform": row["ImageManifestDescriptor"]["platform"],
        "Ports": ports(&row["Ports"]),
        "RunningFor": units::ago(created),
        "Size": size,
        "State": text(row, "State"),
        "Status": text(row, "Status"),
    })
}

/// Go's `time.Unix(t, 0).String()` in local time.
pub fn local_time(unix: i64) -> String {
    jiff::Timestamp::from_second(unix)
        .map(|at| at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string())
        .unwrap_or_default()
}

/// `a=b,c=d`
pub fn pairs(labels: &Value) -> String {
    let pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.join(",")
}

/// Cuts text longer than `most` characters and ends it in `…`.
pub fn ellipsis(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.to_owned()
    } else {
        text.chars().take(most - 1).collect::<String>() + "…"
    }
}

/// `0.0.0.0:8080->80/tcp, 443/tcp`, with neighbouring ports joined into ranges as Docker does.
fn ports(ports: &Value) -> String {
    let mut rows: Vec<(u64, u64, &str, &str)> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let number = |field: &str| port[field].as_u64().unwrap_or(0);
            (number("PrivatePort"), number("PublicPort"), text(port, "Type"), text(port, "IP"))
        })
        .collect();
    rows.sort_by(|a, b| (a.0, a.3, a.1, a.2).cmp(&(b.0, b.3, b.1, b.2)));
    let shown = |ip: &str| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let mut singles: Vec<String> = Vec::new();
    // Ranges by address and protocol: first and last private port, first public port.
    let mut groups: Vec<(String, u64, u64, u64, bool)> = Vec::new();
    for (private, public, kind, ip) in rows {
        let key = if public > 0 { format!("{}/{kind}", shown(ip)) } else { kind.to_owned() };
        if public > 0 && public != private {
            singles.push(format!("{}:{public}->{private}/{kind}", shown(ip)));
            continue;
        }
        match groups.iter_mut().find(|group| group.0 == key && group.2 + 1 == private) {
            Some(group) => group.2 = private,
            None => groups.push((key, private, private, public, public > 0)),
        }
    }
    let ranges = groups.into_iter().map(|(key, first, last, _, public)| {
        let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
        match key.rsplit_once('/') {
            Some((ip, kind)) if public => format!("{ip}:{range}->{range}/{kind}"),
            _ => format!("{range}/{key}"),
        }
    });
    ranges.chain(singles).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_joined() {
        let shown = ports(&json!([
            {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
            {"PrivatePort": 443, "Type": "tcp"},
            {"PrivatePort": 444, "Type": "tcp"},
            {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        ]));
        assert_eq!(shown, "443-444/tcp, 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp");
    }
}
