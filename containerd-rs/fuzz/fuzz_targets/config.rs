//! Any text as config.toml: a configuration or an error, never a panic; what is written of it is read back the same.
#![no_main]

use containerd_rs::config::Config;

libfuzzer_sys::fuzz_target!(|text: &str| {
    // Other files would be read.
    if text.contains("imports") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).expect("a file");
    if let Ok(config) = Config::load(Some(&path)) {
        let _ = config.validate();
        std::fs::write(&path, config.to_toml()).expect("a file");
        let again = Config::load(Some(&path)).expect("what we wrote");
        assert_eq!(again.to_toml(), config.to_toml());
    }
});
