//! The fuzz targets' functions on generated inputs.

#[path = "../fuzz/entry.rs"]
mod entry;
#[path = "../../../tests/mutate.rs"]
mod mutate;

use mutate::mutated;
use proptest::prelude::*;

/// A frame: length, stream, type, flags, payload.
fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload");
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0], payload].concat()
}

/// A call of `s.m` and an answer to it, as protobuf has them.
fn samples() -> Vec<Vec<u8>> {
    let call = b"\x0a\x01s\x12\x01m\x1a\x03abc";
    let answer = b"\x12\x03abc";
    let calls = [frame(1, 1, call), frame(3, 1, call)].concat();
    let answers = [frame(1, 2, answer), frame(3, 2, b"\x0a\x04\x08\x05\x12\x00")].concat();
    vec![calls, answers, frame(1, 3, b"data")]
}

const WORDS: &[&str] = &["\0\0\0\0", "\0@\0\0", "\u{7f}", "\0\0\0\u{1}", "\u{a}\u{1}s", "\u{1}\0"];

proptest! {
    #[test]
    fn servers(bytes in mutated(samples(), WORDS)) {
        entry::server(&bytes);
    }

    #[test]
    fn clients(bytes in mutated(samples(), WORDS)) {
        entry::client(&bytes);
    }
}
