//! What was seen of each device at a port and wasn't reported yet.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

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

/// Whoever spoke by more addresses than this within an hour passes on what others send. Servers with several services may have
/// some of their own.
const MOST_ADDRESSES: usize = 8;

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
    /// Whoever it is about passes on what others send: it may be anybody's.
    Anybodys,
}

/// A device that was heard.
#[derive(Debug)]
struct Device {
    heard: UnixMillis,
    hints: BTreeMap<(HintKind, String), Kept>,
    /// By which addresses it spoke, and when last: at most one more than [`MOST_ADDRESSES`].
    addresses: Vec<(Ipv4Addr, UnixMillis)>,
    /// Whether these are too many to be all its own.
    forwards: bool,
}

impl Device {
    fn new(now: UnixMillis) -> Self {
        Self { heard: now, hints: BTreeMap::new(), addresses: Vec::new(), forwards: false }
    }

    /// It was heard, by this address.
    fn hear(&mut self, by: Option<Ipv4Addr>, now: UnixMillis) {
        self.heard = now;
        let Some(by) = by else { return };
        if let Some((_, last)) = self.addresses.iter_mut().find(|(known, _)| *known == by) {
            *last = now;
            return;
        }
        self.addresses.retain(|(_, last)| now.0.saturating_sub(last.0) < SILENT);
        if self.addresses.len() > MOST_ADDRESSES {
            let oldest = self.addresses.iter().enumerate().min_by_key(|(_, (_, last))| *last);
            if let Some((oldest, _)) = oldest {
                self.addresses.swap_remove(oldest);
            }
        }
        self.addresses.push((by, now));
        let before = std::mem::replace(&mut self.forwards, self.addresses.len() > MOST_ADDRESSES);
        if self.forwards && !before {
            self.hints.retain(|(kind, _), kept| is_of_station(*kind) || kept.told.is_some());
            let place = (HintKind::Forwards, "addresses".to_owned());
            let kept =
                self.hints.entry(place).or_insert(Kept { first: now, last: now, told: None });
            kept.last = now;
        }
    }
}

/// Whether what stands there comes from the station itself, whatever it passes on.
const fn is_of_station(kind: HintKind) -> bool {
    use HintKind as K;
    matches!(
        kind,
        K::Forwards
            | K::LldpName
            | K::LldpDescription
            | K::LldpModel
            | K::LldpRevision
            | K::LldpMudUrl
            | K::CdpName
            | K::CdpPlatform
            | K::CdpSoftware
            | K::DhcpHostname
            | K::DhcpVendorClass
            | K::DhcpParameters
            | K::DhcpFqdn
            | K::DhcpMudUrl
    )
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

    /// A frame of a device came from the port, by this address: from now on its hints are noted, if there is room.
    pub fn heard(&mut self, who: Station, by: Option<Ipv4Addr>, now: UnixMillis) {
        if let Some(device) = self.devices.get_mut(&who) {
            device.hear(by, now);
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
        let mut device = Device::new(now);
        device.hear(by, now);
        self.devices.insert(who, device);
    }

    /// Notes a sight.
    pub fn note(&mut self, sight: Sight, now: UnixMillis) -> Told {
        let Some(Device { hints, forwards, .. }) = self.devices.get_mut(&sight.who) else {
            return Told::Stranger;
        };
        if *forwards && !is_of_station(sight.kind) {
            return Told::Anybodys;
        }
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
        collector.heard(station(1), None, UnixMillis(2));
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
        collector.heard(station(0), None, UnixMillis(1));
        for n in 1..20_000 {
            collector.heard(station(n), None, UnixMillis(1));
        }
        assert_eq!((collector.devices.len(), collector.turned_away()), (100, 19_900));
        assert_eq!(collector.note(sight(station(0), "ntp"), UnixMillis(2)), Told::News);
        // Who speaks stays; whoever else came is forgotten.
        collector.heard(station(0), None, UnixMillis(SILENT));
        collector.heard(station(30_000), None, UnixMillis(1 + SILENT));
        assert_eq!(collector.last_heard(station(0)), Some(UnixMillis(SILENT)));
        assert_eq!(collector.devices.len(), 2);
    }

    #[test]
    fn a_kind_that_is_full_takes_a_new_value_for_one_that_is_a_day_old() {
        let mut collector = Collector::new(1);
        collector.heard(station(1), None, UnixMillis(0));
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

    #[test]
    fn who_speaks_by_many_addresses_speaks_for_nobody() {
        let mut collector = Collector::new(4);
        let by = |n: u8| Some(Ipv4Addr::new(10, 0, 0, n));
        let lldp =
            || Sight { who: station(1), kind: HintKind::LldpName, value: "core-7".to_owned() };
        for n in 0..8 {
            collector.heard(station(1), by(n), UnixMillis(1));
        }
        assert_eq!(collector.note(sight(station(1), "ntp"), UnixMillis(1)), Told::News);
        collector.heard(station(1), by(8), UnixMillis(2));
        assert_eq!(collector.note(sight(station(1), "dns"), UnixMillis(2)), Told::Anybodys);
        assert_eq!(collector.note(lldp(), UnixMillis(2)), Told::News);
        // What wasn't reported yet is nobody's either.
        let news = collector.take_news(4).remove(0).1;
        let news: Vec<_> = news.iter().map(|hint| (hint.kind, hint.value.as_str())).collect();
        assert_eq!(news, [(HintKind::LldpName, "core-7"), (HintKind::Forwards, "addresses")]);
        // Addresses without end take no more room.
        for n in 9..=255 {
            collector.heard(station(1), by(n), UnixMillis(3));
        }
        assert_eq!(collector.devices[&station(1)].addresses.len(), MOST_ADDRESSES + 1);
        // A machine that gets a new address now and then is one all the same.
        for n in 0..=255 {
            collector.heard(station(2), by(n), UnixMillis(u64::from(n) * SILENT / 4));
        }
        assert_eq!(collector.note(sight(station(2), "ntp"), UnixMillis(3)), Told::News);
    }
}
