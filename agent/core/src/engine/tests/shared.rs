//! An address that two devices share, as a cluster's members do.

use super::*;
use crate::wire::arp::{self, ArpPacket, Operation, parse_arp};

const ONE: PortId = PortId::device(0);
const TWO: PortId = PortId::device(1);
const VIRTUAL: [u8; 4] = [10, 20, 1, 50];
const CAMPUS: [u8; 4] = [10, 20, 9, 5];
const ROUTER: ([u8; 4], MacAddr) = ([10, 20, 1, 1], MacAddr([0, 0x1b, 0x21, 0, 0, 0x77]));

/// CT on port1 and MRI on port2, both listed for the virtual address beside their own.
fn pair(mode: Mode) -> Arc<View> {
    let mut pair = Arc::unwrap_or_clone(view([mode, mode], &["tcp/1-65535"]));
    for device in &mut pair.intent.devices {
        device.member.addresses.push(std::net::Ipv4Addr::from(VIRTUAL).into());
    }
    let mut second = pair.intent.rules.last().unwrap().clone();
    second.id = RuleId::of("mri-campus");
    second.from = Endpoint::Member(MemberId::from_bytes([11; 16]));
    pair.intent.rules.push(second);
    Arc::new(pair)
}

fn cluster(mode: Mode, now: Instant) -> Engine {
    let mut engine = engine(Limits::default(), now);
    engine.apply(pair(mode), now);
    // Each has asked for its router, and was answered.
    for (port, last) in [(ONE, 10), (TWO, 11)] {
        let own = [10, 20, 1, last];
        let asks = arp::request(mac(last), own.into(), ROUTER.0.into());
        let _ = send(&mut engine, port, &asks, now);
        let answer = ArpPacket {
            operation: Operation::Reply,
            sender_mac: ROUTER.1,
            sender: ROUTER.0.into(),
            target_mac: mac(last),
            target: own.into(),
        };
        let _ = send(&mut engine, PortId::UPLINK, &answer.to_frame(mac(last), ROUTER.1), now);
    }
    engine
}

fn send(engine: &mut Engine, port: PortId, bytes: &[u8], now: Instant) -> Kept {
    feed(engine, port, VnetHeader::default(), bytes, now)
}

fn announce(engine: &mut Engine, port: PortId, last: u8, now: Instant) -> Kept {
    let bytes = arp::request(mac(last), VIRTUAL.into(), VIRTUAL.into());
    send(engine, port, &bytes, now)
}

/// Whether a device gets a packet out with the virtual address.
fn uses(engine: &mut Engine, port: PortId, last: u8, now: Instant) -> bool {
    let packet = ipv4(VIRTUAL, CAMPUS, 6, &tcp(40_000, 104, 2, &[]));
    !send(engine, port, &frame(ROUTER.1, mac(last), &packet), now).frames.is_empty()
}

/// Who the gateway says has the virtual address, when the router asks.
fn answers(engine: &mut Engine, now: Instant) -> Vec<MacAddr> {
    let asks = arp::request(ROUTER.1, ROUTER.0.into(), VIRTUAL.into());
    let out = send(engine, PortId::UPLINK, &asks, now);
    out.frames
        .iter()
        .filter(|(port, ..)| port.is_uplink())
        .map(|(_, _, bytes)| parse_arp(&bytes[14..]).unwrap().sender_mac)
        .collect()
}

#[test]
fn a_shared_address_follows_whoever_of_the_listed_announces_it() {
    let mut now = start();
    let mut engine = cluster(Mode::Enforce, now);
    let _ = announce(&mut engine, ONE, 10, now);
    assert!(uses(&mut engine, ONE, 10, now));
    assert!(!uses(&mut engine, TWO, 11, now), "two can't use it at once");
    assert_eq!(answers(&mut engine, now), [mac(10)], "one answer, not two");

    now += Duration::from_secs(2);
    let out = announce(&mut engine, TWO, 11, now);
    let told: Vec<_> = out.frames.iter().filter(|(port, ..)| port.is_uplink()).collect();
    assert_eq!(told.len(), 1, "the router is told, and nobody else: {out:?}");
    assert_eq!(told[0].2[..6], ROUTER.1.0);
    let news = parse_arp(&told[0].2[14..]).unwrap();
    assert_eq!((news.sender_mac, news.sender), (mac(11), VIRTUAL.into()));
    assert!(uses(&mut engine, TWO, 11, now) && !uses(&mut engine, ONE, 10, now));
    assert_eq!(answers(&mut engine, now), [mac(11)]);

    // It stays where it is over a new view, and for a moment whatever the other says.
    engine.apply(pair(Mode::Enforce), now);
    assert_eq!(answers(&mut engine, now), [mac(11)]);
    let _ = announce(&mut engine, ONE, 10, now);
    assert_eq!(answers(&mut engine, now), [mac(11)], "no flapping");
    now += Duration::from_secs(2);
    let _ = announce(&mut engine, ONE, 10, now);
    assert_eq!(answers(&mut engine, now), [mac(10)]);
}

