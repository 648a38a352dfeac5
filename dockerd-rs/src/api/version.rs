//! The API version a request speaks.
//!
//! Versions are compared part by part as numbers, so `1.51.0` is `1.51` and `1.9` is older than `1.24`.

use std::fmt;

/// A version of the Engine API: `1.` and a minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u32, pub u32);

impl ApiVersion {
    /// The newest version the engine speaks, and what a path without a version means.
    pub const MAX: Self = Self(1, 55);
    /// The oldest version the engine speaks.
    pub const MIN: Self = Self(1, 24);

    /// Version 1.`minor`.
    pub const fn minor(minor: u32) -> Self {
        Self(1, minor)
    }

    /// Whether this is at least 1.`minor`.
    pub fn at_least(self, minor: u32) -> bool {
        self >= Self(1, minor)
    }

    /// Reads the part behind `/v` of a path: digits and dots. `None` where Docker's router would not match.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return None;
        }
        // A number that does not fit is larger than any that is known.
        let number = |part: &str| if part.is_empty() { 0 } else { part.parse().unwrap_or(u32::MAX) };
        let mut parts = text.split('.').map(number);
        Some(Self(parts.next().unwrap_or(0), parts.next().unwrap_or(0)))
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::ApiVersion;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(ApiVersion::parse("1.51.0"), Some(ApiVersion(1, 51)));
        assert!(ApiVersion::parse("1.9").unwrap() < ApiVersion::MIN);
        assert_eq!(ApiVersion::parse("1.x"), None);
        assert!(ApiVersion::parse("99999999999.1").unwrap() > ApiVersion::MAX);
        assert_eq!(ApiVersion::MAX.to_string(), "1.55");
    }
}
