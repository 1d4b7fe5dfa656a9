//! As many peers as the gateway of a server room has.

use std::collections::BTreeSet;

use super::*;

const PEERS: u16 = 3_000;

fn configs() -> Vec<PeerConfig> {
    let config = |number: u16| {
        let [a, b] = number.to_be_bytes();
        let mut bytes = [7; 32];
        (bytes[1], bytes[2]) = (a, b);
        let mut id = [9; 16];
        (id[0], id[1]) = (a, b);
        PeerConfig {
            gateway: GatewayId::from_bytes(id),
            overlay: Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, number),
            keys: vec![TunnelSecret::from_bytes(bytes).public()],
            endpoints: vec![SocketAddr::from(([198, 18, a, b], 51_820))],
            relation: 0,
            kems: Vec::new(),
            client: false,
        }
    };
    (0..PEERS).map(config).collect()
}

#[test]
fn thousands_of_peers_are_called_within_ten_seconds_and_cost_what_is_due() {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    let begin = Instant::now();
    let mut side = Side::new(1, 1, begin);
    side.peers.set_peers(&configs(), begin);
    let (mut now, mut calls, mut idle) = (begin, 0_u64, 0_u64);
    let mut called = BTreeSet::new();
    while let Some((at, _)) =
        side.peers.poll_timeout().filter(|(at, _)| *at < begin + Duration::from_secs(10))
    {
        now = now.max(at);
        let mut before = side.peers.tended;
        while side.peers.poll_timeout().is_some_and(|(at, _)| at <= now) {
            side.peers.handle_timeout(now, &mut side.sent);
            let looks = side.peers.tended - std::mem::replace(&mut before, side.peers.tended);
            calls += 1;
            idle += u64::from(looks == 0);
            assert!(looks <= 32, "packets waited for {looks} peers");
        }
        side.peers.handle_timeout(now, &mut side.sent);
        assert_eq!(side.peers.tended, before, "nothing is due twice at {:?}", now - begin);
        called.extend(side.sent.datagrams.drain(..).map(|(to, ..)| to));
    }
    assert_eq!(called.len(), usize::from(PEERS), "after {calls} calls");
    assert_eq!(idle, 0, "of {calls} calls had nothing to do");
    // While nobody answers, a peer is looked at four times a second, and at each attempt.
    let most = u64::from(PEERS) * 10 * 6;
    assert!(side.peers.tended <= most, "{} looks at peers", side.peers.tended);
}
