//! Shims that containerd-rs finds again when it starts: one that hangs, one whose directory somebody has removed.

use std::time::{Duration, Instant};

use e2e_tests::containerd::Containerd;
use e2e_tests::{host, image, wait_for};

/// How long a start may take on a busy machine. Waiting for a shim that hangs would take longer.
const AT_ONCE: Duration = Duration::from_secs(3);

fn start() -> Containerd {
    let containerd = Containerd::start();
    std::fs::write(containerd.path("image.tar"), image::busybox()).expect("an image");
    containerd.sh("ctr image import image.tar").ok();
    containerd
}

/// The processes that were started with all of these words.
fn processes(words: &[&str]) -> Vec<i32> {
    host::pids()
        .into_iter()
        .filter(|pid| {
            let line = host::cmdline(*pid);
            words.iter().all(|word| line.split(' ').any(|argument| argument == *word))
        })
        .collect()
}

fn shim(containerd: &Containerd, id: &str) -> i32 {
    let found = processes(&["-namespace", containerd.namespace(), "-id", id]);
    assert_eq!(found.len(), 1, "the shim of {id}: {found:?}");
    found[0]
}

#[test]
fn one_sick_shim_delays_neither_the_start_nor_another_task() {
    let mut containerd = start();
    let image = "docker.io/library/busybox:latest";
    containerd.sh(&format!("ctr run -d {image} sick sleep 1000 && ctr run -d {image} well sleep 1000")).ok();
    let sick = shim(&containerd, "sick");
    host::kill(sick, 19);
    containerd.kill();
    let began = Instant::now();
    containerd.spawn();
    assert_eq!(containerd.sh("ctr tasks exec --exec-id x well echo well").ok(), "well");
    let took = began.elapsed();
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!(containerd.sh(&format!("ctr run --rm {image} new echo new")).ok(), "new");
    host::kill(sick, 18);
    assert_eq!(containerd.sh("ctr tasks exec --exec-id x sick echo back").ok(), "back");
}

#[test]
fn a_shim_whose_bundle_is_gone_is_taken_down_and_its_container_with_it() {
    let mut containerd = start();
    containerd.sh("ctr run -d docker.io/library/busybox:latest lost sleep 4711").ok();
    shim(&containerd, "lost");
    containerd.kill();
    let bundle =
        containerd.path("state/io.containerd.runtime.v2.task").join(containerd.namespace()).join("lost");
    containerd.sh(&format!("umount -l {0}/rootfs && rm -r {0}", bundle.display())).ok();
    containerd.spawn();
    wait_for("the shim to go", || {
        processes(&["-namespace", containerd.namespace(), "-id", "lost"]).is_empty()
    });
    wait_for("the bundle to go", || !bundle.exists());
    assert_eq!(containerd.sh("ctr tasks ls -q; pgrep -fx 'sleep 4711'").stdout, "");
    // Nothing is in the way of a new task of that name.
    containerd.sh("ctr tasks start -d lost && ctr tasks exec --exec-id x lost true").ok();
}
