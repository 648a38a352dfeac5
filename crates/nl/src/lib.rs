//! Netlink: links, addresses, routes, nf_tables, conntrack.
//!
//! Invariant: this is the only crate that speaks netlink, and no program (`ip`, `nft`, `iptables`) is ever run in its place. Calls are
//! synchronous and belong to the network namespace of the thread that opened the [`Socket`].

pub mod addr;
pub mod conntrack;
pub mod link;
pub mod nft;
pub mod sock;
pub mod writer;

pub use sock::Socket;
pub use writer::Messages;

/// What the kernel, or the way to it, refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket itself failed.
    #[error("netlink socket")]
    Socket(#[source] std::io::Error),
    /// The kernel refused one request.
    #[error("{what}: {}", go_text(*code))]
    Refused {
        /// What was asked for.
        what: String,
        /// The errno.
        code: i32,
    },
    /// More attributes than one message can hold.
    #[error("netlink message too long")]
    TooLong,
}

impl Error {
    pub(crate) fn refused(what: &str, code: i32) -> Self {
        Self::Refused { what: what.to_owned(), code }
    }

    /// The errno behind it, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(err) => err.raw_os_error(),
            Self::Refused { code, .. } => Some(*code),
            Self::TooLong => None,
        }
    }

    /// Whether the object was there already.
    pub fn exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether the object is not there.
    pub fn missing(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL))
    }

    /// The kernel's reason alone, as Docker prints it (`operation not supported`).
    pub fn reason(&self) -> String {
        self.errno().map_or_else(|| self.to_string(), go_text)
    }
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// An errno in lower case and without its number.
fn go_text(code: i32) -> String {
    let text = std::io::Error::from_raw_os_error(code).to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
