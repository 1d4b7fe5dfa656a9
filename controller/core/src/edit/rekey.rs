//! A gateway gets another identity key in its place.

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;

use super::{EditError, taken};
use crate::model::{Gateway, Model};

/// Most keys that are remembered of those that a gateway had before.
pub const MAX_FORMER: usize = 64;

impl Model {
    /// Replaces a gateway's identity key `old` by `new`. The old one is never taken again.
    ///
    /// # Errors
    /// When there is no such gateway, it has another key than `old`, `new` is or was some gateway's, or it had
    /// [`MAX_FORMER`] keys before.
    pub fn rekey_gateway(
        &mut self,
        name: &str,
        old: PublicKey,
        new: PublicKey,
    ) -> Result<GatewayId, EditError> {
        let (id, gateway) = self.find_gateway(name)?;
        if gateway.identity != old {
            return Err(EditError::Invalid {
                what: format!("gateway {name}"),
                problem: format!(
                    "its identity key is {} by now, and the new one was offered for {}: have another one offered (--anew)",
                    gateway.identity.fingerprint(),
                    old.fingerprint()
                ),
            });
        }
        if gateway.former.len() >= MAX_FORMER {
            return Err(EditError::Invalid {
                what: format!("gateway {name}"),
                problem: format!(
                    "it had {MAX_FORMER} identity keys before, and none of them may be forgotten: revoke it and enrol it anew"
                ),
            });
        }
        self.identity_is_free(new)?;
        if let Some(gateway) = self.gateways.get_mut(&id) {
            gateway.identity = new;
            gateway.former.push(old);
        }
        Ok(id)
    }

    /// Whether no gateway has this key, or ever had it.
    ///
    /// # Errors
    /// [`EditError::Taken`], which says whose it is.
    pub(super) fn identity_is_free(&self, key: PublicKey) -> Result<(), EditError> {
        let of = |gateway: &Gateway| gateway.identity == key || gateway.former.contains(&key);
        let holder = self.gateways.iter().chain(&self.revoked).find(|(_, found)| of(found));
        match holder {
            None => Ok(()),
            Some((id, found)) => {
                let revoked = if self.revoked.contains_key(id) { "revoked " } else { "" };
                let by = format!("the {revoked}gateway \"{}\"; enrol it anew", found.name);
                Err(taken("the identity key", &key, by))
            }
        }
    }

    /// Whether no gateway has this identity key, or ever had it.
    #[must_use]
    pub fn is_free_identity(&self, key: PublicKey) -> bool {
        self.identity_is_free(key).is_ok()
    }

    /// Whether a gateway had this identity key before it got another one.
    #[must_use]
    pub fn is_former_identity(&self, key: PublicKey) -> bool {
        self.gateways.values().any(|gateway| gateway.former.contains(&key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::compile;
    use crate::fixture::{gateway, gateway_id, hospital};

    fn key(number: u8) -> PublicKey {
        anteroom_proto::key::IdentityKey::from_seed(&[number; 32]).public()
    }

    #[test]
    fn peers_and_the_gateway_itself_hear_of_the_new_key_and_nobody_else() {
        let mut model = hospital();
        let before = compile(&model).unwrap();
        let (id, old) = model.find_gateway("imaging").map(|(id, g)| (id, g.identity)).unwrap();
        assert!(before.leaves[&id].intent.identity.is_none());
        assert_eq!(model.rekey_gateway("imaging", old, key(1)).unwrap(), id);
        let after = compile(&model).unwrap();
        assert_eq!(after.leaves[&id].intent.identity, Some(key(1)));
        let mut affected = before.affected(&after);
        affected.sort();
        let sees = |leaf: &crate::compile::Leaf| {
            leaf.intent.peers.iter().any(|peer| peer.gateway == id && peer.identity == key(1))
        };
        let peers: Vec<_> =
            after.leaves.iter().filter(|(_, leaf)| sees(leaf)).map(|(peer, _)| *peer).collect();
        assert!(!peers.is_empty());
        let mut wanted: Vec<_> = peers.into_iter().chain([id]).collect();
        wanted.sort();
        assert_eq!(affected, wanted);
        // Twice in a row.
        model.rekey_gateway("imaging", key(1), key(2)).unwrap();
        assert_eq!(model.gateways[&id].former, [old, key(1)]);
        assert!(model.is_former_identity(old) && !model.is_former_identity(key(2)));
        let read = Model::decode(&model.encode()).unwrap();
        assert_eq!(read, model);
    }

    #[test]
    fn a_key_that_some_gateway_has_or_had_is_never_taken_again() {
        let mut model = hospital();
        let old = model.find_gateway("imaging").unwrap().1.identity;
        let ward = model.find_gateway("ward").unwrap().1.identity;
        assert!(model.rekey_gateway("imaging", key(9), key(1)).is_err(), "not its key");
        assert!(model.rekey_gateway("imaging", old, ward).is_err(), "another's");
        assert!(model.rekey_gateway("imaging", old, old).is_err(), "its own");
        assert!(model.rekey_gateway("imagin", old, key(1)).is_err(), "nobody");
        assert_eq!(model, hospital());
        model.rekey_gateway("imaging", old, key(1)).unwrap();
        assert!(model.rekey_gateway("imaging", key(1), old).is_err(), "back to a former one");
        assert!(model.rekey_gateway("ward", ward, old).is_err(), "a former one of another");
        let (_, mut twin) = gateway(9, "twin", "north");
        twin.identity = old;
        assert!(model.approve_gateway(gateway_id(9), twin.clone()).is_err());
        model.revoke_gateway("imaging").unwrap();
        assert!(model.approve_gateway(gateway_id(9), twin).is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut model = hospital();
        let mut old = model.find_gateway("ward").unwrap().1.identity;
        let first = old;
        for number in 0..64 {
            let new = key(100 + number);
            model.rekey_gateway("ward", old, new).unwrap();
            old = new;
        }
        let refused = model.rekey_gateway("ward", old, key(99)).unwrap_err().to_string();
        assert!(refused.contains("enrol it anew"), "{refused}");
        let ward = model.find_gateway("ward").unwrap().1;
        assert_eq!((ward.former.len(), ward.former[0], ward.identity), (MAX_FORMER, first, old));
    }
}
