//! Port security: devices that pass for others, by every path that crosses the gateway.

use anteroom_proto::alarm::{Alarm, AlarmKind};

use super::*;
use crate::wire::arp::{ArpPacket, Operation};
use crate::wire::parse_ipv4;

pub(super) const ONE: PortId = PortId::device(0);
pub(super) const TWO: PortId = PortId::device(1);
pub(super) const CT: [u8; 4] = [10, 20, 1, 10];
pub(super) const MRI: [u8; 4] = [10, 20, 1, 11];
/// Behind another gateway, in enforce.
pub(super) const FAR: [u8; 4] = [10, 20, 4, 20];
pub(super) const ROUTER: [u8; 4] = [10, 20, 1, 1];
pub(super) const CAMPUS: [u8; 4] = [10, 20, 9, 5];
const GATEWAY: [u8; 4] = [10, 20, 1, 2];
pub(super) const ROUTER_MAC: MacAddr = MacAddr([0, 0x1b, 0x21, 0, 0, 0x77]);

/// An engine with CT on port1 and MRI on port2.
pub(super) fn with(modes: [Mode; 2], now: Instant) -> Engine {
    let mut engine = engine(Limits::default(), now);
    engine.apply(view(modes, &["tcp/1-65535", "udp/1-65535"]), now);
    engine
}

pub(super) fn send(engine: &mut Engine, port: PortId, bytes: &[u8], now: Instant) -> Kept {
    feed(engine, port, VnetHeader::default(), bytes, now)
}

pub(super) fn syn(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    ipv4(from, to, 6, &tcp(40_000, 104, 2, &[]))
}

pub(super) fn says(operation: Operation, sender: (MacAddr, [u8; 4]), target: [u8; 4]) -> ArpPacket {
    ArpPacket {
        operation,
        sender_mac: sender.0,
        sender: sender.1.into(),
        target_mac: MacAddr([0; 6]),
        target: target.into(),
    }
}

pub(super) fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat()
}

pub(super) fn alarms(engine: &Engine, now: Instant, kind: AlarmKind) -> Vec<Alarm> {
    engine.status(now).alarms.into_iter().filter(|alarm| alarm.kind == kind).collect()
}

pub(super) fn drops(engine: &Engine, now: Instant, reason: DropReason) -> u64 {
    engine.status(now).drops.get(reason.as_str()).copied().unwrap_or(0)
}

