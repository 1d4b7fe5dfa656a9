//! What the engine keeps of lanes: with whom it has agreed on them, and which can be used.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::{TunnelPublicKey, TunnelSecret};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use self::entry::{Entry, Notice};
use super::{Event, LaneId, MAX, Order, OwnLaneKey};
use crate::peer::message::{LaneKey, LaneOffer};
use crate::peer::{PeerSlot, Peers};
use crate::station::StationId;

mod entry;
mod renewal;

/// How often a peer is asked at most that doesn't answer, and how often a lane is ordered that doesn't open.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const OPEN_AGAIN: Duration = Duration::from_secs(30);
/// How long after such an order the peer is told of it again, as long as the lane isn't open: it answers handshakes
/// only once it was told.
const TOLD_FOR: Duration = Duration::from_secs(10);
/// How often whoever runs lanes is told of one peer at most that it is to expect handshakes.
const EXPECT_AGAIN: Duration = Duration::from_secs(5);
/// How soon after it went a lane that is wanted is ordered again.
const REOPEN: Duration = Duration::from_secs(1);
/// Most lanes at once that are opened for one device, whomever it sends to: a quarter of all. Its other bulk takes lane 0.
const MOST_OF_DEVICE: u16 = 64;
/// How often a peer is told that its key isn't held here any more, unless it answers: the first pause, each of the others
/// being twice as long. After half a minute it has left the lanes, since nothing answers there.
const NOTICES: u32 = 6;
const NOTICE_PAUSE: Duration = Duration::from_millis(500);
/// How often that pause is doubled where a peer is asked until it answers: up to eight seconds.
const MOST_RENEWAL_PAUSES: u32 = 4;
/// Most peers that went with lanes open and are told so when they are peers again: as many as there can be peers.
const MAX_PARTED: usize = 1 << 16;
/// How long one that went may still send through lanes, at most: it finds out by itself after twenty seconds of silence.
const PARTED_FOR: Duration = Duration::from_secs(60);

/// The lanes of a gateway, as its engine sees them.
#[derive(Debug)]
pub struct Book {
    /// What was drawn at the start.
    drawn: TunnelSecret,
    /// What lane keys are made from now, and beside which tunnel key of this gateway.
    secret: TunnelSecret,
    beside: Option<TunnelPublicKey>,
    /// Peers to which this gateway's key is to be another one, by their numbers.
    changes: VecDeque<u32>,
    boot: BootId,
    lanes: u8,
    entries: HashMap<u32, Entry, foldhash::fast::RandomState>,
    orders: VecDeque<Order>,
    offers: VecDeque<(PeerSlot, LaneOffer)>,
    /// Peers that are none any more, and may still take lanes that there were for usable, and when they went.
    parted: HashMap<GatewayId, Instant, foldhash::fast::RandomState>,
    /// How many lanes were ordered for each device and aren't closed.
    shares: HashMap<StationId, u16, foldhash::fast::RandomState>,
    /// How many offers were made.
    said: u64,
    /// When some peer is to be told something again.
    next_notice: Option<Instant>,
    /// The newest agreement, with whomever.
    term: u32,
    turned_away: u64,
}

/// How it stands with the lanes to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Standing {
    /// Lanes that both ends agreed on. 0 while nobody wanted one.
    pub agreed: u8,
    /// Those of them that can be used.
    pub ready: u8,
}

impl Book {
    /// For the owner of a secret that lane keys are made from, in this run, with so many lanes.
    #[must_use]
    pub fn new(secret: &TunnelSecret, boot: BootId, lanes: u8) -> Self {
        Self {
            drawn: secret.clone(),
            secret: secret.clone(),
            beside: None,
            changes: VecDeque::new(),
            boot,
            lanes: lanes.min(MAX),
            entries: HashMap::default(),
            orders: VecDeque::new(),
            offers: VecDeque::new(),
            parted: HashMap::default(),
            shares: HashMap::default(),
            said: 0,
            next_notice: None,
            term: 0,
            turned_away: 0,
        }
    }

