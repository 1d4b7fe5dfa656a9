//! Frames and packets: every parser of `wire`, cutting (`gso`, `fragment`), MSS and checksums.

use std::time::{Duration, Instant};

use anteroom_agent_core::batch::VlanTag;
use anteroom_agent_core::checksum::{self, Sum};
use anteroom_agent_core::fragment::{Fragments, Limits, Outcome, Tracker, Whose};
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_agent_core::wire::{
    Ipv4Packet, Transport, arp, dhcp, icmp, ipv6, parse_ethernet, parse_ipv4, tcp, udp,
};
use anteroom_agent_core::{gso, mss};
use arbitrary::Unstructured;

/// What comes before the bytes themselves.
struct Control {
    /// Bits: seal the IP header, seal the transport checksum, write the length, a tag beside the frame.
    flags: u8,
    vnet: VnetHeader,
    limit: usize,
    id: u16,
}

impl Control {
    fn take(input: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        let flags = input.arbitrary()?;
        let vnet = VnetHeader {
            flags: input.arbitrary()?,
            gso_type: input.arbitrary()?,
            hdr_len: input.arbitrary()?,
            gso_size: input.arbitrary()?,
            csum_start: input.arbitrary()?,
            csum_offset: input.arbitrary()?,
        };
        Ok(Self {
            flags,
            vnet,
            limit: usize::from(input.arbitrary::<u16>()?),
            id: input.arbitrary()?,
        })
    }
}

/// Takes `data` as a header of choices and a frame behind it.
///
/// # Panics
/// If an invariant doesn't hold.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(control) = Control::take(&mut input) else { return };
    let bytes = input.take_rest();
    parse_all(bytes);
    let tag = VlanTag { protocol: 0x8100, control: control.id };
    let tag = (control.flags & 8 != 0).then_some(tag);
    if let Ok(frame) = parse_ethernet(bytes, tag) {
        assert_eq!(&bytes[frame.payload_offset..], frame.payload);
        let mut copy = bytes.to_vec();
        checksum::complete(&mut copy, &control.vnet).ok();
        assert_eq!(copy.len(), bytes.len());
        let mut packet = frame.payload.to_vec();
        seal(&mut packet, control.flags);
        if let Ok(parsed) = parse_ipv4(&packet) {
            check_packet(&packet, &parsed);
            check_gso(&parsed, frame.payload_offset, &control);
            check_fragments(&parsed, &control);
            check_mss(&packet, &control);
            check_error(&packet, &parsed, &control);
        }
    }
    track(bytes, control.flags);
    crate::sizes::check(bytes, control.limit, control.id);
}

/// Total functions: any bytes give an answer.
fn parse_all(bytes: &[u8]) {
    if let Ok(packet) = arp::parse_arp(bytes) {
        let frame = packet.to_frame(packet.target_mac, packet.sender_mac);
        assert_eq!(arp::parse_arp(&frame[14..]), Ok(packet));
    }
    if let Ok(header) = tcp::parse_tcp(bytes) {
        assert!(header.options().count() <= 40);
    }
    udp::parse_udp(bytes).ok();
    icmp::parse_icmp(bytes).ok();
    ipv6::parse_ipv6(bytes).ok();
    dhcp::parse_dhcp(bytes).ok();
    // Behind a header that is as it should be, so that the options are met, too.
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    message.extend_from_slice(bytes);
    dhcp::parse_dhcp(&message).ok();
}

