//! A layer off a stream into a directory, hashed on the way.
//!
//! Two threads share the work: one reads, inflates and hashes, the other (the caller's) extracts. Between them go a
//! fixed number of buffers, so a slow disk slows the reader down instead of filling memory.
//!
//! ```text
//! source ─► inflate, sha256 ─(full buffers)─► tar ─► root
//!                   ▲────────(empty ones)──────┘
//! ```

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use oci::{Digest, Hasher};

use crate::apply::{Applied, ApplyOptions, extract};
use crate::codec::{Compression, Decoder};
use crate::error::{LayerError, from_io};
use crate::root::RootDir;

const BUFFER: usize = 256 * 1024;
const BUFFERS: usize = 4;

/// What was unpacked.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// The digest of the uncompressed tar, including what follows its end.
    pub diff_id: Digest,
    /// Size of the uncompressed tar in bytes.
    pub size: u64,
    pub compression: Compression,
    pub applied: Applied,
}

/// Unpacks a layer, compressed or not, below `root`. The source is read to its end.
pub fn unpack<R: Read + Send>(
    root: &RootDir,
    source: R,
    options: &ApplyOptions,
) -> Result<Unpacked, LayerError> {
    let (full_tx, full_rx) = sync_channel::<Piece>(BUFFERS);
    let (empty_tx, empty_rx) = sync_channel::<Vec<u8>>(BUFFERS);
    for _ in 0..BUFFERS {
        // There is room for all of them.
        let _ = empty_tx.try_send(vec![0; BUFFER]);
    }
    std::thread::scope(|scope| {
        let inflater = scope.spawn(move || inflate(source, &full_tx, &empty_rx));
        let mut pieces = Pieces { full: full_rx, empty: empty_tx, current: None };
        let applied = extract(root, &mut pieces, options).and_then(|applied| {
            // The digest covers what follows the archive too.
            io::copy(&mut pieces, &mut io::sink()).map_err(from_io)?;
            Ok(applied)
        });
        // Lets the inflater see that nobody reads any more.
        drop(pieces);
        let inflated = inflater.join().map_err(|_| io::Error::other("the inflating thread panicked"));
        let applied = applied?;
        let (diff_id, size, compression) = inflated??;
        Ok(Unpacked { diff_id, size, compression, applied })
    })
}

/// What the inflater sends: a filled buffer with its length, or why there are no more.
enum Piece {
    Data(Vec<u8>, usize),
    Failed(io::Error),
}

fn inflate<R: Read>(
    source: R,
    full: &SyncSender<Piece>,
    empty: &Receiver<Vec<u8>>,
) -> Result<(Digest, u64, Compression), LayerError> {
    let fail = |err: io::Error| {
        let copy = io::Error::new(err.kind(), err.to_string());
        let _ = full.send(Piece::Failed(err));
        LayerError::Io(copy)
    };
    let mut decoder = Decoder::new(source).map_err(fail)?;
    let compression = decoder.compression();
    let mut hasher = Hasher::default();
    let mut size = 0;
    while let Ok(mut buffer) = empty.recv() {
        let mut length = 0;
        while length < buffer.len() {
            match decoder.read(&mut buffer[length..]) {
                Ok(0) => break,
                Ok(got) => length += got,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(fail(err)),
            }
        }
        if length == 0 {
            decoder.drain_source().map_err(fail)?;
            break;
        }
        hasher.update(&buffer[..length]);
        size += length as u64;
        if full.send(Piece::Data(buffer, length)).is_err() {
            break;
        }
    }
    Ok((hasher.finish(), size, compression))
}

/// The inflated stream, as the extractor reads it.
struct Pieces {
    full: Receiver<Piece>,
    empty: SyncSender<Vec<u8>>,
    current: Option<(Vec<u8>, usize, usize)>,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.current.is_none() {
            match self.full.recv() {
                Ok(Piece::Data(buffer, length)) => self.current = Some((buffer, 0, length)),
                Ok(Piece::Failed(err)) => return Err(err),
                Err(_) => return Ok(0),
            }
        }
        let Some((buffer, at, end)) = &mut self.current else { return Ok(0) };
        let take = out.len().min(*end - *at);
        out[..take].copy_from_slice(&buffer[*at..*at + take]);
        *at += take;
        if at == end
            && let Some((buffer, _, _)) = self.current.take()
        {
            let _ = self.empty.send(buffer);
        }
        Ok(take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Whiteouts;
    use crate::codec::Encoder;
    use std::io::Write;

    fn tar_of(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, &data[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_layer_is_the_same_however_it_is_packed() {
        let mut tar = tar_of(&[("a", vec![7; 900_000]), ("d/b", b"x".to_vec())]);
        tar.extend([0; 9000]);
        let want = Digest::of(&tar);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let dir = tempfile::tempdir().unwrap();
            let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
            encoder.write_all(&tar).unwrap();
            let packed = encoder.finish().unwrap();
            let root = RootDir::open(dir.path()).unwrap();
            let options = ApplyOptions::layer(Whiteouts::Overlay { userxattr: false });
            let unpacked = unpack(&root, &packed[..], &options).unwrap();
            assert_eq!((&unpacked.diff_id, unpacked.size), (&want, tar.len() as u64));
            assert_eq!(unpacked.compression, compression);
            assert_eq!(unpacked.applied.implied_dirs, [b"d".to_vec()]);
            assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), vec![7; 900_000]);
        }
    }

    #[test]
    fn a_cut_layer_says_so_and_a_bad_entry_stops_a_long_stream() {
        let tar = tar_of(&[("a", vec![7; 900_000])]);
        let dir = tempfile::tempdir().unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        let options = ApplyOptions::layer(Whiteouts::Remove);
        let cut = unpack(&root, &tar[..100_000], &options).unwrap_err();
        assert_eq!(cut.to_string(), "unexpected EOF");
        let endless = io::repeat(b'x');
        assert!(matches!(unpack(&root, endless, &options), Err(LayerError::Header)));
        let mut encoder = Encoder::new(Vec::new(), Compression::Gzip).unwrap();
        encoder.write_all(&tar).unwrap();
        let packed = encoder.finish().unwrap();
        let cut = unpack(&root, &packed[..packed.len() - 20], &options).unwrap_err();
        assert_eq!(cut.to_string(), "unexpected EOF");
    }
}
