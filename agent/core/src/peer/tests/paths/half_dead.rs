//! Direct paths that answer knocks and carry next to nothing.

use super::*;

/// What a handshake and a knock need, and no packet of a device.
const SMALL: usize = 148;

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
