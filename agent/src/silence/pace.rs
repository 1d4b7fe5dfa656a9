//! When TCP may be tried beside a silent connection over QUIC, from one doubt to the next. No clock.

use std::time::Duration;

use anteroom_proto::key::PublicKey;
use tokio::time::Instant;

/// Between two tries of TCP. What comes back answers at once, and a connection's own second question would be late.
const AGAIN: Duration = Duration::from_millis(500);
/// Tries that are [`AGAIN`] apart. Each one more waits twice as long as the one before, up to [`RAREST`], until QUIC was fine
/// for [`LASTS`]: a network, or a busy relay, that answers now and then has no TCP dialled for ever.
const QUICK: u32 = 4;
const RAREST: Duration = Duration::from_secs(60);
const LASTS: Duration = Duration::from_secs(60);

/// How often TCP was tried, and when it may be tried next.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    /// Tries since QUIC was last fine for [`LASTS`].
    pub(super) tries: u32,
    next: Option<Instant>,
    /// Since when QUIC answers.
    fine: Option<Instant>,
}

impl Pace {
    pub(super) fn may_try(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// It is tried. What is between this and the next differs by `who` tries, so that gateways of one network part.
    pub(super) fn note_try(&mut self, who: PublicKey, now: Instant) {
        let doublings = self.tries.saturating_sub(QUICK - 1).min(16);
        let pause = (AGAIN * (1 << doublings)).min(RAREST);
        let bytes = who.as_bytes();
        let share = bytes.get(self.tries as usize % bytes.len()).copied().unwrap_or_default();
        self.next = Some(now + pause + pause * u32::from(share) / 1_024);
        self.tries = self.tries.saturating_add(1);
    }

    pub(super) fn note_failed(&mut self, now: Instant) {
        self.next = self.next.max(Some(now + AGAIN));
    }

    /// How long QUIC has been fine, as of now.
    pub(super) fn note(&mut self, fine: bool, now: Instant) -> Duration {
        if !fine {
            self.fine = None;
            return Duration::ZERO;
        }
        let lasts = now.saturating_duration_since(*self.fine.get_or_insert(now));
        if lasts >= LASTS {
            (self.tries, self.next) = (0, None);
        }
        lasts
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::key::IdentityKey;
    use proptest::prelude::*;

    use super::super::watch::ASK;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    proptest! {
        #[test]
        fn tcp_is_dialled_a_few_hundred_times_an_hour_at_most_however_answers_come(
            pattern in prop::collection::vec((1_u64..80_000, 1_u64..20_000, any::<bool>()), 1..8),
            seed: u8,
        ) {
            let who = IdentityKey::from_seed(&[seed; 32]).public();
            let (begun, mut pace, mut tries) = (Instant::now(), Pace::default(), 0);
            let mut now = begun;
            'hour: loop {
                for (fine, doubtful, refused) in &pattern {
                    for (is_fine, millis) in [(true, fine), (false, doubtful)] {
                        let until = now + Duration::from_millis(*millis);
                        while now < until {
                            pace.note(is_fine, now);
                            if !is_fine && pace.may_try(now) {
                                pace.note_try(who, now);
                                tries += 1;
                                if *refused {
                                    pace.note_failed(now);
                                }
                            }
                            now += ASK.min(until - now);
                        }
                    }
                    if now - begun >= HOUR {
                        break 'hour;
                    }
                }
            }
            prop_assert!(tries <= 480, "{tries}");
        }
    }

    #[test]
    fn the_first_doubt_after_a_good_minute_has_tcp_tried_at_once() {
        let who = IdentityKey::from_seed(&[1; 32]).public();
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..20 {
            assert!(pace.may_try(now));
            pace.note_try(who, now);
            now = pace.next.unwrap();
        }
        pace.note(true, now);
        pace.note_try(who, now);
        assert!(!pace.may_try(now + RAREST - AGAIN), "{pace:?}");
        pace.note(true, now + LASTS);
        assert!(pace.may_try(now + LASTS));
        pace.note_try(who, now + LASTS);
        assert!(pace.may_try(now + LASTS + 2 * AGAIN));
    }
}
