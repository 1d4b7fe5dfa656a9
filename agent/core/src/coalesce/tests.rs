use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::gso::Packets;
use crate::wire::ipv4::Header;
use crate::wire::{Transport, parse_ipv4};

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 20, 4, 11);
const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 5);
const ACK: u8 = TcpFlags::ACK;
const PSH: u8 = TcpFlags::PSH;

/// Everything that a packet can differ from the one before it in.
#[derive(Debug, Clone)]
struct Spec {
    tcp: bool,
    port: u16,
    len: usize,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    reserved: u8,
    window: u16,
    urgent: u16,
    options: Vec<u8>,
    tos: u8,
    ttl: u8,
    id: u16,
    word: u16,
    ip_options: bool,
    broken: bool,
    no_checksum: bool,
    fill: u8,
}

impl Spec {
    fn tcp(len: usize) -> Self {
        Self {
            tcp: true,
            port: 40_000,
            len,
            sequence: u32::MAX - 2000,
            acknowledgement: 77,
            flags: ACK,
            reserved: 0,
            window: 501,
            urgent: 0,
            options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            tos: 0,
            ttl: 64,
            id: u16::MAX - 1,
            word: ipv4::DONT_FRAGMENT,
            ip_options: false,
            broken: false,
            no_checksum: false,
            fill: 0,
        }
    }

    fn udp(len: usize) -> Self {
        Self { tcp: false, ..Self::tcp(len) }
    }

    /// The packet that a sender would send next.
    fn next(&self) -> Self {
        Self {
            sequence: self.sequence.wrapping_add(self.len as u32),
            id: self.id.wrapping_add(1),
            fill: self.fill.wrapping_add(1),
            ..self.clone()
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(self.port.to_be_bytes());
        transport.extend(104_u16.to_be_bytes());
        let field = if self.tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(self.acknowledgement.to_be_bytes());
            transport.push((5 + self.options.len() as u8 / 4) << 4 | self.reserved);
            transport.push(self.flags);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0, 0]);
            transport.extend(self.urgent.to_be_bytes());
            transport.extend(&self.options);
            16
        } else {
            transport.extend((8 + self.len as u16).to_be_bytes());
            transport.extend([0, 0]);
            6
        };
        transport.extend((0..self.len).map(|i| (i * 7) as u8 ^ self.fill));
        let protocol = if self.tcp { ipv4::TCP } else { ipv4::UDP };
        let sum = Sum::pseudo_ipv4(SOURCE, DESTINATION, protocol, transport.len() as u16);
        let sum = sum.bytes(&transport).transport_checksum() ^ u16::from(self.broken);
        let sum = if self.no_checksum { 0 } else { sum };
        put(&mut transport, field, &sum.to_be_bytes());

        let header = Header {
            source: SOURCE,
            destination: DESTINATION,
            protocol,
            ttl: self.ttl,
            dscp_ecn: self.tos,
            id: self.id,
            payload_len: transport.len() + if self.ip_options { 4 } else { 0 },
        };
        let mut bytes = header.to_bytes().unwrap().to_vec();
        if self.ip_options {
            bytes[0] = 0x46;
            bytes.extend([1, 1, 1, 0]);
        }
        put(&mut bytes, 6, &self.word.to_be_bytes());
        put(&mut bytes, 10, &[0, 0]);
        let sum = checksum::checksum(&bytes);
        put(&mut bytes, 10, &sum.to_be_bytes());
        bytes.extend(transport);
        bytes
    }
}

fn peer(number: u32) -> PeerSlot {
    PeerSlot::for_tests(number)
}

/// What goes out for packets that come in one batch, as the engine does it: each frame's packets.
fn pass(packets: &[(u32, Vec<u8>)]) -> Vec<Vec<Vec<u8>>> {
    let mut held = Held::default();
    let mut out = Vec::new();
    for (from, bytes) in packets {
        if held.room(crate::peer::open_room(bytes.len())).is_none() {
            while let Some(run) = held.take() {
                out.push(apart(&held, &run));
            }
            held.clear();
        }
        held.room(bytes.len()).unwrap()[..bytes.len()].copy_from_slice(bytes);
        let span = held.keep(bytes.len());
        let Ok(packet) = parse_ipv4(held.packet(span)) else { continue };
        if let Some(segment) = Segment::of(&packet) {
            if let Some(run) = held.hold(peer(*from), span, &segment) {
                out.push(apart(&held, &run));
                held.forget(run);
            }
            continue;
        }
        let ports = matches!(packet.transport, Transport::Tcp { .. } | Transport::Udp)
            && packet.fragment.is_none();
        let tuple = packet.tuple();
        while let Some(run) = held.take_before(peer(*from), &tuple, ports) {
            out.push(apart(&held, &run));
            held.forget(run);
        }
        out.push(vec![bytes.clone()]);
    }
    while let Some(run) = held.take() {
        out.push(apart(&held, &run));
        held.forget(run);
    }
    held.clear();
    out
}

