//! Containers: their records, life and streams.
//!
//! Invariants: a record is on disk before anyone sees it ([`Container::update`]); readers take a snapshot and hold no lock; an id and a
//! name lead to one container at most. What may run at the same time on one container is the business of its actor ([`live`]).

pub mod archive;
pub mod changes;
pub mod commit;
pub mod create;
pub mod detach;
pub mod exec;
pub mod gates;
pub mod health;
pub mod inspect;
pub mod io;
pub mod kill;
pub mod life;
pub mod limits;
pub mod links;
pub mod list;
pub mod live;
pub mod logs;
pub mod merge;
pub mod mounts;
pub mod names;
pub mod pause;
pub mod provide;
pub mod prune;
pub mod record;
pub mod relay;
pub mod remove;
pub mod rename;
pub mod restore;
pub mod rootfs;
pub mod security;
pub mod spec;
pub mod start;
pub mod stats;
pub mod stop;
pub mod top;
pub mod update;
pub mod validate;
pub mod wait;
pub mod world;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub use self::record::{Life, Record, State, Task};
use crate::engine::{Engine, Parts};
use crate::error::{Error, Result};
use crate::store::{Change, Store, Table};
use names::Names;

/// A container's place in the networks, as clients see it.
pub fn network_settings(engine: &Engine, record: &Record) -> docker_api::inspect::Network {
    let settings = engine.networks.settings(record);
    let binding = |mapping: crate::network::PortMapping| docker_api::PortBinding {
        host_ip: mapping.host_ip.parse().unwrap_or_default(),
        host_port: mapping.host_port,
    };
    docker_api::inspect::Network {
        sandbox_id: settings.sandbox_id,
        sandbox_key: settings.sandbox_key,
        ports: settings
            .ports
            .into_iter()
            .map(|(port, mappings)| {
                (port, mappings.map(|mappings| mappings.into_iter().map(binding).collect()))
            })
            .collect(),
        legacy: None,
        networks: settings.networks,
    }
}

/// One container.
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// What the engine holds for it in memory.
    pub live: live::Live,
    record: watch::Sender<Arc<Record>>,
    /// Taken by whoever is writing the record. The one lock held across an await, that of the store's commit; readers never need it.
    writing: Arc<tokio::sync::Mutex<()>>,
    store: Store,
}

impl Container {
    fn new(record: Record, store: Store) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            live: live::Live::default(),
            record: watch::Sender::new(Arc::new(record)),
            writing: Arc::default(),
            store,
        })
    }

    /// The record as it is now.
    pub fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record.borrow())
    }

    /// The record once a start that is under way is decided: its process may run, and be heard of, before the record says so.
    pub async fn settled(&self) -> Arc<Record> {
        let record = self.record();
        if record.pid().is_some() {
            return record;
        }
        drop(self.live.turn().await);
        self.record()
    }

    /// Sees each new record. `watch` merges: only the newest is seen.
    pub fn watch(&self) -> watch::Receiver<Arc<Record>> {
        self.record.subscribe()
    }

    /// Changes the record: `change` gets the present one, and what it makes of it is written to disk and then published. When `change`
    /// fails or the disk refuses, nothing has happened. Changes of one container happen one after the other. The change goes on to its
    /// end when the caller stops waiting. `change` must be quick and must not block.
    ///
    /// # Errors
    /// Those of `change`, and those of the store.
    pub async fn update<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Record) -> Result<T>,
    ) -> Result<T> {
        let writing = Arc::clone(&self.writing).lock_owned().await;
        let mut record = Record::clone(&self.record.borrow());
        let answer = change(&mut record)?;
        if record == **self.record.borrow() {
            return Ok(answer);
        }
        let container = Arc::clone(self);
        let written = tokio::spawn(async move {
            container.store.put(Table::Containers, container.id.clone(), &record).await?;
            container.record.send_replace(Arc::new(record));
            drop(writing);
            Ok(())
        });
        written.await.unwrap_or_else(|err| Err(Error::system(format!("write record: {err}"))))?;
        Ok(answer)
    }

    /// As [`Container::update`] without the disk: for what may be forgotten when the engine dies, such as each health check's result.
    pub async fn update_unsaved(&self, change: impl FnOnce(&mut Record)) {
        let _writing = self.writing.lock().await;
        self.record.send_modify(|record| change(Arc::make_mut(record)));
    }
}

