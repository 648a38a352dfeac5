//! Parts of containerd-rs that are other processes, and what it serves beside gRPC.

use e2e_tests::containerd::{Containerd, REGISTRY};
use e2e_tests::{image, wait_for};

/// One whose overlay snapshotter is that of another one.
fn with_snapshotter_of(other: &Containerd) -> Containerd {
    Containerd::start_configured(
        "disabled_plugins = [\"io.containerd.snapshotter.v1.overlayfs\"]\n",
        &format!("[proxy_plugins.overlayfs]\ntype = \"snapshot\"\naddress = {:?}\n", other.socket()),
    )
}

#[test]
fn images_and_containers_lie_in_another_process_snapshotter() {
    let other = Containerd::start();
    let mut containerd = with_snapshotter_of(&other);
    containerd.registry();
    let there = format!("ctr -n {} snapshots ls", containerd.namespace());
    let image = format!("{REGISTRY}/busybox:latest");

    // Unpacked by us, used by a container, and both known here by their own names.
    containerd.sh(&format!("ctr image pull --plain-http {image}")).ok();
    let ran = containerd.sh(&format!("ctr run --rm {image} c1 sh -c 'echo in; touch /x; exit 3'"));
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "in\n"), "{ran:?}");
    containerd.sh(&format!("ctr run -d {image} c2 sh -c 'echo 0123456789 > /file; sleep 1000'")).ok();
    wait_for("the container to write", || containerd.sh("ctr tasks exec --exec-id x c2 cat /file").code == 0);
    let listed =
        containerd.sh("ctr snapshots ls; ctr snapshots tree; ctr snapshots usage c2").ok().to_owned();
    assert!(listed.contains("\n  \\_ c2\n") && listed.contains("Committed"), "{listed}");
    assert_eq!(containerd.sh("ctr snapshots diff c2 | tar tz | grep -x file").ok(), "file");
    let far = other.sh(&there).ok().to_owned();
    assert!(far.contains(&format!("{}/", containerd.namespace())) && far.contains("/c2 "), "{far}");
    assert_eq!(far.lines().count(), 3, "{far}");
    assert!(!containerd.path("root/io.containerd.snapshotter.v1.overlayfs").exists());

    // Found again after a kill, and everything is removed there when it is here.
    containerd.kill();
    containerd.spawn();
    assert_eq!(containerd.sh("ctr tasks exec --exec-id y c2 cat /file").ok(), "0123456789");
    containerd.sh("ctr tasks rm -f c2 && ctr containers rm c2").ok();
    containerd.sh(&format!("ctr image rm --sync {image}")).ok();
    wait_for("all to be removed there", || other.sh(&there).stdout.lines().count() == 1);

    // While the other process is away, what needs it fails and the rest goes on.
    drop(other);
    let ran = containerd.sh("ctr snapshots ls && ctr snapshots prepare p1");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("snapshotter overlayfs cannot be reached: "), "{ran:?}");
}

/// A layer that replaces, hides and adds.
fn changes() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in
        [("etc/passwd", "changed\n"), ("bin/.wh.vi", ""), ("home/.wh..wh..opq", ""), ("var/x/new", "new\n")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, text.as_bytes()).expect("memory");
    }
    tar.into_inner().expect("memory")
}

#[test]
fn layers_on_layers_are_unpacked_into_another_process_snapshotter() {
    let other = Containerd::start();
    let containerd = with_snapshotter_of(&other);
    let layers = [image::busybox_layer(), changes(), changes()];
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    std::fs::write(containerd.path("three.tar"), image::layered("three:1", &layers, &serde_json::json!({})))
        .expect("an image");
    containerd.sh("ctr image import three.tar").ok();
    let look = "cat /etc/passwd /var/x/new; ls -d /bin/vi /bin/sh; ls /home; stat -c %a /var";
    let ran = containerd.sh(&format!("ctr run --rm docker.io/library/three:1 c1 sh -c '{look}' 2> no"));
    assert_eq!(ran.stdout, "changed\nnew\n/bin/sh\n755\n", "{ran:?}");
    containerd.sh("ctr image rm --sync docker.io/library/three:1").ok();
    let there = format!("ctr -n {} snapshots ls", containerd.namespace());
    wait_for("all to be removed there", || other.sh(&there).stdout.lines().count() == 1);
}

