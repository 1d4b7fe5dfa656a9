//! A hostile device behind a gateway in enforce, with real packets: whom it passes for, whom it reaches, and what link
//! control may carry (statements 1, 2 and 3).

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_e2e::attack::{self, BROADCAST, MARK, Mac};
use anteroom_e2e::wire::End;
use anteroom_e2e::{Stage, drops, fixture, sum};
use anteroom_lab::hospital::{Hospital, address};
use anteroom_lab::ping::Pinging;
use anteroom_lab::wait;

const BEAT: Duration = Duration::from_millis(5);

type Who = (Mac, Ipv4Addr);

/// The hostile device, and those around it.
struct Place {
    own: Who,
    /// At another port of the same gateway.
    neighbour: Who,
    /// A member elsewhere, which the device may reach on DICOM's ports and by echoes.
    member: Who,
    router: Who,
    /// What the neighbour may reach in the clear, and the device may not.
    external: Ipv4Addr,
    stranger: Ipv4Addr,
    /// The gateway's uplink, and its interface at the device.
    gateway: [Who; 2],
}

impl Place {
    fn new(hospital: &Hospital) -> Self {
        let who = |name: &str| {
            let machine = hospital.machine(name);
            (machine.host.mac("eth0").unwrap(), machine.address())
        };
        let gateway = &hospital.gateways["imaging"].host;
        Self {
            own: who("mri-1"),
            neighbour: who("ct-1"),
            member: who("pacs-1"),
            router: (hospital.router.mac("imaging").unwrap(), address("imaging", 1)),
            external: who("archive-1").1,
            stranger: who("hvac-1").1,
            gateway: ["uplink", "port2"]
                .map(|interface| (gateway.mac(interface).unwrap(), address("imaging", 2))),
        }
    }

    /// Under whose addresses the device speaks: a description, Ethernet address, IP address.
    fn guises(&self) -> Vec<(&'static str, Mac, Ipv4Addr)> {
        let own = self.own.0;
        vec![
            ("itself", own, self.own.1),
            ("the neighbour", self.neighbour.0, self.neighbour.1),
            ("the neighbour's IP address", own, self.neighbour.1),
            ("the neighbour's Ethernet address", self.neighbour.0, self.own.1),
            ("the router", self.router.0, self.router.1),
            ("the router's IP address", own, self.router.1),
            ("a member elsewhere", self.member.0, self.member.1),
            ("a member's IP address", own, self.member.1),
            ("the external", own, self.external),
            ("the gateway", self.gateway[0].0, self.gateway[0].1),
            ("the gateway's port", self.gateway[1].0, self.gateway[1].1),
            ("the gateway's IP address", own, self.gateway[0].1),
            ("a stranger", [2, 0, 0, 0, 0, 9], address("imaging", 99)),
            ("an address of nobody's", own, address("imaging", 99)),
            ("nobody", own, Ipv4Addr::UNSPECIFIED),
            ("everybody", own, Ipv4Addr::BROADCAST),
            ("a group", own, Ipv4Addr::new(239, 255, 255, 250)),
            ("the host itself", own, Ipv4Addr::LOCALHOST),
        ]
    }

    /// To whom: a description, Ethernet address, IP address.
    fn targets(&self) -> Vec<(&'static str, Mac, Ipv4Addr)> {
        let router = self.router.0;
        vec![
            ("the neighbour", self.neighbour.0, self.neighbour.1),
            ("the neighbour by the router", router, self.neighbour.1),
            ("the external", router, self.external),
            ("a stranger", router, self.stranger),
            ("the router", router, self.router.1),
            ("the gateway", self.gateway[0].0, self.gateway[0].1),
            ("the gateway's port", self.gateway[1].0, self.gateway[1].1),
            ("the gateway by the router", router, self.gateway[0].1),
            ("the controller", router, address("mgmt", 10)),
            ("another gateway", router, address("servers", 2)),
            ("another gateway's device", router, address("ward", 12)),
            ("everybody", BROADCAST, Ipv4Addr::BROADCAST),
            ("everybody here", BROADCAST, address("imaging", 255)),
            ("the neighbour by everybody", BROADCAST, self.neighbour.1),
            ("a group", [1, 0, 0x5e, 0x7f, 0xff, 0xfa], Ipv4Addr::new(239, 255, 255, 250)),
        ]
    }

