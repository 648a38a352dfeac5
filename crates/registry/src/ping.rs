//! Asking a registry whether it is one and whether it knows us, and plain downloads.

use http::{Method, Response};
use hyper::body::Incoming;

use crate::client::{Client, Ready};
use crate::error::RegistryError;

impl Client {
    /// Asks the registry itself (not its mirrors) for `/v2/`, with credentials if it wants some. Gives the identity token, if its token
    /// server exchanges a password for one.
    pub async fn login(&self) -> Result<Option<String>, RegistryError> {
        let at = self.hosts.iter().find(|at| !at.host.is_mirror).or_else(|| self.hosts.last());
        let at = at.ok_or_else(|| RegistryError::NoHost(self.reference().domain().to_owned(), "log in"))?;
        let ready = Ready {
            method: Method::GET,
            target: "/".into(),
            headers: Vec::new(),
            body: None,
            scopes: Vec::new(),
        };
        at.auth.want_identity();
        self.expect(at, &ready).await?;
        Ok(at.auth.identity())
    }

    /// Gets a whole URL, following redirects, without credentials. Any status is an answer.
    pub async fn get_url(&self, url: &str) -> Result<Response<Incoming>, RegistryError> {
        let at = self.hosts.first();
        let at = at.ok_or_else(|| RegistryError::NoHost(self.reference().domain().to_owned(), "download"))?;
        let ready = Ready {
            method: Method::GET,
            target: url.to_owned(),
            headers: Vec::new(),
            body: None,
            scopes: Vec::new(),
        };
        self.send(at, &ready).await
    }
}
