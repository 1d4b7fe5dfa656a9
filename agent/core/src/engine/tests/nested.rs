//! Networks behind members of several peers, one within another.

use std::net::Ipv4Addr;

use anteroom_proto::verdict::Verdict;

use super::passage::{Passage, Via};
use super::*;
use crate::flow::Judgement;
use crate::policy::{End, Who};

const THIRD: GatewayId = GatewayId::from_bytes([5; 16]);

/// Member 20 has 10.99.0.0/16 behind it; member 21, behind another gateway, has 10.99.5.0/24.
fn start_engine(now: Instant) -> Engine {
    let mut view = (*view([Mode::Enforce; 2], &["tcp/104"])).clone();
    view.intent.members[0].addresses.push("10.99.0.0/16".parse().unwrap());
    let mut inner = member(21, THIRD, "10.20.4.21/32", Mode::Enforce);
    inner.addresses.push("10.99.5.0/24".parse().unwrap());
    view.intent.members.push(inner);
    let mut engine = engine(Limits::default(), now);
    engine.apply(Arc::new(view), now);
    engine
}

#[test]
fn a_peer_speaks_for_the_narrowest_network_alone() {
    let engine = start_engine(start());
    let policy = engine.policy.as_ref().unwrap();
    let speaker = |gateway, address: [u8; 4]| {
        let index = policy.of_peer(gateway, Ipv4Addr::from(address));
        index.and_then(|index| policy.member(index)).map(|member| member.id)
    };
    let [outer, inner] = [20, 21].map(|last| Some(MemberId::from_bytes([last; 16])));
    assert_eq!(speaker(OTHER, [10, 99, 6, 1]), outer);
    assert_eq!(speaker(THIRD, [10, 99, 5, 7]), inner);
    assert_eq!(speaker(OTHER, [10, 99, 5, 7]), None, "within the other's");
    assert_eq!(speaker(THIRD, [10, 99, 6, 1]), None, "outside its own");
}

#[test]
fn a_tunnelled_flow_takes_nothing_from_another_peers_tunnel() {
    let now = start();
    let engine = start_engine(now);
    let id = engine.stations.find(mac(10)).unwrap();
    let address = Ipv4Addr::new(10, 99, 5, 7);
    let judgement =
        Judgement { peer: Some(THIRD), owner: Some(THIRD), ..Judgement::of(Verdict::Tunnel, None) };
    let through = |gateway| {
        let passage = Passage {
            via: Via::Tunnel(gateway),
            source: End::elsewhere(address, Who::Address),
            destination: engine.end_here(id, Ipv4Addr::new(10, 20, 1, 10)),
            packets: 1,
            bytes: 20,
        };
        Engine::finish(&passage, judgement).verdict
    };
    assert_eq!(through(THIRD), Verdict::Tunnel);
    assert_eq!(through(OTHER), Verdict::Drop(DropReason::PeerSource));
}
