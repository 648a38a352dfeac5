//! The life of blobs and writes, across restarts and namespaces.

use super::*;
use crate::events::Exchange;
use containerd_api::leases::Lease;

struct Fixture {
    store: Arc<Store>,
    db: Arc<Db>,
    dir: tempfile::TempDir,
}

fn open(dir: tempfile::TempDir) -> Fixture {
    let db = Db::open(&dir.path().join("meta.redb"), Arc::new(Exchange::new())).unwrap();
    let store = Store::open(&dir.path().join("content"), Arc::clone(&db), Collector::new(), None).unwrap();
    Fixture { store, db, dir }
}

fn reopen(fixture: Fixture) -> Fixture {
    let Fixture { store, db, dir } = fixture;
    drop(store);
    assert_eq!(Arc::strong_count(&db), 1, "somebody still has the database");
    drop(db);
    open(dir)
}

fn fixture() -> Fixture {
    open(tempfile::tempdir().unwrap())
}

fn none() -> std::collections::HashMap<String, String> {
    std::collections::HashMap::new()
}

async fn put(store: &Arc<Store>, namespace: &str, bytes: &[u8]) -> Digest {
    let mut writer = store.writer(namespace, None, "put", 0, None).await.unwrap();
    writer.append(bytes).unwrap();
    writer.commit(bytes.len() as u64, None, none()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_written_is_read_and_goes_when_it_is_deleted() {
    let fixture = fixture();
    let store = &fixture.store;
    let digest = put(store, "n", b"hello").await;
    assert_eq!(digest, Digest::of(b"hello"));
    assert_eq!(store.read_small("n", &digest, 10).unwrap(), b"hello");
    assert_eq!(store.read_small("n", &digest, 4).unwrap_err().kind(), Kind::ResourceExhausted);
    assert_eq!(store.info("n", &digest).unwrap().size, 5);
    assert!(store.info("other", &digest).unwrap_err().is_not_found());
    assert!(store.statuses("n", &[]).unwrap().is_empty(), "the write is over");
    store.delete("n", &digest).await.unwrap();
    assert!(store.open_blob("n", &digest).is_err());
    assert!(!store.path(&digest).exists());
    assert!(store.delete("n", &digest).await.unwrap_err().is_not_found());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_goes_on_after_a_restart() {
    let mut fixture = fixture();
    {
        let mut writer = fixture.store.writer("n", None, "r/1", 10, None).await.unwrap();
        writer.append(b"hello").unwrap();
    }
    fixture = reopen(fixture);
    let status = fixture.store.status("n", "r/1").unwrap();
    assert_eq!((status.offset, status.total), (5, 10));
    let mut writer = fixture.store.writer("n", None, "r/1", 0, None).await.unwrap();
    assert_eq!(writer.offset(), 5);
    assert_eq!(writer.digest().unwrap(), Digest::of(b"hello"));
    writer.append(b"world").unwrap();
    assert_eq!(writer.commit(10, None, none()).await.unwrap(), Digest::of(b"helloworld"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_writes_under_a_reference_at_a_time() {
    let fixture = fixture();
    let first = fixture.store.writer("n", None, "r", 0, None).await.unwrap();
    let kind = |result: Result<Writer, Error>| result.err().unwrap().kind();
    assert_eq!(kind(fixture.store.writer("n", None, "r", 0, None).await), Kind::Unavailable);
    assert_eq!(fixture.store.abort("n", "r").unwrap_err().kind(), Kind::Unavailable);
    assert!(fixture.store.writer("other", None, "r", 0, None).await.is_ok());
    drop(first);
    fixture.store.abort("n", "r").unwrap();
    assert!(fixture.store.abort("n", "r").unwrap_err().is_not_found());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_commit_that_does_not_fit_changes_nothing() {
    let fixture = fixture();
    let mut writer = fixture.store.writer("n", None, "r", 0, None).await.unwrap();
    writer.append(b"hello").unwrap();
    let err = writer.commit(6, None, none()).await.unwrap_err();
    assert_eq!(err.to_string(), "\"r\" failed size validation: 5 != 6: failed precondition");
    let err = writer.commit(5, Some(&Digest::of(b"x")), none()).await.unwrap_err();
    assert_eq!(err.kind(), Kind::FailedPrecondition);
    assert!(fixture.store.list("n", &[]).unwrap().is_empty());
    writer.commit(5, Some(&Digest::of(b"hello")), none()).await.unwrap();
    let again = fixture.store.writer("n", None, "s", 0, Some(Digest::of(b"hello"))).await;
    assert_eq!(again.err().unwrap().kind(), Kind::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn namespaces_share_files_and_not_records() {
    let fixture = fixture();
    let store = &fixture.store;
    let digest = put(store, "a", b"shared").await;
    let mut writer = store.writer("b", None, "r", 0, Some(digest.clone())).await.unwrap();
    assert!(writer.is_shared());
    assert_eq!(writer.offset(), 6);
    writer.commit(6, Some(&digest), none()).await.unwrap();
    store.delete("a", &digest).await.unwrap();
    assert_eq!(store.read_small("b", &digest, 10).unwrap(), b"shared");
    store.delete("b", &digest).await.unwrap();
    assert!(!store.path(&digest).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_lease_that_is_not_there_stops_a_write_before_it_begins() {
    let fixture = fixture();
    let none = fixture.store.writer("n", Some("l"), "r", 0, None).await;
    assert!(none.err().unwrap().is_not_found());
    fixture
        .db
        .write(|tx| {
            tx.put("n", "l", &Lease { id: "l".into(), ..Lease::default() });
            Ok(())
        })
        .await
        .unwrap();
    let mut writer = fixture.store.writer("n", Some("l"), "r", 0, None).await.unwrap();
    writer.append(b"x").unwrap();
    let digest = writer.commit(0, None, self::none()).await.unwrap();
    let held = fixture.db.read(|tx| crate::meta::leases::resources(tx, "n", "l")).unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].r#type.as_str(), held[0].id.as_str()), ("content", digest.as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn files_and_records_agree_after_a_start() {
    let mut fixture = fixture();
    let kept = put(&fixture.store, "n", b"kept").await;
    let lost = put(&fixture.store, "n", b"lost").await;
    std::fs::remove_file(fixture.store.path(&lost)).unwrap();
    let stray = fixture.store.path(&Digest::of(b"stray"));
    std::fs::write(&stray, "stray").unwrap();
    fixture = reopen(fixture);
    assert!(!stray.exists());
    assert!(fixture.store.info("n", &lost).unwrap_err().is_not_found());
    assert_eq!(fixture.store.read_small("n", &kept, 10).unwrap(), b"kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bytes_written_by_offset_become_a_blob() {
    use std::os::unix::fs::FileExt as _;
    let fixture = fixture();
    let mut writer = fixture.store.writer("n", None, "r", 0, None).await.unwrap();
    let file = writer.file().unwrap();
    file.write_all_at(b"world", 5).unwrap();
    file.write_all_at(b"hello", 0).unwrap();
    assert!(writer.append(b"more").is_err());
    assert!(writer.commit_verified(9, Digest::of(b"helloworld"), none()).await.is_err());
    let digest = writer.commit_verified(10, Digest::of(b"helloworld"), none()).await.unwrap();
    assert_eq!(fixture.store.read_small("n", &digest, 10).unwrap(), b"helloworld");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_handed_over_and_never_recorded_goes_at_the_next_start() {
    use crate::config::{Config, Grpc};
    use crate::meta::records::Doomed;
    let dir = tempfile::tempdir().unwrap();
    let address = dir.path().join("far.sock");
    let config = Config {
        root: dir.path().join("far"),
        state: dir.path().join("state"),
        grpc: Grpc { address: address.clone(), ..Grpc::default() },
        ..Config::default()
    };
    let far = crate::Daemon::open(config).await.unwrap();
    let serving = far.clone();
    tokio::spawn(async move { serving.serve().await.unwrap() });
    // As after a kill between handing over and recording; and one that is none of our business.
    let lost = put(&far.content, "n", b"lost").await;
    let kept = put(&far.content, "n", b"kept").await;
    let db = Db::open(&dir.path().join("meta.redb"), Arc::new(Exchange::new())).unwrap();
    let doomed = lost.clone();
    db.write(move |tx| {
        tx.put(GLOBAL, doomed.as_str(), &Doomed { home: "n".to_owned() });
        Ok(())
    })
    .await
    .unwrap();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    let wait = async || {
        assert!(tokio::time::Instant::now() < deadline, "it takes too long");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    while !address.exists() {
        wait().await;
    }
    let store =
        Store::open(&dir.path().join("near"), Arc::clone(&db), Collector::new(), Some(&address)).unwrap();
    while db.get::<Doomed>(GLOBAL, lost.as_str()).unwrap().is_some() {
        wait().await;
    }
    assert!(!far.content.has("n", &lost).unwrap() && far.content.has("n", &kept).unwrap());
    // What is written from now on is there, once for all namespaces, and comes back from there.
    let ours = put(&store, "one", b"ours").await;
    assert_eq!(put(&store, "two", b"ours").await, ours);
    assert!(far.content.has("one", &ours).unwrap() && !far.content.has("two", &ours).unwrap());
    assert!(!store.path(&ours).exists());
    assert_eq!(store.read_small("two", &ours, 100).unwrap(), b"ours");
    store.delete("one", &ours).await.unwrap();
    assert_eq!(store.read_small("two", &ours, 100).unwrap(), b"ours");
    store.delete("two", &ours).await.unwrap();
    while far.content.has("one", &ours).unwrap() {
        wait().await;
    }
    far.stop.cancel();
}
