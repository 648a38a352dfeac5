//! Mounts: what is mounted where, and mounting from the option strings containerd and fstab use.
//!
//! Invariants: the table is parsed without trusting it (a line that is none is skipped, escapes are undone); unmounting never
//! follows a symbolic link at the end of its path; what is mounted inside a root is found inside that root.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Unique among the mounts that exist now.
    pub id: u32,
    /// The mount this one is on; itself for the root of the tree.
    pub parent: u32,
    /// `st_dev` of files on it: major and minor.
    pub device: (u32, u32),
    /// What of the file system is mounted: `/`, or a directory of it for a bind mount.
    pub root: PathBuf,
    /// Where it is, seen from our root.
    pub point: PathBuf,
    /// Options of this mount: `rw,nosuid,…`.
    pub options: String,
    /// `shared:1`, `master:2`, …
    pub tags: Vec<String>,
    /// `ext4`, `overlay`, …
    pub kind: String,
    /// A device, or whatever the file system calls its source.
    pub source: OsString,
    /// Options of the file system: `rw,lowerdir=…`.
    pub super_options: OsString,
}

/// All mounts of our mount namespace, oldest first where they are stacked.
///
/// # Errors
/// What reading `/proc/self/mountinfo` fails with.
pub fn table() -> io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Reads a mountinfo table. Lines that are not understood are left out.
pub fn parse(bytes: &[u8]) -> Vec<Entry> {
    bytes.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut words = line.split(|byte| *byte == b' ');
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<u32>().ok();
    let id = number(words.next()?)?;
    let parent = number(words.next()?)?;
    let device = words.next()?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let device = (number(&device[..colon])?, number(&device[colon + 1..])?);
    let root = unescape(words.next()?).into();
    let point = unescape(words.next()?).into();
    let options = String::from_utf8_lossy(words.next()?).into_owned();
    let mut tags = Vec::new();
    loop {
        match words.next()? {
            b"-" => break,
            tag => tags.push(String::from_utf8_lossy(tag).into_owned()),
        }
    }
    let kind = unescape(words.next()?).to_string_lossy().into_owned();
    let source = unescape(words.next()?);
    let super_options = unescape(words.next().unwrap_or_default());
    Some(Entry { id, parent, device, root, point, options, tags, kind, source, super_options })
}

/// Undoes the kernel's octal escapes (`\040` for a space).
fn unescape(word: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(word.len());
    let mut at = 0;
    while let Some(&byte) = word.get(at) {
        let octal = word.get(at + 1..at + 4).filter(|_| byte == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u32, |value, digit| {
                matches!(digit, b'0'..=b'7').then(|| value * 8 + u32::from(digit - b'0'))
            })
        });
        match octal.and_then(|value| u8::try_from(value).ok()) {
            Some(value) => {
                out.push(value);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    OsString::from_vec(out)
}

/// The mounts at `path` and below it. `path` is absolute and without symbolic links.
pub fn at_or_below<'a>(table: &'a [Entry], path: &Path) -> impl DoubleEndedIterator<Item = &'a Entry> {
    table.iter().filter(move |entry| entry.point.starts_with(path))
}

/// Whether something is mounted exactly at `path`.
///
/// # Errors
/// What reading the mount table fails with.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(table()?.iter().any(|entry| entry.point == path))
}

/// Mount options, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// For mount(2), without propagation.
    pub flags: MountFlags,
    /// `rprivate`, `shared`, …
    pub propagation: Option<MountPropagationFlags>,
    /// What the file system gets: the options that are not flags, joined with commas.
    pub data: String,
}

/// Sorts options into flags and data as fstab and containerd understand them; of contradicting flags the last wins.
pub fn parse_options<S: AsRef<str>>(options: &[S]) -> Options {
    let mut flags = MountFlags::empty();
    let mut propagation = None;
    let mut data: Vec<&str> = Vec::new();
    for option in options.iter().map(AsRef::as_ref) {
        if let Some((set, flag)) = flag(option) {
            flags.set(flag, set);
        } else if let Some(flag) = propagation_flag(option) {
            propagation = Some(flag);
        } else if !option.is_empty() && option != "defaults" {
            data.push(option);
        }
    }
    Options { flags, propagation, data: data.join(",") }
}

