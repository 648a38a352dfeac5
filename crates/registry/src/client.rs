//! Requests to the hosts of one repository: authorization, redirects, retries.
//!
//! Invariant: a request carries a host's credentials and headers only while its scheme and authority are that host's.
//! Every wait has a deadline. What failed for a passing reason is tried again a few times, with growing pauses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderName, LOCATION, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::auth::{Ask, AuthState, Credentials, is_challenge};
use crate::dial::{Dial, DialError, Proxies, plain};
use crate::error::{RegistryError, parse_errors};
use crate::hosts::{Host, HostsConfig};
use crate::tls;

/// How long an answer's first line may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the next piece of a body may take.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
pub(crate) const MAX_TRIES: u32 = 5;
/// Largest piece a body comes in, in bytes. What waits between network and disk is a multiple of it.
const MAX_READ: usize = 128 * 1024;
const MAX_ERROR_BODY: usize = 64 * 1024;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub(crate) type Http = hyper_util::client::legacy::Client<HttpsConnector<Dial>, Body>;

/// What a client is made of.
pub struct ClientOptions {
    pub hosts: HostsConfig,
    pub credentials: Arc<dyn Credentials>,
    pub user_agent: String,
}

/// Speaks to the registry of one repository.
pub struct Client {
    pub(crate) reference: oci::Reference,
    pub(crate) hosts: Vec<HostState>,
    credentials: Arc<dyn Credentials>,
    user_agent: HeaderValue,
    /// For token servers and redirect targets, which never see a host's client certificate.
    other: Http,
}

pub(crate) struct HostState {
    pub(crate) host: Host,
    http: Http,
    pub(crate) auth: AuthState,
    /// Found out to speak plain HTTP.
    plain: AtomicBool,
}

/// A request, in a form that can be sent more than once.
pub(crate) struct Ready<'a> {
    pub(crate) method: Method,
    /// Below the host's API path, with a leading slash; or a whole URL.
    pub(crate) target: String,
    pub(crate) headers: Vec<(HeaderName, String)>,
    pub(crate) body: Option<&'a (dyn Fn() -> Body + Send + Sync)>,
    pub(crate) scopes: Vec<String>,
}

impl Client {
    /// A client for the repository of `reference`. Reads host configuration and certificates.
    pub fn new(reference: &oci::Reference, options: ClientOptions) -> Result<Self, RegistryError> {
        let dial = Dial { proxies: Proxies::from_env() };
        let mut hosts = Vec::new();
        for host in options.hosts.hosts(reference.domain())? {
            let http = http_client(&host, &dial)?;
            hosts.push(HostState { host, http, auth: AuthState::default(), plain: AtomicBool::new(false) });
        }
        let plain_host = HostsConfig::default().hosts("docker.io")?.remove(0);
        let user_agent = HeaderValue::from_str(&options.user_agent)
            .map_err(|_| RegistryError::Protocol("user agent contains control characters".into()))?;
        Ok(Self {
            reference: reference.clone(),
            hosts,
            credentials: options.credentials,
            user_agent,
            other: http_client(&plain_host, &dial)?,
        })
    }

    /// The repository this client is for, with the tag or digest it was made with.
    pub fn reference(&self) -> &oci::Reference {
        &self.reference
    }

    pub(crate) fn pull_scope(&self) -> Vec<String> {
        vec![format!("repository:{}:pull", self.reference.path())]
    }

    pub(crate) fn push_scope(&self) -> Vec<String> {
        vec![format!("repository:{}:pull,push", self.reference.path())]
    }

    /// Adds what tells a mirror which registry is meant.
    pub(crate) fn target(&self, host: &Host, rest: &str) -> String {
        let separator = if rest.contains('?') { '&' } else { '?' };
        let namespace =
            if host.is_mirror { format!("{separator}ns={}", self.reference.domain()) } else { String::new() };
        format!("/{}{rest}{namespace}", self.reference.path())
    }

