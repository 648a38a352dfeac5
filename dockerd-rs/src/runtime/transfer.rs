//! containerd's transfer service: pull and push, whose bytes never pass through the engine.
//!
//! A transfer has up to two streams beside it, opened first and named in the request: containerd tells its progress on one and asks for
//! credentials on the other. Dropping the future of a transfer cancels it there.

use std::time::Duration;

use containerd_api::transfer_types::{
    AuthRequest, AuthResponse, AuthType, ImageStore, OciRegistry, Progress, RegistryResolver,
    UnpackConfiguration,
};
use containerd_api::{any, streaming, transfer, types};
use oci::Platform;
use prost_types::Any;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::Runtime;
use super::content::{Lease, SNAPSHOTTER};
use crate::error::{Error, Result};

/// A pull of many gigabytes over a slow line is slow; one that hangs is ended by the client or by containerd's own timeouts.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Progress that may wait for a slow client before containerd is held up.
const QUEUE: usize = 64;

/// How to say who we are.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Identity {
    /// Not at all.
    #[default]
    Anonymous,
    /// A user name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        secret: String,
    },
    /// A token to be exchanged for others.
    Refresh(String),
    /// A ready `Authorization` value.
    Header(String),
}

/// A registry's side of a transfer.
#[derive(Clone)]
pub struct Registry {
    /// The full reference.
    pub reference: String,
    /// Who we are; asked for only when the registry wants to know.
    pub identity: Identity,
    /// Where settings of hosts are.
    pub host_dir: Option<String>,
    /// Headers for the registry.
    pub headers: Vec<(String, String)>,
}

/// What containerd says on the way.
#[derive(Clone, Debug)]
pub struct Step {
    /// `waiting`, `downloading`, `complete`, `extracting`, …
    pub event: String,
    /// What it is about: an image's name or `layer-sha256:…`.
    pub name: String,
    /// Bytes so far.
    pub current: i64,
    /// Bytes in all.
    pub total: i64,
    /// Digest and media type of what it is about.
    pub descriptor: Option<(String, String)>,
}

impl From<Progress> for Step {
    fn from(progress: Progress) -> Self {
        Self {
            event: progress.event,
            name: progress.name,
            current: progress.progress,
            total: progress.total,
            descriptor: progress.desc.map(|descriptor| (descriptor.digest, descriptor.media_type)),
        }
    }
}

