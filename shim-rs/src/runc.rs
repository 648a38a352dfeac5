//! The OCI runtime's command line. The only file that starts it and reads what it says.
//!
//! runc's commands and flags are those crun, youki and runsc share. What went wrong is read from the `--log` file (JSON lines), else from what the
//! command printed.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;
use sys::reaper::Ended;

use crate::children::Children;

/// How long a command may take that has no reason to: everything but starting containers, whose hooks may do anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long starting, checkpointing and restoring may take.
const LONG_PATIENCE: Duration = Duration::from_secs(600);
/// How much of what a command printed is kept for its error.
const OUTPUT_MAX: u64 = 16 * 1024;

/// How the status of a command begins that ended by itself.
const EXITED: &str = "exit status";
/// How often a command is run that somebody kills each time.
const KILLS_MAX: usize = 3;

/// A runtime as one container uses it.
pub struct Runc {
    children: Rc<Children>,
    binary: String,
    root: PathBuf,
    bundle: PathBuf,
    systemd_cgroup: bool,
    invocations: Cell<u64>,
}

/// Why a command did not do what it was started for.
#[derive(Debug, thiserror::Error)]
pub enum RuncError {
    /// The program could not be started.
    #[error("{why}")]
    NotStarted {
        /// Why not.
        why: String,
        /// The log it would have written.
        log: PathBuf,
    },
    /// It ended with a failure. `message` is the last error it logged, where it did.
    #[error("{program} did not terminate successfully: {status}: {output}")]
    Failed {
        /// The program's name.
        program: String,
        /// `exit status 1`, `signal: killed`.
        status: String,
        /// What it printed, up to 16 KiB.
        output: String,
        /// The text of the last `error` line in its log.
        message: Option<String>,
    },
    /// It was killed for taking too long.
    #[error("{program} did not end within {seconds} s")]
    TooSlow {
        /// The program's name.
        program: String,
        /// How long it was given.
        seconds: u64,
    },
    /// It succeeded but left nothing to go by.
    #[error("{0}")]
    NoPid(String),
}

impl RuncError {
    /// In the words containerd's own shim uses for a failed operation.
    pub fn told_as(&self, operation: &str) -> String {
        match self {
            RuncError::Failed { message: Some(message), .. } => format!("{operation}: {message}"),
            RuncError::NotStarted { why, log } => {
                let log = log.display();
                format!(
                    "{operation}: unable to retrieve OCI runtime error (open {log}: no such file or directory): {why}"
                )
            }
            other => format!("{operation}: {other}"),
        }
    }

    /// Whether the command did not come to its own end, and so did not clean up after itself.
    pub fn was_cut_short(&self) -> bool {
        match self {
            RuncError::TooSlow { .. } | RuncError::NoPid(_) => true,
            RuncError::Failed { status, .. } => !status.starts_with(EXITED),
            RuncError::NotStarted { .. } => false,
        }
    }

    /// Everything known, for deciding by text where runc offers nothing better.
    pub fn everything(&self) -> String {
        match self {
            RuncError::Failed { message: Some(message), output, .. } => format!("{message}\n{output}"),
            other => other.to_string(),
        }
    }
}

/// What becomes of a command's own standard streams.
pub enum Streams {
    /// Nothing in; what it prints is kept for its error.
    Captured,
    /// This in; what it prints is kept.
    Fed(Vec<u8>),
    /// These: they become the container's.
    Given {
        /// Standard input, `/dev/null` if absent.
        stdin: Option<OwnedFd>,
        /// Standard output, `/dev/null` if absent.
        stdout: Option<OwnedFd>,
        /// Standard error, `/dev/null` if absent.
        stderr: Option<OwnedFd>,
    },
}

/// The arguments `create`, `restore` and `exec` have in common.
pub struct Launch<'a> {
    /// Where the runtime writes the pid.
    pub pid_file: &'a Path,
    /// Where it sends the terminal, if there is one.
    pub console_socket: Option<&'a Path>,
    /// The new process's streams.
    pub streams: Streams,
}

