//! Cuts super-frames into packets, and completes what the kernel left for the network card to do.

use anteroom_proto::verdict::DropReason;

use crate::vnet::VnetHeader;

/// The packets of one frame, one after another.
#[derive(Debug)]
pub struct Packets<'a> {
    frame: &'a [u8],
}

impl<'a> Packets<'a> {
    /// Prepares to cut the IPv4 packet that begins at `network` in `frame`.
    ///
    /// A TCP super-frame is cut into packets of at most `limit` bytes, IP header included. Other packets keep
    /// their size: a UDP super-frame falls into the datagrams that it was merged from. What is then over
    /// `limit` is for [`crate::fragment::cut`].
    ///
    /// # Errors
    /// [`DropReason::Malformed`] when `vnet` and the frame don't fit together, [`DropReason::TooBig`] when
    /// `limit` leaves no room for payload.
    pub fn new(
        frame: &'a [u8],
        network: usize,
        vnet: &VnetHeader,
        limit: usize,
    ) -> Result<Self, DropReason> {
        let _ = (network, vnet, limit);
        Ok(Self { frame })
    }

    /// Length of the longest packet that will come.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.frame.len()
    }

    /// Writes the next packet, from the IP header on, with all checksums complete. Returns its length; `None`
    /// when there is no more, or `out` is shorter than [`Self::longest`].
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        let _ = out;
        todo!()
    }
}
