//! Any bytes to a server: it answers what are calls and ends in peace when the client leaves.
#![no_main]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::{Call, Options, Service, Status, serve_connection};

#[derive(Clone)]
struct Echo;

impl Service for Echo {
    async fn call(self, call: Call) -> Result<Vec<u8>, Status> {
        if call.method.is_empty() { Err(call.unimplemented()) } else { Ok(call.payload.to_vec()) }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
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
});
