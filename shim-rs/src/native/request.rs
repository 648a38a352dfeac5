//! The description of native streams that dockerd-rs leaves in a file.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The version this shim understands.
const VERSION: u32 = 1;

/// Where a process's streams lead and what is to be kept of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Request {
    version: u32,
    /// Where to listen for clients.
    pub socket: PathBuf,
    /// Whether the process gets an input.
    #[serde(default)]
    pub stdin: bool,
    /// Whether the input ends with the first client's.
    #[serde(default)]
    pub stdin_once: bool,
    /// Where to record the exit.
    #[serde(default)]
    pub exit_record: Option<PathBuf>,
    /// What log to write.
    #[serde(default)]
    pub log: Option<Log>,
}

/// A log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Log {
    /// `json-file`, `local` or `none`.
    pub driver: String,
    /// The live file.
    #[serde(default)]
    pub path: PathBuf,
    /// When to rotate, in bytes; negative or absent is never.
    #[serde(default = "unlimited")]
    pub max_size: i64,
    /// How many files there may be, the live one included.
    #[serde(default = "one")]
    pub max_file: u32,
    /// Whether rotated files are compressed.
    #[serde(default)]
    pub compress: bool,
    /// Extra attributes of each line.
    #[serde(default)]
    pub attrs: BTreeMap<String, String>,
    /// The number of the next record, when those of `local` are to be numbered.
    #[serde(default)]
    pub sequence: Option<u64>,
}

fn unlimited() -> i64 {
    -1
}

fn one() -> u32 {
    1
}

/// Why a description is not usable.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It cannot be read.
    #[error("read stdio description {path}")]
    Read {
        /// Which.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// It is not JSON of the right shape.
    #[error("stdio description {path}")]
    Json {
        /// Which.
        path: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// It is for a later shim.
    #[error("stdio description has version {0}, this shim understands {VERSION}")]
    Version(u32),
    /// It names a log driver that does not exist here.
    #[error("log driver {0:?} is not one of json-file, local, none")]
    Driver(String),
    /// A path has to be absolute.
    #[error("{field} {path:?} is not an absolute path")]
    Relative {
        /// Which field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
}

impl Request {
    /// Reads and checks a description.
    pub fn read(path: &Path) -> Result<Request, RequestError> {
        let name = || path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| RequestError::Read { path: name(), source })?;
        Request::parse(&bytes, &name())
    }

    fn parse(bytes: &[u8], name: &str) -> Result<Request, RequestError> {
        #[derive(Deserialize)]
        struct OnlyVersion {
            version: u32,
        }
        let json = |source| RequestError::Json { path: name.to_owned(), source };
        // First, so that a description of another shape is told by its version.
        let version = serde_json::from_slice::<OnlyVersion>(bytes).map_err(json)?.version;
        if version != VERSION {
            return Err(RequestError::Version(version));
        }
        let request: Request = serde_json::from_slice(bytes).map_err(json)?;
        let absolute = |field, path: &Path| match path.is_absolute() {
            true => Ok(()),
            false => Err(RequestError::Relative { field, path: path.to_owned() }),
        };
        absolute("socket", &request.socket)?;
        if let Some(record) = &request.exit_record {
            absolute("exit_record", record)?;
        }
        if let Some(log) = &request.log {
            match log.driver.as_str() {
                "none" => {}
                "json-file" | "local" => absolute("log.path", &log.path)?,
                other => return Err(RequestError::Driver(other.to_owned())),
            }
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Request, String> {
        Request::parse(json.as_bytes(), "x").map_err(|err| err.to_string())
    }

    #[test]
    fn the_documented_example_is_understood() {
        let request = parse(
            r#"{"version":1,"socket":"/s","stdin":true,"stdin_once":true,"exit_record":"/r","future":[],
                "log":{"driver":"json-file","path":"/l","max_size":20971520,"max_file":5,"compress":true,
                       "attrs":{"a":"b"},"mode":"non-blocking","max_buffer_size":1048576}}"#,
        )
        .unwrap();
        let log = request.log.unwrap();
        assert_eq!((log.max_size, log.max_file, log.compress), (20_971_520, 5, true));
        assert_eq!(log.attrs["a"], "b");
        assert_eq!(log.sequence, None);
        let least = parse(r#"{"version":1,"socket":"/s"}"#).unwrap();
        assert_eq!((least.stdin, least.exit_record, least.log), (false, None, None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, error) in [
            (r#"{"version":2,"socket":7}"#, "stdio description has version 2, this shim understands 1"),
            (r#"{"version":1,"socket":"s"}"#, "socket \"s\" is not an absolute path"),
            (
                r#"{"version":1,"socket":"/s","log":{"driver":"syslog"}}"#,
                "log driver \"syslog\" is not one of json-file, local, none",
            ),
            (
                r#"{"version":1,"socket":"/s","log":{"driver":"local"}}"#,
                "log.path \"\" is not an absolute path",
            ),
            ("{", "stdio description x"),
            ("[]", "stdio description x"),
        ] {
            assert_eq!(parse(json).unwrap_err(), error);
        }
    }
}
