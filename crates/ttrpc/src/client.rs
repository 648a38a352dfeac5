//! The calling end: many calls at once over one connection.
//!
//! One task per connection owns the socket; calls reach it through a bounded queue and wait for their answer on a channel of
//! their own. When the connection ends, for whatever reason, every waiting call fails and [`Client::closed`] resolves:
//! that is how a supervisor learns that a shim is dead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::frame::{Frame, FrameReader, Kind, MAX_MESSAGE, encode_frame};
use crate::message::{KeyValue, Request, Response};
use crate::status::{Code, Status};

/// Calls that may wait to be written; more callers wait for room.
const QUEUE: usize = 64;

/// Why a connection ended. Cloned to everyone who asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ttrpc: closed: {reason}")]
pub struct Closed {
    /// In a few words.
    pub reason: String,
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server said so.
    #[error(transparent)]
    Status(#[from] Status),
    /// The connection ended before the answer came. The call may or may not have been carried out.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// No answer in time. The call may or may not have been carried out.
    #[error("{service}/{method}: no answer within {after:?}")]
    Timeout {
        /// Called service.
        service: String,
        /// Called method.
        method: String,
        /// The time that was given.
        after: Duration,
    },
    /// The request is longer than [`MAX_MESSAGE`].
    #[error("{service}/{method}: request of {len} bytes is longer than a message may be")]
    TooLong {
        /// Called service.
        service: String,
        /// Called method.
        method: String,
        /// Bytes of the request.
        len: usize,
    },
    /// The answer is not the message that was expected.
    #[error("{service}/{method}: malformed answer")]
    Decode {
        /// Called service.
        service: String,
        /// Called method.
        method: String,
        /// What the decoder said.
        source: prost::DecodeError,
    },
}

impl CallError {
    /// The gRPC code that describes this failure best.
    pub fn code(&self) -> Code {
        match self {
            CallError::Status(status) => status.code,
            CallError::Closed(_) => Code::Unavailable,
            CallError::Timeout { .. } => Code::DeadlineExceeded,
            CallError::TooLong { .. } => Code::ResourceExhausted,
            CallError::Decode { .. } => Code::Internal,
        }
    }
}

/// A connection to a server. Clones share it; it closes when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    calls: mpsc::Sender<Outgoing>,
    waiting: Arc<Waiting>,
    closed: watch::Receiver<Option<Closed>>,
}

/// Who waits for which stream. `None` once the connection has ended.
#[derive(Debug)]
struct Waiting(Mutex<Option<HashMap<u32, oneshot::Sender<Result<Bytes, Status>>>>>);

#[derive(Debug)]
struct Outgoing {
    request: Request,
    answer: oneshot::Sender<Result<Bytes, Status>>,
    stream: oneshot::Sender<u32>,
}

impl Client {
    /// Connects to a unix socket.
    ///
    /// # Errors
    /// What `connect` says.
    pub async fn connect(path: impl AsRef<std::path::Path>) -> std::io::Result<Client> {
        Ok(Client::new(UnixStream::connect(path).await?))
    }

    /// Speaks ttrpc over a connected socket. Spawns the task that owns it, on the current runtime.
    pub fn new(socket: UnixStream) -> Client {
        let (read, write) = socket.into_split();
        Client::over(read, write)
    }

    /// Speaks ttrpc over any pair of streams.
    pub fn over<R, W>(read: R, write: W) -> Client
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (calls, queue) = mpsc::channel(QUEUE);
        let (closed_tx, closed) = watch::channel(None);
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let for_driver = waiting.clone();
        tokio::spawn(async move {
            let reason = drive(FrameReader::new(read), write, queue, &for_driver).await;
            let _ = closed_tx.send(Some(Closed { reason }));
            for_driver.end();
        });
        Client { shared: Arc::new(Shared { calls, waiting, closed }) }
    }

    /// Resolves when the connection has ended, with the reason.
    pub async fn closed(&self) -> Closed {
        let mut closed = self.shared.closed.clone();
        let outcome = closed.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        outcome.unwrap_or_else(dropped)
    }

    /// A watch that turns to `Some` when the connection has ended. Does not keep the connection open.
    pub fn watch_closed(&self) -> watch::Receiver<Option<Closed>> {
        self.shared.closed.clone()
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.borrow().is_some() || self.shared.calls.is_closed()
    }

    /// Calls a method with encoded bytes and returns encoded bytes. Without `timeout` no timer is touched.
    ///
    /// # Errors
    /// [`CallError`]; all but `Decode`.
    pub async fn call(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        metadata: Vec<KeyValue>,
        timeout: Option<Duration>,
    ) -> Result<Bytes, CallError> {
        let timeout_nano = timeout.map_or(0, |t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX));
        let request =
            Request { service: service.into(), method: method.into(), payload, timeout_nano, metadata };
        let len = request.encoded_len();
        if len > MAX_MESSAGE {
            return Err(CallError::TooLong { service: service.into(), method: method.into(), len });
        }
        let exchange = self.exchange(request);
        let Some(after) = timeout else { return exchange.await };
        match tokio::time::timeout(after, exchange).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Timeout { service: service.into(), method: method.into(), after }),
        }
    }

    /// Calls a method with a message and returns a message.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn unary<Q: Message, A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
        metadata: Vec<KeyValue>,
        timeout: Option<Duration>,
    ) -> Result<A, CallError> {
        let answer = self.call(service, method, request.encode_to_vec(), metadata, timeout).await?;
        A::decode(answer).map_err(|source| CallError::Decode {
            service: service.into(),
            method: method.into(),
            source,
        })
    }

    async fn exchange(&self, request: Request) -> Result<Bytes, CallError> {
        let (answer, answered) = oneshot::channel();
        let (stream, mut assigned) = oneshot::channel();
        if self.shared.calls.send(Outgoing { request, answer, stream }).await.is_err() {
            return Err(self.closed().await.into());
        }
        let mut guard = Forget { waiting: &self.shared.waiting, assigned: &mut assigned, armed: true };
        let outcome = answered.await;
        guard.armed = false;
        match outcome {
            Ok(Ok(payload)) => Ok(payload),
            Ok(Err(status)) => Err(CallError::Status(status)),
            Err(_) => Err(self.closed().await.into()),
        }
    }
}

