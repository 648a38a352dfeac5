//! What can go wrong with a layer. The texts that clients see are Docker's.

use std::io;

/// Why a layer could not be read, written or extracted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("archive/tar: invalid tar header")]
    Header,
    #[error("archive/tar: header field too long")]
    FieldTooLong,
    #[error("unexpected EOF")]
    UnexpectedEof,
    #[error("invalid entry name {0:?}")]
    EntryName(String),
    #[error("invalid hardlink target {0:?}")]
    LinkTarget(String),
    #[error("invalid whiteout entry {0:?}")]
    Whiteout(String),
    #[error("{0}: file name too long")]
    NameTooLong(String),
    #[error("{path}: device number {major}:{minor} is not allowed in a layer")]
    Device { path: String, major: u64, minor: u64 },
    #[error("{path}: owner {id} is out of range")]
    Owner { path: String, id: i64 },
    #[error("{path}: unhandled tar header type {kind}")]
    EntryType { path: String, kind: u8 },
    #[error("layer unpacks to more than {0} bytes")]
    TooLarge(u64),
    #[error("layer has more than {0} entries")]
    TooManyEntries(u64),
    #[error("{what} {path}: {}", os_text(.source))]
    Path { what: &'static str, path: String, source: io::Error },
    #[error("linkat {target} {path}: {}", os_text(.source))]
    Link { target: String, path: String, source: io::Error },
    #[error("cannot overwrite directory {existing:?} with non-directory {entry:?}")]
    DirectoryInTheWay { existing: String, entry: String },
    #[error("cannot overwrite non-directory {existing:?} with directory {entry:?}")]
    FileInTheWay { existing: String, entry: String },
    #[error("{}", os_text(.0))]
    Io(#[from] io::Error),
}

/// How a caller should take an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The archive is at fault; another try gives the same.
    Invalid,
    /// The disk is full.
    Full,
    /// The machine is at fault: permission, I/O error.
    System,
}

impl LayerError {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Io(source) | Self::Path { source, .. } | Self::Link { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::Full,
                _ => Kind::System,
            },
            Self::Header
            | Self::FieldTooLong
            | Self::UnexpectedEof
            | Self::EntryName(_)
            | Self::LinkTarget(_)
            | Self::Whiteout(_)
            | Self::NameTooLong(_)
            | Self::Device { .. }
            | Self::Owner { .. }
            | Self::EntryType { .. }
            | Self::TooLarge(_)
            | Self::TooManyEntries(_)
            | Self::DirectoryInTheWay { .. }
            | Self::FileInTheWay { .. } => Kind::Invalid,
        }
    }

    pub(crate) fn at(what: &'static str, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = lossy(path);
        move |errno| Self::Path { what, path, source: errno.into() }
    }
}

impl From<rustix::io::Errno> for LayerError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An operating system error in the words of C and Go: lower case, without Rust's "(os error 2)".
pub(crate) fn os_text(err: &io::Error) -> String {
    let text = err.to_string();
    match text.find(" (os error ") {
        Some(end) => {
            let mut chars = text[..end].chars();
            chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
        }
        None => text,
    }
}

/// An inner error that crossed a `std::io` interface comes back as what it was.
pub(crate) fn from_io(err: io::Error) -> LayerError {
    if err.kind() == io::ErrorKind::UnexpectedEof {
        return LayerError::UnexpectedEof;
    }
    match err.downcast::<LayerError>() {
        Ok(inner) => inner,
        Err(err) => LayerError::Io(err),
    }
}
