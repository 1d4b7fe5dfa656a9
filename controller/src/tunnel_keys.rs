//! Whose tunnel key is whose.
//!
//! A gateway signs its tunnel keys with its identity key, which proves that it wants them and not that it holds
//! them. WireGuard proves that at the peer; until then a stolen gateway could give another's key out as its own, and
//! peers would be left with one key for two gateways. So the first gateway that names a key keeps it.
//!
//! A controller that came from a backup may hear the thief first. Who comes second is served all the same, without that key, and
//! asked for another one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::TunnelPublicKey;

use crate::store::GatewayFacts;

/// Refused claims that are remembered, so that each is audited once.
const MAX_NOTED: usize = 1024;

/// A tunnel key that another gateway has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("tunnel key {key} is another gateway's ({holder})")]
pub struct KeyTaken {
    /// The key.
    pub key: TunnelPublicKey,
    /// Who has it.
    pub holder: GatewayId,
    /// Whether this gateway claims it for the first time, as far as is remembered.
    pub news: bool,
}

#[derive(Debug, Default)]
struct Keys {
    holders: HashMap<TunnelPublicKey, GatewayId>,
    held: HashMap<GatewayId, Vec<TunnelPublicKey>>,
    noted: HashSet<(GatewayId, TunnelPublicKey)>,
}

/// Which gateway has which tunnel keys now.
#[derive(Debug, Default)]
pub struct TunnelKeys(Mutex<Keys>);

impl TunnelKeys {
    /// What was stored. Revoked gateways keep theirs: nobody else ever has reason to name them.
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
    /// [`KeyTaken`] where another gateway has one of them. Nothing is changed then.
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
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = wanted.iter().find_map(|key| {
            all.holders.get(key).filter(|holder| **holder != gateway).map(|holder| (*key, *holder))
        });
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

    /// Whether another gateway than this one has the checked `key`.
    #[must_use]
    pub fn is_anothers(&self, gateway: GatewayId, key: &Signed<TunnelKeyBinding>) -> bool {
        let Ok(binding) = key.verify_self_named() else { return false };
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.holders.get(&binding.x25519).is_some_and(|holder| *holder != gateway)
    }

    /// Whether all of the checked `keys` are the gateway's already.
    #[must_use]
    pub fn holds(&self, gateway: GatewayId, keys: &[Signed<TunnelKeyBinding>]) -> bool {
        let wanted: Vec<TunnelPublicKey> = keys
            .iter()
            .filter_map(|key| key.verify_self_named().ok())
            .map(|binding| binding.x25519)
            .collect();
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.iter().all(|key| all.holders.get(key) == Some(&gateway))
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
        assert_eq!((taken.holder, taken.news), (gateway(1), true));
        assert!(!keys.claim(gateway(2), &[key(2, 1)]).unwrap_err().news);
        assert_eq!(keys.claim(gateway(3), &[key(3, 2)]), Ok(()), "what was refused took nothing");
        assert_eq!(keys.claim(gateway(1), &[key(1, 7)]), Ok(()));
        assert_eq!(keys.claim(gateway(2), &[key(2, 1)]), Ok(()), "nobody's by now");
    }
}
