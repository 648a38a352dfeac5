//! Resolving references and fetching content.
//!
//! Invariant: a document is given out only after its digest and size were checked. A [`Blob`] gives exactly as many
//! bytes as its descriptor says or an error; its digest is for the one who stores it to check, as the last piece is
//! not known to be good before it has been handed over.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, RANGE};
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use oci::manifest::MAX_DOCUMENT_BYTES;
use oci::mediatype::{self, Kind as Media};
use oci::{Descriptor, Digest};

use crate::client::{Client, HostState, MAX_TRIES, Ready, backoff, next_piece, read_limited};
use crate::error::{Kind, RegistryError};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// A fetch that got this far since it was last broken starts counting tries anew.
const PROGRESS: u64 = 1 << 20;
const MAX_TAG_PAGES: usize = 200;

/// What a reference stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub descriptor: Descriptor,
}

impl Client {
    /// Asks what the client's reference stands for now.
    pub async fn resolve(&self) -> Result<Resolved, RegistryError> {
        let object = match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let mut first_error = None;
        let mut missing = false;
        for at in self.hosts.iter().filter(|at| at.host.capabilities.resolve) {
            match self.resolve_at(at, &object).await {
                Ok(Some(descriptor)) => return Ok(Resolved { descriptor }),
                Ok(None) => missing = true,
                Err(err) => first_error = first_error.or(Some(err)),
            }
        }
        match first_error {
            Some(err) => Err(err),
            None if missing => Err(RegistryError::NotFound(self.reference.to_string())),
            None => Err(RegistryError::NoHost(self.reference.domain().into(), "resolve")),
        }
    }

    async fn resolve_at(&self, at: &HostState, object: &str) -> Result<Option<Descriptor>, RegistryError> {
        let mut ready = Ready {
            method: Method::HEAD,
            target: self.target(&at.host, &format!("/manifests/{object}")),
            headers: vec![(ACCEPT, accept_any())],
            body: None,
            scopes: self.pull_scope(),
        };
        let response = self.send(at, &ready).await?;
        match response.status() {
            StatusCode::NOT_FOUND => return Ok(None),
            status if status.is_success() => {}
            _ => return Err(self.refusal(at, &ready, response).await),
        }
        let (mut media_type, digest, size) = head(response.headers());
        let described = match (digest, size) {
            (Some(digest), Some(size)) if mediatype::kind(&media_type) != Media::Other => {
                Descriptor::new(&media_type, digest, size)
            }
            _ => {
                // Some registries say too little to a HEAD.
                ready.method = Method::GET;
                let response = self.expect(at, &ready).await?;
                media_type = head(response.headers()).0;
                let bytes = read_limited(response, MAX_DOCUMENT_BYTES as usize).await?;
                if mediatype::kind(&media_type) == Media::Other {
                    media_type = oci::Document::read(&bytes, None)?.media_type().to_owned();
                }
                Descriptor::of(&media_type, &bytes)
            }
        };
        if mediatype::kind(&described.media_type) == Media::Schema1 {
            return Err(oci::ManifestError::Schema1.into());
        }
        if described.size > MAX_DOCUMENT_BYTES {
            return Err(oci::ManifestError::TooLarge(described.size).into());
        }
        if let Some(wanted) = self.reference.digest()
            && *wanted != described.digest
        {
            return Err(RegistryError::ManifestDigest(wanted.clone()));
        }
        Ok(Some(described))
    }

