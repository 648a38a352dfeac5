//! What went wrong, as containerd classifies it, and the gRPC status that says so.
//!
//! containerd's messages end in the kind's own words (`namespace "x": already exists`); clients print them as they are and some match
//! on them. This is the one place where kinds and gRPC codes meet.

use std::fmt;

use tonic::{Code, Status};

/// The kinds of failure that clients tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request makes no sense, whatever the state.
    InvalidArgument,
    NotFound,
    AlreadyExists,
    /// The request makes sense, but not in this state.
    FailedPrecondition,
    /// Another request is at it, or a part is not there right now: try again.
    Unavailable,
    Unimplemented,
    OutOfRange,
    ResourceExhausted,
    PermissionDenied,
    Unauthenticated,
    Aborted,
    DataLoss,
    Canceled,
    DeadlineExceeded,
    Internal,
    Unknown,
}

impl Kind {
    /// The words containerd ends a message of this kind with.
    pub fn text(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid argument",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::FailedPrecondition => "failed precondition",
            Self::Unavailable => "unavailable",
            Self::Unimplemented => "not implemented",
            Self::OutOfRange => "out of range",
            Self::ResourceExhausted => "resource exhausted",
            Self::PermissionDenied => "permission denied",
            Self::Unauthenticated => "unauthenticated",
            Self::Aborted => "aborted",
            Self::DataLoss => "data loss",
            Self::Canceled => "context canceled",
            Self::DeadlineExceeded => "context deadline exceeded",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }

    /// The gRPC code.
    pub fn code(self) -> Code {
        match self {
            Self::InvalidArgument => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::FailedPrecondition => Code::FailedPrecondition,
            Self::Unavailable => Code::Unavailable,
            Self::Unimplemented => Code::Unimplemented,
            Self::OutOfRange => Code::OutOfRange,
            Self::ResourceExhausted => Code::ResourceExhausted,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::Aborted => Code::Aborted,
            Self::DataLoss => Code::DataLoss,
            Self::Canceled => Code::Cancelled,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::Internal => Code::Internal,
            Self::Unknown => Code::Unknown,
        }
    }

    /// The kind a peer's gRPC code stands for; `Ok` is not a failure and becomes `Unknown`.
    pub fn of(code: Code) -> Self {
        match code {
            Code::InvalidArgument => Self::InvalidArgument,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::FailedPrecondition => Self::FailedPrecondition,
            Code::Unavailable => Self::Unavailable,
            Code::Unimplemented => Self::Unimplemented,
            Code::OutOfRange => Self::OutOfRange,
            Code::ResourceExhausted => Self::ResourceExhausted,
            Code::PermissionDenied => Self::PermissionDenied,
            Code::Unauthenticated => Self::Unauthenticated,
            Code::Aborted => Self::Aborted,
            Code::DataLoss => Self::DataLoss,
            Code::Cancelled => Self::Canceled,
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::Internal => Self::Internal,
            Code::Ok | Code::Unknown => Self::Unknown,
        }
    }
}

/// A failure a client is told of: its kind and the whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
}

impl Error {
    /// A failure with its whole message given.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// `what: <words of the kind>`.
    pub fn of(kind: Kind, what: impl fmt::Display) -> Self {
        Self { kind, message: format!("{what}: {}", kind.text()) }
    }

    /// `noun "name": not found`.
    pub fn not_found(noun: &str, name: &str) -> Self {
        Self::of(Kind::NotFound, format_args!("{noun} {}", quote(name)))
    }

    /// `noun "name": already exists`.
    pub fn already_exists(noun: &str, name: &str) -> Self {
        Self::of(Kind::AlreadyExists, format_args!("{noun} {}", quote(name)))
    }

    /// `what: invalid argument`.
    pub fn invalid(what: impl fmt::Display) -> Self {
        Self::of(Kind::InvalidArgument, what)
    }

    /// `what: failed precondition`.
    pub fn precondition(what: impl fmt::Display) -> Self {
        Self::of(Kind::FailedPrecondition, what)
    }

    /// A fault of ours or of the machine: `what: cause`.
    pub fn internal(what: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self { kind: Kind::Unknown, message: format!("{what}: {cause}") }
    }

    /// The same failure seen from further out: `context: message`.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{context}: {}", self.message) }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn is_not_found(&self) -> bool {
        self.kind == Kind::NotFound
    }

    pub fn is_already_exists(&self) -> bool {
        self.kind == Kind::AlreadyExists
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for Status {
    fn from(err: Error) -> Self {
        Status::new(err.kind.code(), err.message)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self { kind: Kind::of(status.code()), message: status.message().to_owned() }
    }
}

/// `text` in double quotes, escaped as Go's `%q` does.
pub fn quote(text: &str) -> String {
    use fmt::Write as _;
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if (0x80..0xa0).contains(&(c as u32)) => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_like_containerds() {
        let err = Error::already_exists("namespace", "x");
        assert_eq!(err.to_string(), "namespace \"x\": already exists");
        assert_eq!(Status::from(err).code(), Code::AlreadyExists);
        assert_eq!(Error::not_found("image", "a\"b\n\x01").message(), "image \"a\\\"b\\n\\x01\": not found");
    }

    #[test]
    fn every_kind_survives_the_wire() {
        for code in 1..=16 {
            let kind = Kind::of(Code::from_i32(code));
            assert_eq!(kind.code() as i32, code);
        }
    }
}