    /// The lane that a flow of a device may take which is bulk: by its hash, so always the same while the peers agree on as
    /// many lanes. 0 while that one can't be used; what has to be done for it is done then, unless too many were opened for
    /// this device, which takes any other then.
    pub(crate) fn want(
        &mut self,
        (peer, device): (PeerSlot, StationId),
        hash: u64,
        peers: &mut Peers,
        now: Instant,
    ) -> u8 {
        let entry = self.entry(peer, peers, now);
        if !entry.is_agreed() {
            if entry.next_ask <= now {
                entry.next_ask = now + ASK_AGAIN;
                self.ask(peer, peers);
            }
            return 0;
        }
        // The upper bits: hash tables use the lower ones.
        let lane = 1 + ((hash >> 32) % u64::from(entry.lanes)) as u8;
        if entry.ready & (1 << lane) != 0 {
            return lane;
        }
        let at = usize::from(lane);
        let Some(entry) = self.entries.get_mut(&peer.number()) else { return 0 };
        // Whomever a device sends to, its bulk can leave lane 0: only further lanes to the same peer are a matter of shares.
        let others = entry.payers.iter().any(Option::is_some);
        let (Some(next), Some(payer)) = (entry.next_open.get_mut(at), entry.payers.get_mut(at))
        else {
            return 0;
        };
        let open = next.is_none_or(|next| next <= now);
        if !open && payer.is_none() && others {
            return any_of(entry.ready);
        }
        if open {
            release(&mut self.shares, payer.take());
            let share = self.shares.entry(device).or_insert(0);
            if *share >= MOST_OF_DEVICE && others {
                self.turned_away += 1;
                *next = Some(now + ASK_AGAIN);
                return any_of(entry.ready);
            }
            *share += 1;
            *payer = Some(device);
            *next = Some(now + OPEN_AGAIN);
        }
        let fresh = next.is_some_and(|next| next > now + (OPEN_AGAIN - TOLD_FOR));
        if open || (fresh && entry.next_ask <= now) {
            entry.next_ask = now + ASK_AGAIN;
            self.offer(peer, false, false);
        }
        if open {
            self.orders.push_back(Order::Open(LaneId { peer, lane }));
        }
        0
    }

    /// Whether a lane that a flow takes can still be used.
    #[must_use]
    pub fn is_ready(&self, at: LaneId) -> bool {
        let entry = self.entries.get(&at.peer.number()).filter(|entry| entry.peer == at.peer);
        entry.is_some_and(|entry| entry.is_agreed() && entry.ready & (1 << at.lane) != 0)
    }

    /// Asks a peer for its key, if it can use lanes.
    fn ask(&mut self, peer: PeerSlot, peers: &Peers) {
        if is_capable(peer, peers) {
            self.offer(peer, true, false);
        }
    }

    fn offer(&mut self, peer: PeerSlot, ask: bool, answer: bool) {
        let entry = self.entries.get(&peer.number()).filter(|entry| entry.peer == peer);
        let Some(entry) = entry else { return };
        self.said += 1;
        let offer = LaneOffer {
            number: self.said,
            boot: self.boot,
            key: LaneKey(*entry.own.public().as_bytes()),
            lanes: self.lanes,
            // Not before it has heard that there was a time without.
            holds: entry
                .theirs
                .filter(|_| entry.owes.is_none())
                .map(|(key, ..)| LaneKey(*key.as_bytes())),
            ask,
            answer,
        };
        self.offers.push_back((peer, offer));
    }

