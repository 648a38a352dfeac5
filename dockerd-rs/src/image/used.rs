//! When an image was last of use.
//!
//! A container uses its image from its creation to its end; while there is one, its record says when that was. What remains to be
//! remembered is the last use by containers that are gone: in memory at once, in the store soon after, off the way of any request.

use std::collections::HashMap;
use std::sync::PoisonError;

use jiff::{SignedDuration, Timestamp};
use oci::Digest;

use super::{ImageUser, Images};
use crate::error::{Error, Result};
use crate::runtime::catalog::View;
use crate::store::{Store, Table};

/// Key of an image's last use, before its id.
const PREFIX: &str = "last-use/";
/// What is written again is at least so much later than what was written before.
const STEP: SignedDuration = SignedDuration::from_secs(60);

/// Last uses by containers that are gone, as far as they were written: by image id.
pub(super) type Used = HashMap<String, Timestamp>;

/// Reads what is remembered.
pub(super) fn read(store: &Store) -> Result<Used> {
    let rows = store.list::<Timestamp>(Table::Images, PREFIX)?;
    let rows = rows.into_iter().take_while(|(key, _)| key.starts_with(PREFIX));
    Ok(rows.filter_map(|(key, at)| Some((key.strip_prefix(PREFIX)?.to_owned(), at.ok()?))).collect())
}

impl Images {
    /// A container of the image `id` was there until `at`.
    pub fn note_used(&self, id: &str, at: Timestamp) {
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.get(id).is_some_and(|known| at.duration_since(*known) < STEP) {
            return;
        }
        used.insert(id.to_owned(), at);
        drop(used);
        let (store, key) = (self.0.store.clone(), format!("{PREFIX}{id}"));
        tokio::spawn(async move {
            if let Err(err) = store.put(Table::Images, key, &at).await {
                tracing::warn!(error = %err, "last use of an image not noted");
            }
        });
    }

    /// When the image was last used: now, while a container of it runs; `None` if it never was.
    pub(crate) fn last_used(&self, id: &Digest, users: &[ImageUser]) -> Option<Timestamp> {
        let used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        let by_records = users.iter().filter(|user| user.image_id == id.as_str()).map(|user| user.last_used);
        by_records.chain(used.get(id.as_str()).copied()).max()
    }

    /// Forgets the uses of images that are no longer there: removed by others, or before their last container.
    pub(super) async fn forget_uses_but(&self, view: &View) -> Result<()> {
        let known: Vec<String> =
            self.0.used.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        for id in known.iter().filter_map(|id| Digest::parse(id).ok()) {
            if !view.targets.contains_key(&id) {
                self.forget_use(&id).await?;
            }
        }
        Ok(())
    }

    /// The image is gone.
    pub(super) async fn forget_use(&self, id: &Digest) -> Result<()> {
        let known = self.0.used.lock().unwrap_or_else(PoisonError::into_inner).remove(id.as_str());
        match known {
            Some(_) => self.0.store.delete(Table::Images, format!("{PREFIX}{id}")).await,
            None => Ok(()),
        }
    }
}

/// The `unused-for` filter: Go's durations, and days (`30d`) and weeks (`2w`).
///
/// # Errors
/// 400 for anything else.
pub(super) fn unused_since(text: &str, now: Timestamp) -> Result<Timestamp> {
    let days = |unit: char, days: i64| {
        let number: i64 = text.strip_suffix(unit)?.parse().ok()?;
        SignedDuration::try_from_hours(number.checked_mul(24 * days)?)
    };
    let length = days('d', 1).or_else(|| days('w', 7)).or_else(|| crate::api::times::duration(text));
    length
        .filter(|length| !length.is_negative())
        .and_then(|length| now.checked_sub(length).ok())
        .ok_or_else(|| Error::invalid(format!("invalid filter 'unused-for=[{text}]'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        let now = Timestamp::from_second(10_000_000).unwrap();
        for (text, seconds) in [("2d", 172_800), ("1w", 604_800), ("1h30m", 5_400), ("0", 0)] {
            let since = unused_since(text, now).map(|at| now.as_second() - at.as_second());
            assert_eq!(since.ok(), Some(seconds), "{text}");
        }
        for text in ["", "x", "-1h", "d", "9223372036854775807w"] {
            assert!(unused_since(text, now).is_err(), "{text}");
        }
    }
}
