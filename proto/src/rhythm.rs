//! When something happens: its hours of the week, and the days on which it did.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::time::UnixMillis;

/// Milliseconds of an hour.
const HOUR: u64 = 3_600_000;
/// Hours of a week.
pub const WEEK_HOURS: usize = 168;
/// Days that are remembered one by one, counted back from the newest.
pub const REMEMBERED_DAYS: u32 = 64;

/// The rhythm of an edge over the day, the week and the last 64 days. UTC, so that gateways agree; whoever shows it
/// shifts it to local time.
///
/// Of fixed size whatever was recorded, and the same in whatever order it was. Serialised it is the hexadecimal digits of
/// [`Rhythm::to_bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rhythm {
    /// A bit for each hour of the week, from Monday 00:00, lowest bit first.
    hours: [u8; 21],
    /// The newest day, in days since 1970-01-01.
    newest: u32,
    /// A bit for each of the last days: bit 0 is the newest, bit 1 the day before.
    days: u64,
}

impl Rhythm {
    /// Length of its bytes.
    pub const LEN: usize = 33;

    /// As bytes: the week's hours, the newest day and the days, big-endian.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..21].copy_from_slice(&self.hours);
        bytes[21..25].copy_from_slice(&self.newest.to_be_bytes());
        bytes[25..].copy_from_slice(&self.days.to_be_bytes());
        bytes
    }

    /// Out of [`Rhythm::to_bytes`]. Any bytes are some rhythm; without days there is no newest one.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let (mut hours, mut newest, mut days) = ([0; 21], [0; 4], [0; 8]);
        hours.copy_from_slice(&bytes[..21]);
        newest.copy_from_slice(&bytes[21..25]);
        days.copy_from_slice(&bytes[25..]);
        let (newest, days) = (u32::from_be_bytes(newest), u64::from_be_bytes(days));
        // The newest day is one with traffic, or days before it would be told wrongly once another is added.
        let idle = days.trailing_zeros();
        match days.checked_shr(idle) {
            Some(days) => Self { hours, newest: newest.saturating_sub(idle), days },
            None => Self { hours, newest: 0, days: 0 },
        }
    }

    /// Whether nothing was recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.days == 0 && self.hours == [0; 21]
    }

    /// Records traffic from `first` to `last`. What lies further back than 64 days leaves only its hours.
    pub fn record(&mut self, first: UnixMillis, last: UnixMillis) {
        let (from, to) = (first.0.min(last.0) / HOUR, last.0 / HOUR);
        for hour in from.max(to.saturating_sub(WEEK_HOURS as u64 - 1))..=to {
            // Day 0 was a Thursday.
            let place = ((hour + 72) % WEEK_HOURS as u64) as usize;
            self.hours[place / 8] |= 1 << (place % 8);
        }
        let day = |hour: u64| u32::try_from(hour / 24).unwrap_or(u32::MAX);
        let (from, to) = (day(from), day(to));
        for day in from.max(to.saturating_sub(REMEMBERED_DAYS - 1))..=to {
            self.mark(day, 1);
        }
    }

    /// Adds what another one recorded.
    pub fn merge(&mut self, other: &Self) {
        for (hours, more) in self.hours.iter_mut().zip(other.hours) {
            *hours |= more;
        }
        if other.days != 0 {
            self.mark(other.newest, other.days);
        }
    }

    /// Adds `days`, whose bit 0 is `newest`.
    fn mark(&mut self, newest: u32, days: u64) {
        if self.days == 0 || newest > self.newest {
            let by = newest.saturating_sub(self.newest);
            self.days = self.days.checked_shl(by).unwrap_or(0) | days;
            self.newest = newest;
        } else {
            self.days |= days.checked_shl(self.newest - newest).unwrap_or(0);
        }
    }

    /// How many of the remembered days saw traffic.
    #[must_use]
    pub const fn active_days(&self) -> u32 {
        self.days.count_ones()
    }

    /// The newest day with traffic, in days since 1970-01-01; none where nothing was recorded.
    #[must_use]
    pub const fn newest_day(&self) -> Option<u32> {
        if self.days == 0 { None } else { Some(self.newest) }
    }

    /// The days with traffic as bits, counted back from `today`: bit 0 is `today`.
    #[must_use]
    pub fn days_before(&self, today: u32) -> u64 {
        if today >= self.newest {
            self.days.checked_shl(today - self.newest).unwrap_or(0)
        } else {
            self.days.checked_shr(self.newest - today).unwrap_or(0)
        }
    }

    /// The days with traffic, newest first, in days since 1970-01-01.
    pub fn days(&self) -> impl Iterator<Item = u32> + '_ {
        (0..REMEMBERED_DAYS)
            .filter(|back| self.days >> back & 1 == 1)
            .map(|back| self.newest.saturating_sub(back))
    }

    /// Whether it was seen in this hour of the week, counted from Monday 00:00 UTC.
    #[must_use]
    pub fn in_hour(&self, hour: usize) -> bool {
        self.hours.get(hour / 8).is_some_and(|bits| bits >> (hour % 8) & 1 == 1)
    }

    /// How many of the day's 24 hours saw traffic on any day.
    #[must_use]
    pub fn hours_of_day(&self) -> usize {
        (0..24).filter(|hour| (0..7).any(|day| self.in_hour(day * 24 + hour))).count()
    }

    /// Whether Saturday or Sunday saw traffic.
    #[must_use]
    pub fn weekend(&self) -> bool {
        (120..WEEK_HOURS).any(|hour| self.in_hour(hour))
    }
}

