//! Which handler answers a method and path.
//!
//! Docker's routes have names with slashes in the middle (`/images/{name:.*}/json`), so this is a matcher of its own: patterns
//! are tried in the order of registration, as gorilla/mux does, and `{name*}` takes any number of segments.

use std::future::Future;
use std::pin::Pin;

use http::Method;

use super::Answer;
use super::request::Ctx;

/// A handler, boxed.
pub type Handler = Box<dyn Fn(Ctx) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// What the `{…}` of a pattern matched, percent-decoded.
pub type Captures = Vec<(&'static str, String)>;

/// The table of routes.
#[derive(Default)]
pub struct Router {
    routes: Vec<Route>,
}

struct Route {
    method: Method,
    pattern: Vec<Part>,
    handler: Handler,
}

enum Part {
    Literal(&'static str),
    /// `{name}`: one segment.
    One(&'static str),
    /// `{name*}`: one segment or several.
    Many(&'static str),
}

impl Router {
    /// Adds a route. `pattern` is `/a/{one}/b/{many*}/c`.
    pub fn add<F, Fut>(&mut self, method: Method, pattern: &'static str, handler: F)
    where
        F: Fn(Ctx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let pattern = pattern
            .trim_start_matches('/')
            .split('/')
            .map(|part| match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
                None => Part::Literal(part),
                Some(name) => name.strip_suffix('*').map_or(Part::One(name), Part::Many),
            })
            .collect();
        let handler: Handler = Box::new(move |ctx| Box::pin(handler(ctx)));
        self.routes.push(Route { method, pattern, handler });
    }

    /// Adds a GET route.
    pub fn get<F, Fut>(&mut self, pattern: &'static str, handler: F)
    where
        F: Fn(Ctx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        self.add(Method::GET, pattern, handler);
    }

    /// Adds a POST route.
    pub fn post<F, Fut>(&mut self, pattern: &'static str, handler: F)
    where
        F: Fn(Ctx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        self.add(Method::POST, pattern, handler);
    }

    /// Adds a DELETE route.
    pub fn delete<F, Fut>(&mut self, pattern: &'static str, handler: F)
    where
        F: Fn(Ctx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        self.add(Method::DELETE, pattern, handler);
    }

    /// Adds a PUT route.
    pub fn put<F, Fut>(&mut self, pattern: &'static str, handler: F)
    where
        F: Fn(Ctx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        self.add(Method::PUT, pattern, handler);
    }

    /// The handler for `method` and `path` (without the version), or `None`: 404, also for a wrong method.
    pub fn find(&self, method: &Method, path: &str) -> Option<(&Handler, Captures)> {
        let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        for route in &self.routes {
            let mut captures = Vec::new();
            if route.method == *method && matches(&route.pattern, &segments, &mut captures) {
                return Some((&route.handler, captures));
            }
        }
        None
    }
}

fn matches(pattern: &[Part], segments: &[&str], captures: &mut Captures) -> bool {
    let Some((part, rest)) = pattern.split_first() else { return segments.is_empty() };
    match part {
        Part::Literal(text) => {
            segments.split_first().is_some_and(|(first, more)| first == text && matches(rest, more, captures))
        }
        Part::One(name) => segments.split_first().is_some_and(|(first, more)| {
            captures.push((name, decode(first)));
            !first.is_empty() && matches(rest, more, captures) || {
                captures.pop();
                false
            }
        }),
        Part::Many(name) => {
            // Greedy, as the regular expression `.*` is.
            for take in (1..=segments.len()).rev() {
                captures.push((name, decode(&segments[..take].join("/"))));
                if matches(rest, &segments[take..], captures)
                    && !captures.last().is_some_and(|(_, v)| v.is_empty())
                {
                    return true;
                }
                captures.pop();
            }
            false
        }
    }
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The clean form of a path that is not clean (`//`, `.`, `..`), as Go's `path.Clean` gives it; a trailing slash is kept.
pub fn unclean(path: &str) -> Option<String> {
    let decoded = decode(path);
    let mut parts: Vec<&str> = Vec::new();
    for part in decoded.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    if decoded.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    (clean != decoded).then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reply;

    fn found(routes: &[&'static str], path: &str) -> Option<Captures> {
        let mut router = Router::default();
        for route in routes {
            router.get(route, |_| async { Ok(Reply::status(http::StatusCode::OK)) });
        }
        router.find(&Method::GET, path).map(|(_, captures)| captures)
    }

    #[test]
    fn names_may_contain_slashes() {
        let routes = ["/images/{name*}/json", "/images/json"];
        assert_eq!(found(&routes, "/images/a/b/c:tag/json").unwrap(), [("name", "a/b/c:tag".to_owned())]);
        assert_eq!(found(&routes, "/images/json").unwrap(), []);
        assert_eq!(found(&routes, "/images/x/get"), None);
    }

    #[test]
    fn two_parameters() {
        let routes = ["/containers/{name*}/checkpoints/{id}"];
        let captures = found(&routes, "/containers/c/checkpoints/cp").unwrap();
        assert_eq!(captures, [("name", "c".to_owned()), ("id", "cp".to_owned())]);
    }

    #[test]
    fn paths_are_cleaned_like_go_does() {
        assert_eq!(unclean("//_ping").as_deref(), Some("/_ping"));
        assert_eq!(unclean("/containers/../info").as_deref(), Some("/info"));
        assert_eq!(unclean("/containers//json").as_deref(), Some("/containers/json"));
        assert_eq!(unclean("/%2e%2e/info").as_deref(), Some("/info"));
        assert_eq!(unclean("/networks/"), None);
        assert_eq!(unclean("/info"), None);
    }
}
