//! Tunnel keys, bound to the gateway that made them by its identity key.

use serde::{Deserialize, Serialize};

use crate::cbor::Blob;
use crate::cose::Document;
use crate::id::{GatewayId, OrganisationId};
use crate::key::TunnelPublicKey;
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
    /// Counts the gateway's tunnel keys upwards.
    pub serial: u64,
    /// From when peers may use the key. The epoch means at once.
    pub not_before: UnixMillis,
}

impl Document for TunnelKeyBinding {
    const TYPE: &'static str = "anteroom/tunnel-key";
    const MAX_LEN: usize = 4096;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}
