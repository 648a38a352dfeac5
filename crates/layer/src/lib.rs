//! Layers: reading and writing tars, extraction inside a root, diffs, compression.
//!
//! Invariant: nothing an archive says leads outside the root it is extracted into. Every path is resolved by the
//! kernel below a directory descriptor ([`RootDir`]), every buffer that an archive can make us fill is bounded, and
//! names that overlayfs reads as its own are not accepted from a tar.
//!
//! Everything here is synchronous and meant for a blocking thread.
//!
//! - [`unpack()`]: a (compressed) layer into a directory, hashed on the way: what a pull does.
//! - [`extract()`]: a plain tar into a directory: `docker cp` into a container, `docker import`.
//! - [`diff`]: an overlay's upper directory, or two trees, into a layer: commit.
//! - [`tree`]: a directory tree into a tar: `docker cp` out of a container, `docker export`.

pub mod apply;
pub mod codec;
pub mod diff;
mod error;
pub mod root;
pub mod tarread;
pub mod tarwrite;
pub mod tree;
pub mod unpack;

pub use apply::{Applied, ApplyOptions, Limits, Whiteouts, extract, fix_implied_dirs};
pub use codec::{Compression, Decoder, Encoder};
pub use error::{Kind, LayerError};
pub use root::RootDir;
pub use tarread::{Entry, EntryKind, TarReader};
pub use tarwrite::TarWriter;
pub use unpack::{Unpacked, unpack};
