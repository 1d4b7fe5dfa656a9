//! Rules come and go while the pair that they are for keeps talking.

use std::time::Duration;

use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_proto::verdict::{DropReason, Verdict};
use anteroom_sim::hospital::*;
use anteroom_sim::plan::Who;
use anteroom_sim::random::Random;
use anteroom_sim::story::*;
use anteroom_sim::talk::Talk;

/// The gateways of the CT, of the pump, and of the PACS.
const IMAGING: usize = 0;
const WARD: usize = 1;
const SERVERS: usize = 2;
const WEB: (Protocol, u16) = (Protocol::Tcp, 8_080);

/// Protected devices that talk without a rule, in the clear, and then get one.
fn opens(seed: u64, pair: [usize; 2], gateways: [usize; 2], gap: Duration) {
    let mut world = hospital(seed);
    all(&mut world, Mode::Observe);
    let _ = probe(&mut world, pair[0], pair[1], WEB, 1, 1);
    all(&mut world, Mode::Protect);
    world.run(Duration::from_secs(20));
    let mut talk = Talk::new(world, pair, seed);
    let busy = [talk.open(pair[0], pair[1], WEB.1)];
    talk.run(Duration::from_millis(100));
    assert!(talk.is_open(&busy[0]), "protect lets pass what no rule allows");
    talk.world.plan.rule("web", Who::Device(pair[0]), Who::Device(pair[1]), &["tcp/8080"]);
    talk.world.plan.revise();
    for gateway in gateways {
        talk.apply(gateway);
        talk.chatter(&busy, 40);
        let until = talk.world.now + gap;
        while talk.world.now < until {
            talk.chatter(&busy, 2);
            talk.run(gap / 20);
        }
    }
    talk.run(Duration::from_secs(4));
    let settled = talk.world.campus.len();
    talk.chatter(&busy, 20);
    talk.run(Duration::from_millis(50));
    let (lost, overheard) = (talk.lost(), talk.overheard(settled));
    assert!(
        lost.is_empty() && !overheard,
        "seed {seed}, {pair:?}, {gateways:?} {gap:?} apart: lost {lost:#?}; still in the clear: {overheard}\n{}",
        explain(&mut talk.world, pair[0], pair[1], WEB)
    );
}

#[test]
fn a_rule_takes_a_protected_flow_into_the_tunnel_without_a_loss() {
    let mut random = Random::new(3);
    for seed in 1..=4 {
        for (pair, gateways) in [([CT, PACS], [IMAGING, SERVERS]), ([CT, PUMP], [IMAGING, WARD])] {
            for order in [gateways, [gateways[1], gateways[0]]] {
                opens(seed, pair, order, Duration::from_millis(random.next() % 500));
                opens(seed, pair, order, Duration::from_secs(90));
            }
        }
    }
}

#[test]
fn a_rule_opens_at_the_destinations_gateway_first() {
    let mut world = hospital(5);
    all(&mut world, Mode::Enforce);
    world.plan.rule("web", Who::Device(CT), Who::Device(PACS), &["tcp/8080"]);
    world.plan.revise();
    world.apply(IMAGING);
    world.run(Duration::from_secs(3));
    let now = world.now;
    let before = world.engine(SERVERS).status(now).drops;
    expect(&mut world, CT, PACS, WEB, anteroom_sim::model::Way::None);
    let why = question(&world, CT, PACS, "tcp/8080");
    let verdict = world.engine(IMAGING).explain(&why, now).verdict;
    assert_eq!(verdict, Verdict::Drop(DropReason::TunnelNotReady));
    assert_eq!(world.engine(SERVERS).status(now).drops, before, "nothing was sent there");
    // What was open before goes on meanwhile.
    expect(&mut world, CT, PACS, (Protocol::Tcp, 104), anteroom_sim::model::Way::Tunnel);
    world.apply(SERVERS);
    world.run(Duration::from_millis(20));
    let first_try = probe(&mut world, CT, PACS, WEB, 900, 1);
    assert_eq!(first_try, Outcome::of(anteroom_sim::model::Way::Tunnel));
}

