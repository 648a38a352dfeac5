//! Media types of image documents and layers, and what each means.

/// OCI and Docker document types.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// Layer types.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
pub const DOCKER_FOREIGN_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// What a registry is told we understand, best first.
pub const ACCEPTED_DOCUMENTS: &[&str] = &[DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX];

/// What a media type says a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Manifest,
    Index,
    Config,
    Layer,
    /// The signed manifests of before 2016, which nothing here reads.
    Schema1,
    Other,
}

/// Classifies a media type. Parameters (`; charset=utf-8`) are ignored.
pub fn kind(media_type: &str) -> Kind {
    match essence(media_type) {
        OCI_MANIFEST | DOCKER_MANIFEST => Kind::Manifest,
        OCI_INDEX | DOCKER_LIST => Kind::Index,
        OCI_CONFIG | DOCKER_CONFIG => Kind::Config,
        DOCKER_SCHEMA1 | DOCKER_SCHEMA1_SIGNED => Kind::Schema1,
        other if is_layer(other) => Kind::Layer,
        _ => Kind::Other,
    }
}

/// The type without parameters and surrounding space.
pub fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// Whether a type names a file system layer, known compression or not.
pub fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}

/// Whether a layer may have to come from the URLs in its descriptor rather than from the registry.
pub fn is_foreign_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
        || media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
}

/// Compression a layer type announces. Readers sniff the bytes anyway: labels lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The compression a media type announces.
pub fn compression(media_type: &str) -> Compression {
    let essence = essence(media_type);
    if essence.ends_with("+gzip") || essence.ends_with(".gzip") {
        Compression::Gzip
    } else if essence.ends_with("+zstd") || essence.ends_with(".zstd") {
        Compression::Zstd
    } else {
        Compression::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_compressions() {
        let rows = [
            (OCI_MANIFEST, Kind::Manifest, Compression::None),
            ("application/vnd.oci.image.index.v1+json; charset=utf-8", Kind::Index, Compression::None),
            (DOCKER_LAYER_GZIP, Kind::Layer, Compression::Gzip),
            (OCI_LAYER_ZSTD, Kind::Layer, Compression::Zstd),
            (DOCKER_FOREIGN_LAYER, Kind::Layer, Compression::None),
            (DOCKER_SCHEMA1_SIGNED, Kind::Schema1, Compression::None),
            ("text/html", Kind::Other, Compression::None),
        ];
        for (text, want, packed) in rows {
            assert_eq!((kind(text), compression(text)), (want, packed), "{text}");
        }
        assert!(is_foreign_layer(DOCKER_FOREIGN_LAYER_GZIP) && !is_foreign_layer(OCI_LAYER));
    }
}
