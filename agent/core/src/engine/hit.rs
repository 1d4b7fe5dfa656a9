//! The short cut for packets of flows that are known: what the stages found out about a flow's packet holds for its
//! next one, as long as that differs in nothing that they look at and nothing that they go by has changed.
//!
//! A [`Proof`] is left with the flow once a packet has come through all stages. It names whatever of a packet isn't
//! in the flow's key, and bears a stamp: the sum of the counters of everything that stages go by. They only grow, so
//! the same sum means that none has. What isn't covered takes the long way: tags, fragments, options, SYN, ICMP, DHCP,
//! flows between two devices here, shared addresses, stations that nobody confirmed.
//!
//! Nothing that takes it can be a frame that went to everybody and came back ([`crate::echo`]). Such a frame never
//! leaves by the port of the confirmed device that it is from, nor is one for a confirmed device here ever sent to
//! everybody; and what takes the short cut leaves by one port, so that it can't become more by going round.

use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::Verdict;

use super::deliver::Whole;
use super::seal::ToSeal;
use super::{Engine, Header};
use crate::batch::RxFrame;
use crate::flow::{FlowIndex, FlowKey, Passed, Proof, Side, State, Zone};
use crate::nexthop;
use crate::peer::PeerSlot;
use crate::port::PortId;
use crate::sink::Sink;
use crate::station::{Station, StationId};
use crate::wire::tcp::TcpFlags;
use crate::wire::{Ipv4Packet, Transport, dhcp, ethernet, ipv4, parse_ethernet, parse_ipv4};

/// Whether nothing about a packet asks for more than its flow's verdict.
#[inline]
fn is_plain(packet: &Ipv4Packet<'_>) -> bool {
    let usual = match packet.transport {
        Transport::Tcp { flags, .. } => !flags.has(TcpFlags::SYN),
        Transport::Udp => {
            let of_dhcp = |port| port == dhcp::CLIENT_PORT || port == dhcp::SERVER_PORT;
            !of_dhcp(packet.source_port) && !of_dhcp(packet.destination_port)
        }
        _ => false,
    };
    usual && packet.fragment.is_none() && packet.header_len == ipv4::MIN_HEADER_LEN
}

/// A frame that may take the short cut: untagged, with a plain packet.
#[inline]
pub(super) fn plain_frame<'a>(frame: &'a RxFrame<'_>) -> Option<(Header, Ipv4Packet<'a>)> {
    let header = Header::of(&parse_ethernet(frame.bytes, frame.vlan).ok()?);
    let untagged = frame.vlan.is_none() && header.at == ethernet::HEADER_LEN;
    if !untagged || header.ethertype != ethernet::IPV4 {
        return None;
    }
    let packet = parse_ipv4(frame.bytes.get(header.at..)?).ok()?;
    is_plain(&packet).then_some((header, packet))
}

impl Engine {
    /// Whether tests want to know what becomes of packets without the short cut.
    const fn goes_the_long_way(&self) -> bool {
        #[cfg(test)]
        if self.long_way {
            return true;
        }
        false
    }

    /// The sum of the counters of what stages go by, as far as it concerns a station here.
    fn stamp(&self, station: &Station) -> u64 {
        self.epoch + self.stations.changes() + station.next_hops.changes()
    }

