//! How long metadata requests take on a running daemon: `latency SOCKET [ROUNDS]`.
//!
//! Works on any containerd, so that two can be compared on one machine. Prints the median and the 99th percentile in microseconds.

use std::time::Instant;

use containerd_api::content::content_client::ContentClient;
use containerd_api::content::{InfoRequest, WriteAction, WriteContentRequest};
use containerd_api::images::images_client::ImagesClient;
use containerd_api::images::{CreateImageRequest, DeleteImageRequest, GetImageRequest, Image};
use containerd_api::ns::request;
use containerd_api::snapshots::snapshots_client::SnapshotsClient;
use containerd_api::snapshots::{MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_api::types::Descriptor;
use containerd_api::version::version_client::VersionClient;

const NAMESPACE: &str = "latency";

/// Calls `$call` so often and prints how long it took.
macro_rules! measure {
    ($name:literal, $rounds:expr, |$n:ident| $call:expr) => {{
        let mut micros = Vec::with_capacity($rounds);
        for $n in 0..$rounds {
            let began = Instant::now();
            $call;
            micros.push(began.elapsed().as_micros());
        }
        micros.sort_unstable();
        println!("{:<28} {:>8} {:>8}", $name, micros[micros.len() / 2], micros[micros.len() * 99 / 100]);
    }};
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().ok_or("usage: latency SOCKET [ROUNDS]")?;
    let rounds: usize = arguments.next().map_or(Ok(500), |rounds| rounds.parse())?;
    let channel = containerd_api::connect(socket).await?;
    let mut version = VersionClient::new(channel.clone());
    let mut images = ImagesClient::new(channel.clone());
    let mut content = ContentClient::new(channel.clone());
    let mut snapshots = SnapshotsClient::new(channel);

    println!("{:<28} {:>8} {:>8}", "request (microseconds)", "median", "p99");
    measure!("version", rounds, |_n| version.version(()).await?);

    let data = bytes::Bytes::from(format!("{:?}", std::time::SystemTime::now()));
    let message = WriteContentRequest {
        action: WriteAction::Commit as i32,
        r#ref: "latency".to_owned(),
        total: data.len() as i64,
        data,
        ..WriteContentRequest::default()
    };
    let mut answers =
        content.write(request(tokio_stream::once(message), NAMESPACE, None)).await?.into_inner();
    let written = answers.message().await?.ok_or("no answer to the write")?;
    let target = Descriptor {
        digest: written.digest.clone(),
        size: written.offset,
        media_type: "application/octet-stream".to_owned(),
        ..Descriptor::default()
    };
    let image = Image { name: "latency".to_owned(), target: Some(target), ..Image::default() };
    let named = |n: usize| Image { name: format!("latency-{n}"), ..image.clone() };
    images
        .create(request(
            CreateImageRequest { image: Some(image.clone()), ..Default::default() },
            NAMESPACE,
            None,
        ))
        .await?;

    measure!("images.Get", rounds, |_n| images
        .get(request(GetImageRequest { name: "latency".to_owned() }, NAMESPACE, None))
        .await?);
    measure!("content.Info", rounds, |_n| content
        .info(request(InfoRequest { digest: written.digest.clone() }, NAMESPACE, None))
        .await?);
    measure!("images.Create", rounds, |n| images
        .create(request(CreateImageRequest { image: Some(named(n)), ..Default::default() }, NAMESPACE, None))
        .await?);
    measure!("images.Delete", rounds, |n| images
        .delete(request(DeleteImageRequest { name: named(n).name, ..Default::default() }, NAMESPACE, None))
        .await?);
    let snapshotter = || "overlayfs".to_owned();
    measure!("snapshots.Prepare", rounds, |n| snapshots
        .prepare(request(
            PrepareSnapshotRequest { snapshotter: snapshotter(), key: format!("k{n}"), ..Default::default() },
            NAMESPACE,
            None
        ))
        .await?);
    measure!("snapshots.Mounts", rounds, |n| snapshots
        .mounts(request(MountsRequest { snapshotter: snapshotter(), key: format!("k{n}") }, NAMESPACE, None))
        .await?);
    measure!("snapshots.Remove", rounds, |n| snapshots
        .remove(request(
            RemoveSnapshotRequest { snapshotter: snapshotter(), key: format!("k{n}") },
            NAMESPACE,
            None
        ))
        .await?);
    let last = DeleteImageRequest { name: "latency".to_owned(), sync: true, ..Default::default() };
    images.delete(request(last, NAMESPACE, None)).await?;
    Ok(())
}
