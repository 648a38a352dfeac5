//! Pull and push.
//!
//! containerd moves the bytes and keeps what it fetched; the engine sees to names (an image that loses its name to a newer one stays as
//! dangling), tells the client, and answers containerd's question for credentials. Credentials are never stored.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use base64::Engine as _;
use oci::mediatype::Kind as MediaKind;
use oci::{Descriptor, Platform, PlatformMatcher, Reference};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Images;
use super::progress::{Lines, Mapper, Way, status};
use super::resolve::familiar_name;
use super::write::dangling_name;
use crate::error::{Error, Kind, Result};
use crate::events::Subject;
use crate::runtime::content::Labels;
use crate::runtime::transfer::{Identity, Registry, Step};

/// What the name of a part of an image begins with while it is pushed.
pub(super) const PART: &str = "moby-dangling-push@";
/// Steps of containerd that may wait for the client.
const QUEUE: usize = 64;

/// Credentials as clients send them in `X-Registry-Auth` or in the body of `/auth`.
#[derive(Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// `user:password` in base64.
    pub auth: String,
    pub serveraddress: String,
    pub identitytoken: String,
    pub registrytoken: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("serveraddress", &self.serveraddress).finish_non_exhaustive()
    }
}

impl Auth {
    /// Reads the header: base64 (either alphabet, padded or not) of JSON. What cannot be read is no credentials, as Docker has it.
    pub fn from_header(text: &str) -> Self {
        let text = text.trim().trim_end_matches('=');
        let alphabets = [
            base64::engine::general_purpose::URL_SAFE_NO_PAD,
            base64::engine::general_purpose::STANDARD_NO_PAD,
        ];
        let decoded = alphabets.iter().find_map(|alphabet| alphabet.decode(text).ok());
        decoded.and_then(|bytes| docker_api::json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// What they say about who the user is.
    pub fn identity(&self) -> Identity {
        if !self.registrytoken.is_empty() {
            return Identity::Header(format!("Bearer {}", self.registrytoken));
        }
        if !self.identitytoken.is_empty() {
            return Identity::Refresh(self.identitytoken.clone());
        }
        if !self.username.is_empty() || !self.password.is_empty() {
            return Identity::Password { user: self.username.clone(), secret: self.password.clone() };
        }
        let joined = base64::engine::general_purpose::STANDARD.decode(&self.auth).ok();
        let joined = joined.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
        match joined.split_once(':') {
            Some((user, secret)) => {
                Identity::Password { user: user.to_owned(), secret: secret.trim_end_matches('\0').to_owned() }
            }
            None => Identity::Anonymous,
        }
    }
}

/// What a pull came to.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// What the name points to now.
    pub target: Descriptor,
    /// Whether it pointed elsewhere, or nowhere, before.
    pub newer: bool,
}

impl Images {
    /// `POST /images/create` with `fromImage`: one reference. Lines go to the client; nothing is said before the registry has answered, so
    /// that a refusal can still be an HTTP status.
    ///
    /// # Errors
    /// The registry or containerd refused.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        auth: &Auth,
        lines: &Lines,
    ) -> Result<Pulled> {
        let name = reference.to_string();
        let gone = || Error::system("context canceled");
        let before = self.runtime().image(&name).await?;
        let lease = self.writing().await?;
        if let Some(before) = &before {
            // Its name may be about to move; what it names is not to be collected meanwhile.
            self.runtime().lease_add(&lease, "content", before.target.digest.as_str()).await?;
        }
        let platforms = [platform.cloned().unwrap_or_else(Platform::host)];
        let registry = self.registry(reference, auth)?;
        let (steps, mut heard) = mpsc::channel::<Step>(QUEUE);
        let runtime = self.runtime().clone();
        let pulling = runtime.pull(&registry, &name, &platforms, steps, None);
        tokio::pin!(pulling);
        let mut mapper = Mapper::new(Way::Down);
        let mut told = false;
        let shown_tag = reference.tag().filter(|_| reference.digest().is_none());
        let opening = || {
            status(shown_tag.unwrap_or(&reference.familiar()), format!("Pulling from {}", reference.path()))
        };
        let outcome = loop {
            tokio::select! {
                step = heard.recv() => match step {
                    Some(step) => {
                        let more = mapper.step(&step);
                        // The first word about a layer: there is something for this platform.
                        if !told && !more.is_empty() {
                            told = true;
                            lines.send(opening()).await.map_err(|_| gone())?;
                        }
                        for line in more {
                            lines.send(line).await.map_err(|_| gone())?;
                        }
                    }
                    None => break pulling.await,
                },
                () = lines.closed() => return Err(gone()),
                outcome = &mut pulling => {
                    while let Ok(step) = heard.try_recv() {
                        let more = mapper.step(&step);
                        if !told && !more.is_empty() {
                            told = true;
                            lines.send(opening()).await.map_err(|_| gone())?;
                        }
                        for line in more {
                            lines.send(line).await.map_err(|_| gone())?;
                        }
                    }
                    break outcome;
                }
            }
        };
        outcome.map_err(|err| pull_error(err, reference, &platforms[0]))?;
        if let Some(pulled) = self.runtime().image(&name).await?
            && let Some(index) = self.index(&pulled.target).await?
        {
            // containerd is content with an index of which it fetched nothing.
            let matcher = PlatformMatcher::only(&platforms[0]);
            let offered =
                |entry: &Descriptor| entry.platform.as_ref().is_none_or(|offered| matcher.matches(offered));
            if !index.manifests.iter().any(offered) {
                if before.is_none() {
                    self.runtime().image_delete(&name, false).await?;
                }
                return Err(no_matching_manifest(&platforms[0]));
            }
        }
        if !told {
            lines.send(opening()).await.map_err(|_| gone())?;
        }
        for line in mapper.finish() {
            lines.send(line).await.map_err(|_| gone())?;
        }
        let after = self.runtime().image(&name).await?;
        let after =
            after.ok_or_else(|| Error::system(format!("image {name} was pulled and is not there")))?;
        let newer = before.as_ref().is_none_or(|before| before.target.digest != after.target.digest);
        if newer && let Some(before) = before {
            let others = self.by_target(&before.target.digest).await?;
            if others.is_empty() {
                let dangling = dangling_name(&before.target.digest);
                self.runtime().image_put(&dangling, &before.target, before.labels, None).await?;
            }
        }
        self.runtime().image_delete(&dangling_name(&after.target.digest), false).await?;
        let (shown, short) = (reference.familiar(), reference.familiar_name());
        lines.send(status("", format!("Digest: {}", after.target.digest))).await.map_err(|_| gone())?;
        let words = if newer { "Downloaded newer image" } else { "Image is up to date" };
        lines.send(status("", format!("Status: {words} for {shown}"))).await.map_err(|_| gone())?;
        let labels =
            self.resolve_record(&after, platform).await.ok().and_then(|image| image.config.config.labels);
        let attributes = labels.unwrap_or_default().into_iter().chain([("name".to_owned(), short)]);
        self.0.events.publish(Subject::Image, "pull", shown, attributes);
        Ok(Pulled { target: after.target, newer })
    }

