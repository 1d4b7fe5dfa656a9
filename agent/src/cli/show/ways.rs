//! Ways to peers and relays: which one packets take, why, and how it stands with it.

use anteroom_agent_core::report::Standing;
use anteroom_proto::v1::telemetry::{PathKind, SHUT_OFF, TunnelState};

use super::or_dash;
use crate::direct::PeerLink;
use crate::relay::RelayStatus;

/// A round trip, given in microseconds.
fn round_trip(micros: Option<u32>) -> String {
    or_dash(micros.map(|us| format!("{}.{:03} ms", us / 1000, us % 1000)))
}

/// Lanes are told as those that are in use of those that both ends agreed on. `nearer` is a relay that is clearly nearer than the
/// one in use.
pub(super) fn tunnel(
    tunnel: &TunnelState,
    nearer: Option<u16>,
    lanes: Option<&Standing>,
) -> Vec<String> {
    vec![
        tunnel.gateway.to_string(),
        if tunnel.live { "live" } else { "down" }.into(),
        or_dash(tunnel.secrecy),
        lanes.map_or_else(|| "-".into(), |lanes| format!("{}/{}", lanes.ready, lanes.agreed)),
        round_trip(tunnel.round_trip),
        path(tunnel, nearer),
        or_dash(tunnel.path_mtu),
        or_dash(tunnel.revision),
        or_dash(tunnel.endpoint),
    ]
}

/// Which way packets for a peer go, and why, where there is a choice.
fn path(tunnel: &TunnelState, nearer: Option<u16>) -> String {
    let kind = PathKind::of(tunnel.relay);
    let way = match kind {
        PathKind::Direct => "direct".into(),
        PathKind::Quic => "quic".into(),
        PathKind::Relay(relay) => format!("relay {relay}"),
    };
    let why = match (kind, tunnel.path) {
        (PathKind::Relay(_), Some(_)) if tunnel.shut_off => format!("{way}: {SHUT_OFF}"),
        (_, Some(why)) => format!("{way}: {}", kind.because(why)),
        (_, None) => way,
    };
    match (kind, nearer) {
        (PathKind::Relay(_), Some(nearer)) => {
            format!("{why}; relay {nearer} is nearer, and taken once that has lasted")
        }
        _ => why,
    }
}

/// The relays, and how it stands with them.
pub(super) fn relays(relays: &[RelayStatus]) -> impl Iterator<Item = Vec<String>> {
    relays.iter().map(|relay| {
        vec![
            relay.number.to_string(),
            relay.addresses.join(", "),
            match (relay.connected, relay.over_tcp) {
                (true, true) => "connected over TCP (slower): UDP doesn't get through",
                (true, false) => "connected",
                (false, _) => "away",
            }
            .into(),
            round_trip(relay.round_trip),
            relay.peers.to_string(),
            relay.dropped.to_string(),
            or_dash(relay.last_error.as_ref()),
        ]
    })
}

/// QUIC to peers themselves, and how it stands with it.
pub(super) fn links(links: &[PeerLink]) -> impl Iterator<Item = Vec<String>> {
    links.iter().map(|link| {
        vec![
            link.gateway.to_string(),
            or_dash(link.address),
            match (link.address, link.dialled) {
                (None, _) => "-".into(),
                (Some(_), true) => "this end".into(),
                (Some(_), false) => "the peer".into(),
            },
            round_trip(link.round_trip),
            or_dash(link.last_error.as_ref()),
        ]
    })
}

#[cfg(test)]
mod tests {
    use anteroom_proto::id::GatewayId;
    use anteroom_proto::v1::telemetry::PathReason;

    use super::*;

    #[test]
    fn a_nearer_relay_is_told_beside_the_one_in_use() {
        let mut state = TunnelState {
            gateway: GatewayId::from_bytes([1; 16]),
            client: false,
            live: true,
            round_trip: Some(80_000),
            revision: None,
            authority: None,
            endpoint: None,
            path_mtu: None,
            relay: Some(2),
            path: Some(PathReason::Untried),
            shut_off: false,
            secrecy: None,
        };
        let far = "relay 2: a direct path isn't proved yet";
        assert_eq!(path(&state, None), far);
        let nearer = path(&state, Some(1));
        assert_eq!(nearer, format!("{far}; relay 1 is nearer, and taken once that has lasted"));
        state.shut_off = true;
        assert!(path(&state, Some(1)).contains("relay 1 is nearer"));
        (state.relay, state.shut_off) = (None, false);
        assert!(!path(&state, Some(1)).contains("nearer"), "packets go directly");
    }
}
