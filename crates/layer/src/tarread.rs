//! Reading a tar as a stream: ustar, GNU and PAX, with their long names, big numbers and sparse files.
//!
//! Invariant: an archive decides neither how much memory is used (an extension record is refused above
//! [`MAX_EXTENSION`], a sparse map above [`MAX_SPARSE`]) nor whether we panic. Header fields are taken from the
//! `tar` crate's header type. The block loop is ours because that crate's reads extension records of any length into
//! memory, cuts PAX records at newlines (a capability set may contain byte 10) and knows no PAX sparse files.
//!
//! ```text
//! next() -> Entry, then read() its stored data (or data(), which places sparse pieces), then next() …
//! ```

use std::io::{self, Read};

use crate::error::{LayerError, from_io};

/// Longest extension record (long name, PAX header), in bytes: what Go's reader allows.
pub const MAX_EXTENSION: u64 = 1 << 20;
/// Most pieces of a sparse file.
pub const MAX_SPARSE: usize = 65_536;
/// Most extension headers that may precede one entry.
const MAX_EXTENSIONS_IN_A_ROW: usize = 16;
const BLOCK: usize = 512;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
    HardLink,
    Char,
    Block,
    Fifo,
    /// A type nobody extracts, by its letter.
    Other(u8),
}

/// One member of an archive, as it says it is. Names are not cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: i64,
    pub gid: i64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Size of the file once extracted, in bytes.
    pub size: u64,
    pub major: u64,
    pub minor: u64,
    /// Extended attributes, by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Pieces of a sparse file: offset and length.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// Reads entries off a stream. Reading from it gives the stored data of the current entry.
#[derive(Debug)]
pub struct TarReader<R> {
    inner: R,
    /// Stored bytes of the current entry that are still unread, and the padding after them.
    remaining: u64,
    padding: u64,
    globals: Vec<(Vec<u8>, Vec<u8>)>,
    done: bool,
}

