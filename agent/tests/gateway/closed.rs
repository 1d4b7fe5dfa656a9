//! A port that is closed on failure: while no agent forwards, not one byte passes, in whichever way it came to that.

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::stream::Stream;
use anteroom_proto::intent::OnFailure;
use anteroom_proto::mode::Mode;

use crate::appliance::{Appliance, MACS, NET};
use crate::bench::frame;

const BROADCAST: [u8; 6] = [0xff; 6];
const EAPOL: ([u8; 6], u16) = ([0x01, 0x80, 0xc2, 0, 0, 3], 0x888e);

/// Streams of every kind between two hosts, in both directions.
pub(crate) fn everything(appliance: &Appliance, between: (usize, usize)) -> Vec<Stream> {
    let (a, b) = between;
    let kinds = |from: usize, to: usize| {
        [
            EAPOL,
            ([0x01, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc),
            (BROADCAST, 0x0806),
            (BROADCAST, 0x88b5),
            (MACS[to], 0x0800),
            (MACS[to], 0x86dd),
            ([0x33, 0x33, 0, 0, 0, 1], 0x86dd),
        ]
        .map(|(to, ether_type)| frame(to, MACS[from], ether_type, &[]))
    };
    let out = kinds(a, b).map(|headers| appliance.stream_of(a, b, &headers));
    let back = kinds(b, a).map(|headers| appliance.stream_of(b, a, &headers));
    out.into_iter().chain(back).collect()
}

/// Nothing of all this came through, though enough was sent of each, while `marker` did.
pub(crate) fn nothing_passed(
    appliance: &Appliance,
    what: &str,
    streams: Vec<Stream>,
    marker: Option<&Stream>,
) {
    appliance.hold_on(&streams);
    if let Some(marker) = marker {
        appliance.wait_more(marker);
    }
    for (kind, passage) in Stream::stop_all(streams).unwrap().into_iter().enumerate() {
        assert!(passage.sent > 50, "{passage:?}");
        assert_eq!(passage.received, 0, "{what}, kind {kind}: {passage:?}\n{}", appliance.log());
    }
}

fn eapol(appliance: &Appliance, from: usize, to: usize) -> Stream {
    appliance.stream_of(from, to, &frame(EAPOL.0, MACS[from], EAPOL.1, &[]))
}

#[test]
fn an_enforced_device_is_cut_off_while_its_neighbour_is_on_a_wire() {
    if !in_private_network("closed::an_enforced_device_is_cut_off_while_its_neighbour_is_on_a_wire")
    {
        return;
    }
    let mut appliance = Appliance::new();
    appliance.hold(&[(Mode::Enforce, OnFailure::Default), (Mode::Observe, OnFailure::Default)]);
    appliance.start();
    appliance.wait_running();
    // The test isn't blind: with the agent alive, 802.1X passes.
    let alive = eapol(&appliance, 0, NET);
    appliance.wait_more(&alive);
    alive.stop().unwrap();

    appliance.kill();
    let marker = appliance.stream(1, NET);
    appliance.wait_more(&marker);
    for pair in [(0, NET), (0, 1)] {
        let streams = everything(&appliance, pair);
        nothing_passed(&appliance, "killed", streams, Some(&marker));
    }
    // From the first moment of the next start, too: what the view forbids stays out, whoever forwards.
    let streams: Vec<_> = [(BROADCAST, 0x88b5), (MACS[NET], 0x86dd), (BROADCAST, 0x0806)]
        .map(|(to, kind)| appliance.stream_of(0, NET, &frame(to, MACS[0], kind, &[])))
        .into();
    for _ in 0..2 {
        appliance.start();
        appliance.wait_running();
        appliance.wait_more(&marker);
        appliance.kill();
        appliance.wait_more(&marker);
        appliance.start();
        appliance.wait_running();
        appliance.stop();
        appliance.wait_more(&marker);
    }
    nothing_passed(&appliance, "started and stopped", streams, Some(&marker));
    assert_eq!(marker.stop().unwrap().doubled, 0);
}

#[test]
fn what_operators_chose_goes_before_the_mode() {
    if !in_private_network("closed::what_operators_chose_goes_before_the_mode") {
        return;
    }
    let mut appliance = Appliance::new();
    appliance.hold(&[(Mode::Observe, OnFailure::Closed), (Mode::Enforce, OnFailure::Wire)]);
    appliance.start();
    appliance.wait_running();
    appliance.kill();
    let marker = appliance.stream(1, NET);
    appliance.wait_more(&marker);
    let streams = everything(&appliance, (0, NET));
    nothing_passed(&appliance, "closed by choice", streams, Some(&marker));
}

#[test]
fn a_gateway_that_lost_the_view_of_an_enforced_device_stays_closed() {
    if !in_private_network(
        "closed::a_gateway_that_lost_the_view_of_an_enforced_device_stays_closed",
    ) {
        return;
    }
    let mut appliance = Appliance::new();
    appliance.hold(&[(Mode::Enforce, OnFailure::Default), (Mode::Observe, OnFailure::Default)]);
    appliance.start();
    appliance.wait_running();
    appliance.kill();
    let marker = appliance.stream(1, NET);
    appliance.wait_more(&marker);
    marker.stop().unwrap();

    std::fs::remove_dir_all(appliance.directory.path().join("state")).unwrap();
    appliance.start();
    appliance.wait_running();
    assert!(appliance.log().contains("the ports stay closed"), "{}", appliance.log());
    for pair in [(0, NET), (1, NET), (0, 1)] {
        let streams = everything(&appliance, pair);
        nothing_passed(&appliance, "state lost", streams, None);
    }
    appliance.kill();
    let streams = everything(&appliance, (1, NET));
    nothing_passed(&appliance, "state lost, and killed", streams, None);
}

#[test]
fn at_boot_the_ports_are_what_the_view_on_disk_says_before_any_agent_runs() {
    if !in_private_network(
        "closed::at_boot_the_ports_are_what_the_view_on_disk_says_before_any_agent_runs",
    ) {
        return;
    }
    let mut appliance = Appliance::new();
    appliance.boot();
    let streams = everything(&appliance, (1, NET));
    nothing_passed(&appliance, "never enrolled", streams, None);

    appliance.hold(&[(Mode::Enforce, OnFailure::Default), (Mode::Observe, OnFailure::Default)]);
    appliance.start();
    appliance.wait_running();
    appliance.kill();
    // As after a power cut: the kernel has forgotten everything.
    appliance.forget_filter();
    let dark = appliance.stream(1, NET);
    appliance.hold_on(std::slice::from_ref(&dark));
    assert_eq!(dark.stop().unwrap().received, 0, "something else forwards");
    appliance.boot();
    let marker = appliance.stream(1, NET);
    appliance.wait_more(&marker);
    let streams = everything(&appliance, (0, NET));
    nothing_passed(&appliance, "enforced, at boot", streams, Some(&marker));
    // The agent takes over, and nothing is doubled.
    appliance.start();
    appliance.wait_running();
    appliance.wait_more(&marker);
    assert_eq!(marker.stop().unwrap().doubled, 0);
}
