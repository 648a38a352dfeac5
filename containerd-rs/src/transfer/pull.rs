//! Pull: a registry's image into the store, unpacked on the way.
//!
//! ```text
//! resolve ─► documents ─► configuration ─► layers, several at once:
//!     registry ─► blob file + sha256 ─► inflate + sha256 ─► extract ─► (in chain order) commit
//! ```
//! Layers are extracted while they are downloaded, each for itself; only committing waits for the layer below. A layer
//! counts once its digest has been checked, which is after its last byte: until then its snapshot is not visible.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use containerd_api::error::{Error, Kind};
use containerd_api::transfer_types::{ImageStore, OciRegistry};
use futures_util::future::try_join_all;
use oci::mediatype::Kind as Media;
use oci::{Descriptor, Platform, PlatformMatcher, Reference};
use registry::{Client, ClientOptions, HostsConfig, RegistryError};
use tokio::sync::{Semaphore, mpsc};

use super::credentials::StreamCredentials;
use super::progress::{Item, Progress, ref_key};
use super::scope::Scope;
use super::unpack::{Chain, Incoming, Plan};
use super::walk::{self, Documents, Found, Selection};
use super::{Transfer, names};

/// Pieces of a layer between the network and the disk, of at most 128 KiB each.
const PIECES: usize = 8;

/// One pull.
pub(super) struct Pull {
    pub transfer: Arc<Transfer>,
    pub scope: Scope,
    pub progress: Progress,
    pub client: Arc<Client>,
    /// `containerd.io/distribution.source.<registry>` and the repository.
    pub source_label: (String, String),
    downloads: Arc<Semaphore>,
}

/// Makes a client for a registry as the client of the transfer described it.
pub(super) fn client(
    transfer: &Transfer,
    namespace: &str,
    registry: &OciRegistry,
) -> Result<(Reference, Arc<Client>), Error> {
    let reference =
        Reference::parse_docker(&registry.reference).map_err(|err| Error::invalid(err.to_string()))?;
    let resolver = registry.resolver.clone().unwrap_or_default();
    let credentials: Arc<dyn registry::Credentials> = if resolver.auth_stream.is_empty() {
        Arc::new(())
    } else {
        Arc::new(StreamCredentials::new(transfer.streams.take(namespace, &resolver.auth_stream)?))
    };
    let dir = if resolver.host_dir.is_empty() {
        transfer.config.host_dir.clone()
    } else {
        Some(resolver.host_dir.into())
    };
    let options = ClientOptions {
        hosts: HostsConfig {
            dir,
            default_scheme: Some(resolver.default_scheme).filter(|s| !s.is_empty()),
            headers: resolver.headers.into_iter().collect(),
        },
        credentials,
        user_agent: format!("containerd-rs/{}", env!("CARGO_PKG_VERSION")),
    };
    let client = Client::new(&reference, options).map_err(from_registry)?;
    Ok((reference, Arc::new(client)))
}

/// How the labels begin that say where content came from.
pub(super) const SOURCE_LABEL: &str = "containerd.io/distribution.source.";

/// The label that lists which repositories of a registry have content. Named by host without port, as containerd does.
pub(super) fn source_label(reference: &Reference) -> String {
    let domain = reference.domain();
    let host = match domain.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => domain.split(':').next().unwrap_or_default(),
    };
    format!("{SOURCE_LABEL}{host}")
}

/// What of an image a store wants.
pub(super) fn selection(store: &ImageStore) -> Selection {
    let platforms: Vec<Platform> = store.platforms.iter().map(platform).collect();
    Selection {
        platforms: if platforms.is_empty() {
            PlatformMatcher::all()
        } else {
            PlatformMatcher::any_of(&platforms)
        },
        all_metadata: store.all_metadata,
        limit: store.manifest_limit as usize,
    }
}

pub(super) fn platform(wire: &containerd_api::types::Platform) -> Platform {
    let mut platform = Platform::new(&wire.os, &wire.architecture, &wire.variant);
    platform.os_version.clone_from(&wire.os_version);
    platform
}

