//! A netlink socket: requests answered one by one, dumps, and netfilter's transactions.
//!
//! Synchronous: an exchange with the kernel takes tens of microseconds and must happen on the thread whose network namespace is meant. A
//! socket stays in the namespace it was opened in, wherever its thread goes afterwards.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::{Socket as Raw, SocketAddr, protocols};

use crate::writer::{Messages, Received, messages};
use crate::{Error, Result};

pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const APPEND: u16 = 0x800;
pub(crate) const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYS_NFTABLES: u16 = 10;
const RECEIVE: usize = 64 * 1024;

/// A socket to one of the kernel's netlink families.
#[derive(Debug)]
pub struct Socket {
    raw: Raw,
    sequence: u32,
    port: u32,
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.raw.as_raw_fd()
    }
}

impl Socket {
    /// Links, addresses, routes: in the calling thread's network namespace.
    pub fn route() -> Result<Self> {
        Self::open(protocols::NETLINK_ROUTE)
    }

    /// nf_tables and conntrack: in the calling thread's network namespace.
    pub fn netfilter() -> Result<Self> {
        Self::open(protocols::NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self> {
        let failed = |err| Error::Socket(err);
        let mut raw = Raw::new(protocol).map_err(failed)?;
        let address = raw.bind_auto().map_err(failed)?;
        // Answers carry the request's header only, not all of its bytes back.
        let _ = raw.set_cap_ack(true);
        let timeout = rustix::net::sockopt::set_socket_timeout(
            // The kernel answers within the call; a lost answer (no memory) must not block a thread for ever.
            borrow(&raw),
            rustix::net::sockopt::Timeout::Recv,
            Some(std::time::Duration::from_secs(10)),
        );
        timeout.map_err(|err| failed(err.into()))?;
        Ok(Self { raw, sequence: 1, port: address.port_number() })
    }

    /// The number by which notifications name this socket as their cause.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends all messages at once; the answer to each, in order.
    pub fn each(&mut self, mut out: Messages) -> Result<Vec<std::result::Result<(), Error>>> {
        if out.is_empty() {
            return Ok(Vec::new());
        }
        let (first, count) = (self.next(out.len()), out.len());
        self.send(&mut out, first)?;
        let mut results: Vec<Option<std::result::Result<(), Error>>> = (0..count).map(|_| None).collect();
        let mut missing = count;
        while missing > 0 {
            self.receive(|message| {
                let index = message.sequence.wrapping_sub(first) as usize;
                if message.kind == ERROR && index < count && results[index].is_none() {
                    results[index] = Some(match errno(message.payload) {
                        0 => Ok(()),
                        code => Err(Error::refused(out.what(index), code)),
                    });
                    missing -= 1;
                }
            })?;
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Sends all messages at once; the first refusal is the error (the later ones were tried all the same).
    pub fn all(&mut self, out: Messages) -> Result<()> {
        self.each(out)?.into_iter().collect()
    }

    /// Sends one message that asks for a list, and hands each answer to `each`.
    pub fn dump(&mut self, mut out: Messages, mut each: impl FnMut(Received<'_>)) -> Result<()> {
        let first = self.next(1);
        let what = out.what(0).to_owned();
        self.send(&mut out, first)?;
        let mut end = None;
        while end.is_none() {
            self.receive(|message| {
                if message.sequence != first {
                    return;
                }
                match message.kind {
                    DONE => end = Some(Ok(())),
                    ERROR => {
                        end = Some(match errno(message.payload) {
                            0 => Ok(()),
                            code => Err(Error::refused(&what, code)),
                        });
                    }
                    _ => each(message),
                }
            })?;
        }
        end.unwrap_or(Ok(()))
    }

    /// Sends netfilter messages as one transaction: all take effect, or none.
    pub fn transaction(&mut self, changes: Messages) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        if changes.oversized() {
            return Err(Error::TooLong);
        }
        let edge = |kind: u16| {
            let mut out = Messages::new();
            out.add(kind, REQUEST, "transaction", |body| {
                body.raw(&[0, 0, 0, SUBSYS_NFTABLES as u8]);
            });
            out
        };
        let mut changes = changes;
        // Success is told by the last change's answer; failures are answered unasked.
        changes.flag_last(ACK);
        let count = changes.len() as u32;
        let first = self.next(count as usize + 2);
        let last = first + count;
        let mut bytes = edge(BATCH_BEGIN).numbered(first).to_vec();
        bytes.extend_from_slice(changes.numbered(first + 1));
        bytes.extend_from_slice(edge(BATCH_END).numbered(last + 1));
        if bytes.len() > 100 * 1024 {
            // The default send buffer is 208 KiB, and a page's overhead is counted too.
            let _ =
                rustix::net::sockopt::set_socket_send_buffer_size_force(borrow(&self.raw), bytes.len() * 3);
        }
        self.raw.send_to(&bytes, &SocketAddr::new(0, 0), 0).map_err(Error::Socket)?;
        let mut outcome: Result<()> = Ok(());
        let mut ended = false;
        while !ended {
            self.receive(|message| {
                if message.kind != ERROR || !(first..=last + 1).contains(&message.sequence) {
                    return;
                }
                let code = errno(message.payload);
                if code != 0 && outcome.is_ok() {
                    let index = message.sequence.wrapping_sub(first + 1) as usize;
                    outcome = Err(Error::refused(changes.what(index), code));
                }
                // An error on the opening message means that nothing further was looked at, or that the commit failed.
                ended |= message.sequence == last || (message.sequence == first && code != 0);
            })?;
        }
        outcome
    }

    /// Joins a multicast group: notifications then come from [`Socket::notification`].
    pub fn subscribe(&self, group: u32) -> Result<()> {
        let fd = borrow(&self.raw);
        rustix::net::sockopt::set_socket_recv_buffer_size(fd, 1 << 20)
            .map_err(|err| Error::Socket(err.into()))?;
        self.raw.add_membership(group).map_err(Error::Socket)
    }

    /// Waits for notifications (at most the receive time-out, which is the error `TimedOut`/`WouldBlock`) and hands them over.
    pub fn notification(&mut self, each: impl FnMut(Received<'_>)) -> Result<()> {
        self.receive(each)
    }

    /// Makes receiving return at once when there is nothing: for use with an event loop.
    pub fn set_nonblocking(&self) -> Result<()> {
        self.raw.set_non_blocking(true).map_err(Error::Socket)
    }

    fn next(&mut self, count: usize) -> u32 {
        if self.sequence > u32::MAX / 2 {
            self.sequence = 1;
        }
        let first = self.sequence;
        self.sequence += count as u32;
        first
    }

    fn send(&mut self, out: &mut Messages, first: u32) -> Result<()> {
        if out.oversized() {
            return Err(Error::TooLong);
        }
        self.raw.send_to(out.numbered(first), &SocketAddr::new(0, 0), 0).map_err(Error::Socket)?;
        Ok(())
    }

    fn receive(&mut self, mut each: impl FnMut(Received<'_>)) -> Result<()> {
        let mut buf = Vec::with_capacity(RECEIVE);
        loop {
            match self.raw.recv(&mut buf, 0) {
                Ok(_) => break,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(Error::Socket(err)),
            }
        }
        messages(&buf).for_each(&mut each);
        Ok(())
    }
}

fn borrow(raw: &Raw) -> std::os::fd::BorrowedFd<'_> {
    use std::os::fd::AsFd;
    raw.as_fd()
}

fn errno(payload: &[u8]) -> i32 {
    payload
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(libc::EPROTO, |b| i32::from_ne_bytes(b).wrapping_neg())
}
