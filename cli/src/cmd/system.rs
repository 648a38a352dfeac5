//! The engine itself: `version`, `info`, `events`, `system …`, and contexts.

use bytes::BytesMut;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{Command, Done, Env, Failure, MANY, runner, short, text};
use crate::client::{self, escape};
use crate::flags::{list, on, one};
use crate::fmt::template::{List, Template};
use crate::fmt::units;

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["version"],
        usage: "[OPTIONS]",
        about: "Show the Docker version information",
        flags: &[&[one(Some('f'), "format", "string", "Format output using a custom template")]],
        interspersed: true,
        args: (0, 0),
        run: runner!(version),
    },
    Command {
        names: &["info", "system info"],
        usage: "[OPTIONS]",
        about: "Display system-wide information",
        flags: &[&[one(Some('f'), "format", "string", "Format output using a custom template")]],
        interspersed: true,
        args: (0, 0),
        run: runner!(info),
    },
    Command {
        names: &["events", "system events"],
        usage: "[OPTIONS]",
        about: "Get real time events from the server",
        flags: &[&[
            list(Some('f'), "filter", "filter", "Filter output based on conditions provided"),
            one(None, "format", "string", "Format output using a custom template"),
            one(None, "since", "string", "Show all events created since timestamp"),
            one(None, "until", "string", "Stream events until this timestamp"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(events),
    },
    Command {
        names: &["system df"],
        usage: "[OPTIONS]",
        about: "Show docker disk usage",
        flags: &[&[
            one(None, "format", "string", "Format output using a custom template"),
            on(Some('v'), "verbose", "Show detailed information on space usage"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(df),
    },
    Command {
        names: &["system prune"],
        usage: "[OPTIONS]",
        about: "Remove unused data",
        flags: &[&[
            on(Some('a'), "all", "Remove all unused images not just dangling ones"),
            list(None, "filter", "filter", "Provide filter values (e.g. \"label=<key>=<value>\")"),
            on(Some('f'), "force", "Do not prompt for confirmation"),
            on(None, "volumes", "Prune anonymous volumes"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(prune),
    },
    Command {
        names: &["system dial-stdio"],
        usage: "",
        about: "Proxy the stdio stream to the daemon connection",
        flags: &[],
        interspersed: true,
        args: (0, 0),
        run: runner!(dial_stdio),
    },
    Command {
        names: &["context ls", "context list"],
        usage: "[OPTIONS]",
        about: "List contexts",
        flags: &[&[
            one(None, "format", "string", "Format output using a custom template"),
            on(Some('q'), "quiet", "Only show context names"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(context_ls),
    },
    Command {
        names: &["context show"],
        usage: "",
        about: "Print the name of the current context",
        flags: &[],
        interspersed: true,
        args: (0, 0),
        run: runner!(context_show),
    },
    Command {
        names: &["context use"],
        usage: "CONTEXT",
        about: "Set the current docker context",
        flags: &[],
        interspersed: true,
        args: (1, 1),
        run: runner!(context_use),
    },
    Command {
        names: &["context create"],
        usage: "[OPTIONS] CONTEXT",
        about: "Create a context",
        flags: &[&[
            one(None, "description", "string", "Description of the context"),
            one(None, "docker", "stringToString", "set the docker endpoint (host=…)"),
        ]],
        interspersed: true,
        args: (1, 1),
        run: runner!(context_create),
    },
    Command {
        names: &["context inspect"],
        usage: "[OPTIONS] [CONTEXT] [CONTEXT...]",
        about: "Display detailed information on one or more contexts",
        flags: &[&[super::inspect::FORMAT]],
        interspersed: true,
        args: (0, super::MANY),
        run: runner!(context_inspect),
    },
    Command {
        names: &["context rm", "context remove"],
        usage: "CONTEXT [CONTEXT...]",
        about: "Remove one or more contexts",
        flags: &[&[on(Some('f'), "force", "Force the removal of a context in use")]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(context_rm),
    },
];

fn built(time: &str) -> String {
    time.parse::<jiff::Timestamp>()
        .map(|at| at.to_zoned(jiff::tz::TimeZone::UTC).strftime("%a %b %e %H:%M:%S %Y").to_string())
        .unwrap_or_else(|_| time.to_owned())
}

async fn version(env: &Env) -> Done {
    let server = env.client.get("/version").await;
    let api = server.as_ref().map_or("1.55", |server| text(server, "ApiVersion")).to_owned();
    let client = json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": api,
        "DefaultAPIVersion": "1.55",
        "GitCommit": option_env!("SOURCE_REVISION").unwrap_or_default(),
        "GoVersion": "",
        "Os": "linux",
        "Arch": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "BuildTime": option_env!("SOURCE_TIME").unwrap_or_default(),
        "Context": env.global.current_context()?,
    });
    let format = env.parsed.text("format");
    if !format.is_empty() {
        let mut all = json!({"Client": client, "Server": server.as_ref().cloned().unwrap_or(Value::Null)});
        if format != "json" {
            // A template names the field as Go does, not as it is on the wire.
            for side in ["Client", "Server"] {
                if let Some(side) = all[side].as_object_mut()
                    && let Some(api) = side.get("ApiVersion").cloned()
                {
                    side.insert("APIVersion".into(), api);
                }
            }
        }
        println!(
            "{}",
            if format == "json" { all.to_string() } else { Template::parse(format)?.render(&all)? }
        );
        return server.map(|_| ()).map_err(Into::into);
    }
    println!("Client: docker-rs");
    let line = |name: &str, value: &str| println!(" {:<19}{value}", format!("{name}:"));
    line("Version", text(&client, "Version"));
    line("API version", &api);
    line("OS/Arch", &format!("linux/{}", text(&client, "Arch")));
    line("Context", text(&client, "Context"));
    let server = server?;
    println!("\nServer: {}", text(&server["Platform"], "Name"));
    for component in server["Components"].as_array().into_iter().flatten() {
        let details = &component["Details"];
        println!(" {}:", text(component, "Name"));
        let line = |name: &str, value: &str| {
            if !value.is_empty() {
                println!("  {:<18}{value}", format!("{name}:"));
            }
        };
        line("Version", text(component, "Version"));
        if text(component, "Name") == "Engine" {
            line(
                "API version",
                &format!(
                    "{} (minimum version {})",
                    text(details, "ApiVersion"),
                    text(details, "MinAPIVersion")
                ),
            );
            line("Go version", text(details, "GoVersion"));
            line("Git commit", text(details, "GitCommit"));
            line("Built", &built(text(details, "BuildTime")));
            line("OS/Arch", &format!("{}/{}", text(details, "Os"), text(details, "Arch")));
            line("Experimental", text(details, "Experimental"));
        } else {
            line("GitCommit", text(details, "GitCommit"));
        }
    }
    Ok(())
}

async fn info(env: &Env) -> Done {
    let info = env.client.get("/info").await?;
    let format = env.parsed.text("format");
    if !format.is_empty() {
        println!(
            "{}",
            if format == "json" { info.to_string() } else { Template::parse(format)?.render(&info)? }
        );
        return Ok(());
    }
    let mut out = String::new();
    let mut line = |depth: usize, name: &str, value: &str| {
        out.push_str(&format!("{}{name}: {value}\n", " ".repeat(depth)));
    };
    line(0, "Client", "docker-rs");
    line(1, "Version", env!("CARGO_PKG_VERSION"));
    line(1, "Context", &env.global.current_context()?);
    line(1, "Debug Mode", "false");
    line(0, "\nServer", "");
    let number = |field: &str| info[field].to_string();
    line(1, "Containers", &number("Containers"));
    line(2, "Running", &number("ContainersRunning"));
    line(2, "Paused", &number("ContainersPaused"));
    line(2, "Stopped", &number("ContainersStopped"));
    line(1, "Images", &number("Images"));
    line(1, "Server Version", text(&info, "ServerVersion"));
    line(1, "Storage Driver", text(&info, "Driver"));
    for pair in info["DriverStatus"].as_array().into_iter().flatten() {
        line(2, pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default());
    }
    line(1, "Logging Driver", text(&info, "LoggingDriver"));
    line(1, "Cgroup Driver", text(&info, "CgroupDriver"));
    line(1, "Cgroup Version", text(&info, "CgroupVersion"));
    let words = |value: &Value| -> String {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
    };
    line(1, "Plugins", "");
    for kind in ["Volume", "Network", "Log"] {
        line(2, kind, &words(&info["Plugins"][kind]));
    }
    line(1, "Swarm", text(&info["Swarm"], "LocalNodeState"));
    let runtimes: Vec<&str> =
        info["Runtimes"].as_object().into_iter().flat_map(|map| map.keys()).map(String::as_str).collect();
    line(1, "Runtimes", &runtimes.join(" "));
    line(1, "Default Runtime", text(&info, "DefaultRuntime"));
    line(1, "Init Binary", text(&info, "InitBinary"));
    for (name, field) in [("containerd", "ContainerdCommit"), ("runc", "RuncCommit"), ("init", "InitCommit")]
    {
        line(1, &format!("{name} version"), text(&info[field], "ID"));
    }
    line(1, "Security Options", "");
    for option in info["SecurityOptions"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let mut parts = option.split(',').filter_map(|part| part.split_once('='));
        if let Some((_, name)) = parts.next() {
            out.push_str(&format!("  {name}\n"));
        }
        for (key, value) in parts {
            let key = if key == "profile" { "Profile" } else { key };
            out.push_str(&format!("   {key}: {value}\n"));
        }
    }
    let mut line = |depth: usize, name: &str, value: &str| {
        out.push_str(&format!("{}{name}: {value}\n", " ".repeat(depth)));
    };
    line(1, "Kernel Version", text(&info, "KernelVersion"));
    line(1, "Operating System", text(&info, "OperatingSystem"));
    line(1, "OSType", text(&info, "OSType"));
    line(1, "Architecture", text(&info, "Architecture"));
    line(1, "CPUs", &number("NCPU"));
    line(1, "Total Memory", &units::bytes(info["MemTotal"].as_f64().unwrap_or(0.0)));
    line(1, "Name", text(&info, "Name"));
    line(1, "ID", text(&info, "ID"));
    line(1, "Docker Root Dir", text(&info, "DockerRootDir"));
    line(1, "Debug Mode", &number("Debug"));
    line(1, "Experimental", &number("ExperimentalBuild"));
    line(1, "Insecure Registries", "");
    for (name, registry) in info["RegistryConfig"]["IndexConfigs"].as_object().into_iter().flatten() {
        if registry["Secure"] == false {
            out.push_str(&format!("  {name}\n"));
        }
    }
    for net in info["RegistryConfig"]["InsecureRegistryCIDRs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        out.push_str(&format!("  {net}\n"));
    }
    out.push_str(&format!(" Live Restore Enabled: {}\n", info["LiveRestoreEnabled"]));
    if let Some(backend) = info["FirewallBackend"]["Driver"].as_str() {
        out.push_str(&format!(" Firewall Backend: {backend}\n"));
    }
    out.push('\n');
    print!("{out}");
    for warning in info["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("{warning}");
    }
    Ok(())
}

async fn events(env: &Env) -> Done {
    let parsed = &env.parsed;
    let mut query = Vec::new();
    for name in ["since", "until"] {
        let moment = super::attach::moment(parsed.text(name))?;
        if !moment.is_empty() {
            query.push(format!("{name}={}", escape(&moment)));
        }
    }
    let filters = env.filters()?;
    if !filters.is_empty() {
        query.push(format!("filters={filters}"));
    }
    let template = match parsed.text("format") {
        "" => None,
        "json" => Some(Template::parse("{{json .}}")?),
        format => Some(Template::parse(format)?),
    };
    let path = format!("/events?{}", query.join("&"));
    let mut body = env.client.open(http::Method::GET, &path, &[], client::empty()).await?.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|err| Failure::new(err.to_string()))?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            let Ok(event) = serde_json::from_slice::<Value>(&line) else { continue };
            match &template {
                Some(template) => println!("{}", template.render(&event)?),
                None => println!("{}", event_line(&event)),
            }
        }
    }
    Ok(())
}

fn event_line(event: &Value) -> String {
    let nanos = event["timeNano"].as_i64().unwrap_or(0);
    let at = jiff::Timestamp::from_nanosecond(i128::from(nanos))
        .map(|at| at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S.%9f%:z").to_string())
        .unwrap_or_default();
    // Go writes Z for UTC.
    let at = at.strip_suffix("+00:00").map_or(at.clone(), |at| format!("{at}Z"));
    let mut attributes: Vec<String> = event["Actor"]["Attributes"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    attributes.sort();
    let mut line =
        format!("{at} {} {} {}", text(event, "Type"), text(event, "Action"), text(&event["Actor"], "ID"));
    if !attributes.is_empty() {
        line.push_str(&format!(" ({})", attributes.join(", ")));
    }
    line
}

async fn df(env: &Env) -> Done {
    let usage = env.client.get("/system/df").await?;
    let list = |old: &str| usage[old].as_array().cloned().unwrap_or_default();
    let (images, containers, volumes, cache) =
        (list("Images"), list("Containers"), list("Volumes"), list("BuildCache"));
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let used = |images: &[Value]| {
        images.iter().filter(|image| image["Containers"].as_i64().unwrap_or(0) > 0).count()
    };
    let layers = number(&usage["LayersSize"]);
    let in_use: f64 = images
        .iter()
        .filter(|image| image["Containers"].as_i64().unwrap_or(0) > 0)
        .map(|image| number(&image["Size"]) - number(&image["SharedSize"]).max(0.0))
        .sum();
    let percent = |part: f64, whole: f64| {
        if whole > 0.0 { format!(" ({:.0}%)", (part / whole * 100.0).floor()) } else { String::new() }
    };
    let running = |row: &&Value| matches!(text(row, "State"), "running" | "paused" | "restarting");
    let rw: f64 = containers.iter().map(|row| number(&row["SizeRw"])).sum();
    let rw_free: f64 = containers.iter().filter(|row| !running(row)).map(|row| number(&row["SizeRw"])).sum();
    let volume_size = |row: &Value| number(&row["UsageData"]["Size"]).max(0.0);
    let volume_used = |row: &&Value| row["UsageData"]["RefCount"].as_i64().unwrap_or(0) > 0;
    let vol: f64 = volumes.iter().map(volume_size).sum();
    let vol_free: f64 = volumes.iter().filter(|row| !volume_used(row)).map(volume_size).sum();
    let built: f64 = cache.iter().map(|row| number(&row["Size"])).sum();
    let built_free: f64 =
        cache.iter().filter(|row| row["InUse"] != true).map(|row| number(&row["Size"])).sum();
    let reclaimable = (layers - in_use).max(0.0);
    let row = |kind: &str, total: usize, active: usize, size: f64, free: f64| {
        json!({
            "Active": active.to_string(),
            "Reclaimable": format!("{}{}", units::size4(free), percent(free, size)),
            "Size": units::size4(size),
            "TotalCount": total.to_string(),
            "Type": kind,
        })
    };
    let rows = vec![
        row("Images", images.len(), used(&images), layers, reclaimable),
        row("Containers", containers.len(), containers.iter().filter(running).count(), rw, rw_free),
        row("Local Volumes", volumes.len(), volumes.iter().filter(volume_used).count(), vol, vol_free),
        row(
            "Build Cache",
            cache.len(),
            cache.iter().filter(|row| row["InUse"] == true).count(),
            built,
            built_free,
        ),
    ];
    if env.parsed.on("verbose") {
        print!("{}", verbose(&images, &containers, &volumes)?);
        return Ok(());
    }
    let list = List {
        columns: &[
            ("Type", "TYPE"),
            ("TotalCount", "TOTAL"),
            ("Active", "ACTIVE"),
            ("Size", "SIZE"),
            ("Reclaimable", "RECLAIMABLE"),
        ],
        shown: &["Type", "TotalCount", "Active", "Size", "Reclaimable"],
        rows,
    };
    print!("{}", list.print(env.parsed.text("format"))?);
    Ok(())
}

fn verbose(images: &[Value], containers: &[Value], volumes: &[Value]) -> Result<String, Failure> {
    let size = |value: &Value| units::size(value.as_f64().unwrap_or(0.0).max(0.0));
    let image_rows = images.iter().map(|image| {
        let name = image["RepoTags"][0].as_str().unwrap_or("<none>");
        let (repository, tag) = super::registry::split(name);
        let shared = image["SharedSize"].as_f64().unwrap_or(0.0).max(0.0);
        let whole = image["Size"].as_f64().unwrap_or(0.0);
        json!({
            "Repository": repository,
            "Tag": if tag.is_empty() { "<none>" } else { &tag },
            "ID": short(text(image, "Id")),
            "Created": units::ago(image["Created"].as_i64().unwrap_or(0)),
            "Size": size(&image["Size"]),
            "Shared": units::size(shared),
            "Unique": units::size(whole - shared),
            "Containers": image["Containers"].as_i64().unwrap_or(0).max(0).to_string(),
        })
    });
    let images = List {
        columns: &[
            ("Repository", "REPOSITORY"),
            ("Tag", "TAG"),
            ("ID", "IMAGE ID"),
            ("Created", "CREATED"),
            ("Size", "SIZE"),
            ("Shared", "SHARED SIZE"),
            ("Unique", "UNIQUE SIZE"),
            ("Containers", "CONTAINERS"),
        ],
        shown: &["Repository", "Tag", "ID", "Created", "Size", "Shared", "Unique", "Containers"],
        rows: image_rows.collect(),
    };
    let container_rows = containers.iter().map(|row| {
        json!({
            "ID": short(text(row, "Id")),
            "Image": text(row, "Image"),
            "Command": format!("\"{}\"", super::list::ellipsis(text(row, "Command"), 20)),
            "Volumes": row["Mounts"].as_array().map_or(0, |mounts| mounts.iter().filter(|mount| text(mount, "Type") == "volume").count()).to_string(),
            "Size": size(&row["SizeRw"]),
            "Created": units::ago(row["Created"].as_i64().unwrap_or(0)),
            "Status": text(row, "Status"),
            "Names": row["Names"][0].as_str().unwrap_or_default().trim_start_matches('/'),
        })
    });
    let containers = List {
        columns: &[
            ("ID", "CONTAINER ID"),
            ("Image", "IMAGE"),
            ("Command", "COMMAND"),
            ("Volumes", "LOCAL VOLUMES"),
            ("Size", "SIZE"),
            ("Created", "CREATED"),
            ("Status", "STATUS"),
            ("Names", "NAMES"),
        ],
        shown: &["ID", "Image", "Command", "Volumes", "Size", "Created", "Status", "Names"],
        rows: container_rows.collect(),
    };
    let volume_rows = volumes.iter().map(|row| {
        json!({
            "Name": text(row, "Name"),
            "Links": row["UsageData"]["RefCount"].as_i64().unwrap_or(0).max(0).to_string(),
            "Size": size(&row["UsageData"]["Size"]),
        })
    });
    let volumes = List {
        columns: &[("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")],
        shown: &["Name", "Links", "Size"],
        rows: volume_rows.collect(),
    };
    Ok(format!(
        "Images space usage:\n\n{}\nContainers space usage:\n\n{}\nLocal Volumes space usage:\n\n{}\nBuild cache usage: 0B\n\n",
        images.print("")?,
        containers.print("")?,
        volumes.print("")?
    ))
}

async fn prune(env: &Env) -> Done {
    let (all, volumes) = (env.parsed.on("all"), env.parsed.on("volumes"));
    let mut warning = String::from(
        "This will remove:\n  - all stopped containers\n  - all networks not used by at least one container\n",
    );
    if volumes {
        warning.push_str("  - all anonymous volumes not used by at least one container\n");
    }
    warning.push_str(if all {
        "  - all images without at least one container associated to them\n"
    } else {
        "  - all dangling images\n"
    });
    warning.push_str("  - unused build cache\n");
    if !super::container::confirm(env, &warning)? {
        return Err(Failure::new("system prune has been cancelled"));
    }
    let filters = env.filters()?;
    let mut reclaimed = 0.0;
    let mut steps = vec![
        (format!("/containers/prune?filters={filters}"), "ContainersDeleted", "Deleted Containers:"),
        (format!("/networks/prune?filters={filters}"), "NetworksDeleted", "Deleted Networks:"),
    ];
    if volumes {
        steps.push((format!("/volumes/prune?filters={filters}"), "VolumesDeleted", "Deleted Volumes:"));
    }
    for (path, field, heading) in steps {
        let answer = env.client.post(&path, None).await?;
        reclaimed += answer["SpaceReclaimed"].as_f64().unwrap_or(0.0);
        let names: Vec<&str> =
            answer[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !names.is_empty() {
            println!("{heading}");
            names.iter().for_each(|name| println!("{name}"));
            println!();
        }
    }
    let mut filters: Value =
        serde_json::from_str(&percent_encoding::percent_decode_str(&filters).decode_utf8_lossy())
            .unwrap_or_else(|_| json!({}));
    filters["dangling"][if all { "false" } else { "true" }] = true.into();
    let answer =
        env.client.post(&format!("/images/prune?filters={}", escape(&filters.to_string())), None).await?;
    reclaimed += answer["SpaceReclaimed"].as_f64().unwrap_or(0.0);
    super::image::deleted(&answer);
    println!("Total reclaimed space: {}", units::size4(reclaimed));
    Ok(())
}

async fn dial_stdio(env: &Env) -> Done {
    let stream = env.client.raw().await?;
    let (mut from, mut to) = tokio::io::split(stream);
    let up = async {
        tokio::io::copy(&mut tokio::io::stdin(), &mut to).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut to).await
    };
    let down = async { tokio::io::copy(&mut from, &mut tokio::io::stdout()).await };
    tokio::pin!(up, down);
    tokio::select! {
        done = &mut down => { done?; }
        sent = &mut up => {
            sent?;
            down.await?;
        }
    }
    Ok(())
}

async fn context_ls(env: &Env) -> Done {
    let current = env.global.current_context()?;
    let default_host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into());
    let mut rows = vec![json!({
        "Current": current == "default",
        "Name": "default",
        "Description": "Current DOCKER_HOST based configuration",
        "DockerEndpoint": env.global.host.clone().unwrap_or(default_host),
        "Error": "",
    })];
    for entry in
        std::fs::read_dir(env.global.config_dir().join("contexts/meta")).into_iter().flatten().flatten()
    {
        let Ok(bytes) = std::fs::read(entry.path().join("meta.json")) else { continue };
        let Ok(meta) = serde_json::from_slice::<Value>(&bytes) else { continue };
        let name = text(&meta, "Name");
        rows.push(json!({
            "Current": current == name,
            "Name": name,
            "Description": text(&meta["Metadata"], "Description"),
            "DockerEndpoint": text(&meta["Endpoints"]["docker"], "Host"),
            "Error": "",
        }));
    }
    rows[1..].sort_by(|a, b| text(a, "Name").cmp(text(b, "Name")));
    let format = env.parsed.text("format");
    if env.parsed.on("quiet") {
        rows.iter().for_each(|row| println!("{}", text(row, "Name")));
        return Ok(());
    }
    if format.is_empty() {
        for row in &mut rows {
            if row["Current"] == true {
                row["Name"] = format!("{} *", text(row, "Name")).into();
            }
        }
    }
    let list = List {
        columns: &[
            ("Name", "NAME"),
            ("Description", "DESCRIPTION"),
            ("DockerEndpoint", "DOCKER ENDPOINT"),
            ("Error", "ERROR"),
            ("Current", "CURRENT"),
        ],
        shown: &["Name", "Description", "DockerEndpoint", "Error"],
        rows,
    };
    print!("{}", list.print(format)?);
    if current == "default" && std::env::var("DOCKER_HOST").is_ok_and(|host| !host.is_empty()) {
        eprintln!(
            "Warning: DOCKER_HOST environment variable overrides the active context. To use a context, either set the global --context flag, or unset DOCKER_HOST environment variable."
        );
    }
    Ok(())
}

async fn context_show(env: &Env) -> Done {
    println!("{}", env.global.current_context()?);
    Ok(())
}

async fn context_use(env: &Env) -> Done {
    let name = env.arg(0);
    let mut file = env.global.config_file()?;
    if name == "default" {
        if let Some(file) = file.as_object_mut() {
            file.remove("currentContext");
        }
    } else {
        env.global.context_meta(name)?;
        file["currentContext"] = name.into();
    }
    super::registry::save_config(&env.global, &file)?;
    println!("{name}");
    eprintln!("Current context is now \"{name}\"");
    Ok(())
}

async fn context_create(env: &Env) -> Done {
    let name = env.arg(0);
    let dir = crate::context::context_dir(&env.global.config_dir(), name);
    if dir.exists() || name == "default" {
        return Err(Failure::new(format!("context {name:?} already exists")));
    }
    let host =
        env.parsed.text("docker").split(',').find_map(|part| part.strip_prefix("host=")).unwrap_or_default();
    let meta = json!({
        "Name": name,
        "Metadata": {"Description": env.parsed.text("description")},
        "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": false}},
    });
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("meta.json"), meta.to_string())?;
    println!("{name}");
    eprintln!("Successfully created context \"{name}\"");
    Ok(())
}

async fn context_inspect(env: &Env) -> Done {
    let current = [env.global.current_context()?];
    let names = if env.args().is_empty() { &current[..] } else { env.args() };
    let directory = env.global.config_dir().join("contexts");
    let mut found = Vec::new();
    for name in names {
        let mut context = if name == "default" {
            let set = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
            let host =
                env.global.host.clone().or(set).unwrap_or_else(|| "unix:///var/run/docker.sock".into());
            json!({
                "Name": name,
                "Metadata": {},
                "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": false}},
                "TLSMaterial": {},
                "Storage": {"MetadataPath": "<IN MEMORY>", "TLSPath": "<IN MEMORY>"},
            })
        } else {
            let mut meta = env.global.context_meta(name)?;
            let digest = crate::context::context_dir(&env.global.config_dir(), name);
            let digest = digest.file_name().unwrap_or_default();
            meta["TLSMaterial"] = json!({});
            meta["Storage"] = json!({
                "MetadataPath": directory.join("meta").join(digest).display().to_string(),
                "TLSPath": directory.join("tls").join(digest).display().to_string(),
            });
            meta
        };
        if let Some(fields) = context["Metadata"].as_object_mut() {
            fields.retain(|_, value| *value != "");
        }
        found.push(context);
    }
    let format = env.parsed.text("format");
    if format.is_empty() || format == "json" {
        println!("{}", super::inspect::pretty(&Value::Array(found)));
    } else {
        let template = Template::parse(format)?;
        for context in &found {
            println!("{}", template.render(context)?);
        }
    }
    Ok(())
}

async fn context_rm(env: &Env) -> Done {
    for name in env.args() {
        if *name == env.global.current_context()? && !env.parsed.on("force") {
            return Err(Failure::new(format!("context {name:?} is in use, set -f flag to force remove")));
        }
        env.global.context_meta(name)?;
        std::fs::remove_dir_all(crate::context::context_dir(&env.global.config_dir(), name))?;
        println!("{name}");
    }
    Ok(())
}
