//! Any text as a reference, a digest and a platform: what parses must show as what parses to the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(reference) = oci::Reference::parse(text) {
        assert_eq!(oci::Reference::parse(&reference.to_string()), Ok(reference.clone()));
        assert_eq!(oci::Reference::parse(&reference.familiar()), Ok(reference));
    }
    if let Ok(digest) = oci::Digest::parse(text) {
        assert_eq!(digest.as_str(), text);
    }
    let _ = oci::Platform::parse(text);
});
