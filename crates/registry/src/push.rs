//! Putting content into a registry.
//!
//! A blob is first looked for, then mounted from another repository of the same registry if one is known to have it,
//! and only then sent. A manifest is sent last, after what it refers to.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderName, Method, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use oci::mediatype::{self, Kind as Media};
use oci::{Descriptor, Digest};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::client::{Body, Client, HostState, MAX_TRIES, Ready, backoff, full, join_url};
use crate::error::RegistryError;

/// Piece size when a registry does not take a blob in one request.
const CHUNK: u64 = 16 << 20;

/// A stream of a blob's bytes.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// Gives a blob's bytes, as often as it takes.
pub trait BlobSource: Send + Sync {
    /// The bytes from `offset` on, `length` of them. Reading may be observed for progress.
    fn open(&self, offset: u64, length: u64) -> ByteStream;
}

/// How content got where it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    Exists,
    /// From another repository of the registry.
    Mounted,
    Uploaded,
}

impl Client {
    fn push_host(&self) -> Result<&HostState, RegistryError> {
        let can = |at: &&HostState| at.host.capabilities.push;
        self.hosts
            .iter()
            .find(can)
            .ok_or_else(|| RegistryError::NoHost(self.reference.domain().into(), "push to"))
    }

    fn ready<'a>(&self, method: Method, target: String, from: Option<&str>) -> Ready<'a> {
        let mut scopes = self.push_scope();
        scopes.extend(from.map(|from| format!("repository:{from}:pull")));
        Ready { method, target, headers: Vec::new(), body: None, scopes }
    }

