//! `containerd.services.version.v1`.

use containerd_api::version::VersionResponse;
use containerd_api::version::version_server::{Version, VersionServer};
use tonic::{Request, Response, Status};

use crate::version;

pub struct Service;

pub fn service() -> VersionServer<Service> {
    VersionServer::new(Service)
}

#[tonic::async_trait]
impl Version for Service {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: version::SHORT.to_owned(),
            revision: version::REVISION.to_owned(),
        }))
    }
}
