//! Plugins of other people's: programs that speak Docker's plugin protocol (JSON over HTTP) on a socket of their own.
//!
//! A plugin is found by its name each time it is asked for: a socket `<name>.sock` or `<name>/<name>.sock` in `/run/docker/plugins`, or a file
//! `<name>.spec` or `<name>.json` in `/etc/docker/plugins` or `/usr/lib/docker/plugins` that tells its address. So one that is started again
//! elsewhere is simply found there. Invariants: a name never leads out of these folders; every call has a deadline and a largest answer.
//!
//! Used for volume drivers ([`crate::volume`]) and for authorization ([`crate::api::authz`]).

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::error::{Error, Result, sys_text};

/// Where plugins put their sockets.
const SOCKETS: &str = "/run/docker/plugins";
/// Where files tell the addresses of others.
const SPECS: [&str; 2] = ["/etc/docker/plugins", "/usr/lib/docker/plugins"];
/// How long one call may take: a volume driver may have to reach another machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// The largest answer, in bytes.
const MAX_ANSWER: usize = 8 << 20;
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// A plugin, where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Its name.
    pub name: String,
    address: Address,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    Tcp(String),
}

/// What a plugin says of itself.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Activated {
    implements: Option<Vec<String>>,
}

/// The failure every answer may carry.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Refusal {
    #[serde(rename = "Err")]
    err: String,
}

impl Plugin {
    /// The plugin of that name, which must implement `interface` (`VolumeDriver`, `authz`).
    ///
    /// # Errors
    /// 404 if there is none; otherwise why it cannot be asked.
    pub async fn find(name: &str, interface: &str) -> Result<Self> {
        let found = locate(Path::new(SOCKETS), &SPECS.map(Path::new), name)?;
        let plugin = found.ok_or_else(|| Error::not_found(format!("plugin {name:?} not found")))?;
        let activated: Activated = plugin.call("Plugin.Activate", &serde_json::json!({})).await?;
        if activated.implements.unwrap_or_default().iter().any(|known| known == interface) {
            Ok(plugin)
        } else {
            Err(Error::not_found("Plugin does not implement the requested driver"))
        }
    }

    /// Calls a method and gives its answer.
    ///
    /// # Errors
    /// The plugin cannot be reached in time, refuses, or answers what is none.
    pub async fn call<A: Serialize + Sync, R: DeserializeOwned>(&self, method: &str, args: &A) -> Result<R> {
        let body =
            serde_json::to_vec(args).map_err(|err| Error::system(format!("encode {method}: {err}")))?;
        let answered = tokio::time::timeout(DEADLINE, self.post(method, body)).await;
        let (status, answer) = answered
            .map_err(|_| self.failed(method, "context deadline exceeded"))?
            .map_err(|why| self.failed(method, &why))?;
        let refusal = serde_json::from_slice::<Refusal>(&answer).unwrap_or_default();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&answer);
            let why = if refusal.err.is_empty() { text.trim() } else { &refusal.err };
            return Err(Error::system(format!("{method}: {why}")));
        }
        // An authorization plugin's answer has an `Err` that is its caller's to tell.
        if !refusal.err.is_empty() && !method.starts_with("AuthZPlugin.") {
            return Err(Error::system(refusal.err));
        }
        // Some answer a call that has nothing to say with nothing.
        let answer = if answer.is_empty() { &b"{}"[..] } else { &answer };
        serde_json::from_slice(answer)
            .map_err(|err| Error::system(format!("{method}: unreadable answer: {err}")))
    }

    fn failed(&self, method: &str, why: &str) -> Error {
        let (host, network, address) = match &self.address {
            Address::Unix(path) => {
                let text = path.display().to_string();
                (text.replace('/', "%2F"), "unix", text)
            }
            Address::Tcp(address) => (address.clone(), "tcp", address.clone()),
        };
        Error::system(format!("Post \"http://{host}/{method}\": dial {network} {address}: {why}"))
    }

    async fn post(&self, method: &str, body: Vec<u8>) -> Result<(http::StatusCode, Bytes), String> {
        let text = |err: std::io::Error| format!("connect: {}", sys_text(&err));
        match &self.address {
            Address::Unix(path) => {
                exchange(UnixStream::connect(path).await.map_err(text)?, method, body).await
            }
            Address::Tcp(address) => {
                exchange(TcpStream::connect(address).await.map_err(text)?, method, body).await
            }
        }
    }
}

