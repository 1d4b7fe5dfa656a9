//! Datagrams from the underlay, and the packets in them.

use std::time::Instant;

use anteroom_proto::id::GatewayId;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::Engine;
use super::passage::{Passage, Via};
use super::pieces::Pieces;
use crate::batch::RxDatagram;
use crate::mss;
use crate::peer::{Opened, SCRATCH_LEN};
use crate::policy::{End, Who};
use crate::sink::Sink;
use crate::station::StationId;
use crate::vnet::VnetHeader;
use crate::wire::parse_ipv4;
use crate::wire::tcp::TcpFlags;

impl Engine {
    /// The datagrams of one buffer.
    pub(super) fn underlay_datagrams(
        &mut self,
        received: &RxDatagram<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(SCRATCH_LEN, 0);
        for datagram in received.bytes.chunks(received.segment.max(1)) {
            match self.peers.open(received.from, datagram, &mut scratch, now, out) {
                Opened::Packet { peer, packet } => {
                    let gateway = self.peers.get(peer).map(crate::peer::Peer::gateway);
                    if let Some(gateway) = gateway {
                        self.tunnel_packet(gateway, packet, now, out);
                    }
                }
                Opened::Handled => {}
                Opened::Dropped(reason) => self.recorder.drop(None, reason, None, now),
            }
        }
        self.scratch = scratch;
    }

    /// A packet that a peer's tunnel carried, through all stages.
    fn tunnel_packet(
        &mut self,
        gateway: GatewayId,
        bytes: &mut [u8],
        now: Instant,
        out: &mut impl Sink,
    ) {
        let packet = match parse_ipv4(bytes) {
            Ok(packet) => packet,
            Err(reason) => return self.recorder.drop(None, reason, None, now),
        };
        let (tuple, len) = (packet.tuple(), packet.bytes.len());
        let Some(policy) = &self.policy else {
            return self.recorder.drop(None, DropReason::PeerDestination, Some(tuple), now);
        };
        let Some(source) = policy.of_peer(gateway, packet.source) else {
            return self.recorder.drop(None, DropReason::PeerSource, Some(tuple), now);
        };
        let member = policy.member(source).map(|member| member.mac);
        let station = policy
            .at(packet.destination)
            .and_then(|index| policy.member(index))
            .and_then(|member| member.station);
        let Some(id) = station else {
            return self.recorder.drop(None, DropReason::PeerDestination, Some(tuple), now);
        };
        if crate::infrastructure::is_dhcp_answer(&packet) {
            // From a server that is a member itself. Whether it may speak is a rule's matter.
            let _ = self.dhcp_answer(id, &packet, now);
        }
        let passage = Passage {
            via: Via::Tunnel(gateway),
            source: End::elsewhere(packet.source, Who::Member(source)),
            destination: self.end_here(id, packet.destination),
            packets: 1,
        };
        let (decision, waiting) = match self.decide_pieces(&passage, id, &packet, packet.bytes, now)
        {
            Pieces::Go(decision, waiting) => (decision, waiting),
            Pieces::Held => return,
            Pieces::Drop(reason) => return self.recorder.drop(Some(id), reason, Some(tuple), now),
        };
        if let Verdict::Drop(reason) = decision.verdict {
            return self.recorder.drop(Some(id), reason, Some(tuple), now);
        }
        let synchronises = packet.tcp_flags().has(TcpFlags::SYN);
        let Some(bytes) = bytes.get_mut(..len) else { return };
        if synchronises {
            mss::clamp(bytes, self.config.limits.tunnel_mtu, false);
        }
        self.hand_over(id, (tuple.source, member), bytes, out);
        for later in waiting {
            self.hand_over(id, (tuple.source, member), &later, out);
        }
    }

    fn hand_over(
        &mut self,
        id: StationId,
        from: (std::net::Ipv4Addr, Option<anteroom_proto::mac::MacAddr>),
        packet: &[u8],
        out: &mut impl Sink,
    ) {
        self.deliver(id, from, VnetHeader::default(), packet, out);
    }
}
