//! Next hops as ARP on the uplink tells of them, and what becomes of those who contradict each other.

use std::time::{Duration, Instant};

use anteroom_proto::alarm::AlarmKind;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;

use super::{Engine, Header};
use crate::arp;
use crate::contest::{Claim, Place, Step};
use crate::nexthop;
use crate::policy::Policy;
use crate::port::PortId;
use crate::security::Guarded;
use crate::sink::Sink;
use crate::station::{Station, StationId};
use crate::vnet::VnetHeader;
use crate::wire;
use crate::wire::arp::{ArpPacket, Operation};

/// How long a router that nobody knows has to answer a device itself. Devices ask again after a second.
const PATIENCE: Duration = Duration::from_millis(800);

/// Most Ethernet addresses of routers, and of those before them, that are guarded at once.
const MAX_LEARNT: usize = 1_024;

impl Engine {
    /// Whether the router that a device asks for may still answer itself. Notes that the device asks.
    pub(super) fn waits_for_router(
        &mut self,
        sender: Option<StationId>,
        packet: &ArpPacket,
        now: Instant,
    ) -> bool {
        let Some(station) = sender.and_then(|id| self.stations.get_mut(id)) else { return true };
        let router = nexthop::router_of(station.device.as_ref(), &station.next_hops);
        if router != Some((packet.target, None)) {
            return true;
        }
        let since = *station.wants_router.get_or_insert(now);
        now.saturating_duration_since(since) < PATIENCE
    }

    /// Learns next hops: from answers to a station, and from whatever a device's router says. Anybody can say so.
    /// Returns whether the packet is nothing but the answer to a question of the gateway's own.
    pub(super) fn learn_neighbours(
        &mut self,
        header: &Header,
        packet: &ArpPacket,
        now: Instant,
        out: &mut impl Sink,
    ) -> bool {
        if packet.sender_mac != header.source || packet.is_probe() {
            return false;
        }
        let answered = (packet.operation == Operation::Reply)
            .then(|| self.stations.find(header.destination))
            .flatten();
        let concerned: Vec<StationId> = match answered {
            Some(id) => vec![id],
            None => self
                .stations
                .iter()
                .filter(|(_, station)| {
                    let router = station.device.as_ref().and_then(|device| device.router);
                    let seen =
                        |sight: &crate::station::Sight| sight.addresses.contains(&packet.target);
                    router.is_some_and(|router| router.address == packet.sender)
                        || station.sights.iter().any(seen)
                })
                .map(|(id, _)| id)
                .collect(),
        };
        let mut asked = false;
        for id in concerned {
            asked |= self.learn_neighbour(id, packet, answered.is_some(), now, out);
        }
        asked
    }

    /// `answers`: the packet is a reply to the station alone.
    fn learn_neighbour(
        &mut self,
        id: StationId,
        packet: &ArpPacket,
        answers: bool,
        now: Instant,
        out: &mut impl Sink,
    ) -> bool {
        let (address, mac) = (packet.sender, packet.sender_mac);
        let Some(station) = self.stations.get(id) else { return false };
        let enforced = station.stance() >= Mode::Enforce;
        if enforced && !self.may_ask(id, address) {
            // Whoever the device doesn't speak with in the clear has no place among its next hops.
            return false;
        }
        let pinned = station.device.as_ref().and_then(|device| device.router);
        if pinned.is_some_and(|router| router.address == address && router.mac.is_some()) {
            return false;
        }
        let router = nexthop::router_of(station.device.as_ref(), &station.next_hops);
        let is_router = router.is_some_and(|(router, _)| router == address);
        let place = Place { station: id, address };
        match station.next_hops.find(address) {
            Some(known) if known == mac => {
                // What it says to all isn't enough: anybody can say that in its name.
                if answers && let Some(impostor) = self.contests.stands(place, mac, now) {
                    let about = (Some(address), None);
                    self.raise(AlarmKind::Conflict, PortId::UPLINK, impostor, about, now);
                    // For its router the device was answered by the gateway.
                    return is_router;
                }
            }
            // The device sees what the gateway sees, and may believe either. The one who is heard still stays.
            Some(known) if !enforced && self.bridge.knows(known) => {}
            Some(known) if enforced => {
                if self.contests.claim(place, known, (mac, answers), now) == Claim::Returned {
                    self.replace_neighbour(place, mac, out);
                    return is_router;
                }
            }
            _ => self.set_neighbour(place, mac),
        }
        false
    }

