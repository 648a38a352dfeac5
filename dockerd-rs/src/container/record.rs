//! A container's record: everything about it that outlives the engine.
//!
//! Invariants: a record is whole and versioned; what only one state has (a task) lives in that state; nothing here is changed but through
//! [`super::Container::update`].

use std::collections::BTreeMap;

use docker_api::endpoint::EndpointSettings;
use docker_api::inspect::{ContainerState, Health};
use docker_api::{Config, HostConfig};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::mounts::MountPoint;

/// The layout this engine writes.
pub const VERSION: u32 = 1;

/// A container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The layout.
    pub version: u32,
    /// 64 hex digits.
    pub id: String,
    /// Without a leading slash.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
    /// What it runs; `None` for a container created without an image.
    pub image: Option<ImageRef>,
    /// `linux`.
    pub platform: String,
    /// The snapshotter that holds the root file system.
    pub snapshotter: String,
    /// The key of its writable snapshot; empty when there is none.
    pub snapshot: String,
    /// What to run, merged with the image's.
    pub config: Config,
    /// How to run it.
    pub host_config: HostConfig,
    /// The networks to join, by name or id, as asked for. What they became is the network controller's to know.
    pub networks: BTreeMap<String, EndpointSettings>,
    /// What is mounted where, by destination.
    pub mounts: BTreeMap<String, MountPoint>,
    /// Where it is in its life.
    pub life: Life,
    /// Restarts by policy since the client last started it.
    pub restart_count: u32,
    /// Whether a client stopped it: its policy rests until a client starts it.
    pub manually_stopped: bool,
    /// Whether it was ever started: what its paths in inspect depend on.
    pub started_once: bool,
    /// What the health checks say.
    pub health: Option<Health>,
}

/// The image a container was made from. The container goes on when the image's names change or go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The id shown for it: the digest of its manifest or index.
    pub id: String,
    /// The full reference, when it was found by one.
    pub reference: String,
    /// The chosen manifest's media type, digest and size.
    pub manifest: Option<Manifest>,
    /// Of its configuration.
    pub config_digest: String,
    /// Of its layers: the parent of the container's snapshot.
    pub chain_id: String,
}

/// The manifest that was chosen for the platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub size: i64,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Of the platform.
    pub architecture: String,
    /// Of the platform.
    pub os: String,
    /// Of the platform.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Of the platform.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// Where a container is in its life, and how its last run went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Where it is.
    pub state: State,
    /// Of the last run; 0 before the first.
    pub exit_code: i32,
    /// Why the last start failed.
    pub error: String,
    /// Whether the last run met the OOM killer.
    pub oom_killed: bool,
    /// The last start.
    pub started_at: Option<Timestamp>,
    /// The last end.
    pub finished_at: Option<Timestamp>,
}

/// The states of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Never ran, or its last start failed before it ran.
    #[default]
    Created,
    /// Its processes run.
    Running(Task),
    /// Its processes are frozen.
    Paused(Task),
    /// Ended, and will be started again by its policy.
    Restarting,
    /// Ended.
    Exited,
    /// Being removed.
    Removing,
    /// Could not be removed.
    Dead,
}

/// A container's processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The first process, in the host's numbers.
    pub pid: u32,
}

impl State {
    /// The word the API uses.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running(_) => "running",
            Self::Paused(_) => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
        }
    }

    /// The processes, if there are any.
    pub fn task(&self) -> Option<&Task> {
        match self {
            Self::Running(task) | Self::Paused(task) => Some(task),
            Self::Created | Self::Restarting | Self::Exited | Self::Removing | Self::Dead => None,
        }
    }

    /// What Docker calls running: also while paused and while waiting for a restart.
    pub fn is_running(&self) -> bool {
        self.task().is_some() || *self == Self::Restarting
    }

    /// Whether its processes are frozen.
    pub fn is_paused(&self) -> bool {
        matches!(self, Self::Paused(_))
    }
}

impl Record {
    /// Until when the container used its image: now, while it runs.
    pub fn last_used(&self) -> Timestamp {
        if self.life.state.is_running() {
            return Timestamp::now();
        }
        [self.life.started_at, self.life.finished_at].into_iter().flatten().fold(self.created, Timestamp::max)
    }

    /// The container's state as inspect shows it.
    pub fn state(&self) -> ContainerState {
        let life = &self.life;
        ContainerState {
            status: life.state.word().into(),
            running: life.state.is_running(),
            paused: life.state.is_paused(),
            restarting: life.state == State::Restarting,
            oom_killed: life.oom_killed,
            dead: life.state == State::Dead,
            pid: life.state.task().map_or(0, |task| i64::from(task.pid)),
            exit_code: i64::from(life.exit_code),
            error: life.error.clone(),
            started_at: life.started_at,
            finished_at: life.finished_at,
            health: self.health.clone(),
        }
    }

    /// The id's first twelve digits.
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    /// The first process, or `None` when nothing runs.
    pub fn pid(&self) -> Option<u32> {
        self.life.state.task().map(|task| task.pid)
    }

    /// The path and arguments of the container's process.
    pub fn argv(&self) -> (String, Vec<String>) {
        let mut argv = self.config.argv().cloned();
        (argv.next().unwrap_or_default(), argv.collect())
    }

    /// The image as list and events name it: as the client gave it.
    pub fn image_name(&self) -> &str {
        &self.config.image
    }

    /// What events about the container tell: its labels, image and name.
    pub fn event_attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = self.config.labels.clone().unwrap_or_default();
        attributes.insert("image".into(), self.config.image.clone());
        attributes.insert("name".into(), self.name.clone());
        attributes
    }

    /// Whether the container shares another's network.
    pub fn network_of(&self) -> Option<&str> {
        self.host_config.network_mode.strip_prefix("container:")
    }
}
