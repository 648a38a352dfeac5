//! Writing tars: ustar headers, with PAX records for what does not fit them.
//!
//! Invariant: the same entries give the same bytes, whoever writes them and when: no access times, no names of
//! users, records in a fixed order. Field layout comes from the `tar` crate's header type.

use std::io::{self, Read, Write};

use crate::error::LayerError;
use crate::tarread::{Entry, EntryKind};

const BLOCK: usize = 512;
/// Largest number eleven octal digits hold, and seven.
const MAX_OCTAL_11: i64 = 0o77_777_777_777;
const MAX_OCTAL_7: i64 = 0o7_777_777;

/// Writes entries to a sink.
#[derive(Debug)]
pub struct TarWriter<W> {
    sink: W,
    written: u64,
}

impl<W: Write> TarWriter<W> {
    pub fn new(sink: W) -> Self {
        Self { sink, written: 0 }
    }

    /// Bytes written so far, headers and padding included.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes an entry and exactly `entry.size` bytes of `data`. A source that is shorter is filled up with zeros: a
    /// file may shrink while it is read, and the header is out.
    pub fn append(&mut self, entry: &Entry, data: impl Read) -> Result<(), LayerError> {
        let (header, pax) = self.header(entry)?;
        if !pax.is_empty() {
            let mut ext = tar::Header::new_ustar();
            ext.set_entry_type(tar::EntryType::XHeader);
            let name = split_name(&pax_name(&entry.path))
                .map_or(b"PaxHeaders.0".to_vec(), |(_, name)| name.to_vec());
            put(&mut ext.as_old_mut().name, &name[..name.len().min(100)]);
            ext.set_size(pax.len() as u64);
            ext.set_mode(0o644);
            ext.set_uid(0);
            ext.set_gid(0);
            ext.set_mtime(0);
            ext.set_cksum();
            self.write(ext.as_bytes())?;
            self.write(&pax)?;
            self.pad(pax.len() as u64)?;
        }
        self.write(header.as_bytes())?;
        let copied = io::copy(&mut data.take(entry.size), &mut self.sink)?;
        self.written += copied;
        let mut missing = entry.size - copied;
        let zeros = [0u8; 4096];
        while missing > 0 {
            let some = zeros.len().min(usize::try_from(missing).unwrap_or(usize::MAX));
            self.write(&zeros[..some])?;
            missing -= some as u64;
        }
        self.pad(entry.size)
    }

    /// Writes the two zero blocks that end an archive and gives the sink back.
    pub fn finish(mut self) -> Result<W, LayerError> {
        self.write(&[0; 2 * BLOCK])?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.sink.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, size: u64) -> Result<(), LayerError> {
        let padding = (size.wrapping_neg() % BLOCK as u64) as usize;
        self.write(&[0; BLOCK][..padding])
    }

    /// The ustar header, and the PAX records it needs beside it.
    fn header(&self, entry: &Entry) -> Result<(tar::Header, Vec<u8>), LayerError> {
        let mut header = tar::Header::new_ustar();
        let mut pax = Records::default();
        header.set_entry_type(letter(entry.kind)?);
        header.set_mode(entry.mode & 0o7777);
        header.set_size(0);
        if !entry.path.is_ascii() || split_name(&entry.path).is_none() {
            pax.add(b"path", &entry.path);
        }
        let (prefix, name) = split_name(&entry.path).unwrap_or((b"", &entry.path));
        let ustar = header.as_ustar_mut().ok_or(LayerError::Header)?;
        put(&mut ustar.prefix, prefix);
        put(&mut ustar.name, name);
        if entry.link.len() > 100 || !entry.link.is_ascii() {
            pax.add(b"linkpath", &entry.link);
        }
        put(&mut ustar.linkname, &entry.link);
        if matches!(entry.kind, EntryKind::Char | EntryKind::Block) {
            let (major, minor) = (entry.major as i64, entry.minor as i64);
            if major > MAX_OCTAL_7 || minor > MAX_OCTAL_7 {
                return Err(LayerError::Header);
            }
            header.set_device_major(entry.major as u32)?;
            header.set_device_minor(entry.minor as u32)?;
        }
        let size = i64::try_from(entry.size).map_err(|_| LayerError::Header)?;
        header.set_size(pax.fit(b"size", size, MAX_OCTAL_11));
        header.set_uid(pax.fit(b"uid", entry.uid, MAX_OCTAL_7));
        header.set_gid(pax.fit(b"gid", entry.gid, MAX_OCTAL_7));
        let (seconds, nanos) = entry.mtime;
        if nanos != 0 || !(0..=MAX_OCTAL_11).contains(&seconds) {
            pax.add(b"mtime", pax_time(seconds, nanos).as_bytes());
        }
        header.set_mtime(if (0..=MAX_OCTAL_11).contains(&seconds) { seconds as u64 } else { 0 });
        for (name, value) in &entry.xattrs {
            pax.add(&[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        header.set_cksum();
        Ok((header, pax.bytes()))
    }
}

/// PAX records, written sorted by key as Go's writer does.
#[derive(Default)]
struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0.push((key.to_vec(), value.to_vec()));
    }

    /// The number for the header's field; one that does not fit goes into a record, and the field says 0.
    fn fit(&mut self, key: &[u8], value: i64, max: i64) -> u64 {
        if (0..=max).contains(&value) {
            return value as u64;
        }
        self.add(key, value.to_string().as_bytes());
        0
    }

    fn bytes(mut self) -> Vec<u8> {
        self.0.sort();
        let mut bytes = Vec::new();
        for (key, value) in &self.0 {
            // The length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length = rest + length.to_string().len();
            }
            bytes.extend_from_slice(format!("{length} ").as_bytes());
            bytes.extend_from_slice(key);
            bytes.push(b'=');
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        bytes
    }
}

fn letter(kind: EntryKind) -> Result<tar::EntryType, LayerError> {
    Ok(match kind {
        EntryKind::File => tar::EntryType::Regular,
        EntryKind::Directory => tar::EntryType::Directory,
        EntryKind::Symlink => tar::EntryType::Symlink,
        EntryKind::HardLink => tar::EntryType::Link,
        EntryKind::Char => tar::EntryType::Char,
        EntryKind::Block => tar::EntryType::Block,
        EntryKind::Fifo => tar::EntryType::Fifo,
        EntryKind::Other(_) => return Err(LayerError::Header),
    })
}

/// Splits a path into ustar's prefix and name; `None` if it does not fit.
fn split_name(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // A directory's slash at the end stays with the name.
    let searched = &path[..path.len() - 1];
    let at = searched.iter().enumerate().rev().find(|(at, b)| **b == b'/' && *at <= 155)?.0;
    (path.len() - at - 1 <= 100 && at > 0).then(|| (&path[..at], &path[at + 1..]))
}

/// What the extension header of a path is called, for readers that do not know extension headers.
fn pax_name(path: &[u8]) -> Vec<u8> {
    let clean: Vec<u8> = path.iter().map(|b| if b.is_ascii() { *b } else { b'_' }).collect();
    let (dir, name) = crate::root::split(clean.strip_suffix(b"/").unwrap_or(&clean));
    [dir, b"/PaxHeaders.0/", name]
        .concat()
        .strip_prefix(b"/")
        .map_or_else(|| [dir, b"/PaxHeaders.0/", name].concat(), <[u8]>::to_vec)
}

fn pax_time(seconds: i64, nanos: u32) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    let (sign, whole, fraction) = match seconds {
        ..=-1 => ("-", -(seconds + 1), 1_000_000_000 - nanos),
        _ => ("", seconds, nanos),
    };
    let fraction = format!("{fraction:09}");
    format!("{sign}{whole}.{}", fraction.trim_end_matches('0'))
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let length = field.len().min(bytes.len());
    field[..length].copy_from_slice(&bytes[..length]);
    field[length..].fill(0);
}

