//! Every process below the shim: started, adopted, and reaped in one place.
//!
//! Invariant: this is the only caller of `wait`. A container's processes are not started here but by the runtime, and become our children when it
//! ends; one may already be dead by the time its pid is known, so while such a birth is under way (an [`Expecting`] lives) exits nobody claims are kept.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::rc::Rc;

use sys::pidfd::PidFd;
use sys::reaper::{ChildNotice, Ended};
use tokio::io::Interest;
use tokio::sync::oneshot;

use crate::clock::Instant;

/// A container must not end because someone told its shim to: only SIGKILL ends a shim early.
pub const IGNORED: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// By itself or by a signal.
    pub how: Ended,
    /// When it was reaped.
    pub at: Instant,
}

/// The shim's children.
pub struct Children {
    waiting: RefCell<HashMap<i32, oneshot::Sender<Exit>>>,
    unclaimed: RefCell<HashMap<i32, Exit>>,
    expecting: Cell<usize>,
}

/// While one lives, exits of unknown processes are remembered.
pub struct Expecting(Rc<Children>);

impl Children {
    /// Becomes the reaper of this process and everything below; needs a `LocalSet`.
    pub fn start() -> io::Result<Rc<Children>> {
        sys::reaper::become_subreaper()?;
        let notice = ChildNotice::new(&IGNORED)?;
        let notice = crate::readiness::register_for(notice, Interest::READABLE)?;
        let children = Rc::new(Children {
            waiting: RefCell::default(),
            unclaimed: RefCell::default(),
            expecting: Cell::new(0),
        });
        let reaping = children.clone();
        tokio::task::spawn_local(async move {
            // An error means that the reactor is gone, and with it the program.
            while let Ok(mut ready) = notice.readable().await {
                while notice.get_ref().take().is_ok() {}
                ready.clear_ready();
                reaping.reap();
            }
        });
        Ok(children)
    }

    /// Starts a process; the receiver tells when it has ended.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(i32, oneshot::Receiver<Exit>)> {
        // No await lies between the two: it cannot be reaped before it is known.
        let pid = command.spawn()?.id() as i32;
        Ok((pid, self.claim(pid)))
    }

    /// To be held from before the runtime starts a process until that is [adopted](Expecting::adopt).
    pub fn expect(self: &Rc<Self>) -> Expecting {
        self.expecting.set(self.expecting.get() + 1);
        Expecting(self.clone())
    }

    fn claim(&self, pid: i32) -> oneshot::Receiver<Exit> {
        let (tell, told) = oneshot::channel();
        match self.unclaimed.borrow_mut().remove(&pid) {
            Some(exit) => {
                let _ = tell.send(exit);
            }
            None => {
                self.waiting.borrow_mut().insert(pid, tell);
            }
        }
        told
    }

    fn reap(&self) {
        while let Ok(Some((pid, how))) = sys::reaper::reap() {
            let exit = Exit { how, at: Instant::now() };
            match self.waiting.borrow_mut().remove(&pid) {
                Some(waiter) => {
                    let _ = waiter.send(exit);
                }
                None if self.expecting.get() > 0 => {
                    self.unclaimed.borrow_mut().insert(pid, exit);
                }
                // An orphan of the container's.
                None => {}
            }
        }
    }
}

impl Expecting {
    /// The process the runtime made is `pid`: tells when it has ended, or at once that it had. The handle is absent if it was reaped already.
    pub fn adopt(self, pid: i32) -> (Option<PidFd>, oneshot::Receiver<Exit>) {
        let reaped = self.0.unclaimed.borrow().contains_key(&pid);
        // Not reaped means that the number is still its own: we are the only ones who could have.
        let handle = if reaped { None } else { PidFd::open(pid).ok() };
        (handle, self.0.claim(pid))
    }
}

impl Drop for Expecting {
    fn drop(&mut self) {
        let left = self.0.expecting.get() - 1;
        self.0.expecting.set(left);
        if left == 0 {
            self.0.unclaimed.borrow_mut().clear();
        }
    }
}
