//! Which way packets go to each peer: see [`crate::peer::route`].

use std::net::SocketAddr;
use std::time::Instant;

use anteroom_proto::id::GatewayId;
use anteroom_proto::v1::telemetry::PathReason;
use anteroom_proto::verdict::DropReason;

use super::{CONTROL, MAX_PEERS, OWNER_SHIFT, Peers, sizes, write};
use crate::peer::awaited::Knock;
use crate::peer::doubt::Came;
use crate::peer::knock::{self, Heard, KnockKey, Knocker};
use crate::peer::route::{Due, LEAST_ROOM};
use crate::peer::trial::Length;
use crate::peer::{Peer, PeerSlot, front};
use crate::sink::Sink;
use crate::target::{RelayId, RelayPath, Target, Through};

/// What the knocks' numbers leave below, as the receiver indices of tunnels do.
const BELOW: u32 = 8;

/// How a session came to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Agreed {
    /// Whether this end began.
    pub(super) ours: bool,
    /// Whether there was none before.
    pub(super) fresh: bool,
}

impl Peers {
    /// Says which relays reach a gateway now, nearest first; none of one that isn't a peer is used before it is. One that
    /// claims to take less than every honest one does isn't used at all.
    pub fn set_relays(
        &mut self,
        gateway: GatewayId,
        relays: &[RelayPath],
        now: Instant,
        out: &mut impl Sink,
    ) {
        let relays: Vec<RelayPath> =
            relays.iter().filter(|path| path.room >= LEAST_ROOM).copied().collect();
        if relays.is_empty() {
            self.relayed.remove(&gateway);
        } else if self.relayed.len() < MAX_PEERS || self.relayed.contains_key(&gateway) {
            self.relayed.insert(gateway, relays);
        }
        if let Some(index) = self.by_gateway.get(&gateway).copied() {
            let had = self.peers.get(index).is_some_and(|peer| peer.route.has_relay());
            self.take_relays(index, now);
            self.settle_path(index, now, out);
            self.leave_at_last(index, now, out);
            if let Some(peer) = self.peers.get(index).filter(|peer| peer.sending.is_none() && !had)
            {
                for number in &peer.tunnels {
                    self.tunnels.get_mut(*number).into_iter().for_each(|tunnel| tunnel.hurry(now));
                }
            }
            self.wake(index, now);
        }
    }

    /// Tells a peer's route which relays reach it.
    pub(super) fn take_relays(&mut self, index: u32, now: Instant) {
        let Some(peer) = self.peers.get_mut(index).filter(|peer| !peer.client) else { return };
        let relays = self.relayed.get(&peer.gateway).map(Vec::as_slice).unwrap_or_default();
        let room = peer.route.room();
        peer.route.set_relays(relays, now);
        if peer.route.room() != room {
            self.fit(index, false, now);
        }
    }

    /// Whether packets for a peer take a relay.
    #[must_use]
    pub fn is_relayed(&self, slot: PeerSlot) -> bool {
        self.get(slot).is_some_and(|peer| peer.route.via().is_some())
    }

    /// The gateways whose packets don't go directly, as WireGuard has it, or may not arrive.
    #[must_use]
    pub fn indirect(&self, now: Instant) -> Vec<GatewayId> {
        let direct =
            |peer: &Peer| peer.route.via().is_none() && peer.sending.is_some() && peer.is_live(now);
        let peers = self.iter().map(|(_, peer)| peer);
        peers.filter(|peer| !peer.client && !direct(peer)).map(|peer| peer.gateway).collect()
    }

