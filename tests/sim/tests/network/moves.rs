//! Every move of a pair between the three modes, at either end, with connections across it: no word of what is
//! allowed before and after is lost, and nothing is said in the clear by a device whose gateway enforces.

use std::time::Duration;

use anteroom_proto::mode::{Mode, PairPath};
use anteroom_proto::service::Protocol;
use anteroom_sim::hospital::*;
use anteroom_sim::packet::{self, TcpFlags};
use anteroom_sim::random::Random;
use anteroom_sim::story::explain;
use anteroom_sim::talk::Talk;
use anteroom_sim::world::{Cable, Weather, World};

const MODES: [Mode; 3] = [Mode::Observe, Mode::Protect, Mode::Enforce];
/// The gateways of the CT and of the PACS.
const IMAGING: usize = 0;
const SERVERS: usize = 2;

/// The pair in its modes before the move.
fn begin(this: &Move) -> Talk {
    let mut world = hospital(this.seed);
    for rule in &mut world.plan.rules {
        rule.clear |= this.clear && (rule.name == "scans" || rule.name == "fetch");
    }
    world.apply_all();
    // While they are observed their gateways learn their routers.
    let _ = probe(&mut world, CT, PACS, (Protocol::Tcp, 104), 1, 1);
    let _ = probe(&mut world, PACS, CT, (Protocol::Tcp, 4006), 2, 1);
    for step in [Mode::Protect, Mode::Enforce] {
        for (device, mode) in [(CT, this.before.0), (PACS, this.before.1)] {
            world.plan.mode(device, step.min(mode));
        }
        world.apply_all();
    }
    world.run(Duration::from_secs(20));
    world.clear_campus();
    world.weather = Weather { loss: 0, duplicates: 0, reordering: 30 };
    Talk::new(world, [CT, PACS], this.seed)
}

/// One move: the modes before and after, and in which order and how far apart the gateways hear of it.
#[derive(Debug, Clone, Copy)]
struct Move {
    seed: u64,
    before: (Mode, Mode),
    after: (Mode, Mode),
    clear: bool,
    first: usize,
    gap: Duration,
}

fn allowed(modes: (Mode, Mode), clear: bool) -> bool {
    clear || PairPath::of(modes.0, modes.1) != PairPath::ClearIfRuleSays
}

fn make(this: Move) -> u64 {
    let mut talk = begin(&this);
    let busy = [talk.open(CT, PACS, 104), talk.open(PACS, CT, 4006)];
    let idle = [talk.open(CT, PACS, 104), talk.open(PACS, CT, 4006)];
    talk.run(Duration::from_millis(200));
    talk.chatter(&busy, 20);
    talk.world.plan.mode(CT, this.after.0);
    talk.world.plan.mode(PACS, this.after.1);
    talk.revised();
    let second = if this.first == IMAGING { SERVERS } else { IMAGING };
    let mut opened = Vec::new();
    talk.apply(this.first);
    talk.chatter(&busy, 30);
    opened.push(talk.open(CT, PACS, 104));
    opened.push(talk.open(PACS, CT, 4006));
    talk.chatter(&busy, 30);
    let until = talk.world.now + this.gap;
    while talk.world.now < until {
        talk.chatter(&busy, 2);
        talk.run(Duration::from_millis(700).max(this.gap / 40).min(this.gap));
    }
    talk.apply(second);
    opened.push(talk.open(CT, PACS, 104));
    opened.push(talk.open(PACS, CT, 4006));
    talk.chatter(&busy, 60);
    talk.run(Duration::from_secs(3));
    let settled = talk.world.campus.len();
    for at in [0, 1] {
        // The server of one and the client of the other speak first.
        talk.say(&idle[at], CT);
        talk.run(Duration::from_millis(50));
        talk.say(&idle[at], PACS);
        talk.run(Duration::from_millis(50));
    }
    talk.chatter(&busy, 20);
    talk.run(Duration::from_secs(30));
    talk.chatter(&busy, 20);
    talk.run(Duration::from_millis(50));
    let lost = talk.lost();
    let shut: Vec<_> = opened.iter().filter(|one| !talk.is_open(one)).collect();
    let path = PairPath::of(this.after.0, this.after.1);
    let (clear, leaks) = (talk.overheard(settled), talk.leaks().to_vec());
    assert!(
        lost.is_empty() && shut.is_empty() && leaks.is_empty(),
        "{this:?}: lost {} of {}: {lost:#?}; didn't open: {shut:?}; leaked: {leaks:#?}\n{}",
        lost.len(),
        talk.said(),
        explain(&mut talk.world, CT, PACS, (Protocol::Tcp, 104))
    );
    assert_eq!(clear, path != PairPath::Tunnel, "{this:?}: in the end the pair's path is {path:?}");
    talk.world.trace()
}

