//! Devices on ports that this gateway doesn't have.

use anteroom_proto::alarm::AlarmKind;

use super::*;

const ONE: PortId = PortId::device(0);
const TWO: PortId = PortId::device(1);
const CT: [u8; 4] = [10, 20, 1, 10];
const MRI: [u8; 4] = [10, 20, 1, 11];
const CAMPUS: [u8; 4] = [10, 20, 9, 5];
const ROUTER: MacAddr = MacAddr([0, 0x1b, 0x21, 0, 0, 0x77]);

/// CT is on a port that was renamed, MRI on port2, observed.
fn renamed(mode: Mode, on_failure: OnFailure) -> Arc<View> {
    let mut view = Arc::unwrap_or_clone(view([mode, Mode::Observe], &["tcp/104"]));
    view.intent.devices[0].port = name("port-9");
    view.intent.devices[0].on_failure = on_failure;
    Arc::new(view)
}

fn send(engine: &mut Engine, port: PortId, bytes: &[u8], now: Instant) -> Vec<PortId> {
    let out = feed(engine, port, VnetHeader::default(), bytes, now);
    assert!(out.datagrams.is_empty(), "{out:?}");
    out.frames.into_iter().map(|(port, ..)| port).collect()
}

fn syn(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    ipv4(from, to, 6, &tcp(40_000, 104, 2, &[]))
}

#[test]
fn an_enforced_device_without_its_port_is_held_wherever_it_is() {
    let now = start();
    let kinds = [
        (Mode::Enforce, OnFailure::Default),
        (Mode::Unrecognised, OnFailure::Default),
        (Mode::Protect, OnFailure::Closed),
    ];
    for (mode, on_failure) in kinds {
        let mut engine = engine(Limits::default(), now);
        engine.apply(renamed(mode, on_failure), now);
        let question = crate::wire::arp::request(mac(10), CT.into(), [10, 20, 1, 1].into());
        let other = [&ethernet::header(MacAddr::BROADCAST, mac(10), 0x88b5)[..], &[7; 50]].concat();
        let packet = frame(ROUTER, mac(10), &syn(CT, CAMPUS));
        for port in [ONE, TWO] {
            for bytes in [&question[..], &other, &packet] {
                assert_eq!(send(&mut engine, port, bytes, now), [], "{mode}: from it on {port}");
            }
        }
        let answer = ipv4(CAMPUS, CT, 6, &tcp(104, 40_000, 0x12, &[]));
        let asked =
            crate::wire::arp::reply(&crate::wire::arp::parse_arp(&question[14..]).unwrap(), ROUTER);
        for (port, bytes) in [
            (PortId::UPLINK, frame(mac(10), ROUTER, &answer)),
            (PortId::UPLINK, asked.to_vec()),
            (TWO, frame(mac(10), mac(11), &syn(MRI, CT))),
        ] {
            assert_eq!(send(&mut engine, port, &bytes, now), [], "{mode}: to it from {port}");
        }
        // Nobody else passes for it, and nobody uses the port that may be its.
        let stolen = frame(ROUTER, mac(11), &syn(CT, CAMPUS));
        assert_eq!(send(&mut engine, TWO, &stolen, now), [], "{mode}: its address");
        let stranger = frame(ROUTER, mac(0x55), &syn([10, 20, 1, 60], CAMPUS));
        assert_eq!(send(&mut engine, ONE, &stranger, now), [], "{mode}: a port without a name");
        let outside = [&ethernet::header(MacAddr::BROADCAST, ROUTER, 0x88b5)[..], &[7; 50]];
        assert_eq!(send(&mut engine, PortId::UPLINK, &outside.concat(), now), [TWO], "{mode}");
        let raised = engine.status(now).alarms;
        let member = Some(MemberId::from_bytes([10; 16]));
        assert!(
            raised.iter().any(|alarm| alarm.kind == AlarmKind::Moved && alarm.member == member),
            "{raised:#?}"
        );
        // MRI is served all the same, and so is CT once its port is there.
        let bytes = frame(ROUTER, mac(11), &syn(MRI, CAMPUS));
        assert_eq!(send(&mut engine, TWO, &bytes, now), [PortId::UPLINK], "{mode}");
        engine.apply(view([Mode::Enforce, Mode::Observe], &["tcp/104"]), now);
        assert_eq!(send(&mut engine, ONE, &packet, now), [PortId::UPLINK], "{mode}");
    }
}

#[test]
fn a_device_that_is_on_a_wire_when_all_fails_is_on_one_without_its_port() {
    let now = start();
    for (mode, on_failure) in [
        (Mode::Observe, OnFailure::Default),
        (Mode::Protect, OnFailure::Default),
        (Mode::Enforce, OnFailure::Wire),
    ] {
        let mut engine = engine(Limits::default(), now);
        engine.apply(renamed(mode, on_failure), now);
        let packet = frame(ROUTER, mac(10), &syn(CT, CAMPUS));
        assert!(send(&mut engine, ONE, &packet, now).contains(&PortId::UPLINK), "{mode}");
    }
}
