//! How long two are without packets when one of them, or both, run anew: over paths that take time and lose datagrams.

use std::collections::BTreeMap;

use super::rotation::Rotation;
use super::secrets::Kems;
use super::*;
use crate::target::RelayPath;

/// Longer than anything that the gateways say to each other.
const LONG: usize = 700;
/// How far apart packets follow each other.
const BEAT: Duration = Duration::from_millis(5);
/// When an end is given up on that isn't back.
const END: Duration = Duration::from_secs(30);

/// What a path is like.
#[derive(Debug, Clone, Copy)]
struct Path {
    one_way: Duration,
    /// Of a thousand datagrams so many are lost.
    lost: u64,
}

impl Path {
    const fn new(one_way: u64, lost: u64) -> Self {
        Self { one_way: Duration::from_millis(one_way), lost }
    }
}

/// Who runs anew, and when who has something to say.
#[derive(Debug, Clone, Copy)]
struct Case {
    anew: &'static [usize],
    /// How long it is away.
    away: Duration,
    /// Whether both ends' keys are in the middle of a change.
    changing: bool,
    /// Whether those who stay know a relay, which has died without a word, as it does with the machine of a controller.
    relay: bool,
}

impl Case {
    const fn new(anew: &'static [usize], away: u64) -> Self {
        Self { anew, away: Duration::from_secs(away), changing: false, relay: false }
    }
}

const CASES: [Case; 8] = [
    Case::new(&[0], 0),
    Case::new(&[1], 0),
    Case::new(&[0, 1], 0),
    Case::new(&[0], 8),
    Case::new(&[1], 8),
    Case { changing: true, ..Case::new(&[1], 1) },
    Case { relay: true, ..Case::new(&[0], 2) },
    Case { relay: true, ..Case::new(&[1], 2) },
];

/// Two gateways, and what is under way between them.
struct Far {
    test: Rotation,
    path: Path,
    under_way: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    sequence: u64,
    state: u64,
    down: [bool; 2],
    /// When the first of those long packets came that count, at each side.
    first: [Option<Instant>; 2],
    /// Long packets that were sealed without a pre-shared key.
    bare: usize,
}

