//! containerd's gRPC API: messages, clients and servers.
//!
//! The messages are compiled from the files in `proto/`, which state wire facts only (packages, names, numbers). They carry every field of
//! containerd's main line; older peers skip what they do not know.
//!
//! Modules are named after the service (`containers`, `content`, …). Each holds the messages, `*_client` and `*_server`. What is beside
//! them is small: [`any`] (how typed payloads are named), [`error`] (kinds of failure and gRPC codes), [`ns`] (the namespace and lease
//! headers), [`client`] (a channel to a unix socket).

pub mod any;
pub mod client;
pub mod error;
pub mod ns;

pub use client::connect;
pub use error::{Error, Kind};

/// The generated modules, nested like the packages.
#[allow(
    missing_docs,
    rust_2018_idioms,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::doc_markdown,
    rustdoc::all,
    reason = "generated code"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}

/// gRPC's own error message, as the introspection service carries it.
pub use generated::google::rpc;

use generated::containerd;

/// Sources, destinations and progress of the transfer service.
pub use containerd::types::transfer as transfer_types;
/// Events of containers, content, namespaces, sandboxes, snapshots and tasks. Those of images are in [`images`].
pub use shim_api::events as event;
/// Processes, as the tasks service and the shims describe them.
pub use shim_api::task_types as process;
/// Messages that several services share.
pub use shim_api::types;

pub use containerd::services::containers::v1 as containers;
pub use containerd::services::content::v1 as content;
pub use containerd::services::diff::v1 as diff;
pub use containerd::services::events::v1 as events;
pub use containerd::services::images::v1 as images;
pub use containerd::services::introspection::v1 as introspection;
pub use containerd::services::leases::v1 as leases;
pub use containerd::services::mounts::v1 as mounts;
pub use containerd::services::namespaces::v1 as namespaces;
pub use containerd::services::sandbox::v1 as sandbox;
pub use containerd::services::snapshots::v1 as snapshots;
pub use containerd::services::streaming::v1 as streaming;
pub use containerd::services::tasks::v1 as tasks;
pub use containerd::services::transfer::v1 as transfer;
pub use containerd::services::version::v1 as version;

/// The encoded `FileDescriptorSet` of everything here, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// containerd's limit for one message, both ways: 16 MiB.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
