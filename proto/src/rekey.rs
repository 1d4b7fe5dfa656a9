//! Replacing a gateway's identity key in its place.
//!
//! An operator orders it; the gateway makes a key and offers it, vouched for by the old key and the new one; an operator
//! signs the intent in which the gateway's identity is the new key. The controller carries all three and can make up
//! none of them.

use serde::{Deserialize, Serialize};

use crate::binding::TunnelKeyBinding;
use crate::cose::{Document, SignatureError, Signed};
use crate::id::{GatewayId, OrganisationId};
use crate::key::{IdentityKey, PublicKey};

/// What a gateway's greeting says it can do where it takes a [`RekeyOrder`].
pub const CAPABILITY: &str = "rekey";

/// How far an order's number may lie ahead of the time, in milliseconds: one that is followed shuts out all before it.
pub const MAX_AHEAD: u64 = 10 * 60 * 1000;

/// Most tunnel keys that an offer binds.
pub const MAX_KEYS: usize = 8;

/// That a gateway is to offer another identity key, or to forget those that it offered. Signed by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RekeyOrder {
    /// The organisation.
    pub organisation: OrganisationId,
    /// Which gateway.
    pub gateway: GatewayId,
    /// Orders the orders for one gateway: milliseconds since 1970 by the operator's clock, or more where that isn't above
    /// the one before. Each makes one key, however often it is shown.
    pub number: u64,
    /// Whether keys that were offered and not approved are to be forgotten instead.
    pub withdraw: bool,
}

impl Document for RekeyOrder {
    const TYPE: &'static str = "anteroom/rekey-order";
    const MAX_LEN: usize = 512;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// That one identity key of a gateway is to take another's place. It counts where both signed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RekeyStatement {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The gateway.
    pub gateway: GatewayId,
    /// The order that asked for the new key.
    pub order: u64,
    /// The key that the gateway has.
    pub old: PublicKey,
    /// The key that takes its place.
    pub new: PublicKey,
}

impl Document for RekeyStatement {
    const TYPE: &'static str = "anteroom/rekey";
    const MAX_LEN: usize = 512;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// A gateway's next identity key, with all that peers need once it counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RekeyOffer {
    /// The statement, signed by the old key.
    pub by_old: Signed<RekeyStatement>,
    /// The same statement, signed by the new key.
    pub by_new: Signed<RekeyStatement>,
    /// The gateway's tunnel keys, bound by the new key.
    pub keys: Vec<Signed<TunnelKeyBinding>>,
}

