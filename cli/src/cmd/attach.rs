//! Commands with a live stream: `attach`, `exec`, `start`, `logs`.

use serde_json::{Value, json};

use super::{Command, Done, Env, Failure, MANY, runner, text};
use crate::client::{self, escape, segment};
use crate::flags::{Flag, list, on, one};
use crate::stream::{self, End};
use crate::tty;

const KEYS: Flag = one(None, "detach-keys", "string", "Override the key sequence for detaching a container");

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["attach", "container attach"],
        usage: "[OPTIONS] CONTAINER",
        about: "Attach local standard input, output, and error streams to a running container",
        flags: &[&[
            KEYS,
            on(None, "no-stdin", "Do not attach STDIN"),
            on(None, "sig-proxy", "Proxy all received signals to the process"),
        ]],
        interspersed: true,
        args: (1, 1),
        run: runner!(attach),
    },
    Command {
        names: &["exec", "container exec"],
        usage: "[OPTIONS] CONTAINER COMMAND [ARG...]",
        about: "Execute a command in a running container",
        flags: &[&[
            on(Some('d'), "detach", "Detached mode: run command in the background"),
            KEYS,
            list(Some('e'), "env", "list", "Set environment variables"),
            list(None, "env-file", "list", "Read in a file of environment variables"),
            on(Some('i'), "interactive", "Keep STDIN open even if not attached"),
            on(None, "privileged", "Give extended privileges to the command"),
            on(Some('t'), "tty", "Allocate a pseudo-TTY"),
            one(Some('u'), "user", "string", "Username or UID (format: \"<name|uid>[:<group|gid>]\")"),
            one(Some('w'), "workdir", "string", "Working directory inside the container"),
        ]],
        interspersed: false,
        args: (2, MANY),
        run: runner!(exec),
    },
    Command {
        names: &["start", "container start"],
        usage: "[OPTIONS] CONTAINER [CONTAINER...]",
        about: "Start one or more stopped containers",
        flags: &[&[
            on(Some('a'), "attach", "Attach STDOUT/STDERR and forward signals"),
            KEYS,
            on(Some('i'), "interactive", "Attach container's STDIN"),
        ]],
        interspersed: true,
        args: (1, MANY),
        run: runner!(start),
    },
    Command {
        names: &["logs", "container logs"],
        usage: "[OPTIONS] CONTAINER",
        about: "Fetch the logs of a container",
        flags: &[&[
            on(None, "details", "Show extra details provided to logs"),
            on(Some('f'), "follow", "Follow log output"),
            one(
                None,
                "since",
                "string",
                "Show logs since timestamp (e.g. \"2013-01-02T13:23:37Z\") or relative (e.g. \"42m\")",
            ),
            one(Some('n'), "tail", "string", "Number of lines to show from the end of the logs"),
            on(Some('t'), "timestamps", "Show timestamps"),
            one(None, "until", "string", "Show logs before a timestamp or relative time"),
        ]],
        interspersed: true,
        args: (1, 1),
        run: runner!(logs),
    },
];

/// What attaching needs to know of a container.
struct Target {
    id: String,
    tty: bool,
    stdin: bool,
}

async fn target(env: &Env, name: &str) -> Result<(Target, Value), Failure> {
    let inspected = env.client.get(&format!("/containers/{}/json", segment(name))).await?;
    let config = &inspected["Config"];
    let target = Target {
        id: text(&inspected, "Id").to_owned(),
        tty: config["Tty"].as_bool().unwrap_or(false),
        stdin: config["OpenStdin"].as_bool().unwrap_or(false),
    };
    Ok((target, inspected))
}

/// The bytes that detach: those of the command line, else of config.json, else Docker's.
///
/// # Errors
/// They name no keys.
pub fn detach_keys(env: &Env) -> Result<Vec<u8>, Failure> {
    let file = env.global.config_file()?;
    let keys = env.parsed.last("detach-keys").or_else(|| file["detachKeys"].as_str());
    Ok(stream::keys(keys.unwrap_or_default())?)
}

