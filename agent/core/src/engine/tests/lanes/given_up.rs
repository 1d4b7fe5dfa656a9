//! Lanes that one end gives up, so that the other has to hear of it.

use super::*;

/// The same with as many more peers, which come first.
fn crowded(view: &View, more: u8) -> View {
    let mut view = view.clone();
    let mut peers = Vec::new();
    for number in 0..more {
        let mut peer = view.peers[0].clone();
        peer.gateway.gateway =
            GatewayId::from_bytes([0xee, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        peer.gateway.overlay = overlay::gateway_address(ORGANISATION, peer.gateway.gateway);
        peer.endpoints = vec![SocketAddr::from(([198, 18, 0, number], 51_820))];
        peer.keys[0].gateway = peer.gateway.gateway;
        peer.keys[0].x25519 = TunnelSecret::from_bytes([number.max(1) ^ 0xc0; 32]).public();
        peers.push(peer);
    }
    view.intent.peers.splice(..0, peers.iter().map(|peer| peer.gateway.clone()));
    view.peers.splice(..0, peers);
    view
}

/// Gateway 1 has a view without gateway 0 for a moment; gateway 0 hears nothing of it. So many others are its peers in
/// that one, and before gateway 0 in the next.
fn forget_for_a_moment(net: &mut Net, others: u8) {
    let mut again = crowded(&other_view(), others);
    let mut without = again.clone();
    without.peers.retain(|peer| peer.gateway.gateway != OWN);
    without.intent.peers.retain(|peer| peer.gateway != OWN);
    without.intent.members.clear();
    without.intent.rules.clear();
    without.operation.number.sequence += 1;
    again.operation.number.sequence += 2;
    for view in [without, again] {
        net.engines[1].apply(Arc::new(view), net.now);
        let mut out = Out::default();
        net.engines[1].handle_timeout(net.now, &mut out);
        net.carry(1, out);
    }
    assert_eq!(net.engines[1].open_lanes(), 0);
}

#[test]
fn lanes_that_one_end_alone_gave_up_are_left_by_the_other() {
    // Peers are admitted some at a time: it is among the first, or the very last.
    for others in [0, 150] {
        let mut net = Net::with_lane();
        forget_for_a_moment(&mut net, others);
        net.wait(1_500);
        let before = net.got[&40_001].len();
        for _ in 0..100 {
            net.burst(0, 1, 60, 1200);
            net.wait(20);
        }
        let got = net.got[&40_001].len() - before;
        assert_eq!(got, 6_000, "{others}: the rest was sent where nobody listens");
        assert!(net.standing(0).ready > 0, "{others}: and lanes come again");
    }
}

#[test]
fn that_lanes_were_given_up_is_said_until_it_was_heard() {
    let mut net = Net::with_lane();
    net.mute = Some(1);
    forget_for_a_moment(&mut net, 0);
    // The handshake is over, and the first word is lost.
    net.mute = None;
    net.wait(60);
    net.mute = Some(1);
    net.wait(2_500);
    net.mute = None;
    net.wait(3_000);
    let before = net.got[&40_001].len();
    net.burst(0, 1, 50, 1200);
    net.wait(10);
    assert_eq!(net.got[&40_001].len(), before + 50, "sent where nobody listens: {:?}", net.sent);
}

#[test]
fn a_peer_that_never_answers_isnt_told_for_ever() {
    let mut net = Net::with_lane();
    forget_for_a_moment(&mut net, 0);
    net.wait(60_000);
    let due = net.engines[1].bulk.as_ref().unwrap().notices_due_for_tests();
    assert_eq!(due, None, "nobody is woken for it any more");
}
