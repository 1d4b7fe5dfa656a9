//! ARP and next hops: who is answered, who learns of an enforced device, and who becomes its router.

use std::net::Ipv4Addr;
use std::time::Duration;

use anteroom_agent_core::wire::arp::{self, ArpPacket, Operation};
use anteroom_agent_core::wire::{ethernet, parse_ethernet};
use anteroom_proto::alarm::AlarmKind;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_sim::hospital::*;
use anteroom_sim::model::Way;
use anteroom_sim::plan::Who;
use anteroom_sim::world::{Cable, ROUTER, World};

const DICOM: (Protocol, u16) = (Protocol::Tcp, 104);
const OWN_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);
const NEW_ROUTER: MacAddr = MacAddr([0, 0x1b, 0x21, 0, 0x02, 2]);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 99);

fn all(world: &mut World, mode: Mode) {
    world.plan.revise();
    let revision = world.plan.revision;
    for device in &mut world.plan.devices {
        device.device.member.mode = mode;
        device.device.member.mode_since = revision;
    }
    world.apply_all();
}

/// A hospital in enforce whose CT has spoken with the archive through the router.
fn enforced(seed: u64) -> World {
    let mut world = hospital(seed);
    let _ = probe(&mut world, CT, ARCHIVE, DICOM, 1, 1);
    all(&mut world, Mode::Protect);
    all(&mut world, Mode::Enforce);
    expect(&mut world, CT, ARCHIVE, Way::Clear);
    world.clear_campus();
    world
}

fn expect(world: &mut World, from: usize, to: usize, way: Way) {
    static MARKER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let marker = MARKER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let outcome = probe(world, from, to, DICOM, marker, 2);
    let names = [from, to].map(|host| world.hosts[host].name);
    let now = world.now;
    let gateways = [0, 1, 2].map(|at| world.engine(at).status(now));
    assert_eq!(outcome, Outcome::of(way), "{names:?}: {gateways:#?}");
}

fn router_of(world: &mut World, device: usize) -> Option<MacAddr> {
    let (gateway, id) = (world.plan.devices[device].gateway, world.plan.member(device).id);
    let now = world.now;
    let devices = world.engine(gateway).status(now).devices;
    devices.iter().find(|status| status.member == id).and_then(|status| status.router_mac)
}

/// ARP of a machine, or in its name, that the campus carried.
fn heard_from(world: &World, mac: MacAddr) -> Vec<ArpPacket> {
    let frames = world.campus.iter().filter_map(|seen| {
        let frame = parse_ethernet(&seen.bytes, None).ok()?;
        let packet = arp::parse_arp(frame.payload).ok()?;
        let arp = frame.ethertype == ethernet::ARP;
        (arp && (frame.source == mac || packet.sender_mac == mac)).then_some(packet)
    });
    frames.collect()
}

/// That no Ethernet address stood on the campus that is locally administered: none of the lab's are.
fn assert_no_stand_in(world: &World) {
    for seen in &world.campus {
        for mac in [&seen.bytes[..6], &seen.bytes[6..12]] {
            assert!(mac[0] & 3 != 2, "{:02x?} from {:?}", seen.bytes, seen.from);
        }
    }
}

fn reply(of: MacAddr, address: Ipv4Addr, to: (MacAddr, Ipv4Addr)) -> Vec<u8> {
    let packet = ArpPacket {
        operation: Operation::Reply,
        sender_mac: of,
        sender: address,
        target_mac: to.0,
        target: to.1,
    };
    packet.to_frame(to.0, of).to_vec()
}

