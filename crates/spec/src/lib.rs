//! The OCI runtime specification as the engine writes it: its shape, and Docker's defaults.
//!
//! Invariant: the same input gives the same bytes. Lists that are sets are sorted, maps are ordered.
//!
//! - [`model`]: the document.
//! - [`caps`]: capabilities: names, the default set, add and drop.
//! - [`devices`]: device nodes and the rules of the devices cgroup.
//! - [`paths`]: what is hidden or read-only below /proc and /sys.
//! - [`seccomp`]: the default profile, profiles of the user's, and what they come to for a container.
//! - [`user`]: users and groups out of passwd and group files.

pub mod caps;
pub mod devices;
pub mod model;
pub mod paths;
pub mod seccomp;
pub mod user;
