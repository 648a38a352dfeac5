//! What can go wrong with a registry, in the words Docker and containerd use for it.

use http::StatusCode;

/// One error of a registry's answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct ApiError {
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub message: String,
}

/// Why a request to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Nothing is there under that name.
    #[error("{0}: not found")]
    NotFound(String),
    #[error("content at {url} not found: not found")]
    ContentNotFound { url: String },
    #[error("{what} access denied, repository does not exist or may require authorization: {source}")]
    AccessDenied { what: &'static str, source: Box<RegistryError> },
    #[error("authorization failed: no basic auth credentials")]
    NoCredentials,
    #[error("authorization failed: {0}")]
    Authorization(String),
    #[error("unexpected status from {method} request to {url}: {}{}", status_text(.status), server_text(.errors))]
    Status { method: http::Method, url: String, status: StatusCode, errors: Vec<ApiError> },
    #[error("failed to do request: {method} \"{url}\": {cause}")]
    Request { method: String, url: String, cause: String, plain_http: bool },
    #[error("failed to copy: {0}")]
    Body(String),
    #[error("unexpected EOF")]
    UnexpectedEof,
    #[error("{what} size mismatch: {got} bytes, the descriptor says {want}")]
    Size { what: String, want: u64, got: u64 },
    #[error("manifest verification failed for digest {0}")]
    ManifestDigest(oci::Digest),
    #[error("unexpected commit digest {got}, expected {want}: failed precondition")]
    BlobDigest { want: oci::Digest, got: oci::Digest },
    #[error("registry gave no usable answer: {0}")]
    Protocol(String),
    #[error(transparent)]
    Hosts(#[from] crate::hosts::HostsError),
    #[error("no host of {0} can be used to {1}")]
    NoHost(String, &'static str),
    #[error(transparent)]
    Manifest(#[from] oci::ManifestError),
    #[error("content digest {0}: not found")]
    NoSource(oci::Digest),
    #[error("read content to upload: {0}")]
    Source(#[source] std::io::Error),
}

/// How a caller should take an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NotFound,
    Unauthorized,
    Forbidden,
    /// The content is not what it should be.
    Corrupt,
    Invalid,
    /// The network or the registry is at fault; later it may work.
    Unavailable,
    Other,
}

impl RegistryError {
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound(_) | Self::ContentNotFound { .. } | Self::NoSource(_) => Kind::NotFound,
            Self::AccessDenied { .. } | Self::NoCredentials | Self::Authorization(_) => Kind::Unauthorized,
            Self::Status { status, .. } => match *status {
                StatusCode::NOT_FOUND => Kind::NotFound,
                StatusCode::UNAUTHORIZED => Kind::Unauthorized,
                StatusCode::FORBIDDEN => Kind::Forbidden,
                status if status.is_server_error() => Kind::Unavailable,
                _ => Kind::Other,
            },
            Self::Request { .. } | Self::Body(_) | Self::UnexpectedEof => Kind::Unavailable,
            Self::Size { .. } | Self::ManifestDigest(_) | Self::BlobDigest { .. } => Kind::Corrupt,
            Self::Manifest(_) | Self::Hosts(_) => Kind::Invalid,
            Self::Protocol(_) | Self::NoHost(..) | Self::Source(_) => Kind::Other,
        }
    }

    /// Whether the same request may well succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(
                *status,
                StatusCode::REQUEST_TIMEOUT
                    | StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::INTERNAL_SERVER_ERROR
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            ),
            Self::Request { cause, .. } => ["connection reset", "broken pipe", "EOF", "timeout", "closed"]
                .iter()
                .any(|t| cause.contains(t)),
            Self::Body(_) | Self::UnexpectedEof => true,
            _ => false,
        }
    }
}

fn status_text(status: &StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// The server's own words, as Docker joins codes and messages.
fn server_text(errors: &[ApiError]) -> String {
    let texts: Vec<String> = errors
        .iter()
        .map(|e| {
            let code = e.code.to_ascii_lowercase().replace('_', " ");
            match (code.is_empty(), e.message.is_empty()) {
                (_, true) => code,
                (true, false) => e.message.clone(),
                (false, false) => format!("{code}: {}", e.message),
            }
        })
        .filter(|t| !t.is_empty())
        .collect();
    if texts.is_empty() { String::new() } else { format!(" - Server message: {}", texts.join("\n")) }
}

/// Reads the `errors` of an answer's body, if it has any.
pub(crate) fn parse_errors(body: &[u8]) -> Vec<ApiError> {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<ApiError>,
    }
    serde_json::from_slice::<Body>(body).map(|b| b.errors).unwrap_or_default()
}
