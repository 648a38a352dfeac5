//! What happened, told to those who asked.
//!
//! Invariant: a subscriber sees every event it asked for, in the order they were published, or is told that it missed some: one that does
//! not keep up is cut off with an error instead of being given a gap. Publishing never waits for a subscriber.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use containerd_api::error::{Error, Kind, quote};
use containerd_api::ns::validate_identifier;
use containerd_api::types::Envelope;
use prost_types::{Any, Timestamp};
use tokio::sync::mpsc;

use crate::filters::Filters;

mod fields;

/// Events a subscriber may be behind.
const BACKLOG: usize = 4096;

/// Passes events from publishers to subscribers of all namespaces.
pub struct Exchange {
    subscribers: Mutex<Vec<Subscriber>>,
    /// What those who subscribe soon after our start are told first. Locked only while `subscribers` is.
    lasting: Mutex<Vec<Arc<Envelope>>>,
    started: Instant,
}

/// How long after our start a client is thought to be coming back from our crash.
const COMING_BACK: Duration = Duration::from_secs(60);
/// More than this happened to nobody's tasks while we were away.
const LASTING_MAX: usize = 4096;

struct Subscriber {
    filters: Filters,
    queue: mpsc::Sender<Result<Arc<Envelope>, Error>>,
    /// One place of the queue is kept for saying that it overflowed.
    lagged: bool,
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

impl Exchange {
    pub fn new() -> Self {
        Self { subscribers: Mutex::new(Vec::new()), lasting: Mutex::new(Vec::new()), started: Instant::now() }
    }

    /// As [`Exchange::forward`]; who subscribes within a minute of our start is told as well.
    ///
    /// For events of what outlived us: our clients lost their subscriptions when we died, and an exit that happened before
    /// they are back would never be heard of.
    ///
    /// # Errors
    /// `InvalidArgument` when it is malformed.
    pub fn forward_lasting(&self, envelope: Envelope) -> Result<(), Error> {
        validate(&envelope)?;
        let envelope = Arc::new(envelope);
        let mut subscribers = self.locked();
        let mut lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.started.elapsed() >= COMING_BACK {
            *lasting = Vec::new();
        } else if lasting.len() < LASTING_MAX {
            lasting.push(Arc::clone(&envelope));
        }
        drop(lasting);
        Self::send_to(&mut subscribers, &envelope);
        Ok(())
    }

    /// Publishes `event` now, under `topic` in `namespace`.
    ///
    /// # Errors
    /// `InvalidArgument` when namespace, topic or payload are malformed.
    pub fn publish(&self, namespace: &str, topic: &str, event: Any) -> Result<(), Error> {
        self.forward(Envelope {
            timestamp: Some(now()),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(event),
        })
    }

    /// Publishes an event that already has its time and namespace.
    ///
    /// # Errors
    /// `InvalidArgument` when it is malformed.
    pub fn forward(&self, mut envelope: Envelope) -> Result<(), Error> {
        validate(&envelope)?;
        // Stock containerd takes an event without time as well.
        envelope.timestamp.get_or_insert_with(now);
        self.send(envelope);
        Ok(())
    }

    /// [`Exchange::publish`] for our own topics, which are well-formed.
    pub(crate) fn publish_own(&self, namespace: &str, topic: &'static str, event: Any) {
        self.send(Envelope {
            timestamp: Some(now()),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(event),
        });
    }

    /// All events from now on that any of `filters` matches; no filter matches all.
    ///
    /// # Errors
    /// `InvalidArgument` when a filter does not parse.
    pub fn subscribe(&self, filters: &[String]) -> Result<Subscription, Error> {
        let filters = Filters::parse(filters)?;
        let (queue, events) = mpsc::channel(BACKLOG);
        let mut subscribers = self.locked();
        let mut subscriber = [Subscriber { filters, queue, lagged: false }].into();
        let mut lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.started.elapsed() >= COMING_BACK {
            *lasting = Vec::new();
        }
        for envelope in lasting.iter() {
            Self::send_to(&mut subscriber, envelope);
        }
        subscribers.append(&mut subscriber);
        Ok(Subscription { events })
    }

    /// Ends all subscriptions: each gets what is queued, then the end.
    pub fn close(&self) {
        self.locked().clear();
    }

    fn send(&self, envelope: Envelope) {
        Self::send_to(&mut self.locked(), &Arc::new(envelope));
    }

