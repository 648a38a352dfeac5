//! The root file system of a container, mounted as the Create request describes it.
//!
//! Mount options are those of fstab: words that are flags, words that change propagation, and the rest, which the file system gets as its data.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use shim_api::types::Mount;

/// What the mount system call takes as data, terminating NUL included.
const DATA_MAX: usize = 4096;

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to mount rootfs component: mount source: {source_text:?}, target: {target:?}, fstype: {kind}, options: {options:?}"
)]
pub struct MountError {
    source_text: String,
    target: PathBuf,
    kind: String,
    options: String,
    #[source]
    source: io::Error,
}

/// Mounts all in order. After a failure those already made are unmounted.
pub fn mount_all(mounts: &[Mount], root: &Path) -> Result<(), MountError> {
    for mount in mounts {
        if let Err(source) = mount_one(mount, root) {
            unmount_below(root);
            return Err(MountError {
                source_text: mount.source.clone(),
                target: root.join(mount.target.trim_start_matches('/')),
                kind: mount.r#type.clone(),
                options: mount.options.join(","),
                source,
            });
        }
    }
    Ok(())
}

/// Unmounts everything at and below `root`, the last first; what is busy is detached.
pub fn unmount_below(root: &Path) {
    let Ok(mountinfo) = std::fs::read_to_string("/proc/self/mountinfo") else { return };
    for mount_point in points_below(&mountinfo, root).into_iter().rev() {
        if rustix::mount::unmount(&mount_point, UnmountFlags::NOFOLLOW).is_err() {
            let _ = rustix::mount::unmount(&mount_point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
        }
    }
}

/// The mount points at and below `root`, in the order they were made.
fn points_below(mountinfo: &str, root: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.filter(|point| point.starts_with(root)).collect()
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    std::ffi::OsString::from_vec(plain).into()
}

/// Options of a mount, told apart.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MountFlags,
    propagation: MountPropagationFlags,
    bind: Bind,
    data: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Bind {
    No,
    Alone,
    Recursive,
}

fn parse(kind: &str, words: &[String]) -> Options {
    let mut options = Options {
        flags: MountFlags::empty(),
        propagation: MountPropagationFlags::empty(),
        bind: match kind {
            "bind" => Bind::Alone,
            "rbind" => Bind::Recursive,
            _ => Bind::No,
        },
        data: Vec::new(),
    };
    for word in words {
        let (set, flag) = match word.as_str() {
            "" | "defaults" => continue,
            "bind" => {
                options.bind = Bind::Alone;
                continue;
            }
            "rbind" => {
                options.bind = Bind::Recursive;
                continue;
            }
            "ro" => (true, MountFlags::RDONLY),
            "rw" => (false, MountFlags::RDONLY),
            "nosuid" => (true, MountFlags::NOSUID),
            "suid" => (false, MountFlags::NOSUID),
            "nodev" => (true, MountFlags::NODEV),
            "dev" => (false, MountFlags::NODEV),
            "noexec" => (true, MountFlags::NOEXEC),
            "exec" => (false, MountFlags::NOEXEC),
            "sync" => (true, MountFlags::SYNCHRONOUS),
            "async" => (false, MountFlags::SYNCHRONOUS),
            "dirsync" => (true, MountFlags::DIRSYNC),
            "noatime" => (true, MountFlags::NOATIME),
            "atime" => (false, MountFlags::NOATIME),
            "nodiratime" => (true, MountFlags::NODIRATIME),
            "diratime" => (false, MountFlags::NODIRATIME),
            "relatime" => (true, MountFlags::RELATIME),
            "norelatime" => (false, MountFlags::RELATIME),
            "strictatime" => (true, MountFlags::STRICTATIME),
            "nostrictatime" => (false, MountFlags::STRICTATIME),
            word => {
                let propagation = match word
                    .strip_prefix('r')
                    .filter(|rest| PROPAGATION.iter().any(|(name, _)| name == rest))
                {
                    Some(rest) => Some((rest, MountPropagationFlags::REC)),
                    None => Some((word, MountPropagationFlags::empty())),
                };
                let found = propagation.and_then(|(name, recursive)| {
                    PROPAGATION.iter().find(|(known, _)| *known == name).map(|(_, flag)| *flag | recursive)
                });
                match found {
                    Some(flag) => options.propagation |= flag,
                    None => options.data.push(word.to_owned()),
                }
                continue;
            }
        };
        options.flags.set(flag, set);
    }
    options
}

const PROPAGATION: [(&str, MountPropagationFlags); 4] = [
    ("private", MountPropagationFlags::PRIVATE),
    ("shared", MountPropagationFlags::SHARED),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
];

fn mount_one(mount: &Mount, root: &Path) -> io::Result<()> {
    // A target is a path inside the root that is being put together; it comes from the snapshotter, not from an image.
    let target = root.join(mount.target.trim_start_matches('/'));
    let options = parse(&mount.r#type, &mount.options);
    match options.bind {
        Bind::No => {
            let (data, directory) = shortened(&options.data);
            if data.len() >= DATA_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "mount options is too long"));
            }
            let data = std::ffi::CString::new(data)?;
            let mounted = {
                let _there = directory.map(|directory| WorkingDirectory::change(&directory)).transpose()?;
                rustix::mount::mount(
                    mount.source.as_str(),
                    &target,
                    mount.r#type.as_str(),
                    options.flags,
                    data.as_c_str(),
                )
            };
            mounted?;
        }
        Bind::Alone => rustix::mount::mount_bind(mount.source.as_str(), &target)?,
        Bind::Recursive => rustix::mount::mount_bind_recursive(mount.source.as_str(), &target)?,
    }
    if options.bind != Bind::No && !options.flags.is_empty() {
        // A bind takes its flags from its source; only a remount changes them.
        rustix::mount::mount_remount(&target, options.flags | MountFlags::BIND, c"")?;
    }
    if !options.propagation.is_empty() {
        rustix::mount::mount_change(&target, options.propagation)?;
    }
    Ok(())
}

