//! Sessions come up, stay up, move and end.

use super::*;

#[test]
fn two_gateways_find_each_other_and_carry_packets() {
    let mut world = World::live_pair();
    for len in [0, 1, 100, 1420, 60_000, tunnel::MAX_PACKET_LEN - 20] {
        for (here, there) in [(0, 1), (1, 0)] {
            let sent = packet(7, len);
            assert_eq!(world.send(here, there, &sent), Sent::Sealed);
            let (_, dscp, datagram) = world.sides[here].sent.datagrams.last().unwrap();
            assert_eq!(*dscp, 0xb8, "DSCP goes outside, ECN doesn't");
            assert_eq!(datagram.len(), sent.len() + OVERHEAD);
            world.settle();
            assert_eq!(world.sides[there].packets.pop(), Some(sent));
        }
    }
    let gateway = world.sides[1].gateway;
    let events = &world.sides[0].events;
    assert!(events.contains(&PeerEvent::Live { gateway, live: true }), "{events:?}");
    assert!(
        events.contains(&PeerEvent::Holds { gateway, revision: 1, relation: Some(0) }),
        "{events:?}"
    );
    let peer = world.sides[0].peer(gateway);
    assert_eq!((peer.revision(), peer.authority()), (Some(1), Some(1)));
    assert_eq!(peer.capabilities(), ["test", trial::CAPABILITY, doubt::CAPABILITY]);
    assert_eq!(peer.round_trip(), Some(Duration::ZERO));
    let state = peer.state(world.now);
    assert!(state.live && state.endpoint == Some(world.sides[1].at), "{state:?}");
}

#[test]
fn only_what_can_be_sealed_is_taken() {
    let mut world = World::live_pair();
    let too_big = Sent::Dropped(DropReason::TooBig);
    assert_eq!(world.send(0, 1, &[]), too_big);
    assert_eq!(world.send(0, 1, &vec![0x45; tunnel::MAX_PACKET_LEN + 1]), too_big);
    assert_eq!(inner_mtu(1500, &world.sides[0].at), 1440);
    assert_eq!(inner_mtu(20, &world.sides[0].at), 0);
}

#[test]
fn packets_wait_for_the_handshake_within_bounds() {
    let mut world = World::pair();
    for number in 0..100 {
        assert_eq!(world.send(0, 1, &packet(number, 50)), Sent::Queued);
    }
    world.run(Duration::from_millis(100));
    let expected: Vec<_> = (100 - queue::MAX_PACKETS as u32..100).map(|n| packet(n, 50)).collect();
    assert_eq!(world.sides[1].packets, expected);
    let mut drops = Vec::new();
    world.sides[0].peers.drain_drops(|reason, count| drops.push((reason, count)));
    assert_eq!(drops, [(DropReason::QueueFull, 36)]);
}

#[test]
fn packets_that_waited_too_long_are_not_sent() {
    let mut world = World::pair();
    world.fate = Box::new(|_, _, _| 0);
    world.send(0, 1, &packet(1, 50));
    world.run(Duration::from_secs(4));
    world.fate = Box::new(|_, _, _| 1);
    world.run(Duration::from_secs(4));
    assert!(world.live(0, 1));
    assert_eq!(world.sides[1].packets.len(), 0);
    let mut drops = Vec::new();
    world.sides[0].peers.drain_drops(|reason, count| drops.push((reason, count)));
    assert_eq!(drops, [(DropReason::TunnelDown, 1)]);
}

#[test]
fn a_session_is_renewed_with_no_packet_lost() {
    let mut world = World::live_pair();
    let mut handshakes = 0;
    for number in 0..2500 {
        world.run(Duration::from_millis(100));
        for (here, there) in [(0, 1), (1, 0)] {
            assert_eq!(world.send(here, there, &packet(number, 90)), Sent::Sealed);
            world.settle();
            assert_eq!(world.sides[there].packets.pop(), Some(packet(number, 90)), "{number}");
        }
        handshakes += world.delivered.iter().filter(|(_, _, bytes)| bytes[0] == 1).count();
        world.delivered.clear();
    }
    assert!((2..=10).contains(&handshakes), "{handshakes} handshakes in 250 s");
}

