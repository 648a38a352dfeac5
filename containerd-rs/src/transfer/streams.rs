//! Streams that clients open by name for a transfer to use: progress, credentials, and bytes of archives.
//!
//! Invariant: a stream belongs to the namespace it was opened in and to one user at a time. Bytes go in pieces of at
//! most 32 KiB, as clients expect, and only as many as the receiver has opened its window for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use containerd_api::error::{Error, Kind};
use containerd_api::transfer_types::{Data, WindowUpdate};
use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::mpsc;

/// Messages waiting in either direction.
const QUEUE: usize = 32;
/// Largest piece of an archive, in bytes.
const PIECE: usize = 32 * 1024;
/// How far a sender may be ahead of us, in bytes.
const WINDOW: i32 = 1 << 20;
/// How long a silent client is waited for before a transfer gives up.
const SILENCE: Duration = Duration::from_secs(600);

/// One open stream, seen from the daemon.
#[derive(Debug)]
pub struct Stream {
    pub to_client: mpsc::Sender<Any>,
    pub from_client: mpsc::Receiver<Any>,
}

/// All streams nobody has taken yet.
#[derive(Debug, Default)]
pub struct Streams {
    waiting: Mutex<HashMap<(String, String), Stream>>,
}

/// The client's ends of a new stream.
pub struct ClientEnds {
    pub to_daemon: mpsc::Sender<Any>,
    pub from_daemon: mpsc::Receiver<Any>,
}

impl Streams {
    /// Registers a stream under a name.
    ///
    /// # Errors
    /// `AlreadyExists` when there is one of that name.
    pub fn open(&self, namespace: &str, id: &str) -> Result<ClientEnds, Error> {
        let (to_client, from_daemon) = mpsc::channel(QUEUE);
        let (to_daemon, from_client) = mpsc::channel(QUEUE);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), id.to_owned());
        if waiting.contains_key(&key) {
            return Err(Error::already_exists("stream", id));
        }
        waiting.insert(key, Stream { to_client, from_client });
        Ok(ClientEnds { to_daemon, from_daemon })
    }

    /// Takes a stream for use.
    ///
    /// # Errors
    /// `NotFound` when no client has opened it.
    pub fn take(&self, namespace: &str, id: &str) -> Result<Stream, Error> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&(namespace.to_owned(), id.to_owned())).ok_or_else(|| Error::not_found("stream", id))
    }

    /// Forgets a stream whose client is gone.
    pub fn close(&self, namespace: &str, id: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&(namespace.to_owned(), id.to_owned()));
    }
}

/// Wraps a message as streams carry it.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// Reads the archive a client sends. For a blocking thread; the end of the stream is the end of the bytes.
pub struct ByteReader {
    stream: Stream,
    runtime: tokio::runtime::Handle,
    window: i32,
    piece: Bytes,
}

impl ByteReader {
    /// Must be made within the runtime.
    pub fn new(stream: Stream) -> Self {
        Self { stream, runtime: tokio::runtime::Handle::current(), window: 0, piece: Bytes::new() }
    }

    fn next_piece(&mut self) -> std::io::Result<bool> {
        loop {
            if self.window <= WINDOW / 2 {
                let update = pack(&WindowUpdate { update: WINDOW });
                // A client that has sent everything does not read any more; what it sent is still there.
                let _ = self.stream.to_client.blocking_send(update);
                self.window += WINDOW;
            }
            let received = self
                .runtime
                .block_on(async { tokio::time::timeout(SILENCE, self.stream.from_client.recv()).await });
            let message = received.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?;
            let Some(message) = message else { return Ok(false) };
            if !containerd_api::any::is::<Data>(&message) {
                continue;
            }
            let data = Data::decode(message.value.as_slice()).map_err(std::io::Error::other)?;
            self.window -= i32::try_from(data.data.len()).unwrap_or(i32::MAX);
            if !data.data.is_empty() {
                self.piece = data.data;
                return Ok(true);
            }
        }
    }
}

