//! QUIC between two gateways with no relay in between (ALPN [`ALPN`]): for networks that block WireGuard's UDP and let
//! QUIC through.
//!
//! Nothing is said on such a connection: both ends know each other by their identity keys, and what travels are sealed
//! packets, as QUIC datagrams, as through a relay ([`crate::relay::packet`]); the other end's number is [`PEER`]. One
//! datagram is none of these: [`LEAVES`].
//!
//! Whoever listens answers nobody but its peers. The connection id of a dialler's first packet shows that it knows what
//! only the two identity keys can agree on ([`Knock`]); what doesn't gets no answer.

use std::fmt;

use zeroize::Zeroizing;

use crate::key::{IdentityKey, PublicKey};
use crate::keyed::hmac;
use crate::relay::packet::PeerNumber;

/// The protocol's name in TLS.
pub const ALPN: &[u8] = b"anteroom-direct/1";
/// What an agent says in its greeting to a controller (`v1::Hello`) if it takes peers' QUIC ports in views.
pub const CAPABILITY: &str = "quic";
/// Length of a [knock](Knock), in bytes: the longest connection id.
pub const KNOCK_LEN: usize = 20;
/// Length of a dialler's [hint](Knock::hint), in bytes.
pub const HINT_LEN: usize = 4;

const NONCE_LEN: usize = 8;
const CODE_LEN: usize = KNOCK_LEN - HINT_LEN - NONCE_LEN;

/// The number of the other end in packets: there is no third.
pub const PEER: PeerNumber = PeerNumber::FIRST;
/// The whole of a datagram by which one end says that it sends by other ways from now on, and ends the connection once
/// the other had time to do so too. Ends that don't know it read past it, as past all that is no packet.
pub const LEAVES: [u8; 2] = [0xff, 0xfd];

/// How one gateway shows another that it is the peer that it says, before anything is answered.
///
/// ```text
/// hint (4)      which pair of keys, and which of the two dials
/// nonce (8)     at random, so that no two are alike
/// code (8)      of both, by a key of the pair
/// ```
#[derive(Clone)]
pub struct Knock {
    key: Zeroizing<[u8; 32]>,
    hint: [u8; HINT_LEN],
}

impl Knock {
    /// What `own` knocks with at `peer`. None for a key with which nothing can be agreed on.
    #[must_use]
    pub fn at(own: &IdentityKey, peer: &PublicKey) -> Option<Self> {
        Self::between(own, peer, &own.public())
    }

    /// What `peer` knocks with at `own`.
    #[must_use]
    pub fn from(own: &IdentityKey, peer: &PublicKey) -> Option<Self> {
        Self::between(own, peer, peer)
    }

    fn between(own: &IdentityKey, peer: &PublicKey, dialler: &PublicKey) -> Option<Self> {
        let agreed = own.agree("anteroom direct knock", peer)?;
        let key = Zeroizing::new(hmac(agreed.as_slice(), &[b"code", dialler.as_bytes()]));
        let mut hint = [0; HINT_LEN];
        hint.copy_from_slice(&hmac(agreed.as_slice(), &[b"hint", dialler.as_bytes()])[..HINT_LEN]);
        Some(Self { key, hint })
    }

    /// What tells a listener whose knock it may be.
    #[must_use]
    pub const fn hint(&self) -> [u8; HINT_LEN] {
        self.hint
    }

    /// The knock with this nonce, which must be random.
    #[must_use]
    pub fn with(&self, nonce: [u8; NONCE_LEN]) -> [u8; KNOCK_LEN] {
        let mut bytes = [0; KNOCK_LEN];
        let (hint, rest) = bytes.split_at_mut(HINT_LEN);
        let (at, code) = rest.split_at_mut(NONCE_LEN);
        hint.copy_from_slice(&self.hint);
        at.copy_from_slice(&nonce);
        code.copy_from_slice(&self.code(nonce));
        bytes
    }

    /// Whether these bytes are such a knock. Whether it comes for the first time is the listener's to know.
    #[must_use]
    pub fn is_good(&self, bytes: &[u8; KNOCK_LEN]) -> bool {
        let (hint, rest) = bytes.split_at(HINT_LEN);
        let (nonce, code) = rest.split_at(NONCE_LEN);
        let Ok(nonce) = <[u8; NONCE_LEN]>::try_from(nonce) else { return false };
        let differs = self.code(nonce).iter().zip(code).fold(0, |sum, (a, b)| sum | (a ^ b));
        hint == self.hint && differs == 0
    }

    fn code(&self, nonce: [u8; NONCE_LEN]) -> [u8; CODE_LEN] {
        let mut code = [0; CODE_LEN];
        code.copy_from_slice(&hmac(self.key.as_slice(), &[&nonce])[..CODE_LEN]);
        code
    }
}

impl fmt::Debug for Knock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Knock(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    #[test]
    fn both_ends_make_the_same_knock_and_nobody_else_does() {
        let (a, b, c) = (identity(1), identity(2), identity(3));
        let knock = Knock::at(&a, &b.public()).unwrap();
        let heard = Knock::from(&b, &a.public()).unwrap();
        let bytes = knock.with([7; 8]);
        assert_eq!(heard.hint(), knock.hint());
        assert!(heard.is_good(&bytes));
        for other in [
            // The other way round, and of a third.
            Knock::at(&b, &a.public()),
            Knock::from(&b, &c.public()),
            Knock::from(&c, &a.public()),
        ] {
            let other = other.unwrap();
            assert!(!other.is_good(&bytes));
            assert_ne!(other.hint(), knock.hint());
        }
        assert_ne!(bytes, knock.with([8; 8]));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!heard.is_good(&changed), "bit {bit}");
        }
        assert_eq!(format!("{knock:?}"), "Knock(..)");
    }

    proptest! {
        #[test]
        fn no_other_bytes_are_good(bytes in any::<[u8; KNOCK_LEN]>()) {
            let knock = Knock::at(&identity(1), &identity(2).public()).unwrap();
            prop_assert!(!knock.is_good(&bytes));
            let mut hinted = bytes;
            hinted[..HINT_LEN].copy_from_slice(&knock.hint());
            prop_assert!(!knock.is_good(&hinted));
        }
    }
}
