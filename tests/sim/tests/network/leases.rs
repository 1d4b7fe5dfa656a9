//! Dynamic addresses: leases that change, claims through the tunnel, and devices that want another's address.

mod forged;

use std::net::Ipv4Addr;
use std::time::Duration;

use anteroom_agent_core::report::DeviceStatus;
use anteroom_agent_core::wire::arp;
use anteroom_agent_core::wire::dhcp::MessageType;
use anteroom_proto::alarm::AlarmKind;
use anteroom_proto::id::MemberId;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::DropReason;
use anteroom_sim::dhcp::{self, Message, kind};
use anteroom_sim::hospital::{Outcome, probe};
use anteroom_sim::model::Way;
use anteroom_sim::packet;
use anteroom_sim::plan::Who;
use anteroom_sim::world::{EPOCH, ROUTER, World};

const DICOM: (Protocol, u16) = (Protocol::Tcp, 104);
const BACK: (Protocol, u16) = (Protocol::Tcp, 4006);
/// Two devices on two ports of one gateway, and one behind another gateway in the same network.
const A1: usize = 0;
const A2: usize = 1;
const B1: usize = 2;
/// The archive that all of them share rules with, and one that shares a rule with the archive alone.
const PACS: usize = 3;
const OTHER: usize = 4;
const SERVER: usize = 5;
const INTRUDER: usize = 6;
const GATEWAYS: std::ops::Range<usize> = 0..4;
const NOTHING: [Ipv4Addr; 0] = [];
const WITHIN: &str = "10.20.1.0/24";

fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, 1, last)
}

/// Devices with addresses out of one prefix, all in `mode`; a DHCP server where `served`.
fn world(seed: u64, mode: Mode, served: bool) -> World {
    let mut world = World::new(seed);
    let a = world.gateway([10, 20, 1], &["port1", "port2"]);
    let b = world.gateway([10, 20, 1], &["port1"]);
    let servers = world.gateway([10, 20, 4], &["port1"]);
    let far = world.gateway([10, 20, 5], &["port1"]);
    world.device("a1", a, 0, 101);
    world.device("a2", a, 1, 102);
    world.device("b1", b, 0, 103);
    world.device("pacs", servers, 0, 10);
    world.device("other", far, 0, 10);
    world.plain("server", [10, 20, 1, 2]);
    world.plain("intruder", [10, 20, 1, 66]);
    let modalities = || Who::Devices(vec![A1, A2, B1]);
    let plan = &mut world.plan;
    plan.rule("store", modalities(), Who::Device(PACS), &["tcp/104"]);
    plan.rule("fetch", Who::Device(PACS), modalities(), &["tcp/4006"]);
    plan.rule("other", Who::Device(OTHER), Who::Device(PACS), &["tcp/104"]);
    for device in [A1, A2, B1] {
        plan.devices[device].device.member.addresses = vec![WITHIN.parse().unwrap()];
    }
    if served {
        plan.infrastructure.dhcp = vec![at(2)];
    }
    // The server answers what the tests have it answer.
    world.hosts[SERVER].answers = false;
    world.apply_all();
    all(&mut world, mode);
    world.clear_campus();
    world
}

fn all(world: &mut World, mode: Mode) {
    world.plan.revise();
    let revision = world.plan.revision;
    for device in &mut world.plan.devices {
        device.device.member.mode = mode;
        device.device.member.mode_since = revision;
    }
    world.apply_all();
}

fn status(world: &mut World, device: usize) -> DeviceStatus {
    let (gateway, member) = (world.plan.devices[device].gateway, world.plan.member(device).id);
    let now = world.now;
    let devices = world.engine(gateway).status(now).devices;
    devices.into_iter().find(|status| status.member == member).unwrap()
}

fn held(world: &mut World, device: usize) -> Vec<Ipv4Addr> {
    status(world, device).held
}

