//! Which engine to talk to: `-H`, DOCKER_HOST, `--context`, DOCKER_CONTEXT, the current context, the default socket, in this order.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::client::{Client, Host};

/// The flags that stand before the command.
#[derive(Clone, Debug, Default)]
pub struct Global {
    /// `-H`
    pub host: Option<String>,
    /// `-c`, `--context`
    pub context: Option<String>,
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--tls`
    pub tls: bool,
    /// `--tlsverify`
    pub tls_verify: bool,
    /// `--tlscacert`
    pub ca: Option<PathBuf>,
    /// `--tlscert`
    pub cert: Option<PathBuf>,
    /// `--tlskey`
    pub key: Option<PathBuf>,
}

impl Global {
    /// The directory of config.json and the contexts.
    pub fn config_dir(&self) -> PathBuf {
        let from_environment =
            || std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        self.config.clone().or_else(from_environment).unwrap_or_else(|| {
            PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".docker")
        })
    }

    /// config.json, empty if there is none.
    ///
    /// # Errors
    /// The file is no JSON.
    pub fn config_file(&self) -> Result<Value, String> {
        let path = self.config_dir().join("config.json");
        match std::fs::read(&path) {
            Ok(text) if !text.is_empty() => serde_json::from_slice(&text)
                .map_err(|err| format!("loading config file: {}: {err}", path.display())),
            _ => Ok(Value::Object(serde_json::Map::new())),
        }
    }

    /// The context in force.
    ///
    /// # Errors
    /// As [`Global::config_file`].
    pub fn current_context(&self) -> Result<String, String> {
        if let Some(name) = &self.context {
            return Ok(name.clone());
        }
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if self.host.is_some() || set("DOCKER_HOST").is_some() {
            return Ok("default".into());
        }
        if let Some(name) = set("DOCKER_CONTEXT") {
            return Ok(name);
        }
        let file = self.config_file()?;
        Ok(file["currentContext"].as_str().filter(|name| !name.is_empty()).unwrap_or("default").to_owned())
    }

    /// A client of the engine in force.
    ///
    /// # Errors
    /// The host or the context makes no sense.
    pub fn client(&self) -> Result<Client, String> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let context = self.current_context()?;
        let host = if context == "default" {
            self.host
                .clone()
                .or_else(|| set("DOCKER_HOST"))
                .unwrap_or_else(|| "unix:///var/run/docker.sock".into())
        } else {
            let meta = self.context_meta(&context)?;
            let host = meta["Endpoints"]["docker"]["Host"].as_str();
            host.ok_or_else(|| format!("context {context:?} has no docker endpoint"))?.to_owned()
        };
        let verify = self.tls_verify || set("DOCKER_TLS_VERIFY").is_some();
        let tls = if verify || self.tls { Some(self.tls_config(verify)?) } else { None };
        Ok(Client::new(Host::parse(&host)?, tls))
    }

    /// The file that describes a context.
    ///
    /// # Errors
    /// There is no such context.
    pub fn context_meta(&self, name: &str) -> Result<Value, String> {
        let path = context_dir(&self.config_dir(), name).join("meta.json");
        let text = std::fs::read(&path).map_err(|_| {
            format!("context {name:?}: context not found: open {}: no such file or directory", path.display())
        })?;
        serde_json::from_slice(&text).map_err(|err| format!("context {name:?}: {err}"))
    }

    fn tls_config(&self, verify: bool) -> Result<Arc<rustls::ClientConfig>, String> {
        let dir = std::env::var_os("DOCKER_CERT_PATH").map_or_else(|| self.config_dir(), PathBuf::from);
        let file = |given: &Option<PathBuf>, name: &str| given.clone().unwrap_or_else(|| dir.join(name));
        let mut roots = rustls::RootCertStore::empty();
        let ca = file(&self.ca, "ca.pem");
        let certificates = CertificateDer::pem_file_iter(&ca)
            .map_err(|err| format!("could not read CA certificate {}: {err}", ca.display()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|err| format!("{}: {err}", ca.display()))?;
            roots.add(certificate).map_err(|err| format!("{}: {err}", ca.display()))?;
        }
        if !verify {
            return Err(
                "--tls without --tlsverify is not supported: the engine's certificate is always checked"
                    .into(),
            );
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|err| err.to_string())?
            .with_root_certificates(roots);
        let (cert, key) = (file(&self.cert, "cert.pem"), file(&self.key, "key.pem"));
        let config = if cert.is_file() && key.is_file() {
            let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&cert)
                .map_err(|err| format!("{}: {err}", cert.display()))?
                .collect::<Result<_, _>>()
                .map_err(|err| format!("{}: {err}", cert.display()))?;
            let key =
                PrivateKeyDer::from_pem_file(&key).map_err(|err| format!("{}: {err}", key.display()))?;
            builder.with_client_auth_cert(chain, key).map_err(|err| err.to_string())?
        } else {
            builder.with_no_client_auth()
        };
        Ok(Arc::new(config))
    }
}

/// Where a context's description is: a directory named by the digest of its name.
pub fn context_dir(config_dir: &Path, name: &str) -> PathBuf {
    config_dir.join("contexts/meta").join(hex::encode(Sha256::digest(name)))
}
