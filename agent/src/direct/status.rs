//! What the agent tells of QUIC to peers themselves.

use std::net::SocketAddr;

use anteroom_proto::id::GatewayId;
use serde::{Deserialize, Serialize};

/// How it stands with QUIC to peers themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DirectStatus {
    /// Where peers' connections are taken, if they are.
    pub listening: Option<SocketAddr>,
    /// Why they aren't, though they should be, or why no more are.
    pub problem: Option<String>,
    /// Datagrams that got no answer, since they were no peer's.
    pub turned_away: u64,
    /// Where QUIC shares the tunnels' port: datagrams that came to the wrong one of the two and were handed over, and those
    /// for which there was no room.
    #[serde(default)]
    pub strays: Option<(u64, u64)>,
    /// The connections, and what came of attempts.
    pub peers: Vec<PeerLink>,
}

/// A connection to a peer, or what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLink {
    /// Which peer.
    pub gateway: GatewayId,
    /// Where it is connected to; none: it isn't.
    pub address: Option<SocketAddr>,
    /// Whether this end made it.
    pub dialled: bool,
    /// QUIC's round trip, in microseconds.
    pub round_trip: Option<u32>,
    /// What went wrong last, if nothing has gone right since.
    pub last_error: Option<String>,
}
