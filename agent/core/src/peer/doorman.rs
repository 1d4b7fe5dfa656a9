//! Whose handshakes for lanes are let in, before any of them costs a multiplication on the curve. See [`crate::lane`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{TunnelPublicKey, TunnelSecret};
use anteroom_proto::verdict::DropReason;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519::PublicKey;
use hashbrown::HashMap;
use sha2::{Digest, Sha256};

use super::PeerSlot;
use super::front::{self, Admission, COOKIE_LEN, Gates, Kind};
use super::random::Random;
use super::table::CONTROL;
use crate::lane::{LaneId, Order};
use crate::sink::Sink;

/// Most peers at one address whose keys a handshake is compared with. Two are there while one takes another's place.
const MAX_AT_ONE: usize = 4;

/// The lane key for one peer. It is worth nothing to another one, nor to anybody once the peer is forgotten.
#[must_use]
pub fn secret_for(secret: &TunnelSecret, peer: GatewayId) -> TunnelSecret {
    // Both inputs have one length each, and what comes out is told to nobody: a plain digest is a good KDF then.
    let digest = Sha256::new()
        .chain_update(b"anteroom lane key for a peer\0")
        .chain_update(secret.as_bytes())
        .chain_update(peer.as_bytes());
    TunnelSecret::from_bytes(digest.finalize().into())
}

/// What lane keys are made from while a tunnel key of this gateway is its newest. Whoever knows what an agent drew at its start, and
/// not that tunnel key, can't make it: nor can whoever knows the tunnel key alone.
#[must_use]
pub(crate) fn secret_beside(drawn: &TunnelSecret, newest: &TunnelSecret) -> TunnelSecret {
    let digest = Sha256::new()
        .chain_update(b"anteroom lane secret beside a tunnel key\0")
        .chain_update(drawn.as_bytes())
        .chain_update(newest.as_bytes());
    TunnelSecret::from_bytes(digest.finalize().into())
}

/// This gateway's lane key for one peer, both halves. Copies share the private one, which is wiped with the last of them.
#[derive(Clone)]
pub struct OwnLaneKey(Arc<(TunnelSecret, TunnelPublicKey)>);

impl OwnLaneKey {
    /// That of [`secret_for`].
    #[must_use]
    pub fn new(secret: &TunnelSecret, peer: GatewayId) -> Self {
        let secret = secret_for(secret, peer);
        let public = secret.public();
        Self(Arc::new((secret, public)))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> TunnelPublicKey {
        self.0.1
    }

    pub(super) fn secret(&self) -> &TunnelSecret {
        &self.0.0
    }
}

impl std::fmt::Debug for OwnLaneKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OwnLaneKey").field(&self.public()).finish()
    }
}

impl PartialEq for OwnLaneKey {
    fn eq(&self, other: &Self) -> bool {
        self.public() == other.public()
    }
}

impl Eq for OwnLaneKey {}

/// What checks the outside of handshakes with one key: whether their sender knows it, and has a cookie.
pub(super) struct Checks {
    pub(super) calm: Arc<RateLimiter>,
    pub(super) loaded: RateLimiter,
}

impl Checks {
    pub(super) fn new(own: TunnelPublicKey) -> Self {
        let public = PublicKey::from(*own.as_bytes());
        let calm = Arc::new(RateLimiter::new(&public, u64::MAX));
        Self { calm, loaded: RateLimiter::new(&public, 0) }
    }

    /// Whether an initiation was made for the key.
    pub(super) fn are_met(&self, datagram: &[u8]) -> bool {
        let mut reply = [0; COOKIE_LEN];
        self.calm.verify_packet(None, datagram, &mut reply).is_ok()
    }
}

/// Something of each peer with which there are lanes, found by where the peer is.
pub(super) struct Guests<T> {
    by_number: HashMap<u32, (PeerSlot, SocketAddr, T), foldhash::fast::RandomState>,
    by_place: HashMap<SocketAddr, Vec<u32>, foldhash::fast::RandomState>,
}

impl<T> Guests<T> {
    pub(super) fn new() -> Self {
        Self { by_number: HashMap::default(), by_place: HashMap::default() }
    }

    pub(super) fn put(&mut self, peer: PeerSlot, to: SocketAddr, what: T) {
        self.remove_number(peer.index);
        self.by_number.insert(peer.index, (peer, to, what));
        self.by_place.entry(to).or_default().push(peer.index);
    }

