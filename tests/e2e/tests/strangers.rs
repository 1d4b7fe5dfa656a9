//! Machines that nobody confirmed, on a port that is observed and on one that lets unlisted addresses pass; malformed
//! frames out of a device in enforce; cables that are swapped and looped. All with real packets (statements 1, 2, 3).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_e2e::attack::{self, BROADCAST, MARK, Mac};
use anteroom_e2e::place::{Place, listen, marked};
use anteroom_e2e::wire::End;
use anteroom_e2e::{Fixture, Stage, drops, fixture, sum};
use anteroom_lab::clinical::hl7::{self, Engine, Monitor};
use anteroom_lab::hospital::Hospital;
use anteroom_lab::packet::arp_request;
use anteroom_lab::ping::{self, Pinging};
use anteroom_lab::topology;
use anteroom_lab::wait;

const BEAT: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_secs(60);

/// The monitor beside the stranger, and all that it has to say.
struct Vitals {
    engine: Engine,
    monitor: Monitor,
}

impl Vitals {
    fn start(hospital: &Hospital) -> Self {
        let to = hospital.machine("hl7-1");
        let engine = Engine::start(&to.host, hl7::PORT).unwrap();
        let from = &hospital.machine("monitor-1").host;
        let monitor = Monitor::start(from, to.at(hl7::PORT), Duration::from_millis(20)).unwrap();
        let vitals = Self { engine, monitor };
        vitals.more();
        vitals
    }

    fn more(&self) {
        let before = self.monitor.count().acknowledged;
        wait::until(SOON, "messages of the monitor", || {
            (self.monitor.count().acknowledged >= before + 5).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", self.monitor.count()));
    }

    fn none_lost(self, what: &str) {
        self.more();
        let count = self.monitor.finish(&self.engine, SOON);
        assert_eq!((count.lost, count.reconnects), (0, 0), "{what}: {count:?}");
    }
}

/// What a stranger at the pump's port tries in a state of that port.
fn stranger_at_the_pumps_port(fixture: &Fixture, what: &str) {
    let hospital = &fixture.hospital;
    let mut place = Place::ward(hospital);
    let pump = place.own;
    // The machine that nobody confirmed, in the pump's network.
    place.own = ([2, 0, 0, 0, 0, 9], Ipv4Addr::new(10, 20, 2, 99));
    let vitals = Vitals::start(hospital);
    let port = End::open(&hospital.machine("pump-1").host, "eth0").unwrap();
    let mut enforced: Vec<(&str, End)> = ["monitor-1", "hl7-1", "pacs-1", "ct-1", "mri-1"]
        .map(|name| (name, End::open(&hospital.machine(name).host, "eth0").unwrap()))
        .into();
    let mut campus = End::open(&hospital.campus, "u-ward").unwrap();

    let gateway = &hospital.gateways["ward"];
    let before = sum(&drops(gateway).unwrap());
    let frames = place.forbidden();
    let mut heard = Vec::new();
    for part in frames.chunks(100) {
        for (_, frame) in part {
            port.send(frame).unwrap();
        }
        for (_, end) in &mut enforced {
            end.listen(Duration::from_millis(2)).unwrap();
        }
        campus.listen(Duration::from_millis(5)).unwrap();
        heard.extend(campus.take().into_iter().filter(|frame| attack::is_marked(frame)));
    }
    listen(&mut campus, Duration::from_millis(300));
    heard.extend(campus.take().into_iter().filter(|frame| attack::is_marked(frame)));
    for (name, end) in &mut enforced {
        listen(end, Duration::from_millis(100));
        let came = marked(end, &frames);
        assert!(came.is_empty(), "{what}: {name} heard {}: {came:?}", came.len());
        assert_eq!(end.missed().unwrap(), 0, "{what}: {name} was too slow to hear all");
    }
    assert_eq!(campus.missed().unwrap(), 0, "{what}: the campus was too slow to hear all");
    // The port lets him pass as himself: so the attack came as far as it could.
    let of = |mac: Mac| heard.iter().filter(|frame| frame[6..12] == mac).count();
    assert!(of(place.own.0) > 100, "{what}: only {} of his frames came out", of(place.own.0));
    // But as nobody whom the gateway knows.
    for (name, (mac, _)) in [
        ("the neighbour", place.neighbour),
        ("the router", place.router),
        ("the gateway", place.gateway[0]),
        ("the gateway's port", place.gateway[1]),
    ] {
        assert_eq!(of(mac), 0, "{what}: out as {name}");
    }
    for (name, (_, address)) in
        [("the neighbour", place.neighbour), ("the gateway", place.gateway[0])]
    {
        let spoke = heard.iter().filter(|frame| {
            (frame[12..14] == [8, 0] && frame[26..30] == address.octets())
                || (frame[12..14] == [8, 6] && frame[28..32] == address.octets())
        });
        let spoke: Vec<_> = spoke.collect();
        assert!(
            spoke.is_empty(),
            "{what}: {} out with {name}'s address: {spoke:02x?}",
            spoke.len()
        );
    }
    let counted = sum(&drops(gateway).unwrap()) - before;
    assert!(counted > 500, "{what}: {counted} of {} were counted", frames.len());
    // Nobody whom the gateway protects believes him.
    let his = place.own.0.map(|octet| format!("{octet:02x}")).join(":");
    let protected = ["monitor-1", "hl7-1"].map(|name| &hospital.machine(name).host);
    for host in protected {
        let table = host.ip("neighbour show").unwrap();
        assert!(!table.contains(&his), "{what}: {}: {table}", host.name());
    }
    let table = hospital.router.ip("neighbour show").unwrap();
    for (_, address) in [place.neighbour, place.gateway[0]] {
        let wrong = table
            .lines()
            .any(|line| line.starts_with(&format!("{address} ")) && line.contains(&his));
        assert!(!wrong, "{what}: the router: {table}");
    }
    vitals.none_lost(what);
    assert_ne!(pump.0, place.own.0);
    println!("{what}: {} frames sent, {} came out as his own", frames.len(), of(place.own.0));
}

#[test]
fn who_was_never_confirmed_passes_for_nobody_on_a_port_that_lets_him_speak() {
    let test = "who_was_never_confirmed_passes_for_nobody_on_a_port_that_lets_him_speak";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    fixture.hospital.operator.mode(&["pump-1"], "observe", "a stranger comes").unwrap();
    stranger_at_the_pumps_port(&fixture, "observed");
    fixture.hospital.operator.mode(&["pump-1"], "protect", "again").unwrap();
    fixture.hospital.operator.mode(&["pump-1"], "enforce", "again").unwrap();

    let gateway = fixture.hospital.gateway("ward");
    let text = std::fs::read_to_string(&gateway.config).unwrap();
    let text =
        text.replace("interface = \"port1\"\n", "interface = \"port1\"\nunlisted = \"pass\"\n");
    std::fs::write(&gateway.config, text).unwrap();
    gateway.stop().unwrap();
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
    fixture.hospital.operator.ok(&["status", "--wait", "20"]).ok();
    stranger_at_the_pumps_port(&fixture, "unlisted");
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, end: u64) -> usize {
        usize::try_from(self.next() % end).unwrap_or_default()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64)]
    }
}

