//! What the fuzz targets run; `tests/fuzz.rs` runs the same for a bounded number of inputs.

use std::borrow::Cow;

use containerd_rs::config::Config;
use containerd_rs::filters::{Fields, Filters};

/// Has every field.
struct Row;

impl Fields for Row {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        path.last().map(|name| Cow::Owned(name.clone()))
    }
}

/// Any text as a filter: an error or an answer, never a panic.
pub fn filters(text: &str) {
    if let Ok(filters) = Filters::parse(&[text.to_owned()]) {
        let _ = filters.matches(&Row);
    }
}

/// Any text as config.toml: a configuration or an error, never a panic; what is written of it is read back the same.
pub fn config(text: &str) {
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
}
