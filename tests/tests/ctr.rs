//! Stock `ctr`, of this year's containerd and of Debian 12's, against containerd-rs alone: namespaces, images and content, with the exit codes and the words
//! that stock containerd has for it (compared with containerd 2.1.9).

use e2e_tests::containerd::{Containerd, REGISTRY};
use e2e_tests::peer_dir;

/// Which `ctr` a row is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Both,
    New,
    Old,
}
use For::{Both, New, Old};

/// A script, how it ends, and what its output has in it. `$I` is the image, `ctr` the client.
type Row = (For, &'static str, i32, &'static str);

const IMAGES: &[Row] = &[
    (Both, "ctr namespaces create $NS-dev a=b && ctr namespaces ls", 0, "a=b"),
    (Both, "ctr namespaces create $NS-dev", 1, "already exists"),
    (Both, "ctr namespaces create 'bad name!'", 1, "must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"),
    (Both, "ctr namespaces label $NS-dev a= c=d && ctr namespaces ls", 0, "c=d"),
    (Both, "ctr namespaces remove $NS-dev && ctr namespaces ls -q | grep -c dev", 1, "0"),
    (
        New,
        "ctr image pull --plain-http $R/nosuch:1",
        1,
        "ctr: failed to resolve image: 127.0.0.1:5000/nosuch:1: not found",
    ),
    (
        Old,
        "ctr image pull --plain-http $R/nosuch:1",
        1,
        "failed to resolve reference \"127.0.0.1:5000/nosuch:1\"",
    ),
    (Both, "ctr image pull --plain-http $I && ctr image ls -q", 0, "127.0.0.1:5000/busybox:latest"),
    (Both, "ctr image ls name==$I", 0, "application/vnd.docker.distribution.manifest.v2+json"),
    (Both, "ctr image ls 'name=='", 1, "filters: parse error: [name==]: expected value or quoted"),
    (Both, "ctr image check", 0, "complete (2/2)"),
    (New, "ctr image inspect $I", 0, "application/vnd.docker.distribution.manifest.v2+json"),
    (Both, "ctr image tag $I $R/b:1", 0, "127.0.0.1:5000/b:1"),
    (Old, "ctr image tag $I $R/b:1", 1, "ctr: image \"127.0.0.1:5000/b:1\": already exists"),
    (Both, "ctr image tag --force $I $R/b:1", 0, "127.0.0.1:5000/b:1"),
    (Both, "ctr image tag nope $R/b:2", 1, "ctr: image \"nope\": not found"),
    (Both, "ctr image label $I x=y z=w && ctr image label $I x=", 0, "z=w"),
    (
        Both,
        "ctr image push --plain-http $R/b:1 && ctr image rm --sync $R/b:1 && ctr image pull --plain-http $R/b:1",
        0,
        "",
    ),
    (Both, "ctr image push --plain-http $R/b:3 nope", 1, "not found"),
    (Both, "ctr image rm --sync $R/b:1 && ctr image ls -q | wc -l", 0, "1"),
    (Both, "ctr image rm nope", 0, ""),
    (Both, "ctr image export o.tar $I && tar tf o.tar", 0, "manifest.json\noci-layout"),
    (Both, "ctr image export no.tar nope", 1, "image \"nope\": not found"),
    (New, "ctr image import --index-name whole:1 o.tar && ctr image ls -q", 0, "whole:1"),
    (New, "ctr image check name==whole:1 && ctr image rm --sync whole:1", 0, "complete (2/2)"),
    (Both, "ctr image rm --sync docker.io/library/busybox:latest", 0, ""),
    (Both, "echo junk > junk.tar; ctr image import junk.tar", 1, "unexpected EOF"),
    (
        Both,
        "mkdir -p m && ctr image mount $I m && ls m && ! touch m/x; ctr image unmount --rm m",
        0,
        "bin\netc\nhome\n",
    ),
    (Both, "ctr image mount $I", 1, "please provide a target path"),
    (
        Both,
        "ctr -n $NS-two content fetch --plain-http $I && ctr -n $NS-two image ls -q && ctr -n $NS-two snapshots ls | wc -l",
        0,
        "\n1\n",
    ),
    (New, "ctr -n $NS-two content prune references", 0, ""),
    (
        Both,
        "ctr -n $NS-two image rm --sync $I && ctr -n $NS-two content ls -q | wc -l && ctr namespaces rm $NS-two",
        0,
        "0\n",
    ),
    (
        Both,
        "ctr content get sha256:0000000000000000000000000000000000000000000000000000000000000000",
        1,
        "not found",
    ),
    (Both, "ctr content get zz", 1, "invalid checksum digest format"),
    (
        Both,
        "for d in $(ctr content ls -q); do [ sha256:$(ctr content get $d | sha256sum | cut -d' ' -f1) = $d ] && echo same; done",
        0,
        "same\nsame\nsame\n",
    ),
    (Both, "echo data | ctr content ingest --expected-size 5 --expected-digest $DATA one", 0, ""),
    (Both, "echo data | ctr content ingest --expected-size 6 two", 1, "unexpected EOF"),
    (Both, "echo date | ctr content ingest --expected-digest $DATA2 three", 1, "unexpected commit digest"),
    (Both, "ctr content active", 0, "REF"),
    (Both, "ctr content label $DATA foo=bar && ctr content ls -q labels.foo==bar", 0, "sha256:6667b2d1"),
    (Both, "ctr content rm $DATA && ctr content ls -q | grep -c 6667b2d1", 1, "0"),
];

fn check(old: bool) {
    let mut containerd = Containerd::start();
    containerd.registry();
    std::fs::write(containerd.path("layer.tar"), e2e_tests::image::busybox_layer()).expect("a layer");
    let ns = containerd.namespace().to_owned();
    let mut settings = format!("NS={ns}; R={REGISTRY}; I=$R/busybox:latest; ");
    settings.push_str("DATA=sha256:6667b2d1aab6a00caa5aee5af8ad9f1465e567abf1c209d15727d57b3e8f6e5f; ");
    settings.push_str("DATA2=sha256:0000000000000000000000000000000000000000000000000000000000000000\n");
    if old {
        settings.push_str(&format!("PATH={}:$PATH\n", peer_dir().join("old").display()));
    }
    let mut wrong = String::new();
    for (whom, script, code, want) in IMAGES.iter().copied() {
        if whom == if old { New } else { Old } {
            continue;
        }
        let ran = containerd.sh(&format!("{settings}{{ {script}\n}} 2>&1"));
        let said = ran.stdout.replace(&ns, "NS");
        if ran.code != code || !said.contains(want) {
            wrong.push_str(&format!("--- {script}\nwanted {code} {want:?}, got {} {said}\n", ran.code));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_stock_client_finds_a_containerd() {
    check(false);
}

#[test]
fn the_stock_client_of_debian_12_finds_a_containerd() {
    check(true);
}