pub(super) async fn pull(
    transfer: &Arc<Transfer>,
    scope: Scope,
    registry: OciRegistry,
    store: ImageStore,
    progress: Progress,
) -> Result<(), Error> {
    let (reference, client) = client(transfer, &scope.namespace, &registry)?;
    let text = format!("OCI Registry ({})", registry.reference);
    progress.say(format!("Resolving from {text}")).await;
    let resolved = client.resolve().await;
    let resolved = resolved.map_err(|err| from_registry(err).context("failed to resolve image"))?;
    let root = resolved.descriptor;
    progress.say(format!("Pulling from {text}")).await;
    progress.image("fetching image content", &registry.reference, &root).await;
    let pull = Pull {
        transfer: Arc::clone(transfer),
        scope,
        progress,
        client,
        source_label: (source_label(&reference), reference.path().to_owned()),
        downloads: Arc::new(Semaphore::new(transfer.config.max_concurrent_downloads)),
    };
    let found = walk::manifests(&pull, &root, &selection(&store)).await?;
    for manifest in &found {
        let pulled = pull.image(manifest, &store).await;
        if pulled.as_ref().is_err_and(|err| err.kind() == Kind::ResourceExhausted) {
            // On a full disk nothing is kept for another try: it would keep the disk full.
            for layer in &manifest.manifest.layers {
                let _ = pull.scope.content.abort(&pull.scope.namespace, &ref_key(layer));
            }
        }
        pulled?;
    }
    let mut names = names::named(&store, &root);
    if names.is_empty() {
        names.push(registry.reference.clone());
    }
    names::save(&pull.scope, &names, &root, &store.labels, &pull.progress).await?;
    pull.progress.say(format!("Completed pull from {text}")).await;
    Ok(())
}

impl Documents for Pull {
    async fn document(
        &self,
        descriptor: &Descriptor,
        above: &[Descriptor],
    ) -> Result<Option<Vec<u8>>, Error> {
        let item = self.progress.item(descriptor, parents(&self.client, above)).await;
        let (bytes, event) = match self.scope.info(&descriptor.digest)? {
            Some(_) => (self.scope.read(descriptor)?, "already exists"),
            None => (self.client.document(descriptor).await.map_err(from_registry)?, "complete"),
        };
        let document = walk::read_document(&bytes, descriptor)?;
        let mut labels = walk::child_labels(&document);
        self.add_source(&descriptor.digest, &mut labels)?;
        self.scope.put(descriptor, &bytes, labels).await?;
        item.done(event).await;
        Ok(Some(bytes))
    }
}

impl Pull {
    /// Adds the label that says which repositories have this content; several are separated by commas.
    fn add_source(&self, digest: &oci::Digest, labels: &mut HashMap<String, String>) -> Result<(), Error> {
        let (key, repository) = &self.source_label;
        let known =
            self.scope.info(digest)?.and_then(|info| info.labels.get(key).cloned()).unwrap_or_default();
        let mut repositories: Vec<&str> = known.split(',').filter(|r| !r.is_empty()).collect();
        if !repositories.contains(&repository.as_str()) {
            repositories.push(repository);
        }
        repositories.sort_unstable();
        labels.insert(key.clone(), repositories.join(","));
        Ok(())
    }

    /// Everything below one manifest.
    async fn image(&self, found: &Found, store: &ImageStore) -> Result<(), Error> {
        let mut above = found.above.clone();
        above.push(found.descriptor.clone());
        let config = self.small(&found.manifest.config, &above).await?;
        if !found.with_layers {
            return Ok(());
        }
        let plan = Plan::new(&self.transfer.config, found, &config, store)?;
        match plan {
            Some(plan) => self.unpacked_layers(found, &above, plan).await,
            None => {
                let fetches = found.manifest.layers.iter().map(|layer| self.layer(layer, &above, None));
                try_join_all(fetches).await.map(drop)
            }
        }
    }

    /// The layers of an image that is to be unpacked.
    async fn unpacked_layers(&self, found: &Found, above: &[Descriptor], plan: Plan) -> Result<(), Error> {
        let chain = Chain::new(&self.transfer, &self.scope, plan);
        let layers = found.manifest.layers.iter().enumerate();
        let result = try_join_all(layers.map(|(at, layer)| {
            let chain = &chain;
            async move {
                let target = chain.begin(at).await?;
                let incoming = self.layer(layer, above, target).await?;
                chain.end(at, layer, incoming, &self.progress).await
            }
        }))
        .await;
        if let Err(err) = result {
            chain.abandon().await;
            return Err(err);
        }
        chain.finish(&found.manifest.config).await
    }

    /// A configuration, or whatever stands in its place.
    async fn small(&self, descriptor: &Descriptor, above: &[Descriptor]) -> Result<Vec<u8>, Error> {
        let item = Arc::new(self.progress.item(descriptor, parents(&self.client, above)).await);
        if self.scope.has(&descriptor.digest)? {
            let mut labels = HashMap::new();
            self.add_source(&descriptor.digest, &mut labels)?;
            self.scope.hold_content(&descriptor.digest).await?;
            self.scope.label(&descriptor.digest, labels).await?;
            item.done("already exists").await;
            return if descriptor.kind() == Media::Config {
                self.scope.read(descriptor)
            } else {
                Ok(Vec::new())
            };
        }
        if descriptor.kind() != Media::Config {
            self.download(descriptor, &item, None).await?;
            return Ok(Vec::new());
        }
        if descriptor.size > oci::manifest::MAX_CONFIG_BYTES {
            return Err(Error::invalid(format!(
                "image configuration of {} bytes is too large",
                descriptor.size
            )));
        }
        let mut blob = self.client.blob(descriptor, 0).await.map_err(from_registry)?;
        let mut bytes = Vec::new();
        while let Some(piece) = blob.next().await.map_err(from_registry)? {
            bytes.extend_from_slice(&piece);
        }
        if !descriptor.digest.verifies(&bytes) {
            return Err(corrupt(descriptor));
        }
        let mut labels = HashMap::new();
        self.add_source(&descriptor.digest, &mut labels)?;
        self.scope.put(descriptor, &bytes, labels).await?;
        item.done("complete").await;
        Ok(bytes)
    }

