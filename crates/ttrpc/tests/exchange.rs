//! Client and server against each other, and the server against bytes that are no client's.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use ttrpc::message::{KeyValue, Request};
use ttrpc::{
    Call, CallError, Client, Code, Options, Service, Status, decode, encode, serve, serve_connection,
};

/// Echoes, fails, waits and counts. Not `Send` on purpose: a shim's state is not either.
#[derive(Clone, Default)]
struct Echo(Rc<Inner>);

#[derive(Default)]
struct Inner {
    finished: Cell<u32>,
    gate: Notify,
    entered: Notify,
}

impl Service for Echo {
    async fn call(self, call: Call) -> Result<Vec<u8>, Status> {
        match call.method.as_str() {
            "Echo" => {
                let mut request: Request = decode(call.payload.clone())?;
                request.timeout_nano = call.timeout.map_or(0, |t| t.as_nanos() as i64);
                request.metadata = call.metadata.clone();
                encode(&request)
            }
            "Fail" => Err(Status::not_found("container \"x\": not found")),
            "Gate" => {
                self.0.entered.notify_one();
                self.0.gate.notified().await;
                self.0.finished.set(self.0.finished.get() + 1);
                Ok(Vec::new())
            }
            "UntilGone" => {
                self.0.entered.notify_one();
                call.disconnected().await;
                self.0.finished.set(self.0.finished.get() + 1);
                Ok(Vec::new())
            }
            "Big" => Ok(vec![0; ttrpc::MAX_MESSAGE + 1]),
            _ => Err(call.unimplemented()),
        }
    }
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test ends in time")
    })
}

/// A server on one end of a socket pair, a client on the other.
fn pair(options: Options) -> (Echo, Client, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let echo = Echo::default();
    let (read, write) = theirs.into_split();
    let server = tokio::task::spawn_local(serve_connection(echo.clone(), read, write, options));
    (echo, Client::new(ours), server)
}

async fn call(client: &Client, method: &str, timeout: Option<Duration>) -> Result<Vec<u8>, CallError> {
    client.call("test.Echo", method, Vec::new(), Vec::new(), timeout).await.map(|bytes| bytes.to_vec())
}

#[test]
fn a_call_carries_payload_metadata_and_deadline() {
    run(async {
        let (_echo, client, _server) = pair(Options::default());
        let request = Request { service: "a".into(), payload: vec![1, 2, 3], ..Request::default() };
        let pair = KeyValue { key: "containerd-namespace-ttrpc".into(), value: "moby".into() };
        let limit = Duration::from_secs(7);
        let answer: Request =
            client.unary("test.Echo", "Echo", &request, vec![pair.clone()], Some(limit)).await.unwrap();
        assert_eq!(answer.payload, [1, 2, 3]);
        assert_eq!(answer.metadata, [pair]);
        assert_eq!(answer.timeout_nano, limit.as_nanos() as i64);
    });
}

#[test]
fn failures_arrive_with_code_and_text() {
    run(async {
        let (_echo, client, _server) = pair(Options::default());
        let CallError::Status(status) = call(&client, "Fail", None).await.unwrap_err() else { panic!() };
        assert_eq!(status, Status::not_found("container \"x\": not found"));
        assert_eq!(call(&client, "Nothing", None).await.unwrap_err().code(), Code::Unimplemented);
        assert_eq!(call(&client, "Big", None).await.unwrap_err().code(), Code::ResourceExhausted);
        let long = client.call("s", "m", vec![0; ttrpc::MAX_MESSAGE], Vec::new(), None).await.unwrap_err();
        assert!(matches!(long, CallError::TooLong { .. }));
        assert!(call(&client, "Echo", None).await.is_ok(), "the connection is still good");
    });
}

#[test]
fn a_slow_call_does_not_hold_up_others_and_big_messages_pass() {
    run(async {
        let (echo, client, _server) = pair(Options::default());
        let slow = {
            let client = client.clone();
            tokio::task::spawn_local(async move { call(&client, "Gate", None).await })
        };
        echo.0.entered.notified().await;
        let mut calls = Vec::new();
        for size in [0, 1, 4095, 4096, 70_000, 1 << 20, (4 << 20) - 64] {
            let client = client.clone();
            calls.push(tokio::task::spawn_local(async move {
                let request = Request { payload: vec![size as u8; size], ..Request::default() };
                let answer: Request =
                    client.unary("test.Echo", "Echo", &request, Vec::new(), None).await.unwrap();
                assert_eq!(answer.payload.len(), size);
            }));
        }
        for call in calls {
            call.await.unwrap();
        }
        echo.0.gate.notify_one();
        assert!(slow.await.unwrap().is_ok());
    });
}

#[test]
fn a_handler_goes_on_when_its_client_times_out_or_leaves() {
    run(async {
        let (echo, client, server) = pair(Options::default());
        let late = call(&client, "Gate", Some(Duration::from_millis(20))).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded);
        assert!(call(&client, "Echo", None).await.is_ok(), "a late answer hurts nobody");
        let until_gone = {
            let client = client.clone();
            tokio::task::spawn_local(async move { call(&client, "UntilGone", None).await })
        };
        until_gone.abort();
        let _ = until_gone.await;
        drop(client);
        echo.0.gate.notify_one();
        server.await.unwrap();
        assert!(echo.0.finished.get() >= 1, "the gated handler was driven to its end");
    });
}

