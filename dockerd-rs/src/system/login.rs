//! `POST /auth`: whether a registry takes the credentials.

use oci::Reference;
use registry::RegistryError;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::fetch;
use crate::image::Auth;

/// Asks the registry. Gives the identity token to be used from now on instead of the password, if the registry has such.
///
/// # Errors
/// 401 from registries with token servers; 500 in Docker's words from the others, and when they cannot be reached.
pub async fn login(engine: &Engine, auth: &Auth) -> Result<Option<String>> {
    let address = auth.serveraddress.trim();
    let host = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    let host = if host.is_empty() || host == "index.docker.io" { "docker.io" } else { host };
    let reference =
        Reference::parse(&format!("{host}/library/login")).map_err(|err| Error::invalid(err.to_string()))?;
    let client = fetch::client(&engine.images, &reference, auth)?;
    let scheme = if registry::hosts::is_loopback(host) { "http" } else { "https" };
    match client.login().await {
        Ok(identity) => Ok(identity),
        Err(RegistryError::Status { url, status, .. }) => {
            Err(Error::system(format!("login attempt to {url} failed with status: {status}")))
        }
        // A registry without a token server: its refusal is nobody's authorization failure, Docker says.
        Err(err) if err.to_string().contains("no basic auth credentials") => {
            Err(Error::system(format!("Get \"{scheme}://{host}/v2/\": no basic auth credentials")))
        }
        Err(RegistryError::Request { cause, .. }) => {
            Err(Error::system(format!("Get \"{scheme}://{host}/v2/\": {cause}")))
        }
        Err(RegistryError::AccessDenied { source, .. }) => Err(Error::unauthorized(source.to_string())),
        Err(err) => Err(fetch::error(&err)),
    }
}
