//! A relay that somebody took over and that makes itself the direct path, and operators who take it out.

use std::net::IpAddr;

use boringtun::x25519::StaticSecret;

use super::super::hostile::initiation;
use super::*;

/// Where the relay is, and where it forwards from; the other is a machine that nobody knows to be its own.
const RELAY: [u8; 4] = [203, 0, 113, 9];
const HELPER: [u8; 4] = [198, 51, 100, 66];
/// The document that names it no more.
const DOCUMENT: u64 = 2;
/// As long as sealed packets and handshakes of before may open.
const HELD_BACK: Duration = Duration::from_secs(400);

/// Two gateways with no direct path, and the relay between them that is taken for one.
fn deceived(forwards_from: [u8; 4]) -> World {
    let mut world = World::pair();
    world.direct(false, false);
    world.relays.detour = Some((NEAR, SocketAddr::from((forwards_from, 5_000))));
    world.offer(&[NEAR, FAR]);
    world.run(Duration::from_secs(5));
    world.talk(Duration::from_secs(20));
    for here in 0..2 {
        assert_eq!(world.path(here), (None, PathReason::Proved), "side {here}");
    }
    world
}

impl World {
    /// A gateway hears that the relay is named no more.
    fn take_out(&mut self, here: usize) {
        let (now, side) = (self.now, &mut self.sides[here]);
        let addresses = [IpAddr::from(RELAY)];
        side.peers.forget_relays(&[NEAR], &addresses, DOCUMENT, now, &mut side.sent);
        self.hold_document(here);
        let (other, side) = (self.sides[1 - here].gateway, &mut self.sides[here]);
        side.peers.set_relays(other, &[path(FAR)], now, &mut side.sent);
    }

    /// A gateway holds the document, and says so.
    fn hold_document(&mut self, here: usize) {
        let (now, side) = (self.now, &mut self.sides[here]);
        let overlay = side.overlay;
        let local = Local { overlay, revision: 1, authority: DOCUMENT, confirmed_time: None };
        side.peers.set_local(local, now);
    }

    /// A relay says to a gateway how it looks from outside.
    fn mirror(&mut self, here: usize, relay: RelayId, seen: SocketAddr) {
        let mirror = SocketAddr::from(([203, 0, 113, 77], 4_433));
        let (now, side) = (self.now, &mut self.sides[here]);
        side.peers.set_mirror(relay, Some(mirror), now);
        side.sent.datagrams.clear();
        side.peers.handle_timeout(now, &mut side.sent);
        let question = side.sent.datagrams.iter().find(|sent| sent.0 == mirror).unwrap();
        let nonce = anteroom_proto::relay::mirror::parse_question(&question.2).unwrap();
        let answer = anteroom_proto::relay::mirror::answer(nonce, seen);
        assert_eq!(side.deliver(mirror, &answer, now), None);
    }

    /// The thief says again, from his address, whatever he had kept.
    fn play_back(&mut self) {
        let (_, from) = self.relays.detour.unwrap();
        for (here, datagram) in self.relays.detoured.clone() {
            self.sides[1 - here].deliver(from, &datagram, self.now);
        }
        self.settle();
    }
}

