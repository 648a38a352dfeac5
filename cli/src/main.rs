//! docker-rs: Docker's command line, bundled. Flags, output, exit codes and configuration are `docker`'s.

mod client;
mod cmd;
mod context;
mod flags;
mod fmt;
mod plugin;
mod stream;
mod tty;

use std::process::ExitCode;

use cmd::{Command, Env, Failure};
use context::Global;
use flags::{Flag, on, one};

/// The flags that may stand before the command.
const GLOBAL: &[Flag] = &[
    one(None, "config", "string", "Directory of the client's configuration"),
    one(Some('c'), "context", "string", "Context to use for this command"),
    on(Some('D'), "debug", "Enable debug mode"),
    one(Some('H'), "host", "string", "Daemon socket to connect to"),
    one(
        Some('l'),
        "log-level",
        "string",
        "Logging level (\"debug\", \"info\", \"warn\", \"error\", \"fatal\")",
    ),
    on(None, "tls", "Use TLS; implied by --tlsverify"),
    one(None, "tlscacert", "string", "Trust certs signed only by this CA"),
    one(None, "tlscert", "string", "Path to TLS certificate file"),
    one(None, "tlskey", "string", "Path to TLS key file"),
    on(None, "tlsverify", "Use TLS and verify the remote"),
    on(Some('v'), "version", "Print version information and quit"),
    on(None, "help", "Print usage"),
];

fn main() -> ExitCode {
    // `println!` panics when the reader has gone; a filter just ends then (128 + SIGPIPE).
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        if text.contains("failed printing to std") {
            std::process::exit(141);
        }
        eprintln!("docker: {text}");
    }));
    let words: Vec<String> = std::env::args().skip(1).collect();
    let code = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(start(words));
            // A read of the terminal may hang for ever in a blocking thread: it must not hold us up.
            runtime.shutdown_background();
            code
        }
        Err(err) => {
            eprintln!("docker: {err}");
            1
        }
    };
    ExitCode::from(u8::try_from(code.clamp(0, 255)).unwrap_or(1))
}

async fn start(words: Vec<String>) -> i32 {
    let parsed = match flags::parse(GLOBAL, &words, false) {
        Ok(parsed) => parsed,
        Err(err) => {
            eprintln!(
                "{err}\n\nUsage:  docker [OPTIONS] COMMAND [ARG...]\n\nRun 'docker --help' for more information"
            );
            return 125;
        }
    };
    let path = |name: &str| parsed.last(name).map(Into::into);
    let global = Global {
        host: parsed.last("host").map(str::to_owned),
        context: parsed.last("context").map(str::to_owned),
        config: path("config"),
        tls: parsed.on("tls"),
        tls_verify: parsed.on("tlsverify"),
        ca: path("tlscacert"),
        cert: path("tlscert"),
        key: path("tlskey"),
    };
    if parsed.on("version") {
        println!("Docker version {}, build dockerd-rs", env!("CARGO_PKG_VERSION"));
        return 0;
    }
    let words = parsed.args.as_slice();
    if words.is_empty() || parsed.on("help") && words.is_empty() {
        print!("{}", overview());
        return 0;
    }
    if words[0] == "help" {
        return match find(&words[1..]) {
            Some((command, _)) => {
                print!("{}", command_help(command));
                0
            }
            None => {
                print!("{}", overview());
                0
            }
        };
    }
    let Some((command, used)) = find(words) else { return no_such_command(&global, words) };
    run(command, global, &words[used..]).await
}

/// The command that `words` begin with, and how many of them name it: the longest match.
fn find(words: &[String]) -> Option<(&'static Command, usize)> {
    let matches = |name: &str| {
        let parts: Vec<&str> = name.split(' ').collect();
        (parts.len() <= words.len() && parts.iter().zip(words).all(|(part, word)| part == word))
            .then_some(parts.len())
    };
    cmd::all()
        .flat_map(|command| command.names.iter().filter_map(move |name| Some((command, matches(name)?))))
        .max_by_key(|(_, used)| *used)
}

