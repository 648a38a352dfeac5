//! Descriptors the runtime waits for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers something that owns its descriptor, for the given kind of readiness.
#[expect(
    deprecated,
    reason = "its successor is unsafe over types that do not own their descriptor; ours do, see AsFd"
)]
pub fn register_for<T: AsRawFd + AsFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}

/// Registers a descriptor for reading and writing.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register_for(fd, Interest::READABLE | Interest::WRITABLE)
}
