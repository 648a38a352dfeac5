//! `containerd.services.events.v1`.

use std::pin::Pin;
use std::task::{Context, Poll};

use containerd_api::events::events_server::{Events, EventsServer};
use containerd_api::events::{ForwardRequest, PublishRequest, SubscribeRequest};
use containerd_api::ns::Namespace;
use containerd_api::types::Envelope;
use containerd_api::{Error, Kind};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;
use crate::events::Subscription;

pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> EventsServer<Service> {
    EventsServer::new(Service(daemon.clone()))
}

#[tonic::async_trait]
impl Events for Service {
    type SubscribeStream = Envelopes;

    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let PublishRequest { topic, event } = request.into_inner();
        self.0.events.publish(namespace.as_str(), &topic, event.unwrap_or_default())?;
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<()>, Status> {
        let envelope = request.into_inner().envelope.ok_or_else(|| Error::invalid("envelope is required"))?;
        self.0.events.forward(envelope)?;
        Ok(Response::new(()))
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Envelopes>, Status> {
        let subscription = self.0.events.subscribe(&request.into_inner().filters).map_err(|err| {
            // containerd does not classify this one: its clients see the text and `Unknown`.
            let what = format!("subscription error: failed parsing subscription filters: {err}");
            Error::new(Kind::Unknown, what)
        })?;
        Ok(Response::new(Envelopes(subscription)))
    }
}

/// A subscription as the stream of an answer.
pub struct Envelopes(Subscription);

impl Stream for Envelopes {
    type Item = Result<Envelope, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0
            .poll_next(cx)
            .map(|next| next.map(|event| event.map(|event| (*event).clone()).map_err(Status::from)))
    }
}
