//! A server's port, on which unlisted addresses pass in the clear beside listed ones that are protected.

use super::*;
use crate::wire::arp;

const SERVER: PortId = PortId::device(0);
const TWO: PortId = PortId::device(1);
/// Listed, on the server's port.
const CT: [u8; 4] = [10, 20, 1, 10];
/// Listed, on the other port, in enforce.
const MRI: [u8; 4] = [10, 20, 1, 11];
/// A virtual machine on the server that nobody listed.
const GUEST: [u8; 4] = [10, 20, 1, 70];
const CAMPUS: [u8; 4] = [10, 20, 9, 5];
const ROUTER: MacAddr = MacAddr([0, 0x1b, 0x21, 0, 0, 0x77]);

fn guest() -> MacAddr {
    mac(0x70)
}

/// A server whose listed device is in `mode`, beside an enforced one that the campus may reach.
fn server(mode: Mode, now: Instant) -> Engine {
    let mut engine = engine_with(Limits::default(), Unlisted::Pass, now);
    let mut open =
        Arc::unwrap_or_clone(view([mode, Mode::Enforce], &["tcp/1-65535", "udp/1-65535"]));
    let mut inwards = open.intent.rules.last().unwrap().clone();
    inwards.id = RuleId::of("campus-mri");
    (inwards.from, inwards.to) = (inwards.to, Endpoint::Member(MemberId::from_bytes([11; 16])));
    open.intent.rules.push(inwards);
    engine.apply(Arc::new(open), now);
    engine
}

fn syn(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    ipv4(from, to, 6, &tcp(40_000, 104, 2, &[]))
}

fn send(engine: &mut Engine, port: PortId, bytes: &[u8], now: Instant) -> Kept {
    feed(engine, port, VnetHeader::default(), bytes, now)
}

#[test]
fn an_unlisted_address_passes_as_if_observed_and_is_reported_as_such() {
    let now = start();
    for mode in [Mode::Protect, Mode::Enforce] {
        let mut engine = server(mode, now);
        let there = frame(ROUTER, guest(), &syn(GUEST, CAMPUS));
        let out = send(&mut engine, SERVER, &there, now);
        assert_eq!(out.frames, [(PortId::UPLINK, VnetHeader::default(), there)], "{mode}");
        let back = frame(guest(), ROUTER, &ipv4(CAMPUS, GUEST, 6, &tcp(104, 40_000, 0x12, &[])));
        let out = send(&mut engine, PortId::UPLINK, &back, now);
        assert_eq!(out.frames, [(SERVER, VnetHeader::default(), back)], "{mode}");
        let sighted = engine.report(now).sightings;
        assert!(sighted.iter().any(|seen| seen.mac == guest() && !seen.held), "{sighted:#?}");
        let port = engine.status(now).ports.remove(0);
        assert_eq!(
            (port.unlisted, port.held, port.unknown),
            (Unlisted::Pass, false, 1),
            "{port:?}"
        );
        assert!(!engine.wants_gro(), "its traffic stays byte for byte");
    }
}

#[test]
fn everybody_is_asked_but_only_the_unlisted_one_hears_it_beside_an_enforced_device() {
    let now = start();
    let mut engine = server(Mode::Enforce, now);
    let _ = send(&mut engine, SERVER, &frame(ROUTER, guest(), &syn(GUEST, CAMPUS)), now);
    let question = arp::request(ROUTER, [10, 20, 1, 1].into(), GUEST.into());
    let out = send(&mut engine, PortId::UPLINK, &question, now);
    let mut single = question.to_vec();
    single[..6].copy_from_slice(&guest().0);
    assert_eq!(out.frames, [(SERVER, VnetHeader::default(), single)]);
    let offer = ipv4([10, 20, 0, 9], [255; 4], 17, &udp(67, 68, &dhcp(2, 2, 7, guest())));
    let out = send(&mut engine, PortId::UPLINK, &frame(MacAddr::BROADCAST, ROUTER, &offer), now);
    assert_eq!(out.frames.len(), 1, "{out:?}");
    assert_eq!((out.frames[0].0, &out.frames[0].2[..6]), (SERVER, &guest().0[..]));
    for bytes in [
        arp::request(ROUTER, [10, 20, 1, 1].into(), [10, 20, 1, 99].into()).to_vec(),
        frame(MacAddr::BROADCAST, ROUTER, &ipv4(CAMPUS, [255; 4], 17, &udp(9, 9, b"x"))),
    ] {
        let out = send(&mut engine, PortId::UPLINK, &bytes, now);
        assert!(out.frames.is_empty(), "broadcast reached the enforced device's port: {out:?}");
    }
}

