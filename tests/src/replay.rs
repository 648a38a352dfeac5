//! Plays recorded exchanges again and says where the answers differ.
//!
//! A recording is one JSON value a line, in the order in which it was made: later lines speak of what earlier ones have made. A line is
//! an exchange (with an `id` and the wanted answer), a request that only sets something up (neither), or one of `rm`, `until` and `now`.
//! `{"@": n}` stands for the value of the line `shared: n`. What differs each time is masked on both sides by [`MASKS`]; `<string>`,
//! `<number>`, `<bool>` and `<any>` stand for what cannot be wanted at all (a `<string>` is not empty), `{"<ids>": […]}` for an object
//! whose keys are ids. `${name}` is what an earlier answer was asked to `save`.
//!
//! Invariant: every difference has a place (`status`, `header location`, `body.State.Pid`), and only [`Differences`] says which may stay.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::{http, image, wait_for};

/// What is different each time, and what stands for it in a recording. In this order.
const MASKS: &[(&str, &str)] = &[
    ("0001-01-01T00:00:00Z", "<never>"),
    (r"containerd-mount\d+", "<tmp>"),
    ("[0-9a-f]{64}", "<id>"),
    ("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
    (r"\b[0-9a-f]{12}\b", "<id12>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?", "<time>"),
    (r"\b172\.\d+\.\d+\.\d+\b", "<ip>"),
    (r"\b\d{10}(\.\d+)?\b", "<unix>"),
    (r":[3-6]\d{4}\b", ":<port>"),
    (r"\b(\d+|Less than a|About an?) (seconds?|minutes?|hours?)\b", "<ago>"),
    (r"\b\d+(\.\d+)?(ms|µs|s)\b", "<span>"),
];

/// Lists in which Docker has no order.
const UNORDERED: &[&str] = &[
    "Mounts",
    "Ports",
    "Volumes",
    "RepoTags",
    "RepoDigests",
    "Aliases",
    "DNSNames",
    "NetworksDeleted",
    "VolumesDeleted",
    "ContainersDeleted",
    "ImagesDeleted",
    "Images",
    "Containers",
    "BuildCache",
    "CachesDeleted",
    "Items",
    "Links",
    "<ids>",
];

/// Headers that are compared. Where a recording does not name one, it has [`usual`]'s value.
const HEADERS: &[&str] = &[
    "content-type",
    "location",
    "allow",
    "content-encoding",
    "x-content-type-options",
    "cache-control",
    "pragma",
    "builder-version",
    "swarm",
    "ostype",
    "docker-experimental",
];

/// Where the engine is that is asked.
#[derive(Debug)]
pub struct Target {
    /// Its socket.
    pub socket: PathBuf,
    /// The directory its paths begin with.
    pub root: String,
    /// What stands for the recording's own directory.
    pub tmp: String,
    /// The API version of the requests.
    pub api: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    n: String,
    m: u32,
    t: Option<String>,
    l: Option<String>,
    #[serde(default)]
    d: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Rootfs {
    /// The layer of the image all containers are made from.
    Rootfs,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Tar {
    Root(Rootfs),
    Entries(Vec<Entry>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    // Lines that are no requests.
    shared: Option<u32>,
    is: Option<Value>,
    rm: Option<Vec<String>>,
    until: Option<String>,
    #[serde(default)]
    has: Vec<String>,
    now: Option<String>,
    // The request.
    id: Option<String>,
    #[serde(default)]
    m: String,
    #[serde(default)]
    p: String,
    b: Option<Value>,
    text: Option<String>,
    tar: Option<Tar>,
    kept: Option<String>,
    #[serde(default)]
    gzip: bool,
    #[serde(default)]
    chunked: bool,
    #[serde(default)]
    with: Vec<(String, String)>,
    #[serde(default, deserialize_with = "given")]
    ct: Option<Option<String>>,
    keep: Option<String>,
    #[serde(default)]
    save: BTreeMap<String, String>,
    // The answer.
    s: Option<u16>,
    #[serde(default)]
    head: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "given")]
    j: Option<Value>,
    t: Option<String>,
    mux: Option<BTreeMap<String, String>>,
    entries: Option<Vec<String>>,
    lines: Option<Value>,
    stat: Option<Value>,
    #[serde(default)]
    bytes: bool,
}

/// `null` is something else than nothing.
fn given<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// One place in which an answer is not as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The exchange.
    pub id: String,
    /// Where in it.
    pub place: String,
    /// As recorded.
    pub wanted: String,
    /// As answered.
    pub found: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {} | {}", self.id, self.place, self.wanted, self.found)
    }
}

