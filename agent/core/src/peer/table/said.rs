//! What the engine asks of peers for the sake of their lanes.

use anteroom_proto::id::BootId;
use anteroom_proto::key::TunnelPublicKey;

use super::Peers;
use crate::lane;
use crate::peer::PeerSlot;
use crate::peer::message::LaneOffer;

impl Peers {
    /// Tells peers from now on that this gateway can use lanes.
    pub fn announce_lanes(&mut self) {
        if !self.config.capabilities.iter().any(|one| one == lane::CAPABILITY) {
            self.config.capabilities.push(lane::CAPABILITY.to_owned());
        }
    }

    /// This run, as peers are told.
    #[must_use]
    pub const fn boot(&self) -> BootId {
        self.config.boot
    }

    /// Whether a key is a main key of this gateway or of any peer.
    #[must_use]
    pub fn knows_key(&self, key: &TunnelPublicKey) -> bool {
        self.own.has(key) || self.holder(key).is_some()
    }

    /// Whether a peer has this main key.
    #[must_use]
    pub fn has_key(&self, slot: PeerSlot, key: &TunnelPublicKey) -> bool {
        self.get(slot).is_some_and(|peer| peer.keys.contains(key))
    }

    /// The peer's key whose tunnel packets for it take now.
    #[must_use]
    pub fn sending_key(&self, slot: PeerSlot) -> Option<TunnelPublicKey> {
        let number = self.get(slot)?.sending?;
        self.tunnels.get(number).map(|tunnel| tunnel.key)
    }

    /// Has [`Self::poll_review`] name a peer from now on whenever it is elsewhere, runs anew, or has other keys.
    pub fn watch(&mut self, slot: PeerSlot) {
        let peer = self.peers.get_mut(slot.index);
        if let Some(peer) = peer.filter(|peer| peer.generation == slot.generation) {
            peer.watched = Some(false);
        }
    }

    /// The number of the next watched peer that is to be looked at anew. It may be gone.
    pub fn poll_review(&mut self) -> Option<u32> {
        let number = self.reviews.pop_front()?;
        if let Some(listed) = self.peers.get_mut(number).and_then(|peer| peer.watched.as_mut()) {
            *listed = false;
        }
        Some(number)
    }

    /// What a peer said about its lanes, and the key of the tunnel that it came through.
    pub(crate) fn poll_lane_offer(&mut self) -> Option<(PeerSlot, TunnelPublicKey, LaneOffer)> {
        self.offers.pop_front()
    }

    /// Whether [`Self::poll_lane_offer`] has something.
    pub(crate) fn has_lane_offers(&self) -> bool {
        !self.offers.is_empty()
    }

    /// Has a peer say hello in a run of its.
    #[cfg(test)]
    pub(crate) fn said_for_tests(&mut self, slot: PeerSlot, boot: BootId, now: std::time::Instant) {
        let hello = crate::peer::message::Hello {
            versions: (1, 1),
            capabilities: vec![lane::CAPABILITY.to_owned()],
            boot,
            sequence: 1,
            revision: 1,
            relation: None,
            authority: 1,
            time: None,
            nonce: 0,
            knocker: None,
            outside: None,
        };
        if let Some(peer) = self.peers.get_mut(slot.index) {
            peer.note_said(hello, false, now);
        }
        self.review(slot.index);
    }

    /// Has packets for a peer take the tunnel with this key of its.
    #[cfg(test)]
    pub(crate) fn send_by_for_tests(&mut self, slot: PeerSlot, key: &TunnelPublicKey) {
        let number =
            self.tunnels.iter().find(|(_, tunnel)| tunnel.key == *key).map(|found| found.0);
        if let Some(peer) = self.peers.get_mut(slot.index) {
            peer.sending = number;
        }
        self.review(slot.index);
    }

    /// Lists a watched peer for a look.
    pub(super) fn review(&mut self, index: u32) {
        let watched = self.peers.get_mut(index).and_then(|peer| peer.watched.as_mut());
        if let Some(listed) = watched
            && !std::mem::replace(listed, true)
        {
            self.reviews.push_back(index);
        }
    }
}
