//! Setup codes: how the first operator finds a new controller, knows it for what it is, and proves that it is
//! theirs to claim. And controller codes: how operators know a controller again that got another key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cbor::Blob;
use crate::code::{self, Fault, Kind};
use crate::key::{Hash, PublicKey};

/// What `anteroom-controller init` prints. It is good until the controller has been claimed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetupCode {
    /// Where operators reach the controller, as `https://host:port`, best first.
    pub https: Vec<String>,
    /// SHA-256 of the controller's HTTPS certificate (of its DER form, under no domain): what is pinned.
    pub certificate: Hash,
    /// The controller's identity key.
    pub controller: PublicKey,
    /// Where gateways reach it over QUIC, as `host:port` or `[v6]:port`: for the first authority document.
    pub quic: Vec<String>,
    /// The one-time secret that a [`crate::api::Claim`] repeats.
    pub secret: Blob,
}

/// Text that isn't a setup code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupCodeError {
    /// It doesn't begin as a setup code does.
    #[error("this is not a setup code: a setup code begins with {:?}", SetupCode::PREFIX)]
    Prefix,
    /// A character is missing, doubled or wrong.
    #[error(
        "the setup code was not copied whole: {problem}. Copy it again, or print it again with `anteroom-controller setup-code`"
    )]
    Damaged {
        /// What is wrong with it.
        problem: String,
    },
}

impl SetupCode {
    /// How every setup code begins.
    pub const PREFIX: &'static str = "anteroom-setup-1.";
    /// Length of the one-time secret in bytes.
    pub const SECRET_LEN: usize = 32;
    const KIND: Kind =
        Kind { prefix: Self::PREFIX, domain: "anteroom setup check", max_len: 8 * 1024 };
}

impl fmt::Debug for SetupCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetupCode(of {} at {:?})", self.controller.fingerprint(), self.https)
    }
}

impl fmt::Display for SetupCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&code::write(&Self::KIND, self))
    }
}

impl FromStr for SetupCode {
    type Err = SetupCodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let damaged = |problem: &str| SetupCodeError::Damaged { problem: problem.into() };
        let code: Self = code::read(&Self::KIND, text).map_err(|fault| match fault {
            Fault::Prefix => SetupCodeError::Prefix,
            Fault::Damaged(problem) => SetupCodeError::Damaged { problem },
        })?;
        if code.secret.0.len() != Self::SECRET_LEN {
            return Err(damaged("its secret isn't 32 bytes long"));
        }
        if code.https.is_empty() || code.quic.is_empty() {
            return Err(damaged("it names no address"));
        }
        if code.https.iter().any(|address| !address.starts_with("https://")) {
            return Err(damaged("it names an address that isn't https"));
        }
        Ok(code)
    }
}

/// What a controller with another key than before prints: where it is, and how it is known. There is no secret in
/// it, but whoever takes it over trusts it, so it comes from the controller's console or a colleague's hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerCode {
    /// Where operators reach the controller, as `https://host:port`, best first.
    pub https: Vec<String>,
    /// SHA-256 of the controller's HTTPS certificate.
    pub certificate: Hash,
    /// The controller's identity key.
    pub controller: PublicKey,
    /// Where gateways reach it over QUIC.
    pub quic: Vec<String>,
}

/// Text that isn't a controller code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControllerCodeError {
    /// It doesn't begin as a controller code does.
    #[error(
        "this is not a controller's code: such a code begins with {:?}",
        ControllerCode::PREFIX
    )]
    Prefix,
    /// A character is missing, doubled or wrong, or an address.
    #[error(
        "the controller's code was not copied whole: {problem}. Copy it again, or print it again with `anteroom-controller code`"
    )]
    Damaged {
        /// What is wrong with it.
        problem: String,
    },
}

impl ControllerCode {
    /// How every controller code begins.
    pub const PREFIX: &'static str = "anteroom-controller-1.";
    const KIND: Kind =
        Kind { prefix: Self::PREFIX, domain: "anteroom controller check", max_len: 8 * 1024 };
}

impl fmt::Display for ControllerCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&code::write(&Self::KIND, self))
    }
}

impl FromStr for ControllerCode {
    type Err = ControllerCodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let damaged = |problem: &str| ControllerCodeError::Damaged { problem: problem.into() };
        let code: Self = code::read(&Self::KIND, text).map_err(|fault| match fault {
            Fault::Prefix => ControllerCodeError::Prefix,
            Fault::Damaged(problem) => ControllerCodeError::Damaged { problem },
        })?;
        if code.https.is_empty() || code.quic.is_empty() {
            return Err(damaged("it names no address"));
        }
        if code.https.iter().any(|address| !address.starts_with("https://")) {
            return Err(damaged("it names an address that isn't https"));
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::IdentityKey;

    #[test]
    fn a_controllers_code_survives_being_carried() {
        let SetupCode { https, certificate, controller, quic, .. } = code();
        let code = ControllerCode { https, certificate, controller, quic };
        let text = code.to_string();
        assert_eq!(format!("{text}\n").parse::<ControllerCode>(), Ok(code.clone()));
        assert!(text[..text.len() - 1].parse::<ControllerCode>().is_err());
        assert!(text.parse::<SetupCode>().is_err());
        let nowhere = ControllerCode { https: vec![], ..code };
        assert!(nowhere.to_string().parse::<ControllerCode>().is_err());
    }

    fn code() -> SetupCode {
        SetupCode {
            https: vec!["https://controller.example:8443".into()],
            certificate: Hash::of("anteroom test", &[b"certificate"]),
            controller: IdentityKey::from_seed(&[4; 32]).public(),
            quic: vec!["controller.example:4433".into()],
            secret: Blob(vec![5; SetupCode::SECRET_LEN]),
        }
    }

    #[test]
    fn a_code_survives_being_carried_and_any_slip_is_noticed() {
        let text = code().to_string();
        assert!(text.starts_with(SetupCode::PREFIX), "{text}");
        assert_eq!(format!("\t{text}\r\n").parse::<SetupCode>().unwrap(), code());
        for at in SetupCode::PREFIX.len()..text.len() {
            assert!(text[..at].parse::<SetupCode>().is_err(), "cut at {at}");
            let mut slip = text.clone().into_bytes();
            slip[at] = if slip[at] == b'A' { b'B' } else { b'A' };
            let slip = String::from_utf8(slip).unwrap();
            assert!(slip.parse::<SetupCode>().is_err(), "slip at {at}");
        }
    }

    #[test]
    fn an_invite_is_not_a_setup_code() {
        assert_eq!("anteroom-invite-1.AAAA".parse::<SetupCode>(), Err(SetupCodeError::Prefix));
    }

    #[test]
    fn what_no_one_could_use_is_refused() {
        for bad in [
            SetupCode { secret: Blob(vec![5; 31]), ..code() },
            SetupCode { https: vec![], ..code() },
            SetupCode { quic: vec![], ..code() },
            SetupCode { https: vec!["http://controller.example".into()], ..code() },
        ] {
            let error = bad.to_string().parse::<SetupCode>().unwrap_err();
            assert!(matches!(error, SetupCodeError::Damaged { .. }), "{bad:?}: {error}");
        }
    }

    #[test]
    fn the_secret_stays_out_of_debug_output() {
        let text = format!("{:?}", code());
        assert!(!text.contains("0505") && !text.contains("BQUF"), "{text}");
    }
}