#[test]
fn a_relay_that_was_taken_out_is_no_direct_path_any_more_and_does_not_come_back() {
    for forwards_from in [RELAY, HELPER] {
        let mut world = deceived(forwards_from);
        // What it keeps back opens later: packets, knocks, and what comes to the relay itself when the path has died by that.
        world.relays.detoured.clear();
        world.relays.holds = true;
        world.talk(Duration::from_secs(3));
        world.relays.holds = false;
        let held = std::mem::take(&mut world.relays.held);
        let held = held.into_iter().map(|(here, _, _, datagram)| (here, datagram));
        world.relays.detoured.extend(held);
        let kept = |kind| world.relays.detoured.iter().filter(|(_, one)| one[0] == kind).count();
        assert!(kept(4) > 10 && kept(5) > 1, "{} packets, {} knocks", kept(4), kept(5));
        world.take_out(0);
        world.take_out(1);
        for here in 0..2 {
            assert_eq!(world.path(here).0, Some(FAR), "side {here}");
        }
        let before = world.relays.detoured.len();
        let begun = world.now;
        while world.now < begun + HELD_BACK {
            world.play_back();
            let silent = world.talk(Duration::from_secs(5));
            assert_eq!(silent, [Duration::ZERO; 2], "{forwards_from:?}");
        }
        assert_eq!(world.relays.detoured.len(), before, "{forwards_from:?}: sent to the thief");
        for here in 0..2 {
            assert_eq!(world.path(here).0, Some(FAR), "{forwards_from:?}: side {here}");
        }
        // A path of which the relay is no part is found, and taken.
        world.direct(true, true);
        world.talk(Duration::from_secs(20));
        for here in 0..2 {
            assert_eq!(world.path(here), (None, PathReason::Proved), "side {here}");
        }
        assert_eq!(world.relays.detoured.len(), before);
    }
}

#[test]
fn a_relay_stays_out_however_much_later_the_other_end_hears_of_it() {
    for (forwards_from, first) in [(HELPER, 0), (HELPER, 1), (RELAY, 0)] {
        for gap in [1, 10, 900] {
            let mut world = deceived(forwards_from);
            // It tells who still believes it that it is where the thief forwards from.
            let helper = SocketAddr::from((forwards_from, 5_000));
            world.mirror(1 - first, NEAR, helper);
            world.take_out(first);
            world.talk(Duration::from_secs(gap));
            let state = |world: &World| {
                let knows = [0, 1].map(|here: usize| {
                    let peer = world.sides[here].peer(world.sides[1 - here].gateway);
                    (peer.heard_at(), peer.places(), peer.knows)
                });
                format!("{forwards_from:?}, {first} first by {gap} s: {knows:?}")
            };
            assert_eq!(world.path(first).0, Some(FAR), "{}", state(&world));
            world.take_out(1 - first);
            assert_eq!(
                world.talk(Duration::from_secs(2)),
                [Duration::ZERO; 2],
                "{}",
                state(&world)
            );
            let before = world.relays.detoured.len();
            world.talk(HELD_BACK * 2);
            assert_eq!(world.relays.detoured.len(), before, "{}", state(&world));
            for here in 0..2 {
                assert_eq!(world.path(here).0, Some(FAR), "side {here}: {}", state(&world));
            }
            world.direct(true, true);
            world.talk(Duration::from_secs(20));
            for here in 0..2 {
                assert_eq!(world.path(here), (None, PathReason::Proved), "{}", state(&world));
            }
            assert_eq!(world.relays.detoured.len(), before, "{}", state(&world));
        }
    }
}

#[test]
fn who_starts_with_the_document_finds_a_peer_anew_that_hears_of_it_later() {
    let mut world = deceived(HELPER);
    let (now, side) = (world.now, &mut world.sides[0]);
    side.peers.forget_relays(&[], &[RELAY.into()], DOCUMENT, now, &mut side.sent);
    world.hold_document(0);
    let (other, side) = (world.sides[1].gateway, &mut world.sides[0]);
    side.peers.set_relays(other, &[path(FAR)], now, &mut side.sent);
    world.talk(Duration::from_secs(10));
    world.take_out(1);
    assert_eq!(world.talk(Duration::from_secs(2)), [Duration::ZERO; 2]);
    let before = world.relays.detoured.len();
    world.talk(HELD_BACK * 2);
    assert_eq!(world.relays.detoured.len(), before);
    for here in 0..2 {
        assert_eq!(world.path(here).0, Some(FAR), "side {here}: {:?}", world.path(here));
    }
}

