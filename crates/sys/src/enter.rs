//! Becoming a process of a container that runs already: its namespaces, its parent, its rights.
//!
//! The caller is a program of one thread that is about to become something else; nothing here can be undone.

#![allow(unsafe_code, reason = "setns, clone, capset and seccomp have no safe wrapper")]

use std::ffi::{CString, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::fork::Side;
use crate::pidfd::PidFd;

/// The highest number a capability can have in the sets of the kernel's interface.
const CAPABILITIES: u32 = 64;

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The kinds of namespace in which two processes can differ, with the names of their files under `/proc/<pid>/ns`.
pub const NAMESPACES: [(&str, i32); 8] = [
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", 0x80),
];

/// Moves this process into the namespaces of `target` that `kinds` (a sum of [`NAMESPACES`]) names; all or none. Of process ids, only
/// children are concerned.
pub fn join(target: &PidFd, kinds: i32) -> io::Result<()> {
    use std::os::fd::AsFd;
    // SAFETY: the descriptor is open for the call, no memory is passed.
    checked(unsafe { libc::syscall(libc::SYS_setns, target.as_fd().as_raw_fd(), libc::c_long::from(kinds)) })
        .map(drop)
}

/// Forks a sibling: the new process's parent is ours. For programs of one thread.
pub fn fork_sibling() -> io::Result<Side> {
    let flags = libc::CLONE_PARENT as libc::c_ulong;
    // SAFETY: without CLONE_VM and without a stack this is a fork; this is the only thread, so no lock is held by another.
    // The exit signal is the caller's own with CLONE_PARENT.
    match checked(unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) })? {
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(pid as i32)),
    }
}

/// This program's file, to be executed through the descriptor: what runs of it cannot be written to through `/proc/<pid>/exe`, because the
/// descriptor is of a mount that is read-only and in no namespace.
pub fn sealed_program() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct MountAttributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    const OPEN_TREE_CLONE: libc::c_long = 1;
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let flags = OPEN_TREE_CLONE | libc::c_long::from(libc::O_CLOEXEC);
    // SAFETY: the path is a constant with its terminator.
    let fd = checked(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/proc/self/exe".as_ptr(), flags)
    })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attributes = MountAttributes { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the path is a constant, the attributes a local of the size that is told.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes,
            size_of::<MountAttributes>(),
        )
    })?;
    Ok(fd)
}

fn prctl(option: i32, argument: u64) -> io::Result<i32> {
    // SAFETY: the options used here take numbers only.
    let result = unsafe { libc::prctl(option, argument, 0u64, 0u64, 0u64) };
    checked(i64::from(result)).map(|value| value as i32)
}

/// Nobody without special rights may look into this process until it executes a program.
pub fn hide() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0).map(drop)
}

/// No program executed from now on gains rights.
pub fn forbid_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Signals as a program expects to find them: none blocked, none ignored.
pub fn reset_signals() {
    // SAFETY: the set is a local; default dispositions concern nobody else, and the two signals that have no other are refused.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Joins the session keyring of this name, or makes it. A kernel without keyrings is content.
pub fn join_keyring(name: &str) -> io::Result<()> {
    const JOIN_SESSION: libc::c_long = 1;
    let name = CString::new(name)?;
    // SAFETY: the name is a local with its terminator.
    match checked(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION, name.as_ptr()) }) {
        Err(err) if err.raw_os_error() != Some(libc::ENOSYS) => Err(err),
        _ => Ok(()),
    }
}

/// Sets a limit by the kernel's number for it.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the limit is a local; nothing is written back.
    checked(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, &limit, std::ptr::null_mut::<libc::rlimit64>())
    })
    .map(drop)
}

/// Sets of capabilities; bit N is the capability with number N.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What can ever be gained.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What can be put in force.
    pub permitted: u64,
    /// What passes through exec of a file with capabilities.
    pub inheritable: u64,
    /// What passes through every exec.
    pub ambient: u64,
}

/// Takes away what is not in the bounding set. First of all, because it needs rights itself.
pub fn bound(capabilities: &Capabilities) -> io::Result<()> {
    for number in 0..CAPABILITIES {
        // The kernel knows fewer than the sets have room for.
        let Ok(present) = prctl(libc::PR_CAPBSET_READ, u64::from(number)) else { break };
        if present == 1 && capabilities.bounding & (1 << number) == 0 {
            prctl(libc::PR_CAPBSET_DROP, u64::from(number))?;
        }
    }
    Ok(())
}

