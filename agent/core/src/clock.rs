//! The wall clock, as far as the engine trusts it.

use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::time::UnixMillis;

use crate::report::DoubtedTime;

/// How far above what was signed, and above the machine's own clock, a peer's word of the time may lie. A machine that was off for
/// longer and has no clock of its own waits for a controller. In milliseconds.
const PEERS_MAY_BE_AHEAD: u64 = 24 * 60 * 60 * 1000;
/// From which difference to a controller's word on a peer's was wrong, in milliseconds. Clocks drift by seconds a day.
const WRONG: u64 = 60 * 60 * 1000;
/// Peers whose wrong word is kept.
const MAX_DOUBTED: usize = 16;

/// A moment of the wall clock beside one of the monotonic clock.
#[derive(Debug, Clone, Copy)]
struct Anchor(Instant, UnixMillis);

impl Anchor {
    /// The wall clock at a moment before or after it.
    fn wall(self, at: Instant) -> UnixMillis {
        let Self(anchor, wall) = self;
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        if at >= anchor {
            wall.saturating_add(millis(at - anchor))
        } else {
            UnixMillis(wall.0.saturating_sub(millis(anchor - at)))
        }
    }
}

/// Whose word the time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The machine's own clock, which proves nothing.
    Machine,
    /// A peer's, which any controller's overrules.
    Peer(GatewayId),
    Controller,
}

/// What became of a peer's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It is the time now.
    Taken,
    /// The time was known already.
    Known,
    /// It lies too far ahead to be believed.
    Doubted,
}

/// The wall clock of an engine.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    anchor: Anchor,
    source: Source,
    /// The newest signed time held, and what has passed since then: it is no earlier than this.
    floor: Anchor,
    /// The machine's own clock.
    own: Anchor,
    doubted: Vec<DoubtedTime>,
}

impl Clock {
    /// A clock that knows nothing yet.
    pub(crate) const fn new(now: Instant) -> Self {
        let nothing = Anchor(now, UnixMillis(0));
        let source = Source::Machine;
        Self { anchor: nothing, source, floor: nothing, own: nothing, doubted: Vec::new() }
    }

    /// Sets the clock: by a controller's word where that is what `confirmed` says, else by the machine's own. A controller's overrules
    /// whatever peers said, and never goes back: nobody prolongs a rule by telling an earlier time.
    pub(crate) fn set(&mut self, wall: UnixMillis, confirmed: bool, now: Instant) {
        if !confirmed {
            self.own = Anchor(now, wall);
            if self.source == Source::Machine {
                self.anchor = self.own;
            }
            return;
        }
        let held = self.wall(now);
        let wall = match self.source {
            Source::Controller => wall.max(held),
            Source::Machine | Source::Peer(_) => wall.max(self.floor.wall(now)),
        };
        if let Source::Peer(gateway) = self.source
            && held.0.abs_diff(wall.0) > WRONG
        {
            self.doubt(DoubtedTime { gateway, said: held, held: wall, overruled: true });
        }
        (self.anchor, self.source) = (Anchor(now, wall), Source::Controller);
    }

    /// Takes a peer's word where nobody else has said what time it is. Whoever has stolen one gateway must not close the timed rules
    /// of others by a time that is yet to come.
    pub(crate) fn hear(&mut self, gateway: GatewayId, said: UnixMillis, now: Instant) -> Heard {
        if self.source != Source::Machine {
            return Heard::Known;
        }
        let floor = self.floor.wall(now);
        let latest = floor.max(self.own.wall(now)).saturating_add(PEERS_MAY_BE_AHEAD);
        if said > latest {
            self.doubt(DoubtedTime { gateway, said, held: latest, overruled: false });
            return Heard::Doubted;
        }
        (self.anchor, self.source) = (Anchor(now, said.max(floor)), Source::Peer(gateway));
        Heard::Taken
    }

    /// Keeps the last wrong word of each peer, of those that were heard last.
    fn doubt(&mut self, doubted: DoubtedTime) {
        self.doubted.retain(|before| before.gateway != doubted.gateway);
        if self.doubted.len() >= MAX_DOUBTED {
            self.doubted.remove(0);
        }
        self.doubted.push(doubted);
    }