    /// Takes what a peer said about its lanes, through the tunnel with the main key `via`.
    pub fn hear(
        &mut self,
        peer: PeerSlot,
        via: TunnelPublicKey,
        offer: &LaneOffer,
        peers: &mut Peers,
        now: Instant,
    ) {
        let most = self.lanes;
        let boot = peers.get(peer).and_then(crate::peer::Peer::boot);
        // One that said no hello yet comes again.
        if boot != Some(offer.boot) {
            self.turned_away += 1;
            return;
        }
        let to = peers.get(peer).and_then(crate::peer::Peer::endpoint);
        let entry = self.entry(peer, peers, now);
        let overtaken = entry.said.0 == offer.boot && entry.said.1 >= offer.number;
        if offer.number > 0 && overtaken {
            self.turned_away += 1;
            return;
        }
        entry.said = (offer.boot, offer.number);
        if offer.answer {
            entry.owes = None;
        }
        let holds_ours = offer.holds == Some(LaneKey(*entry.own.public().as_bytes()));
        entry.tells &= !holds_ours;
        // Its ends of the lanes are gone: what is sent there is lost until ours are gone as well.
        let lost_ours = std::mem::replace(&mut entry.holds_ours, holds_ours) && !holds_ours;
        if lost_ours && entry.theirs.is_some() {
            let key = entry.theirs.filter(|_| entry.charge(now));
            self.drop_key(peer);
            if let Some((key, ..)) = key
                && let Some(entry) = self.entries.get_mut(&peer.number())
            {
                (entry.theirs, entry.lanes) = (Some((key, offer.boot, via)), 0);
            }
        }
        let entry = self.entry(peer, peers, now);
        let same = entry.theirs.is_some_and(|(key, ..)| *key.as_bytes() == offer.key.0);
        let lanes = offer.lanes.min(most);
        if same {
            entry.theirs = entry.theirs.map(|(key, ..)| (key, offer.boot, via));
            if entry.lanes != lanes && entry.lanes != 0 {
                // Within one run they are as many as ever.
                self.turned_away += 1;
            } else if std::mem::replace(&mut entry.lanes, lanes) != lanes {
                self.end_term(peer);
                self.know(peer, to);
            } else if entry.next_expect <= now {
                entry.next_expect = now + EXPECT_AGAIN;
                self.orders.push_back(Order::Expect { peer });
            }
        } else if let Some(key) = self.accept(peer, offer, peers, now) {
            // What it sent by the key before is still under way, perhaps.
            match to {
                Some(_) => self.end_term(peer),
                None => self.drop_key(peer),
            }
            if let Some(entry) = self.entries.get_mut(&peer.number()) {
                entry.theirs = Some((key, offer.boot, via));
                entry.lanes = lanes;
            }
            self.know(peer, to);
        } else {
            self.turned_away += 1;
            self.drop_key(peer);
        }
        if offer.ask {
            let entry = self.entries.get(&peer.number());
            let ask = entry.is_some_and(|entry| entry.theirs.is_some() && !entry.holds_ours);
            self.offer(peer, ask, true);
        }
    }

    /// Has whoever runs the lanes know a peer's key.
    fn know(&mut self, peer: PeerSlot, to: Option<SocketAddr>) {
        let Some(entry) = self.entries.get_mut(&peer.number()) else { return };
        let (Some((key, ..)), Some(to)) = (entry.theirs, to) else { return };
        entry.to = Some(to);
        self.orders.push_back(Order::Know {
            peer,
            own: entry.own.clone(),
            key,
            term: entry.term,
            lanes: entry.lanes,
            to,
        });
    }

    /// The key of an offer, unless it is no good, or a main key.
    fn accept(
        &mut self,
        peer: PeerSlot,
        offer: &LaneOffer,
        peers: &Peers,
        now: Instant,
    ) -> Option<TunnelPublicKey> {
        let entry = self.entries.get_mut(&peer.number())?;
        if !entry.charge(now) {
            return None;
        }
        let key = TunnelPublicKey::try_from(offer.key.0).ok()?;
        (key != entry.own.public() && !peers.knows_key(&key)).then_some(key)
    }

    /// Forgets a peer's key, and with it its lanes.
    fn drop_key(&mut self, peer: PeerSlot) {
        self.end_term(peer);
        let Some(entry) = self.entries.get_mut(&peer.number()) else { return };
        if entry.theirs.take().is_some() {
            self.orders.push_back(Order::Forget { peer });
        }
    }

    /// Has nothing count any more that is still to be told of a peer's lanes.
    fn end_term(&mut self, peer: PeerSlot) {
        let Some(entry) = self.entries.get_mut(&peer.number()) else { return };
        self.term = self.term.wrapping_add(1);
        entry.term = self.term;
        (entry.ready, entry.next_open) = (0, Default::default());
        for payer in std::mem::take(&mut entry.payers) {
            release(&mut self.shares, payer);
        }
    }