/// Whether the option sets or clears its flag.
fn flag(option: &str) -> Option<(bool, MountFlags)> {
    const REC: u32 = 0x4000;
    Some(match option {
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
        "mand" => (true, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "nomand" => (false, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "noatime" => (true, MountFlags::NOATIME),
        "atime" => (false, MountFlags::NOATIME),
        "nodiratime" => (true, MountFlags::NODIRATIME),
        "diratime" => (false, MountFlags::NODIRATIME),
        "relatime" => (true, MountFlags::RELATIME),
        "norelatime" => (false, MountFlags::RELATIME),
        "strictatime" => (true, MountFlags::STRICTATIME),
        "nostrictatime" => (false, MountFlags::STRICTATIME),
        "nosymfollow" => (true, MountFlags::from_bits_retain(0x100)),
        "bind" => (true, MountFlags::BIND),
        "rbind" => (true, MountFlags::BIND | MountFlags::from_bits_retain(REC)),
        "remount" => (true, MountFlags::from_bits_retain(0x20)),
        _ => return None,
    })
}

fn propagation_flag(option: &str) -> Option<MountPropagationFlags> {
    use MountPropagationFlags as P;
    let (recursive, name) = match option.strip_prefix('r') {
        Some(rest) if rest != "w" && rest != "o" => (P::REC, rest),
        _ => (P::empty(), option),
    };
    let kind = match name {
        "private" => P::PRIVATE,
        "shared" => P::SHARED,
        "slave" => P::DOWNSTREAM,
        "unbindable" => P::UNBINDABLE,
        _ => return None,
    };
    Some(kind | recursive)
}

/// The kernel copies one page of data, its last byte being a NUL.
const DATA_MAX: usize = 4095;
const REMOUNT: MountFlags = MountFlags::from_bits_retain(0x20);

/// Mounts `source` at `target`.
///
/// A read-only bind mount is made in two steps, as the kernel wants it; a propagation option is applied after the mount. An overlay
/// with so many lower directories that its options exceed a page is mounted with names relative to their common parent.
///
/// # Errors
/// The error of the system call that failed; after an error nothing of this mount is left.
pub fn mount<S: AsRef<str>>(kind: &str, source: &str, options: &[S], target: &Path) -> io::Result<()> {
    let Options { flags, propagation, data } = parse_options(options);
    if flags.contains(REMOUNT) {
        let bits = flags.difference(REMOUNT);
        let data = CString::new(data)?;
        rustix::mount::mount_remount(target, bits, data.as_c_str())?;
    } else if data.len() > DATA_MAX && kind == "overlay" {
        mount_overlay_relative(source, target, flags, &data)?;
    } else {
        mount_raw(kind, source, target, flags, &data)?;
    }
    let finish = || -> io::Result<()> {
        if let Some(propagation) = propagation {
            rustix::mount::mount_change(target, propagation)?;
        }
        if flags.contains(MountFlags::BIND | MountFlags::RDONLY) && !flags.contains(REMOUNT) {
            rustix::mount::mount_remount(target, flags, c"")?;
        }
        Ok(())
    };
    finish().inspect_err(|_| {
        if !flags.contains(REMOUNT) {
            let _ = detach(target);
        }
    })
}

fn mount_raw(kind: &str, source: &str, target: &Path, flags: MountFlags, data: &str) -> io::Result<()> {
    let data = CString::new(data)?;
    Ok(rustix::mount::mount(source, target, kind, flags, data.as_c_str())?)
}

/// Mounts an overlay from a thread whose working directory is the lower directories' common parent.
fn mount_overlay_relative(source: &str, target: &Path, flags: MountFlags, data: &str) -> io::Result<()> {
    let (parent, data) = shorten_lower(data).ok_or(Errno::TOOBIG)?;
    if data.len() > DATA_MAX {
        return Err(Errno::TOOBIG.into());
    }
    let target = std::path::absolute(target)?;
    let attempt = || -> io::Result<()> {
        // A working directory of its own: this thread's chdir is nobody else's.
        unshare_fs()?;
        rustix::process::chdir(&parent)?;
        mount_raw("overlay", source, &target, flags, &data)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mount".into()).spawn_scoped(scope, attempt)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("mount thread panicked")))
    })
}

#[allow(
    unsafe_code,
    reason = "unshare(2) with a flag that concerns this thread's working directory, root and umask only"
)]
fn unshare_fs() -> io::Result<()> {
    // SAFETY: CLONE_FS detaches no resource that Rust code relies on being shared; it cannot invalidate memory or descriptors.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
    Ok(())
}

