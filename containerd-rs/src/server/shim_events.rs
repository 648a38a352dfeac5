//! `containerd.services.events.ttrpc.v1.Events`: where shims hand in their events.
//!
//! One socket, one task per shim that is connected. An event is passed on before its receipt is confirmed, so a shim that gets no
//! confirmation (we died) sends it again to our successor.

use std::time::Duration;

use containerd_api::Error;
use shim_api::forward::ForwardRequest;
use shim_api::service;
use ttrpc::{Call, Code, Options, Service, Status, decode, serve_connection};

use crate::daemon::Daemon;
use crate::grpc::bind;

/// Calls at work per connection; shims send one event after the other.
const LIMITS: Options = Options { max_in_flight: 64 };

/// Listens on the ttrpc address until the daemon stops.
///
/// # Errors
/// The socket cannot be had.
pub fn serve(daemon: &Daemon) -> Result<(), Error> {
    let config = &daemon.config;
    let address = config.ttrpc_address();
    let listener = bind(&address, config.ttrpc.uid, config.ttrpc.gid)
        .map_err(|err| Error::internal("serve ttrpc", crate::chain(&err)))?;
    let daemon = daemon.clone();
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = daemon.stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, _)) => {
                    let (read, write) = socket.into_split();
                    tokio::spawn(serve_connection(Forward(daemon.clone()), read, write, LIMITS));
                }
                Err(err) => {
                    tracing::warn!(%err, "accept on the ttrpc address");
                    // Out of descriptors, most likely: others have to give some back first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let _ = std::fs::remove_file(&address);
    });
    Ok(())
}

#[derive(Clone)]
struct Forward(Daemon);

impl Service for Forward {
    async fn call(self, call: Call) -> Result<Vec<u8>, Status> {
        if call.service != service::EVENTS || call.method != "Forward" {
            return Err(call.unimplemented());
        }
        let request: ForwardRequest = decode(call.payload)?;
        let envelope = request.envelope.ok_or_else(|| Status::invalid_argument("envelope is required"))?;
        self.0.runtime.tasks.forward(envelope).map_err(|err| {
            tracing::warn!(%err, "a shim's event was refused");
            Status::new(Code::from(tonic::Status::from(err.clone()).code() as i32), err.message())
        })?;
        Ok(Vec::new())
    }
}
