//! Direct paths that answer knocks and carry next to nothing.

use std::cell::Cell;
use std::rc::Rc;

use super::*;

/// What a handshake and a knock need, and no packet of a device.
const SMALL: usize = 148;
/// A packet of a device that goes through a relay in one piece, as well.
const LARGE: usize = 1_100;

impl World {
    /// Says what gets through directly, both ways.
    fn let_through(&mut self, passes: impl Fn(&[u8]) -> bool + 'static) {
        self.fate = Box::new(move |_, _, bytes| usize::from(passes(bytes)));
    }

    /// Talks as [`Self::talk`] does. Says of how many packets to each side how many didn't come, and how often the first
    /// side changed its way.
    fn loss(&mut self, time: Duration) -> ([usize; 2], usize) {
        let (mut lost, mut moves, mut via) = ([0; 2], 0, self.path(0).0);
        let end = self.now + time;
        while self.now < end {
            let silence = self.talk(Duration::from_millis(50));
            for here in 0..2 {
                lost[here] += usize::from(silence[here] > Duration::ZERO);
                lost[here] += usize::from(self.sides[here].packets.is_empty());
            }
            moves += usize::from(std::mem::replace(&mut via, self.path(0).0) != via);
        }
        (lost, moves)
    }

    /// Sends a packet of this length each way every 50 ms for some time. Says for how long, at most, one side heard nothing.
    fn stream(&mut self, len: usize, time: Duration) -> [Duration; 2] {
        let (mut longest, mut last) = ([Duration::ZERO; 2], [self.now; 2]);
        let end = self.now + time;
        while self.now < end {
            for here in 0..2 {
                if !self.carry(1 - here, len).is_empty() {
                    last[here] = self.now;
                }
                longest[here] = longest[here].max(self.now - last[here]);
            }
            self.run(Duration::from_millis(50));
        }
        longest
    }
}

/// Two gateways with a direct path that has been good for more than a minute, sizes and all.
fn streaming(more: u64) -> World {
    let mut world = World::new(2);
    world.sides.iter_mut().for_each(Side::answers_probes);
    world.introduce(0, 1);
    world.introduce(1, 0);
    world.run(Duration::from_millis(100));
    world.offer(&[NEAR]);
    assert_eq!(world.stream(LARGE, Duration::from_millis(70_000 + more)), [Duration::ZERO; 2]);
    assert_eq!([0, 1].map(|here| world.path(here)), [(None, PathReason::Proved); 2]);
    world
}

#[test]
fn a_direct_path_that_carries_nothing_but_small_datagrams_is_not_taken() {
    let mut world = apart();
    world.let_through(|bytes| bytes.len() <= SMALL);
    assert_eq!(world.loss(Duration::from_secs(600)), ([0; 2], 0));
    for here in 0..2 {
        assert_eq!(world.path(here), (Some(NEAR), PathReason::Untried), "side {here}");
    }
    world.direct(true, true);
    assert_eq!(world.loss(Duration::from_secs(10)).0, [0; 2]);
    for here in 0..2 {
        assert_eq!(world.path(here), (None, PathReason::Proved), "side {here}");
    }
}

#[test]
fn a_direct_path_that_carries_large_datagrams_one_way_only_is_taken_that_way_at_most() {
    let mut world = apart();
    world.fate = Box::new(|from, _, bytes| usize::from(from == 1 || bytes.len() <= SMALL));
    assert_eq!(world.loss(Duration::from_secs(300)).0, [0; 2]);
    assert_eq!(world.path(0).0, Some(NEAR));
}

#[test]
fn a_path_that_carries_no_more_than_every_host_takes_is_taken() {
    let mut world = apart();
    world.let_through(|bytes| bytes.len() <= 548);
    assert_eq!(world.loss(Duration::from_secs(20)).0, [0; 2]);
    for here in 0..2 {
        assert_eq!(world.path(here), (None, PathReason::Proved), "side {here}");
    }
}

#[test]
fn a_direct_path_that_carries_small_datagrams_only_from_the_start_is_left_soon() {
    let mut world = World::pair();
    world.let_through(|bytes| bytes.len() <= SMALL);
    world.offer(&[NEAR]);
    world.run(Duration::from_millis(100));
    assert_eq!(world.path(0).0, None, "a handshake went directly");
    world.talk(Duration::from_secs(12));
    for here in 0..2 {
        assert_eq!(world.path(here).0, Some(NEAR), "side {here}");
    }
    assert_eq!(world.loss(Duration::from_secs(300)), ([0; 2], 0));
}