/// The lower directories' longest common parent, and the options with their names relative to it. `None` if they share none.
fn shorten_lower(data: &str) -> Option<(PathBuf, String)> {
    let lower = data.split(',').find_map(|option| option.strip_prefix("lowerdir="))?;
    let dirs: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let mut common = dirs.first()?.parent()?.to_path_buf();
    while !dirs.iter().all(|dir| dir.starts_with(&common)) {
        common = common.parent()?.to_path_buf();
    }
    if common.as_os_str().len() <= 1 {
        return None;
    }
    let relative: Option<Vec<&str>> = dirs
        .iter()
        .map(|dir| dir.strip_prefix(&common).ok()?.to_str().filter(|name| !name.is_empty()))
        .collect();
    let lower = relative?.join(":");
    let options: Vec<String> =
        data.split(',')
            .map(|option| {
                if option.starts_with("lowerdir=") { format!("lowerdir={lower}") } else { option.to_owned() }
            })
            .collect();
    Some((common, options.join(",")))
}

/// Mounts at `target` below `root`, found as if `root` were the root directory: no link leads out of it.
///
/// # Errors
/// As [`mount`], or what finding the target says.
pub fn mount_in_root<S: AsRef<str>>(
    kind: &str,
    source: &str,
    options: &[S],
    root: &Path,
    target: &Path,
) -> io::Result<()> {
    let open = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, open | OFlags::DIRECTORY, Mode::empty())?;
    let inside = target.strip_prefix("/").unwrap_or(target);
    let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    let place = rustix::fs::openat2(
        &root,
        inside,
        open,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    mount(kind, source, options, &PathBuf::from(format!("/proc/self/fd/{}", place.as_fd().as_raw_fd())))
}

/// Moves a mount from one place to another.
///
/// # Errors
/// What mount(2) says.
pub fn move_to(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_move(from, to)?)
}

/// Unmounts whatever is mounted at `path`, also several mounts on top of each other. Nothing there is fine.
///
/// # Errors
/// What umount(2) says, `EBUSY` for one.
pub fn unmount(path: &Path) -> io::Result<()> {
    unmount_all(path, UnmountFlags::NOFOLLOW)
}

/// Takes the mounts at `path` out of sight at once; the kernel ends them when nobody uses them any more.
///
/// # Errors
/// What umount(2) says.
pub fn detach(path: &Path) -> io::Result<()> {
    unmount_all(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
}

fn unmount_all(path: &Path, flags: UnmountFlags) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(path, flags) {
            Ok(()) => {}
            // Not a mount point (any more), or not there at all.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(err) => return Err(err.into()),
        }
    }
}

/// Detaches everything mounted at `path` and below it, the newest first.
///
/// # Errors
/// What reading the table or umount(2) says; the others are detached nevertheless, the first error is returned.
pub fn detach_below(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let mut outcome = Ok(());
    for entry in at_or_below(&table()?, &path).rev() {
        if let Err(err) = detach(&entry.point)
            && outcome.is_ok()
        {
            outcome = Err(err);
        }
    }
    outcome
}

/// `path` as the mount table spells it: absolute, without symbolic links. What does not exist is only made absolute.
///
/// # Errors
/// What finding the working directory says, for a relative path.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    std::fs::canonicalize(path).or_else(|_| std::path::absolute(path))
}

