//! A root file system becomes an image, and instructions change an image's defaults.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use layer::{Compression, Decoder, Encoder};
use oci::config::{ExecConfig, Healthcheck, History};
use oci::{Descriptor, Digest, Hasher, ImageConfig, Platform, Reference, mediatype};
use serde_json::json;
use tokio::runtime::Handle;

use super::archive::{reader, write_blob};
use super::{Images, NewImage, NewLayer};
use crate::error::{Error, Result, sys_text};
use crate::runtime::content::Lease;

/// What `POST /images/create?fromSrc=…` asks for.
#[derive(Clone, Debug, Default)]
pub struct ImportRequest {
    /// The new image's name, if it gets one.
    pub name: Option<Reference>,
    pub message: String,
    pub platform: Option<Platform>,
    pub config: ExecConfig,
}

/// Dockerfile instructions that may change an image's defaults (`--change`).
pub struct Changes;

impl Changes {
    /// Applies instructions to `config`.
    ///
    /// # Errors
    /// 400 for an instruction that is not allowed or cannot be read.
    pub fn apply<'a>(changes: impl IntoIterator<Item = &'a str>, config: &mut ExecConfig) -> Result<()> {
        for change in changes {
            for line in change.lines().map(str::trim).filter(|line| !line.is_empty()) {
                let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
                apply_one(&word.to_ascii_uppercase(), rest.trim(), config)?;
            }
        }
        Ok(())
    }
}

fn apply_one(word: &str, rest: &str, config: &mut ExecConfig) -> Result<()> {
    let needs = || Error::invalid(format!("{word} requires at least one argument"));
    match word {
        "CMD" => config.cmd = Some(command(rest)),
        "ENTRYPOINT" => config.entrypoint = Some(command(rest)),
        "ENV" => {
            let pairs = pairs(rest).ok_or_else(|| Error::invalid("ENV must have two arguments"))?;
            let env = config.env.get_or_insert_default();
            for (key, value) in pairs {
                env.retain(|entry| entry.split('=').next() != Some(key.as_str()));
                env.push(format!("{key}={value}"));
            }
        }
        "LABEL" => {
            let pairs = pairs(rest).ok_or_else(|| Error::invalid("LABEL must have two arguments"))?;
            config.labels.get_or_insert_default().extend(pairs);
        }
        "EXPOSE" => {
            for port in words(rest) {
                let (number, proto) = port.split_once('/').unwrap_or((&port, "tcp"));
                if number.parse::<u16>().is_err() || !matches!(proto, "tcp" | "udp" | "sctp") {
                    return Err(Error::invalid(format!("invalid containerPort: {port}")));
                }
                config.exposed_ports.get_or_insert_default().insert(format!("{number}/{proto}"), json!({}));
            }
        }
        "VOLUME" => {
            let paths = json_list(rest).unwrap_or_else(|| words(rest));
            if paths.is_empty() {
                return Err(needs());
            }
            for path in paths {
                config.volumes.get_or_insert_default().insert(path, json!({}));
            }
        }
        "USER" if !rest.is_empty() => config.user = rest.to_owned(),
        "STOPSIGNAL" if !rest.is_empty() => config.stop_signal = rest.to_owned(),
        "ONBUILD" if !rest.is_empty() => config.on_build.get_or_insert_default().push(rest.to_owned()),
        "WORKDIR" if !rest.is_empty() => {
            config.working_dir = if rest.starts_with('/') {
                rest.to_owned()
            } else {
                format!(
                    "{}/{rest}",
                    if config.working_dir.is_empty() { "" } else { config.working_dir.trim_end_matches('/') }
                )
            };
        }
        "HEALTHCHECK" if !rest.is_empty() => config.healthcheck = Some(healthcheck(rest)?),
        "USER" | "STOPSIGNAL" | "ONBUILD" | "WORKDIR" | "HEALTHCHECK" => return Err(needs()),
        other => return Err(Error::invalid(format!("{other} is not a valid change command"))),
    }
    Ok(())
}

fn json_list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

fn command(text: &str) -> Vec<String> {
    json_list(text).unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into(), text.to_owned()])
}

/// Words, with quotes and backslashes as a shell reads them.
fn words(text: &str) -> Vec<String> {
    let (mut all, mut word, mut any) = (Vec::new(), String::new(), false);
    let (mut quote, mut chars) = (None, text.chars());
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                any = true;
            }
            (None | Some('"'), '\\') => {
                word.extend(chars.next());
                any = true;
            }
            (None, c) if c.is_whitespace() => {
                if any {
                    all.push(std::mem::take(&mut word));
                    any = false;
                }
            }
            (_, c) => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        all.push(word);
    }
    all
}

