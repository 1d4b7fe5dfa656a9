//! Whether an underlay is dead where relays are all that packets take.

use super::*;

/// What it takes until another underlay is used: the time and the questions.
const SILENT: (Duration, u32) = (Duration::from_millis(800), 4);
/// How often the connection to a relay is looked at that waits for an answer.
const LOOK: Duration = Duration::from_millis(200);

/// Lets a relay fall silent under packets, whose connection is heeded or not, and gives how long it took until the
/// underlay could be said to be dead. None where that took longer than `patience`.
fn takes(world: &mut World, heeded: bool, patience: Duration) -> Option<Duration> {
    world.relays.dead.push(NEAR);
    let begun = world.now;
    // The first look that finds no answer comes a while after the last that was given.
    let since = begun + LOOK;
    while world.now < begun + patience {
        world.run(Duration::from_millis(20));
        let now = world.now;
        let passed = now - begun;
        let peers = &mut world.sides[0].peers;
        if heeded && passed >= 2 * LOOK && passed.as_millis().is_multiple_of(LOOK.as_millis()) {
            peers.note_owing(since, now);
        }
        let silence = peers.silence(now);
        if silence.lasts >= SILENT.0 && silence.questions >= SILENT.1 {
            return Some(passed);
        }
    }
    None
}

#[test]
fn a_relay_that_answers_no_more_has_its_peers_asked_at_once() {
    // Wherever in the two seconds between two hellos it dies.
    let mut took = [Vec::new(), Vec::new()];
    for phase in (0..2_200).step_by(100) {
        for heeded in [false, true] {
            let mut world = apart();
            world.run(Duration::from_secs(5) + Duration::from_millis(phase));
            let silent = takes(&mut world, heeded, Duration::from_secs(10));
            took[usize::from(heeded)].push(silent.expect("nothing comes back"));
        }
    }
    let [alone, heeded] = took.map(|took| took.into_iter().max());
    println!("{alone:?} by hellos alone, {heeded:?} where the connection to the relay is heeded");
    assert!(heeded <= Some(Duration::from_millis(1_300)) && heeded < alone, "{heeded:?}");
}

#[test]
fn one_that_waits_for_a_dead_relay_hears_from_others_that_its_underlay_is_well() {
    // Nothing but hellos is said, so for most of the time nobody was heard since the relay fell silent.
    for others in [true, false] {
        let mut world = apart();
        if others {
            // The peer has gone over to another relay.
            world.offer(&[FAR]);
        } else {
            world.direct(true, true);
        }
        world.talk(Duration::from_secs(20));
        let (via, why) = world.path(0);
        assert_eq!(via, others.then_some(FAR), "{why:?}");
        let patience = Duration::from_secs(12);
        assert_eq!(takes(&mut world, true, patience), None, "another relay: {others}");
    }
}

#[test]
fn few_are_asked_at_a_time_and_each_once() {
    let mut world = apart();
    world.talk(Duration::from_secs(5));
    world.run(Duration::from_secs(1));
    let since = world.now;
    world.relays.dead.push(NEAR);
    world.run(LOOK);
    let gateway = world.sides[1].gateway;
    let asked = |world: &World| world.sides[0].peer(gateway).questions().map_or(0, |asked| asked.1);
    let before = asked(&world);
    for _ in 0..50 {
        let now = world.now;
        let side = &mut world.sides[0];
        side.peers.note_owing(since, now);
        side.peers.handle_timeout(now, &mut side.sent);
    }
    assert!(asked(&world) <= before + 1, "{} after {before}", asked(&world));
}
