//! The REST face: HTTP rules that hold for every route, and the table of routes.
//!
//! Invariant: handlers parse, ask the engine, and answer; the rules of Docker's HTTP layer (version prefix, path cleaning,
//! standard headers, error bodies, framing) are here and in the modules beside this one, once for all routes.
//!
//! A request walks: [`server`] (connection) → [`serve`] (clean path, version, route) → a handler in one of the resource
//! modules → [`reply::Reply`] → standard headers → the wire.

pub mod archives;
pub mod authz;
pub mod containers;
pub mod distribution;
pub mod exec;
pub mod hijack;
pub mod images;
pub mod lifecycle;
pub mod networks;
pub mod open;
pub mod params;
pub mod plugins;
pub mod preface;
pub mod reply;
pub mod request;
pub mod router;
pub mod server;
pub mod session;
pub mod streams;
pub mod swarm;
pub mod system;
pub mod times;
pub mod transfers;
pub mod version;
pub mod volumes;

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, header};

pub use self::params::Params;
pub use self::reply::Reply;
pub use self::request::Ctx;
pub use self::router::Router;
pub use self::version::ApiVersion;
use crate::engine::Engine;
use crate::error::{Error, Kind};

/// What handlers give back.
pub type Answer = Result<Reply, Error>;

/// All routes, in the order in which they are tried.
pub fn routes() -> Router {
    let mut router = Router::default();
    system::routes(&mut router);
    containers::routes(&mut router);
    lifecycle::routes(&mut router);
    streams::routes(&mut router);
    exec::routes(&mut router);
    images::routes(&mut router);
    networks::routes(&mut router);
    volumes::routes(&mut router);
    distribution::routes(&mut router);
    swarm::routes(&mut router);
    plugins::routes(&mut router);
    session::routes(&mut router);
    router
}

/// Answers one request. Never fails: a failure is an answer too.
pub async fn serve(
    engine: Arc<Engine>,
    router: Arc<Router>,
    request: http::Request<hyper::body::Incoming>,
    peer: Option<Arc<authz::Peer>>,
) -> http::Response<reply::Body> {
    if let Some(reason) = bad_host(request.version(), request.headers()) {
        let mut reply = Reply::text(StatusCode::BAD_REQUEST, format!("400 {reason}")).reason(reason).bare();
        reply.header("Connection", "close");
        return reply.into_response();
    }
    let path = request.uri().path().to_owned();
    if let Some(clean) = router::unclean(&path) {
        return redirect(&clean, request.uri().query());
    }
    if request.method() == Method::OPTIONS {
        return standard(Reply::status(StatusCode::OK).into_response(), true);
    }
    let (asked, rest) = split_version(&path);
    let Some((handler, captures)) = router.find(request.method(), rest) else {
        return page_not_found();
    };
    let version = match asked {
        None => ApiVersion::MAX,
        Some((version, text)) => match check_version(version, text) {
            Ok(version) => version,
            Err(reply) => return standard(reply.into_response(), false),
        },
    };
    if waits_for_start(request.method(), rest)
        && let Err(err) = engine.phase.ready().await
    {
        return standard(Reply::error(&err).into_response(), true);
    }
    let upgradable = request.headers().contains_key(header::UPGRADE);
    let uri = request.uri().clone();
    let mut ctx = match Ctx::new(engine, version, captures, request) {
        Ok(ctx) => ctx,
        Err(err) => return standard(Reply::error(&err).into_response(), true),
    };
    let allowed = match authz::ask(&mut ctx, &uri, peer.as_ref()).await {
        Ok(allowed) => allowed,
        Err(err) => return standard(Reply::error(&err).into_response(), true),
    };
    let method = ctx.method.clone();
    let reply = match handler(ctx).await {
        Ok(reply) => reply,
        Err(err) => {
            if err.kind() == Kind::System {
                tracing::error!(%method, path, error = %err, "request failed");
            } else {
                tracing::debug!(%method, path, error = %err, "request refused");
            }
            Reply::error(&err)
        }
    };
    let reply = match allowed {
        // A connection that was taken over has no answer to look at.
        Some(allowed) if !reply.is_bare() => allowed.answer(reply).await,
        _ => reply,
    };
    if reply.is_bare() {
        debug_assert!(upgradable || reply.code() != StatusCode::SWITCHING_PROTOCOLS);
        return reply.into_response();
    }
    standard(reply.into_response(), true)
}

