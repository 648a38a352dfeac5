//! The stores through their gRPC services, on a daemon of the test's own in this process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use containerd_api::content::content_client::ContentClient;
use containerd_api::content::{InfoRequest, ReadContentRequest, WriteAction, WriteContentRequest};
use containerd_api::events::SubscribeRequest;
use containerd_api::events::events_client::EventsClient;
use containerd_api::images::images_client::ImagesClient;
use containerd_api::images::{CreateImageRequest, DeleteImageRequest, Image};
use containerd_api::leases::leases_client::LeasesClient;
use containerd_api::leases::{CreateRequest, DeleteRequest};
use containerd_api::ns::request;
use containerd_api::snapshots::snapshots_client::SnapshotsClient;
use containerd_api::snapshots::{
    CommitSnapshotRequest, MountsRequest, PrepareSnapshotRequest, StatSnapshotRequest,
};
use containerd_api::types::Descriptor;
use containerd_rs::Daemon;
use containerd_rs::config::{Config, Grpc};
use oci::digest::Digest;
use tonic::transport::Channel;
use tonic::{Code, Status};

const NAMESPACE: &str = "test";

struct Fixture {
    daemon: Daemon,
    channel: Channel,
    serving: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

async fn start(dir: tempfile::TempDir) -> Fixture {
    let config = Config {
        root: dir.path().join("root"),
        state: dir.path().join("state"),
        grpc: Grpc { address: dir.path().join("c.sock"), ..Grpc::default() },
        ..Config::default()
    };
    let address = config.grpc.address.clone();
    let daemon = Daemon::open(config).await.expect("the daemon opens");
    let serving = tokio::spawn({
        let daemon = daemon.clone();
        async move { daemon.serve().await.expect("the daemon serves") }
    });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !address.exists() {
        assert!(tokio::time::Instant::now() < deadline, "no socket");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let channel = containerd_api::connect(&address).await.expect("the daemon answers");
    Fixture { daemon, channel, serving, dir }
}

impl Fixture {
    /// Stops the daemon and waits until it has let go of everything.
    async fn stop(self) -> tempfile::TempDir {
        let Self { daemon, channel, serving, dir } = self;
        drop(channel);
        daemon.stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), serving).await.expect("it stops in time").unwrap();
        dir
    }

    async fn write(
        &self,
        lease: Option<&str>,
        messages: Vec<WriteContentRequest>,
    ) -> Result<Vec<i64>, Status> {
        let mut client = ContentClient::new(self.channel.clone());
        let stream = tokio_stream::iter(messages);
        let mut answers = client.write(request(stream, NAMESPACE, lease)).await?.into_inner();
        let mut offsets = Vec::new();
        while let Some(answer) = answers.message().await? {
            offsets.push(answer.offset);
        }
        Ok(offsets)
    }

    async fn put(&self, lease: Option<&str>, data: &str, labels: &[(&str, &str)]) -> String {
        let message = WriteContentRequest {
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..piece(WriteAction::Commit, data, 0, data)
        };
        self.write(lease, vec![message]).await.expect("it is written");
        Digest::of(data.as_bytes()).as_str().to_owned()
    }

    async fn has(&self, digest: &str) -> bool {
        let info = InfoRequest { digest: digest.to_owned() };
        ContentClient::new(self.channel.clone()).info(request(info, NAMESPACE, None)).await.is_ok()
    }

    async fn image(&self, name: &str, target: &str) {
        let target = Descriptor {
            media_type: "m".to_owned(),
            digest: target.to_owned(),
            size: 1,
            ..Descriptor::default()
        };
        let image = Image { name: name.to_owned(), target: Some(target), ..Image::default() };
        let create = CreateImageRequest { image: Some(image), ..CreateImageRequest::default() };
        ImagesClient::new(self.channel.clone()).create(request(create, NAMESPACE, None)).await.unwrap();
    }

    /// Deletes an image and waits for the collection that follows.
    async fn delete_image(&self, name: &str) {
        let delete =
            DeleteImageRequest { name: name.to_owned(), sync: true, ..DeleteImageRequest::default() };
        ImagesClient::new(self.channel.clone()).delete(request(delete, NAMESPACE, None)).await.unwrap();
    }
}

fn piece(action: WriteAction, reference: &str, offset: i64, data: &str) -> WriteContentRequest {
    WriteContentRequest {
        action: action as i32,
        r#ref: reference.to_owned(),
        offset,
        data: Bytes::copy_from_slice(data.as_bytes()),
        ..WriteContentRequest::default()
    }
}

