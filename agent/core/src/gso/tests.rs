mod reference;

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::wire::ipv4::{self, Header};
use crate::wire::parse_ipv4;

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 5);
const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 20, 4, 11);

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// A packet whose transport checksum holds the pseudo-header's sum, as the kernel hands it over.
fn packet(protocol: u8, transport: &[u8], len: usize, id: u16) -> Vec<u8> {
    let header = Header {
        source: SOURCE,
        destination: DESTINATION,
        protocol,
        ttl: 64,
        dscp_ecn: 0,
        id,
        payload_len: transport.len() + len,
    };
    let mut bytes = header.to_bytes().unwrap().to_vec();
    bytes.extend_from_slice(transport);
    bytes.extend(payload(len));
    let field = 20 + if protocol == ipv4::TCP { 16 } else { 6 };
    let sum = Sum::pseudo_ipv4(SOURCE, DESTINATION, protocol, (transport.len() + len) as u16);
    put(&mut bytes, field, &sum.fold().to_be_bytes());
    bytes
}

fn tcp(len: usize, flags: u8, sequence: u32, id: u16) -> Vec<u8> {
    let mut header = [0; 32];
    header[..4].copy_from_slice(&[0x9c, 0x40, 0, 104]);
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[12] = 8 << 4;
    header[13] = flags;
    header[20..32].copy_from_slice(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
    packet(ipv4::TCP, &header, len, id)
}

fn udp(len: usize) -> Vec<u8> {
    let mut header = [0; 8];
    header[..4].copy_from_slice(&[0x9c, 0x40, 0, 53]);
    header[4..6].copy_from_slice(&(8 + len as u16).to_be_bytes());
    packet(ipv4::UDP, &header, len, 9)
}

fn vnet(gso_type: u8, gso_size: u16, csum_offset: u16) -> VnetHeader {
    let flags = VnetHeader::FLAG_NEEDS_CSUM;
    VnetHeader { flags, gso_type, hdr_len: 9999, gso_size, csum_start: 34, csum_offset }
}

fn cut(bytes: &[u8], vnet: &VnetHeader, limit: usize) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut bytes = bytes.to_vec();
    // What lies behind a packet isn't its own.
    bytes.extend([0xee; 9]);
    let mut packets = Packets::new(&mut bytes, 14, vnet, limit)?;
    let longest = packets.longest();
    let mut all: Vec<Vec<u8>> = Vec::new();
    while let Some(packet) = packets.next() {
        all.push(packet.to_vec());
    }
    assert_eq!(all.iter().map(Vec::len).max(), Some(longest));
    assert_eq!(bytes[bytes.len() - 9..], [0xee; 9]);
    Ok(all)
}

/// The same by the plain way.
fn cut_plainly(bytes: &[u8], vnet: &VnetHeader, limit: usize) -> Result<Vec<Vec<u8>>, DropReason> {
    let packet = parse_ipv4(bytes)?;
    let mut packets = reference::Packets::new(&packet, 14, vnet, limit)?;
    let mut buffer = vec![0xee; packets.longest()];
    let mut all = Vec::new();
    while let Some(len) = packets.next_into(&mut buffer) {
        all.push(buffer[..len].to_vec());
    }
    Ok(all)
}

#[track_caller]
fn assert_sound(bytes: &[u8]) {
    let packet = parse_ipv4(bytes).unwrap();
    assert_eq!(packet.bytes.len(), bytes.len());
    let len = packet.payload().len() as u16;
    let sum = Sum::pseudo_ipv4(packet.source, packet.destination, packet.protocol, len);
    assert_eq!(sum.bytes(packet.payload()).checksum(), 0, "transport checksum of {packet:?}");
}

#[test]
fn a_tcp_super_frame_becomes_the_segments_that_its_sender_meant() {
    let flags = TcpFlags::FIN | TcpFlags::PSH | TcpFlags::ACK | TcpFlags::CWR;
    let frame = tcp(4000, flags, u32::MAX - 100, 0xffff);
    let gso_type = VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN;
    let all = cut(&frame, &vnet(gso_type, 1448, 16), 1500).unwrap();
    let parsed: Vec<_> = all.iter().map(|bytes| parse_ipv4(bytes).unwrap()).collect();
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [1500, 1500, 1156]);
    assert_eq!(parsed.iter().map(|p| p.id).collect::<Vec<_>>(), [0xffff, 0, 1]);
    let (fin_psh, cwr) = (TcpFlags::FIN | TcpFlags::PSH, TcpFlags::CWR);
    for (i, packet) in parsed.iter().enumerate() {
        assert_sound(packet.bytes);
        assert_eq!(packet.tcp_flags().has(fin_psh), i == 2, "{:?}", packet.tcp_flags());
        assert_eq!(packet.tcp_flags().0 & fin_psh != 0, i == 2);
        assert_eq!(packet.tcp_flags().has(cwr), i == 0);
        let header = crate::wire::tcp::parse_tcp(packet.payload()).unwrap();
        assert_eq!(header.sequence, (u32::MAX - 100).wrapping_add(1448 * i as u32));
        assert_eq!(header.options, &frame[40..52]);
    }
    let joined: Vec<u8> = parsed.iter().flat_map(|p| p.payload()[32..].to_vec()).collect();
    assert_eq!(joined, payload(4000));
}

