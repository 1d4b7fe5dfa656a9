//! A device that goes back from its trial: what its peers have with it goes on, and what nobody opened passes only where
//! neither end is enforced.

use std::time::Duration;

use anteroom_proto::approval::Place;
use anteroom_proto::mode::Mode;
use anteroom_proto::rollout::{Rollout, Trial};
use anteroom_proto::service::Protocol;
use anteroom_sim::hospital::*;
use anteroom_sim::plan::Who;
use anteroom_sim::talk::Talk;
use anteroom_sim::world::World;

const IMAGING: usize = 0;
const WARD: usize = 1;
const WEB: (Protocol, u16) = (Protocol::Tcp, 8_080);
const UNDECLARED: (Protocol, u16) = (Protocol::Tcp, 9_100);

/// The hospital with the CT in protect and the pump in `other`, and a rule from one to the other.
fn hospital_with(seed: u64, other: Mode) -> World {
    let mut world = hospital(seed);
    world.apply_all();
    for (at, host) in [CT, PUMP].into_iter().enumerate() {
        let _ = probe(&mut world, host, WORKSTATION, WEB, 1 + at as u64, 1);
    }
    world.plan.rule("web", Who::Device(CT), Who::Device(PUMP), &["tcp/8080"]).clear = true;
    world.plan.mode(CT, Mode::Protect);
    for step in [Mode::Observe, Mode::Protect, Mode::Enforce] {
        world.plan.mode(PUMP, step.min(other));
    }
    world.apply_all();
    world.run(Duration::from_secs(10));
    world
}

fn enforce_on_trial(world: &mut World, within: Duration) {
    world.plan.mode(CT, Mode::Enforce);
    let trial = Trial {
        since: Place::new(0, world.plan.revision),
        within: u64::try_from(within.as_millis()).unwrap(),
        back_to: Mode::Protect,
        expects: Vec::new(),
    };
    world.plan.devices[CT].device.rollout = Rollout { trial: Some(trial), ..Rollout::default() };
    world.apply_all();
}

fn is_over(world: &mut World) -> bool {
    let trials = world.engine(IMAGING).trials();
    trials.first().expect("a trial is ordered").over.is_some()
}

#[test]
fn a_device_that_goes_back_loses_nothing_of_what_it_has_with_others() {
    for (seed, other) in [(1, Mode::Observe), (2, Mode::Protect), (3, Mode::Enforce)] {
        let world = hospital_with(seed, other);
        let mut talk = Talk::new(world, [CT, PUMP], seed);
        let busy = [talk.open(CT, PUMP, WEB.1)];
        talk.run(Duration::from_secs(1));
        enforce_on_trial(&mut talk.world, Duration::from_secs(60));
        talk.revised();
        let mut was_over = [false, false];
        for _ in 0..225 {
            talk.chatter(&busy, 2);
            talk.run(Duration::from_millis(400));
            was_over[usize::from(is_over(&mut talk.world))] = true;
        }
        assert_eq!(was_over, [true, true], "{other}: the way back lies in between");
        let new = talk.open(CT, PUMP, WEB.1);
        talk.run(Duration::from_secs(1));
        assert!(talk.is_open(&new) && talk.is_open(&busy[0]), "{other}");
        let lost = talk.lost();
        assert!(lost.is_empty(), "{other}: {lost:#?}");
    }
}

#[test]
fn what_nobody_opened_passes_again_where_neither_end_is_enforced() {
    for (seed, other) in [(4, Mode::Observe), (5, Mode::Protect), (6, Mode::Enforce)] {
        let mut world = hospital_with(seed, other);
        enforce_on_trial(&mut world, Duration::from_secs(60));
        world.run(Duration::from_secs(20));
        let arrives = |world: &mut World, from, to, service, marker| {
            probe(world, from, to, service, marker, 2).arrived
        };
        assert!(!arrives(&mut world, CT, WORKSTATION, UNDECLARED, 10), "{other}: on trial");
        assert!(!arrives(&mut world, PUMP, CT, UNDECLARED, 11), "{other}: on trial");
        assert!(arrives(&mut world, CT, PUMP, WEB, 12), "{other}: on trial");
        assert!(!is_over(&mut world), "{other}: the probes took too long");
        world.run(Duration::from_secs(60));
        assert!(is_over(&mut world), "{other}");
        assert!(arrives(&mut world, CT, WORKSTATION, UNDECLARED, 13), "{other}: back");
        let open = other != Mode::Enforce;
        assert_eq!(arrives(&mut world, PUMP, CT, UNDECLARED, 14), open, "{other}: back");
        assert!(arrives(&mut world, CT, PUMP, WEB, 15), "{other}: back");
        // With no tunnel between them, it is as between any two in these modes.
        world.set_direct(IMAGING, WARD, false);
        world.run(Duration::from_secs(30));
        assert_eq!(arrives(&mut world, CT, PUMP, WEB, 16), open, "{other}: no tunnel");
    }
}