/// A recording that is being played.
pub struct Player<'a> {
    target: &'a Target,
    masks: Vec<(regex_lite::Regex, &'static str)>,
    shared: HashMap<u64, Value>,
    variables: HashMap<String, String>,
    kept: HashMap<String, Vec<u8>>,
    found: Vec<Difference>,
    played: usize,
}

/// Plays a recording; returns how many exchanges it has and in what they differ.
///
/// # Panics
/// The recording cannot be read, or the engine does not do what a recording waits for.
pub fn play(recording: &str, target: &Target) -> (usize, Vec<Difference>) {
    let masks = MASKS.iter().map(|(what, mask)| (regex_lite::Regex::new(what).expect("a mask"), *mask));
    let mut player = Player {
        target,
        masks: masks.collect(),
        shared: HashMap::new(),
        variables: HashMap::from([
            ("api".to_owned(), target.api.clone()),
            ("tmp".to_owned(), target.tmp.clone()),
        ]),
        kept: HashMap::new(),
        found: Vec::new(),
        played: 0,
    };
    for line in recording.lines() {
        let row: Row = serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}"));
        player.step(&row);
    }
    (player.played, player.found)
}

impl Player<'_> {
    fn step(&mut self, row: &Row) {
        if let (Some(number), Some(value)) = (row.shared, &row.is) {
            let value = self.unfold(value);
            self.shared.insert(number.into(), value);
        } else if let Some(names) = &row.rm {
            for name in names {
                let path = self.fill(&format!("/containers/{name}?force=1&v=1"));
                http::request(&self.target.socket, "DELETE", &path, &[], None);
            }
        } else if let Some(path) = &row.until {
            let path = self.fill(path);
            wait_for(&format!("{path} with {:?}", row.has), || {
                let text = http::request(&self.target.socket, "GET", &path, &[], None).text();
                row.has.iter().any(|part| text.contains(part))
            });
        } else if let Some(name) = &row.now {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
            self.variables.insert(name.clone(), format!("{}.{:09}", now.as_secs(), now.subsec_nanos()));
        } else {
            self.exchange(row);
        }
    }

    fn exchange(&mut self, row: &Row) {
        let path = self.fill(&row.p);
        let answer = self.ask(row, &path);
        if let Some(name) = &row.keep {
            self.kept.insert(name.clone(), answer.body.clone());
        }
        for (name, place) in &row.save {
            let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let value = place.split('.').fold(&body, |value, key| match key.parse::<usize>() {
                Ok(at) => &value[at],
                Err(_) => &value[key],
            });
            self.variables.insert(name.clone(), value.as_str().unwrap_or("missing").to_owned());
        }
        let Some(id) = &row.id else {
            assert!(answer.status > 0, "{} {path}: {answer:?}", row.m);
            return;
        };
        self.played += 1;
        self.compare(id, row, &answer);
        // Without a version it is the newest.
        let unversioned = row
            .p
            .strip_prefix("/v${api}/")
            .filter(|_| row.m == "GET" && row.j.is_some() && row.s == Some(200) && row.with.is_empty());
        if let Some(path) = unversioned {
            let answer = self.ask(row, &self.fill(&format!("/{path}")));
            self.compare(id, row, &answer);
        }
    }

    fn ask(&self, row: &Row, path: &str) -> http::Answer {
        let mut body = match (&row.b, &row.text, &row.tar, &row.kept) {
            (Some(json), ..) => Some(self.fill(&self.unfold(json).to_string()).into_bytes()),
            (_, Some(text), ..) => Some(self.fill(text).into_bytes()),
            (_, _, Some(tar), _) => Some(archive(tar)),
            (_, _, _, Some(kept)) => Some(self.kept.get(kept).expect("kept before").clone()),
            _ => None,
        };
        if row.gzip {
            body = body.map(|bytes| gzip(&bytes));
        }
        let kind = match &row.ct {
            Some(kind) => kind.clone(),
            None => Some("application/json".to_owned()),
        };
        let mut headers: Vec<(String, String)> =
            row.with.iter().map(|(name, value)| (name.clone(), self.fill(value))).collect();
        if let (Some(kind), true) = (kind, body.is_some())
            && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"))
        {
            headers.push(("Content-Type".into(), kind));
        }
        if row.chunked {
            headers.push(("Transfer-Encoding".into(), "chunked".into()));
        }
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        if row.chunked {
            let body = body.unwrap_or_default();
            let mut framed = format!("{:x}\r\n", body.len()).into_bytes();
            framed.extend(body);
            framed.extend(b"\r\n0\r\n\r\n");
            return http::request_framed(&self.target.socket, &row.m, path, &headers, &framed);
        }
        // As Go's clients do it.
        let empty = matches!(row.m.as_str(), "POST" | "PUT").then_some(&b""[..]);
        http::request(&self.target.socket, &row.m, path, &headers, body.as_deref().or(empty))
    }

    /// `${name}`: what was saved; `${name.12}`: the first 12 digits of it, without an algorithm's name.
    fn fill(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, (name, after))) =
            rest.split_once("${").and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
        {
            out.push_str(before);
            let (name, digits) = match name.split_once('.') {
                Some((name, digits)) => (name, digits.parse::<usize>().ok()),
                None => (name, None),
            };
            let value = self.variables.get(name).map_or("missing", String::as_str);
            out.push_str(match digits {
                Some(digits) => {
                    let hex = value.rsplit(':').next().unwrap_or(value);
                    hex.get(..digits).unwrap_or(hex)
                }
                None => value,
            });
            rest = after;
        }
        out.push_str(rest);
        out
    }

    /// Puts in what is shared.
    fn unfold(&self, value: &Value) -> Value {
        match value {
            Value::Object(fields) => match fields.get("@").and_then(Value::as_u64) {
                Some(number) => self.shared.get(&number).expect("shared before").clone(),
                None => fields.iter().map(|(key, value)| (key.clone(), self.unfold(value))).collect(),
            },
            Value::Array(items) => items.iter().map(|item| self.unfold(item)).collect(),
            other => other.clone(),
        }
    }

    /// A value with its strings and keys masked. Of an object whose keys are ids only the values are left.
    fn masked(&self, value: &Value) -> Value {
        let is_id = |key: &String| key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        match value {
            Value::String(text) => self.mask(text).into(),
            Value::Array(items) => items.iter().map(|item| self.masked(item)).collect(),
            Value::Object(fields) if !fields.is_empty() && fields.keys().all(is_id) => {
                let values: Value = fields.values().map(|value| self.masked(value)).collect();
                serde_json::json!({ "<ids>": values })
            }
            Value::Object(fields) => {
                fields.iter().map(|(key, value)| (self.mask(key), self.masked(value))).collect()
            }
            other => other.clone(),
        }
    }

    fn mask(&self, text: &str) -> String {
        let mut text = text.replace(&self.target.root, "<root>");
        // No mask fits what has neither a digit nor an article (`About a minute`), but that of ids without digits.
        if text.len() < 64 && !text.bytes().any(|byte| byte.is_ascii_digit()) && !text.contains(" a") {
            return text;
        }
        for (what, mask) in &self.masks {
            if what.is_match(&text) {
                text = what.replace_all(&text, *mask).into_owned();
            }
        }
        text
    }

    fn compare(&mut self, id: &str, row: &Row, answer: &http::Answer) {
        let before = self.found.len();
        self.compare_all(row, answer);
        for difference in &mut self.found[before..] {
            difference.id = id.to_owned();
        }
        // The second look, without a version, tells nothing new about the same place.
        let known = self.found[..before].iter().rposition(|it| it.id != id).map_or(0, |at| at + 1);
        let (old, new) = self.found.split_at(before);
        let new: Vec<Difference> = new.iter().filter(|it| !old[known..].contains(it)).cloned().collect();
        self.found.truncate(before);
        self.found.extend(new);
    }

    fn differs(&mut self, place: impl Into<String>, wanted: impl ToString, found: impl ToString) {
        self.found.push(Difference {
            id: String::new(),
            place: place.into(),
            wanted: wanted.to_string(),
            found: found.to_string(),
        });
    }

    fn compare_all(&mut self, row: &Row, answer: &http::Answer) {
        let wanted = row.s.expect("an exchange has a status");
        let found: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let found = found.map(|found| self.masked(&found));
        if wanted != answer.status {
            self.differs("status", wanted, answer.status);
            // Errors may differ in their status alone; of anything else, all is different.
            let told = row.j.as_ref().filter(|_| wanted >= 400).map(|told| self.unfold(told));
            if let (Some(told), Some(found), true) = (told, &found, answer.status >= 400) {
                self.compare_json("body", "", true, &told, found);
            }
            return;
        }
        for name in HEADERS {
            let wanted = row.head.get(*name).map_or_else(|| usual(name, row), String::as_str).to_owned();
            let found = self.mask(answer.header(name));
            if self.fill(&wanted) != found {
                self.differs(format!("header {name}"), wanted, found);
            }
        }
        let api = !row.head.contains_key("api-version");
        if answer.header("api-version").is_empty() == api {
            self.differs("header api-version", api, answer.header("api-version"));
        }
        let framing = if !answer.header("transfer-encoding").is_empty() {
            "chunked"
        } else if answer.header("content-length").is_empty() {
            "none"
        } else {
            "length"
        };
        let usual = if matches!(wanted, 204 | 304) { "none" } else { "length" };
        let wanted = row.head.get("framing").map_or(usual, String::as_str);
        if wanted != framing && wanted != "any" {
            self.differs("framing", wanted, framing);
        }
        self.compare_body(row, answer, found);
    }

    fn compare_body(&mut self, row: &Row, answer: &http::Answer, found: Option<Value>) {
        if let Some(wanted) = &row.j {
            let ordered = row.p.contains("/containers/json");
            let (wanted, found) = (self.unfold(wanted), found.unwrap_or(Value::String(answer.text())));
            self.compare_json("body", "", ordered, &wanted, &found);
        } else if let Some(text) = &row.t {
            let found = self.mask(&answer.text());
            if self.fill(text) != found {
                self.differs("body", text, found);
            }
        } else if let Some(wanted) = &row.mux {
            let found = streams(&answer.body);
            let found = found.iter().map(|(stream, text)| (stream.clone(), self.mask(text))).collect();
            if *wanted != found {
                self.differs("body", format!("{wanted:?}"), format!("{found:?}"));
            }
        } else if let Some(wanted) = &row.entries {
            let mut found: Vec<String> = entries(&answer.body).iter().map(|name| self.mask(name)).collect();
            found.sort();
            if *wanted != found {
                self.differs("body", format!("{wanted:?}"), format!("{found:?}"));
            }
        } else if let Some(wanted) = &row.lines {
            let wanted = self.unfold(wanted);
            self.compare_lines(&wanted, answer);
        } else if !row.bytes && !answer.body.is_empty() {
            self.differs("body", "nothing", answer.text());
        }
        if let Some(wanted) = &row.stat {
            let found = unbase64(answer.header("x-docker-container-path-stat"));
            let found: Value = serde_json::from_slice(&found).unwrap_or_default();
            for (key, wanted) in wanted.as_object().into_iter().flatten() {
                if found[key] != *wanted {
                    self.differs(format!("stat.{key}"), wanted, &found[key]);
                }
            }
        }
    }

    /// Records of a stream: what is told, not how often nor how far it has come.
    fn compare_lines(&mut self, wanted: &Value, answer: &http::Answer) {
        let mut found: Vec<Value> = Vec::new();
        let text = answer.text();
        for line in text.split(['\n', '\u{1e}']).map(str::trim).filter(|line| !line.is_empty()) {
            match serde_json::from_str::<Value>(line) {
                Ok(line) => found.push(self.masked(&line)),
                Err(err) => return self.differs("body", "lines of JSON", format!("{err}: {line}")),
            }
        }
        const STEPS: &[&str] =
            &["Downloading", "Extracting", "Loading layer", "Pushing", "Importing", "Loaded image"];
        found.retain(|line| {
            line.get("progressDetail").is_none()
                || !line["status"].as_str().is_some_and(|status| STEPS.contains(&status))
        });
        // Whether the kernel tells of it before the task is gone is chance.
        found.retain(|line| line["Action"] != "oom");
        let wanted: Vec<&Value> = wanted.as_array().into_iter().flatten().collect();
        let same = |player: &mut Self, wanted: &Value, found: &Value| {
            let before = player.found.len();
            player.compare_json("", "", true, wanted, found);
            let same = player.found.len() == before;
            player.found.truncate(before);
            same
        };
        for line in &wanted {
            if !found.iter().any(|found| same(self, line, found)) {
                self.differs("body[]", line, "absent");
            }
        }
        for line in &found {
            if !wanted.iter().any(|wanted| same(self, wanted, line)) {
                self.differs("body[]", "absent", line);
            }
        }
    }

    fn compare_json(&mut self, place: &str, key: &str, ordered: bool, wanted: &Value, found: &Value) {
        match (wanted, found) {
            (Value::String(mark), _) if mark == "<any>" => {}
            (Value::String(mark), Value::Number(_)) if mark == "<number>" => {}
            (Value::String(mark), Value::Bool(_)) if mark == "<bool>" => {}
            (Value::String(mark), Value::String(text)) if mark == "<string>" && !text.is_empty() => {}
            (Value::String(wanted), Value::String(found)) => {
                let wanted = self.fill(wanted);
                if wanted != *found {
                    self.differs(place, format!("{wanted:?}"), format!("{found:?}"));
                }
            }
            (Value::Object(wanted), Value::Object(found)) => {
                for (key, value) in wanted {
                    match found.get(&self.fill(key)) {
                        Some(found) => self.compare_json(&format!("{place}.{key}"), key, true, value, found),
                        None => self.differs(format!("{place}.{key}"), value, "absent"),
                    }
                }
                for (key, value) in found {
                    if !wanted.keys().any(|wanted| self.fill(wanted) == *key) {
                        self.differs(format!("{place}.{key}"), "absent", value);
                    }
                }
            }
            (Value::Array(wanted), Value::Array(found)) => {
                if wanted.len() != found.len() {
                    let (wanted, found) = (Value::from(wanted.clone()), Value::from(found.clone()));
                    return self.differs(place, wanted, found);
                }
                let ordered = ordered && !UNORDERED.contains(&key);
                let mut left: Vec<&Value> = found.iter().collect();
                for item in wanted {
                    // In a list without an order it is the one that differs least.
                    let at = if ordered { 0 } else { self.nearest(item, &left) };
                    let other = left.remove(at);
                    self.compare_json(&format!("{place}[]"), key, true, item, other);
                }
            }
            (wanted, found) if wanted == found => {}
            _ => self.differs(place, wanted, found),
        }
    }

    fn nearest(&mut self, item: &Value, among: &[&Value]) -> usize {
        let before = self.found.len();
        let distances: Vec<usize> = among
            .iter()
            .map(|other| {
                self.compare_json("", "", true, item, other);
                let distance = self.found.len() - before;
                self.found.truncate(before);
                distance
            })
            .collect();
        (0..distances.len()).min_by_key(|at| distances[*at]).unwrap_or(0)
    }
}

