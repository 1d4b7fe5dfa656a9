//! How much of something one peer is let have: some at once, and so much more each second.

use std::time::{Duration, Instant};

/// What is left of it.
#[derive(Debug)]
pub(super) struct Allowance {
    most: u32,
    per_second: u32,
    left: u32,
    /// Up to when what was gained is counted in.
    since: Instant,
}

impl Allowance {
    /// `most` at once, and `per_second` more each second, up to that again.
    pub(super) const fn new(most: u32, per_second: u32, now: Instant) -> Self {
        Self { most, per_second, left: most, since: now }
    }

    /// Whether one more is let have now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.since).as_secs();
        if seconds > 0 {
            let gained = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(self.per_second);
            self.left = self.left.saturating_add(gained).min(self.most);
            self.since += Duration::from_secs(seconds);
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_so_many_a_second() {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        let start = Instant::now();
        let mut allowance = Allowance::new(32, 16, start);
        let mut taken = |from: u64, to: u64| {
            (from..to)
                .filter(|millis| allowance.take(start + Duration::from_millis(*millis)))
                .count()
        };
        assert_eq!(taken(0, 10_000), 32 + 9 * 16);
        assert_eq!(taken(10_000, 10_500), 16);
        assert_eq!(taken(100_000, 100_900), 32, "no more than at once, however long it was quiet");
    }
}
