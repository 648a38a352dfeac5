//! One record of a container's log, as it lies in a file: Docker's JSON lines and the local driver's messages.
//!
//! Invariant: nothing here panics or allocates without bound on a damaged file; what cannot be read is `None` and the reader goes on.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

/// Which output of the process a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard output, and a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Source {
    /// The name in files and JSON records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    fn named(name: &[u8]) -> Option<Self> {
        match name {
            b"stdout" => Some(Self::Stdout),
            b"stderr" => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// A moment as logs show it: always `2006-01-02T03:04:05.000000000Z`, so that moments compare as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp([u8; 30]);

impl Stamp {
    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A time's text. Years outside 0..=9999 are cut to the nearest one inside.
    pub fn of(at: jiff::Timestamp) -> Self {
        let text = format!("{:.9}", at);
        let mut stamp = *b"0000-00-00T00:00:00.000000000Z";
        if text.len() == 30 {
            stamp.copy_from_slice(text.as_bytes());
        } else if at.as_second() > 0 {
            stamp = *b"9999-12-31T23:59:59.999999999Z";
        }
        Self(stamp)
    }

    /// Reads what Go's `RFC3339Nano` printed in UTC: nine digits of a fraction or fewer, with the zeros at its end left out.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut stamp = *b"0000-00-00T00:00:00.000000000Z";
        let (&last, body) = text.split_last()?;
        if last != b'Z' || body.len() < 19 || body.len() > 29 {
            return None;
        }
        if body.len() > 19 && body[19] != b'.' {
            return None;
        }
        stamp[..body.len()].copy_from_slice(body);
        Some(Self(stamp))
    }
}

/// A record taken apart. The text is still escaped in [`Text::Json`].
#[derive(Clone)]
pub struct Record<'a> {
    /// Where it came from.
    pub source: Source,
    /// When the shim read it.
    pub stamp: Stamp,
    /// What was written.
    pub text: Text<'a>,
    /// The log's own labels and variables, as sorted names and values.
    pub attrs: Vec<(String, String)>,
}

/// What a process wrote, in the form the file has it.
#[derive(Clone, Copy)]
pub enum Text<'a> {
    /// Between the quotes of a JSON string.
    Json(&'a [u8]),
    /// Plain bytes, and whether a newline follows them.
    Plain(&'a [u8], bool),
}

impl Text<'_> {
    /// Appends the bytes the process wrote.
    pub fn append_to(self, out: &mut Vec<u8>) {
        match self {
            Self::Json(text) => unescape(text, out),
            Self::Plain(bytes, newline) => {
                out.extend_from_slice(bytes);
                if newline {
                    out.push(b'\n');
                }
            }
        }
    }
}

/// Reads a json-file line (without its newline).
pub fn parse_json(line: &[u8], with_attrs: bool) -> Option<Record<'_>> {
    fast(line, with_attrs).or_else(|| slow(line, with_attrs))
}

/// The form that Docker and the shim write: `{"log":…,"stream":…,["attrs":{…},]"time":…}`.
fn fast(line: &[u8], with_attrs: bool) -> Option<Record<'_>> {
    let rest = line.strip_prefix(b"{\"log\":\"")?;
    let end = string_end(rest)?;
    let (text, rest) = (&rest[..end], &rest[end + 1..]);
    let rest = rest.strip_prefix(b",\"stream\":\"")?;
    let end = memchr(b'"', rest)?;
    let source = Source::named(&rest[..end])?;
    let mut rest = rest[end + 1..].strip_prefix(b",")?;
    let mut attrs = Vec::new();
    if let Some(after) = rest.strip_prefix(b"\"attrs\":") {
        let end = object_end(after)?;
        if with_attrs {
            attrs = read_attrs(&after[..end])?;
        }
        rest = after[end..].strip_prefix(b",")?;
    }
    let rest = rest.strip_prefix(b"\"time\":\"")?;
    let end = memchr(b'"', rest)?;
    let stamp = Stamp::parse(&rest[..end])?;
    (&rest[end + 1..] == b"}").then_some(Record { source, stamp, text: Text::Json(text), attrs })
}