/// Every way in which a device can put a source address into a packet, towards everybody whom it could reach.
fn claims(mac: MacAddr, address: [u8; 4]) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (whom, to_mac, to) in [
        ("the campus", ROUTER_MAC, CAMPUS),
        ("a member elsewhere", super::mac(20), FAR),
        ("CT", super::mac(10), CT),
        ("MRI", super::mac(11), MRI),
        ("everybody", MacAddr::BROADCAST, [255; 4]),
    ] {
        let whole = syn(address, to);
        all.push((format!("a connection to {whom}"), frame(to_mac, mac, &whole)));
        let datagram = ipv4(address, to, 17, &udp(4_000, 4_000, b"x"));
        all.push((format!("a datagram to {whom}"), frame(to_mac, mac, &datagram)));
        let mut tiny = ipv4(address, to, 6, &tcp(40_000, 104, 2, &[])[..8]);
        tiny[6] = 0x20;
        tiny[10..12].fill(0);
        let sum = crate::checksum::checksum(&tiny[..20]);
        tiny[10..12].copy_from_slice(&sum.to_be_bytes());
        all.push((
            format!("a first fragment that is too short to {whom}"),
            frame(to_mac, mac, &tiny),
        ));
        let mut later = ipv4(address, to, 17, &[7; 64]);
        later[7] = 8;
        later[10..12].fill(0);
        let sum = crate::checksum::checksum(&later[..20]);
        later[10..12].copy_from_slice(&sum.to_be_bytes());
        all.push((format!("a later fragment to {whom}"), frame(to_mac, mac, &later)));
        let dhcp = ipv4(address, to, 17, &udp(68, 67, &[1; 300]));
        all.push((format!("a DHCP client's message to {whom}"), frame(to_mac, mac, &dhcp)));
        let mut piece = later.clone();
        piece[20..24].copy_from_slice(&[0, 68, 0, 67]);
        all.push((
            format!("a later fragment with DHCP's ports where its header would be to {whom}"),
            frame(to_mac, mac, &piece),
        ));
        let mut options = datagram.clone();
        options.splice(20..20, [0, 68, 0, 67]);
        options[0] = 0x46;
        let len = (options.len() as u16).to_be_bytes();
        options[2..4].copy_from_slice(&len);
        options[10..12].fill(0);
        let sum = crate::checksum::checksum(&options[..24]);
        options[10..12].copy_from_slice(&sum.to_be_bytes());
        all.push((
            format!("a datagram with options that look like DHCP's ports to {whom}"),
            frame(to_mac, mac, &options),
        ));
        for (tags, outer) in [("one tag", 1), ("two tags", 2), ("five tags", 5)] {
            let mut bytes = frame(to_mac, mac, &datagram);
            for _ in 0..outer {
                bytes = tagged(&bytes, 0xe000);
            }
            all.push((format!("a datagram with {tags} that name no VLAN to {whom}"), bytes));
        }
        let mut broken = whole.clone();
        broken[10] ^= 0xff;
        all.push((format!("a bad checksum to {whom}"), frame(to_mac, mac, &broken)));
        all.push((format!("a header cut short to {whom}"), frame(to_mac, mac, &whole[..24])));
    }
    for operation in [Operation::Request, Operation::Reply] {
        let elsewhere = says(operation, (super::mac(0x3c), address), ROUTER);
        let bytes = elsewhere.to_frame(MacAddr::BROADCAST, mac).to_vec();
        all.push((format!("ARP: {operation:?} with nobody's Ethernet address inside"), bytes));
    }
    for (what, operation, target, to) in [
        ("a request", Operation::Request, ROUTER, MacAddr::BROADCAST),
        ("a request to one", Operation::Request, ROUTER, ROUTER_MAC),
        ("an announcement", Operation::Request, address, MacAddr::BROADCAST),
        ("an announcement by reply", Operation::Reply, address, MacAddr::BROADCAST),
        ("a reply to the router", Operation::Reply, ROUTER, ROUTER_MAC),
        ("a reply to CT", Operation::Reply, CT, super::mac(10)),
        ("a reply to MRI", Operation::Reply, MRI, super::mac(11)),
    ] {
        let bytes = says(operation, (mac, address), target).to_frame(to, mac);
        all.push((format!("ARP: {what}"), bytes.to_vec()));
        // Some stacks take 802's hardware type for Ethernet's, and learn from whatever operation.
        for (odd, at, byte) in [("another type of hardware", 15, 6), ("another operation", 21, 9)] {
            let mut bytes = bytes.to_vec();
            bytes[at] = byte;
            all.push((format!("ARP: {what} with {odd}"), bytes));
        }
    }
    all
}

#[test]
fn nobody_on_a_port_speaks_with_the_address_of_a_device_that_has_left_observe() {
    let now = start();
    let stranger = mac(0x55);
    for modes in [
        [Mode::Protect, Mode::Observe],
        [Mode::Enforce, Mode::Observe],
        [Mode::Enforce, Mode::Protect],
        [Mode::Enforce, Mode::Enforce],
    ] {
        // CT has left observe. MRI's device, or a stranger on its port where that is a wire, passes for it.
        for sender in [mac(11), stranger] {
            if sender == stranger && modes[1] != Mode::Observe {
                continue;
            }
            let mut engine = with(modes, now);
            for (stolen, whose) in [(CT, 10), (FAR, 20)] {
                for (what, bytes) in claims(sender, stolen) {
                    let out = send(&mut engine, TWO, &bytes, now);
                    let case = format!("{what} from {sender} as member {whose}, {modes:?}");
                    assert!(
                        out.frames.is_empty() && out.datagrams.is_empty(),
                        "{case}: {out:02x?}"
                    );
                }
                let raised = alarms(&engine, now, AlarmKind::Conflict);
                let id = MemberId::from_bytes([whose; 16]);
                assert!(
                    raised.iter().any(|alarm| alarm.member == Some(id)
                        && alarm.address == Some(stolen.into())
                        && alarm.mac == sender
                        && alarm.port == Some(name("port2"))),
                    "no alarm names {whose}: {raised:#?}"
                );
            }
            assert!(drops(&engine, now, DropReason::IpSpoofed) > 20, "{:#?}", engine.status(now));
        }
    }
}

