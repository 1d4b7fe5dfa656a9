//! Builds packets and frames.

use std::net::Ipv4Addr;

use anteroom_agent_core::checksum::Sum;
use anteroom_agent_core::wire::ethernet;
use anteroom_agent_core::wire::ipv4::Header;
use anteroom_proto::mac::MacAddr;

/// Flags of a TCP segment.
pub use anteroom_agent_core::wire::tcp::TcpFlags;

/// An IPv4 packet around a payload.
#[must_use]
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        source,
        destination,
        protocol,
        ttl: 64,
        dscp_ecn: 0,
        id: 7,
        payload_len: payload.len(),
    };
    let mut packet = header.to_bytes().map(Vec::from).unwrap_or_default();
    packet.extend_from_slice(payload);
    packet
}

/// One end of a packet: address and port.
pub type At = (Ipv4Addr, u16);

/// A UDP datagram in an IPv4 packet.
#[must_use]
pub fn udp(source: At, destination: At, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(usize::from(len));
    bytes.extend(source.1.to_be_bytes());
    bytes.extend(destination.1.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend_from_slice(payload);
    let sum = Sum::pseudo_ipv4(source.0, destination.0, 17, len).bytes(&bytes).transport_checksum();
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    ipv4(source.0, destination.0, 17, &bytes)
}

/// A TCP segment in an IPv4 packet. A SYN announces an MSS of 1,460.
#[must_use]
pub fn tcp(source: At, destination: At, flags: u8, payload: &[u8]) -> Vec<u8> {
    let options: &[u8] = if flags & TcpFlags::SYN != 0 { &[2, 4, 0x05, 0xb4] } else { &[] };
    let mut bytes = Vec::new();
    bytes.extend(source.1.to_be_bytes());
    bytes.extend(destination.1.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    let words = u8::try_from((20 + options.len()) / 4).unwrap_or(5);
    bytes.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend_from_slice(options);
    bytes.extend_from_slice(payload);
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let sum = Sum::pseudo_ipv4(source.0, destination.0, 6, len).bytes(&bytes).checksum();
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4(source.0, destination.0, 6, &bytes)
}

/// An ICMP echo, or its reply, in an IPv4 packet.
#[must_use]
pub fn echo(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    reply: bool,
    id: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![if reply { 0 } else { 8 }, 0, 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend_from_slice(payload);
    let sum = Sum::new().bytes(&bytes).checksum();
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(source, destination, 1, &bytes)
}

/// A frame around a packet.
#[must_use]
pub fn frame(destination: MacAddr, source: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet::header(destination, source, ethertype).to_vec();
    frame.extend_from_slice(payload);
    frame
}
