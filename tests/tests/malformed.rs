//! What clients get wrong, and what they are told: `data/malformed.jsonl` has one request a line with the answer that is wanted.
//!
//! Answers are Docker Engine's but for those of compat-tests/differences.md. In a line, `{x*300}` stands for 300 times x, and `…` in a message for
//! whatever depends on the machine or the runtime.

use std::sync::atomic::{AtomicBool, Ordering};

use e2e_tests::{Engine, http, wait_for};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    what: String,
    method: String,
    target: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    body: Option<String>,
    status: u16,
    #[serde(default)]
    message: String,
    /// The container that was made is started, with this answer.
    start: Option<(u16, String)>,
}

fn rows() -> Vec<Row> {
    let lines = include_str!("../data/malformed.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}"))).collect()
}

/// Writes `{x*300}` out. `\u{f8ff}` is a byte that is no UTF-8.
fn written_out(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out.extend(rest[..at].bytes());
        let inside = rest[at + 1..].split_once('}');
        let repeated = inside.and_then(|(inside, after)| {
            let (what, count) = inside.split_once('*')?;
            (what.chars().count() == 1).then_some((what, count.parse::<usize>().ok()?, after))
        });
        match repeated {
            Some((what, count, after)) => {
                out.extend(what.repeat(count).bytes());
                rest = after;
            }
            None => {
                out.push(b'{');
                rest = &rest[at + 1..];
            }
        }
    }
    out.extend(rest.bytes());
    let mut bytes = Vec::with_capacity(out.len());
    let marker = "\u{f8ff}".as_bytes();
    let mut at = 0;
    while at < out.len() {
        if out[at..].starts_with(marker) {
            bytes.push(0xff);
            at += marker.len();
        } else {
            bytes.push(out[at]);
            at += 1;
        }
    }
    bytes
}

/// Whether `text` is `pattern`, in which `…` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    if !pattern.contains('…') {
        return rest.is_empty();
    }
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    pattern.ends_with('…') || rest.is_empty()
}

fn message(answer: &http::Answer) -> String {
    match serde_json::from_slice::<serde_json::Value>(&answer.body) {
        Ok(value) => value["message"].as_str().unwrap_or_default().to_owned(),
        Err(_) if answer.status == 301 => answer.header("location").to_owned(),
        Err(_) => answer.text(),
    }
}

fn ask(engine: &Engine, row: &Row) -> http::Answer {
    let target = String::from_utf8_lossy(&written_out(&row.target)).into_owned();
    let headers: Vec<(&str, &str)> =
        row.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let body = row.body.as_ref().map(|body| written_out(body));
    http::request(&engine.socket(), &row.method, &target, &headers, body.as_deref())
}

/// One way through the list; gives what was not as wanted.
fn replay(engine: &Engine) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |what: &str, wanted: (u16, &str), answer: &http::Answer| {
        let found = if answer.status < 300 { String::new() } else { message(answer) };
        if answer.status != wanted.0 || !fits(wanted.1, &found) {
            wrong
                .push(format!("{what}: wanted {} {:?}, got {} {found:?}", wanted.0, wanted.1, answer.status));
        }
    };
    for row in rows() {
        let answer = ask(engine, &row);
        check(&row.what, (row.status, &row.message), &answer);
        if answer.status != 201 {
            continue;
        }
        if let Some((status, message)) = &row.start {
            let started =
                http::request(&engine.socket(), "POST", "/containers/malformed/start", &[], Some(b""));
            check(&format!("{}, started", row.what), (*status, message), &started);
        }
        let made = answer.json();
        if let Some(id) = made["Id"].as_str() {
            let kind = if row.target.starts_with("/networks") { "networks" } else { "containers" };
            let target = format!("/{kind}/{id}?force=1&v=1");
            http::request(&engine.socket(), "DELETE", &target, &[], None);
        }
    }
    wrong
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the engine lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn malformed_requests_get_the_answers_that_clients_know() {
    let engine = Engine::start();
    engine.load_busybox();
    engine.docker(&["tag", "busybox", "cnt"]).ok();
    engine.docker(&["run", "-dt", "--name", "running", "busybox", "sleep", "1000"]).ok();
    let wrong = replay(&engine);
    assert!(wrong.is_empty(), "{} answers differ:\n{}", wrong.len(), wrong.join("\n"));
    // Again, while others work; and the engine is what it was.
    let pid = engine.pid();
    let before = resident_kib(pid);
    let stop = AtomicBool::new(false);
    let wrong = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let list = http::request(&engine.socket(), "GET", "/containers/json?all=1", &[], None);
                    assert_eq!(list.status, 200);
                }
            });
        }
        let wrong: Vec<String> = (0..2).flat_map(|_| replay(&engine)).collect();
        stop.store(true, Ordering::Relaxed);
        wrong
    });
    assert!(wrong.is_empty(), "under load:\n{}", wrong.join("\n"));
    let after = resident_kib(pid);
    assert!(after < before + (16 << 10), "grew from {before} to {after} KiB");
    assert!(!engine.log().contains("panicked"), "{}", engine.log());
}

