//! The internet checksum (RFC 1071): computed, changed in place (RFC 1624), and completed where the kernel left
//! the pseudo-header's sum only.

use std::net::{Ipv4Addr, Ipv6Addr};

use anteroom_proto::verdict::DropReason;

use crate::vnet::VnetHeader;

/// A sum that goes on. Parts of odd length may only come last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// Nothing summed yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// This sum and a part's.
    #[must_use]
    pub fn bytes(self, part: &[u8]) -> Self {
        let mut sum = self.0;
        let (words, rest) = part.as_chunks::<8>();
        for word in words {
            let word = u64::from_be_bytes(*word);
            // Halves of 32 bits leave room for four billion carries.
            sum += (word >> 32) + (word & 0xffff_ffff);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let word = u64::from_be_bytes(last);
        Self(sum + (word >> 32) + (word & 0xffff_ffff))
    }

    /// This sum and one 16-bit word's.
    #[must_use]
    pub const fn word(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// The pseudo-header of TCP and UDP over IPv4. `len` is that of transport header and payload.
    #[must_use]
    pub fn pseudo_ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: u16) -> Self {
        Self::new()
            .bytes(&source.octets())
            .bytes(&destination.octets())
            .word(u16::from(protocol))
            .word(len)
    }

    /// The pseudo-header of UDP over IPv6.
    #[must_use]
    pub fn pseudo_ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, len: u16) -> Self {
        Self::new()
            .bytes(&source.octets())
            .bytes(&destination.octets())
            .word(u16::from(protocol))
            .word(len)
    }

    /// The sum in 16 bits, not complemented: what stands in the field of a partial checksum.
    #[must_use]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        ((sum >> 16) + (sum & 0xffff)) as u16
    }

    /// The checksum.
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The checksum of TCP or UDP, where 0 is written as 0xffff: in UDP it would mean "none".
    #[must_use]
    pub const fn transport_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// The checksum of `bytes`. 0 when they contain their own, right checksum.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::new().bytes(bytes).checksum()
}

/// The checksum after a 16-bit word that it covers changed (RFC 1624, equation 3).
#[must_use]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::new().word(!checksum).word(!old).word(new).checksum()
}

/// Completes the checksum that a frame needs: `bytes` from the Ethernet header to the packet's end. Does nothing
/// when the header doesn't ask for it.
///
/// # Errors
/// [`DropReason::Malformed`] when the header points outside the frame.
pub fn complete(bytes: &mut [u8], vnet: &VnetHeader) -> Result<(), DropReason> {
    if vnet.flags & VnetHeader::FLAG_NEEDS_CSUM == 0 {
        return Ok(());
    }
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    if bytes.len() < field + 2 {
        return Err(DropReason::Malformed);
    }
    let sum = Sum::new().bytes(&bytes[start..]).transport_checksum();
    bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}
