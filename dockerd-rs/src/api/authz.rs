//! Authorization plugins: each request is shown to every plugin before it is acted on, and its answer before it is sent.
//!
//! Invariants: a plugin decides on the body that the handler then reads, never on less; a JSON body larger than [`MAX_BODY`] is refused rather
//! than hidden; a plugin that cannot be asked refuses. What is not JSON (archives, streams) is decided on by its head alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::Reply;
use super::request::Ctx;
use crate::error::{Error, Result};
use crate::plugin::Plugin;

/// The largest JSON body a plugin is asked about, in bytes.
const MAX_BODY: usize = 4 << 20;
const INTERFACE: &str = "authz";

/// Who is at the other end of a connection, as TLS knows.
#[derive(Debug, Default)]
pub struct Peer {
    /// The common name of the client's certificate; empty without one.
    pub user: String,
    /// The client's certificates in PEM form.
    pub certificates: Vec<String>,
}

impl Peer {
    /// The owner of verified certificates (DER), the client's own first.
    pub fn of_certificates<C: AsRef<[u8]>>(certificates: &[C]) -> Self {
        let user = certificates.first().and_then(|own| common_name(own.as_ref())).unwrap_or_default();
        let pem = |certificate: &C| {
            let text = STANDARD.encode(certificate.as_ref());
            let lines: Vec<&str> =
                (0..text.len()).step_by(64).map(|at| &text[at..(at + 64).min(text.len())]).collect();
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
        };
        Self { user, certificates: certificates.iter().map(pem).collect() }
    }
}

/// What plugins are asked. The names are those of their protocol.
#[derive(Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ask {
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(rename = "UserAuthNMethod", skip_serializing_if = "String::is_empty")]
    user_authn_method: String,
    request_method: String,
    request_uri: String,
    /// Base64, as Go writes bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    request_body: String,
    request_headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    request_peer_certificates: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    response_body: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    response_headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_zero")]
    response_status_code: u16,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Verdict {
    allow: bool,
    msg: String,
    err: String,
}

/// A request that every plugin let through.
pub struct Allowed {
    plugins: Vec<String>,
    ask: Ask,
}

/// Looks whether every plugin is there; for the start of the engine.
///
/// # Errors
/// The first that is not.
pub async fn check(plugins: &[String]) -> Result<()> {
    for name in plugins {
        Plugin::find(name, INTERFACE)
            .await
            .map_err(|err| err.context("Error validating authorization plugin"))?;
    }
    Ok(())
}

/// Shows a request to the plugins; `None` when there are none. A JSON body is read here and handed to the handler as it was.
///
/// # Errors
/// 403 when a plugin refuses, 413 for a body that is too large to be asked about, 500 when a plugin cannot be asked.
pub async fn ask(ctx: &mut Ctx, uri: &http::Uri, peer: Option<&Arc<Peer>>) -> Result<Option<Allowed>> {
    let plugins = ctx.engine.config.live().authorization_plugins.clone();
    if plugins.is_empty() {
        return Ok(None);
    }
    let mut ask = Ask {
        request_method: ctx.method.to_string(),
        request_uri: uri.path_and_query().map_or_else(String::new, ToString::to_string),
        request_headers: shown(&ctx.headers),
        ..Ask::default()
    };
    if let Some(peer) = peer.filter(|peer| !peer.certificates.is_empty()) {
        ask.user.clone_from(&peer.user);
        ask.user_authn_method = "TLS".into();
        ask.request_peer_certificates = peer.certificates.iter().map(|pem| STANDARD.encode(pem)).collect();
    }
    // Logins have passwords in them.
    let is_login = uri.path().ends_with("/auth");
    if is_json(ctx.header("content-type")) && !is_login && ctx.has_body() {
        let body = ctx.body_bytes(MAX_BODY).await?;
        ask.request_body = STANDARD.encode(&body);
        ctx.give_back(body);
    }
    for name in &plugins {
        decide(name, "AuthZPlugin.AuthZReq", &ask).await?;
    }
    Ok(Some(Allowed { plugins, ask }))
}

impl Allowed {
    /// Shows the answer to the plugins, last to first, and gives what is sent: the answer, or a refusal.
    pub async fn answer(mut self, reply: Reply) -> Reply {
        self.ask.response_status_code = reply.code().as_u16();
        self.ask.response_headers = shown(&reply.header_map());
        if let Some(body) = reply.whole().filter(|body| body.len() <= MAX_BODY) {
            self.ask.response_body = STANDARD.encode(body);
        }
        for name in self.plugins.iter().rev() {
            if let Err(err) = decide(name, "AuthZPlugin.AuthZRes", &self.ask).await {
                return Reply::error(&err);
            }
        }
        reply
    }
}

