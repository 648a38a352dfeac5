//! What nobody refers to goes.
//!
//! Roots are leases (with what they hold), images, containers, sandboxes, and content and snapshots labelled `containerd.io/gc.root`. From
//! there references are followed: an image's target, a container's snapshot, a snapshot's parent, and labels on anything:
//! `containerd.io/gc.ref.content…` names a digest, `containerd.io/gc.ref.snapshot.<snapshotter>…` a snapshot, `containerd.io/gc.ref.image…`
//! an image; `containerd.io/gc.bref.<kind>…` is the reverse: what carries it lives as long as what it names.
//!
//! What was made a moment ago and is not referred to yet may be what a client is about to refer to. A collection nobody waits for spares it
//! ([`Young::Spared`]); one that a client asked for and waits for takes it. What a lease held that its client has deleted is not spared: that
//! client had its time.
//!
//! Invariant: marking and forgetting are one metadata change, so nothing can come to refer to what is being forgotten. (A first look without
//! holding up writers finds out whether there is anything to do.) Files go after that change is on disk: see the stores.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use containerd_api::any::pack;
use containerd_api::containers::Container;
use containerd_api::content::Info;
use containerd_api::error::Error;
use containerd_api::images::{Image, ImageDelete};
use containerd_api::leases::{Lease, Resource};
use containerd_api::namespaces::Namespace;
use containerd_api::snapshots::Kind as SnapshotKind;
use containerd_api::types::Sandbox;
use jiff::{SignedDuration, Timestamp};
use oci::digest::Digest;

use super::db::{Reader, WriteTx};
use super::leases::{EXPIRE, FLAT, resources};
use super::records::{GLOBAL, Held, Snapshot};
use crate::daemon::Daemon;

const ROOT: &str = "containerd.io/gc.root";
const REF_CONTENT: &str = "containerd.io/gc.ref.content";
const REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
const REF_IMAGE: &str = "containerd.io/gc.ref.image";
const BACK: &str = "containerd.io/gc.bref.";

/// Something that can be referred to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    Content(String),
    Snapshot { snapshotter: String, name: String },
    Image(String),
    Container(String),
}

impl Node {
    /// What a lease holds, if it is something that can be referred to.
    pub fn held(resource: Resource) -> Option<Self> {
        match resource.r#type.split_once('/') {
            None if resource.r#type == "content" => Some(Self::Content(resource.id)),
            None if resource.r#type == "images" => Some(Self::Image(resource.id)),
            Some(("snapshots", snapshotter)) => {
                Some(Self::Snapshot { snapshotter: snapshotter.to_owned(), name: resource.id })
            }
            _ => None,
        }
    }
}

/// What a namespace can do without.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    pub leases: Vec<String>,
    pub nodes: Vec<Node>,
    /// When the next thing expires.
    pub next_expiry: Option<Timestamp>,
    /// Writes that a lease holds.
    pub ingests: HashSet<String>,
}

/// What becomes of content and snapshots that are new and that nobody refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Young {
    Spared,
    Taken,
}

/// How long something is new.
const YOUNG: SignedDuration = SignedDuration::from_secs(30);

/// What a collection did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Summary {
    pub removed: usize,
    pub next_expiry: Option<Timestamp>,
}

/// Finds and forgets what nobody refers to, in all namespaces.
///
/// # Errors
/// The database cannot be read or written.
pub async fn run(daemon: &Daemon, young: Young) -> Result<Summary, Error> {
    let looking = daemon.clone();
    let mut released: HashMap<String, HashSet<Node>> = HashMap::new();
    for (namespace, node) in daemon.collector.take_released() {
        released.entry(namespace).or_default().insert(node);
    }
    let released = Arc::new(released);
    let known = Arc::clone(&released);
    let (garbage, mut summary) = tokio::task::spawn_blocking(move || {
        looking.db.read(|tx| {
            let now = Timestamp::now();
            let (mut found, mut summary) = (false, Summary::default());
            for (namespace, _) in tx.list::<Namespace>(GLOBAL, "")? {
                let garbage = mark(tx, &namespace, now, young, known.get(&namespace))?;
                found |= !garbage.leases.is_empty() || !garbage.nodes.is_empty();
                summary.next_expiry = earlier(summary.next_expiry, garbage.next_expiry);
                summary.removed += looking
                    .content
                    .expire_ingests(&namespace, &|reference| garbage.ingests.contains(reference));
            }
            Ok((found, summary))
        })
    })
    .await
    .map_err(|err| Error::internal("collect garbage", err))??;
    if garbage {
        let daemon_ = daemon.clone();
        summary.removed += daemon
            .db
            .write(move |tx| {
                let now = Timestamp::now();
                let mut removed = 0;
                for (namespace, _) in tx.list::<Namespace>(GLOBAL, "")? {
                    let garbage = mark(tx, &namespace, now, young, released.get(&namespace))?;
                    removed += sweep(tx, &daemon_, &namespace, garbage)?;
                }
                Ok(removed)
            })
            .await?;
    }
    Ok(summary)
}