impl Runc {
    /// The runtime `binary` with its state in `root`.
    pub fn new(
        children: Rc<Children>,
        binary: &str,
        root: &Path,
        bundle: &Path,
        systemd_cgroup: bool,
    ) -> Runc {
        let binary = if binary.is_empty() { "runc" } else { binary };
        Runc {
            children,
            binary: binary.to_owned(),
            root: root.to_owned(),
            bundle: bundle.to_owned(),
            systemd_cgroup,
            invocations: Cell::new(0),
        }
    }

    /// Whether a signal may go to the pid directly: these runtimes' containers are plain processes.
    pub fn runs_plain_processes(&self) -> bool {
        matches!(self.binary.rsplit('/').next(), Some("runc" | "crun" | "youki"))
    }

    /// `create`.
    pub async fn create(
        &self,
        id: &str,
        launch: Launch<'_>,
        no_pivot_root: bool,
        no_new_keyring: bool,
    ) -> Result<(), RuncError> {
        let mut arguments = vec!["create".to_owned(), "--bundle".into(), text(&self.bundle)];
        launch_arguments(&mut arguments, &launch);
        if no_pivot_root {
            arguments.push("--no-pivot".into());
        }
        if no_new_keyring {
            arguments.push("--no-new-keyring".into());
        }
        arguments.push(id.into());
        self.run(arguments, launch.streams, LONG_PATIENCE).await.map(drop)
    }

    /// `start`.
    pub async fn start(&self, id: &str) -> Result<(), RuncError> {
        self.run(vec!["start".into(), id.into()], Streams::Captured, LONG_PATIENCE).await.map(drop)
    }

    /// `restore`, detached.
    pub async fn restore(
        &self,
        id: &str,
        launch: Launch<'_>,
        image: &Path,
        work: &Path,
        no_pivot_root: bool,
    ) -> Result<(), RuncError> {
        let mut arguments =
            vec!["restore".to_owned(), "--detach".into(), "--bundle".into(), text(&self.bundle)];
        arguments.extend(["--image-path".into(), text(image), "--work-path".into(), text(work)]);
        launch_arguments(&mut arguments, &launch);
        if no_pivot_root {
            arguments.push("--no-pivot".into());
        }
        arguments.push(id.into());
        self.run(arguments, launch.streams, LONG_PATIENCE).await.map(drop)
    }

    /// `exec`, detached, of the process described by the file `process`.
    pub async fn exec(&self, id: &str, launch: Launch<'_>, process: &Path) -> Result<(), RuncError> {
        let mut arguments = vec!["exec".to_owned(), "--process".into(), text(process), "--detach".into()];
        launch_arguments(&mut arguments, &launch);
        arguments.push(id.into());
        self.run(arguments, launch.streams, LONG_PATIENCE).await.map(drop)
    }

    /// `kill`.
    pub async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<(), RuncError> {
        let mut arguments = vec!["kill".to_owned()];
        if all {
            arguments.push("--all".into());
        }
        arguments.extend([id.into(), signal.to_string()]);
        self.run(arguments, Streams::Captured, PATIENCE).await.map(drop)
    }

