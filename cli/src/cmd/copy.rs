//! `cp` and `export`: files as tar streams between a container and here.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::{Command, Done, Env, Failure, runner, text};
use crate::client::{self, escape, segment};
use crate::flags::{on, one};
use crate::fmt::units;

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["cp", "container cp"],
        usage: "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\tdocker cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
        about: "Copy files/folders between a container and the local filesystem",
        flags: &[&[
            on(Some('a'), "archive", "Archive mode (copy all uid/gid information)"),
            on(Some('L'), "follow-link", "Always follow symbol link in SRC_PATH"),
            on(Some('q'), "quiet", "Suppress progress output during copy"),
        ]],
        interspersed: true,
        args: (2, 2),
        run: runner!(cp),
    },
    Command {
        names: &["export", "container export"],
        usage: "[OPTIONS] CONTAINER",
        about: "Export a container's filesystem as a tar archive",
        flags: &[&[one(Some('o'), "output", "string", "Write to a file, instead of STDOUT")]],
        interspersed: true,
        args: (1, 1),
        run: runner!(export),
    },
];

async fn export(env: &Env) -> Done {
    let output = env.parsed.last("output");
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(Failure::new("cowardly refusing to save to a terminal. Use the -o flag or redirect"));
    }
    let path = format!("/containers/{}/export", segment(env.arg(0)));
    let response = env.client.open(http::Method::GET, &path, &[], client::empty()).await?;
    super::image::download(response, output).await
}

/// `CONTAINER:PATH`, unless it looks like a path of ours.
fn remote(word: &str) -> Option<(&str, &str)> {
    if word.starts_with(['/', '.']) || word == "-" {
        return None;
    }
    word.split_once(':').filter(|(name, _)| !name.is_empty())
}

async fn cp(env: &Env) -> Done {
    let (source, target) = (env.arg(0), env.arg(1));
    match (remote(source), remote(target)) {
        (Some(_), Some(_)) => Err(Failure::new("copying between containers is not supported")),
        (None, None) => Err(Failure::new("must specify at least one container source")),
        (Some((name, path)), None) => from_container(env, name, path, target).await,
        (None, Some((name, path))) => to_container(env, source, name, path).await,
    }
}

/// What the engine says of a path in a container; `None` if it is not there.
async fn stat(env: &Env, name: &str, path: &str) -> Result<Option<Value>, Failure> {
    let url = format!("/containers/{}/archive?path={}", segment(name), escape(path));
    let response = env.client.send(http::Method::HEAD, &url, &[], client::empty()).await?;
    if response.status().as_u16() == 404 {
        return Ok(None);
    }
    let header = response.headers().get("x-docker-container-path-stat").and_then(|value| value.to_str().ok());
    let decoded = header.and_then(|value| STANDARD.decode(value).ok());
    Ok(decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Bits of Go's FileMode.
const GO_DIR: u64 = 1 << 31;
const GO_LINK: u64 = 1 << 27;

fn is_dir(stat: &Value) -> bool {
    stat["mode"].as_u64().unwrap_or(0) & GO_DIR != 0
}

/// A container's path as the engine takes it: from the root, with a trailing `/` or `/.` kept.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn last_name(path: &str) -> String {
    let trimmed = path.trim_end_matches("/.").trim_end_matches('/');
    trimmed.rsplit('/').next().unwrap_or_default().to_owned()
}

async fn from_container(env: &Env, name: &str, path: &str, target: &str) -> Done {
    let mut path = absolute(path);
    if env.parsed.on("follow-link")
        && let Some(stat) = stat(env, name, &path).await?
    {
        let link = text(&stat, "linkTarget");
        if stat["mode"].as_u64().unwrap_or(0) & GO_LINK != 0 && !link.is_empty() {
            path = if link.starts_with('/') {
                link.to_owned()
            } else {
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                format!("{parent}/{link}")
            };
        }
    }
    let url = format!("/containers/{}/archive?path={}", segment(name), escape(&path));
    let response = env.client.open(http::Method::GET, &url, &[], client::empty()).await?;
    if target == "-" {
        return super::image::download(response, None).await;
    }
    // The tar is read by a blocking extractor through a pipe.
    let (reader, writer) = std::io::pipe()?;
    let target_path = PathBuf::from(target);
    let base = last_name(&path);
    let contents_only = path.ends_with("/.");
    let trailing = target.ends_with('/');
    let extractor =
        tokio::task::spawn_blocking(move || extract(reader, &target_path, &base, contents_only, trailing));
    let mut sink = tokio::fs::File::from_std(std::fs::File::from(std::os::fd::OwnedFd::from(writer)));
    let mut body = response.into_body();
    let mut copied = 0_u64;
    while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
        if let Ok(data) = frame.map_err(|err| Failure::new(err.to_string()))?.into_data() {
            copied += data.len() as u64;
            if sink.write_all(&data).await.is_err() {
                break;
            }
        }
    }
    // The extractor tells of its own end; a late flush error is the same story.
    let _ = sink.flush().await;
    drop(sink);
    extractor.await.map_err(|err| Failure::new(err.to_string()))??;
    said(
        env,
        copied,
        &format!(
            "to {}",
            std::path::absolute(target).map_or(target.into(), |path| path.display().to_string())
        ),
    );
    Ok(())
}