async fn decide(name: &str, method: &str, ask: &Ask) -> Result<()> {
    let failed = |why: &str| Error::system(format!("plugin {name} failed with error: {why}"));
    let plugin = Plugin::find(name, INTERFACE).await.map_err(|err| failed(err.message()))?;
    let verdict: Verdict = plugin.call(method, ask).await.map_err(|err| failed(err.message()))?;
    if !verdict.err.is_empty() {
        return Err(failed(&verdict.err));
    }
    if verdict.allow {
        return Ok(());
    }
    tracing::info!(
        plugin = name,
        method = ask.request_method,
        uri = ask.request_uri,
        user = ask.user,
        "request denied"
    );
    Err(Error::forbidden(format!("authorization denied by plugin {name}: {}", verdict.msg)))
}

fn is_json(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Headers as plugins get them; credentials for registries are nobody's business.
fn shown(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::new();
    for (name, value) in headers {
        if matches!(name.as_str(), "x-registry-auth" | "x-registry-config") {
            continue;
        }
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        shown.insert(title_case(name.as_str()), text);
    }
    shown
}

/// `content-type` as `Content-Type`.
fn title_case(name: &str) -> String {
    let mut first = true;
    let case = |c: char| {
        let shown = if first { c.to_ascii_uppercase() } else { c };
        first = c == '-';
        shown
    };
    name.chars().map(case).collect()
}

/// The common name in a certificate's subject (RFC 5280 section 4.1). The certificate was verified before.
fn common_name(certificate: &[u8]) -> Option<String> {
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const VERSION: u8 = 0xa0;
    /// 2.5.4.3 with its tag and length.
    const NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
    let (whole, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(whole, SEQUENCE)?;
    if let Some((_, rest)) = element(fields, VERSION) {
        fields = rest;
    }
    // Serial number, signature algorithm, issuer, validity.
    for _ in 0..4 {
        fields = any_element(fields)?.2;
    }
    let (mut subject, _) = element(fields, SEQUENCE)?;
    let mut found = None;
    while let Some((mut set, rest)) = element(subject, SET) {
        while let Some((pair, more)) = element(set, SEQUENCE) {
            if let Some(value) = pair.strip_prefix(NAME) {
                let (_, text, _) = any_element(value)?;
                found = std::str::from_utf8(text).ok().map(str::to_owned);
            }
            set = more;
        }
        subject = rest;
    }
    found
}

/// The content of the element of that tag at the front of `bytes`, and what is behind it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    any_element(bytes).filter(|(found, _, _)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// Tag, content and rest of a DER element.
fn any_element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 || rest.len() < count {
            return None;
        }
        let (digits, rest) = rest.split_at(count);
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    (rest.len() >= length).then(|| (tag, &rest[..length], &rest[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let mut bytes = vec![tag];
        if content.len() < 0x80 {
            bytes.push(u8::try_from(content.len()).unwrap());
        } else {
            bytes.extend([0x82, u8::try_from(content.len() >> 8).unwrap(), (content.len() & 0xff) as u8]);
        }
        bytes.extend(content);
        bytes
    }

    #[test]
    fn the_subjects_common_name_is_the_user() {
        let name = |text: &str| {
            let oid = [0x06, 0x03, 0x55, 0x04, 0x03];
            tlv(0x31, &[&tlv(0x30, &[&oid, &tlv(0x0c, &[text.as_bytes()])])])
        };
        let country = tlv(0x31, &[&tlv(0x30, &[&[0x06, 0x03, 0x55, 0x04, 0x06], &tlv(0x13, &[b"DE"])])]);
        let (issuer, subject) =
            (tlv(0x30, &[&name(&"issuer ".repeat(30))]), tlv(0x30, &[&country, &name("alice")]));
        let version = tlv(0xa0, &[&tlv(0x02, &[&[2]])]);
        let fields = tlv(
            0x30,
            &[
                &version,
                &tlv(0x02, &[&[1]]),
                &tlv(0x30, &[]),
                &issuer,
                &tlv(0x30, &[]),
                &subject,
                &tlv(0x30, &[]),
            ],
        );
        let certificate = tlv(0x30, &[&fields, &tlv(0x30, &[]), &tlv(0x03, &[&[0]])]);
        assert_eq!(common_name(&certificate).as_deref(), Some("alice"));
        for cut in 0..certificate.len() {
            // Never more than the answer, never a panic.
            assert!(common_name(&certificate[..cut]).is_none(), "{cut}");
        }
        let peer = Peer::of_certificates(&[&certificate]);
        assert_eq!(peer.user, "alice");
        assert!(peer.certificates[0].starts_with("-----BEGIN CERTIFICATE-----\n"));
    }

    #[test]
    fn credentials_stay_with_the_engine() {
        let mut headers = HeaderMap::new();
        headers.insert("x-registry-auth", "secret".parse().unwrap());
        headers.insert("content-type", "application/json".parse().unwrap());
        assert_eq!(
            shown(&headers),
            BTreeMap::from([("Content-Type".to_owned(), "application/json".to_owned())])
        );
        assert!(is_json("Application/JSON; charset=utf-8") && !is_json("application/x-tar"));
    }
}