    /// `POST /images/{name}/push`: one tag, or all of the repository. Everything is told in the stream.
    ///
    /// # Errors
    /// The registry or containerd refused, or there is nothing to push.
    pub async fn push(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        auth: &Auth,
        lines: &Lines,
    ) -> Result<()> {
        let gone = || Error::system("context canceled");
        let repository = reference.without_tag_and_digest().familiar_name();
        let opening = status("", format!("The push refers to repository [{repository}]"));
        lines.send(opening).await.map_err(|_| gone())?;
        if !reference.is_name_only() {
            return self.push_one(reference, platform, auth, lines).await;
        }
        let mut tagged: Vec<Reference> = Vec::new();
        for record in self.runtime().view().await?.names.values() {
            let Ok(other) = Reference::parse(&record.name) else { continue };
            if other.name() == reference.name() && other.tag().is_some() && other.digest().is_none() {
                tagged.push(other);
            }
        }
        if tagged.is_empty() {
            return Err(Error::not_found(format!(
                "An image does not exist locally with the tag: {repository}"
            )));
        }
        tagged.sort();
        for reference in tagged {
            self.push_one(&reference, platform, auth, lines).await?;
        }
        Ok(())
    }

    async fn push_one(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        auth: &Auth,
        lines: &Lines,
    ) -> Result<()> {
        let gone = || Error::system("context canceled");
        let name = reference.to_string();
        let shown = reference.familiar();
        let Some(record) = self.runtime().image(&name).await? else {
            return Err(Error::not_found(format!("tag does not exist: {shown}")));
        };
        let source = self.push_source(&record.name, &record.target, platform, lines).await?;
        let mut mapper = Mapper::new(Way::Up);
        let pushed = self.push_bytes(&source, reference, auth, &mut mapper, lines).await;
        if source.temporary {
            self.runtime().image_delete(&source.name, false).await?;
        }
        pushed?;
        for line in mapper.finish() {
            lines.send(line).await.map_err(|_| gone())?;
        }
        let target = &source.target;
        let tag = reference.tag().unwrap_or_default();
        let last = format!("{tag}: digest: {} size: {}", target.digest, target.size);
        lines.send(status("", last)).await.map_err(|_| gone())?;
        let attributes = [("name", reference.familiar_name())];
        self.0.events.publish(Subject::Image, "push", shown, attributes);
        Ok(())
    }

