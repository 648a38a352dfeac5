//! What this is, and which containerd it speaks like.

/// The containerd whose API and behaviour this follows. Clients compare it to decide what they may use.
pub const COMPATIBLE: &str = "2.1.9";
/// What the version service answers: the containerd we follow, and ourselves as build metadata.
pub const SHORT: &str = concat!("v2.1.9+rs.", env!("CARGO_PKG_VERSION"));
/// What `--version` prints after the program's name.
pub const LONG: &str = concat!(env!("CARGO_PKG_REPOSITORY"), " v2.1.9+rs.", env!("CARGO_PKG_VERSION"));
/// The source revision this was built from, if the build was told.
pub const REVISION: &str = match option_env!("SOURCE_REVISION") {
    Some(revision) => revision,
    None => "",
};

#[cfg(test)]
mod tests {
    #[test]
    fn the_answer_begins_with_the_compatible_version() {
        assert!(super::SHORT.starts_with(&format!("v{}+", super::COMPATIBLE)));
        assert!(super::LONG.ends_with(super::SHORT));
    }
}