/// Every change of one end's mode or of both, where policy allows the pair before and after.
fn moves(seed: u64) -> Vec<Move> {
    let mut moves = Vec::new();
    let pairs = || MODES.into_iter().flat_map(|a| MODES.map(|b| (a, b)));
    for before in pairs() {
        for after in pairs().filter(|after| *after != before) {
            for clear in [false, true] {
                if !allowed(before, clear) || !allowed(after, clear) {
                    continue;
                }
                for first in [IMAGING, SERVERS] {
                    moves.push(Move { seed, before, after, clear, first, gap: Duration::ZERO });
                }
            }
        }
    }
    moves
}

/// Those whose rules say `clear = true` only where they must.
fn plain_moves(seed: u64) -> impl Iterator<Item = Move> {
    let needless = |this: &Move| allowed(this.before, false) && allowed(this.after, false);
    moves(seed).into_iter().filter(move |this| !this.clear || !needless(this))
}

#[test]
fn every_move_keeps_every_word() {
    // More with ANTEROOM_SIM_SEEDS=from-to.
    let range = std::env::var("ANTEROOM_SIM_SEEDS").unwrap_or_else(|_| "1-1".into());
    let (from, to) = range.split_once('-').expect("from-to");
    let mut random = Random::new(77);
    for seed in from.parse().expect("a number")..=to.parse().expect("a number") {
        for this in moves(seed) {
            let gap = Duration::from_millis(random.next() % 900);
            make(Move { gap, ..this });
        }
    }
}

#[test]
fn a_gateway_that_is_away_for_minutes_loses_no_word_either() {
    for this in plain_moves(3) {
        make(Move { gap: Duration::from_secs(80), ..this });
    }
}

/// As [`make`], with a gateway that starts anew between the two; says what was lost once its tunnels were up again.
fn interrupted(this: Move, restarted: usize) -> Vec<String> {
    let mut talk = begin(&this);
    let busy = [talk.open(CT, PACS, 104), talk.open(PACS, CT, 4006)];
    talk.run(Duration::from_millis(200));
    talk.world.plan.mode(CT, this.after.0);
    talk.world.plan.mode(PACS, this.after.1);
    talk.revised();
    talk.apply(this.first);
    talk.chatter(&busy, 20);
    talk.run(Duration::from_millis(100));
    let before = talk.lost();
    assert!(before.is_empty(), "{this:?}: {before:#?}");
    talk.world.restart(restarted);
    talk.run(Duration::from_secs(4));
    for _ in 0..6 {
        talk.chatter(&busy, 10);
        talk.run(Duration::from_secs(1));
    }
    talk.apply(if this.first == IMAGING { SERVERS } else { IMAGING });
    talk.chatter(&busy, 40);
    talk.run(Duration::from_secs(2));
    talk.chatter(&busy, 10);
    talk.run(Duration::from_millis(50));
    let leaks = talk.leaks();
    assert!(leaks.is_empty(), "{this:?}, {restarted} restarted: {leaks:#?}");
    talk.lost()
}

