//! ttrpc: gRPC's little brother, which containerd and its shims speak over a unix socket.
//!
//! A 10-byte header, protobuf [`Request`](message::Request) and [`Response`](message::Response) in it, many calls at once on one
//! connection. This crate knows frames, streams and status codes; what the payloads are is the callers' business.
//! Both ends are built to live in a shim, of which there is one per container: no timer unless a call asks for one, no buffer
//! that outlives its frame, one task per connection.
//!
//! Invariants: a peer can send any bytes without making this end panic, block others or hold more than one message
//! ([`MAX_MESSAGE`]) per connection; a handler that was started runs to its end, even when its client is gone.
//!
//! Only unary calls are spoken: no service of containerd's task, event or sandbox API streams.
//! Protocol: containerd's `ttrpc` repository, `PROTOCOL.md`.

mod client;
mod frame;
pub mod message;
mod server;
mod status;

pub use client::{CallError, Client, Closed};
pub use frame::{Frame, FrameError, FrameReader, HEADER_LEN, Header, Kind, MAX_MESSAGE, encode_frame};
pub use server::{Call, Options, Service, decode, encode, serve, serve_connection};
pub use status::{Code, Status};
