//! What stands on the wire: total parsers and builders over byte slices.
//!
//! No function here panics, allocates or reads beyond the packet, whatever the bytes are. Errors are
//! [`DropReason`](anteroom_proto::verdict::DropReason)s, ready to be counted.

pub mod arp;
pub mod dhcp;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;

#[cfg(test)]
mod tests;

pub use ethernet::{EthernetFrame, parse_ethernet};
pub use ipv4::{FiveTuple, Fragment, Ipv4Packet, Transport, parse_ipv4};

/// Fixed-size bytes at a place, or `None` beyond the end.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// A big-endian 16-bit number at a place, or `None` beyond the end.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// A big-endian 32-bit number at a place, or `None` beyond the end.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Writes bytes at a place. Says whether there was room for all of them.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> bool {
    let end = at.saturating_add(value.len());
    match bytes.get_mut(at..end) {
        Some(room) => {
            room.copy_from_slice(value);
            true
        }
        None => false,
    }
}
