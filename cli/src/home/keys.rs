//! Which WireGuard keys of gateways were seen: a controller that shows one that was replaced isn't followed.

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{PublicKey, TunnelPublicKey};
use serde::{Deserialize, Serialize};

use super::{Home, HomeError};

/// The newest key of a gateway that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenKey {
    gateway: GatewayId,
    /// The identity key that vouched for it. A gateway that enrolled anew counts anew.
    identity: PublicKey,
    serial: u64,
    key: TunnelPublicKey,
    /// Whether the gateway keeps it for its clients while its others change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    lasting: bool,
}

/// The newest key that was seen of each gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SeenKeys(Vec<SeenKey>);

/// A gateway's key, as its clients are to have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewestKey {
    /// It.
    pub key: TunnelPublicKey,
    /// Whether what was shown now is older, or nothing, so that this is the one that was seen before.
    pub remembered: bool,
}

impl SeenKeys {
    /// The newest key of a gateway: of what is shown now, each verified under `identity`, and what was seen before.
    pub fn newest(
        &mut self,
        gateway: GatewayId,
        identity: PublicKey,
        shown: impl Iterator<Item = TunnelKeyBinding>,
    ) -> Option<NewestKey> {
        let shown = shown.filter(|binding| binding.gateway == gateway);
        // The one that it keeps for clients, where it says so; it is the newest itself before its first change.
        let newest = shown.max_by_key(|binding| (binding.is_for_clients(), binding.made()));
        let newest =
            newest.map(|binding| (binding.is_for_clients(), binding.made().0 / 1000, binding));
        let seen = self.0.iter_mut().find(|seen| seen.gateway == gateway);
        match (newest, seen) {
            (shown, Some(seen))
                if seen.identity == identity
                    && shown.as_ref().is_none_or(|(lasting, serial, _)| {
                        (*lasting, *serial) < (seen.lasting, seen.serial)
                    }) =>
            {
                Some(NewestKey { key: seen.key, remembered: true })
            }
            (Some((lasting, serial, TunnelKeyBinding { x25519: key, .. })), seen) => {
                let newer = SeenKey { gateway, identity, serial, key, lasting };
                match seen {
                    Some(seen) => *seen = newer,
                    None => self.0.push(newer),
                }
                Some(NewestKey { key, remembered: false })
            }
            (None, _) => None,
        }
    }

    /// Forgets gateways that are no more.
    pub fn retain(&mut self, is_one: impl Fn(GatewayId) -> bool) {
        self.0.retain(|seen| is_one(seen.gateway));
    }
}

impl Home {
    /// Which keys of gateways were seen.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn seen_keys(&self) -> Result<SeenKeys, HomeError> {
        Ok(self.read_json("tunnel-keys.json")?.unwrap_or_default())
    }

    /// Remembers which keys of gateways were seen.
    ///
    /// # Errors
    /// When it can't be written; what was there before then still is.
    pub fn write_seen_keys(&self, keys: &SeenKeys) -> Result<(), HomeError> {
        self.write_json("tunnel-keys.json", keys)
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::id::OrganisationId;
    use anteroom_proto::key::{IdentityKey, TunnelSecret};
    use anteroom_proto::time::UnixMillis;

    use super::*;

    const IMAGING: GatewayId = GatewayId::from_bytes([2; 16]);
    const WARD: GatewayId = GatewayId::from_bytes([3; 16]);

    fn identity(seed: u8) -> PublicKey {
        IdentityKey::from_seed(&[seed; 32]).public()
    }

    fn key(seed: u8) -> TunnelPublicKey {
        TunnelSecret::from_bytes([seed; 32]).public()
    }

    /// Keys whose serial is the byte that they are made of.
    fn shown(gateway: GatewayId, serials: &[u8]) -> impl Iterator<Item = TunnelKeyBinding> {
        let binding = move |serial: &u8| TunnelKeyBinding {
            organisation: OrganisationId::from_bytes([1; 16]),
            gateway,
            x25519: key(*serial),
            ml_kem_768: None,
            serial: u64::from(*serial),
            not_before: UnixMillis(0),
        };
        serials.iter().map(binding)
    }

    #[test]
    fn a_key_that_was_replaced_is_not_shown_again() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(&directory.path().join("home"))).unwrap();
        let mut keys = home.seen_keys().unwrap();
        let newest = |keys: &mut SeenKeys, gateway, by, serials: &[u8]| {
            let found = keys.newest(gateway, identity(by), shown(gateway, serials));
            found.map(|newest| (newest.key, newest.remembered))
        };
        assert_eq!(newest(&mut keys, IMAGING, 1, &[]), None, "nothing told yet");
        assert_eq!(newest(&mut keys, IMAGING, 1, &[4, 5, 3]), Some((key(5), false)));
        assert_eq!(newest(&mut keys, WARD, 1, &[2]), Some((key(2), false)), "each its own");
        home.write_seen_keys(&keys).unwrap();
        let mut keys = home.seen_keys().unwrap();
        for older in [&[4, 3][..], &[]] {
            assert_eq!(newest(&mut keys, IMAGING, 1, older), Some((key(5), true)), "{older:?}");
        }
        assert_eq!(newest(&mut keys, IMAGING, 1, &[5]), Some((key(5), false)));
        assert_eq!(newest(&mut keys, IMAGING, 1, &[6]), Some((key(6), false)));
        // Enrolled anew it is another machine, whose keys begin anew.
        assert_eq!(newest(&mut keys, IMAGING, 7, &[1]), Some((key(1), false)));
        // Another gateway's key under this one's identity is none.
        let others = keys.newest(IMAGING, identity(7), shown(WARD, &[9]));
        assert_eq!(others, Some(NewestKey { key: key(1), remembered: true }));
        keys.retain(|gateway| gateway == WARD);
        assert_eq!(newest(&mut keys, IMAGING, 7, &[]), None);
        assert_eq!(newest(&mut keys, WARD, 1, &[]), Some((key(2), true)));
    }
}
