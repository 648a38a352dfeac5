//! Image references: `busybox`, `host:5000/team/app:1.2@sha256:…`, in Docker's familiar and full forms.
//!
//! Invariant: a [`Reference`] obeys the grammar of the distribution specification's reference package: a domain,
//! a lower case path, and perhaps a tag and a digest. `Reference::to_string` of a parsed reference parses to
//! the same reference. The error texts are Docker's, to the letter.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Longest path of a repository name, in bytes.
const MAX_PATH: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// Why a text is not a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Identifier(String),
    #[error("repository name must not be more than {MAX_PATH} characters")]
    TooLong,
    #[error("invalid tag format")]
    Tag,
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// A named reference in its full form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// What a user may name an image by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReferenceOrDigest {
    Named(Reference),
    /// A bare digest or a full 64 digit id.
    Digest(Digest),
}

impl Reference {
    /// Parses a familiar or full reference: `busybox` becomes `docker.io/library/busybox`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if is_identifier(text) {
            return Err(ReferenceError::Identifier(text.to_owned()));
        }
        let (domain, remainder) = split_domain(text);
        let remote = remainder.split(':').next().unwrap_or_default();
        if remote.to_lowercase() != remote {
            return Err(ReferenceError::Uppercase(remote.to_owned()));
        }
        Self::from_parts(domain, &remainder)
    }

    /// Parses what a user may type where an image is meant: a reference, a digest, or a full id.
    pub fn parse_any(text: &str) -> Result<ReferenceOrDigest, ReferenceError> {
        if is_identifier(text) {
            return Ok(ReferenceOrDigest::Digest(Digest::from_sha256_hex(text)?));
        }
        if let Ok(digest) = Digest::parse(text) {
            return Ok(ReferenceOrDigest::Digest(digest));
        }
        Self::parse(text).map(ReferenceOrDigest::Named)
    }

    /// Parses as a pull does: `latest` when nothing else is said, and a digest makes the tag superfluous.
    pub fn parse_docker(text: &str) -> Result<Self, ReferenceError> {
        let mut reference = Self::parse(text)?.or_latest();
        if reference.digest.is_some() {
            reference.tag = None;
        }
        Ok(reference)
    }

    fn from_parts(domain: &str, remainder: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match remainder.split_once('@') {
            Some((rest, digest)) if is_digest_shape(digest) => (rest, Some(digest)),
            Some(_) => return Err(ReferenceError::Format),
            None => (remainder, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) if is_tag(tag) => (path, Some(tag.to_owned())),
            Some(_) => return Err(ReferenceError::Format),
            None => (rest, None),
        };
        if !is_domain(domain) || !path.split('/').all(is_path_component) {
            return Err(ReferenceError::Format);
        }
        if path.len() > MAX_PATH {
            return Err(ReferenceError::TooLong);
        }
        let digest = digest.map(Digest::parse).transpose()?;
        Ok(Self { domain: domain.to_owned(), path: path.to_owned(), tag, digest })
    }

    /// The registry: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The name as Docker shows it: `busybox`, `user/app`, `host:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as Docker shows it.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        self.push_suffix(&mut text);
        text
    }

    /// Whether neither tag nor digest is given.
    pub fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// The same reference, tagged `latest` if it had neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.is_name_only() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The same repository under another tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Tag);
        }
        Ok(Self { tag: Some(tag.to_owned()), ..self.clone() })
    }

    /// The same reference pinned to `digest`; a tag stays.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The name alone.
    #[must_use]
    pub fn without_tag_and_digest(&self) -> Self {
        Self { domain: self.domain.clone(), path: self.path.clone(), tag: None, digest: None }
    }

    fn push_suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.name();
        self.push_suffix(&mut text);
        f.write_str(&text)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

/// Whether `tag` is a well-formed tag.
pub fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= MAX_TAG && bytes.next().is_some_and(word) && bytes.all(|b| word(b) || b == b'.' || b == b'-')
}

/// Splits Docker's way: the first component is a domain if it looks like one.
fn split_domain(text: &str) -> (&str, String) {
    let Some((first, rest)) = text.split_once('/') else {
        return (DEFAULT_DOMAIN, format!("{OFFICIAL_PREFIX}{text}"));
    };
    let (domain, remainder) = if first == LEGACY_DOMAIN {
        (DEFAULT_DOMAIN, rest)
    } else if first == "localhost" || first.contains(['.', ':']) || first.to_lowercase() != first {
        (first, rest)
    } else {
        (DEFAULT_DOMAIN, text)
    };
    if domain == DEFAULT_DOMAIN && !remainder.contains('/') {
        return (domain, format!("{OFFICIAL_PREFIX}{remainder}"));
    }
    (domain, remainder.to_owned())
}