fn expect(world: &mut World, from: usize, to: usize, service: (Protocol, u16), way: Way) {
    static MARKER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let marker = MARKER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let outcome = probe(world, from, to, service, marker, 3);
    let now = world.now;
    let ends = [from, to].map(|host| (world.hosts[host].name, world.hosts[host].address));
    let running: Vec<usize> = GATEWAYS.filter(|gateway| world.runs(*gateway)).collect();
    let states: Vec<_> =
        running.into_iter().map(|gateway| world.engine(gateway).status(now)).collect();
    assert_eq!(outcome, Outcome::of(way), "{ends:?}: {states:#?}");
}

/// What the server, or the device, last got by DHCP.
fn last_dhcp(world: &World, host: usize) -> Option<anteroom_agent_core::wire::dhcp::DhcpMessage> {
    world.hosts[host].seen.iter().rev().find_map(|frame| dhcp::read(frame))
}

fn settle(world: &mut World) {
    world.run(Duration::from_millis(50));
}

/// A device gets an address: all four messages, each of which must arrive.
fn lease(world: &mut World, device: usize, address: Ipv4Addr, seconds: u32) {
    assert!(is_given(world, device, address, seconds), "a server's acknowledgement didn't arrive");
    world.hosts[device].address = address;
    world.hosts[device].forget();
    settle(world);
    world.clear_campus();
}

/// Whether the server's acknowledgement arrives at a device. The three messages before it must.
fn is_given(world: &mut World, device: usize, address: Ipv4Addr, seconds: u32) -> bool {
    let mac = world.hosts[device].mac;
    let server = (world.hosts[SERVER].mac, at(2));
    let transaction = 0x1000 + u32::from(address.octets()[3]);
    let arrived = |world: &World, host: usize, kind: MessageType| {
        last_dhcp(world, host)
            .is_some_and(|found| (found.transaction, found.message_type) == (transaction, kind))
    };
    for (asks, answers) in [(kind::DISCOVER, kind::OFFER), (kind::REQUEST, kind::ACK)] {
        world.clear_campus();
        world.put(device, Message::new(asks, transaction, mac).broadcast());
        settle(world);
        let heard = last_dhcp(world, SERVER).is_some_and(|heard| heard.transaction == transaction);
        assert!(heard, "a client's broadcast didn't arrive");
        let answer = Message {
            yours: address,
            lease: Some(seconds),
            ..Message::new(answers, transaction, mac)
        };
        world.put(SERVER, answer.answer(server, answers == kind::OFFER));
        settle(world);
        let offered = answers == kind::ACK || arrived(world, device, MessageType::Offer);
        assert!(offered, "a server's offer didn't arrive");
    }
    arrived(world, device, MessageType::Ack)
}

/// Conflicts that a gateway reports: who wanted what, and whose it is.
fn conflicts(
    world: &mut World,
    gateway: usize,
) -> Vec<(MacAddr, Option<Ipv4Addr>, Option<MemberId>)> {
    let now = world.now;
    let alarms = world.engine(gateway).report(now).alarms.into_iter();
    alarms
        .filter(|alarm| alarm.kind == AlarmKind::Conflict)
        .map(|alarm| (alarm.mac, alarm.address, alarm.member))
        .collect()
}

fn claims(world: &mut World, gateway: usize) -> usize {
    world.engine(gateway).learned().claims.len()
}

#[test]
fn a_lease_that_changes_reaches_the_peers_without_a_controller() {
    for (seed, mode) in [(1, Mode::Protect), (2, Mode::Enforce)] {
        let mut world = world(seed, mode, true);
        lease(&mut world, A1, at(50), 3600);
        assert_eq!(held(&mut world, A1), [at(50)]);
        expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
        expect(&mut world, PACS, A1, BACK, Way::Tunnel);
        lease(&mut world, A1, at(77), 3600);
        assert_eq!(held(&mut world, A1), [at(77)]);
        expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
        expect(&mut world, PACS, A1, BACK, Way::Tunnel);
        // The address before is nobody's now, at either end.
        if mode == Mode::Enforce {
            world.hosts[A1].address = at(50);
            expect(&mut world, PACS, A1, BACK, Way::None);
            expect(&mut world, A1, PACS, DICOM, Way::None);
        }
    }
}

