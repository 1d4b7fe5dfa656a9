//! Whether packets that take a relay are to take another one, since it is clearly nearer.
//!
//! A pair that left its relay for a moment would stay on a far one for as long as that one works. So a relay that has been
//! clearly nearer for a while is taken in its place, as a direct path is: by a handshake through it, at no loss.
//!
//! Each end knows how far a relay is from itself, and goes by that until packets have taken both relays. From then on it knows
//! how far the *peer* is through each, which both ends measure alike. So two that are near different relays try each of them
//! once, and agree. What is tried in vain, or again and again, is tried ever more rarely.

use std::time::{Duration, Instant};

use crate::target::{RelayId, RelayPath};

/// By how much a relay that is clearly nearer is so at the least. It is half as far, too, at most.
const CLEARLY: Duration = Duration::from_millis(5);
/// For how long it must have been: at first, and at most. Doubled with each time that a relay is tried for it.
const FOR: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));
/// After so long without a try, the next one needs to wait no longer than the first did.
const CALM: Duration = Duration::from_secs(6 * 3_600);
/// For how long a round trip to the peer that was measured counts.
const REMEMBERED: Duration = Duration::from_secs(12 * 3_600);
/// The least of this long, and of as long before it, is what counts of a round trip: the rest is others' packets.
const SPELL: Duration = Duration::from_secs(60);
/// Answers to what was asked so soon after packets took a relay may have come by another one.
const SETTLED: Duration = Duration::from_secs(3);
/// Relays of which the round trip to the peer is remembered.
const MAX_MEASURED: usize = 4;

/// The round trip to the peer through a relay.
#[derive(Debug, Clone, Copy)]
struct Measured {
    relay: RelayId,
    /// The least lately, and before that.
    least: [Duration; 2],
    /// Since when "lately" is.
    since: Instant,
    last: Instant,
}

/// What speaks for another relay than the one in use, for one peer.
#[derive(Debug)]
pub(super) struct Nearer {
    /// Which relay is clearly nearer than which, and since when.
    clear: Option<(RelayId, RelayId, Instant)>,
    /// For how long it must be.
    wait: Duration,
    /// When one was last tried for it.
    tried: Option<Instant>,
    measured: Vec<Measured>,
}

impl Default for Nearer {
    fn default() -> Self {
        Self { clear: None, wait: FOR.0, tried: None, measured: Vec::new() }
    }
}

/// Whether a round trip is half of another one at most, and [`CLEARLY`] less.
fn is_half(one: Duration, other: Duration) -> bool {
    one.saturating_mul(2) <= other && one.saturating_add(CLEARLY) <= other
}

impl Nearer {
    /// The peer answered through a relay that packets take since `since` what was asked at `asked`.
    pub(super) fn note_round_trip(
        &mut self,
        relay: RelayId,
        since: Instant,
        asked: Instant,
        now: Instant,
    ) {
        if relay.is_direct() || asked.saturating_duration_since(since) < SETTLED {
            return;
        }
        let round_trip = now.saturating_duration_since(asked);
        let place = self.measured.iter().position(|one| one.relay == relay);
        let known = place.map(|place| self.measured.remove(place));
        // Of an earlier stay nothing counts any more once there is something of this one.
        let known = known.filter(|one| one.last >= since);
        let one = match known {
            Some(Measured { least: [least, before], since, .. })
                if now.saturating_duration_since(since) < SPELL =>
            {
                Measured { relay, least: [least.min(round_trip), before], since, last: now }
            }
            Some(Measured { least: [least, _], .. }) => {
                Measured { relay, least: [round_trip, least], since: now, last: now }
            }
            None => Measured { relay, least: [round_trip; 2], since: now, last: now },
        };
        if self.measured.len() >= MAX_MEASURED {
            self.measured.remove(0);
        }
        self.measured.push(one);
    }

