//! Packets of any size through underlays of any size, with every ICMP message of the underlay gone: one mebibyte each
//! way, by TCP and by UDP, from devices that set "don't fragment" and listen to nobody.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anteroom_agent_core::checksum::{self, Sum};
use anteroom_agent_core::wire::ipv4::Header;
use anteroom_agent_core::wire::parse_ipv4;
use anteroom_e2e::talk::{self, PATIENCE, PORT, Talk, bytes};
use anteroom_e2e::{Stage, fixture};
use anteroom_lab::hospital::{GATEWAYS, Hospital, Machine, address};
use anteroom_lab::packet::PacketSocket;
use anteroom_lab::wait;

const MEBIBYTE: usize = 1 << 20;
/// Datagrams under way at once: less than any buffer holds.
const WINDOW: usize = 32;

/// The network between the gateways.
struct Underlay<'a>(&'a Hospital);

impl Underlay<'_> {
    /// Makes its router carry so much and no more, without a word to anybody. The gateways' own interfaces say what they
    /// say.
    fn carries(&self, mtu: u16) {
        for subnet in GATEWAYS {
            self.0.router.ip(&format!("link set {subnet} mtu {mtu}")).unwrap();
        }
    }

    /// Makes all cables and the gateways' own interfaces carry so much.
    fn is_built_for(&self, mtu: u16) {
        for subnet in GATEWAYS {
            for socket in [format!("u-{subnet}"), format!("r-{subnet}")] {
                self.0.campus.ip(&format!("link set {socket} mtu {mtu}")).unwrap();
            }
        }
        self.carries(mtu);
        for gateway in GATEWAYS {
            self.0.gateways[gateway].host.ip(&format!("link set uplink mtu {mtu}")).unwrap();
        }
    }

    /// No ICMP message leaves the router: neither its own nor anybody else's.
    fn says_nothing(&self) {
        self.0.router.ip("rule add pref 10 ipproto icmp blackhole").unwrap();
    }

    /// A counter of the router's kernel.
    fn counter(&self, protocol: &str, name: &str) -> u64 {
        let read = || std::fs::read_to_string("/proc/thread-self/net/snmp");
        let text = self.0.router.enter(read).unwrap().unwrap();
        let mut lines = text.lines().filter(|line| line.starts_with(protocol));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split_whitespace().position(|one| one == name).unwrap();
        values.split_whitespace().nth(at).unwrap().parse().unwrap()
    }

    /// What both gateways have found out.
    fn found(&self) -> Vec<Option<u64>> {
        let pairs = [("imaging", "servers"), ("servers", "imaging")];
        pairs
            .iter()
            .map(|(here, there)| {
                let status = self.0.gateways[here].status().unwrap();
                let other = format!("{}:", address(there, 2));
                let peers = status["data_plane"]["engine"]["peers"].as_array().unwrap().clone();
                peers
                    .iter()
                    .find(|peer| peer["endpoint"].as_str().is_some_and(|at| at.starts_with(&other)))
                    .and_then(|peer| peer["path_mtu"].as_u64())
            })
            .collect()
    }

    fn wait_until_found(&self, mtu: u64, limit: Duration) {
        let what = format!("both gateways to find out that {mtu} bytes get through");
        wait::until_ok(limit, &what, || {
            let found = self.found();
            anyhow::ensure!(found == [Some(mtu), Some(mtu)], "{found:?}");
            Ok(())
        })
        .unwrap();
    }
}

/// A machine's own cable, where whole packets go in as a stubborn device makes them.
struct Raw {
    socket: PacketSocket,
    header: Vec<u8>,
    from: Ipv4Addr,
    to: Ipv4Addr,
}

impl Raw {
    /// `machine`'s end. It has spoken to its router before.
    fn of(machine: &Machine, to: &Machine) -> Self {
        let neighbours = machine.host.ip("neighbour show dev eth0").unwrap();
        let router = address(machine.plan.subnet, 1).to_string();
        let line = neighbours.lines().find(|line| line.starts_with(&format!("{router} ")));
        let words = line.unwrap_or_else(|| panic!("no router in {neighbours}")).split_whitespace();
        let mac = words.skip_while(|word| *word != "lladdr").nth(1).unwrap();
        let mut header: Vec<u8> =
            mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        header.extend(machine.host.mac("eth0").unwrap());
        header.extend([8, 0]);
        let socket = machine.host.enter(|| PacketSocket::open_on("eth0", 0x0800)).unwrap().unwrap();
        Self { socket, header, from: machine.address(), to: to.address() }
    }