#[test]
fn a_device_that_nobody_confirmed_renews_its_own_lease() {
    let now = start();
    let stranger = mac(0x55);
    let mut engine = with([Mode::Enforce, Mode::Observe], now);
    let own = [10, 20, 1, 77];
    for (source, mac, to) in [
        ([0; 4], MacAddr::BROADCAST, [255; 4]),
        (own, ROUTER_MAC, CAMPUS),
        (own, MacAddr::BROADCAST, [255; 4]),
    ] {
        let bytes = frame(mac, stranger, &ipv4(source, to, 17, &udp(68, 67, &[1; 300])));
        let out = send(&mut engine, TWO, &bytes, now);
        assert_eq!(out.frames, [(PortId::UPLINK, VnetHeader::default(), bytes)], "{source:?}");
    }
    assert_eq!(drops(&engine, now, DropReason::IpSpoofed), 0);
}

#[test]
fn what_was_refused_is_no_sighting() {
    let now = start();
    for mode in [Mode::Observe, Mode::Protect, Mode::Enforce] {
        let mut engine = with([Mode::Enforce, mode], now);
        for stolen in [CT, FAR, ROUTER, GATEWAY] {
            for (_, bytes) in claims(mac(11), stolen) {
                let _ = send(&mut engine, TWO, &bytes, now);
            }
        }
        let report = engine.report(now);
        let own: Vec<_> = report.sightings.iter().filter(|seen| seen.mac == mac(11)).collect();
        assert_eq!(own.len(), 1, "{own:#?}");
        assert!(own[0].addresses.is_empty() && own[0].prefix_len.is_none(), "{mode}: {own:#?}");
        let _ = send(&mut engine, TWO, &frame(ROUTER_MAC, mac(11), &syn(MRI, CAMPUS)), now);
        let report = engine.report(now);
        assert_eq!(report.sightings[0].addresses, [std::net::Ipv4Addr::from(MRI)]);
    }
}

#[test]
fn a_device_that_has_left_observe_uses_its_own_address_only() {
    let now = start();
    for mode in [Mode::Protect, Mode::Enforce] {
        let mut engine = with([mode, Mode::Observe], now);
        for nobodys in [[10, 20, 1, 99], [192, 0, 2, 1], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
            for (what, bytes) in claims(mac(10), nobodys) {
                let out = send(&mut engine, ONE, &bytes, now);
                assert!(out.frames.is_empty() && out.datagrams.is_empty(), "{what}: {out:02x?}");
            }
        }
    }
}

#[test]
fn an_observed_device_is_a_wire_with_whatever_address() {
    let now = start();
    let mut engine = with([Mode::Observe, Mode::Observe], now);
    // Factory defaults: both have the same address. Nobody is steered by it.
    let bytes = frame(ROUTER_MAC, mac(11), &syn(CT, CAMPUS));
    let out = send(&mut engine, TWO, &bytes, now);
    assert_eq!(
        out.frames,
        [
            (PortId::UPLINK, VnetHeader::default(), bytes.clone()),
            (ONE, VnetHeader::default(), bytes)
        ]
    );
}

