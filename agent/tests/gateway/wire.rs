//! A gateway without a view is a wire: what devices and network send each other passes unchanged, and the gateway's
//! own kernel neither hears nor says anything.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anteroom_agent_core::batch::VlanTag;
use anteroom_lab::namespace::in_private_network;
use anteroom_lab::{ping, topology, wait};

use crate::bench::{Bench, DEVICE, GATEWAY, NETWORK, PATIENCE, Running, Tap, frame};

const DEVICE_MAC: [u8; 6] = [0, 0, 0x5e, 0, 0x53, 0x10];
const OTHER_MAC: [u8; 6] = [0, 0, 0x5e, 0, 0x53, 0x99];
const BROADCAST: [u8; 6] = [0xff; 6];

/// Bytes that repeat at no power of two.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 % 251) as u8).collect()
}

#[test]
fn frames_of_every_kind_pass_byte_for_byte_both_ways() {
    if !in_private_network("wire::frames_of_every_kind_pass_byte_for_byte_both_ways") {
        return;
    }
    let bench = Bench::new(9000, "");
    let running = bench.start();
    assert_eq!(running.warnings, [""; 0]);
    let tagged = |protocol: u16, control: u16, inner: &[u8]| {
        let rest = [&control.to_be_bytes()[..], &0x0800_u16.to_be_bytes(), inner].concat();
        (protocol, rest)
    };
    let kinds: Vec<(&str, [u8; 6], u16, Vec<u8>)> = vec![
        ("802.1X", [0x01, 0x80, 0xc2, 0, 0, 3], 0x888e, pattern(50)),
        ("LLDP", [0x01, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, pattern(90)),
        ("spanning tree, with a length for a type", [0x01, 0x80, 0xc2, 0, 0, 0], 38, pattern(46)),
        ("broadcast of an unknown type", BROADCAST, 0x88b5, pattern(64)),
        ("an empty frame", BROADCAST, 0x88b5, vec![]),
        ("IPv6", [0x33, 0x33, 0, 0, 0, 1], 0x86dd, pattern(80)),
        ("a jumbo frame", BROADCAST, 0x88b5, pattern(9000)),
    ];
    let with_tags = [
        ("tagged", tagged(0x8100, 42, &pattern(60))),
        ("tagged with priority 5 only", tagged(0x8100, 5 << 13, &pattern(60))),
        ("tagged with drop eligibility", tagged(0x8100, 7 << 13 | 1 << 12 | 4094, &pattern(60))),
        ("service-tagged", tagged(0x88a8, 100, &pattern(60))),
        ("tagged, at the largest size", tagged(0x8100, 42, &pattern(8998))),
    ];
    let mut taps = [bench.device_tap(), bench.network_tap()];
    for from in [DEVICE_MAC, OTHER_MAC] {
        let [sender, receiver] = &mut taps;
        for (what, to, ether_type, payload) in &kinds {
            let sent = frame(*to, from, *ether_type, payload);
            exchange(sender, receiver, what, &sent, None);
        }
        for (what, (protocol, rest)) in &with_tags {
            let sent = frame(BROADCAST, from, *protocol, rest);
            exchange(sender, receiver, what, &sent, Some(*protocol));
        }
        taps.reverse();
    }
    let counters = running.status().interfaces;
    for interface in counters {
        let lost = interface.counters.queue_full + interface.counters.egress_failed;
        assert_eq!(lost + interface.counters.missed, 0, "{interface:?}");
        assert!(interface.offloads.super_frames, "{interface:?}");
        assert_eq!(interface.offloads.gro, Some(false), "{interface:?}");
    }
}

/// Sends a frame and expects the very same at the other side. The kernel there takes the outer tag off, too.
fn exchange(sender: &Tap, receiver: &mut Tap, what: &str, sent: &[u8], tag: Option<u16>) {
    sender.send(sent);
    let mut passed = Vec::new();
    let (expected, vlan) = match tag {
        None => (sent.to_vec(), None),
        Some(protocol) => {
            let control = u16::from_be_bytes([sent[14], sent[15]]);
            let bytes = [&sent[..12], &sent[16..]].concat();
            (bytes, Some(VlanTag { protocol, control }))
        }
    };
    let heard = receiver.find(&mut passed, |heard| heard.bytes == expected);
    let heard = heard.unwrap_or_else(|| panic!("{what} didn't arrive, but this did: {passed:?}"));
    assert_eq!(heard.vlan, vlan, "{what}");
}

#[test]
fn tcp_passes_in_super_frames_and_arrives_whole() {
    if !in_private_network("wire::tcp_passes_in_super_frames_and_arrives_whole") {
        return;
    }
    let bench = Bench::new(1500, "");
    let running = bench.start();
    let bytes = 32 << 20;
    let data: Vec<u8> = (0..bytes).map(|i: usize| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    for (client, server, address) in
        [(&bench.device, &bench.network, NETWORK), (&bench.network, &bench.device, DEVICE)]
    {
        let listener = server.enter(|| TcpListener::bind((address, 104))).unwrap().unwrap();
        let receiving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut received = Vec::new();
            stream.read_to_end(&mut received).expect("the data");
            stream.write_all(b"done").expect("the answer");
            received
        });
        let to = SocketAddr::from((address, 104));
        let mut stream =
            client.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
        let begin = Instant::now();
        stream.write_all(&data).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let took = begin.elapsed();
        assert_eq!(answer, "done");
        assert!(receiving.join().unwrap() == data, "the data arrived changed");
        println!("{:.0} Mb/s", bytes as f64 * 8e-6 / took.as_secs_f64());
    }
    for interface in running.status().interfaces {
        let counters = interface.counters;
        assert!(
            counters.received < 2 * bytes as u64 / 1448 / 3,
            "hardly any super-frame among {counters:?}"
        );
        let lost = counters.truncated + counters.unknown_gso + counters.egress_failed;
        assert_eq!(lost, 0, "{interface:?}");
    }
}

