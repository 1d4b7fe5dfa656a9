//! Rewrites the largest segment size that TCP ends announce to each other.

/// Lowers the MSS option of a SYN or SYN-ACK, an IPv4 packet from its IP header on, to what fits `mtu` bytes of
/// IP. Leaves everything else alone; without the option, 536 applies and always fits.
///
/// `partial` says that the TCP checksum holds the pseudo-header's sum only
/// ([`VnetHeader::FLAG_NEEDS_CSUM`](crate::vnet::VnetHeader::FLAG_NEEDS_CSUM)), which doesn't cover the option.
///
/// Returns the size that was announced, if it was lowered.
pub fn clamp(packet: &mut [u8], mtu: u16, partial: bool) -> Option<u16> {
    let _ = (packet, mtu, partial);
    todo!()
}
