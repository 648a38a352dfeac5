//! What every snapshotter promises, and what the two differ in.

use super::*;
use crate::events::Exchange;

struct Fixture {
    snapshots: Arc<Snapshots>,
    config: Config,
    dir: tempfile::TempDir,
}

fn open(dir: tempfile::TempDir) -> Fixture {
    open_with(dir, Config::default())
}

fn open_with(dir: tempfile::TempDir, config: Config) -> Fixture {
    let config = Config { root: dir.path().to_owned(), ..config };
    let db = Db::open(&dir.path().join("meta.redb"), Arc::new(Exchange::new())).unwrap();
    let snapshots = Snapshots::open(&config, db, Collector::new()).unwrap();
    Fixture { snapshots, config, dir }
}

fn scope(snapshotter: &str) -> Scope<'_> {
    Scope { namespace: "n", lease: None, snapshotter }
}

/// What the kernel would show, as far as these tests write: upper layers first.
fn visible(mounts: &[Mount], file: &str) -> Option<String> {
    let mount = &mounts[0];
    let layers: Vec<String> = match mount.r#type.as_str() {
        "bind" => vec![mount.source.clone()],
        _ => {
            let of = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
            let upper = of("upperdir=").into_iter();
            upper.chain(of("lowerdir=").unwrap_or_default().split(':')).map(str::to_owned).collect()
        }
    };
    layers.iter().find_map(|layer| std::fs::read_to_string(format!("{layer}/{file}")).ok())
}

fn write(mounts: &[Mount], file: &str, text: &str) {
    let mount = &mounts[0];
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    std::fs::write(format!("{}/{file}", upper.unwrap_or(&mount.source)), text).unwrap();
}

async fn suite(snapshotter: &str) {
    let fixture = open(tempfile::tempdir().unwrap());
    let root = fixture.config.plugin_root(&format!("io.containerd.snapshotter.v1.{snapshotter}"));
    promises(&fixture, snapshotter, &root).await;
}

