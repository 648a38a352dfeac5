//! `containerd.services.containers.v1`.

use std::pin::Pin;

use containerd_api::any::pack;
use containerd_api::containers::containers_server::{Containers, ContainersServer};
use containerd_api::containers::{
    Container, CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, GetContainerRequest,
    GetContainerResponse, ListContainerMessage, ListContainersRequest, ListContainersResponse,
    UpdateContainerRequest, UpdateContainerResponse,
};
use containerd_api::error::{Error, Kind, quote};
use containerd_api::event::{ContainerCreate, ContainerDelete, ContainerUpdate, container_create};
use containerd_api::ns::{self, Namespace};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;
use crate::events::now;
use crate::filters::Filters;
use crate::meta::Reader;
use crate::meta::labels::{self, MaskPath};
use crate::meta::leases::touch_namespace;

pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> ContainersServer<Service> {
    ContainersServer::new(Service(daemon.clone()))
}

impl Service {
    fn matching(&self, namespace: &Namespace, filters: &[String]) -> Result<Vec<Container>, Error> {
        let filters = Filters::parse(filters)?;
        self.0.db.read(|tx| {
            let mut found = Vec::new();
            tx.each::<Container>(namespace.as_str(), "", &mut |_, container| {
                if filters.matches(&container) {
                    found.push(container);
                }
                Ok(true)
            })?;
            Ok(found)
        })
    }
}

#[tonic::async_trait]
impl Containers for Service {
    type ListStreamStream = Pin<Box<dyn Stream<Item = Result<ListContainerMessage, Status>> + Send>>;

