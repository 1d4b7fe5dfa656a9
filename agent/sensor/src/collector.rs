//! What was seen of each device and wasn't reported yet.

use std::collections::{BTreeMap, HashMap};

use anteroom_proto::inventory::{Hint, HintKind, MAX_HINTS, MAX_OF_KIND};
use anteroom_proto::time::UnixMillis;

use crate::sight::{Sight, Station};

/// A hint that is seen again is told again after this long: a day.
const AGAIN: u64 = 24 * 60 * 60 * 1000;
/// A device that showed nothing for this long is forgotten: a week.
const FORGOTTEN: u64 = 7 * AGAIN;

/// A hint as it is kept.
#[derive(Debug)]
struct Kept {
    first: UnixMillis,
    last: UnixMillis,
    /// When it was told of, and until when that was true.
    told: Option<UnixMillis>,
}

/// What became of a sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is to be reported.
    News,
    /// It was reported before, and not long ago.
    Known,
    /// There was no room for it.
    TurnedAway,
}

/// Hints of devices: at most [`MAX_HINTS`] each, [`MAX_OF_KIND`] of one kind, and of a bounded number of devices.
#[derive(Debug)]
pub struct Collector {
    devices: HashMap<Station, BTreeMap<(HintKind, String), Kept>>,
    most_devices: usize,
    turned_away: u64,
}

impl Collector {
    /// One for so many devices.
    #[must_use]
    pub fn new(most_devices: usize) -> Self {
        Self { devices: HashMap::new(), most_devices, turned_away: 0 }
    }

    /// How many sights were turned away since it began, since there was no room.
    #[must_use]
    pub const fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// Notes a sight.
    pub fn note(&mut self, sight: Sight, now: UnixMillis) -> Told {
        if !self.devices.contains_key(&sight.who) && self.devices.len() >= self.most_devices {
            self.forget_silent(now);
            if self.devices.len() >= self.most_devices {
                self.turned_away += 1;
                return Told::TurnedAway;
            }
        }
        let hints = self.devices.entry(sight.who).or_default();
        let place = (sight.kind, sight.value);
        if let Some(kept) = hints.get_mut(&place) {
            kept.last = kept.last.max(now);
            return if kept.is_news() { Told::News } else { Told::Known };
        }
        let of_kind = hints.keys().filter(|(kind, _)| *kind == place.0).count();
        if hints.len() >= MAX_HINTS || of_kind >= MAX_OF_KIND {
            self.turned_away += 1;
            return Told::TurnedAway;
        }
        hints.insert(place, Kept { first: now, last: now, told: None });
        Told::News
    }

    /// Takes out what is to be reported, of at most `most` devices. What is left is there the next time.
    pub fn take_news(&mut self, most: usize) -> Vec<(Station, Vec<Hint>)> {
        let mut news: Vec<(Station, Vec<Hint>)> = Vec::new();
        for (station, hints) in &mut self.devices {
            if news.len() >= most {
                break;
            }
            let told: Vec<Hint> = hints
                .iter_mut()
                .filter(|(_, kept)| kept.is_news())
                .map(|((kind, value), kept)| {
                    kept.told = Some(kept.last);
                    Hint { kind: *kind, value: value.clone(), first: kept.first, last: kept.last }
                })
                .collect();
            if !told.is_empty() {
                news.push((*station, told));
            }
        }
        news.sort_by_key(|(station, _)| *station);
        news
    }

    /// Has everything that is known be told again: whoever it was told to may not have it any more.
    pub fn tell_again(&mut self) {
        for kept in self.devices.values_mut().flat_map(BTreeMap::values_mut) {
            kept.told = None;
        }
    }

    fn forget_silent(&mut self, now: UnixMillis) {
        self.devices.retain(|_, hints| {
            hints.values().any(|kept| now.0.saturating_sub(kept.last.0) < FORGOTTEN)
        });
    }
}

impl Kept {
    fn is_news(&self) -> bool {
        self.told.is_none_or(|told| self.last.0.saturating_sub(told.0) >= AGAIN)
    }
}
