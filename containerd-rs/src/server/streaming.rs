//! `containerd.services.streaming.v1.Streaming`.

use containerd_api::error::Error;
use containerd_api::ns::Namespace;
use containerd_api::streaming::StreamInit;
use containerd_api::streaming::streaming_server::{Streaming, StreamingServer};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;

/// The service.
pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> StreamingServer<Service> {
    StreamingServer::new(Service(daemon.clone()))
}

#[tonic::async_trait]
impl Streaming for Service {
    type StreamStream = ReceiverStream<Result<Any, Status>>;

    async fn stream(
        &self,
        request: Request<tonic::Streaming<Any>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let mut inward = request.into_inner();
        let (answers, outward) = mpsc::channel(4);
        let daemon = self.0.clone();
        // The answer's head must not wait for the first message: some clients send it only after the head.
        tokio::spawn(async move {
            if let Err(status) = relay(&daemon, namespace.as_str(), &mut inward, &answers).await {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(outward)))
    }
}

/// Registers the stream the client names and carries messages both ways until one side ends.
async fn relay(
    daemon: &Daemon,
    namespace: &str,
    inward: &mut tonic::Streaming<Any>,
    answers: &mpsc::Sender<Result<Any, Status>>,
) -> Result<(), Status> {
    let first = inward.next().await.ok_or_else(|| Error::invalid("no stream init"))??;
    let init = containerd_api::any::unpack::<StreamInit>(&first)
        .map_err(|err| Error::invalid(err.to_string()))?
        .ok_or_else(|| Error::invalid(format!("unexpected first message {}", first.type_url)))?;
    let mut ends = daemon.transfer.streams.open(namespace, &init.id)?;
    let empty = Any { type_url: "google.protobuf.Empty".into(), value: Vec::new() };
    if answers.send(Ok(empty)).await.is_err() {
        daemon.transfer.streams.close(namespace, &init.id);
        return Ok(());
    }
    let mut to_daemon = Some(ends.to_daemon);
    loop {
        tokio::select! {
            message = ends.from_daemon.recv() => {
                // The daemon has done with the stream.
                let Some(message) = message else { break };
                if answers.send(Ok(message)).await.is_err() {
                    break;
                }
            }
            message = inward.next(), if to_daemon.is_some() => {
                match message {
                    Some(Ok(message)) => {
                        // Waiting here makes the client wait: its window is what the daemon has granted.
                        let sent = match &to_daemon {
                            Some(sender) => sender.send(message).await.is_ok(),
                            None => false,
                        };
                        if !sent {
                            to_daemon = None;
                        }
                    }
                    // The client has no more to say but may still listen.
                    Some(Err(_)) | None => to_daemon = None,
                }
            }
            () = answers.closed() => break,
        }
    }
    daemon.transfer.streams.close(namespace, &init.id);
    Ok(())
}
