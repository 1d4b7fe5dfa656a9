//! IPv6 headers (RFC 8200), as far as gateways' messages inside the tunnel need them.

use std::net::Ipv6Addr;

use anteroom_proto::verdict::DropReason;

use super::{array, be16};

/// Length of a header without extensions.
pub const HEADER_LEN: usize = 40;

/// An IPv6 packet whose length was checked. Extension headers aren't looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Packet<'a> {
    /// From where.
    pub source: Ipv6Addr,
    /// To where.
    pub destination: Ipv6Addr,
    /// Protocol number of what follows the header.
    pub next_header: u8,
    /// What follows the header, without padding behind the packet.
    pub payload: &'a [u8],
}

/// Takes a packet apart.
///
/// # Errors
/// [`DropReason::Malformed`] when the version or the lengths don't fit.
pub fn parse_ipv6(bytes: &[u8]) -> Result<Ipv6Packet<'_>, DropReason> {
    let malformed = DropReason::Malformed;
    if bytes.first().ok_or(malformed)? >> 4 != 6 {
        return Err(malformed);
    }
    let payload_len = usize::from(be16(bytes, 4).ok_or(malformed)?);
    Ok(Ipv6Packet {
        source: Ipv6Addr::from(array::<16>(bytes, 8).ok_or(malformed)?),
        destination: Ipv6Addr::from(array::<16>(bytes, 24).ok_or(malformed)?),
        next_header: *bytes.get(6).ok_or(malformed)?,
        payload: bytes.get(HEADER_LEN..HEADER_LEN + payload_len).ok_or(malformed)?,
    })
}
