//! `containerd.services.images.v1`.

use std::collections::HashMap;

use containerd_api::any::pack;
use containerd_api::error::{Error, Kind, quote};
use containerd_api::images::images_server::{Images, ImagesServer};
use containerd_api::images::{
    CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest, GetImageResponse, Image,
    ImageCreate, ImageDelete, ImageUpdate, ListImagesRequest, ListImagesResponse, UpdateImageRequest,
    UpdateImageResponse,
};
use containerd_api::ns::{self, Namespace};
use containerd_api::types::Descriptor;
use oci::digest::Digest;
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;
use crate::events::now;
use crate::filters::Filters;
use crate::meta::Reader;
use crate::meta::labels::{self, MaskPath};
use crate::meta::leases::{Holdable, hold, touch_namespace};

pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> ImagesServer<Service> {
    ImagesServer::new(Service(daemon.clone()))
}

#[tonic::async_trait]
impl Images for Service {
    async fn get(&self, request: Request<GetImageRequest>) -> Result<Response<GetImageResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let name = request.into_inner().name;
        let image = self.0.db.get::<Image>(namespace.as_str(), &name)?.ok_or_else(|| not_found(&name))?;
        Ok(Response::new(GetImageResponse { image: Some(image) }))
    }

    async fn list(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        let images = self.0.db.read(|tx| {
            let mut images = Vec::new();
            tx.each::<Image>(namespace.as_str(), "", &mut |_, image| {
                if filters.matches(&image) {
                    images.push(image);
                }
                Ok(true)
            })?;
            Ok(images)
        })?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn create(
        &self,
        request: Request<CreateImageRequest>,
    ) -> Result<Response<CreateImageResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let lease = ns::lease(request.metadata()).map(str::to_owned);
        let CreateImageRequest { image, source_date_epoch } = request.into_inner();
        let mut image = image.unwrap_or_default();
        if image.name.is_empty() {
            return Err(Error::new(Kind::InvalidArgument, "Image.Name required").into());
        }
        validate(&image)?;
        let at = source_date_epoch.unwrap_or_else(now);
        image.created_at = Some(at);
        image.updated_at = Some(at);
        let image = self
            .0
            .db
            .write(move |tx| {
                let namespace = namespace.as_str();
                if tx.has::<Image>(namespace, &image.name)? {
                    return Err(Error::already_exists("image", &image.name));
                }
                touch_namespace(tx, namespace)?;
                hold(tx, namespace, lease.as_deref(), Holdable::Image, &image.name)?;
                tx.put(namespace, &image.name, &image);
                let event = ImageCreate { name: image.name.clone(), labels: image.labels.clone() };
                tx.publish(namespace, "/images/create", pack(&event));
                Ok(image)
            })
            .await?;
        Ok(Response::new(CreateImageResponse { image: Some(image) }))
    }

    async fn update(
        &self,
        request: Request<UpdateImageRequest>,
    ) -> Result<Response<UpdateImageResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let lease = ns::lease(request.metadata()).map(str::to_owned);
        let UpdateImageRequest { image, update_mask, source_date_epoch } = request.into_inner();
        let wanted = image.unwrap_or_default();
        if wanted.name.is_empty() {
            return Err(Error::invalid("image name is required for update").into());
        }
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let at = source_date_epoch.unwrap_or_else(now);
        let collector = self.0.collector.clone();
        let image = self
            .0
            .db
            .write(move |tx| {
                let namespace = namespace.as_str();
                let mut image =
                    tx.get::<Image>(namespace, &wanted.name)?.ok_or_else(|| not_found(&wanted.name))?;
                if paths.is_empty() {
                    image.labels = wanted.labels;
                    image.target = wanted.target;
                } else {
                    paths.iter().try_for_each(|path| change(&mut image, &wanted, path))?;
                }
                validate(&image)?;
                image.updated_at = Some(at);
                hold(tx, namespace, lease.as_deref(), Holdable::Image, &image.name)?;
                tx.put(namespace, &image.name, &image);
                let event = ImageUpdate { name: image.name.clone(), labels: image.labels.clone() };
                tx.publish(namespace, "/images/update", pack(&event));
                tx.after_commit(move |_| collector.request());
                Ok(image)
            })
            .await?;
        Ok(Response::new(UpdateImageResponse { image: Some(image) }))
    }

    async fn delete(&self, request: Request<DeleteImageRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let DeleteImageRequest { name, sync, target } = request.into_inner();
        let collector = self.0.collector.clone();
        self.0
            .db
            .write(move |tx| {
                let namespace = namespace.as_str();
                let image = tx.get::<Image>(namespace, &name)?.ok_or_else(|| not_found(&name))?;
                if let Some(target) = target.filter(|target| !target.digest.is_empty()) {
                    let found = image.target.unwrap_or_default().digest;
                    if found != target.digest {
                        let what =
                            format!("image {} has target {found}, not {}", quote(&name), target.digest);
                        return Err(Error::of(Kind::NotFound, what));
                    }
                }
                tx.delete::<Image>(namespace, &name);
                tx.publish(namespace, "/images/delete", pack(&ImageDelete { name }));
                tx.after_commit(move |_| collector.request());
                Ok(())
            })
            .await?;
        if sync {
            self.0.collector.run_now().await?;
        }
        Ok(Response::new(()))
    }
}

/// Takes one field of a mask from `wanted`.
fn change(image: &mut Image, wanted: &Image, path: &str) -> Result<(), Error> {
    match labels::mask_path(path, "labels") {
        MaskPath::All => image.labels = wanted.labels.clone(),
        MaskPath::One(key) => labels::update_one(&mut image.labels, &wanted.labels, key),
        MaskPath::Other("target") => image.target = wanted.target.clone(),
        MaskPath::Other(path) => match labels::mask_path(path, "annotations") {
            MaskPath::One(key) => {
                let empty = HashMap::default();
                let from = wanted.target.as_ref().map_or(&empty, |target| &target.annotations);
                labels::update_one(&mut image.target.get_or_insert_default().annotations, from, key);
            }
            _ => return Err(labels::cannot_update(path, "image", &image.name)),
        },
    }
    Ok(())
}

fn validate(image: &Image) -> Result<(), Error> {
    if image.name.is_empty() {
        return Err(Error::invalid("image name must not be empty"));
    }
    if image.name.contains('\0') {
        return Err(Error::invalid("image name must not contain NUL"));
    }
    labels::validate(&image.labels).map_err(|err| err.context("image.Labels"))?;
    let empty = Descriptor::default();
    let target = image.target.as_ref().unwrap_or(&empty);
    if let Err(err) = Digest::parse(&target.digest) {
        return Err(Error::invalid(format_args!("Target.Digest {} invalid: {err}", quote(&target.digest))));
    }
    if target.size <= 0 {
        return Err(Error::invalid("Target.Size must be greater than zero"));
    }
    if target.media_type.is_empty() {
        return Err(Error::invalid("Target.MediaType must be set"));
    }
    Ok(())
}

fn not_found(name: &str) -> Error {
    Error::not_found("image", name)
}
