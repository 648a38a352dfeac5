//! Removes what a test run left behind once the run is gone: it speaks the protocol that Testcontainers expects of its reaper.
//!
//! A client connects to port 8080 and sends lines of label filters (`label=a%3Db&label=c`), each answered by `ACK`. When the last client
//! has been gone for RYUK_RECONNECTION_TIMEOUT, everything with those labels is removed over the mounted engine socket.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::{Value, json};

enum Event {
    Connected,
    Filter(String),
    Gone,
}

fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("0.0.0.0:8080")?;
    println!("the reaper has Started!");
    let (events, inbox) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let events = events.clone();
            std::thread::spawn(move || {
                let _ = events.send(Event::Connected);
                let Ok(mut answers) = stream.try_clone() else { return };
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = events.send(Event::Filter(line.trim().to_owned()));
                    if answers.write_all(b"ACK\n").is_err() {
                        break;
                    }
                }
                let _ = events.send(Event::Gone);
            });
        }
    });
    let mut filters = BTreeSet::new();
    let mut clients = 0;
    let mut patience = seconds("RYUK_CONNECTION_TIMEOUT", 60);
    loop {
        // While a client is there, nothing is late.
        let event = if clients > 0 {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(patience)
        };
        match event {
            Ok(Event::Connected) => clients += 1,
            Ok(Event::Filter(filter)) => {
                filters.insert(filter);
            }
            Ok(Event::Gone) => {
                clients -= 1;
                patience = seconds("RYUK_RECONNECTION_TIMEOUT", 10);
            }
            Err(_) => break,
        }
    }
    for filter in &filters {
        reap(filter)?;
    }
    Ok(())
}

/// A time from the environment, as `10` or `10s`.
fn seconds(name: &str, otherwise: u64) -> Duration {
    let text = std::env::var(name).unwrap_or_default();
    Duration::from_secs(text.trim_end_matches('s').parse().unwrap_or(otherwise))
}

fn reap(filter: &str) -> Result<(), Box<dyn Error>> {
    let labels: Vec<String> =
        filter.split('&').filter_map(|part| part.strip_prefix("label=")).map(decoded).collect();
    if labels.is_empty() {
        return Ok(());
    }
    let query = encoded(&json!({ "label": labels }).to_string());
    for item in list(&call("GET", &format!("/containers/json?all=1&filters={query}"))?) {
        if text(&item["Labels"]["org.testcontainers.ryuk"]) == "true" {
            continue;
        }
        println!("removing container {}", text(&item["Id"]));
        call("DELETE", &format!("/containers/{}?force=1&v=1", text(&item["Id"])))?;
    }
    for item in list(&call("GET", &format!("/networks?filters={query}"))?) {
        call("DELETE", &format!("/networks/{}", text(&item["Id"])))?;
    }
    for item in list(&call("GET", &format!("/volumes?filters={query}"))?["Volumes"]) {
        call("DELETE", &format!("/volumes/{}", text(&item["Name"])))?;
    }
    for item in list(&call("GET", &format!("/images/json?filters={query}"))?) {
        call("DELETE", &format!("/images/{}", text(&item["Id"])))?;
    }
    Ok(())
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// One request to the engine; the JSON of the answer, null if it has none.
fn call(method: &str, path: &str) -> Result<Value, Box<dyn Error>> {
    let mut stream = UnixStream::connect("/var/run/docker.sock")?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok(serde_json::from_str(body).unwrap_or(Value::Null))
}

/// Every byte that is no letter or digit as `%XX`.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") }
            },
        )
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digits =
            if byte == b'%' { rest.clone().take(2).map(char::from).collect() } else { String::new() };
        match u8::from_str_radix(&digits, 16) {
            Ok(value) if digits.len() == 2 => {
                bytes.push(value);
                rest.nth(1);
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
