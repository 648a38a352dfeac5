//! What images look like from outside: lists, inspection, history, sizes.
//!
//! Sizes follow Docker's containerd store: *content* is the bytes of the blobs that are here, *unpacked* the snapshots of the layers; a list
//! shows both together, an inspection the content.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use docker_api::filters::Filters;
use futures_util::StreamExt;
use oci::{Descriptor, Digest, Manifest, Platform, PlatformMatcher, Reference};
use serde_json::{Map, Value, json};

use super::documents::Known;
use super::{DANGLING, ImageUser, Images, PARENT_LABEL, familiar_names};
use crate::api::ApiVersion;
use crate::error::{Error, Result};
use crate::runtime::catalog::View;
use crate::runtime::content::ImageRecord;

/// How many images are looked into at the same time.
const AT_ONCE: usize = 16;
/// The largest build record that is read out.
const MAX_STATEMENT_BYTES: u64 = 64 << 20;

/// One manifest of an image, with its sizes.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    pub descriptor: Descriptor,
    pub manifest: Option<Arc<Manifest>>,
    pub config: Option<Arc<Known>>,
    /// Whether everything it needs is here.
    pub available: bool,
    pub content: u64,
    pub unpacked: u64,
}

impl Variant {
    fn kind(&self) -> &'static str {
        if self.descriptor.is_attestation() {
            "attestation"
        } else if self.config.as_ref().is_some_and(|known| !known.config.os.is_empty())
            || self.descriptor.platform.is_some()
        {
            "image"
        } else {
            "unknown"
        }
    }

    pub(crate) fn platform(&self) -> Platform {
        let configured = self.config.as_ref().map(|known| known.config.platform());
        let configured = configured.filter(|platform| !platform.is_unspecified());
        configured.or_else(|| self.descriptor.platform.clone()).unwrap_or_default()
    }

    fn to_json(&self, users: &[&ImageUser]) -> Value {
        let mut shown = json!({
            "ID": self.descriptor.digest,
            "Descriptor": self.descriptor,
            "Available": self.available,
            "Size": { "Content": self.content, "Total": self.content + self.unpacked },
            "Kind": self.kind(),
        });
        match self.kind() {
            "image" => {
                let containers: Vec<&str> = users.iter().map(|user| user.container_id.as_str()).collect();
                shown["ImageData"] = json!({
                    "Platform": self.platform(),
                    "Size": { "Unpacked": self.unpacked },
                    "Containers": if containers.is_empty() { Value::Null } else { json!(containers) },
                });
            }
            "attestation" => {
                let of = self
                    .descriptor
                    .annotations
                    .get("vnd.docker.reference.digest")
                    .cloned()
                    .unwrap_or_default();
                shown["AttestationData"] = json!({ "For": of });
            }
            _ => {}
        }
        shown
    }
}

/// One image with all its names.
pub(crate) struct Seen {
    pub target: Descriptor,
    pub records: Vec<ImageRecord>,
    pub variants: Vec<Variant>,
    /// Which variant stands for the image.
    best: Option<usize>,
}

impl Seen {
    /// The variant that stands for the image is this machine's, else the first that is here.
    fn new(
        target: Descriptor,
        records: Vec<ImageRecord>,
        variants: Vec<Variant>,
        host: &PlatformMatcher,
    ) -> Self {
        let with_config = || variants.iter().enumerate().filter(|(_, variant)| variant.config.is_some());
        let images = || with_config().filter(|(_, variant)| variant.kind() == "image");
        let best = images()
            .filter_map(|(at, variant)| host.rank(&variant.platform()).map(|rank| (rank, at)))
            .min()
            .map(|(_, at)| at)
            .or_else(|| images().next().map(|(at, _)| at))
            .or_else(|| with_config().next().map(|(at, _)| at));
        Self { target, records, variants, best }
    }

    fn best(&self) -> Option<&Variant> {
        self.variants.get(self.best?)
    }

    pub fn created(&self) -> i64 {
        self.created_at().map_or(0, |at| at.as_second())
    }

    fn created_at(&self) -> Option<jiff::Timestamp> {
        self.best()?.config.as_ref()?.created
    }

    pub fn size(&self) -> u64 {
        self.variants.iter().map(|variant| variant.content + variant.unpacked).sum()
    }

