//! Bytes moved between descriptors inside the kernel.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

/// What one attempt to move bytes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes went across; never 0.
    Bytes(usize),
    /// The source is at its end.
    End,
    /// One of the two is not ready; [`splice`] cannot say which.
    NotReady,
    /// This pair of descriptors cannot be spliced: copy instead.
    Unsupported,
}

/// Moves up to `limit` bytes without blocking. One of the two has to be a pipe.
pub fn splice(from: impl AsFd, to: impl AsFd, limit: usize) -> io::Result<Moved> {
    match rustix::pipe::splice(from, None, to, None, limit, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
        Ok(0) => Ok(Moved::End),
        Ok(count) => Ok(Moved::Bytes(count)),
        Err(Errno::AGAIN) => Ok(Moved::NotReady),
        Err(Errno::INVAL) => Ok(Moved::Unsupported),
        // A pty master whose last slave is closed.
        Err(Errno::IO) => Ok(Moved::End),
        Err(err) => Err(err.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[test]
    fn moves_between_pipes_until_the_end() {
        let (from, feed) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let (sink, to) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        assert_eq!(splice(&from, &to, 1 << 16).unwrap(), Moved::NotReady);
        rustix::io::write(&feed, b"bytes").unwrap();
        assert_eq!(splice(&from, &to, 1 << 16).unwrap(), Moved::Bytes(5));
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&sink, &mut buffer).unwrap(), 5);
        drop(feed);
        assert_eq!(splice(&from, &to, 1 << 16).unwrap(), Moved::End);
    }

    #[test]
    fn two_files_have_to_be_copied() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(splice(&null, &file, 1).unwrap(), Moved::Unsupported);
    }
}