    fn set_neighbour(&mut self, place: Place, mac: MacAddr) {
        let limit = self.config.limits.next_hops_per_device;
        let Some(station) = self.stations.get_mut(place.station) else { return };
        let router = station.device.as_ref().and_then(|device| device.router);
        let keep = router.map(|router| router.address);
        let used = nexthop::router_of(station.device.as_ref(), &station.next_hops);
        if keep == Some(place.address) {
            station.wants_router = None;
        }
        station.next_hops.neighbour(place.address, mac, keep, limit);
        if nexthop::router_of(station.device.as_ref(), &station.next_hops) != used {
            self.guard();
        }
    }

    /// Finds out anew what nobody on a port may pass for.
    pub(super) fn guard(&mut self) {
        let infrastructure = self.policy.as_ref().map(Policy::infrastructure);
        let routers = infrastructure.map_or(&[][..], |found| found.routers.as_slice());
        self.guarded = Guarded::of(&self.stations, routers);
    }

    /// Guards the router that a device has just turned to. Those before it stay guarded for now: a device may have two
    /// and take them in turns, packet by packet.
    pub(super) fn guard_router_of(&mut self, id: StationId) {
        let learnt = |station: &Station| {
            let device = station.device.as_ref()?;
            let pinned = device.router.is_some_and(|router| router.mac.is_some());
            let learns = device.stance != Mode::Observe && !pinned;
            nexthop::router_of(Some(device), &station.next_hops).filter(|_| learns)?.1
        };
        let Some(mac) = self.stations.get(id).and_then(learnt) else { return };
        if self.guarded.learnt_macs.contains(&mac) {
            return;
        }
        let mut before = std::mem::take(&mut self.guarded.learnt_macs);
        self.guard();
        if before.len() < MAX_LEARNT {
            self.guarded.learnt_macs.append(&mut before);
        }
    }

    /// Puts another in a next hop's place, and tells the device, which was told otherwise before.
    fn replace_neighbour(&mut self, place: Place, mac: MacAddr, out: &mut impl Sink) {
        self.set_neighbour(place, mac);
        let Some(station) = self.stations.get(place.station) else { return };
        let router = nexthop::router_of(station.device.as_ref(), &station.next_hops);
        let used = router.is_some_and(|(router, _)| router == place.address);
        let further =
            self.policy.as_ref().is_some_and(|policy| policy.is_further_router(place.address));
        if further && !used {
            // It only asks: the device was never told of it.
            return;
        }
        let Some(own) = station.device.as_ref().and_then(|device| device.own_addresses().next())
        else {
            return;
        };
        let (port, device) = (station.port, station.mac);
        let asked = ArpPacket {
            operation: Operation::Request,
            sender_mac: device,
            sender: own,
            target_mac: MacAddr([0; 6]),
            target: place.address,
        };
        self.answer_arp(port, &asked, mac, out);
    }

    /// Whether an enforced device may be heard asking for this address: whom it speaks with in the clear, or its
    /// next hop to them.
    fn may_ask(&self, id: StationId, address: std::net::Ipv4Addr) -> bool {
        let (Some(policy), Some(station)) = (&self.policy, self.stations.get(id)) else {
            return false;
        };
        let own = station.device.as_ref().and_then(|device| policy.find(device.member));
        own.is_some_and(|own| arp::needs(policy, own, station, address))
    }

    /// Goes on with contests.
    pub(super) fn settle_contests(&mut self, now: Instant, out: &mut impl Sink) {
        for step in self.contests.due(now) {
            match step {
                Step::Ask { place, known } => self.ask_neighbour(place, known, out),
                Step::Replace { place, newcomer } => {
                    let station = self.stations.get(place.station);
                    let known = station.and_then(|station| station.next_hops.find(place.address));
                    // The view may have changed since it was asked.
                    if let Some(known) =
                        known.filter(|_| self.may_ask(place.station, place.address))
                    {
                        self.contests.replaced(place, known, now);
                        self.replace_neighbour(place, newcomer, out);
                    }
                }
            }
        }
    }

    /// Asks one neighbour alone whether it has an address, as the device itself would.
    fn ask_neighbour(&mut self, place: Place, known: MacAddr, out: &mut impl Sink) {
        let Some(station) = self.stations.get(place.station) else { return };
        let own = station.device.as_ref().and_then(|device| device.own_addresses().next());
        let (Some(own), true) = (own, self.may_ask(place.station, place.address)) else { return };
        let mut request = wire::arp::request(station.mac, own, place.address);
        request[..6].copy_from_slice(&known.0);
        self.stations.ports[PortId::UPLINK.index()].frames_out += 1;
        out.frame(PortId::UPLINK, VnetHeader::default(), None, &[&request]);
    }
}