/// What is wrong with a request's `Host`, as Go's server words it (RFC 9112 section 3.2).
fn bad_host(version: http::Version, headers: &http::HeaderMap) -> Option<&'static str> {
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"!$%&()*+,-.:;='@[]_~".contains(byte);
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version == http::Version::HTTP_11 => Some("Bad Request: missing required Host header"),
        (Some(_), Some(_)) => Some("Bad Request"),
        (Some(host), None) if !host.as_bytes().iter().all(valid) => {
            Some("Bad Request: malformed Host header")
        }
        _ => None,
    }
}

/// Whether a request needs containers and networks as they are, not only as they were recorded. A person who looks at an engine that is
/// still starting gets an answer at once.
fn waits_for_start(method: &Method, path: &str) -> bool {
    let looks = *method == Method::GET || *method == Method::HEAD;
    let at_once = ["/_ping", "/version", "/info", "/events", "/volumes", "/networks"];
    !(looks && at_once.iter().any(|prefix| path.starts_with(prefix)))
}

/// `/v1.43/containers/json` is version 1.43 of `/containers/json`.
fn split_version(path: &str) -> (Option<(ApiVersion, &str)>, &str) {
    let Some(rest) = path.strip_prefix("/v") else { return (None, path) };
    let Some((version, _)) = rest.split_once('/') else { return (None, path) };
    match ApiVersion::parse(version) {
        Some(parsed) => (Some((parsed, version)), &rest[version.len()..]),
        None => (None, path),
    }
}

fn check_version(version: ApiVersion, asked: &str) -> Result<ApiVersion, Reply> {
    let (min, max) = (ApiVersion::MIN, ApiVersion::MAX);
    if version > max {
        let text = format!("client version {asked} is too new. Maximum supported API version is {max}");
        return Err(Reply::error(&Error::invalid(text)));
    }
    if version < min {
        let text = format!(
            "client version {asked} is too old. Minimum supported API version is {min}, please upgrade your client to a newer version"
        );
        // Clients older than 1.24 knew no JSON errors (moby httputils).
        let mut reply = Reply::text(StatusCode::BAD_REQUEST, format!("{text}\n"));
        reply.header("X-Content-Type-Options", "nosniff");
        return Err(reply);
    }
    Ok(version)
}

/// The mux's own 404: it knows no engine, so it carries none of the engine's headers.
fn page_not_found() -> http::Response<reply::Body> {
    let mut response = Reply::error(&Error::not_found("page not found")).into_response();
    response.headers_mut().insert(header::DATE, reply::http_date());
    response
}

fn redirect(clean: &str, query: Option<&str>) -> http::Response<reply::Body> {
    let mut reply = Reply::status(StatusCode::MOVED_PERMANENTLY);
    let target = query.map_or_else(|| clean.to_owned(), |query| format!("{clean}?{query}"));
    reply.header("Location", &target);
    let mut response = reply.into_response();
    response.headers_mut().insert(header::DATE, reply::http_date());
    response
}

/// Adds what every handled response carries.
fn standard(mut response: http::Response<reply::Body>, experimental: bool) -> http::Response<reply::Body> {
    let headers = response.headers_mut();
    if let Ok(version) = HeaderValue::from_str(&ApiVersion::MAX.to_string()) {
        headers.insert("api-version", version);
    }
    if experimental {
        headers.insert("docker-experimental", HeaderValue::from_static("false"));
    }
    headers.insert("ostype", HeaderValue::from_static("linux"));
    headers.insert(
        header::SERVER,
        HeaderValue::from_static(concat!("Docker/", env!("CARGO_PKG_VERSION"), " (linux)")),
    );
    headers.insert(header::DATE, reply::http_date());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let host = |version, hosts: &[&'static str]| {
            let mut headers = http::HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            bad_host(version, &headers)
        };
        let (one, zero) = (http::Version::HTTP_11, http::Version::HTTP_10);
        assert_eq!(host(one, &[]), Some("Bad Request: missing required Host header"));
        assert_eq!(host(one, &["a", "b"]), Some("Bad Request"));
        assert_eq!(host(one, &["/run/docker.sock"]), Some("Bad Request: malformed Host header"));
        for good in ["", "docker", "api.moby.localhost", "[::1]:2375", "%2Frun%2Fdocker.sock"] {
            assert_eq!(host(one, &[good]), None, "{good}");
        }
        assert_eq!(host(zero, &[]), None);
    }
}
