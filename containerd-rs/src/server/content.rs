//! `containerd.services.content.v1`.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::pin::Pin;

use bytes::Bytes;
use containerd_api::content::content_server::{Content, ContentServer};
use containerd_api::content::{
    AbortRequest, DeleteContentRequest, InfoRequest, InfoResponse, ListContentRequest, ListContentResponse,
    ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse, StatusRequest,
    StatusResponse, UpdateRequest, UpdateResponse, WriteAction, WriteContentRequest, WriteContentResponse,
};
use containerd_api::error::{Error, Kind};
use containerd_api::ns::{self, Namespace};
use oci::digest::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::content::{Writer, parse};
use crate::daemon::Daemon;

/// Entries of one message of a list.
const PAGE: usize = 100;
/// Bytes of one message of a read.
const CHUNK_BYTES: usize = 512 << 10;
/// Reads up to this size are answered without a thread of their own.
const SMALL_BYTES: u64 = 64 << 10;

pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> ContentServer<Service> {
    ContentServer::new(Service(daemon.clone()))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Content for Service {
    type ListStream = Answers<ListContentResponse>;
    type ReadStream = Answers<ReadContentResponse>;
    type WriteStream = ReceiverStream<Result<WriteContentResponse, Status>>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let digest = parse(&request.into_inner().digest)?;
        let info = self.0.content.info(namespace.as_str(), &digest)?;
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let UpdateRequest { info, update_mask } = request.into_inner();
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let info = self.0.content.update(namespace.as_str(), info.unwrap_or_default(), paths).await?;
        Ok(Response::new(UpdateResponse { info: Some(info) }))
    }

    async fn list(&self, request: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let found = self.0.content.list(namespace.as_str(), &request.into_inner().filters)?;
        let pages: Vec<_> =
            found.chunks(PAGE).map(|page| Ok(ListContentResponse { info: page.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn delete(&self, request: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let digest = parse(&request.into_inner().digest)?;
        self.0.content.delete(namespace.as_str(), &digest).await?;
        Ok(Response::new(()))
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        let digest = parse(&digest)?;
        let (mut file, total) = self.0.content.open_blob(namespace.as_str(), &digest)?;
        let out_of_range = || Error::new(Kind::OutOfRange, format!("read past object length {total} bytes"));
        let offset = u64::try_from(offset).unwrap_or(0);
        let left = total.checked_sub(offset).ok_or_else(out_of_range)?;
        let mut left = match u64::try_from(size) {
            Ok(0) | Err(_) => left,
            Ok(size) => size.min(left),
        };
        let failed = move |err: std::io::Error| Error::internal(format_args!("read content {digest}"), err);
        file.seek(SeekFrom::Start(offset)).map_err(&failed)?;
        // containerd counts from where the read began, not from the blob's beginning.
        let mut at = 0u64;
        let mut next = move || -> Result<ReadContentResponse, Status> {
            let length = left.min(CHUNK_BYTES as u64);
            let mut data = vec![0; length as usize];
            file.read_exact(&mut data).map_err(&failed)?;
            let message = ReadContentResponse { offset: at as i64, data: Bytes::from(data) };
            at += length;
            left -= length;
            Ok(message)
        };
        if left <= SMALL_BYTES {
            let messages = if left == 0 { Vec::new() } else { vec![next()] };
            return Ok(Response::new(Box::pin(tokio_stream::iter(messages))));
        }
        let mut messages = left.div_ceil(CHUNK_BYTES as u64);
        let (send, receive) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || {
            while messages > 0 {
                messages -= 1;
                let message = next();
                let failed = message.is_err();
                // The client may have gone.
                if send.blocking_send(message).is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let status = self.0.content.status(namespace.as_str(), &request.into_inner().r#ref)?;
        Ok(Response::new(StatusResponse { status: Some(status) }))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let statuses = self.0.content.statuses(namespace.as_str(), &request.into_inner().filters)?;
        Ok(Response::new(ListStatusesResponse { statuses }))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        let lease = ns::lease(request.metadata()).map(str::to_owned);
        let requests = request.into_inner();
        let (answers, receive) = mpsc::channel(2);
        let daemon = self.0.clone();
        tokio::spawn(async move {
            let session = Session { daemon, namespace, lease, answers: answers.clone() };
            if let Err(status) = session.run(requests).await {
                // The client may have gone.
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        let namespace = Namespace::of(request.metadata())?;
        self.0.content.abort(namespace.as_str(), &request.into_inner().r#ref)?;
        Ok(Response::new(()))
    }
}

/// One write stream, from its first message to its end.
struct Session {
    daemon: Daemon,
    namespace: Namespace,
    lease: Option<String>,
    answers: mpsc::Sender<Result<WriteContentResponse, Status>>,
}

impl Session {
    async fn run(self, mut requests: Streaming<WriteContentRequest>) -> Result<(), Status> {
        let Some(mut request) = requests.next().await.transpose()? else { return Ok(()) };
        if request.r#ref.is_empty() {
            return Err(Error::new(Kind::InvalidArgument, "first message must have a reference").into());
        }
        let mut expected = announced(&request.expected)?;
        let mut total = request.total;
        let store = &self.daemon.content;
        let mut writer = store
            .writer(self.namespace.as_str(), self.lease.as_deref(), &request.r#ref, total, expected.clone())
            .await?;
        loop {
            if let Some(digest) = announced(&request.expected)? {
                if expected.as_ref().is_some_and(|expected| *expected != digest) {
                    tracing::debug!(%digest, "the expected digest of a write changed");
                }
                if store.has(self.namespace.as_str(), &digest)? {
                    let reference = request.r#ref.clone();
                    drop(writer);
                    if !reference.is_empty() {
                        // Somebody else may have taken the reference; then the write is theirs.
                        let _ = store.abort(self.namespace.as_str(), &reference);
                    }
                    return Err(Error::new(
                        Kind::AlreadyExists,
                        format!("blob with expected digest {digest} exists"),
                    )
                    .into());
                }
                expected = Some(digest);
            }
            if request.total > 0 {
                if total > 0 && total != request.total {
                    tracing::debug!(total, now = request.total, "the total of a write changed");
                }
                total = request.total;
            }
            let action = request.action();
            let answer = match action {
                WriteAction::Stat => answer(&writer, action, total),
                WriteAction::Write | WriteAction::Commit => {
                    write(&mut writer, &request)?;
                    if action == WriteAction::Commit {
                        let size = u64::try_from(total).unwrap_or(0);
                        let labels = std::mem::take(&mut request.labels);
                        writer.commit(size, expected.as_ref(), labels).await?;
                    }
                    answer(&writer, action, total)
                }
            };
            if self.answers.send(Ok(answer)).await.is_err() || action == WriteAction::Commit {
                return Ok(());
            }
            request = match requests.next().await.transpose()? {
                Some(request) => request,
                None => return Ok(()),
            };
        }
    }
}

/// Checks the offset, begins again where the client does, and appends the data.
fn write(writer: &mut Writer, request: &WriteContentRequest) -> Result<(), Error> {
    let at = writer.offset();
    if request.offset > 0 && u64::try_from(request.offset) != Ok(at) {
        let what = format!("write @{} must occur at current offset {at}", request.offset);
        return Err(Error::new(Kind::OutOfRange, what));
    }
    // A commit without data says nothing of where it is.
    if request.offset == 0 && at > 0 && !(request.action() == WriteAction::Commit && request.data.is_empty())
    {
        writer.restart()?;
    }
    if request.data.is_empty() {
        return Ok(());
    }
    // Hashing and copying a large piece would hold up others on this thread.
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread if request.data.len() >= 64 << 10 => {
            tokio::task::block_in_place(|| writer.append(&request.data))
        }
        _ => writer.append(&request.data),
    }
}

fn answer(writer: &Writer, action: WriteAction, total: i64) -> WriteContentResponse {
    WriteContentResponse {
        action: action as i32,
        started_at: writer.started_at(),
        updated_at: Some(writer.updated_at()),
        offset: i64::try_from(writer.offset()).unwrap_or(i64::MAX),
        total,
        digest: writer.digest().map(|digest| digest.as_str().to_owned()).unwrap_or_default(),
    }
}

fn announced(digest: &str) -> Result<Option<Digest>, Error> {
    if digest.is_empty() { Ok(None) } else { parse(digest).map(Some) }
}
