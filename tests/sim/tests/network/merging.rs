//! What leaves a tunnel together is merged on its way to the device, and is there what it was.

use std::net::Ipv4Addr;
use std::time::Duration;

use anteroom_agent_core::checksum::{Sum, checksum};
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_sim::hospital::*;
use anteroom_sim::packet::{self, TcpFlags};
use anteroom_sim::story::*;
use anteroom_sim::world::World;

const SERVERS: usize = 2;
const PORT: u16 = 40_000;

fn enforced(seed: u64) -> World {
    let mut world = hospital(seed);
    world.apply_all();
    let _ = probe(&mut world, CT, PACS, (Protocol::Tcp, 104), 1, 1);
    for mode in [Mode::Protect, Mode::Enforce] {
        all(&mut world, mode);
    }
    world
}

/// A segment with its place in the stream, as a sender that counts its packets writes it.
fn segment(ends: [Ipv4Addr; 2], place: u16, payload: &[u8], sequence: u32) -> Vec<u8> {
    let mut bytes = packet::tcp((ends[0], PORT), (ends[1], 104), TcpFlags::ACK, payload);
    bytes[4..6].copy_from_slice(&place.to_be_bytes());
    bytes[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum(&bytes[..20]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes[24..28].copy_from_slice(&sequence.to_be_bytes());
    bytes[36..38].copy_from_slice(&[0, 0]);
    let len = u16::try_from(bytes.len() - 20).unwrap();
    let sum = Sum::pseudo_ipv4(ends[0], ends[1], 6, len).bytes(&bytes[20..]).checksum();
    bytes[36..38].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Packets and bytes that the connection's initiator has sent, as the responder's gateway counts them.
fn counted(world: &mut World) -> (u64, u64) {
    let now = world.now;
    let flows = world.engine(SERVERS).flows(now, 100);
    let flow = flows.iter().find(|flow| flow.initiator_port == PORT).expect("the connection");
    (flow.packets_out, flow.bytes_out)
}

#[test]
fn a_burst_arrives_whole_and_is_counted_packet_by_packet() {
    let mut world = enforced(1);
    let ends = [CT, PACS].map(|host| world.hosts[host].address);
    world.act(CT, |host, out| {
        host.send(packet::tcp((ends[0], PORT), (ends[1], 104), TcpFlags::SYN, &[]), out);
    });
    world.run(Duration::from_millis(50));
    let now = world.now;
    let drops = world.engine(SERVERS).status(now).drops;
    world.hosts[PACS].seen.clear();
    let before = counted(&mut world);
    let merged = world.merged;

    let payloads: Vec<Vec<u8>> = (0..20_u8).map(|fill| vec![fill; 700]).collect();
    let mut sent: Vec<Vec<u8>> = Vec::new();
    for (place, payload) in (0_u16..).zip(&payloads) {
        sent.push(segment(ends, place, payload, 2 + 700 * u32::from(place)));
    }
    // One was broken on its way: it must arrive as it is, for the device to find out.
    sent[7][500] ^= 1;
    let frames = sent.clone();
    world.act(CT, |host, out| {
        for packet in frames {
            host.send(packet, out);
        }
    });
    world.run(Duration::from_millis(50));

    let seen: Vec<&[u8]> = world.hosts[PACS]
        .seen
        .iter()
        .filter(|frame| frame[12..14] == [8, 0] && frame[36..38] == 104_u16.to_be_bytes())
        .map(|frame| &frame[14..])
        .collect();
    assert!(seen == sent, "{} of {} packets as they were sent", seen.len(), sent.len());
    assert_eq!(world.merged - merged, 2, "those before the broken one, and those behind it");
    let after = counted(&mut world);
    assert_eq!((after.0 - before.0, after.1 - before.1), (20, 20 * 740));
    let now = world.now;
    assert_eq!(world.engine(SERVERS).status(now).drops, drops);
}
