//! Packets of any size, on an underlay of any size.

use std::time::Duration;

use anteroom_agent_core::wire::icmp::{IcmpMessage, parse_icmp};
use anteroom_agent_core::wire::{ethernet, parse_ethernet, parse_ipv4};
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_sim::hospital::*;
use anteroom_sim::model::Way;
use anteroom_sim::packet::{self, TcpFlags};
use anteroom_sim::plan::Who;
use anteroom_sim::story::*;
use anteroom_sim::world::World;

const DICOM: (Protocol, u16) = (Protocol::Tcp, 104);
const BIG: (Protocol, u16) = (Protocol::Udp, 9000);

/// Enforced, with a rule for large datagrams from the CT to the PACS, after the sizes of all paths were found.
fn world(seed: u64, carries: usize) -> World {
    let mut world = hospital(seed);
    world.carries = carries;
    let (interface, now) = (if carries > 1500 { 1600 } else { 1500 }, world.now);
    for gateway in 0..world.plan.gateways.len() {
        world.engine(gateway).set_underlay_mtu(interface, now);
    }
    world.plan.rule("big", Who::Device(CT), Who::Device(PACS), &["udp/9000"]);
    all(&mut world, Mode::Enforce);
    world.run(Duration::from_secs(15));
    expect(&mut world, CT, PACS, BIG, Way::Tunnel);
    for host in &mut world.hosts {
        host.seen.clear();
    }
    world
}

/// A packet as a device would send it that wants nothing fragmented, and puts an id of its own on it all the same.
fn stubborn(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[4..8].copy_from_slice(&[0xbe, 0xef, 0x40, 0]);
    packet[10..12].copy_from_slice(&[0, 0]);
    let sum = anteroom_agent_core::checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// A datagram of `len` bytes of IP from the CT to the PACS.
fn datagram(world: &World, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len - 28).map(|i| (i % 249) as u8).collect();
    let to = (world.hosts[PACS].address, 9000);
    stubborn(&packet::udp((world.hosts[CT].address, 44_000), to, &payload))
}

fn send(world: &mut World, packet: &[u8]) {
    let packet = packet.to_vec();
    world.act(CT, |host, out| host.send(packet, out));
    world.run(Duration::from_millis(50));
}

/// The IPv4 packets that reached a machine, from the IP header on.
fn arrived(world: &World, host: usize) -> Vec<Vec<u8>> {
    let frames = world.hosts[host].seen.iter();
    frames
        .filter_map(|frame| parse_ethernet(frame, None).ok())
        .filter(|frame| frame.ethertype == ethernet::IPV4)
        .map(|frame| frame.payload.to_vec())
        .collect()
}

#[test]
fn the_very_packet_arrives_whatever_the_underlay_carries() {
    for (seed, carries) in [(1, 1600), (2, 1500), (3, 1492), (4, 1280), (5, 1000), (6, 576)] {
        let mut world = world(seed, carries);
        for len in [28, 576, 1220, 1300, 1440, 1441, 1499, 1500] {
            let packet = datagram(&world, len);
            send(&mut world, &packet);
            assert_eq!(arrived(&world, PACS), [packet], "{len} bytes where {carries} get through");
            world.hosts[PACS].seen.clear();
        }
    }
}

