//! Giving names, taking them away, and removing what nobody needs.
//!
//! Deciding is apart from doing: [`decide`] looks at names and containers and says what may be done, in Docker's words when it may not.

use docker_api::filters::Filters;
use oci::{Digest, Platform, Reference};
use serde_json::{Value, json};

use super::resolve::familiar_name;
use super::used::unused_since;
use super::view::{Seen, until};
use super::write::dangling_name;
use super::{DANGLING, ImageUser, Images};
use crate::error::{Error, Kind, Result};
use crate::events::Subject;
use crate::runtime::content::{ImageRecord, Labels};

/// Options of `DELETE /images/{name}`.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub force: bool,
    /// Only these platforms' content.
    pub platforms: Vec<Platform>,
}

/// What a removal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// One name goes, others stay.
    Untag,
    /// The name goes, the image stays without one: a container needs it.
    Orphan,
    /// All names and the image go.
    Remove,
}

/// What may be done when `name` (or the id, if `by_id`) of an image with these names is to be removed.
fn decide(
    record: &ImageRecord,
    by_id: bool,
    names: &[ImageRecord],
    users: &[ImageUser],
    force: bool,
) -> Result<Verdict> {
    let id = record.target.digest.short();
    let conflict = |what: &str, how: &str, why: String| {
        Err(Error::conflict(format!("conflict: unable to delete {what} ({how}) - {why}")))
    };
    let short = |user: &ImageUser| user.container_id.chars().take(12).collect::<String>();
    if by_id {
        if let Some(user) = users.iter().find(|user| user.running) {
            return conflict(
                id,
                "cannot be forced",
                format!("image is being used by running container {}", short(user)),
            );
        }
        let mut repositories: Vec<String> = names
            .iter()
            .filter(|name| !name.name.starts_with(DANGLING))
            .filter_map(|name| Reference::parse(&name.name).ok())
            .map(|reference| reference.name())
            .collect();
        repositories.sort();
        repositories.dedup();
        if repositories.len() > 1 && !force {
            return conflict(id, "must be forced", "image is referenced in multiple repositories".into());
        }
        if let Some(user) = users.first()
            && !force
        {
            return conflict(
                id,
                "must be forced",
                format!("image is being used by stopped container {}", short(user)),
            );
        }
        return Ok(Verdict::Remove);
    }
    if names.iter().any(|name| name.name != record.name && !name.name.starts_with(DANGLING)) {
        return Ok(Verdict::Untag);
    }
    match users.first() {
        None => Ok(Verdict::Remove),
        Some(_) if force => Ok(Verdict::Orphan),
        Some(user) => conflict(
            &familiar_name(&record.name),
            "must be forced",
            format!("container {} is using its referenced image {id}", short(user)),
        ),
    }
}

impl Images {
    /// Publishes an event about an image; its labels are looked up unless it is gone.
    pub(crate) async fn announce(&self, action: &str, digest: &Digest, name: &str) {
        let labels = match self.resolve(digest.as_str(), None).await {
            Ok(image) => image.config.config.labels.unwrap_or_default(),
            Err(_) => Default::default(),
        };
        let attributes = labels.into_iter().chain([("name".to_owned(), name.to_owned())]);
        self.0.events.publish(Subject::Image, action, digest.to_string(), attributes);
    }

    fn announce_gone(&self, action: &str, digest: &Digest, name: &str) {
        self.0.events.publish(Subject::Image, action, digest.to_string(), [("name", name)]);
    }

    /// `POST /images/{name}/tag`: another name for an image. An image that had the name loses it.
    ///
    /// # Errors
    /// 404 for an unknown image, or containerd refused.
    pub async fn tag(&self, image: &str, new: &Reference) -> Result<()> {
        let found = self.find(image).await?;
        let lease = self.writing().await?;
        let labels: Labels = found.record.labels.clone();
        let target = &found.record.target;
        self.name_image(target, &[new.to_string()], labels, &lease).await?;
        self.announce("tag", &target.digest, &new.familiar()).await;
        Ok(())
    }

