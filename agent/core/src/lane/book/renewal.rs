//! Lane keys that change: with this gateway's tunnel key, and with the peer's.
//!
//! With another tunnel key this gateway's lane keys are others, one peer after the other. From then on nothing is sent through
//! lanes to a peer until it says that it holds the new one; bulk takes lane 0 meanwhile. What the peer sends by the old one until it
//! has heard is opened by whoever runs lanes.

use std::time::{Duration, Instant};

use anteroom_proto::key::TunnelSecret;

use super::entry::{Entry, Notice};
use super::{Book, MOST_RENEWAL_PAUSES, NOTICE_PAUSE};
use crate::lane::{OwnLaneKey, secret_beside};
use crate::peer::{PeerSlot, Peers};

/// Peers that get another key in one turn, as packets wait meanwhile: each costs a multiplication on the curve, some 50 µs.
const AT_ONCE: usize = 16;
/// Time between two such turns.
const TURN: Duration = Duration::from_millis(5);

impl Book {
    /// Has lane keys be others, if this gateway's newest tunnel key is another one.
    pub(crate) fn change_keys(&mut self, newest: &TunnelSecret, now: Instant) {
        let key = newest.public();
        if self.beside == Some(key) {
            return;
        }
        self.beside = Some(key);
        self.secret = secret_beside(&self.drawn, newest);
        self.changes = self.entries.keys().copied().collect();
        self.come_again(now);
    }

    fn come_again(&mut self, at: Instant) {
        self.next_notice = Some(self.next_notice.map_or(at, |other| other.min(at)));
    }

    /// Changes keys where they are to be others, and says again what peers didn't answer.
    pub fn handle_timeout(&mut self, peers: &Peers, now: Instant) {
        if self.next_notice.is_none_or(|next| next > now) {
            return;
        }
        self.next_notice = None;
        for _ in 0..AT_ONCE {
            let Some(number) = self.changes.pop_front() else { break };
            self.change_key(number, peers, now);
        }
        let told = |entry: &&Entry| entry.owes.is_some() || entry.renews.is_some();
        for slot in self.entries.values().filter(told).map(|entry| entry.peer).collect::<Vec<_>>() {
            self.settle(slot, peers, now);
            self.renew(slot, peers, now);
        }
        // Those whose turn hasn't come. One to which nothing can be told is looked at when that changes.
        let notices = self.entries.values().flat_map(|entry| [entry.owes, entry.renews]);
        let nexts = notices.filter_map(|notice| notice?.next);
        self.next_notice = nexts.filter(|next| *next > now).min();
        if !self.changes.is_empty() {
            self.come_again(now + TURN);
        }
    }

    /// Makes this gateway's key for a peer anew, and has the peer told.
    fn change_key(&mut self, number: u32, peers: &Peers, now: Instant) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let own = OwnLaneKey::new(&self.secret, entry.gateway);
        if own == entry.own {
            return;
        }
        (entry.own, entry.holds_ours) = (own, false);
        if entry.theirs.is_none() {
            // It is told with the first word about lanes.
            return;
        }
        (entry.tells, entry.renews) = (true, None);
        let (slot, to) = (entry.peer, entry.to);
        self.end_term(slot);
        self.know(slot, to);
        self.renew(slot, peers, now);
    }

    /// Tells a peer of another key of this gateway's, and asks it for its own through the tunnel that is used now, until it has answered
    /// there: what came through another is worth as much as that one's key, which is going to be withdrawn, perhaps.
    pub(super) fn renew(&mut self, slot: PeerSlot, peers: &Peers, now: Instant) {
        let entry = self.entries.get_mut(&slot.number()).filter(|entry| entry.peer == slot);
        let Some(entry) = entry else { return };
        let via = entry.theirs.map(|(.., via)| via);
        entry.tells &= via.is_some();
        let settled = |key| Some(key) == via && !entry.tells;
        if via.is_none() || peers.sending_key(slot).is_none_or(settled) {
            entry.renews = None;
            return;
        }
        let notice = entry.renews.unwrap_or(Notice::NEW);
        if notice.next.is_some_and(|next| next > now) {
            return;
        }
        let next = now + NOTICE_PAUSE * (1 << notice.told.min(MOST_RENEWAL_PAUSES));
        entry.renews = Some(Notice { next: Some(next), told: notice.told.saturating_add(1) });
        self.come_again(next);
        self.offer(slot, true, false);
    }
}
