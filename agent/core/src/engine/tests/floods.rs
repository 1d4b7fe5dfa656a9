//! One device that does all that it can to use the gateway up, beside a neighbour that loses nothing by it.

use anteroom_proto::v1::telemetry::EdgeDelta;

use super::*;

const ONE: PortId = PortId::device(0);
const TWO: PortId = PortId::device(1);
const CT: [u8; 4] = [10, 20, 1, 10];
const MRI: [u8; 4] = [10, 20, 1, 11];
const CAMPUS: [u8; 4] = [10, 20, 9, 5];
const MILLION: u32 = 1_000_000;
const SYN: u8 = 2;
const ACK: u8 = 0x10;

/// The view of these tests, in which MRI may reach the campus as CT may.
fn both(modes: [Mode; 2]) -> Arc<View> {
    let mut both = Arc::unwrap_or_clone(view(modes, &["tcp/1-65535", "udp/1-65535"]));
    let mut second = both.intent.rules.last().unwrap().clone();
    second.id = RuleId::of("mri-campus");
    second.from = Endpoint::Member(MemberId::from_bytes([11; 16]));
    both.intent.rules.push(second);
    Arc::new(both)
}

/// A neighbour on port2, and what it saw.
#[derive(Debug, Default)]
struct Neighbour {
    connections: u16,
}

impl Neighbour {
    /// Opens a connection to the campus, is answered, and uses its first one.
    fn works(&mut self, engine: &mut Engine, now: Instant) {
        self.connections += 1;
        let (new, first) = (20_000 + self.connections, 20_001);
        let pieces = {
            let whole = ipv4(MRI, CAMPUS, 17, &udp(9_000, 104, &[7; 900]));
            let mut cut = crate::fragment::Fragments::new(&whole, 576, self.connections).unwrap();
            let mut room = vec![0; cut.longest()];
            let mut all = Vec::new();
            while let Some(len) = cut.next_into(&mut room) {
                all.push(room[..len].to_vec());
            }
            all
        };
        let there = |port, flags, data: &[u8]| ipv4(MRI, CAMPUS, 6, &tcp(port, 104, flags, data));
        let back = |port, flags, data: &[u8]| ipv4(CAMPUS, MRI, 6, &tcp(104, port, flags, data));
        for (outwards, packet) in [
            (true, there(new, SYN, &[])),
            (false, back(new, SYN | ACK, &[])),
            (true, there(new, ACK, &[])),
            (true, there(first, ACK, b"image")),
            (false, back(first, ACK, b"thanks")),
            (true, pieces[0].clone()),
            (true, pieces[1].clone()),
        ] {
            let (from, to, bytes) = if outwards {
                (TWO, PortId::UPLINK, frame(mac(0x77), mac(11), &packet))
            } else {
                (PortId::UPLINK, TWO, frame(mac(11), mac(0x77), &packet))
            };
            let out = feed(engine, from, VnetHeader::default(), &bytes, now);
            let passed = out.frames.iter().any(|(port, _, sent)| *port == to && *sent == bytes);
            assert!(passed, "connection {}: {:#?}", self.connections, engine.status(now));
        }
    }

    /// Every connection was recorded by itself.
    fn was_recorded(&self, edges: &[EdgeDelta]) {
        let own = edges.iter().filter(|edge| edge.mac == mac(11));
        let dicom = own.clone().filter(|edge| (edge.protocol, edge.port) == (6, 104));
        let flows: u64 = dicom.clone().map(|edge| edge.flows).sum();
        let answered = dicom.filter(|edge| edge.packets_in > 0).map(|edge| edge.flows).sum();
        let all = u64::from(self.connections);
        assert_eq!((flows, answered), (all, all), "{:#?}", own.collect::<Vec<_>>());
    }
}

/// All edges, as the shell takes them out.
fn edges(engine: &mut Engine, now: Instant) -> Vec<EdgeDelta> {
    let mut all = Vec::new();
    loop {
        let report = engine.report(now);
        if report.edges.is_empty() {
            return all;
        }
        all.extend(report.edges);
    }
}

