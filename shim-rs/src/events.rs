//! Events to containerd, in order, whether or not it is there.
//!
//! Invariant: an event is sent only after the one before it was taken or refused. While nobody listens they wait; the queue is bounded, and of what no
//! longer fits the oldest goes that is no exit. A connection that breaks before the answer makes the event go out again: containerd may see one twice,
//! never none.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use prost::{Message, Name};
use shim_api::forward::ForwardRequest;
use shim_api::types::Envelope;
use shim_api::{service, topic};
use tokio::sync::Notify;

use crate::clock::Instant;
use crate::log::Log;

/// How many events wait at most, exits aside.
const QUEUE_MAX: usize = 2048;
/// How long containerd may take to answer one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Waits between attempts to reach it grow from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The way to containerd.
pub struct Events {
    namespace: String,
    address: Option<PathBuf>,
    log: Rc<Log>,
    queue: RefCell<VecDeque<Envelope>>,
    more: Notify,
    sent: Notify,
    sending: Cell<bool>,
}

impl Events {
    /// Sends to the ttrpc socket at `address`; without one events are dropped. Needs a `LocalSet`.
    pub fn start(namespace: &str, address: Option<PathBuf>, log: Rc<Log>) -> Rc<Events> {
        let events = Rc::new(Events {
            namespace: namespace.to_owned(),
            address,
            log,
            queue: RefCell::default(),
            more: Notify::new(),
            sent: Notify::new(),
            sending: Cell::new(false),
        });
        if events.address.is_some() {
            tokio::task::spawn_local(events.clone().send_all());
        }
        events
    }

    /// Queues an event, with the time of now.
    pub fn publish<M: Message + Name>(&self, topic: &str, event: &M) {
        if self.address.is_none() {
            return;
        }
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= QUEUE_MAX {
            make_room(&mut queue);
        }
        queue.push_back(Envelope {
            timestamp: Some(Instant::now().timestamp()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(shim_api::any::pack(event)),
        });
        self.more.notify_one();
    }

    /// Resolves when everything queued was delivered.
    pub async fn delivered(&self) {
        while self.address.is_some() && (self.sending.get() || !self.queue.borrow().is_empty()) {
            self.sent.notified().await;
        }
    }

    async fn send_all(self: Rc<Self>) {
        let Some(address) = self.address.as_ref() else { return };
        let mut connection: Option<ttrpc::Client> = None;
        let mut wait = RETRY.0;
        loop {
            let next = self.queue.borrow_mut().pop_front();
            self.sending.set(next.is_some());
            let Some(envelope) = next else {
                self.sent.notify_waiters();
                self.more.notified().await;
                continue;
            };
            let what = envelope.topic.clone();
            let request = ForwardRequest { envelope: Some(envelope) };
            let outcome = forward(&mut connection, address, &request).await;
            match outcome {
                Ok(()) => wait = RETRY.0,
                Err(Failure::Refused(why)) => {
                    self.log.error(&format!("event {what} refused: {why}"));
                    wait = RETRY.0;
                }
                Err(Failure::Unreachable(why)) => {
                    self.log.debug(|| format!("event {what} has to wait: {why}"));
                    connection = None;
                    if let Some(envelope) = request.envelope {
                        self.queue.borrow_mut().push_front(envelope);
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }
}

enum Failure {
    /// It answered that it does not want this one.
    Refused(String),
    /// It did not answer.
    Unreachable(String),
}

async fn forward(
    connection: &mut Option<ttrpc::Client>,
    address: &Path,
    request: &ForwardRequest,
) -> Result<(), Failure> {
    let client = match connection.as_ref().filter(|client| !client.is_closed()) {
        Some(client) => client.clone(),
        None => {
            let socket = sys::unixpath::connect_nonblocking(address)
                .and_then(tokio::net::UnixStream::from_std)
                .map_err(|err| Failure::Unreachable(err.to_string()))?;
            connection.insert(ttrpc::Client::new(socket)).clone()
        }
    };
    match client.unary::<_, ()>(service::EVENTS, "Forward", request, Vec::new(), Some(PATIENCE)).await {
        Ok(()) => Ok(()),
        Err(ttrpc::CallError::Status(status)) if status.code != ttrpc::Code::Unavailable => {
            Err(Failure::Refused(status.message))
        }
        Err(err @ (ttrpc::CallError::TooLong { .. } | ttrpc::CallError::Decode { .. })) => {
            Err(Failure::Refused(err.to_string()))
        }
        Err(err) => Err(Failure::Unreachable(err.to_string())),
    }
}

/// Takes out the oldest event that is no exit; exits are never lost, and there are only so many processes.
fn make_room(queue: &mut VecDeque<Envelope>) {
    if let Some(at) = queue.iter().position(|envelope| envelope.topic != topic::TASK_EXIT) {
        queue.remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_stay_when_the_queue_is_full() {
        let named = |topic: &str| Envelope { topic: topic.to_owned(), ..Envelope::default() };
        let mut queue: VecDeque<_> =
            [topic::TASK_EXIT, topic::TASK_START, topic::TASK_EXIT, topic::TASK_DELETE].map(named).into();
        make_room(&mut queue);
        make_room(&mut queue);
        make_room(&mut queue);
        let left: Vec<_> = queue.iter().map(|envelope| envelope.topic.as_str()).collect();
        assert_eq!(left, [topic::TASK_EXIT, topic::TASK_EXIT]);
    }
}
