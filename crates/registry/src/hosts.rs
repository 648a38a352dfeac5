//! Which hosts serve a registry: mirrors and certificates from `hosts.toml` or Docker's `certs.d`.
//!
//! Invariant: every [`Host`] says completely how it is talked to. Plain HTTP is used only where a file or the caller
//! asked for it, or with a loopback address that does not answer TLS.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

/// What a host may be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub pull: bool,
    pub resolve: bool,
    pub push: bool,
}

impl Capabilities {
    pub const ALL: Self = Self { pull: true, resolve: true, push: true };
}

/// One place a registry is served from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// `http` or `https`.
    pub scheme: String,
    /// Name or address, with a port if it is not the scheme's.
    pub authority: String,
    /// What precedes the repository: `/v2` unless overridden.
    pub path: String,
    pub capabilities: Capabilities,
    /// Files of certificates to trust besides the system's.
    pub ca: Vec<PathBuf>,
    /// Certificate and key files to show.
    pub client: Vec<(PathBuf, PathBuf)>,
    pub skip_verify: bool,
    /// Sent with each request to this host and to no other.
    pub headers: Vec<(String, String)>,
    /// A loopback host nobody said anything about may turn out to speak plain HTTP.
    pub may_be_plain: bool,
    /// Not the registry itself: it is told which registry is meant by `?ns=`.
    pub is_mirror: bool,
}

/// Where to look for host configuration, and what to assume without.
#[derive(Clone, Debug, Default)]
pub struct HostsConfig {
    /// Directory with a directory per registry, holding `hosts.toml` or certificates.
    pub dir: Option<PathBuf>,
    /// `http` or `https` for hosts without configuration; loopback hosts are found out.
    pub default_scheme: Option<String>,
    /// Headers for the registry itself.
    pub headers: Vec<(String, String)>,
}

/// Why host configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    #[error("failed to read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to parse {path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{path}: {what}")]
    Value { path: PathBuf, what: String },
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct FileToml {
    server: Option<String>,
    #[serde(flatten)]
    own: HostToml,
    host: HashMap<String, Spanned<HostToml>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct HostToml {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    header: HashMap<String, OneOrMany>,
    override_path: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<OneOrMany>),
}

impl HostsConfig {
    /// The hosts of a registry, in the order they are to be tried. The registry itself is last.
    pub fn hosts(&self, domain: &str) -> Result<Vec<Host>, HostsError> {
        let registry = self.default_host(domain);
        let Some(dir) = self.dir.as_deref().and_then(|dir| find_dir(dir, domain)) else {
            return Ok(vec![registry]);
        };
        let file = dir.join("hosts.toml");
        match std::fs::read_to_string(&file) {
            Ok(text) => parse_hosts_toml(&text, &file, registry),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(vec![certs_d(&dir, registry)?]),
            Err(source) => Err(HostsError::Read { path: file, source }),
        }
    }

    fn default_host(&self, domain: &str) -> Host {
        let authority = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        let local = is_loopback(authority);
        let scheme = self.default_scheme.clone().filter(|s| s == "http" || s == "https");
        Host {
            may_be_plain: local && scheme.is_none(),
            scheme: scheme.unwrap_or_else(|| "https".into()),
            authority: authority.into(),
            path: "/v2".into(),
            capabilities: Capabilities::ALL,
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            headers: self.headers.clone(),
            is_mirror: false,
        }
    }
}

/// Whether an authority is this machine itself: `localhost`, 127.0.0.0/8 or ::1, with or without a port.
pub fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The directory for a registry: `host:port`, `host_port_` (for file systems without colons), `host`, `_default`.
fn find_dir(dir: &Path, domain: &str) -> Option<PathBuf> {
    let mut names = vec![domain.to_owned()];
    if let Some((host, port)) = domain.rsplit_once(':').filter(|(_, p)| p.bytes().all(|b| b.is_ascii_digit()))
    {
        names.insert(0, format!("{host}_{port}_"));
        names.push(host.trim_start_matches('[').trim_end_matches(']').to_owned());
    }
    names.push("_default".into());
    names.into_iter().map(|name| dir.join(name)).find(|path| path.is_dir())
}

