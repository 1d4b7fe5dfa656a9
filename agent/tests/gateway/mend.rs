//! What somebody else undoes, or what goes and comes back, is mended, for the time when no agent runs too.

use std::time::{Duration, Instant};

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::{programs, topology, wait};
use anteroom_proto::intent::OnFailure;
use anteroom_proto::mode::Mode;

use crate::appliance::{Appliance, MACS, NET};
use crate::bench::{GATEWAY, PATIENCE};

#[test]
fn a_flushed_packet_filter_is_put_back_at_once() {
    if !in_private_network("mend::a_flushed_packet_filter_is_put_back_at_once") {
        return;
    }
    let Some(nft) = programs::find("nft") else {
        eprintln!("skipped: `nft` isn't installed");
        return;
    };
    let mut appliance = Appliance::new();
    appliance.hold(&[(Mode::Observe, OnFailure::Default), (Mode::Enforce, OnFailure::Default)]);
    appliance.start();
    appliance.wait_running();
    let rules = || appliance.gateway.run(&nft, &["list", "ruleset"]).unwrap();
    let shape = |rules: &str| -> Vec<String> {
        let lines = rules.lines().filter(|line| !line.contains("expires"));
        let counted = lines.map(|line| line.split(" packets ").next().unwrap_or(line).to_owned());
        let mut all: Vec<_> = counted.collect();
        // The tables come in the order in which they were made.
        all.sort_unstable();
        all
    };
    let whole = shape(&rules());
    let held_up = || appliance.log().matches("the kernel forwarded for it").count();
    let held_up_before = held_up();
    let streams = appliance.both_ways(0);
    let undone: [&[&str]; 5] = [
        &["flush", "ruleset"],
        &["delete", "table", "netdev", "anteroom"],
        &["delete", "table", "inet", "anteroom_guard"],
        &["flush", "chain", "netdev", "anteroom", "from_port_1"],
        &["add", "rule", "netdev", "anteroom", "from_port_2", "accept"],
    ];
    for command in undone {
        let began = Instant::now();
        appliance.gateway.run(&nft, command).unwrap();
        let mut now = Vec::new();
        wait::until(PATIENCE, "the rules to be back", || {
            now = shape(&rules());
            (now == whole).then_some(())
        })
        .unwrap_or_else(|error| {
            panic!("{error} after {command:?}: {now:#?}, not {whole:#?}\n{}", appliance.log())
        });
        println!("{command:?}: back after {:?} at most", began.elapsed());
        streams.iter().for_each(|stream| appliance.wait_more(stream));
    }
    for passage in streams.map(|stream| stream.stop().unwrap()) {
        println!("{passage:?}");
        // A worker that couldn't beat just while the table was written anew can't know that.
        let excused = held_up() > held_up_before;
        assert!(passage.doubled == 0 || excused, "{passage:?}\n{}", appliance.log());
        // Undone for good it would be out until the end; the sender's own pauses on a busy machine count too.
        assert!(passage.longest_outage() < PATIENCE, "{passage:?}");
    }
    let closed = appliance.stream(1, NET);
    appliance.kill();
    let wire = appliance.stream(0, NET);
    appliance.wait_more(&wire);
    let before = closed.received();
    appliance.wait_more(&wire);
    assert_eq!(closed.received(), before, "the closed port is open");
}

#[test]
fn links_that_went_and_came_back_are_a_wire_again() {
    if !in_private_network("mend::links_that_went_and_came_back_are_a_wire_again") {
        return;
    }
    let mut appliance = Appliance::new();
    appliance.start();
    appliance.wait_running();
    let streams = appliance.both_ways(0);
    appliance.gateway.ip("link set up0 down").unwrap();
    wait::until(PATIENCE, "the ports to show that the uplink is down", || {
        let link = appliance.hosts[0].ip("link show eth0").ok()?;
        (!link.contains("LOWER_UP")).then_some(())
    })
    .unwrap();
    appliance.gateway.ip("link set up0 up").unwrap();
    streams.iter().for_each(|stream| appliance.wait_more(stream));
    for passage in streams.map(|stream| stream.stop().unwrap()) {
        assert_eq!(passage.doubled, 0, "{passage:?}");
    }

    // Plugged out and in: interfaces with other numbers.
    for (interface, host) in [("port0", 0), ("up0", NET)] {
        appliance.gateway.ip(&format!("link delete {interface}")).unwrap();
        let mac = MACS[host].map(|byte| format!("{byte:02x}")).join(":");
        topology::ip(&format!(
            "link add name {interface} netns gateway type veth peer name eth0 address {mac} netns {}",
            appliance.hosts[host].name()
        ))
        .unwrap();
        appliance.hosts[host].ip("link set eth0 up").unwrap();
    }
    appliance.gateway.address("up0", GATEWAY, 24).unwrap();
    let streams = [appliance.stream(0, NET), appliance.stream(NET, 0)];
    streams.iter().for_each(|stream| appliance.wait_more(stream));
    for interface in ["port0", "up0"] {
        wait::until(PATIENCE, "the interface to hear every frame", || {
            let link = appliance.gateway.ip(&format!("link show {interface}")).ok()?;
            link.contains("PROMISC").then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {interface}\n{}", appliance.log()));
    }
    appliance.kill();
    streams.iter().for_each(|stream| appliance.wait_more(stream));
    for passage in streams.map(|stream| stream.stop().unwrap()) {
        assert_eq!(passage.doubled, 0, "{passage:?}");
    }
    let link = appliance.gateway.ip("link show up0").unwrap();
    assert!(link.contains("PROMISC"), "a dead agent's uplink hears its own frames only: {link}");
}

#[test]
fn an_agent_whose_beat_fails_leaves_the_wire_and_takes_it_back() {
    if !in_private_network("mend::an_agent_whose_beat_fails_leaves_the_wire_and_takes_it_back") {
        return;
    }
    let mut appliance = Appliance::new();
    appliance.start();
    appliance.wait_running();
    let streams = appliance.both_ways(0);
    for round in 1..=2 {
        appliance.gateway.ip("link set lo down").unwrap();
        let logged = |what: &str| {
            wait::until(PATIENCE, what, || {
                (appliance.log().matches(what).count() >= round).then_some(())
            })
            .unwrap_or_else(|error| panic!("{error}\n{}", appliance.log()));
        };
        logged("the beat can't be sent");
        // Longer than the last beat lasts.
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(1) {
            streams.iter().for_each(|stream| appliance.wait_more(stream));
        }
        appliance.gateway.ip("link set lo up").unwrap();
        logged("the kernel forwarded for it");
        streams.iter().for_each(|stream| appliance.wait_more(stream));
    }
    for passage in streams.map(|stream| stream.stop().unwrap()) {
        println!("{passage:?}");
        assert_eq!(passage.doubled, 0, "{passage:?}\n{}", appliance.log());
    }
}
