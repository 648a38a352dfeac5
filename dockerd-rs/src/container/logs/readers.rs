//! The threads that read logs for followers who have caught up.
//!
//! Few and of low priority: a hundred followers of a container that prints as fast as it can would otherwise take its processor. What they cannot keep up
//! with waits in the log.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// The threads' nice value.
const LOW: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// The threads; cheap to clone. They end with the last clone.
#[derive(Clone)]
pub struct Readers(Sender<Job>);

impl Readers {
    /// Starts them: one for every two processors.
    ///
    /// # Errors
    /// There are too many threads.
    pub fn start() -> io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        // Each follower has one job at a time at most.
        let (sender, jobs) = channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..(processors / 2).max(1) {
            let jobs = Arc::clone(&jobs);
            std::thread::Builder::new().name("log-follow".into()).spawn(move || work(&jobs))?;
        }
        Ok(Self(sender))
    }

    /// Runs `read` on one of them.
    ///
    /// # Errors
    /// Its own.
    pub async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (tell, told) = oneshot::channel();
        let job = Box::new(move || {
            let _ = tell.send(read());
        });
        let sent = self.0.send(job).is_ok();
        match told.await {
            Ok(read) if sent => read,
            _ => Err(io::Error::other("reading a log failed")),
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    let _ = rustix::process::setpriority_process(None, LOW);
    loop {
        // The one that waits holds the lock, the others wait for that.
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        // A job that panics has lost its own caller only.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_come_back_also_after_a_panic() {
        let readers = Readers::start().unwrap();
        let panicked: io::Result<()> = readers.run(|| panic!("on purpose")).await;
        assert!(panicked.is_err());
        let answers = futures_util::future::join_all((0..50).map(|n| readers.run(move || Ok(n)))).await;
        let answers: Vec<i32> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (0..50).collect::<Vec<_>>());
    }
}