#[test]
fn routed_peers_are_reached_with_no_router_in_sight() {
    let mut world = hospital(1);
    world.router_is_down = true;
    all(&mut world, Mode::Protect);
    all(&mut world, Mode::Enforce);
    for (from, to) in [(CT, PACS), (MRI, PACS)] {
        expect(&mut world, from, to, Way::Tunnel);
    }
    // Once it is there, what needs it finds it, without a word from the operator.
    expect(&mut world, CT, ARCHIVE, Way::None);
    world.router_is_down = false;
    world.run(Duration::from_secs(2));
    let _ = probe(&mut world, CT, ARCHIVE, DICOM, 900_001, 3);
    expect(&mut world, CT, ARCHIVE, Way::Clear);
    assert_no_stand_in(&world);
    // And gone again, its devices go on.
    world.router_is_down = true;
    world.run(Duration::from_secs(700));
    world.hosts[CT].forget();
    expect(&mut world, CT, PACS, Way::Tunnel);
    expect(&mut world, CT, ARCHIVE, Way::None);
    assert_no_stand_in(&world);
}

/// Two gateways in one network, with a device each that share a rule.
fn on_link(seed: u64) -> World {
    let mut world = World::new(seed);
    let a = world.gateway([10, 20, 1], &["port1"]);
    let b = world.gateway([10, 20, 1], &["port1"]);
    world.gateway([10, 20, 9], &["port1"]);
    world.device("ct", a, 0, 10);
    world.device("pacs", b, 0, 20);
    world.plain("intruder", [10, 20, 1, 66]);
    world.plan.rule("store", Who::Device(0), Who::Device(1), &["tcp/104"]);
    world.apply_all();
    world
}

#[test]
fn neighbours_behind_tunnels_are_answered_for_with_their_own_addresses() {
    let mut world = on_link(2);
    for mode in [Mode::Observe, Mode::Protect, Mode::Enforce] {
        all(&mut world, mode);
        world.hosts[0].arp.clear();
        world.clear_campus();
        expect(&mut world, 0, 1, if mode == Mode::Observe { Way::Clear } else { Way::Tunnel });
        let (pacs, address) = (world.hosts[1].mac, world.hosts[1].address);
        assert_eq!(world.hosts[0].arp.get(&address), Some(&pacs), "{mode}");
        // Frames out of the tunnel bear what the device would see without a gateway.
        let got = world.hosts[0].inbox.last().map(|got| got.mac);
        assert_eq!(got, Some(pacs), "{mode}");
        assert_eq!(world.hosts[0].flips, [], "{mode}");
        if mode == Mode::Enforce {
            let ct = world.hosts[0].mac;
            assert_eq!(heard_from(&world, ct), [], "the campus heard of the CT");
        }
    }
}

#[test]
fn a_device_never_gets_two_answers_that_differ() {
    for mode in [Mode::Protect, Mode::Enforce] {
        let mut world = on_link(3);
        all(&mut world, mode);
        expect(&mut world, 0, 1, Way::Tunnel);
        world.hosts[0].arp.clear();
        let (ct, pacs) = (world.hosts[0].clone(), world.hosts[1].clone());
        let intruder = world.hosts[2].mac;
        for _ in 0..20 {
            world.act(0, |host, out| {
                out.push(arp::request(host.mac, host.address, pacs.address).to_vec());
            });
            world.put(2, reply(intruder, pacs.address, (ct.mac, ct.address)));
            world.run(Duration::from_millis(300));
        }
        assert_eq!(world.hosts[0].flips, [], "{mode}");
        assert_eq!(world.hosts[0].arp.get(&pacs.address), Some(&pacs.mac), "{mode}");
    }
}

