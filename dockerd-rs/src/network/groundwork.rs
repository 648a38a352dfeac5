//! A network's own part of the host, its link and its rules: made and taken away by one list of steps, walked forward and back.
//!
//! Invariant: a walk that fails leaves the host as it was before it, in either direction. Each step, done twice, is content.

use super::firewall::Firewall;
use super::model::{Driver, Network};
use super::rules::Bridge;
use super::{bridge, steps};
use crate::error::{Error, Result};

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The host forwards IPv6. Never undone: it is the host's setting, and others may count on it by now.
    Forwarding,
    /// The bridge, or the parent link.
    Link,
    /// The bridge's chains.
    Rules,
}

/// The steps in order.
pub const STEPS: [Step; 3] = [Step::Forwarding, Step::Link, Step::Rules];

/// What the steps need to know.
pub struct Groundwork<'a> {
    /// Where the rules go.
    pub firewall: &'a Firewall,
    /// The network.
    pub network: &'a Network,
    /// The rules' view of it.
    pub rules: &'a Bridge,
    /// The engine's mark on links.
    pub instance: &'a str,
    /// Whether the engine switches forwarding on.
    pub forward: bool,
    /// For tests: the step, counted from 0, that fails after it was done or undone.
    pub fail_at: Option<usize>,
}

impl Groundwork<'_> {
    /// Makes the network's part of the host.
    ///
    /// # Errors
    /// The kernel refused a step.
    pub fn make(&self) -> Result<()> {
        for (at, step) in STEPS.iter().enumerate() {
            let Err(err) = self.injected(at, self.apply(*step)) else { continue };
            // The one that failed too: it may have got halfway.
            for step in STEPS[..=at].iter().rev() {
                if let Err(err) = self.revert(*step) {
                    tracing::warn!(network = self.network.name, ?step, error = %err, "cannot undo a step");
                }
            }
            return Err(err);
        }
        Ok(())
    }

    /// Takes it away.
    ///
    /// # Errors
    /// The kernel refused a step; the network is whole again then.
    pub fn unmake(&self) -> Result<()> {
        for (at, step) in STEPS.iter().enumerate().rev() {
            let Err(err) = self.injected(at, self.revert(*step)) else { continue };
            for step in &STEPS[at..] {
                if let Err(err) = self.apply(*step) {
                    tracing::warn!(network = self.network.name, ?step, error = %err, "cannot bring a step back");
                }
            }
            return Err(err);
        }
        Ok(())
    }

    fn injected(&self, at: usize, done: Result<()>) -> Result<()> {
        if self.fail_at == Some(at) { done.and(Err(Error::system("injected"))) } else { done }
    }

    fn apply(&self, step: Step) -> Result<()> {
        let bridge = self.network.driver == Driver::Bridge;
        match step {
            Step::Forwarding if bridge && self.forward && self.network.ipv6 => {
                steps::sysctl("net/ipv6/conf/all/forwarding", "1")
            }
            Step::Link => bridge::make(self.network, self.instance),
            Step::Rules if bridge => self.firewall.add_bridge(self.rules),
            Step::Forwarding | Step::Rules => Ok(()),
        }
    }

    fn revert(&self, step: Step) -> Result<()> {
        match step {
            Step::Forwarding => Ok(()),
            Step::Link => bridge::remove(self.network, self.instance),
            Step::Rules => self.firewall.remove_bridge(&self.network.link),
        }
    }
}
