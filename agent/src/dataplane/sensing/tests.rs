use std::time::{Duration, Instant};

use anteroom_proto::inventory::HintKind;
use anteroom_sensor::Way;

use super::*;

const DEVICE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A datagram of the device's, or to it, with Ethernet and IPv4 around it.
fn datagram(from: [u8; 6], to: [u8; 6], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut frame = [&to[..], &from[..], &[8, 0, 0x45, 0]].concat();
    frame.extend((28 + length).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, from[5], 10, 0, 0, to[5]]);
    frame.extend([ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat());
    frame.extend((8 + length).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// What is found of a device, once that is so much.
fn found(findings: &Findings, wanted: usize) -> Vec<(usize, HintKind, String)> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut found = Vec::new();
    while found.len() < wanted {
        assert!(Instant::now() < deadline, "only {found:?}; {:?}", findings.status());
        std::thread::sleep(Duration::from_millis(20));
        for seen in findings.take(10).0 {
            found.extend(seen.hints.into_iter().map(|hint| (seen.port, hint.kind, hint.value)));
        }
    }
    found
}

#[test]
fn what_devices_show_is_found_at_their_ports_and_nobody_elses() {
    let (mut tap, findings) = start(5, 5).unwrap();
    tap.tick(Instant::now());
    let question = b"\x01\x02\x01\0\0\x01\0\0\0\0\0\0\x03ntp\x04ward\0\0\x01\0\x01";
    tap.frame(
        Way { port: 3, arrived: true },
        None,
        &[&datagram(DEVICE, SERVER, (5000, 53), question)],
    );
    // The server behind the uplink answers, in two parts as frames out of tunnels have; whoever it is, it is no device here.
    let answer = datagram(SERVER, DEVICE, (53, 5000), question);
    let (header, packet) = answer.split_at(14);
    tap.frame(Way { port: 3, arrived: false }, None, &[header, packet]);
    // Another port's machine says that it is the device.
    let lie = b"\x01\x02\x01\0\0\x01\0\0\0\0\0\0\x05bogus\0\0\x01\0\x01";
    tap.frame(Way { port: 4, arrived: true }, None, &[&datagram(DEVICE, SERVER, (5001, 53), lie)]);
    // And a last one, behind which nothing is under way any more.
    let last = b"\x01\x02\x01\0\0\x01\0\0\0\0\0\0\x04last\0\0\x01\0\x01";
    tap.frame(Way { port: 3, arrived: true }, None, &[&datagram(DEVICE, SERVER, (5002, 53), last)]);
    let mut found = found(&findings, 2);
    found.sort();
    let query = |name: &str| (3, HintKind::DnsQuery, name.to_owned());
    assert_eq!(found, [query("last"), query("ntp.ward")]);
    assert_eq!(findings.status().read, 4);
}

#[test]
fn a_full_ring_passes_frames_over_and_stops_nobody() {
    // Nobody empties this ring.
    let (producer, _ring) = rtrb::RingBuffer::new(2);
    let shared = Arc::new(Shared::new(1));
    let mut tap = Tap::new(5, producer, shared.clone());
    for port in 0..10 {
        tap.frame(
            Way { port: 0, arrived: true },
            None,
            &[&datagram(DEVICE, SERVER, (port, 53), b"x")],
        );
    }
    assert_eq!(Findings(shared).status().passed_over, 8);
}
