//! Stations: every Ethernet address on a device port, confirmed by an operator or not.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::id::MemberId;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::Unlisted;
use anteroom_proto::v1::telemetry::Sighting;
use ipnet::Ipv4Net;

use crate::config::PortConfig;
use crate::device::{Device, is_host};
use crate::flow::Count;
use crate::lane::pace::DevicePace;
use crate::limits::Limits;
use crate::nexthop::NextHops;
use crate::port::PortId;
use crate::table::Map;

/// How long an unconfirmed station must have been silent before another may take its place.
const STALE: Duration = Duration::from_secs(600);
/// How long a port without room isn't searched for room again.
const FULL_FOR: Duration = Duration::from_secs(1);
/// Most addresses remembered per sighting.
pub(crate) const MAX_ADDRESSES: usize = 8;
/// Most VLANs remembered per station.
const MAX_VLANS: usize = 4;
/// What is seen again is reported again after so many milliseconds.
const TELL_AGAIN: u64 = 60 * 60 * 1000;
/// Most stations altogether: the flow table's zones number them with 16 bits.
const MAX_STATIONS: usize = 0xfff0;

/// A station's number. It stays while the engine runs, whatever views come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StationId(pub(crate) u16);

impl StationId {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A share of the bounded tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Share(pub(crate) u32);

impl Share {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Kinds of traffic that no rule carries, as bits.
pub(crate) mod kind {
    pub(crate) const BROADCAST: u8 = 1;
    pub(crate) const MULTICAST: u8 = 2;
    pub(crate) const IPV6: u8 = 4;
    pub(crate) const TAGGED: u8 = 8;
    pub(crate) const NON_IP: u8 = 16;
    /// With the word that stands in a sighting.
    pub(crate) const WORDS: [(u8, &str); 5] = [
        (BROADCAST, "broadcast"),
        (MULTICAST, "multicast"),
        (IPV6, "ipv6"),
        (TAGGED, "tagged"),
        (NON_IP, "non-ip"),
    ];
}

/// What was seen of a station in one VLAN, or in none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) vlan: Option<u16>,
    pub(crate) addresses: Vec<Ipv4Addr>,
    pub(crate) kinds: u8,
    pub(crate) first: UnixMillis,
    pub(crate) last: UnixMillis,
    /// Whether there is news that wasn't reported.
    pub(crate) changed: bool,
    /// When what was last reported of it was seen.
    pub(crate) told: UnixMillis,
}

impl Sight {
    /// Whether it is to be reported now: there is news, or it was seen again [`TELL_AGAIN`] after what was reported, so that
    /// a controller can tell what goes on speaking from what was there once.
    pub(crate) fn take_news(&mut self) -> bool {
        let again = self.last.0.saturating_sub(self.told.0) >= TELL_AGAIN;
        let news = std::mem::take(&mut self.changed) || again;
        if news {
            self.told = self.last;
        }
        news
    }
}

/// An Ethernet address on a port.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) port: PortId,
    pub(crate) mac: MacAddr,
    pub(crate) device: Option<Device>,
    /// Whether its frames were held for want of an operator's word.
    pub(crate) held: bool,
    pub(crate) sights: Vec<Sight>,
    pub(crate) next_hops: NextHops,
    /// When it was last heard.
    pub(crate) heard: Option<Instant>,
    /// From the station, and to it.
    pub(crate) counts: [Count; 2],
    /// What it sends through tunnels' lane 0.
    pub(crate) pace: DevicePace,
    /// The transaction of its last DHCP request, and when that was.
    pub(crate) dhcp: Option<(u32, Instant)>,
    /// When the gateway last asked for its router.
    pub(crate) asked_for_router: Option<Instant>,
    /// Since when it has been asking for its router, whom nobody knows.
    pub(crate) wants_router: Option<Instant>,
    /// When it last went to another port with the address that it shares.
    pub(crate) moved: Option<Instant>,
}

impl Station {
    /// How its traffic is treated.
    pub(crate) fn stance(&self) -> Mode {
        self.device.as_ref().map_or(Mode::Observe, |device| device.stance)
    }

    /// Notes that its frames are held. An operator is told at once.
    pub(crate) fn hold(&mut self) {
        if !std::mem::replace(&mut self.held, true) {
            for sight in &mut self.sights {
                sight.changed = true;
            }
        }
    }

    /// Whether it was seen with this address.
    pub(crate) fn was_seen_with(&self, address: Ipv4Addr) -> bool {
        self.sights.iter().any(|sight| sight.addresses.contains(&address))
    }

