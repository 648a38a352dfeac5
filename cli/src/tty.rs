//! The user's terminal: raw while a container has it, itself again afterwards, and its size passed on.

use std::io::IsTerminal;
use std::os::fd::BorrowedFd;

use rustix::termios::{OptionalActions, Termios};

/// The terminal in raw mode until dropped.
pub struct Raw {
    before: Option<Termios>,
}

impl Raw {
    /// Puts standard input into raw mode if it is a terminal.
    pub fn stdin() -> Self {
        let before = std::io::stdin()
            .is_terminal()
            .then(|| rustix::termios::tcgetattr(std::io::stdin()).ok())
            .flatten();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            // A terminal that refuses stays as it is; the session works, only less well.
            let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw);
        }
        Self { before }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Rows and columns of the terminal on standard output, if it is one.
pub fn size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}

/// Whether a descriptor is a terminal.
pub fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    rustix::termios::isatty(fd)
}
