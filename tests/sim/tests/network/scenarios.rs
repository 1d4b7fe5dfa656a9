//! What modes, tunnels and failures mean, step by step.

use std::time::Duration;

use anteroom_proto::intent::{Condition, Infrastructure, KnownCondition};
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_proto::verdict::{DropReason, Verdict};
use anteroom_sim::hospital::*;
use anteroom_sim::model::{Way, way};
use anteroom_sim::packet::{self, TcpFlags};
use anteroom_sim::plan::{Plan, Who};
use anteroom_sim::story::*;
use anteroom_sim::world::EPOCH;

const DICOM: (Protocol, u16) = (Protocol::Tcp, 104);
const HL7_PORT: (Protocol, u16) = (Protocol::Tcp, 2575);

#[test]
fn without_a_view_a_gateway_is_a_wire_that_records() {
    let mut world = hospital(1);
    for (from, to) in [(CT, PACS), (INTRUDER, CT), (WORKSTATION, PUMP), (PACS, ARCHIVE)] {
        expect(&mut world, from, to, DICOM, Way::Clear);
    }
    let now = world.now;
    let report = world.engine(0).report(now);
    let sighting = report.sightings.iter().find(|s| s.port.as_str() == "port1").unwrap();
    assert_eq!(sighting.addresses, [world.hosts[CT].address], "{report:#?}");
    let router = sighting.router.map(|(address, _)| address);
    assert_eq!(router, Some(world.hosts[CT].router), "{report:#?}");
    assert_eq!(sighting.prefix_len, Some(24));
    let edge = report.edges.iter().find(|edge| edge.outbound && edge.port == 104).unwrap();
    assert_eq!((edge.verdict, edge.flows, edge.member), (Verdict::Clear, 1, None));
    assert!(edge.packets_out >= 2 && edge.packets_in >= 1, "{edge:?}");
    assert!(report.drops.is_empty(), "{report:#?}");
    assert!(world.engine(0).report(now).edges.is_empty(), "edges are told once");
}

#[test]
fn observe_passes_everything_byte_for_byte() {
    let mut world = hospital(2);
    all(&mut world, Mode::Observe);
    let odd = [
        packet::frame(
            anteroom_proto::mac::MacAddr::BROADCAST,
            world.hosts[CT].mac,
            0x88b5,
            &[7; 50],
        ),
        packet::frame(anteroom_sim::world::ROUTER, world.hosts[CT].mac, 0x86dd, &[0x60; 60]),
        packet::frame(
            anteroom_sim::world::ROUTER,
            world.hosts[CT].mac,
            0x8100,
            &[0, 5, 8, 0, 1, 2],
        ),
        packet::frame(anteroom_sim::world::ROUTER, world.hosts[CT].mac, 0x0800, &[0x45, 0, 9]),
        packet::frame(
            anteroom_proto::mac::MacAddr([1, 0x80, 0xc2, 0, 0, 3]),
            world.hosts[CT].mac,
            0x888e,
            &[1; 20],
        ),
        packet::frame(
            anteroom_proto::mac::MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]),
            world.hosts[CT].mac,
            0x88cc,
            &[2; 20],
        ),
    ];
    world.clear_campus();
    for frame in &odd {
        world.put(CT, frame.clone());
    }
    world.run(Duration::from_millis(5));
    let seen: Vec<_> = world.campus.iter().map(|seen| seen.bytes.clone()).collect();
    assert_eq!(seen, odd);
}

