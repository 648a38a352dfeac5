//! What filters see of each kind of record, under the names containerd uses.

use std::borrow::Cow;

use containerd_api::{containers, content, images, introspection, leases, snapshots, types};

use super::{Fields, label, text};

impl Fields for images::Image {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        let (first, rest) = path.split_first()?;
        match (first.as_str(), rest) {
            ("name", _) => text(&self.name),
            ("target", [field, rest @ ..]) => {
                let target = self.target.as_ref()?;
                match field.as_str() {
                    "digest" => text(&target.digest),
                    "mediatype" => text(&target.media_type),
                    "annotations" => label(&target.annotations, rest),
                    _ => None,
                }
            }
            ("labels", rest) => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Fields for containers::Container {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        let (first, rest) = path.split_first()?;
        match (first.as_str(), rest) {
            ("id", _) => text(&self.id),
            ("image", _) => text(&self.image),
            ("runtime", [name]) if name == "name" => text(&self.runtime.as_ref()?.name),
            ("labels", rest) => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Fields for content::Info {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "digest" => text(&self.digest),
            "labels" => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Fields for content::Status {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "ref" => text(&self.r#ref),
            _ => None,
        }
    }
}

impl Fields for leases::Lease {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "id" => text(&self.id),
            "labels" => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Fields for snapshots::Info {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "kind" => match self.kind() {
                snapshots::Kind::View => Some(Cow::Borrowed("view")),
                snapshots::Kind::Active => Some(Cow::Borrowed("active")),
                snapshots::Kind::Committed => Some(Cow::Borrowed("committed")),
                snapshots::Kind::Unknown => None,
            },
            "name" => text(&self.name),
            "parent" => text(&self.parent),
            "labels" => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Fields for introspection::Plugin {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "type" => text(&self.r#type),
            "id" => text(&self.id),
            "capabilities" => {
                (!self.capabilities.is_empty()).then(|| Cow::Owned(self.capabilities.join(",")))
            }
            _ => None,
        }
    }
}

impl Fields for types::Sandbox {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        let (first, rest) = path.split_first()?;
        match (first.as_str(), rest) {
            ("id", _) => text(&self.sandbox_id),
            ("labels", rest) => label(&self.labels, rest),
            _ => None,
        }
    }
}
