//! Datagrams from the underlay, and the packets in them.

use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::Engine;
use super::passage::{Passage, Via};
use super::pieces::Pieces;
use crate::batch::RxDatagram;
use crate::coalesce::{Held, MAX_PACKETS, Run, Segment, Span};
use crate::mss;
use crate::peer::{self, Opened, Peer, PeerSlot};
use crate::policy::{End, Who};
use crate::sink::Sink;
use crate::station::StationId;
use crate::target::Target;
use crate::vnet::VnetHeader;
use crate::wire::ipv4::{TCP, UDP};
use crate::wire::tcp::TcpFlags;
use crate::wire::{Ipv4Packet, parse_ipv4};

/// For whom a packet is, and from whom it seems to come.
struct Admitted {
    station: StationId,
    from: (Ipv4Addr, Option<MacAddr>),
    /// Fragments that waited for it.
    waiting: Vec<Box<[u8]>>,
}

impl Engine {
    /// The datagrams of one buffer. Packets that can be merged with what follows them stay in `held`.
    pub(super) fn underlay_datagrams(
        &mut self,
        received: &RxDatagram<'_>,
        held: &mut Held,
        now: Instant,
        out: &mut impl Sink,
    ) {
        for datagram in received.bytes.chunks(received.segment.max(1)) {
            self.sealed_datagram(received.from.into(), datagram, held, now, out);
        }
    }

    /// One datagram, from wherever it came.
    pub(super) fn sealed_datagram(
        &mut self,
        from: Target,
        datagram: &[u8],
        held: &mut Held,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let wanted = peer::open_room(datagram.len());
        if held.room(wanted).is_none() {
            self.let_go(held, now, out);
        }
        let room = held.room(wanted).unwrap_or_default();
        match self.open(from, datagram, room, now, out) {
            Opened::Packet { peer, packet } => {
                let len = packet.len();
                let span = held.keep(len);
                self.tunnel_packet(peer, span, held, now, out);
            }
            Opened::Whole { peer, packet } => {
                self.take_packet(peer, &packet, held, now, out);
                self.peers.give_back(packet);
            }
            Opened::Handled => {}
            Opened::Dropped(reason) => self.recorder.drop(None, reason, None, now),
        }
    }

    /// Takes a packet that lies elsewhere than in `held`.
    pub(super) fn take_packet(
        &mut self,
        peer: PeerSlot,
        packet: &[u8],
        held: &mut Held,
        now: Instant,
        out: &mut impl Sink,
    ) {
        if held.room(packet.len()).is_none() {
            self.let_go(held, now, out);
        }
        if let Some(room) = held.room(packet.len()).and_then(|room| room.get_mut(..packet.len())) {
            room.copy_from_slice(packet);
            let span = held.keep(packet.len());
            self.tunnel_packet(peer, span, held, now, out);
        }
    }

    /// Sends on what is held back.
    pub(super) fn let_go(&mut self, held: &mut Held, now: Instant, out: &mut impl Sink) {
        while let Some(run) = held.take() {
            self.run(run, held, now, out);
        }
        held.clear();
    }

    /// A packet that a peer's tunnel carried. It waits for others of its flow in the same batch, or goes at once,
    /// behind those that it might overtake.
    pub(super) fn tunnel_packet(
        &mut self,
        peer: PeerSlot,
        span: Span,
        held: &mut Held,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let packet = match parse_ipv4(held.packet(span)) {
            Ok(packet) => packet,
            Err(reason) => return self.recorder.drop(None, reason, None, now),
        };
        // What lies behind the packet belongs to none.
        let span = span.shortened(packet.bytes.len());
        if let Some(segment) = Segment::of(&packet) {
            if let Some(run) = held.hold(peer, span, &segment) {
                self.run(run, held, now, out);
            }
            return;
        }
        let tuple = packet.tuple();
        let has_ports = matches!(packet.protocol, TCP | UDP) && packet.fragment.is_none();
        while let Some(run) = held.take_before(peer, &tuple, has_ports) {
            self.run(run, held, now, out);
        }
        self.single(peer, span, held, now, out);
    }

    /// A packet by itself, through all stages.
    fn single(
        &mut self,
        peer: PeerSlot,
        span: Span,
        held: &mut Held,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let Ok(packet) = parse_ipv4(held.packet(span)) else { return };
        let amount = (1, packet.bytes.len());
        let (len, synchronises) = (packet.bytes.len(), packet.tcp_flags().has(TcpFlags::SYN));
        let Some(admitted) = self.admit_packet(peer, &packet, amount, now) else { return };
        let Some(bytes) = held.packet_mut(span).get_mut(..len) else { return };
        if synchronises {
            let limit = u16::try_from(self.peers.limit(peer)).unwrap_or(u16::MAX);
            mss::clamp(bytes, limit, false);
        }
        let Admitted { station, from, waiting } = admitted;
        self.deliver(station, from, VnetHeader::default(), bytes, out);
        for later in waiting {
            self.deliver(station, from, VnetHeader::default(), &later, out);
        }
    }