#[test]
fn nobody_speaks_with_the_ethernet_address_of_another() {
    let now = start();
    let stand_in = crate::nexthop::stand_in(OWN);
    for modes in [[Mode::Enforce, Mode::Observe], [Mode::Protect, Mode::Observe]] {
        let mut engine = with(modes, now);
        // CT's traffic shows who its router is.
        let asks = crate::wire::arp::request(mac(10), CT.into(), ROUTER.into());
        let _ = send(&mut engine, ONE, &asks, now);
        let answer = says(Operation::Reply, (ROUTER_MAC, ROUTER), CT).to_frame(mac(10), ROUTER_MAC);
        let _ = send(&mut engine, PortId::UPLINK, &answer, now);
        for (whose, stolen) in [
            ("CT's", mac(10)),
            ("the uplink's", mac(0xa0)),
            ("the port's", mac(0x92)),
            ("the underlay's", mac(0xb0)),
            ("the router's", ROUTER_MAC),
            ("the stand-in router's", stand_in),
            ("a member's elsewhere", mac(20)),
        ] {
            let link =
                [&ethernet::header(MacAddr([1, 0x80, 0xc2, 0, 0, 3]), stolen, 0x888e)[..], b"x"];
            let mut ways = claims(stolen, [10, 20, 1, 60]);
            ways.push(("802.1X".into(), link.concat()));
            ways.push((
                "a tagged frame".into(),
                tagged(&frame(ROUTER_MAC, stolen, &syn(MRI, CAMPUS)), 9),
            ));
            for (what, bytes) in ways {
                let out = send(&mut engine, TWO, &bytes, now);
                let nothing = out.frames.is_empty() && out.datagrams.is_empty();
                assert!(nothing, "{what} with {whose} address, {modes:?}: {out:02x?}");
            }
            // The same inside ARP only.
            for operation in [Operation::Request, Operation::Reply] {
                let inside = says(operation, (stolen, [10, 20, 1, 60]), CT);
                let bytes = inside.to_frame(MacAddr::BROADCAST, mac(11));
                let out = send(&mut engine, TWO, &bytes, now);
                assert!(out.frames.is_empty(), "ARP with {whose} address inside: {out:02x?}");
            }
        }
        let moved = alarms(&engine, now, AlarmKind::Moved);
        let of = |last| {
            let id = MemberId::from_bytes([last; 16]);
            moved.iter().filter(|alarm| alarm.member == Some(id)).map(|alarm| alarm.mac).next()
        };
        assert_eq!((of(10), of(20)), (Some(mac(10)), Some(mac(20))), "{moved:#?}");
        // CT still reaches its router, and hears from it.
        let bytes = frame(ROUTER_MAC, mac(10), &syn(CT, CAMPUS));
        let out = send(&mut engine, ONE, &bytes, now);
        assert_eq!(out.frames, [(PortId::UPLINK, VnetHeader::default(), bytes)]);
    }
}

#[test]
fn a_routers_ethernet_address_stays_its_own_however_long_it_is_silent() {
    for mode in [Mode::Protect, Mode::Enforce] {
        for restarted in [false, true] {
            let mut now = start();
            let mut engine = with([mode, Mode::Observe], now);
            let neighbour = (mac(0x66), [10, 20, 1, 66]);
            for (from, address) in [(ROUTER_MAC, ROUTER), neighbour] {
                let asks = crate::wire::arp::request(mac(10), CT.into(), address.into());
                let _ = send(&mut engine, ONE, &asks, now);
                let answer = says(Operation::Reply, (from, address), CT).to_frame(mac(10), from);
                let _ = send(&mut engine, PortId::UPLINK, &answer, now);
            }
            if restarted {
                let learned = engine.learned();
                engine = super::engine(Limits::default(), now);
                engine.restore(learned);
                engine.apply(view([mode, Mode::Observe], &["tcp/1-65535"]), now);
            } else {
                now += crate::limits::BRIDGE_AGE + Duration::from_secs(1);
                engine.handle_timeout(now, &mut Kept::default());
            }
            for (what, bytes) in claims(ROUTER_MAC, [10, 20, 1, 60]) {
                let out = send(&mut engine, TWO, &bytes, now);
                let nothing = out.frames.is_empty() && out.datagrams.is_empty();
                assert!(nothing, "{what}, {mode}, restarted: {restarted}: {out:02x?}");
            }
            let raised = alarms(&engine, now, AlarmKind::Conflict);
            assert!(raised.iter().any(|alarm| alarm.mac == ROUTER_MAC), "{raised:#?}");
            let bytes = frame(ROUTER_MAC, mac(10), &syn(CT, CAMPUS));
            let out = send(&mut engine, ONE, &bytes, now);
            assert_eq!(out.frames, [(PortId::UPLINK, VnetHeader::default(), bytes)], "{mode}");
            // A neighbour that was plugged in here meanwhile is a wire like any other.
            let bytes = frame(ROUTER_MAC, neighbour.0, &syn(neighbour.1, CAMPUS));
            let out = send(&mut engine, TWO, &bytes, now);
            assert!(out.frames.iter().any(|(port, ..)| port.is_uplink()), "{mode}: {out:?}");
        }
    }
}

