//! As much of IPv4 as a router needs: who, to whom, and these changed with all sums kept right.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::packet::checksum;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// Where things are in a frame that holds an IPv4 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Bytes of the IP header.
    pub header: usize,
    /// Bytes of the packet, its header included.
    pub total: usize,
    /// The protocol's number.
    pub protocol: u8,
    /// Who sent it.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// Whether it is a fragment that isn't the first.
    pub later_fragment: bool,
    icmp_type: Option<u8>,
}

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Who sent it.
    Source,
    /// To whom.
    Destination,
}

impl Packet {
    /// Finds its way in a frame. None where it holds no whole IPv4 packet.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        if frame.get(12..14)? != [0x08, 0x00] {
            return None;
        }
        Self::parse_bare(frame.get(ETHERNET..)?, true)
    }

    /// The same without an Ethernet header. What an ICMP error quotes may be cut short: not `whole`.
    fn parse_bare(packet: &[u8], whole: bool) -> Option<Self> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        if packet[0] >> 4 != 4 || header < 20 || total < header || packet.len() < header {
            return None;
        }
        if whole && packet.len() < total {
            return None;
        }
        let address =
            |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
        let protocol = packet[9];
        let later_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
        let inside = packet.get(header).copied().filter(|_| !later_fragment);
        Some(Self {
            header,
            total,
            protocol,
            source: address(12),
            destination: address(16),
            later_fragment,
            icmp_type: inside.filter(|_| protocol == 1),
        })
    }

    /// Whether it is an ICMP error, which quotes another packet.
    #[must_use]
    pub fn is_icmp_error(&self) -> bool {
        self.icmp_type.is_some_and(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12))
    }

    /// Where, behind the IP header, `end` keeps its port (an echo's identifier), and where the sum is that covers it.
    fn places(&self, end: End) -> Option<(usize, usize)> {
        let port = if end == End::Source { 0 } else { 2 };
        match (self.protocol, self.icmp_type) {
            _ if self.later_fragment => None,
            (6, _) => Some((port, 16)),
            (17, _) => Some((port, 6)),
            (1, Some(0 | 8)) => Some((4, 2)),
            _ => None,
        }
    }
}

/// Address and port of one end of the packet in `frame`. For an echo the port is its identifier at both.
#[must_use]
pub fn endpoint(frame: &[u8], packet: &Packet, end: End) -> Option<SocketAddrV4> {
    endpoint_bare(frame.get(ETHERNET..)?, packet, end)
}

fn endpoint_bare(bytes: &[u8], packet: &Packet, end: End) -> Option<SocketAddrV4> {
    let (port, _) = packet.places(end)?;
    let at = packet.header + port;
    let port = u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]);
    let address = if end == End::Source { packet.source } else { packet.destination };
    Some(SocketAddrV4::new(address, port))
}

/// Puts another address and port at one end of the packet in `frame`.
pub fn rewrite(frame: &mut [u8], packet: &Packet, end: End, new: SocketAddrV4) {
    if let Some(bytes) = frame.get_mut(ETHERNET..) {
        rewrite_bare(bytes, packet, end, new);
    }
}

fn rewrite_bare(bytes: &mut [u8], packet: &Packet, end: End, new: SocketAddrV4) {
    let at = if end == End::Source { 12 } else { 16 };
    let old = address_words(&bytes[at..at + 4]);
    let octets = new.ip().octets();
    bytes[at..at + 4].copy_from_slice(&octets);
    let words = address_words(&octets);
    for (old, new) in old.into_iter().zip(words) {
        adjust(bytes, 10, old, new);
    }
    let Some((port, sum)) = packet.places(end) else { return };
    let (port, sum) = (packet.header + port, packet.header + sum);
    let Some(place) = bytes.get_mut(port..port + 2) else { return };
    let before = u16::from_be_bytes([place[0], place[1]]);
    place.copy_from_slice(&new.port().to_be_bytes());
    // A UDP sum of 0 means that there is none.
    if packet.protocol == 17 && bytes.get(sum..sum + 2) == Some(&[0, 0]) {
        return;
    }
    adjust(bytes, sum, before, new.port());
    if packet.protocol != 1 {
        for (old, new) in old.into_iter().zip(words) {
            adjust(bytes, sum, old, new);
        }
    }
}

fn address_words(bytes: &[u8]) -> [u16; 2] {
    [u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])]
}

/// Keeps the sum at `at` right where a word that it covers has changed (RFC 1624).
fn adjust(bytes: &mut [u8], at: usize, old: u16, new: u16) {
    let Some(place) = bytes.get_mut(at..at + 2) else { return };
    let sum = u16::from_be_bytes([place[0], place[1]]);
    let mut total = u32::from(!sum) + u32::from(!old) + u32::from(new);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    place.copy_from_slice(&(!u16::try_from(total).unwrap_or(0)).to_be_bytes());
}

/// Counts a router that the packet passes. False where it has passed enough of them.
pub fn pass(frame: &mut [u8]) -> bool {
    let Some(&left) = frame.get(ETHERNET + 8) else { return false };
    if left <= 1 {
        return false;
    }
    let old = u16::from_be_bytes([left, frame[ETHERNET + 9]]);
    frame[ETHERNET + 8] = left - 1;
    let new = u16::from_be_bytes([left - 1, frame[ETHERNET + 9]]);
    adjust(&mut frame[ETHERNET..], 10, old, new);
    true
}

/// What the ICMP error in `frame` quotes: the protocol, and where the packet that it is about came from.
#[must_use]
pub fn quoted(frame: &[u8], packet: &Packet) -> Option<(u8, SocketAddrV4)> {
    if !packet.is_icmp_error() {
        return None;
    }
    let bytes = frame.get(ETHERNET + packet.header + 8..ETHERNET + packet.total)?;
    let inner = Packet::parse_bare(bytes, false)?;
    Some((inner.protocol, endpoint_bare(bytes, &inner, End::Source)?))
}

/// Lets the ICMP error in `frame` speak of a packet from `source`, and go there.
pub fn rewrite_quoted(frame: &mut [u8], packet: &Packet, source: SocketAddrV4) {
    let begin = ETHERNET + packet.header;
    let end = ETHERNET + packet.total;
    let Some(bytes) = frame.get_mut(begin + 8..end) else { return };
    let Some(inner) = Packet::parse_bare(bytes, false) else { return };
    rewrite_bare(bytes, &inner, End::Source, source);
    frame[begin + 2..begin + 4].fill(0);
    let sum = checksum(&frame[begin..end]);
    frame[begin + 2..begin + 4].copy_from_slice(&sum.to_be_bytes());
    rewrite(frame, packet, End::Destination, SocketAddrV4::new(*source.ip(), 0));
}

/// An IPv4 header of 20 bytes, for a packet that mustn't be cut.
#[must_use]
pub fn header(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: usize) -> [u8; 20] {
    let mut header = [0_u8; 20];
    header[0] = 0x45;
    let total = u16::try_from(20 + payload).unwrap_or(u16::MAX);
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[6] = 0x40;
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    sum_header(&mut header);
    header
}

/// Writes the sum of the IPv4 header that `packet` begins with.
pub fn sum_header(packet: &mut [u8]) {
    let length = usize::from(packet[0] & 0x0f) * 4;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..length]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}