/// Attaches and stays until the stream ends; the container's exit code becomes ours.
async fn hold(env: &Env, target: &Target, input: bool, start: bool) -> Done {
    let detach = detach_keys(env)?;
    let path = format!(
        "/containers/{}/attach?stream=1&stdout=1&stderr=1&stdin={}{}",
        target.id,
        u8::from(input),
        match env.parsed.last("detach-keys") {
            Some(keys) => format!("&detachKeys={}", escape(keys)),
            None => String::new(),
        }
    );
    let (_, connection) = env.client.hijack(&path, None).await?;
    let condition = if start { "next-exit" } else { "not-running" };
    let wait = env
        .client
        .open(
            http::Method::POST,
            &format!("/containers/{}/wait?condition={condition}", target.id),
            &[],
            client::empty(),
        )
        .await?;
    let raw = (target.tty && input).then(tty::Raw::stdin);
    let session = tokio::spawn(stream::session(connection, target.tty, input, detach));
    let mut side = None;
    if !target.tty && env.parsed.on_or("sig-proxy", true) {
        // Before the start, so that a signal at the first line of output finds the way.
        side = Some(tokio::spawn(super::create::proxy(env.global.client()?, target.id.clone())));
    }
    if start && let Err(err) = env.client.post(&format!("/containers/{}/start", target.id), None).await {
        drop(raw);
        return Err(err.into());
    }
    if target.tty {
        side = Some(tokio::spawn(super::create::resize(
            env.global.client()?,
            format!("/containers/{}/resize", target.id),
        )));
    }
    let ended = session.await.map_err(|err| Failure::new(err.to_string()))??;
    drop(raw);
    if let Some(side) = side {
        side.abort();
    }
    if ended == End::Detached {
        return Ok(());
    }
    let answer: Value =
        serde_json::from_slice(&client::read(wait).await?).map_err(|err| Failure::new(err.to_string()))?;
    match answer["StatusCode"].as_i64().unwrap_or(0) {
        0 => Ok(()),
        code => Err(Failure::code(i32::try_from(code & 0xff).unwrap_or(1))),
    }
}

async fn attach(env: &Env) -> Done {
    let (target, inspected) = target(env, env.arg(0)).await?;
    let state = &inspected["State"];
    let refuse = |text: &str| Err(Failure::new(text));
    if state["Running"] != true {
        return refuse("You cannot attach to a stopped container, start it first");
    }
    if state["Paused"] == true {
        return refuse("You cannot attach to a paused container, unpause it first");
    }
    if state["Restarting"] == true {
        return refuse("You cannot attach to a restarting container, wait until it is running");
    }
    let input = target.stdin && !env.parsed.on("no-stdin");
    hold(env, &target, input, false).await
}

async fn start(env: &Env) -> Done {
    let (with_output, with_input) = (env.parsed.on("attach"), env.parsed.on("interactive"));
    if with_output || with_input {
        if env.args().len() > 1 {
            return Err(Failure::new("you cannot start and attach multiple containers at once"));
        }
        let (target, _) = target(env, env.arg(0)).await?;
        let input = with_input && target.stdin;
        return hold(env, &target, input, true).await;
    }
    let mut failed = Vec::new();
    for name in env.args() {
        match env.client.post(&format!("/containers/{}/start", segment(name)), None).await {
            Ok(_) => println!("{name}"),
            Err(err) => {
                eprintln!("{err}");
                failed.push(name.as_str());
            }
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("Error: failed to start containers: {}", failed.join(", "))))
    }
}