#[test]
fn tcp_is_cut_smaller_where_the_limit_is_lower() {
    let frame = tcp(3000, TcpFlags::ACK, 1, 1);
    let all = cut(&frame, &vnet(VnetHeader::GSO_TCPV4, 1448, 16), 1440).unwrap();
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [1440, 1440, 52 + 3000 - 2 * 1388]);
    all.iter().for_each(|bytes| assert_sound(bytes));
    let too_low = cut(&frame, &vnet(VnetHeader::GSO_TCPV4, 1448, 16), 52);
    assert_eq!(too_low.unwrap_err(), DropReason::TooBig);
}

#[test]
fn no_frame_becomes_more_packets_than_one_may() {
    for (len, size, longest) in [(60_000, 1, 235), (60_000, 88, 235), (20_000, 88, 88), (9, 1, 1)] {
        let frame = tcp(len, TcpFlags::ACK, 1, 1);
        let all = cut(&frame, &vnet(VnetHeader::GSO_TCPV4, size, 16), 1440).unwrap();
        assert!(all.len() <= MAX_PACKETS, "{} packets", all.len());
        assert_eq!(all.iter().map(Vec::len).max(), Some(52 + longest), "{len} bytes by {size}");
        all.iter().for_each(|bytes| assert_sound(bytes));
        let joined: Vec<u8> = all.iter().flat_map(|bytes| bytes[52..].to_vec()).collect();
        assert!(joined == payload(len), "{len} bytes by {size}");
    }
    // Datagrams can't be made longer than they were.
    let most = 100 * MAX_PACKETS;
    let all = cut(&udp(most), &vnet(VnetHeader::GSO_UDP_L4, 100, 6), 1440).unwrap();
    assert_eq!(all.len(), MAX_PACKETS);
    let more = cut(&udp(most + 1), &vnet(VnetHeader::GSO_UDP_L4, 100, 6), 1440);
    assert_eq!(more.unwrap_err(), DropReason::Malformed);
}

#[test]
fn udp_keeps_its_datagrams_whatever_the_limit() {
    let all = cut(&udp(2500), &vnet(VnetHeader::GSO_UDP_L4, 1000, 6), 500).unwrap();
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [1028, 1028, 528]);
    for (i, bytes) in all.iter().enumerate() {
        assert_sound(bytes);
        let packet = parse_ipv4(bytes).unwrap();
        assert_eq!(packet.udp_payload().unwrap(), &payload(2500)[1000 * i..][..bytes.len() - 28]);
        assert_eq!(packet.id, 9 + i as u16);
    }
}

#[test]
fn an_ordinary_packet_gets_its_checksum() {
    for (frame, offset) in [(tcp(11, TcpFlags::ACK, 5, 5), 16), (udp(0), 6), (udp(33), 6)] {
        let all = cut(&frame, &vnet(VnetHeader::GSO_NONE, 0, offset), 1440).unwrap();
        assert_eq!(all.len(), 1);
        assert_sound(&all[0]);
        let done = cut(&all[0], &VnetHeader::default(), 1440).unwrap();
        assert_eq!(done, all, "a complete packet isn't touched");
    }
}

