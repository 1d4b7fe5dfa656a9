//! Into the tunnel: a frame becomes packets that fit, and those are sealed.

use std::time::Instant;

use anteroom_proto::verdict::DropReason;

use super::Engine;
use super::bulk::{self, Bulk};
use crate::batch::RxFrame;
use crate::gso::Packets;
use crate::lane::{Job, LaneId, Taken};
use crate::mss;
use crate::peer::{PeerSlot, Peers, Sent};
use crate::sink::Sink;
use crate::station::StationId;
use crate::target::Whose;
use crate::vnet::VnetHeader;
use crate::wire::FiveTuple;

/// What is sealed: an IPv4 packet in a frame, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct ToSeal {
    pub(super) peer: PeerSlot,
    /// Who is charged for drops.
    pub(super) station: StationId,
    /// Where the packet begins in the frame.
    pub(super) at: usize,
    /// Its length, without padding behind it.
    pub(super) len: usize,
    pub(super) tuple: FiveTuple,
    /// Whether it opens or accepts a TCP connection.
    pub(super) synchronises: bool,
    /// The lane that it takes.
    pub(super) lane: u8,
}

impl Engine {
    /// Seals the packet in a frame for a peer: cut, with whole checksums, and small enough for the tunnel.
    pub(super) fn seal(
        &mut self,
        frame: &mut RxFrame<'_>,
        what: &ToSeal,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let slot = what.peer;
        // Lanes lead where the peer is directly.
        let lane = if what.lane != 0 && self.peers.is_relayed(slot) { 0 } else { what.lane };
        let what = &ToSeal { lane, ..*what };
        let mtu = self.peers.limit(slot);
        self.peers.note_use(slot, what.len.min(mtu), now);
        let end = what.at + what.len;
        let partial = frame.vnet.flags & VnetHeader::FLAG_NEEDS_CSUM != 0;
        if what.synchronises
            && let Some(packet) = frame.bytes.get_mut(what.at..end)
        {
            mss::clamp(packet, u16::try_from(mtu).unwrap_or(u16::MAX), partial);
        }
        let Some(bytes) = frame.bytes.get_mut(what.at..end) else { return };
        if !partial && !frame.vnet.is_super_frame() {
            self.seal_packet(slot, what, bytes, mtu, now, out);
            return;
        }
        let lane = LaneId { peer: slot, lane: what.lane };
        if what.lane != 0 && all_fit(bytes, what.at, &frame.vnet, mtu) {
            let (vnet, network) = (frame.vnet, what.at);
            let job = Job { at: lane, vnet, network, limit: mtu, packet: &mut *bytes };
            match bulk::job(&mut self.bulk, job, now, out) {
                Ok(Taken::Yes) => return,
                Ok(Taken::NoSession) => {}
                Ok(Taken::NoRoom) => return self.charge(what, DropReason::QueueFull, now),
                Err(reason) => return self.charge(what, reason, now),
            }
        }
        let mut packets = match Packets::new(bytes, what.at, &frame.vnet, mtu) {
            Ok(packets) => packets,
            Err(reason) => return self.charge(what, reason, now),
        };
        if packets.longest() <= mtu
            && what.lane == 0
            && let Some(mut way) = self.peers.way(slot)
        {
            while let Some(packet) = packets.next() {
                way.send(packet, out);
            }
            return;
        }
        while let Some(packet) = packets.next() {
            self.seal_packet(slot, what, packet, mtu, now, out);
        }
    }

    fn charge(&mut self, what: &ToSeal, reason: DropReason, now: Instant) {
        self.recorder.drop(Some(what.station), reason, Some(what.tuple), now);
    }

    fn seal_packet(
        &mut self,
        slot: PeerSlot,
        what: &ToSeal,
        packet: &mut [u8],
        mtu: usize,
        now: Instant,
        out: &mut impl Sink,
    ) {
        if packet.len() <= mtu {
            self.send(slot, what, packet, now, out);
            return;
        }
        self.seal_in_pieces(slot, what, packet, now, out);
    }

    pub(super) fn send(
        &mut self,
        slot: PeerSlot,
        what: &ToSeal,
        packet: &mut [u8],
        now: Instant,
        out: &mut impl Sink,
    ) {
        let way = (slot, what.lane);
        let whose = Whose::of(packet);
        let sent = send(&mut self.peers, &mut self.bulk, way, (whose, packet), now, out);
        if let Sent::Dropped(reason) = sent {
            self.charge(what, reason, now);
        }
    }
}

/// Sends somebody's packet that fits to a peer through a lane; through lane 0 where that lane has no session.
pub(super) fn send(
    peers: &mut Peers,
    bulk: &mut Option<Box<Bulk>>,
    (peer, lane): (PeerSlot, u8),
    (whose, packet): (Whose, &mut [u8]),
    now: Instant,
    out: &mut impl Sink,
) -> Sent {
    if lane != 0 {
        let (vnet, limit) = (VnetHeader::default(), packet.len());
        let at = LaneId { peer, lane };
        let job = Job { at, vnet, network: 0, limit, packet: &mut *packet };
        match bulk::job(bulk, job, now, out) {
            Ok(Taken::Yes) => return Sent::Sealed,
            Ok(Taken::NoSession) => {}
            Ok(Taken::NoRoom) => return Sent::Dropped(DropReason::QueueFull),
            Err(reason) => return Sent::Dropped(reason),
        }
    }
    peers.send_for(whose, peer, packet, now, out)
}

/// Whether whatever a frame is cut into fits into `limit` bytes.
fn all_fit(packet: &mut [u8], network: usize, vnet: &VnetHeader, limit: usize) -> bool {
    match vnet.gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_NONE => packet.len() <= limit,
        VnetHeader::GSO_TCPV4 => true,
        _ => Packets::new(packet, network, vnet, limit).is_ok_and(|all| all.longest() <= limit),
    }
}
