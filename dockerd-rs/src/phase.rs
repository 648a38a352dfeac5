//! Where the engine is between start and stop, for those who have to wait for it or with it.

use std::time::Duration;

use tokio::sync::watch;

use crate::error::{Error, Result};

/// How long a request waits for a starting engine.
const START_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Starting,
    Ready,
    Stopping,
}

/// The engine's phase; cheap to clone. It only ever moves forward.
#[derive(Clone)]
pub struct Phase(watch::Sender<At>);

impl Default for Phase {
    fn default() -> Self {
        Self(watch::Sender::new(At::Starting))
    }
}

impl Phase {
    fn advance(&self, to: At) {
        self.0.send_if_modified(|at| {
            let moves = to > *at;
            if moves {
                *at = to;
            }
            moves
        });
    }

    /// Containers and networks are as their records say; containerd answers.
    pub fn set_ready(&self) {
        self.advance(At::Ready);
    }

    /// The engine is about to end.
    pub fn set_stopping(&self) {
        self.advance(At::Stopping);
    }

    /// Whether restoring is over.
    pub fn is_ready(&self) -> bool {
        *self.0.borrow() == At::Ready
    }

    /// Waits until the engine has restored its state.
    ///
    /// # Errors
    /// 503 when that takes more than a minute or the engine is about to end.
    pub async fn ready(&self) -> Result<()> {
        let mut at = self.0.subscribe();
        let waited = tokio::time::timeout(START_PATIENCE, at.wait_for(|at| *at != At::Starting)).await;
        match waited {
            Ok(Ok(at)) if *at == At::Ready => Ok(()),
            Ok(_) => Err(Error::unavailable("the engine is shutting down")),
            Err(_) => Err(Error::unavailable("the engine is still starting")),
        }
    }

    /// Waits until the engine is about to end: streams that would go on for ever end then.
    pub async fn stopping(&self) {
        let mut at = self.0.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ = at.wait_for(|at| *at == At::Stopping).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_only_moves_forward() {
        let phase = Phase::default();
        let waiting = tokio::spawn({
            let phase = phase.clone();
            async move { phase.ready().await.is_ok() }
        });
        tokio::task::yield_now().await;
        phase.set_ready();
        assert!(waiting.await.unwrap());
        phase.set_stopping();
        phase.set_ready();
        assert!(phase.ready().await.is_err());
        phase.stopping().await;
    }
}
