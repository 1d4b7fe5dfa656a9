//! Cuts super-frames into packets, and completes what the kernel left for the network card to do.
//!
//! Payload is never moved: each packet is made where its part of the payload lies, with its headers written over the
//! end of the part before. Each byte of payload is read once, for its checksum.

use anteroom_proto::verdict::DropReason;

use crate::checksum::Sum;
use crate::vnet::VnetHeader;
use crate::wire::tcp::TcpFlags;
use crate::wire::{Ipv4Packet, Transport, parse_ipv4, put, udp};

#[cfg(test)]
mod tests;

/// Longest IP and TCP headers together.
const MAX_HEADERS: usize = 120;
/// Most packets that one frame is cut into, so that none makes work without end.
pub const MAX_PACKETS: usize = 256;

/// The packets of one frame, one after another, each in the frame's own bytes.
///
/// ```
/// # use anteroom_agent_core::{gso::Packets, vnet::VnetHeader};
/// # fn send(packet: &mut [u8], vnet: &VnetHeader) {
/// let Ok(mut packets) = Packets::new(packet, 14, vnet, 1440) else { return };
/// while let Some(packet) = packets.next() {
///     let _one_packet: &[u8] = packet;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Packets<'a> {
    bytes: &'a mut [u8],
    cut: Cut,
    /// Length of IP and transport headers together; for a packet that stays whole, of all of it.
    headers: usize,
    /// Payload bytes in each packet but the last.
    size: usize,
    /// How much payload was handed out.
    at: usize,
    index: u16,
    done: bool,
}

/// What a frame is cut into.
#[derive(Debug)]
enum Cut {
    /// One packet as it is, with the places from where to sum and of the sum, if the checksum is partial.
    Whole(Option<(usize, usize)>),
    Tcp(Template),
    Udp(Template),
}

/// The headers of all packets of a frame, and the sums of what they have in common.
#[derive(Debug)]
struct Template {
    bytes: [u8; MAX_HEADERS],
    /// How many of them there are.
    len: usize,
    ip_header: usize,
    /// Of the IP header without length, id and checksum.
    ip: Sum,
    /// Of the pseudo-header without the length, and of the transport header without what changes from one packet to
    /// the next: sequence number, flags and checksum of TCP, length and checksum of UDP.
    transport: Sum,
    id: u16,
    sequence: u32,
    /// TCP's header length and flags.
    flags: [u8; 2],
}

impl<'a> Packets<'a> {
    /// Prepares to cut the packet at the beginning of `bytes`, which is `network` bytes into the frame that `vnet`
    /// speaks of. What is in `bytes` afterwards is of no more use.
    ///
    /// A TCP super-frame is cut into packets of at most `limit` bytes, IP header included. Other packets keep
    /// their size: a UDP super-frame falls into the datagrams that it was merged from. What is then over
    /// `limit` has to be cut in another way.
    ///
    /// No frame becomes more than [`MAX_PACKETS`]: TCP segments are longer then than `vnet` says, as long as `limit`
    /// lets them. A host for which that is too long takes nowhere near so much at once.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] when there is no packet, `vnet` and the packet don't fit together, or it stands for too
    /// many datagrams,
    /// [`DropReason::TooBig`] when `limit` leaves no room for payload.
    pub fn new(
        bytes: &'a mut [u8],
        network: usize,
        vnet: &VnetHeader,
        limit: usize,
    ) -> Result<Self, DropReason> {
        let malformed = DropReason::Malformed;
        let packet = parse_ipv4(bytes)?;
        let len = packet.bytes.len();
        let size = usize::from(vnet.gso_size);
        let (cut, headers, size) = match (vnet.gso_type & !VnetHeader::GSO_ECN, packet.transport) {
            (VnetHeader::GSO_NONE, _) => (Cut::Whole(partial(&packet, network, vnet)?), len, 0),
            (VnetHeader::GSO_TCPV4, Transport::Tcp { header_len, .. }) => {
                let headers = packet.header_len + header_len;
                let room = limit.saturating_sub(headers);
                if room == 0 {
                    return Err(DropReason::TooBig);
                }
                let least = len.saturating_sub(headers).div_ceil(MAX_PACKETS);
                // 0 stays what it is: an error.
                let size = if size == 0 { 0 } else { size.max(least).min(room) };
                (Cut::Tcp(Template::tcp(&packet, headers)?), headers, size)
            }
            (VnetHeader::GSO_UDP_L4, Transport::Udp) => {
                let headers = packet.header_len + udp::HEADER_LEN;
                if len.saturating_sub(headers) > size * MAX_PACKETS {
                    return Err(malformed);
                }
                (Cut::Udp(Template::udp(&packet, headers)?), headers, size)
            }
            _ => return Err(malformed),
        };
        if !matches!(cut, Cut::Whole(_)) && (size == 0 || packet.fragment.is_some()) {
            return Err(malformed);
        }
        let bytes = bytes.get_mut(..len).ok_or(malformed)?;
        Ok(Self { bytes, cut, headers, size, at: 0, index: 0, done: false })
    }