    /// Packets of one flow through all stages: the first stands for them all, since the others differ from it in
    /// nothing that a verdict or a flow's state depends on.
    fn run(&mut self, run: Run, held: &mut Held, now: Instant, out: &mut impl Sink) {
        if let [only] = *run.parts() {
            self.single(run.peer(), only, held, now, out);
            return held.forget(run);
        }
        self.merged(&run, held, now, out);
        held.forget(run);
    }

    fn merged(&mut self, run: &Run, held: &Held, now: Instant, out: &mut impl Sink) {
        let Some(Ok(packet)) = run.parts().first().map(|first| parse_ipv4(held.packet(*first)))
        else {
            return;
        };
        let amount = (run.packets(), run.bytes());
        let Some(admitted) = self.admit_packet(run.peer(), &packet, amount, now) else { return };
        let Admitted { station, from, .. } = admitted;
        let observed = self.stations.get(station).is_none_or(|s| s.stance() == Mode::Observe);
        let merged = if observed { None } else { held.merge(run) };
        let Some(merged) = merged else {
            for part in run.parts() {
                self.deliver(station, from, VnetHeader::default(), held.packet(*part), out);
            }
            return;
        };
        let Some((port, header)) = self.address_frame(station, from, amount) else { return };
        let mut parts: [&[u8]; MAX_PACKETS + 2] = [&[]; MAX_PACKETS + 2];
        (parts[0], parts[1]) = (&header, merged.headers());
        for (place, part) in parts[2..].iter_mut().zip(run.parts()) {
            *place = held.payload(run, *part);
        }
        let parts = parts.get(..run.packets() + 2).unwrap_or_default();
        out.frame(port, merged.vnet, None, parts);
    }

    /// Whether a packet, or those of its flow that follow it, may go on, and where to. Counts it and them.
    fn admit_packet(
        &mut self,
        peer: PeerSlot,
        packet: &Ipv4Packet<'_>,
        (packets, bytes): (usize, usize),
        now: Instant,
    ) -> Option<Admitted> {
        let amount = (packets as u64, bytes as u64);
        if let Some((station, mac)) = self.hit_from_tunnel(peer, packet, amount, now) {
            let from = (packet.source, Some(mac));
            return Some(Admitted { station, from, waiting: Vec::new() });
        }
        let gateway = self.peers.get(peer).map(Peer::gateway)?;
        let tuple = packet.tuple();
        let refuse = |engine: &mut Self, station: Option<StationId>, reason: DropReason| {
            for _ in 0..packets {
                engine.recorder.drop(station, reason, Some(tuple), now);
            }
            None
        };
        let Some(policy) = &self.policy else {
            return refuse(self, None, DropReason::PeerDestination);
        };
        let Some(source) = policy.of_peer(gateway, packet.source) else {
            return refuse(self, None, DropReason::PeerSource);
        };
        let member = policy.member(source).map(|member| member.mac);
        let station = policy
            .at(packet.destination)
            .and_then(|index| policy.member(index))
            .and_then(|member| member.station);
        let Some(id) = station else {
            return refuse(self, None, DropReason::PeerDestination);
        };
        if crate::infrastructure::is_dhcp_answer(packet) {
            // From a server that is a member itself. Whether it may speak is a rule's matter.
            let _ = self.dhcp_answer(id, packet, now);
        }
        let passage = Passage {
            via: Via::Tunnel(gateway),
            source: End::elsewhere(packet.source, Who::Member(source)),
            destination: self.end_here(id, packet.destination),
            packets: packets as u64,
            bytes: bytes as u64,
        };
        let (decision, waiting) = match self.decide_pieces(&passage, id, packet, packet.bytes, now)
        {
            Pieces::Go(decision, waiting) => (decision, waiting),
            Pieces::Held => return None,
            Pieces::Drop(reason) => return refuse(self, Some(id), reason),
        };
        if let Verdict::Drop(reason) = decision.verdict {
            return refuse(self, Some(id), reason);
        }
        if let Some(mac) = member {
            self.prove_from_tunnel(id, (peer, mac), packet);
        }
        Some(Admitted { station: id, from: (tuple.source, member), waiting })
    }
}