/// The packets of one frame, cut as the engine cuts what the kernel hands over.
fn apart(held: &Held, run: &Run) -> Vec<Vec<u8>> {
    let whole: usize = run.parts().iter().map(|part| held.packet(*part).len()).sum();
    assert_eq!(run.bytes(), whole);
    if let [only] = run.parts() {
        return vec![held.packet(*only).to_vec()];
    }
    let merged = held.merge(run).expect("more than one packet");
    let mut bytes = merged.headers().to_vec();
    for part in run.parts() {
        bytes.extend(held.payload(run, *part));
    }
    let packet = parse_ipv4(&bytes).expect("a super-frame is a packet");
    assert_eq!(packet.bytes.len(), bytes.len(), "its length says all of it");
    assert_eq!(usize::from(merged.vnet.hdr_len), 14 + merged.headers().len());
    let mut packets = Packets::new(&mut bytes, 14, &merged.vnet, MAX_LEN).unwrap();
    let mut all = Vec::new();
    while let Some(packet) = packets.next() {
        all.push(packet.to_vec());
    }
    assert_eq!(all.len(), run.packets());
    all
}

fn sizes(packets: &[Spec]) -> Vec<usize> {
    let packets: Vec<_> = packets.iter().map(|spec| (1, spec.bytes())).collect();
    let frames = pass(&packets);
    let again: Vec<_> = frames.concat();
    assert_eq!(again, packets.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>());
    frames.iter().map(Vec::len).collect()
}

fn stream(first: Spec, count: usize) -> Vec<Spec> {
    std::iter::successors(Some(first), |spec| Some(spec.next())).take(count).collect()
}

#[test]
fn a_stream_becomes_one_frame_with_its_push_and_short_end() {
    let mut packets = stream(Spec::tcp(1368), 40);
    packets[39].flags |= PSH;
    assert_eq!(sizes(&packets), [40]);
    packets[39].len = 1;
    assert_eq!(sizes(&packets), [40]);
    let mut echo = stream(Spec { flags: ACK | 0x40, ..Spec::tcp(100) }, 5);
    assert_eq!(sizes(&echo), [5], "ECN's echo stands in all of them");
    echo[2].flags = ACK;
    assert_eq!(sizes(&echo), [2, 1, 2]);
}

#[test]
fn datagrams_of_equal_size_become_one_frame() {
    assert_eq!(sizes(&stream(Spec::udp(100), 64)), [64]);
    assert_eq!(sizes(&stream(Spec::udp(100), 65)), [64, 1]);
    let mut packets = stream(Spec::udp(100), 5);
    packets[2].len = 99;
    assert_eq!(sizes(&packets), [3, 2]);
    packets[2].len = 101;
    assert_eq!(sizes(&packets), [2, 2, 1], "a longer one begins anew, and a shorter one ends that");
}

#[test]
fn no_frame_is_longer_than_a_packet_can_be() {
    let frames = sizes(&stream(Spec::tcp(1408), 60));
    assert_eq!(frames, [46, 14]);
}

