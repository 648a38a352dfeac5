//! Credentials over a client's stream: the registry's challenge goes out, the answer comes back.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use containerd_api::transfer_types::{AuthRequest, AuthResponse, AuthType};
use prost::Message;
use registry::{Ask, Credential, Credentials, RegistryError};
use tokio::sync::Mutex;

use super::streams::{Stream, pack};

/// How long the client may take: a person may be typing.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks the client that opened the stream.
pub struct StreamCredentials {
    stream: Mutex<Stream>,
}

impl StreamCredentials {
    pub fn new(stream: Stream) -> Self {
        Self { stream: Mutex::new(stream) }
    }

    async fn ask(&self, ask: Ask) -> Result<Credential, RegistryError> {
        let failed = |what: &str| RegistryError::Authorization(what.to_owned());
        let request =
            AuthRequest { host: ask.host, reference: ask.reference, wwwauthenticate: ask.challenges };
        // An async lock: questions and answers of several hosts must not mix.
        let mut stream = self.stream.lock().await;
        stream
            .to_client
            .send(pack(&request))
            .await
            .map_err(|_| failed("auth stream closed by the client"))?;
        let answer = tokio::time::timeout(PATIENCE, stream.from_client.recv())
            .await
            .map_err(|_| failed("no answer on the auth stream"))?
            .ok_or_else(|| failed("auth stream closed by the client"))?;
        let answer = AuthResponse::decode(answer.value.as_slice()).map_err(|err| failed(&err.to_string()))?;
        Ok(match answer.auth_type() {
            AuthType::None => Credential::Anonymous,
            AuthType::Credentials if answer.username.is_empty() && answer.secret.is_empty() => {
                Credential::Anonymous
            }
            // A secret without a name is an identity token, as Docker's clients store them.
            AuthType::Credentials if answer.username.is_empty() => Credential::Refresh(answer.secret),
            AuthType::Credentials => Credential::Basic { user: answer.username, secret: answer.secret },
            AuthType::Refresh => Credential::Refresh(answer.secret),
            AuthType::Header => Credential::Bearer(answer.secret),
        })
    }
}

impl Credentials for StreamCredentials {
    fn get(&self, ask: Ask) -> Pin<Box<dyn Future<Output = Result<Credential, RegistryError>> + Send + '_>> {
        Box::pin(self.ask(ask))
    }
}
