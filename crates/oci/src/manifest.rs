//! Reading manifests and indexes, and the descriptors they are made of.
//!
//! Invariant: a [`Document`] is exactly one of manifest and index. A document that could be read as both, or that
//! says it is what its transport said it is not, is refused (CVE-2021-41190). The bytes a document was read from
//! are what is stored and hashed; nothing here is ever serialised back in their place.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::mediatype::{self, Kind};
use crate::platform::Platform;

/// Largest manifest or index that is read, in bytes (the distribution specification asks for 4 MiB).
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Largest image configuration that is read, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Most layers an image may have: the kernel's overlay takes 127 below the writable one.
pub const MAX_LAYERS: usize = 127;
/// Deepest nesting of indexes that is followed.
pub const MAX_INDEX_DEPTH: usize = 4;
/// Most descriptors that are looked at for one image, through all nested indexes.
pub const MAX_DESCRIPTORS: usize = 2000;

/// Labels and the like, in key order as Go's encoder writes maps.
pub type Annotations = BTreeMap<String, String>;

/// Points to content. Field order is the image specification's, so that what we write looks as others write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// Size in bytes. A negative one is refused while parsing.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: Annotations,
    /// The content itself, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
}

impl Descriptor {
    /// A descriptor of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// A descriptor without the optional parts.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: Annotations::new(),
            data: None,
            platform: None,
            artifact_type: String::new(),
        }
    }

    /// What the media type says this is.
    pub fn kind(&self) -> Kind {
        mediatype::kind(&self.media_type)
    }

    /// Whether this is a build record (provenance, bill of materials) rather than something to run.
    pub fn is_attestation(&self) -> bool {
        self.annotations.get("vnd.docker.reference.type").is_some_and(|t| t == "attestation-manifest")
    }
}

/// One image: a configuration and layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    pub config: Descriptor,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: Annotations,
}

/// Several images, one per platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: Annotations,
}

/// What a registry or store holds under a manifest digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// Why bytes are not an image document.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("document of {0} bytes is larger than the {MAX_DOCUMENT_BYTES} allowed")]
    TooLarge(u64),
    #[error("ocimanifest: expected {expected} but found {found}")]
    Mixed { expected: &'static str, found: &'static str },
    #[error("if present, mediaType in manifest should be '{expected}' not '{found}'")]
    MediaType { expected: String, found: String },
    #[error("image manifest schema 1 is not supported: the image must be rebuilt or converted")]
    Schema1,
    #[error("unsupported manifest media type: {0:?}")]
    Unsupported(String),
    #[error("unsupported manifest schema version {0}")]
    SchemaVersion(u32),
    #[error("max depth exceeded")]
    TooManyLayers,
    #[error("index has more than {MAX_DESCRIPTORS} entries")]
    TooManyEntries,
}

/// The parts of a document that say what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Peek<'a> {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default, borrow)]
    config: Option<&'a serde_json::value::RawValue>,
    #[serde(default, borrow)]
    layers: Option<&'a serde_json::value::RawValue>,
    #[serde(default, borrow)]
    manifests: Option<&'a serde_json::value::RawValue>,
    #[serde(default, borrow, rename = "fsLayers")]
    fs_layers: Option<&'a serde_json::value::RawValue>,
}

impl Document {
    /// Reads a document. `said` is the media type by which it was reached (a header or a descriptor), if any.
    pub fn read(bytes: &[u8], said: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(ManifestError::TooLarge(bytes.len() as u64));
        }
        let said = said.map(mediatype::essence).filter(|s| mediatype::kind(s) != Kind::Other);
        if said.is_some_and(|s| mediatype::kind(s) == Kind::Schema1) {
            return Err(ManifestError::Schema1);
        }
        let peek: Peek<'_> = serde_json::from_slice(bytes)?;
        if peek.schema_version == 1 || peek.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        if peek.schema_version != 2 {
            return Err(ManifestError::SchemaVersion(peek.schema_version));
        }
        match decide(&peek, said)? {
            Kind::Index => {
                let index: Index = serde_json::from_slice(bytes)?;
                if index.manifests.len() > MAX_DESCRIPTORS {
                    return Err(ManifestError::TooManyEntries);
                }
                Ok(Self::Index(index))
            }
            _ => {
                let manifest: Manifest = serde_json::from_slice(bytes)?;
                if manifest.layers.len() > MAX_LAYERS {
                    return Err(ManifestError::TooManyLayers);
                }
                Ok(Self::Manifest(manifest))
            }
        }
    }

    /// The media type to file this document under: its own word, else its OCI type.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Manifest(m) if m.media_type.is_empty() => mediatype::OCI_MANIFEST,
            Self::Manifest(m) => &m.media_type,
            Self::Index(i) if i.media_type.is_empty() => mediatype::OCI_INDEX,
            Self::Index(i) => &i.media_type,
        }
    }
}

