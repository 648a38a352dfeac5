//! `inspect`, of anything.

use serde_json::Value;

use super::{Command, Done, Env, Failure, MANY, runner};
use crate::client::{Error, segment};
use crate::flags::{Flag, on, one};
use crate::fmt::template::Template;

/// `--format`.
pub const FORMAT: Flag = one(Some('f'), "format", "string", "Format output using a custom template");

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["inspect"],
        usage: "[OPTIONS] NAME|ID [NAME|ID...]",
        about: "Return low-level information on Docker objects",
        flags: &[&[
            FORMAT,
            on(Some('s'), "size", "Display total file sizes if the type is container"),
            one(None, "type", "string", "Only inspect objects of the given type"),
        ]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(any),
    },
    Command {
        names: &["container inspect"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Display detailed information on one or more containers",
        flags: &[&[FORMAT, on(Some('s'), "size", "Display total file sizes")]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(container),
    },
    Command {
        names: &["image inspect"],
        usage: "[OPTIONS] IMAGE [IMAGE...]",
        about: "Display detailed information on one or more images",
        flags: &[&[
            FORMAT,
            one(None, "platform", "string", "Inspect a specific platform of the multi-platform image"),
        ]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(image),
    },
    Command {
        names: &["network inspect"],
        usage: "[OPTIONS] NETWORK [NETWORK...]",
        about: "Display detailed information on one or more networks",
        flags: &[&[FORMAT, on(Some('v'), "verbose", "Verbose output for diagnostics")]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(network),
    },
    Command {
        names: &["volume inspect"],
        usage: "[OPTIONS] VOLUME [VOLUME...]",
        about: "Display detailed information on one or more volumes",
        flags: &[&[FORMAT]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(volume),
    },
];

/// Kinds of objects, in the order in which a name is looked up.
const KINDS: &[&str] = &["container", "image", "network", "volume"];

fn path(env: &Env, kind: &str, name: &str) -> String {
    let name = segment(name);
    match kind {
        "container" if env.parsed.on("size") => format!("/containers/{name}/json?size=1"),
        "container" => format!("/containers/{name}/json"),
        "image" => match env.parsed.last("platform") {
            Some(platform) => format!("/images/{name}/json?platform={}", crate::client::escape(platform)),
            None => format!("/images/{name}/json"),
        },
        "network" => format!("/networks/{name}"),
        _ => format!("/volumes/{name}"),
    }
}

async fn any(env: &Env) -> Done {
    match env.parsed.last("type") {
        None | Some("") => inspect(env, KINDS, true).await,
        Some(kind) if KINDS.contains(&kind) => inspect(env, &[kind], false).await,
        Some(kind) => Err(Failure::new(format!(
            "unknown type: {kind:?}: must be one of \"config\", \"container\", \"image\", \"network\", \"node\", \"plugin\", \"secret\", \"service\", \"task\", \"volume\""
        ))),
    }
}

async fn container(env: &Env) -> Done {
    inspect(env, &["container"], false).await
}

async fn image(env: &Env) -> Done {
    inspect(env, &["image"], false).await
}

async fn network(env: &Env) -> Done {
    inspect(env, &["network"], false).await
}

async fn volume(env: &Env) -> Done {
    inspect(env, &["volume"], false).await
}

async fn inspect(env: &Env, kinds: &[&str], guess: bool) -> Done {
    let format = env.parsed.text("format");
    let template = match format {
        "" | "json" => None,
        text => Some(Template::parse(text).map_err(Failure::new)?),
    };
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for name in env.args() {
        match lookup(env, kinds, name, guess).await {
            Ok(value) => found.push(value),
            Err(failure) => failures.push(failure.text),
        }
    }
    match (&template, format) {
        (Some(template), _) => {
            for value in &found {
                println!("{}", template.render(value).map_err(Failure::new)?);
            }
        }
        (None, "json") => println!("{}", Value::Array(found)),
        (None, _) => println!("{}", pretty(&Value::Array(found))),
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(failures.join("\n"))) }
}

async fn lookup(env: &Env, kinds: &[&str], name: &str, guess: bool) -> Result<Value, Failure> {
    for kind in kinds {
        match env.client.get(&path(env, kind, name)).await {
            Ok(value) => return Ok(value),
            Err(Error::Engine(status, _)) if guess && status.as_u16() == 404 => {}
            Err(err) => return Err(err.into()),
        }
    }
    Err(Failure::new(format!("Error: No such object: {name}")))
}

/// Four spaces a level, `[]` and `{}` where they are empty: Go's `MarshalIndent`.
pub fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    match serde::Serialize::serialize(value, &mut serializer) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(err) => err.to_string(),
    }
}