#[test]
fn udp_passes_in_fragments_too() {
    if !in_private_network("wire::udp_passes_in_fragments_too") {
        return;
    }
    let bench = Bench::new(1500, "");
    let _running = bench.start();
    let server = bench.network.enter(|| UdpSocket::bind((NETWORK, 2000))).unwrap().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = bench.device.enter(|| UdpSocket::bind((DEVICE, 0))).unwrap().unwrap();
    let mut buffer = vec![0; 70_000];
    for length in [0, 1, 1472, 1473, 9000, 65_507] {
        let sent = pattern(length);
        client.send_to(&sent, (NETWORK, 2000)).unwrap();
        let (received, from) = server.recv_from(&mut buffer).expect("the datagram arrives");
        assert_eq!(from.ip(), DEVICE);
        assert!(buffer[..received] == sent, "{length} bytes arrived as {received}, or changed");
    }
}

#[test]
fn pings_pass_and_none_is_lost() {
    if !in_private_network("wire::pings_pass_and_none_is_lost") {
        return;
    }
    let bench = Bench::new(1500, "");
    let _running = bench.start();
    let series = ping::ping(&bench.device, NETWORK, 500, Duration::from_millis(2)).unwrap();
    assert_eq!(series.lost(), 0, "{series:?}");
    println!("median {:?} µs", series.percentile(0.5));
}

