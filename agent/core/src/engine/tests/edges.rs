//! Packets that don't fit the common case: forged, in pieces, or with nowhere to go.

use std::collections::BTreeSet;

use anteroom_proto::verdict::Verdict;

use super::super::passage::{Decision, Via};
use super::*;
use crate::fragment::Fragments;
use crate::wire::parse_ipv4;

const PORT: PortId = PortId::device(0);
const ACK: u8 = 0x10;
const SYN: u8 = 2;

fn pieces(packet: &[u8]) -> Vec<Vec<u8>> {
    let mut cut = Fragments::new(packet, 576, 7).unwrap();
    let mut buffer = vec![0; cut.longest()];
    let mut all = Vec::new();
    while let Some(len) = cut.next_into(&mut buffer) {
        all.push(buffer[..len].to_vec());
    }
    all
}

fn count(engine: &Engine, now: Instant, reason: DropReason) -> u64 {
    engine.status(now).drops.get(reason.as_str()).copied().unwrap_or(0)
}

#[test]
fn forged_acknowledgements_take_no_flow_away_from_a_device() {
    let now = start();
    let limits = Limits { flows_per_device: 50, ..Limits::default() };
    let mut engine = engine(limits, now);
    engine.apply(view([Mode::Enforce, Mode::Enforce], &["tcp/104"]), now);
    let (device, archive) = ([10, 20, 1, 10], [10, 20, 9, 5]);
    let plain = VnetHeader::default();
    let out_of = |port, flags| {
        frame(mac(0x77), mac(10), &ipv4(device, archive, 6, &tcp(port, 104, flags, &[])))
    };
    let into = |port, flags| {
        frame(mac(10), mac(0x77), &ipv4(archive, device, 6, &tcp(104, port, flags, &[])))
    };
    // One that both ends take part in, though nobody saw it begin, and one that is silent on one side.
    for bytes in [out_of(30_000, ACK), out_of(30_001, ACK)] {
        assert_eq!(feed(&mut engine, PORT, plain, &bytes, now).frames.len(), 1);
    }
    assert_eq!(feed(&mut engine, PortId::UPLINK, plain, &into(30_000, ACK), now).frames.len(), 1);
    for port in 1..500 {
        let _ = feed(&mut engine, PortId::UPLINK, plain, &into(port, ACK), now);
    }
    let flows = engine.flows(now, 100);
    assert_eq!(
        flows.iter().filter(|flow| flow.packets_out > 0 && flow.packets_in > 0).count(),
        1,
        "{flows:#?}"
    );
    for (what, bytes) in [
        ("a new connection", out_of(40_000, SYN)),
        ("the connection that gave way is picked up again", out_of(30_001, ACK)),
    ] {
        let out = feed(&mut engine, PORT, plain, &bytes, now);
        let drops = engine.status(now).drops;
        assert_eq!(out.frames.len(), 1, "{what}: {drops:?}");
    }
    assert_eq!(count(&engine, now, DropReason::FlowTableFull), 0);
}