    /// Labels of the configuration.
    pub fn labels_of_config(&self) -> BTreeMap<String, String> {
        let config = self.best().and_then(|variant| variant.config.as_ref());
        config.and_then(|known| known.config.config.labels.clone()).unwrap_or_default()
    }

    pub fn is_dangling(&self) -> bool {
        self.records.iter().all(|record| record.name.starts_with(DANGLING))
    }

    fn parent(&self) -> String {
        self.records.iter().find_map(|record| record.labels.get(PARENT_LABEL)).cloned().unwrap_or_default()
    }

    /// The layers of all variants: chain and blob of each.
    fn layers(&self) -> HashSet<(&str, &Digest)> {
        let mut layers = HashSet::new();
        for variant in &self.variants {
            let (Some(manifest), Some(known)) = (&variant.manifest, &variant.config) else { continue };
            for (at, layer) in manifest.layers.iter().enumerate() {
                layers.insert((known.chains.get(at).map_or("", String::as_str), &layer.digest));
            }
        }
        layers
    }
}

/// Options of `GET /images/json`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListOptions {
    pub shared_size: bool,
    pub manifests: bool,
}

impl Images {
    /// How many images there are.
    ///
    /// # Errors
    /// containerd refused.
    pub async fn count(&self) -> Result<usize> {
        Ok(self.runtime().view().await?.targets.len())
    }

    /// Bytes of one committed snapshot. They never change, so they are asked for once.
    async fn snapshot_bytes(&self, key: &str) -> Result<u64> {
        if let Some(bytes) = self.0.usages.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(key)
        {
            return Ok(*bytes);
        }
        let bytes = self.runtime().snapshot_usage(key).await?.map_or(0, |(bytes, _)| bytes);
        let mut usages = self.0.usages.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if usages.len() > 4096 {
            usages.clear();
        }
        usages.insert(key.to_owned(), bytes);
        Ok(bytes)
    }

    async fn unpacked(&self, view: &View, known: &Known) -> Result<u64> {
        let Some(mut key) = known.chains.last() else { return Ok(0) };
        let mut total = 0;
        while let Some(parent) = view.chains.get(key) {
            total += self.snapshot_bytes(key).await?;
            key = parent;
        }
        Ok(total)
    }

    pub(crate) async fn variants(&self, view: &View, target: &Descriptor) -> Result<Vec<Variant>> {
        let mut variants = Vec::new();
        for entry in self.entries(target).await? {
            let mut variant = Variant {
                descriptor: entry.descriptor,
                manifest: entry.manifest,
                config: None,
                available: false,
                content: 0,
                unpacked: 0,
            };
            if let Some(manifest) = &variant.manifest {
                let size = |digest: &Digest| view.blobs.get(digest).map(|blob| blob.size);
                let mut blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
                variant.available = blobs.all(|blob| view.has(&blob.digest));
                let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
                let own = size(&variant.descriptor.digest).unwrap_or(variant.descriptor.size);
                variant.content = own + blobs.filter_map(|blob| size(&blob.digest)).sum::<u64>();
                variant.config = self.config(manifest).await?;
                if let Some(known) = &variant.config {
                    variant.unpacked = self.unpacked(view, known).await?;
                }
            }
            variants.push(variant);
        }
        Ok(variants)
    }

    /// Every image, its names together, newest first. An image that cannot be read is shown without what could not be read.
    pub(crate) async fn all(&self, view: &View) -> Result<Vec<Seen>> {
        let mut targets: Vec<Digest> = view.targets.keys().cloned().collect();
        targets.sort();
        let host = Arc::new(PlatformMatcher::host());
        let looks = targets.into_iter().map(|target| {
            let (images, view, host) = (self.clone(), view.clone(), Arc::clone(&host));
            async move {
                let records = view.records(&target);
                let target = records.first().map(|record| record.target.clone())?;
                let variants = match images.variants(&view, &target).await {
                    Ok(variants) => variants,
                    Err(err) => {
                        tracing::warn!(image = %target.digest, error = %err, "image cannot be read");
                        Vec::new()
                    }
                };
                Some(Seen::new(target, records, variants, &host))
            }
        });
        let looks = futures_util::stream::iter(looks).buffered(AT_ONCE);
        let mut all: Vec<Seen> = looks.filter_map(std::future::ready).collect().await;
        all.sort_by_cached_key(|seen| std::cmp::Reverse(seen.created()));
        Ok(all)
    }

