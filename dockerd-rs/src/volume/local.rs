//! The `local` driver: names, options, directories and mounts.
//!
//! A volume's content is in `<root>/<name>/_data`. Removal renames first, so that a name is free at once and what a crash leaves behind is
//! recognised by its name.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{DirBuilder, Metadata};
use std::io;
use std::net::ToSocketAddrs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::api::params::quote;
use crate::error::{Error, Result, sys_text};

/// Begins with a dot, which no volume's name does.
const REMOVING: &str = ".removing-";

/// Where a volume's content is.
pub fn mountpoint(root: &Path, name: &str) -> PathBuf {
    root.join(name).join("_data")
}

/// Docker's rule for names: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
pub fn check_name(name: &str) -> Result<()> {
    if name.chars().count() == 1 {
        return Err(Error::invalid(
            "volume name is too short, names should be at least two alphanumeric characters",
        ));
    }
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let mut bytes = name.bytes();
    let good =
        bytes.next().is_some_and(|b| b.is_ascii_alphanumeric()) && bytes.all(rest) && name.len() <= 255;
    if good {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path",
        quote(name)
    )))
}

/// Which options there are, and which need others.
pub fn check_options(options: Option<&BTreeMap<String, String>>) -> Result<()> {
    let Some(options) = options else { return Ok(()) };
    for key in options.keys() {
        if !matches!(key.as_str(), "type" | "o" | "device" | "size") {
            return Err(Error::invalid(format!("invalid option: {}", quote(key))));
        }
    }
    if options.contains_key("size") {
        return Err(Error::invalid("quota size requested but no quota support"));
    }
    for (key, needed) in [("device", &["type"][..]), ("o", &["device", "type"]), ("type", &["device"])] {
        if let Some(missing) =
            needed.iter().find(|need| options.contains_key(key) && !options.contains_key(**need))
        {
            return Err(Error::invalid(format!("missing required option: {}", quote(missing))));
        }
    }
    Ok(())
}

/// Makes the directories of a new volume. Left-overs of an earlier one of the same name are kept: they are somebody's data.
pub fn make(mountpoint: &Path) -> io::Result<()> {
    let directory = |path: &Path, mode: u32| match DirBuilder::new().mode(mode).create(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(err) => Err(err),
        // The umask does not decide about volumes.
        Ok(()) => rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(io::Error::from),
    };
    if let Some(parent) = mountpoint.parent() {
        directory(parent, 0o701)?;
    }
    directory(mountpoint, 0o755)
}

/// Mounts a volume that has a device. A mount that is there already stays.
pub fn mount(options: &BTreeMap<String, String>, at: &Path) -> Result<()> {
    let failed = |why: &str| Error::system(format!("error while mounting volume '{}': {why}", at.display()));
    if sys::mount::is_mount_point(at).map_err(|err| failed(&sys_text(&err)))? {
        return Ok(());
    }
    let text = |key: &str| options.get(key).map_or("", String::as_str);
    let kind = text("type");
    let (device, flags) = resolve_address(kind, text("device"), text("o")).map_err(|why| failed(&why))?;
    let flags: Vec<&str> = flags.split(',').filter(|flag| !flag.is_empty()).collect();
    sys::mount::mount(kind, &device, &flags, at).map_err(|err| {
        let how = shown_options(&flags);
        failed(&format!(
            "failed to mount local volume: mount {device}:{}{how}: {}",
            at.display(),
            sys_text(&err)
        ))
    })
}

/// Flags and data of a mount as an error tells them, without the password.
fn shown_options(flags: &[&str]) -> String {
    let parsed = sys::mount::parse_options(flags);
    let mut text = String::new();
    if !parsed.flags.is_empty() {
        text.push_str(&format!(", flags: {:#x}", parsed.flags.bits()));
    }
    if !parsed.data.is_empty() {
        let open = |word: &str| match word.split_once('=') {
            Some(("password", _)) => "password=********".to_owned(),
            _ => word.to_owned(),
        };
        let words: Vec<String> = parsed.data.split(',').map(open).collect();
        text.push_str(&format!(", data: {}", words.join(",")));
    }
    text
}

/// The kernel's NFS and CIFS want addresses where people write names: in `addr=`, or in a CIFS device's host.
fn resolve_address(kind: &str, device: &str, flags: &str) -> Result<(String, String), String> {
    let as_given = || Ok((device.to_owned(), flags.to_owned()));
    if !matches!(kind, "nfs" | "nfs4" | "cifs") {
        return as_given();
    }
    let is_name = |host: &str| !host.is_empty() && host.parse::<std::net::IpAddr>().is_err();
    let resolve = |host: &str| {
        let failed =
            |why: &str| format!("error resolving passed in network volume address: lookup {host}: {why}");
        let mut addresses = (host, 0).to_socket_addrs().map_err(|err| failed(&err.to_string()))?;
        addresses.next().map(|address| address.ip()).ok_or_else(|| failed("no such host"))
    };
    let named = flags.split(',').find_map(|flag| flag.strip_prefix("addr=")).filter(|host| is_name(host));
    if let Some(host) = named {
        let resolved = format!("addr={}", resolve(host)?);
        let flags: Vec<&str> =
            flags.split(',').map(|flag| if flag.starts_with("addr=") { &*resolved } else { flag }).collect();
        return Ok((device.to_owned(), flags.join(",")));
    }
    let host = device.strip_prefix("//").and_then(|rest| rest.split('/').next()).filter(|host| is_name(host));
    match host {
        Some(host) if kind == "cifs" => {
            Ok((device.replacen(host, &resolve(host)?.to_string(), 1), flags.to_owned()))
        }
        _ => as_given(),
    }
}

