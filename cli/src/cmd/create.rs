//! `run` and `create`: the flags of a container, made into the engine's request.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::{Command, Done, Env, Failure, MANY, runner};
use crate::client::{self, Error, escape};
use crate::flags::{Flag, Parsed, list, on, one};
use crate::fmt::{progress, units};
use crate::stream::{self, End};
use crate::tty;

/// Flags of a container, shared by `run` and `create`.
const CONTAINER: &[Flag] = &[
    list(None, "add-host", "list", "Add a custom host-to-IP mapping (host:ip)"),
    list(None, "annotation", "map", "Add an annotation to the container"),
    list(Some('a'), "attach", "list", "Attach to STDIN, STDOUT or STDERR"),
    one(None, "blkio-weight", "uint16", "Block IO weight, between 10 and 1000, or 0 to disable"),
    list(None, "blkio-weight-device", "list", "Block IO weight of a device"),
    list(None, "cap-add", "list", "Add Linux capabilities"),
    list(None, "cap-drop", "list", "Drop Linux capabilities"),
    one(None, "cgroup-parent", "string", "Parent cgroup of the container"),
    one(None, "cgroupns", "string", "Cgroup namespace to use (host|private)"),
    one(None, "cidfile", "string", "Write the container ID to the file"),
    one(None, "cpu-period", "int", "CPU CFS period in microseconds"),
    one(None, "cpu-quota", "int", "CPU CFS quota in microseconds"),
    one(None, "cpu-rt-period", "int", "CPU real-time period in microseconds"),
    one(None, "cpu-rt-runtime", "int", "CPU real-time runtime in microseconds"),
    one(Some('c'), "cpu-shares", "int", "CPU shares (relative weight)"),
    one(None, "cpus", "decimal", "Number of CPUs"),
    one(None, "cpuset-cpus", "string", "CPUs in which to allow execution (0-3, 0,1)"),
    one(None, "cpuset-mems", "string", "MEMs in which to allow execution (0-3, 0,1)"),
    list(None, "device", "list", "Add a host device to the container"),
    list(None, "device-cgroup-rule", "list", "Add a rule to the cgroup's allowed devices"),
    list(None, "device-read-bps", "list", "Limit read rate (bytes per second) from a device"),
    list(None, "device-read-iops", "list", "Limit read rate (IO per second) from a device"),
    list(None, "device-write-bps", "list", "Limit write rate (bytes per second) to a device"),
    list(None, "device-write-iops", "list", "Limit write rate (IO per second) to a device"),
    on(None, "disable-content-trust", "Skip image verification (always so)"),
    list(None, "dns", "list", "Set custom DNS servers"),
    list(None, "dns-option", "list", "Set DNS options"),
    list(None, "dns-search", "list", "Set custom DNS search domains"),
    one(None, "domainname", "string", "Container NIS domain name"),
    one(None, "entrypoint", "string", "Overwrite the default ENTRYPOINT of the image"),
    list(Some('e'), "env", "list", "Set environment variables"),
    list(None, "env-file", "list", "Read in a file of environment variables"),
    list(None, "expose", "list", "Expose a port or a range of ports"),
    one(None, "gpus", "gpu-request", "GPU devices to add to the container ('all' to pass all GPUs)"),
    list(None, "group-add", "list", "Add additional groups to join"),
    one(None, "health-cmd", "string", "Command to run to check health"),
    one(None, "health-interval", "duration", "Time between running the check"),
    one(None, "health-retries", "int", "Consecutive failures needed to report unhealthy"),
    one(None, "health-start-interval", "duration", "Time between checks during the start period"),
    one(None, "health-start-period", "duration", "Time before failures count"),
    one(None, "health-timeout", "duration", "Maximum time to allow one check to run"),
    one(Some('h'), "hostname", "string", "Container host name"),
    on(None, "init", "Run an init inside the container that forwards signals and reaps processes"),
    on(Some('i'), "interactive", "Keep STDIN open even if not attached"),
    one(None, "ip", "string", "IPv4 address (e.g., 172.30.100.104)"),
    one(None, "ip6", "string", "IPv6 address (e.g., 2001:db8::33)"),
    one(None, "ipc", "string", "IPC mode to use"),
    one(None, "isolation", "string", "Container isolation technology"),
    one(None, "kernel-memory", "bytes", "Kernel memory limit"),
    list(Some('l'), "label", "list", "Set meta data on a container"),
    list(None, "label-file", "list", "Read in a line delimited file of labels"),
    list(None, "link", "list", "Add link to another container"),
    list(None, "link-local-ip", "list", "Container IPv4/IPv6 link-local addresses"),
    one(None, "log-driver", "string", "Logging driver for the container"),
    list(None, "log-opt", "list", "Log driver options"),
    one(None, "mac-address", "string", "Container MAC address (e.g., 92:d0:c6:0a:29:33)"),
    one(Some('m'), "memory", "bytes", "Memory limit"),
    one(None, "memory-reservation", "bytes", "Memory soft limit"),
    one(None, "memory-swap", "bytes", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap"),
    one(None, "memory-swappiness", "int", "Tune container memory swappiness (0 to 100)"),
    list(None, "mount", "mount", "Attach a filesystem mount to the container"),
    one(None, "name", "string", "Assign a name to the container"),
    list(None, "network", "network", "Connect a container to a network"),
    list(None, "net", "network", "Connect a container to a network"),
    list(None, "network-alias", "list", "Add network-scoped alias for the container"),
    list(None, "net-alias", "list", "Add network-scoped alias for the container"),
    on(None, "no-healthcheck", "Disable any container-specified HEALTHCHECK"),
    on(None, "oom-kill-disable", "Disable OOM Killer"),
    one(None, "oom-score-adj", "int", "Tune host's OOM preferences (-1000 to 1000)"),
    one(None, "pid", "string", "PID namespace to use"),
    one(None, "pids-limit", "int", "Tune container pids limit (set -1 for unlimited)"),
    one(None, "platform", "string", "Set platform if server is multi-platform capable"),
    on(None, "privileged", "Give extended privileges to this container"),
    list(Some('p'), "publish", "list", "Publish a container's port(s) to the host"),
    on(Some('P'), "publish-all", "Publish all exposed ports to random ports"),
    one(None, "pull", "string", "Pull image before running (\"always\", \"missing\", \"never\")"),
    on(Some('q'), "quiet", "Suppress the pull output"),
    on(None, "read-only", "Mount the container's root filesystem as read only"),
    one(None, "restart", "string", "Restart policy to apply when a container exits"),
    on(None, "rm", "Automatically remove the container and its anonymous volumes when it exits"),
    one(None, "runtime", "string", "Runtime to use for this container"),
    list(None, "security-opt", "list", "Security Options"),
    one(None, "shm-size", "bytes", "Size of /dev/shm"),
    one(None, "stop-signal", "string", "Signal to stop the container"),
    one(None, "stop-timeout", "int", "Timeout (in seconds) to stop a container"),
    list(None, "storage-opt", "list", "Storage driver options for the container"),
    list(None, "sysctl", "map", "Sysctl options"),
    list(None, "tmpfs", "list", "Mount a tmpfs directory"),
    on(Some('t'), "tty", "Allocate a pseudo-TTY"),
    list(None, "ulimit", "ulimit", "Ulimit options"),
    one(Some('u'), "user", "string", "Username or UID (format: <name|uid>[:<group|gid>])"),
    one(None, "userns", "string", "User namespace to use"),
    one(None, "uts", "string", "UTS namespace to use"),
    list(Some('v'), "volume", "list", "Bind mount a volume"),
    one(None, "volume-driver", "string", "Optional volume driver for the container"),
    list(None, "volumes-from", "list", "Mount volumes from the specified container(s)"),
    one(Some('w'), "workdir", "string", "Working directory inside the container"),
];

/// Flags only `run` has.
const RUN: &[Flag] = &[
    on(Some('d'), "detach", "Run container in background and print container ID"),
    one(None, "detach-keys", "string", "Override the key sequence for detaching a container"),
    on(None, "sig-proxy", "Proxy received signals to the process"),
];

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["run", "container run"],
        usage: "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        about: "Create and run a new container from an image",
        flags: &[CONTAINER, RUN],
        interspersed: false,
        args: (1, MANY),
        run: runner!(run),
    },
    Command {
        names: &["create", "container create"],
        usage: "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        about: "Create a new container",
        flags: &[CONTAINER],
        interspersed: false,
        args: (1, MANY),
        run: runner!(create),
    },
];

