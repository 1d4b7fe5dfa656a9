//! What stands between the socket and QUIC: datagrams of peers pass, all others never were.
//!
//! A first packet passes if its connection id is a [`Knock`] of a peer that comes for the first time: who records one
//! and plays it back from elsewhere, or later, gets no answer. All later packets bear a connection id that this end made,
//! which nobody can make up: it carries a code. Such ids are in the clear, so one alone begins nothing: an initial packet
//! that bears one passes only from where somebody knocked, or was called, a moment ago. Versions other than QUIC's first
//! aren't negotiated, which would be an answer.
//!
//! An id also tells whether this run of the program made it. What bears one of an earlier run is of a peer that doesn't
//! know yet that its connection is gone; from an address of a peer it passes, and QUIC answers with a reset.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anteroom_proto::direct::{HINT_LEN, KNOCK_LEN, Knock};
use anteroom_proto::key::PublicKey;
use anteroom_proto::keyed::hmac;
use anteroom_proto::relay::mirror::QUIC_BIT;
use aws_lc_rs::rand;
use quinn::udp::RecvMeta;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

use super::Caller;
use super::shared::retain;
use crate::sifted::Sift;

/// Length of the connection ids that this end makes, and of the part that stands before the code: the number of the
/// program's run, and random bytes.
pub(super) const ID_LEN: usize = 12;
const MADE_LEN: usize = 6;
/// Length of a run's number.
pub(super) const RUN_LEN: usize = 2;

/// Knocks of one peer that are remembered: as many as it needs in half an hour of trying.
const REMEMBERED: usize = 256;
/// For how long, and of how many, they are remembered once it is no peer.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);
const MOST_LEFT: usize = 1024;
/// Least time between two knocks of one peer. A dialler gives each address longer.
const PACE: Duration = Duration::from_secs(2);
/// How long a handshake may take: so long a knock may come again, and initial packets with an id of this end's pass.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most addresses with which a handshake is under way.
const MOST_BEGUN: usize = 4096;
/// Shortest datagram that may begin a connection (RFC 9000, 14.1).
const FIRST_LEN: usize = 1200;

const LONG: u8 = 0x80;
const KIND: u8 = 0x30;
const VERSION: [u8; 4] = [0, 0, 0, 1];

/// When this end made a connection id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Now,
    InAnEarlierRun,
}

/// Makes connection ids that nobody else can make.
#[derive(Clone)]
pub(super) struct Ids {
    key: [u8; 32],
    run: [u8; RUN_LEN],
}

impl Ids {
    /// `key` is the same in each run, `run` differs as a rule.
    pub(super) fn new(key: [u8; 32], run: [u8; RUN_LEN]) -> Self {
        Self { key, run }
    }

    fn of(&self, made: [u8; MADE_LEN]) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        id[..MADE_LEN].copy_from_slice(&made);
        let code = hmac(&self.key, &[&made]);
        id[MADE_LEN..].copy_from_slice(&code[..ID_LEN - MADE_LEN]);
        id
    }

    /// When this end made an id, if it did: what the id says of that, which anybody can write.
    fn says(&self, id: &[u8]) -> Option<Made> {
        let run = id.first_chunk().filter(|_| id.len() == ID_LEN)?;
        Some(if *run == self.run { Made::Now } else { Made::InAnEarlierRun })
    }

    /// Whether this end made it, which costs a code.
    fn is_own(&self, id: &[u8]) -> bool {
        id.first_chunk().filter(|_| id.len() == ID_LEN).is_some_and(|made| {
            self.of(*made).iter().zip(id).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
        })
    }

    /// None if somebody else made it.
    fn made(&self, id: &[u8]) -> Option<Made> {
        self.says(id).filter(|_| self.is_own(id))
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut made = [0; MADE_LEN];
        // Without random bytes no handshake comes so far.
        let _ = rand::fill(&mut made);
        made[..RUN_LEN].copy_from_slice(&self.run);
        ConnectionId::new(&self.of(made))
    }

    /// What QUIC answers with a reset, where it knows no such connection. One of this run has ended, and whoever plays
    /// its packets back isn't told so.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match self.made(id) {
            Some(Made::InAnEarlierRun) => Ok(()),
            Some(Made::Now) | None => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// An address without what only some sockets say of it.
type Place = (IpAddr, u16);

fn place(address: SocketAddr) -> Place {
    (address.ip().to_canonical(), address.port())
}

/// What a peer knocked with, where from, and when.
struct Seen {
    knock: [u8; KNOCK_LEN],
    from: Place,
    at: Instant,
}

/// One that may knock.
struct Peer {
    key: PublicKey,
    knock: Knock,
    seen: VecDeque<Seen>,
}

