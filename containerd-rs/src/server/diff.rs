//! `containerd.services.diff.v1.Diff`.

use containerd_api::diff::diff_server::{Diff, DiffServer};
use containerd_api::diff::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use containerd_api::ns::{self, Namespace};
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;
use crate::transfer::progress::to_wire;
use crate::transfer::scope::Scope;

/// The service.
pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> DiffServer<Service> {
    DiffServer::new(Service(daemon.clone()))
}

impl Service {
    fn scope<T>(&self, request: &Request<T>) -> Result<Scope, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let lease = ns::lease(request.metadata());
        Ok(self.0.transfer.scope(&self.0.collector, namespace.as_str(), lease))
    }
}

#[tonic::async_trait]
impl Diff for Service {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let scope = self.scope(&request)?;
        let applied = self.0.transfer.apply(scope, request.into_inner()).await?;
        Ok(Response::new(ApplyResponse { applied: Some(to_wire(&applied)) }))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let scope = self.scope(&request)?;
        let diff = self.0.transfer.diff(scope, request.into_inner()).await?;
        Ok(Response::new(DiffResponse { diff: Some(to_wire(&diff)) }))
    }
}
