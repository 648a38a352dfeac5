//! Between a client and the shim: bytes both ways until one of them is done.
//!
//! Bytes are not looked at, except for the detach keys of a terminal. A half close travels through. A client that does not read holds up
//! this task and its connection to the shim, which spools; the container goes on.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::detach::DetachKeys;

/// Bytes moved at once.
const BUFFER: usize = 64 << 10;

/// How a relay came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The process ended, or its output did.
    Output,
    /// The client went away.
    Client,
    /// The client typed the detach keys.
    Detached,
}

/// Relays until the end. `stdin` says whether what the client sends is passed on; if not it is only watched for its going away.
pub async fn run<C>(client: &mut C, shim: UnixStream, stdin: bool, mut keys: Option<DetachKeys>) -> Over
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_shim, mut to_shim) = shim.into_split();
    let output = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = match from_shim.read(&mut buffer).await {
                Ok(0) | Err(_) => return Over::Output,
                Ok(count) => count,
            };
            if to_client.write_all(&buffer[..count]).await.is_err() || to_client.flush().await.is_err() {
                return Over::Client;
            }
        }
    };
    let input = async {
        let mut buffer = vec![0; if stdin { BUFFER } else { 4096 }];
        let mut typed = Vec::new();
        loop {
            let count = match from_client.read(&mut buffer).await {
                // Half closed: output goes on.
                Ok(0) => break,
                Err(_) => return Over::Client,
                Ok(count) => count,
            };
            if !stdin {
                continue;
            }
            let sent = match &mut keys {
                None => to_shim.write_all(&buffer[..count]).await,
                Some(keys) => {
                    typed.clear();
                    let detached = keys.scan(&buffer[..count], &mut typed);
                    let sent = to_shim.write_all(&typed).await;
                    if detached {
                        return Over::Detached;
                    }
                    sent
                }
            };
            if sent.is_err() {
                // The process does not take it; its output may still have to be read.
                break;
            }
        }
        if stdin {
            let _ = to_shim.shutdown().await;
        }
        std::future::pending().await
    };
    tokio::select! {
        over = output => over,
        over = input => over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    #[tokio::test]
    async fn a_half_close_goes_through_and_output_follows_it() {
        let (client, mut client_end) = pair().await;
        let (shim, mut shim_end) = pair().await;
        let relay = tokio::spawn(async move {
            let mut client = client;
            run(&mut client, shim, true, None).await
        });
        client_end.write_all(b"in").await.unwrap();
        client_end.shutdown().await.unwrap();
        let mut heard = Vec::new();
        shim_end.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"in");
        shim_end.write_all(b"out").await.unwrap();
        drop(shim_end);
        let mut heard = Vec::new();
        client_end.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"out");
        assert_eq!(relay.await.unwrap(), Over::Output);
    }

    #[tokio::test]
    async fn detach_keys_end_it_and_a_client_that_only_listens_may_close() {
        let (mut client, mut client_end) = pair().await;
        let (shim, mut shim_end) = pair().await;
        client_end.write_all(b"a\x10\x11").await.unwrap();
        assert_eq!(run(&mut client, shim, true, Some(DetachKeys::default())).await, Over::Detached);
        let mut heard = Vec::new();
        shim_end.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"a");
    }
}