impl Far {
    fn new(path: Path, case: Case, seed: u64) -> Self {
        let mut test = Rotation::with_kems([Kems::Good; 2]);
        test.world.run(Duration::from_secs(1));
        if case.changing {
            for side in [0, 1] {
                test.make(side);
                test.tell(side);
            }
            test.ping_for(Duration::from_secs(5));
        }
        for (side, other) in [(0, 1), (1, 0)] {
            let relay =
                RelayPath { relay: RelayId(1), room: 1_300, round_trip: Duration::from_millis(1) };
            let gateway = test.world.sides[other].gateway;
            if case.relay && !case.anew.contains(&side) {
                let (now, side) = (test.world.now, &mut test.world.sides[side]);
                side.peers.set_relays(gateway, &[relay], now, &mut side.sent);
            }
        }
        let (under_way, state) = (BTreeMap::new(), seed);
        Self {
            test,
            path,
            under_way,
            sequence: 0,
            state,
            down: [false; 2],
            first: [None; 2],
            bare: 0,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    /// Puts on the way what the sides gave away.
    fn collect(&mut self) {
        for here in 0..2 {
            self.test.world.sides[here].sent.relayed.clear();
            for (_, _, datagram) in std::mem::take(&mut self.test.world.sides[here].sent.datagrams)
            {
                let under_key = u32::from_le_bytes(datagram[4..8].try_into().unwrap()) & (1 << 27);
                // Knocks that are as long are none.
                let packet = datagram[0] == 4 && datagram.len() > LONG;
                self.bare += usize::from(packet && under_key == 0);
                if self.random(1000) >= self.path.lost {
                    self.sequence += 1;
                    let at = self.test.world.now + self.path.one_way;
                    self.under_way.insert((at, self.sequence), (1 - here, datagram));
                }
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.under_way.first_entry() {
            let now = self.test.world.now;
            if entry.key().0 > now {
                break;
            }
            let (there, datagram) = entry.remove();
            if !self.down[there] {
                let from = self.test.world.sides[1 - there].at;
                let side = &mut self.test.world.sides[there];
                let before = side.packets.len();
                side.deliver(from, &datagram, now);
                if side.packets.len() > before {
                    self.first[there].get_or_insert(now);
                }
            }
            self.collect();
        }
    }

    /// Lets time pass.
    fn run(&mut self, end: Instant) {
        loop {
            for side in 0..2 {
                if !self.down[side] {
                    let side = &mut self.test.world.sides[side];
                    side.peers.handle_timeout(self.test.world.now, &mut side.sent);
                    while side.peers.poll_event().is_some() {}
                }
            }
            self.collect();
            self.deliver();
            let up = (0..2).filter(|side| !self.down[*side]);
            let due = up.filter_map(|side| self.test.world.sides[side].peers.poll_timeout());
            let come = self.under_way.keys().next().map(|(at, _)| *at);
            match due.map(|(at, _)| at).chain(come).min().filter(|next| *next <= end) {
                Some(next) => self.test.world.now = self.test.world.now.max(next),
                None => break,
            }
        }
        self.test.world.now = end;
    }

    /// Packets both ways, where there is somebody to send them, until `is_done` or `end`.
    fn talk(&mut self, end: Instant, is_done: impl Fn(&Self) -> bool) {
        while self.test.world.now < end && !is_done(self) {
            for from in 0..2 {
                if !self.down[from] {
                    let _ = self.test.world.send(from, 1 - from, &packet(1, LONG));
                }
            }
            let next = self.test.world.now + BEAT;
            self.run(next);
        }
    }

    /// How long it takes from the start of who runs anew until packets came both ways.
    fn back_after(&mut self, case: Case) -> Duration {
        // Whatever both were about.
        let some = Duration::from_millis(self.random(3000));
        let begin = self.test.world.now;
        self.talk(begin + some, |_| false);
        for side in case.anew {
            self.down[*side] = true;
        }
        let killed = self.test.world.now;
        self.talk(killed + case.away, |_| false);
        let start = self.test.world.now;
        for side in case.anew {
            let boot = 90 + *side as u8;
            self.test.world.sides[*side] = Side::new(*side as u8 + 1, boot, start);
            self.test.use_keys(*side);
            self.test.tell(1 - *side);
            self.down[*side] = false;
        }
        // What an end sealed for one that was there before is under way yet, and opens nowhere.
        self.first = [None; 2];
        self.bare = 0;
        self.talk(start + END, |far| far.first.iter().all(Option::is_some));
        assert_eq!(self.bare, 0, "packets went without a pre-shared key: {case:?}");
        let last = self.first.iter().map(|first| first.unwrap_or(start + END)).max();
        last.unwrap().duration_since(start)
    }
}

/// How long it takes in each of some cases, in order.
fn times(path: Path, case: Case, seeds: std::ops::Range<u64>) -> Vec<(Duration, u64)> {
    let time = |seed| (Far::new(path, case, seed).back_after(case), seed);
    let mut times: Vec<_> = seeds.map(time).collect();
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].0.as_millis();
    println!(
        "{path:?} {case:?}: p50 {} ms, p90 {} ms, p99 {} ms, max {:?}",
        at(50),
        at(90),
        at(99),
        times[times.len() - 1],
    );
    times
}

#[test]
fn on_a_path_that_loses_nothing_one_that_runs_anew_is_back_after_four_round_trips() {
    for one_way in [1, 50, 200] {
        for case in CASES {
            let path = Path::new(one_way, 0);
            let times = times(path, case, 0..12);
            // Packets are 5 ms apart, and what is due is looked at each millisecond.
            // One that was awaited may be called just then by the one that stayed, and shakes hands once more, or is looked for by
            // way of the relay.
            let called = if case.away < LIVE_FOR && !case.relay { 0 } else { 750 };
            let most = path.one_way * 8 + Duration::from_millis(15 + called);
            assert!(times[times.len() - 1].0 <= most, "{path:?}, {case:?}: {times:?}");
        }
    }
}

#[test]
fn where_one_datagram_in_twenty_is_lost_it_is_back_within_a_second() {
    let mut all = Vec::new();
    for case in CASES {
        all.extend(times(Path::new(1, 50), case, 0..60));
    }
    all.sort_unstable();
    let p99 = all[all.len() * 99 / 100];
    assert!(p99.0 < Duration::from_secs(1), "{p99:?} of {:?}", &all[all.len() - 10..]);
}

/// `cargo test -p anteroom-agent-core --lib -- --ignored --nocapture peer::tests::restart`
#[test]
#[ignore = "takes a minute: prints how long it takes over many paths"]
fn measure() {
    for (one_way, lost) in [(1, 0), (1, 50), (50, 0), (50, 50), (200, 0), (200, 50)] {
        for case in CASES {
            times(Path::new(one_way, lost), case, 0..100);
        }
    }
}
