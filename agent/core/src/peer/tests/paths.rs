//! Direct paths and relays.

use anteroom_proto::v1::telemetry::PathReason;

use super::super::front::{KEEPALIVE_LEN, RESPONSE_LEN};
use super::super::knock::{self, COUNTING_LEN, KNOCK_LEN};
use super::*;
use crate::target::RelayPath;

mod half_dead;
mod quic;
mod stolen;
mod waiting;

const ROOM: u16 = 1_160;
const NEAR: RelayId = RelayId(1);
const FAR: RelayId = RelayId(2);

fn path(relay: RelayId) -> RelayPath {
    RelayPath { relay, room: ROOM, round_trip: Duration::from_millis(20) }
}

impl World {
    /// Says to both ends which relays they have in common.
    fn offer(&mut self, relays: &[RelayId]) {
        let paths: Vec<RelayPath> = relays.iter().map(|relay| path(*relay)).collect();
        for (here, there) in [(0, 1), (1, 0)] {
            let gateway = self.sides[there].gateway;
            let side = &mut self.sides[here];
            side.peers.set_relays(gateway, &paths, self.now, &mut side.sent);
        }
    }

    /// Whether datagrams get through directly, from the first side to the second and back.
    fn direct(&mut self, there: bool, back: bool) {
        self.fate = Box::new(move |from, _, _| usize::from(if from == 0 { there } else { back }));
    }

    fn path(&self, here: usize) -> (Option<RelayId>, PathReason) {
        let peer = self.sides[here].peer(self.sides[1 - here].gateway);
        (peer.route.via(), peer.route.why())
    }

    /// Sends a packet each way every 50 ms for some time. Says for how long, at most, one side heard nothing.
    fn talk(&mut self, time: Duration) -> [Duration; 2] {
        let (mut longest, mut last) = ([Duration::ZERO; 2], [self.now; 2]);
        let end = self.now + time;
        while self.now < end {
            for here in 0..2 {
                self.sides[here].packets.clear();
            }
            for here in 0..2 {
                let (gateway, now) = (self.sides[1 - here].gateway, self.now);
                let slot = self.sides[here].peers.slot(gateway).unwrap();
                self.sides[here].peers.note_use(slot, 100, now);
                self.send(here, 1 - here, &packet(7, 100));
            }
            self.settle();
            for here in 0..2 {
                if !self.sides[here].packets.is_empty() {
                    last[here] = self.now;
                }
                longest[here] = longest[here].max(self.now - last[here]);
            }
            self.run(Duration::from_millis(50));
        }
        longest
    }
}

/// Two gateways with a relay and no direct path.
fn apart() -> World {
    let mut world = World::pair();
    world.direct(false, false);
    world.offer(&[NEAR]);
    world.run(Duration::from_millis(600));
    let routes =
        [0, 1].map(|here: usize| &world.sides[here].peer(world.sides[1 - here].gateway).route);
    assert!(world.live(0, 1) && world.live(1, 0), "{routes:?}");
    assert_eq!(world.path(0), (Some(NEAR), PathReason::Untried));
    assert_eq!(world.path(1), (Some(NEAR), PathReason::Untried));
    world
}

#[test]
fn packets_take_the_relay_until_a_direct_path_is_proved() {
    let mut world = apart();
    assert_eq!(world.talk(Duration::from_secs(20)), [Duration::ZERO; 2]);
    world.direct(true, true);
    assert_eq!(world.talk(Duration::from_secs(8)), [Duration::ZERO; 2]);
    for here in 0..2 {
        assert_eq!(world.path(here), (None, PathReason::Proved), "side {here}");
    }
    let carried = world.relays.carried;
    assert_eq!(world.talk(Duration::from_secs(5)), [Duration::ZERO; 2]);
    assert_eq!(world.relays.carried, carried, "the relay has nothing to do any more");
}

