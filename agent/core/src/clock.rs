//! The wall clock, as far as the engine trusts it.

use std::time::{Duration, Instant};

use anteroom_proto::time::UnixMillis;

/// A moment of the wall clock beside one of the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    anchor: (Instant, UnixMillis),
    /// Whether a controller or a peer has said what time it is since this start.
    pub(crate) confirmed: bool,
    /// The newest signed time held: it is no earlier than this.
    floor: UnixMillis,
}

impl Clock {
    /// A clock that knows nothing yet.
    pub(crate) const fn new(now: Instant) -> Self {
        Self { anchor: (now, UnixMillis(0)), confirmed: false, floor: UnixMillis(0) }
    }

    /// Sets the clock. What was confirmed stays confirmed, isn't overruled by what isn't, and never goes back:
    /// nobody prolongs a rule by telling an earlier time.
    pub(crate) fn set(&mut self, wall: UnixMillis, confirmed: bool, now: Instant) {
        let wall = if self.confirmed { wall.max(self.wall(now)) } else { wall };
        let wall = wall.max(self.floor);
        if confirmed || !self.confirmed {
            self.anchor = (now, wall);
        }
        self.confirmed |= confirmed;
    }

    /// Notes a signed time.
    pub(crate) fn raise_floor(&mut self, floor: UnixMillis) {
        self.floor = self.floor.max(floor);
    }

    /// Takes a time back that was never right: operators have begun anew, and nothing of what was signed before counts.
    pub(crate) fn begin_anew(&mut self, signed: UnixMillis, now: Instant) {
        self.floor = signed;
        if self.wall(now) > signed {
            self.anchor = (now, signed);
        }
    }

    /// The wall clock at a moment before or after the anchor.
    pub(crate) fn wall(&self, at: Instant) -> UnixMillis {
        let (anchor, wall) = self.anchor;
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        if at >= anchor {
            wall.saturating_add(millis(at - anchor))
        } else {
            UnixMillis(wall.0.saturating_sub(millis(anchor - at)))
        }
    }

    /// Whether a moment has passed: true or false where that is certain, None where nobody confirmed the time.
    pub(crate) fn has_passed(&self, moment: UnixMillis, now: Instant) -> Option<bool> {
        if self.floor >= moment {
            return Some(true);
        }
        self.confirmed.then(|| self.wall(now) >= moment)
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

    #[test]
    fn nobody_tells_a_time_below_the_floor() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let mut clock = Clock::new(now);
        clock.raise_floor(UnixMillis(5_000_000));
        // A peer in the wrong hands, after a power cut.
        clock.set(UnixMillis(1_000), true, now);
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
        clock.raise_floor(UnixMillis(9_000_000));
        clock.set(UnixMillis(9_500_000), true, now);
        clock.begin_anew(UnixMillis(5_000), now);
        assert_eq!((clock.wall(now), clock.confirmed), (UnixMillis(5_000), true));
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
