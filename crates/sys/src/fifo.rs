//! Named pipes that never block and survive the death of the other side.
//!
//! The ends are opened non-blocking. A writer also holds a read end, so that a reader that goes away causes no `EPIPE`: what is written waits
//! for the next reader. A second write end held beside a reader keeps it from seeing the end of file before it is meant to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The writing side of a named pipe.
#[derive(Debug)]
pub struct FifoWriter {
    /// Where to write; non-blocking.
    pub write: OwnedFd,
    /// Never read from: keeps the pipe alive without readers.
    pub hold: OwnedFd,
    /// Whether somebody else had it open for reading when it was opened here.
    pub had_reader: bool,
}

/// Whether `path` is a named pipe. An error when it cannot be looked at.
pub fn is_fifo(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    Ok(std::fs::metadata(path)?.file_type().is_fifo())
}

/// Opens for writing, with or without a reader.
pub fn open_writer(path: &Path) -> io::Result<FifoWriter> {
    match open(path, OFlags::WRONLY) {
        Ok(write) => Ok(FifoWriter { write, hold: open(path, OFlags::RDONLY)?, had_reader: true }),
        Err(Errno::NXIO) => {
            let hold = open(path, OFlags::RDONLY)?;
            Ok(FifoWriter { write: open(path, OFlags::WRONLY)?, hold, had_reader: false })
        }
        Err(err) => Err(err.into()),
    }
}

/// Opens for reading; reads answer the end of file while there is no writer.
pub fn open_reader(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDONLY)?)
}

/// Opens a write end next to a reader that is already there, to hold off the end of file. Fails with `ENXIO` without a reader.
pub fn open_write_hold(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::WRONLY)?)
}

/// How many bytes were written and not yet read.
pub fn unread(fd: impl AsFd) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(fd)?)
}

fn open(path: &Path, access: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        (directory, path)
    }

    #[test]
    fn a_reader_that_dies_costs_nothing() {
        let (_directory, path) = make();
        assert!(is_fifo(&path).unwrap());
        let reader = open_reader(&path).unwrap();
        let writer = open_writer(&path).unwrap();
        assert!(writer.had_reader);
        drop(reader);
        rustix::io::write(&writer.write, b"kept").unwrap();
        assert_eq!(unread(&writer.hold).unwrap(), 4);
        let again = open_reader(&path).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&again, &mut buffer).unwrap(), 4);
    }

    #[test]
    fn opening_needs_no_reader_and_says_so() {
        let (_directory, path) = make();
        assert!(!open_writer(&path).unwrap().had_reader);
        assert_eq!(open_write_hold(&path).unwrap_err().raw_os_error(), Some(libc::ENXIO));
        assert!(!is_fifo(Path::new("/dev/null")).unwrap());
        assert!(is_fifo(Path::new("/nonexistent")).is_err());
    }
}
