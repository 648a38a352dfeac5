//! Progress as Docker's clients read it: records `{"status":…,"id":…,"progressDetail":{…}}`.

use std::collections::HashMap;

use oci::mediatype;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::runtime::transfer::Step;

/// One record.
pub type Line = Value;
/// Where records go.
pub type Lines = mpsc::Sender<Line>;

/// `{"status":…}`, with an `id` if it is not empty.
pub fn status(id: &str, text: impl Into<String>) -> Line {
    let mut line = json!({ "status": text.into() });
    if !id.is_empty() {
        line["id"] = json!(id);
    }
    line
}

fn layer(id: &str, text: &str, detail: Value) -> Line {
    json!({ "status": text, "progressDetail": detail, "id": id })
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Waiting,
    Moving,
    Moved,
    Extracting,
    Done,
}

/// Turns containerd's steps into Docker's records, each layer's in order and each state once.
#[derive(Debug)]
pub struct Mapper {
    way: Way,
    layers: HashMap<String, At>,
    order: Vec<String>,
}

impl Mapper {
    /// For one transfer.
    pub fn new(way: Way) -> Self {
        Self { way, layers: HashMap::new(), order: Vec::new() }
    }

    /// What to tell the client about a step.
    pub fn step(&mut self, step: &Step) -> Vec<Line> {
        let Some((digest, media_type)) = &step.descriptor else { return Vec::new() };
        if !mediatype::is_layer(media_type) {
            return Vec::new();
        }
        let id: String = digest.split(':').nth(1).unwrap_or(digest).chars().take(12).collect();
        let at = self.layers.get(&id).copied();
        let event = step.event.as_str();
        let (next, moving) = match (self.way, event) {
            (_, "waiting") => (At::Waiting, false),
            (Way::Down, "downloading") | (Way::Up, "uploading" | "pushing" | "copying") => (At::Moving, true),
            (Way::Down, "complete" | "done" | "downloaded") => (At::Moved, false),
            (Way::Down, "extracting" | "unpacking") => (At::Extracting, true),
            (Way::Down, "extracted" | "unpacked") => (At::Done, false),
            (Way::Down, "already exists" | "exists") => {
                // What was here all along is not mentioned, what somebody else was fetching is done.
                if at.is_none_or(|at| at == At::Waiting) {
                    self.note(&id, At::Done);
                    return Vec::new();
                }
                (At::Moved, false)
            }
            (Way::Up, "complete" | "done" | "uploaded" | "pushed") => (At::Done, false),
            (Way::Up, "already exists" | "exists") => {
                self.note(&id, At::Done);
                return vec![layer(&id, "Layer already exists", json!({}))];
            }
            _ => return Vec::new(),
        };
        let detail = moving.then(|| json!({ "current": step.current, "total": step.total }));
        self.advance(&id, at, next, detail)
    }

    fn note(&mut self, id: &str, at: At) {
        if self.layers.insert(id.to_owned(), at).is_none() {
            self.order.push(id.to_owned());
        }
    }

    fn advance(&mut self, id: &str, from: Option<At>, to: At, detail: Option<Value>) -> Vec<Line> {
        let mut lines = Vec::new();
        if from.is_some_and(|from| from > to || (from == to && detail.is_none())) {
            return lines;
        }
        self.note(id, to);
        // A layer that only waits may turn out to be here already: it is mentioned when it moves.
        if to != At::Waiting && from.is_none_or(|from| from == At::Waiting) {
            lines.push(layer(
                id,
                if self.way == Way::Down { "Pulling fs layer" } else { "Waiting" },
                json!({}),
            ));
        }
        let empty_total = detail.as_ref().is_some_and(|detail| detail["total"].as_i64().unwrap_or(0) <= 0);
        match (self.way, to) {
            (_, At::Waiting) => {}
            (Way::Down, At::Moving) if !empty_total => {
                lines.push(layer(id, "Downloading", detail.unwrap_or_else(|| json!({}))));
            }
            (Way::Up, At::Moving) if !empty_total => {
                lines.push(layer(id, "Pushing", detail.unwrap_or_else(|| json!({}))));
            }
            (_, At::Moving) => {}
            (_, At::Moved) => lines.push(layer(id, "Download complete", json!({ "hidecounts": true }))),
            (_, At::Extracting) => {
                if from.is_some_and(|from| from < At::Moved) {
                    lines.push(layer(id, "Download complete", json!({ "hidecounts": true })));
                }
                if !empty_total {
                    lines.push(layer(id, "Extracting", detail.unwrap_or_else(|| json!({}))));
                }
            }
            (Way::Down, At::Done) => {
                if from.is_none_or(|from| from < At::Moved) {
                    lines.push(layer(id, "Download complete", json!({ "hidecounts": true })));
                }
                lines.push(layer(id, "Pull complete", json!({ "hidecounts": true })));
            }
            (Way::Up, At::Done) => lines.push(layer(id, "Pushed", json!({}))),
        }
        lines
    }