/// The value of a header where a recording does not say otherwise.
fn usual(name: &str, row: &Row) -> &'static str {
    let api = !row.head.contains_key("api-version");
    match name {
        "content-type" if !matches!(row.s, Some(204 | 304)) => "application/json",
        "ostype" if api => "linux",
        "docker-experimental" if api => "false",
        _ => "",
    }
}

/// The text of each stream of a multiplexed body.
fn streams(mut bytes: &[u8]) -> BTreeMap<String, String> {
    let mut streams: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    while let Some((head, rest)) = bytes.split_at_checked(8) {
        let size = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let (content, rest) = rest.split_at(size.min(rest.len()));
        streams.entry(head[0].to_string()).or_default().extend(content);
        bytes = rest;
    }
    streams.into_iter().map(|(stream, text)| (stream, String::from_utf8_lossy(&text).into_owned())).collect()
}

/// The names in a tar, with what they are.
fn entries(bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for entry in tar::Archive::new(bytes).entries().into_iter().flatten() {
        let Ok(entry) = entry else { return vec!["no tar".into()] };
        let kind = match entry.header().entry_type() {
            tar::EntryType::Directory => "/",
            tar::EntryType::Symlink => "@",
            _ => "",
        };
        names.push(format!("{}{kind}", String::from_utf8_lossy(&entry.path_bytes()).trim_end_matches('/')));
    }
    names
}

