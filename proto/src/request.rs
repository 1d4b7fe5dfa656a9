//! Operator requests: how a person with a new key asks to be made an operator.
//!
//! The key is made on their machine and stays there. The request is signed by it, so that nobody asks in another's
//! name, and travels by hand to an operator, who compares the fingerprint and signs the key into the next authority
//! document.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::code::{self, Fault, Kind};
use crate::cose::{Document, SignatureError, Signed};
use crate::id::OrganisationId;
use crate::key::{IdentityKey, PublicKey};
use crate::name::Name;

/// Who wants to be an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorRequest {
    /// The organisation.
    pub organisation: OrganisationId,
    /// What the audit log is to call them.
    pub name: Name,
    /// Their key, which also signs the request.
    pub key: PublicKey,
}

impl Document for OperatorRequest {
    const TYPE: &'static str = "anteroom/operator-request";
    const MAX_LEN: usize = 1024;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// A signed [`OperatorRequest`] as one word of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestCode(Signed<OperatorRequest>);

/// Text that isn't an operator's request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestCodeError {
    /// It doesn't begin as a request does.
    #[error("this is not an operator's request: a request begins with {:?}", RequestCode::PREFIX)]
    Prefix,
    /// A character is missing, doubled or wrong.
    #[error(
        "the request was not copied whole: {problem}. Copy it again, or have it printed again with `anteroom login`"
    )]
    Damaged {
        /// What is wrong with it.
        problem: String,
    },
    /// It isn't signed by the key that it names.
    #[error("the request doesn't hold: {0}. Have it made again with `anteroom login`")]
    Signature(#[from] SignatureError),
    /// It names another key than the one that signed it.
    #[error("the request asks for another key than its own: whoever made it may not hold that key")]
    Key,
}

impl RequestCode {
    /// How every request begins.
    pub const PREFIX: &'static str = "anteroom-operator-1.";
    const KIND: Kind = Kind {
        prefix: Self::PREFIX,
        domain: "anteroom operator request check",
        max_len: 2 * OperatorRequest::MAX_LEN,
    };

    /// The request of whoever holds `key`.
    #[must_use]
    pub fn new(organisation: OrganisationId, name: Name, key: &IdentityKey) -> Self {
        let request = OperatorRequest { organisation, name, key: key.public() };
        Self(Signed::sign(&request, key))
    }

    /// The request, if its own key signed it.
    ///
    /// # Errors
    /// [`RequestCodeError`], which says what doesn't hold.
    pub fn open(&self) -> Result<OperatorRequest, RequestCodeError> {
        let verified = self.0.verify_self_named()?;
        if verified.signer() != verified.key {
            return Err(RequestCodeError::Key);
        }
        Ok(verified.into_document())
    }
}

impl fmt::Display for RequestCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&code::write(&Self::KIND, &self.0))
    }
}

impl FromStr for RequestCode {
    type Err = RequestCodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        code::read(&Self::KIND, text).map(Self).map_err(|fault| match fault {
            Fault::Prefix => RequestCodeError::Prefix,
            Fault::Damaged(problem) => RequestCodeError::Damaged { problem },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORG: OrganisationId = OrganisationId::from_bytes([1; 16]);

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    #[test]
    fn a_request_survives_being_carried_and_any_slip_is_noticed() {
        let code = RequestCode::new(ORG, "ben".parse().unwrap(), &key(2));
        let text = code.to_string();
        let read: RequestCode = format!(" {text}\n").parse().unwrap();
        assert_eq!(read.open().unwrap().key, key(2).public());
        for at in RequestCode::PREFIX.len()..text.len() {
            let mut slip = text.clone().into_bytes();
            slip[at] = if slip[at] == b'A' { b'B' } else { b'A' };
            let slip = String::from_utf8(slip).unwrap();
            assert!(slip.parse::<RequestCode>().is_err(), "slip at {at}");
        }
        assert_eq!("anteroom-setup-1.AAAA".parse::<RequestCode>(), Err(RequestCodeError::Prefix));
    }

    #[test]
    fn nobody_asks_for_a_key_that_they_dont_hold() {
        let request = OperatorRequest {
            organisation: ORG,
            name: "ben".parse().unwrap(),
            key: key(2).public(),
        };
        let stolen = RequestCode(Signed::sign(&request, &key(3)));
        assert_eq!(stolen.open(), Err(RequestCodeError::Key));
    }
}