fn to_wire(platform: &Platform) -> types::Platform {
    types::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

impl Runtime {
    /// Fetches an image into the store under `name` and unpacks it for `platforms`. Steps go to `steps`.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn pull(
        &self,
        from: &Registry,
        name: &str,
        platforms: &[Platform],
        steps: mpsc::Sender<Step>,
        lease: Option<&Lease>,
    ) -> Result<()> {
        let unpack = |platform: &Platform| UnpackConfiguration {
            platform: Some(to_wire(platform)),
            snapshotter: SNAPSHOTTER.into(),
        };
        let store = ImageStore {
            name: name.to_owned(),
            platforms: platforms.iter().map(to_wire).collect(),
            unpacks: platforms.iter().map(unpack).collect(),
            ..Default::default()
        };
        let (registry, _asking) = self.registry(from).await?;
        let pulled = self.transfer(any::pack(&registry), any::pack(&store), steps, lease).await;
        self.catalog.name_changed(name);
        self.catalog.content_changed();
        pulled
    }

    /// Sends the image `name` of the store to a registry.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn push(
        &self,
        name: &str,
        platforms: &[Platform],
        to: &Registry,
        steps: mpsc::Sender<Step>,
    ) -> Result<()> {
        let store = ImageStore {
            name: name.to_owned(),
            platforms: platforms.iter().map(to_wire).collect(),
            ..Default::default()
        };
        let (registry, _asking) = self.registry(to).await?;
        self.transfer(any::pack(&store), any::pack(&registry), steps, None).await
    }

    async fn transfer(
        &self,
        source: Any,
        destination: Any,
        steps: mpsc::Sender<Step>,
        lease: Option<&Lease>,
    ) -> Result<()> {
        let progress_stream = stream_id("progress")?;
        let (keep_open, mut progress) = self.open_stream(&progress_stream).await?;
        let message = transfer::TransferRequest {
            source: Some(source),
            destination: Some(destination),
            options: Some(transfer::TransferOptions { progress_stream }),
        };
        let mut client = transfer::transfer_client::TransferClient::new(self.channel());
        let transfer = client.transfer(self.leased_request(message, lease, PATIENCE));
        tokio::pin!(transfer);
        let mut open = true;
        let answer = loop {
            tokio::select! {
                biased;
                step = progress.message(), if open => match step {
                    Ok(Some(step)) => forward(step, &steps).await,
                    Ok(None) | Err(_) => open = false,
                },
                answer = &mut transfer => break answer,
            }
        };
        // What was said before the end may still be on its way; containerd closes the stream after the last word.
        drop(keep_open);
        while open {
            match tokio::time::timeout(Duration::from_secs(2), progress.message()).await {
                Ok(Ok(Some(step))) => forward(step, &steps).await,
                _ => open = false,
            }
        }
        answer?;
        Ok(())
    }

    /// The registry as containerd's message has it. The credentials' stream lives as long as the second value.
    async fn registry(
        &self,
        registry: &Registry,
    ) -> Result<(OciRegistry, tokio_util::task::AbortOnDropHandle<()>)> {
        let mut resolver = RegistryResolver {
            host_dir: registry.host_dir.clone().unwrap_or_default(),
            headers: registry.headers.iter().cloned().collect(),
            ..Default::default()
        };
        // Also without credentials: whoever may be asked gives containerd an authorizer, whose refusals are Docker's.
        resolver.auth_stream = stream_id("auth")?;
        let (answers, questions) = self.open_stream(&resolver.auth_stream).await?;
        let task = tokio::spawn(answer_questions(registry.identity.clone(), answers, questions));
        let asking = tokio_util::task::AbortOnDropHandle::new(task);
        Ok((OciRegistry { reference: registry.reference.clone(), resolver: Some(resolver) }, asking))
    }

    /// Opens a stream of a name; messages both ways.
    async fn open_stream(&self, id: &str) -> Result<(mpsc::Sender<Any>, Streaming<Any>)> {
        let (send, queue) = mpsc::channel(QUEUE);
        let init = any::pack(&streaming::StreamInit { id: id.to_owned() });
        let gone = || Error::system("containerd closed a stream");
        send.send(init).await.map_err(|_| gone())?;
        let messages = tokio_stream::wrappers::ReceiverStream::new(queue);
        let mut client = streaming::streaming_client::StreamingClient::new(self.channel());
        let mut answers = client.stream(self.leased_request(messages, None, PATIENCE)).await?.into_inner();
        // The first answer says that the stream can be named now.
        answers.message().await?.ok_or_else(gone)?;
        Ok((send, answers))
    }
}

async fn forward(message: Any, steps: &mpsc::Sender<Step>) {
    if let Ok(Some(progress)) = any::unpack::<Progress>(&message) {
        // Nobody listens any more: the transfer itself is cancelled by whoever dropped the receiver.
        let _ = steps.send(progress.into()).await;
    }
}

async fn answer_questions(identity: Identity, answers: mpsc::Sender<Any>, mut questions: Streaming<Any>) {
    while let Ok(Some(message)) = questions.message().await {
        let Ok(Some(asked)) = any::unpack::<AuthRequest>(&message) else { continue };
        tracing::debug!(host = asked.host, "credentials asked for");
        let mut answer = AuthResponse::default();
        match &identity {
            Identity::Anonymous => {}
            Identity::Password { user, secret } => {
                answer.auth_type = AuthType::Credentials as i32;
                answer.username.clone_from(user);
                answer.secret.clone_from(secret);
            }
            Identity::Refresh(token) => {
                answer.auth_type = AuthType::Refresh as i32;
                answer.secret.clone_from(token);
            }
            Identity::Header(value) => {
                answer.auth_type = AuthType::Header as i32;
                answer.secret.clone_from(value);
            }
        }
        if answers.send(any::pack(&answer)).await.is_err() {
            return;
        }
    }
}

fn stream_id(kind: &str) -> Result<String> {
    let mut random = [0_u8; 12];
    getrandom::fill(&mut random).map_err(|err| Error::system(format!("random bytes: {err}")))?;
    Ok(format!("{kind}-{}", hex::encode(random)))
}