fn archive(what: &Tar) -> Vec<u8> {
    let entries = match what {
        Tar::Root(Rootfs::Rootfs) => return image::recorded_layer(),
        Tar::Entries(entries) => entries,
    };
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.m);
        header.set_mtime(1_700_000_000);
        header.set_size(entry.d.len() as u64);
        if entry.t.is_some() {
            header.set_entry_type(tar::EntryType::Directory);
        } else if entry.l.is_some() {
            header.set_entry_type(tar::EntryType::Symlink);
        }
        // As it is, also where it leads out: `Builder` would refuse.
        let name = entry.n.as_bytes();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        if let Some(link) = &entry.l {
            header.set_link_name(link).expect("a link");
        }
        header.set_cksum();
        tar.append(&header, entry.d.as_bytes()).expect("memory");
    }
    tar.into_inner().expect("memory")
}

/// A gzip file of stored blocks.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let count = bytes.chunks(0xffff).count();
    for (at, block) in bytes.chunks(0xffff).enumerate() {
        let size = u16::try_from(block.len()).expect("a block");
        out.push(u8::from(at + 1 == count));
        out.extend(size.to_le_bytes());
        out.extend((!size).to_le_bytes());
        out.extend(block);
    }
    let crc = !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    out.extend(crc.to_le_bytes());
    out.extend(u32::try_from(bytes.len()).expect("small").to_le_bytes());
    out
}

