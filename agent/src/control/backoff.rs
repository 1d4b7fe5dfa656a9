//! How long to wait before the next try.

use std::time::Duration;

/// First wait after a failure.
pub(super) const FIRST: Duration = Duration::from_millis(200);
/// Longest wait.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

/// Doubles from [`FIRST`] to [`LONGEST`]; each wait is drawn from its upper half, so that a fleet that lost its
/// controller doesn't come back as one.
#[derive(Debug, Clone, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure. `random` is any number that differs between gateways.
    pub(super) fn next(&mut self, random: u32) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        whole / 2 + (whole / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// Begins anew: it worked.
    pub(super) const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_are_spread() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0), FIRST / 2);
        let mut last = Duration::ZERO;
        for _ in 0..100 {
            let wait = backoff.clone().next(u32::MAX);
            assert!(wait >= last && wait <= LONGEST, "{wait:?} after {last:?}");
            assert!(backoff.next(0) <= wait / 2 + Duration::from_millis(1));
            last = wait;
        }
        assert_eq!(last, LONGEST);
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), FIRST);
    }
}