#[test]
fn the_routers_forgotten_entry_comes_back_for_devices_with_an_external_alone() {
    let mut world = enforced(4);
    world.flush_router();
    expect(&mut world, CT, ARCHIVE, Way::Clear);
    world.flush_router();
    // Somebody on the campus makes the router ask for every device.
    world.clear_campus();
    for device in [CT, MRI, PUMP, MONITOR] {
        let _ = probe(&mut world, WORKSTATION, device, DICOM, 910_000 + device as u64, 1);
    }
    let ct = world.hosts[CT].mac;
    let answers: Vec<ArpPacket> = heard_from(&world, ct);
    assert!(
        answers.iter().all(|a| a.operation == Operation::Reply && a.target == OWN_ROUTER),
        "{answers:?}"
    );
    assert!(!answers.is_empty(), "the router's request for the CT is answered");
    for device in [MRI, PUMP, MONITOR] {
        let mac = world.hosts[device].mac;
        assert_eq!(heard_from(&world, mac), [], "{}", world.hosts[device].name);
    }
    // Nobody else's request is answered, whomever it claims to be.
    world.clear_campus();
    let (address, intruder) = (world.hosts[CT].address, world.hosts[INTRUDER].mac);
    for sender in [world.hosts[INTRUDER].address, STRANGER, Ipv4Addr::UNSPECIFIED, address] {
        world.put(INTRUDER, arp::request(intruder, sender, address).to_vec());
        let mut alone = arp::request(intruder, sender, address);
        alone[..6].copy_from_slice(&ct.0);
        world.put(INTRUDER, alone.to_vec());
    }
    world.run(Duration::from_secs(1));
    assert_eq!(heard_from(&world, ct), []);
    assert!(world.hosts[CT].seen.is_empty(), "{:02x?}", world.hosts[CT].seen);
}

#[test]
fn nothing_that_an_enforced_device_says_by_arp_tells_the_campus_of_it() {
    let mut world = enforced(5);
    for device in [CT, MRI, PUMP, MONITOR] {
        let (mac, own) = (world.hosts[device].mac, world.hosts[device].address);
        let none = Ipv4Addr::UNSPECIFIED;
        let router = world.hosts[device].router;
        for (sender, target) in [
            (none, own),
            (own, own),
            (own, STRANGER),
            (none, router),
            (router, own),
            (STRANGER, own),
        ] {
            world.put(device, arp::request(mac, sender, target).to_vec());
            world.put(device, reply(mac, sender, (MacAddr::BROADCAST, target)));
            world.put(device, reply(mac, sender, (ROUTER, target)));
        }
        let intruder = (world.hosts[INTRUDER].mac, world.hosts[INTRUDER].address);
        world.put(device, reply(mac, own, intruder));
    }
    world.run(Duration::from_secs(1));
    for device in [CT, MRI, PUMP, MONITOR] {
        let mac = world.hosts[device].mac;
        assert_eq!(heard_from(&world, mac), [], "{}", world.hosts[device].name);
        // Nor is a probe for its own address answered: it would think that somebody else has it.
        let own = world.hosts[device].address;
        let answered = world.hosts[device].seen.iter().any(|frame| {
            let packet = frame.get(14..).and_then(|bytes| arp::parse_arp(bytes).ok());
            packet.is_some_and(|packet| packet.sender == own || packet.target == own)
        });
        assert!(!answered, "{}: {:02x?}", world.hosts[device].name, world.hosts[device].seen);
    }
    assert_no_stand_in(&world);
}

#[test]
fn a_swapped_router_takes_over_within_seconds() {
    for announces in [true, false] {
        let mut world = enforced(6);
        world.router_mac = NEW_ROUTER;
        if announces {
            world.announce_router([10, 20, 1]);
        } else {
            // Whoever gets no answer asks again.
            world.hosts[CT].arp.clear();
            let _ = probe(&mut world, CT, ARCHIVE, DICOM, 920_000, 1);
        }
        world.announce_router([10, 20, 4]);
        world.hosts[ARCHIVE].arp.clear();
        world.run(Duration::from_secs(4));
        assert_eq!(router_of(&mut world, CT), Some(NEW_ROUTER), "announces: {announces}");
        assert_eq!(world.hosts[CT].arp.get(&OWN_ROUTER), Some(&NEW_ROUTER), "the CT was told");
        expect(&mut world, CT, ARCHIVE, Way::Clear);
        // Two routers that take turns: the first is back at once.
        world.router_mac = ROUTER;
        world.announce_router([10, 20, 1]);
        world.run(Duration::from_millis(100));
        assert_eq!(router_of(&mut world, CT), Some(ROUTER));
    }
}