#[test]
fn who_is_behind_the_same_nat_as_a_relay_that_was_taken_out_is_reached_directly_once_it_says_so() {
    let seen = SocketAddr::from((RELAY, 40_000));
    for informed in [true, false] {
        let mut world = World::pair();
        // The view has it where nobody else gets to.
        world.sides[1].at = seen;
        world.offer(&[NEAR, FAR]);
        world.run(Duration::from_secs(1));
        world.talk(Duration::from_secs(20));
        assert_eq!(world.path(0), (None, PathReason::Proved));
        world.take_out(0);
        if informed {
            world.take_out(1);
        }
        assert_eq!(world.path(0), (Some(FAR), PathReason::Untried));
        world.talk(Duration::from_secs(20));
        assert_eq!(world.path(0).0, Some(FAR), "nobody but the relay's thief is known to be there");

        world.mirror(1, FAR, seen);
        assert_eq!(world.talk(Duration::from_secs(10)), [Duration::ZERO; 2]);
        let direct = (informed).then_some((None, PathReason::Proved));
        let relayed = (Some(FAR), PathReason::Untried);
        assert_eq!(world.path(0), direct.unwrap_or(relayed), "informed: {informed}");
    }
}

#[test]
fn what_a_relay_had_told_a_peer_that_knows_of_its_end_and_has_not_forgotten_yet_holds_no_longer() {
    let mut world = deceived(RELAY);
    let thief = SocketAddr::from((RELAY, 5_000));
    world.mirror(0, NEAR, thief);
    world.hold_document(0);
    world.talk(Duration::from_secs(5));
    world.take_out(1);
    world.talk(Duration::from_secs(1));
    let other = world.sides[0].gateway;
    let peer = world.sides[1].peer(other);
    assert_eq!(peer.authority(), Some(DOCUMENT));
    assert_eq!(peer.heard_at(), Some(thief), "it says so, and knows of the document");
    world.take_out(0);
    assert_eq!(world.talk(Duration::from_secs(10)), [Duration::ZERO; 2]);
    let before = world.relays.detoured.len();
    world.talk(Duration::from_secs(20));
    assert_eq!(world.relays.detoured.len(), before);
    for here in 0..2 {
        let other = world.sides[1 - here].gateway;
        assert_ne!(world.sides[here].peer(other).heard_at(), Some(thief), "side {here}");
        assert_eq!(world.path(here).0, Some(FAR), "side {here}");
    }
}

#[test]
fn a_direct_path_to_where_the_view_has_a_peer_outlasts_a_relay_beside_it() {
    let mut world = World::live_pair();
    world.offer(&[NEAR, FAR]);
    world.talk(Duration::from_secs(10));
    let (now, at) = (world.now, world.sides[1].at);
    let carried = world.relays.carried;
    let side = &mut world.sides[0];
    side.peers.forget_relays(&[NEAR], &[at.ip()], DOCUMENT, now, &mut side.sent);
    assert_eq!(world.talk(Duration::from_secs(10)), [Duration::ZERO; 2]);
    assert_eq!(world.path(0), (None, PathReason::Proved));
    assert_eq!(world.relays.carried, carried);
}

#[test]
fn where_no_other_relay_reaches_a_peer_it_stays_where_it_is_but_at_the_relays_own_address() {
    for (forwards_from, stays) in [(HELPER, true), (RELAY, false)] {
        let mut world = deceived(forwards_from);
        let now = world.now;
        for side in &mut world.sides {
            let relays = [NEAR, FAR];
            side.peers.forget_relays(&relays, &[RELAY.into()], DOCUMENT, now, &mut side.sent);
        }
        let sent = world.relays.detoured.len();
        let silent = world.talk(Duration::from_secs(20))[0] > Duration::from_secs(5);
        assert_eq!(silent, !stays, "{forwards_from:?}");
        assert_eq!(world.relays.detoured.len() > sent, stays, "{forwards_from:?}");
        world.direct(true, true);
        world.relays.detour = None;
        world.talk(Duration::from_secs(20));
        assert!(world.live(0, 1) && world.live(1, 0), "{forwards_from:?}");
    }
}