#[test]
fn an_unlisted_address_has_nobodys_rights_and_reaches_no_enforced_device() {
    let now = start();
    for mode in [Mode::Protect, Mode::Enforce] {
        let mut engine = server(mode, now);
        let _ = send(&mut engine, SERVER, &frame(ROUTER, guest(), &syn(GUEST, CAMPUS)), now);
        // By its own address, an external's that may reach MRI, a listed one's, a member's elsewhere.
        for from in [GUEST, CAMPUS, CT, MRI, [10, 20, 4, 20], [10, 20, 1, 1], [10, 20, 0, 2]] {
            for (to_mac, to) in [
                (mac(11), MRI),
                (ROUTER, MRI),
                (crate::nexthop::stand_in(OWN), MRI),
                (MacAddr::BROADCAST, MRI),
                (ROUTER, [10, 20, 4, 20]),
            ] {
                for packet in [
                    syn(from, to),
                    ipv4(from, to, 6, &tcp(104, 40_000, 0x10, b"middle")),
                    ipv4(from, to, 17, &udp(67, 68, &dhcp(2, 5, 7, mac(11)))),
                    ipv4(from, to, 1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
                ] {
                    let out = send(&mut engine, SERVER, &frame(to_mac, guest(), &packet), now);
                    let reached = out.frames.iter().any(|(port, ..)| *port == TWO);
                    assert!(!reached && out.datagrams.is_empty(), "{from:?} to {to:?}: {out:02x?}");
                }
            }
            for to in [MacAddr::BROADCAST, mac(11)] {
                let mut asks = arp::request(guest(), from.into(), MRI.into());
                asks[..6].copy_from_slice(&to.0);
                let out = send(&mut engine, SERVER, &asks, now);
                assert!(out.frames.iter().all(|(port, ..)| *port != TWO), "ARP: {out:02x?}");
            }
        }
        for ethertype in [0x86dd, 0x88b5] {
            let other = [&ethernet::header(mac(11), guest(), ethertype)[..], &[0; 60]].concat();
            let out = send(&mut engine, SERVER, &other, now);
            assert!(out.frames.iter().all(|(port, ..)| *port != TWO), "{out:02x?}");
        }
        // As another it isn't let out either.
        for stolen in [CT, MRI, [10, 20, 4, 20]] {
            let out = send(&mut engine, SERVER, &frame(ROUTER, guest(), &syn(stolen, CAMPUS)), now);
            assert!(out.frames.is_empty(), "as {stolen:?}: {out:02x?}");
        }
    }
}

#[test]
fn listed_addresses_on_such_a_port_are_protected_as_anywhere() {
    let now = start();
    let mut engine = server(Mode::Enforce, now);
    let allowed = frame(ROUTER, mac(10), &syn(CT, CAMPUS));
    assert_eq!(send(&mut engine, SERVER, &allowed, now).frames.len(), 1);
    let refused = frame(ROUTER, mac(10), &syn(CT, [10, 20, 8, 8]));
    assert!(send(&mut engine, SERVER, &refused, now).frames.is_empty());
    let scan = frame(mac(10), ROUTER, &syn([10, 20, 8, 8], CT));
    assert!(send(&mut engine, PortId::UPLINK, &scan, now).frames.is_empty());
    let tagged = [&mac(10).0[..], &ROUTER.0, &[0x81, 0, 0, 7, 8, 0], &syn(CAMPUS, CT)].concat();
    assert!(send(&mut engine, PortId::UPLINK, &tagged, now).frames.is_empty());
}
