//! The short cut for known flows changes nothing: two engines, one of which takes the long way with every packet, do
//! and record the same, whatever comes and whatever changes in between.

use super::*;
use crate::wire::arp::{ArpPacket, Operation};

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    Frame(u16, VnetHeader, Option<VlanTag>, Vec<u8>),
    /// A packet out of the tunnel of the other gateway, as long as it is one.
    Tunnelled(Vec<u8>),
    Apply([Mode; 2], usize),
    OwnAddress(bool),
    /// Milliseconds pass.
    Wait(u64),
}

const SERVICES: [&[&str]; 3] =
    [&["tcp/1-65535", "udp/1-65535"], &["tcp/104", "udp/104"], &["tcp/105"]];

fn often_the_same() -> impl Strategy<Value = Vec<u8>> {
    let devices = (
        prop::sample::select(vec![10_u8, 10, 10, 11, 0x55]),
        prop::sample::select(vec![
            [10, 20, 1, 10],
            [10, 20, 1, 10],
            [10, 20, 1, 11],
            [10, 20, 7, 7],
        ]),
    );
    let others = (
        prop::sample::select(vec![0x77_u8, 0x77, 0x77, 0x78, 11, 0xa0, 0x55]),
        prop::sample::select(vec![
            [10, 20, 4, 20],
            [10, 20, 4, 20],
            [10, 20, 9, 5],
            [10, 20, 9, 5],
            [10, 20, 1, 11],
            [10, 20, 1, 2],
            [10, 20, 1, 1],
            [224, 0, 0, 9],
        ]),
    );
    let flags = prop::sample::select(vec![0x10_u8, 0x10, 0x10, 0x18, 0x02, 0x12, 0x11, 0x14]);
    let ports =
        prop::sample::select(vec![(40_000_u16, 104_u16), (40_000, 104), (40_001, 105), (68, 67)]);
    (devices, others, flags, ports, any::<bool>(), any::<bool>(), 0..20_u8).prop_map(
        |((mac_a, ip_a), (mac_b, ip_b), flags, (from, to), is_tcp, answers, oddity)| {
            let (ends, ports) = if answers {
                (((mac_a, ip_a), (mac_b, ip_b)), (to, from))
            } else {
                (((mac_b, ip_b), (mac_a, ip_a)), (from, to))
            };
            let ((to_mac, destination), (from_mac, source)) = ends;
            let mut packet = if is_tcp {
                ipv4(source, destination, 6, &tcp(ports.0, ports.1, flags, &[7; 30]))
            } else {
                ipv4(source, destination, 17, &udp(ports.0, ports.1, &[7; 30]))
            };
            match oddity {
                0 => packet[6] |= 0x20,
                1 => packet[10] ^= 0x01,
                2 => packet.truncate(25),
                _ => {}
            }
            if oddity == 0 {
                packet[10..12].fill(0);
                let sum = crate::checksum::checksum(&packet[..20]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            frame(mac(to_mac), mac(from_mac), &packet)
        },
    )
}

fn any_arp() -> impl Strategy<Value = Vec<u8>> {
    let addresses = vec![[10, 20, 1, 1], [10, 20, 1, 10], [10, 20, 9, 5], [10, 20, 1, 77]];
    let macs = vec![0x77_u8, 0x78, 10, 11];
    (
        prop::sample::select(addresses.clone()),
        prop::sample::select(addresses),
        prop::sample::select(macs.clone()),
        prop::sample::select(macs),
        any::<bool>(),
    )
        .prop_map(|(sender, target, from, to, asks)| {
            let packet = ArpPacket {
                operation: if asks { Operation::Request } else { Operation::Reply },
                sender_mac: mac(from),
                sender: sender.into(),
                target_mac: mac(to),
                target: target.into(),
            };
            let to = if asks { MacAddr::BROADCAST } else { mac(to) };
            packet.to_frame(to, mac(from)).to_vec()
        })
}

fn any_step() -> impl Strategy<Value = Step> {
    let port = || prop::sample::select(vec![0_u16, 0, 1, 1, 1, 2]);
    let tag = prop::option::weighted(0.05, Just(VlanTag { protocol: 0x8100, control: 7 }));
    let vnet = prop::sample::select(vec![
        VnetHeader::default(),
        VnetHeader::default(),
        VnetHeader { gso_type: VnetHeader::GSO_TCPV4, gso_size: 10, ..VnetHeader::default() },
    ]);
    let mode = || prop::sample::select(vec![Mode::Observe, Mode::Protect, Mode::Enforce]);
    prop_oneof![
        20 => (port(), vnet, tag, often_the_same()).prop_map(|(p, v, t, f)| Step::Frame(p, v, t, f)),
        8 => often_the_same().prop_map(|frame| Step::Tunnelled(frame[14..].to_vec())),
        2 => (port(), any_arp()).prop_map(|(p, f)| Step::Frame(p, VnetHeader::default(), None, f)),
        1 => ([mode(), mode()], 0..SERVICES.len()).prop_map(|(m, s)| Step::Apply(m, s)),
        1 => any::<bool>().prop_map(Step::OwnAddress),
        2 => (0..3_000_u64).prop_map(Step::Wait),
    ]
}

/// What came of a step: what was sent, and how many datagrams would have been sealed.
fn take(engine: &mut Engine, step: &Step, now: Instant) -> Kept {
    let mut out = Kept::default();
    match step {
        Step::Frame(port, vnet, vlan, bytes) => {
            let port = if *port == 0 { PortId::UPLINK } else { PortId::device(port - 1) };
            let mut bytes = bytes.clone();
            let mut batch = [RxFrame { vnet: *vnet, vlan: *vlan, bytes: &mut bytes }];
            engine.handle_frames(port, &mut batch, now, &mut out);
        }
        Step::Tunnelled(bytes) => {
            if let Some(slot) = engine.peers.slot(OTHER) {
                engine.tunnelled_for_tests(slot, bytes, now, &mut out);
            }
        }
        Step::Apply(modes, services) => engine.apply(view(*modes, SERVICES[*services]), now),
        Step::OwnAddress(other) => {
            let own = if *other { "10.20.4.20" } else { "10.20.1.2" };
            engine.set_own_addresses(vec![own.parse().unwrap()]);
        }
        Step::Wait(_) => engine.handle_timeout(now, &mut out),
    }
    // Nobody ever answers a handshake, which costs randomness of its own.
    out.datagrams.iter_mut().for_each(|datagram| datagram.truncate(4));
    out
}

fn told(engine: &mut Engine, now: Instant) -> String {
    let flows = engine.flows(now, 1_000);
    let status = engine.status(now);
    let mut report = engine.report(now);
    report.edges.sort_by_key(|edge| format!("{edge:?}"));
    let mut flows: Vec<String> = flows.iter().map(|flow| format!("{flow:?}")).collect();
    flows.sort();
    format!("{flows:#?} {status:#?} {report:#?} {:#?}", engine.learned())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_short_cut_does_and_records_the_same_as_the_long_way(
        modes in (any_mode(), any_mode()),
        steps in prop::collection::vec((any_step(), 1..4_usize), 1..120),
    ) {
        let mut now = start();
        let mut engines = [engine(Limits::default(), now), engine(Limits::default(), now)];
        engines[1].long_way = true;
        for engine in &mut engines {
            engine.apply(view([modes.0, modes.1], SERVICES[0]), now);
        }
        let mut short_cuts = 0;
        for (step, times) in &steps {
            for _ in 0..*times {
                now += Duration::from_millis(if let Step::Wait(millis) = step { *millis } else { 1 });
                let [short, long] = &mut engines;
                let (a, b) = (take(short, step, now), take(long, step, now));
                prop_assert_eq!(
                    format!("{:?}", a), format!("{:?}", b),
                    "{:?} after {} short cuts", step, short_cuts
                );
                short_cuts = short.short_cuts;
            }
        }
        let [short, long] = &mut engines;
        prop_assert_eq!(told(short, now), told(long, now));
        prop_assert_eq!(long.short_cuts, 0);
    }
}

#[test]
fn the_short_cut_is_taken_both_ways_by_tunnel_and_uplink() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Enforce, Mode::Enforce], SERVICES[0]), now);
    let slot = engine.peers.slot(OTHER).unwrap();
    let packet =
        |from, to, ports: (u16, u16)| ipv4(from, to, 6, &tcp(ports.0, ports.1, 0x10, &[7; 30]));
    let (device, member, external) = ([10, 20, 1, 10], [10, 20, 4, 20], [10, 20, 9, 5]);
    let (out, back) = ((40_000, 104), (104, 40_000));
    let leaving = |to| frame(mac(0x77), mac(10), &packet(device, to, out));
    let coming = frame(mac(10), mac(0x77), &packet(external, device, back));
    let tunnelled = packet(member, device, back);
    let mut counts = Vec::new();
    for _ in 0..3 {
        // What goes to everybody, because nobody knows where its destination is, leaves the short cut open.
        engine.echoes.sent("a stray frame", 1, false, now);
        let before = engine.short_cuts;
        let mut taken = Vec::new();
        // A packet out of the tunnel opens the flow, since the peer isn't live.
        let mut sent = Kept::default();
        engine.tunnelled_for_tests(slot, &tunnelled, now, &mut sent);
        taken.push(sent.frames.len());
        let plain = VnetHeader::default();
        let _ = feed(&mut engine, PortId::device(0), plain, &leaving(member), now);
        taken.push(engine.peers.get(slot).map_or(0, crate::peer::Peer::waiting));
        let sent = feed(&mut engine, PortId::device(0), plain, &leaving(external), now);
        taken.push(sent.frames.len());
        let sent = feed(&mut engine, PortId::UPLINK, plain, &coming, now);
        taken.push(sent.frames.len());
        counts.push((engine.short_cuts - before, taken));
    }
    let expected = [(0, vec![1, 1, 1, 1]), (4, vec![1, 2, 1, 1]), (4, vec![1, 3, 1, 1])];
    assert_eq!(counts, expected, "{:#?}", engine.status(now).drops);
}