#[test]
fn a_device_here_that_speaks_on_the_uplink_is_refused_and_said() {
    let now = start();
    let mut engine = with([Mode::Enforce, Mode::Observe], now);
    for sender in [mac(10), mac(11)] {
        for (what, bytes) in claims(sender, [10, 20, 1, 60]) {
            let out = send(&mut engine, PortId::UPLINK, &bytes, now);
            assert!(out.frames.is_empty(), "{what}: {out:02x?}");
        }
    }
    let moved = alarms(&engine, now, AlarmKind::Moved);
    assert_eq!(moved.len(), 2, "{moved:#?}");
    assert!(moved.iter().all(|alarm| alarm.port.is_none() && alarm.count > 10), "{moved:#?}");
    // CT is still where it was.
    let bytes = frame(ROUTER_MAC, mac(10), &syn(CT, CAMPUS));
    assert_eq!(send(&mut engine, ONE, &bytes, now).frames.len(), 1);
    assert_eq!(engine.report(now).alarms.len(), 2, "and the controller is told");
}

#[test]
fn a_claim_on_the_campus_to_a_device_here_is_said() {
    let now = start();
    let mut engine = with([Mode::Observe, Mode::Observe], now);
    let claim = says(Operation::Reply, (mac(0x66), CT), CT).to_frame(MacAddr::BROADCAST, mac(0x66));
    let out = send(&mut engine, PortId::UPLINK, &claim, now);
    assert_eq!(out.frames.len(), 2, "in observe it passes: {out:?}");
    let raised = alarms(&engine, now, AlarmKind::Conflict);
    assert_eq!((raised.len(), raised[0].address), (1, Some(CT.into())), "{raised:#?}");
}

#[test]
fn nothing_reaches_the_gateway_itself() {
    let now = start();
    for mode in [Mode::Observe, Mode::Protect, Mode::Enforce] {
        let mut engine = with([mode, Mode::Observe], now);
        for to in
            [mac(0xa0), mac(0x91), mac(0x92), mac(0xb0), ROUTER_MAC, MacAddr::BROADCAST, mac(0x31)]
        {
            let mut broken = syn(CT, GATEWAY);
            broken[10] ^= 1;
            for packet in [syn(CT, GATEWAY), ipv4(CT, GATEWAY, 17, &udp(9, 51_820, b"x")), broken] {
                let out = send(&mut engine, ONE, &frame(to, mac(10), &packet), now);
                assert!(out.frames.is_empty(), "{mode}, to {to}: {out:02x?}");
            }
            let asks = says(Operation::Request, (mac(10), CT), GATEWAY).to_frame(to, mac(10));
            let out = send(&mut engine, ONE, &asks, now);
            assert!(out.frames.is_empty(), "{mode}, ARP to {to}: {out:02x?}");
            // One whom there is no room to remember fares no better.
            let stranger = frame(to, mac(0x5a), &syn([10, 20, 1, 61], GATEWAY));
            engine.stations.ports[TWO.index()].unknown = usize::MAX;
            let out = send(&mut engine, TWO, &stranger, now);
            assert!(out.frames.is_empty(), "{mode}, a stranger to {to}: {out:02x?}");
        }
    }
}

