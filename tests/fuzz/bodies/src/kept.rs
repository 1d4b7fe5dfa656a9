//! A sink that keeps what it gets.

use std::net::SocketAddr;

use anteroom_agent_core::batch::VlanTag;
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::sink::Sink;
use anteroom_agent_core::vnet::VnetHeader;

/// A frame that an engine sent.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Where to.
    pub(crate) port: PortId,
    /// The tag that the kernel would put on.
    pub(crate) vlan: Option<VlanTag>,
    /// From the Ethernet header on.
    pub(crate) bytes: Vec<u8>,
}

/// Keeps what it gets.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Frames in their order.
    pub(crate) frames: Vec<Frame>,
    /// Datagrams in their order, with where they are to go.
    pub(crate) datagrams: Vec<(SocketAddr, Vec<u8>)>,
}

impl Sink for Kept {
    fn frame(&mut self, port: PortId, _: VnetHeader, vlan: Option<VlanTag>, parts: &[&[u8]]) {
        self.frames.push(Frame { port, vlan, bytes: parts.concat() });
    }

    fn datagram(
        &mut self,
        to: SocketAddr,
        _: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let mut bytes = vec![0xee; capacity];
        let len = write(&mut bytes);
        assert!(len <= capacity, "{len} bytes were written into {capacity}");
        bytes.truncate(len);
        if len > 0 {
            self.datagrams.push((to, bytes));
        }
    }
}
