//! QUIC to the peer itself, as a path among others.

use super::*;

/// QUIC to the peer itself.
const LINK: RelayId = RelayId(0x8000);

#[test]
fn quic_to_the_peer_itself_is_taken_in_a_relays_place_without_a_loss() {
    let mut world = apart();
    assert_eq!(world.talk(Duration::from_secs(20)), [Duration::ZERO; 2]);
    // What is still under way through the relay while packets change over comes late, and is taken all the same.
    world.offer(&[LINK, NEAR]);
    assert_eq!(world.talk(Duration::from_secs(6)), [Duration::ZERO; 2]);
    for here in 0..2 {
        assert_eq!(world.path(here), (Some(LINK), PathReason::Untried), "side {here}");
    }
    world.relays.dead.push(NEAR);
    assert_eq!(world.talk(Duration::from_secs(30)), [Duration::ZERO; 2], "nothing takes the relay");

    // WireGuard's own path is taken as soon as it works, and left for the link when it dies.
    world.direct(true, true);
    assert_eq!(world.talk(Duration::from_secs(8)), [Duration::ZERO; 2]);
    for here in 0..2 {
        assert_eq!(world.path(here), (None, PathReason::Proved), "side {here}");
        assert!(world.sides[here].peers.indirect(world.now).is_empty());
    }
    world.direct(false, false);
    let silence = world.talk(Duration::from_secs(8));
    assert!(silence.iter().all(|time| *time < Duration::from_secs(2)), "{silence:?}");
    for here in 0..2 {
        assert_eq!(world.path(here), (Some(LINK), PathReason::Died), "side {here}");
        let other = world.sides[1 - here].gateway;
        assert_eq!(world.sides[here].peers.indirect(world.now), [other]);
    }
}

#[test]
fn what_the_relay_holds_back_while_packets_change_to_quic_is_taken_late() {
    let mut world = apart();
    world.talk(Duration::from_secs(20));
    world.relays.holds = true;
    for number in 0..200 {
        world.send(0, 1, &packet(number, 100));
    }
    world.settle();
    world.relays.holds = false;
    let mut held = std::mem::take(&mut world.relays.held);
    assert_eq!(held.len(), 200);
    world.offer(&[LINK, NEAR]);
    world.talk(Duration::from_secs(6));
    assert_eq!(world.path(0), (Some(LINK), PathReason::Untried));
    world.talk(Duration::from_secs(1));
    world.sides[1].packets.clear();
    world.relays.held.append(&mut held);
    world.release();
    assert_eq!(world.sides[1].packets.len(), 200);
}

#[test]
fn a_link_that_goes_is_left_for_the_relay_at_once_and_one_that_is_silent_soon() {
    let mut world = apart();
    world.offer(&[LINK, NEAR]);
    world.talk(Duration::from_secs(20));
    assert_eq!(world.path(0), (Some(LINK), PathReason::Untried));
    world.offer(&[NEAR]);
    assert_eq!(world.talk(Duration::from_secs(5)), [Duration::ZERO; 2], "it takes no time");
    assert_eq!(world.path(0), (Some(NEAR), PathReason::Untried));
    world.offer(&[LINK, NEAR]);
    world.talk(Duration::from_secs(6));
    assert_eq!(world.path(1), (Some(LINK), PathReason::Untried));
    // Whoever is in between lets the connection stand and carries nothing.
    world.relays.dead.push(LINK);
    let silence = world.talk(Duration::from_secs(20));
    assert!(silence.iter().all(|time| *time < Duration::from_secs(2)), "{silence:?}");
    for here in 0..2 {
        assert_eq!(world.path(here), (Some(NEAR), PathReason::Untried), "side {here}");
    }
    world.relays.dead.clear();
    assert_eq!(world.talk(Duration::from_secs(10)), [Duration::ZERO; 2]);
    assert_eq!(world.path(0), (Some(LINK), PathReason::Untried), "it is tried again and again");
}

#[test]
fn what_kills_a_direct_path_and_quic_at_once_leaves_the_relay_in_under_two_seconds() {
    for offset in (0..500).step_by(70) {
        let mut world = World::live_pair();
        world.offer(&[LINK, NEAR]);
        world.talk(Duration::from_secs(10));
        world.run(Duration::from_millis(offset));
        world.talk(Duration::from_secs(3));
        assert_eq!(world.path(0), (None, PathReason::Proved), "after {offset} ms");
        world.direct(false, false);
        world.relays.dead.push(LINK);
        let silence = world.talk(Duration::from_secs(12));
        let bound = Duration::from_secs(2);
        assert!(silence.iter().all(|time| *time < bound), "after {offset} ms: {silence:?}");
        for here in 0..2 {
            assert_eq!(world.path(here), (Some(NEAR), PathReason::Died), "side {here}");
        }
        // It is taken again once it carries something, at no loss.
        world.relays.dead.clear();
        assert_eq!(world.talk(Duration::from_secs(8)), [Duration::ZERO; 2], "after {offset} ms");
        assert_eq!(world.path(0).0, Some(LINK), "after {offset} ms");
    }
}

#[test]
fn where_there_is_nothing_but_quic_it_is_the_way() {
    let mut world = World::pair();
    world.direct(false, false);
    world.run(Duration::from_secs(3));
    let other = world.sides[1].gateway;
    assert_eq!(world.sides[0].peers.indirect(world.now), [other]);
    world.offer(&[LINK]);
    world.run(Duration::from_millis(600));
    assert!(world.live(0, 1) && world.live(1, 0));
    assert_eq!(world.talk(Duration::from_secs(20)), [Duration::ZERO; 2]);
    assert_eq!(world.path(0).0, Some(LINK));
}