/// Reads a `hosts.toml`. `registry` is the host as it would be without the file.
pub fn parse_hosts_toml(text: &str, path: &Path, registry: Host) -> Result<Vec<Host>, HostsError> {
    let file: FileToml = toml::from_str(text)
        .map_err(|err| HostsError::Parse { path: path.into(), message: err.message().to_owned() })?;
    let mut mirrors: Vec<(String, Spanned<HostToml>)> = file.host.into_iter().collect();
    // Tables are tried in the order they are written in.
    mirrors.sort_by_key(|(_, table)| table.span().start);
    let mut hosts = Vec::new();
    for (url, table) in mirrors {
        let mut host = from_url(&url, path, table.get_ref().override_path)?;
        host.is_mirror = host.authority != registry.authority;
        settings(&mut host, table.into_inner(), path)?;
        hosts.push(host);
    }
    let mut own = match &file.server {
        Some(server) => {
            let mut own = from_url(server, path, file.own.override_path)?;
            own.headers.clone_from(&registry.headers);
            own
        }
        None => registry,
    };
    settings(&mut own, file.own, path)?;
    hosts.push(own);
    Ok(hosts)
}

fn settings(host: &mut Host, table: HostToml, path: &Path) -> Result<(), HostsError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    if let Some(names) = table.capabilities {
        let has = |name: &str| names.iter().any(|n| n == name);
        if let Some(odd) =
            names.iter().find(|n| !matches!(n.as_str(), "pull" | "resolve" | "push" | "referrers"))
        {
            return Err(HostsError::Value { path: path.into(), what: format!("unknown capability {odd}") });
        }
        host.capabilities = Capabilities { pull: has("pull"), resolve: has("resolve"), push: has("push") };
    }
    let many = |list| match list {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    };
    host.ca.extend(table.ca.into_iter().flat_map(many).map(|file| dir.join(file)));
    let clients = match table.client {
        None => Vec::new(),
        Some(Client::One(one)) => vec![vec![one]],
        Some(Client::Many(pairs)) => pairs.into_iter().map(many).collect(),
    };
    for pair in clients {
        let cert = pair.first().map(|c| dir.join(c));
        let key = pair.get(1).filter(|k| !k.is_empty()).map(|k| dir.join(k));
        let Some(cert) = cert else {
            return Err(HostsError::Value { path: path.into(), what: "empty client certificate".into() });
        };
        host.client.push((cert.clone(), key.unwrap_or(cert)));
    }
    host.skip_verify |= table.skip_verify.unwrap_or(false);
    for (name, values) in table.header {
        host.headers.extend(many(values).into_iter().map(|value| (name.clone(), value)));
    }
    let tls_said = !host.ca.is_empty() || !host.client.is_empty() || host.skip_verify;
    host.may_be_plain &= !tls_said;
    Ok(())
}

/// `https://host:port/path`, or just a host.
fn from_url(text: &str, path: &Path, override_path: bool) -> Result<Host, HostsError> {
    let bad = || HostsError::Value { path: path.into(), what: format!("invalid host {text:?}") };
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme.to_owned(), rest),
        Some(_) => return Err(bad()),
        None => (if is_loopback(text) { "http" } else { "https" }.to_owned(), text),
    };
    let (authority, base) = match rest.split_once('/') {
        Some((authority, base)) => (authority, format!("/{}", base.trim_end_matches('/'))),
        None => (rest, String::new()),
    };
    if authority.is_empty() || authority.parse::<http::uri::Authority>().is_err() || authority.contains('@') {
        return Err(bad());
    }
    let base = if base == "/" { String::new() } else { base };
    let api = if override_path || base.ends_with("/v2") { base } else { format!("{base}/v2") };
    Ok(Host {
        scheme,
        authority: if authority == "docker.io" { "registry-1.docker.io".into() } else { authority.into() },
        path: api,
        capabilities: Capabilities::ALL,
        ca: Vec::new(),
        client: Vec::new(),
        skip_verify: false,
        headers: Vec::new(),
        may_be_plain: false,
        is_mirror: false,
    })
}

