//! Peers with which this gateway should have pre-shared keys, and has none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::v1::telemetry::{Secrecy, TunnelState};

/// How long two may take to agree, over bad paths, before it is an alarm.
const PATIENCE: Duration = Duration::from_secs(60);

/// Since when which peers are spoken to without a pre-shared key, though both ends could have one.
#[derive(Debug, Default)]
pub(super) struct Classic(BTreeMap<GatewayId, (Instant, Option<Secrecy>)>);

impl Classic {
    /// Looks at how it stands with the peers. Gives those that have been so for too long, in sentences.
    pub(super) fn look(&mut self, tunnels: &[TunnelState], now: Instant) -> Vec<String> {
        let lacks = |tunnel: &&TunnelState| tunnel.live && is_classic(tunnel);
        let before = std::mem::take(&mut self.0);
        for tunnel in tunnels.iter().filter(lacks) {
            let since = before.get(&tunnel.gateway).map_or(now, |(since, _)| *since);
            self.0.insert(tunnel.gateway, (since, tunnel.secrecy));
        }
        let late = self.0.iter().filter(|(_, (since, _))| now.duration_since(*since) >= PATIENCE);
        late.map(|(gateway, (_, why))| sentence(*gateway, *why)).collect()
    }
}

fn is_classic(tunnel: &TunnelState) -> bool {
    matches!(tunnel.secrecy, Some(Secrecy::Unanswered | Secrecy::Awaited | Secrecy::OwnKeyLacks))
}

/// What is wrong where packets are withheld from live peers, since nothing is to go without a pre-shared key.
pub(crate) fn withheld(tunnels: &[TunnelState]) -> impl Iterator<Item = String> {
    let live = tunnels.iter().filter(|tunnel| tunnel.live);
    live.filter_map(|tunnel| {
        let why = tunnel.secrecy.filter(|secrecy| !secrecy.is_post_quantum())?;
        let gateway = tunnel.gateway;
        Some(format!(
            "no packet goes to {gateway} ({why}): `classic = \"never\"` under [keys] in agent.toml"
        ))
    })
}

fn sentence(gateway: GatewayId, why: Option<Secrecy>) -> String {
    if why == Some(Secrecy::OwnKeyLacks) {
        return format!(
            "no ML-KEM-768 key of this gateway is in use with {gateway}: it was lost, or an earlier version made the tunnel key, and no controller has told of the new one"
        );
    }
    format!(
        "{gateway} and this gateway could have a pre-shared key by ML-KEM-768 and don't come to one: somebody on the path keeps large packets back, no controller tells the other's key, or one end is broken"
    )
}

/// What is wrong where packets for live peers go without a pre-shared key for no good reason.
pub(crate) fn without_psk(tunnels: &[TunnelState]) -> impl Iterator<Item = String> {
    let found = |tunnel: &&TunnelState| {
        matches!(tunnel.secrecy, Some(Secrecy::Unanswered | Secrecy::OwnKeyLacks))
    };
    let live = tunnels.iter().filter(|tunnel| tunnel.live);
    live.filter(found).map(|one| sentence(one.gateway, one.secrecy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lasts_is_an_alarm_and_what_has_a_good_reason_never() {
        let tunnel = |number: u8, secrecy| TunnelState {
            gateway: GatewayId::from_bytes([number; 16]),
            client: false,
            live: true,
            round_trip: None,
            revision: None,
            authority: None,
            endpoint: None,
            path_mtu: None,
            relay: None,
            path: None,
            shut_off: false,
            secrecy: Some(secrecy),
        };
        let mut tunnels = [
            tunnel(1, Secrecy::Unanswered),
            tunnel(2, Secrecy::Awaited),
            tunnel(3, Secrecy::MlKem768),
            tunnel(4, Secrecy::PeerKeyLacks),
            TunnelState { live: false, ..tunnel(5, Secrecy::Unanswered) },
        ];
        let now = Instant::now();
        let mut classic = Classic::default();
        assert_eq!(classic.look(&tunnels, now), Vec::<String>::new());
        assert_eq!(classic.look(&tunnels, now + PATIENCE / 2), Vec::<String>::new());
        assert_eq!(classic.look(&tunnels, now + PATIENCE).len(), 2);
        // One that came to it in between begins anew.
        tunnels[0].secrecy = Some(Secrecy::MlKem768);
        assert_eq!(classic.look(&tunnels, now + PATIENCE).len(), 1);
        tunnels[0].secrecy = Some(Secrecy::Unanswered);
        assert_eq!(classic.look(&tunnels, now + PATIENCE * 2 - PATIENCE / 4).len(), 1);
        assert_eq!(without_psk(&tunnels).count(), 1);
        // Its own key is lost.
        tunnels[3].secrecy = Some(Secrecy::OwnKeyLacks);
        let said = without_psk(&tunnels).last().unwrap();
        assert!(said.contains("it was lost"), "{said}");
        let peers: Vec<String> = withheld(&tunnels).collect();
        assert_eq!(peers.len(), 3, "all that are there and have none: {peers:?}");
        assert!(peers[2].contains("(classic: no ML-KEM key here yet)"), "{peers:?}");
    }
}