    /// `GET /images/json`.
    ///
    /// # Errors
    /// 400 for filters, 404 for the image of `before` or `since`.
    pub async fn list(
        &self,
        filters: &Filters,
        options: ListOptions,
        version: ApiVersion,
    ) -> Result<Vec<Value>> {
        let dangling = filters
            .bool("dangling")
            .map_err(|bad| Error::invalid(format!("invalid filter 'dangling={bad}'")))?;
        let until = until(filters)?;
        let view = self.runtime().view().await?;
        let before = self.bound(filters, "before").await?;
        let since = self.bound(filters, "since").await?;
        let all = self.all(&view).await?;
        let shared = if options.shared_size { Some(self.shared(&view, &all).await?) } else { None };
        let users = self.users();
        let references = filters.get("reference");
        let mut shown = Vec::new();
        for image in &all {
            let created = image.created_at();
            let older = |bound: Option<jiff::Timestamp>| {
                bound.is_none_or(|bound| created.is_some_and(|at| at < bound))
            };
            let newer = |bound: Option<jiff::Timestamp>| {
                bound.is_none_or(|bound| created.is_none_or(|at| at > bound))
            };
            let labels = image.labels_of_config();
            let label = |name: &str| labels.get(name).map(String::as_str);
            if dangling.is_some_and(|wanted| wanted != image.is_dangling())
                || !older(before.or(until))
                || !older(until)
                || !newer(since)
                || !filters.labels("label", label)
                || (!filters.get("label!").is_empty() && filters.labels("label!", label))
            {
                continue;
            }
            let mut records = image.records.clone();
            if !references.is_empty() {
                records.retain(|record| references.iter().any(|glob| matches_reference(glob, &record.name)));
                if records.is_empty() {
                    continue;
                }
            }
            shown.push(summary(image, &records, shared.as_ref(), &users, options, version));
        }
        Ok(shown)
    }

    async fn bound(&self, filters: &Filters, key: &str) -> Result<Option<jiff::Timestamp>> {
        let Some(name) = filters.get(key).first() else { return Ok(None) };
        let image = self.resolve(name, None).await?;
        Ok(image.config.created.as_ref().and_then(|created| created.parse().ok()))
    }

    /// For each image the bytes of its layers that other images have too.
    pub(crate) async fn shared(&self, view: &View, all: &[Seen]) -> Result<HashMap<Digest, u64>> {
        let mut count: HashMap<(&str, &Digest), usize> = HashMap::new();
        for image in all {
            for layer in image.layers() {
                *count.entry(layer).or_default() += 1;
            }
        }
        let mut shared = HashMap::new();
        for image in all {
            let mut bytes = 0;
            for (chain, blob) in image.layers() {
                if count.get(&(chain, blob)).is_some_and(|count| *count > 1) {
                    bytes += view.blobs.get(blob).map_or(0, |blob| blob.size);
                    if view.chains.contains_key(chain) {
                        bytes += self.snapshot_bytes(chain).await?;
                    }
                }
            }
            shared.insert(image.target.digest.clone(), bytes);
        }
        Ok(shared)
    }

    /// Bytes of all blobs and all unpacked layers (`LayersSize`).
    pub(crate) async fn disk(&self, view: &View) -> Result<u64> {
        let mut total: u64 = view.blobs.values().map(|blob| blob.size).sum();
        for key in view.chains.keys() {
            total += self.snapshot_bytes(key).await?;
        }
        Ok(total)
    }

