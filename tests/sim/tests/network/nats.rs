//! Gateways behind NATs at both ends: which kinds let a direct path come to be, by what relays say of how each looks from
//! outside, and that nothing is lost where none does.

use std::net::SocketAddr;
use std::time::Duration;

use anteroom_agent_core::target::RelayId;
use anteroom_lab::wan::nat::{Dependence, Kind, Ports};
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_proto::v1::telemetry::PathReason;
use anteroom_sim::hospital::*;
use anteroom_sim::model::Way;
use anteroom_sim::story::*;
use anteroom_sim::talk::Talk;
use anteroom_sim::world::World;

const IMAGING: usize = 0;
const SERVERS: usize = 2;
const DICOM: (Protocol, u16) = (Protocol::Tcp, 104);
const ALL: [Dependence; 3] =
    [Dependence::Independent, Dependence::Address, Dependence::AddressAndPort];

/// A NAT that gives ports by chance.
fn kind(mapping: Dependence, filtering: Dependence) -> Kind {
    Kind { mapping, filtering, ports: Ports::Random, ..Kind::full_cone() }
}

/// The hospital in enforce, with imaging and the servers behind NATs, and two relays.
fn behind(seed: u64, here: Kind, there: Kind) -> World {
    let mut world = hospital(seed);
    world.set_nat(IMAGING, here);
    world.set_nat(SERVERS, there);
    world.relay(Duration::from_millis(20));
    world.relay(Duration::from_millis(30));
    world.apply_all();
    for step in [Mode::Protect, Mode::Enforce] {
        all(&mut world, step);
    }
    world.run(Duration::from_secs(10));
    world.clear_campus();
    world
}

/// By which relay packets go between imaging and the servers, and why, as each of the two gateways says.
fn paths(world: &mut World) -> [(Option<u16>, Option<PathReason>); 2] {
    [(IMAGING, SERVERS), (SERVERS, IMAGING)].map(|(here, there)| {
        let (now, peer) = (world.now, world.plan.gateways[there].id);
        let peers = world.engine(here).status(now).peers;
        let state = peers.into_iter().find(|state| state.gateway == peer);
        let state = state.expect("it is a peer");
        (state.relay, state.path)
    })
}

fn is_direct(world: &mut World) -> bool {
    paths(world) == [(None, Some(PathReason::Proved)); 2]
}

/// Whether a knock gets through from one kind to another whose address it knows from a relay, and the answer back.
fn gets_in(knocking: &Kind, knocked: &Kind) -> bool {
    knocked.mapping == Dependence::Independent
        && (knocked.filtering < Dependence::AddressAndPort
            || knocking.mapping == Dependence::Independent)
}

