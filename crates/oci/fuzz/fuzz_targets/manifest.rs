//! Any bytes as a manifest, an index and an image configuration: an error, never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(oci::Document::Manifest(manifest)) = oci::Document::read(bytes, None) {
        let text = serde_json_round_trip(&manifest);
        assert_eq!(text, Some(manifest));
    }
    let _ = oci::ImageConfig::read_with_layers(bytes);
});

/// What we write of a manifest reads back as the same.
fn serde_json_round_trip(manifest: &oci::Manifest) -> Option<oci::Manifest> {
    let bytes = serde_json::to_vec(manifest).ok()?;
    serde_json::from_slice(&bytes).ok()
}
