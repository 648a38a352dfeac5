//! Hostile and odd archives, each with what it may and may not do. The rows follow the engine's known answers.

use super::*;
use crate::tarread::Entry;
use crate::tarwrite::TarWriter;
use proptest::prelude::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

fn file(path: &str) -> Entry {
    Entry { size: 1, ..Entry::new(path, EntryKind::File, 0o644) }
}

fn link(path: &str, target: &str, kind: EntryKind) -> Entry {
    Entry { link: target.into(), ..Entry::new(path, kind, 0o777) }
}

fn dir(path: &str) -> Entry {
    Entry::new(path, EntryKind::Directory, 0o755)
}

fn node(path: &str, major: u64, minor: u64) -> Entry {
    Entry { major, minor, ..Entry::new(path, EntryKind::Char, 0o600) }
}

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for entry in entries {
        writer.append(entry, std::io::repeat(b'x')).unwrap();
    }
    writer.finish().unwrap()
}

fn apply(root: &Path, entries: &[Entry], whiteouts: Whiteouts) -> Result<Applied, LayerError> {
    let root = RootDir::open(root).unwrap();
    extract(&root, &tar_of(entries)[..], &ApplyOptions::layer(whiteouts))
}

const OVERLAY: Whiteouts = Whiteouts::Overlay { userxattr: false };

#[test]
fn archives_that_are_refused() {
    let rows: &[(&[Entry], &str)] = &[
        (&[file("../x")], "invalid entry name \"../x\""),
        (&[file("a/../../x")], "invalid entry name \"a/../../x\""),
        (
            &[link("h", "../../etc/passwd", EntryKind::HardLink)],
            "invalid hardlink target \"../../etc/passwd\"",
        ),
        (&[link("h", "/etc/passwd", EntryKind::HardLink)], "linkat etc/passwd h: no such file or directory"),
        (&[file(".wh.")], "invalid whiteout entry \".wh.\""),
        (&[file(".wh..")], "invalid whiteout entry \".wh..\""),
        (&[file(".wh...")], "invalid whiteout entry \".wh...\""),
        (&[node("n", 0, 0)], "n: device number 0:0 is not allowed in a layer"),
        (&[node("n", 4096, 0)], "n: device number 4096:0 is not allowed in a layer"),
        (&[Entry { uid: 1 << 40, ..file("u") }], "u: owner 1099511627776 is out of range"),
        (&[Entry { uid: 4_294_967_295, ..file("u") }], "u: owner 4294967295 is out of range"),
        (&[Entry { uid: -1, ..file("u") }], "u: owner -1 is out of range"),
    ];
    for (entries, want) in rows {
        let root = tempfile::tempdir().unwrap();
        let err = apply(root.path(), entries, OVERLAY).unwrap_err();
        assert_eq!(err.to_string(), *want);
        assert!(std::fs::read_dir(root.path()).unwrap().count() <= 1, "{want}");
    }
    for long in ["n".repeat(256), "p/".repeat(2500)] {
        let root = tempfile::tempdir().unwrap();
        let err = apply(root.path(), &[file(&long)], OVERLAY).unwrap_err();
        assert!(err.to_string().ends_with("file name too long"), "{err}");
    }
}

