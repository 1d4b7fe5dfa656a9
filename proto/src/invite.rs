//! Invites: how a gateway's first words are tied to an operator's decision.
//!
//! The operator's machine draws a one-time key. Its public half goes to the controller inside an operator's
//! signature; the private half goes to the gateway inside the invite code. The gateway signs its new identity
//! key with it, and `approve` checks that on the operator's machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cbor::Blob;
use crate::code::{self, Fault, Kind};
use crate::cose::Document;
use crate::id::{GatewayId, InviteId, OrganisationId};
use crate::key::{Hash, IdentityKey, PublicKey};
use crate::name::Name;
use crate::time::UnixMillis;

/// What an operator signs and the controller keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// The organisation.
    pub organisation: OrganisationId,
    /// This invite.
    pub invite: InviteId,
    /// The id that the gateway will have.
    pub gateway: GatewayId,
    /// What operators call the gateway.
    pub name: Name,
    /// The site that the gateway stands in.
    pub site: Name,
    /// Public half of the one-time key.
    pub key: PublicKey,
    /// When the invite lapses, if unused.
    pub not_after: UnixMillis,
}

impl Document for Invite {
    const TYPE: &'static str = "anteroom/invite";
    const MAX_LEN: usize = 4096;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// What a gateway signs with the invite's one-time key: this identity is mine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityClaim {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The invite.
    pub invite: InviteId,
    /// The gateway's id, from the invite.
    pub gateway: GatewayId,
    /// The identity key that the gateway made for itself.
    pub identity: PublicKey,
}

impl Document for IdentityClaim {
    const TYPE: &'static str = "anteroom/identity-claim";
    const MAX_LEN: usize = 4096;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// The secret half of an invite, as it is carried to the gateway: by hand, in a file, as a QR code.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteCode {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The invite.
    pub invite: InviteId,
    /// The gateway's id.
    pub gateway: GatewayId,
    /// The controller's identity key: the gateway speaks to no one else.
    pub controller: PublicKey,
    /// Where to reach it, as `host:port` or `[v6]:port`.
    pub addresses: Vec<String>,
    /// Hash of the first authority document, which the gateway pins.
    pub authority: Hash,
    /// Seed of the one-time key.
    pub seed: Blob,
}

/// Text that isn't an invite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteCodeError {
    /// It doesn't begin as an invite does.
    #[error("this is not an invite: an invite begins with {:?}", InviteCode::PREFIX)]
    Prefix,
    /// A character is missing, doubled or wrong.
    #[error(
        "the invite was not copied whole: {problem}. Copy it again, or ask for a new one with `anteroom gateway invite`"
    )]
    Damaged {
        /// What is wrong with it.
        problem: String,
    },
}

impl InviteCode {
    /// How every invite begins.
    pub const PREFIX: &'static str = "anteroom-invite-1.";
    const KIND: Kind =
        Kind { prefix: Self::PREFIX, domain: "anteroom invite check", max_len: 2048 };

    /// The one-time key.
    ///
    /// # Errors
    /// When the seed isn't 32 bytes long.
    pub fn key(&self) -> Result<IdentityKey, InviteCodeError> {
        let seed = <[u8; 32]>::try_from(self.seed.0.as_slice()).map_err(|_| {
            InviteCodeError::Damaged { problem: "its key isn't 32 bytes long".into() }
        })?;
        Ok(IdentityKey::from_seed(&seed))
    }
}

impl fmt::Debug for InviteCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteCode({} for {})", self.invite, self.gateway)
    }
}

impl fmt::Display for InviteCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&code::write(&Self::KIND, self))
    }
}

impl FromStr for InviteCode {
    type Err = InviteCodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let code: Self = code::read(&Self::KIND, text).map_err(|fault| match fault {
            Fault::Prefix => InviteCodeError::Prefix,
            Fault::Damaged(problem) => InviteCodeError::Damaged { problem },
        })?;
        code.key()?;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> InviteCode {
        InviteCode {
            organisation: OrganisationId::from_bytes([1; 16]),
            invite: InviteId::from_bytes([2; 16]),
            gateway: GatewayId::from_bytes([3; 16]),
            controller: IdentityKey::from_seed(&[4; 32]).public(),
            addresses: vec!["controller.example:4433".into()],
            authority: Hash::ZERO,
            seed: Blob(vec![5; 32]),
        }
    }

    #[test]
    fn a_code_survives_being_carried_and_any_slip_is_noticed() {
        let text = code().to_string();
        assert_eq!(format!("  {text}\n").parse::<InviteCode>().unwrap(), code());
        assert_eq!("hello".parse::<InviteCode>(), Err(InviteCodeError::Prefix));
        for cut in InviteCode::PREFIX.len()..text.len() {
            assert!(text[..cut].parse::<InviteCode>().is_err(), "cut at {cut}");
        }
        for at in InviteCode::PREFIX.len()..text.len() {
            let mut slip = text.clone().into_bytes();
            slip[at] = if slip[at] == b'A' { b'B' } else { b'A' };
            let slip = String::from_utf8(slip).unwrap();
            assert!(slip.parse::<InviteCode>().is_err(), "slip at {at}");
        }
    }

    #[test]
    fn the_secret_stays_out_of_debug_output() {
        let text = format!("{:?}", code());
        assert!(!text.contains("0505") && !text.contains("BQUF"), "{text}");
    }
}