    /// A layer, extracted into `target` while it comes if there is one. Says what happened to the target.
    async fn layer(
        &self,
        layer: &Descriptor,
        above: &[Descriptor],
        target: Option<Incoming>,
    ) -> Result<Option<Incoming>, Error> {
        let item = Arc::new(self.progress.item(layer, parents(&self.client, above)).await);
        // One transfer fetches a layer, the others then find it there.
        let _turn = self.transfer.fetching.lock(&format!("{}\0{}", self.scope.namespace, layer.digest)).await;
        if self.scope.has(&layer.digest)? {
            let mut labels = HashMap::new();
            self.add_source(&layer.digest, &mut labels)?;
            self.scope.hold_content(&layer.digest).await?;
            self.scope.label(&layer.digest, labels).await?;
            item.done("already exists").await;
            return Ok(target);
        }
        let permit = self.downloads.acquire().await.map_err(|err| Error::internal("download", err))?;
        let target = self.download(layer, &item, target).await?;
        drop(permit);
        Ok(target)
    }

    /// Fetches a blob into the store, resuming what an earlier attempt left.
    async fn download(
        &self,
        descriptor: &Descriptor,
        item: &Arc<Item>,
        target: Option<Incoming>,
    ) -> Result<Option<Incoming>, Error> {
        let Some(mut writer) = self.scope.writer(descriptor).await? else {
            item.done("already exists").await;
            return Ok(target);
        };
        let mut labels = HashMap::new();
        self.add_source(&descriptor.digest, &mut labels)?;
        if writer.is_shared() {
            writer.commit(descriptor.size, Some(&descriptor.digest), labels).await?;
            item.done("already exists").await;
            return Ok(target);
        }
        if writer.offset() > descriptor.size {
            writer.restart()?;
        }
        let offset = writer.offset();
        let mut blob = self.client.blob(descriptor, offset).await.map_err(from_registry)?;
        let (pieces, from_network) = mpsc::channel::<Bytes>(PIECES);
        // Extraction needs the layer from its start: what was half fetched before is extracted from the file later.
        let (target, later) = if offset == 0 { (target, None) } else { (None, target) };
        let storing = super::unpack::store(writer, from_network, target);
        let fetching = async {
            while let Some(piece) = blob.next().await? {
                if pieces.send(piece).await.is_err() {
                    // Storing has failed and says why.
                    break;
                }
                item.figure("downloading", blob.position());
            }
            drop(pieces);
            Ok::<(), RegistryError>(())
        };
        let (fetched, stored) = tokio::join!(fetching, storing);
        let (mut writer, target, extracted) = stored?;
        fetched.map_err(from_registry)?;
        if let Err(err) = writer.commit(descriptor.size, Some(&descriptor.digest), labels).await {
            if err.kind() == Kind::FailedPrecondition {
                drop(writer);
                // What is wrong once stays wrong: nothing of it is kept for another try.
                let _ = self.scope.content.abort(&self.scope.namespace, &ref_key(descriptor));
                return Err(corrupt(descriptor));
            }
            if !err.is_already_exists() {
                return Err(err);
            }
        }
        item.done("complete").await;
        extracted?;
        Ok(target.or(later))
    }
}

fn parents(client: &Client, above: &[Descriptor]) -> Vec<String> {
    match above.last() {
        Some(parent) => vec![ref_key(parent)],
        None => vec![client.reference().to_string()],
    }
}

fn corrupt(descriptor: &Descriptor) -> Error {
    let what = match descriptor.kind() {
        Media::Layer => "filesystem layer verification failed for digest",
        _ => "content verification failed for digest",
    };
    Error::new(Kind::FailedPrecondition, format!("{what} {}", descriptor.digest))
}

/// A registry's error as the API has it.
pub(super) fn from_registry(err: RegistryError) -> Error {
    let kind = match err.kind() {
        registry::Kind::NotFound => Kind::NotFound,
        registry::Kind::Unauthorized => Kind::Unauthenticated,
        registry::Kind::Forbidden => Kind::PermissionDenied,
        registry::Kind::Corrupt => Kind::FailedPrecondition,
        registry::Kind::Invalid => Kind::InvalidArgument,
        registry::Kind::Unavailable => Kind::Unavailable,
        registry::Kind::Other => Kind::Unknown,
    };
    Error::new(kind, err.to_string())
}
