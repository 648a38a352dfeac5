//! The stores as one transfer sees them: in one namespace, under one lease.
//!
//! Invariant: everything a transfer makes belongs to its lease from the moment it exists, so the collector leaves it
//! alone until an image refers to it. A lease of the transfer's own ends with it.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use containerd_api::content::Info;
use containerd_api::error::{Error, Kind};
use containerd_api::images::{Image, ImageCreate, ImageUpdate};
use containerd_api::leases::Lease;
use oci::{Descriptor, Digest};

use super::progress::{ref_key, to_wire};
use super::streams::pack;
use crate::content::{Store, Writer};
use crate::events::now;
use crate::meta::gcsched::Collector;
use crate::meta::leases::touch_namespace;
use crate::meta::{Db, Reader};
use crate::snapshot::Snapshots;

/// The label of leases that transfers made for themselves.
const OWN_LEASE: &str = "containerd-rs/transfer";
/// The label of a lease that says when it ends by itself.
const EXPIRES: &str = "containerd.io/gc.expire";
/// How long a transfer's own lease lasts at most.
const LEASE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long what a killed daemon had fetched waits for somebody to ask for it again.
const SECOND_CHANCE: Duration = Duration::from_secs(300);

/// A namespace's stores, with the lease of the transfer.
#[derive(Clone)]
pub struct Scope {
    pub db: Arc<Db>,
    pub content: Arc<Store>,
    pub snapshots: Arc<Snapshots>,
    pub collector: Collector,
    pub namespace: String,
    pub lease: Option<String>,
    own_lease: bool,
}

impl Scope {
    pub fn new(
        db: Arc<Db>,
        content: Arc<Store>,
        snapshots: Arc<Snapshots>,
        collector: Collector,
        namespace: &str,
        lease: Option<&str>,
    ) -> Self {
        let (namespace, lease) = (namespace.to_owned(), lease.map(str::to_owned));
        Self { db, content, snapshots, collector, namespace, lease, own_lease: false }
    }

    /// The same with a lease: the caller's, or a new one.
    pub async fn leased(mut self) -> Result<Self, Error> {
        if self.lease.is_some() {
            return Ok(self);
        }
        let mut random = [0u8; 6];
        getrandom::fill(&mut random).map_err(|err| Error::internal("make a lease", err))?;
        let at = now();
        let id = format!("{}-{}", at.nanos, hex::encode(random));
        let expires = jiff::Timestamp::now()
            .checked_add(jiff::SignedDuration::from_secs(LEASE_LIFE.as_secs() as i64))
            .map_err(|err| Error::internal("make a lease", err))?;
        let labels =
            HashMap::from([(EXPIRES.to_owned(), expires.to_string()), (OWN_LEASE.to_owned(), String::new())]);
        let lease = Lease { id: id.clone(), created_at: Some(at), labels };
        let namespace = self.namespace.clone();
        self.db
            .write(move |tx| {
                touch_namespace(tx, &namespace)?;
                tx.put(&namespace, &lease.id, &lease);
                Ok(())
            })
            .await?;
        self.lease = Some(id);
        self.own_lease = true;
        Ok(self)
    }

    /// Lets the leases of transfers a killed daemon was making expire soon. For before the first transfer.
    pub(super) async fn shorten_leftovers(db: &Db, collector: &Collector) -> Result<(), Error> {
        use crate::meta::records::GLOBAL;
        let until = jiff::Timestamp::now()
            .checked_add(jiff::SignedDuration::from_secs(SECOND_CHANCE.as_secs() as i64))
            .map_err(|err| Error::internal("shorten a lease", err))?;
        let namespaces = db.read(|tx| tx.list::<containerd_api::namespaces::Namespace>(GLOBAL, ""))?;
        for (namespace, _) in namespaces {
            let leases = db.read(|tx| tx.list::<Lease>(&namespace, ""))?;
            for (id, mut lease) in leases {
                if !lease.labels.contains_key(OWN_LEASE) {
                    continue;
                }
                lease.labels.insert(EXPIRES.to_owned(), until.to_string());
                let namespace = namespace.clone();
                db.write(move |tx| {
                    tx.put(&namespace, &id, &lease);
                    Ok(())
                })
                .await?;
                collector.request();
            }
        }
        Ok(())
    }

    /// Gives up the transfer's own lease.
    pub async fn release(&self) {
        let (true, Some(lease)) = (self.own_lease, self.lease.clone()) else { return };
        let namespace = self.namespace.clone();
        let id = lease.clone();
        let removed = self
            .db
            .write(move |tx| {
                let prefix = format!("{id}\0");
                for (held, _) in tx.list::<crate::meta::records::Held>(&namespace, &prefix)? {
                    tx.delete::<crate::meta::records::Held>(&namespace, &held);
                }
                tx.delete::<Lease>(&namespace, &id);
                Ok(())
            })
            .await;
        self.collector.request();
        if let Err(err) = removed {
            tracing::warn!(%err, lease, "a transfer's lease could not be removed; it expires by itself");
        }
    }

    /// What is recorded of a blob, if the namespace has it.
    pub fn info(&self, digest: &Digest) -> Result<Option<Info>, Error> {
        match self.content.info(&self.namespace, digest) {
            Ok(info) => Ok(Some(info)),
            Err(err) if err.is_not_found() => Ok(None),
            Err(err) => Err(err),
        }
    }

    pub fn has(&self, digest: &Digest) -> Result<bool, Error> {
        self.content.has(&self.namespace, digest)
    }

