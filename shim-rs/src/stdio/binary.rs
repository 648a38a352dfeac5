//! `binary://`: a logging program of the caller's that reads a container's output from descriptors 3 and 4 and closes 5 when it is ready.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio as ProcessStdio};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use sys::pidfd::PidFd;
use tokio::sync::oneshot;

use crate::children::{Children, Exit};

/// How long it may take to be ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to end by itself when its input has ended.
const FINISH: Duration = Duration::from_secs(3);
/// How long it may take to end once it was told to; containerd's figure.
const STOP: Duration = Duration::from_secs(12);

/// Why there is no logging program.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// It did not start.
    #[error("failed to start binary process: {0}")]
    Start(String),
    /// It neither wrote to nor closed descriptor 5.
    #[error("logging binary {program} is not ready after {} s", READY.as_secs())]
    NotReady {
        /// Which.
        program: String,
    },
}

/// A running logging program.
pub struct Binary {
    process: Option<PidFd>,
    ended: oneshot::Receiver<Exit>,
}

impl Binary {
    /// Starts it and waits until it is ready. Returns what is to become the process's standard output and error.
    pub async fn start(
        program: &Path,
        arguments: &[String],
        container: &str,
        namespace: &str,
        children: &Children,
    ) -> Result<(Binary, OwnedFd, OwnedFd), BinaryError> {
        let failed = |source: io::Error| {
            BinaryError::Start(crate::runc::not_started(&program.display().to_string(), &source))
        };
        let (stdout, stdout_write) = pipe_with(PipeFlags::CLOEXEC).map_err(|err| failed(err.into()))?;
        let (stderr, stderr_write) = pipe_with(PipeFlags::CLOEXEC).map_err(|err| failed(err.into()))?;
        let (ready, ready_write) = pipe_with(PipeFlags::CLOEXEC).map_err(|err| failed(err.into()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("CONTAINER_ID", container)
            .env("CONTAINER_NAMESPACE", namespace);
        command.stdin(ProcessStdio::null()).stdout(ProcessStdio::null()).stderr(ProcessStdio::null());
        sys::fork::clear_signal_mask(&mut command);
        sys::fork::pass_descriptors(&mut command, vec![stdout, stderr, ready_write]);
        let (pid, ended) = children.spawn(&mut command).map_err(failed)?;
        drop(command);
        let process = PidFd::open(pid).ok();
        rustix::io::ioctl_fionbio(&ready, true).map_err(|err| failed(err.into()))?;
        let ready = crate::readiness::register(ready).map_err(failed)?;
        let binary = Binary { process, ended };
        match tokio::time::timeout(READY, super::copy::until(&ready, PollFlags::IN)).await {
            Ok(_) => Ok((binary, stdout_write, stderr_write)),
            Err(_) => {
                binary.signal(libc::SIGKILL);
                Err(BinaryError::NotReady { program: program.display().to_string() })
            }
        }
    }

    /// Its input has ended: waits for it, tells it to end, and in the end ends it.
    pub async fn stop(mut self) {
        if tokio::time::timeout(FINISH, &mut self.ended).await.is_ok() {
            return;
        }
        self.signal(libc::SIGTERM);
        if tokio::time::timeout(STOP, &mut self.ended).await.is_err() {
            self.signal(libc::SIGKILL);
        }
    }

    fn signal(&self, signal: i32) {
        if let Some(process) = &self.process {
            let _ = process.signal(signal as u32);
        }
    }
}
