//! What a packet must be like to be merged with others of its flow.

use crate::checksum::Sum;
use crate::wire::tcp::TcpFlags;
use crate::wire::{FiveTuple, Ipv4Packet, Transport, be16, ipv4, udp};

/// Ports of DHCP, whose messages the engine reads one by one.
const DHCP: [u16; 2] = [67, 68];

/// The bit beside "don't fragment" that nothing may set.
const RESERVED: u16 = 0x8000;

/// Flags that a segment may bear and stay part of a stream: all others say something that concerns one packet.
const PLAIN: u8 = TcpFlags::ACK | TcpFlags::PSH | ECE;

/// ECN's echo. It stands in every segment until it is answered, so equal flags are enough.
const ECE: u8 = 0x40;

/// A packet with payload that others of its flow may follow in one super-frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its flow.
    pub tuple: FiveTuple,
    /// Length of IP and transport header together.
    pub(super) headers: usize,
    /// Length of the payload; never 0.
    pub(super) payload: usize,
    /// Whether nothing may follow in the same super-frame.
    pub(super) last: bool,
}

impl Segment {
    /// Looks at a packet. `None`: it goes by itself. Whether its checksum is right isn't looked at yet.
    #[must_use]
    pub fn of(packet: &Ipv4Packet<'_>) -> Option<Self> {
        let word = be16(packet.bytes, 6)?;
        if packet.fragment.is_some()
            || packet.header_len != ipv4::MIN_HEADER_LEN
            || word & RESERVED != 0
        {
            return None;
        }
        let transport = packet.payload();
        let (header, last) = match packet.transport {
            Transport::Tcp { flags, header_len } => {
                let reserved = transport.get(12)? & 0x0f;
                let plain = flags.has(TcpFlags::ACK) && flags.0 & !PLAIN == 0;
                // Both zeros of one's complement: cutting again may choose the other one.
                let sum = be16(transport, 16)?;
                if reserved != 0 || !plain || sum == 0 || sum == 0xffff {
                    return None;
                }
                (header_len, flags.has(TcpFlags::PSH))
            }
            Transport::Udp => {
                let len = usize::from(be16(transport, 4)?);
                let dhcp = [packet.source_port, packet.destination_port]
                    .iter()
                    .any(|port| DHCP.contains(port));
                // 0 means that it has no checksum; cutting again would give it one.
                if len != transport.len() || dhcp || be16(transport, 6)? == 0 {
                    return None;
                }
                (udp::HEADER_LEN, false)
            }
            _ => return None,
        };
        let payload = transport.len().checked_sub(header).filter(|len| *len > 0)?;
        Some(Self { tuple: packet.tuple(), headers: packet.header_len + header, payload, last })
    }

    /// Whether it is TCP; UDP otherwise.
    pub(super) const fn is_tcp(&self) -> bool {
        self.tuple.protocol == ipv4::TCP
    }
}

/// Whether the transport checksum of a packet without IP options is right.
pub(super) fn is_sound(packet: &[u8], tuple: &FiveTuple) -> bool {
    let transport = packet.get(ipv4::MIN_HEADER_LEN..).unwrap_or_default();
    let Ok(len) = u16::try_from(transport.len()) else { return false };
    let pseudo = Sum::pseudo_ipv4(tuple.source, tuple.destination, tuple.protocol, len);
    pseudo.bytes(transport).checksum() == 0
}