#[test]
fn where_both_get_through_the_direct_path_is_taken_at_once() {
    let mut world = World::pair();
    world.offer(&[NEAR]);
    world.run(Duration::from_millis(200));
    for here in 0..2 {
        assert_eq!(world.path(here).0, None, "side {here}");
    }
    world.run(Duration::from_secs(3));
    for here in 0..2 {
        assert_eq!(world.path(here), (None, PathReason::Proved), "side {here}");
    }
}

#[test]
fn without_a_relay_nobody_knocks() {
    let mut world = World::live_pair();
    world.talk(Duration::from_secs(30));
    let knocks = |(_, _, bytes): &&(usize, SocketAddr, Vec<u8>)| matches!(bytes[0], 5 | 6);
    assert_eq!(world.delivered.iter().filter(knocks).count(), 0);
    assert_eq!(world.path(0), (None, PathReason::NoRelay));
}

#[test]
fn a_dead_direct_path_is_left_within_two_seconds() {
    let mut world = World::live_pair();
    world.offer(&[NEAR]);
    assert_eq!(world.talk(Duration::from_secs(10)), [Duration::ZERO; 2]);
    for (there, back) in [(false, false), (true, false), (false, true)] {
        world.direct(there, back);
        let silence = world.talk(Duration::from_secs(10));
        let bound = Duration::from_secs(2);
        assert!(silence[0] < bound && silence[1] < bound, "{there} {back}: {silence:?}");
        for here in 0..2 {
            assert_eq!(world.path(here), (Some(NEAR), PathReason::Died), "{there} {back}");
        }
        world.direct(true, true);
        assert_eq!(world.talk(Duration::from_secs(10)), [Duration::ZERO; 2], "and back again");
        for here in 0..2 {
            assert_eq!(world.path(here), (None, PathReason::Proved), "{there} {back}");
        }
    }
}

#[test]
fn a_busy_path_is_knocked_four_times_a_second_and_not_with_each_packet() {
    let mut world = World::live_pair();
    world.offer(&[NEAR]);
    world.talk(Duration::from_secs(5));
    let knocks = |world: &World| {
        let knock = |(_, _, bytes): &&(usize, SocketAddr, Vec<u8>)| bytes[0] == 5;
        world.delivered.iter().filter(knock).count()
    };
    let before = knocks(&world);
    world.talk(Duration::from_secs(10));
    let more = knocks(&world) - before;
    assert!((60..=84).contains(&more), "{more} knocks of two ends in ten seconds");
}

#[test]
fn a_direct_path_that_dies_the_moment_it_is_taken_is_left_as_soon_as_any_other() {
    let mut world = apart();
    world.talk(Duration::from_secs(1));
    world.direct(true, true);
    for _ in 0..200 {
        world.talk(Duration::from_millis(50));
        if [0, 1].iter().all(|here| world.path(*here) == (None, PathReason::Proved)) {
            break;
        }
    }
    assert_eq!([0, 1].map(|here| world.path(here).0), [None; 2], "a direct path is taken");
    world.direct(false, false);
    let silence = world.talk(Duration::from_secs(10));
    assert!(silence.iter().all(|time| *time < Duration::from_secs(2)), "{silence:?}");
    assert_eq!([0, 1].map(|here| world.path(here).0), [Some(NEAR); 2]);
}

#[test]
fn a_path_that_dies_while_nothing_is_sent_costs_no_peer_its_life() {
    let mut world = World::live_pair();
    world.offer(&[NEAR]);
    world.run(Duration::from_secs(10));
    world.sides.iter_mut().for_each(|side| side.events.clear());
    world.direct(false, false);
    world.run(Duration::from_secs(60));
    for here in 0..2 {
        assert_eq!(world.path(here).0, Some(NEAR));
        let died = |event: &PeerEvent| matches!(event, PeerEvent::Live { live: false, .. });
        assert!(!world.sides[here].events.iter().any(died), "{:?}", world.sides[here].events);
    }
}

