//! Unpacks a layer into a directory and prints its diff id: `unpack LAYER DIRECTORY [CHUNK]`.
//!
//! With a chunk size the layer is read in pieces of at most so many bytes, as off a slow network.

use std::io::Read;

struct Chunks<R>(R, usize);

impl<R: Read> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let take = buffer.len().min(self.1);
        self.0.read(&mut buffer[..take])
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(layer), Some(dir)) = (args.next(), args.next()) else {
        return Err("usage: unpack LAYER DIRECTORY [CHUNK]".into());
    };
    let chunk = args.next().map_or(Ok(1 << 20), |c| c.parse())?;
    std::fs::create_dir_all(&dir)?;
    let root = layer::RootDir::open(dir.as_ref())?;
    let options = layer::ApplyOptions::layer(layer::Whiteouts::Remove);
    let unpacked = layer::unpack(&root, Chunks(std::fs::File::open(layer)?, chunk), &options)?;
    println!("{} {} bytes, {} entries", unpacked.diff_id, unpacked.size, unpacked.applied.entries);
    Ok(())
}
