//! IPv4 packets in frames from device ports.

use std::time::Instant;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::Arrival;
use crate::batch::RxFrame;
use crate::engine::deliver::Whole;
use crate::engine::passage::{Decision, Passage, Via};
use crate::engine::pieces::Pieces;
use crate::engine::record::{EdgeKey, Traffic};
use crate::engine::seal::ToSeal;
use crate::engine::{Engine, Header};
use crate::flow::Count;
use crate::policy::{End, Policy, Who, refuse};
use crate::sink::Sink;
use crate::station::StationId;
use crate::vnet::VnetHeader;
use crate::wire::dhcp::MessageType;
use crate::wire::tcp::TcpFlags;
use crate::wire::{FiveTuple, Ipv4Packet, parse_ipv4};
use crate::{infrastructure, security};

impl Engine {
    pub(super) fn ipv4_from_port(
        &mut self,
        arrival: &Arrival,
        frame: &mut RxFrame<'_>,
        out: &mut impl Sink,
    ) {
        let Arrival { port, sender, stance, ref header, now } = *arrival;
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
            return self.dhcp_from_port(id, arrival, frame, out);
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
                return self.dhcp_to_server(id, arrival, Verdict::Clear, frame, out);
            }
            return self.recorder.drop(sender, reason, Some(tuple), now);
        }
        let group = packet.destination.is_broadcast() || packet.destination.is_multicast();
        if header.destination.is_group() || group {
            return self.group_from_port(id, arrival, frame, out);
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
        let decided = (&passage, decision);
        let facts = Facts::of(&packet);
        self.carry_out(id, arrival, decided, &facts, frame, out);
        for mut bytes in waiting {
            let mut later = RxFrame { vnet: VnetHeader::default(), vlan: None, bytes: &mut bytes };
            let Ok(packet) = parse_ipv4(later.bytes.get(header.at..).unwrap_or_default()) else {
                continue;
            };
            let facts = Facts::of(&packet);
            self.carry_out(id, arrival, decided, &facts, &mut later, out);
        }
    }

    /// Sends a packet where its verdict has it go.
    fn carry_out(
        &mut self,
        id: StationId,
        arrival: &Arrival,
        (passage, decision): (&Passage, Decision),
        facts: &Facts,
        frame: &mut RxFrame<'_>,
        out: &mut impl Sink,
    ) {
        let Arrival { port, ref header, now, .. } = *arrival;
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

    fn dhcp_from_port(
        &mut self,
        id: StationId,
        arrival: &Arrival,
        frame: &mut RxFrame<'_>,
        out: &mut impl Sink,
    ) {
        let Arrival { stance, ref header, now, .. } = *arrival;
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
            Err(reason) => refuse(stance, reason, Verdict::Clear),
        };
        self.dhcp_to_server(id, arrival, verdict, frame, out);
    }

    /// Records what a device says to a DHCP server in the clear, and sends it on if it may go.
    fn dhcp_to_server(
        &mut self,
        id: StationId,
        arrival: &Arrival,
        verdict: Verdict,
        frame: &mut RxFrame<'_>,
        out: &mut impl Sink,
    ) {
        let Arrival { port, stance, ref header, now, .. } = *arrival;
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
        let listed = |policy: &Policy| policy.infrastructure().dhcp.contains(&packet.destination);
        if infrastructure::is_dhcp_request(packet) && self.policy.as_ref().is_some_and(listed) {
            return self.dhcp_request(id, packet, now).map(Some);
        }
        Ok(None)
    }

    /// Broadcast and multicast: no rule carries it yet.
    fn group_from_port(
        &mut self,
        id: StationId,
        arrival: &Arrival,
        frame: &mut RxFrame<'_>,
        out: &mut impl Sink,
    ) {
        let Arrival { port, stance, ref header, now, .. } = *arrival;
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
        let verdict = refuse(stance, reason, Verdict::Clear);
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
            synchronises: flags.has(TcpFlags::SYN),
        }
    }
}

fn is_dhcp_broadcast(packet: &Ipv4Packet<'_>, header: &Header) -> bool {
    infrastructure::is_dhcp_request(packet)
        && (header.destination.is_group() || packet.destination.is_broadcast())
}
