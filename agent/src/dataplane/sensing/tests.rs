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

/// A question of DNS for a name of one letter.
fn question(letter: u8) -> Vec<u8> {
    [b"\x01\x02\x01\0\0\x01\0\0\0\0\0\0\x01".as_slice(), &[letter], b"\0\0\x01\0\x01"].concat()
}

#[test]
fn a_full_ring_passes_frames_over_stops_nobody_and_leaves_other_ports_theirs() {
    // Nobody empties these rings.
    let (producers, rings): (Vec<_>, Vec<_>) = (0..2).map(|_| rtrb::RingBuffer::new(2)).unzip();
    let shared = Arc::new(Shared::new(2));
    let mut tap = Tap::new(5, producers, shared.clone());
    let mut send = |port, from| {
        tap.frame(
            Way { port, arrived: true },
            None,
            &[&datagram(DEVICE, SERVER, (from, 53), b"x")],
        );
    };
    (0..10).for_each(|from| send(0, from));
    send(1, 1);
    assert_eq!(rings.iter().map(rtrb::Consumer::slots).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(Findings(shared).status().passed_over, 8);
}

/// How often a thread of this process has begun to wait.
fn waits(name: &str) -> u64 {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        // A thread of another test may end meanwhile.
        let Ok(comm) = std::fs::read_to_string(path.join("comm")) else { continue };
        if comm.trim() == name {
            let status = std::fs::read_to_string(path.join("status")).unwrap();
            let count = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            return count.unwrap().trim().parse().unwrap();
        }
    }
    panic!("no thread {name}")
}

#[test]
fn the_thread_sleeps_while_there_is_nothing_and_wakes_for_a_frame() {
    const NAME: &str = "sensor-idles";
    let (producer, ring) = rtrb::RingBuffer::new(8);
    let shared = Arc::new(Shared::new(1));
    let (mut tap, findings) = (Tap::new(5, vec![producer], shared.clone()), Findings(shared));
    let shared = findings.0.clone();
    let thread = std::thread::Builder::new().name(NAME.into());
    let thread = thread.spawn(move || thread::run(vec![ring], &shared)).unwrap();
    for letter in b'a'..b'd' {
        let frame = datagram(DEVICE, SERVER, (5000 + u16::from(letter), 53), &question(letter));
        tap.frame(Way { port: 0, arrived: true }, None, &[&frame]);
        let name = char::from(letter).to_string();
        assert_eq!(found(&findings, 1), [(0, HintKind::DnsQuery, name)]);
        // A while in which it didn't wake once: time enough for eight turns.
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let before = waits(NAME);
            std::thread::sleep(Duration::from_secs(2));
            if waits(NAME) == before {
                break;
            }
            assert!(Instant::now() < deadline, "it wakes though there is nothing");
        }
    }
    drop(tap);
    thread.join().unwrap();
}

#[tokio::test]
async fn whoever_asks_has_all_read_that_was_seen_before_and_needs_no_patience_at_the_end() {
    let (mut tap, findings) = start(3, 5).unwrap();
    for (port, letter) in (0..3).zip(b'a'..) {
        // One device at each port.
        let device = [2, 0, 0, 0, 1, letter];
        let frame = datagram(device, SERVER, (5000, 53), &question(letter));
        tap.frame(Way { port, arrived: true }, None, &[&frame]);
        findings.settled(Duration::from_secs(60)).await;
        let seen = findings.take(10).0;
        assert_eq!(seen.len(), 1, "{seen:?}, {:?}", findings.status());
        assert_eq!((seen[0].port, seen[0].hints[0].value.as_bytes()), (port, &[letter][..]));
    }
    drop(tap);
    // The thread sees that it is over, and from then on nobody waits for anything.
    while findings.0.turns.ask().is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    findings.settled(Duration::MAX).await;
}
