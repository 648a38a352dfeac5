//! The typed client of containerd: the only module that knows gRPC.
//!
//! [`tasks`] makes containers and processes, [`events`] hears what became of them, [`content`] reads and changes the store, of which
//! [`catalog`] keeps what reading needs. Every call carries the engine's namespace and a
//! deadline, so that a containerd that hangs is an error here and not a request that never ends.

pub mod catalog;
pub mod content;
pub mod events;
pub mod tasks;
pub mod transfer;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_api::{MAX_MESSAGE_BYTES, ns};
use tonic::transport::Channel;

use crate::error::Result;

/// What names of leases and writes of engines begin with.
const OURS: &str = "engine-";

/// How long a call waits for a containerd that is being started again.
const RESTART: Duration = Duration::from_secs(3);

/// A connection to containerd in one namespace; cheap to clone. It reconnects by itself after containerd was away.
#[derive(Clone)]
pub struct Runtime {
    channel: Channel,
    namespace: String,
    catalog: Arc<catalog::Catalog>,
    /// Names of the leases and writes that are in use. What else is called ours was left by an engine that was killed.
    held: Arc<Mutex<HashSet<String>>>,
}

impl Runtime {
    /// A client of the containerd at `socket`. Connects at first use.
    ///
    /// # Errors
    /// None today; building the endpoint could fail.
    pub fn new(socket: &Path, namespace: &str) -> Result<Self> {
        Ok(Self {
            channel: containerd_api::client::connect_lazy(socket, RESTART),
            namespace: namespace.to_owned(),
            catalog: Arc::default(),
            held: Arc::default(),
        })
    }

    /// The channel, for a service's client.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The namespace requests are made in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// `message` as a request in this namespace, to be answered within `deadline`.
    pub fn request<T>(&self, message: T, deadline: Duration) -> tonic::Request<T> {
        let mut request = ns::request(message, &self.namespace, None);
        request.set_timeout(deadline);
        request
    }

    /// A client of containerd's tasks.
    pub(crate) fn tasks_client(&self) -> containerd_api::tasks::tasks_client::TasksClient<Channel> {
        containerd_api::tasks::tasks_client::TasksClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// A client of containerd's container records.
    pub(crate) fn containers_client(
        &self,
    ) -> containerd_api::containers::containers_client::ContainersClient<Channel> {
        containerd_api::containers::containers_client::ContainersClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}
