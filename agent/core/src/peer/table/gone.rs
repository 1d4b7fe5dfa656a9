//! Relays that operators took out: what gateways learnt through them of each other counts no more.
//!
//! A relay that somebody took over sees handshakes. It may hand them to a gateway by UDP, from an address of its own or of another
//! machine, forward what follows, and so be what both ends take for a direct path. As long as operators name it, that is no more
//! than a relay can do anyhow, and gateways behind the same NAT as an honest one look the same. Once they don't, it isn't to stay.
//! So where a peer is found then, but for where the view has it, is forgotten, with all that knocks had shown. Packets go through
//! another relay meanwhile, and direct paths are found anew. What the relay may have kept to come back with, sealed packets and
//! handshakes, tells nobody where a peer is until it is too old to open.
//!
//! A peer may hear of it later. It goes on by the way through that relay until then, which forwards its knocks as well. So each peer
//! is a matter of its own: until it says that it holds the document, and as long again as what was sealed may open, it is found at no
//! address but the view's and those that it says it has since, and what was found meanwhile is forgotten once more.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anteroom_proto::v1::telemetry::PathReason;

use super::Peers;
use crate::peer::Peer;
use crate::sink::Sink;
use crate::target::{RelayId, Target};

/// Most addresses of such relays that are known, the newest.
const MAX_ADDRESSES: usize = 64;
/// How long what was sealed before may open: WireGuard's REJECT-AFTER-TIME, twice, since a session that a held back handshake made
/// is as old as that.
const HELD_BACK: Duration = Duration::from_secs(2 * 180);
/// How far apart peers hear of new keys for knocks, and within what all of them do.
const APART: Duration = Duration::from_millis(1);
const SPREAD: Duration = Duration::from_millis(500);

/// What is known of relays that operators took out.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// Their addresses, without those of relays that are named now.
    addresses: Vec<IpAddr>,
    /// The newest document of which that is so.
    document: u64,
    /// The newest document that took one out in this run, or the first that was told: it may have.
    taken: u64,
    /// When the last one went in this run.
    last: Option<Instant>,
}

/// What a peer knows of the last document that took a relay out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::peer) enum Knows {
    /// It never said anything else, and wasn't a peer at that time.
    #[default]
    Always,
    /// Not of it yet.
    NotYet,
    /// Since then, as far as is known.
    Since(Instant),
}

impl Gone {
    fn is_at(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip.to_canonical())
    }

    /// Whether a peer says that it holds the document that took the last relay out.
    fn is_known_to(&self, peer: &Peer) -> bool {
        peer.authority().is_some_and(|held| held >= self.taken)
    }
}

impl Peers {
    /// The authority document of this number doesn't name these relays any more, as the one before did: what was found with their
    /// help is found anew. `addresses` are those of all that were ever taken out, as far as is known, the oldest first, without
    /// those of relays that are named now: no peer is there but whom the view has there, or who says so and holds that document.
    /// The last 64 count.
    pub fn forget_relays(
        &mut self,
        relays: &[RelayId],
        addresses: &[IpAddr],
        document: u64,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let surplus = addresses.len().saturating_sub(MAX_ADDRESSES);
        self.gone.addresses = addresses.iter().skip(surplus).map(IpAddr::to_canonical).collect();
        self.gone.document = document;
        if !relays.is_empty() || self.gone.taken == 0 {
            self.gone.taken = document;
        }
        if relays.is_empty() {
            return;
        }
        self.gone.last = Some(now);
        for relay in relays {
            self.mirrors.set(*relay, None, now);
        }
        self.relayed.retain(|_, paths| {
            paths.retain(|path| !relays.contains(&path.relay));
            !paths.is_empty()
        });
        let numbers = self.peers.numbers();
        let count = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        let apart = SPREAD.checked_div(count).unwrap_or_default().min(APART);
        let mut at = now;
        for index in numbers {
            if let Some(peer) = self.peers.get_mut(index) {
                let informed = self.gone.is_known_to(peer);
                peer.knows = if informed { Knows::Since(now) } else { Knows::NotYet };
            }
            self.take_relays(index, now);
            self.settle_path(index, now, out);
            if self.find_anew(index, (now, at), out) {
                at += apart;
            }
        }
    }

