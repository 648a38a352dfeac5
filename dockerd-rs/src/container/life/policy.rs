//! Restart policies: whether a container that ended is started again, and when.
//!
//! Pure but for the clock its caller passes in. The pause doubles with each restart up to a minute and starts anew after a run of ten seconds.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST: Duration = Duration::from_secs(60);
/// A run this long has proved itself.
const PROVED: Duration = Duration::from_secs(10);

/// A container's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Never.
    No,
    /// After failures; at most so often in a row, 0 is without end.
    OnFailure(u32),
    /// Always, but not after a client stopped it, until the engine starts anew.
    Always,
    /// Always, but not after a client stopped it.
    UnlessStopped,
}

impl Policy {
    /// The policy of this name, as `HostConfig.RestartPolicy` has it. Unknown names were refused at create and mean no.
    pub fn named(name: &str, maximum: i64) -> Self {
        match name {
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            "on-failure" => Self::OnFailure(u32::try_from(maximum).unwrap_or(0)),
            _ => Self::No,
        }
    }

    /// Whether the engine starts a stopped container of this policy when it starts itself.
    pub fn at_boot(self, manually_stopped: bool, exit_code: i32, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always => true,
            Self::UnlessStopped => !manually_stopped,
            Self::OnFailure(maximum) => {
                !manually_stopped && exit_code != 0 && (maximum == 0 || restarts < maximum)
            }
        }
    }
}

/// What the last runs of a container were like. Forgotten when a client starts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    pause: Duration,
}

/// How a run ended, as far as the policy cares.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The exit code.
    pub code: i32,
    /// How long it lasted.
    pub lasted: Duration,
    /// Whether a client ever stopped or signalled it since its last start.
    pub manually_stopped: bool,
    /// Whether a client asked for this end: by SIGKILL, by the stop signal, or by any signal when no stop signal is set.
    pub cancelled: bool,
    /// Restarts by the policy so far.
    pub restarts: u32,
}

impl Backoff {
    /// Whether the container is started again, and after which pause.
    pub fn after(&mut self, policy: Policy, run: Run) -> Option<Duration> {
        let again = match policy {
            Policy::No => false,
            Policy::Always => true,
            Policy::UnlessStopped => !run.manually_stopped,
            Policy::OnFailure(maximum) => run.code != 0 && (maximum == 0 || run.restarts < maximum),
        } && !run.cancelled;
        if !again {
            return None;
        }
        self.pause = if self.pause.is_zero() || run.lasted >= PROVED {
            FIRST
        } else {
            self.pause.saturating_mul(2).min(LONGEST)
        };
        Some(self.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Run = Run {
        code: 1,
        lasted: Duration::from_millis(50),
        manually_stopped: false,
        cancelled: false,
        restarts: 0,
    };

    #[test]
    fn who_is_started_again() {
        let again = |policy, run| Backoff::default().after(policy, run).is_some();
        let ok = Run { code: 0, ..RUN };
        let signalled = Run { manually_stopped: true, ..RUN };
        let stopped = Run { cancelled: true, ..signalled };
        let third = Run { restarts: 3, ..RUN };
        for (policy, expected) in [
            (Policy::No, [false, false, false, false, false]),
            (Policy::Always, [true, true, true, false, true]),
            (Policy::UnlessStopped, [true, true, false, false, true]),
            (Policy::OnFailure(0), [true, false, true, false, true]),
            (Policy::OnFailure(3), [true, false, true, false, false]),
        ] {
            assert_eq!(
                [RUN, ok, signalled, stopped, third].map(|run| again(policy, run)),
                expected,
                "{policy:?}"
            );
        }
    }

    #[test]
    fn pauses_double_to_a_minute_and_begin_anew_after_a_good_run() {
        let mut backoff = Backoff::default();
        let mut pause = |lasted| backoff.after(Policy::Always, Run { lasted, ..RUN }).unwrap().as_millis();
        let short = Duration::ZERO;
        assert_eq!([pause(short), pause(short), pause(short)], [100, 200, 400]);
        for _ in 0..20 {
            pause(short);
        }
        assert_eq!(pause(short), 60_000);
        assert_eq!([pause(PROVED), pause(short)], [100, 200]);
    }

    #[test]
    fn the_engines_own_start() {
        assert!(Policy::Always.at_boot(true, 0, 0));
        assert!(!Policy::UnlessStopped.at_boot(true, 0, 0));
        assert!(Policy::UnlessStopped.at_boot(false, 0, 0));
        assert!(!Policy::OnFailure(2).at_boot(false, 0, 0));
        assert!(Policy::OnFailure(2).at_boot(false, 1, 1) && !Policy::OnFailure(2).at_boot(false, 1, 2));
        assert!(!Policy::No.at_boot(false, 1, 0));
    }
}
