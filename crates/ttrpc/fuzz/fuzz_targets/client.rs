//! Any bytes as a server's answers: a client's call ends, and the frames are accounted for to the byte.
#![no_main]

use ttrpc::{Client, Frame, FrameReader, HEADER_LEN};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut reader = FrameReader::new(bytes);
        let mut used = 0;
        let complete = loop {
            match reader.next().await {
                Ok(Some(Frame::Message(header, _) | Frame::TooLong(header))) => used += HEADER_LEN + header.len as usize,
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        assert_eq!(complete, used == bytes.len());
        let client = Client::over(std::io::Cursor::new(bytes.to_vec()), tokio::io::sink());
        let _ = client.call("s", "m", Vec::new(), Vec::new(), None).await;
        client.closed().await;
    });
});
