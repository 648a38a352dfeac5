//! The shim's own log: lines into the `log` named pipe of the bundle, when containerd has it open.
//!
//! Never blocks and never fails: a line nobody can take is dropped.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::clock::Instant;

/// Where log lines go.
pub struct Log {
    path: PathBuf,
    debug: bool,
    fields: String,
    pipe: RefCell<Option<OwnedFd>>,
}

impl Log {
    /// The log of the shim in `bundle`.
    pub fn new(bundle: &Path, namespace: &str, debug: bool) -> Log {
        let fields =
            format!("runtime=io.containerd.rs.v2 namespace={} pid={}", quoted(namespace), std::process::id());
        Log { path: bundle.join("log"), debug, fields, pipe: RefCell::new(None) }
    }

    /// Something unexpected that was dealt with.
    pub fn warn(&self, message: &str) {
        self.line("warning", message);
    }

    /// Something someone has to look at.
    pub fn error(&self, message: &str) {
        self.line("error", message);
    }

    /// A change of state, for someone who asked for `-debug`.
    pub fn debug(&self, message: impl FnOnce() -> String) {
        if self.debug {
            self.line("debug", &message());
        }
    }

    fn line(&self, level: &str, message: &str) {
        let mut pipe = self.pipe.borrow_mut();
        if pipe.is_none() {
            // A reader may have come since the last line.
            *pipe = sys::fifo::open_write_hold(&self.path).ok();
        }
        let Some(open) = pipe.as_ref() else { return };
        let line = format!(
            "time={} level={level} msg={} {}\n",
            quoted(&Instant::now().rfc3339()),
            quoted(message),
            self.fields
        );
        match rustix::io::write(open, line.as_bytes()) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(_) => *pipe = None,
        }
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}
