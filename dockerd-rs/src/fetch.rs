//! What the engine itself asks of other machines: login checks, distribution inspection, downloads for `import`, searches.
//!
//! Everything goes through the registry client, so proxies, certificates and deadlines are the same everywhere.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::Response;
use hyper::body::Incoming;
use oci::Reference;
use registry::{Ask, Client, ClientOptions, Credential, Credentials, HostsConfig, RegistryError};

use crate::config::Proxies;
use crate::error::{Error, Kind, Result};
use crate::image::{Auth, Images};
use crate::runtime::transfer::Identity;

/// Credentials a client of the API sent with its request.
struct Given(Identity);

impl Credentials for Given {
    fn get(&self, _ask: Ask) -> Pin<Box<dyn Future<Output = Result<Credential, RegistryError>> + Send + '_>> {
        let credential = match &self.0 {
            Identity::Anonymous => Credential::Anonymous,
            Identity::Password { user, secret } => {
                Credential::Basic { user: user.clone(), secret: secret.clone() }
            }
            Identity::Refresh(token) => Credential::Refresh(token.clone()),
            Identity::Header(value) => {
                Credential::Bearer(value.strip_prefix("Bearer ").unwrap_or(value).to_owned())
            }
        };
        Box::pin(std::future::ready(Ok(credential)))
    }
}

/// A client of the registry of `reference`, configured as pulls are.
///
/// # Errors
/// The registry's settings or certificates cannot be read.
pub fn client(images: &Images, reference: &Reference, auth: &Auth) -> Result<Arc<Client>> {
    let hosts = HostsConfig { dir: images.host_dir(reference.domain())?, ..HostsConfig::default() };
    let options = ClientOptions {
        hosts,
        credentials: Arc::new(Given(auth.identity())),
        user_agent: concat!("dockerd-rs/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    Client::new(reference, options).map(Arc::new).map_err(|err| error(&err))
}

/// Downloads a URL. Any status is an answer.
///
/// # Errors
/// 500 in the words of Go's client.
pub async fn get(url: &str, _proxies: &Proxies) -> Result<Response<Incoming>> {
    let nobody = Reference::parse("docker.io/library/none").map_err(|err| Error::system(err.to_string()))?;
    let options = ClientOptions {
        hosts: HostsConfig::default(),
        credentials: Arc::new(Given(Identity::Anonymous)),
        user_agent: concat!("dockerd-rs/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let client = Client::new(&nobody, options).map_err(|err| error(&err))?;
    client.get_url(url).await.map_err(|err| error(&err))
}

/// A registry's refusal with the class and words Docker gives it.
pub fn error(err: &RegistryError) -> Error {
    let kind = match err.kind() {
        registry::Kind::NotFound => Kind::NotFound,
        registry::Kind::Unauthorized => Kind::Unauthorized,
        registry::Kind::Forbidden => Kind::Forbidden,
        _ => Kind::System,
    };
    let text = err.to_string();
    let text = text.strip_prefix("failed to do request: ").unwrap_or(&text);
    Error::new(kind, text)
}