    /// Fetches a manifest or index whole and checks it.
    pub async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        if descriptor.size > MAX_DOCUMENT_BYTES {
            return Err(oci::ManifestError::TooLarge(descriptor.size).into());
        }
        let (_, response) = self.open(descriptor, 0).await?;
        let bytes = read_limited(response, MAX_DOCUMENT_BYTES as usize).await?;
        if !descriptor.digest.verifies(&bytes) {
            return Err(RegistryError::ManifestDigest(descriptor.digest.clone()));
        }
        if bytes.len() as u64 != descriptor.size {
            return Err(size_error(descriptor, bytes.len() as u64));
        }
        Ok(bytes)
    }

    /// Opens a blob from `offset` on.
    pub async fn blob(self: &Arc<Self>, descriptor: &Descriptor, offset: u64) -> Result<Blob, RegistryError> {
        let mut blob = Blob {
            client: Arc::clone(self),
            descriptor: descriptor.clone(),
            at: offset,
            body: None,
            skip: 0,
            tries: 0,
            tried_at: offset,
        };
        if offset < descriptor.size {
            blob.reopen().await?;
        }
        Ok(blob)
    }

    /// A successful answer with the descriptor's content from `offset` on, and whether it starts there.
    async fn open(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<(bool, Response<Incoming>), RegistryError> {
        let is_document = matches!(descriptor.kind(), Media::Manifest | Media::Index);
        let mut first_error: Option<RegistryError> = None;
        for at in self.hosts.iter().filter(|at| at.host.capabilities.pull) {
            let kinds: &[&str] = if is_document { &["manifests", "blobs"] } else { &["blobs"] };
            for kind in kinds {
                let target = self.target(&at.host, &format!("/{kind}/{}", descriptor.digest));
                let ready = self.get(target, &descriptor.media_type, offset, self.pull_scope());
                let result = self.send(at, &ready).await;
                match self.opened(at, &ready, result, descriptor, offset).await {
                    Ok(opened) => return Ok(opened),
                    Err(err) => {
                        let missing = err.kind() == Kind::NotFound;
                        // What another host says about something it lacks matters less than a real failure.
                        if first_error.as_ref().is_none_or(|first| first.kind() == Kind::NotFound) {
                            first_error = Some(err);
                        }
                        if !missing {
                            break;
                        }
                    }
                }
            }
        }
        let err =
            first_error.unwrap_or_else(|| RegistryError::NoHost(self.reference.domain().into(), "pull from"));
        if err.kind() == Kind::NotFound && mediatype::is_foreign_layer(&descriptor.media_type) {
            return self.open_foreign(descriptor, offset).await.unwrap_or(Err(err));
        }
        Err(err)
    }

    /// A foreign layer from where its descriptor says; without credentials, and only over HTTP.
    async fn open_foreign(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Option<Result<(bool, Response<Incoming>), RegistryError>> {
        let at = self.hosts.last()?;
        let own = format!("//{}/", at.host.authority);
        let url = descriptor
            .urls
            .iter()
            .find(|url| (url.starts_with("https://") || url.starts_with("http://")) && !url.contains(&own))?;
        let ready = self.get(url.clone(), &descriptor.media_type, offset, Vec::new());
        let result = self.send(at, &ready).await;
        Some(self.opened(at, &ready, result, descriptor, offset).await)
    }

    fn get<'a>(&self, target: String, media_type: &str, offset: u64, scopes: Vec<String>) -> Ready<'a> {
        let mut headers = vec![(ACCEPT, format!("{media_type}, */*"))];
        if offset > 0 {
            headers.push((RANGE, format!("bytes={offset}-")));
        }
        Ready { method: Method::GET, target, headers, body: None, scopes }
    }

    async fn opened(
        &self,
        at: &HostState,
        ready: &Ready<'_>,
        result: Result<Response<Incoming>, RegistryError>,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<(bool, Response<Incoming>), RegistryError> {
        let response = result?;
        let at_offset = match response.status() {
            StatusCode::NOT_FOUND => {
                return Err(RegistryError::ContentNotFound { url: self.url(at, &ready.target) });
            }
            StatusCode::PARTIAL_CONTENT => {
                let range =
                    response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
                if !range.starts_with(&format!("bytes {offset}-")) {
                    return Err(RegistryError::Protocol(format!(
                        "asked for bytes from {offset}, got {range:?}"
                    )));
                }
                true
            }
            status if status.is_success() => false,
            _ => return Err(self.refusal(at, ready, response).await),
        };
        let expected = if at_offset { descriptor.size - offset } else { descriptor.size };
        match length(response.headers()) {
            Some(length) if length != expected => {
                let whole = if at_offset { length + offset } else { length };
                Err(size_error(descriptor, whole))
            }
            _ => Ok((at_offset || offset == 0, response)),
        }
    }

    /// All tags of the repository.
    pub async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        #[derive(serde::Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let at =
            self.hosts.last().ok_or_else(|| RegistryError::NoHost(self.reference.domain().into(), "list"))?;
        let mut target = self.target(&at.host, "/tags/list?n=1000");
        let mut tags = Vec::new();
        for _ in 0..MAX_TAG_PAGES {
            let ready = self.get(target.clone(), "application/json", 0, self.pull_scope());
            let response = self.send(at, &ready).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Err(RegistryError::NotFound(self.reference.name()));
            }
            if !response.status().is_success() {
                return Err(self.refusal(at, &ready, response).await);
            }
            let next =
                response.headers().get(http::header::LINK).and_then(|l| l.to_str().ok()).and_then(next_link);
            let base = self.url(at, &ready.target);
            let body = read_limited(response, MAX_DOCUMENT_BYTES as usize).await?;
            let page: Page =
                serde_json::from_slice(&body).map_err(|err| RegistryError::Protocol(err.to_string()))?;
            tags.extend(page.tags.unwrap_or_default());
            match next {
                Some(next) => target = crate::client::join_url(&base, &next)?,
                None => return Ok(tags),
            }
        }
        Ok(tags)
    }

    /// What refers to a digest: signatures, records of builds. Empty if the registry keeps no such list.
    pub async fn referrers(&self, digest: &Digest) -> Result<oci::manifest::Index, RegistryError> {
        let at =
            self.hosts.last().ok_or_else(|| RegistryError::NoHost(self.reference.domain().into(), "list"))?;
        let fallback = format!("/manifests/{}-{}", digest.algorithm().as_str(), digest.hex());
        for rest in [format!("/referrers/{digest}"), fallback] {
            let target = self.target(&at.host, &rest);
            let ready = self.get(target, mediatype::OCI_INDEX, 0, self.pull_scope());
            let response = self.send(at, &ready).await?;
            if response.status().is_success() {
                let bytes = read_limited(response, MAX_DOCUMENT_BYTES as usize).await?;
                if let oci::Document::Index(index) = oci::Document::read(&bytes, Some(mediatype::OCI_INDEX))?
                {
                    return Ok(index);
                }
            }
        }
        Ok(serde_json::from_str(r#"{"schemaVersion":2,"manifests":[]}"#).expect("a constant that parses"))
    }
}

/// A blob on its way. Broken connections are taken up again where they broke.
pub struct Blob {
    client: Arc<Client>,
    descriptor: Descriptor,
    at: u64,
    body: Option<Incoming>,
    /// Bytes to throw away because the server does not do ranges.
    skip: u64,
    tries: u32,
    tried_at: u64,
}

impl Blob {
    /// How many bytes of the blob have been given out, the offset included.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next piece; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.at == self.descriptor.size {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                self.reopen().await?;
                continue;
            };
            let broken = match next_piece(body).await {
                Ok(Some(mut piece)) => {
                    let skipped = self.skip.min(piece.len() as u64);
                    self.skip -= skipped;
                    let piece = piece.split_off(skipped as usize);
                    if piece.is_empty() {
                        continue;
                    }
                    let at = self.at + piece.len() as u64;
                    if at > self.descriptor.size {
                        return Err(size_error(&self.descriptor, at));
                    }
                    self.at = at;
                    return Ok(Some(piece));
                }
                Ok(None) => RegistryError::UnexpectedEof,
                Err(err) => err,
            };
            self.body = None;
            self.pause(broken).await?;
        }
    }

    /// Counts a broken connection and waits before the next try.
    async fn pause(&mut self, broken: RegistryError) -> Result<(), RegistryError> {
        if self.at - self.tried_at >= PROGRESS {
            self.tries = 0;
        }
        self.tries += 1;
        self.tried_at = self.at;
        if self.tries >= MAX_TRIES {
            return Err(match broken {
                // What Go calls a body that ends early.
                RegistryError::Body(_) => RegistryError::UnexpectedEof,
                other => other,
            });
        }
        tracing::debug!(digest = %self.descriptor.digest, at = self.at, error = %broken, "fetch broken, resuming");
        tokio::time::sleep(backoff(self.tries)).await;
        Ok(())
    }

    async fn reopen(&mut self) -> Result<(), RegistryError> {
        let (starts_there, response) = self.client.open(&self.descriptor, self.at).await?;
        self.skip = if starts_there { 0 } else { self.at };
        self.body = Some(response.into_body());
        Ok(())
    }
}

fn size_error(descriptor: &Descriptor, got: u64) -> RegistryError {
    RegistryError::Size { what: descriptor.digest.to_string(), want: descriptor.size, got }
}

fn accept_any() -> String {
    format!("{}, */*", mediatype::ACCEPTED_DOCUMENTS.join(", "))
}

fn head(headers: &HeaderMap) -> (String, Option<Digest>, Option<u64>) {
    let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    let media_type = text(CONTENT_TYPE).map(mediatype::essence).unwrap_or_default().to_owned();
    (media_type, text(CONTENT_DIGEST).and_then(|d| Digest::parse(d).ok()), length(headers))
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The address of the next page in a `Link` header.
fn next_link(header: &str) -> Option<String> {
    let (address, rest) = header.strip_prefix('<')?.split_once('>')?;
    rest.contains("rel=\"next\"").then(|| address.to_owned())
}
