//! What is stored, and under which kind.
//!
//! Most records are the wire messages themselves. The kinds and the field numbers here are on disk: they are never reused.

use containerd_api::{containers, content, images, leases, namespaces, types};

use super::db::Record;

/// The namespace of records that belong to none.
pub const GLOBAL: &str = "";

macro_rules! records {
    ($($message:ty = $kind:literal;)*) => {
        $(impl Record for $message {
            const KIND: &'static str = $kind;
        })*
    };
}

records! {
    // Global.
    namespaces::Namespace = "namespace";
    Blob = "blob";
    Doomed = "doomed";
    // In a namespace.
    images::Image = "image";
    containers::Container = "container";
    content::Info = "content";
    Snapshot = "snapshot";
    Child = "child";
    leases::Lease = "lease";
    Held = "held";
    types::Sandbox = "sandbox";
}

/// A blob file, whichever namespaces know it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Blob {
    #[prost(uint64, tag = "1")]
    pub size_bytes: u64,
    #[prost(message, optional, tag = "2")]
    pub created_at: Option<prost_types::Timestamp>,
    /// The namespace in which another process has the bytes; empty when they are in a file of ours.
    #[prost(string, tag = "3")]
    pub home: String,
}

/// A blob that another process may have for nobody; the id of its record is the digest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Doomed {
    /// The namespace in which it has it.
    #[prost(string, tag = "1")]
    pub home: String,
}

/// A snapshot; the id of its record is `snapshotter NUL name`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Snapshot {
    /// The directory below `snapshots/`.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The parent's name, or nothing.
    #[prost(string, tag = "2")]
    pub parent: String,
    /// `snapshots::Kind`.
    #[prost(int32, tag = "3")]
    pub kind: i32,
    #[prost(message, optional, tag = "4")]
    pub created_at: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "5")]
    pub updated_at: Option<prost_types::Timestamp>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// What it takes on disk without its parents; known once it is committed.
    #[prost(message, optional, tag = "7")]
    pub usage: Option<Usage>,
    /// What the process calls it that made it; empty when that is us.
    #[prost(string, tag = "8")]
    pub remote: String,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Usage {
    #[prost(int64, tag = "1")]
    pub size_bytes: i64,
    #[prost(int64, tag = "2")]
    pub inodes: i64,
}

/// That a lease holds something; the id of its record is `lease NUL type NUL id`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Held {}

/// That a snapshot has a child; the id of its record is `snapshotter NUL parent NUL child`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Child {}

/// The id of a [`Child`].
pub fn child_id(snapshotter: &str, parent: &str, child: &str) -> String {
    format!("{snapshotter}\0{parent}\0{child}")
}

/// The id of a snapshot's record.
pub fn snapshot_id(snapshotter: &str, name: &str) -> String {
    format!("{snapshotter}\0{name}")
}

/// The id of what a lease holds.
pub fn held_id(lease: &str, kind: &str, id: &str) -> String {
    format!("{lease}\0{kind}\0{id}")
}