#[test]
fn another_identity_key_takes_no_address_away_and_the_one_before_gives_none() {
    let mut world = world(31, Mode::Enforce, true);
    let (a, servers) = (0, 2);
    lease(&mut world, A1, at(50), 3600);
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    let renew = |world: &mut World, seed: u8| {
        world.plan.gateways[a].identity = IdentityKey::from_seed(&[seed; 32]);
        world.plan.revise();
    };
    // Peers hear of it first: what the device has goes on, in both directions.
    renew(&mut world, 77);
    world.apply(servers);
    world.run(Duration::from_millis(1_500));
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
    // A claim that the key before signs isn't heard any more.
    lease(&mut world, A1, at(51), 3600);
    world.run(Duration::from_secs(3));
    expect(&mut world, PACS, A1, BACK, Way::None);
    // The gateway itself hears of it, and all that stands is told anew.
    let (key, now) = (world.plan.gateways[a].identity.clone(), world.now);
    world.engine(a).set_identity(key, now);
    world.apply(a);
    world.run(Duration::from_secs(12));
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
    // What the peer keeps over a restart is signed by the new key.
    world.restart(servers);
    world.run(Duration::from_secs(3));
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);

    // The other way round: the gateway is first, and its peers' views follow.
    renew(&mut world, 78);
    let (key, now) = (world.plan.gateways[a].identity.clone(), world.now);
    world.engine(a).set_identity(key, now);
    world.apply(a);
    world.run(Duration::from_millis(1_500));
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    lease(&mut world, A1, at(52), 3600);
    world.apply(servers);
    world.run(Duration::from_secs(12));
    assert_eq!(held(&mut world, A1), [at(52)]);
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
}

#[test]
fn only_gateways_that_share_a_rule_with_the_device_are_told() {
    let mut world = world(3, Mode::Enforce, true);
    lease(&mut world, A1, at(50), 3600);
    world.run(Duration::from_secs(5));
    let told: Vec<usize> = GATEWAYS.map(|gateway| claims(&mut world, gateway)).collect();
    // B's device shares no rule with A's; the last one shares a rule with the archive alone.
    assert_eq!(told, [1, 0, 1, 0]);
}

#[test]
fn claims_arrive_over_a_bad_line_and_by_then_nothing_is_told_any_more() {
    let mut world = world(4, Mode::Enforce, true);
    world.weather.loss = 40;
    world.weather.reordering = 30;
    for last in [50, 51, 52] {
        lease(&mut world, A1, at(last), 3600);
    }
    world.run(Duration::from_secs(60));
    world.weather = anteroom_sim::world::Weather::default();
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    world.run(Duration::from_secs(15));
    let now = world.now;
    let due = world.engine(0).poll_timeout();
    assert!(due.is_none_or(|(at, why)| at > now && why != "claims"), "{due:?}");
}

#[test]
fn a_restarted_agent_goes_on_under_the_lease_that_lives() {
    let mut world = world(5, Mode::Enforce, true);
    lease(&mut world, A1, at(50), 3600);
    expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
    let learned = world.engine(0).learned();
    world.boot(0);
    world.engine(0).restore(learned);
    assert_eq!(world.engine(0).learned().claims.len(), 1, "kept before there is a view");
    world.apply(0);
    world.run(Duration::from_secs(3));
    assert_eq!(held(&mut world, A1), [at(50)]);
    // The archive speaks first: nothing had to come from the device.
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
}

#[test]
fn an_agent_that_lost_its_state_and_its_clock_is_believed_again() {
    let mut world = world(6, Mode::Enforce, true);
    lease(&mut world, A1, at(50), 3600);
    expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
    world.boot_unsure(0);
    let now = world.now;
    world.engine(0).set_time(UnixMillis(0), false, now);
    world.apply(0);
    world.run(Duration::from_secs(3));
    world.hosts[A1].forget();
    expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
    assert_eq!(held(&mut world, A1), [at(50)]);
    // Once it is known again, another address needs a lease.
    world.hosts[A1].address = at(60);
    world.hosts[A1].forget();
    expect(&mut world, A1, PACS, DICOM, Way::None);
    lease(&mut world, A1, at(61), 3600);
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
}

