//! The init of `--init`: runs a command as its child, passes every signal on to it, reaps whatever is orphaned to it, and exits as
//! the command did (128 + signal where a signal ended it). Takes no options of its own: `init [--] COMMAND [ARG…]`.
#![no_std]
#![no_main]

#[path = "rt.rs"]
mod rt;

use rt::{exit, nr, syscall, write_all};

const EINTR: isize = -4;
const ENOENT: isize = -2;
const ENOTDIR: isize = -20;
const EACCES: isize = -13;
const SIGCHLD: i32 = 17;
const SIG_BLOCK: usize = 0;
const SIG_SETMASK: usize = 2;
const WNOHANG: usize = 1;
const TIOCSPGRP: usize = 0x5410;
const PR_SET_CHILD_SUBREAPER: usize = 36;
/// SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGABRT, SIGTRAP, SIGSYS: they are about this process itself and stay deliverable.
const OWN: u64 = 1 << 7 | 1 << 3 | 1 << 10 | 1 << 6 | 1 << 5 | 1 << 4 | 1 << 30;

/// The process's arguments and environment, as the kernel left them on the stack.
struct Start {
    argc: usize,
    argv: *const *const u8,
    envp: *const *const u8,
}

#[unsafe(no_mangle)]
extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: the kernel put argc, argc pointers, a null, the environment's pointers and a null at `stack`.
    let start = unsafe {
        let argc = *stack;
        let argv = stack.add(1).cast::<*const u8>();
        Start { argc, argv, envp: argv.add(argc + 1) }
    };
    let mut first = 1;
    // SAFETY: `first` is below argc where it is read.
    if first < start.argc && text(unsafe { *start.argv.add(first) }) == b"--" {
        first += 1;
    }
    if first >= start.argc {
        write_all(2, b"usage: init [--] COMMAND [ARG...]\n");
        exit(1);
    }
    if syscall(nr::GETPID, [0; 5]) != 1 {
        // Not PID 1 (a shared PID namespace): orphans come here only by this.
        syscall(nr::PRCTL, [PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0]);
    }
    let blocked: u64 = !OWN;
    let mut before: u64 = 0;
    syscall(nr::RT_SIGPROCMASK, [SIG_BLOCK, addr(&blocked), addr_mut(&mut before), 8, 0]);
    // A plain fork: nothing is shared, the child's end is told by SIGCHLD.
    let child = syscall(nr::CLONE, [SIGCHLD as usize, 0, 0, 0, 0]);
    match child {
        0 => run(&start, first, before),
        child if child < 0 => {
            write_all(2, b"init: fork failed\n");
            exit(1)
        }
        child => supervise(child as usize, blocked),
    }
}

/// In the child: its own process group, the terminal if there is one, the mask it was started with, and the command.
fn run(start: &Start, first: usize, mask: u64) -> ! {
    syscall(nr::SETPGID, [0, 0, 0, 0, 0]);
    let group = syscall(nr::GETPID, [0; 5]) as i32;
    // SIGTTOU is still blocked here, so a background group may take the terminal. Fails without a terminal, which is fine.
    syscall(nr::IOCTL, [0, TIOCSPGRP, addr(&group), 0, 0]);
    syscall(nr::RT_SIGPROCMASK, [SIG_SETMASK, addr(&mask), 0, 8, 0]);
    // SAFETY: `first` is below argc.
    let (argv, command) = unsafe { (start.argv.add(first), text(*start.argv.add(first))) };
    let error = execute(command, argv, start.envp);
    write_all(2, b"[FATAL init] exec ");
    write_all(2, command);
    write_all(2, b" failed: ");
    write_all(2, reason(error));
    write_all(2, b"\n");
    exit(if matches!(error, ENOENT | ENOTDIR) { 127 } else { 126 })
}

fn reason(error: isize) -> &'static [u8] {
    match error {
        ENOENT => b"No such file or directory",
        ENOTDIR => b"Not a directory",
        EACCES => b"Permission denied",
        -8 => b"Exec format error",
        -12 => b"Cannot allocate memory",
        _ => b"cannot execute",
    }
}

/// `execve` along PATH, as `execvp` does. Returns the error of the most telling try.
fn execute(command: &[u8], argv: *const *const u8, envp: *const *const u8) -> isize {
    let mut path = [0_u8; 4096];
    if command.contains(&b'/') {
        return exec_at(&mut path, b"", command, argv, envp);
    }
    let dirs = variable(envp, b"PATH=").unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut told = ENOENT;
    for dir in dirs.split(|byte| *byte == b':') {
        let dir: &[u8] = if dir.is_empty() { b"." } else { dir };
        match exec_at(&mut path, dir, command, argv, envp) {
            ENOENT | ENOTDIR => {}
            error => told = error,
        }
    }
    told
}

fn exec_at(path: &mut [u8; 4096], dir: &[u8], name: &[u8], argv: *const *const u8, envp: *const *const u8) -> isize {
    let mut at = 0;
    let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
    for part in [dir, slash, name, b"\0"] {
        for byte in part {
            let Some(slot) = path.get_mut(at) else { return ENOENT };
            *slot = *byte;
            at += 1;
        }
    }
    syscall(nr::EXECVE, [path.as_ptr() as usize, argv as usize, envp as usize, 0, 0])
}

/// The value of an environment variable; `name` ends in `=`.
fn variable(envp: *const *const u8, name: &[u8]) -> Option<&'static [u8]> {
    let mut at = 0;
    loop {
        // SAFETY: the list ends in a null, which ends the loop.
        let entry = unsafe { *envp.add(at) };
        if entry.is_null() {
            return None;
        }
        if let Some(value) = text(entry).strip_prefix(name) {
            return Some(value);
        }
        at += 1;
    }
}

/// In the parent: signals go to the child, ended children are reaped, the command's end is ours.
fn supervise(child: usize, blocked: u64) -> ! {
    loop {
        let signal = syscall(nr::RT_SIGTIMEDWAIT, [addr(&blocked), 0, 0, 8, 0]);
        if signal == SIGCHLD as isize {
            reap(child);
        } else if signal > 0 {
            syscall(nr::KILL, [child, signal as usize, 0, 0, 0]);
        } else if signal != EINTR {
            exit(1);
        }
    }
}

/// SIGCHLDs merge: one may stand for several ends.
fn reap(child: usize) {
    loop {
        let mut status: i32 = 0;
        let pid = syscall(nr::WAIT4, [usize::MAX, addr_mut(&mut status), WNOHANG, 0, 0]);
        if pid <= 0 {
            return;
        }
        if pid as usize == child {
            let signal = status & 0x7f;
            exit(if signal == 0 { (status >> 8) & 0xff } else { 128 + signal });
        }
    }
}

fn addr<T>(value: &T) -> usize {
    core::ptr::from_ref(value) as usize
}

fn addr_mut<T>(value: &mut T) -> usize {
    core::ptr::from_mut(value) as usize
}

/// The bytes of a C string.
fn text(at: *const u8) -> &'static [u8] {
    let mut len = 0;
    // SAFETY: arguments and environment end in a zero byte and live as long as the process.
    unsafe {
        while *at.add(len) != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(at, len)
    }
}
