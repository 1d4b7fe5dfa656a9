//! Version 1 of what agent and controller say to each other over one QUIC stream (ALPN [`ALPN`]).
//!
//! The agent opens the connection and the stream and speaks first: [`ToController::Enrol`] with an invite's
//! claim, or [`ToController::Hello`] with its identity key as TLS client key. Messages are CBOR, each behind
//! its length (see [`frame`]).

pub mod frame;
pub mod telemetry;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::authority::Authority;
use crate::binding::TunnelKeyBinding;
use crate::cose::Signed;
use crate::id::{BootId, GatewayId, InviteId, OrganisationId};
use crate::invite::IdentityClaim;
use crate::key::Hash;
use crate::mac::MacAddr;
use crate::name::Name;
use crate::operation::ViewNumber;
use crate::rekey::{RekeyOffer, RekeyOrder};
use crate::relay::pass::RelayPass;
use crate::time::UnixMillis;
use crate::view::SignedView;
use telemetry::Report;

/// The protocol's name in TLS.
pub const ALPN: &[u8] = b"anteroom/1";
/// Lowest and highest version of these messages that this code speaks.
pub const VERSIONS: (u16, u16) = (1, 1);

/// From agent to controller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToController {
    /// First words of a gateway with an invite. Repeating them gets the same answer.
    Enrol(Box<Enrol>),
    /// First words of an enrolled gateway.
    Hello(Box<Hello>),
    /// First words of an enrolled gateway to a controller whose key it doesn't know: which authority document names
    /// you? The answer is [`ToAgent::Authority`], and nothing else is said before that was followed.
    AskAuthority {
        /// The organisation.
        organisation: OrganisationId,
        /// Which gateway asks; the TLS client key must be its identity key.
        gateway: GatewayId,
    },
    /// A view was taken and is in force, or was refused.
    Applied(Applied),
    /// Something changed in where or how the gateway can be reached.
    Reachable(Reachable),
    /// What the gateway saw.
    Report(Box<Report>),
    /// Another identity key, as [`ToAgent::Rekey`] asked for it. It comes again when its tunnel keys change.
    Rekey(Box<RekeyOffer>),
}

/// From controller to agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToAgent {
    /// The enrolment is recorded. Connect again with the identity key and wait for approval.
    Enrolled {
        /// The authority chain from its first document.
        authority: Vec<Signed<Authority>>,
    },
    /// The connection can't go on. The agent says so and tries again later, unless `fatal`.
    Refused(Refusal),
    /// Greeting, the answer to `Hello`.
    Welcome(Box<Welcome>),
    /// A newer authority chain, from its first document.
    Authority(Vec<Signed<Authority>>),
    /// A view to take.
    View(Box<SignedView>),
    /// A newer pass to show to relays. Only for agents whose greeting had the capability
    /// [`crate::relay::CAPABILITY`].
    Pass(Box<Signed<RelayPass>>),
    /// Tunnel keys to replace. Only for a gateway whose greeting says [`ROTATES`].
    Rotate(Rotate),
    /// An operator's order to offer another identity key. Only for a gateway whose greeting says
    /// [`crate::rekey::CAPABILITY`].
    Rekey(Box<Signed<RekeyOrder>>),
    /// What the controller reads in reports beyond version 1's basics, such as [`TELLS_PSK`]. Right behind the welcome, and
    /// only for agents whose greeting has one of those capabilities.
    Reads(Vec<String>),
    /// Reports up to this sequence number are stored.
    Reported {
        /// The agent's boot that the number belongs to.
        boot: BootId,
        /// The report's sequence number.
        sequence: u64,
    },
}

/// What a gateway is asked to do with its tunnel keys. It may come again; a gateway that has a newer key has done it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// Its keys with serials up to this one are to be replaced.
    pub up_to: u64,
    /// Whether they are to go whoever still needs them: their private halves may be in other hands.
    pub now: bool,
}

/// What a gateway's greeting says it can do where it takes [`ToAgent::Rotate`].
pub const ROTATES: &str = "rotate";

/// What a gateway's greeting says where its reports tell of pre-shared keys, to a controller that reads that.
pub const TELLS_PSK: &str = "psk";

/// What a gateway's greeting says where its reports tell of relays over TCP, to a controller that reads that.
pub const TELLS_TCP: &str = "relays-over-tcp";

/// What a gateway's greeting says where its reports tell between which gateways there can be no direct path, to a controller
/// that reads that.
pub const TELLS_SHUT_OFF: &str = "shut-off";

