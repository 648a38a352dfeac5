//! The container supervisor: content, snapshots, images, containers and tasks behind containerd's API.
//!
//! [`Daemon`] holds the parts and wires them; `server` has one thin file per gRPC service, which parses a request, asks a part and answers.
//!
//! | part | keeps | module |
//! |---|---|---|
//! | metadata | records in one database, one writer | [`meta`] |
//! | garbage collection | what nobody refers to goes | [`meta::gc`] |
//! | content | blobs and resumable writes | [`content`] |
//! | snapshots | layered directories | [`snapshot`] |
//! | events | what happened, to subscribers | [`events`] |
//! | runtime | shims and tasks | [`runtime`] |
//! | transfer | pull, push, import, export, unpack | [`transfer`] |

pub mod config;
pub mod content;
pub mod daemon;
pub mod debug;
pub mod events;
pub mod filters;
pub mod grpc;
pub mod meta;
pub mod metrics;
pub mod plugins;
pub mod runtime;
pub mod server;
pub mod snapshot;
pub mod transfer;
pub mod trash;
pub mod version;

pub use daemon::{Daemon, StartError, chain, logging};