/// Why an offer isn't believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RekeyError {
    /// A signature doesn't hold.
    #[error("the new identity key isn't vouched for: {0}")]
    Signature(#[from] SignatureError),
    /// It says something else than it should.
    #[error("the offer of a new identity key doesn't hold: {0}")]
    Content(&'static str),
}

impl RekeyOffer {
    /// The offer of whoever holds both keys.
    #[must_use]
    pub fn new(
        (organisation, gateway, order): (OrganisationId, GatewayId, u64),
        old: &IdentityKey,
        new: &IdentityKey,
        keys: Vec<Signed<TunnelKeyBinding>>,
    ) -> Self {
        let (was, is) = (old.public(), new.public());
        let statement = RekeyStatement { organisation, gateway, order, old: was, new: is };
        let [by_old, by_new] = [old, new].map(|key| Signed::sign(&statement, key));
        Self { by_old, by_new, keys }
    }

    /// The key that it says is the next one. Whether that holds is for [`Self::verify`]; all that is sure is that this key
    /// signed it.
    #[must_use]
    pub fn new_key(&self) -> Option<PublicKey> {
        let stated = self.by_new.verify_self_named().ok()?;
        (stated.signer() == stated.new).then_some(stated.new)
    }

    /// What it states, where the key `old` of this gateway and the new one both vouch for that, and the new one for tunnel
    /// keys.
    ///
    /// # Errors
    /// [`RekeyError`], which names what doesn't fit.
    pub fn verify(
        &self,
        organisation: OrganisationId,
        gateway: GatewayId,
        old: PublicKey,
    ) -> Result<RekeyStatement, RekeyError> {
        let stated = self.by_old.verify(organisation, &[old])?;
        let again = self.by_new.verify(organisation, &[stated.new])?;
        if *stated != *again {
            return Err(RekeyError::Content("the two keys have signed different statements"));
        }
        if stated.gateway != gateway {
            return Err(RekeyError::Content("it is another gateway's"));
        }
        if stated.old != old {
            return Err(RekeyError::Content("it is for another key than the gateway has"));
        }
        if stated.new == old {
            return Err(RekeyError::Content("the new key is the old one"));
        }
        if self.keys.is_empty() || self.keys.len() > MAX_KEYS {
            return Err(RekeyError::Content("it binds no tunnel keys, or too many"));
        }
        let mut for_gateways = false;
        for key in &self.keys {
            let binding = key.verify(organisation, &[stated.new])?;
            if binding.gateway != gateway {
                return Err(RekeyError::Content("it binds another gateway's tunnel key"));
            }
            for_gateways |= !binding.is_for_clients();
        }
        if !for_gateways {
            return Err(RekeyError::Content("it binds no tunnel key for other gateways"));
        }
        Ok(stated.into_document())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cbor;
    use crate::key::TunnelSecret;
    use crate::time::UnixMillis;

    const ORG: OrganisationId = OrganisationId::from_bytes([1; 16]);
    const GATEWAY: GatewayId = GatewayId::from_bytes([2; 16]);
    const OTHER: GatewayId = GatewayId::from_bytes([3; 16]);

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    fn binding(gateway: GatewayId, serial: u64, signer: &IdentityKey) -> Signed<TunnelKeyBinding> {
        let binding = TunnelKeyBinding {
            organisation: ORG,
            gateway,
            x25519: TunnelSecret::from_bytes([9; 32]).public(),
            ml_kem_768: None,
            serial,
            not_before: UnixMillis(0),
        };
        Signed::sign(&binding, signer)
    }

    fn offer() -> RekeyOffer {
        RekeyOffer::new((ORG, GATEWAY, 7), &key(1), &key(2), vec![binding(GATEWAY, 5, &key(2))])
    }

    fn verify(offer: &RekeyOffer) -> Result<RekeyStatement, RekeyError> {
        offer.verify(ORG, GATEWAY, key(1).public())
    }

    #[test]
    fn what_both_keys_vouch_for_is_believed() {
        let stated = verify(&offer()).unwrap();
        assert_eq!((stated.old, stated.new), (key(1).public(), key(2).public()));
        assert_eq!((stated.order, stated.gateway), (7, GATEWAY));
        assert_eq!(offer().new_key(), Some(key(2).public()));
        let stolen = RekeyOffer { by_new: offer().by_old, ..offer() };
        assert_eq!(stolen.new_key(), None, "the old key speaks for the new one");
        let bytes = cbor::encode(&offer());
        assert_eq!(cbor::decode::<RekeyOffer>(&bytes, 64 * 1024).unwrap(), offer());
    }

    #[test]
    fn what_one_key_alone_or_another_signed_is_not() {
        let good = offer();
        let who = (ORG, GATEWAY, 7);
        let keys = good.keys.clone();
        // Whoever has no old key, no new key, or another gateway's.
        let stranger = RekeyOffer::new(who, &key(3), &key(2), keys.clone());
        let cases = [
            ("another's old key", stranger.clone()),
            ("its old signature alone", RekeyOffer { by_new: good.by_old.clone(), ..good.clone() }),
            ("its new signature alone", RekeyOffer { by_old: good.by_new.clone(), ..good.clone() }),
            ("a stranger's first half", RekeyOffer { by_old: stranger.by_old, ..good.clone() }),
            (
                "two different orders",
                RekeyOffer {
                    by_new: RekeyOffer::new((ORG, GATEWAY, 8), &key(1), &key(2), vec![]).by_new,
                    ..good.clone()
                },
            ),
            ("another gateway", RekeyOffer::new((ORG, OTHER, 7), &key(1), &key(2), keys.clone())),
            (
                "no change",
                RekeyOffer::new(who, &key(1), &key(1), vec![binding(GATEWAY, 5, &key(1))]),
            ),
            ("no tunnel keys", RekeyOffer { keys: vec![], ..good.clone() }),
            ("too many", RekeyOffer { keys: vec![keys[0].clone(); MAX_KEYS + 1], ..good.clone() }),
            (
                "tunnel keys bound by the old key",
                RekeyOffer { keys: vec![binding(GATEWAY, 5, &key(1))], ..good.clone() },
            ),
            (
                "another gateway's tunnel key",
                RekeyOffer { keys: vec![binding(OTHER, 5, &key(2))], ..good.clone() },
            ),
            (
                "keys for clients alone",
                RekeyOffer {
                    keys: vec![binding(GATEWAY, TunnelKeyBinding::FOR_CLIENTS, &key(2))],
                    ..good.clone()
                },
            ),
        ];
        for (what, offer) in cases {
            assert!(verify(&offer).is_err(), "{what}");
        }
        let elsewhere = OrganisationId::from_bytes([9; 16]);
        assert!(good.verify(elsewhere, GATEWAY, key(1).public()).is_err());
        // After the change the old statement says nothing about the key that is in force then.
        assert!(good.verify(ORG, GATEWAY, key(2).public()).is_err());
    }

    #[test]
    fn orders_and_statements_fit_and_never_pass_for_one_another() {
        let order =
            RekeyOrder { organisation: ORG, gateway: GATEWAY, number: u64::MAX, withdraw: true };
        let order = Signed::sign(&order, &key(5));
        assert!(order.as_bytes().len() <= RekeyOrder::MAX_LEN - 64);
        let (_, statement) = (order.verify(ORG, &[key(5).public()]).unwrap(), offer().by_old);
        assert!(statement.as_bytes().len() <= RekeyStatement::MAX_LEN - 64);
        let taken = Signed::<RekeyStatement>::from_bytes(order.as_bytes().to_vec());
        assert!(matches!(taken.verify(ORG, &[key(5).public()]), Err(SignatureError::Type { .. })));
        let taken = Signed::<RekeyOrder>::from_bytes(statement.as_bytes().to_vec());
        assert!(matches!(taken.verify(ORG, &[key(1).public()]), Err(SignatureError::Type { .. })));
    }

    proptest! {
        #[test]
        fn every_altered_byte_is_noticed(part in 0usize..3, at in 0usize..2000, flip in 1u8..) {
            let mut offer = offer();
            let alter = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                let at = at % bytes.len();
                bytes[at] ^= flip;
                bytes
            };
            match part {
                0 => offer.by_old = Signed::from_bytes(alter(offer.by_old.as_bytes())),
                1 => offer.by_new = Signed::from_bytes(alter(offer.by_new.as_bytes())),
                _ => offer.keys[0] = Signed::from_bytes(alter(offer.keys[0].as_bytes())),
            }
            prop_assert!(verify(&offer).is_err());
        }
    }
}