#[test]
fn a_port_that_refuses_has_not_answered() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Observe, Mode::Observe], &["tcp/104"]), now);
    let (device, stranger) = ([10, 20, 1, 10], [10, 20, 9, 5]);
    let plain = VnetHeader::default();
    let out_of = |packet: Vec<u8>| (PORT, frame(mac(0x77), mac(10), &packet));
    let into = |packet: Vec<u8>| (PortId::UPLINK, frame(mac(10), mac(0x77), &packet));
    const RST: u8 = 4;
    const SCANNED: u16 = 1_000;
    let mut packets = Vec::new();
    for port in 1..=SCANNED {
        // Each way: a port scan by the device, and one of it.
        packets.push(out_of(ipv4(device, stranger, 6, &tcp(40_000, port, SYN, &[]))));
        packets.push(into(ipv4(stranger, device, 6, &tcp(port, 40_000, RST | ACK, &[]))));
        packets.push(into(ipv4(stranger, device, 6, &tcp(50_000, port, SYN, &[]))));
        packets.push(out_of(ipv4(device, stranger, 6, &tcp(port, 50_000, RST | ACK, &[]))));
    }
    // Two that were taken, and then reset.
    for flags in [SYN, ACK] {
        packets.push(out_of(ipv4(device, stranger, 6, &tcp(40_001, 5_000, flags, &[]))));
        packets.push(into(ipv4(stranger, device, 6, &tcp(50_001, 5_001, flags, &[]))));
        let answer = if flags == SYN { SYN | ACK } else { RST };
        packets.push(into(ipv4(stranger, device, 6, &tcp(5_000, 40_001, answer, &[]))));
        packets.push(out_of(ipv4(device, stranger, 6, &tcp(5_001, 50_001, answer, &[]))));
    }
    for (port, bytes) in packets {
        let out = feed(&mut engine, port, plain, &bytes, now);
        assert!(!out.frames.is_empty(), "{:#?}", engine.status(now));
    }
    let edges = engine.report(now).edges;
    let answered: BTreeSet<_> = edges
        .iter()
        .filter(|edge| edge.packets_in > 0 && edge.packets_out > 0)
        .map(|edge| (edge.outbound, edge.port, edge.packets_out, edge.packets_in))
        .collect();
    let taken = [(true, 5_000, 2, 2), (false, 5_001, 2, 2)];
    assert_eq!(answered, taken.into(), "{edges:#?}");
    let flows: u64 = edges.iter().map(|edge| edge.flows).sum();
    assert_eq!(flows, u64::from(SCANNED) * 2 + 2, "{edges:#?}");
    let most = Limits::default().unanswered_per_device + 40;
    assert!(edges.len() < most, "{} edges of a scan", edges.len());
}

#[test]
fn fragments_that_waited_do_not_inherit_the_offload_of_their_first() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Enforce, Mode::Enforce], &["udp/104"]), now);
    let (device, archive) = ([10, 20, 1, 10], [10, 20, 9, 5]);
    let plain = VnetHeader::default();
    let asks = ipv4(device, archive, 17, &udp(40_000, 104, b"?"));
    assert_eq!(
        feed(&mut engine, PORT, plain, &frame(mac(0x77), mac(10), &asks), now).frames.len(),
        1
    );
    let answer = pieces(&ipv4(archive, device, 17, &udp(104, 40_000, &[7; 900])));
    let [first, later] = answer.as_slice() else { panic!("{} pieces", answer.len()) };
    let (first, later) = (frame(mac(10), mac(0x77), first), frame(mac(10), mac(0x77), later));
    let held = feed(&mut engine, PortId::UPLINK, plain, &later, now);
    assert!(held.frames.is_empty(), "{held:?}");
    let vnet = VnetHeader {
        flags: VnetHeader::FLAG_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..VnetHeader::default()
    };
    let out = feed(&mut engine, PortId::UPLINK, vnet, &first, now);
    assert_eq!(out.frames, [(PORT, vnet, first), (PORT, plain, later)]);
}

#[test]
fn what_has_no_tunnel_to_go_through_is_counted() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Enforce, Mode::Enforce], &["udp/104"]), now);
    let all = pieces(&ipv4([10, 20, 1, 10], [10, 20, 4, 20], 17, &udp(40_000, 104, &[7; 900])));
    let plain = VnetHeader::default();
    let owner = engine.owner(Via::Port, engine.stations.find(mac(10)).unwrap());
    let packet = parse_ipv4(&all[0]).unwrap();
    engine.fragments.first(owner, &packet, Decision::of(Verdict::Tunnel), now).unwrap();
    let out = feed(&mut engine, PORT, plain, &frame(mac(0x77), mac(10), &all[1]), now);
    assert!(out.frames.is_empty() && out.datagrams.is_empty(), "{out:?}");
    let drops = engine.status(now).drops;
    assert_eq!(count(&engine, now, DropReason::TunnelDown), 1, "{drops:?}");
}
