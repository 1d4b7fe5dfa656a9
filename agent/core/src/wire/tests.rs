use std::net::{Ipv4Addr, Ipv6Addr};

use anteroom_proto::mac::MacAddr;
use anteroom_proto::verdict::DropReason;
use proptest::prelude::*;

use super::icmp::IcmpMessage;
use super::ipv4::Header;
use super::tcp::TcpFlags;
use super::*;
use crate::batch::VlanTag;
use crate::checksum::{self, Sum};
use crate::vnet::VnetHeader;

const A: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 5);
const B: Ipv4Addr = Ipv4Addr::new(10, 20, 4, 11);
const MAC_A: MacAddr = MacAddr([0, 0x1b, 0x21, 1, 2, 3]);
const MAC_B: MacAddr = MacAddr([0, 0x1b, 0x21, 4, 5, 6]);

/// A packet with `word` as flags and fragment offset.
fn packet(protocol: u8, word: u16, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        source: A,
        destination: B,
        protocol,
        ttl: 61,
        dscp_ecn: 0xb8,
        id: 77,
        payload_len: payload.len(),
    };
    let mut bytes = [header.to_bytes().unwrap().as_slice(), payload].concat();
    put(&mut bytes, 6, &word.to_be_bytes());
    reseal(&mut bytes);
    bytes
}

fn reseal(bytes: &mut [u8]) {
    put(bytes, 10, &[0, 0]);
    let sum = checksum::checksum(&bytes[..20]);
    put(bytes, 10, &sum.to_be_bytes());
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    bytes[..4].copy_from_slice(&[0x9c, 0x40, 0, 104]);
    bytes[12] = 5 << 4;
    bytes[13] = flags;
    bytes
}

fn udp(len: u16) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes[..6].copy_from_slice(&[0, 68, 0, 67, (len >> 8) as u8, len as u8]);
    bytes
}

#[test]
fn tags_in_and_beside_the_frame_are_one_list() {
    let mut frame = ethernet::header(MAC_B, MAC_A, 0x8100).to_vec();
    frame.extend([0x60, 7, 0x08, 0x00, 0x45]);
    let parsed = parse_ethernet(&frame, None).unwrap();
    assert_eq!((parsed.destination, parsed.source), (MAC_B, MAC_A));
    assert_eq!((parsed.vlan(), parsed.tags, parsed.ethertype), (Some(7), 1, ethernet::IPV4));
    assert_eq!((parsed.payload_offset, parsed.payload), (18, &[0x45][..]));
    let outer = VlanTag { protocol: ethernet::QINQ, control: 0x2000 };
    let parsed = parse_ethernet(&frame, Some(outer)).unwrap();
    // One that names no VLAN hides none.
    assert_eq!((parsed.vlan(), parsed.tags), (Some(7), 2));
    let outer = VlanTag { protocol: ethernet::QINQ, control: 0x2009 };
    let parsed = parse_ethernet(&frame, Some(outer)).unwrap();
    assert_eq!((parsed.tag, parsed.vlan(), parsed.tags), (Some(outer), Some(9), 2));
    for len in 0..18 {
        assert_eq!(parse_ethernet(&frame[..len], None), Err(DropReason::Malformed), "{len} bytes");
    }
    let mut changed = frame.clone();
    assert!(ethernet::readdress(&mut changed, MAC_A, MAC_B));
    assert_eq!(parse_ethernet(&changed, None).unwrap().source, MAC_B);
    assert_eq!(changed[12..], frame[12..]);
}

