//! Strangers on the campus, and devices, that pass for somebody else on the link.

use std::net::Ipv4Addr;
use std::time::Duration;

use anteroom_agent_core::wire::arp;
use anteroom_agent_core::wire::tcp::TcpFlags;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_sim::hospital::*;
use anteroom_sim::packet;
use anteroom_sim::plan::Who;
use anteroom_sim::world::{ROUTER, World};

const DICOM: (Protocol, u16) = (Protocol::Tcp, 104);
const EAPOL: u16 = 0x888e;
const PAE_GROUP: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0, 0, 3]);

fn enforced(seed: u64) -> World {
    let mut world = hospital(seed);
    let _ = probe(&mut world, CT, ARCHIVE, DICOM, 1, 1);
    for mode in [Mode::Protect, Mode::Enforce] {
        world.plan.revise();
        let revision = world.plan.revision;
        for device in &mut world.plan.devices {
            device.device.member.mode = mode;
            device.device.member.mode_since = revision;
        }
        world.apply_all();
    }
    world.clear_campus();
    world
}

#[test]
fn link_control_crosses_enforce_by_its_group_addresses_only() {
    let mut world = enforced(21);
    let (ct, intruder) = (world.hosts[CT].mac, world.hosts[INTRUDER].mac);
    for to in [intruder, ROUTER, MacAddr::BROADCAST] {
        world.put(CT, packet::frame(to, ct, EAPOL, b"a device's words"));
    }
    for to in [ct, MacAddr::BROADCAST, MacAddr([0x01, 0, 0x5e, 1, 2, 3])] {
        world.put(INTRUDER, packet::frame(to, intruder, EAPOL, b"a stranger's words"));
    }
    world.run(Duration::from_millis(20));
    let leaked: Vec<_> = world.campus.iter().filter(|frame| frame.bytes[6..12] == ct.0).collect();
    assert!(leaked.is_empty(), "{leaked:02x?}");
    assert!(world.hosts[CT].seen.is_empty(), "{:02x?}", world.hosts[CT].seen);
    world.put(CT, packet::frame(PAE_GROUP, ct, EAPOL, &[1, 1, 0, 0]));
    world.run(Duration::from_millis(20));
    assert!(
        world
            .campus
            .iter()
            .any(|frame| frame.bytes[..6] == PAE_GROUP.0 && frame.bytes[6..12] == ct.0),
        "802.1X didn't pass: {:02x?}",
        world.campus
    );
}

#[test]
fn a_stranger_who_speaks_as_the_router_learns_and_changes_nothing() {
    let mut world = enforced(22);
    let (intruder, address) = (world.hosts[INTRUDER].mac, world.hosts[CT].address);
    let router = Ipv4Addr::new(10, 20, 1, 1);
    let now = world.now;
    let known = |world: &mut World| {
        let status = world.engine(0).status(now);
        let mac = status.devices.iter().find(|device| device.addresses.contains(&address));
        mac.and_then(|device| device.router_mac)
    };
    assert_eq!(known(&mut world), Some(ROUTER), "the router was heard before");
    let archive = world.hosts[ARCHIVE].address;
    for claimed in [router, archive] {
        for target in [address, claimed] {
            world.put(INTRUDER, arp::request(intruder, claimed, target).to_vec());
        }
    }
    world.run(Duration::from_millis(50));
    assert_eq!(known(&mut world), Some(ROUTER));
    let ct = world.hosts[CT].mac;
    // The router itself may be asked whether it is still there.
    let to_others = |bytes: &[u8]| bytes[6..12] == ct.0 && bytes[..6] != ROUTER.0;
    let answers: Vec<_> = world.campus.iter().filter(|frame| to_others(&frame.bytes)).collect();
    assert!(answers.is_empty(), "the stranger was answered: {answers:02x?}");
    assert!(world.hosts[CT].seen.is_empty(), "{:02x?}", world.hosts[CT].seen);
}

#[test]
fn a_gateway_cant_speak_within_anothers_flow_where_their_networks_nest() {
    let mut world = enforced(23);
    for (device, net) in [(CT, "10.99.0.0/16"), (MONITOR, "10.99.5.0/24")] {
        let member = &mut world.plan.devices[device].device.member;
        member.addresses.push(net.parse().unwrap());
    }
    // The CT's gateway knows nothing of the monitor: it takes the whole network for the CT's.
    world.plan.rule("ward", Who::Device(MONITOR), Who::Device(PACS), &["tcp/104"]);
    world.plan.revise();
    world.apply_all();
    world.run(Duration::from_secs(1));
    let pacs = (world.hosts[PACS].address, 104);
    let say = |world: &mut World, host: usize, from: [u8; 4], flags: u8, payload: &[u8]| {
        let bytes = packet::tcp((Ipv4Addr::from(from), 40_000), pacs, flags, payload);
        let sender = world.hosts[host].mac;
        world.put(host, packet::frame(ROUTER, sender, 0x0800, &bytes));
        world.run(Duration::from_millis(50));
    };
    let inner = [10, 99, 5, 7];
    say(&mut world, MONITOR, inner, TcpFlags::SYN, b"");
    say(&mut world, MONITOR, inner, TcpFlags::ACK, b"the monitor's");
    say(&mut world, CT, inner, TcpFlags::ACK, b"injected");
    say(&mut world, CT, [10, 99, 6, 1], TcpFlags::SYN, b"");
    say(&mut world, CT, [10, 99, 6, 1], TcpFlags::ACK, b"the CT's");
    let inbox = &world.hosts[PACS].inbox;
    let heard = |payload: &[u8]| inbox.iter().any(|received| received.payload == payload);
    assert!(heard(b"the monitor's") && heard(b"the CT's"), "{inbox:#?}");
    assert!(!heard(b"injected"), "{inbox:#?}");
}