#[test]
fn what_is_still_on_its_way_through_a_relay_is_not_lost_by_the_move() {
    let mut world = apart();
    world.talk(Duration::from_secs(2));
    world.relays.holds = true;
    let mut sent = 0;
    // More than the window of one session spans, before and while the path moves.
    while sent < 3_000 || world.path(0).0.is_some() || world.path(1).0.is_some() {
        if sent == 2_000 {
            world.direct(true, true);
        }
        assert!(sent < 30_000, "the path moves: {:?}", [world.path(0), world.path(1)]);
        world.sides.iter_mut().for_each(|side| side.drops.clear());
        for _ in 0..500 {
            for here in 0..2 {
                assert_eq!(world.send(here, 1 - here, &packet(sent, 100)), Sent::Sealed);
            }
            sent += 1;
        }
        world.settle();
        world.run(Duration::from_millis(250));
    }
    assert!(world.relays.held.len() > 4_000, "{} are on their way", world.relays.held.len());
    world.relays.holds = false;
    world.release();
    world.settle();
    for here in 0..2 {
        let side = &world.sides[here];
        let mut numbers: Vec<u32> = side
            .packets
            .iter()
            .filter_map(|packet| packet.get(20..24)?.try_into().ok().map(u32::from_be_bytes))
            .collect();
        // Those of the talk before, of other lengths, aside.
        numbers.retain(|number| *number != 7);
        numbers.sort_unstable();
        let wanted: Vec<u32> = (0..sent).filter(|number| *number != 7).collect();
        assert!(numbers == wanted, "{} of {sent} came; {:?}", numbers.len(), side.drops);
    }
}

#[test]
fn a_path_that_works_one_way_only_is_not_taken() {
    for (there, back) in [(true, false), (false, true)] {
        let mut world = apart();
        world.direct(there, back);
        assert_eq!(world.talk(Duration::from_secs(60)), [Duration::ZERO; 2], "{there} {back}");
        assert_eq!((world.path(0).0, world.path(1).0), (Some(NEAR), Some(NEAR)));
    }
}

#[test]
fn a_pair_lives_on_a_relay_alone_for_hours() {
    let mut world = apart();
    world.sides.iter_mut().for_each(|side| side.events.clear());
    world.run(Duration::from_secs(2 * 3600));
    for here in 0..2 {
        let died = |event: &PeerEvent| matches!(event, PeerEvent::Live { live: false, .. });
        assert!(!world.sides[here].events.iter().any(died), "{:?}", world.sides[here].events);
    }
    assert_eq!(world.talk(Duration::from_secs(1)), [Duration::ZERO; 2]);
}

#[test]
fn packets_are_no_longer_than_the_relay_takes() {
    let mut world = apart();
    let limit = |world: &World, here: usize| {
        let slot = world.sides[here].peers.slot(world.sides[1 - here].gateway).unwrap();
        world.sides[here].peers.limit(slot)
    };
    assert_eq!(limit(&world, 0), usize::from(ROOM) - OVERHEAD);
    world.direct(true, true);
    world.run(Duration::from_secs(10));
    assert!(limit(&world, 0) > 1_200, "{}", limit(&world, 0));
    let (gateway, now) = (world.sides[1].gateway, world.now);
    let side = &mut world.sides[0];
    side.peers.set_relays(gateway, &[], now, &mut side.sent);
    assert_eq!(world.path(0), (None, PathReason::NoRelay));
}

#[test]
fn a_relay_that_swallows_packets_is_left_for_the_next() {
    let mut world = apart();
    world.offer(&[NEAR, FAR]);
    world.relays.dead.push(NEAR);
    world.run(Duration::from_secs(10));
    assert_eq!((world.path(0).0, world.path(1).0), (Some(FAR), Some(FAR)));
    assert_eq!(world.talk(Duration::from_secs(5)), [Duration::ZERO; 2]);
}

