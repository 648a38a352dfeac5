//! System calls, files and processes: the one crate with unsafe code.

pub mod atomicfile;
pub mod cgroup;
pub mod enter;
pub mod fifo;
pub mod fork;
pub mod memory;
pub mod mount;
pub mod mountns;
pub mod netns;
pub mod pidfd;
pub mod process;
pub mod pty;
pub mod reaper;
pub mod splice;
pub mod unixpath;
