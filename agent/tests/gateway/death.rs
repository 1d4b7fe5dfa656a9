//! The agent dies, hangs and returns: a wire goes on being one, and no frame passes twice.

use std::time::Duration;

use anteroom_agent_core::batch::VlanTag;
use anteroom_lab::namespace::in_private_network;
use anteroom_lab::stream::{Passage, Stream};
use nix::sys::signal::Signal;

use crate::appliance::{Appliance, MACS, NET};
use crate::bench::{Tap, frame};

/// What an outage may last in a test: the promise is 500 ms, and a machine may be busy.
const BOUND: Duration = Duration::from_secs(3);

fn ended(streams: [Stream; 2]) -> [Passage; 2] {
    streams.map(|stream| stream.stop().expect("the sockets work"))
}

fn check(what: &str, appliance: &Appliance, passages: &[Passage; 2]) {
    for (way, passage) in ["out", "in"].iter().zip(passages) {
        println!("{what}, {way}: {passage:?}");
        assert_eq!(passage.doubled, 0, "{what}, {way}: {passage:?}\n{}", appliance.log());
        assert!(passage.outage_within(BOUND), "{what}, {way}: {passage:?}\n{}", appliance.log());
    }
}

#[test]
fn a_killed_agent_leaves_a_wire_and_takes_it_over_again() {
    if !in_private_network("death::a_killed_agent_leaves_a_wire_and_takes_it_over_again") {
        return;
    }
    let mut appliance = Appliance::new();
    appliance.start();
    appliance.wait_running();
    let streams = appliance.both_ways(0);
    appliance.kill();
    streams.iter().for_each(|stream| appliance.wait_more(stream));
    check("killed", &appliance, &ended(streams));

    let streams = appliance.both_ways(0);
    appliance.start();
    appliance.wait_running();
    streams.iter().for_each(|stream| appliance.wait_more(stream));
    let passages = ended(streams);
    check("started", &appliance, &passages);

    let streams = appliance.both_ways(0);
    appliance.stop();
    streams.iter().for_each(|stream| appliance.wait_more(stream));
    appliance.start();
    appliance.wait_running();
    streams.iter().for_each(|stream| appliance.wait_more(stream));
    check("upgraded in place", &appliance, &ended(streams));
}

#[test]
fn a_hung_agent_leaves_a_wire_and_doubles_nothing_when_it_wakes() {
    if !in_private_network("death::a_hung_agent_leaves_a_wire_and_doubles_nothing_when_it_wakes") {
        return;
    }
    let mut appliance = Appliance::new();
    appliance.start();
    appliance.wait_running();
    for _ in 0..3 {
        let streams = appliance.both_ways(0);
        appliance.signal(Signal::SIGSTOP);
        streams.iter().for_each(|stream| appliance.wait_more(stream));
        appliance.signal(Signal::SIGCONT);
        streams.iter().for_each(|stream| appliance.wait_more(stream));
        check("stopped and continued", &appliance, &ended(streams));
    }
}

#[test]
fn the_kernel_is_a_wire_for_every_kind_of_frame_and_between_ports() {
    if !in_private_network("death::the_kernel_is_a_wire_for_every_kind_of_frame_and_between_ports")
    {
        return;
    }
    let mut appliance = Appliance::new();
    appliance.start();
    appliance.wait_running();
    appliance.kill();
    let broadcast = [0xff; 6];
    let kinds: [(&str, [u8; 6], u16, &[u8]); 6] = [
        ("802.1X", [0x01, 0x80, 0xc2, 0, 0, 3], 0x888e, &[]),
        ("LLDP", [0x01, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, &[]),
        ("ARP", broadcast, 0x0806, &[]),
        ("IPv6 multicast", [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &[]),
        ("tagged", broadcast, 0x8100, &[0, 42, 0x88, 0xb5]),
        ("tagged twice", broadcast, 0x88a8, &[0, 100, 0x81, 0, 0, 42, 0x88, 0xb5]),
    ];
    for (from, to) in [(0, NET), (NET, 0), (1, NET), (NET, 1)] {
        for (what, destination, ether_type, rest) in &kinds {
            let headers = frame(*destination, MACS[from], *ether_type, rest);
            // The receiving kernel takes the outer tag off; the frame is found 4 bytes earlier then.
            let tag = if matches!(ether_type, 0x8100 | 0x88a8) { 4 } else { 0 };
            let stream = appliance.stream_untagged(from, to, &headers, tag);
            appliance.wait_more(&stream);
            let passage = stream.stop().unwrap();
            assert_eq!(passage.doubled, 0, "{what} from {from} to {to}: {passage:?}");
        }
    }
    tags_survive(&appliance);
    // From port to port: to the device itself and to all; what is for the link alone isn't for the other port.
    for destination in [MACS[1], broadcast] {
        let stream = appliance.stream_of(0, 1, &frame(destination, MACS[0], 0x88b5, &[]));
        appliance.wait_more(&stream);
        assert_eq!(stream.stop().unwrap().doubled, 0);
    }
    let link = appliance.stream_of(0, 1, &frame(kinds[0].1, MACS[0], 0x888e, &[]));
    appliance.hold_on(std::slice::from_ref(&link));
    let marker = appliance.stream_of(0, 1, &frame(broadcast, MACS[0], 0x88b5, &[]));
    appliance.wait_more(&marker);
    let passage = link.stop().unwrap();
    assert!(passage.sent > 50, "{passage:?}");
    assert_eq!(passage.received, 0, "802.1X goes to the switch and to no other device");
}

/// Tags come out as they went in, with priority and drop eligibility.
fn tags_survive(appliance: &Appliance) {
    let mut taps = [0, NET].map(|host| Tap::open(&appliance.hosts[host], "eth0"));
    for from in [0, NET] {
        let [sender, receiver] = &mut taps;
        for (protocol, control) in
            [(0x8100, 42), (0x8100, 5 << 13), (0x8100, 7 << 13 | 1 << 12 | 4094), (0x88a8, 100)]
        {
            let rest = [&u16::to_be_bytes(control)[..], &[0x88, 0xb5], &[7; 60]].concat();
            sender.send(&frame([0xff; 6], MACS[from], protocol, &rest));
            let expected = frame([0xff; 6], MACS[from], 0x88b5, &[7; 60]);
            let mut passed = Vec::new();
            let heard = receiver.find(&mut passed, |heard| heard.bytes == expected);
            let heard = heard.unwrap_or_else(|| panic!("no tagged frame among {passed:02x?}"));
            assert_eq!(heard.vlan, Some(VlanTag { protocol, control }), "from {from}");
        }
        taps.reverse();
    }
}