#[test]
fn arp_is_read_as_it_is_written() {
    let request = arp::request(MAC_A, A, B);
    let parsed = arp::parse_arp(&request[14..]).unwrap();
    assert_eq!((parsed.operation, parsed.sender, parsed.target), (arp::Operation::Request, A, B));
    assert_eq!(parse_ethernet(&request, None).unwrap().destination, MacAddr::BROADCAST);
    let reply = arp::reply(&parsed, MAC_B);
    let answer = arp::parse_arp(&reply[14..]).unwrap();
    assert_eq!((answer.sender_mac, answer.sender), (MAC_B, B));
    assert_eq!((answer.target_mac, answer.target), (MAC_A, A));
    assert_eq!(parse_ethernet(&reply, None).unwrap().destination, MAC_A);
    assert!(!parsed.is_probe() && !parsed.is_announcement());
    let probe = arp::ArpPacket { sender: Ipv4Addr::UNSPECIFIED, ..parsed };
    assert!(probe.is_probe() && !probe.is_announcement());
    assert!(arp::ArpPacket { target: A, ..parsed }.is_announcement());
    let mut of_802 = request[14..].to_vec();
    of_802[1] = 6;
    assert_eq!(arp::parse_arp(&of_802), Ok(parsed));
    of_802[7] = 9;
    assert_eq!(
        arp::parse_arp(&of_802),
        Err(DropReason::Malformed),
        "an operation that isn't ARP's"
    );
    assert_eq!(arp::arp_sender(&of_802), Some((MAC_A, A)));
    assert_eq!(arp::arp_sender(&of_802[..27]), None);
    of_802[4] = 8;
    assert_eq!(arp::arp_sender(&of_802), None, "addresses of another length");
    for at in [0, 2, 4, 5, 6] {
        let mut bad = request[14..].to_vec();
        bad[at] ^= 0x10;
        assert_eq!(arp::parse_arp(&bad), Err(DropReason::Malformed), "byte {at}");
    }
    assert!(arp::parse_arp(&request[14..41]).is_err());
}

#[test]
fn a_packet_tells_its_flow_and_its_padding_is_cut_off() {
    let mut bytes = packet(ipv4::TCP, 0x4000, &tcp(TcpFlags::SYN));
    bytes.extend([0xaa; 6]);
    let parsed = parse_ipv4(&bytes).unwrap();
    assert_eq!(parsed.bytes.len(), 44);
    assert_eq!((parsed.ttl, parsed.dscp_ecn, parsed.id), (61, 0xb8, 77));
    assert!(parsed.dont_fragment && parsed.fragment.is_none() && parsed.tcp_flags().opens());
    let tuple = parsed.tuple();
    assert_eq!((tuple.source, tuple.source_port), (A, 40000));
    assert_eq!((tuple.destination, tuple.destination_port), (B, 104));
    assert_eq!(tuple.reversed().reversed(), tuple);
    assert_eq!(tuple.reversed().source_port, 104);
}

#[test]
fn an_echo_and_its_reply_are_one_flow() {
    let echo = packet(1, 0, &[8, 0, 0, 0, 0x12, 0x34, 0, 1]);
    let mut reply = packet(1, 0, &[0, 0, 0, 0, 0x12, 0x34, 0, 1]);
    put(&mut reply, 12, &B.octets());
    put(&mut reply, 16, &A.octets());
    reseal(&mut reply);
    let (echo, reply) = (parse_ipv4(&echo).unwrap(), parse_ipv4(&reply).unwrap());
    assert_eq!(echo.transport, Transport::IcmpEcho { reply: false });
    assert_eq!(reply.transport, Transport::IcmpEcho { reply: true });
    assert_eq!(reply.tuple(), echo.tuple().reversed());
}

#[test]
fn lengths_and_sums_that_do_not_fit_are_malformed() {
    let good = packet(ipv4::UDP, 0, &udp(12));
    assert_eq!(parse_ipv4(&good).unwrap().udp_payload(), Some(&[0, 0, 0, 0][..]));
    let cases: [(&str, usize, u8); 7] = [
        ("version 6", 0, 0x65),
        ("a header of 16 bytes", 0, 0x44),
        ("a header longer than the packet", 0, 0x4f),
        ("a length below the header", 3, 19),
        ("a length beyond the bytes", 3, 200),
        ("a UDP length beyond the packet", 25, 13),
        ("a UDP length below its header", 25, 7),
    ];
    for (what, at, value) in cases {
        let mut bad = good.clone();
        bad[at] = value;
        reseal(&mut bad);
        assert_eq!(parse_ipv4(&bad), Err(DropReason::Malformed), "{what}");
    }
    let mut bad = good.clone();
    bad[8] ^= 1;
    assert_eq!(parse_ipv4(&bad), Err(DropReason::Malformed), "a bad header checksum");
    for len in 0..good.len() {
        assert_eq!(parse_ipv4(&good[..len]), Err(DropReason::Malformed), "{len} bytes");
    }
    let mut short = tcp(TcpFlags::SYN);
    short[12] = 4 << 4;
    assert_eq!(parse_ipv4(&packet(ipv4::TCP, 0, &short)), Err(DropReason::Malformed));
    short[12] = 15 << 4;
    assert_eq!(parse_ipv4(&packet(ipv4::TCP, 0, &short)), Err(DropReason::Malformed));
}