/// The value of an option `name=value` in an entry's file system options.
pub fn super_option<'a>(entry: &'a Entry, name: &str) -> Option<&'a OsStr> {
    entry.super_options.as_bytes().split(|byte| *byte == b',').find_map(|option| {
        let rest = option.strip_prefix(name.as_bytes())?;
        Some(OsStr::from_bytes(rest.strip_prefix(b"=")?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard\n\
30 22 0:26 / /with\\040space\\134x rw master:3 propagate_from:2 - tmpfs a\\011b rw,size=64k\n\
nonsense\n\
31 30 0:27 /sub /data/m ro - overlay overlay rw,lowerdir=/a:/b,upperdir=/u\n";

    #[test]
    fn a_table_is_read_and_nonsense_left_out() {
        let table = parse(TABLE.as_bytes());
        assert_eq!(table.len(), 3);
        assert_eq!(table[1].point, Path::new("/with space\\x"));
        assert_eq!(table[1].source, "a\tb");
        assert_eq!(table[1].tags, ["master:3", "propagate_from:2"]);
        assert_eq!(table[2].device, (0, 27));
        assert_eq!(table[2].root, Path::new("/sub"));
        assert_eq!(super_option(&table[2], "lowerdir").unwrap(), "/a:/b");
        assert_eq!(super_option(&table[2], "lower"), None);
        assert_eq!(at_or_below(&table, Path::new("/data")).count(), 1);
        assert_eq!(at_or_below(&table, Path::new("/dat")).count(), 0);
    }

    #[test]
    fn options_are_flags_propagation_and_data() {
        let parsed =
            parse_options(&["rbind", "ro", "rprivate", "mode=755", "nosuid", "suid", "size=1k", "defaults"]);
        let rec = MountFlags::from_bits_retain(0x4000);
        assert_eq!(parsed.flags, MountFlags::BIND | rec | MountFlags::RDONLY);
        assert_eq!(parsed.propagation, Some(MountPropagationFlags::PRIVATE | MountPropagationFlags::REC));
        assert_eq!(parsed.data, "mode=755,size=1k");
        assert_eq!(parse_options(&["ro", "rw"]).flags, MountFlags::empty());
        assert_eq!(parse_options(&["slave"]).propagation, Some(MountPropagationFlags::DOWNSTREAM));
    }

    #[test]
    fn long_lower_lists_get_relative_names() {
        let data = "workdir=/w,lowerdir=/s/snap/1/fs:/s/snap/12/fs,index=off";
        let (parent, short) = shorten_lower(data).unwrap();
        assert_eq!(parent, Path::new("/s/snap"));
        assert_eq!(short, "workdir=/w,lowerdir=1/fs:12/fs,index=off");
        assert_eq!(shorten_lower("lowerdir=/a:/b"), None);
        assert_eq!(shorten_lower("upperdir=/a"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_a_table_of_some_length(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let lines = bytes.split(|b| *b == b'\n').count();
            prop_assert!(parse(&bytes).len() <= lines);
        }

        #[test]
        fn escapes_are_undone(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            let escaped: Vec<u8> = name.iter().flat_map(|byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                other => vec![*other],
            }).collect();
            let undone = unescape(&escaped);
            prop_assert_eq!(undone.as_bytes(), name.as_slice());
        }
    }

    /// Real mounts in a place of our own; skipped where mounting is not allowed.
    #[test]
    fn mounting_stacking_moving_and_detaching() {
        let dir = tempfile::tempdir().unwrap();
        let root = resolve(dir.path()).unwrap();
        let (a, b) = (root.join("a"), root.join("b b"));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&b).unwrap();
        match mount("tmpfs", "tmpfs", &["size=64k", "nosuid"], &a) {
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("skipped: not allowed to mount");
                return;
            }
            other => other.unwrap(),
        }
        mount::<&str>("none", "none", &["bind"], &a).unwrap_err();
        std::fs::write(a.join("f"), "x").unwrap();
        mount("none", a.to_str().unwrap(), &["bind", "ro", "rprivate"], &b).unwrap();
        assert_eq!(std::fs::read(b.join("f")).unwrap(), b"x");
        assert_eq!(std::fs::write(b.join("g"), "x").unwrap_err().raw_os_error(), Some(30));
        mount("tmpfs", "tmpfs", &["size=64k"], &b).unwrap();
        assert_eq!(at_or_below(&table().unwrap(), &b).count(), 2, "stacked");
        mount_in_root("tmpfs", "tmpfs", &["size=4k"], &root, Path::new("/../b b")).unwrap();
        assert_eq!(at_or_below(&table().unwrap(), &b).count(), 3);
        detach_below(&root).unwrap();
        assert_eq!(at_or_below(&table().unwrap(), &root).count(), 0);
        unmount(&a).unwrap();
        unmount(&root.join("missing")).unwrap();
    }

    #[test]
    fn an_overlay_of_very_many_layers_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let root = resolve(dir.path()).unwrap();
        let base = root.join("a-directory-with-a-rather-long-name-to-fill-the-page-of-options");
        let mut lower = Vec::new();
        for n in 0..60 {
            let layer = base.join(n.to_string()).join("fs");
            std::fs::create_dir_all(&layer).unwrap();
            std::fs::write(layer.join(n.to_string()), "").unwrap();
            lower.push(layer.to_str().unwrap().to_owned());
        }
        let target = root.join("t");
        std::fs::create_dir(&target).unwrap();
        let option = format!("lowerdir={}", lower.join(":"));
        assert!(option.len() > DATA_MAX);
        match mount("overlay", "overlay", &[option.as_str()], &target) {
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("skipped: not allowed to mount");
                return;
            }
            other => other.unwrap(),
        }
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 60);
        unmount(&target).unwrap();
    }
}
