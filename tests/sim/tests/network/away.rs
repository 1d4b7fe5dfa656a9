//! Gateways and controllers that are away: what is allowed goes on, for new flows too, and nobody suffers but the
//! devices of the gateway that is gone.

use std::time::Duration;

use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_sim::hospital::*;
use anteroom_sim::model::Way;
use anteroom_sim::plan::Who;
use anteroom_sim::story::*;
use anteroom_sim::talk::Talk;
use anteroom_sim::world::World;

const SERVERS: usize = 2;
const WEB: (Protocol, u16) = (Protocol::Tcp, 8_080);

/// The hospital with everything in one mode, its routers known, and a rule from the CT to the pump.
fn hospital_in(seed: u64, mode: Mode) -> World {
    let mut world = hospital(seed);
    world.apply_all();
    let _ = probe(&mut world, CT, PUMP, WEB, 1, 1);
    let _ = probe(&mut world, PUMP, ARCHIVE, (Protocol::Udp, 5_000), 2, 1);
    let _ = probe(&mut world, CT, ARCHIVE, (Protocol::Tcp, 104), 3, 1);
    world.plan.rule("web", Who::Device(CT), Who::Device(PUMP), &["tcp/8080"]);
    for step in [Mode::Observe, Mode::Protect, Mode::Enforce] {
        all(&mut world, step.min(mode));
    }
    world.run(Duration::from_secs(10));
    world.clear_campus();
    world
}

#[test]
fn a_gateway_that_comes_and_goes_costs_the_others_nothing() {
    for mode in [Mode::Observe, Mode::Protect, Mode::Enforce] {
        let world = hospital_in(1, mode);
        let mut talk = Talk::new(world, [CT, PUMP], 1);
        let busy = [talk.open(CT, PUMP, WEB.1)];
        talk.run(Duration::from_millis(100));
        for round in 0..6 {
            talk.world.stop(SERVERS);
            for _ in 0..10 {
                talk.chatter(&busy, 4);
                talk.run(Duration::from_millis(400));
            }
            let new = talk.open(CT, PUMP, WEB.1);
            talk.run(Duration::from_millis(100));
            assert!(
                talk.is_open(&new),
                "{mode}, round {round}: no new flow without the third gateway"
            );
            talk.world.restart(SERVERS);
            talk.chatter(&busy, 40);
            talk.run(Duration::from_millis(100));
        }
        let lost = talk.lost();
        assert!(lost.is_empty(), "{mode}: {lost:#?}");
        expect(&mut talk.world, CT, MRI, (Protocol::Udp, 7_000), Way::Local);
        expect(&mut talk.world, CT, ARCHIVE, (Protocol::Tcp, 104), Way::Clear);
        // Its own devices have everything back.
        let way = if mode == Mode::Observe { Way::Clear } else { Way::Tunnel };
        expect(&mut talk.world, MONITOR, HL7, (Protocol::Tcp, 2_575), way);
        expect(&mut talk.world, PACS, CT, (Protocol::Tcp, 4_006), way);
    }
}

#[test]
fn hours_without_a_controller_change_nothing_even_if_every_gateway_starts_anew() {
    let mut world = hospital_in(2, Mode::Enforce);
    // Nobody hands a view to anyone from here on.
    for round in 0..3 {
        world.run(Duration::from_secs(2 * 3_600));
        for gateway in 0..3 {
            world.restart(gateway);
        }
        world.run(Duration::from_secs(5));
        for (from, to, service, way) in [
            (CT, PACS, (Protocol::Tcp, 104), Way::Tunnel),
            (PACS, CT, (Protocol::Tcp, 4_006), Way::Tunnel),
            (MONITOR, HL7, (Protocol::Tcp, 2_575), Way::Tunnel),
            (CT, PUMP, WEB, Way::Tunnel),
            (CT, MRI, (Protocol::Udp, 7_000), Way::Local),
            (CT, ARCHIVE, (Protocol::Tcp, 104), Way::Clear),
            (PUMP, PACS, (Protocol::Tcp, 104), Way::None),
            (INTRUDER, CT, (Protocol::Tcp, 104), Way::None),
        ] {
            expect(&mut world, from, to, service, way);
        }
        assert!(leaks(&world).is_empty(), "round {round}: {:#?}", leaks(&world));
        world.clear_campus();
    }
}
