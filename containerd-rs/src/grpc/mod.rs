//! The sockets the daemon serves on, and what it takes to serve gRPC there.

pub mod authority;
pub mod listen;

pub use listen::{Listener, bind};