/// Takes a volume's files away. The name is free when the first step is done.
pub fn remove(root: &Path, name: &str) -> io::Result<()> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let directory = root.join(name);
    // Whatever is still mounted here keeps its content: it is not the volume's own.
    sys::mount::detach_below(&directory)?;
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let doomed = root.join(format!("{REMOVING}{}-{count}", std::process::id()));
    match std::fs::rename(&directory, &doomed) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    sys::atomicfile::sync_directory(root)?;
    std::fs::remove_dir_all(&doomed)
}

/// Goes on with removals that a crash cut short.
pub fn finish_removals(root: &Path) {
    let Ok(entries) = std::fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let doomed = entry.file_name().as_encoded_bytes().starts_with(REMOVING.as_bytes());
        if doomed && let Err(err) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(path = %entry.path().display(), error = %err, "left-over of a removed volume stays");
        }
    }
}

/// Bytes below a directory, as `du` counts: blocks, hard links once, other file systems not at all.
pub fn usage(path: &Path) -> u64 {
    let Ok(top) = std::fs::symlink_metadata(path) else { return 0 };
    let mut linked = std::collections::HashSet::new();
    let mut waiting = vec![path.to_owned()];
    let mut total = 0;
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != top.dev() || is_counted(&metadata, &mut linked) {
                continue;
            }
            total += metadata.size();
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    total
}

fn is_counted(metadata: &Metadata, linked: &mut std::collections::HashSet<u64>) -> bool {
    metadata.nlink() > 1 && !metadata.is_dir() && !linked.insert(metadata.ino())
}

/// Opens a path below `directory`; links are resolved as if `directory` were the root, and nothing leads out.
pub fn open_inside(directory: &Path, path: &Path) -> Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let leads_out = relative.components().any(|part| part.as_os_str() == OsStr::new(".."));
    if path.is_absolute() || leads_out {
        return Err(Error::invalid(format!("subpath {} must stay within the volume", path.display())));
    }
    let failed = |err: rustix::io::Errno| {
        if err == rustix::io::Errno::XDEV {
            return Error::invalid(format!(
                "path concatenation escapes the base directory, base: {}, subpath: {}",
                directory.display(),
                relative.display()
            ));
        }
        let err = io::Error::from(err);
        let at = directory.join(relative);
        let text = format!("cannot access path {0}: lstat {0}: {1}", at.display(), sys_text(&err));
        if err.kind() == io::ErrorKind::NotFound { Error::not_found(text) } else { Error::system(text) }
    };
    let root =
        rustix::fs::openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    openat2(&root, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn names() {
        for good in ["ab", "a.b-c_d", "0x"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a", ".ab", "-ab", "a/b", "..", "a b", "ä1", "a\0b", &"x".repeat(256)] {
            assert_eq!(check_name(bad).unwrap_err().kind(), Kind::InvalidParameter, "{bad}");
        }
    }

    #[test]
    fn options_need_each_other() {
        let check = |pairs: &[(&str, &str)]| {
            let options = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            check_options(Some(&options)).map_err(|err| err.message().to_owned())
        };
        assert_eq!(check(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")]), Ok(()));
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[("type", "tmpfs")]), Err("missing required option: \"device\"".into()));
        assert_eq!(check(&[("bogus", "1")]), Err("invalid option: \"bogus\"".into()));
    }

    #[test]
    fn a_subpath_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("_data");
        std::fs::create_dir_all(data.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", data.join("inside")).unwrap();
        std::os::unix::fs::symlink("../..", data.join("outside")).unwrap();
        std::os::unix::fs::symlink("/etc", data.join("absolute")).unwrap();
        for good in ["a", "a/b", "inside/b", ""] {
            assert!(open_inside(&data, Path::new(good)).is_ok(), "{good}");
        }
        for bad in ["..", "a/../..", "/etc", "outside", "absolute", "absolute/passwd", "nosuch"] {
            assert!(open_inside(&data, Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn removal_frees_the_name_and_ends_later_if_need_be() {
        let dir = tempfile::tempdir().unwrap();
        make(&mountpoint(dir.path(), "vol")).unwrap();
        std::fs::write(mountpoint(dir.path(), "vol").join("file"), b"x").unwrap();
        std::fs::create_dir_all(dir.path().join(".removing-1-0/_data")).unwrap();
        assert_eq!(usage(&mountpoint(dir.path(), "vol")), 1);
        remove(dir.path(), "vol").unwrap();
        remove(dir.path(), "vol").unwrap();
        finish_removals(dir.path());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_failed_mount_tells_how_but_not_the_password() {
        assert_eq!(
            shown_options(&["addr=127.0.0.1", "ro", "username=u", "password=secret"]),
            ", flags: 0x1, data: addr=127.0.0.1,username=u,password=********"
        );
        assert_eq!(shown_options(&[]), "");
        let given = resolve_address("cifs", "//127.0.0.1/share", "username=u").unwrap();
        assert_eq!(given, ("//127.0.0.1/share".to_owned(), "username=u".to_owned()));
        let by_name = resolve_address("nfs", ":/x", "ro,addr=localhost").unwrap();
        assert!(matches!(by_name.1.as_str(), "ro,addr=127.0.0.1" | "ro,addr=::1"), "{by_name:?}");
    }
}
