//! Leases: what the garbage collector must not take for as long as they live.

use containerd_api::error::{Error, Kind, quote};
use containerd_api::leases::{Lease, Resource};
use oci::digest::Digest;

use super::db::{Reader, WriteTx};
use super::records::{GLOBAL, Held, held_id};

/// The label that says when a lease, an image or an ingest ends (RFC 3339).
pub const EXPIRE: &str = "containerd.io/gc.expire";
/// The label of a lease that holds what it names and not what that refers to.
pub const FLAT: &str = "containerd.io/gc.flat";

/// What a lease can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holdable<'a> {
    Content,
    Image,
    Ingest,
    /// Of that snapshotter.
    Snapshot(&'a str),
}

impl Holdable<'_> {
    /// The type as clients write it.
    pub fn kind(self) -> String {
        match self {
            Self::Content => "content".to_owned(),
            Self::Image => "images".to_owned(),
            Self::Ingest => "ingests".to_owned(),
            Self::Snapshot(snapshotter) => format!("snapshots/{snapshotter}"),
        }
    }
}

/// Adds what is being made to the lease its request came under, if any.
///
/// # Errors
/// `NotFound` when there is no such lease: it expired, and what is made now might be collected at once.
pub fn hold(
    tx: &mut WriteTx<'_>,
    namespace: &str,
    lease: Option<&str>,
    what: Holdable<'_>,
    id: &str,
) -> Result<(), Error> {
    let Some(lease) = lease else { return Ok(()) };
    if !tx.has::<Lease>(namespace, lease)? {
        return Err(Error::of(Kind::NotFound, "lease does not exist"));
    }
    tx.put(namespace, &held_id(lease, &what.kind(), id), &Held {});
    Ok(())
}

/// Takes something out of the lease a request came under: it has become something else.
pub fn release(tx: &mut WriteTx<'_>, namespace: &str, lease: Option<&str>, what: Holdable<'_>, id: &str) {
    if let Some(lease) = lease {
        tx.delete::<Held>(namespace, &held_id(lease, &what.kind(), id));
    }
}

/// Makes sure the namespace is listed: it begins to exist with the first thing in it.
///
/// # Errors
/// The database cannot be read.
pub fn touch_namespace(tx: &mut WriteTx<'_>, namespace: &str) -> Result<(), Error> {
    use containerd_api::namespaces::Namespace;
    if !tx.has::<Namespace>(GLOBAL, namespace)? {
        tx.put(GLOBAL, namespace, &Namespace { name: namespace.to_owned(), ..Namespace::default() });
    }
    Ok(())
}

/// Everything a lease holds.
///
/// # Errors
/// The database cannot be read.
pub fn resources(tx: &impl Reader, namespace: &str, lease: &str) -> Result<Vec<Resource>, Error> {
    let mut found = Vec::new();
    tx.each::<Held>(namespace, &format!("{lease}\0"), &mut |id, _| {
        if let Some((kind, id)) = id[lease.len() + 1..].split_once('\0') {
            found.push(Resource { id: id.to_owned(), r#type: kind.to_owned() });
        }
        Ok(true)
    })?;
    Ok(found)
}

/// Checks a resource a client names.
///
/// # Errors
/// `InvalidArgument` for what cannot be, `Unimplemented` for a type nobody knows.
pub fn validate(resource: &Resource) -> Result<(), Error> {
    let invalid = |why: &str| Error::invalid(format_args!("{why} in resource {}", quote(&resource.r#type)));
    if resource.id.is_empty() || resource.id.contains('\0') || resource.r#type.contains('\0') {
        return Err(invalid("invalid id"));
    }
    match resource.r#type.split_once('/') {
        None => match resource.r#type.as_str() {
            "content" => Digest::parse(&resource.id).map(drop).map_err(|err| {
                Error::invalid(format_args!("invalid content resource id {}: {err}", resource.id))
            }),
            "images" | "ingests" => Ok(()),
            "snapshots" => {
                Err(Error::invalid(format_args!("invalid snapshot resource type {}", resource.r#type)))
            }
            other => {
                Err(Error::of(Kind::Unimplemented, format_args!("resource type {other} not supported yet")))
            }
        },
        Some(("snapshots", snapshotter)) if !snapshotter.is_empty() => Ok(()),
        Some(_) => Err(Error::of(
            Kind::Unimplemented,
            format_args!("resource type {} not supported yet", resource.r#type),
        )),
    }
}
