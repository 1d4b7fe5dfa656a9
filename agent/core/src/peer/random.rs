//! Choices that needn't be secret: jitter and nonces.

use std::time::Duration;

/// A small generator (SplitMix64) that grows from a seed, so that a simulation can repeat itself.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: &[u8; 32]) -> Self {
        let (words, _) = seed.as_chunks::<8>();
        Self(words.iter().fold(0, |sum, word| sum.rotate_left(17) ^ u64::from_le_bytes(*word)))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Some time from `low` to below `high`.
    pub(super) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = high.saturating_sub(low).as_millis().max(1) as u64;
        low + Duration::from_millis(self.next() % span)
    }
}
