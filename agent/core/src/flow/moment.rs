//! Moments in half the room that an [`Instant`] takes.

use std::time::{Duration, Instant};

/// Nanoseconds since an [`Origin`]. They last for five hundred years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// The whole seconds until this moment.
    pub(super) const fn second(self) -> u64 {
        self.0 / 1_000_000_000
    }
}

/// From when moments count. What was earlier counts as then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin(pub(crate) Instant);

impl Origin {
    pub(crate) fn moment(self, at: Instant) -> Moment {
        let passed = at.saturating_duration_since(self.0);
        Moment(u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn instant(self, moment: Moment) -> Instant {
        self.0.checked_add(Duration::from_nanos(moment.0)).unwrap_or(self.0)
    }
}