    /// Forgets where a peer was found, and asks for it again at `at`. False: it is no gateway.
    fn find_anew(
        &mut self,
        index: u32,
        (now, at): (Instant, Instant),
        out: &mut impl Sink,
    ) -> bool {
        let gone = &self.gone;
        let Some(peer) = self.peers.get_mut(index).filter(|peer| !peer.client) else {
            return false;
        };
        // Where nobody else reaches it, what still works goes on, but not at the relay's own address.
        let theirs = peer.heard_at().is_some_and(|at| gone.is_at(at.ip()));
        let keep = !theirs && !peer.route.has_relay();
        peer.left_there = keep;
        let lost = peer.forget_places(gone.taken, keep);
        peer.next_probe = at;
        let nearest = peer.route.nearest();
        match nearest.filter(|_| lost) {
            Some(relay) => {
                self.turn(index, Some(relay), PathReason::Untried, now);
                self.probe(index, now, out);
            }
            None if lost => {
                self.fit(index, true, now);
                self.review(index);
            }
            None => {}
        }
        self.wake(index, at);
        true
    }

    /// A peer said which document it holds, and where it is: finds it anew where it knows from now on that a relay was taken out. It
    /// went by that one until then. And leaves an address of such a relay where it says no more that it is there.
    pub(super) fn leave_relays(&mut self, index: u32, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get(index) else { return };
        let knows = match (peer.knows, self.gone.is_known_to(peer)) {
            (Knows::NotYet, true) => Knows::Since(now),
            (Knows::Always, false) if peer.authority().is_some() => Knows::NotYet,
            (known, _) => known,
        };
        let learnt = knows != peer.knows && knows != Knows::NotYet;
        let theirs = |at: SocketAddr| self.gone.is_at(at.ip()) && self.is_relays(peer, at);
        let left = learnt || peer.heard_at().is_some_and(theirs);
        if let Some(peer) = self.peers.get_mut(index) {
            peer.knows = knows;
        }
        if left {
            self.find_anew(index, (now, now), out);
        }
    }

    /// A relay reaches a peer that was left where it was found for want of one: it is found anew, as it would have been then.
    pub(super) fn leave_at_last(&mut self, index: u32, now: Instant, out: &mut impl Sink) {
        let reached = |peer: &&Peer| peer.left_there && peer.route.has_relay();
        let Some(peer) = self.peers.get(index).filter(reached) else { return };
        let informed = self.gone.is_known_to(peer);
        if let Some(peer) = self.peers.get_mut(index) {
            peer.knows = if informed { Knows::Since(now) } else { Knows::NotYet };
        }
        self.find_anew(index, (now, now), out);
    }

    /// Whether a relay that was taken out may still lead to where a peer isn't: by what it kept back, which may open yet, or by
    /// the peer, which doesn't know yet. Where no other relay reaches the peer, it is taken where it is found.
    fn is_wary(&self, peer: &Peer, now: Instant) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) < HELD_BACK;
        let wary = match peer.knows {
            Knows::Always => self.gone.last.is_some_and(recent),
            Knows::NotYet => true,
            Knows::Since(at) => recent(at),
        };
        wary && peer.route.has_relay()
    }

    /// Whether a peer is at an address without any doubt: the view has it there, or it says so and knows which relay is none any more.
    fn is_sure(&self, peer: &Peer, at: SocketAddr) -> bool {
        let said = || self.gone.is_known_to(peer) && peer.outside().places.contains(&at);
        peer.is_placed_at(at.ip()) || said()
    }

    /// Whether a relay is there, or was, and not this peer.
    fn is_relays(&self, peer: &Peer, at: SocketAddr) -> bool {
        if self.mirrors.is_at(at) {
            return true;
        }
        if !self.gone.is_at(at.ip()) {
            return false;
        }
        // Behind the same NAT as such a relay: those that are named see the peer there, and it knows which are.
        let informed = peer.authority().is_some_and(|held| held >= self.gone.document);
        let said = informed && peer.outside().places.contains(&at);
        !said && !peer.is_placed_at(at.ip())
    }

    /// Whether a peer may be found at an address: by knocks there, or from there.
    pub(super) fn may_knock_at(&self, peer: &Peer, at: SocketAddr, now: Instant) -> bool {
        let sure = || peer.heard_at() == Some(at) || self.is_sure(peer, at);
        peer.client || (!self.is_relays(peer, at) && (!self.is_wary(peer, now) || sure()))
    }

    /// Whether something that opens, and came from `at`, shows that the peer is there.
    pub(super) fn may_be_at(&self, peer: &Peer, at: SocketAddr, now: Instant) -> bool {
        let there = peer.heard_at() == Some(at) && !self.gone.is_at(at.ip());
        there || self.may_knock_at(peer, at, now)
    }

    /// As [`Self::may_be_at`], for the peer of a tunnel.
    pub(super) fn is_at_home(&self, tunnel: u32, from: Target, now: Instant) -> bool {
        let peer = self.tunnels.get(tunnel).and_then(|tunnel| self.peers.get(tunnel.peer));
        match from {
            Target::Udp(at) => peer.is_some_and(|peer| self.may_be_at(peer, at, now)),
            Target::Relay(_) => true,
        }
    }
}