/// Makes checksums and lengths right, as far as the flags ask for it: no fuzzer finds them by itself.
fn seal(packet: &mut [u8], flags: u8) {
    let header = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
    if header < 20 || header > packet.len() {
        return;
    }
    if flags & 4 != 0
        && let Ok(len) = u16::try_from(packet.len())
    {
        packet[2..4].copy_from_slice(&len.to_be_bytes());
    }
    if flags & 1 != 0 {
        packet[10..12].fill(0);
        let sum = checksum::checksum(&packet[..header]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if flags & 2 != 0
        && packet[9] == 6
        && let Some(segment) = packet.get(header..total).filter(|segment| segment.len() >= 20)
    {
        let pseudo = Sum::new().bytes(&packet[12..20]).word(6).word(segment.len() as u16);
        let sum = pseudo.bytes(&segment[..16]).bytes(&segment[18..]).transport_checksum();
        packet[header + 16..header + 18].copy_from_slice(&sum.to_be_bytes());
    }
}

fn check_packet(bytes: &[u8], packet: &Ipv4Packet<'_>) {
    assert!(packet.bytes.len() <= bytes.len());
    assert_eq!(packet.header_len + packet.payload().len(), packet.bytes.len());
    assert_eq!(packet.tuple().reversed().reversed(), packet.tuple());
    if let Some(payload) = packet.udp_payload() {
        assert!(payload.len() + 8 <= packet.payload().len());
    }
}

/// Whether the sum of a TCP or UDP packet is right.
fn sum_holds(packet: &Ipv4Packet<'_>) -> bool {
    let (source, destination) = (packet.source, packet.destination);
    let len = packet.payload().len() as u16;
    let sum = Sum::pseudo_ipv4(source, destination, packet.protocol, len);
    sum.bytes(packet.payload()).fold() == 0xffff
}

/// Cut packets parse, fit, and put together are what was cut.
fn check_gso(packet: &Ipv4Packet<'_>, network: usize, control: &Control) {
    let mut bytes = packet.bytes.to_vec();
    let Ok(mut packets) = gso::Packets::new(&mut bytes, network, &control.vnet, control.limit)
    else {
        return;
    };
    let longest = packets.longest();
    assert!(longest <= packet.bytes.len());
    let merged = control.vnet.is_super_frame();
    let mut whole = Vec::new();
    let mut count = 0;
    while let Some(cut) = packets.next() {
        let len = cut.len();
        count += 1;
        assert!(len <= longest && count <= 65_536, "{count} packets, {len} of {longest} bytes");
        if !merged {
            assert_eq!(len, packet.bytes.len());
            continue;
        }
        let part = parse_ipv4(cut).expect("a cut packet is a packet");
        assert_eq!((part.source, part.destination), (packet.source, packet.destination));
        assert!(sum_holds(&part), "a cut packet's checksum: {:02x?}", part.bytes);
        let headers = match part.transport {
            Transport::Tcp { header_len, .. } => {
                assert!(len <= control.limit, "{len} bytes are over {}", control.limit);
                header_len
            }
            Transport::Udp => 8,
            other => panic!("{other:?} was cut"),
        };
        whole.extend_from_slice(&part.payload()[headers..]);
    }
    assert!(count > 0, "nothing came out");
    if merged {
        let headers = match packet.transport {
            Transport::Tcp { header_len, .. } => header_len,
            _ => 8,
        };
        assert_eq!(whole, &packet.payload()[headers..], "in {count} packets");
    }
}

/// Fragments fit, parse, are followed by a tracker, and put together are what was cut.
fn check_fragments(packet: &Ipv4Packet<'_>, control: &Control) {
    let Ok(mut fragments) = Fragments::new(packet.bytes, control.limit, control.id) else { return };
    let longest = fragments.longest();
    let mut buffer = vec![0; longest];
    let now = start();
    let mut tracker: Tracker<u8> = Tracker::new(Limits::default());
    let mut whole = Vec::new();
    let mut at = packet.fragment_offset();
    while let Some(len) = fragments.next_into(&mut buffer) {
        let part = parse_ipv4(&buffer[..len]).expect("a fragment is a packet");
        if packet.bytes.len() > control.limit {
            assert!(len <= control.limit, "{len} bytes are over {}", control.limit);
            assert!(!part.dont_fragment);
            assert_eq!(part.fragment_offset(), at);
        }
        at = at.wrapping_add(part.payload().len() as u16);
        whole.extend_from_slice(part.payload());
        match part.fragment {
            None => {}
            Some(fragment) if fragment.is_first() => {
                assert!(tracker.first(1_u32, &part, 7, now).is_ok_and(|held| held.is_empty()));
            }
            Some(_) => {
                let outcome = tracker.later(1_u32, &part, part.bytes, now);
                let expected = if packet.fragment_offset() == 0 {
                    matches!(outcome, Outcome::Follow(7))
                } else {
                    !matches!(outcome, Outcome::Follow(_))
                };
                assert!(expected, "{outcome:?}");
            }
        }
    }
    assert_eq!(whole, packet.payload());
    if packet.fragment.is_none() {
        assert!(tracker.is_empty(), "a packet that is complete isn't followed any more");
    }
}

/// What is announced afterwards fits, and a checksum that held holds.
fn check_mss(packet: &[u8], control: &Control) {
    let mut clamped = packet.to_vec();
    let mtu = control.limit as u16;
    let held = parse_ipv4(packet).is_ok_and(|parsed| sum_holds(&parsed));
    let lowered = mss::clamp(&mut clamped, mtu, false);
    let after = parse_ipv4(&clamped).expect("it is a packet still");
    match lowered {
        None => assert_eq!(clamped, packet),
        Some(before) => {
            assert!(before > mtu.saturating_sub(40));
            assert_eq!(sum_holds(&after), held, "{clamped:02x?}");
            assert_eq!(mss::clamp(&mut clamped.clone(), mtu, false), None);
        }
    }
}

fn check_error(packet: &[u8], parsed: &Ipv4Packet<'_>, control: &Control) {
    let mut out = [0; icmp::MAX_ERROR_LEN];
    let mtu = control.limit as u16;
    if let Some(len) = icmp::fragmentation_needed(packet, mtu, control.id, &mut out) {
        let error = parse_ipv4(&out[..len]).expect("an error is a packet");
        assert_eq!((error.source, error.destination), (parsed.destination, parsed.source));
        assert_eq!(checksum::checksum(error.payload()), 0);
        assert!(!matches!(parsed.transport, Transport::IcmpError { .. }));
    }
}

/// A sequence of fragments of a few packets, in small tables: bounds hold, and time empties them.
fn track(bytes: &[u8], flags: u8) {
    let limits = Limits {
        packets: 6,
        packets_per_owner: 3,
        packets_per_device: 4,
        held_per_packet: 2,
        held_bytes: 256,
        held_bytes_per_owner: 128,
        held_bytes_per_device: 192,
        timeout: Duration::from_secs(30),
    };
    let mut tracker: Tracker<u8> = Tracker::new(limits);
    let mut now = start();
    for step in bytes.chunks_exact(6).take(200) {
        let [owner, id, offset, len, more, wait] = [0, 1, 2, 3, 4, 5].map(|at| step[at]);
        let mut packet =
            vec![0x45, 0, 0, 0, 0, id & 3, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let word = u16::from(offset & 31) | if more & 1 == 0 { 0 } else { 0x2000 };
        packet[6..8].copy_from_slice(&word.to_be_bytes());
        packet.resize(20 + usize::from(len & 15) * 8 + 8, flags);
        packet[20..28].copy_from_slice(&[0, 1, 0, 2, 1, 0, 0, 0]);
        seal(&mut packet, 5);
        now += Duration::from_millis(u64::from(wait) * 40);
        if let Ok(parsed) = parse_ipv4(&packet) {
            let owner = Whose { device: u32::from(owner & 1), peer: u32::from(owner >> 1 & 1) };
            match parsed.fragment {
                None => {}
                Some(fragment) if fragment.is_first() => {
                    tracker.first(owner, &parsed, id, now).ok();
                }
                Some(_) => {
                    tracker.later(owner, &parsed, &packet, now);
                }
            }
        }
        if wait & 1 == 1 {
            tracker.expire(now);
            assert!(tracker.poll_timeout().is_none_or(|at| at > now));
        }
        assert!(tracker.len() <= limits.packets, "{} packets are followed", tracker.len());
    }
    tracker.expire(now + limits.timeout + Duration::from_secs(1));
    assert!(tracker.is_empty(), "{} packets are followed for ever", tracker.len());
}

/// Any instant will do as the first.
pub(crate) fn start() -> Instant {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}
