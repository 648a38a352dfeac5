//! Running a shim binary: its `start` and `delete` actions.
//!
//! `start` forks the shim that stays, tells us where it listens and ends; `delete` cleans up after one that died. Arguments,
//! environment and answers are those of containerd's shim v2 protocol, in both dialects of the answer (a bare address, or
//! JSON). The environment is a clean one: a shim outlives us and passes its environment on.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use containerd_api::{Error, Kind};
use futures_util::FutureExt;
use prost::Message;
use prost_types::Any;
use shim_api::task::DeleteResponse;
use shim_api::types::RuntimeInfo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::Key;
use super::bundle::{Bootstrap, Bundle};

/// The newest task API we speak.
const MAX_VERSION: u32 = 3;
/// A shim that has not answered by then is taken for stuck.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long cleaning up after a dead shim may take.
const DELETE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a shim may take to describe itself.
const INFO_DEADLINE: Duration = Duration::from_secs(10);
/// How often a clean-up is begun again that somebody kills.
const KILLS_MAX: usize = 3;
/// A shim that says more than this says nothing useful.
const OUTPUT_MAX: usize = 64 << 10;

/// What shims are told about us.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// Path of our gRPC socket.
    pub grpc_address: String,
    /// Path of our ttrpc socket, for events.
    pub ttrpc_address: String,
    /// Whether shims should log at length.
    pub debug: bool,
}

impl Launcher {
    /// Starts a shim in a bundle. `options` are the runtime's, as the client packed them.
    ///
    /// # Errors
    /// What the shim printed, if it failed; nothing of it is left running then as far as we can tell.
    pub async fn start(
        &self,
        binary: &Path,
        bundle: &Bundle,
        key: &Key,
        options: Option<&Any>,
    ) -> Result<Bootstrap, Error> {
        let context = |err: Error| err.context("start failed");
        let mut command = self.command(binary, bundle, key);
        command.arg("start");
        let input = options.map(Any::encode_to_vec).unwrap_or_default();
        let output = run(command, &input, START_DEADLINE)
            .await
            .map_err(|err| context(Error::internal(format_args!("fork/exec {}", binary.display()), err)))?;
        if !output.status.success() {
            let mut text = output.stdout;
            text.extend_from_slice(&output.stderr);
            let text = String::from_utf8_lossy(&text);
            return Err(context(Error::new(
                Kind::Unknown,
                format!("{}: {}", text.trim_end(), describe(output.status)),
            )));
        }
        parse_answer(&output.stdout).map_err(context)
    }

    /// Has the shim binary clean up what a shim that died left: the container's processes, mounts and control groups.
    ///
    /// # Errors
    /// What the binary printed, if it failed.
    pub async fn delete(&self, binary: &Path, bundle: &Bundle, key: &Key) -> Result<DeleteResponse, Error> {
        let mut kills = 0;
        let output = loop {
            let mut command = self.command(binary, bundle, key);
            command.arg("-bundle").arg(&bundle.path).arg("delete");
            let output = run(command, &[], DELETE_DEADLINE)
                .await
                .map_err(|err| Error::internal(format_args!("fork/exec {}", binary.display()), err))?;
            // Whoever killed the shim may go for this one too; it goes on where the other was.
            if output.status.signal().is_none() || kills == KILLS_MAX {
                break output;
            }
            kills += 1;
        };
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(
                Kind::Unknown,
                format!("{}: {}", text.trim_end(), describe(output.status)),
            ));
        }
        DeleteResponse::decode(output.stdout.as_slice())
            .map_err(|err| Error::internal("unmarshal the shim's answer to delete", err))
    }

    /// What the shim says of itself and of the OCI runtime it drives.
    ///
    /// # Errors
    /// What the binary printed, if it failed; those older than containerd 2.0 do not know the question.
    pub async fn info(&self, binary: &Path, options: Option<&Any>) -> Result<RuntimeInfo, Error> {
        let mut command = Command::new(binary);
        command.arg("-info").env_clear().envs(inherited());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let input = options.map(Any::encode_to_vec).unwrap_or_default();
        let output = run(command, &input, INFO_DEADLINE)
            .await
            .map_err(|err| Error::internal(format_args!("fork/exec {}", binary.display()), err))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let text = format!(
                "failed to run {} -info: {}: {}",
                binary.display(),
                text.trim_end(),
                describe(output.status)
            );
            return Err(Error::new(Kind::Unknown, text));
        }
        RuntimeInfo::decode(output.stdout.as_slice())
            .map_err(|err| Error::internal("unmarshal the shim's info", err))
    }

    fn command(&self, binary: &Path, bundle: &Bundle, key: &Key) -> Command {
        let mut command = Command::new(binary);
        let publisher = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("containerd"));
        command.arg("-namespace").arg(&key.namespace).arg("-address").arg(&self.grpc_address);
        command.arg("-publish-binary").arg(publisher).arg("-id").arg(&key.id);
        if self.debug {
            command.arg("-debug");
        }
        command.current_dir(&bundle.path).env_clear().envs(inherited());
        command
            .env("GOMAXPROCS", "2")
            .env("MAX_SHIM_VERSION", MAX_VERSION.to_string())
            .env("TTRPC_ADDRESS", &self.ttrpc_address)
            .env("GRPC_ADDRESS", &self.grpc_address)
            .env("NAMESPACE", &key.namespace);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}