    /// Leaves a way that there is no more, and one that has died.
    pub(super) fn settle_path(&mut self, index: u32, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get(index) else { return };
        let (route, nearest) = (&peer.route, peer.route.nearest());
        let questions = peer.questions().filter(|_| self.local.is_some());
        let other = match route.via() {
            Some(via) if !route.knows(via) => {
                let why = if nearest.is_some() { route.why() } else { PathReason::NoRelay };
                Some((nearest, why))
            }
            Some(_) => {
                let next = route.next_relay(peer.heard(), peer.answered(), peer.unanswered(), now);
                next.map(|relay| (Some(relay), route.why()))
            }
            None if nearest.is_none() => None,
            None if route.has_died(peer.round_trip(), questions, now) => {
                Some((nearest, PathReason::Died))
            }
            // It has a session, which may be worth something through a relay.
            None if peer.sending.is_some() && !peer.is_live(now) => {
                Some((nearest, PathReason::Died))
            }
            // It turned out to be a relay's, and nobody finds out what becomes of packets there.
            None if peer.endpoint().is_some_and(|at| !self.may_knock_at(peer, at, now)) => {
                Some((nearest, PathReason::Untried))
            }
            None => None,
        };
        let leaps = route.via().is_none();
        let lasted = now.saturating_duration_since(route.since());
        if let Some((via, why)) = other {
            self.turn(index, via, why, now);
            if let Some(peer) = self.peers.get_mut(index).filter(|_| leaps) {
                peer.route.note_leap(peer.endpoint(), lasted);
            }
            self.probe(index, now, out);
        }
    }