/// `key=value …`, or the old `key value with spaces`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let all = words(text);
    let first = all.first()?;
    if !first.contains('=') {
        let (key, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    all.iter()
        .map(|word| word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect()
}

fn healthcheck(text: &str) -> Result<Healthcheck> {
    let mut check = Healthcheck::default();
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, more) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        rest = more.trim_start();
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let bad = || Error::invalid(format!("HEALTHCHECK: invalid value {value:?} for --{name}"));
        let nanos = || {
            let duration = crate::api::times::duration(value).ok_or_else(bad)?;
            i64::try_from(duration.as_nanos()).map_err(|_| bad())
        };
        match name {
            "interval" => check.interval = nanos()?,
            "timeout" => check.timeout = nanos()?,
            "start-period" => check.start_period = nanos()?,
            "start-interval" => check.start_interval = nanos()?,
            "retries" => check.retries = value.parse().map_err(|_| bad())?,
            other => return Err(Error::invalid(format!("unknown flag: {other}"))),
        }
    }
    let (word, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let test = match word.to_ascii_uppercase().as_str() {
        "NONE" => vec!["NONE".to_owned()],
        "CMD" => match json_list(command.trim()) {
            Some(list) => std::iter::once("CMD".to_owned()).chain(list).collect(),
            None => vec!["CMD-SHELL".into(), command.trim().to_owned()],
        },
        other => return Err(Error::invalid(format!("unknown type {other:?} in HEALTHCHECK (try CMD)"))),
    };
    check.test = Some(test);
    Ok(check)
}

impl Images {
    /// Makes an image of a root file system's tar, packed or not; gives its id.
    ///
    /// # Errors
    /// The tar is damaged, or containerd refused.
    pub async fn import(
        &self,
        source: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
        request: ImportRequest,
    ) -> Result<Digest> {
        let lease = Arc::new(self.writing().await?);
        let imported = self.import_under(&lease, source, request).await;
        if imported.is_err() {
            lease.give_back().await;
        }
        imported
    }

    async fn import_under(
        &self,
        lease: &Arc<Lease>,
        source: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
        request: ImportRequest,
    ) -> Result<Digest> {
        let (runtime, handle, writing) = (self.runtime().clone(), Handle::current(), Arc::clone(lease));
        let source = reader(source);
        let written = tokio::task::spawn_blocking(move || {
            pack(source, |bytes| write_blob(&runtime, &handle, &writing, bytes, None))
        })
        .await
        .map_err(|err| Error::system(format!("import: {err}")))?;
        let (blob, diff_id) = written?;
        let now = jiff::Timestamp::now().to_string();
        let platform = request.platform.clone().unwrap_or_else(Platform::host);
        let config = ImageConfig {
            created: Some(now.clone()),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os: platform.os.clone(),
            history: vec![History { created: Some(now), comment: request.message, ..History::default() }],
            config: request.config,
            ..ImageConfig::default()
        };
        let names: Vec<String> = request.name.iter().map(ToString::to_string).collect();
        let new = NewImage { config, layers: vec![NewLayer { blob, diff_id }], parent: None };
        let target = self.write_image(new, &names, lease).await?;
        let record = self.by_target(&target.digest).await?.into_iter().next();
        let record = record.ok_or_else(|| Error::system("the imported image was not kept"))?;
        let image = self.resolve_record(&record, None).await?;
        if let Err(err) = self.unpack(&image).await {
            // A tar that cannot be unpacked is no image.
            for record in self.by_target(&target.digest).await? {
                self.runtime().image_delete(&record.name, false).await?;
            }
            let err = err.message();
            return Err(Error::system(format!("failed to unpack image: {err}")));
        }
        let shown = request.name.map_or_else(|| target.digest.to_string(), |name| name.familiar());
        self.announce("import", &target.digest, &shown).await;
        Ok(target.digest)
    }
}

/// Packs a tar as a gzip layer on the way to the store; gives the blob and the digest of the plain tar.
fn pack(
    source: impl Read + Send,
    write: impl FnOnce(&mut dyn FnMut(&mut [u8]) -> io::Result<usize>) -> Result<(Digest, u64)>,
) -> Result<(Descriptor, Digest)> {
    let failed = |err: io::Error| Error::system(sys_text(&err));
    let mut plain = Decoder::new(source).map_err(failed)?;
    let mut hasher = Hasher::new(oci::Algorithm::Sha256);
    let mut encoder = Some(Encoder::new(Vec::new(), Compression::Gzip).map_err(failed)?);
    let mut ready = Vec::new();
    let mut at = 0;
    let mut buffer = vec![0_u8; 64 << 10];
    let mut pull = |out: &mut [u8]| -> io::Result<usize> {
        loop {
            if at < ready.len() {
                let take = out.len().min(ready.len() - at);
                out[..take].copy_from_slice(&ready[at..at + take]);
                at += take;
                return Ok(take);
            }
            at = 0;
            ready.clear();
            let Some(mut packing) = encoder.take() else { return Ok(0) };
            match plain.read(&mut buffer)? {
                0 => ready = packing.finish()?,
                got => {
                    hasher.update(&buffer[..got]);
                    packing.write_all(&buffer[..got])?;
                    take_output(&mut packing, &mut ready);
                    encoder = Some(packing);
                }
            }
        }
    };
    let (digest, size) = write(&mut pull)?;
    Ok((Descriptor::new(mediatype::OCI_LAYER_GZIP, digest, size), hasher.finish()))
}

/// What the encoder has written so far.
fn take_output(encoder: &mut Encoder<Vec<u8>>, out: &mut Vec<u8>) {
    match encoder {
        Encoder::Plain(sink) => out.append(sink),
        Encoder::Gzip(encoder) => out.append(encoder.get_mut()),
        Encoder::Zstd(encoder) => out.append(encoder.get_mut()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: &[&str]) -> Result<ExecConfig, String> {
        let mut config = ExecConfig { env: Some(vec!["A=0".into(), "B=1".into()]), ..ExecConfig::default() };
        Changes::apply(changes.iter().copied(), &mut config).map_err(|err| err.message().to_owned())?;
        Ok(config)
    }

    #[test]
    fn instructions_change_defaults() {
        let config = changed(&[
            r#"CMD ["sh", "-c", "x"]"#,
            "entrypoint echo hi",
            r#"ENV A=1 C="two words""#,
            "LABEL l some text",
            "EXPOSE 80 53/udp",
            r#"VOLUME ["/a"]"#,
            "WORKDIR /w\nWORKDIR x",
            "USER me",
            "STOPSIGNAL INT",
            "ONBUILD RUN x",
            "HEALTHCHECK --interval=5s --retries=3 CMD true",
        ])
        .unwrap();
        assert_eq!(config.cmd.unwrap(), ["sh", "-c", "x"]);
        assert_eq!(config.entrypoint.unwrap(), ["/bin/sh", "-c", "echo hi"]);
        assert_eq!(config.env.unwrap(), ["B=1", "A=1", "C=two words"]);
        assert_eq!(config.labels.unwrap()["l"], "some text");
        assert_eq!(config.exposed_ports.unwrap().into_keys().collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
        assert_eq!(config.working_dir, "/w/x");
        let check = config.healthcheck.unwrap();
        assert_eq!((check.interval, check.retries), (5_000_000_000, 3));
        assert_eq!(check.test.unwrap(), ["CMD-SHELL", "true"]);
    }

    #[test]
    fn others_are_refused() {
        assert_eq!(changed(&["RUN x"]).unwrap_err(), "RUN is not a valid change command");
        assert_eq!(changed(&["ENV X"]).unwrap_err(), "ENV must have two arguments");
        assert!(changed(&["EXPOSE x"]).is_err());
    }

    #[test]
    fn a_layer_is_packed_and_both_digests_are_right() {
        let tar = vec![7_u8; 300_000];
        let mut packed = Vec::new();
        let (blob, diff_id) = pack(&tar[..], |pull| {
            let mut buffer = [0_u8; 1000];
            loop {
                let got = pull(&mut buffer).unwrap();
                if got == 0 {
                    break;
                }
                packed.extend_from_slice(&buffer[..got]);
            }
            Ok((Digest::of(&packed), packed.len() as u64))
        })
        .unwrap();
        assert_eq!(diff_id, Digest::of(&tar));
        assert_eq!((blob.digest, blob.size), (Digest::of(&packed), packed.len() as u64));
        let mut plain = Vec::new();
        Decoder::new(&packed[..]).unwrap().read_to_end(&mut plain).unwrap();
        assert_eq!(plain, tar);
    }
}