/// The variables a shim and the OCI runtime below it may need; not those that may carry our secrets.
fn inherited() -> impl Iterator<Item = (OsString, OsString)> {
    const NAMES: [&str; 9] = [
        "PATH",
        "HOME",
        "TMPDIR",
        "TZ",
        "LANG",
        "XDG_RUNTIME_DIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "RUST_BACKTRACE",
    ];
    std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| {
            NAMES.contains(&name) || name.starts_with("OTEL_") || name.starts_with("SHIM_")
        })
    })
}

struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

async fn run(mut command: Command, input: &[u8], deadline: Duration) -> io::Result<Output> {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn()?;
    match tokio::time::timeout(deadline, finish(&mut child, input)).await {
        Ok(output) => output,
        Err(_) => {
            child.start_kill()?;
            child.wait().await?;
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", deadline.as_secs())))
        }
    }
}

/// Feeds the child, waits for its end and collects what it wrote. Does not wait for the end of its output: a shim that
/// stays may keep the other end of the pipe open.
async fn finish(child: &mut Child, input: &[u8]) -> io::Result<Output> {
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A shim that does not care for its options may be gone already.
            let _ = stdin.write_all(input).await;
        }
    };
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = {
        let collect = async {
            tokio::join!(feed, read_all(out.as_mut(), &mut stdout), read_all(err.as_mut(), &mut stderr));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            status = child.wait() => status?,
            () = collect => unreachable!("pending for ever"),
        }
    };
    // What was written before the end is in the pipes by now, and can be read without waiting.
    let _ = read_all(out.as_mut(), &mut stdout).now_or_never();
    let _ = read_all(err.as_mut(), &mut stderr).now_or_never();
    Ok(Output { status, stdout, stderr })
}

async fn read_all(source: Option<&mut (impl AsyncRead + Unpin)>, into: &mut Vec<u8>) {
    let Some(source) = source else { return };
    loop {
        let mut buffer = [0; 1024];
        match source.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                let room = OUTPUT_MAX.saturating_sub(into.len());
                into.extend_from_slice(&buffer[..read.min(room)]);
            }
        }
    }
}

/// As Go prints it.
fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal: {signal}"),
        (None, None) => "ended".into(),
    }
}

/// Where a shim says that it listens: JSON, or the bare address of a version 2 shim.
fn parse_answer(answer: &[u8]) -> Result<Bootstrap, Error> {
    let text = std::str::from_utf8(answer).unwrap_or_default().trim();
    let bootstrap = if text.starts_with('{') {
        serde_json::from_str(text).map_err(|err| Error::internal("failed to parse the shim's answer", err))?
    } else {
        Bootstrap { version: 2, address: text.to_owned(), protocol: "ttrpc".to_owned() }
    };
    check(&bootstrap)?;
    Ok(bootstrap)
}

/// Whether we can speak to such a shim.
///
/// # Errors
/// `Unimplemented` for a protocol, version or kind of address we have not.
pub fn check(bootstrap: &Bootstrap) -> Result<(), Error> {
    let refuse = |text: String| Err(Error::new(Kind::Unimplemented, text));
    if bootstrap.address.is_empty() {
        return Err(Error::new(Kind::Unknown, "the shim answered no address"));
    }
    if !matches!(bootstrap.version, 2 | 3) {
        return refuse(format!("unsupported shim version ({}): not implemented", bootstrap.version));
    }
    if bootstrap.protocol != "ttrpc" {
        return refuse(format!("unsupported shim protocol: {:?}", bootstrap.protocol));
    }
    if socket_path(&bootstrap.address).is_none() {
        return refuse(format!("unsupported shim address: {:?}", bootstrap.address));
    }
    Ok(())
}

/// The path in `unix:///path`; also of a bare path.
pub fn socket_path(address: &str) -> Option<&Path> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    path.starts_with('/').then(|| Path::new(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_dialects_of_the_answer_are_read() {
        let two = parse_answer(b"unix:///run/containerd/s/abc\n").unwrap();
        assert_eq!((two.version, two.address.as_str()), (2, "unix:///run/containerd/s/abc"));
        let three =
            parse_answer(br#"{"version":3,"address":"unix:///s","protocol":"ttrpc","new":1}"#).unwrap();
        assert_eq!((three.version, three.protocol.as_str()), (3, "ttrpc"));
        assert_eq!(socket_path(&three.address).unwrap(), Path::new("/s"));
        for bad in [
            &b""[..],
            b"{",
            b"{}",
            br#"{"version":9,"address":"unix:///s","protocol":"ttrpc"}"#,
            br#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#,
            br#"{"version":3,"address":"vsock://1","protocol":"ttrpc"}"#,
            b"relative",
            b"\xff\xfe",
        ] {
            assert!(parse_answer(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[tokio::test]
    async fn a_program_that_leaves_its_output_open_is_not_waited_for() {
        let mut command = Command::new("/bin/sh");
        // The child of the shell keeps both pipes.
        command.args(["-c", "cat >&2; echo answer; sleep 3 & exit 5"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output =
            tokio::time::timeout(Duration::from_secs(2), run(command, b"options", Duration::from_secs(10)))
                .await
                .expect("not held up by the open pipes")
                .unwrap();
        assert_eq!(output.stdout, b"answer\n");
        assert_eq!(output.stderr, b"options");
        assert_eq!(describe(output.status), "exit status 5");
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed() {
        let mut command = Command::new("/bin/sleep");
        command.arg("100");
        let err = run(command, &[], Duration::from_millis(50)).await.err().expect("a timeout");
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
    }
}