/// Forgets garbage. What cannot be forgotten yet stays for the next time.
fn sweep(tx: &mut WriteTx<'_>, daemon: &Daemon, namespace: &str, garbage: Garbage) -> Result<usize, Error> {
    let mut removed = garbage.leases.len();
    for lease in &garbage.leases {
        delete_lease(tx, namespace, lease)?;
    }
    let mut snapshots = Vec::new();
    for node in garbage.nodes {
        match node {
            Node::Content(digest) => {
                if let Ok(digest) = Digest::parse(&digest) {
                    daemon.content.forget(tx, namespace, &digest)?;
                    removed += 1;
                }
            }
            Node::Image(name) => {
                tx.delete::<Image>(namespace, &name);
                tx.publish(namespace, "/images/delete", pack(&ImageDelete { name }));
                removed += 1;
            }
            Node::Snapshot { snapshotter, name } => snapshots.push((snapshotter, name)),
            Node::Container(_) => {}
        }
    }
    // Children go before their parents; each round frees the next.
    loop {
        let before = snapshots.len();
        let mut left = Vec::new();
        for (snapshotter, name) in snapshots {
            if !daemon.snapshots.collect(tx, namespace, &snapshotter, &name)? {
                left.push((snapshotter, name));
            }
        }
        removed += before - left.len();
        if left.is_empty() || left.len() == before {
            return Ok(removed);
        }
        snapshots = left;
    }
}

/// Forgets a lease and that it held anything.
///
/// # Errors
/// The database cannot be read.
pub fn delete_lease(tx: &mut WriteTx<'_>, namespace: &str, lease: &str) -> Result<(), Error> {
    for resource in resources(tx, namespace, lease)? {
        tx.delete::<Held>(namespace, &super::records::held_id(lease, &resource.r#type, &resource.id));
    }
    tx.delete::<Lease>(namespace, lease);
    Ok(())
}

/// What of a namespace is not reachable at `now`. `released` is not spared for being young.
///
/// # Errors
/// The database cannot be read.
pub fn mark(
    tx: &impl Reader,
    namespace: &str,
    now: Timestamp,
    young: Young,
    released: Option<&HashSet<Node>>,
) -> Result<Garbage, Error> {
    let mut graph = Graph { young, now, released: released.cloned().unwrap_or_default(), ..Graph::default() };
    let mut garbage = Garbage::default();
    for (id, lease) in tx.list::<Lease>(namespace, "")? {
        if let Some(at) = expiry(&lease.labels) {
            if at <= now {
                garbage.leases.push(id);
                continue;
            }
            garbage.next_expiry = earlier(garbage.next_expiry, Some(at));
        }
        let flat = lease.labels.contains_key(FLAT);
        for resource in resources(tx, namespace, &id)? {
            if resource.r#type == "ingests" {
                garbage.ingests.insert(resource.id);
                continue;
            }
            let Some(node) = Node::held(resource) else { continue };
            if flat { graph.flat.push(node) } else { graph.roots.push(node) }
        }
        graph.roots.extend(references(&lease.labels));
    }
    tx.each::<Image>(namespace, "", &mut |name, image| {
        let node = Node::Image(name.to_owned());
        let mut refs = references(&image.labels);
        refs.extend(image.target.map(|target| Node::Content(target.digest)));
        graph.add(node.clone(), refs, &image.labels);
        match expiry(&image.labels) {
            Some(at) if at <= now => graph.removable.insert(node),
            Some(at) => {
                garbage.next_expiry = earlier(garbage.next_expiry, Some(at));
                graph.roots.push(node);
                true
            }
            None => {
                graph.roots.push(node);
                true
            }
        };
        Ok(true)
    })?;
    tx.each::<Container>(namespace, "", &mut |id, container| {
        let node = Node::Container(id.to_owned());
        let mut refs = references(&container.labels);
        if !container.snapshotter.is_empty() && !container.snapshot_key.is_empty() {
            refs.push(Node::Snapshot { snapshotter: container.snapshotter, name: container.snapshot_key });
        }
        graph.add(node.clone(), refs, &container.labels);
        graph.roots.push(node);
        Ok(true)
    })?;
    tx.each::<Sandbox>(namespace, "", &mut |_, sandbox| {
        graph.roots.extend(references(&sandbox.labels));
        Ok(true)
    })?;
    tx.each::<Info>(namespace, "", &mut |digest, info| {
        let node = Node::Content(digest.to_owned());
        graph.add(node.clone(), references(&info.labels), &info.labels);
        if info.labels.contains_key(ROOT) {
            graph.roots.push(node.clone());
        }
        graph.spare(&node, info.created_at);
        graph.removable.insert(node);
        Ok(true)
    })?;
    tx.each::<Snapshot>(namespace, "", &mut |id, snapshot| {
        let Some((snapshotter, name)) = id.split_once('\0') else { return Ok(true) };
        let of = |name: &str| Node::Snapshot { snapshotter: snapshotter.to_owned(), name: name.to_owned() };
        let node = of(name);
        let labels: HashMap<_, _> = snapshot.labels.into_iter().collect();
        let mut refs = references(&labels);
        if !snapshot.parent.is_empty() {
            refs.push(of(&snapshot.parent));
            graph.parents.insert(node.clone(), of(&snapshot.parent));
        }
        graph.add(node.clone(), refs, &labels);
        debug_assert!(snapshot.kind != SnapshotKind::Unknown as i32, "a snapshot is one of the three kinds");
        if labels.contains_key(ROOT) {
            graph.roots.push(node.clone());
        }
        graph.spare(&node, snapshot.created_at);
        graph.removable.insert(node);
        Ok(true)
    })?;
    let (nodes, next) = graph.unreachable();
    garbage.nodes = nodes;
    garbage.next_expiry = earlier(garbage.next_expiry, next);
    Ok(garbage)
}

struct Graph {
    young: Young,
    now: Timestamp,
    /// What is not spared, however new.
    released: HashSet<Node>,
    /// What is new, and until when.
    spared: Vec<(Node, Timestamp)>,
    roots: Vec<Node>,
    /// Roots whose references are not followed; a snapshot's parents still are, it cannot be without.
    flat: Vec<Node>,
    references: HashMap<Node, Vec<Node>>,
    parents: HashMap<Node, Node>,
    removable: BTreeSet<Node>,
}

impl Default for Graph {
    fn default() -> Self {
        Self {
            young: Young::Taken,
            now: Timestamp::UNIX_EPOCH,
            released: HashSet::new(),
            spared: Vec::new(),
            roots: Vec::new(),
            flat: Vec::new(),
            references: HashMap::new(),
            parents: HashMap::new(),
            removable: BTreeSet::new(),
        }
    }
}

impl Graph {
    /// Keeps `node` for a while if it is new.
    fn spare(&mut self, node: &Node, created: Option<prost_types::Timestamp>) {
        if self.young == Young::Taken || self.released.contains(node) {
            return;
        }
        let Some(created) = created.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok()) else { return };
        match created.checked_add(YOUNG) {
            // A time in the future is a clock that was set back: not spared for ever.
            Ok(until) if until > self.now && created <= self.now => self.spared.push((node.clone(), until)),
            _ => {}
        }
    }

    fn add(&mut self, node: Node, refs: Vec<Node>, labels: &HashMap<String, String>) {
        for target in back_references(labels) {
            self.references.entry(target).or_default().push(node.clone());
        }
        self.references.entry(node).or_default().extend(refs);
    }

    /// What can go, and when something that was spared can.
    fn unreachable(mut self) -> (Vec<Node>, Option<Timestamp>) {
        let mut reached: HashSet<Node> = HashSet::new();
        let roots = std::mem::take(&mut self.roots);
        self.follow(roots, &mut reached);
        for node in std::mem::take(&mut self.flat) {
            let mut next = Some(node);
            while let Some(node) = next.filter(|node| !reached.contains(node)) {
                next = self.parents.get(&node).cloned();
                reached.insert(node);
            }
        }
        let mut until = None;
        for (node, at) in std::mem::take(&mut self.spared) {
            if !reached.contains(&node) {
                until = earlier(until, Some(at));
                self.follow(vec![node], &mut reached);
            }
        }
        (self.removable.into_iter().filter(|node| !reached.contains(node)).collect(), until)
    }

    fn follow(&mut self, mut open: Vec<Node>, reached: &mut HashSet<Node>) {
        while let Some(node) = open.pop() {
            if reached.contains(&node) {
                continue;
            }
            open.extend(self.references.remove(&node).unwrap_or_default());
            reached.insert(node);
        }
    }
}

