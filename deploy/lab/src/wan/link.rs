//! A cable that misbehaves.

use std::time::Instant;

use anyhow::Result;

use super::conditions::Conditions;
use super::direction::{Counters, Direction};
use super::ends::{self, Attach};
use super::mover::{Middle, Mover};
use crate::topology::Host;

/// A direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the first end to the second.
    There,
    /// From the second end to the first.
    Back,
}

/// A cable that does to frames what it is told, each way by itself. It ends with this value.
///
/// Frames keep their Ethernet addresses: hosts at its ends are neighbours. An 802.1Q tag doesn't survive.
#[derive(Debug)]
pub struct Link {
    mover: Mover<Both>,
}

#[derive(Debug)]
struct Both([Direction; 2]);

impl Link {
    /// Lays a link between two ends, which does nothing to frames yet. `name` is a new host's, of up to 10 bytes;
    /// what chance decides follows from `seed`.
    ///
    /// # Errors
    /// If the kernel or `ip` refuses.
    pub fn lay(name: &str, first: Attach<'_>, second: Attach<'_>, seed: u64) -> Result<Self> {
        let host = Host::create(name)?;
        ends::attach(&host, "end0", first)?;
        ends::attach(&host, "end1", second)?;
        let both = Both([Direction::new(seed), Direction::new(!seed)]);
        Ok(Self { mover: Mover::start(&host, ["end0", "end1"], both)? })
    }

    /// What one way does to frames from now on.
    pub fn set(&self, way: Way, conditions: Conditions) {
        self.mover.with(|both| both.0[index(way)].set(conditions));
    }

    /// What both ways do to frames from now on.
    pub fn set_both(&self, conditions: &Conditions) {
        self.set(Way::There, conditions.clone());
        self.set(Way::Back, conditions.clone());
    }

    /// What became of frames on one way.
    #[must_use]
    pub fn counters(&self, way: Way) -> Counters {
        self.mover.with(|both| both.0[index(way)].counters())
    }
}

const fn index(way: Way) -> usize {
    match way {
        Way::There => 0,
        Way::Back => 1,
    }
}

impl Middle for Both {
    fn take(&mut self, end: usize, frame: &[u8], now: Instant, out: &mut Vec<(usize, Vec<u8>)>) {
        if let Some(answer) = self.0[end].offer(frame, now) {
            out.push((end, answer));
        }
        self.due(now, out);
    }

    fn due(&mut self, now: Instant, out: &mut Vec<(usize, Vec<u8>)>) {
        for (end, direction) in self.0.iter_mut().enumerate() {
            while let Some(frame) = direction.arrived(now) {
                out.push((1 - end, frame));
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        self.0.iter().filter_map(Direction::next).min()
    }
}
