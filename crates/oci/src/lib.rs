//! The vocabulary of images: digests, references, platforms, manifests, image configuration.
//!
//! Invariant: everything here is parsed once, at the boundary; a [`Digest`], [`Reference`] or [`Platform`]
//! that exists is well formed, so it may become a path, a URL or a key without another look. No I/O.

pub mod config;
pub mod digest;
pub mod manifest;
pub mod mediatype;
pub mod platform;
pub mod reference;

pub use config::ImageConfig;
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use manifest::{Descriptor, Document, Index, Manifest, ManifestError};
pub use platform::{Platform, PlatformError, PlatformMatcher};
pub use reference::{Reference, ReferenceError, ReferenceOrDigest};