    /// A packet that may not be fragmented.
    fn packet(&self, protocol: u8, id: u16, mut transport: Vec<u8>) -> Vec<u8> {
        let sum_at = if protocol == 6 { 16 } else { 6 };
        let len = u16::try_from(transport.len()).unwrap();
        let sum = Sum::pseudo_ipv4(self.from, self.to, protocol, len).bytes(&transport);
        transport[sum_at..sum_at + 2].copy_from_slice(&sum.transport_checksum().to_be_bytes());
        let header = Header {
            source: self.from,
            destination: self.to,
            protocol,
            ttl: 64,
            dscp_ecn: 0x28,
            id,
            payload_len: transport.len(),
        };
        let mut packet = header.to_bytes().unwrap().to_vec();
        packet[6..8].copy_from_slice(&0x4000u16.to_be_bytes());
        packet[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum::checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(transport);
        packet
    }

    fn udp(&self, id: u16, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
        let ports = [PORT.to_be_bytes(), PORT.to_be_bytes()].concat();
        self.packet(17, id, [&ports[..], &len, &[0, 0], payload].concat())
    }

    fn tcp(&self, id: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut segment = [41_000u16.to_be_bytes(), PORT.to_be_bytes()].concat();
        segment.extend(sequence.to_be_bytes());
        segment.extend([0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend_from_slice(payload);
        self.packet(6, id, segment)
    }

    fn send(&self, packet: &[u8]) {
        self.socket.send(&[&self.header[..], packet].concat()).unwrap();
    }
}

/// One mebibyte in datagrams of 1,472 bytes that may not be fragmented, from a device that hears no "too big". What is
/// lost is sent again: this is about sizes.
fn udp(from: &Machine, to: &Machine) {
    const LEN: usize = 1_472;
    let raw = Raw::of(from, to);
    let socket = to.host.enter(|| UdpSocket::bind(to.at(PORT))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let sent: Vec<Vec<u8>> = (0..MEBIBYTE.div_ceil(LEN))
        .map(|number| {
            let mut payload = bytes(number, LEN);
            payload[..4].copy_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
            payload
        })
        .collect();
    let mut missing: Vec<usize> = (0..sent.len()).collect();
    let (mut lost, mut buffer) = (0, vec![0; 65_536]);
    let begun = Instant::now();
    while !missing.is_empty() {
        assert!(
            begun.elapsed() < PATIENCE,
            "{} datagrams of 1,500 bytes are missing",
            missing.len()
        );
        let window: Vec<usize> = missing.iter().take(WINDOW).copied().collect();
        for number in &window {
            raw.send(&raw.udp(u16::try_from(*number).unwrap() | 0x8000, &sent[*number]));
        }
        let mut open = window.len();
        while open > 0 {
            let Ok((len, source)) = socket.recv_from(&mut buffer) else { break };
            assert_eq!(source, SocketAddr::from((from.address(), PORT)));
            let number = u32::from_be_bytes(*buffer.first_chunk().unwrap()) as usize;
            assert!(buffer[..len] == sent[number], "datagram {number} came with other bytes");
            let before = missing.len();
            missing.retain(|one| *one != number);
            open -= before - missing.len();
        }
        lost += open;
    }
    println!("{} to {}: {lost} of {} sent again", from.plan.name, to.plan.name, sent.len());
}

/// Datagrams so large that the device's own kernel cuts them.
fn large_udp(from: &Machine, to: &Machine) {
    let socket = to.host.enter(|| UdpSocket::bind(to.at(PORT))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let sender = from.host.enter(|| UdpSocket::bind(from.at(PORT))).unwrap().unwrap();
    let mut buffer = vec![0; 65_536];
    for len in [1_473, 2_000, 4_000, 8_000, 20_000, 60_000] {
        let sent = bytes(len, len);
        wait::until(PATIENCE, &format!("a datagram of {len} bytes"), || {
            sender.send_to(&sent, to.at(PORT)).unwrap();
            let (got, _) = socket.recv_from(&mut buffer).ok()?;
            // One that took long was sent again, and comes twice.
            if got != len {
                return None;
            }
            assert!(buffer[..got] == sent, "others than the {len} bytes came");
            Some(())
        })
        .unwrap();
    }
}

/// Segments of 1,500 bytes from a device that doesn't care what was agreed on: the very packets arrive.
fn stubborn_tcp(from: &Machine, to: &Machine) {
    let silence = format!("{}/32", from.address());
    // The far kernel knows of no connection, and would say so.
    to.host.ip(&format!("route add blackhole {silence}")).unwrap();
    let raw = Raw::of(from, to);
    let far = to.host.enter(|| PacketSocket::open_on("eth0", 0x0800)).unwrap().unwrap();
    for number in 0..64u16 {
        let payload = bytes(usize::from(number), 1_460);
        let packet = raw.tcp(0xbe00 | number, 1 + u32::from(number) * 1_460, &payload);
        assert_eq!(packet.len(), 1_500);
        wait::until(Duration::from_secs(60), &format!("segment {number}"), || {
            raw.send(&packet);
            let deadline = Instant::now() + Duration::from_millis(300);
            while let Some(left) = deadline.checked_duration_since(Instant::now()) {
                let Some(frame) = far.receive_whole(left).unwrap() else { break };
                let parsed = parse_ipv4(&frame[14..]).unwrap();
                if parsed.source == raw.from && parsed.protocol == 6 {
                    assert!(parsed.fragment.is_none() && parsed.dont_fragment, "{parsed:?}");
                    if parsed.id == 0xbe00 | number {
                        assert!(parsed.bytes == packet, "came otherwise: {parsed:?}");
                        return Some(());
                    }
                }
            }
            None
        })
        .unwrap();
    }
    to.host.ip(&format!("route del blackhole {silence}")).unwrap();
}

#[test]
fn a_mebibyte_each_way_gets_through_underlays_of_any_size() {
    let test = "a_mebibyte_each_way_gets_through_underlays_of_any_size";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    talk::allow(hospital);
    let underlay = Underlay(hospital);
    underlay.says_nothing();
    let said = underlay.counter("Icmp:", "OutMsgs");
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
    underlay.wait_until_found(1500, PATIENCE);
    for (mtu, built) in [(1500, false), (1280, false), (1600, true)] {
        if built {
            underlay.is_built_for(mtu);
        } else {
            underlay.carries(mtu);
        }
        let refused = underlay.counter("Ip:", "FragFails");
        for (from, to) in [(ct, pacs), (pacs, ct)] {
            println!("{} to {} at {mtu}", from.plan.name, to.plan.name);
            talk::transfer(from, to, MEBIBYTE);
            udp(from, to);
            large_udp(from, to);
            stubborn_tcp(from, to);
        }
        // 1,500 bytes and what sealing adds need no more than 1,560.
        underlay.wait_until_found(u64::from(mtu.min(1560)), PATIENCE);
        let refused = underlay.counter("Ip:", "FragFails") - refused;
        assert_eq!(refused > 0, mtu == 1280, "{refused} packets were too large for the router");
    }
    assert_eq!(underlay.counter("Icmp:", "OutMsgs"), said, "the router was to say nothing");
    for gateway in ["imaging", "servers"] {
        let drops = anteroom_e2e::drops(&hospital.gateways[gateway]).unwrap();
        println!("{gateway}: {drops:?}");
    }
}

#[test]
fn no_flow_ends_when_the_underlay_shrinks_or_grows() {
    let test = "no_flow_ends_when_the_underlay_shrinks_or_grows";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    talk::allow(hospital);
    let underlay = Underlay(hospital);
    underlay.says_nothing();
    let said = underlay.counter("Icmp:", "OutMsgs");
    underlay.is_built_for(1600);
    underlay.wait_until_found(1560, PATIENCE);
    let mut talk = Talk::start(hospital.machine("ct-1"), hospital.machine("pacs-1"));
    talk.goes_on(MEBIBYTE as u64, "at 1,600");
    underlay.carries(1280);
    talk.goes_on(MEBIBYTE as u64, "at 1,280");
    underlay.wait_until_found(1280, PATIENCE);
    underlay.carries(1000);
    talk.goes_on(MEBIBYTE as u64, "at 1,000");
    underlay.carries(1600);
    talk.goes_on(MEBIBYTE as u64, "at 1,600 again");
    // Nothing tells the gateways: they look now and then.
    underlay.wait_until_found(1560, Duration::from_secs(120));
    talk.goes_on(MEBIBYTE as u64, "when the gateways know of it");
    underlay.is_built_for(1400);
    talk.goes_on(MEBIBYTE as u64, "at 1,400, which the gateways' own interfaces say");
    underlay.wait_until_found(1400, PATIENCE);
    assert_eq!(underlay.counter("Icmp:", "OutMsgs"), said, "the router was to say nothing");
    talk.stop();
}