    /// Sends a request and takes only success for an answer; a refusal becomes an error with the server's words.
    pub(crate) async fn expect(
        &self,
        at: &HostState,
        ready: &Ready<'_>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let response = self.send(at, ready).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refusal(at, ready, response).await)
        }
    }

    pub(crate) async fn refusal(
        &self,
        at: &HostState,
        ready: &Ready<'_>,
        response: Response<Incoming>,
    ) -> RegistryError {
        let status = response.status();
        let errors = match read_limited(response, MAX_ERROR_BODY).await {
            Ok(body) if ready.method != Method::HEAD => parse_errors(&body),
            _ => Vec::new(),
        };
        RegistryError::Status {
            method: ready.method.clone(),
            url: self.url(at, &ready.target),
            status,
            errors,
        }
    }

    /// Sends a request, answers challenges, follows redirects, and tries again where that may help.
    pub(crate) async fn send(
        &self,
        at: &HostState,
        ready: &Ready<'_>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut tries = 0;
        loop {
            let result = self.send_authorized(at, ready).await;
            tries += 1;
            let pause = match &result {
                Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                    retry_after(response.headers())
                }
                Ok(response) if is_passing(response.status()) => None,
                Err(err) if err.is_transient() => None,
                _ => return result,
            };
            if tries >= MAX_TRIES {
                return result;
            }
            tokio::time::sleep(pause.unwrap_or_else(|| backoff(tries))).await;
        }
    }

    async fn send_authorized(
        &self,
        at: &HostState,
        ready: &Ready<'_>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut header = at.auth.header(&ready.scopes);
        // Once with what we have, once with what the challenge asks, once more if that had expired meanwhile.
        for _ in 0..3 {
            let response = self.send_once(at, ready, header.as_ref()).await?;
            if !is_challenge(response.status()) {
                return Ok(response);
            }
            let challenges: Vec<String> = response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|v| v.to_str().ok().map(str::to_owned))
                .collect();
            let asked =
                Ask { host: at.host.authority.clone(), reference: self.reference.to_string(), challenges };
            let secure = self.scheme(at) == "https";
            let http = if at.host.client.is_empty() { &at.http } else { &self.other };
            let answer =
                at.auth.answer(asked, header.as_ref(), &ready.scopes, secure, http, &*self.credentials).await;
            let denied = |source| RegistryError::AccessDenied {
                what: if ready.scopes.iter().any(|s| s.ends_with("push")) { "push" } else { "pull" },
                source: Box::new(source),
            };
            match answer.map_err(denied)? {
                Some(better) => header = Some(better),
                None => return Ok(response),
            }
        }
        self.send_once(at, ready, header.as_ref()).await
    }

    /// One request with its redirects.
    async fn send_once(
        &self,
        at: &HostState,
        ready: &Ready<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut url = self.url(at, &ready.target);
        for _ in 0..MAX_REDIRECTS {
            // TLS that a loopback host turns out not to speak was meant for it all the same.
            let own = is_own(at, self.scheme(at), &url)
                || (at.host.may_be_plain && is_own(at, &at.host.scheme, &url));
            let http = if own || at.host.client.is_empty() { &at.http } else { &self.other };
            let result =
                request(http, self.build(at, ready, &url, authorization.filter(|_| own), own)?).await;
            let response = match result {
                Err(RegistryError::Request { plain_http: true, .. }) if own && fall_back(at, &url) => {
                    url = self.url(at, &ready.target);
                    continue;
                }
                other => other?,
            };
            let follows = matches!(ready.method, Method::GET | Method::HEAD);
            if !follows || !response.status().is_redirection() {
                return Ok(response);
            }
            let Some(location) = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()) else {
                return Ok(response);
            };
            url = join_url(&url, location)?;
        }
        Err(RegistryError::Protocol(format!("stopped after {MAX_REDIRECTS} redirects")))
    }

    fn build(
        &self,
        at: &HostState,
        ready: &Ready<'_>,
        url: &str,
        authorization: Option<&HeaderValue>,
        own: bool,
    ) -> Result<Request<Body>, RegistryError> {
        let bad = |err: http::Error| RegistryError::Protocol(format!("{url}: {err}"));
        let mut builder = Request::builder()
            .method(ready.method.clone())
            .uri(url)
            .header(USER_AGENT, self.user_agent.clone());
        for (name, value) in &ready.headers {
            builder = builder.header(name, value);
        }
        if own {
            for (name, value) in &at.host.headers {
                builder = builder.header(name, value);
            }
        }
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        builder.body(ready.body.map_or_else(|| full(Vec::new()), |body| body())).map_err(bad)
    }

    pub(crate) fn url(&self, at: &HostState, target: &str) -> String {
        if target.starts_with('/') {
            format!("{}://{}{}{target}", self.scheme(at), at.host.authority, at.host.path)
        } else {
            target.to_owned()
        }
    }

    fn scheme<'a>(&self, at: &'a HostState) -> &'a str {
        if at.plain.load(Ordering::Relaxed) { "http" } else { &at.host.scheme }
    }
}

fn http_client(host: &Host, dial: &Dial) -> Result<Http, RegistryError> {
    let connector = HttpsConnector::from((dial.clone(), Arc::new(tls::config(host)?)));
    Ok(hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(20))
        .pool_max_idle_per_host(4)
        .http1_max_buf_size(MAX_READ)
        .build(connector))
}

/// Whether a URL is on the host itself, where its credentials may go.
fn is_own(at: &HostState, scheme: &str, url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    uri.scheme_str() == Some(scheme) && uri.authority().is_some_and(|a| a.as_str() == at.host.authority)
}