#[test]
fn links_lead_nowhere_but_into_the_root() {
    let rows: &[(&[Entry], &str)] = &[
        (&[file("/abs")], "abs"),
        (&[dir("tmp"), link("a", "/tmp", EntryKind::Symlink), file("a/x")], "tmp/x"),
        (&[dir("tmp"), link("a", "../../../tmp", EntryKind::Symlink), file("a/x")], "tmp/x"),
        (&[link("run", "/var/run", EntryKind::Symlink), file("run/x")], "var/run/x"),
        (&[dir("d"), link("d/l", "..", EntryKind::Symlink), file("d/l/l2")], "l2"),
    ];
    for (entries, lands) in rows {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir(&root).unwrap();
        apply(&root, entries, OVERLAY).unwrap_or_else(|err| panic!("{lands}: {err}"));
        assert!(root.join(lands).symlink_metadata().unwrap().is_file(), "{lands}");
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_link_to_itself_ends() {
    let root = tempfile::tempdir().unwrap();
    for target in ["l", "/l", "l/x", "./l/../l"] {
        let entries = [link("l", target, EntryKind::Symlink), file("l/x")];
        assert!(apply(root.path(), &entries, OVERLAY).is_err(), "{target}");
    }
}

#[test]
fn the_last_of_several_entries_for_a_path_wins() {
    let root = tempfile::tempdir().unwrap();
    let entries = [
        file("a"),
        link("a", "b", EntryKind::Symlink),
        dir("a"),
        file("a/in"),
        file("c"),
        dir("c"),
        file("c"),
    ];
    apply(root.path(), &entries, OVERLAY).unwrap();
    assert!(root.path().join("a/in").is_file() && root.path().join("c").is_file());
    // A parent that was replaced is not reached through its old descriptor.
    let entries =
        [dir("p"), file("p/1"), link("p", "elsewhere", EntryKind::Symlink), dir("elsewhere"), file("p/2")];
    apply(root.path(), &entries, OVERLAY).unwrap();
    assert!(root.path().join("elsewhere/2").is_file());
}

#[test]
fn looks_are_as_the_archive_says() {
    let root = tempfile::tempdir().unwrap();
    let mut set = Entry { uid: 12, gid: 34, mtime: (1_000_000_000, 5), ..file("set") };
    set.mode = 0o6755;
    // cap_dac_override,cap_fowner: byte 10, a newline, is in it.
    let capability = vec![1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set.xattrs = vec![
        (b"security.capability".to_vec(), capability.clone()),
        (b"security.selinux".to_vec(), b"x".to_vec()),
        (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
    ];
    let mut shared = dir("shared");
    shared.mode = 0o3777;
    shared.mtime = (1_100_000_000, 0);
    let mut inside = file("shared/f");
    inside.mode = 0o666;
    apply(
        root.path(),
        &[shared, set, inside, node("null", 1, 3), link("ln", "set", EntryKind::HardLink)],
        OVERLAY,
    )
    .unwrap();
    let meta = root.path().join("set").metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.nlink()), (12, 34, 0o6755, 2));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000_000, 5));
    let meta = root.path().join("shared").metadata().unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime()), (0o3777, 1_100_000_000));
    let meta = root.path().join("shared/f").metadata().unwrap();
    assert_eq!((meta.gid(), meta.mode() & 0o7777), (0, 0o666));
    assert_eq!(root.path().join("null").symlink_metadata().unwrap().rdev(), 0x103);
    let fd = std::fs::File::open(root.path().join("set")).unwrap();
    assert_eq!(read_xattrs(fd.as_fd()).unwrap(), [(b"security.capability".to_vec(), capability)]);
    let mut opaque = [0; 1];
    assert!(fs::fgetxattr(&fd, "trusted.overlay.opaque", &mut opaque).is_err());
}

#[test]
fn a_bad_capability_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let bad = Entry { xattrs: vec![(b"security.capability".to_vec(), b"no".to_vec())], ..file("x") };
    assert_eq!(apply(root.path(), &[bad], OVERLAY).unwrap_err().to_string(), "lsetxattr x: invalid argument");
}

#[test]
fn whiteouts_spare_their_own_layer() {
    for mode in [OVERLAY, Whiteouts::Remove] {
        let root = tempfile::tempdir().unwrap();
        if mode == Whiteouts::Remove {
            apply(root.path(), &[dir("d"), file("d/old"), file("gone"), dir("e"), file("e/old")], mode)
                .unwrap();
        }
        let layer = [
            file("new"),
            file(".wh.new"),
            file(".wh.gone"),
            dir("d"),
            file("d/new"),
            file("d/.wh..wh..opq"),
            file(".wh.e"),
            dir("e"),
            file("e/new"),
        ];
        apply(root.path(), &layer, mode).unwrap();
        let there = |path: &str| root.path().join(path).is_file();
        assert!(there("new") && there("d/new") && there("e/new"), "{mode:?}");
        assert!(!there("gone") && !there("d/old") && !there("e/old"), "{mode:?}");
        if mode == OVERLAY {
            let handle = RootDir::open(root.path()).unwrap();
            assert!(is_whiteout(&handle.stat(b"gone").unwrap()));
            for path in [&b"d"[..], b"e"] {
                let fd = handle.open_at(path, OFlags::RDONLY, Mode::empty()).unwrap();
                assert_eq!(fs::fgetxattr(&fd, "trusted.overlay.opaque", &mut [0u8; 4]), Ok(1));
            }
        }
    }
}