    /// Has containerd push, and tells the client how it goes.
    async fn push_bytes(
        &self,
        source: &Source,
        reference: &Reference,
        auth: &Auth,
        mapper: &mut Mapper,
        lines: &Lines,
    ) -> Result<()> {
        let gone = || Error::system("context canceled");
        let registry = self.registry(reference, auth)?;
        let (steps, mut heard) = mpsc::channel::<Step>(QUEUE);
        let pushing = self.runtime().push(&source.name, &[], &registry, steps);
        tokio::pin!(pushing);
        let outcome = loop {
            tokio::select! {
                biased;
                Some(step) = heard.recv() => {
                    for line in mapper.step(&step) {
                        lines.send(line).await.map_err(|_| gone())?;
                    }
                }
                () = lines.closed() => return Err(gone()),
                outcome = &mut pushing => break outcome,
            }
        };
        while let Ok(step) = heard.try_recv() {
            for line in mapper.step(&step) {
                lines.send(line).await.map_err(|_| gone())?;
            }
        }
        outcome.map_err(|err| push_error(&err))
    }

    /// What is pushed: the image as it is, or, of an index of which only parts are here, the manifest that is.
    async fn push_source(
        &self,
        name: &str,
        target: &Descriptor,
        platform: Option<&Platform>,
        lines: &Lines,
    ) -> Result<Source> {
        let whole = Source { name: name.to_owned(), target: target.clone(), temporary: false };
        if target.kind() != MediaKind::Index {
            return Ok(whole);
        }
        let view = self.runtime().view().await?;
        let variants = self.variants(&view, target).await?;
        if platform.is_none() && variants.iter().all(|variant| variant.available) {
            return Ok(whole);
        }
        let matcher = platform.map_or_else(PlatformMatcher::host, PlatformMatcher::only);
        let chosen = variants
            .iter()
            .filter(|variant| variant.available && !variant.descriptor.is_attestation())
            .filter_map(|variant| {
                let said = variant.descriptor.platform.clone();
                let said = said.or_else(|| variant.config.as_ref().map(|known| known.config.platform()))?;
                matcher.rank(&said).map(|rank| (rank, variant))
            })
            .min_by_key(|(rank, _)| *rank);
        let Some((_, chosen)) = chosen else {
            let wanted = platform.cloned().unwrap_or_else(Platform::host);
            return Err(Error::not_found(format!(
                "image with reference {} was found but does not provide the specified platform ({wanted})",
                familiar_name(name)
            )));
        };
        if platform.is_none() {
            let note =
                "Not all multiplatform-content is present, pushing only the available platform".to_owned();
            let _ = lines.send(status("", note)).await;
        }
        let target = Descriptor::new(
            &chosen.descriptor.media_type,
            chosen.descriptor.digest.clone(),
            chosen.descriptor.size,
        );
        let temporary = format!("{PART}{}", target.digest);
        self.runtime().image_put(&temporary, &target, Labels::new(), None).await?;
        Ok(Source { name: temporary, target, temporary: true })
    }

    fn registry(&self, reference: &Reference, auth: &Auth) -> Result<Registry> {
        Ok(Registry {
            reference: reference.to_string(),
            identity: auth.identity(),
            host_dir: self.host_dir(reference.domain())?.map(|path| path.display().to_string()),
            headers: Vec::new(),
        })
    }