#[test]
fn whatever_cutting_would_lose_keeps_packets_apart() {
    type Change = (&'static str, fn(&mut Spec));
    // Each on the second of three packets.
    let alone: [Change; 17] = [
        ("a gap", |s| s.sequence = s.sequence.wrapping_add(1)),
        ("an overlap", |s| s.sequence = s.sequence.wrapping_sub(1)),
        ("acknowledgement", |s| s.acknowledgement += 1),
        ("window", |s| s.window += 1),
        ("urgent pointer", |s| s.urgent = 1),
        ("urgent", |s| s.flags |= 0x20),
        ("reserved bits", |s| s.reserved = 1),
        ("SYN", |s| s.flags |= TcpFlags::SYN),
        ("FIN", |s| s.flags |= TcpFlags::FIN),
        ("RST", |s| s.flags |= TcpFlags::RST),
        ("CWR", |s| s.flags |= TcpFlags::CWR),
        ("no ACK", |s| s.flags = 0),
        ("timestamp", |s| s.options[7] += 1),
        ("fewer options", |s| s.options.truncate(0)),
        ("other size", |s| s.len += 1),
        ("wrong checksum", |s| s.broken = true),
        ("nothing in it", |s| s.len = 0),
    ];
    let any: [Change; 7] = [
        ("type of service", |s| s.tos = 2),
        ("time to live", |s| s.ttl -= 1),
        ("may be fragmented", |s| s.word = 0),
        ("reserved flag", |s| s.word |= 0x8000),
        ("identification", |s| s.id = s.id.wrapping_add(5)),
        ("IP options", |s| s.ip_options = true),
        ("wrong checksum", |s| s.broken = true),
    ];
    let both = any.iter().flat_map(|change| [(Spec::tcp(80), change), (Spec::udp(80), change)]);
    for (first, (what, change)) in both.chain(alone.iter().map(|change| (Spec::tcp(80), change))) {
        let mut packets = stream(first, 3);
        change(&mut packets[1]);
        let frames = sizes(&packets);
        assert_eq!(frames[0], 1, "{what}: {frames:?}");
    }
    let mut packets = stream(Spec::udp(80), 3);
    packets[1].no_checksum = true;
    assert_eq!(sizes(&packets), [1, 1, 1]);
    for tcp in [Spec::tcp(80), Spec::udp(80)] {
        let mut packets = stream(tcp, 4);
        packets[0].broken = true;
        assert_eq!(sizes(&packets), [1, 3], "the first is found to be broken when a second comes");
    }
}

#[test]
fn equal_identifications_are_merged_where_they_mean_nothing() {
    let mut packets = stream(Spec::udp(80), 4);
    for spec in &mut packets {
        spec.id = 0;
    }
    let all: Vec<_> = packets.iter().map(|spec| (1, spec.bytes())).collect();
    let frames = pass(&all);
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [4]);
    for (number, (out, (_, sent))) in frames.concat().iter().zip(&all).enumerate() {
        assert_eq!(be16(out, 4), Some(number as u16));
        assert_eq!((&out[..4], &out[6..10]), (&sent[..4], &sent[6..10]));
        assert_eq!(out[12..], sent[12..]);
    }
    for spec in &mut packets {
        spec.word = 0;
    }
    assert_eq!(sizes(&packets), [1, 1, 1, 1], "these may still be fragmented");
}

#[test]
fn push_ends_a_frame() {
    let mut packets = stream(Spec::tcp(80), 6);
    packets[0].flags |= PSH;
    packets[3].flags |= PSH;
    assert_eq!(sizes(&packets), [1, 3, 2]);
}

#[test]
fn dhcp_is_never_merged() {
    assert_eq!(sizes(&stream(Spec { port: 67, ..Spec::udp(80) }, 3)), [1, 1, 1]);
}

#[test]
fn tunnels_arent_mixed() {
    let packets: Vec<_> = stream(Spec::tcp(80), 4)
        .iter()
        .enumerate()
        .map(|(number, spec)| (number as u32 % 2, spec.bytes()))
        .collect();
    assert_eq!(pass(&packets).iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1]);
}

#[test]
fn a_piece_of_a_packet_overtakes_nothing_between_its_ends() {
    let first = stream(Spec::udp(80), 2);
    let piece = Spec { word: 0x2000, port: 9, ..Spec::udp(80) };
    let packets: Vec<_> = [&first[0], &first[1], &piece].map(|spec| (1, spec.bytes())).into();
    let frames = pass(&packets);
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(frames[1][0], packets[2].1);
}

#[test]
fn many_flows_are_held_at_once_and_more_push_out_the_oldest() {
    for flows in [MAX_RUNS, MAX_RUNS + 1] {
        let mut packets = Vec::new();
        let mut specs: Vec<_> =
            (0..flows as u16).map(|number| Spec { port: 1000 + number, ..Spec::tcp(80) }).collect();
        for _ in 0..3 {
            for spec in &mut specs {
                packets.push((1, spec.bytes()));
                *spec = spec.next();
            }
        }
        let frames = pass(&packets);
        let longest = frames.iter().map(Vec::len).max();
        assert_eq!(longest, Some(if flows > MAX_RUNS { 1 } else { 3 }), "{flows} flows");
    }
}