/// Manifest or index, if everything about the document agrees.
fn decide(peek: &Peek<'_>, said: Option<&str>) -> Result<Kind, ManifestError> {
    let own = peek.media_type.as_str();
    if let Some(said) = said
        && !own.is_empty()
        && own != said
    {
        return Err(ManifestError::MediaType { expected: said.into(), found: own.into() });
    }
    let stated = said.or((!own.is_empty()).then_some(own)).map(mediatype::kind);
    let looks_manifest = peek.config.is_some() || peek.layers.is_some();
    let looks_index = peek.manifests.is_some();
    let kind = match stated {
        Some(kind @ (Kind::Manifest | Kind::Index)) => kind,
        Some(Kind::Schema1) => return Err(ManifestError::Schema1),
        Some(Kind::Config | Kind::Layer | Kind::Other) => return Err(ManifestError::Unsupported(own.into())),
        None if looks_index => Kind::Index,
        None => Kind::Manifest,
    };
    match kind {
        Kind::Manifest if looks_index => Err(ManifestError::Mixed { expected: "manifest", found: "index" }),
        Kind::Index if looks_manifest => Err(ManifestError::Mixed { expected: "index", found: "manifest" }),
        kind => Ok(kind),
    }
}

/// Go writes a nil slice or map as `null`.
pub(crate) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Counts the work one image may cause while its indexes are walked.
#[derive(Debug, Default)]
pub struct WalkBudget {
    seen: usize,
}

impl WalkBudget {
    /// Notes that `index` is opened at `depth` (0 for the first).
    pub fn open(&mut self, index: &Index, depth: usize) -> Result<(), ManifestError> {
        self.seen = self.seen.saturating_add(index.manifests.len());
        if depth >= MAX_INDEX_DEPTH || self.seen > MAX_DESCRIPTORS {
            return Err(ManifestError::TooManyEntries);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sha(n: u8) -> String {
        Digest::of(&[n]).to_string()
    }

    fn manifest(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2{extra},"config":{{"mediaType":"{}","digest":"{}","size":2}},"layers":[]}}"#,
            mediatype::OCI_CONFIG,
            sha(0)
        )
    }

    #[test]
    fn a_document_is_one_thing() {
        let plain = manifest("");
        assert!(matches!(Document::read(plain.as_bytes(), None), Ok(Document::Manifest(_))));
        let both = manifest(r#","manifests":[]"#);
        let err = Document::read(both.as_bytes(), Some(mediatype::OCI_MANIFEST)).unwrap_err();
        assert_eq!(err.to_string(), "ocimanifest: expected manifest but found index");
        assert!(Document::read(both.as_bytes(), None).is_err());
        assert!(Document::read(plain.as_bytes(), Some(mediatype::OCI_INDEX)).is_err());
        let lies = manifest(&format!(r#","mediaType":"{}""#, mediatype::OCI_INDEX));
        let err = Document::read(lies.as_bytes(), Some(mediatype::OCI_MANIFEST)).unwrap_err();
        assert!(err.to_string().starts_with("if present, mediaType in manifest should be"), "{err}");
        // A generic Content-Type says nothing.
        assert!(Document::read(plain.as_bytes(), Some("application/json")).is_ok());
    }

    #[test]
    fn refusals() {
        let bad_digest = manifest("").replace(&sha(0), "sha256:../../tmp/x");
        let err = Document::read(bad_digest.as_bytes(), None).unwrap_err().to_string();
        assert!(err.contains("invalid checksum digest length"), "{err}");
        let negative = manifest("").replace("\"size\":2", "\"size\":-2");
        assert!(Document::read(negative.as_bytes(), None).is_err());
        assert!(matches!(
            Document::read(br#"{"schemaVersion":1,"fsLayers":[]}"#, None),
            Err(ManifestError::Schema1)
        ));
        assert!(Document::read(b"<html>", None).is_err());
        let layer = format!(r#"{{"mediaType":"{}","digest":"{}","size":1}}"#, mediatype::OCI_LAYER, sha(1));
        let many = manifest("").replace("[]", &format!("[{}]", vec![layer; 128].join(",")));
        assert!(matches!(Document::read(many.as_bytes(), None), Err(ManifestError::TooManyLayers)));
        let nulls = manifest("").replace("[]", "null");
        assert!(Document::read(nulls.as_bytes(), None).is_ok());
    }

    #[test]
    fn nested_indexes_cost() {
        let entry = Descriptor::new(mediatype::OCI_INDEX, Digest::of(b""), 1);
        let index = Index {
            schema_version: 2,
            media_type: String::new(),
            artifact_type: String::new(),
            manifests: vec![entry; 900],
            subject: None,
            annotations: Annotations::new(),
        };
        let mut budget = WalkBudget::default();
        assert!(budget.open(&index, 0).is_ok());
        assert!(budget.open(&index, 1).is_ok());
        assert!(budget.open(&index, 2).is_err());
        assert!(WalkBudget::default().open(&index, MAX_INDEX_DEPTH).is_err());
    }

    proptest! {
        #[test]
        fn bytes_never_panic(bytes: Vec<u8>) {
            let _ = Document::read(&bytes, None);
        }

        #[test]
        fn descriptors_survive_a_round_trip(size: u32, n: u8, url in "[a-z:/]{0,9}") {
            let mut descriptor = Descriptor::new(mediatype::OCI_LAYER, Digest::of(&[n]), size.into());
            descriptor.urls.push(url);
            let text = serde_json::to_string(&descriptor).unwrap();
            prop_assert_eq!(serde_json::from_str::<Descriptor>(&text).unwrap(), descriptor);
        }
    }
}