#[test]
fn a_relay_that_swallows_what_one_end_sends_is_left_though_the_other_is_heard_by_another() {
    let mut world = apart();
    world.offer(&[NEAR, FAR]);
    // The second side moves, the first stays: each its own.
    let gateway = world.sides[0].gateway;
    let (now, side) = (world.now, &mut world.sides[1]);
    side.peers.set_relays(gateway, &[path(FAR)], now, &mut side.sent);
    assert_eq!((world.path(0).0, world.path(1).0), (Some(NEAR), Some(FAR)));
    assert_eq!(world.talk(Duration::from_secs(5)), [Duration::ZERO; 2]);
    world.relays.half_dead.push((0, NEAR));
    let silence = world.talk(Duration::from_secs(20));
    assert_eq!(world.path(0).0, Some(FAR), "{silence:?}");
    assert!(silence[1] < Duration::from_secs(10), "{silence:?}");
    assert_eq!(world.talk(Duration::from_secs(20)), [Duration::ZERO; 2]);
}

#[test]
fn without_a_session_all_relays_are_tried() {
    let mut world = World::pair();
    world.direct(false, false);
    world.relays.dead.push(NEAR);
    world.offer(&[NEAR, FAR]);
    world.run(Duration::from_secs(20));
    assert_eq!((world.path(0).0, world.path(1).0), (Some(FAR), Some(FAR)));
}

#[test]
fn a_relay_that_says_it_takes_next_to_nothing_isnt_used() {
    let mut world = apart();
    let (gateway, now) = (world.sides[1].gateway, world.now);
    let side = &mut world.sides[0];
    let liar = |room| RelayPath { room, ..path(NEAR) };
    for room in [0, 33, 1_099] {
        side.peers.set_relays(gateway, &[liar(room), path(FAR)], now, &mut side.sent);
        let peer = side.peer(gateway);
        assert_eq!(peer.route.via(), Some(FAR), "{room}");
    }
    side.peers.set_relays(gateway, &[liar(0)], now, &mut side.sent);
    assert!(!side.peer(gateway).route.has_relay());
}

#[test]
fn a_direct_path_that_carries_wireguard_and_no_knocks_is_kept() {
    let mut world = World::live_pair();
    world.offer(&[NEAR]);
    world.fate = Box::new(|_, _, bytes| usize::from(!matches!(bytes[0], 5 | 6)));
    // While packets flow, while they flow one way, and while nothing does.
    assert_eq!(world.talk(Duration::from_secs(60)), [Duration::ZERO; 2]);
    world.run(Duration::from_secs(600));
    assert_eq!(world.talk(Duration::from_secs(60)), [Duration::ZERO; 2]);
    assert_eq!(world.relays.carried, 0, "nothing needed the relay");
    assert_eq!((world.path(0).0, world.path(1).0), (None, None));
    // What dies for WireGuard as well is left none the less.
    world.direct(false, false);
    let silence = world.talk(Duration::from_secs(10));
    assert!(silence.iter().all(|time| *time < Duration::from_secs(4)), "{silence:?}");
    assert_eq!((world.path(0).0, world.path(1).0), (Some(NEAR), Some(NEAR)));
}

#[test]
fn a_relay_that_is_gone_is_left_at_once() {
    let mut world = apart();
    world.offer(&[FAR, NEAR]);
    assert_eq!(world.path(0).0, Some(NEAR), "a nearer one is no reason to move in the middle");
    world.offer(&[FAR]);
    assert_eq!(world.path(0).0, Some(FAR));
    assert_eq!(world.talk(Duration::from_secs(1)), [Duration::ZERO; 2]);
    world.offer(&[]);
    assert_eq!(world.path(0), (None, PathReason::NoRelay));
}

#[test]
fn a_peer_that_starts_anew_is_reached_through_the_relay() {
    let mut world = World::live_pair();
    world.offer(&[NEAR]);
    world.run(Duration::from_secs(5));
    world.direct(false, false);
    world.sides[1] = Side::new(2, 77, world.now);
    world.introduce(1, 0);
    world.offer(&[NEAR]);
    let silence = world.talk(Duration::from_secs(10));
    assert!(silence[0] < Duration::from_secs(2), "{silence:?}");
    assert_eq!((world.path(0).0, world.path(1).0), (Some(NEAR), Some(NEAR)));
}