    fn send_to(subscribers: &mut Vec<Subscriber>, envelope: &Arc<Envelope>) {
        subscribers.retain_mut(|subscriber| {
            if !subscriber.filters.is_empty() && !subscriber.filters.matches(envelope.as_ref()) {
                return !subscriber.queue.is_closed();
            }
            if subscriber.queue.capacity() <= 1 {
                subscriber.lagged = true;
            }
            if subscriber.lagged {
                let err =
                    Error::new(Kind::ResourceExhausted, "events: subscriber is too slow, events were missed");
                // Either it fits, or the receiver is gone.
                let _ = subscriber.queue.try_send(Err(err));
                return false;
            }
            subscriber.queue.try_send(Ok(Arc::clone(envelope))).is_ok()
        });
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiving end. Dropping it ends the subscription.
pub struct Subscription {
    events: mpsc::Receiver<Result<Arc<Envelope>, Error>>,
}

impl Subscription {
    /// The next event; an error is the last one, as is `None` when the daemon stops.
    pub async fn next(&mut self) -> Option<Result<Arc<Envelope>, Error>> {
        self.events.recv().await
    }

    pub(crate) fn poll_next(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Arc<Envelope>, Error>>> {
        self.events.poll_recv(cx)
    }
}

/// The current time as a message.
pub fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

fn validate(envelope: &Envelope) -> Result<(), Error> {
    validate_identifier(&envelope.namespace)
        .map_err(|err| err.context("event envelope has invalid namespace"))?;
    validate_topic(&envelope.topic)
        .map_err(|err| err.context(format_args!("envelope topic {}", quote(&envelope.topic))))?;
    Ok(())
}

fn validate_topic(topic: &str) -> Result<(), Error> {
    if topic.is_empty() {
        return Err(Error::invalid("must not be empty"));
    }
    let Some(rest) = topic.strip_prefix('/') else {
        return Err(Error::invalid("must start with '/'"));
    };
    if rest.is_empty() {
        return Err(Error::invalid("must have at least one component"));
    }
    rest.split('/').try_for_each(|component| {
        validate_identifier(component)
            .map_err(|err| err.context(format_args!("failed validation on component {}", quote(component))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_api::any::pack;
    use containerd_api::event::TaskExit;

    fn exit(id: &str) -> Any {
        pack(&TaskExit { container_id: id.to_owned(), id: id.to_owned(), ..TaskExit::default() })
    }

    #[tokio::test]
    async fn subscribers_get_what_they_asked_for_in_order() {
        let exchange = Exchange::new();
        let mut all = exchange.subscribe(&[]).unwrap();
        let mut some = exchange
            .subscribe(&[r#"namespace==moby,topic~=|^/tasks/|,event.container_id==b"#.to_owned()])
            .unwrap();
        exchange.publish("moby", "/tasks/exit", exit("a")).unwrap();
        exchange.publish("other", "/tasks/exit", exit("b")).unwrap();
        exchange.publish("moby", "/images/create", exit("b")).unwrap();
        exchange.publish("moby", "/tasks/exit", exit("b")).unwrap();
        exchange.close();
        let mut count = 0;
        while let Some(event) = all.next().await {
            event.unwrap();
            count += 1;
        }
        assert_eq!(count, 4);
        let only = some.next().await.unwrap().unwrap();
        assert_eq!((only.namespace.as_str(), only.event.clone()), ("moby", Some(exit("b"))));
        assert!(some.next().await.is_none());
    }

    #[tokio::test]
    async fn a_subscriber_that_does_not_keep_up_is_told_so() {
        let exchange = Exchange::new();
        let mut slow = exchange.subscribe(&[]).unwrap();
        for _ in 0..BACKLOG + 10 {
            exchange.publish("a", "/t", exit("x")).unwrap();
        }
        let mut seen = 0;
        let err = loop {
            match slow.next().await.unwrap() {
                Ok(_) => seen += 1,
                Err(err) => break err,
            }
        };
        assert_eq!(seen, BACKLOG - 1);
        assert_eq!(err.kind(), Kind::ResourceExhausted);
        assert!(slow.next().await.is_none());
    }

    #[test]
    fn malformed_events_are_refused() {
        let exchange = Exchange::new();
        for (namespace, topic) in
            [("", "/t"), ("a", ""), ("a", "t"), ("a", "/"), ("a", "/a//b"), ("a b", "/t")]
        {
            let err = exchange.publish(namespace, topic, Any::default()).unwrap_err();
            assert_eq!(err.kind(), Kind::InvalidArgument, "{namespace} {topic}: {err}");
        }
    }
}
