//! What the strings `stdin`, `stdout` and `stderr` of a request mean.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

/// An output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A path without a scheme: a named pipe, or a file that exists.
    Fifo(PathBuf),
    /// `file://`: appended to, made if missing.
    File(PathBuf),
}

impl Target {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Target::Fifo(path) | Target::File(path) => path,
        }
    }
}

/// Where a process's streams lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// To named pipes, files or nowhere.
    Streams {
        /// Named pipe to read.
        stdin: Option<PathBuf>,
        /// Where output goes.
        stdout: Option<Target>,
        /// Where errors go.
        stderr: Option<Target>,
    },
    /// `binary://`: output and errors go to a program of the caller's.
    Binary {
        /// Named pipe to read.
        stdin: Option<PathBuf>,
        /// The program.
        program: PathBuf,
        /// Its arguments: keys and values of the query in order.
        arguments: Vec<String>,
    },
    /// `shim-io://`: this shim's own way, described by the file at this path.
    Native(PathBuf),
}

/// Why a request's streams make no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// A scheme nobody knows; containerd's words.
    #[error("unknown STDIO scheme {0}")]
    UnknownScheme(String),
    /// A URI whose path is not absolute.
    #[error("stdio URI {0:?} has no absolute path")]
    NoPath(String),
    /// Native streams have one URI, in `stdout`.
    #[error("stdin has to be empty and stderr empty or the same with {0:?}")]
    NotAlone(String),
}

impl Plan {
    /// Parses the three strings. The scheme of `stdout` decides; with a terminal the request has no `stderr`.
    pub fn parse(stdin: &str, stdout: &str, stderr: &str) -> Result<Plan, PlanError> {
        let input = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        let Some((scheme, rest)) = scheme(stdout) else {
            let stderr = match scheme(stderr) {
                Some(("file", rest)) => Some(Target::File(uri_path(stderr, rest)?)),
                Some(("fifo", rest)) => Some(Target::Fifo(uri_path(stderr, rest)?)),
                Some((other, _)) => return Err(PlanError::UnknownScheme(other.to_owned())),
                None => input(stderr).map(Target::Fifo),
            };
            return Ok(Plan::Streams {
                stdin: input(stdin),
                stdout: input(stdout).map(Target::Fifo),
                stderr,
            });
        };
        match scheme {
            "fifo" => {
                let stderr = match self::scheme(stderr) {
                    Some(("fifo", rest)) => Some(uri_path(stderr, rest)?),
                    _ => input(stderr),
                };
                let stdout = Some(Target::Fifo(uri_path(stdout, rest)?));
                Ok(Plan::Streams { stdin: input(stdin), stdout, stderr: stderr.map(Target::Fifo) })
            }
            // containerd appends both outputs to the one file, whatever stderr says.
            "file" => {
                let target = Target::File(uri_path(stdout, rest)?);
                Ok(Plan::Streams { stdin: input(stdin), stdout: Some(target.clone()), stderr: Some(target) })
            }
            "binary" => {
                let program = uri_path(stdout, rest)?;
                Ok(Plan::Binary { stdin: input(stdin), program, arguments: query(rest) })
            }
            // containerd's clients put a log URI into both.
            "shim-io" => match stdin.is_empty() && (stderr.is_empty() || stderr == stdout) {
                true => Ok(Plan::Native(uri_path(stdout, rest)?)),
                false => Err(PlanError::NotAlone(stdout.to_owned())),
            },
            other => Err(PlanError::UnknownScheme(other.to_owned())),
        }
    }
}

fn scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    (!scheme.is_empty() && scheme.bytes().all(valid)).then_some((scheme, rest))
}

/// The decoded path of a URI: from the first slash after the host, which is ignored, to the query.
fn uri_path(whole: &str, rest: &str) -> Result<PathBuf, PlanError> {
    use std::os::unix::ffi::OsStringExt;
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let at = rest.find('/').ok_or_else(|| PlanError::NoPath(whole.to_owned()))?;
    let bytes: Vec<u8> = percent_decode_str(&rest[at..]).collect();
    if bytes.contains(&0) {
        return Err(PlanError::NoPath(whole.to_owned()));
    }
    Ok(std::ffi::OsString::from_vec(bytes).into())
}

/// Keys and values of the query, flattened. An empty value is no argument only where there is no `=` at all.
fn query(rest: &str) -> Vec<String> {
    let Some((_, query)) = rest.split_once('?') else { return Vec::new() };
    let query = query.split('#').next().unwrap_or_default();
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // Go's query gives every key a value, so a bare key is passed with an empty one.
        arguments.extend([decode(key), decode(value)]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fifo(path: &str) -> Option<Target> {
        Some(Target::Fifo(path.into()))
    }

    #[test]
    fn every_kind_is_recognised() {
        let streams = |stdin: Option<&str>, stdout, stderr| Plan::Streams {
            stdin: stdin.map(Into::into),
            stdout,
            stderr,
        };
        let file = Some(Target::File("/var/log/a b".into()));
        for (stdin, stdout, stderr, plan) in [
            ("", "", "", streams(None, None, None)),
            ("/i", "/o", "/e", streams(Some("/i"), fifo("/o"), fifo("/e"))),
            ("", "fifo:///o", "fifo:///e", streams(None, fifo("/o"), fifo("/e"))),
            ("", "file:///var/log/a%20b", "", streams(None, file.clone(), file)),
            ("/i", "", "/e", streams(Some("/i"), None, fifo("/e"))),
            ("", "shim-io:///s/x.json", "", Plan::Native("/s/x.json".into())),
            (
                "/i",
                "binary:///bin/logger?id=a%2Fb&flag=&x",
                "binary:///bin/logger?id=a%2Fb&flag=&x",
                Plan::Binary {
                    stdin: Some("/i".into()),
                    program: "/bin/logger".into(),
                    arguments: ["id", "a/b", "flag", "", "x", ""].map(String::from).to_vec(),
                },
            ),
        ] {
            assert_eq!(Plan::parse(stdin, stdout, stderr), Ok(plan), "{stdout}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for (stdin, stdout, stderr, error) in [
            ("", "npipe:////./pipe/x", "", "unknown STDIO scheme npipe"),
            ("", "shim-io://", "", "stdio URI \"shim-io://\" has no absolute path"),
            ("", "file://x%00", "", "stdio URI \"file://x%00\" has no absolute path"),
            ("", "file:///x%00", "", "stdio URI \"file:///x%00\" has no absolute path"),
            (
                "/i",
                "shim-io:///x",
                "",
                "stdin has to be empty and stderr empty or the same with \"shim-io:///x\"",
            ),
            ("", "", "http://x", "unknown STDIO scheme http"),
        ] {
            assert_eq!(Plan::parse(stdin, stdout, stderr).unwrap_err().to_string(), error);
        }
    }
}