/// Extension records seen before an entry.
#[derive(Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> TarReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, remaining: 0, padding: 0, globals: Vec::new(), done: false }
    }

    /// The stream itself, for what follows the archive.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry; what is left of the current one is skipped. `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut pending = Pending::default();
        for _ in 0..MAX_EXTENSIONS_IN_A_ROW {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else {
                let announced =
                    pending.long_name.is_some() || pending.long_link.is_some() || !pending.pax.is_empty();
                return if announced { Err(LayerError::UnexpectedEof) } else { Ok(None) };
            };
            let stored = number(&header.as_old().size)?;
            let stored = u64::try_from(stored).map_err(|_| LayerError::Header)?;
            match header.entry_type().as_byte() {
                b'x' => pending.pax = parse_pax(&self.read_extension(stored)?)?,
                b'g' => self.globals = parse_pax(&self.read_extension(stored)?)?,
                b'L' => pending.long_name = Some(until_nul(&self.read_extension(stored)?).to_vec()),
                b'K' => pending.long_link = Some(until_nul(&self.read_extension(stored)?).to_vec()),
                _ => return self.assemble(&header, stored, pending).map(Some),
            }
        }
        Err(LayerError::Header)
    }

    /// Hands the current entry's data to `put` with the offset each piece belongs at.
    pub fn data<E>(
        &mut self,
        entry: &Entry,
        buffer: &mut [u8],
        mut put: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E>
    where
        E: From<LayerError>,
    {
        let whole = [(0, entry.size)];
        for &(start, length) in entry.sparse.as_deref().unwrap_or(&whole) {
            let mut at = 0;
            while at < length {
                let want = buffer.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
                let got = self.read(&mut buffer[..want]).map_err(|err| E::from(from_io(err)))?;
                if got == 0 {
                    return Err(LayerError::UnexpectedEof.into());
                }
                put(start + at, &buffer[..got])?;
                at += got as u64;
            }
        }
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), LayerError> {
        let mut scratch = [0u8; 16 * 1024];
        while self.remaining + self.padding > 0 {
            let left = self.remaining + self.padding;
            let want = scratch.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match self.inner.read(&mut scratch[..want]) {
                // Writers that are not closed leave out the last padding. Go's reader minds as little.
                Ok(0) if self.remaining == 0 => {
                    self.padding = 0;
                    self.done = true;
                }
                Ok(0) => return Err(LayerError::UnexpectedEof),
                Ok(got) => {
                    let data = self.remaining.min(got as u64);
                    self.remaining -= data;
                    self.padding -= got as u64 - data;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(from_io(err)),
            }
        }
        Ok(())
    }

    /// A header block, or `None` at the end: two zero blocks, or no more bytes at a block's edge.
    fn read_header(&mut self) -> Result<Option<tar::Header>, LayerError> {
        if self.done {
            return Ok(None);
        }
        let mut header = tar::Header::new_old();
        if !self.read_block(header.as_mut_bytes())? {
            self.done = true;
            return Ok(None);
        }
        if header.as_bytes().iter().all(|b| *b == 0) {
            self.done = true;
            let another = self.read_block(header.as_mut_bytes())?;
            return if another && header.as_bytes().iter().any(|b| *b != 0) {
                Err(LayerError::Header)
            } else {
                Ok(None)
            };
        }
        let unsigned: i64 = checksummed(header.as_bytes()).map(i64::from).sum();
        let signed: i64 = checksummed(header.as_bytes()).map(|b| i64::from(b as i8)).sum();
        let stated = number(&header.as_old().cksum)?;
        if stated != unsigned && stated != signed {
            return Err(LayerError::Header);
        }
        Ok(Some(header))
    }

    /// Fills a block. False if the stream ended exactly before it.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, LayerError> {
        let mut have = 0;
        while have < BLOCK {
            match self.inner.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(LayerError::UnexpectedEof),
                Ok(got) => have += got,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(from_io(err)),
            }
        }
        Ok(true)
    }

    fn begin(&mut self, stored: u64) {
        self.remaining = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
    }

    fn read_extension(&mut self, stored: u64) -> Result<Vec<u8>, LayerError> {
        if stored > MAX_EXTENSION {
            return Err(LayerError::FieldTooLong);
        }
        self.begin(stored);
        let mut bytes = vec![0; usize::try_from(stored).map_err(|_| LayerError::FieldTooLong)?];
        self.read_exact(&mut bytes).map_err(from_io)?;
        Ok(bytes)
    }

    fn assemble(&mut self, header: &tar::Header, stored: u64, pending: Pending) -> Result<Entry, LayerError> {
        let old = header.as_old();
        let mut entry = Entry {
            path: header.path_bytes().into_owned(),
            link: header.link_name_bytes().unwrap_or_default().into_owned(),
            kind: EntryKind::File,
            mode: u32::try_from(number(&old.mode)? & 0o7777).map_err(|_| LayerError::Header)?,
            uid: number(&old.uid)?,
            gid: number(&old.gid)?,
            mtime: (number(&old.mtime)?, 0),
            size: stored,
            major: 0,
            minor: 0,
            xattrs: Vec::new(),
            sparse: None,
        };
        if let Some((major, minor)) = device_fields(header) {
            entry.major = u64::try_from(number(major)?).map_err(|_| LayerError::Header)?;
            entry.minor = u64::try_from(number(minor)?).map_err(|_| LayerError::Header)?;
        }
        if let Some(name) = pending.long_name {
            entry.path = name;
        }
        if let Some(link) = pending.long_link {
            entry.link = link;
        }
        let mut sparse = PaxSparse::default();
        for (key, value) in self.globals.iter().chain(&pending.pax) {
            apply_pax(&mut entry, &mut sparse, key, value)?;
        }
        let letter = header.entry_type().as_byte();
        entry.kind = kind_of(letter, &entry.path);
        let is_file = entry.kind == EntryKind::File;
        // Go ignores the size of what cannot have data; some writers put the link target's size there.
        let stored = if is_file || matches!(entry.kind, EntryKind::Other(_)) { entry.size } else { 0 };
        entry.size = stored;
        self.begin(stored);
        if letter == b'S' {
            self.old_gnu_sparse(header, &mut entry)?;
        } else if is_file {
            self.pax_sparse(sparse, &mut entry)?;
        }
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(LayerError::Header);
        }
        Ok(entry)
    }

    /// Old GNU sparse files: pieces in the header, and in blocks between it and the data.
    fn old_gnu_sparse(&mut self, header: &tar::Header, entry: &mut Entry) -> Result<(), LayerError> {
        let gnu = header.as_gnu().ok_or(LayerError::Header)?;
        let mut pieces = Vec::new();
        let mut push = |piece: &tar::GnuSparseHeader| -> Result<(), LayerError> {
            if piece.offset[0] == 0 || piece.numbytes[0] == 0 {
                return Ok(());
            }
            if pieces.len() >= MAX_SPARSE {
                return Err(LayerError::FieldTooLong);
            }
            pieces.push((number(&piece.offset)?, number(&piece.numbytes)?));
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut push)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            if !self.read_block(block.as_mut_bytes())? {
                return Err(LayerError::UnexpectedEof);
            }
            block.sparse.iter().try_for_each(&mut push)?;
            more = block.is_extended();
        }
        let real = number(&gnu.realsize)?;
        finish_sparse(entry, pieces, real)
    }

    /// Sparse files as PAX has them: versions 0.0 and 0.1 in the records, 1.0 in front of the data.
    fn pax_sparse(&mut self, sparse: PaxSparse, entry: &mut Entry) -> Result<(), LayerError> {
        let Some(real) = sparse.real_size else { return Ok(()) };
        let pieces = match (sparse.major.as_deref(), sparse.minor.as_deref()) {
            (Some(b"1"), Some(b"0")) => self.sparse_map_in_data()?,
            _ => pairs(&sparse.numbers)?,
        };
        entry.size = self.remaining;
        finish_sparse(entry, pieces, real)
    }

    /// Decimal lines: how many pieces, then each one's offset and length; padded to a block.
    fn sparse_map_in_data(&mut self) -> Result<Vec<(i64, i64)>, LayerError> {
        let mut block = [0u8; BLOCK];
        let mut numbers: Vec<i64> = Vec::new();
        let mut digits = Vec::new();
        loop {
            self.read_exact(&mut block).map_err(from_io)?;
            for byte in block {
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(LayerError::Header);
                    }
                    continue;
                }
                numbers.push(decimal(&digits)?);
                digits.clear();
                let count = usize::try_from(numbers[0]).map_err(|_| LayerError::Header)?;
                if count > MAX_SPARSE {
                    return Err(LayerError::FieldTooLong);
                }
                if numbers.len() == 1 + 2 * count {
                    return pairs(&numbers[1..]);
                }
            }
        }
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = loop {
            match self.inner.read(&mut buffer[..want]) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.remaining -= got as u64;
        Ok(got)
    }
}