fn fixture() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_stream_keeps_to_its_offset_and_goes_on_after_a_restart() {
    let fixture = start(fixture()).await;
    let nameless = fixture.write(None, vec![piece(WriteAction::Stat, "", 0, "")]).await.unwrap_err();
    assert_eq!(
        (nameless.code(), nameless.message()),
        (Code::InvalidArgument, "first message must have a reference")
    );
    let messages = vec![
        piece(WriteAction::Stat, "r", 0, ""),
        piece(WriteAction::Write, "r", 0, "hello"),
        piece(WriteAction::Write, "r", 3, "x"),
    ];
    let off = fixture.write(None, messages).await.unwrap_err();
    assert_eq!(off.code(), Code::OutOfRange);
    assert_eq!(off.message(), "write @3 must occur at current offset 5");

    let fixture = start(fixture.stop().await).await;
    let expected = Digest::of(b"helloworld").as_str().to_owned();
    let messages = vec![
        piece(WriteAction::Stat, "r", 0, ""),
        piece(WriteAction::Write, "r", 5, "world"),
        WriteContentRequest {
            expected: expected.clone(),
            total: 10,
            ..piece(WriteAction::Commit, "r", 10, "")
        },
    ];
    assert_eq!(fixture.write(None, messages).await.unwrap(), [5, 10, 10]);
    let read = ReadContentRequest { digest: expected.clone(), offset: 3, size: 4 };
    let mut client = ContentClient::new(fixture.channel.clone());
    let mut answers = client.read(request(read, NAMESPACE, None)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().data, "lowo");
    let again = WriteContentRequest { expected, ..piece(WriteAction::Stat, "s", 0, "") };
    assert_eq!(fixture.write(None, vec![again]).await.unwrap_err().code(), Code::AlreadyExists);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_image_or_a_lease_needs_stays_and_the_rest_goes() {
    let fixture = start(fixture()).await;
    let mut leases = LeasesClient::new(fixture.channel.clone());
    let lease = CreateRequest { id: "l".to_owned(), labels: HashMap::new() };
    leases.create(request(lease, NAMESPACE, None)).await.unwrap();
    let layer = fixture.put(None, "layer", &[]).await;
    let manifest = fixture.put(None, "manifest", &[("containerd.io/gc.ref.content.0", &layer)]).await;
    let leased = fixture.put(Some("l"), "leased", &[]).await;
    let stray = fixture.put(None, "stray", &[]).await;
    fixture.image("kept", &manifest).await;
    fixture.image("gone", &stray).await;

    fixture.delete_image("gone").await;
    assert!(fixture.has(&layer).await && fixture.has(&manifest).await && fixture.has(&leased).await);
    assert!(!fixture.has(&stray).await);
    fixture.delete_image("kept").await;
    assert!(!fixture.has(&layer).await && !fixture.has(&manifest).await);
    assert!(fixture.has(&leased).await);
    let delete = DeleteRequest { id: "l".to_owned(), sync: true };
    leases.delete(request(delete, NAMESPACE, None)).await.unwrap();
    assert!(!fixture.has(&leased).await);
    let nobody = fixture.write(Some("l"), vec![piece(WriteAction::Commit, "x", 0, "x")]).await.unwrap_err();
    assert_eq!((nobody.code(), nobody.message()), (Code::NotFound, "lease does not exist: not found"));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_survive_a_restart_and_are_told_of() {
    let fixture = start(fixture()).await;
    let mut events = EventsClient::new(fixture.channel.clone());
    let filters = vec!["topic~=|^/snapshot/|,event.key==a".to_owned()];
    let mut told =
        events.subscribe(request(SubscribeRequest { filters }, NAMESPACE, None)).await.unwrap().into_inner();
    let mut snapshots = SnapshotsClient::new(fixture.channel.clone());
    let labels: HashMap<_, _> = [("containerd.io/gc.root".to_owned(), "x".to_owned())].into();
    let prepare = |key: &str, parent: &str| PrepareSnapshotRequest {
        snapshotter: "overlayfs".to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: labels.clone(),
    };
    snapshots.prepare(request(prepare("other", ""), NAMESPACE, None)).await.unwrap();
    snapshots.prepare(request(prepare("a", ""), NAMESPACE, None)).await.unwrap();
    let commit = CommitSnapshotRequest {
        snapshotter: "overlayfs".to_owned(),
        name: "layer".to_owned(),
        key: "a".to_owned(),
        labels: labels.clone(),
        ..CommitSnapshotRequest::default()
    };
    snapshots.commit(request(commit, NAMESPACE, None)).await.unwrap();
    for topic in ["/snapshot/prepare", "/snapshot/commit"] {
        let event =
            tokio::time::timeout(Duration::from_secs(10), told.message()).await.expect("an event").unwrap();
        assert_eq!(event.unwrap().topic, topic);
    }
    let first =
        snapshots.prepare(request(prepare("b", "layer"), NAMESPACE, None)).await.unwrap().into_inner().mounts;
    drop((told, events, snapshots));

    let fixture = start(fixture.stop().await).await;
    let mut snapshots = SnapshotsClient::new(fixture.channel.clone());
    let mounts = MountsRequest { snapshotter: "overlayfs".to_owned(), key: "b".to_owned() };
    assert_eq!(snapshots.mounts(request(mounts, NAMESPACE, None)).await.unwrap().into_inner().mounts, first);
    let stat = StatSnapshotRequest { snapshotter: "overlayfs".to_owned(), key: "a".to_owned() };
    let gone = snapshots.stat(request(stat.clone(), NAMESPACE, None)).await.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "snapshot a does not exist: not found"));
    let nowhere = snapshots.stat(stat).await.unwrap_err();
    assert_eq!(
        (nowhere.code(), nowhere.message()),
        (Code::FailedPrecondition, "namespace is required: failed precondition")
    );
    fixture.stop().await;
}