    /// Sends a frame from a port on, if its flow has a proof for it. Says whether it did.
    pub(super) fn hit_from_port(
        &mut self,
        port: PortId,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) -> bool {
        if self.goes_the_long_way() {
            return false;
        }
        let Some((header, packet)) = plain_frame(frame) else { return false };
        let Some(id) = self.stations.find(header.source) else { return false };
        let Some(station) = self.stations.get(id) else { return false };
        let Some(device) = station.device.as_ref().filter(|_| station.port == port) else {
            return false;
        };
        let tuple = packet.tuple();
        let (key, upwards) = FlowKey::new(Zone::outside(id), &tuple);
        let Some(at) = self.flows.find(&key) else { return false };
        let Some(flow) = self.flows.get(at) else { return false };
        let Some(proof) = flow.proof(Side::Leaving) else { return false };
        if proof.stamp != self.stamp(station) || proof.mac != header.destination {
            return false;
        }
        let (tunnel, forward) = (flow.verdict == Verdict::Tunnel, flow.is_forward(upwards));
        let observed = device.stance == Mode::Observe;
        if !tunnel && observed && !self.bridge.knows(header.destination) {
            return false;
        }
        // Nothing stands in its way from here on.
        if device.held.contains(&packet.source) {
            self.holdings.heard(device.member, packet.source, now);
        }
        let wall = self.clock.wall(now);
        let passed = header.amount(frame, &packet);
        let len = packet.bytes.len();
        self.advance(at, forward, &packet, passed, now);
        let lane = if tunnel { self.choose_lane(at, (id, proof.peer), len, now) } else { 0 };
        if let Some(station) = self.stations.get_mut(id) {
            station.counts[0].add(1, (frame.bytes.len() - header.at) as u64);
            station.hear_again(wall, now);
        }
        if tunnel {
            let what = ToSeal {
                peer: proof.peer,
                station: id,
                at: header.at,
                len,
                tuple,
                synchronises: false,
                lane,
            };
            self.seal(frame, &what, now, out);
        } else {
            self.put(PortId::UPLINK, Whole::of(frame), out);
        }
        true
    }

    /// Hands a frame from the uplink on, if its flow has a proof for it. Says whether it did.
    pub(super) fn hit_from_uplink(
        &mut self,
        frame: &RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) -> bool {
        if self.goes_the_long_way() {
            return false;
        }
        let Some((header, packet)) = plain_frame(frame) else { return false };
        let Some(id) = self.stations.find(header.destination) else { return false };
        let Some(station) = self.stations.get(id) else { return false };
        let (key, upwards) = FlowKey::new(Zone::outside(id), &packet.tuple());
        let Some(at) = self.flows.find(&key) else { return false };
        let Some(flow) = self.flows.get(at) else { return false };
        let Some(proof) = flow.proof(Side::Coming) else { return false };
        if proof.stamp != self.stamp(station)
            || proof.mac != header.source
            || proof.peer != PeerSlot::NONE
        {
            return false;
        }
        let (port, forward) = (station.port, flow.is_forward(upwards));
        if !self.bridge.hear(header.source, now) {
            self.recorder.overflow();
        }
        let passed = header.amount(frame, &packet);
        self.advance(at, forward, &packet, passed, now);
        self.count_in(id, 1, frame.bytes.len() as u64);
        self.put(port, Whole::of(frame), out);
        true
    }

    /// Who a packet out of a peer's tunnel is for, and from which Ethernet address it comes, if its flow has a proof
    /// for it. It is accounted for then. `passed`: the packets and bytes that it stands for.
    pub(super) fn hit_from_tunnel(
        &mut self,
        peer: PeerSlot,
        packet: &Ipv4Packet<'_>,
        passed: (u64, u64),
        now: Instant,
    ) -> Option<(StationId, MacAddr)> {
        if self.goes_the_long_way() || !is_plain(packet) {
            return None;
        }
        let id = self.station_at(packet.destination)?;
        let (key, upwards) = FlowKey::new(Zone::outside(id), &packet.tuple());
        let at = self.flows.find(&key)?;
        let flow = self.flows.get(at)?;
        let proof = flow.proof(Side::Coming)?;
        if proof.stamp != self.stamp(self.stations.get(id)?) || proof.peer != peer {
            return None;
        }
        let forward = flow.is_forward(upwards);
        self.advance(at, forward, packet, passed, now);
        Some((id, proof.mac))
    }

    /// Where the device with this address is, if it is here.
    fn station_at(&self, address: Ipv4Addr) -> Option<StationId> {
        let policy = self.policy.as_ref()?;
        policy.member(policy.at(address)?)?.station
    }

    /// Accounts for a packet of a flow that passes.
    fn advance(
        &mut self,
        at: FlowIndex,
        forward: bool,
        packet: &Ipv4Packet<'_>,
        (packets, bytes): (u64, u64),
        now: Instant,
    ) {
        #[cfg(test)]
        {
            self.short_cuts += 1;
        }
        let passed = Passed { forward, packets, bytes };
        let much = self.flows.account(at, &passed, now, |flow| {
            flow.tracker.next(flow.state, packet.protocol, packet.tcp_flags(), forward)
        });
        if much {
            self.record(at);
        }
    }