#[test]
fn what_a_relay_says_of_the_sender_must_be_true() {
    let mut world = apart();
    world.introduce(0, 1);
    let mut third = World::new(3);
    third.now = world.now;
    let config = [world.sides[1].as_peer(), third.sides[2].as_peer()];
    let now = world.now;
    world.sides[0].peers.set_peers(&config, now);
    world.relays.holds = true;
    world.send(1, 0, &packet(9, 100));
    world.through_relays(1);
    let (_, _, relay, datagram) = world.relays.held.pop().expect("a packet");
    let lie = Target::Relay(Through { relay, peer: third.sides[2].gateway });
    let dropped = world.sides[0].deliver(lie, &datagram, now);
    assert_eq!(dropped, Some(DropReason::PeerUnauthenticated));
    let truth = Target::Relay(Through { relay, peer: world.sides[1].gateway });
    assert_eq!(world.sides[0].deliver(truth, &datagram, now), None);
}

#[test]
fn knocks_are_answered_to_peers_alone_and_old_ones_lead_nowhere() {
    let mut world = apart();
    world.run(Duration::from_secs(3));
    let knock = {
        let side = &mut world.sides[0];
        side.sent.datagrams.clear();
        side.peers.handle_timeout(world.now + Duration::from_secs(5), &mut side.sent);
        let is_knock = |(_, _, bytes): &&(SocketAddr, u8, Vec<u8>)| bytes.len() == KNOCK_LEN;
        let knock = side.sent.datagrams.iter().find(is_knock);
        knock.expect("a knock").2.clone()
    };
    let now = world.now;
    let elsewhere = SocketAddr::from(([203, 0, 113, 7], 9));
    let answers = |world: &mut World, bytes: &[u8]| {
        let side = &mut world.sides[1];
        side.sent.datagrams.clear();
        side.deliver(elsewhere, bytes, now);
        side.sent.datagrams.iter().filter(|sent| sent.0 == elsewhere).count()
    };
    for at in 0..knock.len() {
        let mut changed = knock.clone();
        changed[at] ^= 0x10;
        assert_eq!(answers(&mut world, &changed), 0, "byte {at}");
    }
    assert_eq!(answers(&mut world, &knock), 1);
    assert_eq!(world.sides[1].sent.datagrams[0].2.len(), COUNTING_LEN, "no longer than the knock");
    let peer = world.sides[0].gateway;
    assert_eq!(world.sides[1].peer(peer).route.hint(), Some(elsewhere), "it may be there");
    assert_eq!(answers(&mut world, &knock), 0, "a copy is not answered");
    let other = SocketAddr::from(([203, 0, 113, 8], 9));
    world.sides[1].deliver(other, &knock, now);
    assert_eq!(world.sides[1].peer(peer).route.hint(), Some(elsewhere), "a copy says nothing");
    // Nothing of WireGuard's has these lengths.
    assert!(![KEEPALIVE_LEN, RESPONSE_LEN].contains(&KNOCK_LEN));
    let via = world.path(1).0;
    assert_eq!(via, Some(NEAR), "a knock alone moves nothing");
}

