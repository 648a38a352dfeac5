//! Compression of layers: told from the first bytes when reading, chosen when writing.
//!
//! Invariant: labels are not believed. A plain tar that is called gzip is read as a plain tar. What follows the last
//! gzip member is ignored, as Docker ignores it.

use std::io::{self, BufRead, Read, Write};

use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

const BUFFER: usize = 64 * 1024;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Largest window a zstd layer may ask for, as a power of two: 128 MiB, which is zstd's own default limit.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Unpacks a stream, whatever it is packed with.
pub struct Decoder<R: Read> {
    inner: Inner<R>,
}

enum Inner<R: Read> {
    Plain(Peek<R>),
    /// `None` after the last member.
    Gzip(Option<GzDecoder<Peek<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Peek<R>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `source`.
    pub fn new(source: R) -> io::Result<Self> {
        let mut source = Peek::new(source);
        let compression = sniff(source.peek(4)?);
        let inner = match compression {
            Compression::None => Inner::Plain(source),
            Compression::Gzip => Inner::Gzip(Some(GzDecoder::new(source))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Inner::Zstd(decoder)
            }
        };
        Ok(Self { inner })
    }

    /// What the stream turned out to be.
    pub fn compression(&self) -> Compression {
        match &self.inner {
            Inner::Plain(_) => Compression::None,
            Inner::Gzip(_) => Compression::Gzip,
            Inner::Zstd(_) => Compression::Zstd,
        }
    }

    /// Reads the source to its end, past what belongs to the packed data, so that all of it has been hashed.
    pub fn drain_source(self) -> io::Result<u64> {
        let mut source = match self.inner {
            Inner::Plain(source) => source,
            Inner::Gzip(Some(decoder)) => decoder.into_inner(),
            Inner::Gzip(None) => return Ok(0),
            Inner::Zstd(decoder) => decoder.finish(),
        };
        io::copy(&mut source, &mut io::sink())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let gzip = match &mut self.inner {
            Inner::Plain(source) => return source.read(buffer),
            Inner::Zstd(decoder) => return decoder.read(buffer),
            Inner::Gzip(gzip) => gzip,
        };
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(decoder) = gzip else { return Ok(0) };
            let got = decoder.read(buffer)?;
            if got > 0 {
                return Ok(got);
            }
            // This member has ended. Another one may follow.
            let mut source = gzip.take().expect("it was there a line ago").into_inner();
            if source.peek(2)?.starts_with(GZIP) {
                *gzip = Some(GzDecoder::new(source));
            } else {
                io::copy(&mut source, &mut io::sink())?;
                return Ok(0);
            }
        }
    }
}

/// Tells the packing from the first bytes.
pub fn sniff(head: &[u8]) -> Compression {
    let skippable = head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18];
    if head.starts_with(GZIP) {
        Compression::Gzip
    } else if head.starts_with(ZSTD) || skippable {
        Compression::Zstd
    } else {
        Compression::None
    }
}

/// A buffered reader that can show what comes next, however small the pieces it arrives in.
struct Peek<R> {
    inner: R,
    buffer: Box<[u8]>,
    at: usize,
    end: usize,
}

impl<R: Read> Peek<R> {
    fn new(inner: R) -> Self {
        Self { inner, buffer: vec![0; BUFFER].into_boxed_slice(), at: 0, end: 0 }
    }

    /// The next bytes, unconsumed: at least `want` (which is small) unless the stream ends sooner.
    fn peek(&mut self, want: usize) -> io::Result<&[u8]> {
        while self.end - self.at < want {
            self.buffer.copy_within(self.at..self.end, 0);
            self.end -= self.at;
            self.at = 0;
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(got) => self.end += got,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(&self.buffer[self.at..self.end])
    }
}

impl<R: Read> Read for Peek<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.end && buffer.len() >= self.buffer.len() {
            return self.inner.read(buffer);
        }
        let got = self.fill_buf()?.read(buffer)?;
        self.consume(got);
        Ok(got)
    }
}

impl<R: Read> BufRead for Peek<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.peek(1)
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.end);
    }
}

/// Packs a stream. [`Encoder::finish`] must be called.
pub enum Encoder<W: Write> {
    Plain(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Packs into `sink` at the default level of each method, which is what stock tools use.
    pub fn new(sink: W, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(sink),
            Compression::Gzip => Self::Gzip(GzEncoder::new(sink, flate2::Compression::new(6))),
            Compression::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(sink, 3)?),
        })
    }

    /// Writes what is still held back and gives the sink back.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(sink) => Ok(sink),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(sink) => sink.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(sink) => sink.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives one byte at a time, as a slow network may.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let take = buffer.len().min(1);
            self.0.read(&mut buffer[..take])
        }
    }

    fn pack(bytes: &[u8], compression: Compression) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(Drip(bytes))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn members_follow_each_other_and_junk_after_them_is_nothing() {
        let mut bytes = pack(b"one ", Compression::Gzip);
        bytes.extend(pack(b"two", Compression::Gzip));
        bytes.extend(b"\0\0junk");
        assert_eq!(unpack(&bytes).unwrap(), b"one two");
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let long: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let bytes = pack(&long, compression);
            assert!(unpack(&bytes[..bytes.len() / 2]).is_err(), "{compression:?}");
            assert!(unpack(&bytes[..bytes.len() - 2]).is_err(), "{compression:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks(bytes in proptest::collection::vec(any::<u8>(), 0..2000), which in 1..3usize) {
            let compression = [Compression::None, Compression::Gzip, Compression::Zstd][which];
            let packed = pack(&bytes, compression);
            prop_assert_eq!(sniff(&packed), compression);
            prop_assert_eq!(unpack(&packed).unwrap(), bytes);
        }

        #[test]
        fn bytes_never_panic(bytes: Vec<u8>, which in 0..3usize) {
            let head: &[u8] = [&[][..], GZIP, ZSTD][which];
            let _ = unpack(&[head, &bytes].concat());
        }
    }
}