#[test]
fn a_silent_peer_stops_living_and_comes_back() {
    let mut world = World::live_pair();
    let gateway = world.sides[1].gateway;
    world.run(Duration::from_secs(20));
    world.sides[0].events.clear();
    world.fate = Box::new(|_, _, _| 0);
    world.run(Duration::from_secs(4));
    assert!(world.live(0, 1), "a probe or two may be lost");
    world.run(Duration::from_secs(4));
    assert!(!world.live(0, 1));
    assert_eq!(world.sides[0].events, [PeerEvent::Live { gateway, live: false }]);
    world.run(Duration::from_secs(1000));
    let attempts = world.sides[0].events.len();
    assert_eq!(attempts, 1, "{:?}", world.sides[0].events);
    world.fate = Box::new(|_, _, _| 1);
    world.run(Duration::from_secs(5));
    assert!(world.live(0, 1) && world.live(1, 0), "{:?}", world.sides[0].peers);
}

#[test]
fn a_path_that_carries_one_direction_only_is_not_live() {
    let mut world = World::live_pair();
    world.run(Duration::from_secs(10));
    world.fate = Box::new(|here, _, _| usize::from(here == 1));
    world.run(Duration::from_secs(13));
    assert!(!world.live(1, 0), "nothing comes from side 0");
    assert!(!world.live(0, 1), "side 1 is heard, but hears nothing");
    let gateway = world.sides[1].gateway;
    let events = &world.sides[0].events;
    assert_eq!(events.last(), Some(&PeerEvent::Live { gateway, live: false }));
    world.run(Duration::from_secs(60));
    assert!(!world.live(0, 1) && !world.live(1, 0));
    world.fate = Box::new(|_, _, _| 1);
    world.run(Duration::from_secs(6));
    assert!(world.live(0, 1) && world.live(1, 0), "{:?}", world.sides[0].peers);
}

#[test]
fn a_peer_that_is_not_there_is_tried_for_ever_but_not_too_often() {
    let mut world = World::pair();
    let tried = std::rc::Rc::new(std::cell::Cell::new(0));
    let counter = std::rc::Rc::clone(&tried);
    world.fate = Box::new(move |here, _, bytes| {
        counter.set(counter.get() + u32::from(here == 0 && bytes[0] == 1));
        0
    });
    world.run(Duration::from_secs(600));
    assert!((115..=150).contains(&tried.get()), "{} attempts in 600 s", tried.get());
    world.fate = Box::new(|_, _, _| 1);
    world.run(Duration::from_secs(6));
    assert!(world.live(0, 1) && world.live(1, 0));
}

#[test]
fn a_restarted_peer_is_back_at_once() {
    let mut world = World::live_pair();
    world.run(Duration::from_secs(30));
    let mut again = Side::new(2, 99, world.now);
    again.at = SocketAddr::from(([192, 0, 2, 77], 4500));
    world.sides[1] = again;
    world.introduce(1, 0);
    world.run(Duration::from_millis(20));
    assert!(world.live(0, 1) && world.live(1, 0));
    let peer = world.sides[0].peer(world.sides[1].gateway);
    assert_eq!(peer.boot(), Some(BootId::from_bytes([99; 16])));
    assert_eq!(peer.endpoint(), Some(world.sides[1].at), "it moved");
    world.send(0, 1, &packet(3, 3));
    world.settle();
    assert_eq!(world.sides[1].packets, [packet(3, 3)]);
}

#[test]
fn only_authentic_packets_move_a_peer() {
    let mut world = World::live_pair();
    let gateway = world.sides[1].gateway;
    world.send(1, 0, &packet(1, 10));
    let (_, _, datagram) = world.sides[1].sent.datagrams.pop().unwrap();
    let elsewhere = SocketAddr::from(([198, 51, 100, 9], 9));
    let mut forged = datagram.clone();
    *forged.last_mut().unwrap() ^= 1;
    let now = world.now;
    let dropped = world.sides[0].deliver(elsewhere, &forged, now);
    assert_eq!(dropped, Some(DropReason::PeerUnauthenticated));
    assert_eq!(world.sides[0].peer(gateway).endpoint(), Some(world.sides[1].at));
    assert_eq!(world.sides[0].deliver(elsewhere, &datagram, now), None);
    assert_eq!(world.sides[0].peer(gateway).endpoint(), Some(elsewhere));
}

