//! Manifests, indexes and configurations, read once.
//!
//! They are named by their digests and never change, so only their number is limited: the cache keeps what was used last, up to so many
//! bytes of their text. Whether the store still has one is not known here; who asks looks into the store's view first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use oci::config::chain_id;
use oci::{Digest, ImageConfig, Index, Manifest};

/// Bytes of text behind the documents that are kept, of each kind.
const LIMIT_BYTES: u64 = 4 << 20;

/// A manifest or an index.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Manifest(Arc<Manifest>),
    Index(Arc<Index>),
}

impl From<oci::Document> for Document {
    fn from(document: oci::Document) -> Self {
        match document {
            oci::Document::Manifest(manifest) => Self::Manifest(Arc::new(manifest)),
            oci::Document::Index(index) => Self::Index(Arc::new(index)),
        }
    }
}

/// A configuration, and what follows from it.
#[derive(Debug)]
pub(crate) struct Known {
    pub config: ImageConfig,
    /// The snapshots of its layers, lowest first.
    pub chains: Vec<String>,
    pub created: Option<jiff::Timestamp>,
}

impl From<ImageConfig> for Known {
    fn from(config: ImageConfig) -> Self {
        let diff_ids = &config.rootfs.diff_ids;
        let chains = (1..=diff_ids.len()).filter_map(|length| chain_id(&diff_ids[..length]));
        let chains = chains.map(|chain| chain.to_string()).collect();
        let created = config.created.as_ref().and_then(|created| created.parse().ok());
        Self { chains, created, config }
    }
}

/// What was used last. Two generations: when the young one is full it becomes the old one, and what the old one still held is forgotten.
struct Cache<T> {
    young: HashMap<Digest, (T, u64)>,
    old: HashMap<Digest, (T, u64)>,
    young_bytes: u64,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0 }
    }
}

impl<T: Clone> Cache<T> {
    fn get(&mut self, digest: &Digest) -> Option<T> {
        if let Some((value, _)) = self.young.get(digest) {
            return Some(value.clone());
        }
        let (value, bytes) = self.old.remove(digest)?;
        self.put(digest.clone(), value.clone(), bytes);
        Some(value)
    }

    fn put(&mut self, digest: Digest, value: T, bytes: u64) {
        if self.young_bytes + bytes > LIMIT_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        self.young.insert(digest, (value, bytes));
    }
}

/// The documents that were read.
#[derive(Default)]
pub(super) struct Documents {
    documents: Mutex<Cache<Document>>,
    /// `None`: it is no image's configuration.
    configs: Mutex<Cache<Option<Arc<Known>>>>,
}

impl Documents {
    pub fn document(&self, digest: &Digest) -> Option<Document> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).get(digest)
    }

    pub fn keep_document(&self, digest: &Digest, document: &Document, bytes: usize) {
        let mut kept = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        kept.put(digest.clone(), document.clone(), bytes as u64);
    }

    pub fn config(&self, digest: &Digest) -> Option<Option<Arc<Known>>> {
        self.configs.lock().unwrap_or_else(PoisonError::into_inner).get(digest)
    }

    pub fn keep_config(&self, digest: &Digest, config: &Option<Arc<Known>>, bytes: usize) {
        let mut kept = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        kept.put(digest.clone(), config.clone(), bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut cache: Cache<usize> = Cache::default();
        let digest = |at: usize| Digest::of(&at.to_le_bytes());
        let big = LIMIT_BYTES / 10;
        for at in 0..100 {
            cache.put(digest(at), at, big);
            assert_eq!(cache.get(&digest(0)), Some(0), "used all the time");
        }
        assert_eq!(cache.get(&digest(50)), None);
        assert!(cache.young.len() + cache.old.len() <= 10);
    }

    #[test]
    fn a_configuration_knows_its_snapshots() {
        let mut config =
            ImageConfig { created: Some("2026-01-01T00:00:00Z".into()), ..ImageConfig::default() };
        config.rootfs.diff_ids = vec![Digest::of(b"a"), Digest::of(b"b")];
        let known = Known::from(config);
        assert_eq!(known.chains.len(), 2);
        assert_eq!(known.chains[0], Digest::of(b"a").to_string());
        assert_eq!(known.created.map(|at| at.as_second()), Some(1_767_225_600));
    }
}
