//! What the shell hands to the engine: frames and datagrams in buffers that stay the shell's.

use std::net::SocketAddr;

use crate::vnet::VnetHeader;

/// An 802.1Q tag that the kernel took off a frame (it stands in `PACKET_AUXDATA`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VlanTag {
    /// Tag protocol: 0x8100 or 0x88a8.
    pub protocol: u16,
    /// Priority, drop eligibility and VLAN id.
    pub control: u16,
}

impl VlanTag {
    /// The VLAN id. 0 means that the tag carries a priority only.
    #[must_use]
    pub const fn id(self) -> u16 {
        self.control & 0x0fff
    }
}

/// A frame as it came in.
#[derive(Debug)]
pub struct RxFrame<'a> {
    /// The kernel's word on merging and checksums.
    pub vnet: VnetHeader,
    /// The outer tag, if the kernel took one off.
    pub vlan: Option<VlanTag>,
    /// From the Ethernet header on, without the frame check sequence. The engine may change it.
    pub bytes: &'a mut [u8],
}

/// One or more datagrams from one address, as `UDP_GRO` merges them.
#[derive(Debug)]
pub struct RxDatagram<'a> {
    /// Where it came from.
    pub from: SocketAddr,
    /// Length of each datagram but the last, which may be shorter. The length of `bytes` when there is one.
    pub segment: usize,
    /// The payloads, one after another. The engine opens them in place.
    pub bytes: &'a mut [u8],
}