#[derive(Default)]
struct PaxSparse {
    major: Option<Vec<u8>>,
    minor: Option<Vec<u8>>,
    real_size: Option<i64>,
    numbers: Vec<i64>,
}

fn apply_pax(entry: &mut Entry, sparse: &mut PaxSparse, key: &[u8], value: &[u8]) -> Result<(), LayerError> {
    match key {
        // An empty value takes a record back; the header's field then stands.
        b"path" if !value.is_empty() => entry.path = value.to_vec(),
        b"linkpath" if !value.is_empty() => entry.link = value.to_vec(),
        b"size" if !value.is_empty() => {
            entry.size = u64::try_from(decimal(value)?).map_err(|_| LayerError::Header)?;
        }
        b"uid" if !value.is_empty() => entry.uid = decimal(value)?,
        b"gid" if !value.is_empty() => entry.gid = decimal(value)?,
        b"mtime" if !value.is_empty() => entry.mtime = pax_time(value)?,
        b"GNU.sparse.major" => sparse.major = Some(value.to_vec()),
        b"GNU.sparse.minor" => sparse.minor = Some(value.to_vec()),
        b"GNU.sparse.name" => entry.path = value.to_vec(),
        b"GNU.sparse.realsize" | b"GNU.sparse.size" => sparse.real_size = Some(decimal(value)?),
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => sparse.numbers.push(decimal(value)?),
        b"GNU.sparse.map" => {
            for part in value.split(|b| *b == b',') {
                sparse.numbers.push(decimal(part)?);
            }
        }
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                entry.xattrs.retain(|(n, _)| n != name);
                entry.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    if sparse.numbers.len() > 2 * MAX_SPARSE {
        return Err(LayerError::FieldTooLong);
    }
    Ok(())
}

fn pairs(numbers: &[i64]) -> Result<Vec<(i64, i64)>, LayerError> {
    if !numbers.len().is_multiple_of(2) {
        return Err(LayerError::Header);
    }
    Ok(numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect())
}

/// Checks that pieces are in order, within the file, and as long together as what is stored.
fn finish_sparse(entry: &mut Entry, pieces: Vec<(i64, i64)>, real: i64) -> Result<(), LayerError> {
    let real = u64::try_from(real).map_err(|_| LayerError::Header)?;
    let (mut end, mut stored) = (0u64, 0u64);
    let mut checked = Vec::with_capacity(pieces.len());
    for (offset, length) in pieces {
        let offset = u64::try_from(offset).map_err(|_| LayerError::Header)?;
        let length = u64::try_from(length).map_err(|_| LayerError::Header)?;
        let stop =
            offset.checked_add(length).filter(|s| offset >= end && *s <= real).ok_or(LayerError::Header)?;
        (end, stored) = (stop, stored + length);
        checked.push((offset, length));
    }
    if stored != entry.size {
        return Err(LayerError::Header);
    }
    entry.size = real;
    entry.sparse = Some(checked);
    Ok(())
}

fn kind_of(letter: u8, path: &[u8]) -> EntryKind {
    match letter {
        // Before POSIX a directory was a file with a slash at the end.
        b'0' | 0 | b'7' | b'S' if path.ends_with(b"/") => EntryKind::Directory,
        b'0' | 0 | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::Char,
        b'4' => EntryKind::Block,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => EntryKind::Other(other),
    }
}

fn device_fields(header: &tar::Header) -> Option<(&[u8], &[u8])> {
    if !matches!(header.entry_type().as_byte(), b'3' | b'4') {
        return None;
    }
    if let Some(gnu) = header.as_gnu() {
        return Some((&gnu.dev_major, &gnu.dev_minor));
    }
    header.as_ustar().map(|u| (&u.dev_major[..], &u.dev_minor[..]))
}

/// The header with its checksum field read as spaces.
fn checksummed(block: &[u8; BLOCK]) -> impl Iterator<Item = u8> + '_ {
    block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { b' ' } else { *b })
}