#[test]
fn an_impostor_doesnt_become_the_router_however_long_it_tries() {
    let mut world = enforced(7);
    let (ct, intruder) = (world.hosts[CT].clone(), world.hosts[INTRUDER].mac);
    let archive = world.hosts[ARCHIVE].address;
    for round in 0..120_u8 {
        world.put(INTRUDER, reply(intruder, OWN_ROUTER, (ct.mac, ct.address)));
        world.put(INTRUDER, reply(intruder, archive, (ct.mac, ct.address)));
        world.put(INTRUDER, arp::request(intruder, OWN_ROUTER, OWN_ROUTER).to_vec());
        world.put(INTRUDER, arp::request(intruder, OWN_ROUTER, ct.address).to_vec());
        // So many neighbours that the router's entry would have to make room.
        for last in 100..140 {
            let address = Ipv4Addr::new(10, 20, 1, last);
            world.put(INTRUDER, reply(intruder, address, (ct.mac, ct.address)));
        }
        // Under ever new names as well.
        let other = MacAddr([0, 0x1b, 0x21, 9, 9, round]);
        world.put(INTRUDER, reply(other, OWN_ROUTER, (ct.mac, ct.address)));
        world.run(Duration::from_secs(1));
        assert_eq!(router_of(&mut world, CT), Some(ROUTER), "after {round} s");
    }
    assert_eq!(world.hosts[CT].arp.get(&OWN_ROUTER), Some(&ROUTER));
    assert_eq!(world.hosts[CT].flips, []);
    // It is found out, and the campus pays no more than a question a second for it.
    let now = world.now;
    let alarms = world.engine(0).report(now).alarms;
    let found = alarms.iter().any(|a| a.kind == AlarmKind::Conflict && a.mac == intruder);
    assert!(found, "{alarms:#?}");
    let asked = heard_from(&world, ct.mac);
    assert!(asked.len() <= 150, "{} frames in the CT's name", asked.len());
    let to_others = world.campus.iter().filter(|seen| {
        seen.from == Cable::Gateway(0)
            && seen.bytes[6..12] == ct.mac.0
            && seen.bytes[..6] != ROUTER.0
    });
    assert_eq!(to_others.count(), 0, "only the router is asked");
    expect(&mut world, CT, ARCHIVE, Way::Clear);
}

#[test]
fn an_impostor_who_silences_the_router_for_a_moment_gains_that_moment() {
    let mut world = enforced(8);
    let (ct, intruder) = (world.hosts[CT].clone(), world.hosts[INTRUDER].mac);
    world.router_is_down = true;
    world.put(INTRUDER, reply(intruder, OWN_ROUTER, (ct.mac, ct.address)));
    world.run(Duration::from_secs(4));
    assert_eq!(router_of(&mut world, CT), Some(intruder), "the router is gone");
    world.router_is_down = false;
    world.announce_router([10, 20, 1]);
    world.run(Duration::from_millis(50));
    assert_eq!(router_of(&mut world, CT), Some(ROUTER));
    for _ in 0..60 {
        world.put(INTRUDER, reply(intruder, OWN_ROUTER, (ct.mac, ct.address)));
        world.run(Duration::from_secs(1));
    }
    assert_eq!(router_of(&mut world, CT), Some(ROUTER));
    assert_eq!(world.hosts[CT].arp.get(&OWN_ROUTER), Some(&ROUTER));
}