#[test]
fn protect_tunnels_what_rules_allow_and_passes_the_rest() {
    let mut world = hospital(3);
    all(&mut world, Mode::Protect);
    expect(&mut world, CT, PACS, DICOM, Way::Tunnel);
    expect(&mut world, PACS, CT, (Protocol::Tcp, 4006), Way::Tunnel);
    expect(&mut world, MONITOR, HL7, (Protocol::IcmpEcho, 0), Way::Tunnel);
    expect(&mut world, CT, PACS, (Protocol::Tcp, 22), Way::Clear);
    expect(&mut world, PACS, CT, DICOM, Way::Clear);
    expect(&mut world, INTRUDER, CT, DICOM, Way::Clear);
    expect(&mut world, CT, ARCHIVE, DICOM, Way::Clear);
    let now = world.now;
    let edges = world.engine(0).report(now).edges;
    let verdict = |port: u16, outbound: bool| {
        edges
            .iter()
            .filter(|e| e.port == port && e.outbound == outbound)
            .map(|e| e.verdict)
            .collect::<Vec<_>>()
    };
    assert_eq!(verdict(22, true), [Verdict::WouldDrop(DropReason::NoRule)], "{edges:#?}");
    assert_eq!(verdict(4006, false), [Verdict::Tunnel], "{edges:#?}");
    assert!(
        verdict(104, false).contains(&Verdict::WouldDrop(DropReason::NotVisible)),
        "{edges:#?}"
    );
}

#[test]
fn enforce_drops_what_no_rule_allows_and_hides_the_device() {
    let mut world = hospital(4);
    all(&mut world, Mode::Enforce);
    world.clear_campus();
    expect(&mut world, CT, PACS, DICOM, Way::Tunnel);
    expect(&mut world, PACS, CT, (Protocol::Tcp, 4006), Way::Tunnel);
    expect(&mut world, CT, ARCHIVE, DICOM, Way::Clear);
    expect(&mut world, CT, MRI, (Protocol::Udp, 7000), Way::Local);
    expect(&mut world, MRI, CT, (Protocol::Udp, 7001), Way::None);
    expect(&mut world, CT, PACS, (Protocol::Tcp, 22), Way::None);
    expect(&mut world, PUMP, ARCHIVE, (Protocol::Udp, 5000), Way::None);
    expect(&mut world, PUMP, PACS, DICOM, Way::None);
    for service in [DICOM, (Protocol::Udp, 53), (Protocol::IcmpEcho, 0)] {
        expect(&mut world, INTRUDER, CT, service, Way::None);
        expect(&mut world, WORKSTATION, CT, service, Way::None);
    }
    assert_eq!(
        world.hosts[INTRUDER].arp.get(&world.hosts[CT].address),
        None,
        "ARP gave the CT away"
    );
    let pump = question(&world, PUMP, ARCHIVE, "udp/5000");
    let now = world.now;
    let why = world.engine(1).explain(&pump, now);
    assert_eq!(why.verdict, Verdict::Drop(DropReason::ClearNotAllowed));
    assert_eq!(why.last_drop.map(|drop| drop.reason), Some(DropReason::ClearNotAllowed));
    assert!(leaks(&world).is_empty(), "{:#?}", leaks(&world));
}

