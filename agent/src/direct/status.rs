//! What the agent tells of QUIC to peers themselves.

use std::net::SocketAddr;
use std::time::Duration;

use anteroom_proto::id::GatewayId;
use serde::{Deserialize, Serialize};

use crate::relay::differs;

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

impl DirectStatus {
    /// Leaves round trips as they were told `before`, where they differ by a moment's chance: who waits for news isn't woken by it.
    pub(super) fn calm(&mut self, before: &Self) {
        for link in &mut self.peers {
            let known = before.peers.iter().find(|known| known.gateway == link.gateway);
            let (Some(now), Some(then)) =
                (link.round_trip, known.and_then(|known| known.round_trip))
            else {
                continue;
            };
            if !differs(micros(then), micros(now)) {
                link.round_trip = Some(then);
            }
        }
    }
}

fn micros(count: u32) -> Duration {
    Duration::from_micros(count.into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_that_trembles_is_no_news() {
        let link = |gateway: u8, round_trip| PeerLink {
            gateway: GatewayId::from_bytes([gateway; 16]),
            address: None,
            dialled: true,
            round_trip,
            last_error: None,
        };
        let before = DirectStatus {
            peers: vec![link(1, Some(300)), link(2, Some(300)), link(3, None)],
            ..DirectStatus::default()
        };
        let mut told = DirectStatus {
            peers: vec![link(1, Some(340)), link(2, Some(30_000)), link(3, Some(5))],
            ..DirectStatus::default()
        };
        told.calm(&before);
        let told: Vec<_> = told.peers.iter().map(|link| link.round_trip).collect();
        assert_eq!(told, [Some(300), Some(30_000), Some(5)]);
    }
}