#[test]
fn fragments_that_hide_or_rewrite_a_header_are_refused() {
    let full = tcp(TcpFlags::ACK);
    let first = packet(ipv4::TCP, 0x2000, &full);
    assert_eq!(parse_ipv4(&first).unwrap().fragment, Some(Fragment { offset: 0, more: true }));
    let no_header = Err(DropReason::FragmentNoHeader);
    assert_eq!(parse_ipv4(&packet(ipv4::TCP, 0x2000, &full[..16])), no_header);
    assert_eq!(parse_ipv4(&packet(ipv4::TCP, 1, &full)), no_header, "at 8");
    assert_eq!(parse_ipv4(&packet(ipv4::TCP, 2, &full)), no_header, "at 16");
    let later = packet(ipv4::TCP, 3, &full);
    assert_eq!(parse_ipv4(&later).unwrap().transport, Transport::LaterFragment);
    let malformed = Err(DropReason::Malformed);
    assert_eq!(parse_ipv4(&packet(ipv4::UDP, 0x2001, &full[..9])), malformed, "length");
    assert_eq!(parse_ipv4(&packet(ipv4::UDP, 0x1fff, &full)), malformed, "beyond 65,535");
    assert_eq!(parse_ipv4(&packet(ipv4::UDP, 5, &[])), malformed, "empty");
    // A first fragment's UDP length is that of the whole datagram.
    let parsed = packet(ipv4::UDP, 0x2000, &[udp(3000), vec![0; 4]].concat());
    assert_eq!(parse_ipv4(&parsed).unwrap().udp_payload(), None);
}