#[test]
fn a_pinned_router_is_never_replaced() {
    let mut world = enforced(9);
    world.plan.devices[CT].device.router.as_mut().unwrap().mac = Some(ROUTER);
    world.plan.revise();
    world.apply_all();
    let (ct, intruder) = (world.hosts[CT].clone(), world.hosts[INTRUDER].mac);
    world.router_is_down = true;
    for _ in 0..30 {
        world.put(INTRUDER, reply(intruder, OWN_ROUTER, (ct.mac, ct.address)));
        world.put(INTRUDER, arp::request(intruder, OWN_ROUTER, ct.address).to_vec());
        world.run(Duration::from_secs(1));
    }
    assert_eq!(router_of(&mut world, CT), Some(ROUTER));
    assert_eq!(world.hosts[CT].arp.get(&OWN_ROUTER), Some(&ROUTER));
    assert_eq!(heard_from(&world, ct.mac), []);
}

#[test]
fn a_device_without_an_external_learns_no_router_from_the_campus() {
    let mut world = enforced(10);
    let (pump, workstation) = (world.hosts[PUMP].clone(), world.hosts[WORKSTATION].mac);
    let before = router_of(&mut world, PUMP);
    // From the pump's own network: the router's port there.
    world.router_mac = workstation;
    world.announce_router([10, 20, 2]);
    world.run(Duration::from_secs(5));
    assert_eq!(router_of(&mut world, PUMP), before);
    assert_eq!(heard_from(&world, pump.mac), []);
}

/// The Ethernet address that two routers share (VRRP), and each one's own with its IP address.
const VIRTUAL: MacAddr = MacAddr([0, 0, 0x5e, 0, 1, 5]);
const FIRST: (MacAddr, Ipv4Addr) = (MacAddr([0, 0x1b, 0x21, 7, 7, 2]), Ipv4Addr::new(10, 20, 1, 2));
const SECOND: (MacAddr, Ipv4Addr) =
    (MacAddr([0, 0x1b, 0x21, 7, 7, 3]), Ipv4Addr::new(10, 20, 1, 3));

/// The hospital in enforce, its routers sharing one address, and each asking from its own if `listed`.
fn two_routers(seed: u64, listed: bool) -> World {
    let mut world = hospital(seed);
    world.router_mac = VIRTUAL;
    if listed {
        world.plan.infrastructure.routers = vec![FIRST.1, SECOND.1];
    }
    let _ = probe(&mut world, CT, ARCHIVE, DICOM, 1, 1);
    all(&mut world, Mode::Protect);
    all(&mut world, Mode::Enforce);
    expect(&mut world, CT, ARCHIVE, Way::Clear);
    world.clear_campus();
    for host in &mut world.hosts {
        host.seen.clear();
    }
    world
}

/// A router's question for a device, to all and to the device alone.
fn asks(world: &mut World, (mac, address): (MacAddr, Ipv4Addr), device: usize) {
    let (to, target) = (world.hosts[device].mac, world.hosts[device].address);
    let broadcast = arp::request(mac, address, target);
    let mut alone = broadcast;
    alone[..6].copy_from_slice(&to.0);
    world.put(INTRUDER, broadcast.to_vec());
    world.put(INTRUDER, alone.to_vec());
    world.run(Duration::from_millis(50));
}

