//! `GET /images/search`: the index of a registry of before the distribution specification, which Docker Hub still has.

use docker_api::filters::Filters;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::fetch;

/// One hit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hit {
    pub star_count: i64,
    pub is_official: bool,
    pub name: String,
    pub is_automated: bool,
    pub description: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Hits {
    results: Option<Vec<Hit>>,
}

/// The answer of an index may not be larger.
const MAX_ANSWER: usize = 4 << 20;

/// Asks the index `term` names (`host/term`), or Docker's.
///
/// # Errors
/// The index cannot be reached or has no such service.
pub async fn search(engine: &Engine, term: &str, limit: i64, filters: &Filters) -> Result<Vec<Hit>> {
    let stars = filters
        .get("stars")
        .iter()
        .map(|text| text.parse::<i64>())
        .max_by_key(|stars| stars.clone().unwrap_or(0));
    let stars = match stars {
        None => 0,
        Some(Ok(stars)) => stars,
        Some(Err(_)) => {
            return Err(Error::invalid(format!("invalid filter 'stars={:?}'", filters.get("stars"))));
        }
    };
    let boolean =
        |key: &str| filters.bool(key).map_err(|bad| Error::invalid(format!("invalid filter '{key}={bad}'")));
    let (official, automated) = (boolean("is-official")?, boolean("is-automated")?);
    let (host, query) = match term.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("index.docker.io", term),
    };
    let scheme = if registry::hosts::is_loopback(host) { "http" } else { "https" };
    let escaped: String = form_urlencoded::byte_serialize(query.as_bytes()).collect();
    let url = format!("{scheme}://{host}/v1/search?q={escaped}&n={limit}");
    let response = fetch::get(&url, &engine.config.proxies).await?;
    if !response.status().is_success() {
        return Err(Error::system(format!("unexpected status code {}", response.status().as_u16())));
    }
    let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|err| Error::system(format!("error reading search results: {err}")))?
        .to_bytes();
    let hits: Hits = serde_json::from_slice(&body)
        .map_err(|err| Error::system(format!("error decoding search results: {err}")))?;
    let mut hits = hits.results.unwrap_or_default();
    hits.retain(|hit| {
        hit.star_count >= stars
            && official.is_none_or(|wanted| hit.is_official == wanted)
            && automated.is_none_or(|wanted| hit.is_automated == wanted)
    });
    Ok(hits)
}