#[test]
fn a_restart_in_the_middle_of_a_move_loses_nothing_more() {
    let mut lossy = Vec::new();
    for this in plain_moves(4) {
        let [before, after] = [this.before, this.after].map(|(a, b)| PairPath::of(a, b));
        for restarted in [IMAGING, SERVERS] {
            // One that starts anew as the first to go back to the clear can't know that it ever left it: an observed
            // device is a wire at once, and an enforced one that hasn't followed hears it as soon as it has spoken.
            let forgetful = before == PairPath::Tunnel && after != PairPath::Tunnel;
            if forgetful && restarted == this.first {
                continue;
            }
            let lost = interrupted(this, restarted);
            if !lost.is_empty() {
                lossy.push(format!("{this:?}, {restarted} restarted: {}", lost.len()));
            }
        }
    }
    assert!(lossy.is_empty(), "{} lossy moves: {lossy:#?}", lossy.len());
}

/// Whether a stranger who passes for the PACS in the clear gets a SYN to the CT, on a port that a rule opens.
fn spoofed(world: &mut World) -> bool {
    let (ct, pacs) = (world.hosts[CT].address, world.hosts[PACS].address);
    let stolen = packet::tcp((pacs, 5), (ct, 4006), TcpFlags::SYN, &[]);
    let before = world.hosts[CT].seen.len();
    let (to, from) = (world.hosts[CT].mac, world.hosts[INTRUDER].mac);
    world.put(INTRUDER, packet::frame(to, from, 0x0800, &stolen));
    world.run(Duration::from_millis(20));
    let heard =
        world.hosts[CT].seen[before..].iter().any(|frame| frame.get(30..34) == Some(&ct.octets()));
    let answered = world.campus.iter().any(|seen| {
        seen.from == Cable::Gateway(IMAGING) && seen.bytes.windows(4).any(|w| w == pacs.octets())
    });
    assert!(!answered, "it was answered in the clear");
    heard
}

#[test]
fn an_enforced_device_takes_clear_packets_only_while_the_other_end_may_be_behind() {
    let from_observe = |clear: bool, after: Mode| {
        let before = (Mode::Observe, Mode::Protect);
        let (after, gap, first) = ((after, Mode::Protect), Duration::ZERO, IMAGING);
        let mut world = begin(&Move { seed: 9, before, after, clear, first, gap }).world;
        world.plan.mode(CT, after.0);
        world
    };
    // The other end never hears of it.
    let mut world = from_observe(false, Mode::Enforce);
    world.apply(IMAGING);
    world.run(Duration::from_secs(55));
    assert!(spoofed(&mut world), "what was in the clear before may be under way");
    world.run(Duration::from_secs(7));
    assert!(!spoofed(&mut world), "a minute is over");
    // It has followed.
    let mut world = from_observe(true, Mode::Enforce);
    world.apply_all();
    world.run(Duration::from_secs(6));
    assert!(!spoofed(&mut world), "both have followed");
    // A rule says clear = true: as long as the other end says that it is behind, and no longer.
    let mut world = from_observe(true, Mode::Enforce);
    world.apply(IMAGING);
    world.run(Duration::from_secs(600));
    assert!(spoofed(&mut world), "it says that it is behind");
    world.weather.loss = 100;
    world.run(Duration::from_secs(30));
    assert!(!spoofed(&mut world), "nobody says so");
    // A device that was in the tunnel before it was enforced never takes any.
    let mut world = from_observe(true, Mode::Protect);
    world.apply_all();
    world.plan.mode(CT, Mode::Enforce);
    world.apply(IMAGING);
    world.run(Duration::from_millis(50));
    assert!(!spoofed(&mut world), "the tunnel was there before");
}

#[test]
fn the_same_seed_makes_the_same_trace() {
    let this = Move {
        seed: 5,
        before: (Mode::Observe, Mode::Protect),
        after: (Mode::Enforce, Mode::Protect),
        clear: false,
        first: SERVERS,
        gap: Duration::from_millis(40),
    };
    assert_eq!(make(this), make(this));
    assert_ne!(make(this), make(Move { seed: 6, ..this }));
}
