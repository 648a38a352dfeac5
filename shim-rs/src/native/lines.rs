//! Output cut into log lines and encoded: Docker's json-file and local formats.

use std::collections::BTreeMap;

use crate::clock::Instant;

/// The longest piece of a line that is logged at once.
pub const PIECE_MAX: usize = 16 << 10;

/// Which of a process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and everything a terminal shows.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Its name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    /// Its number in Docker's frames.
    pub fn number(self) -> u8 {
        match self {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        }
    }
}

/// A line, or a part of one that is too long or has no end.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Without the newline.
    pub bytes: &'a [u8],
    /// Whether a newline followed.
    pub ends_line: bool,
    /// Its place in the line, from 1, if the line is in several pieces or has no end.
    pub part: Option<Part>,
}

/// The place of a piece in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The same for all pieces of a line, different for different lines of a stream.
    pub line: u64,
    /// From 1.
    pub ordinal: u32,
}

/// Cuts one stream into pieces.
#[derive(Debug, Default)]
pub struct Pieces {
    held: Vec<u8>,
    /// Pieces of the current line that are out already.
    parts: u32,
    split_lines: u64,
}

impl Pieces {
    /// Takes bytes and emits every piece that is complete with them.
    pub fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(Piece<'_>)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = PIECE_MAX - self.held.len();
            let window = &rest[..room.min(rest.len())];
            match memchr::memchr(b'\n', window) {
                Some(end) => {
                    self.emit(&rest[..end], true, &mut emit);
                    rest = &rest[end + 1..];
                }
                // Full: out with it, without waiting whether the newline is next. So does Docker.
                None if window.len() == room => {
                    self.emit(window, false, &mut emit);
                    rest = &rest[room..];
                }
                None => {
                    self.held.extend_from_slice(window);
                    return;
                }
            }
        }
    }

    /// The stream has ended: what is held is the last piece.
    pub fn finish(&mut self, mut emit: impl FnMut(Piece<'_>)) {
        if !self.held.is_empty() {
            self.emit(&[], false, &mut emit);
        }
        self.held = Vec::new();
    }

    fn emit(&mut self, bytes: &[u8], ends_line: bool, emit: &mut impl FnMut(Piece<'_>)) {
        if !ends_line && self.parts == 0 {
            self.split_lines += 1;
        }
        let part = (!ends_line || self.parts > 0)
            .then_some(Part { line: self.split_lines, ordinal: self.parts + 1 });
        self.parts = if ends_line { 0 } else { self.parts + 1 };
        if self.held.is_empty() {
            return emit(Piece { bytes, ends_line, part });
        }
        self.held.extend_from_slice(bytes);
        emit(Piece { bytes: &self.held, ends_line, part });
        self.held.clear();
        // A rare long line should not cost memory for ever.
        if self.held.capacity() > 4096 && ends_line {
            self.held = Vec::new();
        }
    }
}

/// Encodes pieces of one log.
pub enum Encoder {
    /// One JSON object a line.
    Json(Json),
    /// Docker's binary records.
    Local(Local),
}

/// State of the JSON format.
pub struct Json {
    /// What stands between text and time, for each stream.
    middles: [Vec<u8>; 2],
    /// The same with the current time and the end of the line.
    tails: [Vec<u8>; 2],
}

/// State of the local format.
pub struct Local {
    now: Instant,
    /// Makes the ids of split lines unique.
    token: u64,
    /// The number of the next record.
    sequence: Option<u64>,
}

impl Encoder {
    /// The json-file format with these attributes on each line.
    pub fn json(attrs: &BTreeMap<String, String>) -> Encoder {
        let mut text = Vec::new();
        if !attrs.is_empty() {
            text.extend_from_slice(b",\"attrs\":{");
            for (index, (key, value)) in attrs.iter().enumerate() {
                text.extend_from_slice(if index == 0 { b"\"" } else { b",\"" });
                escape(&mut text, key.as_bytes());
                text.extend_from_slice(b"\":\"");
                escape(&mut text, value.as_bytes());
                text.push(b'"');
            }
            text.push(b'}');
        }
        let middle = |stream: Stream| {
            [b"\",\"stream\":\"", stream.name().as_bytes(), b"\"", &text, b",\"time\":\""].concat()
        };
        let middles = [middle(Stream::Stdout), middle(Stream::Stderr)];
        Encoder::Json(Json { middles, tails: [Vec::new(), Vec::new()] })
    }

    /// The local format; the records are numbered from `sequence` on.
    pub fn local(sequence: Option<u64>) -> Encoder {
        let now = Instant::now();
        Encoder::Local(Local { now, token: now.unix_nanos() as u64, sequence })
    }

    /// The time of the pieces that follow.
    pub fn set_time(&mut self, now: Instant) {
        match self {
            Encoder::Json(json) => {
                let stamp = now.rfc3339();
                for (tail, middle) in json.tails.iter_mut().zip(&json.middles) {
                    tail.clear();
                    tail.extend_from_slice(middle);
                    tail.extend_from_slice(stamp.as_bytes());
                    tail.extend_from_slice(b"\"}\n");
                }
            }
            Encoder::Local(local) => local.now = now,
        }
    }

    /// Appends one piece.
    pub fn encode(&mut self, out: &mut Vec<u8>, stream: Stream, piece: Piece<'_>) {
        match self {
            Encoder::Json(json) => {
                out.extend_from_slice(b"{\"log\":\"");
                escape(out, piece.bytes);
                if piece.ends_line {
                    out.extend_from_slice(b"\\n");
                }
                out.extend_from_slice(&json.tails[usize::from(stream == Stream::Stderr)]);
            }
            Encoder::Local(local) => local.encode(out, stream, piece),
        }
    }

    /// The last `count` records were not written: their numbers are given to others, so that a gap means a record somebody removed.
    pub fn take_back(&mut self, count: u64) {
        if let Encoder::Local(Local { sequence: Some(next), .. }) = self {
            *next = next.saturating_sub(count);
        }
    }

    /// How much of `out` is whole entries within the first `written` bytes, and how many entries there are after that.
    pub fn whole_entries(&self, out: &[u8], written: usize) -> (usize, u64) {
        match self {
            Encoder::Json(_) => {
                let whole = memchr::memrchr(b'\n', &out[..written]).map_or(0, |at| at + 1);
                (whole, memchr::memchr_iter(b'\n', &out[whole..]).count() as u64)
            }
            Encoder::Local(_) => {
                let (mut at, mut whole, mut dropped) = (0, 0, 0);
                while let Some(length) = out.get(at..at + 4) {
                    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
                    at += length + 8;
                    if at <= written { whole = at } else { dropped += 1 }
                }
                (whole, dropped)
            }
        }
    }
}

impl Local {
    fn encode(&mut self, out: &mut Vec<u8>, stream: Stream, piece: Piece<'_>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        field(out, 1, stream.name().as_bytes());
        out.push(2 << 3);
        varint(out, self.now.unix_nanos() as u64);
        field(out, 3, piece.bytes);
        if let Some(part) = piece.part {
            out.extend_from_slice(&[4 << 3, 1]);
            let mut metadata = Vec::with_capacity(48);
            if piece.ends_line {
                metadata.extend_from_slice(&[1 << 3, 1]);
            }
            let stream = u64::from(stream.number());
            field(&mut metadata, 2, format!("{:016x}{stream:x}{:015x}", self.token, part.line).as_bytes());
            metadata.push(3 << 3);
            varint(&mut metadata, u64::from(part.ordinal));
            field(out, 5, &metadata);
        }
        if let Some(sequence) = &mut self.sequence {
            out.push(15 << 3);
            varint(out, *sequence);
            *sequence += 1;
        }
        let length = ((out.len() - start - 4) as u32).to_be_bytes();
        out[start..start + 4].copy_from_slice(&length);
        out.extend_from_slice(&length);
    }
}

/// A length-delimited protobuf field; an empty one is left out.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(number << 3 | 2);
        varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `bytes` as the inside of a JSON string, escaped exactly as Docker's encoder does; invalid UTF-8 becomes `\ufffd`, a byte at a time.
pub fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let plain = plain_prefix(rest);
        out.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        let Some(&byte) = rest.first() else { return };
        let mut taken = 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            0..0x80 => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&digits);
            }
            _ => match character(rest) {
                // U+2028 and U+2029 end a line in JavaScript.
                Some([0xe2, 0x80, last @ (0xa8 | 0xa9)]) => {
                    out.extend_from_slice(if *last == 0xa8 { b"\\u2028" } else { b"\\u2029" });
                    taken = 3;
                }
                Some(valid) => {
                    out.extend_from_slice(valid);
                    taken = valid.len();
                }
                None => out.extend_from_slice(b"\\ufffd"),
            },
        }
        rest = &rest[taken..];
    }
}

