//! Attached streams: the engine's multiplexed frames to our standard output and error, our input to the engine.

use std::io::{IsTerminal, Write};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// The keys that detach unless others are asked for.
const DETACH: &str = "ctrl-p,ctrl-q";

/// Key names as people write them, `ctrl-x,x`: the bytes that a terminal sends for them.
///
/// # Errors
/// A word that names no key.
pub fn keys(text: &str) -> Result<Vec<u8>, String> {
    let text = if text.is_empty() { DETACH } else { text };
    let key = |word: &str| match *word.as_bytes() {
        [byte] => Some(byte),
        [b'c', b't', b'r', b'l', b'-', byte @ (b'@' | b'a'..=b'z' | b'['..=b'_')] => Some(byte & 0x1f),
        _ => None,
    };
    let unknown = || format!("invalid detach keys ({text}): Unknown character: '{text}'");
    text.split(',').map(|word| key(word).ok_or_else(unknown)).collect()
}

/// How an attached session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The engine closed the stream.
    Output,
    /// The user typed the detach keys.
    Detached,
}

/// Copies frames (or, with a terminal, raw bytes) to our own output until the stream ends.
///
/// # Errors
/// Our own output cannot be written, or the connection broke.
pub async fn demultiplex(mut from: impl AsyncRead + Unpin, raw: bool) -> std::io::Result<()> {
    let mut buffer = vec![0_u8; 64 << 10];
    if raw {
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            put(false, &buffer[..read])?;
        }
    }
    // What is left of the frame in hand, and where it goes.
    let mut pending: Vec<u8> = Vec::new();
    let (mut left, mut to_err) = (0_usize, false);
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let mut data = &buffer[..read];
        while !data.is_empty() {
            if left > 0 {
                let take = left.min(data.len());
                put(to_err, &data[..take])?;
                left -= take;
                data = &data[take..];
                continue;
            }
            let take = (8 - pending.len()).min(data.len());
            pending.extend_from_slice(&data[..take]);
            data = &data[take..];
            if let Ok(head) = <[u8; 8]>::try_from(pending.as_slice()) {
                to_err = head[0] >= 2;
                left = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
                pending.clear();
            }
        }
    }
}

fn put(to_err: bool, bytes: &[u8]) -> std::io::Result<()> {
    if to_err {
        std::io::stderr().lock().write_all(bytes)
    } else {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }
}

/// Runs an attached session over a taken connection. `input` says whether our standard input goes to the container; `detach` are the
/// bytes that, typed at a terminal, end the session and leave the container as it is.
///
/// # Errors
/// The connection broke or our output cannot be written.
pub async fn session(
    stream: crate::client::Hijacked,
    raw: bool,
    input: bool,
    detach: Vec<u8>,
) -> std::io::Result<End> {
    let (from, mut to) = tokio::io::split(stream);
    let mut output = tokio::spawn(demultiplex(from, raw));
    if !input {
        return flatten(output.await).map(|()| End::Output);
    }
    let terminal = raw && std::io::stdin().is_terminal();
    let mut sender = tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0_u8; 64 << 10];
        // How many of the detach keys were typed.
        let mut typed = 0;
        loop {
            let read = stdin.read(&mut buffer).await?;
            if read == 0 {
                to.shutdown().await?;
                return Ok::<_, std::io::Error>(false);
            }
            let mut send: Vec<u8> = Vec::with_capacity(read);
            for byte in &buffer[..read] {
                if terminal && detach.get(typed) == Some(byte) {
                    typed += 1;
                    if typed == detach.len() {
                        return Ok(true);
                    }
                    continue;
                }
                send.extend_from_slice(&detach[..typed]);
                typed = usize::from(terminal && typed > 0 && detach.first() == Some(byte));
                if typed == 0 {
                    send.push(*byte);
                }
            }
            to.write_all(&send).await?;
            to.flush().await?;
        }
    });
    tokio::select! {
        done = &mut output => flatten(done).map(|()| End::Output),
        sent = &mut sender => match sent {
            Ok(Ok(true)) => Ok(End::Detached),
            // Our input is over or was refused; what the container still says counts.
            _ => flatten(output.await).map(|()| End::Output),
        },
    }
}

fn flatten(joined: Result<std::io::Result<()>, tokio::task::JoinError>) -> std::io::Result<()> {
    joined.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_people_write_them() {
        assert_eq!(keys("").unwrap(), [16, 17]);
        assert_eq!(keys("ctrl-x,x").unwrap(), [24, b'x']);
        assert_eq!(keys("ctrl-@,ctrl-[,ctrl-_").unwrap(), [0, 27, 31]);
        assert!(keys("ctrl-,a").is_err());
        assert!(keys("word").is_err());
    }
}
