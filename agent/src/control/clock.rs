//! The agent's idea of the time: the system's at first, and a controller's once there is one.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anteroom_proto::time::UnixMillis;

/// The system's wall clock.
pub(crate) fn system_time() -> UnixMillis {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// A wall time and when it was that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    wall: UnixMillis,
    at: Instant,
    /// Whether a controller or a peer has said so since this start.
    confirmed: bool,
}

impl Clock {
    /// The system's time, or the newest signed time held where that is later.
    pub(super) fn new(floor: UnixMillis) -> Self {
        Self { wall: system_time().max(floor), at: Instant::now(), confirmed: false }
    }

    pub(super) fn now(&self) -> UnixMillis {
        let elapsed = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.wall.saturating_add(elapsed)
    }

    /// The time now, where a controller or a peer has confirmed it.
    pub(super) fn sure(&self) -> Option<UnixMillis> {
        self.confirmed.then(|| self.now())
    }

    /// Takes a time back that was never right, where operators begin anew.
    pub(super) fn begin_anew(&mut self, signed: UnixMillis) {
        if self.now() > signed {
            (self.wall, self.at) = (signed, Instant::now());
        }
    }

    /// Takes over a controller's word, as far as it isn't below what was signed or said before. Gives the time
    /// now.
    pub(super) fn set(&mut self, wall: UnixMillis, floor: UnixMillis) -> UnixMillis {
        let said = if self.confirmed { self.now() } else { UnixMillis(0) };
        *self = Self { wall: wall.max(floor).max(said), at: Instant::now(), confirmed: true };
        self.wall
    }
}

/// What is wrong where the time held is far from a controller's word of now.
pub(super) fn held_ahead(held: UnixMillis, said: UnixMillis) -> Option<String> {
    let days = held.since(said).as_secs() / 86_400;
    (days > 0).then(|| {
        format!(
            "the newest time that was signed or confirmed here is {days} days ahead of this controller's clock: rules with `expires` in between count as over. Either that clock is wrong, or a controller's was; docs/failures.md has what to do"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_sets_the_clock_below_what_was_signed() {
        let future = UnixMillis(system_time().0 + 1_000_000_000);
        let mut clock = Clock::new(future);
        assert!(clock.now() >= future);
        assert_eq!(clock.set(UnixMillis(5), UnixMillis(9)), UnixMillis(9));
        assert_eq!(clock.set(UnixMillis(12_000_000), UnixMillis(9)), UnixMillis(12_000_000));
        assert!(clock.set(UnixMillis(11_000_000), UnixMillis(9)) >= UnixMillis(12_000_000));
        clock.begin_anew(UnixMillis(10_000_000));
        assert!(clock.now() < UnixMillis(12_000_000));
    }
}
