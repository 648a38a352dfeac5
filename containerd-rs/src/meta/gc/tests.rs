//! What is kept and what goes, on a database of its own.

use std::sync::Arc;

use containerd_api::types::Descriptor;

use super::*;
use crate::events::Exchange;
use crate::meta::Db;
use crate::meta::records::{Snapshot, held_id, snapshot_id};

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn content(tx: &mut WriteTx<'_>, digest: &str, pairs: &[(&str, &str)]) {
    tx.put("n", digest, &Info { digest: digest.to_owned(), labels: labels(pairs), ..Info::default() });
}

fn snapshot(tx: &mut WriteTx<'_>, name: &str, parent: &str, pairs: &[(&str, &str)]) {
    let record = Snapshot {
        parent: parent.to_owned(),
        kind: SnapshotKind::Committed as i32,
        labels: labels(pairs).into_iter().collect(),
        ..Snapshot::default()
    };
    tx.put("n", &snapshot_id("s", name), &record);
}

fn image(tx: &mut WriteTx<'_>, name: &str, target: &str, pairs: &[(&str, &str)]) {
    let target = Descriptor { digest: target.to_owned(), ..Descriptor::default() };
    let image =
        Image { name: name.to_owned(), target: Some(target), labels: labels(pairs), ..Image::default() };
    tx.put("n", name, &image);
}

fn lease(tx: &mut WriteTx<'_>, id: &str, pairs: &[(&str, &str)], holds: &[(&str, &str)]) {
    tx.put("n", id, &Lease { id: id.to_owned(), labels: labels(pairs), ..Lease::default() });
    holds.iter().for_each(|(kind, held)| tx.put("n", &held_id(id, kind, held), &Held {}));
}

/// What goes, as short text.
fn garbage(fill: impl FnOnce(&mut WriteTx<'_>) + Send + 'static) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("m"), Arc::new(Exchange::new())).unwrap();
    let marked = db
        .write_blocking(|tx| {
            fill(tx);
            mark(tx, "n", "2026-01-01T00:00:00Z".parse().unwrap(), Young::Taken, None)
        })
        .unwrap();
    let nodes = marked.nodes.into_iter().map(|node| match node {
        Node::Content(digest) => digest,
        Node::Snapshot { name, .. } => format!("snapshot {name}"),
        Node::Image(name) => format!("image {name}"),
        Node::Container(id) => format!("container {id}"),
    });
    nodes.chain(marked.leases.into_iter().map(|lease| format!("lease {lease}"))).collect()
}

#[test]
fn an_image_keeps_its_target_and_what_that_names() {
    let gone = garbage(|tx| {
        image(tx, "i", "manifest", &[]);
        content(
            tx,
            "manifest",
            &[
                ("containerd.io/gc.ref.content.config", "config"),
                ("containerd.io/gc.ref.content.l.0", "layer"),
                ("containerd.io/gc.ref.contents", "no reference"),
            ],
        );
        content(tx, "config", &[("containerd.io/gc.ref.snapshot.s", "top")]);
        content(tx, "layer", &[("containerd.io/gc.ref.content", "cycle")]);
        content(tx, "cycle", &[("containerd.io/gc.ref.content", "layer")]);
        content(tx, "no reference", &[]);
        content(tx, "stray", &[]);
        snapshot(tx, "top", "base", &[]);
        snapshot(tx, "base", "", &[]);
        snapshot(tx, "stray", "base", &[]);
    });
    assert_eq!(gone, ["no reference", "stray", "snapshot stray"]);
}

#[test]
fn containers_roots_and_back_references_keep() {
    let gone = garbage(|tx| {
        let container = Container {
            id: "c".into(),
            snapshotter: "s".into(),
            snapshot_key: "rw".into(),
            ..Container::default()
        };
        tx.put("n", "c", &container);
        snapshot(tx, "rw", "base", &[("containerd.io/gc.ref.content.x", "by snapshot")]);
        snapshot(tx, "base", "", &[]);
        content(tx, "by snapshot", &[]);
        content(tx, "root", &[("containerd.io/gc.root", "now")]);
        content(tx, "back", &[("containerd.io/gc.bref.container.x", "c")]);
        content(tx, "back of nobody", &[("containerd.io/gc.bref.container", "d")]);
    });
    assert_eq!(gone, ["back of nobody"]);
}

#[test]
fn a_lease_keeps_what_it_holds_until_it_expires() {
    let fill = |tx: &mut WriteTx<'_>| {
        lease(
            tx,
            "live",
            &[("containerd.io/gc.expire", "2026-01-01T00:00:01Z")],
            &[("content", "a"), ("snapshots/s", "top")],
        );
        lease(tx, "over", &[("containerd.io/gc.expire", "2026-01-01T00:00:00Z")], &[("content", "b")]);
        lease(tx, "odd", &[("containerd.io/gc.expire", "some day")], &[("images", "expired")]);
        lease(tx, "flat", &[("containerd.io/gc.flat", "")], &[("content", "c"), ("snapshots/s", "flat")]);
        for (digest, refers) in [("a", "a2"), ("b", "b2"), ("c", "c2")] {
            content(tx, digest, &[("containerd.io/gc.ref.content", refers)]);
            content(tx, refers, &[]);
        }
        snapshot(tx, "top", "base", &[]);
        snapshot(tx, "base", "", &[]);
        snapshot(tx, "flat", "flat base", &[]);
        snapshot(tx, "flat base", "", &[]);
        image(tx, "expired", "d", &[("containerd.io/gc.expire", "2020-01-01T00:00:00Z")]);
        image(tx, "expired too", "e", &[("containerd.io/gc.expire", "2020-01-01T00:00:00Z")]);
        content(tx, "d", &[]);
        content(tx, "e", &[]);
    };
    assert_eq!(garbage(fill), ["b", "b2", "c2", "e", "image expired too", "lease over"]);
}

#[test]
fn what_is_new_is_spared_unless_a_client_waits() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("m"), Arc::new(Exchange::new())).unwrap();
    let created = |text: &str| {
        let at: Timestamp = text.parse().unwrap();
        Some(prost_types::Timestamp { seconds: at.as_second(), nanos: 0 })
    };
    let rows = [
        ("old", created("2025-12-31T23:59:30Z"), None),
        ("new", created("2025-12-31T23:59:40Z"), Some("named")),
        ("named", created("2025-01-01T00:00:00Z"), None),
        ("future", created("2026-01-02T00:00:00Z"), None),
    ];
    db.write_blocking(move |tx| {
        for (digest, created_at, refers) in rows {
            let labels = refers
                .map(|to| ("containerd.io/gc.ref.content".to_owned(), to.to_owned()))
                .into_iter()
                .collect();
            tx.put("n", digest, &Info { digest: digest.to_owned(), created_at, labels, ..Info::default() });
        }
        Ok(())
    })
    .unwrap();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let spared = db.read(|tx| mark(tx, "n", now, Young::Spared, None)).unwrap();
    assert_eq!(spared.nodes, [Node::Content("future".into()), Node::Content("old".into())]);
    assert_eq!(spared.next_expiry, Some("2026-01-01T00:00:10Z".parse().unwrap()));
    let released = [Node::Content("new".into())].into();
    let spared = db.read(|tx| mark(tx, "n", now, Young::Spared, Some(&released))).unwrap();
    assert_eq!(spared.nodes.len(), 4, "a client has given up the lease that held it");
    assert_eq!(db.read(|tx| mark(tx, "n", now, Young::Taken, None)).unwrap().nodes.len(), 4);
}
