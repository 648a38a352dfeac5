//! Who a request is for: the namespace and lease it carries, as gRPC metadata.
//!
//! Invariant: a [`Namespace`] holds a valid identifier, so it can be part of a key or a path.

use std::fmt;

use tonic::Request;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use crate::error::{Error, Kind, quote};

/// The header that names the namespace over gRPC.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";
/// The same over ttrpc.
pub const NAMESPACE_TTRPC: &str = "containerd-namespace-ttrpc";
/// The header that names the lease new objects are added to.
pub const LEASE_HEADER: &str = "containerd-lease";

/// A namespace name that was checked.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(String);

impl Namespace {
    /// # Errors
    /// `InvalidArgument` when `name` is no identifier.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        validate_identifier(&name)?;
        Ok(Self(name))
    }

    /// The namespace a request is for.
    ///
    /// # Errors
    /// `FailedPrecondition` without the header, `InvalidArgument` when it is no identifier.
    pub fn of(metadata: &MetadataMap) -> Result<Self, Error> {
        match text(metadata, NAMESPACE_HEADER) {
            None | Some("") => Err(Error::precondition("namespace is required")),
            Some(name) => Self::new(name).map_err(|err| err.context("namespace validation")),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Namespace {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The lease a request works under, if any.
pub fn lease(metadata: &MetadataMap) -> Option<&str> {
    text(metadata, LEASE_HEADER).filter(|id| !id.is_empty())
}

/// A request that carries `namespace`, and `lease` when there is one. A value that cannot be a header is left out, and the peer says what
/// is missing.
pub fn request<T>(message: T, namespace: &str, lease: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    if let Ok(value) = MetadataValue::<Ascii>::try_from(namespace) {
        metadata.insert(NAMESPACE_HEADER, value);
    }
    if let Some(Ok(value)) = lease.map(MetadataValue::<Ascii>::try_from) {
        metadata.insert(LEASE_HEADER, value);
    }
    request
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key).and_then(|value| value.to_str().ok())
}

const IDENTIFIER_MAX: usize = 76;

/// Checks that `id` is one of containerd's identifiers: runs of letters and digits joined by single `.`, `_` or `-`, at most 76 bytes.
///
/// # Errors
/// `InvalidArgument` with containerd's words.
pub fn validate_identifier(id: &str) -> Result<(), Error> {
    if id.is_empty() {
        return Err(Error::invalid("identifier must not be empty"));
    }
    if id.len() > IDENTIFIER_MAX {
        return Err(Error::of(
            Kind::InvalidArgument,
            format_args!(
                "identifier {} greater than maximum length ({IDENTIFIER_MAX} characters)",
                quote(id)
            ),
        ));
    }
    let mut after_run = false;
    for byte in id.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => after_run = true,
            b'.' | b'_' | b'-' if after_run => after_run = false,
            _ => return Err(malformed(id)),
        }
    }
    if after_run { Ok(()) } else { Err(malformed(id)) }
}

fn malformed(id: &str) -> Error {
    let pattern = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$";
    Error::invalid(format_args!("identifier {} must match {pattern}", quote(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        for good in ["a", "moby", "default-1", "k8s.io", "A_b-c.9", &"x".repeat(76)] {
            assert_eq!(validate_identifier(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "-a", "a-", "a--b", "a/b", "a b", "ä", "..", "a\0", &"x".repeat(77)] {
            assert_eq!(validate_identifier(bad).map_err(|e| e.kind()), Err(Kind::InvalidArgument), "{bad}");
        }
    }

    #[test]
    fn a_request_carries_namespace_and_lease() {
        let request = request((), "moby", Some("l1"));
        assert_eq!(Namespace::of(request.metadata()).unwrap().as_str(), "moby");
        assert_eq!(lease(request.metadata()), Some("l1"));
        let bare = Request::new(());
        let err = Namespace::of(bare.metadata()).unwrap_err();
        assert_eq!(err.to_string(), "namespace is required: failed precondition");
    }
}