    /// `delete`. A container the runtime does not know is no error. Run again if somebody killed it: it goes on where it was.
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), RuncError> {
        let mut arguments = vec!["delete".to_owned()];
        if force {
            arguments.push("--force".into());
        }
        arguments.push(id.into());
        let mut kills = 0;
        loop {
            match self.run(arguments.clone(), Streams::Captured, PATIENCE).await {
                Err(err) if err.everything().contains("does not exist") => return Ok(()),
                Err(err @ RuncError::Failed { .. }) if err.was_cut_short() && kills < KILLS_MAX => kills += 1,
                other => return other.map(drop),
            }
        }
    }

    /// Takes away what an earlier container of this name left that has ended, or was never made: a runtime that was killed leaves its directory, which
    /// would be in the way for ever. A container that runs is not touched.
    pub async fn clear_left(&self, id: &str) {
        let directory = self.root.join(id);
        if directory.exists() && self.delete(id, false).await.is_ok() {
            // `delete` does not see one that was not made yet.
            let _ = std::fs::remove_dir_all(directory);
        }
    }

    /// `pause` or `resume`.
    pub async fn freeze(&self, id: &str, frozen: bool) -> Result<(), RuncError> {
        let command = if frozen { "pause" } else { "resume" };
        self.run(vec![command.into(), id.into()], Streams::Captured, PATIENCE).await.map(drop)
    }

    /// `update` with resources in the runtime specification's JSON.
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), RuncError> {
        let arguments = vec!["update".into(), "--resources".into(), "-".into(), id.into()];
        self.run(arguments, Streams::Fed(resources), PATIENCE).await.map(drop)
    }

    /// `checkpoint` with the given flags.
    pub async fn checkpoint(
        &self,
        id: &str,
        image: &Path,
        work: &Path,
        flags: Vec<String>,
    ) -> Result<(), RuncError> {
        let mut arguments = vec![
            "checkpoint".to_owned(),
            "--image-path".into(),
            text(image),
            "--work-path".into(),
            text(work),
        ];
        arguments.extend(flags);
        arguments.push(id.into());
        self.run(arguments, Streams::Captured, LONG_PATIENCE).await.map(drop)
    }

    /// The pids in the container, for runtimes whose cgroup cannot be read.
    pub async fn processes(&self, id: &str) -> Result<Vec<i32>, RuncError> {
        let output = self
            .run(vec!["ps".into(), "--format".into(), "json".into(), id.into()], Streams::Captured, PATIENCE)
            .await?;
        serde_json::from_str(output.trim()).map_err(|err| RuncError::NoPid(format!("output of ps: {err}")))
    }

    /// Runs one command to its end and returns what it printed.
    async fn run(
        &self,
        arguments: Vec<String>,
        streams: Streams,
        patience: Duration,
    ) -> Result<String, RuncError> {
        let invocation = self.invocations.get();
        self.invocations.set(invocation + 1);
        // One log each: several commands may fail at the same time.
        let log = self.bundle.join(format!("runc-{invocation}.json"));
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root).arg("--log").arg(&log).arg("--log-format").arg("json");
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.args(arguments);
        let outcome = self.run_command(command, streams, patience).await;
        let outcome = match outcome {
            Err(RuncError::Failed { program, status, output, .. }) => {
                let message = std::fs::read(&log).ok().and_then(|bytes| last_error(&bytes));
                Err(RuncError::Failed { program, status, output, message })
            }
            other => other,
        };
        let _ = std::fs::remove_file(&log);
        outcome
    }

    async fn run_command(
        &self,
        mut command: Command,
        streams: Streams,
        patience: Duration,
    ) -> Result<String, RuncError> {
        let program = self.binary.clone();
        let log = self.bundle.join("log.json");
        let not_started =
            |err: io::Error| RuncError::NotStarted { why: not_started(&program, &err), log: log.clone() };
        let mut printed = None;
        match streams {
            Streams::Given { stdin, stdout, stderr } => {
                command.stdin(or_null(stdin)).stdout(or_null(stdout)).stderr(or_null(stderr));
            }
            Streams::Captured | Streams::Fed(_) => {
                let output = anonymous_file("output").map_err(not_started)?;
                let both =
                    (output.try_clone().map_err(not_started)?, output.try_clone().map_err(not_started)?);
                command.stdout(both.0).stderr(both.1);
                printed = Some(output);
                match streams {
                    Streams::Fed(input) => {
                        let mut file = anonymous_file("input").map_err(not_started)?;
                        io::Write::write_all(&mut file, &input).map_err(not_started)?;
                        file.seek(SeekFrom::Start(0)).map_err(not_started)?;
                        command.stdin(file);
                    }
                    _ => {
                        command.stdin(Stdio::null());
                    }
                }
            }
        }
        sys::fork::die_with_parent(sys::fork::clear_signal_mask(&mut command));
        let (pid, mut ended) = self.children.spawn(&mut command).map_err(not_started)?;
        // Our copies of the container's ends of its streams have to go, or their end would never be seen.
        drop(command);
        let ended = match tokio::time::timeout(patience, &mut ended).await {
            Ok(ended) => ended,
            Err(_) => {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
                return Err(RuncError::TooSlow { program, seconds: patience.as_secs() });
            }
        };
        let output = printed.map(|mut file| beginning(&mut file)).unwrap_or_default();
        let status = match ended.map(|exit| exit.how) {
            Ok(Ended::Code(0)) => return Ok(output),
            Ok(Ended::Code(code)) => format!("{EXITED} {code}"),
            Ok(Ended::Signal(signal)) => format!("signal {signal}"),
            Err(_) => "unknown".to_owned(),
        };
        Err(RuncError::Failed { program, status, output: output.trim_end().to_owned(), message: None })
    }
}

