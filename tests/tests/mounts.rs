//! Every form of a mount, as a container sees it. The rows were run on Docker Engine 28.5 first and came out the same there.

use std::path::Path;
use std::process::Command;

use e2e_tests::Engine;

fn mount(args: &[&str]) {
    let output = Command::new("mount").args(args).output().expect("mount runs");
    assert!(output.status.success(), "mount {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A shared mount with a directory, and in that a mount of its own. Gone when dropped.
struct Source(tempfile::TempDir);

impl Source {
    fn new() -> Self {
        let source = Self(tempfile::Builder::new().prefix("e2e-").tempdir().expect("a folder"));
        let at = source.text();
        mount(&["-t", "tmpfs", "outer", &at]);
        mount(&["--make-shared", &at]);
        std::fs::create_dir_all(source.0.path().join("dir/sub")).expect("a folder");
        mount(&["-t", "tmpfs", "inner", &format!("{at}/dir/sub")]);
        source
    }

    fn text(&self) -> String {
        self.0.path().display().to_string()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        for path in ["dir/sub", ""] {
            let _ = Command::new("umount").arg("-l").arg(self.0.path().join(path)).status();
        }
    }
}

/// What a container with `flags` prints; of a refusal, what the engine said.
fn told(engine: &Engine, flags: &str, script: &str) -> String {
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let ran = engine.docker(&[&["run", "--rm"], flags.as_slice(), &["busybox", "sh", "-c", script]].concat());
    let mut said = ran.stderr.lines().filter_map(|line| line.split_once("Error response from daemon: "));
    if let Some((_, said)) = said.next() {
        return said.to_owned();
    }
    // Who refuses is the command line.
    assert_ne!(ran.code, 125, "{ran:?}");
    ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs rows of flags (where `SRC` is the source's directory and `ROOT` the data root) and what they come to.
#[track_caller]
fn check(engine: &Engine, source: &Path, script: &str, rows: &[(&str, &str)]) {
    let (source, root) = (source.display().to_string(), engine.path("data").display().to_string());
    for (flags, wanted) in rows {
        let found = told(engine, &flags.replace("SRC", &source), script);
        let found = found.replace(&source, "SRC").replace(&root, "ROOT");
        assert_eq!(found, *wanted, "{flags}");
    }
}

#[test]
fn binds_are_as_recursive_writable_and_shared_as_was_asked_for() {
    let source = Source::new();
    let engine = Engine::start();
    engine.load_busybox();
    let dir = source.0.path().join("dir");
    let script = "touch /m/x 2>/dev/null && echo writable; touch /m/sub/x 2>/dev/null && echo inner; \
                  grep -q ' /m/sub .*inner' /proc/self/mountinfo && echo recursive; \
                  grep ' /m ' /proc/self/mountinfo | grep -oE 'shared|master'";
    let all = "writable inner recursive";
    check(
        &engine,
        &dir,
        script,
        &[
            ("-v SRC:/m", all),
            ("-v SRC:/m:ro", "recursive"),
            ("-v SRC:/m:z", all),
            ("--mount type=bind,src=SRC,dst=/m", all),
            ("--mount type=bind,src=SRC,dst=/m,readonly", "recursive"),
            ("--mount type=bind,src=SRC,dst=/m,bind-recursive=enabled", all),
            ("--mount type=bind,src=SRC,dst=/m,bind-recursive=disabled", "writable inner"),
            ("--mount type=bind,src=SRC,dst=/m,bind-recursive=disabled,readonly", ""),
            ("--mount type=bind,src=SRC,dst=/m,bind-recursive=writable,readonly", "inner recursive"),
            (
                "--mount type=bind,src=SRC,dst=/m,bind-recursive=readonly,readonly,bind-propagation=rprivate",
                "recursive",
            ),
            ("--mount type=bind,src=SRC,dst=/m,bind-propagation=rprivate", all),
            ("--mount type=bind,src=SRC,dst=/m,bind-propagation=rslave", "writable inner recursive master"),
            ("--mount type=bind,src=SRC,dst=/m,bind-propagation=rshared", "writable inner recursive shared"),
            ("-v SRC:/m:rshared", "writable inner recursive shared"),
            (
                "--mount type=bind,src=SRC,dst=/m,bind-propagation=bogus",
                "invalid mount config for type \"bind\": invalid propagation mode: bogus",
            ),
            (
                "--mount type=bind,src=SRC/none,dst=/m",
                "invalid mount config for type \"bind\": bind source path does not exist: SRC/none",
            ),
            ("-v SRC:/m:idmap", "invalid mode: idmap"),
            ("-v SRC:/m:rro", "invalid mode: rro"),
            (
                "--mount type=npipe,src=x,dst=/m",
                "invalid mount config for type \"npipe\": mount type unknown",
            ),
            (
                "--mount type=cluster,src=x,dst=/m",
                "invalid mount config for type \"cluster\": mount type unknown",
            ),
        ],
    );
}

#[test]
fn images_volumes_and_memory_are_mounted_in_part_or_whole() {
    let engine = Engine::start();
    engine.load_busybox();
    let nowhere = Path::new("/nonexistent");
    let outside = "subpath must be a relative path within the volume";
    check(
        &engine,
        nowhere,
        "ls /m | head -1; touch /m/x 2>/dev/null && echo writable",
        &[
            ("--mount type=image,src=busybox,dst=/m", "bin"),
            ("--mount type=image,src=busybox,dst=/m,image-subpath=etc", "group"),
            ("--mount type=image,src=busybox,dst=/m,image-subpath=etc/passwd", "/m"),
            (
                "--mount type=image,src=busybox,dst=/m,image-subpath=../etc",
                &format!("invalid mount config for type \"image\": {outside}"),
            ),
            (
                "--mount type=image,dst=/m",
                "invalid mount config for type \"image\": field Source must not be empty",
            ),
        ],
    );
    let fill = "mkdir -p /v/a/b; echo in > /v/a/b/f; ln -s /etc /v/out; ln -s a /v/in; echo x > /v/file";
    told(&engine, "-v v1:/v", fill);
    let invalid = format!("invalid mount config for type \"volume\": {outside}");
    check(
        &engine,
        nowhere,
        "ls /m",
        &[
            ("--mount type=volume,src=v1,dst=/m,volume-subpath=a", "b"),
            ("--mount type=volume,src=v1,dst=/m,volume-subpath=a/b", "f"),
            ("--mount type=volume,src=v1,dst=/m,volume-subpath=in", "b"),
            ("--mount type=volume,src=v1,dst=/m,volume-subpath=file", "/m"),
            ("--mount type=volume,src=v1,dst=/m,volume-subpath=.", "a file in out"),
            ("--mount type=volume,src=v1,dst=/m,volume-subpath=../x", &invalid),
            ("--mount type=volume,src=v1,dst=/m,volume-subpath=/a", &invalid),
            ("--mount type=volume,src=v1,dst=/m,volume-subpath=a/../../etc", &invalid),
            (
                "--mount type=volume,src=v1,dst=/m,volume-subpath=out",
                "path concatenation escapes the base directory, base: ROOT/volumes/v1/_data, subpath: out",
            ),
            (
                "--mount type=volume,src=v1,dst=/m,volume-subpath=nosuch",
                "cannot access path ROOT/volumes/v1/_data/nosuch: lstat ROOT/volumes/v1/_data/nosuch: no such file or directory",
            ),
        ],
    );
    let fresh = "tmpfs /m tmpfs rw,nosuid,nodev,noexec,relatime";
    check(
        &engine,
        nowhere,
        "grep ' /m ' /proc/self/mounts; stat -c %a /m",
        &[
            ("--mount type=tmpfs,dst=/m", &format!("{fresh} 0 0 1777")),
            ("--mount type=tmpfs,dst=/m,tmpfs-size=1m", &format!("{fresh},size=1024k 0 0 1777")),
            ("--mount type=tmpfs,dst=/m,tmpfs-mode=700", &format!("{fresh},mode=700 0 0 700")),
            ("--tmpfs /m:exec", "tmpfs /m tmpfs rw,nosuid,nodev,relatime 0 0 1777"),
            ("--tmpfs /m:ro", "tmpfs /m tmpfs ro,nosuid,nodev,noexec,relatime 0 0 1777"),
            ("--tmpfs /m:bogus", "invalid tmpfs option \"bogus\""),
            (
                "--mount type=tmpfs,src=/x,dst=/m",
                "invalid mount config for type \"tmpfs\": field Source must not be specified",
            ),
        ],
    );
    engine.docker(&["volume", "rm", "v1"]).ok();
}

#[test]
fn a_volume_that_cannot_be_mounted_says_what_was_tried() {
    let source = Source::new();
    let engine = Engine::start();
    engine.load_busybox();
    let dir = source.0.path().join("dir");
    let place = "ROOT/volumes/v1/_data";
    let failed = |rest: &str| {
        format!("error while mounting volume '{place}': failed to mount local volume: mount {rest}")
    };
    for (options, wanted) in [
        ("type=none device=SRC o=bind", "sub".to_owned()),
        ("type=tmpfs device=tmpfs o=size=1m", String::new()),
        (
            "type=none device=SRC/gone o=bind",
            failed(&format!("SRC/gone:{place}, flags: 0x1000: no such file or directory")),
        ),
        ("type=bogusfs device=x", failed(&format!("x:{place}: no such device"))),
        (
            "type=tmpfs device=tmpfs o=bogus=1",
            failed(&format!("tmpfs:{place}, data: bogus=1: invalid argument")),
        ),
        ("type=ext4 device=/dev/nosuch", failed(&format!("/dev/nosuch:{place}: no such file or directory"))),
        (
            "type=nfs device=:/x o=addr=127.0.0.1",
            failed(&format!(":/x:{place}, data: addr=127.0.0.1: no such device")),
        ),
        (
            "type=cifs device=//127.0.0.1/x o=username=a,password=secret",
            failed(&format!("//127.0.0.1/x:{place}, data: username=a,password=********: no such device")),
        ),
    ] {
        // Where the kernel has them, they fail otherwise, and later.
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let kind =
            options.split(' ').next().and_then(|option| option.strip_prefix("type=")).unwrap_or_default();
        if matches!(kind, "nfs" | "cifs") && known.lines().any(|line| line.trim_end().ends_with(kind)) {
            continue;
        }
        let options = options.replace("SRC", &dir.display().to_string());
        let options: Vec<&str> = options.split(' ').flat_map(|option| ["--opt", option]).collect();
        engine.docker(&[&["volume", "create"], options.as_slice(), &["v1"]].concat()).ok();
        check(&engine, &dir, "ls /m", &[("-v v1:/m", &wanted)]);
        engine.docker(&["volume", "rm", "v1"]).ok();
    }
    for (option, missing) in [("o=bind", "device"), ("device=/tmp", "type"), ("type=tmpfs", "device")] {
        let wanted = format!("create v1: missing required option: \"{missing}\"");
        engine.docker(&["volume", "create", "--opt", option, "v1"]).fails(1, &wanted);
    }
}