/// Any other order or spacing, as other writers may have left it. The text must be free of escapes to be borrowed; it nearly always has
/// one (the newline), so it is found again in the line.
fn slow(line: &[u8], with_attrs: bool) -> Option<Record<'_>> {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        #[serde(borrow)]
        log: &'a serde_json::value::RawValue,
        #[serde(borrow, default)]
        stream: Cow<'a, str>,
        #[serde(borrow)]
        time: Cow<'a, str>,
        #[serde(borrow, default)]
        attrs: Option<&'a serde_json::value::RawValue>,
    }
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    let text = line.log.get().as_bytes().strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let attrs = match line.attrs {
        Some(attrs) if with_attrs => read_attrs(attrs.get().as_bytes()).unwrap_or_default(),
        _ => Vec::new(),
    };
    let at: jiff::Timestamp = line.time.parse().ok()?;
    let source = Source::named(line.stream.as_bytes()).unwrap_or(Source::Stdout);
    Some(Record { source, stamp: Stamp::of(at), text: Text::Json(text), attrs })
}

fn read_attrs(object: &[u8]) -> Option<Vec<(String, String)>> {
    let attrs: std::collections::BTreeMap<String, String> = serde_json::from_slice(object).ok()?;
    Some(attrs.into_iter().collect())
}

/// Where the string that `text` begins inside of ends.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let found = at + memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[found] == b'"' {
            return Some(found);
        }
        at = found + 2;
    }
}

/// One past the brace that closes the object `text` begins with.
fn object_end(text: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b'"' => at += 1 + string_end(text.get(at + 1..)?)?,
            _ => {}
        }
        at += 1;
    }
}

/// Appends the bytes a JSON string stands for. Bad escapes become U+FFFD, as in Go.
fn unescape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let Some(&escape) = rest.get(at + 1) else { return };
        rest = &rest[at + 2..];
        match escape {
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'u' => {
                let (c, used) = unicode(rest);
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[used..];
            }
            other => out.push(other),
        }
    }
    out.extend_from_slice(rest);
}

/// The character of `\u`'s digits (and of a second `\u` for a surrogate pair), and how many bytes they take.
fn unicode(text: &[u8]) -> (char, usize) {
    let hex = |text: &[u8]| {
        let digits = std::str::from_utf8(text.get(..4)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    let Some(first) = hex(text) else { return (char::REPLACEMENT_CHARACTER, text.len().min(4)) };
    if let Some(c) = char::from_u32(first) {
        return (c, 4);
    }
    let second = text.get(4..).and_then(|rest| rest.strip_prefix(b"\\u")).and_then(hex);
    match second {
        Some(low @ 0xdc00..=0xdfff) if (0xd800..0xdc00).contains(&first) => {
            let joined = 0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00);
            (char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER), 10)
        }
        _ => (char::REPLACEMENT_CHARACTER, 4),
    }
}

/// A message of the local driver, protobuf `LogEntry`, with all it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where it came from.
    pub source: Source,
    /// When the shim read it, in nanoseconds since 1970.
    pub nanos: i64,
    /// What was written, without the newline.
    pub line: &'a [u8],
    /// Its place in a line that is in several pieces or has no end.
    pub part: Option<Part<'a>>,
    /// Its number in the log, which the shim adds where dockerd-rs asks for it; 0 for none.
    pub sequence: u64,
}

/// The place of a piece in its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// The same for all pieces of a line.
    pub id: &'a str,
    /// From 1.
    pub ordinal: u64,
    /// Whether the line ends here.
    pub last: bool,
}