/// Frames that no honest machine sends, out of a device in enforce: each length with noise in it, and nested headers
/// of which some field lies. None is one that a rule opens.
fn malformed(place: &Place, random: &mut Random) -> Vec<Vec<u8>> {
    let whom = [place.neighbour, place.member, place.router, place.gateway[0]];
    let mut all = Vec::new();
    for length in 0..=1_500 {
        let to = random.one(&whom).0;
        let kind = random.one(&[0x0800_u16, 0x0806, 0x86dd, 0x8100, 0x88a8, 0x8847, 0x0040]);
        let noise = random.bytes(length);
        all.push([&to[..], &place.own.0, &kind.to_be_bytes(), &noise].concat());
    }
    for _ in 0..3_000 {
        let (to, address) = random.one(&whom);
        let (depth, choice) = (random.below(4), random.below(10));
        let (mut kind, mut body) = match choice {
            0 => (0x0806, lying_arp(place, address, random)),
            1 | 2 => (0x86dd, lying_ipv6(random)),
            _ => (0x0800, lying_ipv4(place, address, depth, random)),
        };
        for _ in 0..random.below(6) * random.below(2) {
            let control = random.one(&[0_u16, 1, 42, 0x0fff, 0xe000]);
            body = [&control.to_be_bytes()[..], &u16::to_be_bytes(kind), &body].concat();
            kind = random.one(&[0x8100, 0x88a8, 0x9100]);
        }
        let mut frame = attack::frame(to, place.own.0, kind, &body);
        if random.below(4) == 0 {
            let cut = 14 + random.below((frame.len() - 14) as u64);
            frame.truncate(cut);
        }
        frame.truncate(1_514);
        all.push(frame);
    }
    all
}