    /// How far the peer is through a relay, as far as that is known.
    fn whole(&self, relay: RelayId, now: Instant) -> Option<Duration> {
        let fresh = |one: &&Measured| now.saturating_duration_since(one.last) < REMEMBERED;
        let one = self.measured.iter().find(|one| one.relay == relay).filter(fresh)?;
        one.least.iter().min().copied()
    }

    fn is_clear(&self, one: RelayPath, via: RelayPath, now: Instant) -> bool {
        let here = is_half(one.round_trip, via.round_trip);
        match (self.whole(one.relay, now), self.whole(via.relay, now)) {
            (Some(whole), Some(used)) => {
                is_half(whole, used) || here && whole.saturating_add(CLEARLY) <= used
            }
            _ => here,
        }
    }

    /// Looks at what is known now of the relays that reach the peer, nearest first, and of the one that packets take.
    pub(super) fn look(&mut self, relays: &[RelayPath], via: Option<RelayId>, now: Instant) {
        let used = relays.iter().find(|path| Some(path.relay) == via && !path.relay.is_direct());
        let others = relays.iter().filter(|path| !path.relay.is_direct());
        let nearer = used.and_then(|used| {
            let mut others = others.filter(|path| path.relay != used.relay);
            let nearer = others.find(|path| self.is_clear(**path, *used, now))?;
            Some((nearer.relay, used.relay))
        });
        self.clear = nearer.map(|(nearer, used)| {
            let before = self.clear.filter(|before| (before.0, before.1) == (nearer, used));
            before.unwrap_or((nearer, used, now))
        });
    }

    /// A relay that is clearly nearer than the one in use, as of the last [look](Self::look).
    pub(super) fn clear(&self) -> Option<RelayId> {
        self.clear.map(|(nearer, ..)| nearer)
    }

    /// The relay to be tried, if one has been clearly nearer for long enough.
    pub(super) fn take(&mut self, now: Instant) -> Option<RelayId> {
        let (nearer, used, since) = self.clear?;
        let recent = |at: Instant| now.saturating_duration_since(at) < CALM;
        if !self.tried.is_some_and(recent) {
            self.wait = FOR.0;
        }
        if now.saturating_duration_since(since) < self.wait {
            return None;
        }
        self.tried = Some(now);
        self.wait = (self.wait * 2).min(FOR.1);
        // Where nothing comes of it, the time until the next try counts from now.
        self.clear = Some((nearer, used, now));
        Some(nearer)
    }

