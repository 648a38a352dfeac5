//! What the fuzz target runs; `tests/fuzz.rs` runs the same for a bounded number of inputs.

use std::io::Read;

/// Any bytes as a layer, packed or not: an error, never a panic, and bounded memory. Gives back how many entries were read.
pub fn tar(bytes: &[u8]) -> usize {
    let Ok(decoder) = layer::Decoder::new(bytes) else { return 0 };
    let mut reader = layer::TarReader::new(decoder.take(64 << 20));
    let mut buffer = [0; 4096];
    let mut entries = 0;
    while let Ok(Some(entry)) = reader.next_entry() {
        let read = reader.data(&entry, &mut buffer, |at, piece| {
            assert!(at + piece.len() as u64 <= entry.size);
            Ok::<(), layer::LayerError>(())
        });
        if read.is_err() {
            break;
        }
        entries += 1;
    }
    entries
}
