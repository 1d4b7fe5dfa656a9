//! Knocks whose answers are awaited.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use super::doubt::Sent;

/// Those whose answers are still taken.
const MAX: usize = 32;

/// A knock that wasn't answered yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Knock {
    pub(super) nonce: u64,
    pub(super) to: SocketAddr,
    pub(super) at: Instant,
    /// Whether it was as long as a packet.
    pub(super) full: bool,
    /// What went to the peer since the short knock before, if this is a short one.
    pub(super) sent: Sent,
}

/// The latest knocks at one peer that weren't answered.
#[derive(Debug, Default)]
pub(super) struct Awaited(VecDeque<Knock>);

impl Awaited {
    /// A knock was sent. Of too many, the oldest one's answer isn't taken any more.
    pub(super) fn add(&mut self, knock: Knock) {
        if self.0.len() >= MAX {
            self.0.pop_front();
        }
        self.0.push_back(knock);
    }

    /// Whether the answer to this knock is still taken.
    pub(super) fn has(&self, nonce: u64) -> bool {
        self.0.iter().any(|knock| knock.nonce == nonce)
    }

    /// Takes a knock out that was answered.
    pub(super) fn take(&mut self, nonce: u64) -> Option<Knock> {
        let place = self.0.iter().position(|knock| knock.nonce == nonce)?;
        self.0.remove(place)
    }
}
