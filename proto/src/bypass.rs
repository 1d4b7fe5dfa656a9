//! Bypass orders in a file, for when no controller is in reach.
//!
//! A gateway is out and its cable is patched through. An operator signs who may be met in the clear and until
//! when; a technician carries the order to each gateway that speaks with those devices, which verifies it by the
//! authority chain that it holds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::authority::Authority;
use crate::cbor::Blob;
use crate::code::{self, Fault, Kind};
use crate::cose::{Document, SignatureError, Signed, Verified};
use crate::id::{GatewayId, OrganisationId};
use crate::time::UnixMillis;

/// Longest time for which a bypass may be ordered, in milliseconds: a long weekend.
pub const MAX_BYPASS: u64 = 72 * 60 * 60 * 1000;
/// Longest reason in bytes.
pub const MAX_REASON_LEN: usize = 512;

/// What an operator orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BypassOrder {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The authority document whose operator signs.
    pub authority: u64,
    /// The gateway that is out.
    pub gateway: GatewayId,
    /// Orders the orders for one gateway, those in views included: the highest stands.
    pub serial: u64,
    /// Until when its devices are met in the clear. None: the bypass is ended.
    pub not_after: Option<UnixMillis>,
    /// When the operator signed, by their clock.
    pub signed_at: UnixMillis,
    /// Why, for the audit log.
    pub reason: String,
}

impl Document for BypassOrder {
    const TYPE: &'static str = "anteroom/bypass";
    const MAX_LEN: usize = 4096;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

impl BypassOrder {
    /// How long it lasts, counted from its signature. None: it ends a bypass.
    #[must_use]
    pub fn lasts(&self) -> Option<u64> {
        self.not_after.map(|end| end.0.saturating_sub(self.signed_at.0))
    }
}

/// Why an order isn't followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BypassError {
    /// The signature isn't an operator's.
    #[error("{0}. Only an operator of this organisation can order a bypass")]
    Signature(#[from] SignatureError),
    /// It says what can't be.
    #[error("the bypass order says what can't be: {0}")]
    Content(&'static str),
}

/// A signed order, as text that can be carried in a file or typed into a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BypassCode(pub Signed<BypassOrder>);

/// Text that isn't a bypass order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BypassCodeError {
    /// It doesn't begin as an order does.
    #[error(
        "this is not a bypass order: one begins with {:?}, and `anteroom gateway bypass NAME --offline --out FILE` makes it",
        BypassCode::PREFIX
    )]
    Prefix,
    /// A character is missing, doubled or wrong.
    #[error("the bypass order was not copied whole: {problem}. Copy it again")]
    Damaged {
        /// What is wrong with it.
        problem: String,
    },
}

impl BypassCode {
    /// How every order begins.
    pub const PREFIX: &'static str = "anteroom-bypass-1.";
    const KIND: Kind = Kind {
        prefix: Self::PREFIX,
        domain: "anteroom bypass check",
        max_len: BypassOrder::MAX_LEN + 16,
    };

    /// Checks that an operator of `authority` signed it, and that it says what can be. Whether it has ended, or a
    /// newer one is known, is for whoever knows the time and the other orders.
    ///
    /// # Errors
    /// [`BypassError`].
    pub fn verify(&self, authority: &Authority) -> Result<Verified<BypassOrder>, BypassError> {
        let order = self.0.verify(authority.organisation, &authority.operator_keys())?;
        if order.lasts().is_some_and(|lasts| lasts == 0 || lasts > MAX_BYPASS) {
            return Err(BypassError::Content("it ends before it was signed, or lasts too long"));
        }
        if order.reason.len() > MAX_REASON_LEN {
            return Err(BypassError::Content("its reason is too long"));
        }
        Ok(order)
    }
}

impl fmt::Display for BypassCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&code::write(&Self::KIND, &Blob(self.0.as_bytes().to_vec())))
    }
}