    /// Forgets a peer that is none any more.
    fn forget(&mut self, peer: PeerSlot, now: Instant) {
        let had = self.entries.get(&peer.number()).filter(|entry| entry.theirs.is_some());
        if let Some(gateway) = had.map(|entry| entry.gateway) {
            if self.parted.len() >= MAX_PARTED {
                let lately = |went: Instant| now.saturating_duration_since(went) <= PARTED_FOR;
                self.parted.retain(|_, went| lately(*went));
            }
            if self.parted.len() < MAX_PARTED {
                self.parted.insert(gateway, now);
            }
        }
        self.drop_key(peer);
        self.entries.remove(&peer.number());
    }

    /// Tells one that was just admitted that lanes with it are gone, if it went with some open.
    pub fn meet(&mut self, gateway: GatewayId, peers: &mut Peers, now: Instant) {
        if !self.parted.contains_key(&gateway) {
            return;
        }
        if let Some(slot) = peers.slot(gateway) {
            self.parted.remove(&gateway);
            self.entry(slot, peers, now).owes = Some(Notice::NEW);
            self.settle(slot, peers, now);
        }
    }

    /// Tells a peer what is owed to it, when it can be.
    fn settle(&mut self, slot: PeerSlot, peers: &Peers, now: Instant) {
        let entry = self.entries.get_mut(&slot.number()).filter(|entry| entry.peer == slot);
        let Some(entry) = entry else { return };
        let Some(notice) = entry.owes else { return };
        let due = notice.next.is_none_or(|next| next <= now);
        if !due || !is_capable(slot, peers) || peers.sending_key(slot).is_none() {
            return;
        }
        self.offer(slot, true, false);
        let Some(entry) = self.entries.get_mut(&slot.number()) else { return };
        let told = notice.told + 1;
        let next = now + NOTICE_PAUSE * (1 << notice.told.min(NOTICES));
        entry.owes = (told < NOTICES).then_some(Notice { next: Some(next), told });
        if entry.owes.is_some() {
            self.next_notice = Some(self.next_notice.map_or(next, |other| other.min(next)));
        }
    }

