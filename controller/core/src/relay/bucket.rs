//! A token bucket: how many bytes one gateway may send.

use std::time::{Duration, Instant};

/// How fast a gateway may send through a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes a second, in the long run.
    pub bytes_per_second: u64,
    /// Bytes at once.
    pub burst: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    rate: Rate,
    left: u64,
    at: Instant,
}

impl Bucket {
    pub(super) const fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst, at: now }
    }

    /// Takes `bytes` out, if they are in there.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).min(Duration::from_secs(3600));
        let rate = u128::from(self.rate.bytes_per_second);
        let gained = u64::try_from(passed.as_micros() * rate / 1_000_000).unwrap_or(u64::MAX);
        // Moments too short to gain a byte add up.
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(self.rate.burst);
            self.at = now;
        }
        match self.left.checked_sub(bytes as u64) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}
