//! Bytes behind a packet that a tunnel carried belong to none: they leave by no port, alone or merged.

use super::*;
use crate::checksum::{Sum, checksum};

/// A segment of a stream, with right checksums and `behind` bytes behind it.
fn segment(place: u16, sequence: u32, payload: &[u8], behind: usize) -> Vec<u8> {
    let mut transport = tcp(104, 40_000, 0x10, payload);
    transport[4..8].copy_from_slice(&sequence.to_be_bytes());
    let mut packet = ipv4([10, 20, 4, 20], [10, 20, 1, 10], 6, &transport);
    packet[4..6].copy_from_slice(&place.to_be_bytes());
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let len = u16::try_from(transport.len()).unwrap();
    let ends = ([10, 20, 4, 20].into(), [10, 20, 1, 10].into());
    let sum = Sum::pseudo_ipv4(ends.0, ends.1, 6, len).bytes(&transport).checksum();
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet.resize(packet.len() + behind, 0);
    packet
}

#[test]
fn what_is_behind_packets_is_not_merged_with_them() {
    for behind in [0, 1, 30_000] {
        let now = start();
        let mut engine = engine(Limits::default(), now);
        engine.apply(view([Mode::Enforce, Mode::Enforce], &["tcp/1-65535"]), now);
        let slot = engine.peers.slot(OTHER).unwrap();
        let mut out = Kept::default();
        let mut held = std::mem::take(&mut engine.held);
        // The first opens the flow, and goes alone.
        for (place, sequence) in [(1, 1), (2, 9), (3, 17)] {
            let packet = segment(place, sequence, &[7; 8], behind);
            held.room(packet.len()).unwrap()[..packet.len()].copy_from_slice(&packet);
            let span = held.keep(packet.len());
            engine.tunnel_packet(slot, span, &mut held, now, &mut out);
        }
        engine.let_go(&mut held, now, &mut out);
        let lens: Vec<_> = out.frames.iter().map(|(_, _, bytes)| bytes.len()).collect();
        let Some((_, vnet, bytes)) = out.frames.first() else { panic!("{:?}", engine.status(now)) };
        assert_eq!((lens, vnet.gso_size), (vec![14 + 40 + 3 * 8], 8), "{behind} bytes behind");
        assert_eq!(bytes[16..18], (40_u16 + 3 * 8).to_be_bytes());
        let flows = engine.flows(now, 10);
        let counted = flows.iter().map(|flow| flow.bytes_in + flow.bytes_out).sum::<u64>();
        assert_eq!(counted, 3 * 48, "{flows:#?}");
    }
}
