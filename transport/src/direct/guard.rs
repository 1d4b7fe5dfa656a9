//! What stands between the socket and QUIC: datagrams of peers pass, all others never were.
//!
//! A first packet passes if its connection id is a [`Knock`] of a peer that comes for the first time: who records one
//! and plays it back from elsewhere gets no answer. All later packets bear a connection id that this end made, which
//! nobody can make up: it carries a code. Versions other than QUIC's first aren't negotiated, which would be an answer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anteroom_proto::direct::{HINT_LEN, KNOCK_LEN, Knock, digest};
use anteroom_proto::key::PublicKey;
use aws_lc_rs::rand;
use quinn::udp::RecvMeta;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

use crate::sifted::Sift;

/// Length of the connection ids that this end makes, and of the random part.
pub(super) const ID_LEN: usize = 12;
const RANDOM_LEN: usize = 5;

/// Knocks of one peer that are remembered: as many as it needs in half an hour of trying.
const REMEMBERED: usize = 256;
/// Most addresses whose short packets pass unlooked at.
const MOST_KNOWN: usize = 1024;
/// Shortest datagram that may begin a connection (RFC 9000, 14.1).
const FIRST_LEN: usize = 1200;

const LONG: u8 = 0x80;
const FIXED: u8 = 0x40;
const KIND: u8 = 0x30;
const VERSION: [u8; 4] = [0, 0, 0, 1];

/// Makes connection ids that nobody else can make.
#[derive(Clone)]
pub(super) struct Ids {
    key: [u8; 32],
}