#[test]
fn a_peer_that_knocks_in_others_names_makes_nobody_send_them_more_than_it_sends() {
    let mut world = apart();
    world.run(Duration::from_secs(20));
    let now = world.now;
    let stolen = world.sides[0].peer(world.sides[1].gateway).route.theirs.expect("it may knock");
    let side = &mut world.sides[1];
    side.sent.datagrams.clear();
    let mut sent = 0;
    // Every millisecond another victim, and time for whatever follows from each.
    for millis in 0..10_000_u32 {
        let now = now + Duration::from_millis(millis.into());
        let [_, _, high, low] = millis.to_be_bytes();
        let victim = SocketAddr::from(([198, 18, high, low], 53));
        let knock = knock::knock(&stolen, 0, u64::from(millis) + 1_000);
        sent += knock.len();
        side.deliver(victim, &knock, now);
        side.peers.handle_timeout(now, &mut side.sent);
    }
    let to_victims = |sent: &&(SocketAddr, u8, Vec<u8>)| sent.0.port() == 53;
    let lens: Vec<usize> =
        side.sent.datagrams.iter().filter(to_victims).map(|sent| sent.2.len()).collect();
    let bytes: usize = lens.iter().sum();
    // An answer for each of so many a second, and a knock four times a second.
    assert!(lens.len() < 10 * (16 + 5) + 40, "{} datagrams to {bytes} bytes", lens.len());
    assert!(bytes * 40 < sent, "{bytes} bytes to victims for {sent}");
    assert!(side.drops.contains(&DropReason::HandshakeLimit));
    let all = side.sent.datagrams.len();
    assert!(all < 10 * (16 + 5 + 12) + 40, "{all} datagrams in all");
    // And it goes on with an honest knock.
    let later = now + Duration::from_secs(12);
    let honest = knock::knock(&stolen, 0, 1_000_000);
    let at = world.sides[0].at;
    assert_eq!(world.sides[1].deliver(at, &honest, later), None);
}

#[test]
fn a_gateway_tells_its_peers_how_it_looks_from_outside_and_they_knock_there() {
    let mut world = apart();
    let mirror = SocketAddr::from(([203, 0, 113, 1], 4_433));
    let outside = SocketAddr::from(([198, 51, 100, 7], 40_000));
    let now = world.now;
    let side = &mut world.sides[0];
    side.peers.set_mirror(NEAR, Some(mirror), now);
    side.sent.datagrams.clear();
    side.peers.handle_timeout(now, &mut side.sent);
    let question = side.sent.datagrams.iter().find(|sent| sent.0 == mirror);
    let question = question.expect("the relay is asked at once").2.clone();
    let nonce = anteroom_proto::relay::mirror::parse_question(&question).expect("a question");
    let answer = |nonce, place| anteroom_proto::relay::mirror::answer(nonce, place);
    for (from, bytes) in [(outside, answer(nonce, outside)), (mirror, answer(nonce ^ 1, outside))] {
        let refused = side.deliver(from, &bytes, now);
        assert_eq!(refused, Some(DropReason::PeerUnauthenticated), "a stranger's word");
    }
    let through = Target::Relay(Through { relay: NEAR, peer: GatewayId::from_bytes([9; 16]) });
    assert!(side.deliver(through, &answer(nonce, outside), now).is_some(), "not through a relay");
    assert_eq!(side.peers.outside().places, []);
    assert_eq!(side.deliver(mirror, &answer(nonce, outside), now), None);
    assert_eq!(side.peers.outside().places, [outside]);
    world.run(Duration::from_secs(2));
    let gateway = world.sides[0].gateway;
    assert_eq!(world.sides[1].peer(gateway).outside().places, [outside]);
    assert!(world.sides[1].peer(gateway).places().contains(&outside));
    // Whoever moves asks anew, and says nothing of where it was.
    let (now, side) = (world.now, &mut world.sides[0]);
    side.peers.note_moved(now);
    assert_eq!(side.peers.outside().places, []);
    world.run(Duration::from_secs(3));
    assert_eq!(world.sides[1].peer(gateway).outside().places, []);
}

#[test]
fn peers_on_relays_are_counted_as_paths_change_and_peers_go() {
    let mut world = apart();
    world.offer(&[NEAR]);
    world.talk(Duration::from_secs(5));
    assert!(world.path(0).0.is_some(), "{:?}", world.path(0));
    let (now, again) = (world.now, world.sides[1].as_peer());
    world.sides[0].peers.set_peers(&[], now);
    world.sides[0].peers.assert_counted();
    world.sides[0].peers.set_peers(&[again], now);
    world.direct(true, true);
    world.talk(Duration::from_secs(20));
    assert_eq!(world.path(0).0, None);
    world.sides[0].peers.assert_counted();
}
