//! The search on a simulated path: sizes, loss, delay and reordering as a test wants them.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::size::path::{Bounds, CONFIRM_EVERY, PathMtu, RAISE_AFTER, TRIES};

const BOUNDS: Bounds = Bounds { floor: 516, base: 1220, usual: 1440, ceiling: 1500 };
const PATIENCE: Duration = Duration::from_millis(250);

/// A path and one end of it.
struct World {
    begin: Instant,
    now: Instant,
    path: PathMtu,
    /// Largest packet that gets through.
    carries: u16,
    /// Probes and answers lost, in per cent.
    loss: u64,
    delay: Duration,
    /// Answers take up to this much longer.
    jitter: Duration,
    random: u64,
    /// Answers under way.
    answers: Vec<(Instant, u64)>,
    /// Every probe: when, and how long.
    probes: Vec<(Duration, u16)>,
    nonce: u64,
    /// Whether large packets are sent all the time.
    busy: bool,
}

impl World {
    fn new(bounds: Bounds, carries: u16) -> Self {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        let now = Instant::now();
        let mut path = PathMtu::new(bounds, now);
        path.start(now);
        Self {
            begin: now,
            now,
            path,
            carries,
            loss: 0,
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            random: 1,
            answers: Vec::new(),
            probes: Vec::new(),
            nonce: 0,
            busy: false,
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        (self.random >> 33) % below.max(1)
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            if self.busy {
                let limit = usize::from(self.path.limit());
                let _ = self.path.note_use(limit, self.now);
            }
            let mut sent = 0;
            while let Some(size) = self.path.probe(self.nonce, PATIENCE, self.now) {
                sent += 1;
                assert!(sent <= 6, "probes without end at {:?}", self.probes.last());
                assert!(size <= self.path.bounds().ceiling, "{size}");
                self.probes.push((self.now - self.begin, size));
                if size <= self.carries && self.draw(100) >= self.loss {
                    let late = self.draw(self.jitter.as_millis() as u64);
                    let at = self.now + self.delay * 2 + Duration::from_millis(late);
                    self.answers.push((at, self.nonce));
                }
                self.nonce += 1;
            }
            let due = self.path.poll_timeout().inspect(|at| {
                assert!(*at > self.now, "due at once again");
            });
            let next = self.answers.iter().map(|(at, _)| *at).chain(due).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = next;
            let arrived = self.answers.extract_if(.., |(at, _)| *at <= next).collect::<Vec<_>>();
            for (_, nonce) in arrived {
                if self.draw(100) >= self.loss {
                    let _ = self.path.answered(nonce, self.now);
                }
            }
        }
        self.now = end;
    }

    fn settle(&mut self) {
        self.run(Duration::from_secs(20));
        assert!(self.path.is_known(), "{:?}", self.path);
    }

    fn secs(&mut self, secs: u64) {
        self.run(Duration::from_secs(secs));
    }
}

#[test]
fn a_path_that_carries_all_is_known_after_one_round_trip_and_three_probes() {
    let mut world = World::new(BOUNDS, 1500);
    assert_eq!((world.path.limit(), world.path.is_known()), (1220, false));
    world.run(Duration::from_millis(25));
    assert_eq!((world.path.limit(), world.path.is_known()), (1500, true));
    world.secs(10_000);
    assert_eq!(world.probes.len(), 3, "{:?}", world.probes);
}

#[test]
fn an_ethernet_path_under_a_larger_interface_is_found_at_once() {
    let mut world = World::new(BOUNDS, 1440);
    world.run(Duration::from_millis(25));
    assert_eq!(world.path.limit(), 1440);
    world.settle();
    assert!(world.probes.len() <= 25, "{:?}", world.probes);
}

#[test]
fn any_path_is_found_to_within_eight_bytes_and_never_overshot() {
    for carries in (1220..=1500).chain([520, 600, 800, 1000, 1219]) {
        let mut world = World::new(BOUNDS, carries);
        world.settle();
        let limit = world.path.limit();
        assert!(limit <= carries && carries - limit <= 8, "{limit} where {carries} get through");
        assert!(world.probes.len() <= 45, "{carries}: {} probes", world.probes.len());
    }
}

#[test]
fn what_carries_less_than_the_floor_ends_there() {
    let mut world = World::new(BOUNDS, 300);
    world.settle();
    assert_eq!(world.path.limit(), 516);
    world.carries = 1500;
    world.secs(60);
    assert_eq!(world.path.limit(), 1500, "it is looked for more again");
}

#[test]
fn a_path_that_shrinks_is_noticed_while_it_is_used() {
    let mut world = World::new(BOUNDS, 1500);
    world.settle();
    world.busy = true;
    world.secs(10);
    let before = world.probes.len();
    world.carries = 1300;
    world.run(CONFIRM_EVERY + PATIENCE * u32::from(TRIES + 1));
    assert!(world.path.limit() <= 1300, "{:?} after {:?}", world.path, &world.probes[before..]);
    world.settle();
    assert!((1292..=1300).contains(&world.path.limit()), "{:?}", world.path);
    // Below the base.
    world.carries = 900;
    world.secs(15);
    assert!((892..=900).contains(&world.path.limit()), "{:?}", world.path);
    assert!(world.path.is_known());
}

#[test]
fn an_idle_path_costs_nothing_and_is_looked_at_when_it_is_used_again() {
    let mut world = World::new(BOUNDS, 1500);
    world.settle();
    let before = world.probes.len();
    world.secs(100_000);
    assert_eq!(world.probes.len(), before);
    world.carries = 1300;
    world.secs(100);
    assert_eq!(world.path.limit(), 1500);
    assert!(world.path.note_use(1400, world.now));
    assert!(!world.path.note_use(1400, world.now), "one confirmation at a time");
    world.run(PATIENCE * 5);
    assert!(world.path.limit() <= 1300, "{:?}", world.path);
    assert!(!World::new(BOUNDS, 1500).path.note_use(1400, world.now), "nothing to confirm yet");
}