#[test]
fn enforce_lets_no_other_frame_out_or_in() {
    let mut world = hospital(5);
    all(&mut world, Mode::Enforce);
    world.clear_campus();
    let (ct, router) = (world.hosts[CT].mac, anteroom_sim::world::ROUTER);
    let broadcast = anteroom_proto::mac::MacAddr::BROADCAST;
    let other = world.hosts[ARCHIVE].address;
    let address = world.hosts[CT].address;
    let bad = |from, to| {
        vec![
            packet::frame(to, from, 0x88b5, &[7; 50]),
            packet::frame(to, from, 0x86dd, &[0x60; 60]),
            packet::frame(to, from, 0x8100, &[0, 5, 8, 0, 1, 2]),
            packet::frame(
                broadcast,
                from,
                0x0800,
                &packet::udp((address, 9), ([255; 4].into(), 9), &[1]),
            ),
            packet::frame(to, from, 0x0800, &[0x45, 0, 9]),
        ]
    };
    for frame in bad(ct, router) {
        world.put(CT, frame);
    }
    let spoofed = packet::tcp((world.hosts[MRI].address, 5), (other, 104), TcpFlags::SYN, &[]);
    world.put(CT, packet::frame(router, ct, 0x0800, &spoofed));
    world.put(CT, packet::frame(router, world.hosts[MRI].mac, 0x0800, &spoofed));
    world.run(Duration::from_millis(20));
    assert!(world.campus.is_empty(), "{:02x?}", world.campus);
    for frame in bad(world.hosts[INTRUDER].mac, ct) {
        world.put(INTRUDER, frame);
    }
    let stolen = packet::tcp((world.hosts[PACS].address, 5), (address, 4006), TcpFlags::SYN, &[]);
    world.put(INTRUDER, packet::frame(ct, world.hosts[INTRUDER].mac, 0x0800, &stolen));
    world.put(INTRUDER, packet::frame(ct, world.hosts[MRI].mac, 0x0800, &stolen));
    world.run(Duration::from_millis(20));
    assert!(world.hosts[CT].seen.is_empty(), "{:02x?}", world.hosts[CT].seen);
    let now = world.now;
    let drops = world.engine(0).status(now).drops;
    for reason in [
        DropReason::NonIp,
        DropReason::Ipv6,
        DropReason::Tagged,
        DropReason::Broadcast,
        DropReason::Malformed,
        DropReason::IpSpoofed,
        DropReason::MacSpoofed,
        DropReason::ClearFromTunnelPeer,
        DropReason::LocalSourceFromUplink,
    ] {
        assert!(drops.contains_key(reason.as_str()), "{reason} wasn't counted: {drops:?}");
    }
}

#[test]
fn a_device_never_gets_two_differing_arp_answers() {
    let mut world = hospital(6);
    for mode in [Mode::Observe, Mode::Protect, Mode::Enforce, Mode::Protect, Mode::Observe] {
        all(&mut world, mode);
        for (from, to) in [(CT, PACS), (MONITOR, HL7), (CT, ARCHIVE), (PACS, CT)] {
            for host in [from, to] {
                world.hosts[host].arp.retain(|_, _| mode != Mode::Observe);
            }
            let marker = world.plan.revision * 10 + from as u64;
            let _ = probe(&mut world, from, to, DICOM, marker, 1);
        }
        for host in &world.hosts {
            assert!(host.flips.is_empty(), "{} in {mode}: {:?}", host.name, host.flips);
        }
    }
}

#[test]
fn the_responder_opens_nothing_on_the_ports_of_a_flow() {
    let mut world = hospital(22);
    all(&mut world, Mode::Enforce);
    let target = (world.hosts[PACS].address, 104);
    world.act(CT, |host, out| host.connect(target, 39_000, b"open", out));
    world.run(Duration::from_secs(1));
    world.clear_campus();
    let ct = world.hosts[CT].address;
    for flags in [TcpFlags::SYN, TcpFlags::SYN | TcpFlags::ACK] {
        world.act(PACS, |host, out| {
            host.send(packet::tcp((host.address, 104), (ct, 39_000), flags, b""), out);
        });
        world.act(CT, |host, out| {
            host.send(
                packet::tcp((host.address, 39_000), target, TcpFlags::SYN | TcpFlags::ACK, b""),
                out,
            );
        });
        world.run(Duration::from_millis(50));
    }
    let opened = world.hosts[CT].inbox.iter().any(|got| got.flags == TcpFlags::SYN);
    let accepted = world.hosts[PACS].inbox.iter().any(|got| got.flags & TcpFlags::SYN != 0);
    assert!(!opened && !accepted, "{:?} {:?}", world.hosts[CT].inbox, world.hosts[PACS].inbox);
    world.act(CT, |host, out| {
        host.send(packet::tcp((host.address, 39_000), target, TcpFlags::ACK, b"still"), out);
    });
    world.run(Duration::from_millis(50));
    assert!(world.hosts[PACS].inbox.iter().any(|got| got.payload == b"still"), "the flow is gone");
}

