//! Sizes: what fits the path to each peer, probes for it, and packets in parts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anteroom_proto::verdict::DropReason;

use super::{CONTROL, Peers};
use crate::peer::trial::Length;
use crate::peer::tunnel::sealed_room;
use crate::peer::{OVERHEAD, PeerSlot, Sent, inner_mtu};
use crate::sink::Sink;
use crate::size;
use crate::size::cut::Parts;
use crate::size::path::Bounds;
use crate::size::wire::{self, SizeMessage};
use crate::target::Whose;

/// Underlay sizes behind the [`Bounds`]: what every IPv4 host takes (RFC 791), what every IPv6 path carries (RFC 8200),
/// what Ethernet carries.
const FLOOR: u16 = 576;
const BASE: u16 = 1_280;
const USUAL: u16 = 1_500;
/// How long an answer may take at least and at most, whatever the round trip; and while that is unknown.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(3));
const PATIENCE_AT_FIRST: Duration = Duration::from_secs(1);
/// Most probes that one look at a peer sends.
const PROBES_AT_ONCE: usize = 4;

/// What all paths have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// What the underlay's interface carries, in bytes of IP.
    pub(super) underlay: u16,
    /// Largest packet that is worth sealing in one piece.
    pub(super) largest: u16,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { underlay: USUAL, largest: 1_500 }
    }
}

/// How long a datagram is that takes as much room on the way to `to` as a packet.
pub(super) const fn datagram(length: Length, to: &SocketAddr) -> usize {
    let underlay = match length {
        Length::Usual => BASE,
        Length::Least => FLOOR,
    };
    inner_mtu(underlay, to) as usize + OVERHEAD
}

impl Peers {
    /// Says how many bytes of IP the underlay's interface carries, and how long a packet is at most that is sealed in
    /// one piece, whatever the path carries.
    pub fn set_sizes(&mut self, underlay: u16, largest: u16, now: Instant) {
        let sizes = Sizes { underlay, largest };
        if std::mem::replace(&mut self.sizes, sizes) == sizes {
            return;
        }
        for index in self.peers.numbers() {
            self.fit(index, false, now);
        }
    }

    /// Length of the longest packet that is sealed for a peer in one piece.
    #[must_use]
    pub fn limit(&self, slot: PeerSlot) -> usize {
        usize::from(self.get(slot).map_or(BASE - 100, |peer| peer.path.limit()))
    }

    /// Whether [`Self::limit`] was found out, and isn't just being looked for.
    #[must_use]
    pub fn knows_limit(&self, slot: PeerSlot) -> bool {
        self.get(slot).is_some_and(|peer| peer.path.is_known())
    }

    /// Notes that packets of up to `len` bytes are sealed for a peer: whether such still get through is confirmed then.
    pub fn note_use(&mut self, slot: PeerSlot, len: usize, now: Instant) {
        let peer = self.peers.get_mut(slot.index);
        let Some(peer) = peer else { return };
        if peer.route.note_use(len + OVERHEAD, now) {
            if peer.route.is_on_link() {
                // Nobody has asked for a while whether it still works.
                peer.next_probe = now;
            }
            self.wake(slot.index, now);
        }
        let peer = self.peers.get_mut(slot.index);
        if peer.is_some_and(|peer| peer.path.note_use(len, now)) {
            self.wake_for_probes(slot.index);
        }
    }

    /// The own socket found a datagram to this address too large. What gets through there is found out by probes; what
    /// gets through elsewhere is none the less known.
    pub fn suspect_sizes(&mut self, to: SocketAddr, now: Instant) {
        for index in self.peers.numbers() {
            let peer = self.peers.get_mut(index).filter(|peer| peer.way() == Some(to.into()));
            if let Some(peer) = peer {
                peer.path.suspect(now);
                self.wake_for_probes(index);
            }
        }
    }

    /// Whether a peer puts parts together again, as [`Self::send_parts`] makes them.
    #[must_use]
    pub fn takes_parts(&self, slot: PeerSlot) -> bool {
        self.local.is_some() && self.get(slot).is_some_and(|peer| peer.path.is_on())
    }

