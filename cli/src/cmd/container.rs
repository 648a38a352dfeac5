//! Commands that act on containers and answer with their names.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::{Command, Done, Env, Failure, MANY, each, runner, short, text};
use crate::client::{Error, escape, segment};
use crate::flags::{list, on, one};
use crate::fmt::template::List;
use crate::fmt::units;

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["stop", "container stop"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Stop one or more running containers",
        flags: &[&[
            one(Some('s'), "signal", "string", "Signal to send to the container"),
            one(Some('t'), "timeout", "int", "Seconds to wait before killing the container"),
            one(None, "time", "int", "Seconds to wait before killing the container"),
        ]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(stop),
    },
    Command {
        names: &["restart", "container restart"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Restart one or more containers",
        flags: &[&[
            one(Some('s'), "signal", "string", "Signal to send to the container"),
            one(Some('t'), "timeout", "int", "Seconds to wait before killing the container"),
            one(None, "time", "int", "Seconds to wait before killing the container"),
        ]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(restart),
    },
    Command {
        names: &["kill", "container kill"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Kill one or more running containers",
        flags: &[&[one(Some('s'), "signal", "string", "Signal to send to the container")]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(kill),
    },
    Command {
        names: &["pause", "container pause"],
        usage: "CONTAINER [CONTAINER...]",
        about: "Pause all processes within one or more containers",
        flags: &[],
        interspersed: true,
        args: (1, MANY),
        run: runner!(pause),
    },
    Command {
        names: &["unpause", "container unpause"],
        usage: "CONTAINER [CONTAINER...]",
        about: "Unpause all processes within one or more containers",
        flags: &[],
        interspersed: true,
        args: (1, MANY),
        run: runner!(unpause),
    },
    Command {
        names: &["rm", "container rm", "container remove"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Remove one or more containers",
        flags: &[&[
            on(Some('f'), "force", "Force the removal of a running container (uses SIGKILL)"),
            on(Some('l'), "link", "Remove the specified link"),
            on(Some('v'), "volumes", "Remove anonymous volumes associated with the container"),
        ]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(rm),
    },
    Command {
        names: &["wait", "container wait"],
        usage: "CONTAINER [CONTAINER...]",
        about: "Block until one or more containers stop, then print their exit codes",
        flags: &[],
        interspersed: true,
        args: (1, MANY),
        run: runner!(wait),
    },
    Command {
        names: &["rename", "container rename"],
        usage: "CONTAINER NEW_NAME",
        about: "Rename a container",
        flags: &[],
        interspersed: true,
        args: (2, 2),
        run: runner!(rename),
    },
    Command {
        names: &["update", "container update"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Update configuration of one or more containers",
        flags: &[&[
            one(None, "blkio-weight", "uint16", "Block IO weight, between 10 and 1000, or 0 to disable"),
            one(None, "cpu-period", "int", "CPU CFS period in microseconds"),
            one(None, "cpu-quota", "int", "CPU CFS quota in microseconds"),
            one(None, "cpu-rt-period", "int", "CPU real-time period in microseconds"),
            one(None, "cpu-rt-runtime", "int", "CPU real-time runtime in microseconds"),
            one(Some('c'), "cpu-shares", "int", "CPU shares (relative weight)"),
            one(None, "cpus", "decimal", "Number of CPUs"),
            one(None, "cpuset-cpus", "string", "CPUs in which to allow execution (0-3, 0,1)"),
            one(None, "cpuset-mems", "string", "MEMs in which to allow execution (0-3, 0,1)"),
            one(Some('m'), "memory", "bytes", "Memory limit"),
            one(None, "memory-reservation", "bytes", "Memory soft limit"),
            one(
                None,
                "memory-swap",
                "bytes",
                "Swap limit equal to memory plus swap: -1 to enable unlimited swap",
            ),
            one(None, "pids-limit", "int", "Tune container pids limit (set -1 for unlimited)"),
            one(None, "restart", "string", "Restart policy to apply when a container exits"),
        ]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(update),
    },
    Command {
        names: &["top", "container top"],
        usage: "CONTAINER [ps OPTIONS]",
        about: "Display the running processes of a container",
        flags: &[],
        interspersed: false,
        args: (1, MANY),
        run: runner!(top),
    },
    Command {
        names: &["port", "container port"],
        usage: "CONTAINER [PRIVATE_PORT[/PROTO]]",
        about: "List port mappings or a specific mapping for the container",
        flags: &[],
        interspersed: true,
        args: (1, 2),
        run: runner!(port),
    },
    Command {
        names: &["diff", "container diff"],
        usage: "CONTAINER",
        about: "Inspect changes to files or directories on a container's filesystem",
        flags: &[],
        interspersed: true,
        args: (1, 1),
        run: runner!(diff),
    },
    Command {
        names: &["stats", "container stats"],
        usage: "[OPTIONS] [CONTAINER...]",
        about: "Display a live stream of container(s) resource usage statistics",
        flags: &[&[
            on(Some('a'), "all", "Show all containers (default shows just running)"),
            one(None, "format", "string", "Format output using a custom template"),
            on(None, "no-stream", "Disable streaming stats and only pull the first result"),
            on(None, "no-trunc", "Do not truncate output"),
        ]],
        interspersed: true,
        args: (0, MANY),
        run: runner!(stats),
    },
    Command {
        names: &["commit", "container commit"],
        usage: "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
        about: "Create a new image from a container's changes",
        flags: &[&[
            one(
                Some('a'),
                "author",
                "string",
                "Author (e.g., \"John Hannibal Smith <hannibal@a-team.com>\")",
            ),
            list(Some('c'), "change", "list", "Apply Dockerfile instruction to the created image"),
            one(Some('m'), "message", "string", "Commit message"),
            on(Some('p'), "pause", "Pause container during commit"),
        ]],
        interspersed: true,
        args: (1, 2),
        run: runner!(commit),
    },
    Command {
        names: &["container prune"],
        usage: "[OPTIONS]",
        about: "Remove all stopped containers",
        flags: &[&[
            list(None, "filter", "filter", "Provide filter values (e.g. \"until=<timestamp>\")"),
            on(Some('f'), "force", "Do not prompt for confirmation"),
        ]],
        interspersed: true,
        args: (0, 0),
        run: runner!(prune),
    },
];

fn stop_query(env: &Env) -> Result<String, Failure> {
    let mut query = Vec::new();
    if let Some(timeout) = env.parsed.int("timeout")?.or(env.parsed.int("time")?) {
        query.push(format!("t={timeout}"));
    }
    if let Some(signal) = env.parsed.last("signal") {
        query.push(format!("signal={}", escape(signal)));
    }
    Ok(if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) })
}

/// POSTs a verb to each container named and prints the names.
async fn verb(env: &Env, verb: &str) -> Done {
    each(env.args(), |name| async move {
        env.client.post(&format!("/containers/{}/{verb}", segment(name)), None).await?;
        Ok(name.to_owned())
    })
    .await
}

async fn stop(env: &Env) -> Done {
    verb(env, &format!("stop{}", stop_query(env)?)).await
}

async fn restart(env: &Env) -> Done {
    verb(env, &format!("restart{}", stop_query(env)?)).await
}

async fn kill(env: &Env) -> Done {
    let signal =
        env.parsed.last("signal").map(|signal| format!("?signal={}", escape(signal))).unwrap_or_default();
    verb(env, &format!("kill{signal}")).await
}

async fn pause(env: &Env) -> Done {
    verb(env, "pause").await
}

async fn unpause(env: &Env) -> Done {
    verb(env, "unpause").await
}

async fn rm(env: &Env) -> Done {
    let flag = |name: &str| u8::from(env.parsed.on(name));
    let force = env.parsed.on("force");
    let query = format!("force={}&v={}&link={}", flag("force"), flag("volumes"), flag("link"));
    each(env.args(), |name| {
        let query = query.as_str();
        async move {
            let name_ = name.trim_matches('/');
            if name_.is_empty() {
                return Err(Failure::new("container name cannot be empty"));
            }
            match env.client.delete(&format!("/containers/{}?{query}", segment(name_))).await {
                Ok(_) => Ok(name.to_owned()),
                // `rm -f` of what is not there is done already, but it says so.
                Err(Error::Engine(status, text)) if force && status.as_u16() == 404 => {
                    eprintln!("Error response from daemon: {text}");
                    Ok(String::new())
                }
                Err(err) => Err(err.into()),
            }
        }
    })
    .await
}

async fn wait(env: &Env) -> Done {
    each(env.args(), |name| async move {
        let answer = env.client.post(&format!("/containers/{}/wait", segment(name)), None).await?;
        Ok(answer["StatusCode"].to_string())
    })
    .await
}

async fn rename(env: &Env) -> Done {
    let path = format!("/containers/{}/rename?name={}", segment(env.arg(0)), escape(env.arg(1)));
    let failed = |err| Failure::new(format!("{err}\nError: failed to rename container named {}", env.arg(0)));
    env.client.post(&path, None).await.map_err(failed)?;
    Ok(())
}

async fn update(env: &Env) -> Done {
    let parsed = &env.parsed;
    let mut body = Map::new();
    for (flag, field) in [
        ("blkio-weight", "BlkioWeight"),
        ("cpu-period", "CpuPeriod"),
        ("cpu-quota", "CpuQuota"),
        ("cpu-rt-period", "CpuRealtimePeriod"),
        ("cpu-rt-runtime", "CpuRealtimeRuntime"),
        ("cpu-shares", "CpuShares"),
        ("pids-limit", "PidsLimit"),
    ] {
        if let Some(value) = parsed.int(flag)? {
            body.insert(field.into(), value.into());
        }
    }
    for (flag, field) in
        [("memory", "Memory"), ("memory-reservation", "MemoryReservation"), ("memory-swap", "MemorySwap")]
    {
        if let Some(text) = parsed.last(flag) {
            let value = if text == "-1" { Some(-1) } else { units::parse_bytes(text) };
            let value = value.ok_or_else(|| {
                Failure::new(format!(
                    "invalid argument {text:?} for \"--{flag}\" flag: invalid size: '{text}'"
                ))
            })?;
            body.insert(field.into(), value.into());
        }
    }
    for (flag, field) in [("cpuset-cpus", "CpusetCpus"), ("cpuset-mems", "CpusetMems")] {
        if let Some(text) = parsed.last(flag) {
            body.insert(field.into(), text.into());
        }
    }
    if let Some(cpus) = parsed.last("cpus").and_then(|cpus| cpus.parse::<f64>().ok()) {
        #[allow(clippy::cast_possible_truncation, reason = "a number of processors")]
        body.insert("NanoCpus".into(), ((cpus * 1e9).round() as i64).into());
    }
    if let Some(policy) = parsed.last("restart") {
        body.insert("RestartPolicy".into(), super::create::restart(policy)?);
    }
    if body.is_empty() {
        return Err(Failure::new("you must provide one or more flags when using this command"));
    }
    let body = Value::Object(body);
    each(env.args(), |name| {
        let body = &body;
        async move {
            let answer =
                env.client.post(&format!("/containers/{}/update", segment(name)), Some(body)).await?;
            for warning in answer["Warnings"].as_array().into_iter().flatten() {
                eprintln!("{}", warning.as_str().unwrap_or_default());
            }
            Ok(name.to_owned())
        }
    })
    .await
}

async fn top(env: &Env) -> Done {
    let options = env.args()[1..].join(" ");
    let query = if options.is_empty() { String::new() } else { format!("?ps_args={}", escape(&options)) };
    let answer = env.client.get(&format!("/containers/{}/top{query}", segment(env.arg(0)))).await?;
    let row = |cells: &Value| -> Vec<String> {
        cells
            .as_array()
            .into_iter()
            .flatten()
            .map(|cell| cell.as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let mut rows = vec![row(&answer["Titles"])];
    rows.extend(answer["Processes"].as_array().into_iter().flatten().map(row));
    // tabwriter(…, 20, 1, 3, ' ') here, wider than elsewhere.
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            rows.iter()
                .filter_map(|row| row.get(at))
                .map(|cell| cell.chars().count() + 3)
                .max()
                .unwrap_or(0)
                .max(20)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            let width = if at + 1 < row.len() { widths[at] } else { 0 };
            out.push_str(&format!("{cell:width$}"));
        }
        out.push('\n');
    }
    print!("{out}");
    Ok(())
}

async fn port(env: &Env) -> Done {
    let inspected = env.client.get(&format!("/containers/{}/json", segment(env.arg(0)))).await?;
    let ports = inspected["NetworkSettings"]["Ports"].as_object().cloned().unwrap_or_default();
    let address = |binding: &Value| {
        let (ip, port) = (text(binding, "HostIp"), text(binding, "HostPort"));
        if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
    };
    if env.args().len() == 2 {
        let wanted = env.arg(1);
        let wanted = if wanted.contains('/') { wanted.to_owned() } else { format!("{wanted}/tcp") };
        let bindings = ports.get(&wanted).and_then(Value::as_array).filter(|bindings| !bindings.is_empty());
        let Some(bindings) = bindings else {
            return Err(Failure::new(format!(
                "Error: No public port '{}' published for {}",
                env.arg(1),
                env.arg(0)
            )));
        };
        bindings.iter().for_each(|binding| println!("{}", address(binding)));
        return Ok(());
    }
    let mut lines: Vec<(u16, String)> = Vec::new();
    for (port, bindings) in &ports {
        let number = port.split('/').next().and_then(|port| port.parse().ok()).unwrap_or(0);
        for binding in bindings.as_array().into_iter().flatten() {
            lines.push((number, format!("{port} -> {}", address(binding))));
        }
    }
    lines.sort_by_key(|line| line.0);
    lines.iter().for_each(|(_, line)| println!("{line}"));
    Ok(())
}

async fn diff(env: &Env) -> Done {
    let changes = env.client.get(&format!("/containers/{}/changes", segment(env.arg(0)))).await?;
    let mut out = std::io::stdout().lock();
    for change in changes.as_array().into_iter().flatten() {
        let kind = match change["Kind"].as_i64() {
            Some(0) => 'C',
            Some(1) => 'A',
            _ => 'D',
        };
        writeln!(out, "{kind} {}", text(change, "Path"))?;
    }
    Ok(())
}

async fn commit(env: &Env) -> Done {
    let (repo, tag) = match env.arg(1) {
        "" => (String::new(), String::new()),
        name => super::registry::split(name),
    };
    let mut path = format!(
        "/commit?container={}&repo={}&tag={}&comment={}&author={}&pause={}",
        escape(env.arg(0)),
        escape(&repo),
        escape(&tag),
        escape(env.parsed.text("message")),
        escape(env.parsed.text("author")),
        u8::from(env.parsed.on_or("pause", true)),
    );
    for change in env.parsed.all("change") {
        path.push_str(&format!("&changes={}", escape(change)));
    }
    println!("{}", text(&env.client.post(&path, None).await?, "Id"));
    Ok(())
}

/// Asks before something is removed, unless `--force`.
pub fn confirm(env: &Env, warning: &str) -> Result<bool, Failure> {
    if env.parsed.on("force") {
        return Ok(true);
    }
    print!("WARNING! {warning}\nAre you sure you want to continue? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

/// Prints what a prune removed and gave back.
pub fn pruned(heading: &str, names: &Value, answer: &Value) {
    let names: Vec<&str> = names.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !names.is_empty() {
        println!("{heading}");
        names.iter().for_each(|name| println!("{name}"));
        println!();
    }
    println!("Total reclaimed space: {}", units::size4(answer["SpaceReclaimed"].as_f64().unwrap_or(0.0)));
}

async fn prune(env: &Env) -> Done {
    if !confirm(env, "This will remove all stopped containers.")? {
        return Err(Failure::new("container prune has been cancelled"));
    }
    let answer = env.client.post(&format!("/containers/prune?filters={}", env.filters()?), None).await?;
    pruned("Deleted Containers:", &answer["ContainersDeleted"], &answer);
    Ok(())
}

async fn stats(env: &Env) -> Done {
    let mut names: Vec<String> = env.args().to_vec();
    let once = env.parsed.on("no-stream");
    if names.is_empty() {
        let all = u8::from(env.parsed.on("all"));
        let listed = env.client.get(&format!("/containers/json?all={all}")).await?;
        names = listed.as_array().into_iter().flatten().map(|row| text(row, "Id").to_owned()).collect();
    }
    loop {
        let mut rows = Vec::new();
        for name in &names {
            match env.client.get(&format!("/containers/{}/stats?stream=0", segment(name))).await {
                Ok(stats) => rows.push(stats_row(&stats, name, env.parsed.on("no-trunc"))),
                Err(err) if once => return Err(err.into()),
                Err(_) => {}
            }
        }
        let list = List {
            columns: &[
                ("Container", "CONTAINER"),
                ("ID", "CONTAINER ID"),
                ("Name", "NAME"),
                ("CPUPerc", "CPU %"),
                ("MemUsage", "MEM USAGE / LIMIT"),
                ("MemPerc", "MEM %"),
                ("NetIO", "NET I/O"),
                ("BlockIO", "BLOCK I/O"),
                ("PIDs", "PIDS"),
            ],
            shown: &["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"],
            rows,
        };
        let shown = list.print(env.parsed.text("format"))?;
        if once {
            print!("{shown}");
            return Ok(());
        }
        print!("\x1b[H\x1b[J{shown}");
        std::io::stdout().flush()?;
    }
}

fn stats_row(stats: &Value, name: &str, full: bool) -> Value {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let (cpu, before) = (&stats["cpu_stats"], &stats["precpu_stats"]);
    let used = number(&cpu["cpu_usage"]["total_usage"]) - number(&before["cpu_usage"]["total_usage"]);
    let passed = number(&cpu["system_cpu_usage"]) - number(&before["system_cpu_usage"]);
    let cpus = cpu["online_cpus"].as_f64().filter(|n| *n > 0.0).unwrap_or(1.0);
    let percent = if passed > 0.0 && used > 0.0 { used / passed * cpus * 100.0 } else { 0.0 };
    let memory = &stats["memory_stats"];
    let cache = memory["stats"]["total_inactive_file"]
        .as_f64()
        .or(memory["stats"]["inactive_file"].as_f64())
        .unwrap_or(0.0);
    let usage = (number(&memory["usage"]) - cache).max(0.0);
    let limit = number(&memory["limit"]);
    let (mut received, mut sent) = (0.0, 0.0);
    for network in stats["networks"].as_object().into_iter().flat_map(|map| map.values()) {
        received += number(&network["rx_bytes"]);
        sent += number(&network["tx_bytes"]);
    }
    let (mut read, mut written) = (0.0, 0.0);
    for entry in stats["blkio_stats"]["io_service_bytes_recursive"].as_array().into_iter().flatten() {
        match text(entry, "op").to_lowercase().as_str() {
            "read" => read += number(&entry["value"]),
            "write" => written += number(&entry["value"]),
            _ => {}
        }
    }
    let id = text(stats, "id");
    json!({
        "Container": name,
        "ID": if full { id } else { short(id) },
        "Name": text(stats, "name").trim_start_matches('/'),
        "CPUPerc": format!("{percent:.2}%"),
        "MemUsage": format!("{} / {}", units::bytes(usage), units::bytes(limit)),
        "MemPerc": format!("{:.2}%", if limit > 0.0 { usage / limit * 100.0 } else { 0.0 }),
        "NetIO": format!("{} / {}", units::size(received), units::size(sent)),
        "BlockIO": format!("{} / {}", units::size(read), units::size(written)),
        "PIDs": stats["pids_stats"]["current"].as_u64().unwrap_or(0).to_string(),
    })
}
