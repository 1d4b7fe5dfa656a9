//! Attacks from the campus on devices in enforce (statements 1, 2 and 3), with real packets and real programs.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_e2e::attack::{self, BROADCAST, Mac};
use anteroom_e2e::wire::End;
use anteroom_e2e::{Stage, drops, fixture, sum};
use anteroom_lab::clinical::hl7::{self, Engine, Monitor};
use anteroom_lab::hospital::{Hospital, MACHINES, address};
use anteroom_lab::ping::{self, Pinging};
use anteroom_lab::scan;

const BEAT: Duration = Duration::from_millis(5);

/// Where the attacker stands in a device's network, and whom it sees there.
struct Place {
    own: Mac,
    own_address: Ipv4Addr,
    device: (Mac, Ipv4Addr),
    router: (Mac, Ipv4Addr),
    /// A member elsewhere that may speak with the device, through the tunnel only.
    member: (Mac, Ipv4Addr),
    external: Ipv4Addr,
    gateway: Ipv4Addr,
}

fn mac_of(text: &str) -> Mac {
    let octets: Vec<u8> = text.split(':').map(|o| u8::from_str_radix(o, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

impl Place {
    fn new(hospital: &Hospital, subnet: &'static str, device: &str, member: &str) -> Self {
        let plan = |name: &str| *MACHINES.iter().find(|plan| plan.name == name).unwrap();
        let whom = |name: &str| (mac_of(&plan(name).mac()), plan(name).address());
        Self {
            own: hospital.machine("intruder").host.mac(subnet).unwrap(),
            own_address: address(subnet, 66),
            device: whom(device),
            router: (hospital.router.mac(subnet).unwrap(), address(subnet, 1)),
            member: whom(member),
            external: whom("archive-1").1,
            gateway: address(subnet, 2),
        }
    }

    /// Frames that must not reach the device, by their names.
    fn forbidden(&self) -> Vec<(String, Vec<u8>)> {
        let (device, target) = self.device;
        let mut all = Vec::new();
        let mut add = |name: &str, frame: Vec<u8>| all.push((name.to_owned(), frame));
        for (whose, address) in [
            ("the router's", self.router.1),
            ("a member's", self.member.1),
            ("the device's own", target),
            ("the external's", self.external),
            ("the gateway's", self.gateway),
        ] {
            for to in [BROADCAST, device] {
                for operation in [1, 2] {
                    let packet = attack::arp(operation, (self.own, address), (device, target));
                    add(
                        &format!("ARP {operation}: {whose} address is mine"),
                        attack::frame(to, self.own, 0x0806, &packet),
                    );
                }
            }
            let announced = attack::arp(1, (self.own, address), ([0; 6], address));
            add(
                &format!("announcing {whose} address"),
                attack::frame(BROADCAST, self.own, 0x0806, &announced),
            );
        }
        let who_has = attack::arp(1, (self.own, self.own_address), ([0; 6], target));
        add("who has the device", attack::frame(BROADCAST, self.own, 0x0806, &who_has));
        // As whoever may speak with the device, with each one's Ethernet address.
        for (who, mac, from) in [
            ("myself", self.own, self.own_address),
            ("a member", self.member.0, self.member.1),
            ("a member behind the router", self.router.0, self.member.1),
            ("the router", self.router.0, self.router.1),
            ("the gateway", self.own, self.gateway),
            ("the device", device, target),
            ("someone far away", self.router.0, Ipv4Addr::new(198, 51, 100, 9)),
        ] {
            let to = |payload: Vec<u8>| attack::frame(device, mac, 0x0800, &payload);
            for port in [104, 2_575, 4_006, 22, 445] {
                for (flags, what) in [
                    (0x02, "SYN"),
                    (0x12, "SYN-ACK"),
                    (0x10, "ACK"),
                    (0x18, "data"),
                    (0x04, "RST"),
                    (0x29, "Xmas"),
                    (0, "nothing"),
                ] {
                    for ends in [((from, 40_000), (target, port)), ((from, port), (target, 40_000))]
                    {
                        add(
                            &format!("TCP {what} on {port} as {who}"),
                            to(attack::tcp(ends, flags)),
                        );
                    }
                }
                let ends = ((from, port), (target, port));
                add(&format!("UDP {port} as {who}"), to(attack::udp(ends, b"")));
            }
            for kind in [0, 8, 13, 15, 17] {
                add(
                    &format!("ICMP {kind} as {who}"),
                    to(attack::icmp(from, target, (kind, 0), &[0; 4])),
                );
            }
            // Redirect, unreachable and too big about a connection that may exist.
            let quoted = attack::tcp(((target, 40_000), (self.member.1, 104)), 0x10);
            for (kind, code) in [(3, 1), (3, 4), (5, 0), (5, 1), (11, 0), (12, 0)] {
                let body = [&self.own_address.octets()[..], &quoted[..28]].concat();
                add(
                    &format!("ICMP {kind}/{code} as {who}"),
                    to(attack::icmp(from, target, (kind, code), &body)),
                );
            }
            let whole = attack::udp(((from, 104), (target, 104)), &[0; 64]);
            let piece = |word: u16, part: &[u8]| attack::ip(from, target, 17, word, part);
            add(&format!("a first fragment as {who}"), to(piece(0x2000, &whole[20..84])));
            add(
                &format!("a fragment without its first as {who}"),
                to(piece(0x2003, &whole[20..84])),
            );
            add(
                &format!("a tiny first fragment as {who}"),
                to(attack::ip(from, target, 6, 0x2000, &[0, 104, 0, 104, 0, 0, 0, 1])),
            );
            add(
                &format!("a second fragment over the header as {who}"),
                to(attack::ip(from, target, 6, 1, attack::MARK)),
            );
            for protocol in [2, 4, 41, 47, 50, 51, 89, 115, 255] {
                add(
                    &format!("IP protocol {protocol} as {who}"),
                    to(attack::ip(from, target, protocol, 0, attack::MARK)),
                );
            }
        }
        for (name, body, kind) in [
            ("router advertisement", vec![64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0], 134),
            ("neighbour solicitation", vec![0; 20], 135),
            ("neighbour advertisement", [&[0x60, 0, 0, 0][..], &[0xfe; 16]].concat(), 136),
            ("redirect of IPv6", vec![0; 36], 137),
            ("echo to all nodes", vec![0; 4], 128),
        ] {
            for to in [[0x33, 0x33, 0, 0, 0, 1], device] {
                add(name, attack::frame(to, self.own, 0x86dd, &attack::icmpv6(kind, &body)));
            }
        }
        let syn = attack::tcp(((self.member.1, 40_000), (target, 104)), 2);
        for control in [0_u16, 1, 42, 4_095, 0xe000] {
            let tag = control.to_be_bytes();
            for outer in [0x8100_u16, 0x88a8] {
                let inner = [&tag[..], &[8, 0], &syn].concat();
                add("a tagged SYN", attack::frame(device, self.router.0, outer, &inner));
                let twice = [&tag[..], &[0x81, 0], &tag, &[8, 0], &syn].concat();
                add("a SYN tagged twice", attack::frame(device, self.router.0, outer, &twice));
            }
        }
        for (name, port) in [
            ("DHCP offer", 68),
            ("NetBIOS", 137),
            ("WS-Discovery", 3_702),
            ("IntelliVue", 24_005),
            ("BACnet", 47_808),
        ] {
            let from = (self.own_address, 67);
            for (to, group) in [
                (BROADCAST, Ipv4Addr::BROADCAST),
                ([1, 0, 0x5e, 0x7f, 0xff, 0xfa], Ipv4Addr::new(239, 255, 255, 250)),
                (device, target),
            ] {
                add(
                    name,
                    attack::frame(
                        to,
                        self.own,
                        0x0800,
                        &attack::udp((from, (group, port)), &[2, 1, 6, 0]),
                    ),
                );
            }
        }
        for kind in [
            0x0000, 0x0026, 0x05ff, 0x0842, 0x22f0, 0x8035, 0x8137, 0x8863, 0x8864, 0x8892, 0x88b5,
            0x88e5, 0x88f7, 0xffff,
        ] {
            for to in [BROADCAST, device, [1, 0x80, 0xc2, 0, 0, 0x42]] {
                add(
                    &format!("Ethernet type {kind:#06x}"),
                    attack::frame(to, self.own, kind, &[0; 40]),
                );
            }
        }
        all
    }
}

/// Names of the frames that came out at a device, told by what was put in.
fn arrived(heard: &[Vec<u8>], sent: &[(String, Vec<u8>)]) -> Vec<String> {
    heard
        .iter()
        .filter(|frame| attack::is_marked(frame))
        .map(|frame| {
            let name = sent
                .iter()
                .find(|(_, bytes)| bytes[12..].starts_with(&frame[12..]))
                .map(|(name, _)| name.clone());
            name.unwrap_or_else(|| format!("{frame:02x?}"))
        })
        .collect()
}

#[test]
fn nothing_that_an_attacker_on_the_campus_sends_reaches_a_device_in_enforce() {
    let test = "nothing_that_an_attacker_on_the_campus_sends_reaches_a_device_in_enforce";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let engine = Engine::start(&hospital.machine("hl7-1").host, hl7::PORT).unwrap();
    let to = hospital.machine("hl7-1").at(hl7::PORT);
    let monitor =
        Monitor::start(&hospital.machine("monitor-1").host, to, Duration::from_millis(20)).unwrap();
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
    let pinging = Pinging::start(&ct.host, pacs.address(), 1_000_000, BEAT).unwrap();
    let neighbours = |name: &str| hospital.machine(name).host.ip("neighbour show").unwrap();

    let places = [
        ("imaging", "ct-1", "pacs-1"),
        ("imaging", "mri-1", "pacs-1"),
        ("ward", "pump-1", "hl7-1"),
        ("ward", "monitor-1", "hl7-1"),
        ("servers", "pacs-1", "ct-1"),
        ("servers", "hl7-1", "monitor-1"),
    ];
    let (mut total, mut poisons) = (0, Vec::new());
    for (subnet, device, member) in places {
        let place = Place::new(hospital, subnet, device, member);
        let mut port = End::open(&hospital.machine(device).host, "eth0").unwrap();
        // At the gateway's own socket in the wall: no switch is between that could drop what looks odd.
        let mut uplink = End::open(&hospital.campus, &format!("u-{subnet}")).unwrap();
        let gateway = &hospital.gateways[subnet];
        let before = sum(&drops(gateway).unwrap());
        let frames = place.forbidden();
        let (poison, frames): (Vec<_>, Vec<_>) =
            frames.into_iter().partition(|(name, _)| name.contains("the router's address"));
        for part in frames.chunks(200) {
            for (_, frame) in part {
                uplink.send(frame).unwrap();
            }
            port.listen(Duration::from_millis(30)).unwrap();
        }
        // The gateway has counted all of them: nothing is under way any more.
        let sent = frames.len() as u64;
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut counted = 0;
        while counted < sent * 9 / 10 && Instant::now() < deadline {
            counted = sum(&drops(gateway).unwrap()) - before;
        }
        port.listen(Duration::from_millis(100)).unwrap();
        let came = arrived(port.heard(), &frames);
        assert!(came.is_empty(), "{device} heard {came:?}");
        assert!(
            counted >= sent * 9 / 10,
            "{counted} of {sent} were counted: {:?}",
            drops(gateway).unwrap()
        );
        let quiet = device == "pump-1" || device == "mri-1";
        assert!(!quiet || port.heard().is_empty(), "{device} heard {:02x?}", port.heard());
        // And no device is heard on the campus: nobody was answered, in whatever name.
        uplink.listen(Duration::from_millis(50)).unwrap();
        let mac = place.device.0;
        let spoke: Vec<&Vec<u8>> =
            uplink.heard().iter().filter(|frame| frame[6..12] == mac).collect();
        assert!(spoke.is_empty(), "{device} was heard: {spoke:02x?}");
        let own = place.own.map(|octet| format!("{octet:02x}")).join(":");
        let table = neighbours(device);
        assert!(!table.contains(&own), "{device} believes the attacker: {table}");
        total += sent;
        poisons.push((subnet, device, poison));
    }
    println!("{total} frames sent, none arrived");

    // A scan that knows every Ethernet address finds nobody.
    let legs = hospital.intruder_legs().unwrap();
    let targets = hospital.device_addresses();
    let mut known = scan::Findings::default();
    for device in hospital.devices() {
        let subnet = device.plan.subnet.to_owned();
        known.macs.insert(device.address(), (subnet, mac_of(&device.plan.mac())));
    }
    let findings =
        scan::scan(&hospital.machine("intruder").host, &legs, &targets, Some(&known)).unwrap();
    assert!(findings.of(&targets).is_empty(), "{findings:?}");

    // Nobody who is allowed noticed anything.
    let series = pinging.stop().unwrap();
    assert!(series.sent > 100 && series.lost() == 0, "{series:?}");
    let count = monitor.finish(&engine, Duration::from_secs(60));
    assert_eq!((count.lost, count.reconnects), (0, 0), "{count:?}");

    // Nor does the gateway's own kernel believe who claims to be its router: its tunnels lose nothing.
    let pinging = Pinging::start(&ct.host, pacs.address(), 1_000_000, BEAT).unwrap();
    for (subnet, device, frames) in poisons {
        let mut port = End::open(&hospital.machine(device).host, "eth0").unwrap();
        let uplink = End::open(&hospital.campus, &format!("u-{subnet}")).unwrap();
        for _ in 0..10 {
            for (_, frame) in &frames {
                uplink.send(frame).unwrap();
            }
            port.listen(Duration::from_millis(50)).unwrap();
        }
        let came = arrived(port.heard(), &frames);
        assert!(came.is_empty() && !frames.is_empty(), "{device} heard {came:?}");
    }
    // As long as it would take the kernel to find out by itself.
    std::thread::sleep(Duration::from_secs(3));
    let series = pinging.stop().unwrap();
    println!("under false ARP in the routers' names: {} of {} lost", series.lost(), series.sent);
    assert!(series.sent > 100 && series.lost() == 0, "{series:?}");
}

#[test]
fn what_passes_for_an_external_gets_what_its_rule_opens_and_nothing_more() {
    let test = "what_passes_for_an_external_gets_what_its_rule_opens_and_nothing_more";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    // The CT has spoken with the archive before, so that its gateway knows the router.
    let (ct, archive) = (hospital.machine("ct-1"), hospital.machine("archive-1"));
    let listener =
        archive.host.enter(|| std::net::TcpListener::bind(archive.at(104))).unwrap().unwrap();
    let opened =
        anteroom_lab::story::open_tcp(&ct.host, (archive.address(), 104), Duration::from_secs(20));
    drop((opened.unwrap(), listener));

    let place = Place::new(hospital, "imaging", "ct-1", "pacs-1");
    let mut port = End::open(&ct.host, "eth0").unwrap();
    let intruder = End::open(&hospital.campus, "u-imaging").unwrap();
    let (device, target) = place.device;
    let from = archive.address();
    // An ACK from the service's port is what a gateway takes for a connection that began before it did.
    let taken = attack::frame(
        device,
        place.router.0,
        0x0800,
        &attack::tcp(((from, 104), (target, 40_123)), 0x10),
    );
    let mut frames = vec![("an ACK from the archive's DICOM port".to_owned(), taken)];
    let mut forbidden = |name: &str, packet: Vec<u8>| {
        frames.push((name.to_owned(), attack::frame(device, place.router.0, 0x0800, &packet)));
    };
    for flags in [0x02, 0x12] {
        forbidden(
            "SYN or SYN-ACK from DICOM's port",
            attack::tcp(((from, 104), (target, 40_124)), flags),
        );
    }
    for port in [104, 4_006, 22] {
        forbidden("a SYN to the CT", attack::tcp(((from, 40_000), (target, port)), 0x02));
        forbidden("an ACK to the CT's port", attack::tcp(((from, 40_000), (target, port)), 0x10));
        forbidden("UDP", attack::udp(((from, 104), (target, port)), b""));
    }
    forbidden("an ACK from another port", attack::tcp(((from, 105), (target, 40_125)), 0x10));
    forbidden("an echo", attack::icmp(from, target, (8, 0), &[0; 4]));
    for (_, frame) in &frames {
        intruder.send(frame).unwrap();
    }
    // And what the rule doesn't name at all: the MRI.
    let mri = Place::new(hospital, "imaging", "mri-1", "pacs-1").device;
    let mut other = End::open(&hospital.machine("mri-1").host, "eth0").unwrap();
    let packet = attack::tcp(((from, 104), (mri.1, 40_123)), 0x10);
    intruder.send(&attack::frame(mri.0, place.router.0, 0x0800, &packet)).unwrap();
    port.listen(Duration::from_millis(500)).unwrap();
    other.listen(Duration::from_millis(200)).unwrap();
    // An external is an address, not an identity: docs and command line say so wherever one is shown.
    assert_eq!(arrived(port.heard(), &frames), ["an ACK from the archive's DICOM port"]);
    assert!(arrived(other.heard(), &[]).is_empty(), "{:02x?}", other.heard());
    let series = ping::ping(&ct.host, hospital.machine("pacs-1").address(), 20, BEAT).unwrap();
    assert_eq!(series.lost(), 0, "{series:?}");
}