    /// When [`Self::handle_timeout`] has something to do. Never, unless a peer is to be told something.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.next_notice
    }

    /// Looks at a peer anew that is elsewhere, runs anew, has other keys, or is no more.
    pub fn review(&mut self, number: u32, peers: &Peers, now: Instant) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let slot = entry.peer;
        let Some(peer) = peers.get(slot) else { return self.forget(slot, now) };
        let Some((_, boot, via)) = entry.theirs else { return self.settle(slot, peers, now) };
        let other_run = peer.boot().is_some_and(|said| said != boot);
        if other_run || !peers.has_key(slot, &via) {
            // What it may still offer in these seconds is counted on: the entry stays.
            (entry.holds_ours, entry.lanes) = (false, 0);
            entry.owes = (!other_run).then_some(Notice::NEW);
            self.drop_key(slot);
            return self.settle(slot, peers, now);
        }
        let to = peer.endpoint();
        match (entry.to, to) {
            (Some(known), Some(to)) if known != to => {
                entry.to = Some(to);
                self.orders.push_back(Order::Move { peer: slot, to });
            }
            // Nobody runs lanes yet to one that was nowhere.
            (None, Some(_)) => self.know(slot, to),
            _ => {}
        }
        self.renew(slot, peers, now);
    }

    /// Takes what whoever runs the lanes has to tell.
    pub fn note(&mut self, event: Event, now: Instant) {
        let (at, term, ready, closed) = match event {
            Event::Ready { at, term } => (at, term, true, false),
            Event::Gone { at, term } => (at, term, false, false),
            Event::Closed { at, term } => (at, term, false, true),
            // Lane 0's to look into.
            Event::Elsewhere { .. } => return,
            Event::Full(at) => {
                self.turned_away += 1;
                let entry = self.entries.get_mut(&at.peer.number());
                let entry = entry.filter(|entry| entry.peer == at.peer);
                let payer = entry.and_then(|entry| entry.payers.get_mut(usize::from(at.lane)));
                release(&mut self.shares, payer.and_then(Option::take));
                return;
            }
        };
        let entry = self.entries.get_mut(&at.peer.number()).filter(|entry| entry.peer == at.peer);
        let current = |entry: &&mut Entry| entry.theirs.is_some() && entry.term == term;
        let Some(entry) = entry.filter(current) else { return };
        if ready {
            entry.ready |= 1 << at.lane;
        } else {
            entry.ready &= !(1 << at.lane);
            if let Some(next) = entry.next_open.get_mut(usize::from(at.lane)) {
                *next = Some(now + REOPEN);
            }
            if closed && let Some(payer) = entry.payers.get_mut(usize::from(at.lane)) {
                release(&mut self.shares, payer.take());
            }
        }
    }

    /// The next thing to be told to whoever runs the lanes.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// The next thing to be told to a peer.
    pub(crate) fn poll_offer(&mut self) -> Option<(PeerSlot, LaneOffer)> {
        self.offers.pop_front()
    }

    /// How it stands with the lanes to a peer.
    #[must_use]
    pub fn standing(&self, peer: PeerSlot) -> Standing {
        let entry = self.entries.get(&peer.number()).filter(|entry| entry.peer == peer);
        let entry = entry.filter(|entry| entry.is_agreed());
        entry.map_or_else(Standing::default, |entry| Standing {
            agreed: entry.lanes,
            ready: u8::try_from(entry.ready.count_ones()).unwrap_or(MAX),
        })
    }

    /// How often a key, or a lane more, was turned away.
    #[must_use]
    pub const fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// This gateway's lane key for a peer.
    #[cfg(test)]
    pub(crate) fn own_key_for_tests(
        &mut self,
        peer: PeerSlot,
        peers: &mut Peers,
        now: Instant,
    ) -> TunnelPublicKey {
        self.entry(peer, peers, now).own.public()
    }

    /// How many peers there are entries of.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry of a peer, which is made where there is none: there is one for each peer at most.
    fn entry(&mut self, peer: PeerSlot, peers: &mut Peers, now: Instant) -> &mut Entry {
        let stale = self.entries.get(&peer.number()).is_some_and(|entry| entry.peer != peer);
        if stale && let Some(old) = self.entries.get(&peer.number()).map(|entry| entry.peer) {
            self.forget(old, now);
        }
        self.entries.entry(peer.number()).or_insert_with(|| {
            peers.watch(peer);
            // There is no entry for long of a slot that is nobody's.
            let nobody = GatewayId::from_bytes([0; 16]);
            let gateway = peers.get(peer).map_or(nobody, crate::peer::Peer::gateway);
            self.term = self.term.wrapping_add(1);
            Entry {
                peer,
                gateway,
                own: OwnLaneKey::new(&self.secret, gateway),
                theirs: None,
                term: self.term,
                lanes: 0,
                holds_ours: false,
                to: None,
                next_ask: now,
                next_expect: now,
                ready: 0,
                next_open: Default::default(),
                payers: Default::default(),
                said: (self.boot, 0),
                keys: (now, 0),
                owes: None,
                renews: None,
                tells: false,
            }
        })
    }
}

/// The lowest of these lanes, by their bits. 0 where there is none.
const fn any_of(ready: u16) -> u8 {
    if ready == 0 { 0 } else { ready.trailing_zeros() as u8 }
}

/// Gives back a device's share of a lane, if it was opened for one.
fn release(
    shares: &mut HashMap<StationId, u16, foldhash::fast::RandomState>,
    payer: Option<StationId>,
) {
    let Some(payer) = payer else { return };
    if let Some(share) = shares.get_mut(&payer) {
        *share = share.saturating_sub(1);
        if *share == 0 {
            shares.remove(&payer);
        }
    }
}

/// Whether a peer says that it can use lanes.
fn is_capable(slot: PeerSlot, peers: &Peers) -> bool {
    peers.get(slot).is_some_and(crate::peer::Peer::can_use_lanes)
}

#[cfg(test)]
mod tests;
