//! Packet sockets.

/// A packet socket on the uplink or a device port.
pub struct PacketSocket {}