    /// Where containerd finds what the operator said of a registry: daemon.json's mirrors and insecure registries as a `hosts.toml` of our
    /// own, else the machine's `certs.d`.
    pub(crate) fn host_dir(&self, domain: &str) -> Result<Option<PathBuf>> {
        let live = self.0.config.live();
        let certs = self.0.config.certs_dir();
        let mirrors: &[String] = if domain == "docker.io" { &live.registry_mirrors } else { &[] };
        let insecure = is_insecure(domain, &live.insecure_registries);
        if mirrors.is_empty() && !insecure {
            return Ok(certs.is_dir().then(|| certs.to_owned()));
        }
        let root = self.0.config.exec_root.join("registry-hosts");
        let dir = root.join(domain);
        let failed = |err: std::io::Error| {
            Error::system(format!("write {}: {}", dir.display(), crate::error::sys_text(&err)))
        };
        std::fs::create_dir_all(&dir).map_err(failed)?;
        let text = hosts_toml(domain, mirrors, insecure, &|authority| certificates(certs, authority));
        sys::atomicfile::write(&dir.join("hosts.toml"), 0o644, text.as_bytes()).map_err(failed)?;
        Ok(Some(root))
    }
}

struct Source {
    name: String,
    target: Descriptor,
    temporary: bool,
}

/// Whether the operator allowed a registry without (valid) certificates: by name or by address block.
fn is_insecure(domain: &str, insecure: &[String]) -> bool {
    let host = domain
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(domain, |(host, _)| host);
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    insecure.iter().any(|entry| match entry.split_once('/') {
        None => entry == domain,
        Some((block, length)) => match (block.parse::<IpAddr>(), length.parse::<u32>(), address) {
            (Ok(block), Ok(length), Some(address)) => in_block(address, block, length),
            _ => false,
        },
    })
}

fn in_block(address: IpAddr, block: IpAddr, length: u32) -> bool {
    match (address, block) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            length <= 32 && (length == 0 || (a.to_bits() ^ b.to_bits()) >> (32 - length) == 0)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            length <= 128 && (length == 0 || (a.to_bits() ^ b.to_bits()) >> (128 - length) == 0)
        }
        _ => false,
    }
}

/// The certificates the machine's `certs.d` has for a host, as lines of a `hosts.toml`.
fn certificates(certs: &std::path::Path, authority: &str) -> String {
    let Ok(entries) = std::fs::read_dir(certs.join(authority)) else { return String::new() };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let with = |extension: &str| {
        let of_kind = move |file: &&PathBuf| file.extension().is_some_and(|found| found == extension);
        files.iter().filter(of_kind).collect::<Vec<_>>()
    };
    let mut lines = String::new();
    if !with("crt").is_empty() {
        lines += &format!("ca = {:?}\n", with("crt"));
    }
    let clients: Vec<_> =
        with("cert").into_iter().map(|file| [file.clone(), file.with_extension("key")]).collect();
    if !clients.is_empty() {
        lines += &format!("client = {clients:?}\n");
    }
    lines
}

fn hosts_toml(
    domain: &str,
    mirrors: &[String],
    insecure: bool,
    certificates: &dyn Fn(&str) -> String,
) -> String {
    use fmt::Write as _;
    let server = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
    let own = certificates(domain);
    let mut text = format!("server = \"https://{server}\"\n{own}");
    for mirror in mirrors {
        let mirror = mirror.trim_end_matches('/');
        let authority = mirror.split_once("://").map_or(mirror, |(_, rest)| rest);
        let own = certificates(authority.split('/').next().unwrap_or_default());
        let _ = write!(text, "\n[host.\"{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{own}");
    }
    if insecure {
        for (scheme, more) in [("https", "  skip_verify = true\n"), ("http", "")] {
            let _ = write!(
                text,
                "\n[host.\"{scheme}://{server}\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n{more}"
            );
        }
    }
    text
}

fn no_matching_manifest(platform: &Platform) -> Error {
    Error::not_found(format!(
        "no matching manifest for {platform} in the manifest list entries: no match for platform in manifest: not found"
    ))
}

