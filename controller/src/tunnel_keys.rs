//! Whose tunnel key is whose.
//!
//! A gateway signs its tunnel keys with its identity key, which proves that it wants them and not that it holds
//! them. WireGuard proves that at the peer; until then a stolen gateway could give another's key out as its own, and
//! peers would be left with one key for two gateways. So the first gateway that names a key keeps it.
//!
//! A controller that came from a backup may hear the thief first. Who comes second is served all the same, without that key, and
//! asked for another one.
//!
//! A client's key has operators' word for it, and is the client's for good: no gateway may name it, and none that a gateway has is
//! given to a client. Peers would leave that gateway without it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::key::TunnelPublicKey;

use crate::store::GatewayFacts;

/// Refused claims that are remembered, so that each is audited once.
const MAX_NOTED: usize = 1024;

/// Whose a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A gateway's.
    Gateway(GatewayId),
    /// A client's, by the word of operators.
    Client(MemberId),
}

/// As a gateway may hear it, which needn't know of clients that aren't its own.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(gateway) => write!(f, "another gateway's ({gateway})"),
            Self::Client(_) => f.write_str("a client's"),
        }
    }
}

/// A tunnel key that isn't the gateway's to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("tunnel key {key} is {holder}")]
pub struct KeyTaken {
    /// The key.
    pub key: TunnelPublicKey,
    /// Who has it.
    pub holder: Holder,
    /// Whether this gateway claims it for the first time, as far as is remembered.
    pub news: bool,
}

/// A key that can't be a client's, since a gateway has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the WireGuard key {} of client {client} is gateway {gateway}'s", .key.to_wireguard())]
pub struct GatewaysKey {
    /// The key.
    pub key: TunnelPublicKey,
    /// Who was to have it.
    pub client: MemberId,
    /// Who has it.
    pub gateway: GatewayId,
}

#[derive(Debug, Default)]
struct Keys {
    /// Clients', those that were revoked included. They come first, whatever gateways named before.
    clients: HashMap<TunnelPublicKey, MemberId>,
    holders: HashMap<TunnelPublicKey, GatewayId>,
    held: HashMap<GatewayId, Vec<TunnelPublicKey>>,
    noted: HashSet<(GatewayId, TunnelPublicKey)>,
}

impl Keys {
    /// Who has `key`, where that isn't this gateway.
    fn other_holder(&self, gateway: GatewayId, key: &TunnelPublicKey) -> Option<Holder> {
        let client = self.clients.get(key).copied().map(Holder::Client);
        client.or_else(|| {
            let holder = self.holders.get(key).filter(|holder| **holder != gateway);
            holder.copied().map(Holder::Gateway)
        })
    }
}

/// Which gateway has which tunnel keys now, and which are clients'.
#[derive(Debug, Default)]
pub struct TunnelKeys(Mutex<Keys>);

impl TunnelKeys {
    /// What was stored. Revoked gateways keep theirs: no other gateway ever has reason to name them.
    #[must_use]
    pub fn load(gateways: BTreeMap<GatewayId, GatewayFacts>) -> Self {
        let keys = Self::default();
        for (gateway, facts) in gateways {
            let Some(reachable) = facts.reachable else { continue };
            if let Err(error) = keys.claim(gateway, &reachable.keys) {
                tracing::warn!(%gateway, %error, "stored all the same");
            }
        }
        keys
    }

    /// Makes the checked `keys` those of `gateway`, and no others.
    ///
    /// # Errors
    /// [`KeyTaken`] where another gateway or a client has one of them. Nothing is changed then.
    pub fn claim(
        &self,
        gateway: GatewayId,
        keys: &[Signed<TunnelKeyBinding>],
    ) -> Result<(), KeyTaken> {
        let wanted: Vec<TunnelPublicKey> = keys
            .iter()
            .filter_map(|key| key.verify_self_named().ok())
            .map(|binding| binding.x25519)
            .collect();
        let mut all = self.lock();
        let taken = wanted.iter().find_map(|key| Some((*key, all.other_holder(gateway, key)?)));
        if let Some((key, holder)) = taken {
            let news = all.noted.len() < MAX_NOTED && all.noted.insert((gateway, key));
            return Err(KeyTaken { key, holder, news });
        }
        for old in all.held.remove(&gateway).unwrap_or_default() {
            all.holders.remove(&old);
        }
        for key in &wanted {
            all.holders.insert(*key, gateway);
        }
        all.held.insert(gateway, wanted);
        Ok(())
    }

    /// Makes these keys the clients', and no others, unless some gateway has one that wasn't a client's before. One that is `revoked`
    /// keeps none from a client: no peer has it any more, and a stolen one may have named its clients' keys.
    ///
    /// # Errors
    /// [`GatewaysKey`]. Nothing is changed then.
    pub fn admit_clients(
        &self,
        clients: HashMap<TunnelPublicKey, MemberId>,
        revoked: impl Fn(GatewayId) -> bool,
    ) -> Result<(), GatewaysKey> {
        let mut all = self.lock();
        let taken = clients.iter().find_map(|(key, client)| {
            let known = all.clients.contains_key(key);
            let gateway = all.holders.get(key).filter(|gateway| !known && !revoked(**gateway))?;
            Some(GatewaysKey { key: *key, client: *client, gateway: *gateway })
        });
        match taken {
            Some(taken) => Err(taken),
            None => {
                all.clients = clients;
                Ok(())
            }
        }
    }