    /// Cuts an IPv4 packet that is over the limit of a peer into parts, and has each of them sent by `send`. They bear the
    /// gateways' addresses, and are whose the packet was.
    pub fn send_parts(
        &mut self,
        slot: PeerSlot,
        packet: &[u8],
        mut send: impl FnMut(&mut Self, Whose, &mut [u8]) -> Sent,
    ) -> Sent {
        let down = Sent::Dropped(DropReason::TunnelDown);
        let (Some(local), limit) = (self.local, self.limit(slot)) else { return down };
        let Some(ends) = self.get(slot).map(|peer| (local.overlay, peer.overlay)) else {
            return down;
        };
        self.part_id = self.part_id.wrapping_add(1);
        let mut parts = match Parts::new(packet, limit, ends, self.part_id) {
            Ok(parts) => parts,
            Err(reason) => return Sent::Dropped(reason),
        };
        let mut room = std::mem::take(&mut self.part);
        if room.len() < parts.longest() {
            room.resize(parts.longest(), 0);
        }
        let (whose, mut worst) = (Whose::of(packet), Sent::Sealed);
        while let Some(len) = parts.next_into(&mut room) {
            match send(self, whose, room.get_mut(..len).unwrap_or_default()) {
                Sent::Sealed => {}
                other => worst = other,
            }
            if matches!(worst, Sent::Dropped(_)) {
                break;
            }
        }
        self.part = room;
        worst
    }

    /// Takes back the buffer of a packet that was [whole](crate::peer::Opened::Whole), for the next one.
    pub fn give_back(&mut self, packet: Vec<u8>) {
        self.joiner.give_back(packet);
    }

    /// Packets of which parts are here, of all peers, and the bytes that they take.
    #[must_use]
    pub fn waiting_parts(&self) -> (usize, usize) {
        self.joiner.waiting()
    }

    /// Takes an IPv6 packet that a lane brought, which may be a part of a packet and nothing else. Gives the packet
    /// that it made whole.
    ///
    /// # Errors
    /// Why it goes no further.
    pub fn join(
        &mut self,
        slot: PeerSlot,
        packet: &[u8],
        now: Instant,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let local = self.local.ok_or(DropReason::PeerDestination)?;
        let overlay = self.get(slot).ok_or(DropReason::PeerUnknown)?.overlay;
        match wire::read(packet, overlay, local.overlay)? {
            Some(SizeMessage::Part(part)) => {
                let whole = self.joiner.take(slot.index, &part, now);
                let evicted = self.joiner.take_evicted();
                self.count(DropReason::FragmentTableFull, evicted);
                whole
            }
            _ => Err(DropReason::Ipv6),
        }
    }

    /// Deals with a message about sizes. Gives the packet that it made whole.
    pub(super) fn hear_size(
        &mut self,
        index: u32,
        message: SizeMessage<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        match message {
            SizeMessage::Part(part) => {
                let whole = self.joiner.take(index, &part, now);
                let evicted = self.joiner.take_evicted();
                self.count(DropReason::FragmentTableFull, evicted);
                whole
            }
            SizeMessage::Probe { nonce } => {
                if !self.peers.get_mut(index).is_some_and(|peer| peer.sizes.take(now)) {
                    return Err(DropReason::HandshakeLimit);
                }
                self.send_control(index, out, |ends| wire::answer(ends, nonce));
                Ok(None)
            }
            SizeMessage::Answer { nonce } => {
                let peer = self.peers.get_mut(index);
                if peer.is_some_and(|peer| peer.path.answered(nonce, now)) {
                    self.wake_for_probes(index);
                }
                Ok(None)
            }
        }
    }

    /// Gives up packets whose parts didn't come.
    pub(super) fn expire_parts(&mut self, now: Instant) {
        let late = self.joiner.expire(now);
        self.count(DropReason::PartMissing, late);
    }