    /// `DELETE /images/{name}`: what was done, in Docker's records.
    ///
    /// # Errors
    /// 404, 409 while it is used, or containerd refused.
    pub async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<Vec<Value>> {
        let found = self.find(name).await?;
        let digest = found.record.target.digest.clone();
        let lock = self.making(digest.as_str());
        let _one_at_a_time = lock.lock().await;
        if !options.platforms.is_empty() {
            return self.delete_platforms(&found.record, options).await;
        }
        let names = self.by_target(&digest).await?;
        let users: Vec<ImageUser> =
            self.users().into_iter().filter(|user| user.image_id == digest.as_str()).collect();
        match decide(&found.record, found.by_id, &names, &users, options.force)? {
            Verdict::Untag => {
                self.runtime().image_delete(&found.record.name, false).await?;
                self.note_removed(&found.record.name).await;
                let shown = familiar_name(&found.record.name);
                self.announce_gone("untag", &digest, &shown);
                Ok(vec![json!({ "Untagged": shown })])
            }
            Verdict::Orphan => {
                let labels = found.record.labels.clone();
                self.runtime().image_put(&dangling_name(&digest), &found.record.target, labels, None).await?;
                self.runtime().image_delete(&found.record.name, false).await?;
                self.note_removed(&found.record.name).await;
                let shown = familiar_name(&found.record.name);
                self.announce_gone("untag", &digest, &shown);
                Ok(vec![json!({ "Untagged": shown })])
            }
            Verdict::Remove => self.remove_all(&digest, &names).await,
        }
    }

    async fn remove_all(&self, digest: &Digest, names: &[ImageRecord]) -> Result<Vec<Value>> {
        let mut done = Vec::new();
        for (at, record) in names.iter().enumerate() {
            // The last one gives the space back before the answer.
            self.runtime().image_delete(&record.name, at + 1 == names.len()).await?;
            if !record.name.starts_with(DANGLING) {
                self.note_removed(&record.name).await;
                let shown = familiar_name(&record.name);
                self.announce_gone("untag", digest, &shown);
                done.push(json!({ "Untagged": shown }));
            }
        }
        if let Err(err) = self.forget_use(digest).await {
            tracing::warn!(error = %err, "last use of a removed image stays noted");
        }
        self.announce_gone("delete", digest, digest.as_str());
        done.push(json!({ "Deleted": digest }));
        Ok(done)
    }

    /// Takes away the content of some platforms of an image; its names stay.
    async fn delete_platforms(&self, record: &ImageRecord, options: &DeleteOptions) -> Result<Vec<Value>> {
        if !options.force {
            return Err(Error::invalid(
                "Content will be removed from all images referencing this variant. Use —-force to force delete.",
            ));
        }
        let users = self.users();
        let mut done = Vec::new();
        for platform in &options.platforms {
            let image = self.resolve_record(record, Some(platform)).await?;
            let running = users.iter().any(|user| user.image_id == image.id.as_str() && user.running);
            if running {
                return Err(Error::conflict(format!(
                    "conflict: unable to delete {} (cannot be forced) - image is being used by running container",
                    image.manifest.digest.short()
                )));
            }
            let blobs = image.layers.iter().map(|layer| &layer.digest);
            let all = self.all(&self.runtime().view().await?).await?;
            for blob in blobs.chain([&image.config_digest, &image.manifest.digest]) {
                let shared = all.iter().flat_map(|seen| &seen.variants).any(|variant| {
                    variant.descriptor.digest != image.manifest.digest
                        && variant.manifest.as_ref().is_some_and(|manifest| {
                            manifest.config.digest == *blob
                                || manifest.layers.iter().any(|layer| layer.digest == *blob)
                        })
                });
                if !shared {
                    self.runtime().blob_delete(blob).await?;
                }
            }
            self.announce_gone("delete", &image.manifest.digest, image.manifest.digest.as_str());
            done.push(json!({ "Deleted": image.manifest.digest }));
        }
        Ok(done)
    }

    /// When an image was last used, or came here if it never was.
    fn touched(&self, seen: &Seen, users: &[ImageUser]) -> jiff::Timestamp {
        let came = seen.records.iter().map(|record| record.updated_at).max().unwrap_or_default();
        self.last_used(&seen.target.digest, users).map_or(came, |used| used.max(came))
    }

