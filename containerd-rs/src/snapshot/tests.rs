//! What every snapshotter promises, and what the two differ in.

use super::*;
use crate::events::Exchange;

struct Fixture {
    snapshots: Arc<Snapshots>,
    config: Config,
    dir: tempfile::TempDir,
}

fn open(dir: tempfile::TempDir) -> Fixture {
    let config = Config { root: dir.path().to_owned(), ..Config::default() };
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
    assert_eq!(mounts, snapshots.mounts("n", snapshotter, "b").unwrap());
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
    assert_eq!(kind(snapshots.mounts("n", snapshotter, "layer1")), Kind::FailedPrecondition);
    assert_eq!(kind(snapshots.mounts("other", snapshotter, "v")), Kind::NotFound);
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
    snapshots.cleanup(snapshotter).await.unwrap();
    let root = fixture.config.plugin_root(&format!("io.containerd.snapshotter.v1.{snapshotter}"));
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
    fixture.snapshots.cleanup("overlayfs").await.unwrap();
    let names: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["1"]);
    assert!(fixture.snapshots.mounts("n", "overlayfs", "kept").is_ok());
}
