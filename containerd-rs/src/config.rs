//! `config.toml` and the flags over it.
//!
//! The file is containerd's, version 2 or 3 (they differ for us in the names of plugins; both are read). What we do not know is ignored:
//! a file written for containerd starts this daemon. `imports` are read after the file that names them and win over it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where the file is looked for when no flag says so.
pub const DEFAULT_PATH: &str = "/etc/containerd/config.toml";
/// The version we write.
const VERSION: i64 = 3;
/// Our own content store.
const CONTENT: &str = "io.containerd.content.v1.content";
/// How deep files may import files.
const MAX_IMPORT_DEPTH: usize = 8;

/// The daemon's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub version: i64,
    /// What must outlive a restart of the machine.
    pub root: PathBuf,
    /// What need not.
    pub state: PathBuf,
    pub temp: String,
    pub disabled_plugins: Vec<String>,
    pub required_plugins: Vec<String>,
    pub oom_score: i32,
    pub imports: Vec<String>,
    pub grpc: Grpc,
    pub ttrpc: Ttrpc,
    pub debug: Debug,
    pub metrics: Metrics,
    /// Plugins' own tables, by their full names.
    pub plugins: BTreeMap<String, toml::Table>,
    /// Durations such as `5s`, by name.
    pub timeouts: BTreeMap<String, String>,
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Grpc {
    pub address: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub max_recv_message_size: usize,
    pub max_send_message_size: usize,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ttrpc {
    /// Empty means the gRPC address with `.ttrpc` appended.
    pub address: PathBuf,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Debug {
    pub address: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub level: String,
    /// `text` or `json`.
    pub format: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// `host:port` to serve `/v1/metrics` on; empty for nowhere.
    pub address: String,
    pub grpc_histogram: bool,
}

/// A plugin that is another process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyPlugin {
    /// `snapshot`, `content`, `diff` or `sandbox`.
    #[serde(rename = "type")]
    pub kind: String,
    pub address: PathBuf,
    pub platform: String,
    pub exports: BTreeMap<String, String>,
    pub capabilities: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: VERSION,
            root: "/var/lib/containerd".into(),
            state: "/run/containerd".into(),
            temp: String::new(),
            disabled_plugins: Vec::new(),
            required_plugins: Vec::new(),
            oom_score: 0,
            imports: Vec::new(),
            grpc: Grpc::default(),
            ttrpc: Ttrpc::default(),
            debug: Debug::default(),
            metrics: Metrics::default(),
            plugins: BTreeMap::new(),
            timeouts: BTreeMap::new(),
            proxy_plugins: BTreeMap::new(),
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            address: "/run/containerd/containerd.sock".into(),
            uid: 0,
            gid: 0,
            max_recv_message_size: containerd_api::MAX_MESSAGE_BYTES,
            max_send_message_size: containerd_api::MAX_MESSAGE_BYTES,
        }
    }
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("parse {}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}: version {version} is not supported, use 2 or 3", path.display())]
    Version { path: PathBuf, version: i64 },
    #[error("{}: imports go deeper than {MAX_IMPORT_DEPTH}", path.display())]
    TooDeep { path: PathBuf },
    #[error("{0} must be an absolute path")]
    NotAbsolute(&'static str),
    #[error("proxy plugin {name} is not the only content store; disable {CONTENT} to use it, and have one")]
    TwoContentStores { name: String },
    #[error("root and state must be different paths")]
    SamePaths,
}

impl Config {
    /// Reads `path`; without one the default path, where it is no error if there is no file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let given = path.is_some();
        let path = path.unwrap_or(Path::new(DEFAULT_PATH));
        if !given && !path.exists() {
            return Ok(Self::default());
        }
        let mut table = toml::Table::new();
        read_into(&mut table, path, 0)?;
        // The values were parsed from text before; deserialising them again cannot find other syntax, only wrong types.
        let mut config: Self = toml::Value::Table(table)
            .try_into()
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        if !matches!(config.version, 2 | 3) {
            return Err(ConfigError::Version { path: path.to_owned(), version: config.version });
        }
        config.plugins = std::mem::take(&mut config.plugins)
            .into_iter()
            .map(|(name, table)| (current_name(&name), table))
            .collect();
        config.version = VERSION;
        Ok(config)
    }

    /// Checks what flags and file together make.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (what, path) in
            [("root", &self.root), ("state", &self.state), ("grpc address", &self.grpc.address)]
        {
            if !path.is_absolute() {
                return Err(ConfigError::NotAbsolute(what));
            }
        }
        if self.root == self.state { Err(ConfigError::SamePaths) } else { Ok(()) }
    }

    /// Where shims publish their events.
    pub fn ttrpc_address(&self) -> PathBuf {
        if self.ttrpc.address.as_os_str().is_empty() {
            let mut address = self.grpc.address.clone().into_os_string();
            address.push(".ttrpc");
            address.into()
        } else {
            self.ttrpc.address.clone()
        }
    }

    /// The directory a plugin keeps under the root, named as containerd names it.
    pub fn plugin_root(&self, plugin: &str) -> PathBuf {
        self.root.join(plugin)
    }

    /// The directory a plugin keeps under the state.
    pub fn plugin_state(&self, plugin: &str) -> PathBuf {
        self.state.join(plugin)
    }

    /// The table of a plugin such as `io.containerd.gc.v1.scheduler`.
    pub fn plugin(&self, name: &str) -> Option<&toml::Table> {
        self.plugins.get(name)
    }

    /// Where the process listens that keeps the bytes of blobs in place of our own content store, if there is one.
    ///
    /// # Errors
    /// There are two content stores, and nothing says which to use.
    pub fn content_proxy(&self) -> Result<Option<&Path>, ConfigError> {
        let mut proxies = self.proxy_plugins.iter().filter(|(_, plugin)| plugin.kind == "content");
        match (proxies.next(), proxies.next()) {
            (None, _) => Ok(None),
            (Some((name, _)), other) => {
                if other.is_some() || !self.disabled_plugins.iter().any(|plugin| plugin == CONTENT) {
                    return Err(ConfigError::TwoContentStores { name: name.clone() });
                }
                Ok(self.proxy_plugins.get(name).map(|plugin| plugin.address.as_path()))
            }
        }
    }

    /// The whole as a file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|err| format!("# {err}\n"))
    }
}

