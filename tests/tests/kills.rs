//! `kill -9` of containerd-rs at any point of what it does to images: afterwards every image that was whole is whole, every blob is what
//! its name says, and the next collection leaves nothing behind.
//!
//! Twelve points; `E2E_KILLS=100` tries as many, `E2E_SEED` others.

use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e_tests::containerd::{Containerd, REGISTRY};
use e2e_tests::{Random, image, number};

/// What is interrupted. `$I` is an image that is there and has to survive, `$N` a number that is new each time.
const WORK: &[&str] = &[
    "ctr image pull --plain-http $R/big:1",
    "ctr image push --plain-http $R/other$N:1 $I",
    "ctr image import --base-name imported/$N big.tar",
    "ctr image pull --local --plain-http --snapshotter native $R/big:1",
    "ctr snapshots prepare s$N && ctr snapshots commit k$N s$N",
    "ctr image pull --plain-http $R/big:1 && ctr image rm --sync $R/big:1",
    "ctr image pull --plain-http $R/big:1 && ctr image rm $R/big:1 && ctr leases create --id l$N && ctr leases rm --sync l$N",
];

/// Everything that has to be so whenever the daemon runs.
const SOUND: &str = "
    cd root/io.containerd.content.v1.content/blobs/sha256 && for f in *; do
        [ $(sha256sum < $f | cut -d' ' -f1) = $f ] || echo broken blob $f
    done; cd $DIR
    ctr image check name==$I | grep -q 'complete (2/2).*true' || { echo image is gone; ctr image check; }
    mkdir -p m && ctr image mount $I m > /dev/null && cmp m/bin/busybox /bin/busybox; ctr image unmount --rm m > /dev/null
    ctr content ls -q | while read d; do ctr content get $d > /dev/null || echo lost $d; done
    ctr snapshots ls | awk '$NF == \"Committed\" {print $1}' | while read s; do
        ctr snapshots view v$N $s > /dev/null || echo lost $s; ctr snapshots rm v$N
    done
";

#[test]
fn a_kill_at_any_point_breaks_nothing() {
    let mut containerd = Containerd::start();
    containerd.registry();
    big_image(&containerd);
    containerd.sh(&format!("{} ctr image pull --plain-http $I", settings(0))).ok();
    let mut random = Random::new(number("E2E_SEED", 0x5eed));
    let mut slowest = Duration::ZERO;
    for at in 1..=number("E2E_KILLS", 12) {
        let script = WORK[random.index(WORK.len())];
        let delay = Duration::from_micros(20_000 + random.below(600_000));
        let mut command = containerd.command("sh");
        command
            .args(["-c", &format!("{}{script}", settings(at))])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut working = command.spawn().expect("sh runs");
        std::thread::sleep(delay);
        containerd.kill();
        working.wait().expect("the client ends");
        let began = Instant::now();
        containerd.spawn();
        slowest = slowest.max(began.elapsed());
        let sound = containerd.sh(&format!("{}{SOUND}", settings(at)));
        assert_eq!(
            (sound.stdout.as_str(), sound.stderr.as_str()),
            ("", ""),
            "{script}, after {delay:?}, point {at}"
        );
    }
    println!("slowest start, until ctr has its answer: {slowest:?}");
    // Leases of clients that were killed have a day left, as unfinished writes have: those go on where they stopped.
    let leave = "
        ctr image rm --sync $(ctr image ls -q) > /dev/null
        for k in $(ctr snapshots ls | awk '$1 ~ /^[ks][0-9]/ {print $1}'); do ctr snapshots rm $k; done
        ctr leases ls -q | xargs -r ctr leases rm --sync > /dev/null
        ctr content ls -q; ctr snapshots ls | tail -n +2; ctr snapshots --snapshotter native ls | tail -n +2
        ls root/io.containerd.content.v1.content/blobs/sha256 root/*/snapshots | grep -v -e : -e ^$
        [ $(ctr content active | tail -n +2 | wc -l) = $(ls root/io.containerd.content.v1.content/ingest | wc -l) ] || echo unknown writes
    ";
    let left = containerd.sh(&format!("{}{leave}", settings(0)));
    assert_eq!((left.stdout.as_str(), left.stderr.as_str()), ("", ""));
}

fn settings(at: u64) -> String {
    format!("R={REGISTRY}; I=$R/busybox:latest; N={at}\n")
}

/// An image of three layers of noise, each some megabytes, in the registry and as an archive.
fn big_image(containerd: &Containerd) {
    let layers = [1, 2, 3].map(|seed| image::noise_layer(seed, 6 << 20));
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let archive = image::layered("big:1", &layers, &serde_json::json!({}));
    std::fs::write(containerd.path("big.tar"), archive).expect("write the image");
    let push =
        "skopeo copy -q --insecure-policy --dest-tls-verify=false docker-archive:big.tar docker://$R/big:1";
    containerd.sh(&format!("{}{push}", settings(0))).ok();
}