async fn exec(env: &Env) -> Done {
    let parsed = &env.parsed;
    let (detach, tty, input) = (parsed.on("detach"), parsed.on("tty"), parsed.on("interactive"));
    if tty && input && !detach && !tty::is_terminal(std::os::fd::AsFd::as_fd(&std::io::stdin())) {
        return Err(Failure::new("the input device is not a TTY"));
    }
    let mut variables = Vec::new();
    for file in parsed.all("env-file") {
        let text = std::fs::read_to_string(file)
            .map_err(|err| Failure::new(format!("open {file}: {}", super::create::os_text(&err))))?;
        variables.extend(
            text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned),
        );
    }
    for word in parsed.all("env") {
        if word.contains('=') {
            variables.push(word.clone());
        } else if let Ok(value) = std::env::var(word) {
            variables.push(format!("{word}={value}"));
        }
    }
    let body = json!({
        "User": parsed.text("user"),
        "Privileged": parsed.on("privileged"),
        "Tty": tty,
        "AttachStdin": input && !detach,
        "AttachStdout": !detach,
        "AttachStderr": !detach,
        "DetachKeys": parsed.text("detach-keys"),
        "Env": variables,
        "WorkingDir": parsed.text("workdir"),
        "Cmd": &env.args()[1..],
        "ConsoleSize": tty::size().filter(|_| tty).map(|(rows, columns)| [rows, columns]),
    });
    let name = env.arg(0);
    let created = env.client.post(&format!("/containers/{}/exec", segment(name)), Some(&body)).await?;
    let id = text(&created, "Id").to_owned();
    let body = json!({"Detach": detach, "Tty": tty});
    if detach {
        env.client.post(&format!("/exec/{id}/start"), Some(&body)).await?;
        return Ok(());
    }
    let raw = (tty && input).then(tty::Raw::stdin);
    let (_, connection) = env.client.hijack(&format!("/exec/{id}/start"), Some(&body)).await?;
    let resizer = match tty {
        true => Some(tokio::spawn(super::create::resize(env.global.client()?, format!("/exec/{id}/resize")))),
        false => None,
    };
    let ended = stream::session(connection, tty, input, detach_keys(env)?).await;
    drop(raw);
    if let Some(resizer) = resizer {
        resizer.abort();
    }
    if ended? == End::Detached {
        return Ok(());
    }
    match env.client.get(&format!("/exec/{id}/json")).await?["ExitCode"].as_i64().unwrap_or(0) {
        0 => Ok(()),
        code => Err(Failure::code(i32::try_from(code & 0xff).unwrap_or(1))),
    }
}

/// A time as people give it to `--since`: a Unix time, a date, or a span back from now.
pub fn moment(text: &str) -> Result<String, Failure> {
    if text.is_empty() {
        return Ok(String::new());
    }
    if let Some(span) = crate::fmt::units::parse_duration(text) {
        let at = jiff::Timestamp::now().as_nanosecond() - i128::from(span);
        return Ok(format!("{}.{:09}", at.div_euclid(1_000_000_000), at.rem_euclid(1_000_000_000)));
    }
    if text.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Ok(text.to_owned());
    }
    let parsed: Option<jiff::Timestamp> = text.parse().ok().or_else(|| {
        let local: jiff::civil::DateTime = text.parse().ok().or_else(|| {
            text.parse::<jiff::civil::Date>().ok().map(|date| date.to_datetime(jiff::civil::Time::midnight()))
        })?;
        local.to_zoned(jiff::tz::TimeZone::system()).ok().map(|zoned| zoned.timestamp())
    });
    let at = parsed.ok_or_else(|| {
        Failure::new(format!(
            "invalid value for \"since\": failed to parse value as time or duration: {text:?}"
        ))
    })?;
    Ok(format!("{}.{:09}", at.as_second(), at.subsec_nanosecond()))
}

async fn logs(env: &Env) -> Done {
    let (target, _) = target(env, env.arg(0)).await?;
    let parsed = &env.parsed;
    let path = format!(
        "/containers/{}/logs?stdout=1&stderr=1&follow={}&timestamps={}&details={}&tail={}&since={}&until={}",
        target.id,
        u8::from(parsed.on("follow")),
        u8::from(parsed.on("timestamps")),
        u8::from(parsed.on("details")),
        escape(parsed.last("tail").unwrap_or("all")),
        escape(&moment(parsed.text("since"))?),
        escape(&moment(parsed.text("until"))?),
    );
    let response = env.client.open(http::Method::GET, &path, &[], client::empty()).await?;
    let body = http_body_util::BodyExt::into_data_stream(response.into_body());
    let reader =
        tokio_util::io::StreamReader::new(futures_util::TryStreamExt::map_err(body, std::io::Error::other));
    stream::demultiplex(reader, target.tty).await?;
    Ok(())
}