fn read_into(table: &mut toml::Table, path: &Path, depth: usize) -> Result<(), ConfigError> {
    if depth > MAX_IMPORT_DEPTH {
        return Err(ConfigError::TooDeep { path: path.to_owned() });
    }
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let read: toml::Table = text
        .parse()
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
    let imports = read.get("imports").and_then(toml::Value::as_array).cloned().unwrap_or_default();
    merge(table, read);
    for import in imports.iter().filter_map(toml::Value::as_str) {
        for found in expand(path, import) {
            read_into(table, &found, depth + 1)?;
        }
    }
    Ok(())
}

/// The files an import names: a path, relative to the importing file, whose last component may have one `*`.
fn expand(from: &Path, import: &str) -> Vec<PathBuf> {
    let path = from.parent().unwrap_or(Path::new("/")).join(import);
    let Some((before, after)) =
        path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('*'))
    else {
        return vec![path];
    };
    let Some(entries) = path.parent().and_then(|directory| std::fs::read_dir(directory).ok()) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        })
        .collect();
    found.sort();
    found
}

/// Puts `from` over `into`, table by table.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// A plugin's name as version 3 has it.
fn current_name(name: &str) -> String {
    match name {
        "io.containerd.grpc.v1.cri" => "io.containerd.cri.v1.runtime".to_owned(),
        "io.containerd.internal.v1.tracing" => "io.containerd.tracing.processor.v1.otlp".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Config::load(Some(&dir.path().join(files[0].0)))
    }

    #[test]
    fn a_file_of_containerd_is_read_and_the_unknown_ignored() {
        let config = load(&[(
            "c.toml",
            r#"
version = 2
root = "/a"
oom_score = -999
[grpc]
  address = "/run/x.sock"
  tcp_address = ""
[cgroup]
  path = "x"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "p"
[stream_processors.x]
  accepts = ["y"]
"#,
        )])
        .unwrap();
        assert_eq!((config.root.as_path(), config.oom_score), (Path::new("/a"), -999));
        assert_eq!(config.ttrpc_address(), Path::new("/run/x.sock.ttrpc"));
        assert!(config.plugin("io.containerd.cri.v1.runtime").is_some());
    }

    #[test]
    fn imports_win_and_come_in_order() {
        let config = load(&[
            ("c.toml", "version = 3\nroot = '/a'\nimports = ['conf-*.toml']\n[grpc]\nuid = 5"),
            ("conf-1.toml", "root = '/b'\n[grpc]\ngid = 6"),
            ("conf-2.toml", "root = '/c'"),
            ("other.toml", "root = '/d'"),
        ])
        .unwrap();
        assert_eq!((config.root.as_path(), config.grpc.uid, config.grpc.gid), (Path::new("/c"), 5, 6));
        assert!(matches!(
            load(&[("c.toml", "version = 3\nimports = ['c.toml']")]),
            Err(ConfigError::TooDeep { .. })
        ));
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        assert!(matches!(load(&[("c.toml", "version = 1")]), Err(ConfigError::Version { version: 1, .. })));
        assert!(matches!(load(&[("c.toml", "version = ")]), Err(ConfigError::Parse { .. })));
        assert!(matches!(load(&[("c.toml", "root = 5")]), Err(ConfigError::Parse { .. })));
        assert!(matches!(Config::load(Some(Path::new("/nowhere/c.toml"))), Err(ConfigError::Read { .. })));
        let same = Config { state: "/var/lib/containerd".into(), ..Config::default() };
        assert!(matches!(same.validate(), Err(ConfigError::SamePaths)));
        assert!(Config { root: "x".into(), ..Config::default() }.validate().is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = Config::default().to_toml();
        assert_eq!(load(&[("c.toml", &text)]).unwrap().to_toml(), text);
    }

    #[test]
    fn another_content_store_has_to_be_the_only_one() {
        let proxy = "[proxy_plugins.a]\ntype = 'content'\naddress = '/a'\n";
        let disabled = "version = 3\ndisabled_plugins = ['io.containerd.content.v1.content']\n";
        let with = |text: String| {
            load(&[("c.toml", &text)]).unwrap().content_proxy().map(|at| at.map(Path::to_owned))
        };
        assert_eq!(with("version = 3\n".to_owned()).unwrap(), None);
        assert_eq!(with(format!("{disabled}{proxy}")).unwrap(), Some("/a".into()));
        assert!(with(format!("version = 3\n{proxy}")).is_err());
        assert!(with(format!("{disabled}{proxy}{}", proxy.replace(".a]", ".b]"))).is_err());
    }

    proptest::proptest! {
        /// A real file with something else somewhere in it.
        #[test]
        fn no_text_panics(at in 0usize..4000, cut in 0usize..40, other in "[ -~\\n]{0,20}") {
            let mut text = Config::default().to_toml();
            let at = at.min(text.len());
            text.replace_range(at..(at + cut).min(text.len()), &other);
            if let Ok(config) = load(&[("c.toml", &text)]) {
                let _ = config.validate();
            }
        }
    }
}