#[test]
fn a_rule_with_an_end_is_closed_until_the_time_is_confirmed() {
    let mut world = hospital(23);
    let end = EPOCH.saturating_add(3_600_000);
    let rule = world.plan.rule("vendor", Who::Device(HL7), Who::Device(PUMP), &["tcp/5900"]);
    rule.conditions = vec![Condition::Known(KnownCondition::NotAfter(end))];
    all(&mut world, Mode::Enforce);
    world.boot_unsure(2);
    world.apply(2);
    let why = question(&world, HL7, PUMP, "tcp/5900");
    let now = world.now;
    let verdict = world.engine(2).explain(&why, now).verdict;
    assert_eq!(verdict, Verdict::Drop(DropReason::TimeUnknown));
    // A peer tells the time as soon as there is a tunnel.
    world.run(Duration::from_secs(3));
    expect(&mut world, HL7, PUMP, (Protocol::Tcp, 5900), Way::Tunnel);
}

#[test]
fn a_rule_with_an_unknown_condition_never_matches() {
    let mut world = hospital(24);
    let rule = world.plan.rule("odd", Who::Device(HL7), Who::Device(PUMP), &["tcp/5900"]);
    // What a newer operator would sign, by the only way that tests need not know how values look.
    let unknown = anteroom_proto::cbor::encode(&std::collections::BTreeMap::from([("moon", 1)]));
    rule.conditions = vec![anteroom_proto::cbor::decode(&unknown, 100).unwrap()];
    all(&mut world, Mode::Enforce);
    expect(&mut world, HL7, PUMP, (Protocol::Tcp, 5900), Way::None);
    let why = question(&world, HL7, PUMP, "tcp/5900");
    let now = world.now;
    let verdict = world.engine(2).explain(&why, now).verdict;
    assert_eq!(verdict, Verdict::Drop(DropReason::UnknownCondition));
}

#[test]
fn a_restarted_gateway_picks_its_connections_up() {
    let mut world = hospital(8);
    all(&mut world, Mode::Enforce);
    let target = (world.hosts[HL7].address, 2575);
    world.act(MONITOR, |host, out| host.connect(target, 41_000, b"first", out));
    world.run(Duration::from_secs(1));
    world.boot(1);
    world.apply(1);
    let began = world.now;
    let mut tries = 0_u16;
    loop {
        tries += 1;
        let word = [b"again".as_slice(), &tries.to_be_bytes()].concat();
        world.act(MONITOR, |host, out| {
            host.send(packet::tcp((host.address, 41_000), target, TcpFlags::ACK, &word), out);
        });
        world.run(Duration::from_millis(100));
        if world.hosts[HL7].inbox.iter().any(|got| got.payload == word) {
            break;
        }
        assert!(tries < 100, "{:#?}", world.engine(1).status(began));
    }
    let took = world.now - began;
    assert!(took < Duration::from_secs(2), "{took:?}");
    expect(&mut world, MONITOR, HL7, HL7_PORT, Way::Tunnel);
    world.act(PACS, |host, out| {
        let to = (host.address, 104);
        let _ = to;
        let stray = packet::tcp(
            (host.address, 104),
            ([10, 20, 1, 10].into(), 9_999),
            TcpFlags::SYN | TcpFlags::ACK,
            &[],
        );
        host.send(stray, out);
    });
    world.run(Duration::from_millis(100));
    assert!(!world.hosts[CT].inbox.iter().any(|got| got.port == 9_999), "a SYN-ACK opened a flow");
}