/// Docker's way: `*.crt` to trust, `*.cert` with `*.key` to show.
fn certs_d(dir: &Path, mut host: Host) -> Result<Host, HostsError> {
    let read = |source| HostsError::Read { path: dir.into(), source };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(read)? {
        files.push(entry.map_err(read)?.path());
    }
    files.sort();
    for file in files {
        match file.extension().and_then(|e| e.to_str()) {
            Some("crt") => host.ca.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                if !key.exists() {
                    let what = format!("missing key {} for client certificate", key.display());
                    return Err(HostsError::Value { path: file, what });
                }
                host.client.push((file, key));
            }
            _ => {}
        }
    }
    host.may_be_plain &= host.ca.is_empty() && host.client.is_empty();
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Vec<Host>, HostsError> {
        parse_hosts_toml(
            text,
            Path::new("/certs/x/hosts.toml"),
            HostsConfig::default().default_host("reg.test"),
        )
    }

    #[test]
    fn mirrors_keep_their_order_and_their_settings() {
        let hosts = parse(
            r#"
            server = "https://reg.test"
            [host."https://z.test:8443"]
              capabilities = ["pull"]
              ca = "z.crt"
              client = [["c.cert", "c.key"], ["both.pem", ""]]
              [host."https://z.test:8443".header]
                x-a = ["1", "2"]
            [host."http://a.test"]
              capabilities = ["pull", "resolve"]
              skip_verify = true
            [host."https://m.test/v2/cache"]
              override_path = true
            "#,
        )
        .unwrap();
        let names: Vec<_> =
            hosts.iter().map(|h| format!("{}://{}{}", h.scheme, h.authority, h.path)).collect();
        assert_eq!(
            names,
            ["https://z.test:8443/v2", "http://a.test/v2", "https://m.test/v2/cache", "https://reg.test/v2"]
        );
        assert_eq!(hosts[0].capabilities, Capabilities { pull: true, resolve: false, push: false });
        assert_eq!(hosts[0].ca, [PathBuf::from("/certs/x/z.crt")]);
        assert_eq!(hosts[0].client[1].1, PathBuf::from("/certs/x/both.pem"));
        assert_eq!(hosts[0].headers.len(), 2);
        assert!(hosts[1].skip_verify && hosts[1].is_mirror && !hosts[3].is_mirror);
    }

    #[test]
    fn refusals() {
        for text in
            ["[host.\"ftp://x\"]", "[host.\"https://\"]", "server = 1", "capabilities = [\"fly\"]", "x = ["]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn defaults() {
        let config = HostsConfig::default();
        assert_eq!(config.hosts("docker.io").unwrap()[0].authority, "registry-1.docker.io");
        assert!(config.hosts("127.0.0.1:5000").unwrap()[0].may_be_plain);
        assert!(!config.hosts("registry.test").unwrap()[0].may_be_plain);
        for (authority, want) in [
            ("localhost:1", true),
            ("127.9.9.9", true),
            ("[::1]:80", true),
            ("127.0.0.1.evil.test", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(authority), want, "{authority}");
        }
    }

    #[test]
    fn directories_are_found_by_their_several_names() {
        let dir = tempfile::tempdir().unwrap();
        let config = HostsConfig { dir: Some(dir.path().into()), ..HostsConfig::default() };
        for name in ["reg.test:5000", "other.test_80_", "_default"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("reg.test:5000/ca.crt"), "").unwrap();
        std::fs::write(dir.path().join("other.test_80_/hosts.toml"), "skip_verify = true").unwrap();
        std::fs::write(dir.path().join("_default/hosts.toml"), "[host.\"http://mirror.test\"]").unwrap();
        assert_eq!(config.hosts("reg.test:5000").unwrap()[0].ca.len(), 1);
        assert!(config.hosts("other.test:80").unwrap()[0].skip_verify);
        let hosts = config.hosts("unknown.test").unwrap();
        assert_eq!(
            (hosts[0].authority.as_str(), hosts[1].authority.as_str()),
            ("mirror.test", "unknown.test")
        );
    }

    proptest! {
        #[test]
        fn text_never_panics(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }
    }
}