/// All containers.
pub struct Containers {
    /// What the engine holds in memory for all of them together.
    pub shared: live::Shared,
    /// Who has which name.
    pub names: Names,
    /// Taken by the one prune that may run.
    pub pruning: tokio::sync::Mutex<()>,
    index: Mutex<BTreeMap<String, Arc<Container>>>,
    store: Store,
}

impl Containers {
    /// Reads the records. A damaged one is reported and left where it is; it harms no other.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(parts: &Parts) -> Result<Self> {
        let store = parts.store.clone();
        let names = Names::default();
        let mut index = BTreeMap::new();
        for (id, record) in store.list::<Record>(Table::Containers, "")? {
            match record {
                Ok(record) if record.version <= record::VERSION => {
                    match names.reserve(&record.name, &record.id) {
                        Ok(reservation) => reservation.keep(),
                        Err(owner) => {
                            tracing::error!(id, owner, name = record.name, "two containers of one name")
                        }
                    }
                    index.insert(id, Container::new(record, store.clone()));
                }
                Ok(record) => {
                    tracing::error!(id, version = record.version, "container of a newer engine left alone")
                }
                Err(err) => tracing::error!(id, error = %err, "container cannot be read"),
            }
        }
        Ok(Self {
            shared: live::Shared::default(),
            names,
            index: Mutex::new(index),
            pruning: tokio::sync::Mutex::new(()),
            store,
        })
    }

    fn index(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All containers, by id.
    pub fn all(&self) -> Vec<Arc<Container>> {
        self.index().values().cloned().collect()
    }

    /// The container with this full id.
    pub fn by_id(&self, id: &str) -> Option<Arc<Container>> {
        self.index().get(id).cloned()
    }

    /// The container a client means: by full id, by name, or by the beginning of an id that no other has.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn get(&self, given: &str) -> Result<Arc<Container>> {
        if given.is_empty() {
            return Err(Error::invalid("invalid name or ID supplied: \"\""));
        }
        if let Some(container) = self.by_id(given) {
            return Ok(container);
        }
        let name = given.strip_prefix('/').unwrap_or(given);
        if let Some(container) = self.names.find(name).and_then(|id| self.by_id(&id)) {
            return Ok(container);
        }
        let missing = || Error::not_found(format!("No such container: {given}"));
        let index = self.index();
        let mut with_prefix =
            index.range(given.to_owned()..).take_while(|(id, _)| id.starts_with(given)).map(|(_, c)| c);
        let first = with_prefix.next().ok_or_else(missing)?;
        if with_prefix.next().is_some() {
            return Err(Error::invalid(format!("multiple IDs found with provided prefix: {given}")));
        }
        Ok(Arc::clone(first))
    }

    /// Writes a new container's record and makes it known.
    ///
    /// # Errors
    /// The store refused.
    pub async fn add(&self, record: Record) -> Result<Arc<Container>> {
        self.store.put(Table::Containers, record.id.clone(), &record).await?;
        let container = Container::new(record, self.store.clone());
        self.index().insert(container.id.clone(), Arc::clone(&container));
        Ok(container)
    }

    /// Forgets a container: its record, its place in the index, its names. Waiters on [`Container::watch`] see their channel close once
    /// the last handle is gone.
    ///
    /// # Errors
    /// The store refused; the container is still known.
    pub async fn forget(&self, id: &str) -> Result<()> {
        self.store.apply(vec![Change::Delete(Table::Containers, id.to_owned())]).await?;
        self.index().remove(id);
        self.names.free_all(id);
        Ok(())
    }
}
