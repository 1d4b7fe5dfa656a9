//! The header that the kernel puts in front of a frame on a packet socket with `PACKET_VNET_HDR`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct virtio_net_hdr` (linux/virtio_net.h) in the machine's byte order.
///
/// A super-frame is up to 64 KiB of one flow that the kernel merged, or didn't cut yet.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VnetHeader {
    /// `FLAG_` bits.
    pub flags: u8,
    /// `GSO_` value.
    pub gso_type: u8,
    /// Length of the headers that each cut packet repeats. A hint: recompute it.
    pub hdr_len: u16,
    /// Payload bytes in each cut packet.
    pub gso_size: u16,
    /// Where summing starts, from the Ethernet header.
    pub csum_start: u16,
    /// Where the sum is stored, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Length on the wire in bytes.
    pub const LEN: usize = size_of::<Self>();
    /// The checksum isn't complete: it holds the pseudo-header's sum.
    pub const FLAG_NEEDS_CSUM: u8 = 1;
    /// The checksum was found good.
    pub const FLAG_DATA_VALID: u8 = 2;
    /// An ordinary frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP, cut into datagrams.
    pub const GSO_UDP_L4: u8 = 5;
    /// A bit beside the type: the segment carries ECN's CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// Whether the frame is more than one packet.
    #[must_use]
    pub const fn is_super_frame(&self) -> bool {
        self.gso_type & !Self::GSO_ECN != Self::GSO_NONE
    }
}
