//! Any bytes as a layer, packed or not: an error, never a panic, and bounded memory.
#![no_main]

use std::io::Read;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(decoder) = layer::Decoder::new(bytes) else { return };
    let mut reader = layer::TarReader::new(decoder.take(64 << 20));
    let mut buffer = [0; 4096];
    while let Ok(Some(entry)) = reader.next_entry() {
        let read = reader.data(&entry, &mut buffer, |at, piece| {
            assert!(at + piece.len() as u64 <= entry.size);
            Ok::<(), layer::LayerError>(())
        });
        if read.is_err() {
            break;
        }
    }
});
