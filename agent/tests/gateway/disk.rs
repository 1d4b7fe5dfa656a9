//! A disk that is full or read-only keeps no gateway from its view, nor from its wire.

use std::io::Write;
use std::process::Command;

use anteroom_lab::namespace::in_private_network;
use anteroom_proto::intent::OnFailure;
use anteroom_proto::mode::Mode;

use crate::appliance::{Appliance, MACS, NET};
use crate::bench::frame;

fn mount(arguments: &[&str], place: &std::path::Path) {
    let status = Command::new("mount").args(arguments).arg(place).status().expect("mount runs");
    assert!(status.success(), "mount {arguments:?}: {status}");
}

/// Starts the agent, and checks that an observed device is on a wire and an enforced one isn't.
fn works(appliance: &mut Appliance, what: &str) {
    appliance.start();
    appliance.wait_running();
    let log = appliance.log();
    assert!(log.contains("the view on disk is in force"), "{what}:\n{log}");
    let enforced = appliance.stream_of(0, NET, &frame([0xff; 6], MACS[0], 0x88b5, &[]));
    let streams = appliance.both_ways(1);
    appliance.kill();
    streams.iter().for_each(|stream| appliance.wait_more(stream));
    assert_eq!(enforced.stop().unwrap().received, 0, "{what}");
    for stream in streams {
        assert_eq!(stream.stop().unwrap().doubled, 0, "{what}");
    }
}

/// What an earlier agent has left on disk: `agent/src/state/tests/earlier.rs` says how it came to be.
const EARLIER: [(&str, &[u8]); 7] = [
    ("authority", include_bytes!("../../src/state/tests/earlier/authority")),
    ("enrolment", include_bytes!("../../src/state/tests/earlier/enrolment")),
    ("floor", include_bytes!("../../src/state/tests/earlier/floor")),
    ("identity", include_bytes!("../../src/state/tests/earlier/identity")),
    ("learned", include_bytes!("../../src/state/tests/earlier/learned")),
    ("tunnel-keys", include_bytes!("../../src/state/tests/earlier/tunnel-keys")),
    ("view", include_bytes!("../../src/state/tests/earlier/view")),
];

#[test]
fn an_agent_in_the_place_of_an_earlier_one_goes_on_with_its_view() {
    if !in_private_network("disk::an_agent_in_the_place_of_an_earlier_one_goes_on_with_its_view") {
        return;
    }
    let mut appliance = Appliance::new();
    let state = appliance.state_dir();
    for (name, bytes) in EARLIER {
        std::fs::write(state.path().join(name), bytes).unwrap();
    }
    state.mark_enforced().unwrap();
    // Its second port has no device: there the view is a wire, and no view at all would be a closed port.
    appliance.start();
    appliance.wait_running();
    let log = appliance.log();
    assert!(log.contains("the view on disk is in force"), "{log}");
    for stream in appliance.both_ways(1) {
        assert_eq!(stream.stop().unwrap().doubled, 0);
    }
    appliance.kill();
}

#[test]
fn a_full_or_read_only_disk_keeps_no_gateway_from_its_view() {
    if !in_private_network("disk::a_full_or_read_only_disk_keeps_no_gateway_from_its_view") {
        return;
    }
    let mut appliance = Appliance::new();
    let place = appliance.directory.path().join("state");
    std::fs::create_dir(&place).unwrap();
    mount(&["-t", "tmpfs", "-o", "size=256k,mode=0700", "state"], &place);
    appliance.hold(&[(Mode::Enforce, OnFailure::Default), (Mode::Observe, OnFailure::Default)]);
    // The first start makes what is made once.
    works(&mut appliance, "a disk with room");

    let mut filler = std::fs::File::create(place.join("filler")).unwrap();
    let full = loop {
        if let Err(error) = filler.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    drop(filler);
    works(&mut appliance, "a full disk");

    for name in ["lock", "enrolment-lock"] {
        std::fs::remove_file(place.join(name)).ok();
    }
    mount(&["-o", "remount,ro"], &place);
    works(&mut appliance, "a read-only disk");
}