    /// `GET /images/{name}/json`.
    ///
    /// # Errors
    /// 404 for an unknown image or platform.
    pub async fn inspect(
        &self,
        name: &str,
        platform: Option<&Platform>,
        manifests: bool,
        version: ApiVersion,
    ) -> Result<Value> {
        let found = self.find(name).await?;
        let records = self.by_target(&found.record.target.digest).await?;
        let image = self.resolve_record(&found.record, platform).await?;
        let view = self.runtime().view().await?;
        let variants = self.variants(&view, &image.target).await?;
        let (tags, digests) = familiar_names(&records);
        let config = &image.config;
        let chosen = variants.iter().find(|variant| variant.descriptor.digest == image.manifest.digest);
        let size = if platform.is_some() {
            chosen.map_or(0, |variant| variant.content)
        } else {
            variants.iter().map(|variant| variant.content).sum()
        };
        let tagged = records.iter().map(|record| record.updated_at).max().unwrap_or_default();
        let comment = config.history.last().map(|step| step.comment.clone()).unwrap_or_default();
        let parent =
            records.iter().find_map(|record| record.labels.get(PARENT_LABEL)).cloned().unwrap_or_default();
        let mut shown = Map::new();
        let mut put = |key: &str, value: Value| {
            shown.insert(key.to_owned(), value);
        };
        put("Id", json!(image.id));
        put("RepoTags", json!(tags));
        put("RepoDigests", json!(digests));
        let old = !version.at_least(52);
        for (key, value) in [("Parent", &parent), ("Comment", &comment), ("Author", &config.author)] {
            if old || !value.is_empty() {
                put(key, json!(value));
            }
        }
        match &config.created {
            Some(created) => put("Created", json!(created)),
            None if !version.at_least(44) => put("Created", json!("0001-01-01T00:00:00Z")),
            None => {}
        }
        put("Config", exec_config(&config.config, version));
        put("Architecture", json!(config.architecture));
        if !config.variant.is_empty() {
            put("Variant", json!(config.variant));
        }
        put("Os", json!(config.os));
        if !config.os_version.is_empty() {
            put("OsVersion", json!(config.os_version));
        }
        put("Size", json!(size));
        put("RootFS", json!({ "Type": "layers", "Layers": config.rootfs.diff_ids }));
        let users = self.users();
        let mut metadata = json!({ "LastTagTime": tagged });
        if let Some(used) = self.last_used(&image.id, &users) {
            metadata["LastUsed"] = json!(used);
        }
        put("Metadata", metadata);
        if old {
            put("DockerVersion", json!(""));
            put("GraphDriver", json!({ "Data": null, "Name": "overlayfs" }));
        }
        if !version.at_least(45) {
            put("Container", json!(""));
            put("ContainerConfig", Value::Null);
        }
        if !version.at_least(44) {
            put("VirtualSize", json!(size));
        }
        if version.at_least(48) {
            let own =
                chosen.filter(|_| platform.is_some()).map_or(&image.target, |variant| &variant.descriptor);
            put("Descriptor", json!(own));
        }
        if version.at_least(53)
            && let Some(identity) = identity(&view, &image.target.digest)
        {
            put("Identity", identity);
        }
        if manifests && version.at_least(48) {
            let users: Vec<&ImageUser> =
                users.iter().filter(|user| user.image_id == image.id.as_str()).collect();
            put("Manifests", variants.iter().map(|variant| variant.to_json(&users)).collect());
        }
        Ok(Value::Object(shown))
    }

    /// The build records that belong to an image's manifest, of the given `kinds` (none: all), with their text if `statements` is set.
    ///
    /// # Errors
    /// containerd refused, or a record that is to be read is damaged.
    pub async fn attestations(
        &self,
        image: &super::ResolvedImage,
        kinds: &[&str],
        statements: bool,
    ) -> Result<Vec<Value>> {
        let mut found = Vec::new();
        for entry in self.entries(&image.target).await? {
            let of = entry.descriptor.annotations.get("vnd.docker.reference.digest");
            if !entry.descriptor.is_attestation() || of.is_none_or(|of| of != image.manifest.digest.as_str())
            {
                continue;
            }
            for layer in entry.manifest.iter().flat_map(|manifest| &manifest.layers) {
                let kind = layer.annotations.get("in-toto.io/predicate-type").cloned().unwrap_or_default();
                if !kinds.is_empty() && !kinds.contains(&kind.as_str()) {
                    continue;
                }
                let mut shown = json!({ "Descriptor": layer, "PredicateType": kind });
                if statements
                    && let Some(bytes) = self.runtime().blob_read(&layer.digest, MAX_STATEMENT_BYTES).await?
                {
                    shown["Statement"] = serde_json::from_slice(&bytes).map_err(|err| {
                        Error::system(format!("attestation {} cannot be read: {err}", layer.digest))
                    })?;
                }
                found.push(shown);
            }
        }
        Ok(found)
    }

