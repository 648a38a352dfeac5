//! Unfinished writes: one directory each, so that they go on after a restart where they stopped.
//!
//! `ingest/<hash of namespace and reference>/data` is what was written, `about` says whose it is. Neither is synced: what a crash of the
//! machine takes is written again. The list of them is read at the start and kept in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_api::content::Status;
use containerd_api::error::{Error, Kind};
use oci::digest::Digest;
use prost::Message as _;
use prost_types::Timestamp;

/// How long an unfinished write that no lease holds is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// What `about` says.
#[derive(Clone, PartialEq, prost::Message)]
pub struct About {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub reference: String,
    /// The size the client announced; 0 if it did not.
    #[prost(int64, tag = "3")]
    pub total: i64,
    /// The digest the client announced.
    #[prost(string, tag = "4")]
    pub expected: String,
    #[prost(message, optional, tag = "5")]
    pub started_at: Option<Timestamp>,
}

struct Entry {
    about: About,
    directory: PathBuf,
    /// Since when somebody writes.
    locked_at: Option<SystemTime>,
}

type Entries = BTreeMap<(String, String), Entry>;

/// All unfinished writes.
pub struct Ingests {
    root: PathBuf,
    entries: Arc<Mutex<Entries>>,
}

/// The right to write under a reference. Dropping it gives it back.
pub struct Lock {
    entries: Arc<Mutex<Entries>>,
    key: (String, String),
    pub about: About,
    pub directory: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(entry) = locked(&self.entries).get_mut(&self.key) {
            entry.locked_at = None;
        }
    }
}

impl Lock {
    /// The write is finished: nobody finds it any more. The directory is the caller's to remove.
    pub fn finish(&self) {
        locked(&self.entries).remove(&self.key);
    }

    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }
}

