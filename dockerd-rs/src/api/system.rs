//! Routes that concern the engine itself: ping, version, info, events, disk usage, login.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::params::quote;
use super::request::{Ctx, MAX_JSON_BYTES};
use super::{Answer, ApiVersion, Reply, Router, times};
use crate::error::{Error, Result};
use crate::events::{Event, EventFilter, Start, Subject};
use crate::image::Auth;
use crate::system;
use crate::system::df::Kinds;

/// Events that may wait in the connection for a slow client; behind them the journal waits.
const DEPTH: usize = 16;

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.get("/_ping", ping);
    router.add(Method::HEAD, "/_ping", ping);
    router.get("/version", version);
    router.get("/info", info);
    router.get("/events", events);
    router.get("/system/df", df);
    router.post("/auth", auth);
}

/// `GET /_ping` (SystemPing).
async fn ping(_ctx: Ctx) -> Answer {
    let mut reply = Reply::text(StatusCode::OK, "OK");
    reply
        .header("Builder-Version", "2")
        .header("Cache-Control", "no-cache, no-store, must-revalidate")
        .header("Pragma", "no-cache")
        .header("Swarm", "inactive");
    Ok(reply)
}

/// `GET /version` (SystemVersion).
async fn version(ctx: Ctx) -> Answer {
    Ok(Reply::ok(&system::version(&ctx.engine).await))
}

/// `GET /info` (SystemInfo).
async fn info(ctx: Ctx) -> Answer {
    Ok(Reply::ok(&system::info(&ctx.engine, ctx.version).await))
}

/// `GET /system/df` (SystemDataUsage).
async fn df(ctx: Ctx) -> Answer {
    let types = ctx.params.all("type").filter(|_| ctx.version.at_least(42));
    let kinds = Kinds::parse(types)?;
    let verbose = ctx.version.at_least(52) && ctx.params.bool("verbose");
    Ok(Reply::ok(&system::df::disk_usage(&ctx.engine, kinds, verbose, ctx.version).await?))
}

/// `POST /auth` (SystemAuth).
async fn auth(mut ctx: Ctx) -> Answer {
    let body = ctx.body_bytes(MAX_JSON_BYTES).await?;
    let wrap = |why: String| Error::invalid(format!("invalid X-Registry-Auth header: {why}"));
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(wrap("invalid JSON: EOF".into()));
    }
    let auth: Auth = docker_api::json::from_slice(&body).map_err(|err| wrap(err.to_string()))?;
    let identity = system::login(&ctx.engine, &auth).await?.unwrap_or(auth.identitytoken);
    let mut answer = json!({ "Status": "Login Succeeded" });
    if !identity.is_empty() {
        answer["IdentityToken"] = json!(identity);
    }
    Ok(Reply::ok(&answer))
}

/// How events are put on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Lines(&'static str),
    /// RFC 7464: each record after a record separator.
    Sequence,
}

fn framing(accept: &str, version: ApiVersion) -> Framing {
    for kind in accept.split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim()) {
        match kind {
            "application/json-seq" => return Framing::Sequence,
            "application/x-ndjson" => return Framing::Lines("application/x-ndjson"),
            "application/jsonl" => return Framing::Lines("application/jsonl"),
            _ => {}
        }
    }
    Framing::Lines(if version.at_least(52) { "application/jsonl" } else { "application/json" })
}

/// A `since` or `until`: Unix seconds.
fn unix(ctx: &Ctx, key: &str) -> Result<Option<Timestamp>> {
    let text = ctx.params.text(key);
    if text.is_empty() {
        return Ok(None);
    }
    let failed = || {
        Error::invalid(format!(
            "invalid value for '{key}': invalid timestamp {quoted}: invalid seconds {quoted}: invalid syntax",
            quoted = quote(text)
        ))
    };
    times::unix(text).ok_or_else(failed).map(Some)
}