    /// Words of peers that weren't believed, or that a controller's overruled.
    pub(crate) fn doubted(&self) -> &[DoubtedTime] {
        &self.doubted
    }

    /// Whether a controller or a peer has said what time it is since this start.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.source != Source::Machine
    }

    /// The time now where a controller has said it: what may be told to peers.
    pub(crate) fn by_controller(&self, now: Instant) -> Option<UnixMillis> {
        (self.source == Source::Controller).then(|| self.wall(now))
    }

    /// Notes a signed time.
    pub(crate) fn raise_floor(&mut self, floor: UnixMillis, now: Instant) {
        if floor > self.floor.wall(now) {
            self.floor = Anchor(now, floor);
        }
    }

    /// Takes a time back that was never right: operators have begun anew, and nothing of what was signed before counts.
    pub(crate) fn begin_anew(&mut self, signed: UnixMillis, now: Instant) {
        self.floor = Anchor(now, signed);
        if self.anchor.wall(now) > signed {
            self.anchor = self.floor;
        }
    }

    /// The wall clock at a moment before or after now.
    pub(crate) fn wall(&self, at: Instant) -> UnixMillis {
        self.anchor.wall(at).max(self.floor.wall(at))
    }

    /// Whether a moment has passed: true or false where that is certain, None where nobody confirmed the time.
    pub(crate) fn has_passed(&self, moment: UnixMillis, now: Instant) -> Option<bool> {
        if self.floor.wall(now) >= moment {
            return Some(true);
        }
        self.is_confirmed().then(|| self.wall(now) >= moment)
    }

    /// When a moment of the wall clock comes. None if it has passed, or lies too far ahead to be counted.
    pub(crate) fn instant(&self, moment: UnixMillis, now: Instant) -> Option<Instant> {
        let ahead = moment.0.checked_sub(self.wall(now).0)?;
        now.checked_add(Duration::from_millis(ahead.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THIEF: GatewayId = GatewayId::from_bytes([7; 16]);
    const HONEST: GatewayId = GatewayId::from_bytes([8; 16]);
    const DAY: u64 = 24 * 60 * 60 * 1000;
    const YEARS: UnixMillis = UnixMillis(4000 * DAY);

    #[test]
    fn no_peer_tells_a_time_that_is_yet_to_come() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let soon = UnixMillis(3 * DAY);
        for said in [YEARS, UnixMillis(u64::MAX), UnixMillis(2 * DAY + 1)] {
            let mut clock = Clock::new(now);
            clock.raise_floor(UnixMillis(DAY), now);
            clock.set(UnixMillis(DAY / 2), false, now);
            assert_eq!(clock.hear(THIEF, said, now), Heard::Doubted);
            assert_eq!((clock.is_confirmed(), clock.has_passed(soon, now)), (false, None));
            assert_eq!(clock.wall(now), UnixMillis(DAY));
            let doubted = clock.doubted()[0];
            assert_eq!((doubted.gateway, doubted.said, doubted.overruled), (THIEF, said, false));
            // Somebody else's word is as good as if nothing had been said.
            assert_eq!(clock.hear(HONEST, UnixMillis(2 * DAY), now), Heard::Taken);
            assert_eq!(clock.has_passed(soon, now), Some(false));
            assert_eq!(clock.has_passed(soon, now + Duration::from_millis(DAY)), Some(true));
        }
        // The machine's own clock may know better than what was signed long ago.
        let mut clock = Clock::new(now);
        clock.set(UnixMillis(100 * DAY), false, now);
        assert_eq!(clock.hear(HONEST, UnixMillis(100 * DAY + 5), now), Heard::Taken);
        // As many liars as there like to be are as many as have room.
        let mut clock = Clock::new(now);
        for number in 0..100 {
            clock.hear(GatewayId::from_bytes([number; 16]), YEARS, now);
            clock.hear(GatewayId::from_bytes([number; 16]), YEARS, now);
        }
        assert_eq!(clock.doubted().len(), MAX_DOUBTED);
        assert_eq!(clock.doubted()[MAX_DOUBTED - 1].gateway, GatewayId::from_bytes([99; 16]));
    }

    #[test]
    fn a_controller_overrules_a_peer_both_ways_and_a_peer_nobody() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        for (right, wrong) in [(DAY, 2 * DAY - 1), (2 * DAY, DAY / 2)] {
            let (right, wrong) = (UnixMillis(right), UnixMillis(wrong));
            let mut clock = Clock::new(now);
            clock.set(UnixMillis(DAY), false, now);
            assert_eq!(clock.hear(THIEF, wrong, now), Heard::Taken);
            assert_eq!((clock.wall(now), clock.by_controller(now)), (wrong, None));
            assert_eq!(clock.hear(HONEST, right, now), Heard::Known);
            clock.set(right, true, now);
            assert_eq!((clock.wall(now), clock.by_controller(now)), (right, Some(right)));
            let doubted = clock.doubted()[0];
            assert_eq!((doubted.gateway, doubted.said), (THIEF, wrong));
            assert_eq!((doubted.held, doubted.overruled), (right, true));
            assert_eq!(clock.hear(THIEF, wrong, now), Heard::Known);
            clock.set(UnixMillis(1), true, now);
            assert_eq!(clock.wall(now), right, "a controller's word never goes back");
        }
        // Seconds are no lie.
        let mut clock = Clock::new(now);
        clock.hear(HONEST, UnixMillis(60_000), now);
        clock.set(UnixMillis(50_000), true, now);
        assert_eq!((clock.wall(now), clock.doubted()), (UnixMillis(50_000), &[][..]));
    }

    #[test]
    fn what_has_passed_since_a_signed_time_was_heard_counts() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let mut clock = Clock::new(now);
        clock.raise_floor(UnixMillis(5_000), now);
        let later = now + Duration::from_secs(60);
        clock.raise_floor(UnixMillis(6_000), later);
        assert_eq!(clock.hear(THIEF, UnixMillis(5_000), later), Heard::Taken);
        assert_eq!(clock.wall(later), UnixMillis(65_000));
        assert_eq!(clock.has_passed(UnixMillis(65_000), later), Some(true));
    }

    #[test]
    fn nobody_tells_a_time_below_the_floor() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let mut clock = Clock::new(now);
        clock.raise_floor(UnixMillis(5_000_000), now);
        // A peer in the wrong hands, after a power cut.
        assert_eq!(clock.hear(THIEF, UnixMillis(1_000), now), Heard::Taken);
        assert_eq!(clock.wall(now), UnixMillis(5_000_000));
        assert_eq!(clock.has_passed(UnixMillis(5_000_000), now), Some(true));
        let soon = UnixMillis(5_060_000);
        assert_eq!(clock.has_passed(soon, now), Some(false));
        assert_eq!(clock.has_passed(soon, now + Duration::from_secs(60)), Some(true));
    }

    #[test]
    fn a_time_is_taken_back_where_operators_begin_anew() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let mut clock = Clock::new(now);
        clock.raise_floor(UnixMillis(9_000_000), now);
        clock.set(UnixMillis(9_500_000), true, now);
        clock.begin_anew(UnixMillis(5_000), now);
        assert_eq!((clock.wall(now), clock.is_confirmed()), (UnixMillis(5_000), true));
        assert_eq!(clock.has_passed(UnixMillis(9_000_000), now), Some(false));
        // Nothing below what was signed then.
        clock.set(UnixMillis(4_000), true, now);
        assert_eq!(clock.wall(now), UnixMillis(5_000));
    }

    #[test]
    fn a_confirmed_time_never_goes_back() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let mut clock = Clock::new(now);
        clock.set(UnixMillis(9_000), false, now);
        clock.set(UnixMillis(5_000), true, now);
        assert_eq!(
            clock.wall(now),
            UnixMillis(5_000),
            "the first confirmation corrects the system's clock"
        );
        let later = now + Duration::from_secs(10);
        clock.set(UnixMillis(6_000), true, later);
        assert_eq!(clock.wall(later), UnixMillis(15_000));
        assert_eq!(clock.has_passed(UnixMillis(15_000), later), Some(true));
        clock.set(UnixMillis(20_000), true, later);
        assert_eq!(clock.wall(later), UnixMillis(20_000));
    }
}
