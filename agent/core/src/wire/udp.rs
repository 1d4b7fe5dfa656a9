//! UDP headers (RFC 768).

use anteroom_proto::verdict::DropReason;

use super::be16;

/// Length of a header.
pub const HEADER_LEN: usize = 8;

/// A UDP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpHeader {
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
    /// Length of header and payload, as the header says.
    pub len: u16,
    /// The checksum; 0 means that there is none.
    pub checksum: u16,
}

/// Reads a UDP header at the beginning of `bytes`. Whether its length fits is the caller's matter: of a
/// fragmented datagram only a part is here.
///
/// # Errors
/// [`DropReason::Malformed`] when it is cut short or says that it is shorter than its own header.
pub fn parse_udp(bytes: &[u8]) -> Result<UdpHeader, DropReason> {
    let malformed = DropReason::Malformed;
    let header = UdpHeader {
        source_port: be16(bytes, 0).ok_or(malformed)?,
        destination_port: be16(bytes, 2).ok_or(malformed)?,
        len: be16(bytes, 4).ok_or(malformed)?,
        checksum: be16(bytes, 6).ok_or(malformed)?,
    };
    if usize::from(header.len) < HEADER_LEN { Err(malformed) } else { Ok(header) }
}
