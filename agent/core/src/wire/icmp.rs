//! ICMP for IPv4 (RFC 792): echo, errors with the packet that they quote, and "fragmentation needed".

use std::net::Ipv4Addr;

use anteroom_proto::verdict::DropReason;

use super::ipv4::{self, FiveTuple};
use super::{array, be16, put};
use crate::checksum;

/// Protocol number of ICMP.
pub const PROTOCOL: u8 = 1;
/// Length of the header before what it quotes.
pub const HEADER_LEN: usize = 8;
/// Longest "fragmentation needed" packet that is built (RFC 1812 4.3.2.3).
pub const MAX_ERROR_LEN: usize = 576;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO: u8 = 8;
const FRAGMENTATION_NEEDED: u8 = 4;

/// An ICMP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpMessage {
    /// An echo or its reply.
    Echo {
        /// Whether it is the reply.
        reply: bool,
        /// Tells one sender's echoes from another's.
        id: u16,
        /// Counts the sender's echoes.
        sequence: u16,
    },
    /// An error about a packet.
    Error {
        /// The ICMP type.
        kind: u8,
        /// The ICMP code.
        code: u8,
        /// The flow of the packet that it quotes, in the orientation that the packet had. `None` when the
        /// quote doesn't tell: cut short, or a later fragment.
        quoted: Option<FiveTuple>,
    },
    /// Anything else.
    Other {
        /// The ICMP type.
        kind: u8,
        /// The ICMP code.
        code: u8,
    },
}

/// Reads an ICMP message at the beginning of `bytes`.
///
/// # Errors
/// [`DropReason::Malformed`] when it is shorter than a header.
pub fn parse_icmp(bytes: &[u8]) -> Result<IcmpMessage, DropReason> {
    let header: [u8; HEADER_LEN] = array(bytes, 0).ok_or(DropReason::Malformed)?;
    let (kind, code) = (header[0], header[1]);
    Ok(match (kind, code) {
        (ECHO | ECHO_REPLY, 0) => IcmpMessage::Echo {
            reply: kind == ECHO_REPLY,
            id: u16::from_be_bytes([header[4], header[5]]),
            sequence: u16::from_be_bytes([header[6], header[7]]),
        },
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        (UNREACHABLE | 4 | 5 | 11 | 12, _) => {
            let quoted = bytes.get(HEADER_LEN..).and_then(quoted);
            IcmpMessage::Error { kind, code, quoted }
        }
        _ => IcmpMessage::Other { kind, code },
    })
}

/// The flow of a quoted packet: a header and at least eight bytes, the rest cut off.
fn quoted(bytes: &[u8]) -> Option<FiveTuple> {
    let first = *bytes.first()?;
    let header_len = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_len < ipv4::MIN_HEADER_LEN {
        return None;
    }
    if be16(bytes, 6)? & ipv4::OFFSET_MASK != 0 {
        return None;
    }
    let protocol = *bytes.get(9)?;
    let source = Ipv4Addr::from(array::<4>(bytes, 12)?);
    let destination = Ipv4Addr::from(array::<4>(bytes, 16)?);
    let transport = bytes.get(header_len..)?;
    let (source_port, destination_port) = match protocol {
        ipv4::TCP | ipv4::UDP => (be16(transport, 0)?, be16(transport, 2)?),
        PROTOCOL => match (*transport.first()?, be16(transport, 4)?) {
            (ECHO, id) => (id, 0),
            (ECHO_REPLY, id) => (0, id),
            _ => return None,
        },
        _ => (0, 0),
    };
    Some(FiveTuple { protocol, source, destination, source_port, destination_port })
}

/// Builds a packet (IP header included) that tells the sender of `original` to send no more than `mtu` bytes at
/// once (RFC 1191). It speaks in the name of the host that `original` was for.
///
/// Returns its length, or `None` when `original` isn't an IPv4 packet that may be answered, or `out` is shorter
/// than [`MAX_ERROR_LEN`].
pub fn fragmentation_needed(original: &[u8], mtu: u16, id: u16, out: &mut [u8]) -> Option<usize> {
    let packet = ipv4::parse_ipv4(original).ok()?;
    // No error about an error, a group's packet or a later fragment (RFC 1122 3.2.2).
    let about_error = packet.protocol == PROTOCOL
        && !matches!(packet.transport, ipv4::Transport::IcmpEcho { .. });
    let unfit = packet.destination.is_multicast()
        || packet.destination.is_broadcast()
        || packet.source.is_multicast()
        || packet.source.is_unspecified()
        || packet.fragment_offset() != 0;
    if about_error || unfit {
        return None;
    }
    let out = out.get_mut(..MAX_ERROR_LEN)?;
    let headers = ipv4::MIN_HEADER_LEN + HEADER_LEN;
    let quote = packet.bytes.get(..packet.bytes.len().min(MAX_ERROR_LEN - headers))?;
    let len = headers + quote.len();
    let out = &mut out[..len];
    let header = ipv4::Header {
        source: packet.destination,
        destination: packet.source,
        protocol: PROTOCOL,
        ttl: 64,
        // Internetwork control (RFC 1812 5.3.2.5 recommends precedence 6 or 7 for errors).
        dscp_ecn: 0xc0,
        id,
        payload_len: HEADER_LEN + quote.len(),
    };
    out[..ipv4::MIN_HEADER_LEN].copy_from_slice(&header.to_bytes()?);
    let icmp = &mut out[ipv4::MIN_HEADER_LEN..];
    icmp[..HEADER_LEN].copy_from_slice(&[UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0, 0, 0]);
    put(icmp, 6, &mtu.to_be_bytes());
    icmp[HEADER_LEN..].copy_from_slice(quote);
    let sum = checksum::checksum(icmp);
    put(icmp, 2, &sum.to_be_bytes());
    Some(len)
}