    /// `GET /images/{name}/history`.
    ///
    /// # Errors
    /// 404 for an unknown image or platform.
    pub async fn history(&self, name: &str, platform: Option<&Platform>) -> Result<Vec<Value>> {
        let image = self.resolve(name, platform).await?;
        let view = self.runtime().view().await?;
        let mut steps = Vec::new();
        let mut layers = image.config.rootfs.diff_ids.iter().enumerate();
        for step in &image.config.history {
            let mut size = 0;
            if !step.empty_layer
                && let Some((at, _)) = layers.next()
                && let Some(chain) = oci::config::chain_id(&image.config.rootfs.diff_ids[..=at])
                && view.chains.contains_key(chain.as_str())
            {
                size = self.snapshot_bytes(chain.as_str()).await?;
            }
            let created: Option<jiff::Timestamp> = step.created.as_ref().and_then(|at| at.parse().ok());
            steps.push(json!({
                "Comment": step.comment,
                "Created": created.map_or(0, |at| at.as_second()),
                "CreatedBy": step.created_by,
                "Id": "<missing>",
                "Size": size,
                "Tags": null,
            }));
        }
        // The image and those it was made from each are the state after one of the steps.
        let mut next = Some((image.target.clone(), image.config.history.len()));
        while let Some((target, length)) = next.take() {
            let records = self.by_target(&target.digest).await?;
            if let Some(step) = length.checked_sub(1).and_then(|at| steps.get_mut(at)) {
                step["Id"] = json!(target.digest);
                let (tags, _) = familiar_names(&records);
                if !tags.is_empty() {
                    step["Tags"] = json!(tags);
                }
            }
            let parent = records.iter().find_map(|record| record.labels.get(PARENT_LABEL));
            if let Some(parent) = parent.and_then(|parent| Digest::parse(parent).ok())
                && let Some(record) = self.by_target(&parent).await?.into_iter().next()
                && let Ok(image) = self.resolve_record(&record, None).await
                && image.config.history.len() < length
            {
                next = Some((image.target, image.config.history.len()));
            }
        }
        steps.reverse();
        Ok(steps)
    }
}

/// Which repositories the image was pulled from, as its manifest's labels say.
fn identity(view: &View, target: &Digest) -> Option<Value> {
    let sources = &view.blobs.get(target)?.sources;
    let pulls: Vec<Value> = sources.iter().map(|name| json!({ "Repository": name })).collect();
    (!pulls.is_empty()).then(|| json!({ "Pull": pulls }))
}

fn summary(
    image: &Seen,
    records: &[ImageRecord],
    shared: Option<&HashMap<Digest, u64>>,
    users: &[ImageUser],
    options: ListOptions,
    version: ApiVersion,
) -> Value {
    let (mut tags, mut digests) = familiar_names(records);
    if tags.is_empty() && !version.at_least(43) {
        tags.push("<none>:<none>".into());
        digests.push("<none>@<none>".into());
    }
    let own: Vec<&ImageUser> =
        users.iter().filter(|user| user.image_id == image.target.digest.as_str()).collect();
    let size = image.size();
    let mut shown = json!({
        "Containers": if version.at_least(51) { own.len() as i64 } else { -1 },
        "Created": image.created(),
        "Id": image.target.digest,
        "Labels": image.labels_of_config(),
        "ParentId": image.parent(),
        "RepoDigests": digests,
        "RepoTags": tags,
        "SharedSize": shared.map_or(-1, |shared| shared.get(&image.target.digest).map_or(0, |n| n.cast_signed())),
        "Size": size,
    });
    if version.at_least(48) {
        shown["Descriptor"] = json!(image.target);
    }
    if options.manifests && version.at_least(47) {
        shown["Manifests"] = image.variants.iter().map(|variant| variant.to_json(&own)).collect();
    }
    if !version.at_least(44) {
        shown["VirtualSize"] = json!(size);
    }
    shown
}

