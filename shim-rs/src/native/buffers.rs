//! The two large buffers of the shim: allocated when output flows, given back when it stops.
//!
//! One of each is kept for reuse, whichever stream used it last.

use std::cell::RefCell;

/// How much is read at once.
pub const INPUT: usize = 128 << 10;
/// How much encoded log is gathered before it is written.
pub const OUTPUT: usize = 256 << 10;

thread_local! {
    static SPARE: RefCell<(Option<Vec<u8>>, Option<Vec<u8>>)> = const { RefCell::new((None, None)) };
}

/// A buffer of [`INPUT`] bytes to read into.
pub fn input() -> Vec<u8> {
    SPARE.with_borrow_mut(|spare| spare.0.take()).unwrap_or_else(|| vec![0; INPUT])
}

/// Gives back what [`input`] gave.
pub fn give_back(buffer: Vec<u8>) {
    SPARE.with_borrow_mut(|spare| spare.0 = Some(buffer));
}

/// An empty buffer to gather into.
pub fn output() -> Vec<u8> {
    // Room for the line that crosses the threshold: 16 KiB of bytes that are six each when escaped.
    SPARE.with_borrow_mut(|spare| spare.1.take()).unwrap_or_else(|| Vec::with_capacity(OUTPUT + (112 << 10)))
}

/// Gives back what [`output`] gave.
pub fn give_back_output(mut buffer: Vec<u8>) {
    buffer.clear();
    SPARE.with_borrow_mut(|spare| spare.1 = Some(buffer));
}

/// Frees what is kept.
pub fn release() {
    SPARE.with_borrow_mut(|spare| *spare = (None, None));
}
