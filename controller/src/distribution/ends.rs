//! Tunnel ends: where a gateway's WireGuard socket is and which keys it has.

use std::net::SocketAddr;

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::{SignatureError, Signed};
use anteroom_proto::id::{GatewayId, OrganisationId};
use anteroom_proto::key::PublicKey;
use anteroom_proto::v1::Reachable;

/// Most addresses of one gateway.
const MAX_ENDPOINTS: usize = 16;
/// Most tunnel keys of one gateway.
const MAX_KEYS: usize = 8;
/// Most ports of one gateway.
const MAX_PORTS: usize = 256;

/// What peers are told of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TunnelEnds {
    /// Where its WireGuard socket may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Its tunnel keys for other gateways, signed by its identity key.
    pub keys: Vec<Signed<TunnelKeyBinding>>,
    /// Their serials.
    pub serials: Vec<u64>,
    /// The UDP port where it takes peers' QUIC connections.
    pub quic: Option<u16>,
    /// The identity key that signed them.
    pub signer: Option<PublicKey>,
    /// Its keys for clients, of which peers aren't told.
    pub for_clients: Vec<Signed<TunnelKeyBinding>>,
}

/// Why what a gateway says of its reachability isn't taken.
#[derive(Debug, thiserror::Error)]
pub enum EndsError {
    /// Too much of something.
    #[error("{found} {what} are more than the {max} that a gateway may have")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were said.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// A tunnel key that the gateway's identity key didn't sign.
    #[error("tunnel key: {0}")]
    Key(#[from] SignatureError),
    /// A tunnel key of another gateway.
    #[error("tunnel key: it belongs to {found}")]
    Foreign {
        /// Whose it is.
        found: GatewayId,
    },
    /// An address that no peer could send to.
    #[error("{address} is no address to send to")]
    Address {
        /// The address.
        address: SocketAddr,
    },
    /// A port for QUIC that no peer could send to.
    #[error("0 is no port for QUIC")]
    Port,
}

impl TunnelEnds {
    /// Checks what a gateway says of itself.
    ///
    /// # Errors
    /// [`EndsError`], which names what isn't taken.
    pub fn check(
        organisation: OrganisationId,
        gateway: GatewayId,
        identity: PublicKey,
        reachable: &Reachable,
    ) -> Result<Self, EndsError> {
        let Reachable { endpoints, keys, ports, quic } = reachable;
        for (what, found, max) in [
            ("addresses", endpoints.len(), MAX_ENDPOINTS),
            ("tunnel keys", keys.len(), MAX_KEYS),
            ("ports", ports.len(), MAX_PORTS),
        ] {
            if found > max {
                return Err(EndsError::TooMany { what, found, max });
            }
        }
        let unusable = |address: &&SocketAddr| {
            let ip = address.ip();
            let broadcast = matches!(ip, std::net::IpAddr::V4(ip) if ip.is_broadcast());
            address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || broadcast
        };
        if let Some(address) = endpoints.iter().find(unusable) {
            return Err(EndsError::Address { address: *address });
        }
        if *quic == Some(0) {
            return Err(EndsError::Port);
        }
        for key in keys {
            let found = key.verify(organisation, &[identity])?.gateway;
            if found != gateway {
                return Err(EndsError::Foreign { found });
            }
        }
        Ok(Self::from_stored(reachable.clone()))
    }

    /// What was checked before it was stored.
    #[must_use]
    pub fn from_stored(reachable: Reachable) -> Self {
        let mut ends =
            Self { endpoints: reachable.endpoints, quic: reachable.quic, ..Self::default() };
        for key in reachable.keys {
            let Ok(binding) = key.verify_self_named() else { continue };
            if binding.is_for_clients() {
                ends.for_clients.push(key);
            } else {
                ends.serials.push(binding.serial);
                ends.signer = Some(binding.signer());
                ends.keys.push(key);
            }
        }
        ends
    }
}
