//! Any text as a filter: an error or an answer, never a panic.
#![no_main]

use std::borrow::Cow;

use containerd_rs::filters::{Fields, Filters};

/// Has every field.
struct Row;

impl Fields for Row {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        path.last().map(|name| Cow::Borrowed(name.as_str()))
    }
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(filters) = Filters::parse(&[text.to_owned()]) {
        let _ = filters.matches(&Row);
    }
});
