//! The wall clock and the random generator, as values.

use std::time::{Duration, Instant, SystemTime};

use anteroom_proto::time::UnixMillis;

/// Now, by the wall clock. A clock before 1970 counts as 1970.
#[must_use]
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// How far ahead the wall clock may jump and be followed at once: less than what an edge's days hold.
const FOLLOWED: Duration = Duration::from_secs(14 * 86_400);
/// How long one that jumped further must stay there to be followed.
const BELIEVED: Duration = Duration::from_secs(86_400);

/// The wall clock for what is kept by the day. One that runs months ahead for a while, and that nobody asked for, would push all
/// days out of the history, and none would count until that time has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Calm {
    /// What it was last, and when.
    last: (UnixMillis, Instant),
    /// Since when the wall clock has been too far ahead.
    ahead: Option<Instant>,
}

impl Calm {
    /// Begins with what the machine says.
    pub(crate) fn new(wall: UnixMillis, now: Instant) -> Self {
        Self { last: (wall, now), ahead: None }
    }

    /// The time, where the wall clock shows `wall`.
    pub(crate) fn at(&mut self, wall: UnixMillis, now: Instant) -> UnixMillis {
        let passed = now.saturating_duration_since(self.last.1);
        let due = self.last.0.saturating_add(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
        let taken = if wall.since(due) <= FOLLOWED {
            self.ahead = None;
            wall
        } else {
            let since = *self.ahead.get_or_insert_with(|| {
                let days = wall.since(due).as_secs() / 86_400;
                tracing::warn!(
                    days,
                    "the clock jumped far ahead: the flow history doesn't follow it for a day"
                );
                now
            });
            if now.saturating_duration_since(since) < BELIEVED {
                due
            } else {
                self.ahead = None;
                wall
            }
        };
        self.last = (taken, now);
        taken
    }
}

/// The system has no random bytes to give.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes: {0}")]
pub struct RandomError(getrandom::Error);

/// Bytes from the system's cryptographic random generator.
///
/// # Errors
/// [`RandomError`] when the system has none, which no running Linux ever says.
pub fn random<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(RandomError)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: u64 = 86_400_000;
    const START: UnixMillis = UnixMillis(1_800_000_000_000);

    fn after(days: u64) -> UnixMillis {
        UnixMillis(START.0 + days * DAY)
    }

    #[test]
    fn a_clock_that_is_a_year_ahead_for_hours_takes_no_day_away() {
        let begun = Instant::now();
        let mut calm = Calm::new(START, begun);
        assert_eq!(calm.at(after(365), begun), START);
        let later = UnixMillis(START.0 + 5 * 3_600_000);
        assert_eq!(calm.at(UnixMillis(after(365).0 + 5 * 3_600_000), begun + HOUR * 5), later);
        // It is put right, and counts again.
        let right = UnixMillis(START.0 + 6 * 3_600_000 + 7);
        assert_eq!(calm.at(right, begun + HOUR * 6), right);
        // A second time isn't the first one's sequel.
        assert_eq!(calm.at(after(365), begun + HOUR * 6), right);
        assert_eq!(calm.at(after(365), begun + HOUR * 29), UnixMillis(right.0 + 23 * 3_600_000));
        assert_eq!(calm.at(after(365), begun + HOUR * 30), after(365), "it stays there");
    }

    #[test]
    fn small_steps_ahead_and_any_step_back_are_followed() {
        let begun = Instant::now();
        let mut calm = Calm::new(START, begun);
        for wall in [after(14), after(20), START, UnixMillis(0)] {
            assert_eq!(calm.at(wall, begun), wall);
        }
    }
}
