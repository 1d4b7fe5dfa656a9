//! IPv4 packets (RFC 791), with what a flow lookup needs of their transport headers.

use std::net::Ipv4Addr;

use anteroom_proto::verdict::DropReason;

use super::icmp::{self, IcmpMessage};
use super::tcp::{self, TcpFlags};
use super::{array, be16, udp};
use crate::checksum;

/// Shortest header.
pub const MIN_HEADER_LEN: usize = 20;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// The "don't fragment" bit in the word with the fragment offset.
pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
/// The "more fragments" bit.
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset, in units of eight bytes.
pub(crate) const OFFSET_MASK: u16 = 0x1fff;

/// What tells one flow from another, in one orientation.
///
/// For an ICMP echo the source port is its id and the destination port 0; for a reply it is the other way, so
/// that a reply's tuple is the echo's [`Self::reversed`]. Protocols without ports have 0 for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FiveTuple {
    /// IP protocol number.
    pub protocol: u8,
    /// From where.
    pub source: Ipv4Addr,
    /// To where.
    pub destination: Ipv4Addr,
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
}

impl FiveTuple {
    /// The same flow, seen from the other end.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// What a packet's transport header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Flags.
        flags: TcpFlags,
        /// Length of the TCP header.
        header_len: usize,
    },
    /// UDP.
    Udp,
    /// An ICMP echo or its reply.
    IcmpEcho {
        /// Whether it is the reply.
        reply: bool,
    },
    /// An ICMP error.
    IcmpError {
        /// The ICMP type.
        kind: u8,
        /// The ICMP code.
        code: u8,
        /// The flow of the packet that it quotes, where the quote tells.
        quoted: Option<FiveTuple>,
    },
    /// Another ICMP message.
    IcmpOther {
        /// The ICMP type.
        kind: u8,
    },
    /// Another protocol.
    Other,
    /// A fragment that isn't the first: its transport header is elsewhere.
    LaterFragment,
}

/// Where a fragment belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// Where its payload begins in the whole packet's payload, in bytes.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
}

impl Fragment {
    /// Whether it is the first.
    #[must_use]
    pub const fn is_first(self) -> bool {
        self.offset == 0
    }
}

/// An IPv4 packet whose lengths and header checksum were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Packet<'a> {
    /// The whole packet without the Ethernet padding behind it.
    pub bytes: &'a [u8],
    /// Length of the IP header with options.
    pub header_len: usize,
    /// From where.
    pub source: Ipv4Addr,
    /// To where.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// DSCP and ECN: the old type-of-service byte.
    pub dscp_ecn: u8,
    /// Identification.
    pub id: u16,
    /// Whether it may not be fragmented.
    pub dont_fragment: bool,
    /// Where it belongs, if it is a fragment.
    pub fragment: Option<Fragment>,
    /// Source port, or what stands for it (see [`FiveTuple`]).
    pub source_port: u16,
    /// Destination port, or what stands for it.
    pub destination_port: u16,
    /// What its transport header says.
    pub transport: Transport,
}

impl<'a> Ipv4Packet<'a> {
    /// What follows the IP header.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.header_len..).unwrap_or_default()
    }

    /// The flow that the packet belongs to. Without ports for a later fragment.
    #[must_use]
    pub const fn tuple(&self) -> FiveTuple {
        FiveTuple {
            protocol: self.protocol,
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
        }
    }

    /// TCP flags; none for other protocols and later fragments.
    #[must_use]
    pub const fn tcp_flags(&self) -> TcpFlags {
        match self.transport {
            Transport::Tcp { flags, .. } => flags,
            _ => TcpFlags(0),
        }
    }

    /// Where the payload begins in the whole packet's payload, in bytes. 0 for what isn't a fragment.
    #[must_use]
    pub fn fragment_offset(&self) -> u16 {
        self.fragment.map_or(0, |fragment| fragment.offset)
    }

    /// The UDP payload, if this is UDP that wasn't fragmented. Bounded by both lengths.
    #[must_use]
    pub fn udp_payload(&self) -> Option<&'a [u8]> {
        if self.transport != Transport::Udp || self.fragment.is_some() {
            return None;
        }
        let payload = self.payload();
        let len = usize::from(be16(payload, 4)?);
        payload.get(udp::HEADER_LEN..len)
    }
}

