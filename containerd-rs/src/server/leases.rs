//! `containerd.services.leases.v1`.

use containerd_api::error::Error;
use containerd_api::leases::leases_server::{Leases, LeasesServer};
use containerd_api::leases::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest, Lease,
    ListRequest, ListResourcesRequest, ListResourcesResponse, ListResponse,
};
use containerd_api::ns::Namespace;
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;
use crate::events::now;
use crate::filters::Filters;
use crate::meta::leases::{EXPIRE, resources, touch_namespace, validate};
use crate::meta::records::{Held, held_id};
use crate::meta::{Reader, gc, labels};

pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> LeasesServer<Service> {
    LeasesServer::new(Service(daemon.clone()))
}

#[tonic::async_trait]
impl Leases for Service {
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let CreateRequest { mut id, labels } = request.into_inner();
        if id.is_empty() {
            id = generate()?;
        }
        if id.contains('\0') {
            return Err(Error::invalid("lease id must not contain NUL").into());
        }
        labels::validate(&labels)?;
        let expires = labels.contains_key(EXPIRE);
        let collector = self.0.collector.clone();
        let lease = self
            .0
            .db
            .write(move |tx| {
                if tx.has::<Lease>(namespace.as_str(), &id)? {
                    return Err(Error::already_exists("lease", &id));
                }
                touch_namespace(tx, namespace.as_str())?;
                let lease = Lease { id: id.clone(), created_at: Some(now()), labels };
                tx.put(namespace.as_str(), &id, &lease);
                if expires {
                    // The collector learns when.
                    tx.after_commit(move |_| collector.request());
                }
                Ok(lease)
            })
            .await?;
        Ok(Response::new(CreateResponse { lease: Some(lease) }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let DeleteRequest { id, sync } = request.into_inner();
        let collector = self.0.collector.clone();
        self.0
            .db
            .write(move |tx| {
                if !tx.has::<Lease>(namespace.as_str(), &id)? {
                    return Err(Error::not_found("lease", &id));
                }
                let held = resources(tx, namespace.as_str(), &id)?;
                let nodes = held.into_iter().filter_map(gc::Node::held).collect();
                gc::delete_lease(tx, namespace.as_str(), &id)?;
                tx.after_commit(move |_| collector.release(namespace.as_str(), nodes));
                Ok(())
            })
            .await?;
        if sync {
            self.0.collector.run_now().await?;
        }
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        let leases = self.0.db.read(|tx| tx.list::<Lease>(namespace.as_str(), ""))?;
        let leases =
            leases.into_iter().map(|(_, lease)| lease).filter(|lease| filters.matches(lease)).collect();
        Ok(Response::new(ListResponse { leases }))
    }

    async fn add_resource(&self, request: Request<AddResourceRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let AddResourceRequest { id, resource } = request.into_inner();
        let resource = resource.unwrap_or_default();
        validate(&resource)?;
        self.0
            .db
            .write(move |tx| {
                if !tx.has::<Lease>(namespace.as_str(), &id)? {
                    return Err(Error::not_found("lease", &id));
                }
                tx.put(namespace.as_str(), &held_id(&id, &resource.r#type, &resource.id), &Held {});
                Ok(())
            })
            .await?;
        Ok(Response::new(()))
    }

    async fn delete_resource(&self, request: Request<DeleteResourceRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let DeleteResourceRequest { id, resource } = request.into_inner();
        let resource = resource.unwrap_or_default();
        validate(&resource)?;
        let collector = self.0.collector.clone();
        self.0
            .db
            .write(move |tx| {
                if !tx.has::<Lease>(namespace.as_str(), &id)? {
                    return Err(Error::not_found("lease", &id));
                }
                tx.delete::<Held>(namespace.as_str(), &held_id(&id, &resource.r#type, &resource.id));
                tx.after_commit(move |_| collector.request());
                Ok(())
            })
            .await?;
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let id = request.into_inner().id;
        let resources = self.0.db.read(|tx| {
            if !tx.has::<Lease>(namespace.as_str(), &id)? {
                return Err(Error::not_found("lease", &id));
            }
            resources(tx, namespace.as_str(), &id)
        })?;
        Ok(Response::new(ListResourcesResponse { resources }))
    }
}

/// A name for a lease whose client has none: the nanoseconds of this second and four random characters.
fn generate() -> Result<String, Error> {
    use base64::Engine as _;
    let mut random = [0; 3];
    getrandom::fill(&mut random).map_err(|err| Error::internal("name the lease", err))?;
    let suffix = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random);
    Ok(format!("{}-{suffix}", now().nanos))
}
