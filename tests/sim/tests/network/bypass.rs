//! A gateway is out and its cables are patched through: what rules open goes on in the clear, for a while, and
//! nothing else does.

use std::time::Duration;

use anteroom_agent_core::bypass::LoadedBypass;
use anteroom_proto::intent::Bypass;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;
use anteroom_sim::hospital::*;
use anteroom_sim::packet::{self, TcpFlags};
use anteroom_sim::world::World;

const DICOM: (Protocol, u16) = (Protocol::Tcp, 104);
const FETCH: (Protocol, u16) = (Protocol::Tcp, 4006);
const SSH: (Protocol, u16) = (Protocol::Tcp, 22);
const IMAGING: usize = 0;
const WARD: usize = 1;
const SERVERS: usize = 2;
const MINUTE: u64 = 60_000;

/// Everything in enforce, and tunnels up.
fn enforced(seed: u64) -> World {
    let mut world = hospital(seed);
    world.plan.revise();
    let revision = world.plan.revision;
    for device in &mut world.plan.devices {
        device.device.member.mode = Mode::Enforce;
        device.device.member.mode_since = revision;
    }
    world.apply_all();
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "tunnel");
    world
}

/// How a probe fares.
fn reach(world: &mut World, from: usize, to: usize, service: (Protocol, u16)) -> &'static str {
    static MARKER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let marker = MARKER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let outcome = probe(world, from, to, service, marker, 3);
    match (outcome.arrived, outcome.answered, outcome.on_campus) {
        (true, true, true) => "clear",
        (true, true, false) => "tunnel",
        (true, false, _) => "unanswered",
        (false, ..) => "no",
    }
}

fn drops(world: &mut World, gateway: usize) -> String {
    let now = world.now;
    format!("{:#?}", world.engine(gateway).status(now))
}

/// The imaging gateway dies, and its cables are patched through.
fn pull(world: &mut World) {
    world.stop(IMAGING);
    world.patch_through(CT);
    world.patch_through(MRI);
    world.run(Duration::from_secs(1));
}

fn order(world: &mut World, serial: u64, lasts: Option<u64>) {
    world.plan.revise();
    let until = lasts.map(|lasts| world.wall().saturating_add(lasts));
    let (gateway, since) = (world.plan.gateways[IMAGING].id, world.plan.revision);
    world.plan.bypasses = vec![Bypass { gateway, serial, until, since }];
    world.apply(WARD);
    world.apply(SERVERS);
    world.run(Duration::from_millis(200));
}

#[test]
fn what_rules_open_goes_on_in_the_clear_and_nothing_else_does() {
    let mut world = enforced(1);
    pull(&mut world);
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "no", "without an order nothing passes");
    order(&mut world, 1, Some(10 * MINUTE));
    for (from, to, service, expected) in [
        (CT, PACS, DICOM, "clear"),
        (PACS, CT, FETCH, "clear"),
        (MRI, PACS, DICOM, "clear"),
        (CT, PACS, SSH, "no"),
        (PACS, MRI, FETCH, "no"),
        (CT, HL7, DICOM, "no"),
        (CT, PUMP, DICOM, "no"),
        (WORKSTATION, PACS, DICOM, "no"),
        (MONITOR, HL7, (Protocol::Tcp, 2575), "tunnel"),
    ] {
        let names = (world.hosts[from].name, world.hosts[to].name);
        let found = reach(&mut world, from, to, service);
        assert_eq!(found, expected, "{names:?} {service:?}\n{}", drops(&mut world, SERVERS));
    }
}