#[test]
fn a_million_half_open_flows_of_one_device_cost_its_neighbour_nothing() {
    for mode in [Mode::Observe, Mode::Enforce] {
        let mut now = start();
        let mut engine = engine(Limits::default(), now);
        engine.apply(both([mode, Mode::Enforce]), now);
        let mut neighbour = Neighbour::default();
        let mut out = Kept::default();
        for number in 0..MILLION / 2 {
            let [_, b, c, d] = number.to_be_bytes();
            let port = 1 + u16::from_be_bytes([b, c]);
            let syn = ipv4(CT, [10, 20, 9, d], 6, &tcp(40_000, port, SYN, &[]));
            let bytes = frame(mac(0x77), mac(10), &syn);
            let _ = feed(&mut engine, ONE, VnetHeader::default(), &bytes, now);
            if number % 5_000 == 0 {
                neighbour.works(&mut engine, now);
                now += Duration::from_millis(50);
                engine.handle_timeout(now, &mut out);
                let tables = engine.status(now).tables;
                let limits = Limits::default();
                assert!(tables.flows <= limits.flows_per_device + 1_000, "{tables:?}");
                assert!(tables.edges <= limits.edges_per_device + 300, "{tables:?}");
            }
        }
        let of_ct =
            engine.flows.count_of(engine.stations.share(engine.stations.find(mac(10)).unwrap()));
        assert_eq!(of_ct, Limits::default().flows_per_device);
        let status = engine.status(now);
        assert!(status.folded > 400_000, "{}", status.folded);
        let edges = edges(&mut engine, now);
        neighbour.was_recorded(&edges);
        let counted: u64 = edges.iter().filter(|edge| edge.mac == mac(10)).map(|e| e.flows).sum();
        assert_eq!(counted, u64::from(MILLION / 2), "what was folded is counted");
        let scan = edges.iter().filter(|edge| edge.mac == mac(10)).count();
        assert!(scan < 400, "{scan} edges for a scan");
    }
}

#[test]
fn a_million_ethernet_addresses_from_one_port_cost_its_neighbour_nothing() {
    for mode in [Mode::Observe, Mode::Enforce] {
        let mut now = start();
        let mut engine = engine(Limits::default(), now);
        engine.apply(both([mode, Mode::Enforce]), now);
        let mut neighbour = Neighbour::default();
        let mut out = Kept::default();
        let limits = Limits::default();
        for number in 0..MILLION / 2 {
            let [a, b, c, d] = number.to_be_bytes();
            let from = MacAddr([0x02, 9, a, b, c, d]);
            let own = [10, 30, c, d];
            let packet = match number % 3 {
                0 => ipv4(own, CAMPUS, 6, &tcp(4_000, 104, SYN, &[])),
                1 => ipv4(own, CAMPUS, 17, &udp(4_000, 104, b"x")),
                _ => {
                    let mut piece = ipv4(own, MRI, 17, &[7; 64]);
                    piece[7] = 9;
                    piece[10..12].fill(0);
                    let sum = crate::checksum::checksum(&piece[..20]);
                    piece[10..12].copy_from_slice(&sum.to_be_bytes());
                    piece
                }
            };
            let bytes = frame(mac(0x77), from, &packet);
            let _ = feed(&mut engine, ONE, VnetHeader::default(), &bytes, now);
            if number % 5_000 == 0 {
                neighbour.works(&mut engine, now);
                now += Duration::from_millis(50);
                engine.handle_timeout(now, &mut out);
                let tables = engine.status(now).tables;
                assert!(tables.stations <= limits.unknown_per_port + 2, "{tables:?}");
                assert!(tables.flows <= limits.flows_per_device + 1_000, "{tables:?}");
                assert!(tables.edges <= limits.edges_per_device + 300, "{tables:?}");
                assert!(tables.fragments <= 130, "{tables:?}");
            }
        }
        neighbour.was_recorded(&edges(&mut engine, now));
    }
}

