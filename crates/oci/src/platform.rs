//! Platforms: what an image is built for and what this machine can run.
//!
//! Invariant: a parsed [`Platform`] is normalised (`x86_64` is `amd64`, `aarch64` is `arm64`, default variants are
//! left out), so two platforms are equal when they mean the same. The order of preference and the error texts
//! follow containerd's platforms package.

use std::fmt;

use serde::{Deserialize, Serialize};

const COMPONENT_PATTERN: &str = "^[A-Za-z0-9_.-]+$";
const OS_PATTERN: &str = r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.-]*)\))?$";
const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];
const KNOWN_ARCH: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

/// An operating system and an architecture. Serialises as the OCI image specification has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// Why a text is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    #[error("{0:?}: wildcards not yet supported: invalid argument")]
    Wildcard(String),
    #[error(
        "{part:?} is an invalid component of {whole:?}: platform specifier component must match \
         {COMPONENT_PATTERN:?}: invalid argument"
    )]
    Component { part: String, whole: String },
    #[error(
        "{part:?} is an invalid OS component of {whole:?}: OSAndVersion specifier component must match \
         {OS_PATTERN:?}: invalid argument"
    )]
    Os { part: String, whole: String },
    #[error("{0:?}: unknown operating system or architecture: invalid argument")]
    Unknown(String),
    #[error("{0:?}: cannot parse platform specifier: invalid argument")]
    Shape(String),
}

impl Platform {
    /// A platform from its three names, normalised.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self { os: os.into(), architecture: architecture.into(), variant: variant.into(), ..Self::default() }
            .normalized()
    }

    /// The platform of this machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture, "")
    }

    /// Parses `os`, `arch`, `os/arch` or `os/arch/variant`; what is left out is this machine's.
    pub fn parse(text: &str) -> Result<Self, PlatformError> {
        if text.contains('*') {
            return Err(PlatformError::Wildcard(text.into()));
        }
        let parts: Vec<&str> = text.splitn(4, '/').collect();
        let (os, os_version) = parse_os(parts[0], text)?;
        for part in &parts[1..] {
            if !is_component(part) {
                return Err(PlatformError::Component { part: (*part).into(), whole: text.into() });
            }
        }
        let (os, architecture, variant) = match parts[1..] {
            [] if KNOWN_OS.contains(&os.as_str()) => {
                let host = Self::host();
                (os, host.architecture, host.variant)
            }
            [] => {
                let (architecture, variant) = normalize_arch(parts[0], "");
                if !KNOWN_ARCH.contains(&architecture.as_str()) {
                    return Err(PlatformError::Unknown(text.into()));
                }
                return Ok(Self::assembled("linux".into(), String::new(), architecture, variant));
            }
            [architecture] => {
                let (architecture, variant) = normalize_arch(architecture, "");
                (os, architecture, variant)
            }
            [architecture, variant] => {
                let (architecture, variant) = normalize_arch(architecture, variant);
                (os, architecture, variant)
            }
            _ => return Err(PlatformError::Shape(text.into())),
        };
        Ok(Self::assembled(os, os_version, architecture, variant))
    }

    fn assembled(os: String, os_version: String, architecture: String, variant: String) -> Self {
        Self { architecture, os, os_version, os_features: Vec::new(), variant }
    }

    /// The same platform with aliases resolved and default variants made explicit or dropped.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let (architecture, variant) = normalize_arch(&self.architecture, &self.variant);
        Self { os: normalize_os(&self.os), architecture, variant, ..self.clone() }
    }

    /// Whether nothing is said.
    pub fn is_unspecified(&self) -> bool {
        self.os.is_empty() && self.architecture.is_empty()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.os.is_empty() {
            return f.write_str("unknown");
        }
        f.write_str(&self.os)?;
        for part in [&self.architecture, &self.variant] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

/// Platforms a client accepts, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformMatcher {
    accepted: Option<Vec<Platform>>,
}

impl PlatformMatcher {
    /// Accepts everything.
    pub fn all() -> Self {
        Self { accepted: None }
    }

    /// Accepts `platform` and what a machine of that platform also runs (a v8 arm runs v7 programs).
    pub fn only(platform: &Platform) -> Self {
        Self { accepted: Some(runs_also(&platform.normalized())) }
    }

    /// Accepts exactly the given platforms, without their lesser variants.
    pub fn exactly(platforms: &[Platform]) -> Self {
        Self { accepted: Some(platforms.iter().map(Platform::normalized).collect()) }
    }

    /// Accepts any of several, the first ones better.
    pub fn any_of(platforms: &[Platform]) -> Self {
        Self { accepted: Some(platforms.iter().flat_map(|p| runs_also(&p.normalized())).collect()) }
    }

    /// What this machine runs.
    pub fn host() -> Self {
        Self::only(&Platform::host())
    }

    /// The rank of a platform, 0 being the best; `None` if it is not accepted.
    pub fn rank(&self, platform: &Platform) -> Option<usize> {
        let Some(accepted) = &self.accepted else { return Some(0) };
        let wanted = platform.normalized();
        accepted.iter().position(|a| {
            a.os == wanted.os
                && a.architecture == wanted.architecture
                && a.variant == wanted.variant
                && (a.os_version.is_empty() || a.os_version == wanted.os_version)
        })
    }

    /// Whether a platform is accepted.
    pub fn matches(&self, platform: &Platform) -> bool {
        self.rank(platform).is_some()
    }

    /// Whether everything is accepted.
    pub fn is_all(&self) -> bool {
        self.accepted.is_none()
    }
}