impl Ingests {
    /// Reads what is unfinished below `root`; what makes no sense is removed.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        crate::daemon::private_directory(&root, 0o700)?;
        let mut entries = Entries::new();
        for entry in std::fs::read_dir(&root)? {
            let directory = entry?.path();
            match std::fs::read(directory.join("about")).ok().and_then(|bytes| About::decode(&*bytes).ok()) {
                Some(about) if root.join(name(&about.namespace, &about.reference)) == directory => {
                    let key = (about.namespace.clone(), about.reference.clone());
                    entries.insert(key, Entry { about, directory, locked_at: None });
                }
                _ => {
                    std::fs::remove_dir_all(&directory).or_else(|_| std::fs::remove_file(&directory))?;
                }
            }
        }
        Ok(Self { root, entries: Arc::new(Mutex::new(entries)) })
    }

    /// Takes the right to write under `reference`, beginning if there is nothing yet.
    ///
    /// # Errors
    /// `Unavailable` while somebody else has it.
    pub fn lock(
        &self,
        namespace: &str,
        reference: &str,
        total: i64,
        expected: Option<&Digest>,
    ) -> Result<Lock, Error> {
        let key = (namespace.to_owned(), reference.to_owned());
        let mut entries = locked(&self.entries);
        if let Some(entry) = entries.get_mut(&key) {
            if let Some(since) = entry.locked_at {
                return Err(in_use(reference, since));
            }
            entry.locked_at = Some(SystemTime::now());
            if entry.about.total == 0 {
                entry.about.total = total;
            }
            if let (true, Some(expected)) = (entry.about.expected.is_empty(), expected) {
                entry.about.expected = expected.as_str().to_owned();
            }
            let (about, directory) = (entry.about.clone(), entry.directory.clone());
            return Ok(Lock { entries: Arc::clone(&self.entries), key, about, directory });
        }
        let about = About {
            namespace: namespace.to_owned(),
            reference: reference.to_owned(),
            total,
            expected: expected.map(|digest| digest.as_str().to_owned()).unwrap_or_default(),
            started_at: Some(crate::events::now()),
        };
        let directory = self.root.join(name(namespace, reference));
        let begin = || -> io::Result<()> {
            match std::fs::create_dir(&directory) {
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            std::fs::write(directory.join("about"), about.encode_to_vec())
        };
        begin().map_err(|err| Error::internal(format_args!("begin write {reference}"), err))?;
        let entry =
            Entry { about: about.clone(), directory: directory.clone(), locked_at: Some(SystemTime::now()) };
        entries.insert(key.clone(), entry);
        Ok(Lock { entries: Arc::clone(&self.entries), key, about, directory })
    }

    pub fn status(&self, namespace: &str, reference: &str) -> Result<Status, Error> {
        let found = {
            let entries = locked(&self.entries);
            entries
                .get(&(namespace.to_owned(), reference.to_owned()))
                .map(|entry| (entry.about.clone(), entry.directory.clone()))
        };
        let (about, directory) = found.ok_or_else(|| not_found(reference))?;
        Ok(status(&about, &directory))
    }

    pub fn list(&self, namespace: &str) -> Vec<Status> {
        let found: Vec<_> = {
            let entries = locked(&self.entries);
            entries
                .values()
                .filter(|entry| entry.about.namespace == namespace)
                .map(|entry| (entry.about.clone(), entry.directory.clone()))
                .collect()
        };
        found.iter().map(|(about, directory)| status(about, directory)).collect()
    }

    /// Forgets an unfinished write; its directory is the caller's to remove.
    pub fn remove(&self, namespace: &str, reference: &str) -> Result<PathBuf, Error> {
        let key = (namespace.to_owned(), reference.to_owned());
        let mut entries = locked(&self.entries);
        match entries.get(&key) {
            None => Err(not_found(reference)),
            Some(Entry { locked_at: Some(since), .. }) => Err(in_use(reference, *since)),
            Some(_) => entries.remove(&key).map(|entry| entry.directory).ok_or_else(|| not_found(reference)),
        }
    }

    /// References nobody writes under, that `keep` does not want, and that were begun more than a day ago.
    pub fn expired(&self, namespace: &str, keep: &dyn Fn(&str) -> bool) -> Vec<String> {
        let before = SystemTime::now().checked_sub(KEPT).unwrap_or(SystemTime::UNIX_EPOCH);
        locked(&self.entries)
            .values()
            .filter(|entry| entry.about.namespace == namespace && entry.locked_at.is_none())
            .filter(|entry| !keep(&entry.about.reference))
            .filter(|entry| {
                entry
                    .about
                    .started_at
                    .and_then(|at| SystemTime::try_from(at).ok())
                    .is_none_or(|at| at < before)
            })
            .map(|entry| entry.about.reference.clone())
            .collect()
    }
}

fn status(about: &About, directory: &Path) -> Status {
    let metadata = std::fs::metadata(directory.join("data")).ok();
    let updated = metadata.as_ref().and_then(|metadata| metadata.modified().ok()).map(Timestamp::from);
    Status {
        started_at: about.started_at,
        updated_at: updated.or(about.started_at),
        r#ref: about.reference.clone(),
        offset: metadata.map_or(0, |metadata| i64::try_from(metadata.len()).unwrap_or(i64::MAX)),
        total: about.total,
        expected: about.expected.clone(),
    }
}

/// The directory of a reference: references are any text.
fn name(namespace: &str, reference: &str) -> String {
    Digest::of(format!("{namespace}\0{reference}").as_bytes()).hex().to_owned()
}

fn not_found(reference: &str) -> Error {
    Error::of(Kind::NotFound, format_args!("reference {reference}"))
}

fn in_use(reference: &str, since: SystemTime) -> Error {
    let held = since.elapsed().unwrap_or_default();
    Error::of(Kind::Unavailable, format_args!("ref {reference} locked for {held:?}"))
}

fn locked(entries: &Mutex<Entries>) -> MutexGuard<'_, Entries> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}
