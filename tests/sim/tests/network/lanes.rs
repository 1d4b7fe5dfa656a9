//! Bulk and alarms between the same two gateways, on an underlay that loses datagrams and between gateways that restart.

use std::time::Duration;

use anteroom_agent_core::wire::{ethernet, parse_ethernet, parse_ipv4};
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_sim::hospital::*;
use anteroom_sim::model::Way;
use anteroom_sim::packet;
use anteroom_sim::plan::Who;
use anteroom_sim::story::*;
use anteroom_sim::world::{Weather, World};

const BIG: (Protocol, u16) = (Protocol::Udp, 9000);
/// The gateways in front of the CT and of the PACS.
const IMAGING: usize = 0;
const SERVERS: usize = 2;

/// Enforced, with bulk from the CT to the PACS and thin waves from the MRI to the HL7 engine.
fn world(seed: u64) -> World {
    let mut world = hospital(seed);
    world.plan.rule("big", Who::Device(CT), Who::Device(PACS), &["udp/9000"]);
    world.plan.rule("waves", Who::Device(MRI), Who::Device(HL7), &["udp/9001"]);
    all(&mut world, Mode::Enforce);
    world.run(Duration::from_secs(15));
    expect(&mut world, CT, PACS, BIG, Way::Tunnel);
    expect(&mut world, MRI, HL7, (Protocol::Udp, 9001), Way::Tunnel);
    for host in &mut world.hosts {
        host.seen.clear();
    }
    world
}

/// A datagram with this number, whose bytes all follow from it.
fn datagram(
    world: &World,
    (from, to, port): (usize, usize, u16),
    number: u32,
    len: usize,
) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.extend((4..len).map(|at| (at as u32 * 31 + number) as u8));
    packet::udp((world.hosts[from].address, 44_000), (world.hosts[to].address, port), &payload)
}

/// Sends 1.3 MB a second from the CT, and a wave each 10 ms from the MRI, with these numbers: one for 10 ms.
fn send(world: &mut World, numbers: std::ops::Range<u32>) {
    for step in numbers {
        for part in 0..12 {
            let image = datagram(world, (CT, PACS, 9000), step * 12 + part, 1100);
            world.act(CT, |host, out| host.send(image, out));
        }
        let wave = datagram(world, (MRI, HL7, 9001), step, 200);
        world.act(MRI, |host, out| host.send(wave, out));
        world.run(Duration::from_millis(10));
    }
}

/// The numbers that arrived, in the order in which they did. No byte of any is another than was sent.
fn arrived(world: &World, (from, to, port): (usize, usize, u16), len: usize) -> Vec<u32> {
    let mut numbers = Vec::new();
    for frame in &world.hosts[to].seen {
        let parsed = parse_ethernet(frame, None).unwrap();
        let Ok(packet) = parse_ipv4(parsed.payload) else { continue };
        if parsed.ethertype != ethernet::IPV4 || packet.destination_port != port {
            continue;
        }
        let data = packet.udp_payload().unwrap();
        let number = u32::from_be_bytes(*data.first_chunk().unwrap());
        let sent = datagram(world, (from, to, port), number, len);
        let sent = parse_ipv4(&sent).unwrap().udp_payload().unwrap().to_vec();
        assert!(data == sent, "{number} was changed on its way");
        numbers.push(number);
    }
    numbers
}

fn images(world: &World) -> Vec<u32> {
    arrived(world, (CT, PACS, 9000), 1100)
}

fn waves(world: &World) -> Vec<u32> {
    arrived(world, (MRI, HL7, 9001), 200)
}

/// Lanes of a gateway that can be used, to any peer.
fn lanes(world: &mut World, gateway: usize) -> u8 {
    let now = world.now;
    world.engine(gateway).status(now).lanes.values().map(|standing| standing.ready).sum()
}

#[test]
fn images_take_a_lane_and_everything_arrives_once_and_in_order() {
    let mut world = world(1);
    send(&mut world, 0..150);
    assert!(lanes(&mut world, IMAGING) > 0 && lanes(&mut world, SERVERS) > 0);
    assert!(images(&world).into_iter().eq(0..1800));
    assert!(waves(&world).into_iter().eq(0..150));
    world.run(Duration::from_secs(200));
    assert_eq!([lanes(&mut world, IMAGING), lanes(&mut world, SERVERS)], [0; 2], "unused");
}

#[test]
fn on_an_underlay_that_loses_and_repeats_nothing_comes_twice_or_out_of_order() {
    for seed in 2..6 {
        let mut world = world(seed);
        world.weather = Weather { loss: 8, duplicates: 8, reordering: 0 };
        send(&mut world, 0..200);
        world.run(Duration::from_secs(30));
        send(&mut world, 200..300);
        assert!(lanes(&mut world, IMAGING) > 0, "{seed}");
        for (got, most) in [(images(&world), 3600), (waves(&world), 300)] {
            assert!(got.windows(2).all(|pair| pair[0] < pair[1]), "{seed}: {got:?}");
            assert!(got.len() > most * 8 / 10, "{seed}: {} of {most}", got.len());
        }
    }
}

#[test]
fn gateways_that_restart_lose_what_was_under_way_and_no_more() {
    for gateway in [IMAGING, SERVERS] {
        let mut world = world(7);
        send(&mut world, 0..100);
        assert!(lanes(&mut world, IMAGING) > 0);
        world.restart(gateway);
        world.run(Duration::from_secs(15));
        for host in &mut world.hosts {
            host.seen.clear();
        }
        send(&mut world, 100..250);
        assert!(images(&world).into_iter().eq(1200..3000), "{gateway}: {:?}", images(&world));
        assert!(waves(&world).into_iter().eq(100..250), "{gateway}: {:?}", waves(&world));
        assert!(lanes(&mut world, IMAGING) > 0 && lanes(&mut world, SERVERS) > 0, "{gateway}");
    }
}

#[test]
fn a_gateway_that_restarts_amid_bulk_is_heard_again_within_seconds() {
    let mut world = world(8);
    send(&mut world, 0..100);
    world.restart(SERVERS);
    send(&mut world, 100..400);
    let got = images(&world);
    assert!(got.windows(2).all(|pair| pair[0] < pair[1]), "{got:?}");
    assert!(got.ends_with(&(4000..4800).collect::<Vec<_>>()), "the old lane was used too long");
    assert!(lanes(&mut world, IMAGING) > 0);
}

#[test]
fn a_new_view_amid_bulk_loses_and_reorders_nothing() {
    let mut world = world(9);
    send(&mut world, 0..100);
    for round in 1..4 {
        world.plan.rule("more", Who::Device(CT), Who::Device(PACS), &["udp/9100"]);
        world.apply_all();
        send(&mut world, round * 100..(round + 1) * 100);
    }
    assert!(images(&world).into_iter().eq(0..4800));
    assert!(waves(&world).into_iter().eq(0..400));
    assert!(lanes(&mut world, IMAGING) > 0);
}
