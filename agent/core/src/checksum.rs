//! The internet checksum (RFC 1071): computed, changed in place (RFC 1624), and completed where the kernel left
//! the pseudo-header's sum only.

use std::net::{Ipv4Addr, Ipv6Addr};

use anteroom_proto::verdict::DropReason;

use crate::vnet::VnetHeader;

/// Blocks after which a sum of their 16-bit halves could be too long for 32 bits.
const MOST_BLOCKS: usize = 1 << 16;

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
        // The sum of words in the machine's order, with its bytes swapped, is the sum of words in the network's
        // (RFC 1071, 2.B): nothing has to be swapped on the way. Sums side by side become vector instructions.
        let (blocks, rest) = part.as_chunks::<32>();
        let mut sum = 0;
        for blocks in blocks.chunks(MOST_BLOCKS) {
            let (mut all, mut high) = ([0_u32; 8], [0_u32; 8]);
            for block in blocks {
                let (words, _) = block.as_chunks::<4>();
                for ((all, high), word) in all.iter_mut().zip(&mut high).zip(words) {
                    let word = u32::from_ne_bytes(*word);
                    *all = all.wrapping_add(word);
                    *high += word >> 16;
                }
            }
            // What isn't of the upper halves is of the lower ones, whose sum didn't wrap.
            for (all, high) in all.into_iter().zip(high) {
                sum += u64::from(all.wrapping_sub(high << 16)) + u64::from(high);
            }
        }
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
        Self(self.0 + u64::from(u16::from_be(Self(sum).fold())))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Word by word, as RFC 1071 writes it.
    fn plain(bytes: &[u8]) -> u64 {
        let words = bytes.chunks(2).map(|word| [word[0], word.get(1).copied().unwrap_or(0)]);
        words.map(|word| u64::from(u16::from_be_bytes(word))).sum()
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_words(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5),
            fill in prop::sample::select(vec![None, Some(0_u8), Some(0xff)]),
            words: (u16, u16),
        ) {
            let mut parts = parts;
            let last = parts.len() - 1;
            for (place, part) in parts.iter_mut().enumerate() {
                // Only the last may be of odd length.
                part.truncate(if place == last { part.len() } else { part.len() & !1 });
                if let Some(fill) = fill {
                    part.fill(fill);
                }
            }
            let whole = parts.concat();
            let sum = parts.iter().fold(Sum::new(), |sum, part| sum.bytes(part));
            prop_assert_eq!(sum.fold(), Sum(plain(&whole)).fold());
            prop_assert_eq!(sum.fold(), Sum::new().bytes(&whole).fold());
            // A word changed in place changes the sum as if it were summed again; 0 and 0xffff are the same to a
            // receiver, which can't tell a sum of zeros from one of ones.
            let (old, new) = words;
            let changed = sum.word(new).checksum();
            let updated = update(sum.word(old).checksum(), old, new);
            prop_assert_eq!(u32::from(updated) % 0xffff, u32::from(changed) % 0xffff);
        }
    }

    #[test]
    fn nothing_overflows_however_long_it_is() {
        // The last is longer than a packet, and than what is summed in one go.
        for len in [65_535, 65_536, 32 * MOST_BLOCKS, 32 * MOST_BLOCKS + 70] {
            for fill in [0xff, 0xfe, 0x01] {
                let bytes = vec![fill; len];
                assert_eq!(
                    Sum::new().bytes(&bytes).fold(),
                    Sum(plain(&bytes)).fold(),
                    "{fill} {len}"
                );
            }
        }
        assert_eq!(Sum::new().bytes(&[]), Sum::new());
    }
}