    /// A document or configuration, whole.
    pub fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let limit = super::walk::memory_limit(descriptor).unwrap_or(oci::manifest::MAX_CONFIG_BYTES);
        self.content.read_small(&self.namespace, &descriptor.digest, limit)
    }

    pub fn open(&self, digest: &Digest) -> Result<(File, u64), Error> {
        self.content.open_blob(&self.namespace, digest)
    }

    /// A writer for a descriptor's content. Waits while another transfer writes the same. `None` once it is there.
    pub async fn writer(&self, descriptor: &Descriptor) -> Result<Option<Writer>, Error> {
        let reference = ref_key(descriptor);
        self.writer_as(&reference, descriptor.size, Some(descriptor.digest.clone())).await
    }

    /// A writer under a reference of one's own choice.
    pub async fn writer_as(
        &self,
        reference: &str,
        total: u64,
        expected: Option<Digest>,
    ) -> Result<Option<Writer>, Error> {
        let total = i64::try_from(total).unwrap_or(0);
        let mut pause = Duration::from_millis(5);
        loop {
            let lease = self.lease.as_deref();
            match self.content.writer(&self.namespace, lease, reference, total, expected.clone()).await {
                Ok(writer) => return Ok(Some(writer)),
                Err(err) if err.is_already_exists() => {
                    if let Some(digest) = &expected {
                        self.hold_content(digest).await?;
                    }
                    return Ok(None);
                }
                // A writer outside this process's transfers: a gRPC client. It ends or its connection does.
                Err(err) if err.kind() == Kind::Unavailable => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(500));
                }
                Err(err) => return Err(err),
            }
        }
    }

    /// Makes what exists already belong to the transfer's lease.
    pub async fn hold_content(&self, digest: &Digest) -> Result<(), Error> {
        use crate::meta::leases::{Holdable, hold};
        let (namespace, lease, digest) = (self.namespace.clone(), self.lease.clone(), digest.to_string());
        self.db
            .write(move |tx| {
                tx.relaxed();
                hold(tx, &namespace, lease.as_deref(), Holdable::Content, &digest)
            })
            .await
    }

    /// Stores bytes that are in memory.
    pub async fn put(
        &self,
        descriptor: &Descriptor,
        bytes: &[u8],
        labels: HashMap<String, String>,
    ) -> Result<(), Error> {
        let Some(mut writer) = self.writer(descriptor).await? else {
            return self.label(&descriptor.digest, labels).await;
        };
        if !writer.is_shared() {
            writer.restart()?;
            writer.append(bytes)?;
        }
        match writer.commit(bytes.len() as u64, Some(&descriptor.digest), labels.clone()).await {
            Ok(_) => Ok(()),
            Err(err) if err.is_already_exists() => self.label(&descriptor.digest, labels).await,
            Err(err) => Err(err),
        }
    }

    /// Adds labels to content; those it has already are not written again.
    pub async fn label(&self, digest: &Digest, labels: HashMap<String, String>) -> Result<(), Error> {
        let Some(info) = self.info(digest)? else { return Err(Error::not_found("content", digest.as_str())) };
        if labels.iter().all(|(key, value)| info.labels.get(key) == Some(value)) {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let wanted = Info { digest: digest.to_string(), labels, ..Info::default() };
        self.content.update(&self.namespace, wanted, paths).await.map(drop)
    }

    /// An image by name.
    pub fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        self.db.get::<Image>(&self.namespace, name)
    }

    /// All images whose names start with `prefix`.
    pub fn images(&self, prefix: &str) -> Result<Vec<Image>, Error> {
        self.db.read(|tx| {
            Ok(tx.list::<Image>(&self.namespace, prefix)?.into_iter().map(|(_, image)| image).collect())
        })
    }

    /// Makes an image, or points it to something else.
    pub async fn put_image(
        &self,
        name: &str,
        target: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<(), Error> {
        let (namespace, name, target) = (self.namespace.clone(), name.to_owned(), to_wire(target));
        self.db
            .write(move |tx| {
                let at = Some(now());
                touch_namespace(tx, &namespace)?;
                let before = tx.get::<Image>(&namespace, &name)?;
                let image = match &before {
                    Some(before) => Image {
                        target: Some(target),
                        labels: if labels.is_empty() { before.labels.clone() } else { labels },
                        updated_at: at,
                        ..before.clone()
                    },
                    None => Image {
                        name: name.clone(),
                        labels,
                        target: Some(target),
                        created_at: at,
                        updated_at: at,
                    },
                };
                tx.put(&namespace, &name, &image);
                if before.is_some() {
                    let event = ImageUpdate { name, labels: image.labels };
                    tx.publish(&namespace, "/images/update", pack(&event));
                } else {
                    let event = ImageCreate { name, labels: image.labels };
                    tx.publish(&namespace, "/images/create", pack(&event));
                }
                Ok(())
            })
            .await
    }
}

/// A descriptor of the API as one of ours.
///
/// # Errors
/// Its digest or size make no sense.
pub fn from_wire(descriptor: &containerd_api::types::Descriptor) -> Result<Descriptor, Error> {
    let digest = crate::content::parse(&descriptor.digest)?;
    let size = u64::try_from(descriptor.size).map_err(|_| Error::invalid("negative size in descriptor"))?;
    let mut ours = Descriptor::new(&descriptor.media_type, digest, size);
    ours.annotations = descriptor.annotations.clone().into_iter().collect();
    Ok(ours)
}
