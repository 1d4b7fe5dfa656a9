//! A pair changes its path: no word of a connection that is allowed before and after is lost.

use std::time::Duration;

use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_proto::verdict::{DropReason, Verdict};
use anteroom_sim::hospital::*;
use anteroom_sim::model::Way;
use anteroom_sim::packet::{self, TcpFlags};
use anteroom_sim::story::*;
use anteroom_sim::world::World;

const DICOM: (Protocol, u16) = (Protocol::Tcp, 104);

/// Opens a TCP connection and keeps talking on it through each of `steps`; every word must arrive, both ways.
fn survives(world: &mut World, from: usize, to: usize, port: u16, steps: &[(usize, Mode)]) {
    let target = (world.hosts[to].address, port);
    let own = 45_555;
    world.clear_campus();
    world.act(from, |host, out| host.connect(target, own, b"hello", out));
    world.run(Duration::from_secs(1));
    let mut word = 0_u16;
    let mut talk = |world: &mut World| {
        for _ in 0..8 {
            world.act(from, |host, out| {
                let flags = TcpFlags::ACK | TcpFlags::PSH;
                let bytes = packet::tcp((host.address, own), target, flags, &word.to_be_bytes());
                host.send(bytes, out);
            });
            world.run(Duration::from_millis(5));
            let got = |host: usize| {
                world.hosts[host].inbox.iter().any(|got| got.payload == word.to_be_bytes())
            };
            let (there, back) = (got(to), got(from));
            let now = world.now;
            let drops: Vec<_> = (0..3).map(|g| world.engine(g).status(now).drops).collect();
            assert!(there && back, "word {word}: there {there}, back {back}: {drops:#?}");
            word += 1;
        }
    };
    for (device, mode) in steps {
        world.plan.mode(*device, *mode);
        for gateway in [0, 2, 1] {
            talk(world);
            world.apply(gateway);
            talk(world);
        }
        world.run(Duration::from_millis(500));
        talk(world);
    }
}

#[test]
fn a_connection_survives_every_change_of_mode() {
    use Mode::{Enforce, Observe, Protect};
    // The gateway of the one that opens is told first, or last.
    for (first, second) in [(CT, PACS), (PACS, CT)] {
        let mut world = hospital(7);
        world.apply_all();
        let steps = [(first, Protect), (second, Protect), (first, Enforce), (second, Enforce)];
        survives(&mut world, CT, PACS, 104, &steps);
        world.run(Duration::from_secs(1));
        let steps = [(first, Protect), (second, Protect), (first, Observe), (second, Observe)];
        survives(&mut world, CT, PACS, 104, &steps);
    }
}

#[test]
fn a_new_flow_needs_no_answer_from_the_other_end_to_a_mode_that_keeps_its_path() {
    let mut world = hospital(20);
    all(&mut world, Mode::Protect);
    world.plan.mode(CT, Mode::Enforce);
    world.apply(0);
    let outcome = probe(&mut world, CT, PACS, DICOM, 77, 1);
    assert_eq!(outcome, Outcome::of(Way::Tunnel));
}

#[test]
fn an_enforced_device_waits_for_the_other_end_to_open_its_path() {
    let mut world = hospital(21);
    world.plan.mode(CT, Mode::Enforce);
    world.apply_all();
    expect(&mut world, CT, PACS, DICOM, Way::None);
    world.plan.mode(PACS, Mode::Enforce);
    world.apply(0);
    let outcome = probe(&mut world, CT, PACS, DICOM, 78, 1);
    assert_eq!(outcome, Outcome::of(Way::None));
    let why = question(&world, CT, PACS, "tcp/104");
    let now = world.now;
    let verdict = world.engine(0).explain(&why, now).verdict;
    assert_eq!(verdict, Verdict::Drop(DropReason::TunnelNotReady));
    world.apply(2);
    world.run(Duration::from_millis(50));
    let outcome = probe(&mut world, CT, PACS, DICOM, 79, 1);
    assert_eq!(outcome, Outcome::of(Way::Tunnel));
}