/// The first character, if it is valid UTF-8 and not ASCII.
fn character(bytes: &[u8]) -> Option<&[u8]> {
    let width = match bytes.first()? {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let bytes = bytes.get(..width)?;
    std::str::from_utf8(bytes).is_ok().then_some(bytes)
}

/// How many bytes at the beginning stand for themselves. Eight at a time in a register: this is where a log's time goes, and the shim is built for size.
fn plain_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // The high bit of each byte that is zero; above the first such byte there may be others by mistake.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        // `"` and `&`, and `<` and `>`, differ in one bit.
        let quote = zero((word | (ONES * 4)) ^ (ONES * 0x26));
        let angle = zero((word | (ONES * 2)) ^ (ONES * 0x3e));
        let backslash = zero(word ^ (ONES * 0x5c));
        let found = (control | word | quote | angle | backslash) & HIGH;
        if found != 0 {
            return index * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let done = bytes.len() - rest.len();
    rest.iter().position(|byte| SPECIAL[usize::from(*byte)]).map_or(bytes.len(), |more| done + more)
}

const fn is_special(byte: u8) -> bool {
    (byte < 0x20)
        | (byte >= 0x80)
        | (byte == b'"')
        | (byte == b'\\')
        | (byte == b'<')
        | (byte == b'>')
        | (byte == b'&')
}

static SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_special(byte as u8);
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        escape(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escapes_as_docker_does() {
        for (bytes, text) in [
            (&b"plain text, long enough for a whole step"[..], "plain text, long enough for a whole step"),
            (b"a\"b\\c", r#"a\"b\\c"#),
            (b"<a href='x'>&", r"\u003ca href='x'\u003e\u0026"),
            (b"\t\x00\x1b[1m\r\x7f", "\\u0009\\u0000\\u001b[1m\\r\x7f"),
            ("é\u{2028}\u{2029}\u{202a}🦀".as_bytes(), "é\\u2028\\u2029\u{202a}🦀"),
            (b"\xff\xc3", r"\ufffd\ufffd"),
            (b"\xe2\x28\xa1", r"\ufffd(\ufffd"),
            (b"\xed\xa0\x80", r"\ufffd\ufffd\ufffd"),
        ] {
            assert_eq!(escaped(bytes), text);
        }
    }

    #[test]
    fn every_byte_is_told_apart_at_every_place() {
        for byte in 0..=255u8 {
            for at in 0..20 {
                for around in [b'a', b' ', 0x7f, b'!', b'=', b']', b'~'] {
                    let mut bytes = [around; 20];
                    bytes[at] = byte;
                    let expected = if is_special(byte) { at } else { 20 };
                    assert_eq!(plain_prefix(&bytes), expected, "{byte:#x} at {at} in {around:#x}");
                }
            }
        }
    }

    fn pieces(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool, Option<u32>)> {
        let mut pieces = Pieces::default();
        let mut found = Vec::new();
        let mut keep = |piece: Piece<'_>| {
            found.push((piece.bytes.to_vec(), piece.ends_line, piece.part.map(|part| part.ordinal)));
        };
        for chunk in chunks {
            pieces.feed(chunk, &mut keep);
        }
        pieces.finish(&mut keep);
        found
    }

    #[test]
    fn lines_are_cut_at_newlines_and_at_sixteen_kibibytes() {
        let long = vec![b'x'; PIECE_MAX];
        let line = |text: &[u8]| (text.to_vec(), true, None);
        assert_eq!(pieces(&[b"a\nb", b"c\n", b"\n"]), [line(b"a"), line(b"bc"), line(b"")]);
        assert_eq!(pieces(&[b"no end"]), [(b"no end".to_vec(), false, Some(1))]);
        assert_eq!(pieces(&[]), []);
        // Exactly full: the newline comes as a piece of its own, as in Docker.
        assert_eq!(pieces(&[&long, b"\n"]), [(long.clone(), false, Some(1)), (Vec::new(), true, Some(2))]);
        let mut longer = long.clone();
        longer.extend_from_slice(b"yz\nnext\n");
        let expected = [(long.clone(), false, Some(1)), (b"yz".to_vec(), true, Some(2)), line(b"next")];
        assert_eq!(pieces(&[&longer]), expected);
    }

    proptest! {
        #[test]
        fn a_json_line_reads_back_as_what_was_written(bytes in proptest::collection::vec(any::<u8>(), 0..400), seed in 0usize..64) {
            // Cut anywhere: the chunks a pipe delivers mean nothing.
            let cut = seed.min(bytes.len());
            let mut encoder = Encoder::json(&BTreeMap::from([("k<".to_owned(), "v\"".to_owned())]));
            encoder.set_time(Instant { seconds: 1_767_323_045, nanos: 5 });
            let mut pieces = Pieces::default();
            let mut out = Vec::new();
            pieces.feed(&bytes[..cut], |piece| encoder.encode(&mut out, Stream::Stderr, piece));
            pieces.feed(&bytes[cut..], |piece| encoder.encode(&mut out, Stream::Stderr, piece));
            pieces.finish(|piece| encoder.encode(&mut out, Stream::Stderr, piece));
            let mut read = String::new();
            for line in out.split_inclusive(|byte| *byte == b'\n') {
                let value: serde_json::Value = serde_json::from_slice(line).unwrap();
                read.push_str(value["log"].as_str().unwrap());
                assert_eq!(value["stream"], "stderr");
                assert_eq!(value["attrs"]["k<"], "v\"");
                assert_eq!(value["time"], "2026-01-02T03:04:05.000000005Z");
            }
            let mut expected = String::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match std::str::from_utf8(&rest[..1]) {
                    Ok(text) => { expected.push_str(text); rest = &rest[1..]; }
                    Err(_) => match character(rest) {
                        Some(valid) => { expected.push_str(std::str::from_utf8(valid).unwrap()); rest = &rest[valid.len()..]; }
                        None => { expected.push('\u{fffd}'); rest = &rest[1..]; }
                    }
                }
            }
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn valid_text_survives(text in "\\PC{0,200}") {
            let quoted = format!("\"{}\"", escaped(text.as_bytes()));
            prop_assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
        }

        #[test]
        fn pieces_join_to_the_input(chunks in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..20000), 0..6)) {
            let mut joined = Vec::new();
            for (bytes, ends_line, _) in pieces(&chunks.iter().map(Vec::as_slice).collect::<Vec<_>>()) {
                prop_assert!(bytes.len() <= PIECE_MAX);
                joined.extend_from_slice(&bytes);
                if ends_line { joined.push(b'\n') }
            }
            prop_assert_eq!(joined, chunks.concat());
        }
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct LogEntry {
        #[prost(string, tag = "1")]
        source: String,
        #[prost(int64, tag = "2")]
        time_nano: i64,
        #[prost(bytes = "vec", tag = "3")]
        line: Vec<u8>,
        #[prost(bool, tag = "4")]
        partial: bool,
        #[prost(message, optional, tag = "5")]
        metadata: Option<PartialMetadata>,
        #[prost(uint64, tag = "15")]
        sequence: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct PartialMetadata {
        #[prost(bool, tag = "1")]
        last: bool,
        #[prost(string, tag = "2")]
        id: String,
        #[prost(int32, tag = "3")]
        ordinal: i32,
    }

    #[test]
    fn local_records_are_docker_s_protobuf_between_two_lengths() {
        let mut encoder = Encoder::local(None);
        encoder.set_time(Instant { seconds: 1, nanos: 2 });
        let mut out = Vec::new();
        let mut long = vec![b'x'; PIECE_MAX];
        long.extend_from_slice(b"y\nshort\n");
        Pieces::default().feed(&long, |piece| encoder.encode(&mut out, Stream::Stdout, piece));
        let mut entries = Vec::new();
        let mut rest = &out[..];
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            assert_eq!(rest[..4], rest[4 + length..8 + length]);
            entries.push(<LogEntry as prost::Message>::decode(&rest[4..4 + length]).unwrap());
            rest = &rest[8 + length..];
        }
        let metadata: Vec<_> = entries
            .iter()
            .map(|entry| entry.metadata.as_ref().map(|part| (part.ordinal, part.last)))
            .collect();
        assert_eq!(metadata, [Some((1, false)), Some((2, true)), None]);
        let id = |index: usize| entries[index].metadata.as_ref().unwrap().id.clone();
        assert_eq!(id(0), id(1));
        assert_eq!(
            (entries[2].line.as_slice(), entries[2].time_nano, entries[2].source.as_str()),
            (&b"short"[..], 1_000_000_002, "stdout")
        );
        assert!(entries[0].partial && entries[1].partial && !entries[2].partial);
        assert_eq!(encoder.whole_entries(&out, out.len()), (out.len(), 0));
        assert_eq!(encoder.whole_entries(&out, out.len() - 1).1, 1);
        assert_eq!(encoder.whole_entries(&out, 3), (0, 3));
    }

    #[test]
    fn records_are_numbered_and_the_numbers_of_lost_ones_come_again() {
        let mut encoder = Encoder::local(Some(41));
        let mut numbers = Vec::new();
        for lost in [0, 0, 2, 0] {
            let mut out = Vec::new();
            let piece = Piece { bytes: b"x", ends_line: true, part: None };
            encoder.encode(&mut out, Stream::Stdout, piece);
            let entry = <LogEntry as prost::Message>::decode(&out[4..out.len() - 4]).unwrap();
            numbers.push(entry.sequence);
            encoder.take_back(lost);
        }
        assert_eq!(numbers, [41, 42, 43, 42]);
    }
}