/// Reads a message of the local driver.
pub fn parse_entry(message: &[u8]) -> Option<Entry<'_>> {
    let mut fields = Fields(message);
    let mut entry = Entry { source: Source::Stdout, nanos: 0, line: &message[..0], part: None, sequence: 0 };
    while let Some(field) = fields.next() {
        match field? {
            (1, Field::Bytes(name)) => entry.source = Source::named(name)?,
            (2, Field::Number(value)) => entry.nanos = value.cast_signed(),
            (3, Field::Bytes(bytes)) => entry.line = bytes,
            (5, Field::Bytes(metadata)) => {
                let mut part = Part { id: "", ordinal: 0, last: false };
                let mut fields = Fields(metadata);
                while let Some(field) = fields.next() {
                    match field? {
                        (1, Field::Number(value)) => part.last = value != 0,
                        (2, Field::Bytes(id)) => part.id = std::str::from_utf8(id).ok()?,
                        (3, Field::Number(value)) => part.ordinal = value,
                        _ => {}
                    }
                }
                entry.part = Some(part);
            }
            (15, Field::Number(value)) => entry.sequence = value,
            _ => {}
        }
    }
    Some(entry)
}

/// Reads a message of the local driver for a client.
pub fn parse_local(message: &[u8]) -> Option<Record<'_>> {
    let entry = parse_entry(message)?;
    let at = jiff::Timestamp::from_nanosecond(i128::from(entry.nanos)).ok()?;
    let newline = entry.part.is_none_or(|part| part.last);
    Some(Record {
        source: entry.source,
        stamp: Stamp::of(at),
        text: Text::Plain(entry.line, newline),
        attrs: Vec::new(),
    })
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message, in order; one `None` inside for damage, and then the end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Option<Option<(u64, Field<'a>)>> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }

    fn read(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((key >> 3, field))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(record: &Record<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        record.text.append_to(&mut out);
        out
    }

    #[test]
    fn a_line_of_dockers_is_read() {
        let line = br#"{"log":"a\"\u003c\ud83d\ude00\n","stream":"stderr","attrs":{"b":"2}","a":"1"},"time":"2026-01-02T03:04:05.12Z"}"#;
        for record in [fast(line, true).unwrap(), slow(line, true).unwrap()] {
            assert_eq!(text(&record), "a\"<😀\n".as_bytes());
            assert_eq!(record.source, Source::Stderr);
            assert_eq!(record.stamp.as_bytes(), b"2026-01-02T03:04:05.120000000Z");
            assert_eq!(record.attrs, [("a".into(), "1".into()), ("b".into(), "2}".into())]);
        }
    }

    #[test]
    fn another_order_is_read_too() {
        let line = br#"{ "time": "2026-01-02T03:04:05Z", "stream": "stdout", "log": "x" }"#;
        let record = parse_json(line, false).unwrap();
        assert_eq!((text(&record), record.source), (b"x".to_vec(), Source::Stdout));
    }

    proptest! {
        #[test]
        fn what_was_written_comes_back(written in ".{0,200}", nanos in 0_i128..4_000_000_000_000_000_000) {
            let at = jiff::Timestamp::from_nanosecond(nanos).unwrap();
            let line = format!(
                "{{\"log\":{},\"stream\":\"stdout\",\"time\":\"{at}\"}}",
                serde_json::to_string(&written).unwrap()
            );
            let record = fast(line.as_bytes(), true).expect("the fast form");
            prop_assert_eq!(text(&record), written.as_bytes());
            prop_assert!(record.stamp == Stamp::of(at));
        }

        #[test]
        fn damage_is_refused_and_never_panics(line in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200) {
            let _ = parse_json(&line, true);
            let _ = parse_local(&line);
            let whole = br#"{"log":"a\u00e9\n","stream":"stdout","attrs":{"a":"1"},"time":"2026-01-02T03:04:05.1Z"}"#;
            prop_assert!(parse_json(&whole[..cut.min(whole.len() - 1)], true).is_none());
        }
    }
}