/// What the labels of anything refer to.
fn references(labels: &HashMap<String, String>) -> Vec<Node> {
    labels
        .iter()
        .filter_map(|(key, value)| {
            let named = |prefix: &str| {
                key.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
            };
            if named(REF_CONTENT) {
                Some(Node::Content(value.clone()))
            } else if named(REF_IMAGE) {
                Some(Node::Image(value.clone()))
            } else {
                let snapshotter = key.strip_prefix(REF_SNAPSHOT)?.split('/').next()?;
                Some(Node::Snapshot { snapshotter: snapshotter.to_owned(), name: value.clone() })
            }
        })
        .collect()
}

/// What keeps alive the thing that carries these labels.
fn back_references(labels: &HashMap<String, String>) -> Vec<Node> {
    labels
        .iter()
        .filter_map(|(key, value)| {
            let rest = key.strip_prefix(BACK)?;
            let kind = rest.split(['.', '/']).next()?;
            match kind {
                "content" => Some(Node::Content(value.clone())),
                "image" => Some(Node::Image(value.clone())),
                "container" => Some(Node::Container(value.clone())),
                "snapshot" => {
                    let snapshotter = rest.strip_prefix("snapshot.")?.split('/').next()?;
                    Some(Node::Snapshot { snapshotter: snapshotter.to_owned(), name: value.clone() })
                }
                _ => None,
            }
        })
        .collect()
}

/// When the labels say something ends. What cannot be read as a time never ends: better kept than lost.
fn expiry(labels: &HashMap<String, String>) -> Option<Timestamp> {
    labels.get(EXPIRE)?.parse().ok()
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