    fn forbidden(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for (guise, mac, from) in self.guises() {
            for (whom, to, target) in self.targets() {
                let mut add = |what: &str, packet: Vec<u8>| {
                    let name = format!("{what} to {whom} as {guise}");
                    all.push((name, attack::frame(to, mac, 0x0800, &packet)));
                };
                self.packets(from, target, &mut add);
            }
            // The member that it may reach, but not like this.
            let honest = guise == "itself";
            for (whom, to) in [("the member", self.member.0), ("the member, routed", self.router.0)]
            {
                let mut add = |what: &str, packet: Vec<u8>| {
                    let name = format!("{what} to {whom} as {guise}");
                    all.push((name, attack::frame(to, mac, 0x0800, &packet)));
                };
                let to = self.member.1;
                for port in [22, 2_575, 4_006] {
                    add("a SYN", attack::tcp(((from, 41_000), (to, port)), 0x02));
                    add("UDP", attack::udp(((from, 41_000), (to, port)), b""));
                }
                if !honest {
                    add("DICOM", attack::tcp(((from, 41_000), (to, 104)), 0x02));
                    add("an echo", attack::icmp(from, to, (8, 0), &[0; 4]));
                }
            }
            for operation in [1, 2] {
                for (to, claimed, asked) in [
                    (BROADCAST, from, self.neighbour.1),
                    (self.neighbour.0, from, self.neighbour.1),
                    (self.router.0, from, self.router.1),
                    (BROADCAST, self.neighbour.1, self.router.1),
                    (BROADCAST, self.router.1, self.neighbour.1),
                    (BROADCAST, from, from),
                ] {
                    let packet = attack::arp(operation, (mac, claimed), ([0; 6], asked));
                    let name = format!("ARP {operation} of {claimed} for {asked} as {guise}");
                    all.push((name, attack::frame(to, mac, 0x0806, &packet)));
                }
            }
        }
        self.other_frames(&mut all);
        all
    }

    fn packets(&self, from: Ipv4Addr, to: Ipv4Addr, add: &mut impl FnMut(&str, Vec<u8>)) {
        for (flags, what) in [(0x02, "a SYN"), (0x12, "a SYN-ACK"), (0x10, "an ACK"), (4, "a RST")]
        {
            for (near, far) in [(41_000, 104), (104, 41_000), (41_000, 22)] {
                add(what, attack::tcp(((from, near), (to, far)), flags));
            }
        }
        for (near, far) in [(53, 53), (123, 123), (67, 68), (51_820, 51_820), (41_000, 4_433)] {
            add("UDP", attack::udp(((from, near), (to, far)), &[2, 1, 6, 0]));
        }
        let quoted = attack::tcp(((self.neighbour.1, 40_000), (self.member.1, 104)), 0x10);
        let body = [&self.own.1.octets()[..], &quoted[..28]].concat();
        for (kind, code) in
            [(8, 0), (0, 0), (5, 0), (5, 1), (3, 1), (3, 4), (11, 0), (9, 0), (13, 0)]
        {
            add(&format!("ICMP {kind}/{code}"), attack::icmp(from, to, (kind, code), &body));
        }
        add("a fragment", attack::ip(from, to, 17, 0x2003, MARK));
        add("a tiny fragment", attack::ip(from, to, 6, 0x2000, &[&[0; 8], MARK].concat()));
        for protocol in [2, 4, 41, 47, 50, 89, 112] {
            add(&format!("IP protocol {protocol}"), attack::ip(from, to, protocol, 0, MARK));
        }
    }

    /// IPv6, tags, and what isn't IP.
    fn other_frames(&self, all: &mut Vec<(String, Vec<u8>)>) {
        let own = self.own.0;
        let syn = attack::tcp(((self.own.1, 41_000), (self.member.1, 104)), 0x02);
        for (kind, length) in
            [(133, 4), (134, 12), (135, 20), (136, 20), (137, 36), (128, 4), (143, 24)]
        {
            for to in [[0x33, 0x33, 0, 0, 0, 1], self.neighbour.0, self.router.0, BROADCAST] {
                let packet = attack::icmpv6(kind, &vec![0; length]);
                all.push((format!("ICMPv6 {kind}"), attack::frame(to, own, 0x86dd, &packet)));
            }
        }
        // A priority alone is no VLAN: what is open stays open under one.
        for control in [1_u16, 42, 4_095, 0xe001] {
            for outer in [0x8100_u16, 0x88a8] {
                let tag = control.to_be_bytes();
                let inner = [&tag[..], &[8, 0], &syn].concat();
                let twice = [&tag[..], &[0x81, 0], &tag, &[8, 0], &syn].concat();
                for to in [self.member.0, self.neighbour.0, self.router.0] {
                    all.push((format!("tag {control}"), attack::frame(to, own, outer, &inner)));
                    all.push((format!("tags {control}"), attack::frame(to, own, outer, &twice)));
                }
            }
        }
        for kind in [
            0x0000_u16, 0x0026, 0x05ff, 0x0842, 0x22f0, 0x8035, 0x8137, 0x8863, 0x8864, 0x8892,
            0x88b5, 0x88e5, 0x88f7, 0xffff,
        ] {
            for to in [BROADCAST, self.neighbour.0, self.router.0, [1, 0x80, 0xc2, 0, 0, 0x42]] {
                all.push((format!("type {kind:#06x}"), attack::frame(to, own, kind, &[0; 40])));
            }
        }
    }
}