#[test]
fn the_gateways_kernel_neither_hears_nor_speaks_on_a_port() {
    if !in_private_network("wire::the_gateways_kernel_neither_hears_nor_speaks_on_a_port") {
        return;
    }
    let bench = Bench::new(1500, "\"icmp/echo\"");
    // What could be sent to the device before the port is isolated would be heard, too.
    let mut device = bench.device_tap();
    let running = bench.start();
    let network = bench.network_tap();
    // The kernel is asked for all it could betray itself with: ARP, neighbour discovery, echo by broadcast, and a
    // TCP connection to its own address by the port's Ethernet address.
    let port_mac = bench.gateway.mac("port0").unwrap();
    let arp = |target| anteroom_lab::packet::arp_request(DEVICE_MAC, DEVICE, target);
    device.send(&arp(GATEWAY));
    let solicitation = neighbour_solicitation(port_mac);
    device.send(&solicitation);
    device.send(&echo(BROADCAST, GATEWAY));
    device.send(&echo(port_mac, GATEWAY));
    let listener = bench.gateway.enter(|| UdpSocket::bind((GATEWAY, 2000))).unwrap().unwrap();
    device.send(&datagram(port_mac, GATEWAY, 2000));
    bench.gateway.ip("link set port0 down").unwrap();
    running.wait_open(1, false);
    running.wait_open(1, true);
    bench.gateway.ip("address add 192.0.2.1/24 dev port0").unwrap();
    bench
        .gateway
        .enter(|| UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"x", "192.0.2.9:9"))
        .unwrap()
        .ok();
    // A frame that the agent passes shows that whatever was sent before it has arrived.
    let marker = frame(BROADCAST, OTHER_MAC, 0x88b5, b"the end");
    let mut heard = Vec::new();
    let end = wait::until(PATIENCE, "the marker", || {
        network.send(&marker);
        // Shorter than the patience for the whole, so that one that is lost is sent again.
        device.find_within(Duration::from_secs(1), &mut heard, |heard| heard.bytes == marker)
    });
    assert!(end.is_ok(), "the port doesn't pass frames again");
    let gateway = [port_mac, bench.gateway.mac("up0").unwrap()];
    let spoken: Vec<_> =
        heard.iter().filter(|heard| gateway.iter().any(|mac| heard.bytes[6..12] == *mac)).collect();
    assert!(spoken.is_empty(), "the device heard the gateway: {spoken:02x?}");
    let neighbours = bench.gateway.ip("neighbour show dev port0").unwrap();
    assert_eq!(
        neighbours.lines().filter(|line| line.contains("lladdr")).count(),
        0,
        "{neighbours}"
    );
    let flags = bench.gateway.ip("link show port0").unwrap();
    assert!(flags.contains("NOARP"), "{flags}");
    listener.set_nonblocking(true).unwrap();
    let received = listener.recv(&mut [0; 100]);
    assert!(received.is_err(), "the kernel heard the device: {received:?}");
}