    /// Makes sure the repository has a blob. `from` are repositories of the same registry that may have it.
    pub async fn push_blob(
        &self,
        descriptor: &Descriptor,
        source: Option<&dyn BlobSource>,
        from: &[String],
    ) -> Result<Pushed, RegistryError> {
        let at = self.push_host()?;
        let target = self.target(&at.host, &format!("/blobs/{}", descriptor.digest));
        let look = self.ready(Method::HEAD, target, None);
        let response = self.send(at, &look).await?;
        match response.status() {
            status if status.is_success() => return Ok(Pushed::Exists),
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.refusal(at, &look, response).await),
        }
        for from in from.iter().filter(|f| *f != self.reference.path()) {
            if let Some(pushed) = self.mount(at, descriptor, source, from).await? {
                return Ok(pushed);
            }
        }
        match source {
            Some(source) => self.upload_with_retries(at, descriptor, source).await,
            None => Err(RegistryError::NoSource(descriptor.digest.clone())),
        }
    }

    /// Tries to take a blob over from another repository.
    async fn mount(
        &self,
        at: &HostState,
        descriptor: &Descriptor,
        source: Option<&dyn BlobSource>,
        from: &str,
    ) -> Result<Option<Pushed>, RegistryError> {
        let encoded = utf8_percent_encode(from, NON_ALPHANUMERIC);
        let query = format!("/blobs/uploads/?mount={}&from={encoded}", descriptor.digest);
        let ready = self.ready(Method::POST, self.target(&at.host, &query), Some(from));
        let response = match self.send(at, &ready).await {
            Ok(response) => response,
            // Not being allowed to read the other repository is no reason to fail.
            Err(RegistryError::AccessDenied { .. }) => return Ok(None),
            Err(err) => return Err(err),
        };
        match response.status() {
            StatusCode::CREATED => Ok(Some(Pushed::Mounted)),
            // It has opened an upload instead; that one is used.
            StatusCode::ACCEPTED => {
                let Some(source) = source else { return Ok(None) };
                let location = self.location(at, &ready, &response)?;
                self.upload_to(at, descriptor, source, &location).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    async fn upload_with_retries(
        &self,
        at: &HostState,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
    ) -> Result<Pushed, RegistryError> {
        let mut tries = 0;
        loop {
            let result = self.upload(at, descriptor, source).await;
            tries += 1;
            match result {
                Err(err) if err.is_transient() && tries < MAX_TRIES => {
                    tokio::time::sleep(backoff(tries)).await
                }
                other => return other,
            }
        }
    }

    async fn upload(
        &self,
        at: &HostState,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
    ) -> Result<Pushed, RegistryError> {
        let ready = self.ready(Method::POST, self.target(&at.host, "/blobs/uploads/"), None);
        let response = self.send(at, &ready).await?;
        match response.status() {
            StatusCode::CREATED => return Ok(Pushed::Exists),
            StatusCode::ACCEPTED | StatusCode::OK | StatusCode::NO_CONTENT => {}
            _ => return Err(self.refusal(at, &ready, response).await),
        }
        let location = self.location(at, &ready, &response)?;
        self.upload_to(at, descriptor, source, &location).await
    }

    async fn upload_to(
        &self,
        at: &HostState,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        location: &str,
    ) -> Result<Pushed, RegistryError> {
        let make = || stream_body(source.open(0, descriptor.size));
        let mut ready = self.ready(Method::PUT, finishing(location, &descriptor.digest), None);
        ready.headers.push((CONTENT_TYPE, "application/octet-stream".into()));
        ready.headers.push((CONTENT_LENGTH, descriptor.size.to_string()));
        ready.body = Some(&make);
        let response = self.send(at, &ready).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::NO_CONTENT => {
                self.check(&response, descriptor)
            }
            StatusCode::PAYLOAD_TOO_LARGE if descriptor.size > CHUNK => {
                self.upload_chunks(at, descriptor, source).await
            }
            _ => Err(self.refusal(at, &ready, response).await),
        }
    }

    /// For registries, or proxies before them, that limit a request's size.
    async fn upload_chunks(
        &self,
        at: &HostState,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
    ) -> Result<Pushed, RegistryError> {
        const CONTENT_RANGE: HeaderName = http::header::CONTENT_RANGE;
        let start = self.ready(Method::POST, self.target(&at.host, "/blobs/uploads/"), None);
        let response = self.expect(at, &start).await?;
        let mut location = self.location(at, &start, &response)?;
        let mut offset = 0;
        while offset < descriptor.size {
            let length = CHUNK.min(descriptor.size - offset);
            let make = || stream_body(source.open(offset, length));
            let mut ready = self.ready(Method::PATCH, location.clone(), None);
            ready.headers.push((CONTENT_TYPE, "application/octet-stream".into()));
            ready.headers.push((CONTENT_LENGTH, length.to_string()));
            ready.headers.push((CONTENT_RANGE, format!("{offset}-{}", offset + length - 1)));
            ready.body = Some(&make);
            let response = self.expect(at, &ready).await?;
            // What it has is what it says it has, not what we sent.
            let end = response
                .headers()
                .get(RANGE)
                .and_then(|r| r.to_str().ok())
                .and_then(|r| r.rsplit('-').next());
            let next = end.and_then(|e| e.parse::<u64>().ok()).map_or(offset + length, |end| end + 1);
            if next <= offset || next > descriptor.size {
                return Err(RegistryError::Protocol(format!("upload stands at {next} after {offset}")));
            }
            location = self.location(at, &ready, &response)?;
            offset = next;
        }
        let mut ready = self.ready(Method::PUT, finishing(&location, &descriptor.digest), None);
        ready.headers.push((CONTENT_LENGTH, "0".into()));
        let response = self.expect(at, &ready).await?;
        self.check(&response, descriptor)
    }

    /// Puts a manifest or index under the client's tag, or under its digest if `tagged` is not set.
    pub async fn push_document(
        &self,
        descriptor: &Descriptor,
        bytes: &[u8],
        tagged: bool,
    ) -> Result<Pushed, RegistryError> {
        let at = self.push_host()?;
        let object = match self.reference.tag() {
            Some(tag) if tagged => tag.to_owned(),
            _ => descriptor.digest.to_string(),
        };
        let target = self.target(&at.host, &format!("/manifests/{object}"));
        let mut look = self.ready(Method::HEAD, target.clone(), None);
        look.headers.push((http::header::ACCEPT, format!("{}, */*", descriptor.media_type)));
        let response = self.send(at, &look).await?;
        match response.status() {
            status if status.is_success() => {
                let there = response.headers().get("docker-content-digest").and_then(|d| d.to_str().ok());
                if there == Some(descriptor.digest.as_str()) {
                    return Ok(Pushed::Exists);
                }
            }
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.refusal(at, &look, response).await),
        }
        let body = Bytes::copy_from_slice(bytes);
        let make = || full(body.clone());
        let mut ready = self.ready(Method::PUT, target, None);
        ready.headers.push((CONTENT_TYPE, descriptor.media_type.clone()));
        ready.body = Some(&make);
        let response = self.send(at, &ready).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::NO_CONTENT => {
                self.check(&response, descriptor)
            }
            _ => Err(self.refusal(at, &ready, response).await),
        }
    }

    /// Whether a descriptor is pushed as a document.
    pub fn is_document(descriptor: &Descriptor) -> bool {
        matches!(mediatype::kind(&descriptor.media_type), Media::Manifest | Media::Index)
    }

    fn location(
        &self,
        at: &HostState,
        ready: &Ready<'_>,
        response: &Response<Incoming>,
    ) -> Result<String, RegistryError> {
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        let location = location.ok_or_else(|| RegistryError::Protocol("upload without a location".into()))?;
        join_url(&self.url(at, &ready.target), location)
    }

    /// A registry that says which digest it has stored must say the right one.
    fn check(&self, response: &Response<Incoming>, descriptor: &Descriptor) -> Result<Pushed, RegistryError> {
        let said = response.headers().get("docker-content-digest").and_then(|d| d.to_str().ok());
        match said.map(Digest::parse) {
            Some(Ok(got)) if got != descriptor.digest && got.algorithm() == descriptor.digest.algorithm() => {
                Err(RegistryError::BlobDigest { want: descriptor.digest.clone(), got })
            }
            _ => Ok(Pushed::Uploaded),
        }
    }
}

/// The upload's address with the digest that finishes it.
fn finishing(location: &str, digest: &Digest) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}digest={}", utf8_percent_encode(digest.as_str(), NON_ALPHANUMERIC))
}

fn stream_body(stream: ByteStream) -> Body {
    BodyExt::boxed_unsync(StreamBody::new(stream.map_ok(Frame::data).boxed()))
}
