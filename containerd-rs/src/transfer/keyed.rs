//! Doing a thing once although several ask for it at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// A lock per key; keys nobody holds take no room.
#[derive(Debug, Default)]
pub struct Keyed {
    locks: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
}

impl Keyed {
    /// Waits until nobody else holds `key`.
    pub async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(AsyncMutex::new(()));
                    locks.insert(key.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_per_key_and_nothing_is_kept() {
        let keyed = Keyed::default();
        let first = keyed.lock("a").await;
        let other = keyed.lock("b").await;
        let wait = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(wait, keyed.lock("a")).await.is_err());
        drop((first, other));
        drop(keyed.lock("a").await);
        drop(keyed.lock("c").await);
        assert_eq!(keyed.locks.lock().unwrap().len(), 1);
    }
}
