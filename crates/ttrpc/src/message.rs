//! The two messages inside frames, and their parts (ttrpc's `request.proto`, google's `status.proto`).

use prost::Message;

/// A call.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Full service name: `containerd.task.v3.Task`.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Method name: `Create`.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The encoded argument.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long the caller will wait, in nanoseconds; 0 is for ever.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    /// Pairs that go with the call, as gRPC's metadata: the namespace, trace ids.
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// An answer: a payload, or a status that is not OK.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// Absent means OK.
    #[prost(message, optional, tag = "1")]
    pub status: Option<RpcStatus>,
    /// The encoded result.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub struct RpcStatus {
    /// A gRPC code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For humans and for those who match text.
    #[prost(string, tag = "2")]
    pub message: String,
    /// `google.protobuf.Any`s, kept encoded.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub details: Vec<Vec<u8>>,
}

/// One pair of metadata. A key may occur more than once.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyValue {
    /// Lower case by convention.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Any text.
    #[prost(string, tag = "2")]
    pub value: String,
}
