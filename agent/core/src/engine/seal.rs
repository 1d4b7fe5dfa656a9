//! Into the tunnel: a frame becomes packets that fit, and those are sealed.

use std::time::Instant;

use super::Engine;
use crate::batch::RxFrame;
use crate::gso::Packets;
use crate::mss;
use crate::peer::{PeerSlot, Sent};
use crate::sink::Sink;
use crate::station::StationId;
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
        let mut packets = match Packets::new(bytes, what.at, &frame.vnet, mtu) {
            Ok(packets) => packets,
            Err(reason) => {
                self.recorder.drop(Some(what.station), reason, Some(what.tuple), now);
                return;
            }
        };
        if packets.longest() <= mtu
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

    fn seal_packet(
        &mut self,
        slot: PeerSlot,
        what: &ToSeal,
        packet: &[u8],
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

    fn send(
        &mut self,
        slot: PeerSlot,
        what: &ToSeal,
        packet: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) {
        if let Sent::Dropped(reason) = self.peers.send(slot, packet, now, out) {
            self.recorder.drop(Some(what.station), reason, Some(what.tuple), now);
        }
    }
}