impl Ids {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    fn of(&self, random: [u8; RANDOM_LEN]) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        id[..RANDOM_LEN].copy_from_slice(&random);
        let code = digest(&self.key, &[&random]);
        id[RANDOM_LEN..].copy_from_slice(&code[..ID_LEN - RANDOM_LEN]);
        id
    }

    fn is_own(&self, id: &[u8]) -> bool {
        let Some(random) = id.first_chunk() else { return false };
        let own = self.of(*random);
        id.len() == ID_LEN && own.iter().zip(id).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut random = [0; RANDOM_LEN];
        // Without random bytes no handshake comes so far.
        let _ = rand::fill(&mut random);
        ConnectionId::new(&self.of(random))
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if self.is_own(id) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// One that may knock.
struct Peer {
    key: PublicKey,
    knock: Knock,
    /// What it knocked with, and where from.
    seen: VecDeque<([u8; KNOCK_LEN], SocketAddr)>,
}

impl Peer {
    /// Whether it is a good knock that is new, or comes again from where it came from first.
    fn takes(&mut self, knock: &[u8; KNOCK_LEN], from: SocketAddr) -> bool {
        if !self.knock.is_good(knock) {
            return false;
        }
        if let Some((_, first)) = self.seen.iter().find(|(seen, _)| seen == knock) {
            return *first == from;
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back((*knock, from));
        true
    }
}

#[derive(Default)]
struct State {
    peers: HashMap<[u8; HINT_LEN], Vec<Peer>>,
    /// Where packets with an id of ours came from.
    known: HashSet<SocketAddr>,
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
        peers: &[PublicKey],
        knock: impl Fn(&PublicKey) -> Option<Knock>,
    ) {
        let wanted: HashSet<PublicKey> = peers.iter().copied().collect();
        let known: HashSet<PublicKey> =
            self.state().peers.values().flatten().map(|peer| peer.key).collect();
        // It takes a while, for which nothing need wait.
        let new: Vec<Peer> = wanted
            .difference(&known)
            .filter_map(|key| Some(Peer { key: *key, knock: knock(key)?, seen: VecDeque::new() }))
            .collect();
        let mut state = self.state();
        state.peers.retain(|_, peers| {
            peers.retain(|peer| wanted.contains(&peer.key));
            !peers.is_empty()
        });
        for peer in new {
            state.peers.entry(peer.knock.hint()).or_default().push(peer);
        }
    }

    pub(super) fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    fn passes(&self, state: &mut State, from: SocketAddr, datagram: &[u8]) -> bool {
        let Some(first) = datagram.first().filter(|first| *first & FIXED != 0) else {
            return false;
        };
        if first & LONG == 0 {
            if state.known.contains(&from) {
                return true;
            }
            let id = datagram.get(1..=ID_LEN).unwrap_or_default();
            return self.ids.is_own(id) && state.meet(from);
        }
        if datagram.get(1..5) != Some(&VERSION) {
            return false;
        }
        let Some(id) = datagram.get(5).and_then(|len| datagram.get(6..6 + usize::from(*len)))
        else {
            return false;
        };
        if self.ids.is_own(id) {
            return state.meet(from);
        }
        let Ok(knock) = <&[u8; KNOCK_LEN]>::try_from(id) else { return false };
        let Some(peers) = knock.first_chunk().and_then(|hint| state.peers.get_mut(hint)) else {
            return false;
        };
        let begins = first & KIND == 0 && datagram.len() >= FIRST_LEN;
        begins && peers.iter_mut().any(|peer| peer.takes(knock, from))
    }
}

impl Sift for Guard {
    fn sift(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let len = meta.len.min(buffer.len());
        // Merged datagrams are of one sender and one length, whatever is in them.
        let stride = meta.stride.max(1);
        let mut state = self.state();
        let mut kept = 0;
        for start in (0..len).step_by(stride) {
            let end = (start + stride).min(len);
            let Some(datagram) = buffer.get(start..end) else { break };
            if self.passes(&mut state, meta.addr, datagram) {
                if kept != start {
                    buffer.copy_within(start..end, kept);
                }
                kept += end - start;
            } else {
                self.turned_away.fetch_add(1, Ordering::Relaxed);
            }
        }
        meta.len = kept;
    }
}

impl State {
    fn meet(&mut self, from: SocketAddr) -> bool {
        if self.known.len() >= MOST_KNOWN {
            // Who is still there is met again with the next packet.
            self.known.clear();
        }
        self.known.insert(from);
        true
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::key::IdentityKey;
    use proptest::prelude::*;

    use super::*;

    fn identity(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    fn guard() -> Guard {
        let own = identity(1);
        let guard = Guard::new(Ids::new([9; 32]));
        guard
            .set_peers(&[identity(2).public(), identity(3).public()], |key| Knock::from(&own, key));
        guard
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn long(kind: u8, version: [u8; 4], id: &[u8], len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.max(6 + id.len())];
        bytes[0] = LONG | FIXED | kind;
        bytes[1..5].copy_from_slice(&version);
        bytes[5] = u8::try_from(id.len()).unwrap();
        bytes[6..6 + id.len()].copy_from_slice(id);
        bytes
    }

    fn short(id: &[u8]) -> Vec<u8> {
        [&[FIXED], id, &[0; 40]].concat()
    }

    fn knock(seed: u8, nonce: u8) -> [u8; KNOCK_LEN] {
        Knock::at(&identity(seed), &identity(1).public()).unwrap().with([nonce; 8])
    }

    fn passes(guard: &Guard, from: SocketAddr, datagram: &[u8]) -> bool {
        guard.passes(&mut guard.state(), from, datagram)
    }

    #[test]
    fn a_knock_of_a_peer_passes_once_and_again_from_the_same_place_only() {
        let guard = guard();
        let first = long(0, VERSION, &knock(2, 1), FIRST_LEN);
        assert!(passes(&guard, at(1), &first));
        assert!(passes(&guard, at(1), &first), "sent again");
        assert!(!passes(&guard, at(2), &first), "played back");
        assert!(passes(&guard, at(2), &long(0, VERSION, &knock(2, 2), FIRST_LEN)));
        assert!(passes(&guard, at(2), &long(0, VERSION, &knock(3, 1), FIRST_LEN)));
        let stranger = long(0, VERSION, &knock(4, 1), FIRST_LEN);
        assert!(!passes(&guard, at(1), &stranger));
        assert!(!passes(&guard, at(1), &long(0, VERSION, &knock(2, 3), FIRST_LEN - 1)));
        assert!(!passes(&guard, at(1), &long(0, [0, 0, 0, 2], &knock(2, 3), FIRST_LEN)));
        assert!(!passes(&guard, at(1), &long(0x10, VERSION, &knock(2, 3), FIRST_LEN)));

        // Who is no peer any more knocks in vain, and what was heard of the others is kept.
        let own = identity(1);
        guard.set_peers(&[identity(2).public()], |key| Knock::from(&own, key));
        assert!(!passes(&guard, at(3), &long(0, VERSION, &knock(3, 9), FIRST_LEN)));
        assert!(!passes(&guard, at(3), &first));
        assert!(passes(&guard, at(3), &long(0, VERSION, &knock(2, 9), FIRST_LEN)));
    }

    #[test]
    fn what_is_remembered_of_knocks_is_bounded() {
        let guard = guard();
        let of = |nonce: u64| {
            let at = Knock::at(&identity(2), &identity(1).public()).unwrap();
            long(0, VERSION, &at.with(nonce.to_be_bytes()), FIRST_LEN)
        };
        let most = REMEMBERED as u64;
        assert!((0..most + 10).all(|nonce| passes(&guard, at(1), &of(nonce))));
        assert!((10..most + 10).all(|nonce| !passes(&guard, at(2), &of(nonce))));
        let state = guard.state();
        assert!(state.peers.values().flatten().all(|peer| peer.seen.len() <= REMEMBERED));
    }

    #[test]
    fn later_packets_pass_by_an_id_that_this_end_made() {
        let guard = guard();
        let mut ids = Ids::new([9; 32]);
        let own = ids.generate_cid();
        assert!(ids.validate(&own).is_ok());
        let foreign = Ids::new([8; 32]).generate_cid();
        assert!(ids.validate(&foreign).is_err());
        assert!(!passes(&guard, at(1), &short(&foreign)));
        assert!(!passes(&guard, at(1), &long(0x20, VERSION, &foreign, 100)));
        assert!(passes(&guard, at(1), &short(&own)));
        assert!(passes(&guard, at(2), &long(0x20, VERSION, &own, 100)), "from elsewhere");
        // From where one came, what QUIC itself may make of the others is its matter: it knows the code, too.
        assert!(passes(&guard, at(1), &short(&foreign)));
        assert!(!passes(&guard, at(3), &short(&foreign)));
        for port in 0..5_000 {
            assert!(passes(&guard, at(port), &short(&own)));
        }
        assert!(guard.state().known.len() <= MOST_KNOWN);
    }

    #[test]
    fn strays_are_taken_out_of_what_was_merged() {
        let guard = guard();
        let own = Ids::new([9; 32]).generate_cid();
        let good = |mark: u8| {
            let mut bytes = short(&own);
            bytes.resize(60, mark);
            bytes
        };
        let stray = vec![1; 60];
        let mut buffer = [good(1), stray.clone(), good(2), stray, good(3)[..50].to_vec()].concat();
        let mut meta =
            RecvMeta { addr: at(1), len: buffer.len(), stride: 60, ..RecvMeta::default() };
        guard.sift(&mut buffer, &mut meta);
        assert_eq!(buffer[..meta.len], [good(1), good(2), good(3)[..50].to_vec()].concat());
        assert_eq!(guard.turned_away(), 2);
    }

    proptest! {
        #[test]
        fn nothing_made_up_passes(
            bytes in proptest::collection::vec(any::<u8>(), 0..1400),
            stride in 0_usize..1500,
            hinted: bool,
        ) {
            let guard = guard();
            let mut bytes = bytes;
            if hinted && bytes.len() > 40 {
                let begin = long(0, VERSION, &knock(2, 7)[..19], 0);
                bytes[..begin.len()].copy_from_slice(&begin);
                bytes[5] = 20;
                bytes[25] = !knock(2, 7)[19];
            }
            let mut meta = RecvMeta { addr: at(1), len: bytes.len(), stride, ..RecvMeta::default() };
            guard.sift(&mut bytes, &mut meta);
            prop_assert_eq!(meta.len, 0);
        }
    }
}