#[test]
fn a_peer_that_starts_anew_is_told_again() {
    let mut world = world(7, Mode::Enforce, true);
    lease(&mut world, A1, at(50), 3600);
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    world.boot(2);
    world.apply(2);
    world.run(Duration::from_secs(4));
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
}

#[test]
fn whoever_has_an_address_keeps_it_and_the_conflict_is_told() {
    let mut world = world(8, Mode::Enforce, true);
    lease(&mut world, A1, at(50), 3600);
    // A server that was wiped gives it away twice: behind the same gateway, and behind another.
    assert!(!is_given(&mut world, A2, at(50), 3600), "what a neighbour has");
    lease(&mut world, B1, at(50), 3600);
    world.run(Duration::from_secs(2));
    assert_eq!(held(&mut world, A1), [at(50)]);
    assert_eq!(held(&mut world, A2), NOTHING);
    world.hosts[A2].address = at(90);
    world.hosts[B1].address = at(91);
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    let a1 = world.plan.member(A1).id;
    let [second, third] = [A2, B1].map(|device| world.hosts[device].mac);
    let alarms: Vec<_> = [0, 1, 2].map(|gateway| conflicts(&mut world, gateway)).into();
    assert!(alarms[0].contains(&(second, Some(at(50)), Some(a1))), "{alarms:#?}");
    // The archive's gateway told the other one, though not whose the address is.
    assert!(alarms[1].contains(&(third, Some(at(50)), None)), "{alarms:#?}");
    assert!(alarms[2].contains(&(third, Some(at(50)), Some(a1))), "{alarms:#?}");
    // The first one gives it back: the next in line has it, and so says its gateway.
    let mac = world.hosts[A1].mac;
    let release = Message { client: at(50), ..Message::new(kind::RELEASE, 9, mac) };
    let bytes = packet::udp((at(50), 68), (at(2), 67), &release.bytes());
    let to = world.hosts[SERVER].mac;
    world.put(A1, packet::frame(to, mac, 0x0800, &bytes));
    world.run(Duration::from_secs(3));
    assert_eq!(held(&mut world, A1), NOTHING);
    assert_eq!(held(&mut world, A2), [at(50)]);
}

#[test]
fn a_device_that_wants_anothers_address_gets_nowhere() {
    let mut world = world(9, Mode::Enforce, true);
    lease(&mut world, A1, at(50), 3600);
    lease(&mut world, A2, at(60), 3600);
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    let (victim, attacker) = (world.hosts[A1].mac, world.hosts[A2].mac);
    let (server, intruder) = (world.hosts[SERVER].mac, world.hosts[INTRUDER].mac);
    world.clear_campus();
    // By ARP: announced, answered and asked for.
    world.put(A2, arp::request(attacker, at(50), at(50)).to_vec());
    world.put(A2, arp::request(attacker, at(50), at(1)).to_vec());
    let asked = arp::parse_arp(&arp::request(ROUTER, at(1), at(50))[14..]).unwrap();
    world.put(A2, arp::reply(&asked, attacker).to_vec());
    // By using it, to the archive and to the campus.
    for to in [world.hosts[PACS].address, at(66), at(1)] {
        let bytes = packet::udp((at(50), 40_001), (to, 104), b"stolen");
        world.put(A2, packet::frame(ROUTER, attacker, 0x0800, &bytes));
    }
    // By a forged answer from its own port, to itself and to the victim, broadcast and not.
    for (client, address) in [(attacker, at(50)), (victim, at(99))] {
        world.put(A2, Message::new(kind::REQUEST, 0x77, client).broadcast());
        for to_all in [true, false] {
            let ack = Message {
                yours: address,
                lease: Some(9999),
                ..Message::new(kind::ACK, 0x77, client)
            };
            world.put(A2, ack.answer((attacker, at(2)), to_all));
            world.put(A2, ack.answer((server, at(2)), to_all));
            world.put(INTRUDER, ack.answer((intruder, at(66)), to_all));
        }
    }
    // By giving the victim's lease back, in its own name and in the victim's.
    for (from, client) in [(at(60), attacker), (at(50), attacker), (at(60), victim)] {
        let release = Message { client: at(50), ..Message::new(kind::RELEASE, 9, client) };
        let bytes = packet::udp((from, 68), (at(2), 67), &release.bytes());
        world.put(A2, packet::frame(server, attacker, 0x0800, &bytes));
        let decline = Message { requested: Some(at(50)), ..Message::new(kind::DECLINE, 9, client) };
        world.put(A2, decline.broadcast());
    }
    world.run(Duration::from_secs(2));
    assert_eq!(held(&mut world, A1), [at(50)]);
    assert_eq!(held(&mut world, A2), [at(60)]);
    let from_attacker: Vec<_> = world
        .campus
        .iter()
        .filter(|frame| frame.bytes[6..12] == attacker.0 || frame.bytes[6..12] == server.0)
        .filter(|frame| {
            let message = dhcp::read(&frame.bytes);
            // It may ask for an address of its own, and decline one that it was offered.
            !message.is_some_and(|m| m.client_mac == attacker && m.client.is_unspecified())
        })
        .collect();
    assert!(from_attacker.is_empty(), "the campus heard: {from_attacker:02x?}");
    let got: Vec<_> = world.hosts[A1].seen.iter().filter(|f| dhcp::read(f).is_some()).collect();
    assert!(got.is_empty(), "the victim got a forged answer: {got:02x?}");
    let drops = status(&mut world, A2).drops;
    for reason in [DropReason::Dhcp, DropReason::IpSpoofed] {
        assert!(drops.contains_key(reason.as_str()), "{reason} isn't counted: {drops:?}");
    }
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    expect(&mut world, A2, PACS, DICOM, Way::Tunnel);
}

