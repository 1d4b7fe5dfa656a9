//! The last stage: out of a port, out of the uplink, or into the tunnel.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::DropReason;

use super::Engine;
use crate::batch::{RxFrame, VlanTag};
use crate::echo::Echoes;
use crate::nexthop;
use crate::port::PortId;
use crate::sink::Sink;
use crate::station::StationId;
use crate::vnet::VnetHeader;
use crate::wire;
use crate::wire::{FiveTuple, ethernet};

/// How long the gateway waits before it asks for a device's router again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A frame that goes on as it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole<'a> {
    pub(super) vnet: VnetHeader,
    pub(super) vlan: Option<VlanTag>,
    pub(super) bytes: &'a [u8],
}

impl<'a> Whole<'a> {
    pub(super) fn of(frame: &'a RxFrame<'_>) -> Self {
        Self { vnet: frame.vnet, vlan: frame.vlan, bytes: frame.bytes }
    }

    /// The VLAN that it belongs to, whether the tag stands in the frame or beside it.
    fn tag_id(&self) -> Option<u16> {
        wire::parse_ethernet(self.bytes, self.vlan).ok()?.vlan()
    }

    fn destination(&self) -> Option<MacAddr> {
        self.bytes.first_chunk::<6>().map(|bytes| MacAddr(*bytes))
    }
}

impl Engine {
    /// Sends a frame out of a port as it came.
    pub(super) fn emit(
        &mut self,
        port: PortId,
        frame: Whole<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        if frame.destination().is_some_and(MacAddr::is_group) {
            self.echoes.sent((frame.vlan, frame.bytes), Echoes::bit(port), true, now);
        }
        self.put(port, frame, out);
    }

    /// Sends a frame for a single address out of a port.
    pub(super) fn put(&mut self, port: PortId, frame: Whole<'_>, out: &mut impl Sink) {
        if let Some(state) = self.stations.ports.get_mut(port.index()) {
            state.frames_out += 1;
        }
        out.frame(port, frame.vnet, frame.vlan, &[frame.bytes]);
    }

    /// Sends a device's frame out of the uplink. Where it is for the address that stands for an unknown router,
    /// the router's own is put in its place.
    pub(super) fn emit_uplink(
        &mut self,
        station: Option<StationId>,
        frame: Whole<'_>,
        tuple: Option<FiveTuple>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let stand_in = nexthop::stand_in(self.identity.gateway);
        if frame.destination() != Some(stand_in) {
            self.emit(PortId::UPLINK, frame, now, out);
            return;
        }
        let known = station
            .and_then(|id| self.stations.get(id))
            .and_then(|station| nexthop::router_of(station.device.as_ref(), &station.next_hops)?.1);
        let (Some(router), Some(rest)) = (known, frame.bytes.get(6..)) else {
            self.recorder.drop(station, DropReason::NoNextHop, tuple, now);
            if let Some(id) = station {
                self.ask_for_router(id, now, out);
            }
            return;
        };
        self.stations.ports[PortId::UPLINK.index()].frames_out += 1;
        out.frame(PortId::UPLINK, frame.vnet, frame.vlan, &[&router.0, rest]);
    }

    /// Asks for a device's router as the device itself would, since it was given an address that stands for it.
    /// The answer goes to the device as well. An enforced one is heard only where it needs its router.
    fn ask_for_router(&mut self, id: StationId, now: Instant, out: &mut impl Sink) {
        let Some(station) = self.stations.get(id) else { return };
        let recently = station
            .asked_for_router
            .is_some_and(|at| now.saturating_duration_since(at) < ASK_AGAIN);
        let (Some(device), Some(policy), false) = (&station.device, &self.policy, recently) else {
            return;
        };
        let allowed = device.stance < Mode::Enforce
            || policy
                .find(device.member)
                .is_some_and(|own| policy.needs_next_hop(own, |address| device.on_link(address)));
        let own = device.own_addresses().next();
        let (true, Some(router), Some(own)) = (allowed, device.router, own) else {
            return;
        };
        let request = wire::arp::request(station.mac, own, router.address);
        if let Some(station) = self.stations.get_mut(id) {
            station.asked_for_router = Some(now);
        }
        self.stations.ports[PortId::UPLINK.index()].frames_out += 1;
        out.frame(PortId::UPLINK, VnetHeader::default(), None, &[&request]);
    }