#[test]
fn headers_that_do_not_fit_the_packet_are_refused() {
    let frame = tcp(3000, TcpFlags::ACK, 1, 1);
    let sound = vnet(VnetHeader::GSO_TCPV4, 1448, 16);
    let ordinary = vnet(VnetHeader::GSO_NONE, 0, 16);
    for (what, bad) in [
        ("size 0", VnetHeader { gso_size: 0, ..sound }),
        ("a type of IPv6", VnetHeader { gso_type: VnetHeader::GSO_TCPV6, ..sound }),
        ("a type of UDP", VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, ..sound }),
        ("an unknown type", VnetHeader { gso_type: 77, ..sound }),
        ("a sum from before the packet", VnetHeader { csum_start: 13, ..ordinary }),
        ("a sum from inside the IP header", VnetHeader { csum_start: 30, ..ordinary }),
        ("a sum beyond the end", VnetHeader { csum_start: 34, csum_offset: 3031, ..ordinary }),
        ("places far outside", VnetHeader { csum_start: !0, csum_offset: !0, ..ordinary }),
    ] {
        assert_eq!(cut(&frame, &bad, 1440).unwrap_err(), DropReason::Malformed, "{what}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn nothing_panics_and_no_byte_of_payload_is_lost(
        len in 0usize..9000,
        limit in 0usize..3000,
        header: (u8, u8, u16, u16, u16, u16),
    ) {
        let (flags, gso_type, hdr_len, gso_size, csum_start, csum_offset) = header;
        let vnet = VnetHeader { flags, gso_type: gso_type % 7, hdr_len, gso_size, csum_start, csum_offset };
        for frame in [tcp(len, 0x18, 7, 7), udp(len)] {
            if let Ok(all) = cut(&frame, &vnet, limit) {
                let headers = if frame[9] == ipv4::TCP { 52 } else { 28 };
                let joined: Vec<u8> = all.iter().flat_map(|bytes| bytes[headers..].to_vec()).collect();
                if vnet.is_super_frame() {
                    prop_assert_eq!(joined, payload(len));
                    all.iter().for_each(|bytes| assert_sound(bytes));
                }
            }
        }
    }

    #[test]
    fn every_packet_is_what_the_plain_way_makes(
        protocol in prop::sample::select(vec![ipv4::TCP, ipv4::UDP, 47]),
        options: (u8, u8),
        fields in prop::array::uniform32(any::<u8>()),
        len in prop_oneof![0_usize..200, 1300_usize..3000, 60_000_usize..65_300],
        limit in prop_oneof![0_usize..200, 576_usize..1600],
        gso_size in prop_oneof![0_u16..100, 500_u16..2000, any::<u16>()],
        gso_type in prop::sample::select(vec![0_u8, 1, 5, 0x81]),
        bits: (u8, u16, u16),
    ) {
        let ip_header = 20 + usize::from(options.0 % 11) * 4;
        let transport_header = match protocol {
            ipv4::TCP => 20 + usize::from(options.1 % 11) * 4,
            _ => 8,
        };
        let headers = ip_header + transport_header;
        // Few packets from a long payload: it is about places, not about their number.
        let few = gso_size < 500 || (limit < headers + 500 && protocol == ipv4::TCP);
        let most = MAX_PACKETS * usize::from(gso_size).max(1);
        let len = if few { (len % 3000).min(most) } else { len.min(65_535 - headers) };
        let mut bytes = payload(headers + len);
        let filled = bytes.len().min(fields.len());
        bytes[..filled].copy_from_slice(&fields[..filled]);
        bytes[ip_header..ip_header + 20.min(transport_header)]
            .copy_from_slice(&fields[32 - 20.min(transport_header)..]);
        bytes[0] = 0x40 | (ip_header / 4) as u8;
        bytes[2..4].copy_from_slice(&((headers + len) as u16).to_be_bytes());
        bytes[6..8].copy_from_slice(&[0x40, 0]);
        bytes[9] = protocol;
        if protocol == ipv4::TCP {
            bytes[ip_header + 12] = (transport_header as u8 / 4) << 4 | fields[0] & 15;
        } else {
            let len = (transport_header + len) as u16;
            bytes[ip_header + 4..ip_header + 6].copy_from_slice(&len.to_be_bytes());
        }
        bytes[10..12].fill(0);
        let sum = crate::checksum::checksum(&bytes[..ip_header]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        let (flags, start, offset) = bits;
        let vnet = VnetHeader {
            flags: flags % 4,
            gso_type,
            hdr_len: 0,
            gso_size,
            csum_start: 14 + ip_header as u16 + start % 4,
            csum_offset: offset % 20,
        };
        prop_assert!(parse_ipv4(&bytes).is_ok());
        let (ours, plain) = (cut(&bytes, &vnet, limit), cut_plainly(&bytes, &vnet, limit));
        match (&ours, &plain) {
            (Ok(ours), Ok(plain)) => {
                prop_assert_eq!(ours.len(), plain.len());
                for (place, (ours, plain)) in ours.iter().zip(plain).enumerate() {
                    prop_assert!(ours == plain, "packet {place} of {}", plain.len());
                }
            }
            (ours, plain) => prop_assert_eq!(ours.is_err(), plain.is_err(), "{:?} {:?}", ours.as_ref().err(), plain.as_ref().err()),
        }
    }
}
