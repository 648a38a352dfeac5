//! Container names: which are allowed, who has which, and inventing one.
//!
//! Invariant: a name belongs to one container at most. It is taken before anything else of a container exists and freed when the
//! [`Reservation`] is dropped without [`Reservation::keep`], so a failed create leaves no name behind.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// The longest name: it is also a host name's first guess and a column in lists.
const MAX_BYTES: usize = 255;
/// How often a random name is tried before a number is added.
const TRIES: usize = 6;

/// The index; cheap to clone.
#[derive(Clone, Default)]
pub struct Names(Arc<Mutex<HashMap<String, String>>>);

/// A name taken for a container that does not exist yet.
#[must_use]
pub struct Reservation {
    names: Names,
    name: Option<String>,
}

impl Names {
    fn map(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container that has `name` (without its leading slash).
    pub fn find(&self, name: &str) -> Option<String> {
        self.map().get(name).cloned()
    }

    /// Takes `name` for the container `id`.
    ///
    /// # Errors
    /// Another container has it; the error is its id.
    pub fn reserve(&self, name: &str, id: &str) -> Result<Reservation, String> {
        let mut map = self.map();
        match map.get(name) {
            Some(owner) if owner != id => Err(owner.clone()),
            // A name one already has stays when the reservation is given up.
            Some(_) => Ok(Reservation { names: self.clone(), name: None }),
            None => {
                map.insert(name.to_owned(), id.to_owned());
                drop(map);
                Ok(Reservation { names: self.clone(), name: Some(name.to_owned()) })
            }
        }
    }

    /// Takes a random name for the container `id`.
    pub fn invent(&self, id: &str) -> (String, Reservation) {
        for attempt in 0..TRIES {
            let name = random_name(if attempt + 1 < TRIES { 0 } else { random(1_000) + 1 });
            if let Ok(reservation) = self.reserve(&name, id) {
                return (name, reservation);
            }
        }
        // The id is random too, and nobody else has it.
        let name = id.get(..12).unwrap_or(id).to_owned();
        let reservation = self.reserve(&name, id).unwrap_or(Reservation { names: self.clone(), name: None });
        (name, reservation)
    }

    /// Frees `name`, if it is `id`'s.
    pub fn free(&self, name: &str, id: &str) {
        let mut map = self.map();
        if map.get(name).is_some_and(|owner| owner == id) {
            map.remove(name);
        }
    }

    /// Frees all names of `id`.
    pub fn free_all(&self, id: &str) {
        self.map().retain(|_, owner| owner != id);
    }

    /// A container was renamed: the names of its legacy links follow.
    pub fn move_links(&self, old: &str, new: &str) {
        let mut map = self.map();
        let prefix = format!("{old}/");
        let moved: Vec<String> = map.keys().filter(|name| name.starts_with(&prefix)).cloned().collect();
        for name in moved {
            if let Some(owner) = map.remove(&name) {
                map.insert(format!("{new}/{}", &name[prefix.len()..]), owner);
            }
        }
    }

    /// All names that lead to each container: its own and legacy link aliases (`parent/alias`).
    pub fn by_id(&self) -> BTreeMap<String, Vec<String>> {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, id) in self.map().iter() {
            found.entry(id.clone()).or_default().push(name.clone());
        }
        found
    }
}

impl Reservation {
    /// The name is the container's from now on.
    pub fn keep(mut self) {
        self.name = None;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.names.map().remove(&name);
        }
    }
}

/// Checks a name a client gave and takes its leading slash away.
///
/// # Errors
/// Docker's refusal.
pub fn check(name: &str) -> Result<&str> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut bytes = bare.bytes();
    let valid = bare.len() <= MAX_BYTES
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.len() > 0
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if valid {
        Ok(bare)
    } else {
        Err(Error::invalid(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )))
    }
}

/// The refusal of a name that `owner` has.
pub fn conflict(name: &str, owner: &str) -> Error {
    Error::conflict(format!(
        "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to remove (or rename) that container to be able to reuse that name."
    ))
}