    async fn get(
        &self,
        request: Request<GetContainerRequest>,
    ) -> Result<Response<GetContainerResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let id = request.into_inner().id;
        let container =
            self.0.db.get::<Container>(namespace.as_str(), &id)?.ok_or_else(|| not_found(&namespace, &id))?;
        Ok(Response::new(GetContainerResponse { container: Some(container) }))
    }

    async fn list(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let containers = self.matching(&namespace, &request.into_inner().filters)?;
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn list_stream(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let containers = self.matching(&namespace, &request.into_inner().filters)?;
        let messages =
            containers.into_iter().map(|container| Ok(ListContainerMessage { container: Some(container) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn create(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let mut container = request.into_inner().container.unwrap_or_default();
        validate(&container).map_err(|err| err.context("create container failed validation"))?;
        container.created_at = Some(now());
        container.updated_at = container.created_at;
        let container = self
            .0
            .db
            .write(move |tx| {
                if tx.has::<Container>(namespace.as_str(), &container.id)? {
                    return Err(Error::already_exists("container", &container.id));
                }
                touch_namespace(tx, namespace.as_str())?;
                tx.put(namespace.as_str(), &container.id, &container);
                let runtime = container.runtime.clone().unwrap_or_default();
                let event = ContainerCreate {
                    id: container.id.clone(),
                    image: container.image.clone(),
                    runtime: Some(container_create::Runtime { name: runtime.name, options: runtime.options }),
                };
                tx.publish(namespace.as_str(), "/containers/create", pack(&event));
                Ok(container)
            })
            .await?;
        Ok(Response::new(CreateContainerResponse { container: Some(container) }))
    }

    async fn update(
        &self,
        request: Request<UpdateContainerRequest>,
    ) -> Result<Response<UpdateContainerResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let UpdateContainerRequest { container, update_mask } = request.into_inner();
        let wanted = container.unwrap_or_default();
        if wanted.id.is_empty() {
            return Err(Error::invalid("must specify a container id").into());
        }
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let collector = self.0.collector.clone();
        let container = self
            .0
            .db
            .write(move |tx| {
                let id = wanted.id.clone();
                let found = tx.get::<Container>(namespace.as_str(), &id)?;
                let mut container = found.ok_or_else(|| Error::not_found("container", &id))?;
                change(&mut container, wanted, &paths)?;
                let checked = match container.spec {
                    // A container may be created without one, and gets it by an update.
                    None => Err(Error::invalid("container.Spec must be set")),
                    Some(_) => validate(&container),
                };
                checked.map_err(|err| err.context("update failed validation"))?;
                container.updated_at = Some(now());
                tx.put(namespace.as_str(), &id, &container);
                let event = ContainerUpdate {
                    id,
                    image: container.image.clone(),
                    labels: container.labels.clone().into_iter().collect(),
                    snapshot_key: container.snapshot_key.clone(),
                };
                tx.publish(namespace.as_str(), "/containers/update", pack(&event));
                tx.after_commit(move |_| collector.request());
                Ok(container)
            })
            .await?;
        Ok(Response::new(UpdateContainerResponse { container: Some(container) }))
    }

    async fn delete(&self, request: Request<DeleteContainerRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let id = request.into_inner().id;
        let collector = self.0.collector.clone();
        self.0
            .db
            .write(move |tx| {
                if !tx.has::<Container>(namespace.as_str(), &id)? {
                    return Err(Error::of(Kind::NotFound, format_args!("container {id}")));
                }
                tx.delete::<Container>(namespace.as_str(), &id);
                tx.publish(namespace.as_str(), "/containers/delete", pack(&ContainerDelete { id }));
                tx.after_commit(move |_| collector.request());
                Ok(())
            })
            .await?;
        Ok(Response::new(()))
    }
}

/// Applies a field mask; without one, everything that may change.
fn change(container: &mut Container, wanted: Container, paths: &[String]) -> Result<(), Error> {
    if paths.is_empty() {
        let immutable = |what: &str| Error::invalid(format_args!("container.{what} field is immutable"));
        if container.snapshotter != wanted.snapshotter {
            return Err(immutable("Snapshotter"));
        }
        let name = |container: &Container| container.runtime.as_ref().map(|runtime| runtime.name.clone());
        if name(container) != name(&wanted) {
            return Err(immutable("Runtime.Name"));
        }
        container.labels = wanted.labels;
        container.spec = wanted.spec;
        container.extensions = wanted.extensions;
        container.image = wanted.image;
        container.snapshot_key = wanted.snapshot_key;
        container.runtime = wanted.runtime;
        return Ok(());
    }
    for path in paths {
        match labels::mask_path(path, "labels") {
            MaskPath::All => container.labels = wanted.labels.clone(),
            MaskPath::One(key) => labels::update_one(&mut container.labels, &wanted.labels, key),
            MaskPath::Other("spec") => container.spec = wanted.spec.clone(),
            MaskPath::Other("image") => container.image = wanted.image.clone(),
            MaskPath::Other("snapshotkey") => container.snapshot_key = wanted.snapshot_key.clone(),
            MaskPath::Other(path) => match labels::mask_path(path, "extensions") {
                MaskPath::All => container.extensions = wanted.extensions.clone(),
                MaskPath::One(key) => match wanted.extensions.get(key) {
                    Some(value) => drop(container.extensions.insert(key.to_owned(), value.clone())),
                    None => drop(container.extensions.remove(key)),
                },
                MaskPath::Other(path) => return Err(labels::cannot_update(path, "", &container.id)),
            },
        }
    }
    Ok(())
}

fn validate(container: &Container) -> Result<(), Error> {
    ns::validate_identifier(&container.id).map_err(|err| err.context("container.ID"))?;
    if container.extensions.keys().any(String::is_empty) {
        return Err(Error::invalid("extension keys must not be zero-length"));
    }
    if container.image.contains('\0') || container.snapshot_key.contains('\0') {
        return Err(Error::invalid("container fields must not contain NUL"));
    }
    labels::validate(&container.labels).map_err(|err| err.context("containers.Labels"))?;
    if container.runtime.as_ref().is_none_or(|runtime| runtime.name.is_empty()) {
        return Err(Error::invalid("container.Runtime.Name must be set"));
    }
    if !container.snapshot_key.is_empty() && container.snapshotter.is_empty() {
        return Err(Error::invalid("container.Snapshotter must be set if container.SnapshotKey is set"));
    }
    Ok(())
}

fn not_found(namespace: &Namespace, id: &str) -> Error {
    let what = format!("container {} in namespace {}", quote(id), quote(namespace.as_str()));
    Error::of(Kind::NotFound, what)
}
