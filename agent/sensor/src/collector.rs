//! What was seen of each device at a port and wasn't reported yet.

use std::collections::{BTreeMap, HashMap};

use anteroom_proto::inventory::{Hint, HintKind, MAX_HINTS, most_of};
use anteroom_proto::time::UnixMillis;

use crate::sight::{Sight, Station};

/// A hint that is seen again is told again after this long: a day. Where there is no room for a new one, one that wasn't seen for so
/// long makes room.
const AGAIN: u64 = 24 * 60 * 60 * 1000;
/// Where there is no room for a new device, those that sent nothing for this long make room: an hour.
const SILENT: u64 = 60 * 60 * 1000;
/// Such are looked for this often at most: once a minute.
const LOOKED: u64 = 60 * 1000;

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
    /// Whoever it is about was never heard here.
    Stranger,
}

/// A device that was heard.
#[derive(Debug)]
struct Device {
    heard: UnixMillis,
    hints: BTreeMap<(HintKind, String), Kept>,
}

/// Hints of the devices at one port: at most [`MAX_HINTS`] each, of a kind [`most_of`] it, and of a bounded number of devices. A
/// device with as many and as long ones as may be takes up some 40 KB.
#[derive(Debug)]
pub struct Collector {
    devices: HashMap<Station, Device>,
    most_devices: usize,
    /// When devices that are silent were last looked for.
    looked: Option<UnixMillis>,
    turned_away: u64,
}

impl Collector {
    /// One for so many devices.
    #[must_use]
    pub fn new(most_devices: usize) -> Self {
        Self { devices: HashMap::new(), most_devices, looked: None, turned_away: 0 }
    }

    /// How many devices and sights were turned away since it began, since there was no room.
    #[must_use]
    pub const fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// When a device was last heard.
    #[must_use]
    pub fn last_heard(&self, who: Station) -> Option<UnixMillis> {
        self.devices.get(&who).map(|device| device.heard)
    }

    /// A frame of a device came from the port: from now on its hints are noted, if there is room.
    pub fn heard(&mut self, who: Station, now: UnixMillis) {
        if let Some(device) = self.devices.get_mut(&who) {
            device.heard = now;
            return;
        }
        if self.devices.len() >= self.most_devices {
            let since = |at: UnixMillis| now.0.saturating_sub(at.0);
            if self.looked.is_none_or(|at| since(at) >= LOOKED) {
                self.looked = Some(now);
                self.devices.retain(|_, device| since(device.heard) < SILENT);
            }
            if self.devices.len() >= self.most_devices {
                self.turned_away += 1;
                return;
            }
        }
        self.devices.insert(who, Device { heard: now, hints: BTreeMap::new() });
    }

    /// Notes a sight.
    pub fn note(&mut self, sight: Sight, now: UnixMillis) -> Told {
        let Some(Device { hints, .. }) = self.devices.get_mut(&sight.who) else {
            return Told::Stranger;
        };
        let place = (sight.kind, sight.value);
        if let Some(kept) = hints.get_mut(&place) {
            kept.last = kept.last.max(now);
            return if kept.is_news() { Told::News } else { Told::Known };
        }
        let of_kind = hints.keys().filter(|(kind, _)| *kind == place.0).count();
        let full_of_kind = of_kind >= most_of(place.0);
        if full_of_kind || hints.len() >= MAX_HINTS {
            let old = hints
                .iter()
                .filter(|((kind, _), _)| !full_of_kind || *kind == place.0)
                .min_by_key(|(_, kept)| kept.last)
                .filter(|(_, kept)| now.0.saturating_sub(kept.last.0) >= AGAIN)
                .map(|(place, _)| place.clone());
            self.turned_away += 1;
            let Some(old) = old else { return Told::TurnedAway };
            hints.remove(&old);
        }
        hints.insert(place, Kept { first: now, last: now, told: None });
        Told::News
    }

    /// Takes out what is to be reported, of at most `most` devices. What is left is there the next time.
    pub fn take_news(&mut self, most: usize) -> Vec<(Station, Vec<Hint>)> {
        let mut news: Vec<(Station, Vec<Hint>)> = Vec::new();
        for (station, Device { hints, .. }) in &mut self.devices {
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
}

impl Kept {
    fn is_news(&self) -> bool {
        self.told.is_none_or(|told| self.last.0.saturating_sub(told.0) >= AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::inventory::MAX_OF_KIND;
    use anteroom_proto::mac::MacAddr;

    use super::*;

    fn station(n: u16) -> Station {
        let [high, low] = n.to_be_bytes();
        Station { mac: MacAddr([2, 0, 0, 0, high, low]), vlan: None }
    }

    fn sight(who: Station, value: &str) -> Sight {
        Sight { who, kind: HintKind::DnsQuery, value: value.to_owned() }
    }

    #[test]
    fn a_hint_is_told_once_and_again_on_another_day() {
        let mut collector = Collector::new(4);
        let mut note = |at| {
            let told = collector.note(sight(station(1), "ntp"), UnixMillis(at));
            (told, collector.take_news(4).len())
        };
        assert_eq!(note(1), (Told::Stranger, 0), "nobody heard it");
        collector.heard(station(1), UnixMillis(2));
        let mut note = |at| {
            let told = collector.note(sight(station(1), "ntp"), UnixMillis(at));
            (told, collector.take_news(4).len())
        };
        assert_eq!(note(3), (Told::News, 1));
        assert_eq!(note(4), (Told::Known, 0));
        assert_eq!(note(3 + AGAIN), (Told::News, 1));
    }

    #[test]
    fn addresses_without_end_push_nobody_out_and_those_that_fell_silent_make_room() {
        let mut collector = Collector::new(100);
        collector.heard(station(0), UnixMillis(1));
        for n in 1..20_000 {
            collector.heard(station(n), UnixMillis(1));
        }
        assert_eq!((collector.devices.len(), collector.turned_away()), (100, 19_900));
        assert_eq!(collector.note(sight(station(0), "ntp"), UnixMillis(2)), Told::News);
        // Who speaks stays; whoever else came is forgotten.
        collector.heard(station(0), UnixMillis(SILENT));
        collector.heard(station(30_000), UnixMillis(1 + SILENT));
        assert_eq!(collector.last_heard(station(0)), Some(UnixMillis(SILENT)));
        assert_eq!(collector.devices.len(), 2);
    }

    #[test]
    fn a_kind_that_is_full_takes_a_new_value_for_one_that_is_a_day_old() {
        let mut collector = Collector::new(1);
        collector.heard(station(1), UnixMillis(0));
        let mut note =
            |value: String, at| collector.note(sight(station(1), &value), UnixMillis(at));
        for n in 0..MAX_OF_KIND {
            assert_eq!(note(format!("host-{n}"), 0), Told::News);
        }
        assert_eq!(note("host-0".into(), 1), Told::News);
        assert_eq!(note("new".into(), AGAIN - 1), Told::TurnedAway);
        assert_eq!(note("new".into(), AGAIN), Told::News);
        assert_eq!(note("host-0".into(), AGAIN), Told::News, "what was seen last stays");
        assert_eq!(collector.devices[&station(1)].hints.len(), MAX_OF_KIND);
    }
}
