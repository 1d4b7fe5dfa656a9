//! Cables that join what the gateway keeps apart.

use anteroom_proto::alarm::AlarmKind;

use super::*;
use crate::wire::arp;

const ONE: PortId = PortId::device(0);
const TWO: PortId = PortId::device(1);
const ROUTER: MacAddr = MacAddr([0, 0x1b, 0x21, 0, 0, 0x77]);

/// Into which ports a frame comes that went out of one.
type Cable = dyn Fn(PortId) -> Vec<PortId>;

/// How many frames come in until nothing goes round any more. `cable` says where they go.
fn run(engine: &mut Engine, cable: &Cable, bytes: &[u8], now: Instant) -> usize {
    let mut under_way = vec![(ONE, bytes.to_vec())];
    let mut passed = 0;
    while let Some((port, bytes)) = under_way.pop() {
        passed += 1;
        assert!(passed < 1_500, "a storm: {:#?}", engine.status(now));
        for (out, _, sent) in feed(engine, port, VnetHeader::default(), &bytes, now).frames {
            under_way.extend(cable(out).into_iter().map(|at| (at, sent.clone())));
        }
    }
    passed
}

#[test]
fn a_loop_stops_what_goes_round_and_is_said_with_its_place() {
    let now = start();
    let joined_ports = |out: PortId| match out {
        ONE => vec![TWO],
        TWO => vec![ONE],
        _ => vec![],
    };
    let joined_to_uplink = |out: PortId| match out {
        TWO => vec![PortId::UPLINK],
        PortId::UPLINK => vec![TWO],
        _ => vec![],
    };
    let back_on_itself = |out: PortId| vec![out];
    let cables: [(&str, &Cable); 3] = [
        ("two ports", &joined_ports),
        ("a port and the uplink", &joined_to_uplink),
        ("an uplink that sends back what it gets", &back_on_itself),
    ];
    for (what, cable) in cables {
        let mut engine = engine(Limits::default(), now);
        let question = arp::request(mac(0x55), [10, 20, 1, 60].into(), [10, 20, 1, 1].into());
        let other =
            [&ethernet::header(MacAddr::BROADCAST, mac(0x55), 0x88b5)[..], &[7; 50]].concat();
        let unknown = [&ethernet::header(mac(0x44), mac(0x55), 0x88b5)[..], &[8; 50]].concat();
        for bytes in [&question[..], &other, &unknown] {
            let passed = run(&mut engine, cable, bytes, now);
            assert!(passed < 1_200, "{what}: {passed} frames of one");
        }
        let alarms = engine.status(now).alarms;
        assert!(alarms.iter().any(|alarm| alarm.kind == AlarmKind::Loop), "{what}: {alarms:#?}");
        assert!(engine.status(now).drops.get("looped").is_some_and(|count| *count > 0), "{what}");
        // Who is where is still known: the device is on its port.
        let answer = [&ethernet::header(mac(0x55), ROUTER, 0x88b5)[..], &[9; 50]].concat();
        let out = feed(&mut engine, PortId::UPLINK, VnetHeader::default(), &answer, now);
        assert!(out.frames.iter().any(|(port, ..)| *port == ONE), "{what}: {out:?}");
    }
}

#[test]
fn what_a_device_says_again_and_again_is_no_loop() {
    let question = arp::request(mac(0x55), [10, 20, 1, 60].into(), [10, 20, 1, 1].into()).to_vec();
    let constant = |to| [&ethernet::header(to, mac(0x55), 0x88b5)[..], &[7; 50]].concat();
    for (what, bytes) in [
        ("a broadcast", question),
        ("a heartbeat to a group", constant(MacAddr([1, 0, 0x5e, 0, 0, 9]))),
        ("frames for a silent host", constant(mac(0x44))),
    ] {
        for micros in [5_000, 1_000] {
            let mut now = start();
            let mut engine = engine(Limits::default(), now);
            for _ in 0..2_000 {
                now += Duration::from_micros(micros);
                let out = feed(&mut engine, ONE, VnetHeader::default(), &bytes, now);
                let passed = out.frames.len() == 2;
                assert!(passed, "{what} every {micros} us: {:#?}", engine.status(now));
            }
            assert!(engine.status(now).alarms.is_empty(), "{what} every {micros} us");
        }
    }
}

#[test]
fn two_swapped_cables_are_two_alarms_that_name_each_others_port() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Protect, Mode::Protect], &["tcp/104"]), now);
    for (port, from, address) in [(TWO, 10, [10, 20, 1, 10]), (ONE, 11, [10, 20, 1, 11])] {
        let packet = ipv4(address, [10, 20, 9, 5], 6, &tcp(40_000, 104, 2, &[]));
        let bytes = frame(ROUTER, mac(from), &packet);
        assert!(feed(&mut engine, port, VnetHeader::default(), &bytes, now).frames.is_empty());
    }
    let mut seen: Vec<_> = engine
        .report(now)
        .alarms
        .into_iter()
        .map(|alarm| (alarm.kind, alarm.member, alarm.port))
        .collect();
    seen.sort_by_key(|(.., port)| port.clone());
    let id = |last| Some(MemberId::from_bytes([last; 16]));
    assert_eq!(
        seen,
        [
            (AlarmKind::Moved, id(11), Some(name("port1"))),
            (AlarmKind::Moved, id(10), Some(name("port2")))
        ]
    );
}