/// One request over a connection of its own.
async fn exchange<S>(stream: S, method: &str, body: Vec<u8>) -> Result<(http::StatusCode, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let text = |err: hyper::Error| err.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let request = http::Request::post(format!("/{method}"))
        .header(http::header::HOST, "plugin")
        .header(http::header::ACCEPT, MEDIA_TYPE)
        .header(http::header::CONTENT_TYPE, MEDIA_TYPE)
        .header(http::header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|err| err.to_string())?;
    let exchanged = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.status();
        let whole = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        Ok((status, whole.map_err(|err| err.to_string())?.to_bytes()))
    };
    tokio::pin!(exchanged, connection);
    tokio::select! {
        answer = &mut exchanged => answer,
        // The connection ends when it has delivered everything.
        ended = &mut connection => match ended {
            Ok(()) => exchanged.await,
            Err(err) => Err(err.to_string()),
        },
    }
}

/// Looks a name up. Names with anything of a path in them are nobody's.
fn locate(sockets: &Path, specs: &[&Path], name: &str) -> Result<Option<Plugin>> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    if name.is_empty() || name.starts_with('.') || name.len() > 200 || !name.bytes().all(plain) {
        return Ok(None);
    }
    let plugin = |address| Ok(Some(Plugin { name: name.to_owned(), address }));
    for socket in [sockets.join(format!("{name}.sock")), sockets.join(name).join(format!("{name}.sock"))] {
        use std::os::unix::fs::FileTypeExt;
        if std::fs::metadata(&socket).is_ok_and(|metadata| metadata.file_type().is_socket()) {
            return plugin(Address::Unix(socket));
        }
    }
    for dir in specs {
        for base in [dir.to_path_buf(), dir.join(name)] {
            if let Ok(text) = std::fs::read_to_string(base.join(format!("{name}.spec"))) {
                return plugin(address(name, text.trim())?);
            }
            if let Ok(text) = std::fs::read_to_string(base.join(format!("{name}.json"))) {
                return plugin(from_json(name, &text)?);
            }
        }
    }
    Ok(None)
}

fn address(name: &str, text: &str) -> Result<Address> {
    match text.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(Address::Unix(path.into())),
        Some(("tcp" | "http", host)) if !host.is_empty() => {
            Ok(Address::Tcp(host.trim_end_matches('/').into()))
        }
        _ => Err(Error::system(format!("plugin {name}: unsupported address {text:?}"))),
    }
}

/// The newer file: an address, and TLS settings which this engine does not serve.
fn from_json(name: &str, text: &str) -> Result<Address> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct File {
        addr: String,
        #[serde(rename = "TLSConfig")]
        tls: Option<serde_json::Value>,
    }
    let file: File =
        serde_json::from_str(text).map_err(|err| Error::system(format!("plugin {name}: {err}")))?;
    if file.tls.is_some() {
        return Err(Error::system(format!("plugin {name}: TLS to plugins is not supported")));
    }
    address(name, &file.addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_found_by_name_and_never_outside_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        let (sockets, specs) = (dir.path().join("run"), dir.path().join("etc"));
        std::fs::create_dir_all(sockets.join("deep")).unwrap();
        std::fs::create_dir_all(&specs).unwrap();
        let _plain = std::os::unix::net::UnixListener::bind(sockets.join("plain.sock")).unwrap();
        let _deep = std::os::unix::net::UnixListener::bind(sockets.join("deep/deep.sock")).unwrap();
        std::fs::write(sockets.join("file.sock"), "").unwrap();
        std::fs::write(specs.join("far.spec"), "tcp://127.0.0.1:9\n").unwrap();
        std::fs::write(specs.join("json.json"), r#"{"Name":"json","Addr":"unix:///x.sock"}"#).unwrap();
        std::fs::write(specs.join("tls.json"), r#"{"Addr":"https://h","TLSConfig":{}}"#).unwrap();
        let find = |name: &str| locate(&sockets, &[&specs], name).map(|found| found.map(|it| it.address));
        assert_eq!(find("plain").unwrap(), Some(Address::Unix(sockets.join("plain.sock"))));
        assert_eq!(find("deep").unwrap(), Some(Address::Unix(sockets.join("deep/deep.sock"))));
        assert_eq!(find("far").unwrap(), Some(Address::Tcp("127.0.0.1:9".into())));
        assert_eq!(find("json").unwrap(), Some(Address::Unix("/x.sock".into())));
        assert!(find("tls").unwrap_err().message().contains("TLS"));
        for nobody in ["nosuch", "file", "", "..", "../run/plain", "a/b"] {
            assert_eq!(find(nobody).unwrap(), None, "{nobody}");
        }
    }
}