    /// The transfer has succeeded: what was begun is done, whether or not containerd said so.
    pub fn finish(&mut self) -> Vec<Line> {
        let order = self.order.clone();
        order.iter().flat_map(|id| self.advance(id, self.layers.get(id).copied(), At::Done, None)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(event: &str, digest: &str, current: i64, total: i64) -> Step {
        Step {
            event: event.into(),
            name: String::new(),
            current,
            total,
            descriptor: Some((format!("sha256:{}", digest.repeat(64)), mediatype::OCI_LAYER_GZIP.into())),
        }
    }

    fn run(way: Way, steps: &[Step]) -> Vec<String> {
        let mut mapper = Mapper::new(way);
        let mut lines: Vec<Line> = steps.iter().flat_map(|step| mapper.step(step)).collect();
        lines.extend(mapper.finish());
        lines
            .iter()
            .map(|line| format!("{} {}", line["id"].as_str().unwrap(), line["status"].as_str().unwrap()))
            .collect()
    }

    #[test]
    fn a_pull_reads_like_dockers() {
        let steps = [
            step("waiting", "a", 0, 0),
            step("downloading", "a", 5, 10),
            step("downloading", "a", 10, 10),
            step("complete", "a", 10, 10),
            step("complete", "a", 10, 10),
            step("waiting", "b", 0, 0),
            step("already exists", "b", 0, 0),
            step("extracted", "b", 0, 0),
            step("extracting", "a", 1, 10),
            step("extracted", "a", 0, 0),
            step("downloading", "a", 10, 10),
        ];
        let a = "a".repeat(12);
        let want = [
            "Pulling fs layer",
            "Downloading",
            "Downloading",
            "Download complete",
            "Extracting",
            "Pull complete",
        ];
        assert_eq!(run(Way::Down, &steps), want.map(|text| format!("{a} {text}")));
    }

    #[test]
    fn what_containerd_does_not_say_is_said_at_the_end() {
        let a = "a".repeat(12);
        let want = ["Pulling fs layer", "Download complete", "Pull complete"];
        assert_eq!(run(Way::Down, &[step("waiting", "a", 0, 0)]), want.map(|text| format!("{a} {text}")));
    }

    #[test]
    fn a_push_reads_like_dockers() {
        let (a, b) = ("a".repeat(12), "b".repeat(12));
        let steps = [
            step("waiting", "a", 0, 0),
            step("uploading", "a", 1, 2),
            step("complete", "a", 2, 2),
            step("already exists", "b", 0, 0),
        ];
        let want = [
            format!("{a} Waiting"),
            format!("{a} Pushing"),
            format!("{a} Pushed"),
            format!("{b} Layer already exists"),
        ];
        assert_eq!(run(Way::Up, &steps), want);
    }

    #[test]
    fn manifests_and_configurations_are_not_mentioned() {
        let mut other = step("downloading", "c", 1, 2);
        other.descriptor = Some(("sha256:c".into(), mediatype::OCI_MANIFEST.into()));
        assert!(Mapper::new(Way::Down).step(&other).is_empty());
    }
}
