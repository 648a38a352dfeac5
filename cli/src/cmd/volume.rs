//! Volumes.

use serde_json::{Map, Value, json};

use super::{Command, Done, Env, Failure, MANY, each, runner, text};
use crate::client::segment;
use crate::flags::{list, on, one};
use crate::fmt::template::List;

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["volume create"],
        usage: "[OPTIONS] [VOLUME]",
        about: "Create a volume",
        flags: &[&[
            one(Some('d'), "driver", "string", "Specify volume driver name"),
            list(None, "label", "list", "Set metadata for a volume"),
            one(None, "name", "string", "Specify volume name"),
            list(Some('o'), "opt", "map", "Set driver specific options"),
        ]],
        interspersed: true,
        args: (0, 1),
        run: runner!(create),
    },
    Command {
        names: &["volume ls", "volume list"],
        usage: "[OPTIONS]",
        about: "List volumes",
        flags: &[&[
            list(Some('f'), "filter", "filter", "Provide filter values (e.g. \"dangling=true\")"),
            one(None, "format", "string", "Format output using a custom template"),
            on(Some('q'), "quiet", "Only display volume names"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(ls),
    },
    Command {
        names: &["volume rm", "volume remove"],
        usage: "[OPTIONS] VOLUME [VOLUME...]",
        about: "Remove one or more volumes",
        flags: &[&[on(Some('f'), "force", "Force the removal of one or more volumes")]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(rm),
    },
    Command {
        names: &["volume prune"],
        usage: "[OPTIONS]",
        about: "Remove unused local volumes",
        flags: &[&[
            on(Some('a'), "all", "Remove all unused volumes, not just anonymous ones"),
            list(None, "filter", "filter", "Provide filter values (e.g. \"label=<label>\")"),
            on(Some('f'), "force", "Do not prompt for confirmation"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(prune),
    },
];

/// `a=b` words as an object.
pub fn map(words: &[String]) -> Value {
    let entries = words.iter().map(|word| word.split_once('=').unwrap_or((word, "")));
    Value::Object(entries.map(|(key, value)| (key.to_owned(), value.into())).collect::<Map<_, _>>())
}

async fn create(env: &Env) -> Done {
    let parsed = &env.parsed;
    let name = match (parsed.text("name"), env.arg(0)) {
        ("", name) | (name, "") => name,
        _ => {
            return Err(Failure::new(
                "conflicting options: either specify --name or provide positional arg, not both",
            ));
        }
    };
    let body = json!({
        "Name": name,
        "Driver": parsed.last("driver").unwrap_or("local"),
        "DriverOpts": map(parsed.all("opt")),
        "Labels": map(parsed.all("label")),
    });
    println!("{}", text(&env.client.post("/volumes/create", Some(&body)).await?, "Name"));
    Ok(())
}

async fn ls(env: &Env) -> Done {
    let found = env.client.get(&format!("/volumes?filters={}", env.filters()?)).await?;
    let mut rows: Vec<Value> = found["Volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|volume| {
            json!({
                "Availability": "N/A",
                "Driver": text(volume, "Driver"),
                "Group": "N/A",
                "Labels": super::list::pairs(&volume["Labels"]),
                "Links": "N/A",
                "Mountpoint": text(volume, "Mountpoint"),
                "Name": text(volume, "Name"),
                "Scope": text(volume, "Scope"),
                "Size": "N/A",
                "Status": "N/A",
            })
        })
        .collect();
    rows.sort_by(|a, b| text(a, "Name").cmp(text(b, "Name")));
    let format = env.parsed.text("format");
    if env.parsed.on("quiet") && format.is_empty() {
        rows.iter().for_each(|row| println!("{}", text(row, "Name")));
        return Ok(());
    }
    let list = List {
        columns: &[
            ("Driver", "DRIVER"),
            ("Name", "VOLUME NAME"),
            ("Scope", "SCOPE"),
            ("Mountpoint", "MOUNTPOINT"),
            ("Labels", "LABELS"),
            ("Links", "LINKS"),
            ("Size", "SIZE"),
        ],
        shown: &["Driver", "Name"],
        rows,
    };
    print!("{}", list.print(format)?);
    Ok(())
}

async fn rm(env: &Env) -> Done {
    let force = u8::from(env.parsed.on("force"));
    each(env.args(), |name| async move {
        env.client.delete(&format!("/volumes/{}?force={force}", segment(name))).await?;
        Ok(name.to_owned())
    })
    .await
}

async fn prune(env: &Env) -> Done {
    let all = env.parsed.on("all");
    let warning = if all {
        "This will remove all local volumes not used by at least one container."
    } else {
        "This will remove anonymous local volumes not used by at least one container."
    };
    if !super::container::confirm(env, warning)? {
        return Err(Failure::new("volume prune has been cancelled"));
    }
    let mut filters: Value =
        serde_json::from_str(&percent_encoding::percent_decode_str(&env.filters()?).decode_utf8_lossy())
            .unwrap_or_else(|_| json!({}));
    if all {
        filters["all"]["true"] = true.into();
    }
    let path = format!("/volumes/prune?filters={}", crate::client::escape(&filters.to_string()));
    let answer = env.client.post(&path, None).await?;
    super::container::pruned("Deleted Volumes:", &answer["VolumesDeleted"], &answer);
    Ok(())
}