async fn run(command: &'static Command, global: Global, words: &[String]) -> i32 {
    let mut flags: Vec<Flag> = command.flags.iter().flat_map(|flags| flags.iter().copied()).collect();
    flags.push(on(None, "help", "Print usage"));
    let name = command.names[0];
    let parsed = match flags::parse(&flags, words, command.interspersed) {
        Ok(parsed) => parsed,
        Err(err) => {
            eprintln!(
                "{err}\n\nUsage:  docker {name} {}\n\nRun 'docker {name} --help' for more information",
                command.usage
            );
            return 125;
        }
    };
    if parsed.on("help") {
        print!("{}", command_help(command));
        return 0;
    }
    if let Some(err) = wrong_count(command, parsed.args.len()) {
        let see = if err.contains("at least") { "See" } else { "Run" };
        eprintln!(
            "docker: 'docker {name}' {err}\n\nUsage:  docker {name} {}\n\n{see} 'docker {name} --help' for more information",
            command.usage
        );
        return 1;
    }
    let client = match global.client() {
        Ok(client) => client,
        Err(err) => {
            eprintln!("{err}");
            return 1;
        }
    };
    match (command.run)(&Env { global, client, parsed }).await {
        Ok(()) => 0,
        // A flag whose value makes no sense is told like a flag that does not exist.
        Err(Failure { text, .. }) if text.starts_with("invalid argument ") && text.contains(" flag: ") => {
            eprintln!(
                "{text}\n\nUsage:  docker {name} {}\n\nRun 'docker {name} --help' for more information",
                command.usage
            );
            125
        }
        Err(Failure { code, text }) => {
            if !text.is_empty() {
                eprintln!("{text}");
            }
            code
        }
    }
}

/// Docker's complaint about the number of arguments.
fn wrong_count(command: &Command, count: usize) -> Option<String> {
    let (least, most) = command.args;
    let plural = |n: usize| if n == 1 { "argument" } else { "arguments" };
    if count >= least && count <= most {
        None
    } else if most == 0 {
        Some("accepts no arguments".into())
    } else if least == most {
        Some(format!("requires {least} {}", plural(least)))
    } else if count < least {
        Some(format!("requires at least {least} {}", plural(least)))
    } else if least == 0 {
        Some(format!("requires at most {most} {}", plural(most)))
    } else {
        Some(format!("requires at least {least} and at most {most} arguments"))
    }
}

fn command_help(command: &Command) -> String {
    let name = command.names[0];
    let mut flags: Vec<Flag> = command.flags.iter().flat_map(|flags| flags.iter().copied()).collect();
    flags.sort_by_key(|flag| flag.long);
    let mut out = format!("Usage:  docker {name} {}\n\n{}\n", command.usage, command.about);
    if command.names.len() > 1 {
        let names: Vec<String> = command.names.iter().rev().map(|name| format!("docker {name}")).collect();
        out.push_str(&format!("\nAliases:\n  {}\n", names.join(", ")));
    }
    if !flags.is_empty() {
        out.push_str(&format!("\nOptions:\n{}", flags::help(&flags)));
    }
    out
}

fn overview() -> String {
    let mut out = String::from(
        "Usage:  docker [OPTIONS] COMMAND\n\nA self-sufficient runtime for containers\n\nCommands:\n",
    );
    let mut rows: Vec<(&str, &str)> = cmd::all()
        .filter(|command| !command.names[0].contains(' ') && command.names[0] != cmd::complete::ASK)
        .map(|c| (c.names[0], c.about))
        .collect();
    rows.sort_unstable();
    for (name, about) in rows {
        out.push_str(&format!("  {name:<11} {about}\n"));
    }
    out.push_str("\nManagement Commands:\n");
    for (name, about) in [
        ("container", "Manage containers"),
        ("context", "Manage contexts"),
        ("image", "Manage images"),
        ("network", "Manage networks"),
        ("system", "Manage Docker"),
        ("volume", "Manage volumes"),
    ] {
        out.push_str(&format!("  {name:<11} {about}\n"));
    }
    out.push_str(&format!("\nGlobal Options:\n{}", flags::help(GLOBAL)));
    out.push_str("\nRun 'docker COMMAND --help' for more information on a command.\n");
    out
}

/// A command that is not ours may be a plugin's (compose, buildx), or a group without its verb.
fn no_such_command(global: &Global, words: &[String]) -> i32 {
    let group = format!("{} ", words[0]);
    let verbs: Vec<&Command> =
        cmd::all().filter(|command| command.names.iter().any(|name| name.starts_with(&group))).collect();
    if !verbs.is_empty() {
        if let Some(word) = words.get(1).filter(|word| !word.starts_with('-')) {
            eprintln!(
                "docker: unknown command: docker {} {word}\n\nUsage:  docker {}{}\n\nRun 'docker {} --help' for more information",
                words[0],
                words[0],
                if words[0] == "volume" { " COMMAND" } else { "" },
                words[0]
            );
            return 1;
        }
        println!("Usage:  docker {} COMMAND\n\nCommands:", words[0]);
        for command in verbs {
            let verb = command.names.iter().find_map(|name| name.strip_prefix(&group)).unwrap_or_default();
            println!("  {verb:<11} {}", command.about);
        }
        return 0;
    }
    match plugin::run(global, words) {
        Some(code) => code,
        None => {
            eprintln!(
                "docker: unknown command: docker {}\n\nRun 'docker --help' for more information",
                words[0]
            );
            1
        }
    }
}
