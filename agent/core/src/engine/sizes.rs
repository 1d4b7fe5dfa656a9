//! Packets that don't fit the path to a peer in one piece.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::Engine;
use super::seal::{ToSeal, send};
use crate::fragment::Fragments;
use crate::peer::{PeerSlot, Sent};
use crate::sink::Sink;
use crate::station::StationId;
use crate::vnet::VnetHeader;
use crate::wire::icmp::{self, MAX_ERROR_LEN};
use crate::wire::parse_ipv4;

/// Least time between two "too big" messages to one device about one destination.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// Places for devices and destinations. Those that meet in one share it.
const PLACES: usize = 256;

/// Who was lately told that a packet was too big.
#[derive(Debug)]
pub(super) struct Told(Vec<Option<Instant>>);

impl Default for Told {
    fn default() -> Self {
        Self(vec![None; PLACES])
    }
}

impl Told {
    /// Whether a device may be told of a destination now.
    fn may(&mut self, station: StationId, destination: Ipv4Addr, now: Instant) -> bool {
        let key = (u64::from(station.0) << 32) ^ u64::from(destination.to_bits());
        // The top bits of a product by an odd constant depend on all bits of the key.
        let place = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % PLACES;
        let Some(last) = self.0.get_mut(place) else { return false };
        if last.is_some_and(|at| now.saturating_duration_since(at) < TELL_AGAIN) {
            return false;
        }
        *last = Some(now);
        true
    }
}

impl Engine {
    /// Tells how many bytes of IP the underlay's interface carries in one piece.
    pub fn set_underlay_mtu(&mut self, mtu: u16, now: Instant) {
        self.peers.set_sizes(mtu, self.config.limits.tunnel_mtu, now);
    }

    /// Tells that the underlay's socket found a datagram to this address too large for the way there.
    pub fn note_too_big(&mut self, to: SocketAddr, now: Instant) {
        self.peers.suspect_sizes(to, now);
    }

    /// Sends a packet with whole checksums that is over the limit of a peer: in parts that the peer makes the very same
    /// packet of; or, for a peer that can't, as IPv4 fragments. A device that wants nothing fragmented is told what
    /// fits as well, in the far host's name.
    pub(super) fn seal_in_pieces(
        &mut self,
        slot: PeerSlot,
        what: &ToSeal,
        packet: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) {
        if self.peers.takes_parts(slot) {
            let bulk = &mut self.bulk;
            let sent = self.peers.send_parts(slot, packet, |peers, whose, part| {
                send(peers, bulk, (slot, what.lane), (whose, part), now, out)
            });
            if let Sent::Dropped(reason) = sent {
                self.recorder.drop(Some(what.station), reason, Some(what.tuple), now);
            }
        } else {
            self.seal_fragments(slot, what, packet, now, out);
        }
        self.tell_too_big(slot, what, packet, now, out);
    }

    fn seal_fragments(
        &mut self,
        slot: PeerSlot,
        what: &ToSeal,
        packet: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) {
        self.fragment_id = self.fragment_id.wrapping_add(1);
        let mut parts = match Fragments::new(packet, self.peers.limit(slot), self.fragment_id) {
            Ok(parts) => parts,
            Err(reason) => {
                self.recorder.drop(Some(what.station), reason, Some(what.tuple), now);
                return;
            }
        };
        let mut room = std::mem::take(&mut self.part);
        if room.len() < parts.longest() {
            room.resize(parts.longest(), 0);
        }
        while let Some(len) = parts.next_into(&mut room) {
            self.send(slot, what, room.get_mut(..len).unwrap_or_default(), now, out);
        }
        self.part = room;
    }

    /// Tells a device what fits, if it asked to be told ("don't fragment"), in the name of the host that its packet is
    /// for. Not while that is still being found out: what a device is told, it believes for minutes.
    fn tell_too_big(
        &mut self,
        slot: PeerSlot,
        what: &ToSeal,
        packet: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) {
        let Ok(parsed) = parse_ipv4(packet) else { return };
        if !parsed.dont_fragment || !self.peers.knows_limit(slot) {
            return;
        }
        let host = parsed.destination;
        if !self.too_big_told.may(what.station, host, now) {
            return;
        }
        let limit = u16::try_from(self.peers.limit(slot)).unwrap_or(u16::MAX);
        self.fragment_id = self.fragment_id.wrapping_add(1);
        let mut message = [0; MAX_ERROR_LEN];
        let len = icmp::fragmentation_needed(packet, limit, self.fragment_id, &mut message);
        let Some(message) = len.and_then(|len| message.get(..len)) else { return };
        let gateway = self.peers.get(slot).map(crate::peer::Peer::gateway);
        let mac = self.policy.as_ref().and_then(|policy| {
            policy.of_peer(gateway?, host).and_then(|index| policy.member(index)).map(|m| m.mac)
        });
        self.deliver(what.station, (host, mac), VnetHeader::default(), message, out);
    }
}
