//! The program `containerd-rs`: flags over the configuration file, then the daemon until a signal ends it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use containerd_rs::config::{Config, ConfigError};
use containerd_rs::{Daemon, version};

fn main() -> ExitCode {
    let matches = command().get_matches();
    match run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("containerd-rs: {}", containerd_rs::chain(&*err));
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    let path =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("path").help(help);
    Command::new("containerd-rs")
        .about("The container supervisor: content, snapshots, images, containers and tasks behind containerd's API")
        .version(version::LONG)
        .disable_version_flag(true)
        .arg(Arg::new("version").long("version").short('v').action(ArgAction::Version).help("print the version"))
        .arg(path("config", "path to the configuration file").short('c'))
        .arg(Arg::new("log-level").long("log-level").short('l').value_name("level").help(
            "logging level: trace, debug, info, warn, error, fatal, panic",
        ))
        .arg(path("address", "address of the gRPC server").short('a'))
        .arg(path("root", "root directory"))
        .arg(path("state", "state directory"))
        .subcommand(
            Command::new("config")
                .about("information on the configuration")
                .subcommand_required(true)
                .subcommand(Command::new("default").about("print the default configuration"))
                .subcommand(Command::new("dump").about("print the configuration in effect"))
                .subcommand(Command::new("migrate").about("print the file in the current version")),
        )
}

fn run(matches: &ArgMatches) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(("config", action)) = matches.subcommand() {
        let config = match action.subcommand_name() {
            Some("default") => Config::default(),
            // Reading brings an older file to the current version, so these are the same.
            _ => configure(matches)?,
        };
        print!("{}", config.to_toml());
        return Ok(());
    }
    let config = configure(matches)?;
    config.validate()?;
    containerd_rs::logging(&config);
    // Requests are short and mostly wait for a disk or a shim; what blocks longer has threads of its own.
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().min(4));
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(64)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .enable_all()
        .build()?
        .block_on(async {
            tokio::spawn(async {
                let mut rest = sys::memory::Rest::default();
                loop {
                    tokio::time::sleep(rest.pause()).await;
                    rest.look();
                }
            });
            Daemon::run(config).await
        })
        .map_err(Into::into)
}

/// The file, and the flags over it.
fn configure(matches: &ArgMatches) -> Result<Config, ConfigError> {
    let flag = |name: &str| matches.try_get_one::<String>(name).ok().flatten().map(PathBuf::from);
    let mut config = Config::load(flag("config").as_deref())?;
    if let Some(address) = flag("address") {
        config.grpc.address = address;
    }
    if let Some(root) = flag("root") {
        config.root = root;
    }
    if let Some(state) = flag("state") {
        config.state = state;
    }
    if let Some(level) = flag("log-level") {
        config.debug.level = level.to_string_lossy().into_owned();
    }
    Ok(config)
}
