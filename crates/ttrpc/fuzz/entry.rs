//! What the fuzz targets run; `tests/fuzz.rs` runs the same for a bounded number of inputs.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::{Call, Client, Frame, FrameReader, HEADER_LEN, Options, Service, Status, serve_connection};

#[derive(Clone)]
struct Echo;

impl Service for Echo {
    async fn call(self, call: Call) -> Result<Vec<u8>, Status> {
        if call.method.is_empty() { Err(call.unimplemented()) } else { Ok(call.payload.to_vec()) }
    }
}

/// Any bytes to a server: it answers what are calls and ends in peace when the client leaves.
pub fn server(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (read, write) = tokio::io::split(server);
        let serving = serve_connection(Echo, read, write, Options { max_in_flight: 4 });
        let feeding = async move {
            let (mut read, mut write) = tokio::io::split(client);
            let mut answers = Vec::new();
            let send = async {
                let _ = write.write_all(bytes).await;
                let _ = write.shutdown().await;
            };
            let _ = tokio::join!(send, read.read_to_end(&mut answers));
        };
        tokio::join!(serving, feeding);
    });
}

/// Any bytes as a server's answers: a client's call ends, and the frames are accounted for to the byte.
pub fn client(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut reader = FrameReader::new(bytes);
        let mut used = 0;
        let complete = loop {
            match reader.next().await {
                Ok(Some(Frame::Message(header, _) | Frame::TooLong(header))) => {
                    used += HEADER_LEN + header.len as usize
                }
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        assert_eq!(complete, used == bytes.len());
        let client = Client::over(std::io::Cursor::new(bytes.to_vec()), tokio::io::sink());
        let _ = client.call("s", "m", Vec::new(), Vec::new(), None).await;
        client.closed().await;
    });
}
