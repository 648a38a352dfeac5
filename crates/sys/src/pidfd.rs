//! Signals that cannot hit a stranger: a process held by descriptor rather than by number.

#![allow(unsafe_code, reason = "pidfd_send_signal with real-time signals has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};

/// A process, whatever happens to its number. Readable once the process has ended.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process that has `pid` now. Only meaningful while nobody else can have reaped it.
    pub fn open(pid: i32) -> io::Result<PidFd> {
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(PidFd(rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Sends any signal the kernel has, 1 to 64; 0 only asks. `ESRCH` when the process has ended and was reaped, `EINVAL` for no signal.
    pub fn signal(&self, signal: u32) -> io::Result<()> {
        let number = i32::try_from(signal).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: the descriptor is open for as long as `self`; a null siginfo makes it like kill(2); no memory is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                number,
                std::ptr::null::<libc::siginfo_t>(),
                0u32,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_real_time_signal_arrives_and_a_reaped_process_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = PidFd::open(child.id() as i32).unwrap();
        process.signal(0).unwrap();
        assert_eq!(process.signal(65).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(process.signal(u32::MAX).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        process.signal(40).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(40));
        assert_eq!(process.signal(9).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