/// What a machine runs, best first: itself, then lesser variants, then its 32 bit sibling.
fn runs_also(platform: &Platform) -> Vec<Platform> {
    let with = |architecture: &str, variant: &str| Platform {
        architecture: architecture.into(),
        variant: variant.into(),
        ..platform.clone()
    };
    let mut list = vec![platform.clone()];
    let level = platform.variant.strip_prefix('v').and_then(|v| v.parse::<u8>().ok());
    match platform.architecture.as_str() {
        "amd64" => {
            if let Some(level) = level.filter(|l| *l > 1) {
                list.extend((2..level).rev().map(|l| with("amd64", &format!("v{l}"))));
                list.push(with("amd64", ""));
            }
            list.push(with("386", ""));
        }
        "arm" => {
            if let Some(level) = level.filter(|l| *l > 5) {
                list.extend((5..level).rev().map(|l| with("arm", &format!("v{l}"))));
            }
        }
        "arm64" => {
            if platform.variant.starts_with("v9") {
                list.push(with("arm64", ""));
            }
            list.extend((5..=8).rev().map(|l| with("arm", &format!("v{l}"))));
        }
        _ => {}
    }
    list
}

fn parse_os(part: &str, whole: &str) -> Result<(String, String), PlatformError> {
    let bad = || PlatformError::Os { part: part.into(), whole: whole.into() };
    let word = |s: &str, dot: bool| {
        s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-') || (dot && b == b'.'))
    };
    let (os, version) = match part.split_once('(') {
        Some((os, rest)) => (os, rest.strip_suffix(')').ok_or_else(bad)?),
        None => (part, ""),
    };
    if os.is_empty() || !word(os, false) || !word(version, true) {
        return Err(bad());
    }
    Ok((normalize_os(os), version.to_owned()))
}

fn is_component(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn normalize_os(os: &str) -> String {
    match os.to_ascii_lowercase().as_str() {
        "" => "linux".into(),
        "macos" => "darwin".into(),
        other => other.into(),
    }
}

fn normalize_arch(architecture: &str, variant: &str) -> (String, String) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match architecture.as_str() {
        "i386" | "386" => ("386", String::new()),
        "x86_64" | "x86-64" | "amd64" => ("amd64", if variant == "v1" { String::new() } else { variant }),
        "aarch64" | "arm64" => (
            "arm64",
            match variant.as_str() {
                "8" | "v8" | "v8.0" => String::new(),
                "9" | "9.0" | "v9.0" => "v9".into(),
                _ => variant,
            },
        ),
        "armhf" => ("arm", "v7".into()),
        "armel" => ("arm", "v6".into()),
        "arm" => (
            "arm",
            match variant.as_str() {
                "" | "7" => "v7".into(),
                "5" | "6" | "8" => format!("v{variant}"),
                _ => variant,
            },
        ),
        _ => return (architecture, variant),
    };
    (architecture.to_owned(), variant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_become_platforms() {
        let host = Platform::host().to_string();
        let rows = [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AArch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("armhf", "linux/arm/v7"),
            ("s390x", "linux/s390x"),
            ("linux", host.as_str()),
            ("windows(10.0.17763)/amd64", "windows/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
        ];
        for (text, want) in rows {
            assert_eq!(Platform::parse(text).map(|p| p.to_string()), Ok(want.to_owned()), "{text}");
        }
    }

    #[test]
    fn refusals_have_dockers_words() {
        let rows = [
            (
                "a/b/c/d/e",
                "\"d/e\" is an invalid component of \"a/b/c/d/e\": platform specifier component must match \
                 \"^[A-Za-z0-9_.-]+$\": invalid argument",
            ),
            ("zz", "\"zz\": unknown operating system or architecture: invalid argument"),
            ("a/b/c/d", "\"a/b/c/d\": cannot parse platform specifier: invalid argument"),
            ("linux/*", "\"linux/*\": wildcards not yet supported: invalid argument"),
        ];
        for (text, want) in rows {
            assert_eq!(Platform::parse(text).unwrap_err().to_string(), want, "{text}");
        }
        assert!(matches!(Platform::parse(""), Err(PlatformError::Os { .. })));
    }

    #[test]
    fn a_machine_runs_lesser_variants_but_prefers_its_own() {
        let v8 = PlatformMatcher::only(&Platform::new("linux", "arm64", ""));
        assert_eq!(v8.rank(&Platform::new("linux", "arm64", "v8")), Some(0));
        assert!(
            v8.rank(&Platform::new("linux", "arm", "v7")) < v8.rank(&Platform::new("linux", "arm", "v6"))
        );
        assert!(!v8.matches(&Platform::new("linux", "amd64", "")));
        let v3 = PlatformMatcher::only(&Platform::new("linux", "amd64", "v3"));
        assert_eq!(v3.rank(&Platform::new("linux", "amd64", "v2")), Some(1));
        assert_eq!(v3.rank(&Platform::new("linux", "amd64", "")), Some(2));
        assert_eq!(v3.rank(&Platform::new("linux", "amd64", "v4")), None);
        assert!(PlatformMatcher::all().matches(&Platform::default()));
        assert!(!PlatformMatcher::host().matches(&Platform::new("windows", "amd64", "")));
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(os in "[a-zA-Z]{0,6}", arch in "[a-z0-9_]{0,7}", variant in "(v?[0-9]{0,2})") {
            let once = Platform::new(&os, &arch, &variant);
            prop_assert_eq!(once.normalized(), once);
        }

        #[test]
        fn shown_platforms_parse_to_the_same(text in "(linux|windows)/(amd64|arm64|arm|s390x|x86_64)(/v[5-9])?") {
            let platform = Platform::parse(&text).unwrap();
            prop_assert_eq!(Platform::parse(&platform.to_string()).unwrap(), platform);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = Platform::parse(&text);
        }
    }
}
