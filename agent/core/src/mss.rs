//! Rewrites the largest segment size that TCP ends announce to each other.

use crate::checksum;
use crate::wire::tcp::{self, TcpFlags};
use crate::wire::{Transport, be16, parse_ipv4, put};

#[cfg(test)]
mod tests;

/// IP and TCP headers without options, which the announced size doesn't count (RFC 6691).
const HEADERS: u16 = 40;
/// What applies without the option (RFC 9293): no path makes TCP ends take less, which they would for as long as the
/// connection lasts. Packets that are too long all the same go in parts.
const LEAST: u16 = 536;
/// Kind of the option.
const MSS: u8 = 2;
/// Where the checksum stands in a TCP header.
const CHECKSUM_AT: usize = 16;

/// Lowers the MSS option of a SYN or SYN-ACK, an IPv4 packet from its IP header on, to what fits `mtu` bytes of
/// IP, and to 536 at least. Leaves everything else alone; without the option, 536 applies.
///
/// `partial` says that the TCP checksum holds the pseudo-header's sum only
/// ([`VnetHeader::FLAG_NEEDS_CSUM`](crate::vnet::VnetHeader::FLAG_NEEDS_CSUM)), which doesn't cover the option.
///
/// Returns the size that was announced, if it was lowered.
pub fn clamp(packet: &mut [u8], mtu: u16, partial: bool) -> Option<u16> {
    let parsed = parse_ipv4(packet).ok()?;
    let Transport::Tcp { flags, .. } = parsed.transport else { return None };
    if !flags.has(TcpFlags::SYN) {
        return None;
    }
    let ip_header = parsed.header_len;
    let header = tcp::parse_tcp(parsed.payload()).ok()?;
    let (_, offset, _) =
        header.options().find(|(kind, _, value)| *kind == MSS && value.len() == 2)?;
    let at = tcp::MIN_HEADER_LEN + offset;
    let transport = packet.get_mut(ip_header..)?;
    let (announced, fits) = (be16(transport, at)?, mtu.saturating_sub(HEADERS).max(LEAST));
    if announced <= fits {
        return None;
    }
    put(transport, at, &fits.to_be_bytes());
    if !partial {
        // At an odd place the two bytes belong to two words, and count as if they were swapped (RFC 1071).
        let place = |value: u16| if at.is_multiple_of(2) { value } else { value.swap_bytes() };
        let sum = be16(transport, CHECKSUM_AT)?;
        let sum = checksum::update(sum, place(announced), place(fits));
        put(transport, CHECKSUM_AT, &sum.to_be_bytes());
    }
    Some(announced)
}