/// containerd's refusal of a pull, as Docker words and classes it.
fn pull_error(err: Error, reference: &Reference, platform: &Platform) -> Error {
    let text = err.message();
    if err.kind() == Kind::NotFound && text.contains("no match for platform in manifest") {
        return no_matching_manifest(platform);
    }
    // containerd: `failed to resolve image: <why>`; Docker names the reference.
    for prefix in ["failed to resolve image: ", "failed to get image: "] {
        if let Some(why) = text.strip_prefix(prefix) {
            let why = why.strip_prefix("rpc error: code = Unknown desc = ").unwrap_or(why);
            let text = if why.starts_with("failed to resolve reference") {
                why.to_owned()
            } else {
                format!("failed to resolve reference \"{reference}\": {why}")
            };
            let kind = if err.kind() == Kind::NotFound { Kind::NotFound } else { Kind::System };
            return Error::new(kind, unknown(text));
        }
    }
    let kind = match err.kind() {
        Kind::NotFound | Kind::InvalidParameter | Kind::Conflict => err.kind(),
        _ => Kind::System,
    };
    Error::new(kind, unknown(text.to_owned()))
}

/// Docker puts the class of a registry's plain refusal before it.
fn unknown(text: String) -> String {
    if text.contains("unexpected status from ") && !text.starts_with("unknown: ") {
        format!("unknown: {text}")
    } else {
        text
    }
}

fn push_error(err: &Error) -> Error {
    let text = err.message();
    let text = text.strip_prefix("failed to push image: ").unwrap_or(text);
    Error::new(err.kind(), unknown(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_in_every_encoding_clients_use() {
        let json = r#"{"username":"ü?>","password":"p","serveraddress":"h"}"#;
        let engines = [
            base64::engine::general_purpose::URL_SAFE,
            base64::engine::general_purpose::URL_SAFE_NO_PAD,
            base64::engine::general_purpose::STANDARD,
            base64::engine::general_purpose::STANDARD_NO_PAD,
        ];
        for engine in engines {
            let auth = Auth::from_header(&engine.encode(json));
            assert_eq!((auth.username.as_str(), auth.serveraddress.as_str()), ("ü?>", "h"));
            assert!(!format!("{auth:?}").contains("ü"));
        }
        for nothing in ["", "e30=", "garbage!", "bnVsbA=="] {
            assert!(Auth::from_header(nothing).identity() == Identity::Anonymous, "{nothing}");
        }
        let auth =
            Auth { auth: base64::engine::general_purpose::STANDARD.encode("u:p:q"), ..Auth::default() };
        assert!(auth.identity() == Identity::Password { user: "u".into(), secret: "p:q".into() });
        let auth = Auth { identitytoken: "t".into(), username: "u".into(), ..Auth::default() };
        assert!(auth.identity() == Identity::Refresh("t".into()));
    }

    #[test]
    fn certificates_of_mirrors_are_those_of_the_machine() {
        let certs = tempfile::tempdir().unwrap();
        let of_mirror = certs.path().join("mirror.test:5000");
        std::fs::create_dir(&of_mirror).unwrap();
        for file in ["ca.crt", "me.cert", "me.key"] {
            std::fs::write(of_mirror.join(file), "").unwrap();
        }
        let text = hosts_toml("docker.io", &["https://mirror.test:5000/".into()], false, &|authority| {
            certificates(certs.path(), authority)
        });
        let (server, mirror) = text.split_once("[host.").unwrap();
        assert_eq!(server, "server = \"https://registry-1.docker.io\"\n\n");
        assert!(mirror.contains(&format!("ca = [{:?}]", of_mirror.join("ca.crt"))), "{text}");
        let pair = [of_mirror.join("me.cert"), of_mirror.join("me.key")];
        assert!(mirror.contains(&format!("client = [{pair:?}]")), "{text}");
    }

    #[test]
    fn insecure_registries_are_matched_by_name_and_block() {
        let list = ["reg.example:5000".to_owned(), "10.0.0.0/8".into(), "fd00::/8".into()];
        for (domain, want) in [
            ("reg.example:5000", true),
            ("reg.example", false),
            ("10.1.2.3:5000", true),
            ("11.1.2.3", false),
            ("[fd00::1]:5000", true),
            ("[fe00::1]:5000", false),
        ] {
            assert_eq!(is_insecure(domain, &list), want, "{domain}");
        }
    }
}
