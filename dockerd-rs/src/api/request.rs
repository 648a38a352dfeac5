//! One request, as a handler sees it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use serde::de::DeserializeOwned;

use super::params::{Params, quote};
use super::router::Captures;
use super::version::ApiVersion;
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};

/// JSON bodies above this many bytes are refused. Streams (archives, builds, loads) have no limit.
pub const MAX_JSON_BYTES: usize = 16 << 20;

/// What a handler gets: the engine, and the request taken apart.
pub struct Ctx {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The API version the client speaks; [`ApiVersion::MAX`] when its path names none.
    pub version: ApiVersion,
    /// The method.
    pub method: Method,
    /// Query (and, once [`Ctx::read_form`] ran, form) parameters.
    pub params: Params,
    /// The headers.
    pub headers: HeaderMap,
    /// Handed over when the client asked for an upgrade: what [`super::hijack`] needs.
    pub upgrade: Option<OnUpgrade>,
    captures: Captures,
    body: Option<Upload>,
}

/// A request's body: from the connection, or read already and given back.
pub type Upload = http_body_util::combinators::BoxBody<Bytes, hyper::Error>;

/// Why a body ended early, in the words of Go's server.
fn broken(err: &hyper::Error) -> String {
    use std::error::Error as _;
    match err.source().and_then(|source| source.downcast_ref::<std::io::Error>()).map(std::io::Error::kind) {
        Some(std::io::ErrorKind::UnexpectedEof) => "unexpected EOF".into(),
        Some(std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData) => {
            "invalid byte in chunk length".into()
        }
        _ => format!("failed to read request body: {err}"),
    }
}

impl Ctx {
    pub(super) fn new(
        engine: Arc<Engine>,
        version: ApiVersion,
        captures: Captures,
        mut request: http::Request<Incoming>,
    ) -> Result<Self> {
        let upgrade =
            request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let params = Params::parse(parts.uri.query().unwrap_or_default())?;
        Ok(Self {
            engine,
            version,
            method: parts.method,
            params,
            headers: parts.headers,
            upgrade,
            captures,
            body: Some(body.boxed()),
        })
    }

    /// What the route's `{key}` matched.
    pub fn capture(&self, key: &str) -> &str {
        self.captures.iter().find(|(name, _)| *name == key).map_or("", |(_, value)| value.as_str())
    }

    /// A header's value as text, empty if it is missing or not ASCII.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as a stream of chunks, for archives and the like. Once only.
    pub fn body_stream(&mut self) -> Option<Upload> {
        self.body.take()
    }

    /// Puts a body that was read back in its place.
    pub(super) fn give_back(&mut self, body: Bytes) {
        self.body = Some(http_body_util::Full::new(body).map_err(|never| match never {}).boxed());
    }

    /// Whether the client sent a body: chunked, or with a length above zero.
    pub fn has_body(&self) -> bool {
        self.body.as_ref().is_some_and(|body| !body.is_end_stream() && body.size_hint().exact() != Some(0))
    }

    /// An urlencoded form body becomes parameters and beats the query, as Go's `ParseForm` has it.
    pub async fn read_form(&mut self) -> Result<()> {
        let kind =
            self.header("content-type").split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind != "application/x-www-form-urlencoded" {
            return Ok(());
        }
        let body = self.body_bytes(MAX_JSON_BYTES).await?;
        let form = Params::parse(&String::from_utf8_lossy(&body))?;
        self.params = form.then(std::mem::take(&mut self.params));
        Ok(())
    }

    /// The whole body, at most `limit` bytes.
    pub async fn body_bytes(&mut self, limit: usize) -> Result<Bytes> {
        let Some(mut body) = self.body.take() else { return Ok(Bytes::new()) };
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|err| Error::invalid(broken(&err)))?;
            if let Ok(data) = frame.into_data() {
                if all.len() + data.len() > limit {
                    return Err(Error::new(Kind::TooLarge, "request body too large"));
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(all.freeze())
    }

    /// The whole of a JSON body.
    async fn json_body(&mut self) -> Result<Bytes> {
        self.check_json_content_type()?;
        let read = self.body_bytes(MAX_JSON_BYTES).await;
        read.map_err(|err| match err.kind() {
            Kind::InvalidParameter => err.context("invalid JSON"),
            _ => err,
        })
    }

    /// The bytes of a JSON body; `None` when it is empty.
    pub async fn json_bytes(&mut self) -> Result<Option<Bytes>> {
        if !self.has_body() {
            return Ok(None);
        }
        let body = self.json_body().await?;
        Ok((!body.iter().all(u8::is_ascii_whitespace)).then_some(body))
    }

    /// The body as JSON; `None` when it is empty. Keys match case-insensitively, unknown ones are ignored (Go's `encoding/json`).
    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        if !self.has_body() {
            return Ok(None);
        }
        let body = self.json_body().await?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        docker_api::json::from_slice(&body).map(Some).map_err(|err| Error::invalid(err.to_string()))
    }

    fn check_json_content_type(&self) -> Result<()> {
        let value = self.header("content-type");
        let mut parts = value.split(';');
        let kind = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        let malformed =
            |why: &str| Err(Error::invalid(format!("malformed Content-Type header ({value}): mime: {why}")));
        if kind.is_empty() {
            return malformed("no media type");
        }
        // One semicolon at the end is no parameter; nothing between two of them is a bad one.
        let parameters: Vec<&str> = parts.map(str::trim).collect();
        let bad = |(nth, parameter): (usize, &&str)| match parameter.split_once('=') {
            Some((name, _)) => name.is_empty(),
            None => !parameter.is_empty() || nth + 1 < parameters.len(),
        };
        if parameters.iter().enumerate().any(bad) {
            return malformed("invalid media parameter");
        }
        if kind != "application/json" {
            return Err(Error::invalid(format!(
                "unsupported Content-Type header ({value}): must be 'application/json'"
            )));
        }
        Ok(())
    }

    /// `filters`, parsed by [`docker_api::filters`]; keys outside `known` are refused.
    pub fn filters(&self, known: &[&str]) -> Result<docker_api::filters::Filters> {
        let filters = docker_api::filters::Filters::parse(self.params.text("filters"))
            .map_err(|_| Error::invalid("invalid filter"))?;
        match filters.unknown(known) {
            Some(key) => Err(Error::invalid(format!("invalid filter '{}'", quote(key).trim_matches('"')))),
            None => Ok(filters),
        }
    }
}