#[test]
fn renewals_and_relays_pass_and_other_answers_dont() {
    let mut world = world(10, Mode::Enforce, true);
    world.plan.infrastructure.dhcp.push(at(1));
    world.plan.revise();
    world.apply_all();
    lease(&mut world, A1, at(50), 600);
    let (mac, server) = (world.hosts[A1].mac, world.hosts[SERVER].mac);
    let renew = |world: &mut World, transaction: u32, seconds: u32| {
        world.clear_campus();
        let message = Message { client: at(50), ..Message::new(kind::REQUEST, transaction, mac) };
        let bytes = packet::udp((at(50), 68), (at(2), 67), &message.bytes());
        world.put(A1, packet::frame(server, mac, 0x0800, &bytes));
        settle(world);
        assert!(last_dhcp(world, SERVER).is_some(), "the renewal arrived");
        let ack = Message {
            client: at(50),
            yours: at(50),
            lease: Some(seconds),
            ..Message::new(kind::ACK, transaction, mac)
        };
        world.put(SERVER, ack.answer((server, at(2)), false));
        settle(world);
        assert!(last_dhcp(world, A1).is_some(), "its answer arrived");
    };
    world.run(Duration::from_secs(400));
    renew(&mut world, 21, 600);
    world.run(Duration::from_secs(400));
    assert_eq!(held(&mut world, A1), [at(50)], "the renewal counted");
    // An answer that nobody asked for, from the listed server's own address.
    world.clear_campus();
    let ack = Message { yours: at(51), lease: Some(600), ..Message::new(kind::ACK, 99, mac) };
    for to_all in [true, false] {
        world.put(SERVER, ack.answer((server, at(2)), to_all));
    }
    settle(&mut world);
    assert!(last_dhcp(&world, A1).is_none(), "{:02x?}", world.hosts[A1].seen);
    assert_eq!(held(&mut world, A1), [at(50)]);
    // Through a relay: the router, which is listed, answers for the server.
    world.put(A1, Message::new(kind::REQUEST, 31, mac).broadcast());
    settle(&mut world);
    let relayed = Message {
        yours: at(52),
        relay: at(1),
        lease: Some(600),
        ..Message::new(kind::ACK, 31, mac)
    };
    world.put(SERVER, relayed.answer((ROUTER, at(1)), true));
    settle(&mut world);
    assert_eq!(held(&mut world, A1), [at(52)]);
    // Refused: it has nothing left.
    world.hosts[A1].address = at(52);
    world.put(A1, Message::new(kind::REQUEST, 41, mac).broadcast());
    settle(&mut world);
    world.put(SERVER, Message::new(kind::NAK, 41, mac).answer((server, at(2)), true));
    settle(&mut world);
    assert_eq!(held(&mut world, A1), NOTHING);
}