#[test]
fn implied_directories_look_as_they_do_below() {
    let (low, up) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut tmp = dir("tmp");
    tmp.mode = 0o1777;
    tmp.gid = 7;
    apply(low.path(), &[tmp], OVERLAY).unwrap();
    let applied = apply(up.path(), &[file("tmp/a/b"), dir("known"), file("known/x")], OVERLAY).unwrap();
    assert_eq!(applied.implied_dirs, [b"tmp".to_vec(), b"tmp/a".to_vec()]);
    let (lower, upper) = (RootDir::open(low.path()).unwrap(), RootDir::open(up.path()).unwrap());
    fix_implied_dirs(&upper, &applied.implied_dirs, &[lower]).unwrap();
    let meta = up.path().join("tmp").metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o1777, 7));
}

#[test]
fn limits_hold() {
    let root = tempfile::tempdir().unwrap();
    let handle = RootDir::open(root.path()).unwrap();
    let tar = tar_of(&[file("a"), Entry { size: 100, ..file("b") }]);
    let with = |limits| ApplyOptions { limits, ..ApplyOptions::layer(OVERLAY) };
    let small = with(Limits { max_bytes: 50, ..Limits::default() });
    assert!(matches!(extract(&handle, &tar[..], &small), Err(LayerError::TooLarge(50))));
    let few = with(Limits { max_entries: 1, ..Limits::default() });
    assert!(matches!(extract(&handle, &tar[..], &few), Err(LayerError::TooManyEntries(1))));
    let full = with(Limits { disk_reserve: u64::MAX, ..Limits::default() });
    assert_eq!(extract(&handle, &tar[..], &full).unwrap_err().to_string(), "no space left on device");
}

#[test]
fn copying_keeps_types_and_whiteout_names() {
    let root = tempfile::tempdir().unwrap();
    let handle = RootDir::open(root.path()).unwrap();
    let options = ApplyOptions { keep_types: true, owner: Some((5, 6)), ..ApplyOptions::archive() };
    extract(&handle, &tar_of(&[dir("d"), file("f"), file(".wh.x")])[..], &options).unwrap();
    assert_eq!(root.path().join(".wh.x").metadata().unwrap().uid(), 5);
    let err = extract(&handle, &tar_of(&[file("d")])[..], &options).unwrap_err();
    assert_eq!(err.to_string(), "cannot overwrite directory \"d\" with non-directory \"d\"");
    let err = extract(&handle, &tar_of(&[dir("f")])[..], &options).unwrap_err();
    assert_eq!(err.to_string(), "cannot overwrite non-directory \"f\" with directory \"f\"");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever an archive contains, a directory beside the root stays as it was.
    #[test]
    fn nothing_outside_the_root_changes(
        what in proptest::collection::vec(("(\\.\\./|/)?[ab](/[ab]|/\\.\\.)?(/\\.wh\\.[ab])?", 0u8..6, "(\\.\\./|/)*[ab]?(victim)?"), 1..12),
        remove: bool,
    ) {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        let victim = outer.path().join("victim");
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(&victim).unwrap();
        std::fs::write(victim.join("a"), b"safe").unwrap();
        let handle = RootDir::open(&root).unwrap();
        for (path, kind, target) in what {
            let kind = [EntryKind::File, EntryKind::Directory, EntryKind::Symlink, EntryKind::HardLink, EntryKind::Fifo, EntryKind::File][usize::from(kind)];
            let mut entry = link(&path, &target, kind);
            if kind == EntryKind::Symlink && entry.link.is_empty() {
                entry.link = b"../victim".to_vec();
            }
            let mode = if remove { Whiteouts::Remove } else { OVERLAY };
            let _ = extract(&handle, &tar_of(&[entry, file("a/b/c")])[..], &ApplyOptions::layer(mode));
        }
        prop_assert_eq!(std::fs::read(victim.join("a")).unwrap(), b"safe");
        prop_assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 1);
        prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 2);
    }
}
