//! The fuzz target's function on generated inputs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../fuzz/entry.rs"]
mod entry;
#[path = "../../../tests/mutate.rs"]
mod mutate;

use std::io::Write;

use layer::{Compression, Encoder, Entry, EntryKind, TarWriter};
use mutate::mutated;
use proptest::prelude::*;

/// One of everything, from our writer: long names, links, a device, extended attributes.
fn ours() -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    let long = "d/".repeat(90) + "file";
    let mut file = Entry::new(long, EntryKind::File, 0o644);
    file.size = 5;
    file.xattrs.push((b"user.x".to_vec(), b"y".to_vec()));
    writer.append(&file, &b"bytes"[..]).unwrap();
    for (path, kind) in [("dir", EntryKind::Directory), ("fifo", EntryKind::Fifo)] {
        writer.append(&Entry::new(path, kind, 0o755), std::io::empty()).unwrap();
    }
    for kind in [EntryKind::Symlink, EntryKind::HardLink] {
        let mut link = Entry::new("link", kind, 0o777);
        link.link = b"dir/../target".to_vec();
        writer.append(&link, std::io::empty()).unwrap();
    }
    writer.finish().unwrap()
}

/// A sparse file in GNU's old format, and a name in a GNU long-name entry.
fn foreign() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    builder.append_data(&mut header, "l/".repeat(80) + "x", &b"abc"[..]).unwrap();
    let mut sparse = tar::Header::new_gnu();
    sparse.set_path("sparse").unwrap();
    sparse.set_entry_type(tar::EntryType::GNUSparse);
    sparse.set_size(512);
    let gnu = sparse.as_gnu_mut().unwrap();
    gnu.set_real_size(4096);
    gnu.sparse[0].set_offset(1024);
    gnu.sparse[0].set_length(512);
    sparse.set_cksum();
    builder.append(&sparse, &[7; 512][..]).unwrap();
    builder.into_inner().unwrap()
}

fn packed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn samples() -> Vec<Vec<u8>> {
    let plain = [ours(), foreign()];
    let mut all: Vec<_> = plain
        .iter()
        .flat_map(|tar| [Compression::Gzip, Compression::Zstd].map(|how| packed(tar, how)))
        .collect();
    all.extend(plain);
    all
}

/// A change inside a header is found by its checksum and stops the reader: put right, it gets further.
fn with_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
    for block in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

const WORDS: &[&str] = &[
    "ustar\0",
    "ustar  ",
    "77777777777\0",
    "00000000000\0",
    "x",
    "g",
    "L",
    "S",
    "19 path=a/../../b\n",
    "30 GNU.sparse.major=1\n",
    "../",
    "/",
    "\u{1f}\u{8b}",
];

#[test]
fn the_samples_are_read_to_their_end() {
    let counts: Vec<_> = samples().iter().map(|sample| entry::tar(sample)).collect();
    assert_eq!(counts, [5, 5, 2, 2, 5, 2]);
}

proptest! {
    #[test]
    fn tars(bytes in mutated(samples(), WORDS)) {
        entry::tar(&bytes);
        entry::tar(&with_checksums(bytes));
    }
}
