//! What filters see of an event: `namespace`, `topic`, and the text fields of known payloads as `event.<name>`.
//!
//! A payload is not decoded into its message: its fields are found by number in the encoded bytes, from the table below.

use std::borrow::Cow;

use containerd_api::types::Envelope;

use crate::filters::Fields;

/// Type name and the numbers of its text fields.
const KNOWN: &[(&str, &[(&str, u32)])] = &[
    ("containerd.events.ContainerCreate", &[("id", 1), ("image", 2)]),
    ("containerd.events.ContainerUpdate", &[("id", 1), ("image", 2), ("snapshot_key", 4)]),
    ("containerd.events.ContainerDelete", &[("id", 1)]),
    ("containerd.events.ContentCreate", &[("digest", 1), ("media_type", 3)]),
    ("containerd.events.ContentDelete", &[("digest", 1)]),
    ("containerd.services.images.v1.ImageCreate", &[("name", 1)]),
    ("containerd.services.images.v1.ImageUpdate", &[("name", 1)]),
    ("containerd.services.images.v1.ImageDelete", &[("name", 1)]),
    ("containerd.events.NamespaceCreate", &[("name", 1)]),
    ("containerd.events.NamespaceUpdate", &[("name", 1)]),
    ("containerd.events.NamespaceDelete", &[("name", 1)]),
    ("containerd.events.SnapshotPrepare", &[("key", 1), ("parent", 2), ("snapshotter", 5)]),
    ("containerd.events.SnapshotCommit", &[("key", 1), ("name", 2), ("snapshotter", 5)]),
    ("containerd.events.SnapshotRemove", &[("key", 1), ("snapshotter", 5)]),
    ("containerd.events.TaskCreate", &[("container_id", 1), ("bundle", 2), ("checkpoint", 5)]),
    ("containerd.events.TaskStart", &[("container_id", 1)]),
    ("containerd.events.TaskDelete", &[("container_id", 1), ("id", 5)]),
    ("containerd.events.TaskExit", &[("container_id", 1), ("id", 2)]),
    ("containerd.events.TaskOOM", &[("container_id", 1)]),
    ("containerd.events.TaskExecAdded", &[("container_id", 1), ("exec_id", 2)]),
    ("containerd.events.TaskExecStarted", &[("container_id", 1), ("exec_id", 2)]),
    ("containerd.events.TaskPaused", &[("container_id", 1)]),
    ("containerd.events.TaskResumed", &[("container_id", 1)]),
    ("containerd.events.TaskCheckpointed", &[("container_id", 1), ("checkpoint", 2)]),
    ("containerd.events.SandboxCreate", &[("sandbox_id", 1)]),
    ("containerd.events.SandboxStart", &[("sandbox_id", 1)]),
    ("containerd.events.SandboxExit", &[("sandbox_id", 1)]),
];

/// Type name and the number of its map of labels.
const LABELED: &[(&str, u32)] = &[
    ("containerd.events.ContainerUpdate", 3),
    ("containerd.services.images.v1.ImageCreate", 2),
    ("containerd.services.images.v1.ImageUpdate", 2),
    ("containerd.events.NamespaceCreate", 2),
    ("containerd.events.NamespaceUpdate", 2),
];

impl Fields for Envelope {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        let text = |text: &'_ str| (!text.is_empty()).then(|| Cow::Owned(text.to_owned()));
        match path {
            [one] if one == "namespace" => text(&self.namespace),
            [one] if one == "topic" => text(&self.topic),
            [event, rest @ ..] if event == "event" => {
                let payload = self.event.as_ref()?;
                let name = payload.type_url.rsplit('/').next()?;
                payload_field(name, &payload.value, rest)
            }
            _ => None,
        }
    }
}

fn payload_field<'a>(name: &str, bytes: &'a [u8], path: &[String]) -> Option<Cow<'a, str>> {
    let (_, fields) = KNOWN.iter().find(|(known, _)| *known == name)?;
    match path {
        [labels, key @ ..] if labels == "labels" && !key.is_empty() => {
            let (_, number) = LABELED.iter().find(|(known, _)| *known == name)?;
            let key = key.join(".");
            entries(bytes, *number)
                .find(|entry| entries(entry, 1).next() == Some(key.as_bytes()))
                .and_then(|entry| as_text(entries(entry, 2).next().unwrap_or_default()))
        }
        [field] => {
            let (_, number) = fields.iter().find(|(known, _)| known == field)?;
            as_text(entries(bytes, *number).last()?)
        }
        _ => None,
    }
}

fn as_text(bytes: &[u8]) -> Option<Cow<'_, str>> {
    std::str::from_utf8(bytes).ok().map(Cow::Borrowed)
}

/// The length-delimited fields with `number`, as far as the bytes can be read.
fn entries(bytes: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            let tag = varint(&mut rest)?;
            let found = (tag >> 3) == u64::from(number);
            match tag & 7 {
                0 => {
                    varint(&mut rest)?;
                }
                1 => rest = rest.get(8..)?,
                5 => rest = rest.get(4..)?,
                2 => {
                    let length = usize::try_from(varint(&mut rest)?).ok()?;
                    let value = rest.get(..length)?;
                    rest = &rest[length..];
                    if found {
                        return Some(value);
                    }
                }
                _ => return None,
            }
        }
    })
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_api::any::pack;
    use containerd_api::event::{ContainerUpdate, TaskExit};
    use prost_types::Any;

    fn envelope(event: Any) -> Envelope {
        Envelope { namespace: "n".into(), topic: "/t".into(), event: Some(event), timestamp: None }
    }

    fn path(text: &str) -> Vec<String> {
        text.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn fields_of_payloads_are_found_by_name() {
        let exit = envelope(pack(&TaskExit {
            container_id: "c".into(),
            id: "e".into(),
            pid: 7,
            ..TaskExit::default()
        }));
        assert_eq!(exit.field(&path("event.container_id")).as_deref(), Some("c"));
        assert_eq!(exit.field(&path("event.id")).as_deref(), Some("e"));
        assert_eq!(exit.field(&path("event.pid")), None);
        let labels = [("a.b".to_owned(), "v".to_owned())].into();
        let update =
            envelope(pack(&ContainerUpdate { id: "c".into(), labels, ..ContainerUpdate::default() }));
        assert_eq!(update.field(&path("event.labels.a.b")).as_deref(), Some("v"));
        assert_eq!(update.field(&path("event.labels.a")), None);
    }

    proptest::proptest! {
        #[test]
        fn no_payload_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let event = envelope(Any { type_url: "containerd.events.TaskExit".into(), value: bytes });
            let _ = event.field(&path("event.id"));
        }
    }
}
