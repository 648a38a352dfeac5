//! What the fuzz targets run; `tests/fuzz.rs` runs the same for a bounded number of inputs.

/// Any text as a reference, a digest and a platform: what parses must show as what parses to the same.
pub fn reference(text: &str) {
    if let Ok(reference) = oci::Reference::parse(text) {
        assert_eq!(oci::Reference::parse(&reference.to_string()), Ok(reference.clone()));
        // Docker's short form drops its own registry also where what is left begins like another one's name: `docker.io/a.b/c` is shown as `a.b/c`.
        let first = reference.path().split_once('/').map_or("", |(first, _)| first);
        if first != "localhost" && !first.contains('.') {
            assert_eq!(oci::Reference::parse(&reference.familiar()), Ok(reference));
        }
    }
    if let Ok(digest) = oci::Digest::parse(text) {
        assert_eq!(digest.as_str(), text);
    }
    let _ = oci::Platform::parse(text);
}

/// Any bytes as a manifest, an index and an image configuration: an error, never a panic. What we write of a manifest reads back as the same.
pub fn manifest(bytes: &[u8]) {
    if let Ok(oci::Document::Manifest(manifest)) = oci::Document::read(bytes, None) {
        let written = serde_json::to_vec(&manifest).expect("a manifest can be written");
        let again: oci::Manifest = serde_json::from_slice(&written).expect("what was written can be read");
        assert_eq!(again, manifest);
    }
    let _ = oci::ImageConfig::read_with_layers(bytes);
}