#[test]
fn blobs_lie_in_another_process() {
    let other = Containerd::start();
    let mut containerd = Containerd::start_configured(
        "disabled_plugins = [\"io.containerd.content.v1.content\"]\n",
        &format!("[proxy_plugins.far]\ntype = \"content\"\naddress = {:?}\n", other.socket()),
    );
    containerd.registry();
    let there = format!("ctr -n {} content ls -q | sort", containerd.namespace());
    let image = format!("{REGISTRY}/busybox:latest");

    // Pulled, run, exported, and written by a client: the bytes are there and nowhere else.
    containerd.sh(&format!("ctr image pull --plain-http {image}")).ok();
    assert_eq!(containerd.sh(&format!("ctr run --rm {image} c1 echo in")).ok(), "in");
    containerd.sh(&format!("ctr image export o.tar {image} && tar tf o.tar")).ok();
    containerd.sh("head -c 3000000 /dev/urandom > big; ctr content ingest big < big").ok();
    assert_eq!(
        containerd
            .sh("ctr content get sha256:$(sha256sum big | cut -d' ' -f1) | cmp - big && echo same")
            .ok(),
        "same"
    );
    let here = containerd.sh("ctr content ls -q | sort").ok().to_owned();
    assert!(here.lines().count() >= 4, "{here}");
    assert_eq!(other.sh(&there).ok(), here);
    assert_eq!(containerd.sh("find root/io.containerd.content.v1.content/blobs -type f | wc -l").ok(), "0");

    // Another namespace shares them.
    containerd.sh(&format!("ctr -n second image pull --plain-http {image} && ctr -n second content get $(ctr -n second content ls -q | head -1) | wc -c")).ok();
    assert_eq!(other.sh("ctr -n second content ls -q").ok(), "");

    // Found again after a kill; removed there when no namespace has them.
    containerd.kill();
    containerd.spawn();
    containerd
        .sh(&format!("ctr image rm --sync {image} && ctr content rm sha256:$(sha256sum big | cut -d' ' -f1)"))
        .ok();
    assert!(other.sh(&there).ok().lines().count() >= 3, "the second namespace has them still");
    containerd.sh(&format!("ctr -n second content get $(ctr -n second content ls -q | tail -1) | wc -c && ctr -n second image rm --sync {image}")).ok();
    wait_for("all to be removed there", || other.sh(&there).stdout.is_empty());

    // While the other process is away, what needs it fails.
    drop(other);
    let ran = containerd.sh("echo data | ctr content ingest one");
    assert!(
        ran.code == 1 && ran.stderr.contains("hand the content over: the content store cannot be reached: "),
        "{ran:?}"
    );
}

#[test]
fn the_debug_address_answers_in_http_and_says_what_it_cannot() {
    let containerd = Containerd::start_configured(
        "",
        "[debug]\naddress = \"DIR/debug.sock\"\n[metrics]\naddress = \"127.0.0.1:1338\"\n",
    );
    let get = |path: &str| {
        containerd.sh(&format!("curl -s -w '%{{http_code}}' --unix-socket debug.sock http://d{path}")).stdout
    };
    let vars = get("/debug/vars");
    assert!(
        vars.ends_with("200") && vars.contains("\"cmdline\":[") && vars.contains("\"resident_bytes\":"),
        "{vars}"
    );
    assert!(
        get("/debug/pprof/cmdline")
            .starts_with(&format!("{}", e2e_tests::bin_dir().join("containerd-rs").display()))
    );
    assert!(get("/debug/pprof/heap").ends_with("501"));
    assert!(get("/nothing").ends_with("404"));
    let ran = containerd.sh("ctr pprof --debug-socket debug.sock goroutines");
    assert!(ran.code != 0 && ran.stderr.contains("501 Not Implemented"), "{ran:?}");
    let metrics = containerd.sh("curl -s -i http://127.0.0.1:1338/v1/metrics").stdout;
    assert!(metrics.contains("200 OK") && metrics.contains("containerd_gc_collections"), "{metrics}");
}