#[test]
fn a_handler_that_waits_for_the_client_learns_of_its_end() {
    run(async {
        let (echo, client, server) = pair(Options::default());
        let waiting = {
            let client = client.clone();
            tokio::task::spawn_local(async move { call(&client, "UntilGone", None).await })
        };
        echo.0.entered.notified().await;
        waiting.abort();
        let _ = waiting.await;
        drop(client);
        server.await.unwrap();
        assert_eq!(echo.0.finished.get(), 1);
    });
}

#[test]
fn the_end_of_the_server_fails_waiting_calls_and_shows_in_the_watch() {
    run(async {
        let (echo, client, server) = pair(Options::default());
        let mut closed = client.watch_closed();
        let waiting = {
            let client = client.clone();
            tokio::task::spawn_local(async move { call(&client, "Gate", None).await })
        };
        echo.0.entered.notified().await;
        server.abort();
        assert!(matches!(waiting.await.unwrap(), Err(CallError::Closed(_))));
        closed.wait_for(Option::is_some).await.unwrap();
        assert!(client.is_closed());
        assert!(matches!(call(&client, "Echo", None).await, Err(CallError::Closed(_))));
    });
}

#[test]
fn more_calls_than_allowed_are_refused_at_once() {
    run(async {
        let (echo, client, _server) = pair(Options { max_in_flight: 1 });
        let slow = {
            let client = client.clone();
            tokio::task::spawn_local(async move { call(&client, "Gate", None).await })
        };
        echo.0.entered.notified().await;
        assert_eq!(call(&client, "Echo", None).await.unwrap_err().code(), Code::ResourceExhausted);
        echo.0.gate.notify_one();
        assert!(slow.await.unwrap().is_ok());
        assert!(call(&client, "Echo", None).await.is_ok());
    });
}

#[test]
fn a_listener_serves_many_clients_and_stops_when_told() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let stop = Rc::new(Notify::new());
        let echo = Echo::default();
        let server = {
            let (stop, echo) = (stop.clone(), echo.clone());
            tokio::task::spawn_local(async move {
                serve(&listener, echo, Options::default(), async move { stop.notified().await }).await
            })
        };
        let clients = [Client::connect(&path).await.unwrap(), Client::connect(&path).await.unwrap()];
        for client in &clients {
            assert!(call(client, "Echo", None).await.is_ok());
        }
        let pending = {
            let client = clients[0].clone();
            tokio::task::spawn_local(async move { call(&client, "Gate", None).await })
        };
        echo.0.entered.notified().await;
        stop.notify_one();
        echo.0.gate.notify_one();
        assert!(pending.await.unwrap().is_ok(), "a call at work is answered before the end");
        server.await.unwrap().unwrap();
        clients[1].closed().await;
    });
}

#[test]
fn stream_ids_that_are_even_or_used_are_refused() {
    run(async {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = theirs.into_split();
        tokio::task::spawn_local(serve_connection(Echo::default(), read, write, Options::default()));
        let mut wire = bytes::BytesMut::new();
        let request = Request { service: "test.Echo".into(), method: "Fail".into(), ..Request::default() };
        for stream in [3, 2, 3, 1, 5] {
            ttrpc::encode_frame(&mut wire, stream, ttrpc::Kind::Request, &request);
        }
        ours.write_all(&wire).await.unwrap();
        ours.shutdown().await.unwrap();
        let mut answers = ttrpc::FrameReader::new(ours);
        let mut codes = std::collections::BTreeMap::<u32, Vec<i32>>::new();
        while let Some(ttrpc::Frame::Message(header, body)) = answers.next().await.unwrap() {
            let response: ttrpc::message::Response = prost::Message::decode(body).unwrap();
            codes.entry(header.stream).or_default().push(response.status.unwrap().code);
        }
        for list in codes.values_mut() {
            list.sort_unstable();
        }
        let (invalid, missing) = (Code::InvalidArgument as i32, Code::NotFound as i32);
        let expected =
            [(1, vec![invalid]), (2, vec![invalid]), (3, vec![invalid, missing]), (5, vec![missing])];
        assert_eq!(codes.into_iter().collect::<Vec<_>>(), expected);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a peer sends, the server ends its connection in peace.
    #[test]
    fn no_bytes_upset_a_server(
        headers in proptest::collection::vec((0u32..5000, any::<u32>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..64)), 0..20),
        honest in any::<bool>(),
    ) {
        run(async {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let (read, write) = theirs.into_split();
            let server = tokio::task::spawn_local(serve_connection(Echo::default(), read, write, Options { max_in_flight: 4 }));
            let mut wire = Vec::new();
            for (len, stream, kind, body) in &headers {
                let len = if honest { body.len() as u32 } else { *len };
                wire.extend_from_slice(&len.to_be_bytes());
                wire.extend_from_slice(&stream.to_be_bytes());
                wire.extend_from_slice(&[*kind, 0]);
                wire.extend_from_slice(body);
            }
            ours.write_all(&wire).await.unwrap();
            ours.shutdown().await.unwrap();
            let mut answers = Vec::new();
            ours.read_to_end(&mut answers).await.unwrap();
            server.await.unwrap();
        });
    }

    /// Whatever a server answers, a client's calls end.
    #[test]
    fn no_bytes_upset_a_client(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        run(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let client = Client::new(ours);
            let pending = { let client = client.clone(); tokio::task::spawn_local(async move { call(&client, "Echo", None).await }) };
            theirs.write_all(&bytes).await.unwrap();
            theirs.shutdown().await.unwrap();
            drop(theirs);
            let _ = pending.await.unwrap();
            client.closed().await;
        });
    }
}
