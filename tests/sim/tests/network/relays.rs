//! Gateways that reach each other through a relay, directly, and by turns: no word is lost on the way from a relay to a
//! direct path, and a direct path that dies is left within two seconds.

use std::time::Duration;

use anteroom_agent_core::target::RelayId;
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

/// The hospital in one mode. Nothing gets through between imaging and the servers but by a relay, which takes so long.
fn apart(seed: u64, mode: Mode, latency: Duration) -> (World, RelayId) {
    let mut world = hospital(seed);
    world.set_direct(IMAGING, SERVERS, false);
    let relay = world.relay(latency);
    world.apply_all();
    for step in [Mode::Protect, Mode::Enforce] {
        all(&mut world, step.min(mode));
    }
    world.run(Duration::from_secs(5));
    world.clear_campus();
    (world, relay)
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

#[test]
fn what_is_allowed_takes_the_relay_where_nothing_gets_through_directly() {
    for mode in [Mode::Protect, Mode::Enforce] {
        let (mut world, relay) = apart(1, mode, Duration::from_millis(20));
        assert_eq!(paths(&mut world), [(Some(relay.0), Some(PathReason::Untried)); 2]);
        expect(&mut world, CT, PACS, DICOM, Way::Tunnel);
        expect(&mut world, PACS, CT, (Protocol::Tcp, 4_006), Way::Tunnel);
        // The pair beside it needs no relay.
        let carried = world.relays.carried;
        expect(&mut world, MONITOR, HL7, (Protocol::Tcp, 2_575), Way::Tunnel);
        let more = world.relays.carried - carried;
        assert!(more < 30, "{more} datagrams of others at most");
    }
}

#[test]
fn no_word_is_lost_on_the_way_from_a_relay_to_a_direct_path() {
    for (seed, latency) in (2..).zip([1, 20, 100, 400]) {
        let (world, _) = apart(seed, Mode::Enforce, Duration::from_millis(latency));
        let mut talk = Talk::new(world, [CT, PACS], seed);
        let busy = [talk.open(CT, PACS, DICOM.1)];
        talk.run(Duration::from_secs(3));
        talk.chatter(&busy, 500);
        talk.world.set_direct(IMAGING, SERVERS, true);
        let mut said = 0;
        while paths(&mut talk.world).iter().any(|path| path.0.is_some()) {
            said += 1;
            let now = paths(&mut talk.world);
            assert!(said < 200, "with {latency} ms the path doesn't move: {now:?}");
            talk.chatter(&busy, 100);
        }
        talk.chatter(&busy, 2_000);
        talk.run(Duration::from_secs(2));
        assert_eq!(paths(&mut talk.world), [(None, Some(PathReason::Proved)); 2]);
        let lost = talk.lost();
        assert!(lost.is_empty(), "{latency} ms: {} lost: {:#?}", lost.len(), lost.first());
        assert_eq!(talk.leaks(), [] as [String; 0]);
        let carried = talk.world.relays.carried;
        talk.chatter(&busy, 200);
        assert_eq!(talk.world.relays.carried, carried, "the relay has nothing to do any more");
    }
}

#[test]
fn a_direct_path_that_dies_is_left_within_two_seconds() {
    let (mut world, relay) = apart(7, Mode::Enforce, Duration::from_millis(30));
    world.set_direct(IMAGING, SERVERS, true);
    world.run(Duration::from_secs(8));
    assert_eq!(paths(&mut world), [(None, Some(PathReason::Proved)); 2]);
    for pause in [0, 900, 30_000] {
        let mut talk = Talk::new(world, [CT, PACS], pause);
        let busy = [talk.open(CT, PACS, DICOM.1)];
        talk.run(Duration::from_secs(1));
        assert!(talk.is_open(&busy[0]));
        talk.run(Duration::from_millis(pause));
        talk.world.set_direct(IMAGING, SERVERS, false);
        let died = talk.world.now;
        while talk.world.now - died < Duration::from_millis(1_900) {
            talk.chatter(&busy, 10);
            talk.run(Duration::from_millis(20));
        }
        let from = talk.said();
        let lost = |talk: &Talk| {
            let later = |what: &String| {
                let number = what.split(':').next().and_then(|number| number.parse().ok());
                number.is_none_or(|number: usize| number >= from)
            };
            talk.lost().into_iter().filter(later).collect::<Vec<_>>()
        };
        talk.chatter(&busy, 500);
        talk.run(Duration::from_secs(1));
        assert!(lost(&talk).is_empty(), "after {pause} ms: {:#?}", lost(&talk));
        assert_eq!(paths(&mut talk.world), [(Some(relay.0), Some(PathReason::Died)); 2]);
        // And back again, without a loss.
        talk.world.set_direct(IMAGING, SERVERS, true);
        for _ in 0..40 {
            talk.chatter(&busy, 50);
            talk.run(Duration::from_millis(200));
        }
        assert!(lost(&talk).is_empty(), "after {pause} ms: {:#?}", lost(&talk));
        assert_eq!(paths(&mut talk.world), [(None, Some(PathReason::Proved)); 2]);
        world = talk.world;
        world.clear_campus();
    }
}

#[test]
fn a_relay_that_goes_away_costs_a_direct_path_nothing() {
    let (mut world, relay) = apart(8, Mode::Enforce, Duration::from_millis(10));
    world.set_direct(IMAGING, SERVERS, true);
    world.run(Duration::from_secs(8));
    let mut talk = Talk::new(world, [CT, PACS], 8);
    let busy = [talk.open(CT, PACS, DICOM.1)];
    talk.run(Duration::from_secs(1));
    for round in 0..6 {
        talk.world.set_relay(relay, round % 2 == 1);
        talk.chatter(&busy, 300);
        talk.run(Duration::from_secs(1));
    }
    assert_eq!(talk.lost(), [] as [String; 0]);
}

#[test]
fn a_nearer_relay_and_one_that_dies_cost_nothing_but_what_was_in_it() {
    let (mut world, far) = apart(9, Mode::Enforce, Duration::from_millis(50));
    let near = world.relay(Duration::from_millis(5));
    let mut talk = Talk::new(world, [CT, PACS], 9);
    let busy = [talk.open(CT, PACS, DICOM.1)];
    talk.run(Duration::from_secs(1));
    talk.chatter(&busy, 300);
    talk.run(Duration::from_secs(1));
    assert_eq!(talk.lost(), [] as [String; 0], "another one came");
    talk.world.set_relay(far, false);
    talk.run(Duration::from_millis(100));
    talk.chatter(&busy, 300);
    talk.run(Duration::from_secs(1));
    assert_eq!(talk.lost(), [] as [String; 0]);
    let now = paths(&mut talk.world);
    assert!(now.iter().all(|path| path.0 == Some(near.0)), "{now:?}");
}

#[test]
fn a_gateway_that_starts_anew_behind_a_relay_is_back_at_once() {
    let (mut world, relay) = apart(10, Mode::Enforce, Duration::from_millis(20));
    world.restart(SERVERS);
    world.tell_relays();
    world.run(Duration::from_millis(1_500));
    expect(&mut world, CT, PACS, DICOM, Way::Tunnel);
    assert!(paths(&mut world).iter().all(|path| path.0 == Some(relay.0)));
}

#[test]
fn a_gateway_that_gets_another_address_is_found_within_two_seconds() {
    for (relayed, told, spoken_to) in
        [(true, true, false), (true, false, false), (true, false, true), (false, true, true)]
    {
        let name = format!("a relay: {relayed}, told: {told}, only spoken to: {spoken_to}");
        let (mut world, relay) = apart(11, Mode::Enforce, Duration::from_millis(30));
        world.set_direct(IMAGING, SERVERS, true);
        world.set_relay(relay, relayed);
        world.run(Duration::from_secs(20));
        let mut talk = Talk::new(world, [CT, PACS], 11);
        let busy = [talk.open(PACS, CT, 4_006)];
        talk.run(Duration::from_secs(5));
        for round in 0..4 {
            let gateway = if round % 2 == 0 { IMAGING } else { SERVERS };
            let endpoint = &mut talk.world.plan.gateways[gateway].endpoint;
            endpoint.set_ip([192, 0, 2, 100 + round].into());
            let (ip, now) = (endpoint.ip(), talk.world.now);
            if told {
                talk.world.engine(gateway).set_own_addresses(vec![ip]);
                talk.world.engine(gateway).note_moved(now);
            }
            while talk.world.now - now < Duration::from_millis(1_900) {
                if !spoken_to {
                    talk.chatter(&busy, 10);
                }
                talk.run(Duration::from_millis(20));
            }
            let from = talk.said();
            for _ in 0..20 {
                talk.chatter(&busy, 50);
                talk.run(Duration::from_millis(300));
            }
            let later = |what: &String| {
                let number = what.split(':').next().and_then(|number| number.parse().ok());
                number.is_none_or(|number: usize| number >= from)
            };
            let lost: Vec<String> = talk.lost().into_iter().filter(later).collect();
            assert_eq!(lost, [] as [String; 0], "{name}, round {round}");
        }
    }
}

/// The relays that packets take between imaging and the servers.
fn used(world: &mut World) -> [Option<u16>; 2] {
    paths(world).map(|path| path.0)
}

#[test]
fn a_pair_is_back_on_the_nearest_relay_a_minute_after_that_is() {
    let (mut world, near) = apart(12, Mode::Enforce, Duration::from_millis(5));
    let far = world.relay(Duration::from_millis(40));
    world.run(Duration::from_secs(20));
    assert_eq!(used(&mut world), [Some(near.0); 2]);
    let mut talk = Talk::new(world, [CT, PACS], 12);
    let busy = [talk.open(CT, PACS, DICOM.1)];
    talk.run(Duration::from_secs(1));
    talk.world.set_relay(near, false);
    talk.run(Duration::from_secs(20));
    talk.world.set_relay(near, true);
    assert_eq!(used(&mut talk.world), [Some(far.0); 2]);
    let words = talk.said();
    let back = talk.world.now;
    while used(&mut talk.world) != [Some(near.0); 2] {
        let passed = talk.world.now - back;
        assert!(passed < Duration::from_secs(90), "{:?}", paths(&mut talk.world));
        talk.chatter(&busy, 20);
        talk.run(Duration::from_millis(200));
    }
    assert!(talk.world.now - back >= Duration::from_secs(55), "not because of a moment");
    talk.chatter(&busy, 500);
    talk.run(Duration::from_secs(2));
    assert!(talk.said() > words + 1_000, "{} words", talk.said() - words);
    assert_eq!(talk.lost(), [] as [String; 0]);
}

#[test]
fn round_trips_that_come_and_go_move_no_packets() {
    let (mut world, near) = apart(13, Mode::Enforce, Duration::from_millis(20));
    let other = world.relay(Duration::from_millis(22));
    for second in 0..600_u64 {
        // Each is twice as far as the other at times, for half a minute on end.
        let jitter = Duration::from_millis(20 + 30 * (second / 30 % 2));
        let back = Duration::from_millis(70) - jitter;
        for gateway in [IMAGING, SERVERS] {
            world.set_round_trip(near, gateway, jitter);
            world.set_round_trip(other, gateway, back);
        }
        world.run(Duration::from_secs(1));
        assert_eq!(used(&mut world), [Some(near.0); 2], "after {second} s");
    }
}

#[test]
fn ends_that_are_near_different_relays_agree_on_one() {
    let (mut world, one) = apart(14, Mode::Enforce, Duration::from_millis(2));
    let other = world.relay(Duration::from_millis(40));
    world.set_round_trip(one, SERVERS, Duration::from_millis(40));
    world.set_round_trip(other, SERVERS, Duration::from_millis(2));
    let (mut moves, mut last) = (0, used(&mut world));
    for _ in 0..(4 * 3_600) {
        world.run(Duration::from_secs(1));
        let now = used(&mut world);
        moves += usize::from(now != last);
        last = now;
    }
    assert!(last[0] == last[1] && moves <= 4, "{moves} moves to {last:?}");

    // The one that they agreed on gets far for the end that isn't near it, and stays as near as it was to the other one.
    let (used_one, from, unused) =
        if last[0] == Some(one.0) { (one, SERVERS, other) } else { (other, IMAGING, one) };
    world.set_round_trip(used_one, from, Duration::from_millis(300));
    world.run(Duration::from_secs(2 * 3_600));
    assert_eq!(used(&mut world), [Some(unused.0); 2]);
}