#[test]
fn a_frame_for_the_port_that_it_came_from_goes_nowhere() {
    let now = start();
    for mode in [Mode::Observe, Mode::Protect, Mode::Enforce] {
        let mut engine = engine(Limits::default(), now);
        let mut shared = Arc::unwrap_or_clone(view([mode, mode], &["tcp/104"]));
        shared.intent.devices[1].port = name("port1");
        engine.apply(Arc::new(shared), now);
        let direct = frame(mac(11), mac(10), &syn(CT, MRI));
        let out = send(&mut engine, ONE, &direct, now);
        assert!(out.frames.is_empty() && out.datagrams.is_empty(), "{mode}: {out:?}");
        assert_eq!(drops(&engine, now, DropReason::SamePort), 1);
        // By way of the router: a wire takes it there, an enforced device's frame never turns round here.
        let routed = frame(ROUTER_MAC, mac(10), &syn(CT, MRI));
        let out = send(&mut engine, ONE, &routed, now);
        assert!(out.frames.iter().all(|(port, ..)| *port != ONE), "{mode}: {out:?}");
        assert_eq!(out.frames.is_empty(), mode == Mode::Enforce, "{mode}: {out:?}");
    }
}

#[test]
fn under_the_ports_of_dhcp_an_enforced_device_reaches_nobody_else() {
    let now = start();
    let mut engine = with([Mode::Enforce, Mode::Enforce], now);
    let request = |to_mac, to| {
        frame(to_mac, mac(10), &ipv4(CT, to, 17, &udp(68, 67, &dhcp(1, 3, 7, mac(10)))))
    };
    let everybody = MacAddr::BROADCAST;
    for to in [[255; 4], [10, 20, 0, 2]] {
        let out = send(&mut engine, ONE, &request(everybody, to), now);
        assert_eq!(out.frames.len(), 1, "{to:?}: {:#?}", engine.status(now));
    }
    for (to_mac, to) in [
        (everybody, CAMPUS),
        (everybody, CT),
        (everybody, [10, 20, 1, 255]),
        (MacAddr([1, 0, 0x5e, 0, 0, 1]), [255; 4]),
        (mac(0x66), [255; 4]),
    ] {
        let out = send(&mut engine, ONE, &request(to_mac, to), now);
        assert!(out.frames.is_empty(), "{to:?} by {to_mac}: {out:?}");
    }
}

#[test]
fn an_unknown_address_is_observed_until_a_device_there_leaves_observe_and_then_held() {
    let now = start();
    let stranger = mac(0x55);
    let out_of = frame(ROUTER_MAC, stranger, &syn([10, 20, 1, 60], CAMPUS));
    let from_campus = frame(stranger, ROUTER_MAC, &syn(CAMPUS, [10, 20, 1, 60]));
    let from_mri = frame(stranger, mac(11), &syn(MRI, [10, 20, 1, 60]));
    for mode in [Mode::Protect, Mode::Enforce] {
        let mut engine = with([Mode::Observe, Mode::Observe], now);
        assert_eq!(send(&mut engine, ONE, &out_of, now).frames.len(), 2, "to uplink and port2");
        assert_eq!(send(&mut engine, PortId::UPLINK, &from_campus, now).frames.len(), 1);
        assert_eq!(send(&mut engine, TWO, &from_mri, now).frames.len(), 1);
        let sighted = engine.report(now).sightings;
        assert!(sighted.iter().any(|seen| seen.mac == stranger && !seen.held), "{sighted:#?}");
        engine.apply(view([mode, Mode::Observe], &["tcp/104"]), now);
        let _ = engine.report(now);
        for (what, port, bytes) in [
            ("from it", ONE, &out_of),
            ("to it from the campus", PortId::UPLINK, &from_campus),
            ("to it from another port", TWO, &from_mri),
        ] {
            let out = send(&mut engine, port, bytes, now);
            assert!(out.frames.is_empty(), "{what}, {mode}: {out:?}");
        }
        let sighted = engine.report(now).sightings;
        assert!(
            sighted.iter().any(|seen| seen.mac == stranger && seen.held),
            "the operator is told that it is held, though it was reported before: {sighted:#?}"
        );
        // Confirmed, it is one of the devices of the port.
        let mut confirmed = Arc::unwrap_or_clone(view([mode, Mode::Observe], &["tcp/104"]));
        let mut third = confirmed.intent.devices[0].clone();
        third.member = member(0x55, OWN, "10.20.1.60/32", mode);
        confirmed.intent.devices.push(third);
        engine.apply(Arc::new(confirmed), now);
        let bytes = crate::wire::arp::request(stranger, [10, 20, 1, 60].into(), ROUTER.into());
        let out = send(&mut engine, ONE, &bytes, now);
        assert!(!out.frames.is_empty(), "{mode}: {:#?}", engine.status(now));
        assert_eq!(drops(&engine, now, DropReason::UnknownMac), 3);
    }
}