/// A header's number: octal digits padded with spaces or NULs, or base 256 when the first bit is set.
fn number(field: &[u8]) -> Result<i64, LayerError> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        let negative = field[0] & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = match at {
                0 if negative => *byte | 0x80,
                0 => *byte & 0x7f,
                _ => *byte,
            };
            let shifted = value.checked_mul(256).ok_or(LayerError::Header)?;
            value = shifted.checked_add(i64::from(byte)).ok_or(LayerError::Header)?;
        }
        return Ok(value);
    }
    let text = until_nul(field.trim_ascii_start()).trim_ascii();
    let mut value: i64 = 0;
    for byte in text {
        let digit = match byte {
            b'0'..=b'7' => i64::from(byte - b'0'),
            _ => return Err(LayerError::Header),
        };
        value = value.checked_mul(8).and_then(|v| v.checked_add(digit)).ok_or(LayerError::Header)?;
    }
    Ok(value)
}

fn decimal(text: &[u8]) -> Result<i64, LayerError> {
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or(LayerError::Header)
}

/// `123.456`: seconds with a fraction, possibly negative.
fn pax_time(text: &[u8]) -> Result<(i64, u32), LayerError> {
    let mut halves = text.splitn(2, |b| *b == b'.');
    let whole = halves.next().unwrap_or_default();
    let seconds = decimal(whole)?;
    let fraction = halves.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(LayerError::Header);
    }
    let nanos = (0..9).fold(0u32, |n, at| n * 10 + fraction.get(at).map_or(0, |b| u32::from(b - b'0')));
    if whole.starts_with(b"-") && nanos > 0 {
        return Ok((seconds.checked_sub(1).ok_or(LayerError::Header)?, 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}

/// `LENGTH KEY=VALUE\n` records; the value may be any bytes.
fn parse_pax(mut bytes: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>, LayerError> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|b| *b == b' ').ok_or(LayerError::Header)?;
        let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| LayerError::Header)?;
        if length < space + 3 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(LayerError::Header);
        }
        let body = &bytes[space + 1..length - 1];
        let equals = body.iter().position(|b| *b == b'=').filter(|at| *at > 0).ok_or(LayerError::Header)?;
        records.push((body[..equals].to_vec(), body[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, LayerError> {
        let mut reader = TarReader::new(bytes);
        let mut all = Vec::new();
        let mut buffer = [0; 700];
        while let Some(entry) = reader.next_entry()? {
            let mut data = vec![0; usize::try_from(entry.size.min(1 << 20)).unwrap()];
            reader.data(&entry, &mut buffer, |at, piece| {
                let at = at as usize;
                if let Some(room) = data.get_mut(at..at + piece.len()) {
                    room.copy_from_slice(piece);
                }
                Ok::<(), LayerError>(())
            })?;
            all.push((entry, data));
        }
        Ok(all)
    }

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]).unwrap(), 256);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert!(number(b"-0000001").is_err());
        assert!(number(b"12x").is_err());
        assert!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn pax_values_may_hold_newlines_and_times_may_be_before_1970() {
        let records = parse_pax(b"26 SCHILY.xattr.a.b=1\n2\n3\n12 uid=1234\n").unwrap();
        assert_eq!(records[0], (b"SCHILY.xattr.a.b".to_vec(), b"1\n2\n3".to_vec()));
        assert_eq!(pax_time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(pax_time(b"1700000000.000000001").unwrap(), (1_700_000_000, 1));
        assert!(parse_pax(b"99 a=b\n").is_err());
        assert!(parse_pax(b"0 a=b\n").is_err());
    }

    #[test]
    fn refusals() {
        let mut header = tar::Header::new_ustar();
        header.set_path("x").unwrap();
        header.set_size(3);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        assert!(matches!(entries(&bytes), Err(LayerError::UnexpectedEof)));
        assert!(matches!(entries(&bytes[..100]), Err(LayerError::UnexpectedEof)));
        bytes[0] = b'y';
        assert!(matches!(entries(&bytes), Err(LayerError::Header)));
        assert!(matches!(entries(b"not a tar at all").unwrap_err(), LayerError::UnexpectedEof));
        assert!(matches!(entries(&[b'z'; 1024]), Err(LayerError::Header)));
        let mut pax = tar::Header::new_ustar();
        pax.set_entry_type(tar::EntryType::XHeader);
        pax.set_size(20 << 20);
        pax.set_cksum();
        assert_eq!(entries(pax.as_bytes()).unwrap_err().to_string(), "archive/tar: header field too long");
        assert!(entries(b"").unwrap().is_empty());
        let mut unclosed = header.as_bytes().to_vec();
        unclosed.extend(b"abc");
        assert_eq!(entries(&unclosed).unwrap().len(), 1);
        assert!(entries(&[0; 512]).unwrap().is_empty());
    }

    #[test]
    fn what_gnu_tar_writes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let long = "n".repeat(120);
        std::fs::write(dir.path().join(&long), b"long").unwrap();
        let sparse = std::fs::File::create(dir.path().join("sparse")).unwrap();
        sparse.set_len(900_000).unwrap();
        std::os::unix::fs::FileExt::write_at(&sparse, b"middle", 400_000).unwrap();
        std::os::unix::fs::FileExt::write_at(&sparse, b"tail", 800_000).unwrap();
        for format in [
            &["--format=gnu"][..],
            &["--format=posix"],
            &["--format=gnu", "-S"],
            &["--format=posix", "-S", "--sparse-version=0.0"],
            &["--format=posix", "-S", "--sparse-version=0.1"],
            &["--format=posix", "-S", "--sparse-version=1.0"],
        ] {
            let out = std::process::Command::new("tar")
                .args(format)
                .args(["-C", dir.path().to_str().unwrap(), "-cf", "-", "sparse", &long])
                .output()
                .unwrap();
            assert!(out.status.success(), "{format:?}");
            let read = entries(&out.stdout).unwrap();
            assert_eq!(read.len(), 2, "{format:?}");
            assert_eq!(read[0].0.path, b"sparse", "{format:?}");
            assert_eq!(read[0].1, std::fs::read(dir.path().join("sparse")).unwrap(), "{format:?}");
            assert_eq!((read[1].0.path.as_slice(), read[1].1.as_slice()), (long.as_bytes(), &b"long"[..]));
        }
    }

    proptest! {
        #[test]
        fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = entries(&bytes);
        }

        #[test]
        fn a_valid_header_with_noise_never_panics(at in 0usize..512, noise: u8, letter: u8, tail in proptest::collection::vec(any::<u8>(), 0..1600)) {
            let mut header = tar::Header::new_gnu();
            header.set_path("x").unwrap();
            header.set_size(tail.len() as u64);
            header.set_entry_type(tar::EntryType::new(letter));
            header.as_mut_bytes()[at] = noise;
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend(tail);
            let _ = entries(&bytes);
        }

        #[test]
        fn numbers_written_by_the_tar_crate_are_read(n in 0u64..i64::MAX as u64) {
            let mut header = tar::Header::new_gnu();
            header.set_size(n);
            prop_assert_eq!(number(&header.as_old().size).unwrap(), n as i64);
        }
    }
}
