//! The client's end of the Engine API: one connection a request, over a unix socket, TCP, TLS, or a program that carries the bytes (ssh).

use std::path::PathBuf;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Why a request did not do what was asked.
#[derive(Debug)]
pub enum Error {
    /// The engine could not be reached: the text to show.
    Connect(String),
    /// The engine answered with an error: its status and message.
    Engine(StatusCode, String),
    /// The connection broke, or the answer made no sense.
    Broken(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(text) | Self::Broken(text) => f.write_str(text),
            Self::Engine(_, text) => write!(f, "Error response from daemon: {text}"),
        }
    }
}

/// The result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A request's body.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// Where the engine is.
#[derive(Clone, Debug)]
pub enum Host {
    /// `unix://PATH`
    Unix(PathBuf),
    /// `tcp://HOST:PORT`
    Tcp(String),
    /// `ssh://[USER@]HOST[:PORT][/PATH]`: `ssh … docker system dial-stdio` carries the bytes.
    Ssh(Vec<String>),
}

impl Host {
    /// Parses what `-H` and DOCKER_HOST take.
    ///
    /// # Errors
    /// The scheme is none of ours.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("tcp" | "http", address)) => {
                let address = address.trim_end_matches('/');
                let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Ok(Self::Tcp(if has_port { address.to_owned() } else { format!("{address}:2375") }))
            }
            Some(("ssh", rest)) => {
                let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
                let (host, port) = match host.rsplit_once(':') {
                    Some((host, port)) if port.parse::<u16>().is_ok() => (host, Some(port)),
                    _ => (host, None),
                };
                let mut words: Vec<String> = vec!["-o".into(), "ConnectTimeout=30".into(), "-T".into()];
                if let Some(port) = port {
                    words.extend(["-p".into(), port.into()]);
                }
                words.extend(["--".into(), host.into(), "docker".into()]);
                if !path.is_empty() {
                    words.extend(["-H".into(), format!("unix:///{path}")]);
                }
                words.extend(["system".into(), "dial-stdio".into()]);
                Ok(Self::Ssh(words))
            }
            _ => Err(format!("unable to parse docker host `{text}`")),
        }
    }

    /// As it was written, for messages.
    pub fn show(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix://{}", path.display()),
            Self::Tcp(address) => format!("tcp://{address}"),
            Self::Ssh(words) => format!("ssh ({})", words.join(" ")),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A client of one engine.
pub struct Client {
    host: Host,
    tls: Option<std::sync::Arc<rustls::ClientConfig>>,
    prefix: String,
}

impl Client {
    /// A client; nothing is connected yet. DOCKER_API_VERSION fixes the version; otherwise the engine's newest is spoken.
    pub fn new(host: Host, tls: Option<std::sync::Arc<rustls::ClientConfig>>) -> Self {
        let prefix = match std::env::var("DOCKER_API_VERSION") {
            Ok(version) if !version.is_empty() => format!("/v{version}"),
            _ => String::new(),
        };
        Self { host, tls, prefix }
    }

    /// Where it points.
    pub fn host(&self) -> &Host {
        &self.host
    }

    async fn dial(&self) -> Result<Box<dyn Stream>> {
        let down = |err: std::io::Error| match err.kind() {
            std::io::ErrorKind::PermissionDenied => Error::Connect(format!(
                "permission denied while trying to connect to the Docker daemon socket at {}: {err}",
                self.host.show()
            )),
            _ => Error::Connect(format!(
                "Cannot connect to the Docker daemon at {}. Is the docker daemon running?",
                self.host.show()
            )),
        };
        Ok(match &self.host {
            Host::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(down)?),
            Host::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(down)?;
                stream.set_nodelay(true).map_err(down)?;
                match &self.tls {
                    None => Box::new(stream),
                    Some(config) => {
                        let name = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                        let name =
                            rustls_pki_types::ServerName::try_from(name.trim_matches(['[', ']']).to_owned())
                                .map_err(|err| Error::Connect(err.to_string()))?;
                        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::clone(config));
                        Box::new(
                            connector
                                .connect(name, stream)
                                .await
                                .map_err(|err| Error::Connect(format!("error during connect: {err}")))?,
                        )
                    }
                }
            }
            Host::Ssh(words) => {
                let mut child = tokio::process::Command::new("ssh")
                    .args(words)
                    .stdin(std::process::Stdio::piped())
                    .stdout(std::process::Stdio::piped())
                    .kill_on_drop(false)
                    .spawn()
                    .map_err(|err| Error::Connect(format!("ssh: {err}")))?;
                match (child.stdout.take(), child.stdin.take()) {
                    (Some(stdout), Some(stdin)) => Box::new(tokio::io::join(stdout, stdin)),
                    _ => return Err(Error::Connect("ssh: no pipes".into())),
                }
            }
        })
    }

    /// Sends a request and returns the answer's head and body, whatever its status.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Result<http::Response<Incoming>> {
        let (mut sender, connection) = http1::Builder::new()
            .title_case_headers(true)
            .handshake(TokioIo::new(self.dial().await?))
            .await
            .map_err(|err| Error::Broken(err.to_string()))?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header(header::HOST, "api.moby.localhost")
            .header(header::USER_AGENT, concat!("Docker-Client/", env!("CARGO_PKG_VERSION"), " (linux)"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).map_err(|err| Error::Broken(err.to_string()))?;
        sender
            .send_request(request)
            .await
            .map_err(|err| Error::Broken(format!("error during connect: {err}")))
    }

    /// As [`Client::send`], with an error for a status of 400 and above.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Result<http::Response<Incoming>> {
        let response = self.send(method, path, headers, body).await?;
        let status = response.status();
        if status.as_u16() < 400 {
            return Ok(response);
        }
        let bytes = read(response).await?;
        let message = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|value| value["message"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().to_owned());
        Err(Error::Engine(status, message))
    }

    /// GET, and the JSON that came.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, None).await
    }

    /// POST of JSON (or nothing), and the JSON that came.
    pub async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value> {
        self.json(Method::POST, path, body).await
    }

    /// DELETE, and the JSON that came.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.json(Method::DELETE, path, None).await
    }

    /// Any method. An empty answer is `null`.
    pub async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let (headers, body): (&[(&str, &str)], Body) = match body {
            Some(value) => (&[("Content-Type", "application/json")], full(value.to_string().into_bytes())),
            None => (&[], empty()),
        };
        let bytes = read(self.open(method, path, headers, body).await?).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .map_err(|err| Error::Broken(format!("the engine's answer is no JSON: {err}")))
    }

    /// Takes the connection over: attach and exec. The answer's head tells the stream's type.
    pub async fn hijack(&self, path: &str, body: Option<&Value>) -> Result<(String, Hijacked)> {
        let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "tcp")];
        let body = match body {
            Some(value) => {
                headers.push(("Content-Type", "application/json"));
                full(value.to_string().into_bytes())
            }
            None => empty(),
        };
        let response = self.open(Method::POST, path, &headers, body).await?;
        let kind = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|err| Error::Broken(format!("unable to upgrade to tcp: {err}")))?;
        Ok((kind, TokioIo::new(upgraded)))
    }

    /// A raw byte stream to the engine, for `system dial-stdio`.
    pub async fn raw(&self) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        self.dial().await
    }
}

/// A connection that was taken over.
pub type Hijacked = TokioIo<hyper::upgrade::Upgraded>;

/// Reads a whole answer.
pub async fn read(response: http::Response<Incoming>) -> Result<Bytes> {
    let collected = response.into_body().collect().await.map_err(|err| Error::Broken(err.to_string()))?;
    Ok(collected.to_bytes())
}

/// No body.
pub fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed()
}

/// A body that is known whole.
pub fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}

/// A body read from a stream as it is sent.
pub fn streamed(reader: impl AsyncRead + Send + Sync + 'static) -> Body {
    use futures_util::TryStreamExt;
    let stream = tokio_util::io::ReaderStream::with_capacity(reader, 256 << 10);
    BodyExt::boxed(http_body_util::StreamBody::new(stream.map_ok(http_body::Frame::data)))
}

/// A query's value, escaped.
pub fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A name in a path, escaped but for what names have.
pub fn segment(text: &str) -> String {
    const SET: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
        .remove(b'.')
        .remove(b'-')
        .remove(b'_')
        .remove(b'/')
        .remove(b':')
        .remove(b'@');
    percent_encoding::utf8_percent_encode(text, SET).to_string()
}