#[test]
fn a_relay_that_comes_after_the_only_one_was_taken_out_has_what_that_one_made_up_forgotten() {
    for gap in [5, 900] {
        let mut world = deceived(HELPER);
        for here in 0..2 {
            let (now, side) = (world.now, &mut world.sides[here]);
            let relays = [NEAR, FAR];
            side.peers.forget_relays(&relays, &[RELAY.into()], DOCUMENT, now, &mut side.sent);
            world.hold_document(here);
        }
        world.talk(Duration::from_secs(gap));
        for here in 0..2 {
            assert_eq!(world.path(here).0, None, "side {here}: nobody else carries anything");
        }
        world.offer(&[FAR]);
        assert_eq!(world.talk(Duration::from_secs(2)), [Duration::ZERO; 2], "{gap} s later");
        let before = world.relays.detoured.len();
        world.talk(HELD_BACK * 2);
        assert_eq!(world.relays.detoured.len(), before, "{gap} s later: sent to the thief");
        for here in 0..2 {
            assert_eq!(world.path(here).0, Some(FAR), "{gap} s later: side {here}");
        }
    }
}

#[test]
fn a_handshake_that_a_relay_swallowed_leads_nowhere_once_it_is_taken_out() {
    for forwards_from in [RELAY, HELPER] {
        let mut world = deceived(forwards_from);
        let thief = SocketAddr::from((forwards_from, 5_000));
        // Younger than whatever either heard of the other: it opens.
        let swallowed = [0_u8, 1].map(|here| {
            let to = world.sides[usize::from(1 - here)].secret.public();
            initiation(&StaticSecret::from([here + 1; 32]), to, 1)
        });
        world.take_out(0);
        world.take_out(1);
        assert_eq!(world.talk(Duration::from_secs(10)), [Duration::ZERO; 2], "{forwards_from:?}");
        let before = world.relays.detoured.len();
        for (here, first) in swallowed.iter().enumerate() {
            let heard = world.sides[1 - here].deliver(thief, first, world.now);
            assert_eq!(heard, Some(DropReason::PeerPlace), "{forwards_from:?}: of side {here}");
        }
        assert_eq!(world.talk(Duration::from_secs(10)), [Duration::ZERO; 2], "{forwards_from:?}");
        for here in 0..2 {
            assert_eq!(world.path(here).0, Some(FAR), "{forwards_from:?}: side {here}");
        }
        assert_eq!(world.relays.detoured.len(), before, "{forwards_from:?}: sent to the thief");
    }
}

#[test]
fn where_a_peer_was_found_after_the_only_relay_was_taken_out_outlasts_relays_that_come_and_go() {
    let mut world = deceived(HELPER);
    for here in 0..2 {
        let (now, side) = (world.now, &mut world.sides[here]);
        let relays = [NEAR, FAR];
        side.peers.forget_relays(&relays, &[RELAY.into()], DOCUMENT, now, &mut side.sent);
        world.hold_document(here);
    }
    world.talk(Duration::from_secs(5));
    world.offer(&[FAR]);
    world.talk(Duration::from_secs(5));
    assert_eq!(world.path(0).0, Some(FAR));
    // Behind a NAT: the view doesn't have this place.
    let seen = SocketAddr::from(([192, 0, 2, 77], 40_000));
    world.sides[1].at = seen;
    world.mirror(1, FAR, seen);
    world.direct(true, true);
    world.talk(Duration::from_secs(20));
    let found =
        |world: &World| (world.path(0), world.sides[0].peer(world.sides[1].gateway).heard_at());
    assert_eq!(found(&world), ((None, PathReason::Proved), Some(seen)));
    let carried = world.relays.carried;
    for relays in [&[FAR, NEAR][..], &[NEAR], &[FAR]] {
        world.offer(relays);
        assert_eq!(world.talk(Duration::from_secs(5)), [Duration::ZERO; 2], "{relays:?}");
        assert_eq!(found(&world), ((None, PathReason::Proved), Some(seen)), "{relays:?}");
    }
    assert_eq!(world.relays.carried, carried, "packets took a relay");
}
