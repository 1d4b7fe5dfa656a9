//! Lanes whose keys were replaced: nothing is sent through them, and what is under way is still opened.
//!
//! The end with the new key tells the other, which may send by the old one until it has heard. So they stay for a moment. No longer:
//! a key is replaced because it may be in other hands, perhaps.

use std::time::{Duration, Instant};

use super::open::Lane;
use super::{Known, Lanes};
use crate::peer::PeerSlot;

/// How long nothing must have come until such a lane goes. A peer that missed what it was told is told again within that.
const QUIET: Duration = Duration::from_secs(10);
/// How long one stays at most.
const AT_MOST: Duration = Duration::from_secs(30);

impl Lanes {
    /// Has what a peer sent by the keys before still opened. Where there are too many such lanes already, its go at once.
    pub(super) fn retire(&mut self, before: Known, now: Instant) {
        for (_, number) in before.tunnels {
            let room = self.retired.len() < self.most;
            let Some(lane) = self.lanes.get_mut(number).filter(|lane| lane.is_open()) else {
                continue;
            };
            // Without a handshake there is nothing under way.
            if !room || !lane.tunnel.is_begun() {
                self.remove(number);
                continue;
            }
            (lane.retired, lane.used, lane.ready) = (Some(now), now, false);
            lane.wanted_until = None;
            self.open -= 1;
            self.retired.push(number);
            self.wake_by(number, now + QUIET);
        }
    }

    /// Closes the lanes of one that is gone, and retired ones of peers that are.
    pub(super) fn close(&mut self, gone: Option<Known>, is_gone: impl Fn(PeerSlot) -> bool) {
        let of = |number: &u32| self.lanes.get(*number).is_some_and(|lane| is_gone(lane.at.peer));
        let retired: Vec<u32> = self.retired.iter().copied().filter(of).collect();
        for number in retired {
            self.lanes.remove(number);
            self.retired.retain(|other| *other != number);
        }
        for (_, number) in gone.into_iter().flat_map(|known| known.tunnels) {
            self.open -= usize::from(self.lanes.remove(number).is_some());
        }
    }
}

impl Lane {
    /// Whether it is there to be sent through.
    pub(super) const fn is_open(&self) -> bool {
        self.retired.is_none()
    }

    /// Until when it stays, if it is retired and nothing more comes.
    pub(super) fn retired_until(&self) -> Option<Instant> {
        self.retired.map(|since| (self.used + QUIET).min(since + AT_MOST))
    }
}