#[test]
fn a_holder_that_fell_silent_is_followed_by_whoever_uses_the_address() {
    let mut now = start();
    let mut engine = cluster(Mode::Enforce, now);
    assert!(uses(&mut engine, ONE, 10, now) && !uses(&mut engine, TWO, 11, now));
    now += Duration::from_secs(11);
    assert!(uses(&mut engine, TWO, 11, now), "{:#?}", engine.status(now));
    assert_eq!(answers(&mut engine, now), [mac(11)]);
}

#[test]
fn nobody_who_is_not_listed_takes_a_shared_address() {
    let now = start();
    for mode in [Mode::Protect, Mode::Enforce] {
        let mut engine = engine(Limits::default(), now);
        let mut with_third = Arc::unwrap_or_clone(pair(mode));
        let mut third = with_third.intent.devices[1].clone();
        third.member = member(12, OWN, "10.20.1.12/32", mode);
        with_third.intent.devices.push(third);
        engine.apply(Arc::new(with_third), now);
        let _ = announce(&mut engine, ONE, 10, now);
        let out = announce(&mut engine, TWO, 12, now);
        assert!(out.frames.is_empty(), "{out:?}");
        assert!(!uses(&mut engine, TWO, 12, now));
        assert!(uses(&mut engine, ONE, 10, now));
        let claim = arp::request(mac(0x66), VIRTUAL.into(), VIRTUAL.into());
        let _ = send(&mut engine, PortId::UPLINK, &claim, now);
        assert!(uses(&mut engine, ONE, 10, now), "from the campus neither");
        let conflicts = engine.status(now).alarms;
        assert!(conflicts.len() >= 2, "{conflicts:#?}");
    }
}

#[test]
fn neighbours_reach_the_holder_by_the_shared_address() {
    let mut now = start();
    let mut engine = engine(Limits::default(), now);
    let mut with_third = Arc::unwrap_or_clone(pair(Mode::Enforce));
    let mut third = with_third.intent.devices[1].clone();
    third.member = member(12, OWN, "10.20.1.12/32", Mode::Enforce);
    third.port = name("port2");
    with_third.intent.devices[1].port = name("port1");
    with_third.intent.devices.push(third);
    let to_both = |last: u8, from: u8| Rule {
        id: RuleId::of(&format!("to-{last}")),
        from: Endpoint::Member(MemberId::from_bytes([from; 16])),
        to: Endpoint::Member(MemberId::from_bytes([last; 16])),
        ..with_third.intent.rules[0].clone()
    };
    let more = [to_both(10, 12), to_both(11, 12)];
    with_third.intent.rules.extend(more);
    engine.apply(Arc::new(with_third), now);
    for last in [10, 11, 10] {
        now += Duration::from_secs(2);
        let _ = announce(&mut engine, ONE, last, now);
        let packet = ipv4([10, 20, 1, 12], VIRTUAL, 6, &tcp(40_000, 104, 2, &[]));
        // By way of the router's address: the gateway knows who has it.
        let out = send(&mut engine, TWO, &frame(ROUTER.1, mac(12), &packet), now);
        assert_eq!(out.frames.len(), 1, "{out:?}, {:#?}", engine.status(now));
        assert_eq!((out.frames[0].0, &out.frames[0].2[..6]), (ONE, &mac(last).0[..]));
    }
}

/// The Ethernet address that goes with the virtual address (VRRP).
const SHARED: MacAddr = MacAddr([0, 0, 0x5e, 0, 1, 7]);