    /// Takes back what an earlier run saw. It was reported then.
    pub(crate) fn restore(&mut self, sighting: &Sighting) {
        if self.sights.len() >= MAX_VLANS {
            return;
        }
        self.next_hops.restore_guesses(sighting.router, sighting.prefix_len);
        let words = kind::WORDS.iter().filter(|(_, word)| sighting.kinds.iter().any(|k| k == word));
        self.sights.push(Sight {
            vlan: sighting.vlan,
            addresses: sighting.addresses.iter().copied().take(MAX_ADDRESSES).collect(),
            kinds: words.fold(0, |kinds, (bit, _)| kinds | bit),
            first: sighting.first_seen,
            last: sighting.last_seen,
            changed: false,
            told: sighting.last_seen,
        });
    }

    /// The sight in a VLAN, made if there is room.
    fn sight(&mut self, vlan: Option<u16>, wall: UnixMillis) -> Option<&mut Sight> {
        if let Some(at) = self.sights.iter().position(|sight| sight.vlan == vlan) {
            return self.sights.get_mut(at);
        }
        if self.sights.len() >= MAX_VLANS {
            return None;
        }
        self.sights.push(Sight {
            vlan,
            addresses: Vec::new(),
            kinds: 0,
            first: wall,
            last: wall,
            changed: true,
            told: wall,
        });
        self.sights.last_mut()
    }

    /// Notes one more untagged frame like one before, of which there is nothing else to note.
    pub(crate) fn hear_again(&mut self, wall: UnixMillis, now: Instant) {
        self.heard = Some(now);
        if let Some(sight) = self.sights.iter_mut().find(|sight| sight.vlan.is_none()) {
            sight.last = wall;
        }
    }

    /// Notes a frame: kinds of traffic that no rule carries, and the source address, where it has one.
    pub(crate) fn see(
        &mut self,
        vlan: Option<u16>,
        kinds: u8,
        address: Option<Ipv4Addr>,
        wall: UnixMillis,
        now: Instant,
    ) {
        self.heard = Some(now);
        let Some(sight) = self.sight(vlan, wall) else { return };
        sight.last = wall;
        if sight.kinds | kinds != sight.kinds {
            sight.kinds |= kinds;
            sight.changed = true;
        }
        let Some(address) = address.filter(|a| is_host(*a)) else { return };
        if !sight.addresses.contains(&address) && sight.addresses.len() < MAX_ADDRESSES {
            sight.addresses.push(address);
            sight.changed = true;
        }
    }
}

/// What a port's stations have in common.
#[derive(Debug, Clone, Default)]
pub(crate) struct PortState {
    /// The strictest mode of the devices on it. None while none is confirmed.
    pub(crate) mode: Option<Mode>,
    /// Whether all devices on it are enforced or quarantined.
    closed: bool,
    /// Whether unknown addresses pass in the clear, whatever the devices' mode.
    pub(crate) passes_unlisted: bool,
    pub(crate) unknown: usize,
    /// Frames of unknown addresses that found no place.
    pub(crate) turned_away: u64,
    /// How many unknown addresses have a place on it.
    room: usize,
    /// No unknown address on it gives way before then.
    full_until: Option<Instant>,
    pub(crate) frames_in: u64,
    pub(crate) frames_out: u64,
}

impl PortState {
    /// Whether a device on it has left observe.
    pub(crate) fn left_observe(&self) -> bool {
        self.mode.is_some_and(|mode| mode != Mode::Observe)
    }

    /// Whether unknown addresses on it are held: from when a device on it left observe, unless the port is set to
    /// let them pass.
    pub(crate) fn holds(&self) -> bool {
        self.left_observe() && !self.passes_unlisted
    }

    /// Whether broadcast may go out of it.
    pub(crate) fn takes_broadcast(&self) -> bool {
        !self.closed
    }

    /// Whether frames for addresses that nobody knows may go out of it: a wire to a silent host.
    pub(crate) fn takes_unknown(&self) -> bool {
        !self.closed && !self.holds()
    }
}

/// What [`Stations::learn`] made of an unknown address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learnt {
    /// It has a place now.
    New(StationId),
    /// It has the place of a station that was silent for long, whose flows must go.
    Replaced(StationId),
    /// The port has as many unknown addresses as it may have.
    Full,
}

/// A device of this gateway on a port that this gateway doesn't have. It is held wherever it is plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Absent {
    pub(crate) member: MemberId,
    pub(crate) addresses: Vec<Ipv4Net>,
}

/// All stations.
#[derive(Debug)]
pub(crate) struct Stations {
    absent: BTreeMap<MacAddr, Absent>,
    list: Vec<Station>,
    by_mac: Map<MacAddr, StationId>,
    /// How often it changed who is where, and how they are treated.
    changes: u64,
    /// By [`PortId::index`]; the uplink's is there for its counters.
    pub(crate) ports: Vec<PortState>,
}

