//! Cuts a packet into equal parts that fit a path.

use std::net::Ipv6Addr;

use anteroom_proto::verdict::DropReason;

use super::wire::{LEAST_ROOM, PART_OVERHEAD, Part, write_part};

/// The parts of one packet, one after another.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    packet: &'a [u8],
    ends: (Ipv6Addr, Ipv6Addr),
    class: u8,
    id: u32,
    stride: usize,
    index: usize,
}

impl<'a> Parts<'a> {
    /// Prepares to cut an IPv4 packet into parts of about equal size that are at most `limit` bytes long, with their
    /// own headers, between the overlay addresses `ends`. They bear the packet's DSCP.
    ///
    /// # Errors
    /// [`DropReason::TooBig`] when `limit` is too small, or the packet longer than one can be.
    pub fn new(
        packet: &'a [u8],
        limit: usize,
        ends: (Ipv6Addr, Ipv6Addr),
        id: u32,
    ) -> Result<Self, DropReason> {
        let room = limit.saturating_sub(PART_OVERHEAD);
        if room < LEAST_ROOM || packet.len() > usize::from(u16::MAX) || packet.len() < 2 {
            return Err(DropReason::TooBig);
        }
        let count = packet.len().div_ceil(room).max(2);
        let class = packet[1] & 0xfc;
        Ok(Self { packet, ends, class, id, stride: packet.len().div_ceil(count), index: 0 })
    }

    /// Length of the longest part with its headers.
    #[must_use]
    pub const fn longest(&self) -> usize {
        PART_OVERHEAD + self.stride
    }

    /// Writes the next part, from its IPv6 header on. Returns its length; `None` when there is no more, or `out` is
    /// shorter than [`Self::longest`].
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        let rest = self.packet.get(self.index * self.stride..).filter(|rest| !rest.is_empty())?;
        let out = out.get_mut(..self.longest())?;
        // All are bounded by the packet's length, which fits.
        let part = Part {
            id: self.id,
            total: self.packet.len() as u16,
            stride: self.stride as u16,
            index: self.index as u16,
            bytes: &rest[..rest.len().min(self.stride)],
        };
        self.index += 1;
        Some(write_part(out, self.ends, self.class, &part))
    }
}