#[test]
fn a_lost_tunnel_leaves_protect_in_the_clear_and_enforce_closed() {
    let mut world = hospital(9);
    all(&mut world, Mode::Protect);
    expect(&mut world, CT, PACS, DICOM, Way::Tunnel);
    world.weather.loss = 100;
    world.run(Duration::from_secs(12));
    let outcome = probe(&mut world, CT, PACS, DICOM, 901, 1);
    assert_eq!(outcome, Outcome::of(Way::Clear));
    let now = world.now;
    let why = question(&world, CT, PACS, "tcp/104");
    assert_eq!(world.engine(0).explain(&why, now).verdict, Verdict::ClearTunnelDown);
    world.weather.loss = 0;
    world.run(Duration::from_secs(10));
    expect(&mut world, CT, PACS, DICOM, Way::Tunnel);
    all(&mut world, Mode::Enforce);
    world.clear_campus();
    world.weather.loss = 100;
    world.run(Duration::from_secs(12));
    expect(&mut world, CT, PACS, DICOM, Way::None);
    assert_eq!(world.engine(0).explain(&why, now).verdict, Verdict::Drop(DropReason::TunnelDown));
    assert!(leaks(&world).is_empty(), "{:#?}", leaks(&world));
}

#[test]
fn a_tunnelled_flow_never_falls_back_to_the_clear() {
    let mut world = hospital(10);
    all(&mut world, Mode::Protect);
    let target = (world.hosts[PACS].address, 104);
    world.act(CT, |host, out| host.connect(target, 42_000, b"open", out));
    world.run(Duration::from_secs(1));
    world.clear_campus();
    world.weather.loss = 100;
    for _ in 0..40 {
        world.act(CT, |host, out| {
            host.send(packet::tcp((host.address, 42_000), target, TcpFlags::ACK, b"secret"), out);
        });
        world.run(Duration::from_millis(500));
    }
    let leaked = world.campus.iter().any(|seen| seen.bytes.windows(6).any(|w| w == b"secret"));
    assert!(!leaked, "a tunnelled flow went on in the clear");
}

#[test]
fn revocation_cuts_off() {
    let mut world = hospital(11);
    all(&mut world, Mode::Enforce);
    expect(&mut world, CT, PACS, DICOM, Way::Tunnel);
    world.plan.gateways[2].revoked = true;
    world.plan.revise();
    world.apply(0);
    world.apply(1);
    expect(&mut world, CT, PACS, DICOM, Way::None);
    expect(&mut world, PACS, CT, (Protocol::Tcp, 4006), Way::None);
    expect(&mut world, CT, ARCHIVE, DICOM, Way::Clear);
}

#[test]
fn quarantine_leaves_essential_rules_only() {
    let mut world = hospital(12);
    all(&mut world, Mode::Protect);
    let rule = world.plan.rule("wards", Who::Device(MONITOR), Who::Device(HL7), &["udp/6000"]);
    rule.essential = false;
    world.plan.revise();
    world.apply_all();
    expect(&mut world, MONITOR, HL7, (Protocol::Udp, 6000), Way::Tunnel);
    world.plan.devices[MONITOR].device.member.quarantined = true;
    world.plan.revise();
    world.apply_all();
    expect(&mut world, MONITOR, HL7, HL7_PORT, Way::Tunnel);
    expect(&mut world, MONITOR, HL7, (Protocol::Udp, 6000), Way::None);
    expect(&mut world, MONITOR, WORKSTATION, DICOM, Way::None);
    expect(&mut world, WORKSTATION, MONITOR, DICOM, Way::None);
    expect(&mut world, HL7, MONITOR, (Protocol::Tcp, 22), Way::None);
    let now = world.now;
    let drops = world.engine(2).status(now).drops;
    assert!(drops.contains_key("quarantined"), "the other end drops as well: {drops:?}");
    let why = question(&world, MONITOR, HL7, "udp/6000");
    let now = world.now;
    let reason = world.engine(1).explain(&why, now).verdict;
    assert_eq!(reason, Verdict::Drop(DropReason::Quarantined));
}

