//! Telling a client how far a transfer is.
//!
//! Events are named as containerd's transfer service names them: `waiting`, `downloading` (or `uploading`), `complete`,
//! `already exists`, `saved`. Beyond those, each unpacked layer has `extracting` events (progress in bytes of the
//! compressed layer) and one `extracted`. A client that does not read loses intermediate figures, never the end of a
//! step.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use containerd_api::transfer_types as wire;
use containerd_api::types;
use oci::Descriptor;
use oci::mediatype::{self, Kind};
use prost_types::Any;
use tokio::sync::mpsc;

use super::streams::pack;

/// How often figures of one layer are sent.
const PACE: Duration = Duration::from_millis(100);

/// Where events go; nowhere if the client did not ask.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    to_client: Option<mpsc::Sender<Any>>,
}

/// The events of one piece of content.
#[derive(Debug)]
pub struct Item {
    progress: Progress,
    name: String,
    parents: Vec<String>,
    descriptor: Descriptor,
    last: Mutex<Option<Instant>>,
}

impl Progress {
    pub fn new(to_client: Option<mpsc::Sender<Any>>) -> Self {
        Self { to_client }
    }

    /// Tells of something that belongs to no content: `Resolving from …`.
    pub async fn say(&self, event: impl Into<String>) {
        self.send(wire::Progress { event: event.into(), ..Default::default() }).await;
    }

    /// Tells of an image by name.
    pub async fn image(&self, event: &str, name: &str, target: &Descriptor) {
        let desc = Some(to_wire(target));
        let message = wire::Progress { event: event.into(), name: name.into(), desc, ..Default::default() };
        self.send(message).await;
    }

    /// Starts the events of one piece of content with `waiting`.
    pub async fn item(&self, descriptor: &Descriptor, parents: Vec<String>) -> Item {
        let item = Item {
            progress: self.clone(),
            name: ref_key(descriptor),
            parents,
            descriptor: descriptor.clone(),
            last: Mutex::new(None),
        };
        item.step("waiting", 0).await;
        item
    }

    /// An item without a first event, for later steps of something known.
    pub fn quiet_item(&self, descriptor: &Descriptor) -> Item {
        Item {
            progress: self.clone(),
            name: ref_key(descriptor),
            parents: Vec::new(),
            descriptor: descriptor.clone(),
            last: Mutex::new(None),
        }
    }

    async fn send(&self, message: wire::Progress) {
        if let Some(to_client) = &self.to_client {
            // A client that has gone does not stop its transfer.
            let _ = tokio::time::timeout(Duration::from_secs(10), to_client.send(pack(&message))).await;
        }
    }
}

impl Item {
    /// A step that the client must hear of.
    pub async fn step(&self, event: &str, progress: u64) {
        self.progress.send(self.message(event, progress)).await;
    }

    /// The last step: everything is there.
    pub async fn done(&self, event: &str) {
        self.step(event, self.descriptor.size).await;
    }

    /// A figure; sent if the last one is old enough and the client keeps up.
    pub fn figure(&self, event: &str, progress: u64) {
        let Some(to_client) = &self.progress.to_client else { return };
        {
            let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if last.is_some_and(|at| at.elapsed() < PACE) {
                return;
            }
            *last = Some(Instant::now());
        }
        let _ = to_client.try_send(pack(&self.message(event, progress)));
    }

    fn message(&self, event: &str, progress: u64) -> wire::Progress {
        wire::Progress {
            event: event.into(),
            name: self.name.clone(),
            parents: self.parents.clone(),
            progress: i64::try_from(progress).unwrap_or(i64::MAX),
            total: i64::try_from(self.descriptor.size).unwrap_or(i64::MAX),
            desc: Some(to_wire(&self.descriptor)),
        }
    }
}

/// What content is called while it is written: `layer-sha256:…`.
pub fn ref_key(descriptor: &Descriptor) -> String {
    let kind = match mediatype::kind(&descriptor.media_type) {
        Kind::Manifest => "manifest",
        Kind::Index => "index",
        Kind::Config => "config",
        Kind::Layer => "layer",
        Kind::Schema1 | Kind::Other => "unknown",
    };
    format!("{kind}-{}", descriptor.digest)
}

/// A descriptor as the API has it.
pub fn to_wire(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone().into_iter().collect(),
    }
}