#[test]
fn an_old_initiation_makes_us_initiate_once_in_five_seconds() {
    let mut world = World::pair();
    // Two initiations of side 1; the second is delivered first, as if the clock had gone back between.
    let mut initiations = Vec::new();
    for _ in 0..2 {
        let side = &mut world.sides[1];
        side.peers.handle_timeout(world.now, &mut side.sent);
        let (_, _, datagram) = side.sent.datagrams.pop().unwrap();
        assert_eq!(datagram[0], 1);
        initiations.push(datagram);
        world.now += Duration::from_secs(2);
    }
    let from = world.sides[1].at;
    let now = world.now;
    assert_eq!(world.sides[0].deliver(from, &initiations[1], now), None);
    world.sides[0].sent.datagrams.clear();
    let mut answers = 0;
    for _ in 0..20 {
        let stranger = SocketAddr::from(([198, 51, 100, 9], 9));
        let dropped = world.sides[0].deliver(stranger, &initiations[0], world.now);
        assert_eq!(dropped, Some(DropReason::PeerUnauthenticated));
        for (to, _, datagram) in std::mem::take(&mut world.sides[0].sent.datagrams) {
            assert_eq!((to, datagram[0]), (from, 1), "it goes where the peer is known to be");
            answers += 1;
        }
        world.now += Duration::from_millis(500);
    }
    assert_eq!(answers, 2, "in 10 seconds");
}

#[test]
fn revisions_are_told_at_once_and_never_go_back() {
    let mut world = World::live_pair();
    let (gateway, overlay) = (world.sides[1].gateway, world.sides[1].overlay);
    world.sides[0].events.clear();
    let time = Some((UnixMillis(5000), world.now));
    let local = Local { overlay, revision: 9, authority: 2, confirmed_time: time };
    world.sides[1].peers.set_local(local, world.now);
    world.run(Duration::from_millis(10));
    let events = &world.sides[0].events;
    assert_eq!(events[0], PeerEvent::Holds { gateway, revision: 9, relation: Some(0) });
    assert_eq!(events[1], PeerEvent::Time { gateway, time: UnixMillis(5000) });
    // A hello that was overtaken changes nothing.
    let mut peer = Peer::new(&world.sides[1].as_peer(), 0, world.now);
    let hello = |boot, sequence, revision| message::Hello {
        versions: (1, 1),
        capabilities: Vec::new(),
        boot: BootId::from_bytes([boot; 16]),
        sequence,
        revision,
        relation: None,
        authority: 1,
        time: None,
        nonce: 0,
        knocker: None,
        outside: None,
    };
    assert!(peer.note_said(hello(1, 5, 7), false, world.now));
    assert!(!peer.note_said(hello(1, 4, 6), false, world.now));
    assert_eq!(peer.revision(), Some(7));
    peer.note_said(hello(2, 1, 3), false, world.now);
    assert_eq!(peer.revision(), Some(3), "another run counts anew");
}

#[test]
fn a_view_update_keeps_sessions_and_cuts_off_whom_it_leaves_out() {
    let mut world = World::live_pair();
    let slot = world.sides[0].peers.slot(world.sides[1].gateway).unwrap();
    world.introduce(0, 1);
    assert_eq!(world.sides[0].peers.slot(world.sides[1].gateway), Some(slot));
    assert!(world.live(0, 1));
    assert_eq!(world.send(0, 1, &packet(1, 1)), Sent::Sealed);

    world.send(1, 0, &packet(2, 2));
    world.sides[0].peers.set_peers(&[], world.now);
    world.sides[0].packets.clear();
    world.settle();
    assert_eq!(world.sides[0].packets.len(), 0, "nothing passes once revoked");
    let side = &mut world.sides[0];
    let sent = side.peers.send(slot, &packet(1, 1), world.now, &mut side.sent);
    assert_eq!(sent, Sent::Dropped(DropReason::TunnelDown));
    assert!(side.peers.get(slot).is_none());
    world.run(Duration::from_secs(30));
    assert!(!world.live(1, 0), "an initiation of a removed peer isn't answered");

    world.introduce(0, 1);
    world.run(Duration::from_secs(6));
    assert!(world.live(0, 1) && world.live(1, 0));
    assert!(world.sides[0].peers.get(slot).is_none(), "an old slot stays void");
}

