//! Overlay addresses: a fixed IPv6 address for each member and each gateway.

use std::net::Ipv6Addr;

use sha2::{Digest, Sha256};

use crate::id::{GatewayId, MemberId, OrganisationId};

/// UDP port, on gateways' overlay addresses, of what gateways say to each other inside the tunnel.
pub const GATEWAY_PORT: u16 = 1;

/// The overlay address of a gateway.
#[must_use]
pub fn gateway_address(organisation: OrganisationId, gateway: GatewayId) -> Ipv6Addr {
    address(organisation, 0x0001, gateway.as_bytes())
}

/// The overlay address of a member.
#[must_use]
pub fn member_address(organisation: OrganisationId, member: MemberId) -> Ipv6Addr {
    address(organisation, 0x0002, member.as_bytes())
}

/// A unique local address (RFC 4193): `fd`, 40 bits that stand for the organisation, 16 for the kind, 64 for
/// the id. Whoever compiles a view checks that no two ids share one.
fn address(organisation: OrganisationId, kind: u16, id: &[u8; 16]) -> Ipv6Addr {
    let global = Sha256::new()
        .chain_update("anteroom overlay prefix\0")
        .chain_update(organisation.as_bytes())
        .finalize();
    let interface =
        Sha256::new().chain_update("anteroom overlay address\0").chain_update(id).finalize();
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..6].copy_from_slice(&global[..5]);
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..].copy_from_slice(&interface[..8]);
    Ipv6Addr::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_fixed_unique_local_and_apart() {
        let organisation = OrganisationId::from_bytes([7; 16]);
        let gateway = gateway_address(organisation, GatewayId::from_bytes([1; 16]));
        let member = member_address(organisation, MemberId::from_bytes([1; 16]));
        assert!(gateway.is_unique_local() && member.is_unique_local());
        assert_eq!(gateway.octets()[..6], member.octets()[..6]);
        assert_ne!(gateway.octets()[6..8], member.octets()[6..8]);
    }
}
