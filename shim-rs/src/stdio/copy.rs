//! Bytes from one descriptor to another without a buffer of ours where the kernel can do it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use sys::splice::{Moved, splice};
use tokio::io::unix::AsyncFd;

/// How much one splice may move.
const CHUNK: usize = 1 << 20;
/// How much is read at once where bytes have to be copied.
const BUFFER: usize = 32 << 10;
/// Turns after which others get theirs.
const TURNS: u32 = 16;

/// Where bytes go.
pub enum Writer {
    /// A pipe or terminal that can be waited for.
    Waiting(AsyncFd<OwnedFd>),
    /// One that others use as well.
    Shared(Rc<AsyncFd<OwnedFd>>),
    /// A file, which is always ready.
    Ready(OwnedFd),
}

impl Writer {
    /// Made non-blocking if it can be waited for.
    pub fn new(fd: OwnedFd) -> io::Result<Writer> {
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        // epoll takes neither files nor /dev/null and its like.
        if kind.is_file() || (kind.is_char_device() && !rustix::termios::isatty(&fd)) {
            return Ok(Writer::Ready(fd));
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Writer::Waiting(crate::readiness::register(fd)?))
    }

    async fn ready(&self) -> io::Result<()> {
        match self {
            Writer::Waiting(fd) => until(fd, PollFlags::OUT).await,
            Writer::Shared(fd) => until(fd, PollFlags::OUT).await,
            Writer::Ready(_) => Ok(()),
        }
    }
}

impl AsFd for Writer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Writer::Waiting(fd) => fd.get_ref().as_fd(),
            Writer::Shared(fd) => fd.get_ref().as_fd(),
            Writer::Ready(fd) => fd.as_fd(),
        }
    }
}

/// Copies until the end of `from` or until nobody can take more.
pub async fn copy(from: &AsyncFd<OwnedFd>, to: &Writer) {
    let mut turns = 0;
    loop {
        turns += 1;
        if turns % TURNS == 0 {
            tokio::task::yield_now().await;
        }
        match splice(from.get_ref(), to, CHUNK) {
            Ok(Moved::Bytes(_)) => {}
            Ok(Moved::NotReady) => {
                let waited = match is_ready(from.get_ref().as_fd(), PollFlags::IN) {
                    true => to.ready().await,
                    false => until(from, PollFlags::IN).await,
                };
                if waited.is_err() {
                    return;
                }
            }
            Ok(Moved::Unsupported) => {
                let _ = copy_through_memory(from, to).await;
                return;
            }
            Ok(Moved::End) | Err(_) => return,
        }
    }
}

async fn copy_through_memory(from: &AsyncFd<OwnedFd>, to: &Writer) -> io::Result<()> {
    let mut turns = 0;
    loop {
        until(from, PollFlags::IN).await?;
        // Made anew each time: a stream that is silent holds no memory.
        let mut buffer = vec![0; BUFFER];
        loop {
            turns += 1;
            if turns % TURNS == 0 {
                tokio::task::yield_now().await;
            }
            let count = match rustix::io::read(from.get_ref(), &mut buffer) {
                // A terminal whose last process is gone says EIO.
                Ok(0) | Err(Errno::IO) => return Ok(()),
                Ok(count) => count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(err) => return Err(err.into()),
            };
            write_all(to, &buffer[..count]).await?;
        }
    }
}

async fn write_all(to: &Writer, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::AGAIN) => to.ready().await?,
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

/// Whether a descriptor is ready now, or at its end.
pub fn is_ready(fd: BorrowedFd<'_>, what: PollFlags) -> bool {
    let mut poll = [PollFd::from_borrowed_fd(fd, what)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|count| count > 0)
}

/// Waits until a descriptor is ready or at its end.
///
/// The readiness tokio remembers may be stale, because splice uses descriptors behind its back; the kernel is asked before it is trusted.
pub async fn until(fd: &AsyncFd<OwnedFd>, what: PollFlags) -> io::Result<()> {
    loop {
        let mut guard = match what == PollFlags::IN {
            true => fd.readable().await?,
            false => fd.writable().await?,
        };
        if is_ready(fd.get_ref().as_fd(), what) {
            return Ok(());
        }
        guard.clear_ready();
    }
}