/// Resolves a `Location` against the URL it came from.
pub(crate) fn join_url(base: &str, location: &str) -> Result<String, RegistryError> {
    let bad = || RegistryError::Protocol(format!("invalid location {location:?}"));
    let base: Uri = base.parse().map_err(|_| bad())?;
    let (scheme, authority) = (base.scheme_str().unwrap_or("https"), base.authority().ok_or_else(bad)?);
    let whole = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.contains("://") {
        return Err(bad());
    } else {
        let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{location}")
    };
    // User names in a URL would be sent as credentials by others; we do not.
    whole
        .parse::<Uri>()
        .ok()
        .filter(|u| u.authority().is_some_and(|a| !a.as_str().contains('@')))
        .ok_or_else(bad)?;
    Ok(whole)
}

fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// From now on plain HTTP, if this host may speak it. False if it may not or `url` was plain already. Another request may have found it out
/// while this one was on its way.
fn fall_back(at: &HostState, url: &str) -> bool {
    let falls = at.host.may_be_plain && url.starts_with("https:");
    if falls {
        at.plain.store(true, Ordering::Relaxed);
    }
    falls
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds.min(30)))
}

/// 200 ms, doubling, with up to half as much again so that many clients do not come back at once.
pub(crate) fn backoff(tries: u32) -> Duration {
    let base = 200u64 << tries.saturating_sub(1).min(5);
    let clock =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.subsec_nanos());
    Duration::from_millis(base + u64::from(clock) % (base / 2 + 1))
}

/// Sends one request and waits for the answer's head.
pub(crate) async fn request(
    http: &Http,
    request: Request<Body>,
) -> Result<Response<Incoming>, RegistryError> {
    let method = go_method(request.method());
    let url = request.uri().to_string();
    let fail = |cause: String, plain_http| RegistryError::Request {
        method: method.clone(),
        url: url.clone(),
        cause,
        plain_http,
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, http.request(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(err)) => {
            let (cause, plain_http) = describe(&err);
            Err(fail(cause, plain_http))
        }
        Err(_) => Err(fail("net/http: timeout awaiting response headers".into(), false)),
    }
}

/// `Head`, as Go writes a method in its errors.
fn go_method(method: &Method) -> String {
    let text = method.as_str();
    format!("{}{}", &text[..1], text[1..].to_lowercase())
}

/// The innermost cause in Go's words, and whether the server does not speak TLS.
fn describe(err: &(dyn std::error::Error + 'static)) -> (String, bool) {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(err);
    let mut last = err.to_string();
    while let Some(err) = cause {
        if let Some(dial) = err.downcast_ref::<DialError>() {
            return (dial.0.clone(), false);
        }
        if let Some(tls_error) = err.downcast_ref::<rustls::Error>() {
            let text = tls::describe(tls_error);
            let plain_http = matches!(tls_error, rustls::Error::InvalidMessage(_));
            return (text, plain_http);
        }
        if let Some(io_error) = err.downcast_ref::<std::io::Error>() {
            if let Some(inner) = io_error.get_ref() {
                cause = Some(inner);
                last = inner.to_string();
                continue;
            }
            last = match io_error.kind() {
                std::io::ErrorKind::UnexpectedEof => "EOF".into(),
                std::io::ErrorKind::ConnectionReset => "read: connection reset by peer".into(),
                _ => plain(io_error),
            };
        } else {
            last = err.to_string();
        }
        cause = err.source();
    }
    if last == "connection closed before message completed" {
        last = "EOF".into();
    }
    (last, false)
}

/// Reads a body to its end, if that is not too far.
pub(crate) async fn read_limited(
    response: Response<Incoming>,
    limit: usize,
) -> Result<Vec<u8>, RegistryError> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(piece) = next_piece(&mut body).await? {
        if bytes.len() + piece.len() > limit {
            return Err(RegistryError::Protocol(format!("answer is larger than {limit} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// The next piece of a body.
pub(crate) async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>, RegistryError> {
    loop {
        let frame = tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await;
        match frame.map_err(|_| RegistryError::Body("timeout awaiting response body".into()))? {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(err)) => return Err(RegistryError::Body(describe(&err).0)),
        }
    }
}

/// A body that is in memory.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_as_browsers_do() {
        let base = "https://reg.test:5000/v2/a/blobs/uploads/";
        let rows = [
            ("/x?y=1", Some("https://reg.test:5000/x?y=1")),
            ("http://other.test/z", Some("http://other.test/z")),
            ("//cdn.test/z", Some("https://cdn.test/z")),
            ("next", Some("https://reg.test:5000/v2/a/blobs/uploads/next")),
            ("file:///etc/passwd", None),
            ("https://user:pass@evil.test/", None),
        ];
        for (location, want) in rows {
            assert_eq!(join_url(base, location).ok().as_deref(), want, "{location}");
        }
    }

    #[test]
    fn pauses_grow() {
        assert!(backoff(1) < backoff(4));
        assert!(backoff(99) < Duration::from_secs(10));
    }
}