fn is_identifier(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => match port.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    if port.is_some_and(|p| p.is_empty() || !p.bytes().all(|b| b.is_ascii_digit())) {
        return false;
    }
    if domain.starts_with('[') {
        return !host.is_empty() && host.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    }
    host.split('.').all(|part| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        edge(part.bytes().next())
            && edge(part.bytes().last())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

/// Lower case letters and digits, with single separators between them: `.`, `_`, `__`, or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let mut runs = part.as_bytes();
    loop {
        let word = runs.iter().take_while(|b| b.is_ascii_lowercase() || b.is_ascii_digit()).count();
        if word == 0 {
            return false;
        }
        runs = &runs[word..];
        let separator = runs.iter().take_while(|b| matches!(b, b'.' | b'_' | b'-')).count();
        match &runs[..separator] {
            [] => return runs.is_empty(),
            [b'.' | b'_'] | [b'_', b'_'] => {}
            dashes if dashes.iter().all(|b| *b == b'-') => {}
            _ => return false,
        }
        runs = &runs[separator..];
    }
}

/// The grammar's digest, wider than what [`Digest`] accepts.
fn is_digest_shape(text: &str) -> bool {
    let Some((name, hex)) = text.split_once(':') else { return false };
    let part = |s: &str| {
        s.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && s.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    name.split(['-', '_', '+', '.']).all(part)
        && hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn familiar_and_full_forms() {
        let rows = [
            ("busybox", "docker.io/library/busybox", "busybox"),
            ("busybox:1", "docker.io/library/busybox:1", "busybox:1"),
            ("user/app", "docker.io/user/app", "user/app"),
            ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
            ("index.docker.io/busybox", "docker.io/library/busybox", "busybox"),
            ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("localhost/x", "localhost/x", "localhost/x"),
            ("localhost:5000/x:2", "localhost:5000/x:2", "localhost:5000/x:2"),
            ("127.0.0.1:5000/a__b/c--d.e", "127.0.0.1:5000/a__b/c--d.e", "127.0.0.1:5000/a__b/c--d.e"),
            ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
            ("Host/x", "Host/x", "Host/x"),
            // Docker's own ambiguity: its short form is another registry's name.
            ("docker.io/a.b/c", "docker.io/a.b/c", "a.b/c"),
            ("foo_bar.com:8080", "docker.io/library/foo_bar.com:8080", "foo_bar.com:8080"),
        ];
        for (text, full, familiar) in rows {
            let reference = Reference::parse(text).unwrap_or_else(|err| panic!("{text}: {err}"));
            assert_eq!(
                (reference.to_string().as_str(), reference.familiar().as_str()),
                (full, familiar),
                "{text}"
            );
        }
    }

    #[test]
    fn refusals_have_dockers_words() {
        let rows = [
            ("", "invalid reference format"),
            ("UPPER", "invalid reference format: repository name (library/UPPER) must be lowercase"),
            ("UP:x:y", "invalid reference format: repository name (library/UP) must be lowercase"),
            ("a:b:c", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("-a", "invalid reference format"),
            ("a..b", "invalid reference format"),
            ("a___b", "invalid reference format"),
            ("a@sha256:12", "invalid reference format"),
            ("a/b:", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("../x", "invalid reference format"),
            ("https://github.com/docker/docker", "invalid reference format"),
        ];
        for (text, want) in rows {
            assert_eq!(Reference::parse(text).unwrap_err().to_string(), want, "{text}");
        }
        let md5 = format!("a@md5:{}", "0".repeat(32));
        assert_eq!(Reference::parse(&md5).unwrap_err().to_string(), "unsupported digest algorithm");
        let long = format!("a/{}", "b".repeat(254));
        assert_eq!(
            Reference::parse(&long).unwrap_err().to_string(),
            "repository name must not be more than 255 characters"
        );
        let id = "a".repeat(64);
        assert_eq!(
            Reference::parse(&id).unwrap_err().to_string(),
            format!("invalid repository name ({id}), cannot specify 64-byte hexadecimal strings")
        );
    }

    #[test]
    fn a_digest_wins_over_a_tag_in_a_pull() {
        let reference = Reference::parse_docker(&format!("busybox:1@{SHA}")).unwrap();
        assert_eq!(reference.to_string(), format!("docker.io/library/busybox@{SHA}"));
        assert_eq!(Reference::parse_docker("busybox").unwrap().tag(), Some("latest"));
    }

    #[test]
    fn ids_and_digests_are_told_from_names() {
        let id = "0".repeat(64);
        assert!(matches!(Reference::parse_any(&id), Ok(ReferenceOrDigest::Digest(_))));
        assert!(matches!(Reference::parse_any(SHA), Ok(ReferenceOrDigest::Digest(_))));
        assert!(matches!(Reference::parse_any("sha256:12"), Ok(ReferenceOrDigest::Named(_))));
        assert!(matches!(Reference::parse_any("busybox"), Ok(ReferenceOrDigest::Named(_))));
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_to_the_same(
            domain in proptest::option::of("[a-z0-9]{1,5}\\.[a-z]{2,3}(:[0-9]{1,5})?"),
            path in "[a-z0-9]{1,5}([._-][a-z0-9]{1,4})?(/[a-z0-9]{1,5}){0,2}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}"),
            pinned: bool,
        ) {
            let mut text = domain.map_or(path.clone(), |d| format!("{d}/{path}"));
            if let Some(tag) = tag { text = format!("{text}:{tag}"); }
            if pinned { text = format!("{text}@{SHA}"); }
            let reference = Reference::parse(&text).unwrap();
            prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
            prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
        }

        #[test]
        fn no_text_panics_and_none_escapes(text in "\\PC{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert!(!reference.path().contains("..") && !reference.path().starts_with('/'));
                prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
            }
        }
    }
}
