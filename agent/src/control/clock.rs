//! The agent's idea of the time: the system's at first, and a controller's once there is one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anteroom_agent_core::report::DoubtedTime;
use anteroom_proto::time::UnixMillis;

use super::Client;
use crate::plane::Plane;

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
    /// Whether a controller has said so since this start.
    confirmed: bool,
}

impl Clock {
    /// The system's time, or the newest signed time held where that is later.
    pub(super) fn new(floor: UnixMillis) -> Self {
        Self { wall: system_time().max(floor), at: Instant::now(), confirmed: false }
    }

    /// The newest signed time held and what passes from now on: it is no earlier than that.
    pub(super) fn least(floor: UnixMillis) -> Self {
        Self { wall: floor, at: Instant::now(), confirmed: false }
    }

    pub(super) fn now(&self) -> UnixMillis {
        let elapsed = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.wall.saturating_add(elapsed)
    }

    /// The time now, where a controller has confirmed it.
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

impl<P: Plane> Client<P> {
    /// Looks what peers said about the time. Their word counts until the next start and no longer, so it isn't written down: one who
    /// has stolen a gateway would close the timed rules of others for good. What has passed since the start is, or who switches the
    /// power off and on would prolong them.
    pub(super) async fn note_time(&mut self) {
        let Ok(status) = self.plane.status().await else { return };
        let doubted = status.engine.doubted;
        for word in doubted.iter().filter(|word| !self.doubted.contains(word)) {
            self.alarm(&wrong_word(word));
        }
        self.doubted = doubted;
        if status.engine.time_confirmed && self.clock.sure().is_none() {
            self.keeping.time(self.least);
        }
    }
}

/// What is wrong with a peer's word of the time.
fn wrong_word(word: &DoubtedTime) -> String {
    let DoubtedTime { gateway, said, held, overruled } = word;
    let (by, way) =
        if said > held { (said.since(*held), "ahead of") } else { (held.since(*said), "behind") };
    let by = span(by);
    let whose = "its clock is wrong, or somebody else has its keys (docs/failures.md)";
    if *overruled {
        format!(
            "gateway {gateway} told a time {by} {way} a controller's, and rules with `expires` went by that here until a controller was in sight: {whose}"
        )
    } else {
        format!(
            "gateway {gateway} tells a time {by} {way} all that is believed without a controller: {whose}. Rules with `expires` stay closed here until another peer or a controller tells the time"
        )
    }
}

/// A span of time in words, rounded down.
fn span(span: Duration) -> String {
    match span.as_secs() / 3600 {
        0 => "less than an hour".into(),
        hours @ 1..48 => format!("{hours} h"),
        hours => format!("{} days", hours / 24),
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