#[test]
fn a_connection_moves_to_the_clear_and_back_to_the_tunnel() {
    let mut world = enforced(2);
    let target = (world.hosts[PACS].address, 104);
    let own = 45_555;
    world.act(CT, |host, out| host.connect(target, own, b"hello", out));
    world.run(Duration::from_secs(1));
    let mut word = 0_u16;
    let mut say = |world: &mut World, expected: (bool, bool)| {
        word += 1;
        world.clear_campus();
        world.act(CT, |host, out| {
            let flags = TcpFlags::ACK | TcpFlags::PSH;
            let bytes = packet::tcp((host.address, own), target, flags, &word.to_be_bytes());
            host.send(bytes, out);
        });
        world.run(Duration::from_secs(1));
        let got = |host: usize| {
            world.hosts[host].inbox.iter().any(|got| got.payload == word.to_be_bytes())
        };
        let on_campus = world.campus.iter().any(|seen| seen.bytes.ends_with(&word.to_be_bytes()));
        let found = (got(PACS) && got(CT), on_campus);
        assert_eq!(found, expected, "word {word}\n{}", drops(world, SERVERS));
    };
    say(&mut world, (true, false));
    pull(&mut world);
    say(&mut world, (false, true));
    order(&mut world, 1, Some(10 * MINUTE));
    say(&mut world, (true, true));
    // The gateway is back in its place while the bypass goes on: both ends are told.
    world.boot(IMAGING);
    world.apply(IMAGING);
    world.plug_in(CT, IMAGING, 0);
    world.plug_in(MRI, IMAGING, 1);
    world.run(Duration::from_secs(2));
    say(&mut world, (true, true));
    order(&mut world, 2, None);
    world.apply(IMAGING);
    world.run(Duration::from_secs(1));
    say(&mut world, (true, false));
    // Whoever goes on in the clear with the address is nobody.
    world.clear_campus();
    let forged = packet::tcp(
        (world.hosts[CT].address, own),
        target,
        TcpFlags::ACK | TcpFlags::PSH,
        b"forged",
    );
    world.act(INTRUDER, |host, out| host.send(forged, out));
    world.run(Duration::from_secs(1));
    let got = world.hosts[PACS].inbox.iter().any(|got| got.payload == b"forged");
    assert!(!got, "{}", drops(&mut world, SERVERS));
}

#[test]
fn it_ends_by_itself_and_an_older_order_never_comes_back() {
    let mut world = enforced(3);
    pull(&mut world);
    order(&mut world, 5, Some(MINUTE));
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "clear");
    world.run(Duration::from_millis(MINUTE));
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "no", "{}", drops(&mut world, SERVERS));
    order(&mut world, 7, None);
    let (gateway, now) = (world.plan.gateways[IMAGING].id, world.now);
    let counted = Some(now + Duration::from_millis(MINUTE));
    let until = Some(world.wall().saturating_add(MINUTE));
    let older = LoadedBypass { gateway, serial: 6, until, counted };
    world.engine(SERVERS).set_bypasses(vec![older], now);
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "no", "{}", drops(&mut world, SERVERS));
    let now = world.now;
    world.engine(SERVERS).set_bypasses(vec![LoadedBypass { serial: 8, ..older }], now);
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "clear", "{}", drops(&mut world, SERVERS));
}

#[test]
fn a_file_needs_no_clock_and_a_start_closes_it_until_there_is_one() {
    let mut world = enforced(4);
    pull(&mut world);
    // No clock anywhere: every gateway that runs started without a controller.
    for gateway in [WARD, SERVERS] {
        world.boot_unsure(gateway);
        world.apply(gateway);
    }
    world.run(Duration::from_secs(2));
    let (gateway, now) = (world.plan.gateways[IMAGING].id, world.now);
    let until = Some(world.wall().saturating_add(10 * MINUTE));
    let counted = Some(now + Duration::from_millis(2 * MINUTE));
    let file = LoadedBypass { gateway, serial: 1, until, counted };
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "no");
    world.engine(SERVERS).set_bypasses(vec![file], now);
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "clear", "{}", drops(&mut world, SERVERS));
    world.boot_unsure(SERVERS);
    world.apply(SERVERS);
    let now = world.now;
    world.engine(SERVERS).set_bypasses(vec![LoadedBypass { counted: None, ..file }], now);
    world.run(Duration::from_secs(2));
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "no", "{}", drops(&mut world, SERVERS));
    let (wall, now) = (world.wall(), world.now);
    world.engine(SERVERS).set_time(wall, true, now);
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "clear", "{}", drops(&mut world, SERVERS));
    let late = UnixMillis(wall.0 + 11 * MINUTE);
    let now = world.now;
    world.engine(SERVERS).set_time(late, true, now);
    assert_eq!(reach(&mut world, CT, PACS, DICOM), "no", "{}", drops(&mut world, SERVERS));
}
