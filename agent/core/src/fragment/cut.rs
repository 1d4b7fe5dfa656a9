//! Cuts IPv4 packets into fragments.

use anteroom_proto::verdict::DropReason;

/// The fragments of one packet, one after another.
#[derive(Debug)]
pub struct Fragments<'a> {
    packet: &'a [u8],
}

impl<'a> Fragments<'a> {
    /// Prepares to cut `packet`, an IPv4 packet with complete checksums, into parts of about equal size and at
    /// most `limit` bytes each, IP header included. "Don't fragment" is cleared: the packet's sender was told,
    /// and didn't listen. `id` marks the parts, unless the packet is itself a fragment and keeps its own.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] when it isn't a packet, [`DropReason::TooBig`] when `limit` leaves no room for
    /// eight bytes of payload.
    pub fn new(packet: &'a [u8], limit: usize, id: u16) -> Result<Self, DropReason> {
        let _ = (limit, id);
        Ok(Self { packet })
    }

    /// Length of the longest fragment that will come.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.packet.len()
    }

    /// Writes the next fragment. Returns its length; `None` when there is no more, or `out` is shorter than
    /// [`Self::longest`].
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        let _ = out;
        todo!()
    }
}