/// What a hostile peer may do to a stream.
fn odd() -> impl Strategy<Value = Vec<(u32, Vec<u8>)>> {
    let step = (0..30_u8, 0..3_u8, 0..2_u32, any::<u8>());
    proptest::collection::vec(step, 1..120).prop_map(|steps| {
        let mut flows: BTreeMap<u8, Spec> = BTreeMap::new();
        let mut packets = Vec::new();
        for (what, flow, from, noise) in steps {
            let spec = flows.entry(flow).or_insert_with(|| match flow {
                0 => Spec::tcp(1400),
                1 => Spec::tcp(40),
                _ => Spec::udp(120),
            });
            let mut this = spec.clone();
            match what {
                0 => this.flags ^= 1 << (noise % 8),
                1 => this.sequence = this.sequence.wrapping_add(u32::from(noise)),
                2 => this.acknowledgement += u32::from(noise),
                3 => this.window ^= u16::from(noise),
                4 => this.tos = noise,
                5 => this.ttl = noise,
                6 => this.id ^= u16::from(noise),
                7 => this.word ^= 1 << (noise % 16),
                8 => this.broken = true,
                9 => this.no_checksum = true,
                10 => this.len = usize::from(noise),
                11 => this.ip_options = true,
                12 => this.options = vec![1; usize::from(noise % 11) * 4],
                13 => this.reserved = noise & 15,
                14 => this.urgent = u16::from(noise),
                15 => this.flags |= PSH,
                16 => this.port ^= u16::from(noise & 1),
                17 => *spec = Spec { word: 0, ..spec.clone() },
                _ => {}
            }
            let mut bytes = this.bytes();
            if what == 18 {
                let at = usize::from(noise) % bytes.len();
                bytes[at] ^= noise;
            }
            packets.push((from, bytes));
            *spec = this.next();
        }
        packets
    })
}

/// A packet without what may change: the identification of what is never fragmented, and the sum over it.
fn lasting(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if be16(&bytes, 6).is_some_and(|word| word & ipv4::DONT_FRAGMENT != 0) {
        put(&mut bytes, 4, &[0, 0]);
        put(&mut bytes, 10, &[0, 0]);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn each_flow_leaves_as_it_came(packets in odd()) {
        let mut sent: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
        for (_, bytes) in &packets {
            if let Ok(packet) = parse_ipv4(bytes) {
                // A run's tunnel isn't told; flows of two tunnels are mixed here in any order.
                sent.entry(packet.tuple()).or_default().push(lasting(bytes));
            }
        }
        let one: Vec<_> = packets.iter().map(|(_, bytes)| (1, bytes.clone())).collect();
        let mut got: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
        for bytes in pass(&one).concat() {
            let tuple = parse_ipv4(&bytes).unwrap().tuple();
            got.entry(tuple).or_default().push(lasting(&bytes));
        }
        prop_assert_eq!(&got, &sent);
        let count: usize = pass(&packets).iter().map(Vec::len).sum();
        prop_assert_eq!(count, sent.values().map(Vec::len).sum::<usize>());
    }

    #[test]
    fn no_bytes_make_it_panic(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 20..90), 1..20),
    ) {
        let packets: Vec<_> = packets
            .into_iter()
            .map(|mut bytes| {
                // A header that is taken, so that what follows is looked at.
                let len = bytes.len() as u16;
                bytes[0] = 0x45;
                put(&mut bytes, 2, &len.to_be_bytes());
                bytes[9] = if bytes[9] & 1 == 0 { ipv4::TCP } else { ipv4::UDP };
                put(&mut bytes, 10, &[0, 0]);
                let sum = checksum::checksum(&bytes[..20]);
                put(&mut bytes, 10, &sum.to_be_bytes());
                (1, bytes)
            })
            .collect();
        let count: usize = pass(&packets).iter().map(Vec::len).sum();
        let whole = packets.iter().filter(|(_, bytes)| parse_ipv4(bytes).is_ok()).count();
        prop_assert_eq!(count, whole);
    }
}
