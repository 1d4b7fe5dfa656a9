//! What goes over the local socket: one JSON request a line, one JSON response a line.

use std::net::Ipv4Addr;

use anteroom_agent_core::report::{Explanation, FlowInfo};
use anteroom_proto::id::{BootId, GatewayId, OrganisationId};
use serde::{Deserialize, Serialize};

use crate::bypass::Followed;
use crate::control::ControlStatus;
use crate::dataplane;
use crate::direct::DirectStatus;
use crate::relay::RelayStatus;

/// Longest request in bytes, its line feed included.
pub const MAX_REQUEST: usize = 4096;
/// Most flows in one response.
pub const MAX_FLOWS: usize = 65_536;
/// Flows in a response where the request names no limit.
pub const DEFAULT_FLOWS: usize = 100;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command", deny_unknown_fields)]
pub enum Request {
    /// How the gateway is.
    Status {},
    /// To follow a bypass order.
    Bypass {
        /// Its text, as `anteroom gateway bypass --offline` made it.
        order: String,
    },
    /// What flows through it.
    Flows {
        /// How many at most; the most recently used come first.
        limit: Option<usize>,
    },
    /// What would become of a flow.
    Why {
        /// Who would open it.
        from: Ipv4Addr,
        /// To whom.
        to: Ipv4Addr,
        /// With what, as `tcp/104`.
        service: String,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To `status`.
    Status(Box<AgentStatus>),
    /// To `bypass`.
    Bypass(Followed),
    /// To `flows`.
    Flows(Vec<FlowInfo>),
    /// To `why`.
    Why(Box<Explanation>),
    /// To what can't be answered: one sentence for a person.
    Error(String),
}

/// How the gateway is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The agent's version.
    pub version: String,
    /// This run of the agent.
    pub boot: BootId,
    /// How long it has been running, in milliseconds.
    pub uptime_ms: u64,
    /// What it is doing.
    pub situation: Situation,
    /// Who it is. None: not enrolled.
    pub identity: Option<Identity>,
    /// The gateway that this machine is, where its private keys can't be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<GatewayId>,
    /// How it stands with the controller. None: not enrolled.
    pub control: Option<ControlStatus>,
    /// Engine, interfaces and underlay. None while the ports are closed.
    pub data_plane: Option<dataplane::Status>,
    /// What was wrong with the state on disk at start.
    pub problems: Vec<String>,
    /// The relays, and how it stands with them.
    #[serde(default)]
    pub relays: Vec<RelayStatus>,
    /// QUIC to peers themselves.
    #[serde(default)]
    pub direct: DirectStatus,
}

/// Who a gateway is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its organisation.
    pub organisation: OrganisationId,
    /// Its id.
    pub gateway: GatewayId,
    /// The fingerprint of its identity key.
    pub fingerprint: String,
}

/// What a gateway is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Situation {
    /// Not enrolled: a wire.
    NotEnrolled,
    /// Enrolled, without a view: a wire.
    Wire,
    /// A view is in force.
    InForce,
    /// An enforced device was here and its view is lost: nothing passes.
    Closed,
    /// Enrolled, and the private keys are sealed and can't be opened: a wire.
    Locked,
    /// The same where an enforced device was: nothing passes.
    LockedClosed,
}

impl Situation {
    /// What it means, in a sentence.
    #[must_use]
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::NotEnrolled => "not enrolled: a wire; run `anteroom-agent enroll INVITE`",
            Self::Wire => "no view yet: a wire until an operator approves this gateway",
            Self::InForce => "a view is in force",
            Self::Closed => {
                "closed: an enforced device was here and its view is lost; opens with the next view"
            }
            Self::Locked => {
                "enrolled, but its private keys are sealed and can't be opened: a wire until they can"
            }
            Self::LockedClosed => {
                "closed: a device here is enforced, and this gateway's private keys are sealed and can't be opened; opens as soon as they can"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_people_would_write_them() {
        let read = |text: &str| serde_json::from_str::<Request>(text).map_err(|e| e.to_string());
        assert_eq!(read(r#"{"command":"status"}"#), Ok(Request::Status {}));
        assert_eq!(read(r#"{"command":"flows"}"#), Ok(Request::Flows { limit: None }));
        let why = r#"{"command":"why","from":"10.0.0.1","to":"10.0.0.2","service":"tcp/104"}"#;
        assert!(matches!(read(why), Ok(Request::Why { .. })));
        for bad in [
            "",
            "{}",
            "[]",
            "status",
            r#"{"command":"stop"}"#,
            r#"{"command":"status","limit":1}"#,
            r#"{"command":"flows","limit":-1}"#,
            r#"{"command":"flows","limit":"x"}"#,
            r#"{"command":"why","from":"here","to":"10.0.0.2","service":"tcp/104"}"#,
            r#"{"command":"why","from":"10.0.0.1"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn anything_at_all_is_read_without_a_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = serde_json::from_slice::<Request>(&bytes);
        }

        #[test]
        fn what_is_asked_is_what_is_read(limit: Option<usize>, from: Ipv4Addr, to: Ipv4Addr, service in "\\PC{0,40}") {
            for request in [Request::Flows { limit }, Request::Why { from, to, service: service.clone() }] {
                let text = serde_json::to_string(&request).unwrap();
                proptest::prop_assert!(!text.contains('\n'), "one line: {text}");
                proptest::prop_assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
            }
        }
    }
}