#[test]
fn a_tunnel_key_is_changed_without_losing_a_packet() {
    let mut world = World::live_pair();
    // The peer's next key stands first, but nobody answers to it yet: the old one carries on.
    let next = TunnelSecret::from_bytes([42; 32]);
    let old = world.sides[1].as_peer();
    let both = PeerConfig { keys: vec![next.public(), old.keys[0]], ..old.clone() };
    world.sides[0].peers.set_peers(std::slice::from_ref(&both), world.now);
    world.run(Duration::from_secs(10));
    assert_eq!(world.send(0, 1, &packet(1, 1)), Sent::Sealed);
    world.settle();
    assert_eq!(world.sides[1].packets, [packet(1, 1)]);
    // The peer comes back with the new key.
    let mut again = Side::new(2, 99, world.now);
    again.secret = next.clone();
    again.peers = Peers::new(
        Config {
            secret: next,
            boot: BootId::from_bytes([99; 16]),
            seed: [9; 32],
            owner: 2,
            capabilities: Vec::new(),
        },
        world.now,
    );
    world.sides[1] = again;
    world.introduce(1, 0);
    world.run(Duration::from_secs(1));
    assert_eq!(world.send(0, 1, &packet(2, 2)), Sent::Sealed);
    world.settle();
    assert_eq!(world.sides[1].packets, [packet(2, 2)]);
    let only = PeerConfig { keys: vec![both.keys[0]], ..old };
    world.sides[0].peers.set_peers(&[only], world.now);
    assert_eq!(world.send(0, 1, &packet(3, 3)), Sent::Sealed);
}

#[test]
fn a_key_belongs_to_whoever_brought_it_first() {
    let mut world = World::new(3);
    let (victim, mut thief) = (world.sides[1].as_peer(), world.sides[2].as_peer());
    thief.keys = victim.keys.clone();
    world.sides[0].peers.set_peers(std::slice::from_ref(&victim), world.now);
    world.introduce(1, 0);
    world.sides[0].peers.set_peers(&[thief, victim], world.now);
    world.run(Duration::from_millis(100));
    assert!(world.live(0, 1));
    let slot = world.sides[0].peers.slot(world.sides[2].gateway).unwrap();
    let side = &mut world.sides[0];
    let sent = side.peers.send(slot, &packet(1, 1), world.now, &mut side.sent);
    assert_eq!(sent, Sent::Dropped(DropReason::TunnelDown));
}

#[test]
fn many_peers_are_initiated_to_one_after_another() {
    let mut world = World::new(2);
    let mut peers = Vec::new();
    for number in 0..200u8 {
        let mut peer = world.sides[1].as_peer();
        peer.gateway = GatewayId::from_bytes([number; 16]);
        peer.keys = vec![TunnelSecret::from_bytes([number.max(3); 32]).public()];
        peers.push(peer);
    }
    let side = &mut world.sides[0];
    side.peers.set_peers(&peers, world.now);
    side.peers.handle_timeout(world.now, &mut side.sent);
    assert_eq!(side.sent.datagrams.len(), 1, "the first goes at once");
    let end = world.now + Duration::from_millis(600);
    // By the index that the answer is to have, without the session's part. Nobody answers, so the first ones are tried again
    // meanwhile.
    let tunnel = |datagram: &[u8]| u32::from_le_bytes(datagram[4..8].try_into().unwrap()) >> 8;
    let tunnels = |sent: &Kept| {
        let all = sent.datagrams.iter().map(|(_, _, datagram)| tunnel(datagram));
        all.collect::<std::collections::HashSet<u32>>().len()
    };
    let (mut count, mut burst) = (1, 0);
    while let Some((at, _)) = side.peers.poll_timeout().filter(|(at, _)| *at <= end) {
        side.peers.handle_timeout(at, &mut side.sent);
        let before = std::mem::replace(&mut count, tunnels(&side.sent));
        burst = burst.max(count - before);
    }
    // Keys 0 to 3 are one key.
    assert_eq!((count, burst), (197, 1));
}

#[test]
fn copies_from_elsewhere_have_no_probe_forgotten() {
    let mut world = World::live_pair();
    let gateway = world.sides[1].gateway;
    assert_eq!(world.sides[0].peer(gateway).round_trip(), Some(Duration::ZERO));
    let side = &mut world.sides[0];
    let slot = side.peers.slot(gateway).unwrap();
    // Its next probe is under way, and copies come meanwhile.
    while side.sent.datagrams.is_empty() {
        let (due, _) = side.peers.poll_timeout().unwrap();
        world.now = world.now.max(due);
        side.peers.handle_timeout(world.now, &mut side.sent);
    }
    for last in 0..50 {
        let elsewhere = SocketAddr::from(([203, 0, 113, last], 9));
        side.peers.ask_at(slot, elsewhere, world.now, &mut side.sent);
    }
    world.now += Duration::from_millis(80);
    world.settle();
    assert_eq!(world.sides[0].peer(gateway).round_trip(), Some(Duration::from_millis(10)));
}