#[test]
fn a_rule_ends_when_its_time_comes_and_cuts_live_flows() {
    let mut world = hospital(13);
    let end = EPOCH.saturating_add(60_000);
    let rule = world.plan.rule("vendor", Who::Device(HL7), Who::Device(PUMP), &["tcp/5900"]);
    rule.conditions = vec![Condition::Known(KnownCondition::NotAfter(end))];
    all(&mut world, Mode::Enforce);
    expect(&mut world, HL7, PUMP, (Protocol::Tcp, 5900), Way::Tunnel);
    let target = (world.hosts[PUMP].address, 5900);
    world.act(HL7, |host, out| host.connect(target, 43_000, b"open", out));
    world.run(Duration::from_secs(61));
    world.clear_campus();
    world.act(HL7, |host, out| {
        host.send(packet::tcp((host.address, 43_000), target, TcpFlags::ACK, b"late"), out);
    });
    world.run(Duration::from_secs(1));
    assert!(world.hosts[PUMP].inbox.is_empty(), "{:?}", world.hosts[PUMP].inbox);
    expect(&mut world, HL7, PUMP, (Protocol::Tcp, 5900), Way::None);
    let why = question(&world, HL7, PUMP, "tcp/5900");
    let now = world.now;
    let verdict = world.engine(2).explain(&why, now).verdict;
    assert_eq!(verdict, Verdict::Drop(DropReason::Expired));
}

#[test]
fn an_unknown_machine_on_a_port_is_held_once_a_device_left_observe() {
    let mut world = hospital(14);
    all(&mut world, Mode::Protect);
    world.clear_campus();
    let stranger = anteroom_sim::plan::mac(0x66, 6);
    let address = [10, 20, 1, 99].into();
    let packet = packet::udp((address, 9), ([10, 20, 9, 20].into(), 9), b"hello");
    let frame = packet::frame(anteroom_sim::world::ROUTER, stranger, 0x0800, &packet);
    world.put(CT, frame);
    world.run(Duration::from_millis(10));
    assert!(world.campus.is_empty(), "{:02x?}", world.campus);
    let now = world.now;
    let report = world.engine(0).report(now);
    let sighting = report.sightings.iter().find(|s| s.mac == stranger).unwrap();
    assert!(sighting.held && sighting.addresses == [address], "{sighting:?}");
    assert_eq!(report.drops.get("unknown-mac"), Some(&1));
}

#[test]
fn infrastructure_is_open_to_enforced_devices_and_nothing_beside_it() {
    let mut world = hospital(15);
    world.plan.infrastructure = Infrastructure {
        dhcp: vec![],
        dns: vec![world.hosts[WORKSTATION].address],
        ntp: vec![world.hosts[WORKSTATION].address],
        routers: vec![],
    };
    all(&mut world, Mode::Enforce);
    expect(&mut world, PUMP, WORKSTATION, (Protocol::Udp, 53), Way::Clear);
    expect(&mut world, PUMP, WORKSTATION, (Protocol::Tcp, 53), Way::Clear);
    expect(&mut world, PUMP, WORKSTATION, (Protocol::Udp, 123), Way::Clear);
    expect(&mut world, PUMP, WORKSTATION, (Protocol::Udp, 161), Way::None);
    expect(&mut world, WORKSTATION, PUMP, (Protocol::Udp, 53), Way::None);
}

#[test]
fn what_is_learnt_outlives_a_restart() {
    let mut world = hospital(16);
    world.apply_all();
    expect(&mut world, CT, PACS, DICOM, Way::Clear);
    let learned = world.engine(0).learned();
    assert!(!learned.next_hops.is_empty() && !learned.sightings.is_empty());
    world.boot(0);
    world.engine(0).restore(learned.clone());
    world.apply(0);
    assert_eq!(world.engine(0).learned(), learned);
    let now = world.now;
    let status = world.engine(0).status(now);
    assert_eq!(status.devices[0].router_mac, Some(anteroom_sim::world::ROUTER), "{status:#?}");
}

#[test]
fn the_model_agrees_with_itself() {
    let world = hospital(0);
    let plan: &Plan = &world.plan;
    let (ct, pacs) = (machine(&world, CT), machine(&world, PACS));
    assert_eq!(way(plan, ct, pacs, DICOM.0, DICOM.1), Way::Clear);
}
