//! Answering a registry's challenges: Basic, and Bearer tokens from a token server.
//!
//! Invariant: credentials are asked for by the registry's host name and are sent only to that host, or to the token
//! server it names, and then only over TLS (or in clear to a registry that is itself spoken to in clear). Their
//! `Debug` hides them.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::client::{Http, full, read_limited, request};
use crate::error::{RegistryError, parse_errors};

/// Characters a query value keeps as they are.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const MAX_TOKEN_ANSWER: usize = 1 << 20;
/// What a token lives when the server does not say, as the token specification has it.
const DEFAULT_LIFE: u64 = 60;

/// Who we say we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nobody.
    Anonymous,
    Basic {
        user: String,
        secret: String,
    },
    /// An identity token, exchanged for access tokens.
    Refresh(String),
    /// A ready bearer token.
    Bearer(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(…)",
            Self::Refresh(_) => "Refresh(…)",
            Self::Bearer(_) => "Bearer(…)",
        })
    }
}

/// What a registry asked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The registry's host as configured: `registry-1.docker.io`, `127.0.0.1:5000`.
    pub host: String,
    pub reference: String,
    /// The `WWW-Authenticate` headers.
    pub challenges: Vec<String>,
}

/// Where credentials come from.
pub trait Credentials: Send + Sync {
    /// The credential for a host. Called once per client and host, when it is first asked for.
    fn get(&self, ask: Ask) -> Pin<Box<dyn Future<Output = Result<Credential, RegistryError>> + Send + '_>>;
}

/// Nobody has any.
impl Credentials for () {
    fn get(&self, _: Ask) -> Pin<Box<dyn Future<Output = Result<Credential, RegistryError>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(Credential::Anonymous)))
    }
}

/// One challenge of a `WWW-Authenticate` header.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: HashMap<String, String>,
}

/// What one host has been told and has given.
#[derive(Default)]
pub(crate) struct AuthState {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    credential: Option<Credential>,
    basic: Option<HeaderValue>,
    /// Header by scopes, with the time it stops being good.
    tokens: HashMap<String, (HeaderValue, Instant)>,
    /// Whether token servers are asked for an identity token too.
    wants_identity: bool,
    identity: Option<String>,
}

impl AuthState {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The header to send without having been asked, if this host has asked before.
    pub(crate) fn header(&self, scopes: &[String]) -> Option<HeaderValue> {
        self.with(|inner| {
            let now = Instant::now();
            inner.tokens.retain(|_, (_, until)| *until > now);
            inner
                .tokens
                .get(&scopes.join(" "))
                .map(|(header, _)| header.clone())
                .or_else(|| inner.basic.clone())
        })
    }

    /// From now on token servers are asked for an identity token beside each token for a password.
    pub(crate) fn want_identity(&self) {
        self.with(|inner| inner.wants_identity = true);
    }

    /// The identity token a token server gave.
    pub(crate) fn identity(&self) -> Option<String> {
        self.with(|inner| inner.identity.clone())
    }

    /// Takes a refusal's challenges and gets what to send instead. `sent` is the header that was refused.
    pub(crate) async fn answer(
        &self,
        asked: Ask,
        sent: Option<&HeaderValue>,
        scopes: &[String],
        secure: bool,
        http: &Http,
        credentials: &dyn Credentials,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let challenges: Vec<Challenge> = asked.challenges.iter().flat_map(|text| parse(text)).collect();
        let find = |scheme: &str| challenges.iter().find(|c| c.scheme.eq_ignore_ascii_case(scheme)).cloned();
        let host = asked.host.clone();
        if let Some(challenge) = find("bearer") {
            let credential = self.credential(asked, credentials).await?;
            let (header, life) = match &credential {
                Credential::Bearer(token) if sent.is_none() => (bearer(token)?, Duration::from_secs(3600)),
                Credential::Bearer(_) => return Ok(None),
                _ => self.token(&challenge, &credential, scopes, secure, &host, http).await?,
            };
            if sent == Some(&header) {
                return Ok(None);
            }
            let until = Instant::now() + life;
            self.with(|inner| inner.tokens.insert(scopes.join(" "), (header.clone(), until)));
            return Ok(Some(header));
        }
        if find("basic").is_some() {
            let header = match self.credential(asked, credentials).await? {
                Credential::Basic { user, secret } => basic(&user, &secret)?,
                Credential::Bearer(token) => bearer(&token)?,
                Credential::Anonymous | Credential::Refresh(_) => return Err(RegistryError::NoCredentials),
            };
            if sent == Some(&header) {
                return Ok(None);
            }
            self.with(|inner| inner.basic = Some(header.clone()));
            return Ok(Some(header));
        }
        Ok(None)
    }

