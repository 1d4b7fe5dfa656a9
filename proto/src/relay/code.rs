//! Relay codes: how operators learn of a new relay's key, and where gateways reach it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::address::is_host_port;
use crate::code::{self, Fault, Kind};
use crate::key::PublicKey;

/// Most addresses of one relay.
pub const MAX_ADDRESSES: usize = 16;

/// What a relay prints: its key, and where it is. There is no secret in it, but whoever takes it over has gateways go
/// there, so it comes from the relay's console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayCode {
    /// The relay's identity key.
    pub key: PublicKey,
    /// Where gateways reach it, as `host:port` or `[v6]:port`, best first.
    pub addresses: Vec<String>,
}

/// Text that isn't a relay's code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelayCodeError {
    /// It doesn't begin as a relay's code does.
    #[error("this is not a relay's code: such a code begins with {:?}", RelayCode::PREFIX)]
    Prefix,
    /// A character is missing, doubled or wrong, or an address.
    #[error(
        "the relay's code was not copied whole: {problem}. Copy it again, or print it again with `anteroom-controller relay-code`"
    )]
    Damaged {
        /// What is wrong with it.
        problem: String,
    },
}

impl RelayCode {
    /// How every relay's code begins.
    pub const PREFIX: &'static str = "anteroom-relay-1.";
    const KIND: Kind =
        Kind { prefix: Self::PREFIX, domain: "anteroom relay check", max_len: 8 * 1024 };
}

impl fmt::Display for RelayCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&code::write(&Self::KIND, self))
    }
}

impl FromStr for RelayCode {
    type Err = RelayCodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let damaged = |problem: String| RelayCodeError::Damaged { problem };
        let code: Self = code::read(&Self::KIND, text).map_err(|fault| match fault {
            Fault::Prefix => RelayCodeError::Prefix,
            Fault::Damaged(problem) => damaged(problem),
        })?;
        if code.addresses.is_empty() || code.addresses.len() > MAX_ADDRESSES {
            return Err(damaged(format!("it names none, or more than {MAX_ADDRESSES} addresses")));
        }
        match code.addresses.iter().find(|address| !is_host_port(address)) {
            Some(bad) => Err(damaged(format!("{bad:?} isn't host:port"))),
            None => Ok(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::IdentityKey;

    fn code() -> RelayCode {
        let addresses = vec!["relay.example:443".into(), "[2001:db8::1]:443".into()];
        RelayCode { key: IdentityKey::from_seed(&[4; 32]).public(), addresses }
    }

    #[test]
    fn a_relays_code_survives_being_carried_and_any_slip_is_noticed() {
        let text = code().to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(code()));
        for at in RelayCode::PREFIX.len()..text.len() {
            let mut slip = text.clone().into_bytes();
            slip[at] = if slip[at] == b'A' { b'B' } else { b'A' };
            let slip = String::from_utf8(slip).unwrap();
            assert!(slip.parse::<RelayCode>().is_err(), "slip at {at}");
            assert!(text[..at].parse::<RelayCode>().is_err(), "cut at {at}");
        }
        assert_eq!("anteroom-setup-1.AAAA".parse::<RelayCode>(), Err(RelayCodeError::Prefix));
    }

    #[test]
    fn what_no_gateway_could_reach_is_refused() {
        let many = vec!["r:443".to_owned(); MAX_ADDRESSES + 1];
        for addresses in [vec![], vec!["relay.example".into()], vec!["r:0".into()], many] {
            let text = RelayCode { addresses, ..code() }.to_string();
            let error = text.parse::<RelayCode>().unwrap_err();
            assert!(matches!(error, RelayCodeError::Damaged { .. }), "{error}");
        }
    }
}
