//! `containerd.services.snapshots.v1`.

use std::pin::Pin;

use containerd_api::Error;
use containerd_api::ns::{self, Namespace};
use containerd_api::snapshots::snapshots_server::{Snapshots, SnapshotsServer};
use containerd_api::snapshots::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
    MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;
use crate::snapshot::Scope;

/// Entries of one message of a list.
const PAGE: usize = 100;

pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> SnapshotsServer<Service> {
    SnapshotsServer::new(Service(daemon.clone()))
}

#[tonic::async_trait]
impl Snapshots for Service {
    type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let lease = ns::lease(request.metadata()).map(str::to_owned);
        let PrepareSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let scope =
            Scope { namespace: namespace.as_str(), lease: lease.as_deref(), snapshotter: &snapshotter };
        let mounts = self.0.snapshots.prepare(scope, &key, &parent, labels).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let lease = ns::lease(request.metadata()).map(str::to_owned);
        let ViewSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let scope =
            Scope { namespace: namespace.as_str(), lease: lease.as_deref(), snapshotter: &snapshotter };
        let mounts = self.0.snapshots.view(scope, &key, &parent, labels).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let MountsRequest { snapshotter, key } = request.into_inner();
        let mounts = self.0.snapshots.mounts(namespace.as_str(), &snapshotter, &key).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let lease = ns::lease(request.metadata()).map(str::to_owned);
        let CommitSnapshotRequest { snapshotter, name, key, labels, parent } = request.into_inner();
        let scope =
            Scope { namespace: namespace.as_str(), lease: lease.as_deref(), snapshotter: &snapshotter };
        self.0.snapshots.commit(scope, &name, &key, labels, Some(&parent), None).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let RemoveSnapshotRequest { snapshotter, key } = request.into_inner();
        self.0.snapshots.remove(namespace.as_str(), &snapshotter, &key).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let StatSnapshotRequest { snapshotter, key } = request.into_inner();
        let info = self.0.snapshots.stat(namespace.as_str(), &snapshotter, &key)?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let UpdateSnapshotRequest { snapshotter, info, update_mask } = request.into_inner();
        let wanted = info.ok_or_else(|| Error::invalid("info is required"))?;
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let info = self.0.snapshots.update(namespace.as_str(), &snapshotter, wanted, paths).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info) }))
    }

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let ListSnapshotsRequest { snapshotter, filters } = request.into_inner();
        let found = self.0.snapshots.list(namespace.as_str(), &snapshotter, &filters)?;
        let pages: Vec<_> =
            found.chunks(PAGE).map(|page| Ok(ListSnapshotsResponse { info: page.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let UsageRequest { snapshotter, key } = request.into_inner();
        let usage = self.0.snapshots.usage(namespace.as_str(), &snapshotter, &key).await?;
        Ok(Response::new(UsageResponse { size: usage.size_bytes, inodes: usage.inodes }))
    }

    async fn cleanup(&self, request: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        self.0.snapshots.cleanup(namespace.as_str(), &request.into_inner().snapshotter).await?;
        Ok(Response::new(()))
    }
}