impl Entry {
    /// An entry with everything else at nothing.
    pub fn new(path: impl Into<Vec<u8>>, kind: EntryKind, mode: u32) -> Self {
        Self {
            path: path.into(),
            link: Vec::new(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            major: 0,
            minor: 0,
            xattrs: Vec::new(),
            sparse: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tarread::TarReader;
    use proptest::prelude::*;

    fn round_trip(entry: &Entry, data: &[u8]) -> Entry {
        let mut writer = TarWriter::new(Vec::new());
        writer.append(entry, data).unwrap();
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut reader = TarReader::new(&bytes[..]);
        let back = reader.next_entry().unwrap().unwrap();
        let mut read = Vec::new();
        io::Read::read_to_end(&mut reader, &mut read).unwrap();
        assert_eq!(read.len() as u64, entry.size);
        assert!(reader.next_entry().unwrap().is_none());
        back
    }

    #[test]
    fn gnu_tar_reads_what_is_written() {
        let mut writer = TarWriter::new(Vec::new());
        let long = format!("{}/{}/f", "d".repeat(150), "e".repeat(120));
        let mut entry = Entry::new(long.as_bytes(), EntryKind::File, 0o4755);
        entry.size = 3;
        entry.mtime = (1_700_000_000, 5);
        writer.append(&entry, &b"abc"[..]).unwrap();
        let bytes = writer.finish().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("t"), &bytes).unwrap();
        let out = std::process::Command::new("tar").arg("-tvf").arg(dir.path().join("t")).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(
            out.status.success() && text.starts_with("-rwsr-xr-x") && text.trim_end().ends_with(&long),
            "{text}"
        );
    }

    #[test]
    fn a_shrunk_file_is_filled_up() {
        let entry = Entry { size: 600, ..Entry::new("x", EntryKind::File, 0o644) };
        assert_eq!(round_trip(&entry, b"short").size, 600);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            path in "[a-zé]{1,60}(/[a-z]{1,90}){0,4}",
            link in proptest::option::of("[a-z/é]{1,150}"),
            mode in 0u32..0o7777,
            uid in prop_oneof![0i64..100, 2_000_000i64..4_294_967_294],
            seconds in -2_000_000_000i64..20_000_000_000,
            nanos in prop_oneof![Just(0u32), 1u32..1_000_000_000],
            value in proptest::collection::vec(any::<u8>(), 0..40),
            size in 0u64..1500,
        ) {
            let kind = if link.is_some() { EntryKind::Symlink } else { EntryKind::File };
            let mut entry = Entry::new(path.as_bytes(), kind, mode);
            entry.link = link.unwrap_or_default().into_bytes();
            entry.uid = uid;
            entry.mtime = (seconds, nanos);
            entry.xattrs = vec![(b"user.x".to_vec(), value)];
            entry.size = if kind == EntryKind::File { size } else { 0 };
            let data = vec![1; size as usize];
            prop_assert_eq!(round_trip(&entry, &data), entry);
        }
    }
}
