//! Which connections are open, and what each last asked for: told when the engine stops and somebody is late.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The open connections; cheap to clone.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    next: u64,
    asked: BTreeMap<u64, Option<(String, Instant)>>,
}

/// One connection, for as long as it is open.
pub struct Open {
    connections: Connections,
    number: u64,
}

impl Connections {
    /// A connection that has asked for nothing yet.
    pub fn open(&self) -> Open {
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.asked.insert(number, None);
        drop(table);
        Open { connections: self.clone(), number }
    }

    /// What is still being answered, and since when; the oldest connection first.
    pub fn late(&self) -> Vec<(String, Duration)> {
        let table = self.table();
        table.asked.values().flatten().map(|(what, since)| (what.clone(), since.elapsed())).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// The connection has a request.
    pub fn asks(&self, what: String) {
        self.connections.table().asked.insert(self.number, Some((what, Instant::now())));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connections.table().asked.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_asked_and_is_still_there_is_late() {
        let connections = Connections::default();
        let (silent, one, two) = (connections.open(), connections.open(), connections.open());
        two.asks("GET /events".into());
        one.asks("GET /_ping".into());
        one.asks("POST /containers/x/wait".into());
        let late = || connections.late().into_iter().map(|(what, _)| what).collect::<Vec<_>>();
        assert_eq!(late(), ["POST /containers/x/wait", "GET /events"]);
        drop((silent, one));
        assert_eq!(late(), ["GET /events"]);
    }
}