fn unbase64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for digit in text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte)) {
        bits = (bits << 6) | u32::try_from(digit).expect("six bits");
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}

/// What may differ: the table *Replayed exchanges* of compat-tests/differences.md.
#[derive(Debug, Default)]
pub struct Differences(Vec<Allowed>);

#[derive(Debug)]
struct Allowed {
    exchanges: Vec<String>,
    places: Vec<String>,
    found: String,
}

impl Differences {
    /// Reads the table. Of a row, the first column names exchanges, the second places, the fourth what is answered instead.
    pub fn parse(text: &str) -> Self {
        let section = text.split("\n## Replayed exchanges").nth(1).unwrap_or_default();
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        Self(
            rows.map(|line| {
                let columns: Vec<&str> = line.split(" | ").collect();
                let quoted = |at: usize| {
                    let column: &str = columns.get(at).copied().unwrap_or_default();
                    column.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
                };
                Allowed {
                    exchanges: quoted(0),
                    places: quoted(1),
                    found: columns.get(3).copied().unwrap_or_default().to_owned(),
                }
            })
            .collect(),
        )
    }

    /// What of `found` is not in the table, and what of the table was not found: both are wrong.
    pub fn judge(&self, found: &[Difference]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut used: Vec<(usize, &str, &str)> = Vec::new();
        for difference in found {
            let mut allowed = false;
            for (at, row) in self.0.iter().enumerate() {
                let exchange = row.exchanges.iter().find(|pattern| fits(pattern, &difference.id));
                let place = row.places.iter().find(|pattern| fits(pattern, &difference.place));
                // A status is one of few: the table has the one that is answered.
                let told = difference.place != "status" || row.found.contains(&difference.found);
                if let (Some(exchange), Some(place), true) = (exchange, place, told) {
                    used.extend([(at, exchange.as_str(), ""), (at, "", place.as_str())]);
                    allowed = true;
                }
            }
            if !allowed {
                wrong.push(difference.to_string());
            }
        }
        for (at, row) in self.0.iter().enumerate() {
            let unused = row.exchanges.iter().filter(|it| !used.contains(&(at, it.as_str(), "")));
            wrong.extend(unused.map(|it| format!("{it} does not differ in {:?}", row.places)));
            let unused = row.places.iter().filter(|it| !used.contains(&(at, "", it.as_str())));
            wrong.extend(unused.map(|it| format!("{:?} do not differ in {it}", row.exchanges)));
        }
        wrong
    }
}