    /// Length of the longest packet that will come.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.bytes.len().min(self.headers + self.size)
    }

    /// Makes the next packet, from the IP header on, with all checksums complete. `None` when there is no more.
    #[expect(clippy::should_implement_trait, reason = "each packet lasts until the next is made")]
    pub fn next(&mut self) -> Option<&mut [u8]> {
        if self.done {
            return None;
        }
        let rest = self.bytes.get_mut(self.at..)?;
        let len = rest.len().min(self.headers + self.size);
        let last = len == rest.len();
        let packet = rest.get_mut(..len)?;
        match &self.cut {
            Cut::Whole(None) => {}
            Cut::Whole(Some((start, field))) => {
                let sum = Sum::new().bytes(packet.get(*start..)?).transport_checksum();
                put(packet, *field, &sum.to_be_bytes());
            }
            Cut::Tcp(template) => template.write_tcp(packet, self.at, self.index, last),
            Cut::Udp(template) => template.write_udp(packet, self.index),
        }
        self.at += self.size;
        self.index = self.index.wrapping_add(1);
        self.done = last;
        Some(packet)
    }
}

impl Template {
    fn tcp(packet: &Ipv4Packet<'_>, headers: usize) -> Result<Self, DropReason> {
        let mut template = Self::new(packet, headers)?;
        let at = packet.header_len;
        let bytes = &mut template.bytes;
        template.sequence =
            u32::from_be_bytes([bytes[at + 4], bytes[at + 5], bytes[at + 6], bytes[at + 7]]);
        template.flags = [bytes[at + 12], bytes[at + 13]];
        bytes[at + 4..at + 8].fill(0);
        bytes[at + 12..at + 14].fill(0);
        bytes[at + 16..at + 18].fill(0);
        template.transport = template.transport.bytes(&template.bytes[at..headers]);
        Ok(template)
    }

    fn udp(packet: &Ipv4Packet<'_>, headers: usize) -> Result<Self, DropReason> {
        let mut template = Self::new(packet, headers)?;
        let at = packet.header_len;
        template.bytes[at + 4..at + 8].fill(0);
        template.transport = template.transport.bytes(&template.bytes[at..headers]);
        Ok(template)
    }

    /// Takes over the headers, and sums the IP header and the pseudo-header.
    fn new(packet: &Ipv4Packet<'_>, headers: usize) -> Result<Self, DropReason> {
        let mut bytes = [0; MAX_HEADERS];
        let source = packet.bytes.get(..headers).ok_or(DropReason::Malformed)?;
        bytes.get_mut(..headers).ok_or(DropReason::Malformed)?.copy_from_slice(source);
        bytes[2..6].fill(0);
        bytes[10..12].fill(0);
        Ok(Self {
            ip: Sum::new().bytes(&bytes[..packet.header_len]),
            transport: Sum::new().bytes(&bytes[12..20]).word(packet.protocol.into()),
            len: headers,
            ip_header: packet.header_len,
            id: packet.id,
            sequence: 0,
            flags: [0; 2],
            bytes,
        })
    }

    /// Writes both headers in front of a part of the payload. Returns the transport header with the part behind it.
    fn write<'p>(&self, packet: &'p mut [u8], index: u16) -> &'p mut [u8] {
        // No part is longer than the packet that it was cut from.
        let (len, id) = (packet.len() as u16, self.id.wrapping_add(index));
        packet[..self.len].copy_from_slice(&self.bytes[..self.len]);
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        let sum = self.ip.word(len).word(id).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        &mut packet[self.ip_header..]
    }

    fn write_tcp(&self, packet: &mut [u8], at: usize, index: u16, last: bool) {
        let transport = self.write(packet, index);
        let len = transport.len() as u16;
        let sequence = self.sequence.wrapping_add(at as u32);
        let [offset, mut flags] = self.flags;
        if !last {
            flags &= !(TcpFlags::FIN | TcpFlags::PSH);
        }
        if at > 0 {
            flags &= !TcpFlags::CWR;
        }
        transport[4..8].copy_from_slice(&sequence.to_be_bytes());
        transport[12..14].copy_from_slice(&[offset, flags]);
        let sum = self
            .transport
            .word(len)
            .word((sequence >> 16) as u16)
            .word(sequence as u16)
            .word(u16::from_be_bytes([offset, flags]))
            .bytes(&transport[self.len - self.ip_header..])
            .transport_checksum();
        transport[16..18].copy_from_slice(&sum.to_be_bytes());
    }

    fn write_udp(&self, packet: &mut [u8], index: u16) {
        let transport = self.write(packet, index);
        let len = transport.len() as u16;
        transport[4..6].copy_from_slice(&len.to_be_bytes());
        // The length stands in the pseudo-header and in the header.
        let sum = self
            .transport
            .word(len)
            .word(len)
            .bytes(&transport[udp::HEADER_LEN..])
            .transport_checksum();
        transport[6..8].copy_from_slice(&sum.to_be_bytes());
    }
}

/// From where to sum and where the sum goes in an ordinary packet with a partial checksum.
fn partial(
    packet: &Ipv4Packet<'_>,
    network: usize,
    vnet: &VnetHeader,
) -> Result<Option<(usize, usize)>, DropReason> {
    if vnet.flags & VnetHeader::FLAG_NEEDS_CSUM == 0 {
        return Ok(None);
    }
    let start = usize::from(vnet.csum_start).checked_sub(network).ok_or(DropReason::Malformed)?;
    let field = start + usize::from(vnet.csum_offset);
    if start < packet.header_len || field + 2 > packet.bytes.len() {
        return Err(DropReason::Malformed);
    }
    Ok(Some((start, field)))
}
