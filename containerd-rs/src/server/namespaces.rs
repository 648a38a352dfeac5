//! `containerd.services.namespaces.v1`.

use containerd_api::any::pack;
use containerd_api::error::{Error, quote};
use containerd_api::event::{NamespaceCreate, NamespaceDelete, NamespaceUpdate};
use containerd_api::namespaces::namespaces_server::{Namespaces, NamespacesServer};
use containerd_api::namespaces::{
    CreateNamespaceRequest, CreateNamespaceResponse, DeleteNamespaceRequest, GetNamespaceRequest,
    GetNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse, Namespace, UpdateNamespaceRequest,
    UpdateNamespaceResponse,
};
use containerd_api::{containers, content, images, ns, types};
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;
use crate::meta::labels::{self, MaskPath};
use crate::meta::records::{GLOBAL, Snapshot};
use crate::meta::{Reader, Record};

pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> NamespacesServer<Service> {
    NamespacesServer::new(Service(daemon.clone()))
}

#[tonic::async_trait]
impl Namespaces for Service {
    async fn get(
        &self,
        request: Request<GetNamespaceRequest>,
    ) -> Result<Response<GetNamespaceResponse>, Status> {
        let name = request.into_inner().name;
        let namespace =
            self.0.db.get::<Namespace>(GLOBAL, &name)?.ok_or_else(|| Error::not_found("namespace", &name))?;
        Ok(Response::new(GetNamespaceResponse { namespace: Some(namespace) }))
    }

    async fn list(
        &self,
        _: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        let namespaces = self.0.db.read(|tx| tx.list::<Namespace>(GLOBAL, ""))?;
        let namespaces = namespaces.into_iter().map(|(_, namespace)| namespace).collect();
        Ok(Response::new(ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<CreateNamespaceRequest>,
    ) -> Result<Response<CreateNamespaceResponse>, Status> {
        let namespace = request.into_inner().namespace.unwrap_or_default();
        ns::validate_identifier(&namespace.name)?;
        labels::validate(&namespace.labels)?;
        let created = self
            .0
            .db
            .write(move |tx| {
                let name = namespace.name.clone();
                if tx.has::<Namespace>(GLOBAL, &name)? {
                    return Err(Error::already_exists("namespace", &name));
                }
                tx.put(GLOBAL, &name, &namespace);
                let event = NamespaceCreate {
                    name: name.clone(),
                    labels: namespace.labels.clone().into_iter().collect(),
                };
                tx.publish(&name, "/namespaces/create", pack(&event));
                Ok(namespace)
            })
            .await?;
        Ok(Response::new(CreateNamespaceResponse { namespace: Some(created) }))
    }

    async fn update(
        &self,
        request: Request<UpdateNamespaceRequest>,
    ) -> Result<Response<UpdateNamespaceResponse>, Status> {
        let UpdateNamespaceRequest { namespace, update_mask } = request.into_inner();
        let wanted = namespace.unwrap_or_default();
        labels::validate(&wanted.labels)?;
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let updated = self
            .0
            .db
            .write(move |tx| {
                let name = wanted.name.clone();
                ns::validate_identifier(&name)?;
                // Labelling a namespace is a way to make it.
                let found = tx.get::<Namespace>(GLOBAL, &name)?;
                let mut namespace =
                    found.unwrap_or_else(|| Namespace { name: name.clone(), ..Namespace::default() });
                if paths.is_empty() {
                    labels::replace(&mut namespace.labels, wanted.labels);
                } else {
                    for path in &paths {
                        match labels::mask_path(path, "labels") {
                            MaskPath::All => labels::replace(&mut namespace.labels, wanted.labels.clone()),
                            MaskPath::One(key) => {
                                labels::update_one(&mut namespace.labels, &wanted.labels, key)
                            }
                            MaskPath::Other(path) => {
                                return Err(labels::cannot_update(path, "namespace", &name));
                            }
                        }
                    }
                }
                tx.put(GLOBAL, &name, &namespace);
                let event = NamespaceUpdate {
                    name: name.clone(),
                    labels: namespace.labels.clone().into_iter().collect(),
                };
                tx.publish(&name, "/namespaces/update", pack(&event));
                Ok(namespace)
            })
            .await?;
        Ok(Response::new(UpdateNamespaceResponse { namespace: Some(updated) }))
    }

    async fn delete(&self, request: Request<DeleteNamespaceRequest>) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.0
            .db
            .write(move |tx| {
                if !tx.has::<Namespace>(GLOBAL, &name)? {
                    return Err(Error::not_found("namespace", &name));
                }
                let held = contents(tx, &name)?;
                if !held.is_empty() {
                    return Err(Error::precondition(format_args!(
                        "namespace {} must be empty, but it still has {}",
                        quote(&name),
                        held.join(", ")
                    )));
                }
                tx.delete::<Namespace>(GLOBAL, &name);
                // What is left are leases and unfinished writes that hold nothing of value.
                let prefix = [name.as_bytes(), b"\0"].concat();
                let mut keys = Vec::new();
                tx.scan(&prefix, &mut |key, _| {
                    keys.push(key.to_vec());
                    Ok(true)
                })?;
                keys.iter().for_each(|key| tx.delete_raw(key));
                tx.publish(&name, "/namespaces/delete", pack(&NamespaceDelete { name: name.clone() }));
                Ok(())
            })
            .await?;
        Ok(Response::new(()))
    }
}

/// What keeps a namespace from being deleted, in containerd's words.
fn contents(tx: &impl Reader, namespace: &str) -> Result<Vec<String>, Error> {
    let mut held = Vec::new();
    if any::<images::Image>(tx, namespace)? {
        held.push("images".to_owned());
    }
    if any::<content::Info>(tx, namespace)? {
        held.push("blobs".to_owned());
    }
    if any::<containers::Container>(tx, namespace)? {
        held.push("containers".to_owned());
    }
    let mut snapshotters: Vec<String> = Vec::new();
    tx.each::<Snapshot>(namespace, "", &mut |id, _| {
        let snapshotter = id.split('\0').next().unwrap_or_default();
        if snapshotters.last().is_none_or(|last| last != snapshotter) {
            snapshotters.push(snapshotter.to_owned());
        }
        Ok(true)
    })?;
    held.extend(snapshotters.iter().map(|name| format!("snapshots on {} snapshotter", quote(name))));
    if any::<types::Sandbox>(tx, namespace)? {
        held.push("sandboxes".to_owned());
    }
    Ok(held)
}

fn any<R: Record>(tx: &impl Reader, namespace: &str) -> Result<bool, Error> {
    let mut found = false;
    tx.each::<R>(namespace, "", &mut |_, _| {
        found = true;
        Ok(false)
    })?;
    Ok(found)
}