#[test]
fn broken_http_is_refused_and_bounded() {
    let engine = Engine::start();
    let host = "Host: d\r\n";
    let create = format!("POST /containers/create HTTP/1.1\r\n{host}Content-Type: application/json\r\n");
    let ping = format!("GET /_ping HTTP/1.1\r\n{host}");
    let many: String = (0..100_000).map(|n| format!("X-{n}: y\r\n")).collect();
    let large = 17 << 20;
    let rows: Vec<(&str, String, u16, &str)> = vec![
        (
            "no host",
            "GET /_ping HTTP/1.1\r\n\r\n".into(),
            400,
            "400 Bad Request: missing required Host header",
        ),
        ("two hosts", format!("{ping}{host}\r\n"), 400, "400 Bad Request"),
        (
            "bad host",
            "GET /_ping HTTP/1.1\r\nHost: a b\r\n\r\n".into(),
            400,
            "400 Bad Request: malformed Host header",
        ),
        ("HTTP/1.0", "GET /_ping HTTP/1.0\r\n\r\n".into(), 200, "OK"),
        ("line feeds only", "GET /_ping HTTP/1.1\nHost: d\nConnection: close\n\n".into(), 200, "OK"),
        ("garbage", "hello\r\n\r\n".into(), 400, ""),
        (
            "two kinds of length",
            format!("{create}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"),
            400,
            "config cannot be empty in order to create a container",
        ),
        ("two lengths", format!("{create}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"), 400, ""),
        ("negative length", format!("{create}Content-Length: -2\r\n\r\n{{}}"), 400, ""),
        ("a length beyond numbers", format!("{create}Content-Length: {}\r\n\r\n", "9".repeat(30)), 400, ""),
        (
            "bad chunk",
            format!("{create}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n"),
            400,
            "invalid JSON: invalid byte in chunk length",
        ),
        ("cut body", format!("{create}Content-Length: 20\r\n\r\n{{"), 400, "invalid JSON: unexpected EOF"),
        ("a header of 2 MiB", format!("{ping}X: {}\r\n\r\n", "a".repeat(2 << 20)), 431, ""),
        ("100000 headers", format!("{ping}{many}\r\n"), 431, ""),
        (
            "a body of 17 MiB",
            format!("{create}Content-Length: {large}\r\n\r\n{}", " ".repeat(large)),
            413,
            "request body too large",
        ),
    ];
    for (what, bytes, status, text) in rows {
        let half = what == "cut body";
        let answer = http::parse(&http::exchange(&engine.socket(), bytes.as_bytes(), half));
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        let found = message(&answer);
        assert_eq!(found, text, "{what}");
    }
    // Readers that never read take nothing from anybody else.
    let stuck: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = std::os::unix::net::UnixStream::connect(engine.socket()).expect("connect");
            let request = b"GET /events?since=1 HTTP/1.1\r\nHost: d\r\n\r\n";
            std::io::Write::write_all(&mut stream, request).expect("send");
            stream
        })
        .collect();
    let before = resident_kib(engine.pid());
    for n in 0..500 {
        let body = format!(r#"{{"Name":"v{n}","Labels":{{"l":"{}"}}}}"#, "x".repeat(2000));
        let json = [("Content-Type", "application/json")];
        let made = http::request(&engine.socket(), "POST", "/volumes/create", &json, Some(body.as_bytes()));
        assert_eq!(made.status, 201, "{made:?}");
    }
    assert!(resident_kib(engine.pid()) < before + (32 << 10), "stuck readers are kept in memory");
    drop(stuck);
    wait_for("the readers to be gone", || {
        engine.docker(&["info", "--format", "{{.NEventsListener}}"]).ok() == "0"
    });
    engine.docker(&["volume", "prune", "-af"]).ok();
}
