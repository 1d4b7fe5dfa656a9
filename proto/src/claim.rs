//! Claims: which of its dynamic addresses a device holds, as its gateway says so.
//!
//! Operators give a device a prefix within which its address may change. Which address it has now is its gateway's
//! word, signed by the gateway's identity key: peers need no controller to believe it, and nobody else can say it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::cose::Document;
use crate::id::{GatewayId, MemberId, OrganisationId};

/// Most addresses of one device that are dynamic.
pub const MAX_ADDRESSES: usize = 8;

/// All that one device holds of its dynamic addresses. A newer claim for the device takes this one's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressClaim {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The gateway that the device is behind.
    pub gateway: GatewayId,
    /// The device.
    pub member: MemberId,
    /// Counts the gateway's claims upwards, so that an older one can't come back. It is no time.
    pub number: u64,
    /// What the device holds, at most [`MAX_ADDRESSES`]. None at all: whatever it held is free.
    pub addresses: Vec<Ipv4Addr>,
    /// For how many seconds after the gateway fell silent others may still count on it. None: for ever, as nobody
    /// leased the address.
    pub lease_seconds: Option<u32>,
}

impl Document for AddressClaim {
    const TYPE: &'static str = "anteroom/address-claim";
    const MAX_LEN: usize = 768;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cose::Signed;
    use crate::key::IdentityKey;

    #[test]
    fn the_longest_claim_fits_and_only_its_gateway_can_have_signed_it() {
        let organisation = OrganisationId::from_bytes([1; 16]);
        let claim = AddressClaim {
            organisation,
            gateway: GatewayId::from_bytes([0xff; 16]),
            member: MemberId::from_bytes([0xff; 16]),
            number: u64::MAX,
            addresses: vec![Ipv4Addr::BROADCAST; MAX_ADDRESSES],
            lease_seconds: Some(u32::MAX),
        };
        let (own, other) = (IdentityKey::from_seed(&[1; 32]), IdentityKey::from_seed(&[2; 32]));
        let signed = Signed::sign(&claim, &own);
        let len = signed.as_bytes().len();
        assert!(len <= AddressClaim::MAX_LEN - 128, "{len} bytes leave little room");
        assert_eq!(signed.verify(organisation, &[own.public()]).unwrap().into_document(), claim);
        assert!(signed.verify(organisation, &[other.public()]).is_err());
        assert!(signed.verify(OrganisationId::from_bytes([2; 16]), &[own.public()]).is_err());
        for at in 0..len {
            let mut bytes = signed.as_bytes().to_vec();
            bytes[at] ^= 1;
            let altered = Signed::<AddressClaim>::from_bytes(bytes);
            assert!(altered.verify(organisation, &[own.public()]).is_err(), "byte {at}");
        }
    }
}