impl std::io::Read for ByteReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.piece.is_empty() && !self.next_piece()? {
            return Ok(0);
        }
        let take = buffer.len().min(self.piece.len());
        buffer[..take].copy_from_slice(&self.piece.split_to(take));
        Ok(take)
    }
}

/// Writes an archive to a client. For a blocking thread.
pub struct ByteWriter {
    stream: Stream,
    runtime: tokio::runtime::Handle,
    window: i64,
    buffer: Vec<u8>,
}

impl ByteWriter {
    /// Must be made within the runtime.
    pub fn new(stream: Stream) -> Self {
        let buffer = Vec::with_capacity(PIECE);
        Self { stream, runtime: tokio::runtime::Handle::current(), window: 0, buffer }
    }

    fn send(&mut self) -> std::io::Result<()> {
        let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        while !self.buffer.is_empty() {
            while self.window <= 0 {
                let received = self
                    .runtime
                    .block_on(async { tokio::time::timeout(SILENCE, self.stream.from_client.recv()).await });
                let message = received.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?;
                self.widen(&message.ok_or_else(gone)?)?;
            }
            while let Ok(message) = self.stream.from_client.try_recv() {
                self.widen(&message)?;
            }
            let take = self.buffer.len().min(PIECE).min(usize::try_from(self.window).unwrap_or(usize::MAX));
            let data: Vec<u8> = self.buffer.drain(..take).collect();
            self.window -= take as i64;
            let message = pack(&Data { data: data.into(), ..Data::default() });
            self.stream.to_client.blocking_send(message).map_err(|_| gone())?;
        }
        Ok(())
    }

    fn widen(&mut self, message: &Any) -> std::io::Result<()> {
        if containerd_api::any::is::<WindowUpdate>(message) {
            let update = WindowUpdate::decode(message.value.as_slice()).map_err(std::io::Error::other)?;
            self.window += i64::from(update.update);
        }
        Ok(())
    }
}

impl std::io::Write for ByteWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let take = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..take]);
        if self.buffer.len() == PIECE {
            self.send()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.send()
    }
}

/// A transfer's error for a stream that ended too soon.
pub fn cut(what: &str) -> Error {
    Error::new(Kind::Unavailable, format!("{what} stream closed by the client"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_arrive_as_they_were_sent_and_never_beyond_the_window() {
        let streams = Streams::default();
        let mut out = streams.open("n", "out").unwrap();
        assert!(streams.open("n", "out").is_err());
        assert!(streams.take("other", "out").is_err());
        let mut inward = streams.open("n", "in").unwrap();
        let mut writer = ByteWriter::new(streams.take("n", "out").unwrap());
        let mut reader = ByteReader::new(streams.take("n", "in").unwrap());
        let sent: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let copy = sent.clone();
        let writing = tokio::task::spawn_blocking(move || {
            writer.write_all(&copy)?;
            writer.flush()
        });
        let reading = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        // A relay with a small window on one side and the daemon's on the other.
        out.to_daemon.send(pack(&WindowUpdate { update: 1000 })).await.unwrap();
        let (mut open, mut granted) = (1000i64, 0i64);
        let mut relayed = 0usize;
        while relayed < sent.len() {
            let message = out.from_daemon.recv().await.unwrap();
            let data = Data::decode(message.value.as_slice()).unwrap().data;
            open -= data.len() as i64;
            assert!(open >= 0, "sent beyond the window");
            relayed += data.len();
            while granted < data.len() as i64 {
                let update = inward.from_daemon.recv().await.unwrap();
                granted += i64::from(WindowUpdate::decode(update.value.as_slice()).unwrap().update);
            }
            granted -= data.len() as i64;
            inward.to_daemon.send(message).await.unwrap();
            // After the last piece the writer may be gone.
            if open == 0 && relayed < sent.len() {
                out.to_daemon.send(pack(&WindowUpdate { update: 1000 })).await.unwrap();
                open += 1000;
            }
        }
        drop(inward.to_daemon);
        writing.await.unwrap().unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), sent);
    }
}