impl FromStr for BypassCode {
    type Err = BypassCodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes: Blob = code::read(&Self::KIND, text).map_err(|fault| match fault {
            Fault::Prefix => BypassCodeError::Prefix,
            Fault::Damaged(problem) => BypassCodeError::Damaged { problem },
        })?;
        Ok(Self(Signed::from_bytes(bytes.0)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::authority::{Controller, Operator};
    use crate::key::{Hash, IdentityKey};

    const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    fn authority() -> Authority {
        Authority {
            organisation: ORGANISATION,
            number: 3,
            previous: Hash::ZERO,
            operators: vec![Operator { name: "ana".parse().unwrap(), key: key(1).public() }],
            threshold: 1,
            controllers: vec![Controller { key: key(100).public(), addresses: vec!["c:1".into()] }],
            relays: vec![],
            recovery: key(200).public(),
            incarnation: 0,
            root: None,
        }
    }

    fn order() -> BypassOrder {
        BypassOrder {
            organisation: ORGANISATION,
            authority: 3,
            gateway: GatewayId::from_bytes([2; 16]),
            serial: 7,
            not_after: Some(UnixMillis(5_000)),
            signed_at: UnixMillis(1_000),
            reason: "power supply burnt".into(),
        }
    }

    fn signed(order: &BypassOrder, by: u8) -> BypassCode {
        BypassCode(Signed::sign(order, &key(by)))
    }

    #[test]
    fn an_operators_order_is_followed_after_being_carried() {
        let text = signed(&order(), 1).to_string();
        let read: BypassCode = format!("\n {text} \n").parse().unwrap();
        assert_eq!(*read.verify(&authority()).unwrap(), order());
        let end = BypassOrder { not_after: None, ..order() };
        assert_eq!(signed(&end, 1).verify(&authority()).unwrap().lasts(), None);
    }

    #[test]
    fn nobody_else_orders_a_bypass() {
        // A former operator, the controller, the recovery key, a gateway.
        for by in [2, 100, 200, 9] {
            let error = signed(&order(), by).verify(&authority()).unwrap_err();
            assert!(
                matches!(&error, BypassError::Signature(SignatureError::Signer { .. })),
                "key {by}: {error}"
            );
        }
        let other = BypassOrder { organisation: OrganisationId::from_bytes([9; 16]), ..order() };
        let error = signed(&other, 1).verify(&authority()).unwrap_err();
        assert!(
            matches!(&error, BypassError::Signature(SignatureError::Organisation { .. })),
            "{error}"
        );
    }

    #[test]
    fn what_lasts_too_long_or_not_at_all_is_refused() {
        for end in [0, 1_000, 1_001 + MAX_BYPASS, u64::MAX] {
            let odd = BypassOrder { not_after: Some(UnixMillis(end)), ..order() };
            let found = signed(&odd, 1).verify(&authority());
            assert!(matches!(found, Err(BypassError::Content(_))), "{end}: {found:?}");
        }
        let wordy = BypassOrder { reason: "x".repeat(MAX_REASON_LEN + 1), ..order() };
        assert!(matches!(signed(&wordy, 1).verify(&authority()), Err(BypassError::Content(_))));
    }

    #[test]
    fn any_slip_in_copying_is_noticed() {
        let text = signed(&order(), 1).to_string();
        assert_eq!("hello".parse::<BypassCode>(), Err(BypassCodeError::Prefix));
        for at in (BypassCode::PREFIX.len()..text.len()).step_by(7) {
            assert!(text[..at].parse::<BypassCode>().is_err(), "cut at {at}");
            let mut slip = text.clone().into_bytes();
            slip[at] = if slip[at] == b'A' { b'B' } else { b'A' };
            let slip = String::from_utf8(slip).unwrap();
            assert!(slip.parse::<BypassCode>().is_err(), "slip at {at}");
        }
    }

    proptest! {
        #[test]
        fn altered_bytes_never_pass(at in 0usize..300, bit in 0u8..8) {
            let good = signed(&order(), 1);
            let mut bytes = good.0.as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let altered = BypassCode(Signed::from_bytes(bytes));
            prop_assert!(altered.verify(&authority()).is_err());
        }

        #[test]
        fn anything_at_all_is_read_without_a_panic(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = text.parse::<BypassCode>();
            let _ = BypassCode(Signed::from_bytes(bytes)).verify(&authority());
        }
    }
}
