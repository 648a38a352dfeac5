//! The commands: what each is called, what it takes, and who runs it.

pub mod attach;
pub mod complete;
pub mod container;
pub mod copy;
pub mod create;
pub mod image;
pub mod inspect;
pub mod list;
pub mod network;
pub mod registry;
pub mod system;
pub mod volume;

use std::future::Future;
use std::pin::Pin;

use serde_json::Value;

use crate::client::{self, Client};
use crate::context::Global;
use crate::flags::{Flag, Parsed};

/// How a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: i32,
    /// What is written to standard error; nothing if empty.
    pub text: String,
}

impl Failure {
    /// Exit code 1 and a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    /// Only an exit code.
    pub fn code(code: i32) -> Self {
        Self { code, text: String::new() }
    }
}

impl From<client::Error> for Failure {
    fn from(err: client::Error) -> Self {
        Self::new(err.to_string())
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<std::io::Error> for Failure {
    fn from(err: std::io::Error) -> Self {
        // A reader that has seen enough (`| head`) is no failure to talk about.
        if err.kind() == std::io::ErrorKind::BrokenPipe {
            Self::code(141)
        } else {
            Self::new(err.to_string())
        }
    }
}

/// What a command gives back.
pub type Done = Result<(), Failure>;

/// What a command runs with.
pub struct Env {
    /// Flags before the command.
    pub global: Global,
    /// The engine.
    pub client: Client,
    /// The command's own flags and arguments.
    pub parsed: Parsed,
}

impl Env {
    /// The arguments.
    pub fn args(&self) -> &[String] {
        &self.parsed.args
    }

    /// An argument, empty if it is not there.
    pub fn arg(&self, at: usize) -> &str {
        self.parsed.args.get(at).map_or("", String::as_str)
    }

    /// `filters`, from `--filter key=value` given any number of times, as a query's value.
    ///
    /// # Errors
    /// A filter without `=`.
    pub fn filters(&self) -> Result<String, Failure> {
        let mut map = serde_json::Map::new();
        for filter in self.parsed.all("filter") {
            let Some((key, value)) = filter.split_once('=') else {
                return Err(Failure::new(format!(
                    "invalid argument {filter:?} for \"-f, --filter\" flag: bad format of filter (expected name=value)"
                )));
            };
            let set =
                map.entry(key.trim().to_lowercase()).or_insert_with(|| Value::Object(serde_json::Map::new()));
            set[value.trim()] = Value::Bool(true);
        }
        Ok(if map.is_empty() { String::new() } else { client::escape(&Value::Object(map).to_string()) })
    }
}

type Runner = for<'a> fn(&'a Env) -> Pin<Box<dyn Future<Output = Done> + 'a>>;

/// One command.
pub struct Command {
    /// What it is called, without `docker`: every spelling.
    pub names: &'static [&'static str],
    /// The rest of the usage line.
    pub usage: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Its flags.
    pub flags: &'static [&'static [Flag]],
    /// Whether flags may come after arguments.
    pub interspersed: bool,
    /// How many arguments it takes, at least and at most.
    pub args: (usize, usize),
    /// What runs it.
    pub run: Runner,
}

/// Any number of arguments.
pub const MANY: usize = usize::MAX;

/// Boxes an async command function into a [`Runner`].
macro_rules! runner {
    ($function:path) => {
        |env| Box::pin($function(env))
    };
}
pub(crate) use runner;

/// All commands.
pub fn all() -> impl Iterator<Item = &'static Command> {
    [
        create::COMMANDS,
        attach::COMMANDS,
        container::COMMANDS,
        copy::COMMANDS,
        list::COMMANDS,
        inspect::COMMANDS,
        image::COMMANDS,
        registry::COMMANDS,
        network::COMMANDS,
        volume::COMMANDS,
        system::COMMANDS,
        complete::COMMANDS,
    ]
    .into_iter()
    .flatten()
}

/// Runs `act` for each argument, prints what it returns, and collects the failures, as Docker does for `rm a b c`.
pub async fn each<'a, F, Fut>(args: &'a [String], mut act: F) -> Done
where
    F: FnMut(&'a str) -> Fut,
    Fut: Future<Output = Result<String, Failure>>,
{
    let mut failures = Vec::new();
    for arg in args {
        match act(arg).await {
            Ok(line) if line.is_empty() => {}
            Ok(line) => println!("{line}"),
            Err(failure) => failures.push(failure.text),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(failures.join("\n"))) }
}

/// The first twelve digits of an id.
pub fn short(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

/// A field's text, empty if it is none.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