    async fn credential(
        &self,
        asked: Ask,
        credentials: &dyn Credentials,
    ) -> Result<Credential, RegistryError> {
        if let Some(known) = self.with(|inner| inner.credential.clone()) {
            return Ok(known);
        }
        let credential = credentials.get(asked).await?;
        self.with(|inner| inner.credential = Some(credential.clone()));
        Ok(credential)
    }

    async fn token(
        &self,
        challenge: &Challenge,
        credential: &Credential,
        scopes: &[String],
        secure: bool,
        host: &str,
        http: &Http,
    ) -> Result<(HeaderValue, Duration), RegistryError> {
        let realm = challenge.parameters.get("realm").map(String::as_str).unwrap_or_default();
        let uri: Uri = realm
            .parse()
            .ok()
            .filter(|uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
            .ok_or_else(|| {
                RegistryError::Authorization("no realm specified for token auth challenge".into())
            })?;
        let same_host = uri.authority().is_some_and(|a| a.as_str() == host);
        let in_clear =
            uri.scheme_str() == Some("http") && !crate::hosts::is_loopback(uri.host().unwrap_or_default());
        if in_clear && *credential != Credential::Anonymous && (secure || !same_host) {
            return Err(RegistryError::Authorization(format!(
                "refusing to send credentials in clear to {realm}"
            )));
        }
        let mut wanted: Vec<String> = scopes.to_vec();
        // Space separated, and several parameters of one name do not survive parsing: good enough, ours are added.
        for scope in challenge.parameters.get("scope").map(String::as_str).unwrap_or_default().split(' ') {
            if !scope.is_empty() && !covers(&wanted, scope) {
                wanted.push(scope.to_owned());
            }
        }
        let service = challenge.parameters.get("service").map(String::as_str).unwrap_or_default();
        let (request, what) = match credential {
            Credential::Refresh(token) => (oauth_request(&uri, service, &wanted, token)?, "oauth token"),
            Credential::Basic { user, secret } => {
                let identity = if self.with(|inner| inner.wants_identity) {
                    [("account", user.as_str()), ("client_id", "docker"), ("offline_token", "true")].to_vec()
                } else {
                    Vec::new()
                };
                let header = basic(user, secret)?;
                (token_request(&uri, service, &wanted, &identity, Some(header))?, "oauth token")
            }
            Credential::Anonymous | Credential::Bearer(_) => {
                (token_request(&uri, service, &wanted, &[], None)?, "anonymous token")
            }
        };
        let token = fetch_token(http, request, what).await?;
        if let Some(identity) = token.identity {
            self.with(|inner| inner.identity = Some(identity));
        }
        Ok((token.header, token.life))
    }
}

/// Whether a scope asked for is contained in what we ask for anyway.
fn covers(have: &[String], scope: &str) -> bool {
    let Some((name, actions)) = scope.rsplit_once(':') else { return false };
    have.iter().any(|h| {
        h.rsplit_once(':').is_some_and(|(n, mine)| {
            n == name && actions.split(',').all(|action| mine.split(',').any(|m| m == action))
        })
    })
}

/// What a token server gave.
struct Token {
    header: HeaderValue,
    life: Duration,
    identity: Option<String>,
}

async fn fetch_token(
    http: &Http,
    request_: Request<crate::client::Body>,
    what: &'static str,
) -> Result<Token, RegistryError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
        #[serde(default)]
        expires_in: u64,
        #[serde(default)]
        refresh_token: String,
    }
    let (method, url) = (request_.method().clone(), request_.uri().to_string());
    let response = request(http, request_).await?;
    let status = response.status();
    let body = read_limited(response, MAX_TOKEN_ANSWER).await?;
    if !status.is_success() {
        let status =
            RegistryError::Status { method, url: without_query(&url), status, errors: parse_errors(&body) };
        return Err(RegistryError::Authorization(format!("failed to fetch {what}: {status}")));
    }
    let answer: Answer = serde_json::from_slice(&body)
        .map_err(|err| RegistryError::Authorization(format!("unable to decode token response: {err}")))?;
    let token = if answer.access_token.is_empty() { &answer.token } else { &answer.access_token };
    if token.is_empty() {
        return Err(RegistryError::Authorization("no token in the token server's answer".into()));
    }
    let life = if answer.expires_in == 0 { DEFAULT_LIFE } else { answer.expires_in };
    // A little less, for the way there.
    let life = Duration::from_secs(life.saturating_sub(5).max(1));
    let header = bearer(token)?;
    let identity = Some(answer.refresh_token).filter(|token| !token.is_empty());
    Ok(Token { header, life, identity })
}