    /// `POST /images/prune`: images without a name, or (`dangling=false`) all that no container uses.
    ///
    /// # Errors
    /// 400 for filters, 409 while another prune runs.
    pub async fn prune(&self, filters: &Filters) -> Result<Value> {
        let dangling = filters
            .bool("dangling")
            .map_err(|bad| Error::invalid(format!("invalid filter 'dangling={bad}'")))?;
        let until = until(filters)?;
        let now = jiff::Timestamp::now();
        let unused_since =
            filters.get("unused-for").first().map(|text| unused_since(text, now)).transpose()?;
        let Ok(_pruning) = self.0.pruning.try_lock() else {
            return Err(Error::conflict("a prune operation is already running"));
        };
        let view = self.runtime().view().await?;
        let before = self.disk(&view).await?;
        let users = self.users();
        let mut done: Vec<Value> = Vec::new();
        for seen in self.all(&view).await? {
            let labels = seen.labels_of_config();
            let label = |name: &str| labels.get(name).map(String::as_str);
            let created = jiff::Timestamp::from_second(seen.created()).unwrap_or_default();
            let id = seen.target.digest.as_str();
            let by_name = |user: &ImageUser| {
                let named = Reference::parse(&user.image_name).map(|named| named.or_latest().to_string());
                named.is_ok_and(|named| seen.records.iter().any(|record| record.name == named))
            };
            if (dangling.unwrap_or(true) && !seen.is_dangling())
                || until.is_some_and(|until| created > until)
                || unused_since.is_some_and(|since| self.touched(&seen, &users) > since)
                || !filters.labels("label", label)
                || (!filters.get("label!").is_empty() && filters.labels("label!", label))
                || users.iter().any(|user| user.image_id == id || by_name(user))
            {
                continue;
            }
            let lock = self.making(id);
            let _one_at_a_time = lock.lock().await;
            let dangling_only = seen.is_dangling();
            match self.remove_all(&seen.target.digest, &seen.records).await {
                Ok(removed) => {
                    if dangling_only {
                        done.push(json!({ "Untagged": seen.target.digest }));
                    }
                    done.extend(removed);
                }
                Err(err) if err.kind() == Kind::NotFound => {}
                Err(err) => tracing::warn!(image = id, error = %err, "image not pruned"),
            }
        }
        let reclaimed = if done.is_empty() {
            0
        } else {
            before.saturating_sub(self.disk(&self.runtime().view().await?).await?)
        };
        let deleted = if done.is_empty() { Value::Null } else { Value::Array(done) };
        Ok(json!({ "ImagesDeleted": deleted, "SpaceReclaimed": reclaimed }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::Descriptor;

    fn record(name: &str) -> ImageRecord {
        ImageRecord {
            name: name.into(),
            target: Descriptor::of(oci::mediatype::OCI_MANIFEST, b"{}"),
            labels: Labels::new(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            updated_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn user(running: bool) -> ImageUser {
        ImageUser {
            container_id: "0123456789abcdef".into(),
            image_id: Digest::of(b"{}").to_string(),
            image_name: "a".into(),
            running,
            last_used: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_may_be_removed() {
        let (a1, a2, b1) = (record("docker.io/r/a:1"), record("docker.io/r/a:2"), record("docker.io/r/b:1"));
        let lost = record(&format!("{DANGLING}@{}", Digest::of(b"{}")));
        let id = Digest::of(b"{}").short().to_owned();
        let run = |by_id, names: &[ImageRecord], users: &[ImageUser], force| {
            decide(&names[0], by_id, names, users, force).map_err(|err| err.message().to_owned())
        };
        // By name: the last name takes the image with it, unless a container needs it.
        assert_eq!(run(false, std::slice::from_ref(&a1), &[], false), Ok(Verdict::Remove));
        assert_eq!(run(false, &[a1.clone(), b1.clone()], &[user(true)], false), Ok(Verdict::Untag));
        assert_eq!(run(false, &[a1.clone(), lost.clone()], &[], false), Ok(Verdict::Remove));
        assert_eq!(run(false, std::slice::from_ref(&a1), &[user(true)], true), Ok(Verdict::Orphan));
        let text = format!(
            "conflict: unable to delete r/a:1 (must be forced) - container 0123456789ab is using its referenced image {id}"
        );
        assert_eq!(run(false, std::slice::from_ref(&a1), &[user(false)], false), Err(text));
        // By id: running containers cannot be overruled.
        let text = format!(
            "conflict: unable to delete {id} (cannot be forced) - image is being used by running container 0123456789ab"
        );
        assert_eq!(run(true, &[a1.clone(), a2.clone()], &[user(true)], true), Err(text));
        let text = format!(
            "conflict: unable to delete {id} (must be forced) - image is being used by stopped container 0123456789ab"
        );
        assert_eq!(run(true, std::slice::from_ref(&lost), &[user(false)], false), Err(text));
        assert_eq!(run(true, &[lost], &[user(false)], true), Ok(Verdict::Remove));
        let text = format!(
            "conflict: unable to delete {id} (must be forced) - image is referenced in multiple repositories"
        );
        assert_eq!(run(true, &[a1.clone(), b1.clone()], &[], false), Err(text));
        assert_eq!(run(true, &[a1.clone(), b1], &[], true), Ok(Verdict::Remove));
        assert_eq!(run(true, &[a1, a2], &[], false), Ok(Verdict::Remove));
    }
}
