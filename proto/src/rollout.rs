//! How a device comes to be enforced: on trial at first, so that it goes back by itself where nobody confirms, or
//! where its connections fail.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::approval::{Approval, Place};
use crate::cose::Signed;
use crate::id::MemberId;
use crate::mode::Mode;
use crate::time::UnixMillis;

/// Shortest and longest trial in milliseconds: ten seconds, and a week.
pub const TRIAL_RANGE: (u64, u64) = (10_000, 7 * 24 * 60 * 60 * 1000);
/// Most connections that a trial is measured by.
pub const MAX_EXPECTED: usize = 256;
/// Most bytes of a [`Failing::reason`].
const MAX_REASON_LEN: usize = 64;

/// How operators have a device enforced.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Until somebody confirms: enforced on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// Operators' approvals, where two of them are demanded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Signed<Approval>>,
}

impl Rollout {
    /// Whether there is nothing to be said of it.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// A device's time in enforce until somebody confirms it. Its gateway alone ends it; what comes then is signed, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The revision that ordered it: a trial that is over doesn't begin again, another one does.
    pub since: Place,
    /// How long it lasts, in milliseconds from when the gateway has it in force. A start of the machine ends it.
    pub within: u64,
    /// The mode that the device goes back to. A gateway knows protect only: with any other the trial doesn't end.
    pub back_to: Mode,
    /// Connections that were answered before, at most [`MAX_EXPECTED`]: where one fails again and again, the trial ends.
    pub expects: Vec<Expected>,
}

impl Trial {
    /// Whether a gateway can go back as it says.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.back_to == Mode::Protect
    }
}

/// A connection that a device had: all between it and one address, by one service, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// The other end's address.
    pub remote: Ipv4Addr,
    /// Whether the device opens it.
    pub outbound: bool,
    /// IP protocol number.
    pub protocol: u8,
    /// The responder's port; 0 for protocols without.
    pub port: u16,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.protocol, self.port) {
            (6, port) => write!(f, "tcp/{port}")?,
            (17, port) => write!(f, "udp/{port}")?,
            (1, _) => f.write_str("icmp/echo")?,
            (protocol, _) => write!(f, "protocol {protocol}")?,
        }
        write!(f, " {} {}", if self.outbound { "to" } else { "from" }, self.remote)
    }
}

/// A trial, as the device's gateway reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialReport {
    /// The device.
    pub member: MemberId,
    /// The trial: [`Trial::since`].
    pub since: Place,
    /// How long it still lasts, in milliseconds; 0 once it is over.
    pub left: u64,
    /// Why and when the device went back, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<Over>,
}

/// A device that isn't in the mode that its leaf has, since two operators must have approved of that, and haven't: as its
/// gateway tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBackReport {
    /// The device.
    pub member: MemberId,
    /// The mode that the leaf has.
    pub signed: Mode,
    /// The mode that it is in.
    pub mode: Mode,
}

/// That a device went back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Over {
    /// Why.
    pub why: Why,
    /// When, by the gateway's clock.
    pub at: UnixMillis,
}

/// Why a trial is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Nobody confirmed in time.
    Unconfirmed,
    /// The machine was started anew, so that nobody can tell how long it ran.
    Restarted,
    /// Nothing is written of how long it ran: the gateway's agent was started anew, and couldn't keep that.
    Lost,
    /// A connection that the device had before fails.
    Failing(Failing),
    /// Another device on its port went back: devices of a port have one mode.
    Neighbour {
        /// Which one.
        member: MemberId,
    },
}

/// What fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// The connection.
    pub what: Expected,
    /// The word of the drop reason; none where it passes and nobody answers.
    pub reason: Option<String>,
    /// How many attempts failed, one after the other.
    pub attempts: u8,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unconfirmed => f.write_str("nobody confirmed in time"),
            Self::Restarted => f.write_str("the gateway's machine was started anew"),
            Self::Lost => f.write_str(
                "the gateway's agent was started anew, and nothing was written of how long it ran",
            ),
            Self::Neighbour { member } => write!(f, "{member}, on the same port, went back"),
            Self::Failing(Failing { what, reason: Some(reason), attempts }) => {
                write!(
                    f,
                    "{what} is dropped ({reason}, {attempts} attempts), and was answered before"
                )
            }
            Self::Failing(Failing { what, reason: None, attempts }) => {
                write!(f, "{what} isn't answered ({attempts} attempts), and was before")
            }
        }
    }
}

impl TrialReport {
    /// Whether its texts are as short as a gateway's are.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        match self.over.as_ref().map(|over| &over.why) {
            Some(Why::Failing(Failing { reason: Some(reason), .. })) => {
                reason.len() <= MAX_REASON_LEN
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cbor;

    #[test]
    fn nothing_is_carried_where_nothing_is_said() {
        assert_eq!(cbor::encode(&Rollout::default()), [0xa0]);
        assert!(Rollout::default().is_plain());
    }

    #[test]
    fn what_fails_is_told_in_words() {
        let what =
            Expected { remote: [10, 0, 0, 5].into(), outbound: true, protocol: 6, port: 9100 };
        let failing = |reason: Option<&str>| {
            Why::Failing(Failing { what, reason: reason.map(Into::into), attempts: 3 }).to_string()
        };
        assert_eq!(
            failing(Some("no-rule")),
            "tcp/9100 to 10.0.0.5 is dropped (no-rule, 3 attempts), and was answered before"
        );
        assert_eq!(
            failing(None),
            "tcp/9100 to 10.0.0.5 isn't answered (3 attempts), and was before"
        );
        let inbound = Expected { outbound: false, protocol: 1, port: 0, ..what };
        assert_eq!(inbound.to_string(), "icmp/echo from 10.0.0.5");
    }

    #[test]
    fn a_trial_that_goes_back_elsewhere_is_none_that_a_gateway_knows() {
        let trial = |back_to| Trial {
            since: Place::new(0, 1),
            within: 60_000,
            back_to,
            expects: Vec::new(),
        };
        assert!(trial(Mode::Protect).is_known());
        for other in [Mode::Observe, Mode::Enforce, Mode::Unrecognised] {
            assert!(!trial(other).is_known(), "{other}");
        }
    }
}