#[test]
fn routers_that_share_an_address_are_answered_at_their_own() {
    let mut world = two_routers(11, false);
    let (ct, mri) = (world.hosts[CT].mac, world.hosts[MRI].mac);
    asks(&mut world, FIRST, CT);
    assert_eq!(heard_from(&world, ct), [], "nobody listed it");

    let mut world = two_routers(11, true);
    for router in [FIRST, SECOND, FIRST] {
        world.clear_campus();
        for device in [CT, MRI] {
            asks(&mut world, router, device);
        }
        let answers = heard_from(&world, ct);
        assert_eq!(answers.len(), 2, "{answers:?}");
        for answer in answers {
            let to = (answer.operation, answer.target_mac, answer.target, answer.sender_mac);
            assert_eq!(to, (Operation::Reply, router.0, router.1, ct));
        }
        assert_eq!(heard_from(&world, mri), [], "the MRI needs no router");
    }
    // Whoever passes for one of them isn't answered: the one who is known is asked, alone.
    world.clear_campus();
    let intruder = world.hosts[INTRUDER].mac;
    asks(&mut world, (intruder, FIRST.1), CT);
    let heard = heard_from(&world, ct);
    let asked: Vec<_> = heard.iter().map(|said| (said.operation, said.target)).collect();
    assert_eq!(asked, [(Operation::Request, FIRST.1)]);
    let to: Vec<_> = world
        .campus
        .iter()
        .filter(|seen| seen.bytes[6..12] == ct.0)
        .map(|s| &s.bytes[..6])
        .collect();
    assert_eq!(to, [FIRST.0.0]);
    let device = (ct, world.hosts[CT].address);
    world.put(INTRUDER, reply(FIRST.0, FIRST.1, device));
    world.clear_campus();
    asks(&mut world, (intruder, FIRST.1), CT);
    assert_eq!(heard_from(&world, ct), []);
    asks(&mut world, FIRST, CT);
    assert_eq!(heard_from(&world, ct).len(), 2);
    // What they announce is nothing to the device, whose router has another address.
    for frame in [
        arp::request(FIRST.0, FIRST.1, FIRST.1).to_vec(),
        reply(FIRST.0, FIRST.1, device),
        reply(FIRST.0, FIRST.1, (MacAddr::BROADCAST, FIRST.1)),
    ] {
        let mut alone = frame.clone();
        alone[..6].copy_from_slice(&ct.0);
        world.put(INTRUDER, frame);
        world.put(INTRUDER, alone);
    }
    world.run(Duration::from_secs(5));
    let seen = &world.hosts[CT].seen;
    assert!(seen.is_empty(), "{seen:02x?}");
    assert_eq!(router_of(&mut world, CT), Some(VIRTUAL));
    expect(&mut world, CT, ARCHIVE, Way::Clear);
}

#[test]
fn a_routers_swap_behind_a_shared_ethernet_address_isnt_noticed() {
    let mut world = two_routers(12, true);
    // The other one takes over: the same addresses, heard from another port of the campus.
    for _ in 0..5 {
        world.put(INTRUDER, arp::request(VIRTUAL, OWN_ROUTER, OWN_ROUTER).to_vec());
        world.run(Duration::from_millis(100));
        world.announce_router([10, 20, 1]);
        world.run(Duration::from_millis(100));
        expect(&mut world, CT, ARCHIVE, Way::Clear);
    }
    assert_eq!(router_of(&mut world, CT), Some(VIRTUAL));
    assert_eq!(world.hosts[CT].flips, []);
    let now = world.now;
    assert_eq!(world.engine(0).report(now).alarms, []);
}

#[test]
fn nobody_on_a_port_passes_for_one_of_the_routers() {
    let mut world = two_routers(13, true);
    world.plan.revise();
    let revision = world.plan.revision;
    let member = &mut world.plan.devices[MRI].device.member;
    (member.mode, member.mode_since) = (Mode::Observe, revision);
    world.apply_all();
    world.clear_campus();
    let mri = world.hosts[MRI].mac;
    asks_from_port(&mut world, MRI, FIRST.1);
    assert_eq!(heard_from(&world, mri), []);
    let now = world.now;
    let alarms = world.engine(0).report(now).alarms;
    let raised = |a: &anteroom_proto::alarm::Alarm| {
        (a.kind, a.address) == (AlarmKind::Conflict, Some(FIRST.1))
    };
    assert!(alarms.iter().any(raised), "{alarms:#?}");
    // What the MRI says of itself passes: it is on a wire.
    let own = world.hosts[MRI].address;
    asks_from_port(&mut world, MRI, own);
    assert!(!heard_from(&world, mri).is_empty());
}

fn asks_from_port(world: &mut World, device: usize, sender: Ipv4Addr) {
    let mac = world.hosts[device].mac;
    world.put(device, arp::request(mac, sender, STRANGER).to_vec());
    world.run(Duration::from_millis(50));
}