fn said(env: &Env, bytes: u64, to: &str) {
    if !env.parsed.on("quiet") && std::io::stderr().is_terminal() {
        #[allow(clippy::cast_precision_loss, reason = "shown with three digits")]
        let size = units::size4(bytes as f64);
        eprintln!("Successfully copied {size} {to}");
    }
}

/// Unpacks an archive of one thing at `target` with `cp`'s rules: into an existing directory, else under the new name.
fn extract(
    reader: impl Read,
    target: &Path,
    base: &str,
    contents_only: bool,
    trailing: bool,
) -> Result<(), Failure> {
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    let existing = target.is_dir();
    if trailing && !existing && !target.exists() && !contents_only && base.is_empty() {
        return Err(Failure::new(format!("destination \"{}\" must be a directory", target.display())));
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !existing && !parent.is_dir() {
        return Err(Failure::new(format!(
            "invalid output path: directory {:?} does not exist",
            parent.display().to_string()
        )));
    }
    let into = if existing { target.to_owned() } else { parent.to_owned() };
    let rename = (!existing).then(|| target.file_name().map(PathBuf::from)).flatten();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let relative = match (&rename, contents_only) {
            (None, _) => path,
            (Some(name), true) => name.join(path),
            (Some(name), false) => {
                let rest: PathBuf = path.components().skip(1).collect();
                if rest.as_os_str().is_empty() { name.clone() } else { name.join(rest) }
            }
        };
        // Nothing of a container's archive may land outside: refuse what climbs, and write through no link that it brought.
        if relative.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
            return Err(Failure::new(format!("invalid entry name {:?}", relative.display().to_string())));
        }
        let to = into.join(&relative);
        if let Some(parent) = to.parent() {
            let real = parent.canonicalize().or_else(|_| {
                std::fs::create_dir_all(parent)?;
                parent.canonicalize()
            })?;
            if !real.starts_with(into.canonicalize()?) {
                return Err(Failure::new(format!(
                    "entry {:?} leads outside of the target",
                    relative.display().to_string()
                )));
            }
        }
        if entry.header().entry_type() == tar::EntryType::Link {
            // Names inside the archive are relative to its root, which we may have renamed.
            let link = entry.link_name()?.map(|link| link.into_owned()).unwrap_or_default();
            let link = match &rename {
                Some(name) if !contents_only => name.join(link.components().skip(1).collect::<PathBuf>()),
                Some(name) => name.join(link),
                None => link,
            };
            let _ = std::fs::remove_file(&to);
            std::fs::hard_link(into.join(link), &to)?;
            continue;
        }
        entry.unpack(&to)?;
    }
    Ok(())
}