    /// Sends a frame to where its destination address is, as a learning bridge does. `from` is where it came
    /// from. Enforced devices get nothing this way.
    pub(super) fn bridge_frame(
        &mut self,
        from: PortId,
        sender: Option<StationId>,
        frame: Whole<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let Some(destination) = frame.destination() else { return };
        if destination.is_group() {
            self.flood(from, frame, true, now, out);
            self.single_out(from, frame, out);
            return;
        }
        if !from.is_uplink() && destination == nexthop::stand_in(self.identity.gateway) {
            self.emit_uplink(sender, frame, None, now, out);
            return;
        }
        let station = self.stations.find(destination).filter(|id| {
            let confirmed = self.stations.get(*id).is_some_and(|s| s.device.is_some());
            confirmed || !self.bridge.knows(destination)
        });
        let Some(id) = station else {
            if from.is_uplink() {
                if !self.bridge.knows(destination) {
                    self.flood(from, frame, false, now, out);
                }
            } else if self.bridge.knows(destination) {
                self.emit_uplink(sender, frame, None, now, out);
            } else {
                self.flood(from, frame, false, now, out);
            }
            return;
        };
        let Some(station) = self.stations.get(id) else { return };
        let (port, stance) = (station.port, station.stance());
        if port == from {
            self.recorder.drop(sender, DropReason::SamePort, None, now);
        } else if stance >= Mode::Enforce {
            self.recorder.drop(Some(id), DropReason::NoRule, None, now);
        } else if station.device.is_none()
            && self.stations.port(port).is_some_and(crate::station::PortState::holds)
        {
            self.recorder.drop(Some(id), DropReason::UnknownMac, None, now);
        } else if !from.is_uplink()
            && frame.tag_id().is_some_and(|vlan| !self.uses_vlan(port, vlan))
        {
            self.recorder.drop(sender, DropReason::VlanSpoofed, None, now);
        } else {
            self.count_in(id, 1, frame.bytes.len() as u64);
            self.emit(port, frame, now, out);
        }
    }

    /// Sends a frame to all ports but the one that it came from: a group's to those that take broadcast, any
    /// other's to those where a silent host may be.
    fn flood(
        &mut self,
        from: PortId,
        frame: Whole<'_>,
        group: bool,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let vlan = frame.tag_id();
        let uplink = (!from.is_uplink()).then_some(PortId::UPLINK);
        let all = uplink.into_iter().chain(self.device_ports());
        let takes = |engine: &Self, port: PortId| {
            port.is_uplink() || (port != from && engine.is_flooded(port, from, vlan, group))
        };
        let to = all.clone().filter(|port| takes(self, *port));
        let Some(bits) = to.map(Echoes::bit).reduce(|bits, bit| bits | bit) else { return };
        self.echoes.sent((frame.vlan, frame.bytes), bits, group, now);
        for port in all {
            if takes(self, port) {
                self.put(port, frame, out);
            }
        }
    }

    /// Whether a device port gets what floods, from another port, in a VLAN or none.
    fn is_flooded(&self, port: PortId, from: PortId, vlan: Option<u16>, group: bool) -> bool {
        let open = self.stations.port(port).is_some_and(|state| {
            if group { state.takes_broadcast() } else { state.takes_unknown() }
        });
        // A VLAN joins ports only where both use it; the network behind the uplink sorts its own.
        open && (from.is_uplink() || vlan.is_none_or(|vlan| self.uses_vlan(port, vlan)))
    }

