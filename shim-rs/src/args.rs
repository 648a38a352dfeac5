//! The command line, in the form Go's `flag` package accepts: `-name value`, `-name=value`, one dash or two, flags before the action.

use std::path::PathBuf;

/// What this invocation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a shim and answer with its address.
    Start,
    /// Clean up after a shim that is gone.
    Delete,
    /// Describe the runtime.
    Info,
    /// `-v`.
    Version,
    /// `-help`.
    Help,
    /// Serve on `-socket` in this process: no action was named.
    Serve,
}

/// A parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// Of the container or sandbox.
    pub id: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// The program that publishes events for shims that cannot; unused while containerd has a ttrpc address.
    pub publish_binary: String,
    /// The bundle, where it is not the working directory.
    pub bundle: Option<PathBuf>,
    /// Whether to log more.
    pub debug: bool,
    /// The socket to serve on, for [`Action::Serve`].
    pub socket: Option<PathBuf>,
}

/// Why a command line makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgsError {
    /// A flag nobody knows.
    #[error("flag provided but not defined: -{0}")]
    UnknownFlag(String),
    /// A flag at the end without its value.
    #[error("flag needs an argument: -{0}")]
    MissingValue(String),
    /// A switch with a value that is no boolean.
    #[error("invalid boolean value {value:?} for -{flag}")]
    NotBoolean {
        /// Which switch.
        flag: String,
        /// What was given.
        value: String,
    },
    /// An action nobody knows.
    #[error("unknown action {0:?}")]
    UnknownAction(String),
    /// `start` and `delete` act within a namespace.
    #[error("shim namespace cannot be empty")]
    NoNamespace,
    /// `start` and `delete` act on a container whose id is a single path component.
    #[error("invalid container id {0:?}")]
    BadId(String),
}

impl Args {
    /// Parses what follows the program's name.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Args, ArgsError> {
        let mut parsed = Args {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            publish_binary: String::new(),
            bundle: None,
            debug: false,
            socket: None,
        };
        let mut special = None;
        let mut action = None;
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                // Flags end at the first word; what follows it belongs to nobody.
                action = Some(argument);
                break;
            };
            if flag == "-" {
                action = arguments.next();
                break;
            }
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "v" | "version" | "info" | "h" | "help" | "debug" => {
                    if !boolean(name, inline.as_deref())? {
                        continue;
                    }
                    match name {
                        "debug" => parsed.debug = true,
                        "info" => special = Some(special.unwrap_or(Action::Info)),
                        "v" | "version" => special = Some(Action::Version),
                        _ => special = Some(Action::Help),
                    }
                }
                "namespace" | "id" | "address" | "publish-binary" | "bundle" | "socket" | "debug-socket" => {
                    let value = inline
                        .or_else(|| arguments.next())
                        .ok_or_else(|| ArgsError::MissingValue(name.to_owned()))?;
                    match name {
                        "namespace" => parsed.namespace = value,
                        "id" => parsed.id = value,
                        "address" => parsed.address = value,
                        "publish-binary" => parsed.publish_binary = value,
                        "bundle" => {
                            parsed.bundle = Some(value).filter(|path| !path.is_empty()).map(PathBuf::from)
                        }
                        "socket" => {
                            parsed.socket = Some(value).filter(|path| !path.is_empty()).map(PathBuf::from)
                        }
                        // Go's shim serves profiles there; there is nothing of the kind here.
                        _ => {}
                    }
                }
                _ => return Err(ArgsError::UnknownFlag(name.to_owned())),
            }
        }
        if let Some(special) = special {
            parsed.action = special;
            return Ok(parsed);
        }
        parsed.action = match action.as_deref() {
            Some("start") => Action::Start,
            Some("delete") => Action::Delete,
            None | Some("") => Action::Serve,
            Some(other) => return Err(ArgsError::UnknownAction(other.to_owned())),
        };
        if parsed.namespace.is_empty() {
            return Err(ArgsError::NoNamespace);
        }
        // Both become part of paths.
        for name in [&parsed.id, &parsed.namespace] {
            if (name.is_empty() && parsed.action != Action::Serve)
                || name.contains('/')
                || name == "."
                || name == ".."
            {
                return Err(ArgsError::BadId(name.clone()));
            }
        }
        Ok(parsed)
    }
}

fn boolean(flag: &str, value: Option<&str>) -> Result<bool, ArgsError> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(ArgsError::NotBoolean { flag: flag.to_owned(), value: value.to_owned() }),
    }
}

/// The text of `-help`.
pub fn usage(program: &str) -> String {
    format!(
        "Usage of {program}:
  -namespace string       namespace that owns the shim
  -id string              id of the task
  -address string         grpc address back to main containerd
  -publish-binary string  path to publish binary, used when containerd offers no ttrpc address
  -bundle string          path to the bundle if not workdir
  -socket string          socket path to serve
  -debug                  enable debug output in logs
  -info                   get the option protobuf from stdin, print the shim info protobuf to stdout, and exit
  -v, -version            show the shim version and exit
Actions: start, delete
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerd_s_own_command_lines() {
        let start = parse(
            "-namespace moby -address /run/c.sock -publish-binary /usr/bin/containerd -id abc -debug start",
        )
        .unwrap();
        assert_eq!((start.action, start.id.as_str(), start.debug), (Action::Start, "abc", true));
        let delete = parse("--namespace=moby -id abc -bundle /b delete").unwrap();
        assert_eq!((delete.action, delete.bundle), (Action::Delete, Some("/b".into())));
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-namespace n -socket /s").unwrap().action, Action::Serve);
    }

    #[test]
    fn nonsense_is_named() {
        for (line, error) in [
            ("-x", ArgsError::UnknownFlag("x".into())),
            ("-id", ArgsError::MissingValue("id".into())),
            ("-debug=maybe", ArgsError::NotBoolean { flag: "debug".into(), value: "maybe".into() }),
            ("-namespace n -id a stop", ArgsError::UnknownAction("stop".into())),
            ("-id a start", ArgsError::NoNamespace),
            ("-namespace n start", ArgsError::BadId(String::new())),
            ("-namespace n -id ../x start", ArgsError::BadId("../x".into())),
            ("-namespace .. -id x delete", ArgsError::BadId("..".into())),
        ] {
            assert_eq!(parse(line).unwrap_err(), error, "{line}");
        }
    }
}