/// Joins mount data. Too long a list of overlay layers is written relative to the directory they share, which is returned.
fn shortened(data: &[String]) -> (String, Option<PathBuf>) {
    let whole = data.join(",");
    if whole.len() < DATA_MAX {
        return (whole, None);
    }
    let Some(lower) = data.iter().find_map(|word| word.strip_prefix("lowerdir=")) else {
        return (whole, None);
    };
    let layers: Vec<&str> = lower.split(':').collect();
    let Some(shared) = shared_directory(&layers) else { return (whole, None) };
    let relative: Vec<&str> = layers
        .iter()
        .map(|layer| layer.strip_prefix(shared).unwrap_or(layer).trim_start_matches('/'))
        .collect();
    let words: Vec<String> = data
        .iter()
        .map(|word| {
            if word.starts_with("lowerdir=") {
                format!("lowerdir={}", relative.join(":"))
            } else {
                word.clone()
            }
        })
        .collect();
    (words.join(","), Some(shared.into()))
}

/// The longest directory all of `paths` lie in; `None` if that is the root or some path is relative.
fn shared_directory<'a>(paths: &[&'a str]) -> Option<&'a str> {
    let first = paths.first()?;
    let mut shared = first.rsplit_once('/')?.0;
    while !paths.iter().all(|path| path.strip_prefix(shared).is_some_and(|rest| rest.starts_with('/'))) {
        shared = shared.rsplit_once('/')?.0;
    }
    Some(shared).filter(|shared| shared.len() > 1)
}

/// The working directory, until dropped. The process has one thread and no await lies within.
struct WorkingDirectory;

impl WorkingDirectory {
    fn change(directory: &Path) -> io::Result<WorkingDirectory> {
        std::env::set_current_dir(directory)?;
        Ok(WorkingDirectory)
    }
}

impl Drop for WorkingDirectory {
    fn drop(&mut self) {
        let _ = std::env::set_current_dir("/");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn options_are_told_apart() {
        let options =
            parse("overlay", &words("ro,nosuid,suid,workdir=/w,lowerdir=/a:/b,rprivate,volatile,resolution"));
        assert_eq!(options.flags, MountFlags::RDONLY);
        assert_eq!(options.propagation, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
        assert_eq!(options.bind, Bind::No);
        assert_eq!(options.data, ["workdir=/w", "lowerdir=/a:/b", "volatile", "resolution"]);
        assert_eq!(parse("bind", &words("rbind,ro,rw")).bind, Bind::Recursive);
        assert_eq!(parse("bind", &words("ro,rw")).flags, MountFlags::empty());
    }

    #[test]
    fn many_layers_become_relative() {
        let layers: Vec<String> = (0..200).map(|n| format!("/var/lib/somewhere/snapshots/{n}/fs")).collect();
        let data = vec![format!("lowerdir={}", layers.join(":")), "upperdir=/u".to_owned()];
        let (text, directory) = shortened(&data);
        assert_eq!(directory, Some("/var/lib/somewhere/snapshots".into()));
        assert!(
            text.starts_with("lowerdir=0/fs:1/fs:")
                && text.ends_with(":199/fs,upperdir=/u")
                && text.len() < DATA_MAX
        );
        assert_eq!(shortened(&data[1..]), ("upperdir=/u".into(), None));
        assert_eq!(shared_directory(&["/a/x", "/b/x"]), None);
        assert_eq!(shared_directory(&["/a/ab/x", "/a/abc/x"]), Some("/a"));
        assert_eq!(shared_directory(&["x", "/a"]), None);
    }

    #[test]
    fn finds_mounts_below_a_directory_with_blanks() {
        let info = "1 0 0:1 / / rw - ext4 d rw\n2 1 0:2 / /b\\040c/rootfs rw - tmpfs t rw\n3 2 0:3 / /b\\040c/rootfs/proc rw - p p rw\n\
                    4 1 0:4 / /b\\040c/rootfs2 rw - tmpfs t rw\n";
        let found = points_below(info, Path::new("/b c/rootfs"));
        assert_eq!(found, [PathBuf::from("/b c/rootfs"), "/b c/rootfs/proc".into()]);
        assert_eq!(unescape("\\134x\\9\\04"), PathBuf::from("\\x\\9\\04"));
    }
}
