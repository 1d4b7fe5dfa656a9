//! Frames from device ports.

use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::deliver::Whole;
use super::passage::{Decision, Passage, Via};
use super::pieces::Pieces;
use super::record::{EdgeKey, Traffic};
use super::seal::ToSeal;
use super::{Engine, Header, Kind};
use crate::batch::RxFrame;
use crate::flow::Count;
use crate::policy::{End, MemberIndex, Who};
use crate::port::PortId;
use crate::security;
use crate::sink::Sink;
use crate::station::StationId;
use crate::wire::arp::parse_arp;
use crate::wire::dhcp::MessageType;
use crate::wire::{FiveTuple, Ipv4Packet, ethernet, parse_ethernet, parse_ipv4};
use crate::{arp, bridge, infrastructure, nexthop};

impl Engine {
    /// A frame from a device port, through all stages.
    pub(super) fn port_frame(
        &mut self,
        port: PortId,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        if self.hit_from_port(port, frame, now, out) {
            return;
        }
        let header = match parse_ethernet(frame.bytes, frame.vlan) {
            Ok(parsed) => Header::of(&parsed),
            Err(reason) => return self.recorder.drop(None, reason, None, now),
        };
        if self.is_looped(port, &header, frame, now) {
            return self.recorder.drop(None, DropReason::Looped, tuple_of(&header, frame), now);
        }
        let sender = match self.identify(port, &header, now) {
            Ok(sender) => sender,
            Err(reason) => return self.recorder.drop(None, reason, tuple_of(&header, frame), now),
        };
        self.note_address(sender, &header, frame, now);
        let claim = self
            .claim(sender, &header, frame)
            .and_then(|address| self.follow_shared(sender, &header, address, now, out));
        self.sight(sender, &header, frame, (claim.ok().flatten(), now));
        let stance = sender
            .and_then(|id| self.stations.get(id))
            .map_or(Mode::Observe, crate::station::Station::stance);
        let confirmed = sender
            .and_then(|id| self.stations.get(id))
            .is_some_and(|station| station.device.is_some());
        if !confirmed && self.stations.port(port).is_some_and(crate::station::PortState::holds) {
            if let Some(station) = sender.and_then(|id| self.stations.get_mut(id)) {
                station.hold();
            }
            let tuple = tuple_of(&header, frame);
            return self.recorder.drop(sender, DropReason::UnknownMac, tuple, now);
        }
        if let Err(refusal) = claim {
            return self.refuse_claim(port, sender, &header, frame, (refusal, now));
        }
        if bridge::is_link_control(header.destination, header.ethertype, header.tagged) {
            return self.emit(PortId::UPLINK, Whole::of(frame), now, out);
        }
        if security::is_own(&self.config, header.destination) {
            let tuple = tuple_of(&header, frame);
            return self.recorder.drop(sender, DropReason::ToGateway, tuple, now);
        }
        if self.is_for_gateway(&header, frame) {
            let tuple = tuple_of(&header, frame);
            return self.recorder.drop(sender, DropReason::ToGateway, tuple, now);
        }
        let same_port = self
            .stations
            .find(header.destination)
            .and_then(|id| self.stations.get(id))
            .is_some_and(|station| station.port == port && !self.is_elsewhere(&header));
        if same_port {
            let tuple = tuple_of(&header, frame);
            return self.recorder.drop(sender, DropReason::SamePort, tuple, now);
        }
        if self.is_held(&header) {
            let tuple = tuple_of(&header, frame);
            return self.recorder.drop(sender, DropReason::UnknownMac, tuple, now);
        }
        match header.kind() {
            Kind::Arp => self.arp_from_port(port, sender, &header, frame, now, out),
            Kind::Ipv4 => self.ipv4_from_port(port, sender, stance, &header, frame, now, out),
            other if stance >= Mode::Enforce => {
                self.recorder.drop(sender, other.reason(&header), None, now);
            }
            _ => self.bridge_frame(port, sender, Whole::of(frame), now, out),
        }
    }

    /// Whether an IPv4 packet, well-formed or not, is for one of the gateway's own addresses.
    fn is_for_gateway(&self, header: &Header, frame: &RxFrame<'_>) -> bool {
        let at = header.at + 16;
        header.kind() == Kind::Ipv4
            && frame
                .bytes
                .get(at..)
                .and_then(|bytes| bytes.first_chunk::<4>())
                .is_some_and(|b| self.config.own_addresses.contains(&Ipv4Addr::from(*b).into()))
    }