/// Listens for as long as this, however much there is to hear.
fn listen(end: &mut End, time: Duration) {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        end.listen(Duration::from_millis(10)).unwrap();
    }
}

fn marked<'a>(end: &'a End, sent: &'a [(String, Vec<u8>)]) -> Vec<String> {
    let name = |frame: &Vec<u8>| {
        let found = sent.iter().find(|(_, bytes)| bytes[12..].starts_with(&frame[12..]));
        found.map_or_else(|| format!("{frame:02x?}"), |(name, _)| name.clone())
    };
    end.heard().iter().filter(|frame| attack::is_marked(frame)).map(name).collect()
}

#[test]
fn a_hostile_device_in_enforce_passes_for_nobody_and_reaches_nobody_it_may_not() {
    let test = "a_hostile_device_in_enforce_passes_for_nobody_and_reaches_nobody_it_may_not";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let place = Place::new(hospital);
    let pacs = hospital.machine("pacs-1");
    let pinging =
        Pinging::start(&hospital.machine("ct-1").host, pacs.address(), 1_000_000, BEAT).unwrap();
    let mut port = End::open(&hospital.machine("mri-1").host, "eth0").unwrap();
    let mut ends: Vec<(&str, End)> = ["ct-1", "pacs-1", "hl7-1", "monitor-1"]
        .map(|name| (name, End::open(&hospital.machine(name).host, "eth0").unwrap()))
        .into();
    ends.push(("the campus", End::open(&hospital.campus, "u-imaging").unwrap()));

    // What a rule opens it can do, so the attack reaches as far as it should.
    let allowed = attack::tcp(((place.own.1, 42_000), (place.member.1, 104)), 0x02);
    port.send(&attack::frame(place.router.0, place.own.0, 0x0800, &allowed)).unwrap();
    wait::until(Duration::from_secs(5), "DICOM to be open", || {
        listen(&mut ends[1].1, Duration::from_millis(20));
        ends[1].1.heard().iter().any(|frame| attack::is_marked(frame)).then_some(())
    })
    .unwrap();
    ends[1].1.take();

    let gateway = &hospital.gateways["imaging"];
    let before = sum(&drops(gateway).unwrap());
    let frames = place.forbidden();
    for part in frames.chunks(200) {
        for (_, frame) in part {
            port.send(frame).unwrap();
        }
        for (_, end) in &mut ends {
            end.listen(Duration::from_millis(5)).unwrap();
        }
    }
    // ARP requests are answered or not, and count as nothing.
    let sent = frames.iter().filter(|(name, _)| !name.starts_with("ARP")).count() as u64;
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut counted = 0;
    while counted < sent * 95 / 100 && Instant::now() < deadline {
        counted = sum(&drops(gateway).unwrap()) - before;
    }
    let all = drops(gateway).unwrap();
    assert!(counted >= sent * 95 / 100, "{counted} of {sent} were counted: {all:?}");
    for (place_, end) in &mut ends {
        listen(end, Duration::from_millis(100));
        let came = marked(end, &frames);
        assert!(came.is_empty(), "{place_} heard {} of {sent}: {came:?}", came.len());
        assert_eq!(end.missed().unwrap(), 0, "{place_} was too slow to hear all");
    }
    // On the campus the device isn't seen at all, nor does anybody answer it.
    let campus = &ends[4].1;
    let spoke: Vec<_> = campus.heard().iter().filter(|frame| frame[6..12] == place.own.0).collect();
    assert!(spoke.is_empty(), "{spoke:02x?}");
    port.listen(Duration::from_millis(50)).unwrap();
    let answers: Vec<_> = port
        .heard()
        .iter()
        .filter(|frame| frame[..6] == place.own.0 && frame[12..14] != [8, 6])
        .filter(|frame| frame.get(26..30) != Some(&place.member.1.octets()[..]))
        .collect();
    assert!(answers.is_empty(), "it was answered: {answers:02x?}");
    // Nobody believes that it is somebody else.
    let own = place.own.0.map(|octet| format!("{octet:02x}")).join(":");
    for host in [&hospital.machine("ct-1").host, &hospital.router, &pacs.host] {
        let table = host.ip("neighbour show").unwrap();
        let wrong = |line: &&str| line.contains(&own) && !line.starts_with("10.20.1.12 ");
        let wrong: Vec<_> = table.lines().filter(wrong).collect();
        assert!(wrong.is_empty(), "{}: {table}", host.name());
    }
    let series = pinging.stop().unwrap();
    assert!(series.sent > 20 && series.lost() == 0, "the neighbour: {series:?}");
    println!("{} frames sent, none arrived", frames.len());
}