/// `adjective_noun`, with a number behind it unless that is 0.
fn random_name(number: usize) -> String {
    let word = |words: &[&'static str]| words.get(random(words.len())).copied().unwrap_or("plain");
    let (adjective, noun) = (word(ADJECTIVES), word(NOUNS));
    if number == 0 { format!("{adjective}_{noun}") } else { format!("{adjective}_{noun}{number}") }
}

fn random(below: usize) -> usize {
    let number = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
    usize::try_from(number % below.max(1) as u64).unwrap_or(0)
}

#[rustfmt::skip]
const ADJECTIVES: &[&str] = &[
    "agile", "amber", "ample", "apt", "azure", "balmy", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid", "clever",
    "copper", "cosy", "crisp", "curious", "daring", "deft", "eager", "earnest", "easy", "fair", "fleet", "fond", "frank", "fresh",
    "gentle", "glad", "golden", "good", "grand", "green", "handy", "happy", "hardy", "honest", "humble", "ivory", "jolly", "keen",
    "kind", "lively", "loyal", "lucid", "lucky", "mellow", "merry", "mighty", "mild", "modest", "neat", "nimble", "noble", "patient",
    "plucky", "polite", "proud", "quick", "quiet", "rapid", "ready", "robust", "rosy", "serene", "sharp", "silver", "sincere", "sleek",
    "smart", "snug", "sober", "solid", "spry", "stable", "steady", "still", "stout", "sunny", "swift", "tender", "tidy", "true",
    "upbeat", "vivid", "warm", "wise", "witty", "zesty",
];

#[rustfmt::skip]
const NOUNS: &[&str] = &[
    "acorn", "anchor", "aspen", "badger", "beacon", "beaver", "birch", "bison", "breeze", "brook", "canyon", "cedar", "cliff", "cloud",
    "comet", "coral", "crane", "creek", "cypress", "dawn", "delta", "dolphin", "dune", "eagle", "elm", "ember", "falcon", "fern",
    "finch", "fjord", "forest", "fox", "garnet", "glacier", "grove", "gull", "harbor", "hawk", "hazel", "heron", "hill", "island",
    "jasper", "kelp", "kestrel", "lagoon", "lake", "larch", "lark", "lynx", "maple", "marsh", "meadow", "moose", "moss", "oak",
    "ocean", "opal", "orchid", "osprey", "otter", "owl", "pebble", "pelican", "pine", "plover", "pond", "poplar", "puffin", "quartz",
    "rain", "raven", "reef", "ridge", "river", "robin", "rowan", "salmon", "seal", "sequoia", "shore", "sparrow", "spruce", "stone",
    "stork", "summit", "swan", "thrush", "tide", "trout", "tulip", "valley", "walnut", "whale", "willow", "wren",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_that_is_given_up_frees_its_name() {
        let names = Names::default();
        let first = names.reserve("web", "1").unwrap();
        assert_eq!(names.reserve("web", "2").err(), Some("1".to_owned()));
        drop(first);
        names.reserve("web", "2").unwrap().keep();
        assert_eq!(names.find("web").as_deref(), Some("2"));
        // Taking one's own name again does not risk it.
        drop(names.reserve("web", "2").unwrap());
        assert_eq!(names.find("web").as_deref(), Some("2"));
        names.free("web", "1");
        assert_eq!(names.find("web").as_deref(), Some("2"));
        names.free_all("2");
        assert_eq!(names.find("web"), None);
    }

    #[test]
    fn names_are_checked_as_docker_does() {
        for good in ["ab", "/ab", "a.b-c_d", "0x"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "/", "-x", "_x", "a b", "rec/x", "ä1", "//ab"] {
            let text = format!("Invalid container name ({bad}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
            assert_eq!(check(bad).unwrap_err().message(), text);
        }
    }

    #[test]
    fn invented_names_are_allowed_and_taken() {
        let names = Names::default();
        for nth in 0..200 {
            let (name, reservation) = names.invent(&format!("{nth:064}"));
            assert!(check(&name).is_ok(), "{name}");
            reservation.keep();
        }
        assert_eq!(names.by_id().len(), 200);
    }
}