/// An ICMP echo request from the device.
fn echo(to_mac: [u8; 6], to: Ipv4Addr) -> Vec<u8> {
    let mut icmp = [8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let sum = anteroom_lab::packet::checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(to_mac, to, 1, icmp)
}

/// A UDP datagram without payload and checksum from the device.
fn datagram(to_mac: [u8; 6], to: Ipv4Addr, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    ipv4(to_mac, to, 17, [0x30, 0x39, high, low, 0, 8, 0, 0])
}

fn ipv4(to_mac: [u8; 6], to: Ipv4Addr, protocol: u8, payload: [u8; 8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    ip.extend(DEVICE.octets());
    ip.extend(to.octets());
    let sum = anteroom_lab::packet::checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame(to_mac, DEVICE_MAC, 0x0800, &[&ip[..], &payload].concat())
}

/// A neighbour solicitation for the link-local address that the kernel would make of `mac`.
fn neighbour_solicitation(mac: [u8; 6]) -> Vec<u8> {
    let mut target = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0];
    target[8..11].copy_from_slice(&mac[..3]);
    target[8] ^= 2;
    target[13..].copy_from_slice(&mac[3..]);
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&mac[3..]);
    let source = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut icmp = vec![135, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend(target);
    icmp.extend([1, 1]);
    icmp.extend(DEVICE_MAC);
    let pseudo = [&source[..], &group, &[0, 0, 0, 32, 0, 0, 0, 58], &icmp].concat();
    let sum = anteroom_lab::packet::checksum(&pseudo);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let ip = [&[0x60, 0, 0, 0, 0, 32, 58, 255][..], &source, &group, &icmp].concat();
    frame([0x33, 0x33, 0xff, mac[3], mac[4], mac[5]], DEVICE_MAC, 0x86dd, &ip)
}

/// Waits until the device reaches the network: a kernel sends on a cable up to a second after both its ends were switched
/// on.
fn reaches(bench: &Bench, running: &Running, when: &str) {
    wait::until(PATIENCE, "an answer to the device's ping", || {
        let series = ping::ping(&bench.device, NETWORK, 5, Duration::from_millis(5)).unwrap();
        (series.received > 0).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error} {when}: {:?}", running.status()));
}

#[test]
fn an_interface_that_goes_and_comes_back_is_opened_again() {
    if !in_private_network("wire::an_interface_that_goes_and_comes_back_is_opened_again") {
        return;
    }
    let bench = Bench::new(1500, "");
    let running = bench.start();
    let reaches = |when: &str| reaches(&bench, &running, when);
    reaches("at first");
    bench.gateway.ip("link delete port0").unwrap();
    running.wait_open(1, false);
    bench.plug_port(1500);
    running.wait_open(1, true);
    reaches("after the port was plugged in again");
    if let Some(nft) = anteroom_lab::programs::find("nft") {
        let rules = bench.gateway.run(nft, &["list", "ruleset"]).unwrap();
        assert!(rules.contains("device \"port0\""), "the new port isn't isolated:\n{rules}");
    }
    bench.gateway.ip("link set up0 down").unwrap();
    running.wait_open(0, false);
    bench.gateway.ip("link set up0 up").unwrap();
    running.wait_open(0, true);
    reaches("after the uplink was down");
    assert!(running.handle.alive());
}

#[test]
fn a_dead_uplink_is_seen_by_the_device() {
    if !in_private_network("wire::a_dead_uplink_is_seen_by_the_device") {
        return;
    }
    let bench = Bench::new(1500, "");
    let running = bench.start();
    let carrier = |expected: bool| {
        let mut seen = String::new();
        wait::until(PATIENCE, "the device's carrier", || {
            seen = bench.device.ip("link show eth0").unwrap();
            (seen.contains("LOWER_UP") == expected).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {seen}, {:?}", running.status()));
    };
    carrier(true);
    bench.network.ip("link set eth0 down").unwrap();
    carrier(false);
    bench.network.ip("link set eth0 up").unwrap();
    carrier(true);
    running.wait_open(1, true);
    reaches(&bench, &running, "at last");
}

#[test]
fn a_port_that_is_not_there_yet_is_opened_when_it_comes() {
    if !in_private_network("wire::a_port_that_is_not_there_yet_is_opened_when_it_comes") {
        return;
    }
    let bench = Bench::new(1500, "");
    bench.gateway.ip("link delete port0").unwrap();
    let running = bench.start();
    assert!(running.warnings[0].contains("port0 isn't there"), "{:?}", running.warnings);
    assert!(!running.status().interfaces[1].open);
    bench.plug_port(1500);
    running.wait_open(1, true);
    reaches(&bench, &running, "at last");
}

#[test]
fn an_uplink_beside_the_underlay_carries_the_devices_only() {
    if !in_private_network("wire::an_uplink_beside_the_underlay_carries_the_devices_only") {
        return;
    }
    let mut bench = Bench::new(1500, "");
    topology::cable((&bench.gateway, "under0", None), (&bench.network, "eth1")).unwrap();
    bench.gateway.address("under0", [10, 1, 0, 2].into(), 24).unwrap();
    bench.network.address("eth1", [10, 1, 0, 20].into(), 24).unwrap();
    bench.gateway.ip("address flush dev up0").unwrap();
    bench.gateway.ip("link set up0 down").unwrap();
    bench.config.underlay.interface = "under0".parse().unwrap();
    let running = bench.start();
    let endpoints = running.handle.endpoints().borrow().clone();
    assert_eq!(endpoints, ["10.1.0.2:51820".parse().unwrap()]);
    running.wait_open(0, true);
    reaches(&bench, &running, "at last");
    let addresses = bench.gateway.ip("address show dev up0").unwrap();
    assert!(!addresses.contains("inet"), "the kernel speaks there by itself: {addresses}");
    let series = ping::ping(&bench.network, [10, 1, 0, 2].into(), 3, Duration::from_millis(20));
    assert_eq!(series.unwrap().lost(), 3, "the underlay answers strangers");
}

#[test]
fn what_peers_are_told_follows_the_addresses() {
    if !in_private_network("wire::what_peers_are_told_follows_the_addresses") {
        return;
    }
    let bench = Bench::new(1500, "");
    let running = bench.start();
    let endpoints = running.handle.endpoints();
    let expect = |addresses: &[&str]| {
        let expected: Vec<SocketAddr> =
            addresses.iter().map(|address| format!("{address}:51820").parse().unwrap()).collect();
        wait::until(PATIENCE, "the endpoints", || (*endpoints.borrow() == expected).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: {:?}, not {expected:?}", *endpoints.borrow()));
    };
    expect(&["10.0.0.2"]);
    bench.gateway.ip("address add 10.0.7.7/24 dev up0").unwrap();
    expect(&["10.0.0.2", "10.0.7.7"]);
    bench.gateway.ip("address del 10.0.0.2/24 dev up0").unwrap();
    expect(&["10.0.7.7"]);
}
