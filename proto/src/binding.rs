//! Tunnel keys, bound to the gateway that made them by its identity key.

use serde::{Deserialize, Serialize};

use crate::cbor::Blob;
use crate::cose::Document;
use crate::id::{GatewayId, OrganisationId};
use crate::key::{Hash, TunnelPublicKey};
use crate::time::UnixMillis;

/// One tunnel key of one gateway, signed by the gateway's identity key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelKeyBinding {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The gateway that holds the private half.
    pub gateway: GatewayId,
    /// The WireGuard key.
    pub x25519: TunnelPublicKey,
    /// An ML-KEM-768 encapsulation key for pre-shared keys, where the gateway has one.
    pub ml_kem_768: Option<Blob>,
    /// Counts the gateway's tunnel keys upwards: seconds since 1970, by the gateway's clock when it made the key, or more
    /// where that isn't above the one before. [`FOR_CLIENTS`](Self::FOR_CLIENTS) stands outside the count.
    pub serial: u64,
    /// From when peers may use the key. The epoch means at once.
    pub not_before: UnixMillis,
}

impl TunnelKeyBinding {
    /// The serial of the lasting key that a gateway keeps for its clients, where that isn't the newest one. No gateway
    /// is spoken to with it. `not_before` then says when it was made, which tells an older one from a newer.
    pub const FOR_CLIENTS: u64 = 0;

    /// Whether this is a key for clients alone.
    #[must_use]
    pub const fn is_for_clients(&self) -> bool {
        self.serial == Self::FOR_CLIENTS
    }

    /// What an agreement on pre-shared keys by this binding names it by: both keys, and whose they are.
    #[must_use]
    pub fn digest(&self) -> Hash {
        let kem = self.ml_kem_768.as_ref().map(|key| key.0.as_slice()).unwrap_or_default();
        let whose = [self.organisation.as_bytes().as_slice(), self.gateway.as_bytes()];
        Hash::of("anteroom tunnel key binding", &[whose[0], whose[1], self.x25519.as_bytes(), kem])
    }

    /// When the gateway made it, by its clock.
    #[must_use]
    pub const fn made(&self) -> UnixMillis {
        if self.is_for_clients() {
            self.not_before
        } else {
            UnixMillis(self.serial.saturating_mul(1000))
        }
    }
}

impl Document for TunnelKeyBinding {
    const TYPE: &'static str = "anteroom/tunnel-key";
    const MAX_LEN: usize = 4096;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}