/// An image's defaults in the shape of a version.
fn exec_config(config: &oci::config::ExecConfig, version: ApiVersion) -> Value {
    let mut shown = match serde_json::to_value(config) {
        Ok(Value::Object(shown)) => shown,
        _ => Map::new(),
    };
    if version.at_least(52) {
        shown.retain(|_, value| match value {
            Value::Null => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(items) => !items.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => true,
        });
        return Value::Object(shown);
    }
    for key in ["Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "Volumes"] {
        shown.entry(key).or_insert(Value::Null);
    }
    for key in ["User", "WorkingDir"] {
        shown.entry(key).or_insert_with(|| json!(""));
    }
    if !version.at_least(50) {
        for key in ["Hostname", "Domainname", "Image"] {
            shown.insert(key.into(), json!(""));
        }
        for key in ["AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce"] {
            shown.insert(key.into(), json!(false));
        }
    }
    Value::Object(shown)
}

/// The `until` filter: images made before it.
pub(crate) fn until(filters: &Filters) -> Result<Option<jiff::Timestamp>> {
    let Some(text) = filters.get("until").first() else { return Ok(None) };
    let failed = || {
        Error::invalid(format!(
            "invalid value for 'until' filter: failed to parse value as time or duration: invalid seconds {}: invalid syntax",
            crate::api::params::quote(text)
        ))
    };
    crate::api::times::moment(text).ok_or_else(failed).map(Some)
}

/// Go's `path.Match` of a familiar name, with and without tag.
fn matches_reference(glob: &str, name: &str) -> bool {
    let Ok(reference) = Reference::parse(name) else { return false };
    glob_match(glob, &reference.familiar()) || glob_match(glob, &reference.familiar_name())
}

/// Shell patterns in which `*` and `?` stop at a slash.
pub(crate) fn glob_match(glob: &str, text: &str) -> bool {
    fn go(glob: &[char], text: &[char]) -> bool {
        match glob.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => {
                let stop = text.iter().position(|c| *c == '/').unwrap_or(text.len());
                (0..=stop).any(|take| go(rest, &text[take..]))
            }
            Some(('?', rest)) => text.split_first().is_some_and(|(c, more)| *c != '/' && go(rest, more)),
            Some(('[', rest)) => {
                let Some(end) = rest.iter().skip(1).position(|c| *c == ']').map(|at| at + 1) else {
                    return false;
                };
                let Some((c, more)) = text.split_first() else { return false };
                let (negated, set) = match rest[..end].split_first() {
                    Some(('^', set)) => (true, set),
                    _ => (false, &rest[..end]),
                };
                let mut found = false;
                let mut at = 0;
                while at < set.len() {
                    if at + 2 < set.len() && set[at + 1] == '-' {
                        found |= (set[at]..=set[at + 2]).contains(c);
                        at += 3;
                    } else {
                        found |= set[at] == *c;
                        at += 1;
                    }
                }
                found != negated && *c != '/' && go(&rest[end + 1..], more)
            }
            Some(('\\', rest)) => match (rest.split_first(), text.split_first()) {
                (Some((want, rest)), Some((c, more))) => want == c && go(rest, more),
                _ => false,
            },
            Some((want, rest)) => text.split_first().is_some_and(|(c, more)| want == c && go(rest, more)),
        }
    }
    go(&glob.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_stop_at_slashes() {
        let rows = [
            ("rec/bb", "docker.io/rec/bb:1", true),
            ("rec/*", "docker.io/rec/bb:1", true),
            ("*/*:1", "docker.io/rec/bb:1", true),
            ("*", "docker.io/rec/bb:1", false),
            ("busy*", "docker.io/library/busybox:latest", true),
            ("busybox:l?test", "docker.io/library/busybox:latest", true),
            ("busybox:[a-m]*", "docker.io/library/busybox:latest", true),
            ("busybox:[^a-m]*", "docker.io/library/busybox:latest", false),
            ("[", "docker.io/library/busybox:latest", false),
            ("rec/b", "docker.io/rec/bb:1", false),
        ];
        for (glob, name, want) in rows {
            assert_eq!(matches_reference(glob, name), want, "{glob} {name}");
        }
    }

    #[test]
    fn each_version_has_its_shape_of_config() {
        let config = oci::config::ExecConfig { cmd: Some(vec!["sh".into()]), ..Default::default() };
        let keys = |minor: u32| {
            let shown = exec_config(&config, ApiVersion::minor(minor));
            shown.as_object().unwrap().len()
        };
        assert_eq!((keys(40), keys(50), keys(52)), (17, 8, 1));
    }
}