#[test]
fn confirming_costs_one_probe_a_second() {
    let mut world = World::new(BOUNDS, 1500);
    world.settle();
    world.busy = true;
    let before = world.probes.len();
    world.secs(100);
    assert!((90..=101).contains(&(world.probes.len() - before)));
    assert_eq!(world.path.limit(), 1500);
}

#[test]
fn a_path_that_grows_is_noticed_after_a_while_and_looked_at_ever_more_seldom() {
    let mut world = World::new(BOUNDS, 1300);
    world.settle();
    world.carries = 1400;
    world.run(RAISE_AFTER.0 + Duration::from_secs(10));
    assert!((1392..=1400).contains(&world.path.limit()), "{:?}", world.path);
    world.carries = 1500;
    world.run(RAISE_AFTER.0 * 2 + Duration::from_secs(10));
    assert_eq!(world.path.limit(), 1500);

    let mut world = World::new(BOUNDS, 1300);
    world.settle();
    let before = world.probes.len();
    world.secs(3600 * 10);
    let probes = world.probes.len() - before;
    assert!((60 * 6..=80 * 6).contains(&probes), "{probes} probes in ten hours");
    assert!((1292..=1300).contains(&world.path.limit()));
}

#[test]
fn loss_hides_no_size_for_long() {
    for loss in [1, 5, 20] {
        for random in 0..20 {
            let mut world = World::new(BOUNDS, 1440);
            (world.loss, world.random, world.busy) = (loss, random, true);
            world.secs(300);
            let limit = world.path.limit();
            assert!(limit <= 1440);
            assert!(loss == 20 || limit >= 1432, "{limit} at {loss} % loss, seed {random}");
        }
    }
}

#[test]
fn answers_that_come_late_and_out_of_order_count() {
    for random in 0..50 {
        let mut world = World::new(BOUNDS, 1420);
        (world.random, world.jitter) = (random, PATIENCE * 2);
        world.settle();
        let limit = world.path.limit();
        assert!((1412..=1420).contains(&limit), "{limit}, seed {random}");
    }
}

#[test]
fn a_hint_is_looked_into_and_not_believed() {
    let mut world = World::new(BOUNDS, 1500);
    world.settle();
    let before = world.probes.len();
    for _ in 0..1000 {
        world.path.suspect(world.now);
        world.run(Duration::from_millis(10));
    }
    assert_eq!(world.path.limit(), 1500);
    let probes = world.probes.len() - before;
    assert!(probes <= 45, "{probes} probes for hints in ten seconds");
    world.secs(1);
    world.carries = 1440;
    world.path.suspect(world.now);
    world.run(PATIENCE * 5);
    assert!(world.path.limit() <= 1440, "{:?}", world.path);
}

#[test]
fn a_smaller_interface_counts_at_once_and_a_larger_one_is_tried_at_once() {
    let mut world = World::new(BOUNDS, 1500);
    world.settle();
    world.path.set_bounds(Bounds { ceiling: 1400, ..BOUNDS }, false, world.now);
    assert!(world.path.limit() <= 1400);
    world.settle();
    assert_eq!(world.path.limit(), 1400);
    world.path.set_bounds(BOUNDS, false, world.now);
    world.run(Duration::from_millis(25));
    assert_eq!(world.path.limit(), 1500);
    world.path.set_bounds(BOUNDS, false, world.now);
    assert_eq!(world.path.limit(), 1500, "the same again changes nothing");
    let silly = Bounds { floor: 900, base: 800, usual: 70, ceiling: 100 };
    world.path.set_bounds(silly, false, world.now);
    assert!(world.path.limit() <= 100);
    world.settle();
    assert_eq!(world.path.limit(), 100);
}

#[test]
fn a_peer_that_moves_to_and_fro_is_not_showered_with_probes() {
    let mut world = World::new(BOUNDS, 1500);
    world.settle();
    let before = world.probes.len();
    for _ in 0..1000 {
        world.path.set_bounds(BOUNDS, true, world.now);
        assert_eq!(world.path.limit(), 1220, "of another way nothing is known");
        world.run(Duration::from_millis(10));
    }
    let probes = world.probes.len() - before;
    assert!(probes <= 33, "{probes} probes in ten seconds");
    world.secs(2);
    assert_eq!(world.path.limit(), 1500);
    world.path.stop(world.now);
    assert_eq!((world.path.limit(), world.path.poll_timeout()), (1220, None));
}

proptest! {
    /// However the path changes, once it has stopped to, what is sent gets through, and little less is.
    #[test]
    fn whatever_the_path_does_it_is_found(
        changes in proptest::collection::vec((400u16..1600, 0u64..40, 0u64..30, any::<bool>()), 1..8),
        last in 520u16..1600,
        random in any::<u64>(),
    ) {
        let mut world = World::new(BOUNDS, 1500);
        world.random = random;
        for (carries, secs, loss, busy) in changes {
            (world.carries, world.loss, world.busy) = (carries, loss, busy);
            world.secs(secs);
        }
        (world.carries, world.loss, world.busy) = (last, 0, true);
        world.secs(20);
        prop_assert!(world.path.limit() <= last.min(1500), "{:?} on {last}", world.path);
        // The longest pause until it is looked for more, and the search.
        world.secs(700);
        let limit = world.path.limit();
        prop_assert!(limit <= last && limit + 24 >= last.min(1500), "{:?} on {last}", world.path);
        prop_assert!(world.probes.len() < 8_000);
    }
}
