//! `GET /distribution/{name}/json`: what a registry has under a name.

use oci::mediatype::Kind as MediaKind;
use oci::{Document, Reference};
use serde_json::{Value, json};

use super::request::Ctx;
use super::{Answer, Reply, Router};
use crate::error::{Error, Kind};
use crate::fetch;
use crate::image::Auth;

/// Registers the route.
pub fn routes(router: &mut Router) {
    router.get("/distribution/{name*}/json", inspect);
}

async fn inspect(ctx: Ctx) -> Answer {
    if !ctx.version.at_least(30) {
        return Err(Error::invalid("GET /distribution/{name:.*}/json requires minimum API version 1.30"));
    }
    let name = ctx.capture("name");
    if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::system("no manifest found for full image ID"));
    }
    let reference = Reference::parse(name).map_err(|err| Error::invalid(err.to_string()))?.or_latest();
    let auth = Auth::from_header(ctx.header("x-registry-auth"));
    let client = fetch::client(&ctx.engine.images, &reference, &auth)?;
    let scheme = if registry::hosts::is_loopback(reference.domain()) { "http" } else { "https" };
    let at = format!("{scheme}://{}/v2/", reference.domain());
    let failed = |err: registry::RegistryError| {
        if err.to_string().contains("no basic auth credentials") {
            let tag = reference.digest().map_or(reference.tag().unwrap_or_default(), oci::Digest::as_str);
            let url = format!("{at}{}/manifests/{tag}", reference.path());
            return Error::system(format!("Head \"{url}\": no basic auth credentials"));
        }
        if let registry::RegistryError::Request { cause, .. } = &err {
            return Error::system(format!("Get \"{at}\": {cause}"));
        }
        let err = fetch::error(&err);
        match err.kind() {
            Kind::NotFound => Error::not_found("manifest unknown: manifest unknown"),
            Kind::Unauthorized => Error::unauthorized("unauthorized: authentication required"),
            _ => err,
        }
    };
    let resolved = client.resolve().await.map_err(failed)?;
    let descriptor = resolved.descriptor.clone();
    let mut platforms = Value::Null;
    if descriptor.kind() == MediaKind::Index {
        let bytes = client.document(&descriptor).await.map_err(failed)?;
        let document = Document::read(&bytes, Some(&descriptor.media_type));
        if let Ok(Document::Index(index)) = document {
            platforms =
                index.manifests.iter().filter_map(|entry| entry.platform.clone()).map(|p| json!(p)).collect();
        }
    }
    let shown =
        json!({ "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size });
    Ok(Reply::ok(&json!({ "Descriptor": shown, "Platforms": platforms })))
}
