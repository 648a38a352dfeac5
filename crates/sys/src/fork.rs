//! Processes of our own making: a fork that goes on without exec, children that die with us, and no descriptors but those named.

#![allow(unsafe_code, reason = "fork, close_range and pre_exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// On which side of [`fork`] we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The process that called, with the child's pid.
    Parent(i32),
    /// The new process.
    Child,
}

/// Forks, and both sides go on as full programs. Refused in a process that has more than one thread, where the child would inherit locks
/// nobody can release.
pub fn fork() -> io::Result<Side> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("fork with {threads} threads")));
    }
    // SAFETY: this is the only thread, so the child's copy of every lock and of the allocator is in a state its own code left it in.
    match unsafe { libc::fork() } {
        0 => Ok(Side::Child),
        pid if pid > 0 => Ok(Side::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor from 3 on. To be called first thing in `main`, before anything of this program is open.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: called before this program opened anything, so no owner of a closed descriptor exists.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the child get `SIGKILL` when the thread that starts it ends.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: prctl and getppid are async-signal-safe system calls, and the closure allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above; then nobody will send the signal.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// Starts the child with no signal blocked: a mask outlives exec, and std passes ours on.
pub fn clear_signal_mask(command: &mut Command) -> &mut Command {
    // SAFETY: sigemptyset and sigprocmask are async-signal-safe and write to a local only.
    unsafe {
        command.pre_exec(|| {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            if libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        })
    }
}

/// Gives the child these descriptors as 3, 4, … and keeps them from being closed at exec.
pub fn pass_descriptors(command: &mut Command, descriptors: Vec<std::os::fd::OwnedFd>) -> &mut Command {
    use std::os::fd::AsRawFd;
    // SAFETY: dup, dup2 and fcntl are async-signal-safe; the descriptors live in the closure, which lives as long as the command.
    unsafe {
        command.pre_exec(move || {
            // First out of the way of the targets, so that no dup2 overwrites a source still needed.
            let floor = 3 + descriptors.len() as i32;
            let mut moved = [0i32; 16];
            if descriptors.len() > moved.len() {
                return Err(io::Error::from_raw_os_error(libc::EMFILE));
            }
            for (place, descriptor) in moved.iter_mut().zip(&descriptors) {
                *place = libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, floor);
                if *place < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            for (target, source) in moved.iter().take(descriptors.len()).enumerate() {
                if libc::dup2(*source, 3 + target as i32) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_threaded_process_does_not_fork() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        assert!(fork().is_err());
        drop(stop);
        let _ = thread.join();
    }

    #[test]
    fn named_descriptors_arrive_in_order() {
        let mut readers = Vec::new();
        let mut writers = Vec::new();
        for _ in 0..3 {
            let (reader, writer) = io::pipe().unwrap();
            readers.push(reader);
            writers.push(writer.into());
        }
        let mut command = Command::new("sh");
        command.args(["-c", "echo a >&3; echo b >&4; echo c >&5"]);
        pass_descriptors(&mut command, writers);
        assert!(die_with_parent(&mut command).status().unwrap().success());
        drop(command);
        let texts: Vec<String> = readers
            .into_iter()
            .map(|mut reader| {
                let mut text = String::new();
                reader.read_to_string(&mut text).unwrap();
                text
            })
            .collect();
        assert_eq!(texts, ["a\n", "b\n", "c\n"]);
    }
}