fn lying_arp(place: &Place, about: Ipv4Addr, random: &mut Random) -> Vec<u8> {
    let mut packet = attack::arp(random.one(&[0, 3, 9]), (place.own.0, about), ([0; 6], about));
    let at = random.below(6);
    packet[at] = random.bytes(1)[0];
    packet
}

fn lying_ipv6(random: &mut Random) -> Vec<u8> {
    let length = random.below(200);
    let mut packet = attack::icmpv6(random.bytes(1)[0], &random.bytes(length));
    // Extension headers without end, and a length that isn't so.
    packet[6] = random.one(&[0, 6, 17, 43, 44, 50, 58, 59, 60]);
    if random.below(2) == 0 {
        packet[4..6].copy_from_slice(&random.bytes(2));
    }
    packet
}

/// What stands in an IPv4 packet of which something lies. No port is one that a rule names.
fn lying_ipv4(place: &Place, to: Ipv4Addr, depth: usize, random: &mut Random) -> Vec<u8> {
    let from = place.own.1;
    let mut packet = match (depth, random.below(6)) {
        (0, _) | (_, 0) => {
            let mut packet = attack::tcp(((from, 41_000), (to, 22)), random.bytes(1)[0]);
            packet[32] = random.bytes(1)[0];
            packet
        }
        (_, 1) => {
            let mut packet = attack::udp(((from, 41_000), (to, 9)), b"");
            packet[24..26].copy_from_slice(&random.bytes(2));
            packet
        }
        (_, 2) => {
            let inner = lying_ipv4(place, to, depth - 1, random);
            let kind = random.one(&[3, 4, 5, 11, 12, 13, 17, 40]);
            attack::icmp(from, to, (kind, random.bytes(1)[0]), &[&[0; 4][..], &inner].concat())
        }
        (_, 3) => attack::ip(from, to, 4, 0, &lying_ipv4(place, to, depth - 1, random)),
        (_, 4) => {
            let inner = lying_ipv4(place, to, depth - 1, random);
            attack::ip(from, to, 47, 0, &[&[0, 0, 8, 0][..], &inner].concat())
        }
        _ => {
            let word = random.one(&[0x2000_u16, 0x3fff, 0x1fff, 0x0001, 0x8000, 0xa001, 0x6000]);
            let length = random.below(40);
            let start = [&41_000_u16.to_be_bytes()[..], &22_u16.to_be_bytes()].concat();
            let body = [start, random.bytes(length), MARK.to_vec()].concat();
            attack::ip(from, to, random.one(&[6, 17]), word, &body)
        }
    };
    match random.below(5) {
        0 => packet[0] = random.bytes(1)[0],
        1 => packet[2..4].copy_from_slice(&random.bytes(2)),
        2 => packet[10] ^= 1,
        _ => {}
    }
    packet
}

#[test]
fn malformed_frames_of_a_device_in_enforce_reach_nobody_and_harm_nobody() {
    let test = "malformed_frames_of_a_device_in_enforce_reach_nobody_and_harm_nobody";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let place = Place::imaging(hospital);
    let pacs = hospital.machine("pacs-1");
    let pinging =
        Pinging::start(&hospital.machine("ct-1").host, pacs.address(), 1_000_000, BEAT).unwrap();
    let port = End::open(&hospital.machine("mri-1").host, "eth0").unwrap();
    let mut ends: Vec<(&str, End)> = ["ct-1", "pacs-1", "hl7-1"]
        .map(|name| (name, End::open(&hospital.machine(name).host, "eth0").unwrap()))
        .into();
    ends.push(("the campus", End::open(&hospital.campus, "u-imaging").unwrap()));
    let gateway = &hospital.gateways["imaging"];
    let before = sum(&drops(gateway).unwrap());
    let seed = 0x5eed_0001;
    let frames = malformed(&place, &mut Random(seed));
    let sent: BTreeSet<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let mut heard = 0;
    for part in frames.chunks(100) {
        for frame in part {
            port.send(frame).unwrap();
        }
        for (name, end) in &mut ends {
            end.listen(Duration::from_millis(5)).unwrap();
            for frame in end.take() {
                heard += 1;
                let his = attack::is_marked(&frame)
                    || sent.contains(frame.as_slice())
                    || (*name == "the campus" && frame[6..12] == place.own.0);
                assert!(!his, "seed {seed:#x}: {name} heard {frame:02x?}");
            }
        }
    }
    let due = frames.len() as u64 * 8 / 10;
    let deadline = Instant::now() + SOON;
    let mut counted = 0;
    while counted < due && Instant::now() < deadline {
        counted = sum(&drops(gateway).unwrap()) - before;
    }
    let all = drops(gateway).unwrap();
    assert!(counted >= due, "{counted} of {} were counted: {all:?}", frames.len());
    for (name, end) in &mut ends {
        listen(end, Duration::from_millis(100));
        for frame in end.take() {
            heard += 1;
            assert!(!attack::is_marked(&frame), "seed {seed:#x}: {name} heard {frame:02x?}");
            assert!(!sent.contains(frame.as_slice()), "seed {seed:#x}: {name}: {frame:02x?}");
        }
        assert_eq!(end.missed().unwrap(), 0, "{name} was too slow to hear all");
    }
    assert!(heard > 0, "nobody heard anything at all: the test is deaf");
    let series = pinging.stop().unwrap();
    assert!(series.sent > 20 && series.lost() == 0, "the neighbour: {series:?}");
    fixture.hospital.gateway("imaging").process().unwrap().must_run().unwrap();
    println!("{} malformed frames, {counted} counted, none arrived", frames.len());
}