/// Takes a packet apart: what an Ethernet header is followed by, or what came out of a tunnel.
///
/// # Errors
/// - [`DropReason::Malformed`]: lengths that don't fit together, a bad header checksum, a fragment that reaches
///   beyond 65,535 bytes or whose length can't be.
/// - [`DropReason::FragmentNoHeader`]: a first fragment without its whole transport header, or a second one that
///   would begin inside it.
#[inline]
pub fn parse_ipv4(bytes: &[u8]) -> Result<Ipv4Packet<'_>, DropReason> {
    let malformed = DropReason::Malformed;
    let fixed: [u8; MIN_HEADER_LEN] = array(bytes, 0).ok_or(malformed)?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if fixed[0] >> 4 != 4 || header_len < MIN_HEADER_LEN || total_len < header_len {
        return Err(malformed);
    }
    let bytes = bytes.get(..total_len).ok_or(malformed)?;
    if checksum::checksum(bytes.get(..header_len).ok_or(malformed)?) != 0 {
        return Err(malformed);
    }
    let word = u16::from_be_bytes([fixed[6], fixed[7]]);
    let fragment = (word & (MORE_FRAGMENTS | OFFSET_MASK) != 0)
        .then_some(Fragment { offset: (word & OFFSET_MASK) * 8, more: word & MORE_FRAGMENTS != 0 });
    let mut packet = Ipv4Packet {
        bytes,
        header_len,
        source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]),
        destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
        protocol: fixed[9],
        ttl: fixed[8],
        dscp_ecn: fixed[1],
        id: u16::from_be_bytes([fixed[4], fixed[5]]),
        dont_fragment: word & DONT_FRAGMENT != 0,
        fragment,
        source_port: 0,
        destination_port: 0,
        transport: Transport::LaterFragment,
    };
    if let Some(fragment) = fragment {
        check_fragment(&packet, fragment)?;
    }
    if packet.fragment_offset() == 0 {
        let too_short = if fragment.is_some() { DropReason::FragmentNoHeader } else { malformed };
        transport(&mut packet).map_err(|_| too_short)?;
    }
    Ok(packet)
}

fn check_fragment(packet: &Ipv4Packet<'_>, fragment: Fragment) -> Result<(), DropReason> {
    let len = packet.payload().len();
    let end = usize::from(fragment.offset) + len;
    if end + packet.header_len > usize::from(u16::MAX) || len == 0 {
        return Err(DropReason::Malformed);
    }
    if fragment.more && !len.is_multiple_of(8) {
        return Err(DropReason::Malformed);
    }
    // A fragment at 8 or 16 would rewrite flags or ports of a TCP header (RFC 1858, RFC 3128).
    let shortest = if packet.protocol == TCP { tcp::MIN_HEADER_LEN } else { udp::HEADER_LEN };
    if fragment.offset != 0 && usize::from(fragment.offset) < shortest {
        return Err(DropReason::FragmentNoHeader);
    }
    Ok(())
}

#[inline]
fn transport(packet: &mut Ipv4Packet<'_>) -> Result<(), DropReason> {
    let payload = packet.payload();
    let (ports, transport) = match packet.protocol {
        TCP => {
            let header = tcp::parse_tcp(payload)?;
            let transport = Transport::Tcp { flags: header.flags, header_len: header.header_len };
            ((header.source_port, header.destination_port), transport)
        }
        UDP => {
            let header = udp::parse_udp(payload)?;
            if packet.fragment.is_none() && usize::from(header.len) > payload.len() {
                return Err(DropReason::Malformed);
            }
            ((header.source_port, header.destination_port), Transport::Udp)
        }
        icmp::PROTOCOL => match icmp::parse_icmp(payload)? {
            IcmpMessage::Echo { reply, id, .. } => {
                (if reply { (0, id) } else { (id, 0) }, Transport::IcmpEcho { reply })
            }
            IcmpMessage::Error { kind, code, quoted } => {
                ((0, 0), Transport::IcmpError { kind, code, quoted })
            }
            IcmpMessage::Other { kind, .. } => ((0, 0), Transport::IcmpOther { kind }),
        },
        _ => ((0, 0), Transport::Other),
    };
    (packet.source_port, packet.destination_port) = ports;
    packet.transport = transport;
    Ok(())
}

/// What a header without options is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// From where.
    pub source: Ipv4Addr,
    /// To where.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// DSCP and ECN.
    pub dscp_ecn: u8,
    /// Identification.
    pub id: u16,
    /// Length of what follows the header.
    pub payload_len: usize,
}

impl Header {
    /// The header with its checksum, or `None` when the payload is too long for a packet.
    #[must_use]
    pub fn to_bytes(&self) -> Option<[u8; MIN_HEADER_LEN]> {
        let total_len = u16::try_from(self.payload_len.checked_add(MIN_HEADER_LEN)?).ok()?;
        let mut bytes = [0; MIN_HEADER_LEN];
        bytes[0] = 0x45;
        bytes[1] = self.dscp_ecn;
        bytes[2..4].copy_from_slice(&total_len.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.id.to_be_bytes());
        bytes[8] = self.ttl;
        bytes[9] = self.protocol;
        bytes[12..16].copy_from_slice(&self.source.octets());
        bytes[16..20].copy_from_slice(&self.destination.octets());
        let sum = checksum::checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        Some(bytes)
    }
}
