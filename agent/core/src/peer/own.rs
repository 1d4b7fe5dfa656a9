//! This gateway's own tunnel keys: several while it changes from one to the next, and one that stays for its clients.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{TunnelPublicKey, TunnelSecret};
use anteroom_proto::verdict::DropReason;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519::{PublicKey, StaticSecret};

use super::doorman::Checks;
use super::front::{Admission, Gates, initiator};
use super::random::Random;
use super::secret::OwnKem;

/// Most own keys that are in use at once; more are left out.
pub const MAX_OWN_KEYS: usize = 4;
/// How long nothing must have come through the tunnels of an old key before a peer counts as having left it.
pub(super) const DRAINED: Duration = Duration::from_secs(10);

/// A tunnel key of this gateway, and for whom it is.
#[derive(Debug, Clone)]
pub struct OwnKey {
    /// The private half.
    pub secret: TunnelSecret,
    /// Whether other gateways are spoken to with it.
    pub gateways: bool,
    /// Whether clients are, whose configuration names one key for good.
    pub clients: bool,
    /// What pre-shared keys with other gateways are agreed with, where it has that.
    pub kem: Option<OwnKem>,
}

impl OwnKey {
    /// A key for everybody.
    #[must_use]
    pub const fn for_all(secret: TunnelSecret) -> Self {
        Self { secret, gateways: true, clients: true, kem: None }
    }
}

/// Who still needs one of this gateway's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// The key.
    pub key: TunnelPublicKey,
    /// Peers that are live and haven't moved to a newer key, or may have something under way to this one.
    pub live: usize,
    /// Peers that aren't there, and have shown no newer key of theirs to work.
    pub away: usize,
    /// The first [`KeyUse::NAMED`] of those that are live.
    pub names: Vec<GatewayId>,
}

impl KeyUse {
    /// Most peers that are named for one key.
    pub const NAMED: usize = 8;
}

/// One own key, ready for use.
pub(super) struct Own {
    /// Tells it apart from all others that this table ever had.
    pub(super) number: u32,
    pub(super) key: TunnelPublicKey,
    pub(super) secret: StaticSecret,
    public: PublicKey,
    checks: Checks,
    pub(super) gateways: bool,
    pub(super) clients: bool,
    pub(super) kem: Option<OwnKem>,
}

impl Own {
    fn new(number: u32, key: &OwnKey) -> Self {
        let secret = StaticSecret::from(*key.secret.as_bytes());
        Self {
            number,
            key: key.secret.public(),
            public: PublicKey::from(&secret),
            secret,
            checks: Checks::new(key.secret.public()),
            gateways: key.gateways,
            clients: key.clients,
            kem: key.kem.clone(),
        }
    }

    /// What it agrees on pre-shared keys with, as long as it is for other gateways.
    pub(super) fn kem(&self) -> Option<&OwnKem> {
        self.kem.as_ref().filter(|_| self.gateways)
    }

    /// The limiter for a tunnel, which sees what was admitted here and counts nothing again.
    pub(super) fn limiter(&self) -> Arc<RateLimiter> {
        Arc::clone(&self.checks.calm)
    }

    /// Whether it is for peers of a kind.
    pub(super) const fn is_for(&self, client: bool) -> bool {
        if client { self.clients } else { self.gateways }
    }
}

/// The own keys, newest first, and what handshakes with them may cost. The allowances are common to all keys: another
/// key lets no more in.
pub(super) struct Owns {
    keys: Vec<Own>,
    next: u32,
    gates: Gates,
}

impl Owns {
    pub(super) fn new(secret: &TunnelSecret, random: &mut Random, now: Instant) -> Self {
        let first = Own::new(0, &OwnKey::for_all(secret.clone()));
        Self { keys: vec![first], next: 1, gates: Gates::new(random, now) }
    }

    /// Makes `keys` the own keys, newest first.
    pub(super) fn set(&mut self, keys: &[OwnKey]) {
        let mut before = std::mem::take(&mut self.keys);
        for key in keys.iter().take(MAX_OWN_KEYS) {
            let public = key.secret.public();
            if self.keys.iter().any(|own| own.key == public) {
                continue;
            }
            let held = before.iter().position(|own| own.key == public);
            let mut own = match held {
                Some(place) => before.swap_remove(place),
                None => {
                    self.next = self.next.wrapping_add(1);
                    Own::new(self.next.wrapping_sub(1), key)
                }
            };
            (own.gateways, own.clients) = (key.gateways, key.clients);
            own.kem.clone_from(&key.kem);
            self.keys.push(own);
        }
    }

    /// Whether the key with this number is one, and for peers of a kind.
    pub(super) fn serves(&self, number: u32, client: bool) -> bool {
        self.keys.iter().any(|own| own.number == number && own.is_for(client))
    }

    /// All of them, newest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Own> {
        self.keys.iter()
    }

    /// Whether pre-shared keys can be agreed on with any of them.
    pub(super) fn has_kem(&self) -> bool {
        self.keys.iter().any(|own| own.kem().is_some())
    }

    /// The newest for other gateways.
    pub(super) fn newest(&self) -> Option<TunnelPublicKey> {
        self.keys.iter().find(|own| own.gateways).map(|own| own.key)
    }

    /// Its place among the keys, 0 being the newest.
    pub(super) fn rank(&self, number: u32) -> Option<usize> {
        self.keys.iter().position(|own| own.number == number)
    }

    pub(super) fn has(&self, key: &TunnelPublicKey) -> bool {
        self.keys.iter().any(|own| own.key == *key)
    }

    /// Looks at an initiation, which doesn't say which key it is for, or at a response in a tunnel of the own key `of`.
    pub(super) fn admit(
        &mut self,
        of: Option<u32>,
        from: IpAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Admission {
        let own = match of {
            Some(number) => self.keys.iter().find(|own| own.number == number),
            None => addressed(&self.keys, datagram),
        };
        match own {
            Some(own) => self.gates.admit(&own.checks.loaded, from, datagram, now),
            None => Admission::Refused(DropReason::PeerUnauthenticated),
        }
    }

    /// The own key that an admitted initiation is for, and whose initiation it claims to be.
    pub(super) fn initiator(&self, datagram: &[u8]) -> Result<(u32, TunnelPublicKey), DropReason> {
        let own = addressed(&self.keys, datagram).ok_or(DropReason::PeerUnauthenticated)?;
        Ok((own.number, initiator(&own.secret, &own.public, datagram)?))
    }
}

/// The key that an initiation was made for: its outside is keyed with the public half.
fn addressed<'a>(keys: &'a [Own], datagram: &[u8]) -> Option<&'a Own> {
    match keys {
        [only] => Some(only),
        keys => keys.iter().find(|own| own.checks.are_met(datagram)),
    }
}
