//! What a handler answers, and how it is framed.
//!
//! Framing is that of Go's net/http: a body of up to 2048 bytes that is known whole has a Content-Length, a larger or streamed one is chunked.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::ext::ReasonPhrase;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::error::{Error, Kind};

/// A response body.
pub type Body = BoxBody<Bytes, Infallible>;

/// Where Go's server changes from Content-Length to chunks.
const WHOLE_BYTES: usize = 2048;

/// An answer on its way out.
pub struct Reply {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    reason: Option<&'static str>,
    body: Body,
    /// The body, when it is known whole.
    whole: Option<Bytes>,
    bare: bool,
}

impl Reply {
    /// A status without a body.
    pub fn status(status: StatusCode) -> Self {
        Self {
            status,
            headers: Vec::new(),
            reason: None,
            body: Empty::new().boxed(),
            whole: None,
            bare: false,
        }
    }

    /// 204.
    pub fn no_content() -> Self {
        Self::status(StatusCode::NO_CONTENT)
    }

    /// A JSON document and the newline Go's encoder ends it with.
    pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(mut bytes) => {
                bytes.push(b'\n');
                Self::bytes(status, "application/json", bytes)
            }
            Err(err) => Self::error(&Error::system(format!("encode response: {err}"))),
        }
    }

    /// 200 and a JSON document.
    pub fn ok<T: Serialize + ?Sized>(value: &T) -> Self {
        Self::json(StatusCode::OK, value)
    }

    /// Plain text.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self::bytes(status, "text/plain; charset=utf-8", text.into().into_bytes())
    }

    /// A body that is known whole.
    pub fn bytes(status: StatusCode, content_type: &'static str, bytes: Vec<u8>) -> Self {
        let bytes = Bytes::from(bytes);
        let body = if bytes.len() > WHOLE_BYTES {
            let frame = Ok::<_, Infallible>(Frame::data(bytes.clone()));
            BodyExt::boxed(StreamBody::new(futures_util::stream::iter([frame])))
        } else {
            Full::new(bytes.clone()).boxed()
        };
        let mut reply = Self::status(status);
        (reply.body, reply.whole) = (body, Some(bytes));
        reply.header("Content-Type", content_type);
        reply
    }

    /// The error body every client reads: `{"message":"…"}`.
    pub fn error(err: &Error) -> Self {
        #[derive(Serialize)]
        struct Message<'a> {
            message: &'a str,
        }
        if err.kind() == Kind::NotModified {
            return Self::status(StatusCode::NOT_MODIFIED);
        }
        Self::json(err.kind().status(), &Message { message: err.message() })
    }

    /// A streamed body fed through the sender. The client's going away shows as a closed channel.
    /// The channel holds `depth` chunks; a sender waits for a slow client, so nothing but a request's own task may hold it.
    pub fn channel(
        status: StatusCode,
        content_type: Option<&'static str>,
        depth: usize,
    ) -> (Self, mpsc::Sender<Bytes>) {
        let (sender, receiver) = mpsc::channel(depth);
        let mut reply = Self::status(status);
        reply.body = BodyExt::boxed(ChannelBody(receiver));
        if let Some(content_type) = content_type {
            reply.header("Content-Type", content_type);
        }
        (reply, sender)
    }

    /// Adds a header. Values that are not valid header text are dropped.
    pub fn header(&mut self, name: &str, value: &str) -> &mut Self {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            self.headers.push((name, value));
        }
        self
    }

    /// Sends the reply as it is, without the standard headers; for hijacked connections.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Sends the standard headers too, after all.
    #[must_use]
    pub fn with_standard_headers(mut self) -> Self {
        self.bare = false;
        self
    }

    /// Replaces the status line's words (`101 UPGRADED`).
    #[must_use]
    pub fn reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    pub(super) fn is_bare(&self) -> bool {
        self.bare
    }

    pub(super) fn code(&self) -> StatusCode {
        self.status
    }

    /// The body, when it is known whole.
    pub(super) fn whole(&self) -> Option<&Bytes> {
        self.whole.as_ref()
    }

    /// The headers the handler gave.
    pub(super) fn header_map(&self) -> http::HeaderMap {
        self.headers.iter().cloned().collect()
    }

    pub(super) fn into_response(self) -> http::Response<Body> {
        let mut response = http::Response::new(self.body);
        *response.status_mut() = self.status;
        if let Some(reason) = self.reason {
            response.extensions_mut().insert(ReasonPhrase::from_static(reason.as_bytes()));
        }
        response.headers_mut().extend(self.headers);
        response
    }
}

/// A body whose chunks come from a channel.
struct ChannelBody(mpsc::Receiver<Bytes>);

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// The `Date` header's value for now.
pub fn http_date() -> HeaderValue {
    let now = jiff::Timestamp::now();
    let text = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

/// The `Content-Type` header name, for handlers that set it themselves.
pub const CONTENT_TYPE: HeaderName = header::CONTENT_TYPE;