async fn create(env: &Env) -> Done {
    let body = body(&env.parsed, &Attach::none())?;
    let id = make(env, &body).await?;
    println!("{id}");
    Ok(())
}

/// Which streams the client takes.
struct Attach {
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Attach {
    fn none() -> Self {
        Self { stdin: false, stdout: false, stderr: false }
    }
}

/// `run` failed before the container's command did: exit code 125 and a hint.
fn refused(text: &str) -> Failure {
    if text.starts_with("invalid argument ") {
        return Failure { code: 125, text: text.to_owned() };
    }
    Failure { code: 125, text: format!("docker: {text}\n\nRun 'docker run --help' for more information") }
}

async fn run(env: &Env) -> Done {
    let parsed = &env.parsed;
    let detach = parsed.on("detach");
    if parsed.on("rm") && !matches!(parsed.last("restart"), None | Some("no" | "")) {
        return Err(refused("conflicting options: cannot specify both --restart and --rm"));
    }
    let named: Vec<String> = parsed.all("attach").iter().map(|name| name.to_lowercase()).collect();
    if let Some(bad) = named.iter().find(|name| !["stdin", "stdout", "stderr"].contains(&name.as_str())) {
        return Err(refused(&format!(
            "invalid argument \"{bad}\" for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR"
        )));
    }
    let attach = if detach {
        if !named.is_empty() {
            return Err(Failure::new("conflicting options: cannot specify both --attach and --detach"));
        }
        Attach::none()
    } else if named.is_empty() {
        Attach { stdin: parsed.on("interactive"), stdout: true, stderr: true }
    } else {
        let has = |name: &str| named.iter().any(|given| given == name);
        Attach { stdin: has("stdin"), stdout: has("stdout"), stderr: has("stderr") }
    };
    let with_tty = parsed.on("tty");
    if with_tty && attach.stdin && !detach && !tty::is_terminal(std::os::fd::AsFd::as_fd(&std::io::stdin())) {
        return Err(Failure::new("the input device is not a TTY"));
    }
    let detach_keys = super::attach::detach_keys(env)?;
    let body = body(parsed, &attach).map_err(|failure| refused(&failure.text))?;
    let id = make(env, &body).await.map_err(|failure| refused(&failure.text))?;

    if detach {
        start(env, &id, parsed.on("rm")).await?;
        println!("{id}");
        return Ok(());
    }
    // Attached before the start, so that nothing is missed; waited for before the start, so that no exit is.
    let path = format!(
        "/containers/{id}/attach?stream=1&stdin={}&stdout={}&stderr={}",
        u8::from(attach.stdin),
        u8::from(attach.stdout),
        u8::from(attach.stderr)
    );
    let (_, stream) = env.client.hijack(&path, None).await.map_err(|err| refused(&err.to_string()))?;
    let condition = if parsed.on("rm") { "removed" } else { "next-exit" };
    let wait = env
        .client
        .open(
            http::Method::POST,
            &format!("/containers/{id}/wait?condition={condition}"),
            &[],
            client::empty(),
        )
        .await
        .map_err(|err| refused(&err.to_string()))?;
    let raw = (with_tty && attach.stdin).then(tty::Raw::stdin);
    let session = tokio::spawn(stream::session(stream, with_tty, attach.stdin, detach_keys));
    // Before the start, so that a signal at the first line of output finds the way.
    let signals = (!with_tty && parsed.on_or("sig-proxy", true))
        .then(|| tokio::spawn(proxy(env_host(env), id.clone())));
    if let Err(failure) = start(env, &id, false).await {
        drop(raw);
        session.abort();
        if let Some(signals) = signals {
            signals.abort();
        }
        if parsed.on("rm") {
            // The engine removes it too; whoever comes second finds nothing.
            let _ = env.client.delete(&format!("/containers/{id}?force=1&v=1")).await;
        }
        return Err(failure);
    }
    let resizer = with_tty.then(|| tokio::spawn(resize(env_host(env), format!("/containers/{id}/resize"))));
    let ended = session.await.map_err(|err| Failure::new(err.to_string()))?;
    drop(raw);
    let status = if matches!(ended, Ok(End::Detached)) {
        None
    } else {
        let answer = client::read(wait).await?;
        Some(serde_json::from_slice::<Value>(&answer).map_err(|err| Failure::new(err.to_string()))?)
    };
    for task in [resizer, signals].into_iter().flatten() {
        task.abort();
    }
    ended?;
    match status {
        None => Ok(()),
        Some(status) => {
            if let Some(message) = status["Error"]["Message"].as_str().filter(|text| !text.is_empty()) {
                return Err(Failure { code: 125, text: message.to_owned() });
            }
            match status["StatusCode"].as_i64().unwrap_or(0) {
                0 => Ok(()),
                code => Err(Failure::code(i32::try_from(code & 0xff).unwrap_or(125))),
            }
        }
    }
}

fn env_host(env: &Env) -> client::Client {
    env.global.client().unwrap_or_else(|_| client::Client::new(env.client.host().clone(), None))
}

/// Tells the engine the terminal's size, now and whenever it changes.
pub async fn resize(client: client::Client, path: String) {
    let Ok(mut changes) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())
    else {
        return;
    };
    loop {
        if let Some((rows, columns)) = tty::size() {
            // The process may have ended meanwhile, which the session tells.
            let _ = client.post(&format!("{path}?h={rows}&w={columns}"), None).await;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

/// Passes our signals on to the container.
pub async fn proxy(client: client::Client, id: String) {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [
        ("INT", SignalKind::interrupt()),
        ("TERM", SignalKind::terminate()),
        ("HUP", SignalKind::hangup()),
        ("QUIT", SignalKind::quit()),
        ("USR1", SignalKind::user_defined1()),
        ("USR2", SignalKind::user_defined2()),
    ];
    let mut tasks = tokio::task::JoinSet::new();
    let client = std::sync::Arc::new(client);
    for (name, kind) in kinds {
        let Ok(mut stream) = signal(kind) else { continue };
        let (client, id) = (std::sync::Arc::clone(&client), id.clone());
        tasks.spawn(async move {
            while stream.recv().await.is_some() {
                let _ = client.post(&format!("/containers/{id}/kill?signal={name}"), None).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Starts the container; a failure's exit code says whose fault it is: 127 no command, 126 not executable, 125 the engine's.
async fn start(env: &Env, id: &str, remove: bool) -> Done {
    let Err(err) = env.client.post(&format!("/containers/{id}/start"), None).await else { return Ok(()) };
    let text = err.to_string();
    let code = if text.contains("executable file not found")
        || text.contains("no such file or directory")
        || text.contains("system cannot find the file specified")
    {
        127
    } else if text.contains("permission denied") || text.contains("is a directory") {
        126
    } else {
        125
    };
    if remove {
        let _ = env.client.delete(&format!("/containers/{id}?force=1&v=1")).await;
    }
    Err(Failure { code, ..refused(&text) })
}

/// Creates the container, pulling the image if it is missing and that is allowed.
async fn make(env: &Env, body: &Value) -> Result<String, Failure> {
    let parsed = &env.parsed;
    let image = env.arg(0);
    let policy = parsed.last("pull").unwrap_or("missing");
    if !["always", "missing", "never"].contains(&policy) {
        return Err(Failure::new(format!(
            "invalid pull option: '{policy}': must be one of \"always\", \"missing\" or \"never\""
        )));
    }
    let platform =
        parsed.last("platform").map(|platform| format!("&platform={}", escape(platform))).unwrap_or_default();
    let path = format!("/containers/create?name={}{platform}", escape(parsed.text("name")));
    if let Some(file) = parsed.last("cidfile").filter(|file| std::path::Path::new(file).exists()) {
        return Err(Failure::new(format!(
            "container ID file found, make sure the other container isn't running or delete {file}"
        )));
    }
    if policy == "always" {
        pull(env, image).await?;
    }
    let mut answer = env.client.post(&path, Some(body)).await;
    if let Err(Error::Engine(status, text)) = &answer
        && status.as_u16() == 404
        && text.contains("No such image")
        && policy == "missing"
    {
        eprintln!("Unable to find image '{}' locally", with_tag(image));
        pull(env, image).await?;
        answer = env.client.post(&path, Some(body)).await;
    }
    let answer = answer?;
    for warning in answer["Warnings"].as_array().into_iter().flatten() {
        eprintln!("WARNING: {}", warning.as_str().unwrap_or_default());
    }
    let id = super::text(&answer, "Id").to_owned();
    if let Some(file) = parsed.last("cidfile") {
        let mut out = std::fs::File::create(file).map_err(|err| Failure::new(format!("{file}: {err}")))?;
        out.write_all(id.as_bytes())?;
    }
    Ok(id)
}

/// The name with `:latest` where it has neither tag nor digest.
pub fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

async fn pull(env: &Env, image: &str) -> Done {
    let (name, tag) = super::registry::split(&with_tag(image));
    let platform = env
        .parsed
        .last("platform")
        .map(|platform| format!("&platform={}", escape(platform)))
        .unwrap_or_default();
    let auth = super::registry::header(&env.global, &name)?;
    let path = format!("/images/create?fromImage={}&tag={}{platform}", escape(&name), escape(&tag));
    let response =
        env.client.open(http::Method::POST, &path, &[("X-Registry-Auth", &auth)], client::empty()).await?;
    progress::show(response.into_body(), env.parsed.on("quiet"))
        .await
        .map_err(|err| Failure::new(format!("Error response from daemon: {err}")))?;
    Ok(())
}

/// The body of `POST /containers/create`.
fn body(parsed: &Parsed, attach: &Attach) -> Result<Value, Failure> {
    let mut host = host_config(parsed)?;
    let command: Vec<&String> = parsed.args.iter().skip(1).collect();
    let mut body = Map::new();
    let mut set = |key: &str, value: Value| {
        body.insert(key.to_owned(), value);
    };
    set("Hostname", parsed.text("hostname").into());
    set("Domainname", parsed.text("domainname").into());
    set("User", parsed.text("user").into());
    set("AttachStdin", attach.stdin.into());
    set("AttachStdout", attach.stdout.into());
    set("AttachStderr", attach.stderr.into());
    set("Tty", parsed.on("tty").into());
    set("OpenStdin", parsed.on("interactive").into());
    set("StdinOnce", (parsed.on("interactive") && attach.stdin).into());
    set("Env", environment(parsed)?);
    if !command.is_empty() {
        set("Cmd", json!(command));
    }
    set("Image", parsed.args.first().cloned().unwrap_or_default().into());
    set("WorkingDir", parsed.text("workdir").into());
    if let Some(entrypoint) = parsed.last("entrypoint") {
        // An empty one resets the image's.
        set("Entrypoint", json!([entrypoint]));
    }
    set("Labels", pairs(parsed.all("label"), parsed.all("label-file"))?);
    if let Some(signal) = parsed.last("stop-signal") {
        set("StopSignal", signal.into());
    }
    if let Some(timeout) = parsed.int("stop-timeout")? {
        set("StopTimeout", timeout.into());
    }
    if let Some(health) = health(parsed)? {
        set("Healthcheck", health);
    }
    let (exposed, bindings) = ports(parsed)?;
    set("ExposedPorts", exposed);
    host.insert("PortBindings".into(), bindings);
    let (anonymous, binds) = volumes(parsed.all("volume"));
    set("Volumes", anonymous);
    host.insert("Binds".into(), if binds.is_empty() { Value::Null } else { json!(binds) });
    let (mode, endpoints) = networks(parsed)?;
    host.insert("NetworkMode".into(), mode.into());
    set("NetworkingConfig", json!({"EndpointsConfig": endpoints}));
    host.insert(
        "ConsoleSize".into(),
        tty::size()
            .filter(|_| parsed.on("tty"))
            .map_or(json!([0, 0]), |(rows, columns)| json!([rows, columns])),
    );
    set("HostConfig", Value::Object(host));
    Ok(Value::Object(body))
}

fn environment(parsed: &Parsed) -> Result<Value, Failure> {
    let mut env = Vec::new();
    for file in parsed.all("env-file") {
        let text = std::fs::read_to_string(file)
            .map_err(|err| Failure::new(format!("open {file}: {}", os_text(&err))))?;
        for line in
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            env.extend(variable(line));
        }
    }
    for word in parsed.all("env") {
        env.extend(variable(word));
    }
    Ok(json!(env))
}

/// `A=b` as it is; `A` alone with our own value, or not at all.
fn variable(word: &str) -> Option<String> {
    if word.contains('=') {
        return Some(word.to_owned());
    }
    std::env::var(word).ok().map(|value| format!("{word}={value}"))
}

/// An operating-system error without Rust's number.
pub fn os_text(err: &std::io::Error) -> String {
    let text = err.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn pairs(words: &[String], files: &[String]) -> Result<Value, Failure> {
    let mut map = Map::new();
    let mut add = |word: &str| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        map.insert(key.to_owned(), value.into());
    };
    for file in files {
        let text = std::fs::read_to_string(file)
            .map_err(|err| Failure::new(format!("open {file}: {}", os_text(&err))))?;
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).for_each(&mut add);
    }
    words.iter().for_each(|word| add(word));
    Ok(Value::Object(map))
}

fn health(parsed: &Parsed) -> Result<Option<Value>, Failure> {
    let given = |flag: &str| parsed.has(flag);
    let any = [
        "health-cmd",
        "health-interval",
        "health-retries",
        "health-start-interval",
        "health-start-period",
        "health-timeout",
    ];
    if parsed.on("no-healthcheck") {
        if any.iter().any(|flag| given(flag)) {
            return Err(Failure::new("--no-healthcheck conflicts with --health-* options"));
        }
        return Ok(Some(json!({"Test": ["NONE"]})));
    }
    if !any.iter().any(|flag| given(flag)) {
        return Ok(None);
    }
    let mut health = Map::new();
    if let Some(command) = parsed.last("health-cmd") {
        health.insert("Test".into(), json!(["CMD-SHELL", command]));
    }
    for (flag, field) in [
        ("health-interval", "Interval"),
        ("health-timeout", "Timeout"),
        ("health-start-period", "StartPeriod"),
        ("health-start-interval", "StartInterval"),
    ] {
        if let Some(text) = parsed.last(flag) {
            let value = units::parse_duration(text).ok_or_else(|| {
                Failure::new(format!(
                    "invalid argument {text:?} for \"--{flag}\" flag: time: invalid duration {text:?}"
                ))
            })?;
            if value < 0 {
                return Err(Failure::new(format!("--{flag} cannot be negative")));
            }
            health.insert(field.into(), value.into());
        }
    }
    if let Some(retries) = parsed.int("health-retries")? {
        health.insert("Retries".into(), retries.into());
    }
    Ok(Some(Value::Object(health)))
}

fn bytes(parsed: &Parsed, flag: &str) -> Result<i64, Failure> {
    match parsed.last(flag) {
        None => Ok(0),
        Some("-1") if flag == "memory-swap" => Ok(-1),
        Some(text) => units::parse_bytes(text).ok_or_else(|| {
            Failure::new(format!("invalid argument {text:?} for \"--{flag}\" flag: invalid size: '{text}'"))
        }),
    }
}

fn host_config(parsed: &Parsed) -> Result<Map<String, Value>, Failure> {
    let mut host = Map::new();
    let list = |flag: &str| {
        let all = parsed.all(flag);
        if all.is_empty() { Value::Null } else { json!(all) }
    };
    for (flag, field) in [
        ("add-host", "ExtraHosts"),
        ("cap-add", "CapAdd"),
        ("cap-drop", "CapDrop"),
        ("device-cgroup-rule", "DeviceCgroupRules"),
        ("dns", "Dns"),
        ("dns-option", "DnsOptions"),
        ("dns-search", "DnsSearch"),
        ("group-add", "GroupAdd"),
        ("link", "Links"),
        ("volumes-from", "VolumesFrom"),
    ] {
        host.insert(field.into(), list(flag));
    }
    host.insert("SecurityOpt".into(), security(parsed.all("security-opt"))?);
    for (flag, field) in [
        ("cgroup-parent", "CgroupParent"),
        ("cgroupns", "CgroupnsMode"),
        ("cpuset-cpus", "CpusetCpus"),
        ("cpuset-mems", "CpusetMems"),
        ("ipc", "IpcMode"),
        ("isolation", "Isolation"),
        ("pid", "PidMode"),
        ("runtime", "Runtime"),
        ("userns", "UsernsMode"),
        ("uts", "UTSMode"),
        ("volume-driver", "VolumeDriver"),
    ] {
        if let Some(value) = parsed.last(flag) {
            host.insert(field.into(), value.into());
        }
    }
    for (flag, field) in [
        ("cpu-period", "CpuPeriod"),
        ("cpu-quota", "CpuQuota"),
        ("cpu-rt-period", "CpuRealtimePeriod"),
        ("cpu-rt-runtime", "CpuRealtimeRuntime"),
        ("cpu-shares", "CpuShares"),
        ("blkio-weight", "BlkioWeight"),
        ("memory-swappiness", "MemorySwappiness"),
        ("oom-score-adj", "OomScoreAdj"),
        ("pids-limit", "PidsLimit"),
    ] {
        if let Some(value) = parsed.int(flag)? {
            host.insert(field.into(), value.into());
        }
    }
    for (flag, field) in [
        ("memory", "Memory"),
        ("memory-reservation", "MemoryReservation"),
        ("memory-swap", "MemorySwap"),
        ("kernel-memory", "KernelMemory"),
        ("shm-size", "ShmSize"),
    ] {
        let value = bytes(parsed, flag)?;
        if value != 0 {
            host.insert(field.into(), value.into());
        }
    }
    for (flag, field) in [
        ("privileged", "Privileged"),
        ("publish-all", "PublishAllPorts"),
        ("read-only", "ReadonlyRootfs"),
        ("rm", "AutoRemove"),
        ("oom-kill-disable", "OomKillDisable"),
        ("init", "Init"),
    ] {
        if parsed.has(flag) {
            host.insert(field.into(), parsed.on(flag).into());
        }
    }
    if let Some(cpus) = parsed.last("cpus") {
        let value: f64 = cpus.parse().map_err(|_| {
            Failure::new(format!(
                "invalid argument {cpus:?} for \"--cpus\" flag: failed to parse {cpus} as a rational number"
            ))
        })?;
        #[allow(clippy::cast_possible_truncation, reason = "a number of processors")]
        host.insert("NanoCpus".into(), ((value * 1e9).round() as i64).into());
    }
    host.insert(
        "LogConfig".into(),
        json!({
            "Type": parsed.text("log-driver"),
            "Config": pairs(parsed.all("log-opt"), &[])?,
        }),
    );
    host.insert("RestartPolicy".into(), restart(parsed.last("restart").unwrap_or("no"))?);
    for (flag, field) in [("sysctl", "Sysctls"), ("storage-opt", "StorageOpt"), ("annotation", "Annotations")]
    {
        if parsed.has(flag) {
            host.insert(field.into(), pairs(parsed.all(flag), &[])?);
        }
    }
    if parsed.has("tmpfs") {
        let map: Map<String, Value> = parsed
            .all("tmpfs")
            .iter()
            .map(|word| word.split_once(':').unwrap_or((word, "")))
            .map(|(path, options)| (path.to_owned(), options.into()))
            .collect();
        host.insert("Tmpfs".into(), Value::Object(map));
    }
    let ulimits = parsed.all("ulimit").iter().map(|word| ulimit(word)).collect::<Result<Vec<_>, _>>()?;
    if !ulimits.is_empty() {
        host.insert("Ulimits".into(), Value::Array(ulimits));
    }
    let devices = parsed.all("device").iter().map(|word| device(word)).collect::<Result<Vec<_>, _>>()?;
    let (named, cdi): (Vec<_>, Vec<_>) = devices.into_iter().partition(|device| device.get("cdi").is_none());
    host.insert("Devices".into(), Value::Array(named));
    let mut requests: Vec<Value> = Vec::new();
    if !cdi.is_empty() {
        let ids: Vec<Value> = cdi.into_iter().map(|mut device| device["cdi"].take()).collect();
        requests.push(
            json!({"Driver": "cdi", "Count": 0, "DeviceIDs": ids, "Capabilities": null, "Options": null}),
        );
    }
    if let Some(gpus) = parsed.last("gpus") {
        requests.push(gpu(gpus)?);
    }
    if !requests.is_empty() {
        host.insert("DeviceRequests".into(), Value::Array(requests));
    }
    let mounts = parsed.all("mount").iter().map(|word| mount(word)).collect::<Result<Vec<_>, _>>()?;
    if !mounts.is_empty() {
        host.insert("Mounts".into(), Value::Array(mounts));
    }
    for (flag, field, rate) in [
        ("blkio-weight-device", "BlkioWeightDevice", "Weight"),
        ("device-read-bps", "BlkioDeviceReadBps", "Rate"),
        ("device-write-bps", "BlkioDeviceWriteBps", "Rate"),
        ("device-read-iops", "BlkioDeviceReadIOps", "Rate"),
        ("device-write-iops", "BlkioDeviceWriteIOps", "Rate"),
    ] {
        let rows = parsed.all(flag).iter().map(|word| {
            let (path, value) =
                word.rsplit_once(':').ok_or_else(|| Failure::new(format!("bad format: {word}")))?;
            let value = units::parse_bytes(value)
                .ok_or_else(|| Failure::new(format!("invalid rate for device: {word}")))?;
            Ok::<_, Failure>(json!({"Path": path, rate: value}))
        });
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        if !rows.is_empty() {
            host.insert(field.into(), Value::Array(rows));
        }
    }
    Ok(host)
}

/// A seccomp profile named by a file travels as its text.
fn security(words: &[String]) -> Result<Value, Failure> {
    let mut out = Vec::new();
    for word in words {
        let (key, value) = word.split_once('=').or_else(|| word.split_once(':')).unwrap_or((word, ""));
        if value.is_empty() && key != "no-new-privileges" {
            return Err(Failure::new(format!("invalid --security-opt: {word:?}")));
        }
        if key == "seccomp" && value != "unconfined" && value != "builtin" {
            let profile = std::fs::read_to_string(value).map_err(|err| {
                Failure::new(format!(
                    "opening seccomp profile ({value}) failed: open {value}: {}",
                    os_text(&err)
                ))
            })?;
            let profile: Value = serde_json::from_str(&profile).map_err(|err| {
                Failure::new(format!("compacting json for seccomp profile ({value}) failed: {err}"))
            })?;
            out.push(format!("seccomp={profile}"));
        } else {
            out.push(word.clone());
        }
    }
    Ok(if out.is_empty() { Value::Null } else { json!(out) })
}

/// `no`, `always`, `unless-stopped`, `on-failure[:N]`.
pub fn restart(text: &str) -> Result<Value, Failure> {
    let (name, count) = text.split_once(':').unwrap_or((text, ""));
    let count: i64 = if count.is_empty() {
        0
    } else {
        count.parse().map_err(|_| {
            Failure::new("invalid restart policy format: maximum retry count must be an integer")
        })?
    };
    Ok(json!({"Name": name, "MaximumRetryCount": count}))
}

fn ulimit(word: &str) -> Result<Value, Failure> {
    let bad = || {
        Failure::new(format!(
            "invalid argument {word:?} for \"--ulimit\" flag: invalid ulimit argument: {word}"
        ))
    };
    let (name, values) = word.split_once('=').ok_or_else(bad)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| {
        text.parse::<i64>().map_err(|_| {
            Failure::new(format!(
                "invalid argument {word:?} for \"--ulimit\" flag: strconv.ParseInt: parsing {text:?}: invalid syntax"
            ))
        })
    };
    Ok(json!({"Name": name, "Soft": number(soft)?, "Hard": number(hard)?}))
}

/// `HOST[:CONTAINER[:PERMISSIONS]]`, or a CDI name `vendor/class=device`.
fn device(word: &str) -> Result<Value, Failure> {
    if !word.starts_with('/') && word.contains('=') {
        return Ok(json!({"cdi": word}));
    }
    let parts: Vec<&str> = word.split(':').collect();
    let is_mode = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let (host, container, mode) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, mode] if is_mode(mode) => (host, host, mode),
        [host, container] => (host, container, "rwm"),
        [host, container, mode] => (host, container, mode),
        _ => return Err(Failure::new(format!("invalid device specification: {word}"))),
    };
    Ok(json!({"PathOnHost": host, "PathInContainer": container, "CgroupPermissions": mode}))
}

fn gpu(text: &str) -> Result<Value, Failure> {
    let mut request =
        json!({"Driver": "", "Count": 1, "DeviceIDs": null, "Capabilities": [["gpu"]], "Options": {}});
    for field in text.split(',') {
        match field.split_once('=') {
            None if field == "all" => request["Count"] = (-1).into(),
            None => request["Count"] = field.parse::<i64>().map_err(|_| {
                Failure::new(format!("invalid argument {text:?} for \"--gpus\" flag: invalid count ({field}): value must be either \"all\" or an integer"))
            })?.into(),
            Some(("count", "all")) => request["Count"] = (-1).into(),
            Some(("count", count)) => request["Count"] = count.parse::<i64>().unwrap_or(1).into(),
            Some(("driver", driver)) => request["Driver"] = driver.into(),
            Some(("device", ids)) => {
                request["Count"] = 0.into();
                request["DeviceIDs"] = json!(ids.split(',').collect::<Vec<_>>());
            }
            Some((key, _)) => return Err(Failure::new(format!("unexpected key '{key}' in '{field}'"))),
        }
    }
    Ok(request)
}

/// `type=bind,source=…,target=…,readonly,…`
pub fn mount(word: &str) -> Result<Value, Failure> {
    let bad = |text: String| Failure::new(format!("invalid argument {word:?} for \"--mount\" flag: {text}"));
    let mut mount = json!({"Type": "volume"});
    for field in word.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        let truth = || match value {
            "" | "1" | "true" => Ok(true),
            "0" | "false" => Ok(false),
            _ => Err(bad(format!("invalid value for {key}: {value}"))),
        };
        match key.to_lowercase().as_str() {
            "type" => mount["Type"] = value.to_lowercase().into(),
            "source" | "src" => {
                // A relative path is ours to resolve: the engine does not know where we are.
                mount["Source"] = if value.starts_with("./") || value == "." {
                    std::path::absolute(value)
                        .map_or_else(|_| value.to_owned(), |path| path.display().to_string())
                        .into()
                } else {
                    value.into()
                };
            }
            "target" | "dst" | "destination" => mount["Target"] = value.into(),
            "readonly" | "ro" => mount["ReadOnly"] = truth()?.into(),
            "consistency" => mount["Consistency"] = value.to_lowercase().into(),
            "bind-propagation" => mount["BindOptions"]["Propagation"] = value.to_lowercase().into(),
            "bind-nonrecursive" => mount["BindOptions"]["NonRecursive"] = truth()?.into(),
            "bind-recursive" => match value {
                "enabled" => {}
                "disabled" => mount["BindOptions"]["NonRecursive"] = true.into(),
                "writable" => mount["BindOptions"]["ReadOnlyNonRecursive"] = true.into(),
                "readonly" => mount["BindOptions"]["ReadOnlyForceRecursive"] = true.into(),
                _ => {
                    return Err(bad(format!(
                        "invalid value for {key}: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                    )));
                }
            },
            "volume-subpath" => mount["VolumeOptions"]["Subpath"] = value.into(),
            "volume-nocopy" => mount["VolumeOptions"]["NoCopy"] = truth()?.into(),
            "volume-label" => {
                let (label, value) = value.split_once('=').unwrap_or((value, ""));
                mount["VolumeOptions"]["Labels"][label] = value.into();
            }
            "volume-driver" => mount["VolumeOptions"]["DriverConfig"]["Name"] = value.into(),
            "volume-opt" => {
                let (option, value) = value.split_once('=').unwrap_or((value, ""));
                mount["VolumeOptions"]["DriverConfig"]["Options"][option] = value.into();
            }
            "image-subpath" => mount["ImageOptions"]["Subpath"] = value.into(),
            "tmpfs-size" => {
                let size = units::parse_bytes(value)
                    .ok_or_else(|| bad(format!("invalid value for {key}: {value}")))?;
                mount["TmpfsOptions"]["SizeBytes"] = size.into();
            }
            "tmpfs-mode" => {
                let mode = i64::from_str_radix(value, 8)
                    .map_err(|_| bad(format!("invalid value for {key}: {value}")))?;
                mount["TmpfsOptions"]["Mode"] = mode.into();
            }
            _ if field.contains('=') => return Err(bad(format!("unexpected key '{key}' in '{field}'"))),
            _ => return Err(bad(format!("invalid field '{field}' must be a key=value pair"))),
        }
    }
    if mount.get("Target").is_none() {
        return Err(bad("target is required".into()));
    }
    Ok(mount)
}

/// `-v` words: a lone path is an anonymous volume, the rest are binds with our own path made absolute.
fn volumes(words: &[String]) -> (Value, Vec<String>) {
    let (mut anonymous, mut binds) = (Map::new(), Vec::new());
    for word in words {
        match word.split_once(':') {
            None => {
                anonymous.insert(word.clone(), json!({}));
            }
            Some((source, rest)) => {
                let relative =
                    source.starts_with("./") || source.starts_with("../") || source == "." || source == "..";
                let home = std::env::var("HOME").unwrap_or_default();
                let source = if relative {
                    std::path::absolute(source)
                        .map_or_else(|_| source.to_owned(), |path| path.display().to_string())
                } else if let Some(below) = source.strip_prefix("~/") {
                    format!("{home}/{below}")
                } else {
                    source.to_owned()
                };
                binds.push(format!("{source}:{rest}"));
            }
        }
    }
    (Value::Object(anonymous), binds)
}

/// `--publish` and `--expose` as the engine wants them.
fn ports(parsed: &Parsed) -> Result<(Value, Value), Failure> {
    let (mut exposed, mut bindings) = (Map::new(), Map::new());
    for word in parsed.all("publish") {
        for (port, ip, host) in publish(word)? {
            exposed.insert(port.clone(), json!({}));
            let slot = bindings.entry(port).or_insert_with(|| json!([]));
            if let Some(list) = slot.as_array_mut() {
                list.push(json!({"HostIp": ip, "HostPort": host}));
            }
        }
    }
    for word in parsed.all("expose") {
        let (range, proto) = word.split_once('/').unwrap_or((word, "tcp"));
        let (first, last) = range_of(range).ok_or_else(|| {
            Failure::new(format!("invalid range format for --expose: {word}, error: strconv.ParseUint: parsing {range:?}: invalid syntax"))
        })?;
        for port in first..=last {
            exposed.insert(format!("{port}/{proto}"), json!({}));
        }
    }
    Ok((Value::Object(exposed), Value::Object(bindings)))
}

fn range_of(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// `[IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/PROTO]`, or the long form `target=80,published=8080,…`.
fn publish(word: &str) -> Result<Vec<(String, String, String)>, Failure> {
    let bad =
        |what: &str| Failure::new(format!("invalid argument {word:?} for \"-p, --publish\" flag: {what}"));
    if word.contains("target=") {
        let (mut target, mut published, mut proto) = ("", "", "tcp");
        for field in word.split(',') {
            match field.split_once('=') {
                Some(("target", value)) => target = value,
                Some(("published", value)) => published = value,
                Some(("protocol", value)) => proto = value,
                Some(("mode", _)) => {}
                _ => return Err(bad("invalid field")),
            }
        }
        return publish(&format!("{published}:{target}/{proto}"));
    }
    let (rest, proto) = word.rsplit_once('/').unwrap_or((word, "tcp"));
    let proto = proto.to_lowercase();
    if !["tcp", "udp", "sctp"].contains(&proto.as_str()) {
        return Err(Failure::new(format!("invalid proto: {proto}")));
    }
    let (rest, container) = match rest.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, rest),
    };
    if container.is_empty() {
        return Err(Failure::new(format!("no port specified: {word}<empty>")));
    }
    let (ip, host) = match rest {
        None => ("", ""),
        Some(rest) => match rest.rsplit_once(':') {
            Some((ip, host)) => (ip.trim_matches(['[', ']']), host),
            None => ("", rest),
        },
    };
    if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
        let why = if ip.contains(':') {
            format!("address {ip}:: too many colons in address")
        } else {
            "invalid".into()
        };
        return Err(Failure::new(format!("Invalid ip address {ip}: {why}")));
    }
    let (first, last) =
        range_of(container).ok_or_else(|| Failure::new(format!("Invalid containerPort: {container}")))?;
    if host.is_empty() {
        return Ok((first..=last)
            .map(|port| (format!("{port}/{proto}"), ip.to_owned(), String::new()))
            .collect());
    }
    let (low, high) = range_of(host).ok_or_else(|| Failure::new(format!("Invalid hostPort: {host}")))?;
    if high - low != last - first {
        if first == last {
            // Any one of the host's ports will do: the engine chooses.
            return Ok(vec![(format!("{first}/{proto}"), ip.to_owned(), format!("{low}-{high}"))]);
        }
        return Err(Failure::new(format!(
            "invalid ranges specified for container and host Ports: {container} and {host}"
        )));
    }
    Ok((first..=last)
        .zip(low..=high)
        .map(|(port, host)| (format!("{port}/{proto}"), ip.to_owned(), host.to_string()))
        .collect())
}

/// The network mode, and the settings of each endpoint that has some.
fn networks(parsed: &Parsed) -> Result<(String, Value), Failure> {
    let words: Vec<&String> = parsed.all("network").iter().chain(parsed.all("net")).collect();
    let mut endpoints = Map::new();
    let mut mode = String::from("default");
    for (at, word) in words.iter().enumerate() {
        let (name, settings) = endpoint(word)?;
        if at == 0 {
            mode = name.clone();
        }
        if words.len() > 1 || settings.as_object().is_some_and(|settings| !settings.is_empty()) {
            endpoints.insert(name, settings);
        }
    }
    let mut own = Map::new();
    let aliases: Vec<&String> = parsed.all("network-alias").iter().chain(parsed.all("net-alias")).collect();
    if !aliases.is_empty() {
        own.insert("Aliases".into(), json!(aliases));
    }
    let mut ipam = Map::new();
    for (flag, field) in [("ip", "IPv4Address"), ("ip6", "IPv6Address")] {
        if let Some(address) = parsed.last(flag) {
            ipam.insert(field.into(), address.into());
        }
    }
    if parsed.has("link-local-ip") {
        ipam.insert("LinkLocalIPs".into(), json!(parsed.all("link-local-ip")));
    }
    if !ipam.is_empty() {
        own.insert("IPAMConfig".into(), Value::Object(ipam));
    }
    if let Some(mac) = parsed.last("mac-address") {
        own.insert("MacAddress".into(), mac.into());
    }
    if parsed.has("link") && !["default", "bridge", "host", "none"].contains(&mode.as_str()) {
        own.insert("Links".into(), json!(parsed.all("link")));
    }
    if !own.is_empty() {
        let slot = endpoints.entry(mode.clone()).or_insert_with(|| json!({}));
        if let Some(slot) = slot.as_object_mut() {
            slot.extend(own);
        }
    }
    Ok((mode, Value::Object(endpoints)))
}

/// `NAME`, or `name=NAME,alias=…,ip=…,…`.
fn endpoint(word: &str) -> Result<(String, Value), Failure> {
    if !word.contains('=') {
        return Ok((word.to_owned(), json!({})));
    }
    let (mut name, mut settings) = (String::new(), json!({}));
    for field in word.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key {
            "name" => value.clone_into(&mut name),
            "alias" => match settings["Aliases"].as_array_mut() {
                Some(aliases) => aliases.push(value.into()),
                None => settings["Aliases"] = json!([value]),
            },
            "ip" => settings["IPAMConfig"]["IPv4Address"] = value.into(),
            "ip6" => settings["IPAMConfig"]["IPv6Address"] = value.into(),
            "mac-address" => settings["MacAddress"] = value.into(),
            "link-local-ip" => settings["IPAMConfig"]["LinkLocalIPs"] = json!([value]),
            "gw-priority" => settings["GwPriority"] = value.parse::<i64>().unwrap_or(0).into(),
            "driver-opt" => {
                let (option, value) = value.split_once('=').unwrap_or((value, ""));
                settings["DriverOpts"][option] = value.into();
            }
            _ => return Err(Failure::new(format!("invalid field key {key}"))),
        }
    }
    Ok((name, settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports() {
        let read = |word: &str| publish(word).unwrap();
        let row = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(read("80"), [row("80/tcp", "", "")]);
        assert_eq!(read("127.0.0.1:8080:80/udp"), [row("80/udp", "127.0.0.1", "8080")]);
        assert_eq!(read("[::1]:8080:80"), [row("80/tcp", "::1", "8080")]);
        assert_eq!(read("8000-8001:80-81"), [row("80/tcp", "", "8000"), row("81/tcp", "", "8001")]);
        assert_eq!(read("8000-8010:80"), [row("80/tcp", "", "8000-8010")]);
        assert_eq!(read("target=80,published=8080"), [row("80/tcp", "", "8080")]);
        assert!(publish("1-2:1-3").is_err());
    }

    #[test]
    fn mounts() {
        let read = mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave").unwrap();
        assert_eq!(
            read,
            json!({"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true, "BindOptions": {"Propagation": "rslave"}})
        );
        assert!(mount("type=bind").unwrap_err().text.contains("target is required"));
    }

    #[test]
    fn names_get_their_tag() {
        assert_eq!(with_tag("a"), "a:latest");
        assert_eq!(with_tag("h:5000/a"), "h:5000/a:latest");
        assert_eq!(with_tag("a:1"), "a:1");
        assert_eq!(with_tag("a@sha256:00"), "a@sha256:00");
    }
}