/// Whether a pattern, which may have one `*`, fits.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end)
        }
        None => pattern == text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_allows_what_it_names_and_nothing_else() {
        let table = "# Title\n\n## Replayed exchanges\n\n| Exchanges | Where | Docker | Ours | Why |\n|---|---|---|---|---|\n\
                     | `create/*`, `start/x` | `status` | 500 | 400 | a reason |\n\n## Next\n| `y` | `status` | 1 | 2 | no |\n";
        let table = Differences::parse(table);
        let differs = |id: &str, place: &str, found: &str| Difference {
            id: id.into(),
            place: place.into(),
            wanted: "500".into(),
            found: found.into(),
        };
        let (one, two) = (differs("create/a", "status", "400"), differs("start/x", "status", "400"));
        assert!(table.judge(&[one.clone(), two.clone()]).is_empty());
        assert_eq!(table.judge(std::slice::from_ref(&one)), ["start/x does not differ in [\"status\"]"]);
        for other in [
            differs("create/a", "body", "400"),
            differs("y", "status", "2"),
            differs("create/a", "status", "409"),
        ] {
            assert_eq!(table.judge(&[one.clone(), two.clone(), other.clone()]), [other.to_string()]);
        }
    }

    #[test]
    fn small_codecs() {
        assert_eq!(unbase64("aGVsbG8="), b"hello");
        assert_eq!(&gzip(b"123456789")[24..28], 0xcbf4_3926u32.to_le_bytes());
        assert_eq!(streams(b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x01x").len(), 2);
    }
}