/// As [`pair`], with the virtual address as a device of its own that has the shared Ethernet address, on port1.
fn with_shared_mac(mode: Mode) -> Arc<View> {
    let mut view = Arc::unwrap_or_clone(pair(mode));
    let mut service = view.intent.devices[0].clone();
    service.member = member(12, OWN, "10.20.1.50/32", mode);
    service.member.mac = SHARED;
    view.intent.devices.push(service);
    let mut opened = view.intent.rules.last().unwrap().clone();
    opened.id = RuleId::of("service-campus");
    opened.from = Endpoint::Member(MemberId::from_bytes([12; 16]));
    view.intent.rules.push(opened);
    Arc::new(view)
}

/// Whether a packet gets out that comes from the virtual address with the shared Ethernet address.
fn serves(engine: &mut Engine, port: PortId, now: Instant) -> bool {
    let gratuitous = arp::request(SHARED, VIRTUAL.into(), VIRTUAL.into());
    let _ = send(engine, port, &gratuitous, now);
    let packet = ipv4(VIRTUAL, CAMPUS, 6, &tcp(40_000, 104, 2, &[]));
    !send(engine, port, &frame(ROUTER.1, SHARED, &packet), now).frames.is_empty()
}

/// Where an answer from the campus goes.
fn answered_at(engine: &mut Engine, now: Instant) -> Vec<PortId> {
    let packet = ipv4(CAMPUS, VIRTUAL, 6, &tcp(104, 40_000, 0x12, &[]));
    let out = send(engine, PortId::UPLINK, &frame(SHARED, ROUTER.1, &packet), now);
    out.frames.iter().map(|(port, ..)| *port).collect()
}

#[test]
fn a_shared_ethernet_address_moves_between_the_ports_of_its_listed_holders() {
    for mode in [Mode::Protect, Mode::Enforce] {
        let mut now = start();
        let mut engine = cluster(mode, now);
        engine.apply(with_shared_mac(mode), now);
        let asks = arp::request(SHARED, VIRTUAL.into(), ROUTER.0.into());
        let _ = send(&mut engine, ONE, &asks, now);
        let answer = ArpPacket {
            operation: Operation::Reply,
            sender_mac: ROUTER.1,
            sender: ROUTER.0.into(),
            target_mac: SHARED,
            target: VIRTUAL.into(),
        };
        let _ = send(&mut engine, PortId::UPLINK, &answer.to_frame(SHARED, ROUTER.1), now);
        for port in [ONE, TWO, ONE, TWO] {
            now += Duration::from_secs(2);
            assert!(serves(&mut engine, port, now), "{mode} at {port}: {:#?}", engine.status(now));
            assert_eq!(answered_at(&mut engine, now), [port], "{mode}");
            assert_eq!(
                answers(&mut engine, now),
                if mode == Mode::Enforce { vec![SHARED] } else { vec![] }
            );
        }
        assert_eq!(engine.status(now).alarms, []);
        // It stays where it is over a new view, and for a moment whatever the other says.
        engine.apply(with_shared_mac(mode), now);
        assert_eq!(answered_at(&mut engine, now), [TWO]);
        assert!(!serves(&mut engine, ONE, now), "no flapping");
        assert_eq!(answered_at(&mut engine, now), [TWO]);
    }
}

#[test]
fn a_shared_ethernet_address_goes_to_nobody_who_is_not_listed() {
    type Change = fn(&mut View);
    let changes: [(&str, Change); 3] = [
        ("the other isn't listed", |view| {
            view.intent.devices[1].member.addresses.truncate(1);
        }),
        ("the other is treated otherwise", |view| {
            view.intent.devices[1].member.mode = Mode::Protect;
        }),
        ("an Ethernet address of the device's own", |view| {
            view.intent.devices[2].member.mac = mac(12);
        }),
    ];
    for (what, change) in changes {
        let mut now = start();
        let mut engine = cluster(Mode::Enforce, now);
        let mut view = Arc::unwrap_or_clone(with_shared_mac(Mode::Enforce));
        change(&mut view);
        let source = view.intent.devices[2].member.mac;
        engine.apply(Arc::new(view), now);
        now += Duration::from_secs(2);
        let packet = ipv4(VIRTUAL, CAMPUS, 6, &tcp(40_000, 104, 2, &[]));
        let out = send(&mut engine, TWO, &frame(ROUTER.1, source, &packet), now);
        assert!(out.frames.is_empty(), "{what}: {out:?}");
        let alarms = engine.status(now).alarms;
        assert!(alarms.iter().any(|alarm| alarm.mac == source), "{what}: {alarms:#?}");
    }
}
