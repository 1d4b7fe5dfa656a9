//! What the shell tells the engine at start.

use std::net::IpAddr;

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{IdentityKey, TunnelSecret};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::v1::Unlisted;

use crate::limits::Limits;

/// What the engine knows of the machine that it runs on.
#[derive(Debug, Clone)]
pub struct Config {
    /// Ethernet addresses of the gateway's own interfaces. A device may neither use nor reach them.
    pub gateway_macs: Vec<MacAddr>,
    /// The gateway's own addresses. A device can't reach them.
    pub own_addresses: Vec<IpAddr>,
    /// Device ports, in the order of [`crate::port::PortId::device`].
    pub ports: Vec<PortConfig>,
    /// Ethernet address of the uplink's interface.
    pub uplink_mac: MacAddr,
    /// Bounds of tables and queues.
    pub limits: Limits,
}

/// A device port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// What operators call it.
    pub name: Name,
    /// The interface's own Ethernet address.
    pub mac: MacAddr,
    /// What becomes of addresses that nobody confirmed, once a device on it has left observe.
    pub unlisted: Unlisted,
}

/// Who this gateway is to its peers.
#[derive(Clone)]
pub struct TunnelIdentity {
    /// This gateway.
    pub gateway: GatewayId,
    /// The private key of its tunnels.
    pub secret: TunnelSecret,
    /// The key that its claims are signed with.
    pub identity: IdentityKey,
    /// Where choices grow from that others mustn't foresee (hash seeds, packet ids). Fresh at each start.
    pub seed: [u8; 32],
}

impl std::fmt::Debug for TunnelIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelIdentity")
            .field("gateway", &self.gateway)
            .field("key", &self.secret.public())
            .finish_non_exhaustive()
    }
}
