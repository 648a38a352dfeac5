//! What went wrong, in the words and with the class a Docker client expects.
//!
//! Invariant: an HTTP status is chosen in [`Kind::status`] and nowhere else. The text is Docker's, to the letter, because
//! clients match on it; the cause, if there is one, is for the log.

use std::fmt;

use http::StatusCode;

/// The class of a failure, as Docker's `errdefs` divides them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The caller's parameters are wrong: 400.
    InvalidParameter,
    /// Credentials are missing or wrong: 401.
    Unauthorized,
    /// The operation is not allowed on this object: 403.
    Forbidden,
    /// The object does not exist: 404.
    NotFound,
    /// The object is in the wrong state, or the name is taken: 409.
    Conflict,
    /// A body or header is larger than the engine accepts: 413.
    TooLarge,
    /// The object already is as asked: 304.
    NotModified,
    /// The engine cannot do this: 501.
    NotImplemented,
    /// The engine cannot do this now: 503.
    Unavailable,
    /// Everything else: 500.
    System,
}

impl Kind {
    /// The HTTP status of this class (moby `errdefs` to HTTP table).
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidParameter => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotModified => StatusCode::NOT_MODIFIED,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::System => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A failure as it is told to a client.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: String,
}

/// The result of nearly everything in the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of class `kind` with the text the client sees.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// 400.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidParameter, message)
    }

    /// 401.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(Kind::Unauthorized, message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(Kind::Forbidden, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, message)
    }

    /// 304; the text never reaches the client.
    pub fn not_modified(message: impl Into<String>) -> Self {
        Self::new(Kind::NotModified, message)
    }

    /// 501.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(Kind::NotImplemented, message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// 500.
    pub fn system(message: impl Into<String>) -> Self {
        Self::new(Kind::System, message)
    }

    /// The class.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same class with `prefix: ` before the text, as Go wraps errors.
    #[must_use]
    pub fn context(mut self, prefix: impl fmt::Display) -> Self {
        self.message = format!("{prefix}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(err: std::io::Error) -> Self {
        Self::system(sys_text(&err))
    }
}

impl From<tonic::Status> for Error {
    /// A gRPC status keeps its class and its text (moby does the same for containerd's answers).
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        let kind = match status.code() {
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => Kind::InvalidParameter,
            Code::NotFound => Kind::NotFound,
            Code::AlreadyExists | Code::Aborted => Kind::Conflict,
            Code::PermissionDenied => Kind::Forbidden,
            Code::Unauthenticated => Kind::Unauthorized,
            Code::Unavailable => Kind::Unavailable,
            Code::Unimplemented => Kind::NotImplemented,
            _ => Kind::System,
        };
        Self::new(kind, status.message())
    }
}

/// An operating-system error in the words Go prints (`no such file or directory`), without Rust's `(os error N)`.
pub fn sys_text(err: &std::io::Error) -> String {
    let text = err.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    match err.raw_os_error() {
        // glibc capitalises its messages, Go does not.
        Some(_) => {
            let mut chars = text.chars();
            chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
        }
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_read_as_go_prints_them() {
        let err = std::io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(sys_text(&err), "no such file or directory");
    }

    #[test]
    fn grpc_classes_keep_their_meaning() {
        let err = Error::from(tonic::Status::already_exists("snapshot \"x\": already exists"));
        assert_eq!((err.kind(), err.message()), (Kind::Conflict, "snapshot \"x\": already exists"));
    }
}
