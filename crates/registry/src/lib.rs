//! Client of the OCI distribution API: resolve, fetch, push.
//!
//! Invariant: what comes from a registry is a claim. Digests and sizes are checked before bytes are used; credentials
//! go to the registry they belong to and to nobody it redirects to; certificates and plain HTTP are decided per host.
//!
//! A [`Client`] is made for one transfer: it holds the hosts that serve one repository (mirrors first), the tokens
//! got on the way, and the connections. Dropping it closes them.

mod auth;
mod client;
mod dial;
mod error;
pub mod hosts;
mod ping;
mod pull;
mod push;
mod tls;

pub use auth::{Ask, Credential, Credentials};
pub use client::{Client, ClientOptions};
pub use error::{ApiError, Kind, RegistryError};
pub use hosts::{Capabilities, Host, HostsConfig, HostsError};
pub use pull::{Blob, Resolved};
pub use push::{BlobSource, Pushed};
pub use tls::client as tls_client;
