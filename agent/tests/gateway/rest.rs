//! A worker that needs no beat rests: while no port is a wire. Ports become a wire and cease to be one under traffic.

use std::sync::Arc;
use std::time::Duration;

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::stream::Stream;
use anteroom_lab::wait;
use anteroom_proto::intent::OnFailure;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;

use crate::bench::{Bench, PATIENCE, block_on, frame};
use crate::testkit::{self, Organisation};

const DEVICE_MAC: [u8; 6] = [0, 0, 0x5e, 0, 0x53, 0x10];
const BROADCAST: [u8; 6] = [0xff; 6];
const EVERY: Duration = Duration::from_millis(1);

/// How often it changes.
const CHANGES: u64 = 20;

#[test]
fn a_port_that_becomes_a_wire_loses_and_doubles_nothing() {
    if !in_private_network("rest::a_port_that_becomes_a_wire_loses_and_doubles_nothing") {
        return;
    }
    let bench = Bench::new(1500, "");
    let running = bench.start();
    let organisation = Organisation::new(&[testkit::nowhere()]);
    let apply = |sequence: u64, on_failure| {
        let mut intent = testkit::intent(testkit::GATEWAY, Mode::Observe);
        let device = intent.devices.first_mut().expect("a device");
        device.port = "port-1".parse().unwrap();
        device.member.mac = MacAddr(DEVICE_MAC);
        device.member.addresses = vec!["10.0.0.10/32".parse().unwrap()];
        device.on_failure = on_failure;
        let view = organisation.view_of(&intent, 1, sequence);
        let problems = block_on(running.handle.apply(Arc::new(organisation.verified(&view))));
        assert_eq!(problems.expect("the data plane runs"), [""; 0]);
    };
    apply(1, OnFailure::Closed);
    let stream = |from, to, source| {
        let headers = frame(BROADCAST, source, 0x88b5, &[]);
        Stream::start((from, "eth0"), (to, "eth0"), &headers, EVERY).unwrap()
    };
    let streams = [
        stream(&bench.device, &bench.network, DEVICE_MAC),
        stream(&bench.network, &bench.device, [0, 0, 0x5e, 0, 0x53, 0x99]),
    ];
    for change in 0..CHANGES {
        let on_failure = if change % 2 == 0 { OnFailure::Wire } else { OnFailure::Closed };
        apply(2 + change, on_failure);
        let before = streams.each_ref().map(Stream::received);
        // Each wiring lasts for longer than a beat does, so that a worker that rests where it mustn't shows.
        wait::until(PATIENCE, "frames to pass", || {
            streams.iter().zip(before).all(|(s, before)| s.received() > before + 300).then_some(())
        })
        .unwrap();
    }
    for stream in streams {
        let passage = stream.stop().unwrap();
        assert_eq!((passage.lost(), passage.doubled), (0, 0), "{passage:?}");
    }
}