impl Peer {
    /// Whether it is a good knock that is new, or comes again from where it came from first.
    fn takes(&mut self, knock: &[u8; KNOCK_LEN], from: Place, now: Instant) -> bool {
        if !self.knock.is_good(knock) {
            return false;
        }
        let passed = |since: Instant| now.saturating_duration_since(since);
        if let Some(seen) = self.seen.iter().find(|seen| seen.knock == *knock) {
            return seen.from == from && passed(seen.at) <= HANDSHAKE;
        }
        if self.seen.back().is_some_and(|last| passed(last.at) < PACE) {
            // It is sent again.
            return false;
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back(Seen { knock: *knock, from, at: now });
        true
    }
}

#[derive(Default)]
struct State {
    peers: HashMap<[u8; HINT_LEN], Vec<Peer>>,
    /// What was heard of those that were peers lately, and since when they are none.
    left: HashMap<PublicKey, (Instant, VecDeque<Seen>)>,
    /// Peers' addresses, as far as they are known beforehand.
    homes: HashSet<IpAddr>,
    /// With whom a handshake began, and when.
    begun: HashMap<Place, Instant>,
    /// Where the other ends of connections are.
    live: HashSet<Place>,
}

/// Decides what QUIC gets to see.
pub(super) struct Guard {
    ids: Ids,
    state: Mutex<State>,
    turned_away: AtomicU64,
}

impl Guard {
    pub(super) fn new(ids: Ids) -> Self {
        Self { ids, state: Mutex::default(), turned_away: AtomicU64::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A knock that was half noted is one that comes again.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over who may knock. What was heard of those that stay is kept.
    pub(super) fn set_peers(
        &self,
        peers: &[Caller],
        knock: impl Fn(&PublicKey) -> Option<Knock>,
        now: Instant,
    ) {
        let wanted: HashSet<PublicKey> = peers.iter().map(|peer| peer.key).collect();
        let known: HashSet<PublicKey> = {
            let mut state = self.state();
            // Those that are none any more first: what is new takes a while.
            state.keep(&wanted, now);
            let homes = peers.iter().flat_map(|peer| &peer.addresses);
            state.homes = homes.map(IpAddr::to_canonical).collect();
            state.peers.values().flatten().map(|peer| peer.key).collect()
        };
        for key in wanted.difference(&known) {
            let Some(knock) = knock(key) else { continue };
            self.state().add(*key, knock);
        }
    }

    /// Says with whom there are connections: short packets from there pass unlooked at.
    pub(super) fn set_live(&self, addresses: impl Iterator<Item = SocketAddr>) {
        let live = addresses.map(place).collect();
        self.state().live = live;
    }

    /// This end calls there: what comes back from there may begin a connection.
    pub(super) fn calls(&self, address: SocketAddr, now: Instant) {
        self.state().begin(place(address), now);
    }

    /// Whose knock this is, of those that are peers now.
    pub(super) fn whose(&self, id: &[u8]) -> Option<PublicKey> {
        let knock = <&[u8; KNOCK_LEN]>::try_from(id).ok()?;
        let state = self.state();
        let peers = state.peers.get(knock.first_chunk()?)?;
        peers.iter().find(|peer| peer.knock.is_good(knock)).map(|peer| peer.key)
    }

    pub(super) fn turn_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    fn passes(&self, state: &mut State, from: Place, datagram: &[u8], now: Instant) -> bool {
        let Some(first) = datagram.first().filter(|first| *first & QUIC_BIT != 0) else {
            return false;
        };
        if first & LONG == 0 {
            if state.live.contains(&from) {
                return true;
            }
            let id = datagram.get(1..=ID_LEN).unwrap_or_default();
            let may_pass = match self.ids.says(id) {
                // Also from elsewhere: a peer's address changes under way.
                Some(Made::Now) => true,
                Some(Made::InAnEarlierRun) => state.homes.contains(&from.0),
                None => false,
            };
            // Last, or whoever guesses would have this end work for each guess.
            return may_pass && self.ids.is_own(id);
        }
        if datagram.get(1..5) != Some(&VERSION) {
            return false;
        }
        let Some(id) = datagram.get(5).and_then(|len| datagram.get(6..6 + usize::from(*len)))
        else {
            return false;
        };
        let initial = first & KIND == 0;
        match self.ids.made(id) {
            Some(Made::Now) => return !initial || state.has_begun(from, now),
            Some(Made::InAnEarlierRun) => return false,
            None => {}
        }
        let Ok(knock) = <&[u8; KNOCK_LEN]>::try_from(id) else { return false };
        let Some(peers) = knock.first_chunk().and_then(|hint| state.peers.get_mut(hint)) else {
            return false;
        };
        initial
            && datagram.len() >= FIRST_LEN
            && peers.iter_mut().any(|peer| peer.takes(knock, from, now))
            && state.begin(from, now)
    }
}

impl Sift for Guard {
    fn sift(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let len = meta.len.min(buffer.len());
        let (from, now) = (place(meta.addr), Instant::now());
        let mut state = self.state();
        meta.len = retain(&mut buffer[..len], meta.stride, |datagram| {
            let passes = self.passes(&mut state, from, datagram, now);
            if !passes {
                self.turn_away();
            }
            passes
        });
    }
}

impl State {
    /// Keeps those peers alone, and for a while what was heard of the others.
    fn keep(&mut self, wanted: &HashSet<PublicKey>, now: Instant) {
        let left = &mut self.left;
        left.retain(|_, (since, _)| now.saturating_duration_since(*since) < REMEMBERED_FOR);
        self.peers.retain(|_, peers| {
            for gone in peers.extract_if(.., |peer| !wanted.contains(&peer.key)) {
                if !gone.seen.is_empty() && left.len() < MOST_LEFT {
                    left.insert(gone.key, (now, gone.seen));
                }
            }
            !peers.is_empty()
        });
    }

    fn add(&mut self, key: PublicKey, knock: Knock) {
        let seen = self.left.remove(&key).map(|(_, seen)| seen).unwrap_or_default();
        self.peers.entry(knock.hint()).or_default().push(Peer { key, knock, seen });
    }

    /// Notes that a handshake begins. False where there are too many.
    fn begin(&mut self, with: Place, now: Instant) -> bool {
        if self.begun.len() >= MOST_BEGUN && !self.begun.contains_key(&with) {
            self.begun.retain(|_, at| now.saturating_duration_since(*at) <= HANDSHAKE);
            if self.begun.len() >= MOST_BEGUN {
                return false;
            }
        }
        self.begun.insert(with, now);
        true
    }

    fn has_begun(&self, with: Place, now: Instant) -> bool {
        let began = self.begun.get(&with);
        began.is_some_and(|at| now.saturating_duration_since(*at) <= HANDSHAKE)
    }
}

#[cfg(test)]
mod tests;