#[test]
fn a_direct_path_that_carries_small_datagrams_only_after_a_while_is_left_once() {
    for (there, back) in [(true, true), (true, false), (false, true)] {
        let mut world = World::live_pair();
        world.offer(&[NEAR]);
        assert_eq!(world.talk(Duration::from_secs(70)), [Duration::ZERO; 2]);
        world.fate = Box::new(move |from, _, bytes| {
            usize::from(bytes.len() <= SMALL || !(if from == 0 { there } else { back }))
        });
        let silence = world.talk(Duration::from_secs(15));
        let bound = Duration::from_secs(13);
        assert!(silence.iter().all(|time| *time < bound), "{there} {back}: {silence:?}");
        assert_eq!(world.loss(Duration::from_secs(300)).0, [0; 2], "{there} {back}");
    }
}

#[test]
fn one_that_was_good_for_long_is_left_within_two_seconds() {
    for (offset, len) in (0..1_000).step_by(85).zip([LARGE, 300, 1_400].into_iter().cycle()) {
        for (there, back) in [(true, true), (true, false), (false, true)] {
            let name = format!("{len} bytes, {there} {back} after {offset} ms");
            let mut world = streaming(offset);
            world.fate = Box::new(move |from, _, bytes| {
                usize::from(bytes.len() <= SMALL || !(if from == 0 { there } else { back }))
            });
            let silence = world.stream(len, Duration::from_secs(15));
            let bound = Duration::from_secs(2);
            assert!(silence.iter().all(|time| *time < bound), "{name}: {silence:?}");
            // The end whose packets get through has no reason to leave.
            let relayed = [0, 1].map(|here| world.path(here).0.is_some());
            assert_eq!(relayed, [there, back], "{name}");
        }
    }
}

#[test]
fn one_that_carries_packets_of_middling_length_only_is_left_as_well() {
    let mut world = streaming(0);
    world.let_through(|bytes| bytes.len() <= 300);
    let end = world.now + Duration::from_secs(2);
    let mut both = false;
    while world.now < end && !both {
        world.stream(200, Duration::from_millis(50));
        world.stream(LARGE, Duration::from_millis(50));
        both = [0, 1].iter().all(|here| world.path(*here).0.is_some());
    }
    assert!(both, "{:?}", [0, 1].map(|here| world.path(here)));
}

#[test]
fn one_that_nobody_uses_is_left_as_well() {
    let mut world = streaming(0);
    world.run(Duration::from_secs(10));
    world.let_through(|bytes| bytes.len() <= SMALL);
    world.run(Duration::from_secs(6));
    assert_eq!([0, 1].map(|here| world.path(here)), [(Some(NEAR), PathReason::Died); 2]);
    assert_eq!(world.stream(LARGE, Duration::from_secs(5)), [Duration::ZERO; 2]);
}

#[test]
fn where_a_relay_turns_out_to_be_nobody_is_asked_and_packets_go_through_one_that_is_known() {
    for (known, there, back) in [
        (false, true, true),
        (true, true, true),
        (true, true, false),
        (true, false, true),
        (true, false, false),
    ] {
        let name = format!("a relay is there: {known}; long ones are lost: {there} {back}");
        let mut world = streaming(0);
        let asked = Rc::new(Cell::new([0_u32; 2]));
        let counts = Rc::clone(&asked);
        world.fate = Box::new(move |from, _, bytes| {
            let mut asked = counts.get();
            asked[from] += u32::from(bytes[0] == 5 && bytes.len() > KNOCK_LEN);
            counts.set(asked);
            usize::from(bytes.len() <= SMALL || !(if from == 0 { there } else { back }))
        });
        // In the middle of the questions, where there are any.
        let begun = world.now;
        while there && asked.get()[0] == 0 {
            assert!(world.now < begun + Duration::from_secs(2), "{name}");
            world.stream(LARGE, Duration::from_millis(10));
        }
        let before = asked.get()[0];
        if known {
            let (place, now) = (world.sides[1].at, world.now);
            world.sides[0].peers.set_mirror(NEAR, Some(place), now);
        }
        let silence = world.stream(LARGE, Duration::from_secs(300));
        let bound = Duration::from_secs(2);
        assert!(silence.iter().all(|time| *time < bound), "{name}: {silence:?}");
        assert!(there || back || silence == [Duration::ZERO; 2], "{name}: {silence:?}");
        let relayed = [0, 1].map(|here| world.path(here).0);
        assert_eq!(relayed, [Some(NEAR); 2], "{name}");
        assert_eq!(asked.get()[0] == before, known, "{name}: {before}, then {:?}", asked.get());
    }
}