/// `root` is where the snapshotter keeps its directories.
async fn promises(fixture: &Fixture, snapshotter: &str, root: &std::path::Path) {
    let snapshots = &fixture.snapshots;
    let scope = scope(snapshotter);
    let none = HashMap::new;

    let mounts = snapshots.prepare(scope, "a", "", none()).await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    write(&mounts, "one", "1");
    let labels = HashMap::from([("k".to_owned(), "v".to_owned())]);
    snapshots.commit(scope, "layer1", "a", labels.clone(), None, None).await.unwrap();
    assert!(snapshots.stat("n", snapshotter, "a").unwrap_err().is_not_found());
    let info = snapshots.stat("n", snapshotter, "layer1").unwrap();
    assert_eq!((info.kind(), info.labels), (SnapshotKind::Committed, labels));

    let mounts = snapshots.prepare(scope, "b", "layer1", none()).await.unwrap();
    assert_eq!(mounts, snapshots.mounts("n", snapshotter, "b").await.unwrap());
    write(&mounts, "two", "2");
    write(&mounts, "one", "changed");
    snapshots.commit(scope, "layer2", "b", none(), None, None).await.unwrap();
    let view = snapshots.view(scope, "v", "layer2", none()).await.unwrap();
    assert_eq!(visible(&view, "one").as_deref(), Some("changed"));
    assert_eq!(visible(&view, "two").as_deref(), Some("2"));
    assert!(view[0].options.iter().all(|option| option != "rw" && !option.starts_with("upperdir")));
    let below = snapshots.view(scope, "w", "layer1", none()).await.unwrap();
    assert_eq!((visible(&below, "one").as_deref(), visible(&below, "two")), (Some("1"), None));
    assert!(snapshots.usage("n", snapshotter, "layer2").await.unwrap().inodes >= 3);

    let kind = |result: Result<Vec<Mount>, Error>| result.unwrap_err().kind();
    assert_eq!(kind(snapshots.prepare(scope, "v", "", none()).await), Kind::AlreadyExists);
    assert_eq!(kind(snapshots.prepare(scope, "x", "nowhere", none()).await), Kind::NotFound);
    assert_eq!(kind(snapshots.prepare(scope, "x", "v", none()).await), Kind::InvalidArgument);
    assert_eq!(kind(snapshots.mounts("n", snapshotter, "layer1").await), Kind::FailedPrecondition);
    assert_eq!(kind(snapshots.mounts("other", snapshotter, "v").await), Kind::NotFound);
    let target = HashMap::from([(TARGET.to_owned(), "layer1".to_owned())]);
    assert_eq!(kind(snapshots.prepare(scope, "x", "", target).await), Kind::AlreadyExists);
    let leased = Scope { lease: Some("nobody's"), ..scope };
    assert_eq!(kind(snapshots.prepare(leased, "x", "", none()).await), Kind::NotFound);
    let not_active = snapshots.commit(scope, "y", "v", none(), None, None).await.unwrap_err();
    assert_eq!(not_active.kind(), Kind::FailedPrecondition);
    let parent = snapshots.remove("n", snapshotter, "layer1").await.unwrap_err();
    assert_eq!(parent.to_string(), "cannot remove snapshot with child: failed precondition");

    for key in ["v", "w", "layer2", "layer1"] {
        snapshots.remove("n", snapshotter, key).await.unwrap();
    }
    assert!(snapshots.list("n", snapshotter, &[]).unwrap().is_empty());
    snapshots.cleanup("n", snapshotter).await.unwrap();
    assert_eq!(std::fs::read_dir(root.join("snapshots")).unwrap().count(), 0, "something was left on disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn overlayfs() {
    suite("overlayfs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn native() {
    suite("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_layer_made_on_nothing_can_be_committed_onto_a_parent() {
    let fixture = open(tempfile::tempdir().unwrap());
    let (snapshots, scope) = (&fixture.snapshots, scope("overlayfs"));
    for key in ["a", "b"] {
        write(&snapshots.prepare(scope, key, "", HashMap::new()).await.unwrap(), key, key);
    }
    snapshots.commit(scope, "one", "a", HashMap::new(), None, None).await.unwrap();
    snapshots.commit(scope, "two", "b", HashMap::new(), Some("one"), None).await.unwrap();
    let view = snapshots.view(scope, "v", "two", HashMap::new()).await.unwrap();
    assert_eq!((visible(&view, "a").as_deref(), visible(&view, "b").as_deref()), (Some("a"), Some("b")));
    assert!(snapshots.remove("n", "overlayfs", "one").await.is_err(), "it has a child now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_kill_left_without_record_goes_at_the_next_start() {
    let mut fixture = open(tempfile::tempdir().unwrap());
    fixture.snapshots.prepare(scope("overlayfs"), "kept", "", HashMap::new()).await.unwrap();
    let root = fixture.config.plugin_root("io.containerd.snapshotter.v1.overlayfs").join("snapshots");
    for left in ["7", "new-1-2"] {
        std::fs::create_dir_all(root.join(left).join("fs")).unwrap();
    }
    drop(fixture.snapshots);
    fixture = open(fixture.dir);
    fixture.snapshots.cleanup("n", "overlayfs").await.unwrap();
    let names: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["1"]);
    assert!(fixture.snapshots.mounts("n", "overlayfs", "kept").await.is_ok());
}

/// A whole daemon in this process, and a configuration that has its overlay snapshotter in place of one's own.
async fn elsewhere(dir: &std::path::Path) -> (crate::Daemon, Config) {
    use crate::config::{Grpc, ProxyPlugin};
    let address = dir.join("elsewhere.sock");
    let config = Config {
        root: dir.join("elsewhere"),
        state: dir.join("state"),
        grpc: Grpc { address: address.clone(), ..Grpc::default() },
        ..Config::default()
    };
    let daemon = crate::Daemon::open(config).await.unwrap();
    let serving = daemon.clone();
    tokio::spawn(async move { serving.serve().await.unwrap() });
    let plugin =
        ProxyPlugin { kind: "snapshot".to_owned(), address: address.clone(), ..ProxyPlugin::default() };
    let config = Config {
        disabled_plugins: vec!["io.containerd.snapshotter.v1.overlayfs".to_owned()],
        proxy_plugins: std::collections::BTreeMap::from([("overlayfs".to_owned(), plugin)]),
        ..Config::default()
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !address.exists() {
        assert!(tokio::time::Instant::now() < deadline, "no socket");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    (daemon, config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, config) = elsewhere(dir.path()).await;
    let fixture = open_with(tempfile::tempdir().unwrap(), config);
    let root = daemon.config.plugin_root("io.containerd.snapshotter.v1.overlayfs");
    promises(&fixture, "overlayfs", &root).await;
    daemon.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_process_made_for_nobody_is_removed_there() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, config) = elsewhere(dir.path()).await;
    let there = Scope { namespace: "n", lease: None, snapshotter: "overlayfs" };
    // As after a kill between making and recording; and one that a client of that process made itself.
    for key in ["n/77/lost", "n/78/lost", "not ours"] {
        daemon.snapshots.prepare(there, key, "", HashMap::new()).await.unwrap();
    }
    let fixture = open_with(tempfile::tempdir().unwrap(), config.clone());
    fixture.snapshots.prepare(there, "kept", "", HashMap::new()).await.unwrap();
    fixture.snapshots.cleanup("n", "overlayfs").await.unwrap();
    let left: Vec<_> =
        daemon.snapshots.list("n", "overlayfs", &[]).unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(left, ["n/1/kept", "not ours"]);
    // The labels that concern the other end go there, the others do not.
    let labels = HashMap::from([
        ("containerd.io/snapshot/x".to_owned(), "y".to_owned()),
        ("mine".to_owned(), "z".to_owned()),
    ]);
    let wanted = Info { name: "kept".to_owned(), labels, ..Info::default() };
    let info = fixture.snapshots.update("n", "overlayfs", wanted, Vec::new()).await.unwrap();
    assert_eq!(info.labels.get("mine").map(String::as_str), Some("z"));
    let there = daemon.snapshots.stat("n", "overlayfs", "n/1/kept").unwrap();
    assert!(there.labels.contains_key("containerd.io/snapshot/x") && !there.labels.contains_key("mine"));
    // A name can be taken once only.
    let both = Config { disabled_plugins: Vec::new(), ..config };
    let db = Arc::clone(&fixture.snapshots.db);
    let root = fixture.dir.path().join("both");
    assert!(Snapshots::open(&Config { root, ..both }, db, Collector::new()).is_err());
    daemon.stop.cancel();
}