#[test]
fn a_rule_that_the_destination_holds_already_opens_at_once() {
    let mut world = hospital(6);
    all(&mut world, Mode::Enforce);
    world.plan.rule("web", Who::Device(CT), Who::Device(PACS), &["tcp/8080"]);
    world.plan.revise();
    world.apply(SERVERS);
    world.run(Duration::from_secs(3));
    world.apply(IMAGING);
    let first_try = probe(&mut world, CT, PACS, WEB, 901, 1);
    assert_eq!(first_try, Outcome::of(anteroom_sim::model::Way::Tunnel));
}

#[test]
fn an_end_that_lags_delays_nothing_but_what_is_new() {
    let mut world = hospital(7);
    all(&mut world, Mode::Enforce);
    // The server room's gateway hears of none of ten revisions.
    for port in 9_000..9_010 {
        let service = format!("tcp/{port}");
        world.plan.rule(&service, Who::Device(CT), Who::Device(PACS), &[&service]);
        world.plan.revise();
        world.apply(IMAGING);
        world.run(Duration::from_secs(30));
    }
    expect(&mut world, CT, PACS, (Protocol::Tcp, 104), anteroom_sim::model::Way::Tunnel);
    expect(&mut world, PACS, CT, (Protocol::Tcp, 4006), anteroom_sim::model::Way::Tunnel);
    expect(&mut world, CT, PACS, (Protocol::Tcp, 9_003), anteroom_sim::model::Way::None);
    world.apply(SERVERS);
    world.run(Duration::from_millis(50));
    expect(&mut world, CT, PACS, (Protocol::Tcp, 9_003), anteroom_sim::model::Way::Tunnel);
}

#[test]
fn a_rule_that_goes_takes_a_protected_flow_into_the_clear_without_a_loss() {
    for order in [[IMAGING, SERVERS], [SERVERS, IMAGING]] {
        let mut world = hospital(8);
        all(&mut world, Mode::Observe);
        let _ = probe(&mut world, CT, PACS, WEB, 1, 1);
        world.plan.rule("web", Who::Device(CT), Who::Device(PACS), &["tcp/8080"]);
        all(&mut world, Mode::Protect);
        let mut talk = Talk::new(world, [CT, PACS], 8);
        let busy = [talk.open(CT, PACS, WEB.1)];
        talk.run(Duration::from_millis(100));
        talk.world.plan.rules.retain(|rule| rule.name != "web");
        talk.world.plan.revise();
        for gateway in order {
            talk.apply(gateway);
            talk.chatter(&busy, 60);
        }
        talk.run(Duration::from_secs(1));
        let lost = talk.lost();
        let said = explain(&mut talk.world, CT, PACS, WEB);
        assert!(lost.is_empty(), "{order:?}: {lost:#?}\n{said}");
    }
}

fn closes(gateway: usize, first: usize) {
    let mut world = hospital(9);
    world.plan.rule("web", Who::Device(CT), Who::Device(PACS), &["tcp/8080"]);
    all(&mut world, Mode::Enforce);
    let mut talk = Talk::new(world, [CT, PACS], 9);
    let busy = [talk.open(CT, PACS, WEB.1)];
    talk.run(Duration::from_millis(100));
    talk.chatter(&busy, 4);
    talk.run(Duration::from_millis(20));
    assert!(talk.lost().is_empty(), "{:?}", talk.lost());
    talk.world.plan.rules.retain(|rule| rule.name != "web");
    talk.world.plan.revise();
    // Each end alone closes it both ways, whoever speaks first.
    talk.apply(gateway);
    let before = talk.said();
    for _ in 0..5 {
        talk.say(&busy[0], first);
        talk.run(Duration::from_millis(20));
    }
    talk.chatter(&busy, 30);
    talk.run(Duration::from_millis(20));
    assert_eq!(talk.lost().len(), talk.said() - before, "{gateway} {first}: {:#?}", talk.lost());
}

#[test]
fn a_rule_that_goes_closes_at_once_where_devices_are_enforced() {
    for gateway in [IMAGING, SERVERS] {
        for first in [CT, PACS] {
            closes(gateway, first);
        }
    }
}