    /// Makes these keys the clients', and no others, whoever has named them: what operators have signed holds.
    pub fn set_clients(&self, clients: HashMap<TunnelPublicKey, MemberId>) {
        self.lock().clients = clients;
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another gateway than this one, or a client, has the checked `key`.
    #[must_use]
    pub fn is_anothers(&self, gateway: GatewayId, key: &Signed<TunnelKeyBinding>) -> bool {
        let Ok(binding) = key.verify_self_named() else { return false };
        self.lock().other_holder(gateway, &binding.x25519).is_some()
    }

    /// Whether all of the checked `keys` are the gateway's already.
    #[must_use]
    pub fn holds(&self, gateway: GatewayId, keys: &[Signed<TunnelKeyBinding>]) -> bool {
        let wanted: Vec<TunnelPublicKey> = keys
            .iter()
            .filter_map(|key| key.verify_self_named().ok())
            .map(|binding| binding.x25519)
            .collect();
        let all = self.lock();
        wanted.iter().all(|key| {
            all.holders.get(key) == Some(&gateway) && all.other_holder(gateway, key).is_none()
        })
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::id::OrganisationId;
    use anteroom_proto::key::{IdentityKey, TunnelSecret};
    use anteroom_proto::time::UnixMillis;

    use super::*;

    fn gateway(n: u8) -> GatewayId {
        GatewayId::from_bytes([n; 16])
    }

    fn key(gateway: u8, seed: u8) -> Signed<TunnelKeyBinding> {
        let binding = TunnelKeyBinding {
            organisation: OrganisationId::from_bytes([1; 16]),
            gateway: self::gateway(gateway),
            x25519: TunnelSecret::from_bytes([seed; 32]).public(),
            ml_kem_768: None,
            serial: 1,
            not_before: UnixMillis(0),
        };
        Signed::sign(&binding, &IdentityKey::from_seed(&[gateway; 32]))
    }

    #[test]
    fn the_first_holder_keeps_a_key_until_it_has_another() {
        let keys = TunnelKeys::default();
        assert_eq!(keys.claim(gateway(1), &[key(1, 1)]), Ok(()));
        assert_eq!(keys.claim(gateway(1), &[key(1, 1)]), Ok(()), "again");
        let taken = keys.claim(gateway(2), &[key(2, 2), key(2, 1)]).unwrap_err();
        assert_eq!((taken.holder, taken.news), (Holder::Gateway(gateway(1)), true));
        assert!(!keys.claim(gateway(2), &[key(2, 1)]).unwrap_err().news);
        assert_eq!(keys.claim(gateway(3), &[key(3, 2)]), Ok(()), "what was refused took nothing");
        assert_eq!(keys.claim(gateway(1), &[key(1, 7)]), Ok(()));
        assert_eq!(keys.claim(gateway(2), &[key(2, 1)]), Ok(()), "nobody's by now");
    }

    #[test]
    fn a_clients_key_is_no_gateways_and_the_other_way_round() {
        let keys = TunnelKeys::default();
        let x25519 = |seed: u8| TunnelSecret::from_bytes([seed; 32]).public();
        let client = MemberId::from_bytes([9; 16]);
        let clients = |seeds: &[u8]| seeds.iter().map(|seed| (x25519(*seed), client)).collect();
        let nobody = |_| false;
        assert_eq!(keys.claim(gateway(1), &[key(1, 1)]), Ok(()));
        let refused = keys.admit_clients(clients(&[5, 1]), nobody).unwrap_err();
        assert_eq!((refused.key, refused.gateway), (x25519(1), gateway(1)));
        assert_eq!(keys.claim(gateway(2), &[key(2, 5)]), Ok(()), "what was refused took nothing");
        assert_eq!(keys.claim(gateway(2), &[key(2, 6)]), Ok(()));

        assert_eq!(keys.admit_clients(clients(&[5]), nobody), Ok(()));
        let taken = keys.claim(gateway(2), &[key(2, 6), key(2, 5)]).unwrap_err();
        assert_eq!((taken.key, taken.holder), (x25519(5), Holder::Client(client)));
        assert!(!taken.to_string().contains(&client.to_string()), "{taken}");
        assert!(keys.is_anothers(gateway(2), &key(2, 5)) && !keys.holds(gateway(2), &[key(2, 5)]));
        assert!(keys.holds(gateway(2), &[key(2, 6)]));

        // Signed is signed, though a gateway was first: it has the key no longer, and later revisions aren't refused for it.
        keys.set_clients(clients(&[5, 6]));
        assert!(keys.is_anothers(gateway(2), &key(2, 6)) && !keys.holds(gateway(2), &[key(2, 6)]));
        assert_eq!(keys.admit_clients(clients(&[5, 6, 7]), nobody), Ok(()));
        assert_eq!(keys.claim(gateway(2), &[key(2, 8)]), Ok(()));
    }

    #[test]
    fn a_gateway_that_was_revoked_keeps_no_key_from_a_client() {
        let keys = TunnelKeys::default();
        let x25519 = TunnelSecret::from_bytes([5; 32]).public();
        let clients = || HashMap::from([(x25519, MemberId::from_bytes([9; 16]))]);
        assert_eq!(keys.claim(gateway(1), &[key(1, 5)]), Ok(()));
        let refused = keys.admit_clients(clients(), |one| one == gateway(2)).unwrap_err();
        assert_eq!((refused.key, refused.gateway), (x25519, gateway(1)));
        assert_eq!(keys.admit_clients(clients(), |one| one == gateway(1)), Ok(()));
        assert!(
            keys.is_anothers(gateway(1), &key(1, 5)) && keys.is_anothers(gateway(2), &key(2, 5))
        );
    }
}