#[test]
fn a_lease_that_ends_is_given_up_everywhere() {
    let mut world = world(11, Mode::Enforce, true);
    lease(&mut world, A1, at(50), 600);
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    world.run(Duration::from_secs(620));
    assert_eq!(held(&mut world, A1), NOTHING);
    expect(&mut world, PACS, A1, BACK, Way::None);
    // Now another one can have it.
    lease(&mut world, B1, at(50), 600);
    expect(&mut world, PACS, B1, BACK, Way::Tunnel);
    // Its gateway dies. The address is free for others once its lease must have ended.
    world.stop(1);
    world.run(Duration::from_secs(300));
    lease(&mut world, A2, at(50), 86_400);
    world.hosts[B1].address = at(200);
    expect(&mut world, PACS, A2, BACK, Way::None);
    world.run(Duration::from_secs(400));
    expect(&mut world, PACS, A2, BACK, Way::Tunnel);
}

#[test]
fn a_client_that_forgets_to_renew_keeps_working_while_it_is_heard() {
    let mut world = world(12, Mode::Enforce, true);
    lease(&mut world, A1, at(50), 60);
    for _ in 0..10 {
        world.run(Duration::from_secs(60));
        expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
    }
}

#[test]
fn without_a_server_the_first_to_use_an_address_has_it() {
    let mut world = world(13, Mode::Enforce, false);
    expect(&mut world, A1, PACS, DICOM, Way::Tunnel);
    expect(&mut world, B1, PACS, DICOM, Way::Tunnel);
    assert_eq!(held(&mut world, A1), [at(101)]);
    // Somebody sets A2 to A1's address.
    world.hosts[A2].address = at(101);
    expect(&mut world, A2, PACS, DICOM, Way::None);
    world.hosts[A2].address = at(105);
    world.hosts[A2].forget();
    expect(&mut world, A2, PACS, DICOM, Way::Tunnel);
    // B2 is set to A1's by hand: its own gateway can't know, the archive's does.
    world.run(Duration::from_secs(40));
    world.hosts[B1].address = at(101);
    world.hosts[B1].forget();
    let _ = probe(&mut world, B1, PACS, DICOM, 77, 2);
    let got = |world: &World| world.hosts[PACS].inbox.len();
    let before = got(&world);
    let _ = probe(&mut world, B1, PACS, DICOM, 78, 1);
    assert_eq!(got(&world), before, "the archive heard it");
    expect(&mut world, PACS, A1, BACK, Way::Tunnel);
    // A device that moves from one address to another too quickly is two devices.
    expect(&mut world, A2, PACS, DICOM, Way::Tunnel);
    world.hosts[A2].address = at(106);
    world.hosts[A2].forget();
    expect(&mut world, A2, PACS, DICOM, Way::None);
    world.run(Duration::from_secs(40));
    expect(&mut world, A2, PACS, DICOM, Way::Tunnel);
}

#[test]
fn an_address_that_operators_gave_to_somebody_is_nobody_elses() {
    let mut world = world(14, Mode::Enforce, true);
    lease(&mut world, A1, at(50), 3600);
    world.plan.devices[A2].device.member.addresses = vec![at(50).into()];
    world.plan.revise();
    world.apply_all();
    assert_eq!(held(&mut world, A1), NOTHING);
    world.hosts[A2].address = at(50);
    world.hosts[A1].address = at(199);
    expect(&mut world, A2, PACS, DICOM, Way::Tunnel);
    world.hosts[A1].address = at(50);
    world.hosts[A2].answers = false;
    expect(&mut world, A1, PACS, DICOM, Way::None);
    assert!(world.wall() > EPOCH);
}