/// Becomes another user with other groups, keeping what is permitted until [`restrict`].
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1)?;
    // The system calls themselves: this is the only thread, there are no others to be told.
    // SAFETY: the list is as long as is told; the others take numbers.
    unsafe {
        checked(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        checked(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        checked(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    prctl(libc::PR_SET_KEEPCAPS, 0).map(drop)
}

/// Leaves this process with these capabilities only.
pub fn restrict(capabilities: &Capabilities) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let half = |shift: u32| Half {
        effective: (capabilities.effective >> shift) as u32,
        permitted: (capabilities.permitted >> shift) as u32,
        inheritable: (capabilities.inheritable >> shift) as u32,
    };
    let (mut header, halves) = (Header { version: VERSION_3, pid: 0 }, [half(0), half(32)]);
    // SAFETY: version 3 takes a header and two halves, which are locals.
    checked(unsafe { libc::syscall(libc::SYS_capset, &mut header, halves.as_ptr()) })?;
    let ambient = |operation: i32, number: u64| {
        // SAFETY: numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation as u64, number, 0u64, 0u64) };
        checked(i64::from(result)).map(drop)
    };
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for number in (0..CAPABILITIES).filter(|number| capabilities.ambient & (1 << number) != 0) {
        ambient(libc::PR_CAP_AMBIENT_RAISE, u64::from(number))?;
    }
    Ok(())
}

/// Executes `program`; comes back only with an error.
pub fn execute(program: &str, arguments: &[String], environment: &[String]) -> io::Error {
    let strings = |texts: &[String]| {
        texts.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>()
    };
    let (program, arguments, environment) =
        match (CString::new(program), strings(arguments), strings(environment)) {
            (Ok(program), Ok(arguments), Ok(environment)) => (program, arguments, environment),
            (Err(err), ..) | (_, Err(err), _) | (_, _, Err(err)) => return err.into(),
        };
    let pointers = |texts: &[CString]| {
        let null = std::iter::once(std::ptr::null());
        texts.iter().map(|text| text.as_ptr()).chain(null).collect::<Vec<_>>()
    };
    let (arguments_, environment_) = (pointers(&arguments), pointers(&environment));
    // SAFETY: both lists end with a null and point to strings that live past the call.
    unsafe { libc::execve(program.as_ptr(), arguments_.as_ptr(), environment_.as_ptr()) };
    io::Error::last_os_error()
}

/// The filter of system calls that `pid`, a child of ours that is waiting somewhere in the kernel, has; none when it has none. The child
/// does not notice, and its end, should it come in between, is left to be reaped.
///
/// # Errors
/// It has several, it is gone, or we may not ask: for that, this process must have no filter itself.
pub fn filter_of(pid: i32) -> io::Result<Option<Vec<u8>>> {
    const GET_FILTER: libc::c_uint = 0x420c;
    let ptrace = |request: libc::c_uint, address: usize, data: *mut c_void| {
        // SAFETY: the requests used here take numbers, except for the filter's place, which is large enough for what the kernel said.
        checked(unsafe { libc::ptrace(request as _, pid, address as *mut c_void, data) })
    };
    ptrace(libc::PTRACE_SEIZE, 0, std::ptr::null_mut())?;
    let asked = || {
        ptrace(libc::PTRACE_INTERRUPT, 0, std::ptr::null_mut())?;
        // SAFETY: the result is written to a local. Nothing is reaped: WNOWAIT.
        let info = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL;
            checked(i64::from(libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags)))?;
            info
        };
        if matches!(info.si_code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let length = match ptrace(GET_FILTER, 0, std::ptr::null_mut()) {
            Err(err) if matches!(err.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => return Ok(None),
            other => other? as usize,
        };
        if ptrace(GET_FILTER, 1, std::ptr::null_mut()).is_ok() {
            return Err(io::Error::other("more than one filter"));
        }
        let mut filter = vec![0u8; length * size_of::<libc::sock_filter>()];
        ptrace(GET_FILTER, 0, filter.as_mut_ptr().cast())?;
        Ok(Some(filter))
    };
    let answer = asked();
    let _ = ptrace(libc::PTRACE_DETACH, 0, std::ptr::null_mut());
    answer
}

/// Puts a filter as [`filter_of`] gives it on this process. Without rights it takes [`forbid_new_privileges`] first.
pub fn set_filter(filter: &[u8]) -> io::Result<()> {
    const SET_MODE_FILTER: libc::c_long = 1;
    let instructions: Vec<libc::sock_filter> = filter
        .chunks_exact(size_of::<libc::sock_filter>())
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let len = u16::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: the program points to as many instructions as it says, and the kernel only reads them.
    checked(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &program) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_program_seen_through_the_seal_runs_and_cannot_be_written() {
        // Needs the right to mount.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let program = sealed_program().unwrap();
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let listed = Command::new(&path).arg("--list").output().unwrap();
        assert!(listed.status.success());
        assert!(std::fs::OpenOptions::new().append(true).open(&path).is_err());
    }

    #[test]
    fn a_process_without_a_filter_has_none_and_goes_on() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(filter_of(child.id() as i32).unwrap(), None);
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        assert!(status.contains("TracerPid:\t0\n"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(filter_of(child.id() as i32).is_err());
    }
}