async fn to_container(env: &Env, source: &str, name: &str, path: &str) -> Done {
    let path = absolute(path);
    // Where it goes, through a link at the end of the path.
    let mut found = stat(env, name, &path).await?;
    let mut place = path.clone();
    if let Some(stat_) = &found {
        let link = text(stat_, "linkTarget").to_owned();
        if stat_["mode"].as_u64().unwrap_or(0) & GO_LINK != 0 && !link.is_empty() {
            place = if link.starts_with('/') {
                link
            } else {
                format!("{}/{link}", path.rsplit_once('/').map_or("", |(parent, _)| parent))
            };
            found = stat(env, name, &place).await?;
        }
    }
    let into_dir = found.as_ref().is_some_and(is_dir);
    let url = |dir: &str| {
        format!(
            "/containers/{}/archive?path={}&noOverwriteDirNonDir=true{}",
            segment(name),
            escape(dir),
            if env.parsed.on("archive") { "&copyUIDGID=true" } else { "" }
        )
    };
    if source == "-" {
        if !into_dir {
            return Err(Failure::new(format!("destination \"{name}:{path}\" must be a directory")));
        }
        let body = client::streamed(tokio::io::stdin());
        let headers = [("Content-Type", "application/x-tar")];
        env.client.open(http::Method::PUT, &url(&place), &headers, body).await?;
        return Ok(());
    }
    let local = PathBuf::from(source);
    let follow = env.parsed.on("follow-link");
    let metadata = if follow { std::fs::metadata(&local) } else { std::fs::symlink_metadata(&local) }
        .map_err(|err| {
            Failure::new(format!(
                "lstat {}{source}: {}",
                if source.starts_with('/') { "/" } else { "" },
                super::create::os_text(&err)
            ))
        })?;
    let contents_only = source.ends_with("/.");
    let source_name = local
        .canonicalize()
        .ok()
        .filter(|_| contents_only || source == "." || source.ends_with(".."))
        .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| last_name(source));
    // The archive's one name, and the directory it is unpacked in.
    let (base, dir) = if into_dir {
        (if contents_only { String::new() } else { source_name }, place.clone())
    } else if found.is_some() && metadata.is_dir() {
        return Err(Failure::new("cannot copy directory"));
    } else {
        if path.ends_with('/') && !metadata.is_dir() {
            return Err(Failure::new(
                "the destination directory must exist to be able to copy a file into it",
            ));
        }
        let trimmed = place.trim_end_matches('/');
        let (parent, last) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
        (last.to_owned(), if parent.is_empty() { "/".into() } else { parent.to_owned() })
    };
    let (reader, writer) = std::io::pipe()?;
    let packer = tokio::task::spawn_blocking(move || pack(writer, &local, &base, follow));
    let file = tokio::fs::File::from_std(std::fs::File::from(std::os::fd::OwnedFd::from(reader)));
    let headers = [("Content-Type", "application/x-tar")];
    let sent = env.client.open(http::Method::PUT, &url(&dir), &headers, client::streamed(file)).await;
    let packed = packer.await.map_err(|err| Failure::new(err.to_string()))?;
    sent?;
    let bytes = packed?;
    said(env, bytes, &format!("to {name}:{path}"));
    Ok(())
}

/// Writes a tree as a tar under the name `base` (or its contents, when `base` is empty). Returns the bytes of its files.
fn pack(writer: impl Write, source: &Path, base: &str, follow: bool) -> Result<u64, Failure> {
    let mut tar = tar::Builder::new(std::io::BufWriter::with_capacity(256 << 10, writer));
    tar.follow_symlinks(false);
    let metadata = if follow { std::fs::metadata(source)? } else { std::fs::symlink_metadata(source)? };
    let bytes = if metadata.is_dir() {
        tar.append_dir_all(if base.is_empty() { "." } else { base }, source)?;
        0
    } else if follow {
        let real = source.canonicalize()?;
        tar.append_path_with_name(&real, base)?;
        metadata.len()
    } else {
        tar.append_path_with_name(source, base)?;
        metadata.len()
    };
    tar.into_inner()?.flush()?;
    Ok(bytes)
}
