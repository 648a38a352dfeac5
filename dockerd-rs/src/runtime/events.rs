//! What containerd says happened: streams of events of the engine's namespace, those of tasks as types.
//!
//! A subscription sees what happens from its beginning on; whoever uses it asks for the present state after subscribing, so that nothing
//! falls between. It ends with an error when containerd goes away.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_api::event;
use containerd_api::events::events_client::EventsClient;
use containerd_api::events::{PublishRequest, SubscribeRequest};
use containerd_api::streaming::StreamInit;
use containerd_api::types::Envelope;
use containerd_api::{MAX_MESSAGE_BYTES, any, ns};
use futures_util::Stream;
use shim_api::own_events::LogDropped;
use shim_api::topic;

use super::Runtime;
use super::tasks::{Ended, ended};
use crate::error::{Error, Result};

/// Something that happened to a container's processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskEvent {
    /// A process ended: the container's own when `exec` is empty.
    Exit {
        /// The container.
        container: String,
        /// The extra process, or nothing.
        exec: String,
        /// Its process id.
        pid: u32,
        /// How and when.
        ended: Ended,
    },
    /// The kernel killed a process of the container for want of memory.
    Oom {
        /// The container.
        container: String,
    },
    /// All processes were frozen.
    Paused {
        /// The container.
        container: String,
    },
    /// The shim could not write the container's log, or can again.
    LogDropped {
        /// The container.
        container: String,
        /// How many lines are missing so far in this run.
        lines: u64,
        /// Why.
        reason: String,
    },
    /// They go on.
    Resumed {
        /// The container.
        container: String,
    },
}

/// The topic of the event that shows that a subscription stands.
const PROBE_TOPIC: &str = "/engine/subscribed";
/// The first pause between two such events.
const PROBE: Duration = Duration::from_millis(5);
/// The longest one.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// A running subscription.
pub struct TaskEvents {
    stream: tonic::Streaming<Envelope>,
    namespace: String,
}

impl Runtime {
    /// Subscribes to the task events of this namespace.
    ///
    /// # Errors
    /// containerd is away.
    pub async fn task_events(&self) -> Result<TaskEvents> {
        let topics = ["/tasks/exit", "/tasks/oom", "/tasks/paused", "/tasks/resumed", topic::LOG_DROPPED];
        let stream = self.subscribe(&topics).await?;
        Ok(TaskEvents { stream, namespace: self.namespace().to_owned() })
    }

    /// Subscribes to events of this namespace by topic. The subscription stands when this returns.
    ///
    /// # Errors
    /// containerd is away.
    pub(super) async fn subscribe(&self, topics: &[&str]) -> Result<tonic::Streaming<Envelope>> {
        let filter = |topic: &&str| format!("namespace=={},topic=={topic:?}", self.namespace());
        let filters = topics.iter().chain([&PROBE_TOPIC]).map(filter).collect();
        let mut client = EventsClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        // No deadline: the stream lasts as long as containerd does.
        let request = ns::request(SubscribeRequest { filters }, self.namespace(), None);
        let mut publisher = client.clone();
        let opening = client.subscribe(request);
        tokio::pin!(opening);
        let mut pause = PROBE;
        // containerd says nothing, not even that the subscription stands, before the first event: so there is one of our own.
        loop {
            let probe = PublishRequest {
                topic: PROBE_TOPIC.to_owned(),
                event: Some(any::pack(&StreamInit { id: "subscribed".to_owned() })),
            };
            tokio::select! {
                answer = &mut opening => return Ok(answer?.into_inner()),
                () = tokio::time::sleep(pause) => {}
            }
            if pause > PROBE_PATIENCE {
                return Err(Error::unavailable("containerd does not answer the subscription to its events"));
            }
            pause *= 2;
            let publish = publisher.publish(self.request(probe, PROBE_PATIENCE));
            tokio::select! {
                answer = &mut opening => return Ok(answer?.into_inner()),
                sent = publish => { sent?; }
            }
        }
    }
}

impl Stream for TaskEvents {
    type Item = Result<TaskEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match Pin::new(&mut self.stream).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status.into()))),
                Poll::Ready(Some(Ok(envelope))) => {
                    if envelope.namespace != self.namespace {
                        continue;
                    }
                    if let Some(event) = envelope.event.as_ref().and_then(read) {
                        return Poll::Ready(Some(Ok(event)));
                    }
                }
            }
        }
    }
}

/// The event inside, or `None` when it is none of ours or cannot be read.
fn read(any: &prost_types::Any) -> Option<TaskEvent> {
    if let Ok(Some(exit)) = any::unpack::<event::TaskExit>(any) {
        // `id` is the process: the container's own id, or that of an exec.
        let exec = if exit.id == exit.container_id { String::new() } else { exit.id };
        let ended = ended(exit.exit_status, exit.exited_at);
        return Some(TaskEvent::Exit { container: exit.container_id, exec, pid: exit.pid, ended });
    }
    if let Ok(Some(oom)) = any::unpack::<event::TaskOom>(any) {
        return Some(TaskEvent::Oom { container: oom.container_id });
    }
    if let Ok(Some(dropped)) = any::unpack::<LogDropped>(any) {
        let LogDropped { container_id, lines, reason } = dropped;
        return Some(TaskEvent::LogDropped { container: container_id, lines, reason });
    }
    if let Ok(Some(paused)) = any::unpack::<event::TaskPaused>(any) {
        return Some(TaskEvent::Paused { container: paused.container_id });
    }
    if let Ok(Some(resumed)) = any::unpack::<event::TaskResumed>(any) {
        return Some(TaskEvent::Resumed { container: resumed.container_id });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_of_the_container_and_of_an_exec_are_told_apart() {
        let exit = |id: &str| {
            let at = prost_types::Timestamp { seconds: 5, nanos: 7 };
            let exit = event::TaskExit {
                container_id: "c".into(),
                id: id.into(),
                pid: 9,
                exit_status: 3,
                exited_at: Some(at),
            };
            read(&any::pack(&exit))
        };
        let at = jiff::Timestamp::new(5, 7).unwrap();
        let expect = |exec: &str| TaskEvent::Exit {
            container: "c".into(),
            exec: exec.into(),
            pid: 9,
            ended: Ended { code: 3, at },
        };
        assert_eq!(exit("c"), Some(expect("")));
        assert_eq!(exit("e"), Some(expect("e")));
        assert_eq!(read(&any::pack(&event::TaskStart::default())), None);
    }
}