    /// Sends the probes that are due.
    pub(super) fn probe_sizes(&mut self, index: u32, now: Instant, out: &mut impl Sink) {
        for _ in 0..PROBES_AT_ONCE {
            let Some(peer) = self.peers.get_mut(index).filter(|peer| peer.sending.is_some()) else {
                return;
            };
            let patience = peer
                .round_trip()
                .map_or(PATIENCE_AT_FIRST, |time| (time * 3).clamp(PATIENCE.0, PATIENCE.1));
            let nonce = self.random.next();
            let Some(len) = peer.path.probe(nonce, patience, now) else { return };
            self.send_control(index, out, |ends| wire::probe(ends, nonce, usize::from(len)));
        }
    }

    fn send_control(
        &mut self,
        index: u32,
        out: &mut impl Sink,
        make: impl FnOnce((std::net::Ipv6Addr, std::net::Ipv6Addr)) -> Vec<u8>,
    ) {
        let (Some(local), Some(peer)) = (self.local, self.peers.get(index)) else { return };
        let tunnel = peer.sending.and_then(|number| self.tunnels.get_mut(number));
        let (Some(tunnel), Some(to)) = (tunnel, peer.way()) else { return };
        let packet = make((local.overlay, peer.overlay));
        to.put(out, CONTROL, sealed_room(packet.len()), |buffer| tunnel.seal(&packet, buffer));
    }

    /// Finds out what sizes come into question for a peer. `moved`: it is reached another way than before.
    pub(super) fn fit(&mut self, index: u32, moved: bool, now: Instant) {
        let Sizes { underlay, largest } = self.sizes;
        let Some(peer) = self.peers.get_mut(index) else { return };
        if let Some(room) = peer.route.room() {
            // The relay says what it takes. It carries that or is left: what is lost of it, where a relay is busy, says
            // nothing of sizes.
            let room = room.saturating_sub(OVERHEAD as u16).min(largest);
            let bounds = Bounds { floor: room, base: room, usual: room, ceiling: room };
            peer.path.set_bounds(bounds, moved, now);
            return self.wake_for_probes(index);
        }
        let to = peer.endpoint().unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
        let bounds = Bounds {
            floor: inner_mtu(FLOOR, &to),
            base: inner_mtu(BASE, &to),
            usual: inner_mtu(USUAL, &to),
            ceiling: inner_mtu(underlay, &to).min(largest),
        };
        peer.path.set_bounds(bounds, moved, now);
        self.wake_for_probes(index);
    }

    /// Begins to probe when a peer says that it answers, and stops when it no longer does.
    pub(super) fn follow_capability(&mut self, index: u32, now: Instant) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let answers = peer.capabilities().iter().any(|one| one == size::CAPABILITY);
        match (answers, peer.path.is_on()) {
            (true, false) => peer.path.start(now),
            (false, true) => peer.path.stop(now),
            _ => return,
        }
        self.wake_for_probes(index);
    }

    pub(super) fn wake_for_probes(&mut self, index: u32) {
        let due = self.peers.get(index).and_then(|peer| peer.path.poll_timeout());
        if let Some(at) = due {
            self.wake(index, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::doubt;
    use crate::peer::knock::{KNOCK_LEN, MAX_KNOCK_LEN};

    #[test]
    fn every_full_knock_is_counted_as_one_and_none_of_the_least_is_longer_than_what_every_host_takes()
     {
        let places = ["192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1"];
        let places = places.map(|place| place.parse::<SocketAddr>().unwrap());
        for (place, headers) in places.iter().zip([20 + 8, 40 + 8, 40 + 8]) {
            assert_eq!(datagram(Length::Least, place), usize::from(FLOOR) - headers, "{place}");
            for length in [Length::Least, Length::Usual] {
                let len = datagram(length, place);
                assert!((doubt::FULL..=MAX_KNOCK_LEN).contains(&len), "{place}: {len}");
            }
        }
        let least = places.iter().map(|place| datagram(Length::Least, place)).min();
        assert_eq!(least, Some(doubt::FULL), "what is counted as full is as long as the shortest");
        const { assert!(doubt::FULL > doubt::SHORT && doubt::SHORT > KNOCK_LEN) };
    }
}