#[test]
fn a_dynamic_prefix_gives_nobody_the_address_of_another_in_it() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    let mut dynamic = Arc::unwrap_or_clone(view([Mode::Enforce, Mode::Enforce], &["tcp/104"]));
    dynamic.intent.devices[0].member.addresses = vec!["10.20.1.0/24".parse().unwrap()];
    engine.apply(Arc::new(dynamic.clone()), now);
    let speaks = |engine: &mut Engine, port, from, address| {
        let bytes = frame(ROUTER_MAC, from, &syn(address, CAMPUS));
        !send(engine, port, &bytes, now).frames.is_empty()
    };
    assert!(speaks(&mut engine, ONE, mac(10), CT), "its own lease");
    assert!(!speaks(&mut engine, ONE, mac(10), [10, 20, 1, 12]), "it has one already");
    assert!(!speaks(&mut engine, ONE, mac(10), MRI), "a pinned one of another");
    assert!(!speaks(&mut engine, ONE, mac(10), ROUTER), "the router's");
    assert!(!speaks(&mut engine, ONE, mac(10), GATEWAY), "the gateway's");
    // Of two that may have it, the first keeps it.
    dynamic.intent.devices[1].member.addresses = vec!["10.20.1.0/24".parse().unwrap()];
    engine.apply(Arc::new(dynamic), now);
    let bytes = frame(ROUTER_MAC, mac(11), &syn(CT, CAMPUS));
    let out = send(&mut engine, TWO, &bytes, now);
    assert!(out.frames.is_empty(), "{out:?}");
    let raised = alarms(&engine, now, AlarmKind::Conflict);
    let first = Some(MemberId::from_bytes([10; 16]));
    assert!(raised.iter().any(|a| a.member == first && a.mac == mac(11)), "{raised:#?}");
}

#[test]
fn a_prefix_behind_one_device_is_the_devices() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    let mut routed = Arc::unwrap_or_clone(view([Mode::Enforce, Mode::Enforce], &["tcp/104"]));
    routed.intent.devices[0].member.addresses =
        vec!["10.20.1.10/32".parse().unwrap(), "10.99.0.0/24".parse().unwrap()];
    engine.apply(Arc::new(routed), now);
    for address in [CT, [10, 99, 0, 1], [10, 99, 0, 200]] {
        let there = frame(ROUTER_MAC, mac(10), &syn(address, CAMPUS));
        assert_eq!(send(&mut engine, ONE, &there, now).frames.len(), 1, "{address:?}");
        let answer = ipv4(CAMPUS, address, 6, &tcp(104, 40_000, 0x12, &[]));
        let back = frame(mac(10), ROUTER_MAC, &answer);
        let out = send(&mut engine, PortId::UPLINK, &back, now);
        assert_eq!(out.frames, [(ONE, VnetHeader::default(), back)], "{address:?}");
        let local = send(&mut engine, ONE, &frame(ROUTER_MAC, mac(10), &syn(address, MRI)), now);
        assert_eq!(local.frames.len(), 1, "{address:?} to another port");
        assert_eq!(
            parse_ipv4(&local.frames[0].2[14..]).unwrap().source,
            std::net::Ipv4Addr::from(address)
        );
    }
    let out =
        send(&mut engine, ONE, &frame(ROUTER_MAC, mac(10), &syn([10, 99, 1, 1], CAMPUS)), now);
    assert!(out.frames.is_empty(), "beyond the prefix: {out:?}");
}