/// What the operator's `anteroom status` says.
fn said(hospital: &Hospital) -> anyhow::Result<String> {
    Ok(hospital.operator.command(&["status"])?.to_string())
}

#[test]
fn swapped_and_looped_cables_are_said_in_status() {
    let test = "swapped_and_looped_cables_are_said_in_status";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let (ct, mri) = (hospital.machine("ct-1"), hospital.machine("mri-1"));
    let pacs = hospital.machine("pacs-1").address();
    let macs = [ct, mri].map(|machine| machine.host.mac("eth0").unwrap());

    // Two devices on each other's cable: all of both speaks where the other is confirmed.
    let swap = |[first, second]: [Mac; 2]| {
        for (machine, mac) in [(ct, first), (mri, second)] {
            let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
            machine.host.ip(&format!("link set eth0 address {mac}")).unwrap();
        }
    };
    let address = |[first, second]: [Ipv4Addr; 2]| {
        for (machine, own) in [(ct, first), (mri, second)] {
            machine.host.ip("address flush dev eth0").unwrap();
            machine.host.address("eth0", own, 24).unwrap();
            machine.host.default_route(Ipv4Addr::new(10, 20, 1, 1)).unwrap();
        }
    };
    let quiet = said(hospital).unwrap();
    assert!(!quiet.contains("SWAPPED") && !quiet.contains("LOOP"), "{quiet}");
    swap([macs[1], macs[0]]);
    address([mri.address(), ct.address()]);
    wait::until_ok(SOON, "the swap to be said", || {
        for machine in [ct, mri] {
            let series = ping::ping(&machine.host, pacs, 2, BEAT)?;
            assert_eq!(series.received, 0, "let through on the other's port: {series:?}");
        }
        let text = said(hospital)?;
        anyhow::ensure!(text.contains("SWAPPED CABLES"), "{text}");
        anyhow::ensure!(text.contains("ct-1") && text.contains("mri-1"), "{text}");
        Ok(())
    })
    .unwrap();
    swap(macs);
    address([ct.address(), mri.address()]);
    wait::until_ok(SOON, "the CT to be back", || {
        let series = ping::ping(&ct.host, pacs, 3, BEAT)?;
        anyhow::ensure!(series.received > 0, "{series:?}");
        Ok(())
    })
    .unwrap();

    // A cable from an observed port back to the campus, through whatever hangs there.
    hospital.operator.mode(&["pump-1"], "observe", "to be looped").unwrap();
    let vitals = Vitals::start(hospital);
    let pump = &hospital.machine("pump-1").host;
    topology::plug(pump, "loop", None, &hospital.campus, "br-ward", "h-loop").unwrap();
    for words in [
        "link add name joint type bridge",
        "link set eth0 master joint",
        "link set loop master joint",
        "link set joint up",
    ] {
        pump.ip(words).unwrap();
    }
    let stranger = ([2, 0, 0, 0, 0, 0x55], Ipv4Addr::new(10, 20, 2, 55));
    let campus = End::open(&hospital.campus, "br-ward").unwrap();
    let question = arp_request(stranger.0, stranger.1, Ipv4Addr::new(10, 20, 2, 56));
    assert_eq!(question[..6], BROADCAST);
    wait::until_ok(SOON, "the loop to be said", || {
        campus.send(&question)?;
        let text = said(hospital)?;
        anyhow::ensure!(text.contains("LOOP"), "{text}");
        Ok(())
    })
    .unwrap();
    pump.ip("link delete loop").unwrap();
    vitals.none_lost("beside a loop");
}
