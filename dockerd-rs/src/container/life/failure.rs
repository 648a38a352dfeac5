//! What a failed start means: the exit code it leaves, and the class a client sees.
//!
//! The one place that reads the OCI runtime's words. runc has no codes, only text; Docker decides by the same phrases.

use crate::error::{Error, Kind};

/// The program was not found.
pub const NOT_FOUND: i32 = 127;
/// The program cannot be run.
pub const NOT_EXECUTABLE: i32 = 126;
/// The engine could not start the container.
pub const UNKNOWN: i32 = 128;

/// Classifies what containerd said of a task that did not start, or of an exec.
pub fn of_runtime(err: &Error) -> (i32, Error) {
    let text = err.message();
    let lower = text.to_lowercase();
    let says = |phrase: &str| lower.contains(phrase);
    if says("permission denied") || says("is a directory") {
        return (NOT_EXECUTABLE, Error::invalid(text));
    }
    if says("not a directory") {
        let hint = "Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type";
        let text = if text.contains(hint) { text.to_owned() } else { format!("{text}: {hint}") };
        return (NOT_FOUND, Error::invalid(text));
    }
    if says("executable file not found")
        || says("no such file or directory")
        || says("system cannot find the file specified")
        || says("failed to run runc create/exec call")
    {
        return (NOT_FOUND, Error::invalid(text));
    }
    (UNKNOWN, Error::new(Kind::System, text))
}

/// The part of an exec's failure that a client sees. containerd's and the shim's own wrapping is not in what Docker shows.
pub fn exec_text(err: &Error) -> Error {
    let text = err.message();
    let shown = text.find("OCI runtime exec failed").map_or(text, |at| &text[at..]);
    Error::new(err.kind(), shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_words_become_codes() {
        let created = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process";
        for (text, code, status) in [
            ("exec: \"/nosuch\": stat /nosuch: no such file or directory", 127, 400),
            ("exec: \"nosuchcmd\": executable file not found in $PATH", 127, 400),
            ("exec: \"/data\": permission denied", 126, 400),
            ("exec: \"/data\": is a directory", 126, 400),
            ("sysctl \"kernel.bogus\" is not in a separate kernel namespace", 128, 500),
        ] {
            let (found, err) = of_runtime(&Error::system(format!("{created}: {text}")));
            assert_eq!((found, err.kind().status().as_u16()), (code, status), "{text}");
        }
        let (code, err) = of_runtime(&Error::system("mount x: not a directory"));
        assert!(code == 127 && err.message().ends_with("is the expected type"));
    }

    #[test]
    fn an_execs_failure_is_shown_from_the_runtime_on() {
        let err = Error::system("rpc: OCI runtime exec failed: exec failed: x");
        assert_eq!(exec_text(&err).message(), "OCI runtime exec failed: exec failed: x");
    }
}