#[test]
fn no_knock_is_as_long_as_a_packet_while_nothing_gets_lost() {
    let mut world = streaming(0);
    world.delivered.clear();
    world.stream(LARGE, Duration::from_secs(30));
    let long =
        |(_, _, bytes): &&(usize, SocketAddr, Vec<u8>)| bytes[0] == 5 && bytes.len() > KNOCK_LEN;
    assert_eq!(world.delivered.iter().filter(long).count(), 0);
}

#[test]
fn a_path_that_shrinks_is_kept() {
    let mut world = streaming(0);
    world.let_through(|bytes| bytes.len() <= 700);
    world.stream(LARGE, Duration::from_secs(20));
    assert_eq!([0, 1].map(|here| world.path(here)), [(None, PathReason::Proved); 2]);
    assert!(world.limit(0) < 700, "it is cut");
}

/// For how many of so many seconds packets take the relay of two gateways whose direct path loses one datagram in `one_in`, each way.
fn relayed(one_in: u64, seed: u64, seconds: u32) -> u32 {
    let mut world = streaming(seed % 1_000);
    let mut count = seed;
    world.fate = Box::new(move |_, _, _| {
        count =
            count.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::from(!(count >> 33).is_multiple_of(one_in))
    });
    let mut relayed = 0;
    for _ in 0..seconds {
        world.stream(LARGE, Duration::from_secs(1));
        relayed += u32::from(world.path(0).0.is_some());
    }
    relayed
}

#[test]
fn a_path_that_loses_up_to_a_quarter_of_everything_each_way_is_kept() {
    for one_in in [20, 10, 6, 4] {
        let relayed: Vec<u32> = (0..4).map(|seed| relayed(one_in, seed * 70, 300)).collect();
        assert_eq!(relayed, [0; 4], "of 300 seconds each through the relay, one in {one_in} lost");
    }
}

#[test]
fn a_path_that_dies_each_time_it_is_taken_is_taken_ever_more_rarely() {
    let mut world = apart();
    // All that comes before packets passes, and of those nothing.
    world.let_through(|bytes| bytes[0] != 4 || bytes.len() == KEEPALIVE_LEN);
    let (lost, moves) = world.loss(Duration::from_secs(1_800));
    // After 2, 4, 8 ... seconds, and every five minutes from then on; each time for ten seconds at most.
    assert!(lost.iter().all(|lost| *lost < 6_000), "{lost:?} of 36,000 beats");
    assert!((10..60).contains(&moves), "{moves} moves");
}

#[test]
fn a_path_that_was_good_for_long_or_leads_elsewhere_is_taken_again_at_once() {
    let mut world = apart();
    world.let_through(|bytes| bytes[0] != 4 || bytes.len() == KEEPALIVE_LEN);
    world.loss(Duration::from_secs(300));
    world.direct(true, true);
    let gateway = world.sides[0].gateway;
    // A peer that is elsewhere is another path.
    world.sides[0].at = SocketAddr::from(([198, 51, 100, 77], 51820));
    let config = world.sides[0].as_peer();
    let now = world.now;
    world.sides[1].peers.set_peers(&[config], now);
    let now = world.now;
    world.sides[0].peers.note_moved(now);
    assert_eq!(world.loss(Duration::from_secs(10)).0, [0; 2]);
    assert_eq!(world.sides[1].peer(gateway).endpoint(), Some(world.sides[0].at));
    for here in 0..2 {
        assert_eq!(world.path(here), (None, PathReason::Proved), "side {here}");
    }
    // After a minute without a fault all is forgotten.
    assert_eq!(world.loss(Duration::from_secs(61)).0, [0; 2]);
    world.direct(false, false);
    world.talk(Duration::from_secs(4));
    world.direct(true, true);
    assert_eq!(world.loss(Duration::from_secs(8)).0, [0; 2]);
    assert_eq!([0, 1].map(|here| world.path(here).0), [None; 2]);
}

#[test]
fn a_path_that_isnt_trusted_is_taken_all_the_same_where_the_relay_carries_nothing() {
    let mut world = apart();
    world.let_through(|bytes| bytes[0] != 4 || bytes.len() == KEEPALIVE_LEN);
    world.loss(Duration::from_secs(300));
    world.direct(true, true);
    world.relays.dead.push(NEAR);
    // No answer for ten seconds, and the knocks after that.
    world.talk(Duration::from_secs(20));
    assert_eq!([0, 1].map(|here| world.path(here).0), [None; 2]);
    assert_eq!(world.loss(Duration::from_secs(5)).0, [0; 2]);
}