fn launch_arguments(arguments: &mut Vec<String>, launch: &Launch<'_>) {
    if let Some(socket) = launch.console_socket {
        arguments.extend(["--console-socket".into(), text(socket)]);
    }
    arguments.extend(["--pid-file".into(), text(launch.pid_file)]);
}

fn text(path: &Path) -> String {
    // Paths reach us as protobuf strings, which are UTF-8.
    path.to_string_lossy().into_owned()
}

fn or_null(fd: Option<OwnedFd>) -> Stdio {
    fd.map_or_else(Stdio::null, Stdio::from)
}

/// A file without a name in memory: a command can print into it without anyone having to read at the same time.
fn anonymous_file(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

fn beginning(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(OUTPUT_MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Go's words for a program that cannot be started; the Docker CLI looks for them.
pub fn not_started(program: &str, err: &io::Error) -> String {
    match err.kind() {
        io::ErrorKind::NotFound if !program.contains('/') => {
            format!("exec: \"{program}\": executable file not found in $PATH")
        }
        io::ErrorKind::NotFound => format!("fork/exec {program}: no such file or directory"),
        io::ErrorKind::PermissionDenied => format!("fork/exec {program}: permission denied"),
        _ => format!("fork/exec {program}: {err}"),
    }
}

/// The text of the last record with level `error`. runc writes one a line, crun spreads each over several.
fn last_error(log: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        level: String,
        #[serde(default)]
        msg: String,
    }
    let lines = log.split(|byte| *byte == b'\n').rev();
    let spread = || serde_json::Deserializer::from_slice(log).into_iter::<Line>().map_while(Result::ok);
    lines
        .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
        .find(|line| line.level == "error")
        .or_else(|| spread().filter(|line| line.level == "error").last())
        .map(|line| line.msg.trim().to_owned())
        .filter(|message| !message.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_told() {
        let log = br#"{"level":"warning","msg":"w","time":"t"}
{"level":"error","msg":"first","time":"t"}
{"level":"error","msg":"runc create failed: x: exec: \"foo\": executable file not found in $PATH\n","time":"t"}
{"level":"info","msg":"later"}
not json"#;
        let expected = "runc create failed: x: exec: \"foo\": executable file not found in $PATH";
        assert_eq!(last_error(log).as_deref(), Some(expected));
        let spread = b"{\n  \"msg\": \"w\",\n  \"level\": \"warning\"\n}\n{\n  \"msg\": \"hybrid\",\n  \"level\": \"error\"\n}\n";
        assert_eq!(last_error(spread).as_deref(), Some("hybrid"));
        for nothing in [&b""[..], b"{", b"{\"level\":\"error\",\"msg\":\"\"}", b"\xff\xfe\n"] {
            assert_eq!(last_error(nothing), None);
        }
    }

    #[test]
    fn failures_are_told_as_containerd_tells_them() {
        let failed = |message: Option<&str>| RuncError::Failed {
            program: "runc".into(),
            status: "exit status 1".into(),
            output: "printed".into(),
            message: message.map(str::to_owned),
        };
        assert_eq!(
            failed(Some("why")).told_as("OCI runtime create failed"),
            "OCI runtime create failed: why"
        );
        assert_eq!(
            failed(None).told_as("X"),
            "X: runc did not terminate successfully: exit status 1: printed"
        );
    }
}