/// Takes a call that was given up (dropped, timed out) off the waiting list.
struct Forget<'a> {
    waiting: &'a Waiting,
    assigned: &'a mut oneshot::Receiver<u32>,
    armed: bool,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // Not yet assigned: the driver will find the answer channel closed and not send the call at all.
        if let Ok(stream) = self.assigned.try_recv() {
            self.waiting.take(stream);
        }
    }
}

impl Waiting {
    fn add(&self, stream: u32, answer: oneshot::Sender<Result<Bytes, Status>>) {
        if let Some(waiting) = self.lock().as_mut() {
            waiting.insert(stream, answer);
        }
    }

    fn take(&self, stream: u32) -> Option<oneshot::Sender<Result<Bytes, Status>>> {
        let mut waiting = self.lock();
        let waiting = waiting.as_mut()?;
        let answer = waiting.remove(&stream);
        if waiting.is_empty() && waiting.capacity() > 64 {
            waiting.shrink_to_fit();
        }
        answer
    }

    fn end(&self) {
        self.lock().take();
    }

    fn lock(
        &self,
    ) -> std::sync::MutexGuard<'_, Option<HashMap<u32, oneshot::Sender<Result<Bytes, Status>>>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn dropped() -> Closed {
    Closed { reason: "connection task ended".into() }
}

/// Owns the socket until the connection ends or the last client is dropped; returns why.
async fn drive<R, W>(
    mut reader: FrameReader<R>,
    mut write: W,
    mut queue: mpsc::Receiver<Outgoing>,
    waiting: &Waiting,
) -> String
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut out = BytesMut::new();
    let mut next_stream: u32 = 1;
    loop {
        tokio::select! {
            biased;
            written = write.write_buf(&mut out), if !out.is_empty() => match written {
                Ok(0) => return "write returned nothing".into(),
                Ok(_) if out.is_empty() => out = BytesMut::new(),
                Ok(_) => {}
                Err(err) => return format!("write: {err}"),
            },
            frame = reader.next() => match frame {
                Ok(Some(frame)) => deliver(frame, waiting),
                Ok(None) => return "the other side closed the connection".into(),
                Err(err) => return format!("{err}"),
            },
            call = queue.recv(), if out.is_empty() => {
                let Some(Outgoing { request, answer, stream }) = call else { return "no longer used".into() };
                if answer.is_closed() {
                    continue;
                }
                waiting.add(next_stream, answer);
                if stream.send(next_stream).is_err() {
                    // Given up between the two lines.
                    waiting.take(next_stream);
                    continue;
                }
                encode_frame(&mut out, next_stream, Kind::Request, &request);
                match next_stream.checked_add(2) {
                    Some(next) => next_stream = next,
                    None => return "out of stream ids".into(),
                }
            }
        }
    }
}

/// Hands an answer to whoever waits for it; frames nobody waits for are dropped.
fn deliver(frame: Frame, waiting: &Waiting) {
    let (stream, result) = match frame {
        Frame::Message(header, body) if header.kind == Kind::Response => (header.stream, read_response(body)),
        Frame::TooLong(header) if header.kind == Kind::Response => {
            let text = "response is longer than a message may be";
            (header.stream, Err(Status::new(Code::ResourceExhausted, text)))
        }
        Frame::Message(..) | Frame::TooLong(_) => return,
    };
    if let Some(answer) = waiting.take(stream) {
        let _ = answer.send(result);
    }
}

fn read_response(body: Bytes) -> Result<Bytes, Status> {
    match Response::decode(body) {
        Ok(Response { status: Some(status), .. }) if status.code != 0 => Err(status.into()),
        Ok(Response { payload, .. }) => Ok(payload.into()),
        Err(err) => Err(Status::internal(format!("unmarshal response: {err}"))),
    }
}