impl Serialize for Rhythm {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&HEXLOWER.encode(&self.to_bytes()))
    }
}

impl<'de> Deserialize<'de> for Rhythm {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self::from_bytes).ok_or_else(|| {
            de::Error::custom(format!("a rhythm is {} hexadecimal digits", 2 * Self::LEN))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 24 * HOUR;

    #[test]
    fn hours_and_days_are_where_the_calendar_has_them() {
        let mut rhythm = Rhythm::default();
        // 1970-01-01 was a Thursday; three days on, 23:30 of a Sunday.
        rhythm.record(UnixMillis(3 * DAY + 23 * HOUR + HOUR / 2), UnixMillis(4 * DAY + 1));
        assert!(rhythm.in_hour(167) && rhythm.in_hour(0), "{rhythm:?}");
        assert_eq!(rhythm.hours_of_day(), 2);
        assert!(rhythm.weekend());
        assert_eq!(rhythm.days().collect::<Vec<_>>(), [4, 3]);
        assert_eq!(rhythm.days_before(5), 0b110);
        assert_eq!(rhythm.days_before(3), 0b1);
        rhythm.record(UnixMillis(100 * DAY), UnixMillis(100 * DAY));
        assert_eq!((rhythm.active_days(), rhythm.newest_day()), (1, Some(100)));
        assert!(!rhythm.in_hour(WEEK_HOURS));
    }

    #[test]
    fn what_is_no_rhythm_is_refused() {
        for text in ["\"\"", "\"00\"", "7", "\"zz\"", "{}"] {
            assert!(serde_json::from_str::<Rhythm>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_span_of_any_length_is_bounded() {
        let mut rhythm = Rhythm::default();
        rhythm.record(UnixMillis(0), UnixMillis(u64::MAX));
        assert_eq!((rhythm.active_days(), rhythm.hours_of_day()), (64, 24));
    }

    proptest! {
        #[test]
        fn bytes_and_text_are_the_same_rhythm(spans in prop::collection::vec((0u64..400, 0u64..30), 0..6)) {
            let mut rhythm = Rhythm::default();
            for (day, hours) in spans {
                rhythm.record(UnixMillis(day * DAY), UnixMillis(day * DAY + hours * HOUR));
            }
            prop_assert_eq!(Rhythm::from_bytes(rhythm.to_bytes()), rhythm);
            let text = serde_json::to_string(&rhythm).unwrap();
            prop_assert_eq!(serde_json::from_str::<Rhythm>(&text).unwrap(), rhythm);
        }

        #[test]
        fn any_bytes_are_a_rhythm_that_can_grow(bytes in prop::collection::vec(any::<u8>(), 33), day in any::<u32>()) {
            let mut rhythm = Rhythm::from_bytes(bytes.try_into().unwrap());
            prop_assert_eq!(Rhythm::from_bytes(rhythm.to_bytes()), rhythm);
            let before = rhythm;
            rhythm.merge(&before);
            prop_assert_eq!(rhythm, before);
            rhythm.record(UnixMillis(u64::from(day) * DAY), UnixMillis(u64::from(day) * DAY));
            prop_assert!(rhythm.active_days() >= 1);
        }

        #[test]
        fn order_does_not_matter(moments in prop::collection::vec(0u64..200, 1..12), cut in 0usize..12) {
            let record = |days: &[u64]| {
                let mut rhythm = Rhythm::default();
                for day in days {
                    rhythm.record(UnixMillis(day * DAY), UnixMillis(day * DAY + HOUR));
                }
                rhythm
            };
            let mut turned = moments.clone();
            turned.reverse();
            prop_assert_eq!(record(&moments), record(&turned));
            let (a, b) = moments.split_at(cut.min(moments.len()));
            let mut merged = record(a);
            merged.merge(&record(b));
            prop_assert_eq!(merged, record(&moments));
        }
    }
}