/// What a gateway's greeting says where its reports tell what devices let be seen of themselves ([`crate::inventory`]), to a
/// controller that reads that.
pub const TELLS_HINTS: &str = "hints";
/// What a gateway's greeting says where its reports tell of devices on trial, to a controller that reads that.
pub const TELLS_TRIALS: &str = "trials";
/// What a gateway's greeting says where its reports tell of relays that it doesn't reach, to a controller that reads that.
pub const TELLS_AWAY: &str = "relays-away";
/// All that reports may tell beyond version 1's basics, as greetings say it and controllers answer.
pub const TELLS: [&str; 6] =
    [TELLS_PSK, TELLS_TCP, TELLS_SHUT_OFF, TELLS_HINTS, TELLS_TRIALS, TELLS_AWAY];

/// First words of a gateway with an invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// The invite.
    pub invite: InviteId,
    /// Signed by the invite's one-time key: the identity that the gateway made.
    pub claim: Signed<IdentityClaim>,
}

/// First words of an enrolled gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest and highest version of these messages that the agent speaks.
    pub versions: (u16, u16),
    /// The organisation.
    pub organisation: OrganisationId,
    /// Which gateway; the TLS client key must be its identity key.
    pub gateway: GatewayId,
    /// This run of the agent.
    pub boot: BootId,
    /// The agent's version, for inventory.
    pub agent_version: String,
    /// What the agent can do beyond version 1's basics.
    pub capabilities: Vec<String>,
    /// Its authority chain's newest number.
    pub authority: u64,
    /// What it has in force, if anything.
    pub applied: Option<Applied>,
    /// Its tunnel keys and addresses.
    pub reachable: Reachable,
    /// The UDP port where it takes peers' QUIC connections, if it does: see [`crate::direct`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<u16>,
}

/// Where and how a gateway can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reachable {
    /// Candidate addresses of its WireGuard socket, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Its tunnel keys, signed by its identity key.
    pub keys: Vec<Signed<TunnelKeyBinding>>,
    /// Its ports, as its configuration has them.
    pub ports: Vec<PortInfo>,
    /// The UDP port where it takes peers' QUIC connections. An agent leaves it out, since older controllers don't know
    /// it: the controller fills it in from [`Hello::quic`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<u16>,
}

/// What a host calls its TUN device where gateways have ports: its attachment's port.
pub const HOST_PORT: &str = "host";

/// A device port of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortInfo {
    /// Its name in the gateway's configuration.
    pub name: Name,
    /// The interface's own Ethernet address.
    pub mac: MacAddr,
    /// Whether it has carrier.
    pub up: bool,
    /// What becomes of Ethernet addresses on it that nobody confirmed, once a device there has left observe.
    #[serde(default)]
    pub unlisted: Unlisted,
}

/// What becomes of Ethernet addresses that nobody confirmed, on a port where a device has left observe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unlisted {
    /// Nothing of theirs passes until an operator confirms them.
    #[default]
    Hold,
    /// They pass in the clear, as if observed: for servers with many virtual machines. They have nobody's rights.
    Pass,
}

/// What a gateway has in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// The view's number.
    pub number: ViewNumber,
    /// The revision of its intent.
    pub revision: u64,
    /// The intent's digest.
    pub intent_hash: Hash,
    /// Why the view was refused; then what was in force before still is.
    pub refused: Option<String>,
    /// Problems in a view that was taken: tunnel keys left out, conditions unknown.
    pub problems: Vec<String>,
}

/// Greeting, the answer to `Hello`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak.
    pub version: u16,
    /// Whether an operator has approved the gateway.
    pub approved: bool,
    /// The authority chain from its first document, if the agent's is older.
    pub authority: Option<Vec<Signed<Authority>>>,
    /// Where the controller saw the agent come from.
    pub observed: SocketAddr,
    /// The controller's time.
    pub time: UnixMillis,
    /// How often to send reports, in milliseconds.
    pub report_every: u32,
}

/// Why a connection can't go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// What kind.
    pub code: RefusalCode,
    /// For the gateway's log and console.
    pub message: String,
    /// Whether trying again can't help.
    pub fatal: bool,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// No version in common.
    Version,
    /// The invite is unknown, lapsed or not signed by an operator.
    Invite,
    /// Another identity used the invite first.
    InviteUsed,
    /// The identity isn't a gateway's here.
    Unknown,
    /// Operators have taken the gateway out.
    Revoked,
    /// Malformed or out of turn.
    Protocol,
    /// Too many at once; try again later.
    Busy,
}