#[test]
fn every_pair_of_nats_that_can_have_a_direct_path_gets_one_and_the_others_lose_nothing() {
    let kinds: Vec<Kind> =
        ALL.iter().flat_map(|mapping| ALL.map(|filtering| kind(*mapping, filtering))).collect();
    let mut wrong = Vec::new();
    for (seed, (a, b)) in (0..).zip(kinds.iter().flat_map(|a| kinds.iter().map(move |b| (a, b)))) {
        // The table is symmetric.
        if (a.mapping, a.filtering) > (b.mapping, b.filtering) {
            continue;
        }
        let name =
            format!("{:?}/{:?} and {:?}/{:?}", a.mapping, a.filtering, b.mapping, b.filtering);
        let mut world = behind(seed, a.clone(), b.clone());
        let can = gets_in(a, b) || gets_in(b, a);
        let is = is_direct(&mut world);
        // A filter that lets everybody in may do so for one that isn't known, too.
        let may = can || [a, b].iter().any(|kind| kind.filtering == Dependence::Independent);
        if is != can && !(is && may) {
            wrong.push(format!("{name}: {:?}", paths(&mut world)));
        }
        let mut talk = Talk::new(world, [CT, PACS], seed);
        let busy = [talk.open(CT, PACS, DICOM.1)];
        talk.run(Duration::from_secs(1));
        for _ in 0..20 {
            talk.chatter(&busy, 20);
            talk.run(Duration::from_millis(500));
        }
        let lost = talk.lost();
        if !lost.is_empty() {
            wrong.push(format!("{name}: {} lost, {:?}", lost.len(), paths(&mut talk.world)));
        }
        assert_eq!(talk.leaks(), [] as [String; 0], "{name}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn where_no_direct_path_can_be_the_status_says_so_and_only_there() {
    let symmetric = kind(Dependence::AddressAndPort, Dependence::AddressAndPort);
    let cone = kind(Dependence::Independent, Dependence::AddressAndPort);
    for (a, b, known) in [
        (symmetric.clone(), symmetric.clone(), true),
        (symmetric.clone(), cone.clone(), false),
        (cone.clone(), cone, false),
    ] {
        let mut world = behind(3, a.clone(), b);
        let now = world.now;
        let status = world.engine(IMAGING).status(now);
        let servers = world.plan.gateways[SERVERS].id;
        let said: Vec<_> = if known { vec![servers] } else { Vec::new() };
        assert_eq!(status.shut_off, said);
        assert_eq!(status.outside.varies, Some(a.mapping == Dependence::AddressAndPort));
        let outside = world.nats.of(IMAGING).address();
        let places = &status.outside.places;
        assert!(!places.is_empty() && places.iter().all(|place| place.ip() == outside));
    }
    // With one relay nobody knows.
    let mut world = behind(4, symmetric.clone(), symmetric);
    world.set_relay(RelayId(1), false);
    let now = world.now;
    let status = world.engine(IMAGING).status(now);
    assert_eq!((status.outside.varies, status.shut_off), (None, Vec::new()));
}

#[test]
fn a_nat_that_forgets_or_moves_is_found_again_and_costs_two_seconds_at_most() {
    let cone = kind(Dependence::Independent, Dependence::AddressAndPort);
    let world = behind(5, cone.clone(), cone);
    let mut talk = Talk::new(world, [CT, PACS], 5);
    let busy = [talk.open(CT, PACS, DICOM.1)];
    talk.run(Duration::from_secs(1));
    for round in 0..6 {
        assert!(is_direct(&mut talk.world), "round {round}");
        let gateway = if round % 2 == 0 { IMAGING } else { SERVERS };
        let nat = talk.world.nats.of(gateway);
        if round < 2 {
            nat.forget();
        } else {
            nat.set_address([203, 0, 113, 100 + round].into());
        }
        let changed = talk.world.now;
        while talk.world.now - changed < Duration::from_millis(1_900) {
            talk.chatter(&busy, 10);
            talk.run(Duration::from_millis(20));
        }
        let from = talk.said();
        for _ in 0..40 {
            talk.chatter(&busy, 20);
            talk.run(Duration::from_millis(500));
        }
        let later = |what: &String| {
            let number = what.split(':').next().and_then(|number| number.parse().ok());
            number.is_none_or(|number: usize| number >= from)
        };
        let lost: Vec<String> = talk.lost().into_iter().filter(later).collect();
        assert_eq!(lost, [] as [String; 0], "round {round}");
    }
    assert!(is_direct(&mut talk.world));
}

#[test]
fn a_relay_is_asked_often_enough_to_keep_a_mapping_and_no_more() {
    let symmetric = kind(Dependence::AddressAndPort, Dependence::AddressAndPort);
    let mut world = behind(6, symmetric.clone(), symmetric.lasting(Duration::from_secs(30)));
    let (asked, begun) = (world.relays.asked, world.now);
    world.run(Duration::from_secs(300));
    let asked = world.relays.asked - asked;
    // Two gateways, two relays, every 15 s; the third gateway reaches all directly.
    let passed = (world.now - begun).as_secs();
    assert!((4 * passed / 15 - 4..=4 * passed / 15 + 20).contains(&asked), "{asked} in {passed} s");
}

#[test]
fn relays_that_lie_have_gateways_knock_at_few_strangers_and_cost_no_packet() {
    let cone = kind(Dependence::Independent, Dependence::AddressAndPort);
    let victim = SocketAddr::from(([198, 18, 0, 1], 53));
    let mut world = hospital(7);
    world.relays.lie = Some(victim);
    world.set_nat(IMAGING, cone.clone());
    world.set_nat(SERVERS, cone);
    world.relay(Duration::from_millis(20));
    world.apply_all();
    for step in [Mode::Protect, Mode::Enforce] {
        all(&mut world, step);
    }
    world.sent_to.clear();
    world.run(Duration::from_secs(60));
    expect(&mut world, CT, PACS, DICOM, Way::Tunnel);
    assert!(paths(&mut world).iter().all(|path| path.0.is_some()), "no path can be");
    let to_victim = world.sent_to.get(&victim).copied().unwrap_or_default();
    // Two gateways that knock there each second at most, then every five.
    assert!((1..=2 * 60).contains(&to_victim), "{to_victim} datagrams to somebody else");
    // The truth is believed as soon as it is told.
    world.relays.lie = None;
    world.run(Duration::from_secs(30));
    assert!(is_direct(&mut world), "{:?}", paths(&mut world));
}

#[test]
fn a_relay_that_lies_anew_each_time_has_gateways_knock_little_more() {
    let cone = kind(Dependence::Independent, Dependence::AddressAndPort);
    let victim = SocketAddr::from(([198, 18, 0, 1], 53));
    let mut world = hospital(8);
    world.relays.lie = Some(victim);
    world.relays.restless = true;
    world.set_nat(IMAGING, cone.clone());
    world.set_nat(SERVERS, cone);
    world.relay(Duration::from_millis(20));
    world.apply_all();
    for step in [Mode::Protect, Mode::Enforce] {
        all(&mut world, step);
    }
    world.run(Duration::from_secs(60));
    world.sent_to.clear();
    world.run(Duration::from_secs(600));
    let sent = world.sent_to.iter().filter(|(to, _)| to.ip() == victim.ip());
    let to_victim: u64 = sent.map(|(_, count)| count).sum();
    // Two gateways, and of each minute a quarter at the first pace, the rest at the second.
    assert!((1..=10 * 2 * (15 + 9 + 3)).contains(&to_victim), "{to_victim} in ten minutes");
    world.relays.lie = None;
    world.run(Duration::from_secs(60));
    assert!(is_direct(&mut world), "{:?}", paths(&mut world));
}
