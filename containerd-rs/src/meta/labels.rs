//! Labels: what is allowed, and how a field mask changes them.

use std::collections::HashMap;

use containerd_api::error::{Error, Kind, quote};

/// The longest that key and value may be together.
const MAX_BYTES: usize = 4096;
/// How much of a key that is too long a message shows.
const SHOWN_BYTES: usize = 64;

/// # Errors
/// `InvalidArgument` when key and value together are longer than containerd allows.
pub fn validate(labels: &HashMap<String, String>) -> Result<(), Error> {
    labels.iter().try_for_each(|(key, value)| validate_one(key, value))
}

/// One label.
pub fn validate_one(key: &str, value: &str) -> Result<(), Error> {
    let length = key.len() + value.len();
    if length <= MAX_BYTES {
        return Ok(());
    }
    let shown = if key.len() > SHOWN_BYTES {
        let cut = (0..=SHOWN_BYTES).rev().find(|at| key.is_char_boundary(*at)).unwrap_or(0);
        format!("{}...", &key[..cut])
    } else {
        key.to_owned()
    };
    Err(Error::of(
        Kind::InvalidArgument,
        format_args!(
            "label key and value length ({length} bytes) greater than maximum size ({MAX_BYTES} bytes), key: {}",
            shown
        ),
    ))
}

/// What one path of a field mask says about labels.
pub enum MaskPath<'a> {
    /// `labels`: all of them.
    All,
    /// `labels.<key>`.
    One(&'a str),
    /// Another field.
    Other(&'a str),
}

/// Reads a path against the map field `field`.
pub fn mask_path<'a>(path: &'a str, field: &str) -> MaskPath<'a> {
    match path.strip_prefix(field) {
        Some("") => MaskPath::All,
        Some(rest) => rest.strip_prefix('.').map_or(MaskPath::Other(path), MaskPath::One),
        None => MaskPath::Other(path),
    }
}

/// Takes one label from `from`: an absent or empty one is removed.
pub fn update_one(labels: &mut HashMap<String, String>, from: &HashMap<String, String>, key: &str) {
    match from.get(key).filter(|value| !value.is_empty()) {
        Some(value) => labels.insert(key.to_owned(), value.clone()),
        None => labels.remove(key),
    };
}

/// Takes all labels from `from`; those without a value are left out.
pub fn replace(labels: &mut HashMap<String, String>, from: HashMap<String, String>) {
    *labels = from;
    labels.retain(|_, value| !value.is_empty());
}

/// `cannot update "field" field on "name": invalid argument`.
pub fn cannot_update(path: &str, noun: &str, name: &str) -> Error {
    let space = if noun.is_empty() { "" } else { " " };
    Error::invalid(format_args!("cannot update {} field on {noun}{space}{}", quote(path), quote(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_value_share_4096_bytes() {
        let fits = HashMap::from([("k".repeat(96), "v".repeat(4000))]);
        assert_eq!(validate(&fits), Ok(()));
        let over = HashMap::from([("ä".repeat(48), "v".repeat(4001))]);
        let err = validate(&over).unwrap_err();
        assert_eq!(err.kind(), Kind::InvalidArgument);
        assert!(
            err.message().starts_with(
                "label key and value length (4097 bytes) greater than maximum size (4096 bytes)"
            )
        );
    }

    #[test]
    fn an_update_sets_replaces_and_removes() {
        let mut labels = HashMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let from = HashMap::from([("b".to_owned(), String::new()), ("c".to_owned(), "3".to_owned())]);
        update_one(&mut labels, &from, "b");
        update_one(&mut labels, &from, "c");
        assert_eq!(labels.len(), 2);
        assert_eq!(labels["c"], "3");
    }
}
