//! What a gateway and a relay say to each other (ALPN [`ALPN`]): sealed packets between gateways that share a view.
//!
//! The gateway opens the connection, proves its identity key in TLS, opens the one stream and says [`ToRelay::Hello`]
//! with its [`pass::RelayPass`]. The relay answers with [`FromRelay::Welcome`], and then with the state of each peer
//! that the pass names, and again whenever that changes. Packets travel beside the stream, as QUIC datagrams
//! ([`packet`]); where UDP doesn't get through, on a TCP connection between the messages ([`crate::tcp`]).

pub mod code;
pub mod mirror;
pub mod packet;
pub mod pass;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::authority::Authority;
use crate::cose::Signed;
use crate::id::{GatewayId, OrganisationId};
use packet::PeerNumber;
use pass::{PassNumber, RelayPass};

/// The protocol's name in TLS.
pub const ALPN: &[u8] = b"anteroom-relay/1";
/// Lowest and highest version of these messages that this code speaks.
pub const VERSIONS: (u16, u16) = (1, 1);
/// What an agent says in its greeting to a controller (`v1::Hello`) if it wants passes.
pub const CAPABILITY: &str = "relay";
/// Longest message that a relay reads: a hello with the largest pass, or the authority documents that it lacks.
pub const MAX_TO_RELAY: usize = 512 * 1024;
/// Longest message that a gateway reads from a relay.
pub const MAX_FROM_RELAY: usize = 256 * 1024;
/// Most entries of one [`FromRelay::Peers`].
pub const MAX_STATES: usize = 2048;

/// From gateway to relay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToRelay {
    /// First words.
    Hello(Box<Hello>),
    /// The answer to [`FromRelay::AuthorityWanted`]: documents that follow the one that the relay has. As many as fit
    /// into a message; the relay asks again.
    Authority(Vec<Signed<Authority>>),
    /// A newer pass, in place of the one before. The answer is [`FromRelay::PassTaken`] or
    /// [`FromRelay::PassRefused`].
    Pass(Box<Signed<RelayPass>>),
}

/// First words of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest and highest version of these messages that the gateway speaks.
    pub versions: (u16, u16),
    /// The organisation.
    pub organisation: OrganisationId,
    /// The newest authority document that the gateway holds.
    pub authority: u64,
    /// What shows with whom it shares a view. The TLS client key must be the identity key that it names.
    pub pass: Box<Signed<RelayPass>>,
}

/// From relay to gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromRelay {
    /// The gateway holds newer authority documents than the relay: send those after this number. The relay follows
    /// the chain as a gateway does, so whoever brings it needn't be believed.
    AuthorityWanted {
        /// Number of the relay's newest document; 0 for none.
        after: u64,
    },
    /// The answer to the hello.
    Welcome(Welcome),
    /// How it stands with peers. Who isn't named is as before; who was never named isn't reachable here.
    Peers(Vec<PeerState>),
    /// The pass counts from now on.
    PassTaken(PassNumber),
    /// The pass doesn't; the one before goes on to.
    PassRefused(Refusal),
    /// The connection can't go on.
    Refused(Refusal),
}

/// The answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak.
    pub version: u16,
    /// The newest authority document that the relay holds: a gateway whose own is older should ask its controllers.
    pub authority: u64,
    /// Where the relay saw the gateway come from.
    pub observed: SocketAddr,
    /// How many bytes a second the gateway may send through the relay; none where nothing but the others limits it.
    pub rate: Option<u64>,
}

/// How it stands with one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerState {
    /// Which peer.
    pub gateway: GatewayId,
    /// What it is called in packets, for as long as the connection stands.
    pub number: PeerNumber,
    /// The longest sealed packet that the relay can hand to it now. None: it isn't here, or its own pass doesn't name
    /// this gateway.
    pub room: Option<u16>,
}

/// Why a connection can't go on, or a pass isn't taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// What kind.
    pub code: RefusalCode,
    /// For the gateway's log and status.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// No version in common.
    Version,
    /// The relay serves another organisation, or the newest authority document doesn't name it.
    Organisation,
    /// The authority documents that the gateway sent don't follow the relay's.
    Authority,
    /// The pass isn't good: ask the controller for another.
    Pass,
    /// The relay has seen a newer pass of this gateway: use that one.
    Superseded,
    /// The gateway has a newer connection.
    Replaced,
    /// Operators have taken the gateway out.
    Revoked,
    /// Malformed or out of turn.
    Protocol,
    /// Too many at once; try again later, or another relay.
    Busy,
}

#[cfg(test)]
mod tests;