#[test]
fn a_campus_of_a_million_addresses_stays_a_bounded_table() {
    let mut now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(both([Mode::Observe, Mode::Enforce]), now);
    let mut neighbour = Neighbour::default();
    let mut out = Kept::default();
    for number in 0..MILLION / 5 {
        let [a, b, c, d] = number.to_be_bytes();
        let from = MacAddr([0x02, 9, a, b, c, d]);
        let scan = ipv4([10, 40, c, d], MRI, 6, &tcp(4_000, u16::from_be_bytes([d, c]), SYN, &[]));
        let bytes = frame(mac(11), from, &scan);
        let reached = feed(&mut engine, PortId::UPLINK, VnetHeader::default(), &bytes, now);
        assert!(reached.frames.is_empty(), "the scan reached an enforced device: {reached:?}");
        if number % 5_000 == 0 {
            neighbour.works(&mut engine, now);
            now += Duration::from_millis(50);
            engine.handle_timeout(now, &mut out);
            let tables = engine.status(now).tables;
            assert!(tables.bridge <= Limits::default().bridge_entries, "{tables:?}");
            assert!(tables.edges <= Limits::default().edges_per_device, "{tables:?}");
        }
    }
    let all = edges(&mut engine, now);
    neighbour.was_recorded(&all);
    assert!(all.len() < 400, "{} edges for a scan of one device", all.len());
}

#[test]
fn fragments_without_end_use_up_their_senders_share_only() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(both([Mode::Enforce, Mode::Enforce]), now);
    let mut neighbour = Neighbour::default();
    for number in 0..20_000_u16 {
        // First ones that never end, and later ones that never begin.
        let mut piece = ipv4(CT, CAMPUS, 17, &[&udp(9, 104, &[])[..], &[0; 600]].concat());
        piece[4..6].copy_from_slice(&number.to_be_bytes());
        piece[6..8].copy_from_slice(&if number % 2 == 0 { [0x20, 0] } else { [0x20, 200] });
        piece[10..12].fill(0);
        let sum = crate::checksum::checksum(&piece[..20]);
        piece[10..12].copy_from_slice(&sum.to_be_bytes());
        let bytes = frame(mac(0x77), mac(10), &piece);
        let _ = feed(&mut engine, ONE, VnetHeader::default(), &bytes, now);
        if number % 500 == 0 {
            neighbour.works(&mut engine, now);
        }
    }
    assert!(engine.status(now).tables.fragments <= 130, "{:?}", engine.status(now).tables);
}

#[test]
fn a_report_about_many_flows_is_gathered_in_steps_and_is_whole() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(both([Mode::Observe, Mode::Enforce]), now);
    let flows: u16 = 9_000;
    for number in 0..flows {
        let syn = ipv4(CT, [10, 20, 9, 1], 6, &tcp(1_000 + number, 104, SYN, &[]));
        let bytes = frame(mac(0x77), mac(10), &syn);
        let _ = feed(&mut engine, ONE, VnetHeader::default(), &bytes, now);
    }
    let (mut at, mut steps, mut out) = (now, 0, Kept::default());
    engine.prepare_report(at);
    while engine.is_gathering() {
        let due = engine.poll_timeout().unwrap().0;
        assert!(due < now + Duration::from_secs(1), "the next step is wanted soon");
        at = due.max(at + Duration::from_millis(1));
        engine.handle_timeout(at, &mut out);
        steps += 1;
        assert!(steps < 100, "it never ends");
    }
    assert!(steps >= 4, "{flows} flows in {steps} steps");
    let counted: u64 = engine.report(at).edges.iter().map(|edge| edge.flows).sum();
    assert_eq!(counted, u64::from(flows));
    assert_eq!(engine.report(at).edges, [], "nothing is reported twice");
}
