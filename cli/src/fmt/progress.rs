//! The progress of pull, push and load: one line a layer, redrawn in place on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::units;

/// Shows a stream of Docker's progress records until its end.
///
/// # Errors
/// The text of an error record, or of a broken connection.
pub async fn show(mut body: Incoming, quiet: bool) -> Result<Vec<Value>, String> {
    let mut screen = Screen { lines: HashMap::new(), order: 0, terminal: std::io::stdout().is_terminal() };
    let mut buffer = BytesMut::new();
    let mut aux = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|err| err.to_string())?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            let Ok(record) = serde_json::from_slice::<Value>(&line) else { continue };
            if let Some(error) = record["errorDetail"]["message"].as_str().or(record["error"].as_str()) {
                return Err(error.to_owned());
            }
            if !record["aux"].is_null() {
                aux.push(record["aux"].clone());
                continue;
            }
            if !quiet {
                screen.show(&record).map_err(|err| err.to_string())?;
            }
        }
    }
    Ok(aux)
}

struct Screen {
    lines: HashMap<String, usize>,
    order: usize,
    terminal: bool,
}

impl Screen {
    fn show(&mut self, record: &Value) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if let Some(text) = record["stream"].as_str() {
            return write!(out, "{text}");
        }
        let status = record["status"].as_str().unwrap_or_default();
        let id = record["id"].as_str().unwrap_or_default();
        let detail = &record["progressDetail"];
        let moving = detail["current"].as_i64().is_some_and(|current| current > 0)
            || detail["total"].as_i64().is_some();
        if id.is_empty() {
            return writeln!(out, "{status}");
        }
        if !self.terminal {
            return if moving { Ok(()) } else { writeln!(out, "{id}: {status}") };
        }
        let next = self.order;
        let at = *self.lines.entry(id.to_owned()).or_insert(next);
        if at == next {
            self.order += 1;
            writeln!(out)?;
        }
        let up = self.order - at;
        write!(out, "\x1b[{up}A\x1b[2K\r{id}: {status} {}\r\x1b[{up}B", bar(detail))?;
        out.flush()
    }
}

fn bar(detail: &Value) -> String {
    let current = detail["current"].as_f64().unwrap_or(0.0);
    let total = detail["total"].as_f64().unwrap_or(0.0);
    if current <= 0.0 && total <= 0.0 {
        return String::new();
    }
    let shown = units::size4(current);
    if total <= 0.0 {
        return format!("{shown:>8}");
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of 50")]
    let filled = ((current / total * 50.0) as usize).min(50);
    let (done, rest) = ("=".repeat(filled), " ".repeat(50 - filled));
    format!("[{done}>{rest}] {shown:>8}/{}", units::size4(total))
}
