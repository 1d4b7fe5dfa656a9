//! Operation: the part of a view that the controller signs. It can carry on, or close; it can't open.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::binding::TunnelKeyBinding;
use crate::cose::{Document, Signed};
use crate::id::{GatewayId, MemberId, OrganisationId};
use crate::time::UnixMillis;

/// A view's number, counted per gateway. A restored controller begins a new incarnation.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct ViewNumber {
    /// The controller's incarnation, from the authority document.
    pub incarnation: u64,
    /// Counts this gateway's views upwards.
    pub sequence: u64,
}

impl std::fmt::Display for ViewNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.sequence)
    }
}

/// What the controller adds to a gateway's intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The gateway that this is for.
    pub gateway: GatewayId,
    /// The view's number.
    pub number: ViewNumber,
    /// The revision of the intent that travels with it.
    pub revision: u64,
    /// Where peers are, and their tunnel keys.
    pub peers: Vec<PeerOperation>,
    /// Devices that the controller quarantines on top of the intent. It closes only.
    pub quarantined: Vec<MemberId>,
    /// Peers that the controller cuts off on top of the intent. It closes only.
    pub suspended: Vec<GatewayId>,
    /// When the controller signed, by its clock: a floor for a gateway whose own clock was lost.
    pub issued_at: UnixMillis,
}

impl Document for Operation {
    const TYPE: &'static str = "anteroom/operation";
    const MAX_LEN: usize = 16 * 1024 * 1024;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// What the controller knows of a peer's tunnel ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerOperation {
    /// Which peer.
    pub gateway: GatewayId,
    /// Where its WireGuard socket may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Its tunnel keys, each signed by its identity key.
    pub keys: Vec<Signed<TunnelKeyBinding>>,
    /// The UDP port where it takes peers' QUIC connections, at the same addresses. Only for agents whose greeting had
    /// the capability [`crate::direct::CAPABILITY`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<u16>,
}
