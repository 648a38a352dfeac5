//! The little a freestanding program needs: an entry point, system calls, and the memory functions the compiler calls.

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
pub mod nr {
    pub const WRITE: usize = 1;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const GETPID: usize = 39;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const SETPGID: usize = 109;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const PRCTL: usize = 157;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
pub mod nr {
    pub const IOCTL: usize = 29;
    pub const WRITE: usize = 64;
    pub const EXIT_GROUP: usize = 94;
    pub const KILL: usize = 129;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const SETPGID: usize = 154;
    pub const PRCTL: usize = 167;
    pub const GETPID: usize = 172;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
}

// The kernel enters with the stack pointer at argc; hand that address to `begin` on an aligned stack.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "mov rdi, rsp", "and rsp, -16", "xor ebp, ebp", "call begin", "ud2");
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x0, sp", "mov x29, #0", "bl begin", "brk #1");

/// One system call; the result is the kernel's, negative errno included.
#[cfg(target_arch = "x86_64")]
pub fn syscall(nr: usize, args: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention; the callers pass only addresses of live data.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => result, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
             in("r10") args[3], in("r8") args[4], lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// One system call; the result is the kernel's, negative errno included.
#[cfg(target_arch = "aarch64")]
pub fn syscall(nr: usize, args: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention; the callers pass only addresses of live data.
    unsafe {
        asm!("svc #0", in("x8") nr, inlateout("x0") args[0] as isize => result, in("x1") args[1], in("x2") args[2],
             in("x3") args[3], in("x4") args[4]);
    }
    result
}

/// Writes all of `bytes` to descriptor `fd`, or gives up at the first error.
pub fn write_all(fd: usize, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = syscall(nr::WRITE, [fd, bytes.as_ptr() as usize, bytes.len(), 0, 0]);
        if written <= 0 {
            return;
        }
        bytes = &bytes[written as usize..];
    }
}

/// Ends the process.
pub fn exit(code: i32) -> ! {
    loop {
        syscall(nr::EXIT_GROUP, [code as usize, 0, 0, 0, 0]);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(70)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    let mut at = 0;
    while at < len {
        // SAFETY: the caller owns `len` bytes at `to`. Volatile keeps the compiler from making this a call of itself.
        unsafe { to.add(at).write_volatile(value as u8) };
        at += 1;
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    let mut at = 0;
    while at < len {
        // SAFETY: the caller owns `len` bytes at both.
        unsafe { to.add(at).write_volatile(from.add(at).read()) };
        at += 1;
    }
    to
}

// libcore's unwinding tables name it; with `panic=abort` nothing ever calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller's string ends in a zero byte. Volatile keeps the loop from being recognised as itself.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let mut at = 0;
    while at < len {
        // SAFETY: the caller owns `len` bytes at both.
        let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        at += 1;
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, len) }
}