    /// Leaves a proof for the packets that follow this one of a device here, which came through all stages.
    pub(super) fn prove_from_port(
        &mut self,
        id: StationId,
        header: &Header,
        frame: &RxFrame<'_>,
        packet: &Ipv4Packet<'_>,
    ) {
        let untagged = frame.vlan.is_none() && header.at == ethernet::HEADER_LEN;
        let to = header.destination;
        let elsewhere =
            self.stations.find(to).is_none() && to != nexthop::stand_in(self.identity.gateway);
        let shared = self.policy.as_ref().is_none_or(|policy| policy.is_shared(packet.source));
        let device = self.stations.get(id).and_then(|station| station.device.as_ref());
        // What uses an address that isn't its own is looked at each time.
        let owns = device.is_some_and(|device| device.owns(packet.source));
        if !untagged || !elsewhere || shared || !owns {
            return;
        }
        let Some((at, stamp)) = self.provable(id, packet) else { return };
        let Some(judgement) = self.flows.judgement(at) else { return };
        let peer = match (judgement.verdict, judgement.peer) {
            (Verdict::Tunnel, Some(gateway)) => match self.peers.slot(gateway) {
                Some(slot) => slot,
                None => return,
            },
            (Verdict::Tunnel, None) => return,
            // The next packet may find that the flow can have its tunnel.
            (_, Some(_)) => return,
            (_, None) => PeerSlot::NONE,
        };
        self.leave_proof(at, Side::Leaving, Proof { stamp, peer, mac: to });
    }

    /// The same for packets from the uplink.
    pub(super) fn prove_from_uplink(
        &mut self,
        id: StationId,
        header: &Header,
        frame: &RxFrame<'_>,
        packet: &Ipv4Packet<'_>,
    ) {
        let untagged = frame.vlan.is_none() && header.at == ethernet::HEADER_LEN;
        let Some((at, stamp)) = self.provable(id, packet).filter(|_| untagged) else { return };
        let judgement = self.flows.judgement(at);
        if judgement.is_some_and(|j| j.peer.is_none() && j.verdict != Verdict::Tunnel) {
            let proof = Proof { stamp, peer: PeerSlot::NONE, mac: header.source };
            self.leave_proof(at, Side::Coming, proof);
        }
    }

    /// The same for packets out of a peer's tunnel that come from the member with this Ethernet address.
    pub(super) fn prove_from_tunnel(
        &mut self,
        id: StationId,
        (peer, mac): (PeerSlot, MacAddr),
        packet: &Ipv4Packet<'_>,
    ) {
        let Some((at, stamp)) = self.provable(id, packet) else { return };
        let Some(judgement) = self.flows.judgement(at) else { return };
        let owner = self.peers.get(peer).map(crate::peer::Peer::gateway);
        if judgement.verdict == Verdict::Tunnel && judgement.owner == owner {
            self.leave_proof(at, Side::Coming, Proof { stamp, peer, mac });
        }
    }

    /// The flow of a plain packet between a confirmed device here and somebody elsewhere, if its verdict is in force
    /// and lets it pass; and the stamp that it bears now.
    fn provable(&self, id: StationId, packet: &Ipv4Packet<'_>) -> Option<(FlowIndex, u64)> {
        if !is_plain(packet) {
            return None;
        }
        let station = self.stations.get(id)?;
        station.device.as_ref()?;
        let (key, _) = FlowKey::new(Zone::outside(id), &packet.tuple());
        let at = self.flows.find(&key)?;
        let flow = self.flows.get(at)?;
        let passes = flow.verdict.passes()
            && flow.verdict.reason().is_none()
            && flow.state != State::Dropped
            && flow.epoch == self.epoch;
        passes.then(|| (at, self.stamp(station)))
    }

    fn leave_proof(&mut self, at: FlowIndex, side: Side, proof: Proof) {
        if let Some(flow) = self.flows.get_mut(at) {
            flow.prove(side, proof);
        }
    }
}
