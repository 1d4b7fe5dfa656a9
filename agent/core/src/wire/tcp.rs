//! TCP headers (RFC 9293).

use anteroom_proto::verdict::DropReason;

use super::{be16, be32};

/// Shortest header.
pub const MIN_HEADER_LEN: usize = 20;

/// The flag bits of a TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data follows.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Cuts a connection off.
    pub const RST: u8 = 0x04;
    /// Hand the data over.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// Congestion window was reduced.
    pub const CWR: u8 = 0x80;

    /// Whether all of `bits` are set.
    #[must_use]
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    /// Whether it opens a connection: SYN without ACK.
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// Whether it answers an opening: SYN with ACK.
    #[must_use]
    pub const fn answers(self) -> bool {
        self.has(Self::SYN | Self::ACK)
    }
}

/// A TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpHeader<'a> {
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Flags.
    pub flags: TcpFlags,
    /// Length with options.
    pub header_len: usize,
    /// The options, padding included.
    pub options: &'a [u8],
}

impl<'a> TcpHeader<'a> {
    /// Places and contents of the options: (kind, offset of the contents in [`Self::options`], contents).
    /// Ends at the first one whose length can't be.
    pub fn options(&self) -> impl Iterator<Item = (u8, usize, &'a [u8])> + use<'a> {
        let options = self.options;
        let mut at = 0;
        std::iter::from_fn(move || {
            loop {
                match *options.get(at)? {
                    0 => return None,
                    1 => at += 1,
                    kind => {
                        let len = usize::from(*options.get(at + 1)?);
                        let contents = options.get(at + 2..at + len)?;
                        let offset = at + 2;
                        at += len;
                        return Some((kind, offset, contents));
                    }
                }
            }
        })
    }
}

/// Reads a TCP header at the beginning of `bytes`.
///
/// # Errors
/// [`DropReason::Malformed`] when the header is cut short or says that it is shorter than it can be.
pub fn parse_tcp(bytes: &[u8]) -> Result<TcpHeader<'_>, DropReason> {
    let malformed = DropReason::Malformed;
    let word = be16(bytes, 12).ok_or(malformed)?;
    let header_len = usize::from(word >> 12) * 4;
    if header_len < MIN_HEADER_LEN {
        return Err(malformed);
    }
    Ok(TcpHeader {
        source_port: be16(bytes, 0).ok_or(malformed)?,
        destination_port: be16(bytes, 2).ok_or(malformed)?,
        sequence: be32(bytes, 4).ok_or(malformed)?,
        acknowledgement: be32(bytes, 8).ok_or(malformed)?,
        flags: TcpFlags((word & 0xff) as u8),
        header_len,
        options: bytes.get(MIN_HEADER_LEN..header_len).ok_or(malformed)?,
    })
}
