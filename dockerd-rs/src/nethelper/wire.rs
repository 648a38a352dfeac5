//! What dockerd-rs and the helper say to each other: a length, JSON, and descriptors beside it.
//!
//! One request, one reply, in turn. Descriptors travel with the first byte of the request they belong to.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::network::model::Protocol;

/// Raised when the two could misunderstand each other; a helper of another version is replaced.
pub const VERSION: u32 = 2;
/// Descriptors in one request at most (the kernel's limit is 253).
pub const MAX_FDS: usize = 200;
const MAX_BYTES: usize = 16 << 20;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Who are you, and what do you hold?
    Hello,
    /// A sandbox is so; with `fresh`, its resolver's sockets come along: UDP, TCP, network namespace.
    Put {
        /// The whole sandbox, replacing what was known of it.
        sandbox: Sandbox,
        /// Whether three descriptors come along.
        fresh: bool,
    },
    /// Sockets to hold, one descriptor each.
    Hold {
        /// Whose they are.
        sandbox: String,
        /// What they are.
        sockets: Vec<Held>,
    },
    /// Held sockets lead elsewhere from now on.
    Aim {
        /// Whose they are.
        sandbox: String,
        /// Which, and where to.
        aims: Vec<Aim>,
    },
    /// A sandbox is gone.
    Remove {
        /// Its id.
        sandbox: String,
    },
    /// End now: another helper takes over.
    Leave,
}

/// A reply.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// The helper's version.
    pub version: u32,
    /// Why it failed; empty if it did not.
    pub error: String,
    /// To `Hello`: the sandboxes, and whether their resolver's sockets are held.
    pub sandboxes: Vec<(String, bool, usize)>,
}

/// Where a run of held sockets leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aim {
    /// The protocol.
    pub protocol: Protocol,
    /// The first socket's own address.
    pub host: SocketAddr,
    /// The first one's target; the others' follow.
    pub carry_to: SocketAddr,
    /// How many.
    pub count: u16,
}

/// A container as the resolver knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// The container's id.
    pub container: String,
    /// Its endpoints, the preferred first.
    pub endpoints: Vec<Named>,
    /// Its own names for other containers: alias, container id, network id (empty: any).
    pub links: Vec<(String, String, String)>,
    /// Servers for names nobody here has.
    pub upstreams: Vec<Upstream>,
    /// Whether such names are asked for at all.
    pub forward: bool,
    /// Whether the container set `ndots`: names without a dot are then not asked for outside.
    pub ndots_set: bool,
}

/// An endpoint's names and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The network's id.
    pub network: String,
    /// The network's name.
    pub network_name: String,
    /// Names, the container's own first.
    pub names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// A server for other names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// Its address.
    pub ip: IpAddr,
    /// Whether it is asked from the host's namespace.
    pub from_host: bool,
}

/// A socket on the host that belongs to a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The protocol.
    pub protocol: Protocol,
    /// Where what reaches it is carried.
    pub carry_to: SocketAddr,
}

/// Sends one message.
///
/// # Errors
/// The other side is gone.
pub fn send<T: Serialize>(stream: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors in one message"));
    }
    let mut at = 0;
    while at < bytes.len() {
        let part = [IoSlice::new(&bytes[at..])];
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(stream.as_fd(), &part, &mut ancillary, SendFlags::NOSIGNAL)
        })?;
        at += sent;
        ancillary.clear();
    }
    Ok(())
}

/// Bytes and descriptors of a message that is still arriving.
#[derive(Default)]
pub struct Incoming {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Incoming {
    /// Receives once. `Ok(false)`: the other side has closed.
    ///
    /// # Errors
    /// The socket's, also `WouldBlock`.
    pub fn receive(&mut self, stream: impl AsFd) -> io::Result<bool> {
        let mut buf = [0; 16 * 1024];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                stream.as_fd(),
                &mut [IoSliceMut::new(&mut buf)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.bytes.extend_from_slice(&buf[..received.bytes]);
        Ok(received.bytes > 0)
    }

    /// The message, once it is whole.
    ///
    /// # Errors
    /// It is no message.
    pub fn message<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some(len) = self.bytes.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes) else {
            return Ok(None);
        };
        let len = len as usize;
        if len > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
        }
        let Some(body) = self.bytes.get(4..4 + len) else { return Ok(None) };
        let message = serde_json::from_slice(body)?;
        self.bytes.drain(..4 + len);
        Ok(Some((message, std::mem::take(&mut self.fds))))
    }
}

/// Waits for one message. The stream is blocking and has a receive time-out.
///
/// # Errors
/// The other side is gone or says nothing.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut incoming = Incoming::default();
    loop {
        if let Some(message) = incoming.message()? {
            return Ok(message);
        }
        if !incoming.receive(stream)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_travel_with_their_message() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&ours, &Request::Hello, &[]).unwrap();
        send(&ours, &Request::Leave, &[file.as_fd(), file.as_fd()]).unwrap();
        let mut incoming = Incoming::default();
        let mut got = Vec::new();
        while got.len() < 2 {
            match incoming.message::<Request>().unwrap() {
                Some((message, fds)) => got.push((format!("{message:?}"), fds.len())),
                None => assert!(incoming.receive(&theirs).unwrap()),
            }
        }
        assert_eq!(got.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["Hello", "Leave"]);
        assert_eq!(got.iter().map(|(_, fds)| fds).sum::<usize>(), 2);
    }
}