#[test]
fn reading_ahead_takes_whatever_comes_and_changes_nothing() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Enforce, Mode::Enforce], SERVICES[0]), now);
    let known = |to: u16| {
        let packet = ipv4([10, 20, 1, 10], [10, 20, 9, 5], 6, &tcp(40_000, to, 0x10, &[7; 30]));
        frame(mac(0x77), mac(10), &packet)
    };
    for to in 0..100 {
        let _ = feed(&mut engine, PortId::device(0), VnetHeader::default(), &known(to), now);
    }
    assert_eq!(engine.flows.len(), 100);
    let mut frames: Vec<Vec<u8>> = (0..200).map(known).collect();
    frames.push(Vec::new());
    frames.push(vec![0xff; 14]);
    frames.push(known(1)[..40].to_vec());
    frames.push(frame(mac(0x77), mac(0x66), &known(1)[14..]));
    // Reports tell each packet once.
    let _ = engine.report(now);
    let before = told(&mut engine, now);
    let batch: Vec<_> = frames
        .iter_mut()
        .map(|bytes| RxFrame { vnet: VnetHeader::default(), vlan: None, bytes })
        .collect();
    for port in [PortId::device(0), PortId::device(1), PortId::UPLINK] {
        engine.read_flows(port, &batch);
    }
    assert_eq!(told(&mut engine, now), before);
}

impl Engine {
    /// Takes what could have come out of a peer's tunnel.
    fn tunnelled_for_tests(
        &mut self,
        peer: peer::PeerSlot,
        packet: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) {
        let mut held = std::mem::take(&mut self.held);
        let room = held.room(packet.len()).unwrap();
        room[..packet.len()].copy_from_slice(packet);
        let span = held.keep(packet.len());
        self.tunnel_packet(peer, span, &mut held, now, out);
        self.let_go(&mut held, now, out);
        self.held = held;
    }
}
