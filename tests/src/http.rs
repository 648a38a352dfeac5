//! Requests as no client library would send them: over the socket, byte for byte.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::PATIENCE;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status; 0 if there was no status line.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body; of chunks, what they hold.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|err| panic!("{err}: {}", self.text()))
    }

    /// A header's value; empty without one.
    pub fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
    }
}

/// Sends one request and reads the answer to its end.
pub fn request(
    socket: &Path,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Answer {
    let mut bytes =
        format!("{method} {target} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend(format!("{name}: {value}\r\n").bytes());
    }
    if let Some(body) = body {
        bytes.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body.unwrap_or_default());
    parse(&exchange(socket, &bytes, false))
}

/// Sends one request with a body that is framed already, and reads the answer to its end.
pub fn request_framed(
    socket: &Path,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    framed: &[u8],
) -> Answer {
    let mut bytes =
        format!("{method} {target} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend(format!("{name}: {value}\r\n").bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(framed);
    parse(&exchange(socket, &bytes, false))
}

/// Sends bytes and reads until the engine closes the connection or is silent for long. With `half`, the sending side is closed first.
pub fn exchange(socket: &Path, bytes: &[u8], half: bool) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).expect("the engine listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let mut writer = stream.try_clone().expect("a second handle");
    let mut answer = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // An engine that refuses does not read to the end.
            let _ = writer.write_all(bytes);
            if half {
                let _ = writer.shutdown(Shutdown::Write);
            }
        });
        let mut buffer = [0; 1 << 16];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..count]);
        }
        let _ = stream.shutdown(Shutdown::Both);
    });
    answer
}

/// Takes an answer apart. That the body may be sent is none.
pub fn parse(bytes: &[u8]) -> Answer {
    let bytes = bytes.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let body = bytes[end..].to_vec();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Answer { status, head, body: if chunked { unchunked(&body) } else { body } }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size =
            std::str::from_utf8(&bytes[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let (Some(size @ 1..), rest) = (size, &bytes[end + 2..]) else { break };
        whole.extend_from_slice(&rest[..size.min(rest.len())]);
        bytes = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}
