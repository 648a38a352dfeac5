//! Images that are here: `images`, `rmi`, `tag`, `load`, `save`, `import`, `history`, `image prune`.

use std::io::IsTerminal;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{Command, Done, Env, Failure, MANY, runner, short, text};
use crate::client::{self, escape, segment};
use crate::flags::{list, on, one};
use crate::fmt::template::List;
use crate::fmt::{progress, units};

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["images", "image ls", "image list"],
        usage: "[OPTIONS] [REPOSITORY[:TAG]]",
        about: "List images",
        flags: &[&[
            on(Some('a'), "all", "Show all images (default hides intermediate and dangling images)"),
            on(None, "digests", "Show digests"),
            list(Some('f'), "filter", "filter", "Filter output based on conditions provided"),
            one(None, "format", "string", "Format output using a custom template"),
            on(None, "no-trunc", "Don't truncate output"),
            on(Some('q'), "quiet", "Only show image IDs"),
        ]],
        interspersed: true,
        args: (0, 1),
        run: runner!(images),
    },
    Command {
        names: &["rmi", "image rm", "image remove"],
        usage: "[OPTIONS] IMAGE [IMAGE...]",
        about: "Remove one or more images",
        flags: &[&[
            on(Some('f'), "force", "Force removal of the image"),
            on(None, "no-prune", "Do not delete untagged parents"),
            list(None, "platform", "strings", "Remove only the given platform variant"),
        ]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(rmi),
    },
    Command {
        names: &["tag", "image tag"],
        usage: "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
        about: "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE",
        flags: &[],
        interspersed: true,
        args: (2, 2),
        run: runner!(tag),
    },
    Command {
        names: &["load", "image load"],
        usage: "[OPTIONS]",
        about: "Load an image from a tar archive or STDIN",
        flags: &[&[
            one(Some('i'), "input", "string", "Read from tar archive file, instead of STDIN"),
            list(None, "platform", "strings", "Load only the given platform(s)"),
            on(Some('q'), "quiet", "Suppress the load output"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(load),
    },
    Command {
        names: &["save", "image save"],
        usage: "[OPTIONS] IMAGE [IMAGE...]",
        about: "Save one or more images to a tar archive (streamed to STDOUT by default)",
        flags: &[&[
            one(Some('o'), "output", "string", "Write to a file, instead of STDOUT"),
            list(None, "platform", "strings", "Save only the given platform(s)"),
        ]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(save),
    },
    Command {
        names: &["import", "image import"],
        usage: "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
        about: "Import the contents from a tarball to create a filesystem image",
        flags: &[&[
            list(Some('c'), "change", "list", "Apply Dockerfile instruction to the created image"),
            one(Some('m'), "message", "string", "Set commit message for imported image"),
            one(None, "platform", "string", "Set platform if server is multi-platform capable"),
        ]],
        interspersed: true,
        args: (1, 2),
        run: runner!(import),
    },
    Command {
        names: &["history", "image history"],
        usage: "[OPTIONS] IMAGE",
        about: "Show the history of an image",
        flags: &[&[
            one(None, "format", "string", "Format output using a custom template"),
            on(Some('H'), "human", "Print sizes and dates in human readable format"),
            on(None, "no-trunc", "Don't truncate output"),
            one(None, "platform", "string", "Show history for the given platform"),
            on(Some('q'), "quiet", "Only show image IDs"),
        ]],
        interspersed: true,
        args: (1, 1),
        run: runner!(history),
    },
    Command {
        names: &["image prune"],
        usage: "[OPTIONS]",
        about: "Remove unused images",
        flags: &[&[
            on(Some('a'), "all", "Remove all unused images, not just dangling ones"),
            list(None, "filter", "filter", "Provide filter values (e.g. \"until=<timestamp>\")"),
            on(Some('f'), "force", "Do not prompt for confirmation"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(prune),
    },
];

async fn images(env: &Env) -> Done {
    let parsed = &env.parsed;
    let mut filters: Value = match env.filters()?.as_str() {
        "" => json!({}),
        escaped => {
            let decoded = percent_encoding::percent_decode_str(escaped).decode_utf8_lossy().into_owned();
            serde_json::from_str(&decoded).unwrap_or_else(|_| json!({}))
        }
    };
    if !env.arg(0).is_empty() {
        filters["reference"][env.arg(0)] = true.into();
    }
    let mut path = format!("/images/json?all={}", u8::from(parsed.on("all")));
    if filters.as_object().is_some_and(|filters| !filters.is_empty()) {
        path.push_str(&format!("&filters={}", escape(&filters.to_string())));
    }
    let found = env.client.get(&path).await?;
    let full = parsed.on("no-trunc");
    let mut rows = Vec::new();
    for image in found.as_array().into_iter().flatten() {
        rows.extend(image_rows(
            image,
            full,
            parsed.on("digests"),
            parsed.on("all") || parsed.has("filter") || !env.arg(0).is_empty(),
        ));
    }
    let format = match parsed.text("format") {
        "" => env.global.config_file()?["imagesFormat"].as_str().unwrap_or_default().to_owned(),
        format => format.to_owned(),
    };
    if parsed.on("quiet") && (format.is_empty() || format == "table") {
        rows.iter().for_each(|row| println!("{}", text(row, "ID")));
        return Ok(());
    }
    let fields: &[&str] = if parsed.on("digests") {
        &["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"]
    } else {
        &["Repository", "Tag", "ID", "CreatedSince", "Size"]
    };
    let list = List {
        columns: &[
            ("ID", "IMAGE ID"),
            ("Repository", "REPOSITORY"),
            ("Tag", "TAG"),
            ("Digest", "DIGEST"),
            ("CreatedSince", "CREATED"),
            ("CreatedAt", "CREATED AT"),
            ("Size", "SIZE"),
            ("Containers", "CONTAINERS"),
            ("SharedSize", "SHARED SIZE"),
            ("UniqueSize", "UNIQUE SIZE"),
        ],
        shown: fields,
        rows,
    };
    print!("{}", list.print(&format)?);
    Ok(())
}

/// One row a tag; an image without a tag has one row of `<none>`.
fn image_rows(image: &Value, full: bool, digests: bool, _all: bool) -> Vec<Value> {
    let strings = |field: &str| -> Vec<String> {
        let list = image[field].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).filter(|text| !text.contains("<none>")).map(str::to_owned).collect()
    };
    let (tags, refs) = (strings("RepoTags"), strings("RepoDigests"));
    let digest_of = |repository: &str| {
        refs.iter().find_map(|text| {
            text.split_once('@').filter(|(name, _)| *name == repository).map(|(_, digest)| digest)
        })
    };
    let id = text(image, "Id");
    let created = image["Created"].as_i64().unwrap_or(0);
    let row = |repository: &str, tag: &str, digest: &str| {
        json!({
            "Containers": "N/A",
            "CreatedAt": super::list::local_time(created),
            "CreatedSince": if created <= 0 { "N/A".into() } else { units::ago(created) },
            "Digest": digest,
            "ID": if full { id } else { short(id) },
            "Repository": repository,
            "SharedSize": "N/A",
            "Size": units::size(image["Size"].as_f64().unwrap_or(0.0)),
            "Tag": tag,
            "UniqueSize": "N/A",
        })
    };
    if tags.is_empty() {
        let repository =
            refs.first().and_then(|text| text.split_once('@')).map_or("<none>", |(name, _)| name);
        let digest = digest_of(repository).filter(|_| digests).unwrap_or("<none>");
        return vec![row(repository, "<none>", digest)];
    }
    tags.iter()
        .map(|name| {
            let (repository, tag) = super::registry::split(name);
            row(&repository, &tag, digest_of(&repository).unwrap_or("<none>"))
        })
        .collect()
}

async fn rmi(env: &Env) -> Done {
    let mut query =
        format!("force={}&noprune={}", u8::from(env.parsed.on("force")), u8::from(env.parsed.on("no-prune")));
    for platform in env.parsed.all("platform") {
        query.push_str(&format!("&platforms={}", escape(&platform_json(platform))));
    }
    let mut failures = Vec::new();
    for name in env.args() {
        match env.client.delete(&format!("/images/{}?{query}", segment(name))).await {
            Ok(answer) => {
                for item in answer.as_array().into_iter().flatten() {
                    if let Some(deleted) = item["Deleted"].as_str() {
                        println!("Deleted: {deleted}");
                    } else {
                        println!("Untagged: {}", text(item, "Untagged"));
                    }
                }
            }
            Err(err) => failures.push(err.to_string()),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(failures.join("\n"))) }
}

/// `os/arch[/variant]` as the JSON the API takes.
fn platform_json(text: &str) -> String {
    let mut parts = text.split('/');
    let mut platform =
        json!({"os": parts.next().unwrap_or_default(), "architecture": parts.next().unwrap_or_default()});
    if let Some(variant) = parts.next() {
        platform["variant"] = variant.into();
    }
    platform.to_string()
}

async fn tag(env: &Env) -> Done {
    let (repo, tag) = super::registry::split(env.arg(1));
    if repo.chars().any(|c| c.is_ascii_uppercase()) {
        let shown = if repo.contains('/') { repo } else { format!("library/{repo}") };
        return Err(Failure::new(format!(
            "Error parsing reference: {:?} is not a valid repository/tag: invalid reference format: repository name ({shown}) must be lowercase",
            env.arg(1)
        )));
    }
    let path = format!("/images/{}/tag?repo={}&tag={}", segment(env.arg(0)), escape(&repo), escape(&tag));
    env.client.post(&path, None).await?;
    Ok(())
}

async fn load(env: &Env) -> Done {
    let body = match env.parsed.last("input") {
        Some(path) => {
            let file = tokio::fs::File::open(path)
                .await
                .map_err(|err| Failure::new(format!("open {path}: {}", super::create::os_text(&err))))?;
            client::streamed(file)
        }
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::new("requested load from stdin, but stdin is empty"));
        }
        None => client::streamed(tokio::io::stdin()),
    };
    let quiet = env.parsed.on("quiet") || !std::io::stdout().is_terminal();
    let mut path = format!("/images/load?quiet={}", u8::from(quiet));
    for platform in env.parsed.all("platform") {
        path.push_str(&format!("&platform={}", escape(&platform_json(platform))));
    }
    let response =
        env.client.open(http::Method::POST, &path, &[("Content-Type", "application/x-tar")], body).await?;
    progress::show(response.into_body(), false).await.map_err(Failure::new)?;
    Ok(())
}

/// Copies an answer's body to a file or standard output.
pub async fn download(response: http::Response<hyper::body::Incoming>, to: Option<&str>) -> Done {
    use http_body_util::BodyExt;
    let mut body = response.into_body();
    let mut out: Box<dyn tokio::io::AsyncWrite + Unpin> = match to {
        Some(path) => Box::new(tokio::fs::File::create(path).await.map_err(|err| {
            Failure::new(format!("failed to open {path}: {}", super::create::os_text(&err)))
        })?),
        None => Box::new(tokio::io::stdout()),
    };
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|err| Failure::new(err.to_string()))?.into_data() {
            out.write_all(&data).await?;
        }
    }
    out.flush().await?;
    Ok(())
}

async fn save(env: &Env) -> Done {
    let output = env.parsed.last("output");
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(Failure::new("cowardly refusing to save to a terminal. Use the -o flag or redirect"));
    }
    let mut query: Vec<String> = env.args().iter().map(|name| format!("names={}", escape(name))).collect();
    query.extend(
        env.parsed.all("platform").iter().map(|text| format!("platform={}", escape(&platform_json(text)))),
    );
    let response = env
        .client
        .open(http::Method::GET, &format!("/images/get?{}", query.join("&")), &[], client::empty())
        .await?;
    download(response, output).await
}

async fn import(env: &Env) -> Done {
    let source = env.arg(0);
    let (repo, tag) = match env.arg(1) {
        "" => (String::new(), String::new()),
        name => super::registry::split(name),
    };
    let remote = source.starts_with("http://") || source.starts_with("https://");
    let mut path = format!(
        "/images/create?fromSrc={}&repo={}&tag={}&message={}",
        if remote { escape(source) } else { "-".into() },
        escape(&repo),
        escape(&tag),
        escape(env.parsed.text("message"))
    );
    for change in env.parsed.all("change") {
        path.push_str(&format!("&changes={}", escape(change)));
    }
    if let Some(platform) = env.parsed.last("platform") {
        path.push_str(&format!("&platform={}", escape(platform)));
    }
    let body = match source {
        "-" => client::streamed(tokio::io::stdin()),
        _ if remote => client::empty(),
        path => client::streamed(
            tokio::fs::File::open(path)
                .await
                .map_err(|err| Failure::new(format!("open {path}: {}", super::create::os_text(&err))))?,
        ),
    };
    let response =
        env.client.open(http::Method::POST, &path, &[("Content-Type", "application/x-tar")], body).await?;
    progress::show(response.into_body(), false).await.map_err(Failure::new)?;
    Ok(())
}

async fn history(env: &Env) -> Done {
    let parsed = &env.parsed;
    let mut path = format!("/images/{}/history", segment(env.arg(0)));
    if let Some(platform) = parsed.last("platform") {
        path.push_str(&format!("?platform={}", escape(&platform_json(platform))));
    }
    let found = env.client.get(&path).await?;
    let (full, human) = (parsed.on("no-trunc"), parsed.on_or("human", true));
    let rows: Vec<Value> = found
        .as_array()
        .into_iter()
        .flatten()
        .map(|layer| {
            let created = layer["Created"].as_i64().unwrap_or(0);
            let by = text(layer, "CreatedBy").replace('\t', " ");
            let iso = jiff::Timestamp::from_second(created)
                .map(|at| at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z"))
                .unwrap_or_default();
            let size = layer["Size"].as_f64().unwrap_or(0.0);
            let id = text(layer, "Id");
            json!({
                "Comment": text(layer, "Comment"),
                "CreatedAt": iso,
                "CreatedBy": if full { by } else { super::list::ellipsis(&by, 45) },
                "CreatedSince": if created <= 0 { "N/A".into() } else if human { units::ago(created) } else { iso.clone() },
                "ID": if full || !id.starts_with("sha256:") { id } else { short(id) },
                "Size": if human { units::size(size) } else { format!("{size}") },
            })
        })
        .collect();
    let format = parsed.text("format");
    if parsed.on("quiet") && format.is_empty() {
        rows.iter().for_each(|row| println!("{}", text(row, "ID")));
        return Ok(());
    }
    let list = List {
        columns: &[
            ("ID", "IMAGE"),
            ("CreatedSince", "CREATED"),
            ("CreatedAt", "CREATED AT"),
            ("CreatedBy", "CREATED BY"),
            ("Size", "SIZE"),
            ("Comment", "COMMENT"),
        ],
        shown: &["ID", "CreatedSince", "CreatedBy", "Size", "Comment"],
        rows,
    };
    print!("{}", list.print(format)?);
    Ok(())
}

async fn prune(env: &Env) -> Done {
    let all = env.parsed.on("all");
    let warning = if all {
        "This will remove all images without at least one container associated to them."
    } else {
        "This will remove all dangling images."
    };
    if !super::container::confirm(env, warning)? {
        return Err(Failure::new("image prune has been cancelled"));
    }
    let mut filters: Value =
        serde_json::from_str(&percent_encoding::percent_decode_str(&env.filters()?).decode_utf8_lossy())
            .unwrap_or_else(|_| json!({}));
    filters["dangling"][if all { "false" } else { "true" }] = true.into();
    let answer =
        env.client.post(&format!("/images/prune?filters={}", escape(&filters.to_string())), None).await?;
    deleted(&answer);
    println!("Total reclaimed space: {}", units::size4(answer["SpaceReclaimed"].as_f64().unwrap_or(0.0)));
    Ok(())
}

/// Prints the images a prune removed.
pub fn deleted(answer: &Value) {
    let removed = answer["ImagesDeleted"].as_array().cloned().unwrap_or_default();
    if !removed.is_empty() {
        println!("Deleted Images:");
        for item in &removed {
            match item["Untagged"].as_str() {
                Some(name) => println!("untagged: {name}"),
                None => println!("deleted: {}", text(item, "Deleted")),
            }
        }
        println!();
    }
}