    /// Hands what everybody is asked to the one unlisted station that it is for, where its port takes no broadcast
    /// because an enforced device is on it: ARP for its address, and answers to its DHCP.
    fn single_out(&mut self, from: PortId, frame: Whole<'_>, out: &mut impl Sink) {
        let closed = |port: PortId| {
            let state = self.stations.port(port);
            port != from && state.is_some_and(|s| s.passes_unlisted && !s.takes_broadcast())
        };
        if !self.device_ports().any(closed) {
            return;
        }
        let Ok(parsed) = wire::parse_ethernet(frame.bytes, frame.vlan) else { return };
        let wanted = match parsed.ethertype {
            ethernet::ARP => {
                let Ok(packet) = wire::arp::parse_arp(parsed.payload) else { return };
                self.stations
                    .iter()
                    .find(|(_, s)| s.device.is_none() && s.was_seen_with(packet.target))
                    .map(|(_, station)| (station.port, station.mac))
            }
            ethernet::IPV4 => wire::parse_ipv4(parsed.payload)
                .ok()
                .and_then(|packet| wire::dhcp::parse_dhcp(packet.udp_payload()?).ok())
                .and_then(|message| self.stations.get(self.stations.find(message.client_mac)?))
                .filter(|station| station.device.is_none())
                .map(|station| (station.port, station.mac)),
            _ => None,
        };
        let (Some((port, mac)), Some(rest)) = (wanted, frame.bytes.get(6..)) else { return };
        if closed(port) && self.stations.absent(mac).is_none() {
            self.stations.ports[port.index()].frames_out += 1;
            out.frame(port, frame.vnet, frame.vlan, &[&mac.0, rest]);
        }
    }

    /// Whether somebody on a port speaks in a VLAN.
    fn uses_vlan(&self, port: PortId, vlan: u16) -> bool {
        self.stations.iter().any(|(_, station)| {
            let device = station.device.as_ref();
            station.port == port
                && (device.is_some_and(|device| device.vlan == Some(vlan))
                    || station.sights.iter().any(|sight| sight.vlan == Some(vlan)))
        })
    }

    /// The device ports.
    pub(super) fn device_ports(&self) -> impl Iterator<Item = PortId> + Clone + use<> {
        let count = u16::try_from(self.config.ports.len()).unwrap_or(u16::MAX - 1);
        (0..count).map(PortId::device)
    }

    /// Counts what goes to a station.
    pub(super) fn count_in(&mut self, id: StationId, packets: u64, bytes: u64) {
        if let Some(station) = self.stations.get_mut(id) {
            station.counts[1].add(packets, bytes);
        }
    }

    /// Delivers an IPv4 packet to a device here.
    pub(super) fn deliver(
        &mut self,
        id: StationId,
        from: (Ipv4Addr, Option<MacAddr>),
        vnet: VnetHeader,
        packet: &[u8],
        out: &mut impl Sink,
    ) {
        let Some((port, header)) = self.address_frame(id, from, (1, packet.len())) else { return };
        out.frame(port, vnet, None, &[&header, packet]);
    }

    /// Where a frame for a device here goes out, and its header with the source that the device would see without a
    /// gateway. Counts the frame, and the packets and bytes that it stands for.
    pub(super) fn address_frame(
        &mut self,
        id: StationId,
        from: (Ipv4Addr, Option<MacAddr>),
        (packets, bytes): (usize, usize),
    ) -> Option<(PortId, [u8; ethernet::HEADER_LEN])> {
        let stand_in = nexthop::stand_in(self.identity.gateway);
        let station = self.stations.get(id)?;
        let member = from.1.unwrap_or(stand_in);
        let source = station.device.as_ref().map_or(member, |device| {
            nexthop::source_for(device, &station.next_hops, from.0, member, stand_in)
        });
        let header = ethernet::header(station.mac, source, ethernet::IPV4);
        let port = station.port;
        self.count_in(id, packets as u64, bytes as u64);
        self.stations.ports[port.index()].frames_out += 1;
        Some((port, header))
    }

    /// Answers an ARP request on a port, in the name of whoever has `owner`.
    pub(super) fn answer_arp(
        &mut self,
        port: PortId,
        request: &wire::arp::ArpPacket,
        owner: MacAddr,
        out: &mut impl Sink,
    ) {
        let reply = wire::arp::reply(request, owner);
        if let Some(state) = self.stations.ports.get_mut(port.index()) {
            state.frames_out += 1;
        }
        out.frame(port, VnetHeader::default(), None, &[&reply]);
    }
}