#[test]
fn an_error_shows_the_flow_that_it_quotes() {
    let quoted = packet(ipv4::TCP, 0x4000, &tcp(TcpFlags::ACK));
    let flow = parse_ipv4(&quoted).unwrap().tuple();
    for (cut, expected) in [(quoted.len(), Some(flow)), (28, Some(flow)), (23, None), (5, None)] {
        let message = [&[3, 1, 0, 0, 0, 0, 0, 0], &quoted[..cut]].concat();
        match icmp::parse_icmp(&message).unwrap() {
            IcmpMessage::Error { kind: 3, code: 1, quoted } => {
                assert_eq!(quoted, expected, "{cut}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        icmp::parse_icmp(&[13, 0, 0, 0, 0, 0, 0, 0]).unwrap(),
        IcmpMessage::Other { kind: 13, code: 0 }
    );
    assert_eq!(icmp::parse_icmp(&[8, 0, 0, 0, 0, 0, 0]), Err(DropReason::Malformed));
}

#[test]
fn fragmentation_needed_speaks_for_the_far_host() {
    let original = packet(ipv4::TCP, 0x4000, &[tcp(TcpFlags::ACK), vec![9; 1400]].concat());
    let mut out = [0; icmp::MAX_ERROR_LEN];
    let len = icmp::fragmentation_needed(&original, 1440, 5, &mut out).unwrap();
    let parsed = parse_ipv4(&out[..len]).unwrap();
    assert_eq!((parsed.source, parsed.destination, len), (B, A, icmp::MAX_ERROR_LEN));
    let quoted = Some(parse_ipv4(&original).unwrap().tuple());
    assert_eq!(parsed.transport, Transport::IcmpError { kind: 3, code: 4, quoted });
    assert_eq!(checksum::checksum(parsed.payload()), 0);
    assert_eq!(be16(parsed.payload(), 6), Some(1440));

    let refused = |what: &str, original: &[u8]| {
        let mut out = [0; icmp::MAX_ERROR_LEN];
        assert_eq!(icmp::fragmentation_needed(original, 1440, 5, &mut out), None, "{what}");
    };
    refused("no packet", &[]);
    refused("an error", &out[..len]);
    refused("a later fragment", &packet(ipv4::UDP, 100, &[0; 8]));
    let mut group = original.clone();
    put(&mut group, 16, &[239, 255, 255, 250]);
    reseal(&mut group);
    refused("for a group", &group);
    assert_eq!(icmp::fragmentation_needed(&original, 1440, 5, &mut [0; 575]), None);
}

#[test]
fn ipv6_lengths_are_checked() {
    let mut bytes = vec![0; 45];
    bytes[0] = 0x60;
    bytes[5] = 4;
    bytes[6] = 17;
    bytes[23] = 1;
    let parsed = ipv6::parse_ipv6(&bytes).unwrap();
    assert_eq!((parsed.next_header, parsed.payload.len()), (17, 4));
    assert_eq!(parsed.source, Ipv6Addr::LOCALHOST);
    for len in 0..44 {
        assert_eq!(ipv6::parse_ipv6(&bytes[..len]), Err(DropReason::Malformed), "{len} bytes");
    }
    bytes[0] = 0x40;
    assert_eq!(ipv6::parse_ipv6(&bytes), Err(DropReason::Malformed));
}

fn dhcp(op: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[op, 1, 6]);
    bytes[16..20].copy_from_slice(&A.octets());
    bytes[28..34].copy_from_slice(&MAC_A.0);
    bytes[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    bytes.extend_from_slice(options);
    bytes
}

#[test]
fn dhcp_tells_who_gives_what_to_whom() {
    let ack = dhcp(2, &[53, 1, 5, 0, 54, 4, 10, 20, 0, 2, 51, 4, 0, 0, 14, 16, 255]);
    let parsed = dhcp::parse_dhcp(&ack).unwrap();
    assert_eq!((parsed.message_type, parsed.op()), (dhcp::MessageType::Ack, dhcp::Op::Reply));
    assert_eq!((parsed.client_mac, parsed.yours), (MAC_A, A));
    assert_eq!(parsed.server, Some(Ipv4Addr::new(10, 20, 0, 2)));
    assert_eq!(parsed.lease_seconds, Some(3600));
    let mut overloaded = dhcp(1, &[52, 1, 1, 255]);
    overloaded[108..112].copy_from_slice(&[53, 1, 3, 255]);
    let parsed = dhcp::parse_dhcp(&overloaded).unwrap();
    assert_eq!(parsed.message_type, dhcp::MessageType::Request);
    for (what, bad) in [
        ("no message type", dhcp(1, &[255])),
        ("a server's message from a client", dhcp(1, &[53, 1, 5, 255])),
        ("two message types", dhcp(1, &[53, 1, 1, 53, 1, 3, 255])),
        ("an unknown message type", dhcp(1, &[53, 1, 99, 255])),
        ("an option that runs over", dhcp(1, &[53, 1, 1, 54, 4, 1])),
        ("a server id of two bytes", dhcp(1, &[53, 1, 1, 54, 2, 1, 1, 255])),
        ("no cookie", dhcp(1, &[53, 1, 1, 255]).iter().map(|b| b & 0x3f).collect()),
        ("cut short", dhcp(1, &[])[..239].to_vec()),
    ] {
        assert_eq!(dhcp::parse_dhcp(&bad), Err(DropReason::Malformed), "{what}");
    }
}

#[test]
fn checksums_agree_with_the_examples_of_their_rfcs() {
    assert_eq!(Sum::new().bytes(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), 0xddf2);
    assert_eq!(checksum::update(0xdd2f, 0x5555, 0x3285), 0x0000);
}

#[test]
fn a_partial_checksum_is_completed_where_the_kernel_says() {
    let mut frame = ethernet::header(MAC_B, MAC_A, ethernet::IPV4).to_vec();
    frame.extend(packet(ipv4::UDP, 0, &udp(12)));
    let pseudo = Sum::pseudo_ipv4(A, B, ipv4::UDP, 12);
    put(&mut frame, 40, &pseudo.fold().to_be_bytes());
    let flags = VnetHeader::FLAG_NEEDS_CSUM;
    let vnet = VnetHeader { flags, csum_start: 34, csum_offset: 6, ..VnetHeader::default() };
    let untouched = frame.clone();
    checksum::complete(&mut frame, &VnetHeader { flags: 0, ..vnet }).unwrap();
    assert_eq!(frame, untouched);
    checksum::complete(&mut frame, &vnet).unwrap();
    assert_eq!(pseudo.bytes(&frame[34..]).checksum(), 0);
    for (csum_start, csum_offset) in [(46, 0), (34, 11), (u16::MAX, u16::MAX)] {
        let bad = VnetHeader { csum_start, csum_offset, ..vnet };
        let (before, result) = (frame.clone(), checksum::complete(&mut frame, &bad));
        assert_eq!(result, Err(DropReason::Malformed), "{csum_start} {csum_offset}");
        assert_eq!(frame, before);
    }
}

proptest! {
    #[test]
    fn sums_are_those_of_the_plain_loop(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let mut plain = 0u64;
        for pair in bytes.chunks(2) {
            plain += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while plain > 0xffff {
            plain = (plain >> 16) + (plain & 0xffff);
        }
        prop_assert_eq!(u64::from(Sum::new().bytes(&bytes).fold()), plain);
    }

    #[test]
    fn a_changed_word_changes_the_sum_alike(mut bytes in proptest::collection::vec(any::<u8>(), 40), place in 0usize..20, new: u16) {
        let before = checksum::checksum(&bytes);
        let old = be16(&bytes, 2 * place).unwrap();
        put(&mut bytes, 2 * place, &new.to_be_bytes());
        let after = checksum::checksum(&bytes);
        let updated = checksum::update(before, old, new);
        // 0 and 0xffff are the same sum.
        prop_assert!(updated == after || (updated.is_multiple_of(0xffff) && after.is_multiple_of(0xffff)), "{updated:04x} {after:04x}");
    }

    #[test]
    fn anything_at_all_is_parsed_without_a_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..1600),
        first in prop_oneof![Just(0x45u8), Just(0x46), Just(0x4f), any::<u8>()],
        protocol in prop_oneof![Just(1u8), Just(6), Just(17), any::<u8>()],
    ) {
        let _ = (parse_ethernet(&bytes, None), arp::parse_arp(&bytes), tcp::parse_tcp(&bytes));
        let _ = (udp::parse_udp(&bytes), icmp::parse_icmp(&bytes), dhcp::parse_dhcp(&bytes), ipv6::parse_ipv6(&bytes));
        if let Ok(header) = tcp::parse_tcp(&bytes) {
            let _ = header.options().count();
        }
        let mut options = dhcp(1, &[53, 1, 1]);
        options.extend_from_slice(&bytes);
        let _ = dhcp::parse_dhcp(&options);
        if bytes.len() >= 60 {
            bytes[0] = first;
            bytes[9] = protocol;
            let len = (bytes.len() as u16).to_be_bytes();
            put(&mut bytes, 2, &len);
            let header = usize::from(first & 15) * 4;
            put(&mut bytes, 10, &[0, 0]);
            let sum = checksum::checksum(&bytes[..header]);
            put(&mut bytes, 10, &sum.to_be_bytes());
        }
        if let Ok(packet) = parse_ipv4(&bytes) {
            prop_assert!(packet.header_len + packet.payload().len() == packet.bytes.len());
            let _ = (packet.udp_payload(), packet.tuple(), packet.tcp_flags());
            let _ = icmp::fragmentation_needed(&bytes, 1400, 1, &mut [0; 600]);
        }
    }
}
