//! What the engine carries for containers: the init of `--init`, and the image `hello-world`.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, sys_text};

/// When the carried image says it was made: it is part of the image's digest, so it never changes.
const CREATED: &str = "2026-01-01T00:00:00Z";
/// The carried image's name.
pub const HELLO_WORLD: &str = "docker.io/library/hello-world:latest";

/// Puts the init program under the data root and returns its path, for a read-only bind mount at `/sbin/docker-init`.
/// Not under the exec root: `/run` is often mounted noexec.
///
/// # Errors
/// The file cannot be written.
pub fn init_path(data_root: &Path) -> Result<PathBuf> {
    let dir = data_root.join("guest");
    let path = dir.join(format!("docker-init-{}", &hex::encode(Sha256::digest(guest::INIT))[..12]));
    if path.is_file() {
        return Ok(path);
    }
    let failed = |err: std::io::Error| Error::system(format!("write {}: {}", path.display(), sys_text(&err)));
    std::fs::create_dir_all(&dir).map_err(failed)?;
    sys::atomicfile::write(&path, 0o755, guest::INIT).map_err(failed)?;
    Ok(path)
}

/// The image `hello-world` as a tar of an OCI layout, for import. The same bytes for the same build.
///
/// # Errors
/// Never in practice: everything is written to memory.
pub fn hello_world_layout() -> Result<Vec<u8>> {
    build_layout().map_err(|err| Error::system(format!("build the carried image: {err}")))
}

struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: hex::encode(Sha256::digest(&bytes)), bytes }
    }

    fn json(value: &serde_json::Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> serde_json::Value {
        serde_json::json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", self.digest),
            "size": self.bytes.len(),
        })
    }
}

fn build_layout() -> std::io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "hello", guest::HELLO, 0o755)?;
    let layer = layer.into_inner()?;
    let diff_id = hex::encode(Sha256::digest(&layer));
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(&layer)?;
    let layer = Blob::new(gzip.finish()?);
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8")),
        other => (other, None),
    };
    let mut platform = serde_json::json!({"architecture": architecture, "os": "linux"});
    if let Some(variant) = variant {
        platform["variant"] = variant.into();
    }
    let mut config = serde_json::json!({
        "created": CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["/hello"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
        "history": [
            {"created": CREATED, "created_by": "COPY hello / # dockerd-rs"},
            {"created": CREATED, "created_by": "CMD [\"/hello\"]", "empty_layer": true},
        ],
    });
    if let Some(variant) = variant {
        config["variant"] = variant.into();
    }
    let config = Blob::json(&config);
    let manifest = Blob::json(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
    }));
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["platform"] = platform;
    entry["annotations"] = serde_json::json!({"io.containerd.image.name": HELLO_WORLD, "org.opencontainers.image.ref.name": "latest"});
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let mut layout = tar::Builder::new(Vec::new());
    append(&mut layout, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut layout, "index.json", index.to_string().as_bytes(), 0o644)?;
    for blob in [&layer, &config, &manifest] {
        append(&mut layout, &format!("blobs/sha256/{}", blob.digest), &blob.bytes, 0o644)?;
    }
    layout.into_inner()
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_carried_image_is_the_same_every_time() {
        let layout = super::hello_world_layout().unwrap();
        assert_eq!(layout, super::hello_world_layout().unwrap());
        assert!(layout.len() < 32 << 10, "{} bytes", layout.len());
        let mut archive = tar::Archive::new(layout.as_slice());
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names.len(), 5);
        assert_eq!(&names[..2], ["oci-layout", "index.json"]);
    }
}
