//! Which children ended and how: signalfd for the notice, one place that waits.
//!
//! Invariant: a process that uses this has no other caller of `wait`. Signals merge, so after each notice [`reap`] is called until it says `None`.

#![allow(unsafe_code, reason = "signal masks and signalfd have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::WaitOptions;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It called `exit` with this status.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

impl Ended {
    /// The number a shell shows: the status, or 128 and the signal.
    pub fn shell_code(self) -> u32 {
        match self {
            Ended::Code(code) => u32::from(code),
            Ended::Signal(signal) => 128 + u32::from(signal),
        }
    }

    /// The signal that killed it, 0 for none.
    pub fn signal(self) -> u32 {
        match self {
            Ended::Code(_) => 0,
            Ended::Signal(signal) => u32::from(signal),
        }
    }
}

/// Blocks `signals` in this thread and those it starts, and after a fork in the child, from its first instruction on.
pub fn block(signals: &[i32]) -> io::Result<()> {
    let blocked = set_of(signals);
    // SAFETY: the set is a local and initialised.
    let refused = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, std::ptr::null_mut()) };
    if refused == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(refused)) }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: an all-zero sigset_t is a valid place for sigemptyset to write to; every pointer is to a local.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        set
    }
}

/// Readable when a child may have ended.
#[derive(Debug)]
pub struct ChildNotice(OwnedFd);

impl ChildNotice {
    /// Blocks `SIGCHLD` in this thread and those it starts, and `also`, which are thereby ignored. Children inherit
    /// the mask: start them with [`crate::fork::clear_signal_mask`].
    pub fn new(also: &[i32]) -> io::Result<ChildNotice> {
        block(also)?;
        block(&[libc::SIGCHLD])?;
        let notice = set_of(&[libc::SIGCHLD]);
        // SAFETY: the set is a local and initialised.
        unsafe {
            let fd = libc::signalfd(-1, &notice, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
            Ok(ChildNotice(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Takes the pending notice. `WouldBlock` when there is none.
    pub fn take(&self) -> io::Result<()> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        rustix::io::read(&self.0, &mut info)?;
        Ok(())
    }
}

impl AsRawFd for ChildNotice {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for ChildNotice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reaps one ended child: its pid and how it ended. `None` when no more have ended or there are no children.
pub fn reap() -> io::Result<Option<(i32, Ended)>> {
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(found)) => found,
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(None),
            Err(rustix::io::Errno::INTR) => continue,
            Err(err) => return Err(err.into()),
        };
        let ended = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Code(code as u8),
            (None, Some(signal)) => Ended::Signal(signal as u8),
            // Stops and continues are not asked for.
            (None, None) => continue,
        };
        return Ok(Some((pid.as_raw_nonzero().get(), ended)));
    }
}

/// Orphans below this process become its children rather than those of PID 1.
pub fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_a_shell() {
        for (ended, code, signal) in [
            (Ended::Code(0), 0, 0),
            (Ended::Code(255), 255, 0),
            (Ended::Signal(9), 137, 9),
            (Ended::Signal(15), 143, 15),
            (Ended::Signal(64), 192, 64),
        ] {
            assert_eq!((ended.shell_code(), ended.signal()), (code, signal));
        }
    }
}
