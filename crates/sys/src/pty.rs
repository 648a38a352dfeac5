//! Terminals: receiving a master from a runtime, and its size.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::termios::Winsize;

/// Sets the window size; the foreground process group gets `SIGWINCH`.
pub fn set_size(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Receives the one descriptor a runtime sends over its console socket (`SCM_RIGHTS`), close-on-exec.
///
/// `WouldBlock` on a non-blocking socket with nothing yet; `UnexpectedEof` when the peer left or sent no descriptor; `InvalidData` when it is no
/// terminal.
pub fn receive_master(socket: impl AsFd) -> io::Result<OwnedFd> {
    // The payload is the terminal's name; nobody needs it.
    let mut name = [0u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let master = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let master = master.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    if !rustix::termios::isatty(&master) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the runtime sent a descriptor that is no terminal",
        ));
    }
    Ok(master)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use rustix::pty::{OpenptFlags, openpt};
    use std::os::unix::net::UnixStream;

    fn send(socket: &UnixStream, descriptor: impl AsFd) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        rustix::net::sendmsg(socket, &[io::IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::empty())
            .unwrap();
    }

    #[test]
    fn a_terminal_arrives_and_can_be_sized() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&theirs, openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
        let master = receive_master(&ours).unwrap();
        set_size(&master, 132, 43).unwrap();
        let size = rustix::termios::tcgetwinsize(&master).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
    }

    #[test]
    fn anything_else_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&theirs, std::fs::File::open("/dev/null").unwrap());
        assert_eq!(receive_master(&ours).unwrap_err().kind(), io::ErrorKind::InvalidData);
        rustix::io::write(&theirs, b"no descriptor").unwrap();
        assert_eq!(receive_master(&ours).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        drop(theirs);
        assert_eq!(receive_master(&ours).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
