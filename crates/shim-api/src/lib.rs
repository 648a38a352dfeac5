//! Messages of the shim v2 protocol and containerd's events.
//!
//! What a supervisor and a shim say to each other, and what both put into events: generated from `proto/`, which holds the
//! wire facts (package, field number, name) of containerd's main branch. Unknown fields are skipped on reading, so older
//! and newer peers understand each other. Services have no generated code: [`service`] names them, `ttrpc` dispatches.
//!
//! The messages of task API 2 and 3 have the same shape; both are [`task`], and the service name says which is spoken.

pub mod any;

/// Everything generated, in a module tree that follows the protobuf packages.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}

pub use proto::containerd::events;
pub use proto::containerd::runc::v1 as runc_options;
pub use proto::containerd::runtime::bootstrap::v1 as bootstrap;
pub use proto::containerd::runtime::sandbox::v1 as sandbox;
pub use proto::containerd::services::events::ttrpc::v1 as forward;
pub use proto::containerd::task::v3 as task;
pub use proto::containerd::types;
pub use proto::containerd::v1::types as task_types;
pub use proto::io::containerd::cgroups::v1 as cgroup1;
pub use proto::io::containerd::cgroups::v2 as cgroup2;
pub use proto::runtimeoptions::v1 as runtime_options;
pub use proto::shim::events as own_events;

/// The names services have on the wire.
pub mod service {
    /// The shim's task service, API version 2 (containerd 1.x).
    pub const TASK_V2: &str = "containerd.task.v2.Task";
    /// The shim's task service, API version 3 (containerd 2.x).
    pub const TASK_V3: &str = "containerd.task.v3.Task";
    /// The optional sandbox service of a shim.
    pub const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";
    /// Where a shim hands its events to its supervisor: method `Forward`.
    pub const EVENTS: &str = "containerd.services.events.ttrpc.v1.Events";
}

/// Topics of the events a shim publishes.
pub mod topic {
    /// [`crate::events::TaskCreate`].
    pub const TASK_CREATE: &str = "/tasks/create";
    /// [`crate::events::TaskStart`].
    pub const TASK_START: &str = "/tasks/start";
    /// [`crate::events::TaskOom`].
    pub const TASK_OOM: &str = "/tasks/oom";
    /// [`crate::events::TaskExit`].
    pub const TASK_EXIT: &str = "/tasks/exit";
    /// [`crate::events::TaskDelete`].
    pub const TASK_DELETE: &str = "/tasks/delete";
    /// [`crate::events::TaskExecAdded`].
    pub const TASK_EXEC_ADDED: &str = "/tasks/exec-added";
    /// [`crate::events::TaskExecStarted`].
    pub const TASK_EXEC_STARTED: &str = "/tasks/exec-started";
    /// [`crate::events::TaskPaused`].
    pub const TASK_PAUSED: &str = "/tasks/paused";
    /// [`crate::events::TaskResumed`].
    pub const TASK_RESUMED: &str = "/tasks/resumed";
    /// [`crate::events::TaskCheckpointed`].
    pub const TASK_CHECKPOINTED: &str = "/tasks/checkpointed";
    /// [`crate::own_events::LogDropped`].
    pub const LOG_DROPPED: &str = "/tasks/log-dropped";
}