    pub(super) fn get(&self, peer: PeerSlot) -> Option<&T> {
        let (holder, _, what) = self.by_number.get(&peer.index)?;
        (*holder == peer).then_some(what)
    }

    pub(super) fn get_mut(&mut self, peer: PeerSlot) -> Option<&mut T> {
        let (holder, _, what) = self.by_number.get_mut(&peer.index)?;
        (*holder == peer).then_some(what)
    }

    pub(super) fn move_to(&mut self, peer: PeerSlot, to: SocketAddr) {
        if self.get(peer).is_some()
            && let Some(what) = self.remove_number(peer.index)
        {
            self.put(peer, to, what);
        }
    }

    pub(super) fn remove(&mut self, peer: PeerSlot) -> Option<T> {
        self.get(peer)?;
        self.remove_number(peer.index)
    }

    /// Removes whoever has a slot's number.
    pub(super) fn remove_number(&mut self, number: u32) -> Option<T> {
        let (_, to, what) = self.by_number.remove(&number)?;
        if let Some(there) = self.by_place.get_mut(&to) {
            there.retain(|other| *other != number);
            if there.is_empty() {
                self.by_place.remove(&to);
            }
        }
        Some(what)
    }

    /// The peer there whose initiation this is, by the key that it was made for.
    fn find(
        &self,
        from: SocketAddr,
        datagram: &[u8],
        checks: impl Fn(&T) -> &Checks,
    ) -> Option<(PeerSlot, &T)> {
        let there = self.by_place.get(&from)?.iter().take(MAX_AT_ONE);
        let mut guests = there.filter_map(|number| self.by_number.get(number));
        let (peer, _, what) = guests.find(|(.., what)| checks(what).are_met(datagram))?;
        Some((*peer, what))
    }

    /// The lane that an initiation is for, by where it came from and the key that it was made for.
    pub(super) fn lane(
        &self,
        from: SocketAddr,
        datagram: &[u8],
        checks: impl Fn(&T) -> &Checks,
    ) -> Option<(LaneId, &T)> {
        let (peer, what) = self.find(from, datagram, checks)?;
        // The lane stands in the index that the sender chose.
        let lane = datagram.get(7).map_or(0, |byte| byte & 0x0f);
        Some((LaneId { peer, lane }, what))
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }
}

/// Tells which handshakes are for lanes, and lets in as many as there may be. A peer begins them from where lane 0 has
/// it, so the address names whose key is to be tried: it takes a digest or two, however many peers there are.
pub struct Doorman {
    gates: Gates,
    guests: Guests<Checks>,
}

impl std::fmt::Debug for Doorman {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doorman").field("guests", &self.guests.len()).finish_non_exhaustive()
    }
}

impl Doorman {
    /// One that knows nobody. `seed`: 32 unpredictable bytes.
    #[must_use]
    pub fn new(seed: &[u8; 32], now: Instant) -> Self {
        Self { gates: Gates::new(&mut Random::new(seed), now), guests: Guests::new() }
    }

    /// Takes note of what whoever runs the lanes is told.
    pub fn note(&mut self, order: &Order) {
        match order {
            Order::Know { peer, own, to, .. } => {
                self.guests.put(*peer, *to, Checks::new(own.public()));
            }
            Order::Move { peer, to } => self.guests.move_to(*peer, *to),
            Order::Forget { peer } => drop(self.guests.remove(*peer)),
            Order::Expect { .. } | Order::Open(_) => {}
        }
    }

    /// The lane that an initiation is for, once it is let in. `None`: it is for none, nor is anything else.
    ///
    /// # Errors
    /// [`DropReason::HandshakeLimit`] when there are too many. Where a cookie helps, one was sent.
    pub fn admit(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<Option<LaneId>, DropReason> {
        if front::classify(datagram) != Ok(Kind::Initiation) {
            return Ok(None);
        }
        let Some((at, checks)) = self.guests.lane(from, datagram, |checks| checks) else {
            return Ok(None);
        };
        match self.gates.admit(&checks.loaded, from.ip(), datagram, now) {
            Admission::Admitted => Ok(Some(at)),
            Admission::Refused(reason) => Err(reason),
            Admission::Cookie(cookie) => {
                out.datagram(from, CONTROL, COOKIE_LEN, |buffer| {
                    buffer.get_mut(..COOKIE_LEN).map_or(0, |room| {
                        room.copy_from_slice(&cookie);
                        COOKIE_LEN
                    })
                });
                Err(DropReason::HandshakeLimit)
            }
        }
    }
}
