//! The days on which a device was watched, held against the calendar. UTC, as all of the history.

use anteroom_proto::rhythm::REMEMBERED_DAYS;
use anteroom_proto::time::UnixMillis;

use super::DAY;

/// Days on which a device was watched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watched {
    /// The newest day that can be among them, in days since 1970-01-01.
    pub(super) today: u32,
    /// A bit for each, counted back: bit 0 is `today`.
    pub(super) bits: u64,
}

impl Watched {
    /// How many.
    pub(super) const fn days(self) -> u32 {
        self.bits.count_ones()
    }

    /// How many since the first of them are none.
    pub(super) const fn silent_days(self) -> u32 {
        u64::BITS - self.bits.leading_zeros() - self.bits.count_ones()
    }

    fn has(self, day: u32) -> bool {
        let back = self.today.checked_sub(day).filter(|back| *back < REMEMBERED_DAYS);
        back.is_some_and(|back| self.bits >> back & 1 == 1)
    }

    fn any(self, wanted: impl Fn(u32) -> bool) -> bool {
        (0..REMEMBERED_DAYS).filter_map(|back| self.today.checked_sub(back)).any(wanted)
    }

    /// Whether a Saturday and the Sunday after it are among them.
    pub(super) fn a_weekend(self) -> bool {
        // Day 0 was a Thursday.
        self.any(|day| day % 7 == 2 && self.has(day) && self.has(day + 1))
    }

    /// Whether the last two days of a month and the first of the next are among them.
    pub(super) fn a_month_end(self) -> bool {
        self.any(|day| {
            let days = [Some(day), day.checked_sub(1), day.checked_sub(2)];
            days.into_iter().all(|day| day.is_some_and(|day| self.has(day)))
                && is_first_of_month(day)
        })
    }
}

fn is_first_of_month(day: u32) -> bool {
    let at = UnixMillis(u64::from(day) * DAY);
    i64::try_from(at.0)
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok())
        .is_some_and(|at| jiff::tz::Offset::UTC.to_datetime(at).day() == 1)
}
