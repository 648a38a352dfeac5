//! `containerd.services.transfer.v1.Transfer`.

use containerd_api::error::{Error, Kind};
use containerd_api::ns::{self, Namespace};
use containerd_api::transfer::TransferRequest;
use containerd_api::transfer::transfer_server::{Transfer, TransferServer};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;

/// The service.
pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> TransferServer<Service> {
    TransferServer::new(Service(daemon.clone()))
}

#[tonic::async_trait]
impl Transfer for Service {
    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let lease = ns::lease(request.metadata()).map(str::to_owned);
        let transfer = self.0.transfer.clone();
        let scope = transfer.scope(&self.0.collector, namespace.as_str(), lease.as_deref());
        // A client that goes away cancels its transfer, which still ends its lease itself.
        let gone = CancellationToken::new();
        let _told = gone.clone().drop_guard();
        let stop = self.0.stop.clone();
        let work =
            tokio::spawn(
                async move { transfer.transfer_until(scope, request.into_inner(), gone, stop).await },
            );
        let done = work.await.map_err(|err| Error::internal("transfer", err))?;
        done.map(Response::new).map_err(|err| match err.kind() {
            Kind::Canceled => Status::cancelled(err.message().to_owned()),
            _ => Status::from(err),
        })
    }
}
