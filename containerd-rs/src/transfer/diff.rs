//! Layers for clients that unpack and commit themselves: a blob applied to mounts, two sets of mounts compared.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use containerd_api::diff::{ApplyRequest, DiffRequest};
use containerd_api::error::Error;
use containerd_api::types::Mount;
use layer::{ApplyOptions, Compression, Encoder, RootDir};
use oci::{Descriptor, Hasher, mediatype};

use super::Transfer;
use super::mounts::{lower_dirs, place, readable, upper_dir};
use super::scope::{Scope, from_wire};
use super::unpack::layer_kind;
use crate::content::Writer;

impl Transfer {
    /// Extracts a layer into mounts and says what it is uncompressed.
    ///
    /// # Errors
    /// The blob is missing or bad, the mounts cannot be used, or the disk is full.
    pub async fn apply(self: &Arc<Self>, scope: Scope, request: ApplyRequest) -> Result<Descriptor, Error> {
        let diff = from_wire(&request.diff.unwrap_or_default())?;
        let transfer = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let (file, _) = scope.open(&diff.digest)?;
            let place = place(&request.mounts, &transfer.scratch)?;
            // Which layer it was is known to the caller, who says it.
            let fail = |err: layer::LayerError| Error::new(layer_kind(&err), err.to_string());
            let root = RootDir::open(&place.directory).map_err(|err| fail(err.into()))?;
            let options = ApplyOptions::layer(place.whiteouts);
            let unpacked = layer::unpack(&root, file, &options).map_err(fail)?;
            let lowers: Result<Vec<RootDir>, _> = place.lowers.iter().map(|dir| RootDir::open(dir)).collect();
            let lowers = lowers.map_err(|err| fail(err.into()))?;
            layer::fix_implied_dirs(&root, &unpacked.applied.implied_dirs, &lowers).map_err(fail)?;
            if request.sync_fs {
                rustix::fs::syncfs(&root).map_err(|err| fail(err.into()))?;
            }
            place.close()?;
            Ok(Descriptor::new(mediatype::OCI_LAYER, unpacked.diff_id, unpacked.size))
        })
        .await
        .map_err(|err| Error::internal("apply", err))?
    }

    /// Compares two sets of mounts and stores the difference as a layer.
    ///
    /// # Errors
    /// The media type is not known, the mounts cannot be used, or the store fails.
    pub async fn diff(self: &Arc<Self>, scope: Scope, request: DiffRequest) -> Result<Descriptor, Error> {
        let media_type = match request.media_type.as_str() {
            "" => mediatype::OCI_LAYER_GZIP.to_owned(),
            named => named.to_owned(),
        };
        let compression = match media_type.as_str() {
            mediatype::OCI_LAYER | mediatype::DOCKER_LAYER => Compression::None,
            mediatype::OCI_LAYER_GZIP | mediatype::DOCKER_LAYER_GZIP => Compression::Gzip,
            mediatype::OCI_LAYER_ZSTD | mediatype::DOCKER_LAYER_ZSTD => Compression::Zstd,
            other => {
                let what = format!("unsupported diff media type: {other}");
                return Err(Error::of(containerd_api::Kind::Unimplemented, what));
            }
        };
        let reference = match request.r#ref.as_str() {
            "" => {
                let mut random = [0u8; 8];
                getrandom::fill(&mut random).map_err(|err| Error::internal("name a write", err))?;
                format!("diff-{}", hex::encode(random))
            }
            named => named.to_owned(),
        };
        self.clean().await;
        let scope = scope.leased().await?;
        let transfer = Arc::clone(self);
        let worker = scope.clone();
        let stored = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Handle::current();
            let writer = runtime.block_on(worker.writer_as(&reference, 0, None))?;
            let mut writer = writer.ok_or_else(|| Error::already_exists("write", &reference))?;
            writer.restart()?;
            let diff_id = transfer.write_diff(&request.left, &request.right, compression, &mut writer)?;
            let digest = writer.digest().ok_or_else(|| Error::internal("diff", "no digest"))?;
            let size = writer.offset();
            let mut labels: HashMap<String, String> = request.labels;
            if compression != Compression::None {
                labels.insert("containerd.io/uncompressed".into(), diff_id.to_string());
            }
            match runtime.block_on(writer.commit(size, None, labels.clone())) {
                Ok(_) => {}
                Err(err) if err.is_already_exists() => {
                    runtime.block_on(worker.hold_content(&digest))?;
                    runtime.block_on(worker.label(&digest, labels))?;
                }
                Err(err) => return Err(err),
            }
            Ok(Descriptor::new(&media_type, digest, size))
        })
        .await
        .map_err(|err| Error::internal("diff", err));
        scope.release().await;
        stored?
    }

    /// Writes the difference. Blocks.
    fn write_diff(
        &self,
        left: &[Mount],
        right: &[Mount],
        compression: Compression,
        writer: &mut Writer,
    ) -> Result<oci::Digest, Error> {
        let fail = |err: layer::LayerError| Error::internal("diff", err);
        let encoder = Encoder::new(Sink(writer), compression).map_err(|err| fail(err.into()))?;
        let hashed =
            Hashed { inner: io::BufWriter::with_capacity(128 * 1024, encoder), hasher: Hasher::default() };
        let hashed = match upper_dir(right).filter(|_| is_below(left, right)) {
            Some(upper) => {
                let root = RootDir::open(&upper).map_err(|err| fail(err.into()))?;
                layer::diff::overlay(&root, hashed).map_err(fail)?
            }
            None => {
                let upper = readable(right, &self.scratch)?;
                let lower = if left.is_empty() { None } else { Some(readable(left, &self.scratch)?) };
                let open = |dir: &std::path::Path| RootDir::open(dir).map_err(|err| fail(err.into()));
                let old = lower.as_ref().map(|l| open(&l.directory)).transpose()?;
                let new = open(&upper.directory)?;
                let hashed = layer::diff::compare(old.as_ref(), &new, hashed).map_err(fail)?;
                drop((old, new));
                upper.close()?;
                lower.map_or(Ok(()), super::mounts::Place::close)?;
                hashed
            }
        };
        let Hashed { inner, hasher } = hashed;
        let encoder = inner.into_inner().map_err(|err| fail(err.into_error().into()))?;
        encoder.finish().map_err(|err| fail(err.into()))?;
        Ok(hasher.finish())
    }
}

/// Whether `left` is exactly what an overlay `right` lies on, so that its upper directory is the difference.
fn is_below(left: &[Mount], right: &[Mount]) -> bool {
    let below = lower_dirs(right);
    !below.is_empty() && lower_dirs(left) == below && upper_dir(left).is_none()
}

/// The content store as a sink.
pub(super) struct Sink<'a>(pub &'a mut Writer);

impl io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.append(bytes).map_err(|err| io::Error::other(err.message().to_owned()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes what passes.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: io::Write> io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
