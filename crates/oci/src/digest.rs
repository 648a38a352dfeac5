//! Content digests: `algorithm:hex`, as the OCI image specification ("Digests") has them.
//!
//! Invariant: a [`Digest`] names a supported algorithm and has exactly that algorithm's number of lower case
//! hex digits, so it holds no `/`, no `..`, and is safe as a file name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sha2::Digest as _;

/// A hash function digests may be made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// How many hex digits follow the colon.
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha384 => 96,
            Self::Sha512 => 128,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha384, Self::Sha512].into_iter().find(|a| a.as_str() == name)
    }
}

/// Why a text is not a digest. The texts are those clients of Docker and containerd know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("invalid checksum digest format")]
    Format,
    #[error("invalid checksum digest length")]
    Length,
    #[error("unsupported digest algorithm")]
    Unsupported,
}

/// A parsed digest. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

impl Digest {
    /// Parses `algorithm:hex`.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::Format)?;
        if name.is_empty() || hex.is_empty() {
            return Err(DigestError::Format);
        }
        let Some(algorithm) = Algorithm::from_name(name) else {
            return Err(if is_generic(name, hex) { DigestError::Unsupported } else { DigestError::Format });
        };
        if hex.len() != algorithm.hex_len() {
            return Err(DigestError::Length);
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(DigestError::Format);
        }
        Ok(Self(text.into()))
    }

    /// The sha256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// A sha256 digest from its 64 hex digits.
    pub fn from_sha256_hex(hex: &str) -> Result<Self, DigestError> {
        Self::parse(&format!("sha256:{hex}"))
    }

    /// `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Which hash function made it.
    pub fn algorithm(&self) -> Algorithm {
        let name = self.0.split(':').next().unwrap_or_default();
        Algorithm::from_name(name).unwrap_or(Algorithm::Sha256)
    }

    /// The hex digits.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The first twelve hex digits, as Docker shows ids.
    pub fn short(&self) -> &str {
        self.hex().get(..12).unwrap_or_default()
    }

    /// Whether `bytes` hash to this digest.
    pub fn verifies(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm());
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

/// The specification's general grammar, to tell an unknown algorithm from nonsense.
fn is_generic(name: &str, hex: &str) -> bool {
    let part = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.split(['.', '+', '_', '-']).all(part)
        && hex.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::parse(text)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(|err| {
            serde::de::Error::custom(format_args!("could not validate digest {text:?}: {err}"))
        })
    }
}

/// Hashes a stream of bytes into a [`Digest`].
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha384 => State::Sha384(sha2::Sha384::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(h) => h.update(bytes),
            State::Sha384(h) => h.update(bytes),
            State::Sha512(h) => h.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        let (algorithm, hex) = match self.0 {
            State::Sha256(h) => (Algorithm::Sha256, hex::encode(h.finalize())),
            State::Sha384(h) => (Algorithm::Sha384, hex::encode(h.finalize())),
            State::Sha512(h) => (Algorithm::Sha512, hex::encode(h.finalize())),
        };
        Digest(format!("{}:{hex}", algorithm.as_str()).into())
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new(Algorithm::Sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_that_are_no_digests() {
        let good = format!("sha256:{}", "0a".repeat(32));
        let rows: &[(&str, Result<(), DigestError>)] = &[
            (&good, Ok(())),
            ("sha256:../../tmp/x", Err(DigestError::Length)),
            ("sha256:abc", Err(DigestError::Length)),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", Err(DigestError::Unsupported)),
            ("md5:../x", Err(DigestError::Format)),
            ("", Err(DigestError::Format)),
            (":", Err(DigestError::Format)),
            ("sha256:", Err(DigestError::Format)),
            (":abc", Err(DigestError::Format)),
            ("SHA256:abc", Err(DigestError::Format)),
        ];
        for (text, want) in rows {
            assert_eq!(Digest::parse(text).map(drop), *want, "{text}");
        }
        let upper = format!("sha256:{}", "0A".repeat(32));
        assert_eq!(Digest::parse(&upper), Err(DigestError::Format));
    }

    #[test]
    fn the_empty_input_has_its_known_digest() {
        let want = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), want);
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
    }

    proptest! {
        #[test]
        fn what_was_hashed_verifies_and_what_differs_does_not(a: Vec<u8>, b: Vec<u8>, which in 0..3usize) {
            let algorithm = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512][which];
            let mut hasher = Hasher::new(algorithm);
            for chunk in a.chunks(7) {
                hasher.update(chunk);
            }
            let digest = hasher.finish();
            prop_assert!(digest.verifies(&a));
            prop_assert_eq!(digest.verifies(&b), a == b);
            prop_assert_eq!(Digest::parse(digest.as_str()).unwrap(), digest);
        }

        #[test]
        fn a_parsed_digest_is_a_safe_file_name(text in ".*") {
            if let Ok(digest) = Digest::parse(&text) {
                prop_assert!(!digest.as_str().contains('/') && !digest.as_str().contains(".."));
            }
        }
    }
}
