//! Inputs for the functions that the fuzz targets run, made on stable Rust: real ones with something done to them, and noise.
//!
//! Included by `tests/fuzz.rs` of the crates that have fuzz targets. `PROPTEST_CASES` says how many inputs each function gets.

#![allow(dead_code, reason = "not every crate has bytes and text")]

use proptest::prelude::*;

/// What is done to an input: at so many thousandths of its length, so many bytes are taken out and these put in.
type Edit = (usize, usize, Vec<u8>);

/// A sample with up to eight edits, some of which put pieces of the sample itself or of `words` elsewhere.
pub fn mutated(samples: Vec<Vec<u8>>, words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let some_bytes = prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..12),
        3 => "[ -~\\n]{0,12}".prop_map(String::into_bytes),
        4 => prop::sample::select(words).prop_map(|word| word.as_bytes().to_vec()),
        1 => prop_oneof![Just(b'0'), Just(b'['), Just(0xff), Just(0)].prop_flat_map(|byte| {
            (1usize..2000).prop_map(move |length| vec![byte; length])
        }),
    ];
    let edit = (0usize..=1000, prop_oneof![4 => 0usize..4, 1 => 0usize..600], some_bytes);
    (prop::sample::select(samples), prop::collection::vec(edit, 0..8), any::<bool>()).prop_map(
        |(sample, edits, doubled)| {
            let mut bytes = if doubled { [sample.clone(), sample].concat() } else { sample };
            edits.into_iter().for_each(|edit| apply(&mut bytes, edit));
            bytes
        },
    )
}

/// The same as text.
pub fn mutated_text(
    samples: &'static [&'static str],
    words: &'static [&'static str],
) -> impl Strategy<Value = String> {
    let bytes = samples.iter().map(|sample| sample.as_bytes().to_vec()).collect();
    mutated(bytes, words).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn apply(bytes: &mut Vec<u8>, (at, taken, put): Edit) {
    let at = bytes.len() * at / 1000;
    let end = (at + taken).min(bytes.len());
    bytes.splice(at..end, put);
}