fn without_query(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

fn token_request(
    realm: &Uri,
    service: &str,
    scopes: &[String],
    more: &[(&str, &str)],
    authorization: Option<HeaderValue>,
) -> Result<Request<crate::client::Body>, RegistryError> {
    let mut url = realm.to_string();
    let mut separator = if url.contains('?') { '&' } else { '?' };
    let scopes = scopes.iter().map(|s| ("scope", s.as_str()));
    for (name, value) in scopes.chain([("service", service)]).chain(more.iter().copied()) {
        if !value.is_empty() {
            url.push(separator);
            url.push_str(&format!("{name}={}", utf8_percent_encode(value, QUERY)));
            separator = '&';
        }
    }
    let mut builder = Request::builder().method(Method::GET).uri(url);
    if let Some(authorization) = authorization {
        builder = builder.header(AUTHORIZATION, authorization);
    }
    builder.body(full(Vec::new())).map_err(|err| RegistryError::Authorization(err.to_string()))
}

fn oauth_request(
    realm: &Uri,
    service: &str,
    scopes: &[String],
    refresh: &str,
) -> Result<Request<crate::client::Body>, RegistryError> {
    let scope = scopes.join(" ");
    let form = [
        ("grant_type", "refresh_token"),
        ("refresh_token", refresh),
        ("client_id", "containerd-client"),
        ("service", service),
        ("scope", &scope),
    ];
    let body: Vec<String> =
        form.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, QUERY))).collect();
    Request::builder()
        .method(Method::POST)
        .uri(realm.clone())
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
        .body(full(body.join("&").into_bytes()))
        .map_err(|err| RegistryError::Authorization(err.to_string()))
}

fn basic(user: &str, secret: &str) -> Result<HeaderValue, RegistryError> {
    secret_header(&format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{secret}"))
    ))
}

fn bearer(token: &str) -> Result<HeaderValue, RegistryError> {
    secret_header(&format!("Bearer {token}"))
}

fn secret_header(text: &str) -> Result<HeaderValue, RegistryError> {
    let mut header = HeaderValue::from_str(text)
        .map_err(|_| RegistryError::Authorization("credential contains control characters".into()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Whether a status asks for credentials.
pub(crate) fn is_challenge(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED
}

/// Reads the challenges of one header: `Scheme key="value", key=value, Scheme2 …`.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let word_end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        if word.is_empty() {
            break;
        }
        let trimmed = after.trim_start();
        if let (Some(value), Some(challenge)) = (trimmed.strip_prefix('='), found.last_mut()) {
            let (value, after) = parse_value(value.trim_start());
            challenge.parameters.insert(word.to_ascii_lowercase(), value);
            rest = after;
        } else if trimmed.starts_with('=') {
            break;
        } else {
            found.push(Challenge { scheme: word.to_owned(), parameters: HashMap::new() });
            rest = after;
        }
    }
    found
}

fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges() {
        let found = parse(
            r#"Bearer realm="https://auth.test/token",service="reg, \"x\"",scope="repository:a/b:pull,push", Basic realm=x"#,
        );
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].parameters["service"], "reg, \"x\"");
        assert_eq!(found[0].parameters["scope"], "repository:a/b:pull,push");
        assert_eq!((found[1].scheme.as_str(), found[1].parameters["realm"].as_str()), ("Basic", "x"));
        assert_eq!(parse("Negotiate")[0].scheme, "Negotiate");
    }

    #[test]
    fn scopes_are_not_asked_for_twice() {
        let have = ["repository:a:pull,push".to_owned()];
        assert!(covers(&have, "repository:a:pull") && covers(&have, "repository:a:push,pull"));
        assert!(!covers(&have, "repository:b:pull") && !covers(&have, "repository:a:delete"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let credential = Credential::Basic { user: "u".into(), secret: "hunter2".into() };
        assert!(!format!("{credential:?}").contains("hunter2"));
        assert!(!format!("{:?}", basic("u", "hunter2").unwrap()).contains("hunter2"));
        assert!(basic("u", "a\nb").is_ok() && bearer("a\nb").is_err());
    }

    proptest! {
        #[test]
        fn headers_never_panic(text in "\\PC{0,80}") {
            let _ = parse(&text);
        }
    }
}