#[test]
fn link_control_crosses_enforce_by_its_own_group_addresses_only() {
    let test = "link_control_crosses_enforce_by_its_own_group_addresses_only";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let place = Place::new(hospital);
    let (own, neighbour) = (place.own.0, place.neighbour.0);
    let group = |last: u8| -> Mac { [1, 0x80, 0xc2, 0, 0, last] };
    let mut port = End::open(&hospital.machine("mri-1").host, "eth0").unwrap();
    let mut beside = End::open(&hospital.machine("ct-1").host, "eth0").unwrap();
    // At the gateway's own socket in the wall, as a switch speaks.
    let mut switch = End::open(&hospital.campus, "u-imaging").unwrap();
    let switch_mac: Mac = [2, 0, 0, 0, 0, 1];
    let frames = |from: Mac, unicast: &[Mac]| {
        let (mut passing, mut stopped) = (Vec::new(), Vec::new());
        for kind in [0x888e_u16, 0x88cc] {
            for last in 0..=0x21 {
                let frame = attack::frame(group(last), from, kind, &[1, 1, 0, 0, last, 0]);
                let passes = matches!(last, 0 | 3 | 0x0e);
                if passes { &mut passing } else { &mut stopped }.push(frame);
            }
            for to in unicast.iter().copied().chain([BROADCAST, [1, 0, 0x5e, 1, 2, 3]]) {
                stopped.push(attack::frame(to, from, kind, &[1, 1, 0, 0]));
            }
            // A priority is no VLAN.
            for tag in [0_u16, 0xe000, 1, 42] {
                let inner = [&tag.to_be_bytes()[..], &kind.to_be_bytes(), &[1, 1, 0, 0]].concat();
                let frame = attack::frame(group(3), from, 0x8100, &inner);
                let passes = tag & 0x0fff == 0;
                if passes { &mut passing } else { &mut stopped }.push(frame);
            }
        }
        // Spanning tree, slow protocols, flow control, MACsec and IP under the same addresses.
        for kind in [0x0026_u16, 0x8808, 0x8809, 0x88e5, 0x88f5, 0x0800, 0x86dd] {
            for last in [0, 1, 2, 3, 0x0e] {
                stopped.push(attack::frame(group(last), from, kind, &[0x42; 46]));
            }
        }
        (passing, stopped)
    };
    let heard = |end: &mut End| {
        listen(end, Duration::from_millis(300));
        end.take().into_iter().filter(|frame| attack::is_marked(frame)).collect::<Vec<_>>()
    };

    // The device speaks to its switch: only that passes, byte for byte, and its neighbour hears none of it.
    let (passing, stopped) = frames(own, &[neighbour, switch_mac, place.router.0]);
    for frame in stopped.iter().chain(&passing) {
        port.send(frame).unwrap();
    }
    assert_eq!(heard(&mut switch), passing);
    assert_eq!(heard(&mut beside), Vec::<Vec<u8>>::new(), "the neighbour");
    // Under another's Ethernet address nothing passes.
    for from in [neighbour, [2, 0, 0, 0, 0, 9], place.gateway[0].0] {
        let (passing, stopped) = frames(from, &[switch_mac]);
        for frame in stopped.iter().chain(&passing) {
            port.send(frame).unwrap();
        }
    }
    assert_eq!(heard(&mut switch), Vec::<Vec<u8>>::new(), "as somebody else");
    // The switch speaks to its ports, and a stranger behind it under other addresses to the device.
    let (passing, stopped) = frames(switch_mac, &[own, neighbour]);
    for frame in stopped.iter().chain(&passing) {
        switch.send(frame).unwrap();
    }
    for end in [&mut port, &mut beside] {
        assert_eq!(heard(end), passing);
    }
}
