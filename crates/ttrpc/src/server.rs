//! The answering end.
//!
//! A connection is one future that reads calls, drives their handlers and writes answers. It is `Send` exactly if the
//! service's handlers are, so a shim runs it on a `LocalSet` (or simply inside `block_on`) with `Rc` state and a
//! supervisor spawns it on threads. No timer is used: a call's deadline is handed to its handler in [`Call::timeout`].
//!
//! Invariants: every request gets one answer while its client is there; a handler that was started is driven to its end even
//! after the client has gone ([`Call::disconnected`] lets one that only waits stop early); at most
//! [`Options::max_in_flight`] handlers run per connection, further calls are answered `RESOURCE_EXHAUSTED` at once.

use std::future::Future;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::frame::{Frame, FrameReader, Header, Kind, MAX_MESSAGE, encode_frame};
use crate::message::{KeyValue, Request, Response, RpcStatus};
use crate::status::{Code, Status};

/// Answers waiting to be written beyond this make the connection stop reading and stop collecting answers.
const WRITE_HIGH_WATER: usize = 256 << 10;

/// One call, as a handler gets it.
#[derive(Debug)]
pub struct Call {
    /// Full service name.
    pub service: String,
    /// Method name.
    pub method: String,
    /// The encoded argument; see [`decode`].
    pub payload: Bytes,
    /// How long the caller said it would wait, from the arrival of the call.
    pub timeout: Option<Duration>,
    /// Metadata in the order sent.
    pub metadata: Vec<KeyValue>,
    gone: watch::Receiver<bool>,
}

impl Call {
    /// The first value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|pair| pair.key.eq_ignore_ascii_case(key)).map(|pair| pair.value.as_str())
    }

    /// Resolves when the client has gone away and nobody will read the answer.
    pub fn disconnected(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut gone = self.gone.clone();
        async move {
            // An error means that the connection's future was dropped: gone as well.
            let _ = gone.wait_for(|gone| *gone).await;
        }
    }

    /// What to answer for a method or service that is not there.
    pub fn unimplemented(&self) -> Status {
        Status::unimplemented(format!("/{}/{} is not supported", self.service, self.method))
    }
}

/// What answers calls. Cloned for each, so make it an `Rc` or `Arc`.
pub trait Service: Clone + 'static {
    /// Answers one call with an encoded message, or a status. Driven to its end even if the client leaves.
    fn call(self, call: Call) -> impl Future<Output = Result<Vec<u8>, Status>>;
}

/// Limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Handlers at work at the same time, `Wait`s included.
    pub max_in_flight: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { max_in_flight: 1024 }
    }
}

/// Reads the argument of a call.
///
/// # Errors
/// `INVALID_ARGUMENT` for bytes that are no `M`.
pub fn decode<M: Message + Default>(payload: impl Buf) -> Result<M, Status> {
    M::decode(payload).map_err(|err| Status::invalid_argument(format!("unmarshal payload: {err}")))
}

/// Encodes a result.
///
/// # Errors
/// None today; the signature lets a handler end in `encode(...)`.
pub fn encode(message: &impl Message) -> Result<Vec<u8>, Status> {
    Ok(message.encode_to_vec())
}

/// Accepts connections and serves them all inside this one future, until `shutdown` resolves; then waits for the handlers
/// that are at work.
///
/// # Errors
/// What `accept` fails with, when that is more than a passing shortage or a client that gave up.
pub async fn serve<S: Service>(
    listener: &UnixListener,
    service: S,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let mut shutdown = std::pin::pin!(shutdown);
    let (stop, stopped) = watch::channel(false);
    let mut connections = FuturesUnordered::new();
    let outcome = loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break Ok(()),
            Some(()) = connections.next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    let (read, write) = socket.into_split();
                    connections.push(serve_until(service.clone(), read, write, options, stopped.clone()));
                }
                Err(err) => match what_next(&err) {
                    Next::Accept => {}
                    // Each connection that ends frees a descriptor; until then accepting would only spin.
                    Next::AfterOneEnds if !connections.is_empty() => {
                        tokio::select! {
                            () = &mut shutdown => break Ok(()),
                            _ = connections.next() => {}
                        }
                    }
                    Next::AfterOneEnds | Next::GiveUp => break Err(err),
                },
            },
        }
    };
    let _ = stop.send(true);
    while connections.next().await.is_some() {}
    outcome
}

enum Next {
    Accept,
    AfterOneEnds,
    GiveUp,
}

fn what_next(err: &std::io::Error) -> Next {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    match err.kind() {
        ConnectionAborted | ConnectionReset | Interrupted => Next::Accept,
        _ if matches!(err.raw_os_error(), Some(ENFILE | EMFILE)) => Next::AfterOneEnds,
        _ => Next::GiveUp,
    }
}