impl Stations {
    /// No stations on these device ports.
    pub(crate) fn new(
        ports: &[PortConfig],
        limits: &Limits,
        by_mac: Map<MacAddr, StationId>,
    ) -> Self {
        let uplink = PortState::default();
        let ports = ports.iter().map(|port| PortState {
            passes_unlisted: port.unlisted == Unlisted::Pass,
            room: match port.unlisted {
                Unlisted::Hold => limits.unknown_per_port,
                Unlisted::Pass => limits.unlisted_per_port,
            },
            ..PortState::default()
        });
        Self {
            absent: BTreeMap::new(),
            list: Vec::new(),
            by_mac,
            changes: 0,
            ports: std::iter::once(uplink).chain(ports).collect(),
        }
    }

    /// How often it changed who is where, and how they are treated. It only grows.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn find(&self, mac: MacAddr) -> Option<StationId> {
        self.by_mac.get(&mac).copied()
    }

    pub(crate) fn get(&self, id: StationId) -> Option<&Station> {
        self.list.get(id.index())
    }

    pub(crate) fn get_mut(&mut self, id: StationId) -> Option<&mut Station> {
        self.list.get_mut(id.index())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (StationId, &Station)> {
        (0..).map(StationId).zip(&self.list)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Station> {
        self.list.iter_mut()
    }

    /// Whose share of the bounded tables a station's traffic uses up: a device has one of its own, and all
    /// unconfirmed stations of a port have one together, so that a flood of made-up addresses gains nothing.
    pub(crate) fn share(&self, id: StationId) -> Share {
        let unconfirmed = self.get(id).filter(|station| station.device.is_none());
        Share(match unconfirmed {
            Some(station) => u32::try_from(station.port.index()).unwrap_or(0),
            None => u32::try_from(self.ports.len()).unwrap_or(0) + u32::from(id.0),
        })
    }

    /// The shares that an unconfirmed station's traffic may use up: its port's, and its own from when it was confirmed.
    pub(crate) fn shares(&self, id: StationId) -> [Share; 2] {
        let own = u32::try_from(self.ports.len()).unwrap_or(0) + u32::from(id.0);
        [self.share(id), Share(own)]
    }

    pub(crate) fn port(&self, port: PortId) -> Option<&PortState> {
        self.ports.get(port.index())
    }

    /// Gives an unknown address a place.
    pub(crate) fn learn(&mut self, port: PortId, mac: MacAddr, now: Instant) -> Learnt {
        let Some(state) = self.ports.get_mut(port.index()) else { return Learnt::Full };
        if state.unknown < state.room && self.list.len() < MAX_STATIONS {
            state.unknown += 1;
            return Learnt::New(self.push(port, mac));
        }
        // Looked for once a while only: a flood of addresses mustn't cost a search each.
        if state.full_until.is_some_and(|until| now < until) {
            return Learnt::Full;
        }
        let oldest = self
            .list
            .iter()
            .enumerate()
            .filter(|(_, station)| station.port == port && station.device.is_none())
            .min_by_key(|(_, station)| station.heard);
        let until = oldest.and_then(|(_, station)| station.heard).map(|at| at + STALE);
        let stale = oldest
            .filter(|_| until.is_none_or(|until| until < now))
            .and_then(|(at, _)| u16::try_from(at).ok());
        let Some(id) = stale.map(StationId) else {
            state.full_until = Some(until.unwrap_or(now).max(now + FULL_FOR));
            return Learnt::Full;
        };
        self.changes += 1;
        let old = self.list[id.index()].mac;
        self.by_mac.remove(&old);
        self.by_mac.insert(mac, id);
        self.list[id.index()] = fresh(port, mac);
        Learnt::Replaced(id)
    }

    /// Notes that an unknown station is on another port now, as happens on a wire.
    pub(crate) fn relocate(&mut self, id: StationId, port: PortId) {
        let Some(station) = self.list.get_mut(id.index()) else { return };
        // What was proved of packets is about confirmed devices and who isn't a station here: somebody whom nobody knows
        // and who hops to and fro makes nothing of it void.
        self.changes += u64::from(station.device.is_some());
        let before = std::mem::replace(&mut station.port, port);
        if station.device.is_none() {
            self.ports[before.index()].unknown -= 1;
            self.ports[port.index()].unknown += 1;
        }
    }

    /// Whether a confirmed device may be on another port than its own: it has an Ethernet address that machines share
    /// (VRRP, HSRP), and behind that port is a device that operators listed for one of its IP addresses as well, and that
    /// is treated as it is.
    pub(crate) fn may_follow(&self, id: StationId, port: PortId) -> bool {
        let Some(station) = self.get(id).filter(|station| station.mac.is_shared()) else {
            return false;
        };
        let Some(device) = &station.device else { return false };
        self.iter().any(|(other, holder)| {
            let listed = |holder: &Device| {
                (holder.stance, holder.vlan) == (device.stance, device.vlan)
                    && device
                        .addresses
                        .iter()
                        .any(|net| net.prefix_len() == 32 && holder.lists(net.addr()))
            };
            other != id && holder.port == port && holder.device.as_ref().is_some_and(listed)
        })
    }

    /// Makes `devices` the confirmed ones: (port, Ethernet address, device). Their stances follow.
    pub(crate) fn confirm(&mut self, devices: Vec<(PortId, MacAddr, Device)>) {
        self.changes += 1;
        // Where those with a shared Ethernet address are just now.
        let places: Vec<(MacAddr, PortId)> = self
            .list
            .iter()
            .filter(|station| station.device.is_some() && station.mac.is_shared())
            .map(|station| (station.mac, station.port))
            .collect();
        for station in &mut self.list {
            station.device = None;
        }
        for state in &mut self.ports {
            state.mode = None;
        }
        for (port, mac, device) in devices {
            if port.index() >= self.ports.len() {
                continue;
            }
            let id = match self.find(mac) {
                Some(id) => id,
                None if self.list.len() < MAX_STATIONS => self.push(port, mac),
                None => continue,
            };
            if self.list[id.index()].device.is_some() {
                // Two devices with one Ethernet address can't both be served: the first stands.
                continue;
            }
            let mode = &mut self.ports[port.index()].mode;
            *mode = Some(mode.map_or(device.mode, |other| other.max(device.mode)));
            let station = &mut self.list[id.index()];
            station.port = port;
            station.held = false;
            station.device = Some(device);
        }
        for state in &mut self.ports {
            state.unknown = 0;
            state.full_until = None;
            state.closed = state.mode.is_some();
        }
        for station in &mut self.list {
            let state = &mut self.ports[station.port.index()];
            match &mut station.device {
                Some(device) => {
                    let shared = state.mode.unwrap_or(device.mode);
                    let least = if device.quarantined { Mode::Enforce } else { Mode::Observe };
                    device.stance = shared.max(least);
                    state.closed &= device.stance >= Mode::Enforce;
                }
                None => {
                    state.unknown += 1;
                    station.held &= state.holds();
                }
            }
            for sight in &mut station.sights {
                sight.changed = true;
            }
        }
        for (mac, port) in places {
            if let Some(id) = self.find(mac).filter(|id| self.may_follow(*id, port)) {
                self.relocate(id, port);
            }
        }
    }

    /// Holds devices that have no place, after [`Self::confirm`]. One of the ports that the view doesn't name is
    /// theirs under another name, so all of those are closed.
    pub(crate) fn hold_absent(&mut self, absent: BTreeMap<MacAddr, Absent>) {
        self.changes += 1;
        self.absent = absent;
        let placed = self.list.iter().filter(|station| station.device.is_some());
        for mac in placed.map(|station| station.mac) {
            self.absent.remove(&mac);
        }
        if self.absent.is_empty() {
            return;
        }
        for state in self.ports.iter_mut().skip(1).filter(|state| state.mode.is_none()) {
            state.mode = Some(Mode::Enforce);
            state.closed = true;
        }
    }

    /// The device with this Ethernet address that has no place here.
    pub(crate) fn absent(&self, mac: MacAddr) -> Option<&Absent> {
        self.absent.get(&mac)
    }

    /// The fixed addresses of devices that have no place here.
    pub(crate) fn absent_addresses(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let nets = self.absent.values().flat_map(|absent| &absent.addresses);
        nets.filter(|net| net.prefix_len() == 32).map(Ipv4Net::addr)
    }

    fn push(&mut self, port: PortId, mac: MacAddr) -> StationId {
        #[expect(clippy::cast_possible_truncation, reason = "callers check MAX_STATIONS")]
        let id = StationId(self.list.len() as u16);
        self.changes += 1;
        self.list.push(fresh(port, mac));
        self.by_mac.insert(mac, id);
        id
    }
}

fn fresh(port: PortId, mac: MacAddr) -> Station {
    Station {
        port,
        mac,
        device: None,
        held: false,
        sights: Vec::new(),
        next_hops: NextHops::default(),
        heard: None,
        counts: [Count::default(); 2],
        pace: DevicePace::default(),
        dhcp: None,
        asked_for_router: None,
        wants_router: None,
        moved: None,
    }
}

#[cfg(test)]
mod tests;
