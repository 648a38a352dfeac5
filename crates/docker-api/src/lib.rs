//! Types of the Docker Engine API, as they are on the wire.
//!
//! Invariant: nothing here decides anything; the engine and the command line both read and write these.
//!
//! Two spellings of Go's JSON matter everywhere. A slice or map that may be `null` in an answer is an `Option`: `None` is `null`, an empty
//! collection is `[]` or `{}`. A field Go marks `omitempty` is skipped when it has its zero value.

pub mod common;
pub mod container;
pub mod endpoint;
pub mod filters;
pub mod host_config;
pub mod inspect;
pub mod json;
pub mod mount;
pub mod volume;

pub use common::{Addr, Empty, MacAddress, Port};
pub use container::{Config, HealthConfig};
pub use endpoint::{EndpointIpamConfig, EndpointSettings, NetworkingConfig};
pub use host_config::{HostConfig, LogConfig, PortBinding, PortMap, RestartPolicy};
pub use mount::Mount;