/// `GET /events` (SystemEvents).
async fn events(ctx: Ctx) -> Answer {
    let (since, until) = (unix(&ctx, "since")?, unix(&ctx, "until")?);
    if let (Some(from), Some(to)) = (since, until)
        && to < from
    {
        let (from, to) = (ctx.params.text("since"), ctx.params.text("until"));
        return Err(Error::invalid(format!("`since` time ({from}) cannot be after `until` time ({to})")));
    }
    let filters = docker_api::filters::Filters::parse(ctx.params.text("filters"))
        .map_err(|_| Error::invalid("invalid filter"))?;
    let filter = EventFilter::new(filters);
    let version = ctx.version;
    let framing = framing(ctx.header("accept"), version);
    let nanos = |at: Timestamp| i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX);
    let until = until.map(nanos);
    let start = since.map_or(Start::Now, |since| Start::Since(nanos(since)));
    let mut subscription = ctx.engine.events.subscribe(start).await?;
    let content_type = match framing {
        Framing::Lines(kind) => kind,
        Framing::Sequence => "application/json-seq",
    };
    let (reply, sink) = Reply::channel(StatusCode::OK, Some(content_type), DEPTH);
    let phase = ctx.engine.phase.clone();
    tokio::spawn(async move {
        let shown = |event: &Event| {
            (until.is_none_or(|until| event.at_nano() <= until)
                && filter.matches(event)
                && is_known(event, version))
            .then(|| frame(event, version, framing))
        };
        // What happened already, to its end; an `until` that is over ends the stream there.
        while let Some(event) = subscription.try_next().await {
            if let Some(bytes) = shown(&event)
                && sink.send(bytes).await.is_err()
            {
                return;
            }
        }
        let left = until.map(|until| until - nanos(Timestamp::now()));
        let end = async {
            match left {
                Some(left) => tokio::time::sleep(Duration::from_nanos(left.max(0).unsigned_abs())).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            tokio::select! {
                event = subscription.next() => {
                    if let Some(bytes) = shown(&event)
                        && sink.send(bytes).await.is_err()
                    {
                        return;
                    }
                }
                () = &mut end => return,
                () = sink.closed() => return,
                () = phase.stopping() => return,
            }
        }
    });
    Ok(reply)
}

/// Older clients did not hear of images that are made.
fn is_known(event: &Event, version: ApiVersion) -> bool {
    version.at_least(46) || event.subject != Subject::Image || event.action != "create"
}

fn frame(event: &Event, version: ApiVersion, framing: Framing) -> Bytes {
    let mut shown = json!({
        "Type": event.subject,
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "scope": "local",
        "time": event.at_nano().div_euclid(1_000_000_000),
        "timeNano": event.at_nano(),
    });
    if !version.at_least(52) && matches!(event.subject, Subject::Container | Subject::Image) {
        let mut old = json!({ "status": event.action, "id": event.id });
        if event.subject == Subject::Container
            && let Some(image) = event.attributes.get("image")
        {
            old["from"] = json!(image);
        }
        if let (Value::Object(old), Value::Object(shown)) = (&mut old, &mut shown) {
            old.append(shown);
            std::mem::swap(old, shown);
        }
    }
    let mut bytes = Vec::new();
    if framing == Framing::Sequence {
        bytes.push(0x1e);
    }
    bytes.extend_from_slice(shown.to_string().as_bytes());
    bytes.push(b'\n');
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_negotiated_and_depend_on_the_version() {
        let (old, new) = (ApiVersion::minor(51), ApiVersion::minor(52));
        assert_eq!(framing("", old), Framing::Lines("application/json"));
        assert_eq!(framing("*/*", new), Framing::Lines("application/jsonl"));
        assert_eq!(framing("application/x-ndjson", old), Framing::Lines("application/x-ndjson"));
        assert_eq!(framing("text/plain, application/json-seq;q=1", new), Framing::Sequence);
    }

    #[test]
    fn old_clients_get_the_old_fields_first() {
        let event = Event {
            sequence: 1,
            subject: Subject::Container,
            action: "start".into(),
            id: "c".into(),
            attributes: [("image".to_owned(), "i".to_owned())].into(),
            time_nano: 1_500_000_000,
            happened_nano: None,
        };
        let text = |minor| {
            let bytes = frame(&event, ApiVersion::minor(minor), Framing::Lines(""));
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        assert!(
            text(51).starts_with(r#"{"status":"start","id":"c","from":"i","Type":"container","#),
            "{}",
            text(51)
        );
        assert_eq!(
            text(52),
            "{\"Type\":\"container\",\"Action\":\"start\",\"Actor\":{\"ID\":\"c\",\"Attributes\":{\"image\":\"i\"}},\"scope\":\"local\",\"time\":1,\"timeNano\":1500000000}\n"
        );
    }
}