#[test]
fn fragments_that_a_device_made_itself_arrive_as_they_are() {
    let mut world = world(7, 1280);
    let first = {
        let mut packet = datagram(&world, 1500);
        // The whole has another 600 bytes.
        packet[24..26].copy_from_slice(&2080u16.to_be_bytes());
        packet[6..8].copy_from_slice(&0x2000u16.to_be_bytes());
        packet
    };
    let ends = (world.hosts[CT].address, world.hosts[PACS].address);
    let mut second = packet::ipv4(ends.0, ends.1, 17, &[9; 600]);
    second[4..8].copy_from_slice(&[0xbe, 0xef, 0, 185]);
    let mut both = [first, second];
    for part in &mut both {
        part[10..12].copy_from_slice(&[0, 0]);
        let sum = anteroom_agent_core::checksum::checksum(&part[..20]);
        part[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    for part in &both {
        send(&mut world, part);
    }
    assert_eq!(arrived(&world, PACS), both);
}

#[test]
fn a_device_that_wants_nothing_fragmented_is_told_what_fits_in_the_far_hosts_name_and_not_too_often()
 {
    let mut world = world(8, 1500);
    let (ct, pacs) = (world.hosts[CT].address, world.hosts[PACS].address);
    let told = |world: &World| {
        let mut all = arrived(world, CT);
        all.retain(|packet| parse_ipv4(packet).unwrap().protocol == 1);
        all
    };
    let small = datagram(&world, 1440);
    send(&mut world, &small);
    assert_eq!(told(&world), Vec::<Vec<u8>>::new(), "what fits needs no word");
    let large = datagram(&world, 1500);
    for _ in 0..10 {
        send(&mut world, &large);
    }
    let messages = told(&world);
    assert_eq!(messages.len(), 1, "{messages:02x?}");
    let message = parse_ipv4(&messages[0]).unwrap();
    assert_eq!((message.source, message.destination), (pacs, ct));
    let quoted = match parse_icmp(message.payload()) {
        Ok(IcmpMessage::Error { kind: 3, code: 4, quoted }) => quoted,
        other => panic!("{other:?}"),
    };
    assert_eq!(quoted, Some(parse_ipv4(&large).unwrap().tuple()));
    assert_eq!(message.payload()[6..8], 1440u16.to_be_bytes());
    let macs = world.hosts[CT].seen.iter().map(|frame| parse_ethernet(frame, None).unwrap().source);
    let mut macs: Vec<_> = macs.collect();
    assert_eq!(macs.len(), 12, "and the host's own eleven answers");
    macs.dedup();
    assert_eq!(macs.len(), 1, "it comes from where all of the host's frames do: {macs:?}");
    world.run(Duration::from_secs(1));
    send(&mut world, &large);
    assert_eq!(told(&world).len(), 2, "once a second");
    assert_eq!(arrived(&world, PACS).len(), 12, "and all of it is carried");

    // Whoever may be fragmented isn't told; and the packet arrives whole all the same.
    world.hosts[CT].seen.clear();
    world.hosts[PACS].seen.clear();
    world.run(Duration::from_secs(2));
    let mut meek = large.clone();
    meek[6] = 0;
    meek[10..12].copy_from_slice(&[0, 0]);
    let sum = anteroom_agent_core::checksum::checksum(&meek[..20]);
    meek[10..12].copy_from_slice(&sum.to_be_bytes());
    send(&mut world, &meek);
    assert_eq!((told(&world).len(), arrived(&world, PACS)), (0, vec![meek]));
}

#[test]
fn an_underlay_that_shrinks_and_grows_ends_no_flow() {
    let mut world = world(9, 1600);
    let (ct, pacs) = (world.hosts[CT].address, world.hosts[PACS].address);
    expect(&mut world, CT, PACS, DICOM, Way::Tunnel);
    for (carries, patience) in [(1280, 50), (1600, 10), (900, 60), (1500, 10)] {
        world.carries = carries;
        let mut lost = 0;
        loop {
            world.hosts[PACS].seen.clear();
            let segment = packet::tcp((ct, 40_000), (pacs, 104), TcpFlags::ACK, &[7; 1460]);
            let segment = stubborn(&segment);
            send(&mut world, &segment);
            if arrived(&world, PACS).contains(&segment) {
                break;
            }
            lost += 1;
            assert!(lost < patience, "{lost} segments lost at {carries}");
            world.run(Duration::from_millis(50));
        }
    }
}

#[test]
fn the_mss_is_what_fits_the_smaller_direction() {
    for (seed, carries, fits) in [(10, 1600, 1460), (11, 1500, 1400), (12, 1280, 1180)] {
        let mut world = world(seed, carries);
        expect(&mut world, CT, PACS, DICOM, Way::Tunnel);
        for host in [PACS, CT] {
            let mss = world.hosts[host].seen.iter().find_map(|frame| {
                let segment = frame.get(34..)?;
                let is_syn = segment.get(13)? & TcpFlags::SYN != 0 && frame.get(23) == Some(&6);
                is_syn.then(|| u16::from_be_bytes([segment[22], segment[23]]))
            });
            assert_eq!(mss, Some(fits), "to {} at {carries}", world.hosts[host].name);
        }
    }
}

#[test]
fn status_says_what_gets_through() {
    let mut world = world(13, 1280);
    let now = world.now;
    let peers = world.engine(0).status(now).peers;
    assert!(!peers.is_empty() && peers.iter().all(|peer| peer.path_mtu == Some(1280)), "{peers:?}");
}