    /// This gateway or the peer isn't any more where it was.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: RelayId = RelayId(1);
    const FAR: RelayId = RelayId(2);
    const SECOND: Duration = Duration::from_secs(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn path(relay: RelayId, round_trip: u64) -> RelayPath {
        RelayPath { relay, room: 1_160, round_trip: millis(round_trip) }
    }

    fn start() -> Instant {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        Instant::now()
    }

    /// Looks once a second for so long. Says when one was to be tried.
    fn tries(
        nearer: &mut Nearer,
        from: Instant,
        seconds: u32,
        paths: impl Fn(u32) -> [RelayPath; 2],
    ) -> Vec<u32> {
        (0..seconds)
            .filter(|second| {
                let now = from + SECOND * *second;
                nearer.look(&paths(*second), Some(FAR), now);
                nearer.take(now).is_some()
            })
            .collect()
    }

    #[test]
    fn one_that_is_clearly_nearer_for_a_minute_is_tried_and_ever_more_rarely_if_in_vain() {
        let mut nearer = Nearer::default();
        let tried = tries(&mut nearer, start(), 600, |_| [path(NEAR, 5), path(FAR, 40)]);
        assert_eq!(tried, [60, 180, 420]);
        assert_eq!(nearer.clear(), Some(NEAR));
        let day = 24 * 3_600;
        let tried = tries(&mut Nearer::default(), start(), day, |_| [path(NEAR, 5), path(FAR, 40)]);
        assert!((24..=30).contains(&tried.len()), "once an hour: {tried:?}");
    }

    #[test]
    fn one_that_isnt_much_nearer_or_only_now_and_then_is_not_tried() {
        for (near, far) in [(21, 40), (1, 5), (0, 4), (40, 40), (50, 40)] {
            let tried = tries(&mut Nearer::default(), start(), 3_600, |_| {
                [path(NEAR, near), path(FAR, far)]
            });
            assert_eq!(tried, [], "{near} ms and {far} ms");
        }
        let tried = tries(&mut Nearer::default(), start(), 3_600, |second| {
            let far = if second % 59 == 0 { 30 } else { 90 };
            [path(NEAR, 20), path(FAR, far)]
        });
        assert_eq!(tried, []);
    }

    #[test]
    fn after_a_calm_time_a_minute_is_enough_again() {
        let mut nearer = Nearer::default();
        let from = start();
        assert_eq!(tries(&mut nearer, from, 61, |_| [path(NEAR, 5), path(FAR, 40)]), [60]);
        let apart = |_| [path(NEAR, 40), path(FAR, 40)];
        assert_eq!(tries(&mut nearer, from + SECOND * 61, 10, apart), []);
        let later = from + CALM + SECOND * 120;
        assert_eq!(tries(&mut nearer, later, 61, |_| [path(NEAR, 5), path(FAR, 40)]), [60]);
    }

    /// As if packets took a relay for a minute and a half, with such a round trip to the peer.
    fn stay(nearer: &mut Nearer, relay: RelayId, round_trip: u64, since: Instant) -> Instant {
        for second in 0..90 {
            let asked = since + SECOND * second;
            nearer.note_round_trip(relay, since, asked, asked + millis(round_trip));
        }
        since + SECOND * 90
    }

    #[test]
    fn how_far_the_peer_is_outweighs_how_far_the_relay_is() {
        for (whole, used, wanted) in [(60, 50, false), (46, 50, false), (45, 50, true)] {
            let mut nearer = Nearer::default();
            let now = stay(&mut nearer, NEAR, whole, start());
            let now = stay(&mut nearer, FAR, used, now);
            let tried = tries(&mut nearer, now, 120, |_| [path(NEAR, 2), path(FAR, 40)]);
            assert_eq!(!tried.is_empty(), wanted, "{whole} ms and {used} ms to the peer");
        }
        // It is left, too, where the peer turns out to be far through it.
        let mut nearer = Nearer::default();
        let now = stay(&mut nearer, NEAR, 20, start());
        let now = stay(&mut nearer, FAR, 300, now);
        assert!(!tries(&mut nearer, now, 120, |_| [path(FAR, 2), path(NEAR, 10)]).is_empty());
        // What was measured long ago says nothing.
        let mut nearer = Nearer::default();
        let now = stay(&mut nearer, NEAR, 60, start());
        let now = stay(&mut nearer, FAR, 50, now + REMEMBERED);
        assert!(!tries(&mut nearer, now, 120, |_| [path(NEAR, 2), path(FAR, 40)]).is_empty());
    }

    #[test]
    fn the_least_round_trip_of_the_last_two_minutes_is_what_counts() {
        let mut nearer = Nearer::default();
        let since = start();
        let answer = |nearer: &mut Nearer, second: u32, round_trip: u64| {
            let asked = since + SECOND * second;
            nearer.note_round_trip(NEAR, since, asked, asked + millis(round_trip));
            nearer.whole(NEAR, asked + millis(round_trip))
        };
        assert_eq!(answer(&mut nearer, 1, 3), None, "it may have come another way");
        assert_eq!(answer(&mut nearer, 4, 70), Some(millis(70)));
        assert_eq!(answer(&mut nearer, 5, 50), Some(millis(50)));
        assert_eq!(answer(&mut nearer, 6, 900), Some(millis(50)));
        assert_eq!(answer(&mut nearer, 100, 200), Some(millis(50)));
        assert_eq!(answer(&mut nearer, 170, 190), Some(millis(190)));
        nearer.forget();
        assert_eq!(nearer.whole(NEAR, since), None);
    }
}
