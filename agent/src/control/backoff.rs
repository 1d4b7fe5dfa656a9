//! How long to wait before the next try.

use std::time::Duration;

/// First wait after a failure.
pub(super) const FIRST: Duration = Duration::from_millis(200);
/// Longest wait.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// After so many failures in a row, which takes minutes, the longest wait is this one: a try costs a handshake with post-quantum
/// keys, and whoever is away for hours isn't missed for seconds.
const LONGEST_AWAY: (u32, Duration) = (64, Duration::from_secs(15));
/// Longest wait after a controller's word that it won't have this gateway.
pub(super) const LONGEST_UNWANTED: Duration = Duration::from_secs(300);

/// Doubles from [`FIRST`] to [`LONGEST`], and in the end to [`LONGEST_AWAY`]; each wait is drawn from its upper half, so that a fleet that lost its
/// controller doesn't come back as one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure. `random` is any number that differs between gateways.
    pub(crate) fn next(&mut self, random: u32) -> Duration {
        let (many, away) = LONGEST_AWAY;
        self.wait(if self.failures < many { LONGEST } else { away }, random)
    }

    /// The wait after one more refusal that only an operator can change: it grows to [`LONGEST_UNWANTED`], so that a
    /// gateway that was taken out doesn't knock for ever.
    pub(super) fn unwanted(&mut self, random: u32) -> Duration {
        self.wait(LONGEST_UNWANTED, random)
    }

    fn wait(&mut self, longest: Duration, random: u32) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures = self.failures.saturating_add(1);
        whole / 2 + (whole / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// Begins anew: it worked.
    pub(crate) const fn reset(&mut self) {
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
        let mut soonest = Duration::ZERO;
        for _ in 1..LONGEST_AWAY.0 {
            let wait = backoff.clone().next(u32::MAX);
            assert!(wait >= last && wait <= LONGEST, "{wait:?} after {last:?}");
            let least = backoff.next(0);
            assert!(least <= wait / 2 + Duration::from_millis(1));
            soonest += least;
            last = wait;
        }
        assert_eq!(last, LONGEST);
        assert!(soonest >= Duration::from_secs(120), "rarely after no more than {soonest:?}");
        assert_eq!(backoff.clone().next(u32::MAX), LONGEST_AWAY.1);
        assert_eq!(backoff.next(0), LONGEST_AWAY.1 / 2);
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), FIRST);
    }

    #[test]
    fn who_isnt_wanted_waits_for_minutes() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..20).map(|_| backoff.unwanted(u32::MAX)).collect();
        assert_eq!(waits[0], FIRST, "an operator may be at it just now");
        assert!(waits.windows(2).all(|two| two[1] >= two[0]), "{waits:?}");
        assert_eq!(waits.last(), Some(&LONGEST_UNWANTED));
        let knocks: Duration = waits[..11].iter().sum();
        assert!(knocks > Duration::from_secs(300), "eleven knocks take {knocks:?}");
        assert_eq!(backoff.next(u32::MAX), LONGEST, "another failure isn't held against it");
    }
}