    /// Has packets go another way.
    pub(super) fn turn(&mut self, index: u32, via: Option<RelayId>, why: PathReason, now: Instant) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let before = peer.route.via();
        peer.route.turn(via, why, now);
        peer.forget_questions();
        match (before, via) {
            (None, Some(_)) => self.on_relays += 1,
            (Some(_), None) => self.on_relays = self.on_relays.saturating_sub(1),
            (None, None) | (Some(_), Some(_)) => {}
        }
        match (via, why) {
            (Some(_), PathReason::Died) => self.mirrors.hasten(now),
            (Some(_), _) => self.mirrors.rely(now),
            (None, _) => {}
        }
        peer.forget_round_trip();
        tracing::debug!(gateway = %peer.gateway, ?via, %why, "another path");
        self.fit(index, true, now);
        self.review(index);
        self.wake(index, now);
    }

    /// A session was confirmed that came to be over `via`, none meaning directly; no newer one is known of its tunnel.
    pub(super) fn session_agreed(
        &mut self,
        (index, tunnel): (u32, u32),
        via: Option<RelayId>,
        how: Agreed,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get(index) else { return };
        let strange = peer.endpoint().is_some_and(|at| !self.may_knock_at(peer, at, now));
        let peer = self.peers.get_mut(index).filter(|peer| peer.sending == Some(tunnel));
        let Some(peer) = peer else { return };
        match (peer.route.via(), via) {
            (None, None) => peer.route.note_proof(now),
            (Some(_), None) if strange => {}
            (Some(_), None) => match peer.endpoint().filter(|_| !how.fresh) {
                Some(at) if peer.holds(at, now) => {}
                // A handshake that the peer began says little of what gets through from here.
                Some(at) if !how.ours && peer.wants_proof(at, now) => {
                    peer.route.hurry(now);
                    self.wake(index, now);
                }
                _ => self.turn(index, None, PathReason::Proved, now),
            },
            // It works both ways, which nothing may say of the other one.
            (Some(one), Some(other)) if one != other && peer.route.knows(other) => {
                let why = peer.route.why();
                self.turn(index, Some(other), why, now);
            }
            // The peer has no direct path to here, or it wouldn't have gone by a relay.
            (None, Some(relay)) if peer.route.knows(relay) && !peer.route.is_fresh(now) => {
                let died = peer.route.why() == PathReason::Proved;
                let why = if died { PathReason::Died } else { PathReason::Untried };
                self.turn(index, Some(relay), why, now);
            }
            _ => {}
        }
    }

    /// Does what is due for the sake of a peer's path.
    pub(super) fn tend_path(&mut self, index: u32, now: Instant, out: &mut impl Sink) {
        if self.peers.get(index).is_none_or(|peer| !peer.route.has_relay() || peer.client) {
            return;
        }
        self.settle_path(index, now, out);
        let Some(peer) = self.peers.get_mut(index).filter(|peer| peer.sending.is_some()) else {
            return;
        };
        // As with a direct path: the session that is made there carries what comes after it, and nothing of the older
        // one is too late.
        if let Some(relay) = peer.route.better(now) {
            let to = Target::Relay(Through { relay, peer: peer.gateway });
            if let Some(tunnel) = peer.sending.and_then(|number| self.tunnels.get_mut(number)) {
                to.put(out, CONTROL, front::INITIATION_LEN, |buffer| tunnel.initiate(buffer));
            }
        }
        let Some(peer) = self.peers.get_mut(index) else { return };
        let Some(theirs) = peer.route.theirs else { return };
        let places = match (peer.route.take_due(now), peer.route.via()) {
            (Due::Nowhere, _) => return,
            (Due::Hint(hint), _) => vec![hint],
            (Due::All, None) => peer.endpoint().into_iter().collect(),
            (Due::All, Some(_)) => peer.places(),
        };
        let places: Vec<SocketAddr> = match self.peers.get(index) {
            Some(peer) => {
                places.into_iter().filter(|at| self.may_knock_at(peer, *at, now)).collect()
            }
            None => return,
        };
        let back = self.knock_number(index);
        for to in places {
            let nonce = self.next_nonce();
            let Some(peer) = self.peers.get_mut(index) else { return };
            peer.route.note_knock(nonce, to, now);
            // Those at other addresses may never be answered, which says nothing.
            if peer.route.via().is_none() {
                self.hearing.note_asked(peer.route.why() == PathReason::Proved, now);
            }
            write(out, to.into(), CONTROL, &knock::knock(&theirs, back, nonce));
        }
    }

    fn next_nonce(&mut self) -> u64 {
        self.knocked += 1;
        knock::nonce(&self.knock_secret, self.knocked)
    }

    /// Finds out whether what is as long as a packet gets through to a peer directly, where that is worth asking now.
    fn knock_fully(&mut self, index: u32, to: SocketAddr, now: Instant, out: &mut impl Sink) {
        let (nonce, back) = (self.next_nonce(), self.knock_number(index));
        let Some(peer) = self.peers.get_mut(index) else { return };
        let Some(theirs) = peer.route.theirs else { return };
        let Some(length) = peer.route.trial.ask(to, now) else { return };
        peer.route.await_answer(nonce, to, true, now);
        let knock = knock::full_knock(&theirs, back, nonce, sizes::datagram(length, &to));
        write(out, to.into(), CONTROL, &knock);
    }

    /// Finds out whether anything long still gets through on the direct path that packets take, where that is in doubt.
    pub(super) fn doubt_path(&mut self, index: u32, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        if !peer.route.doubt.take_due(now) {
            return;
        }
        let Some(peer) = self.peers.get(index) else { return };
        let asks = peer.answers_full && peer.route.via().is_none() && peer.route.has_relay();
        let to = peer.endpoint().filter(|to| asks && self.may_knock_at(peer, *to, now));
        let back = self.knock_number(index);
        let nonces = [self.next_nonce(), self.next_nonce()];
        let Some(peer) = self.peers.get_mut(index) else { return };
        let (Some(to), Some(theirs)) = (to, peer.route.theirs) else {
            return peer.route.doubt.end();
        };
        let [full, short] = nonces;
        let len = sizes::datagram(Length::Least, &to);
        peer.route.await_answer(full, to, true, now);
        write(out, to.into(), CONTROL, &knock::full_knock(&theirs, back, full, len));
        // What comes behind it tells of it.
        peer.route.await_answer(short, to, false, now);
        write(out, to.into(), CONTROL, &knock::knock(&theirs, back, short));
    }

    /// What a peer is given to knock with.
    pub(super) fn knocker_for(&mut self, index: u32) -> Option<Knocker> {
        let number = self.knock_number(index);
        let secret = &self.knock_secret;
        let peer = self.peers.get_mut(index).filter(|peer| !peer.client)?;
        let runs = peer.route.runs();
        let (key, _) = *peer.route.ours.get_or_insert_with(|| {
            let key = KnockKey::of(secret, peer.gateway.as_bytes(), runs);
            (key, key.token())
        });
        Some(Knocker { number, key })
    }

    fn knock_number(&self, index: u32) -> u32 {
        (u32::from(self.config.owner & 0x0f) << OWNER_SHIFT | index) << BELOW
    }

    /// Takes a datagram that is nothing of WireGuard's: perhaps a knock, or the answer to one.
    pub(super) fn hear_knock(
        &mut self,
        from: Target,
        datagram: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let unknown = DropReason::PeerUnknown;
        let (Some(heard), Target::Udp(from)) = (knock::parse(datagram), from) else {
            return Err(unknown);
        };
        let (Heard::Knock { number, .. } | Heard::Answer { number, .. }) = heard;
        let index = (number >> BELOW) & ((1 << OWNER_SHIFT) - 1);
        if self.knock_number(index) != number {
            return Err(unknown);
        }
        let peer = self.peers.get(index).filter(|peer| !peer.client).ok_or(unknown)?;
        match heard {
            Heard::Knock { back, token, nonce, .. } => {
                let (key, good) = peer.route.ours.ok_or(unknown)?;
                if token != good || !knock::is_good(datagram, key) {
                    return Err(DropReason::PeerUnauthenticated);
                }
                if !self.may_knock_at(peer, from, now) {
                    return Err(DropReason::PeerPlace);
                }
                let peer = self.peers.get_mut(index).ok_or(unknown)?;
                if !peer.route.is_first(nonce) {
                    return Err(DropReason::PeerUnauthenticated);
                }
                if !peer.route.may_answer(now) {
                    return Err(DropReason::HandshakeLimit);
                }
                peer.route.doubt.note_full(datagram.len());
                let came = peer.counts_long.then(|| peer.route.doubt.came());
                write(out, from.into(), CONTROL, &knock::answer(key, back, nonce, came));
                if peer.route.note_knocked(nonce, from, now) {
                    self.wake(index, now);
                }
            }
            Heard::Answer { nonce, came, .. } => {
                let theirs = peer.route.theirs.ok_or(unknown)?;
                if !peer.route.awaits(nonce) {
                    return Err(unknown);
                }
                if !knock::is_good(datagram, theirs.key) {
                    return Err(DropReason::PeerUnauthenticated);
                }
                self.answered(index, (nonce, came), now, out);
            }
        }
        Ok(())
    }

    /// A knock was answered: the path to where it went works, both ways. The answer may say how many long datagrams came there.
    fn answered(
        &mut self,
        index: u32,
        (nonce, came): (u64, Option<Came>),
        now: Instant,
        out: &mut impl Sink,
    ) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let Some(knock) = peer.route.take_knock(nonce) else { return };
        let Knock { to, at, full, sent, .. } = knock;
        self.hearing.note_answered(now);
        if peer.route.via().is_none() {
            // It may have moved since.
            if peer.endpoint() == Some(to) {
                peer.route.note_answer(now);
                // What its keys opened went to it a moment ago.
                if came.is_some_and(|came| peer.route.doubt.note_said(came, (at, sent), now)) {
                    peer.note_hears(now);
                }
                peer.note_round_trip(now.saturating_duration_since(at));
            }
            self.wake(index, now);
            return;
        }
        peer.route.note_echo();
        if peer.holds(to, now) {
            return;
        }
        if full {
            peer.route.trial.note_passed(to, now);
        } else if peer.answers_full {
            return self.knock_fully(index, to, now, out);
        }
        if !peer.route.may_shake(now) {
            return;
        }
        if let Some(tunnel) = peer.sending.and_then(|number| self.tunnels.get_mut(number)) {
            let len = front::INITIATION_LEN;
            out.datagram(to, CONTROL, len, |buffer| tunnel.initiate(buffer));
        }
    }

    /// Where a handshake with a peer is tried, and whether another way is to be tried soon: as packets go, and in turns
    /// the other way while there is no session.
    pub(super) fn way_to_shake(&self, index: u32, attempt: u32) -> (Option<Target>, bool) {
        let Some(peer) = self.peers.get(index) else { return (None, false) };
        let through = |relay| Target::Relay(Through { relay, peer: peer.gateway });
        let relay = peer.route.relay_for(attempt / 2).map(through);
        let (Some(relay), None) = (relay, peer.sending) else {
            return (peer.route.target(peer.gateway, peer.target(attempt)), false);
        };
        let direct = peer.target(attempt / 2).map(Target::Udp);
        let relay_first = peer.route.via().is_some() || direct.is_none();
        let first = attempt.is_multiple_of(2);
        (if first == relay_first { Some(relay) } else { direct }, first)
    }
}