    /// Whether a frame is for a station here that is held.
    fn is_held(&self, header: &Header) -> bool {
        if self.stations.absent(header.destination).is_some() {
            return true;
        }
        let to = self.stations.find(header.destination).and_then(|id| self.stations.get(id));
        to.is_some_and(|station| {
            station.device.is_none()
                && !self.is_elsewhere(header)
                && self.stations.port(station.port).is_some_and(crate::station::PortState::holds)
        })
    }

    /// Whether an unconfirmed station's address was heard on the uplink last.
    fn is_elsewhere(&self, header: &Header) -> bool {
        let confirmed = self
            .stations
            .find(header.destination)
            .and_then(|id| self.stations.get(id))
            .is_some_and(|station| station.device.is_some());
        !confirmed && self.bridge.knows(header.destination)
    }

    fn arp_from_port(
        &mut self,
        port: PortId,
        sender: Option<StationId>,
        header: &Header,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let parsed = parse_arp(frame.bytes.get(header.at..).unwrap_or_default());
        let patient = parsed.is_ok_and(|packet| self.waits_for_router(sender, &packet, now));
        let station = sender.and_then(|id| self.stations.get(id));
        let stance = station.map_or(Mode::Observe, crate::station::Station::stance);
        let (packet, outcome) = match (parsed, &self.policy, station) {
            (Ok(packet), Some(policy), Some(station)) => {
                let to_self = packet.target != packet.sender
                    && self.config.own_addresses.contains(&packet.target.into());
                if to_self {
                    return self.recorder.drop(sender, DropReason::ToGateway, None, now);
                }
                let own = station.device.as_ref().and_then(|device| policy.find(device.member));
                let stand_in = nexthop::stand_in(self.identity.gateway);
                let outcome = match own {
                    Some(own) if stance == Mode::Observe => {
                        arp::from_observed(policy, own, &packet)
                    }
                    Some(own) => {
                        let stand_in = (stand_in, patient);
                        arp::from_device(policy, own, station, header.source, &packet, stand_in)
                    }
                    None => arp::Outcome::PASS,
                };
                (packet, outcome)
            }
            (Err(reason), ..) if stance >= Mode::Enforce => {
                return self.recorder.drop(sender, reason, None, now);
            }
            _ => return self.bridge_frame(port, sender, Whole::of(frame), now, out),
        };
        if let Some(owner) = outcome.answer {
            self.answer_arp(port, &packet, owner, out);
        }
        match outcome.pass {
            Ok(()) if stance >= Mode::Enforce => {
                self.emit_uplink(sender, Whole::of(frame), None, now, out);
            }
            Ok(()) => self.bridge_frame(port, sender, Whole::of(frame), now, out),
            Err(reason) if outcome.answer.is_none() => {
                let tuple = FiveTuple {
                    protocol: 0,
                    source: packet.sender,
                    destination: packet.target,
                    source_port: 0,
                    destination_port: 0,
                };
                self.recorder.drop(sender, reason, Some(tuple), now);
            }
            Err(_) => {}
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what the stages before found out")]
    fn ipv4_from_port(
        &mut self,
        port: PortId,
        sender: Option<StationId>,
        stance: Mode,
        header: &Header,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let packet = match parse_ipv4(frame.bytes.get(header.at..).unwrap_or_default()) {
            Ok(packet) => packet,
            Err(reason) if stance >= Mode::Enforce => {
                return self.recorder.drop(sender, reason, None, now);
            }
            Err(_) => return self.bridge_frame(port, sender, Whole::of(frame), now, out),
        };
        let tuple = packet.tuple();
        let Some(id) = sender else {
            return self.bridge_frame(port, None, Whole::of(frame), now, out);
        };
        if is_dhcp_broadcast(&packet, header) {
            return self.dhcp_from_port(port, id, stance, frame, header, now, out);
        }
        let renews = match self.unicast_dhcp_from_port(id, &packet, now) {
            Ok(said) => said == Some(MessageType::Request),
            Err(reason) if stance >= Mode::Enforce => {
                return self.recorder.drop(sender, reason, Some(tuple), now);
            }
            Err(_) => false,
        };
        if let Some(device) = self.stations.get(id).and_then(|station| station.device.as_ref())
            && let Err(reason) = security::check_address(device, packet.source)
        {
            let in_clear = self.who(packet.destination) == Who::Address;
            let whole = packet.fragment.is_none() && !header.destination.is_group();
            if renews && in_clear && whole {
                // It may have a lease that nobody here knows of. The server is the one to say.
                return self.dhcp_to_server(
                    port,
                    id,
                    stance,
                    Verdict::Clear,
                    frame,
                    header,
                    now,
                    out,
                );
            }
            return self.recorder.drop(sender, reason, Some(tuple), now);
        }
        let group = packet.destination.is_broadcast() || packet.destination.is_multicast();
        if header.destination.is_group() || group {
            return self.group_from_port(port, id, stance, frame, header, now, out);
        }
        if stance >= Mode::Enforce && self.is_neighbour(port, packet.destination) {
            return self.recorder.drop(sender, DropReason::SamePort, Some(tuple), now);
        }
        let passage = self.passage_from_port(id, stance, header, &packet);
        let (packets, bytes) = header.amount(frame, &packet);
        let passage = Passage { packets, bytes, ..passage };
        let (decision, waiting) = match self.decide_pieces(&passage, id, &packet, frame.bytes, now)
        {
            Pieces::Go(decision, waiting) => (decision, waiting),
            Pieces::Held => return,
            Pieces::Drop(reason) => return self.recorder.drop(sender, reason, Some(tuple), now),
        };
        if decision.verdict.passes()
            && let Some(station) = self.stations.get_mut(id)
            && station.next_hops.used(packet.source, packet.destination, header.destination)
        {
            if let Some(sight) = station.sights.iter_mut().find(|s| s.vlan.is_none()) {
                sight.changed = true;
            }
            self.guard_router_of(id);
        }
        if decision.verdict.passes() {
            self.prove_from_port(id, header, frame, &packet);
        }
        let facts = Facts::of(&packet);
        self.carry_out(port, id, &passage, decision, &facts, header, frame, now, out);
        for mut bytes in waiting {
            let mut later =
                RxFrame { vnet: crate::vnet::VnetHeader::default(), vlan: None, bytes: &mut bytes };
            let Ok(packet) = parse_ipv4(later.bytes.get(header.at..).unwrap_or_default()) else {
                continue;
            };
            let facts = Facts::of(&packet);
            self.carry_out(port, id, &passage, decision, &facts, header, &mut later, now, out);
        }
    }

    /// Sends a packet where its verdict has it go.
    #[expect(clippy::too_many_arguments, reason = "what the stages before found out")]
    fn carry_out(
        &mut self,
        port: PortId,
        id: StationId,
        passage: &Passage,
        decision: Decision,
        facts: &Facts,
        header: &Header,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let tuple = Some(facts.tuple);
        match (decision.verdict, passage.destination.here) {
            (Verdict::Drop(reason), _) => self.recorder.drop(Some(id), reason, tuple, now),
            (Verdict::Tunnel, _) => {
                let Some(peer) = decision.peer.and_then(|gateway| self.peers.slot(gateway)) else {
                    return self.recorder.drop(Some(id), DropReason::TunnelDown, tuple, now);
                };
                let what = ToSeal {
                    peer,
                    station: id,
                    at: header.at,
                    len: facts.len,
                    tuple: facts.tuple,
                    synchronises: facts.synchronises,
                    lane: decision.lane,
                };
                self.seal(frame, &what, now, out);
            }
            (_, Some(to)) => {
                let direct = self.stations.get(to).is_some_and(|s| s.mac == header.destination);
                if direct {
                    let Some(port) = self.stations.get(to).map(|station| station.port) else {
                        return;
                    };
                    self.count_in(to, passage.packets, facts.len as u64);
                    self.emit(port, Whole::of(frame), now, out);
                } else {
                    let source = self.stations.get(id).map(|station| station.mac);
                    let end = header.at + facts.len;
                    let packet = frame.bytes.get(header.at..end).unwrap_or_default();
                    let vnet = frame.vnet;
                    self.deliver(to, (facts.tuple.source, source), vnet, packet, out);
                }
            }
            _ if passage.source.stance == Mode::Observe => {
                self.bridge_frame(port, Some(id), Whole::of(frame), now, out);
            }
            _ => self.emit_uplink(Some(id), Whole::of(frame), tuple, now, out),
        }
    }

    /// Where a packet from a port goes: to a station here, by its Ethernet address or, between devices that have
    /// left observe, by its IP address; or elsewhere.
    fn passage_from_port(
        &self,
        id: StationId,
        stance: Mode,
        header: &Header,
        packet: &Ipv4Packet<'_>,
    ) -> Passage {
        let source = self.end_here(id, packet.source);
        let by_mac = self.stations.find(header.destination).filter(|_| !self.is_elsewhere(header));
        let by_address = || {
            let policy = self.policy.as_ref().filter(|_| stance != Mode::Observe)?;
            let station = policy.member(policy.at(packet.destination)?)?.station?;
            let there = self.stations.get(station)?;
            let here = self.stations.get(id)?;
            (there.stance() != Mode::Observe && there.port != here.port).then_some(station)
        };
        let destination = match by_mac.or_else(by_address) {
            Some(to) => self.end_here(to, packet.destination),
            None => End::elsewhere(packet.destination, self.who(packet.destination)),
        };
        let bytes = packet.bytes.len() as u64;
        Passage { via: Via::Port, source, destination, packets: 1, bytes }
    }

    /// Whether a device on this port has an address.
    fn is_neighbour(&self, port: PortId, address: Ipv4Addr) -> bool {
        let station = || {
            let policy = self.policy.as_ref()?;
            self.stations.get(policy.member(policy.at(address)?)?.station?)
        };
        station().is_some_and(|station| station.port == port)
    }

    /// Who is meant by an address, as far as the view tells.
    pub(super) fn who(&self, address: Ipv4Addr) -> Who {
        self.policy.as_ref().map_or(Who::Address, |policy| policy.who(address))
    }

    /// A station as one end of a flow that uses `address`.
    pub(super) fn end_here(&self, id: StationId, address: Ipv4Addr) -> End {
        let device = self.stations.get(id).and_then(|station| station.device.as_ref());
        let port = self.stations.get(id).and_then(|station| self.stations.port(station.port));
        let member = |device: &crate::device::Device| -> Option<MemberIndex> {
            self.policy.as_ref()?.find(device.member)
        };
        let who = match device.filter(|device| device.owns(address)).and_then(member) {
            Some(index) => Who::Member(index),
            // An address that isn't the station's own gives it nobody's rights, an external's neither.
            None => Who::Impostor,
        };
        End {
            address,
            who,
            here: Some(id),
            stance: device.map_or(Mode::Observe, |device| device.stance),
            shared: port.and_then(|port| port.mode).unwrap_or(Mode::Observe),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what the stages before found out")]
    fn dhcp_from_port(
        &mut self,
        port: PortId,
        id: StationId,
        stance: Mode,
        frame: &mut RxFrame<'_>,
        header: &Header,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let Ok(packet) = parse_ipv4(frame.bytes.get(header.at..).unwrap_or_default()) else {
            return;
        };
        // Under DHCP's ports nothing goes to anybody whom DHCP doesn't concern.
        let to_server = packet.destination.is_broadcast()
            || self
                .policy
                .as_ref()
                .is_some_and(|policy| policy.infrastructure().dhcp.contains(&packet.destination));
        let to_everybody = header.destination == MacAddr::BROADCAST;
        let checked = match stance {
            Mode::Unrecognised => Err(DropReason::Dhcp),
            _ if !(to_server && to_everybody) => Err(DropReason::Dhcp),
            _ => self.dhcp_request(id, &packet, now),
        };
        let verdict = match checked {
            Ok(_) => Verdict::Clear,
            Err(reason) => crate::policy::refuse(stance, reason, Verdict::Clear),
        };
        self.dhcp_to_server(port, id, stance, verdict, frame, header, now, out);
    }

    /// Records what a device says to a DHCP server in the clear, and sends it on if it may go.
    #[expect(clippy::too_many_arguments, reason = "what the stages before found out")]
    fn dhcp_to_server(
        &mut self,
        port: PortId,
        id: StationId,
        stance: Mode,
        verdict: Verdict,
        frame: &mut RxFrame<'_>,
        header: &Header,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let Ok(packet) = parse_ipv4(frame.bytes.get(header.at..).unwrap_or_default()) else {
            return;
        };
        let (tuple, len) = (packet.tuple(), packet.bytes.len());
        self.note_group(id, &tuple, len as u64, verdict, now);
        match verdict {
            Verdict::Drop(reason) => self.recorder.drop(Some(id), reason, Some(tuple), now),
            _ if stance >= Mode::Enforce => {
                self.emit_uplink(Some(id), Whole::of(frame), Some(tuple), now, out);
            }
            _ => self.bridge_frame(port, Some(id), Whole::of(frame), now, out),
        }
    }

    /// DHCP that a device sends to one machine alone: as a client to a listed server, or as if it were a server.
    /// Returns what it says as a client.
    fn unicast_dhcp_from_port(
        &mut self,
        id: StationId,
        packet: &Ipv4Packet<'_>,
        now: Instant,
    ) -> Result<Option<MessageType>, DropReason> {
        if infrastructure::is_dhcp_answer(packet) {
            return self.dhcp_server_here(id, packet, now).map(|()| None);
        }
        let listed = |policy: &crate::policy::Policy| {
            policy.infrastructure().dhcp.contains(&packet.destination)
        };
        if infrastructure::is_dhcp_request(packet) && self.policy.as_ref().is_some_and(listed) {
            return self.dhcp_request(id, packet, now).map(Some);
        }
        Ok(None)
    }

    /// Broadcast and multicast: no rule carries it yet.
    #[expect(clippy::too_many_arguments, reason = "what the stages before found out")]
    fn group_from_port(
        &mut self,
        port: PortId,
        id: StationId,
        stance: Mode,
        frame: &mut RxFrame<'_>,
        header: &Header,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let Ok(packet) = parse_ipv4(frame.bytes.get(header.at..).unwrap_or_default()) else {
            return;
        };
        let (tuple, len) = (packet.tuple(), packet.bytes.len());
        let reason = if infrastructure::is_dhcp_answer(&packet)
            && self.dhcp_server_here(id, &packet, now).is_err()
        {
            DropReason::Dhcp
        } else {
            DropReason::Broadcast
        };
        let verdict = crate::policy::refuse(stance, reason, Verdict::Clear);
        self.note_group(id, &tuple, len as u64, verdict, now);
        if let Verdict::Drop(reason) = verdict {
            self.recorder.drop(Some(id), reason, Some(tuple), now);
        } else {
            self.bridge_frame(port, Some(id), Whole::of(frame), now, out);
        }
    }

    /// Adds a packet that makes no flow to its edge.
    fn note_group(
        &mut self,
        id: StationId,
        tuple: &FiveTuple,
        bytes: u64,
        verdict: Verdict,
        now: Instant,
    ) {
        let Some(station) = self.stations.get(id) else { return };
        let key = EdgeKey {
            mac: station.mac,
            member: station.device.as_ref().map(|device| device.member),
            local: tuple.source,
            remote: tuple.destination,
            remote_member: None,
            outbound: true,
            protocol: tuple.protocol,
            port: tuple.destination_port,
            verdict,
            rule: None,
            folded: false,
        };
        let counts = [Count { packets: 1, bytes }, Count::default()];
        let share = self.stations.share(id);
        self.recorder.edge(share, key, &Traffic { flows: 0, counts, first: now, last: now });
    }
}

/// What sending must know of a packet, without borrowing its bytes.
#[derive(Debug, Clone, Copy)]
struct Facts {
    tuple: FiveTuple,
    len: usize,
    synchronises: bool,
}

impl Facts {
    fn of(packet: &Ipv4Packet<'_>) -> Self {
        let flags = packet.tcp_flags();
        Self {
            tuple: packet.tuple(),
            len: packet.bytes.len(),
            synchronises: flags.has(crate::wire::tcp::TcpFlags::SYN),
        }
    }
}

fn is_dhcp_broadcast(packet: &Ipv4Packet<'_>, header: &Header) -> bool {
    infrastructure::is_dhcp_request(packet)
        && (header.destination.is_group() || packet.destination.is_broadcast())
}

/// The 5-tuple of a frame, as far as it has one: for what is remembered about drops.
pub(super) fn tuple_of(header: &Header, frame: &RxFrame<'_>) -> Option<FiveTuple> {
    let payload = frame.bytes.get(header.at..)?;
    match header.ethertype {
        ethernet::IPV4 => parse_ipv4(payload).ok().map(|packet| packet.tuple()),
        _ => None,
    }
}