/// Serves one connection until the client closes it and all its handlers are done.
pub async fn serve_connection<S, R, W>(service: S, read: R, write: W, options: Options)
where
    S: Service,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (_stop, stopped) = watch::channel(false);
    serve_until(service, read, write, options, stopped).await;
}

async fn serve_until<S, R, W>(
    service: S,
    read: R,
    mut write: W,
    options: Options,
    mut stopped: watch::Receiver<bool>,
) where
    S: Service,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (gone_tx, gone) = watch::channel(false);
    let mut reader = FrameReader::new(read);
    let mut handlers = FuturesUnordered::new();
    let mut out = BytesMut::new();
    let mut last_stream = 0;
    let mut reading = true;
    let mut writable = true;
    let mut stopping = *stopped.borrow();
    if stopping {
        return;
    }

    while reading || !handlers.is_empty() || (writable && !out.is_empty()) {
        let room = out.len() < WRITE_HIGH_WATER;
        tokio::select! {
            biased;
            written = write.write_buf(&mut out), if writable && !out.is_empty() => {
                if written.is_err() || matches!(written, Ok(0)) {
                    // Nobody will read answers any more, but calls that are at work go on.
                    writable = false;
                    reading = false;
                    out = BytesMut::new();
                    let _ = gone_tx.send(true);
                } else if out.is_empty() {
                    out = BytesMut::new();
                }
            }
            Some((stream, result)) = handlers.next(), if room && !handlers.is_empty() => {
                if writable {
                    answer(&mut out, stream, result);
                }
            }
            frame = reader.next(), if reading && room => match frame {
                Ok(Some(frame)) => {
                    let in_flight = handlers.len();
                    match admit(frame, &mut last_stream, in_flight < options.max_in_flight) {
                        Admitted::Call(stream, request) => {
                            let handler = service.clone();
                            let call = into_call(request, gone.clone());
                            handlers.push(async move { (stream, handler.call(call).await) });
                        }
                        Admitted::Refused(stream, status) => answer(&mut out, stream, Err(status)),
                        Admitted::Ignored => {}
                    }
                }
                Ok(None) | Err(_) => {
                    reading = false;
                    let _ = gone_tx.send(true);
                }
            },
            changed = stopped.changed(), if !stopping => {
                let _ = changed;
                stopping = true;
                reading = false;
            }
        }
    }
}

enum Admitted {
    Call(u32, Request),
    Refused(u32, Status),
    Ignored,
}

/// What to do with a frame. `last_stream` is the highest stream seen: ids only grow, so none is used twice.
fn admit(frame: Frame, last_stream: &mut u32, has_room: bool) -> Admitted {
    let (header, body) = match frame {
        Frame::Message(header @ Header { kind: Kind::Request, .. }, body) => (header, body),
        Frame::TooLong(header) if header.kind == Kind::Request => {
            *last_stream = header.stream.max(*last_stream);
            let text = format!("message length {} exceed maximum message size of {MAX_MESSAGE}", header.len);
            return Admitted::Refused(header.stream, Status::new(Code::ResourceExhausted, text));
        }
        // Data, and kinds that do not exist yet, belong to streams nobody opened here.
        Frame::Message(..) | Frame::TooLong(_) => return Admitted::Ignored,
    };
    let stream = header.stream;
    if stream % 2 == 0 {
        let text = "StreamID must be odd for client initiated streams";
        return Admitted::Refused(stream, Status::invalid_argument(text));
    }
    if stream <= *last_stream {
        let text = "StreamID cannot be re-used and must increment";
        return Admitted::Refused(stream, Status::invalid_argument(text));
    }
    *last_stream = stream;
    if !has_room {
        return Admitted::Refused(stream, Status::new(Code::ResourceExhausted, "too many calls in flight"));
    }
    match Request::decode(body) {
        Ok(request) => Admitted::Call(stream, request),
        Err(err) => Admitted::Refused(stream, Status::invalid_argument(format!("unmarshal request: {err}"))),
    }
}

fn into_call(request: Request, gone: watch::Receiver<bool>) -> Call {
    let timeout =
        u64::try_from(request.timeout_nano).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    Call {
        service: request.service,
        method: request.method,
        payload: request.payload.into(),
        timeout,
        metadata: request.metadata,
        gone,
    }
}

fn answer(out: &mut BytesMut, stream: u32, result: Result<Vec<u8>, Status>) {
    let response = match result {
        Ok(payload) => Response { status: None, payload },
        Err(status) => Response { status: Some(RpcStatus::from(status)), payload: Vec::new() },
    };
    if response.encoded_len() <= MAX_MESSAGE {
        return encode_frame(out, stream, Kind::Response, &response);
    }
    let status = Status::new(Code::ResourceExhausted, "response is longer than a message may be");
    let response = Response { status: Some(RpcStatus::from(status)), payload: Vec::new() };
    encode_frame(out, stream, Kind::Response, &response);
}
