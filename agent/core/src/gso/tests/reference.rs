//! Cutting in the plainest way: every packet a copy, every checksum summed from the beginning.

use super::*;
use crate::checksum;
use crate::wire::{Ipv4Packet, Transport, put, udp};

/// The packets of one frame, one after another.
#[derive(Debug, Clone)]
pub(super) struct Packets<'a> {
    packet: &'a [u8],
    cut: Cut,
    /// Length of IP and transport headers together; for a packet that stays whole, of all of it.
    headers: usize,
    ip_header: usize,
    /// Payload bytes in each packet but the last.
    size: usize,
    /// How much payload was written.
    at: usize,
    index: u16,
    done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// One packet as it is, with the places from where to sum and of the sum, if the checksum is partial.
    Whole(Option<(usize, usize)>),
    Tcp,
    Udp,
}

impl<'a> Packets<'a> {
    /// Prepares to cut `packet`, which begins `network` bytes into the frame that `vnet` speaks of.
    ///
    /// A TCP super-frame is cut into packets of at most `limit` bytes, IP header included. Other packets keep
    /// their size: a UDP super-frame falls into the datagrams that it was merged from. What is then over
    /// `limit` is for [`crate::fragment::cut`].
    ///
    /// # Errors
    /// [`DropReason::Malformed`] when `vnet` and the packet don't fit together, [`DropReason::TooBig`] when
    /// `limit` leaves no room for payload.
    pub(super) fn new(
        packet: &Ipv4Packet<'a>,
        network: usize,
        vnet: &VnetHeader,
        limit: usize,
    ) -> Result<Self, DropReason> {
        let whole = Self {
            packet: packet.bytes,
            cut: Cut::Whole(None),
            headers: packet.bytes.len(),
            ip_header: packet.header_len,
            size: 0,
            at: 0,
            index: 0,
            done: false,
        };
        let size = usize::from(vnet.gso_size);
        let (cut, transport_header) = match (vnet.gso_type & !VnetHeader::GSO_ECN, packet.transport)
        {
            (VnetHeader::GSO_NONE, _) => {
                return Ok(Self { cut: Cut::Whole(partial(packet, network, vnet)?), ..whole });
            }
            (VnetHeader::GSO_TCPV4, Transport::Tcp { header_len, .. }) => (Cut::Tcp, header_len),
            (VnetHeader::GSO_UDP_L4, Transport::Udp) => (Cut::Udp, udp::HEADER_LEN),
            _ => return Err(DropReason::Malformed),
        };
        let headers = packet.header_len + transport_header;
        if size == 0 || packet.fragment.is_some() || headers > packet.bytes.len() {
            return Err(DropReason::Malformed);
        }
        let size = match cut {
            Cut::Tcp => size.min(limit.saturating_sub(headers)),
            _ => size,
        };
        if size == 0 {
            return Err(DropReason::TooBig);
        }
        Ok(Self { cut, headers, size, ..whole })
    }

    pub(super) fn longest(&self) -> usize {
        self.packet.len().min(self.headers + self.size)
    }

    /// Writes the next packet, from the IP header on, with all checksums complete. Returns its length; `None`
    /// when there is no more, or `out` is shorter than [`Self::longest`].
    pub(super) fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.done {
            return None;
        }
        let payload = self.packet.get(self.headers + self.at..)?;
        let part = &payload[..payload.len().min(self.size)];
        let len = self.headers + part.len();
        let out = out.get_mut(..len)?;
        out[..self.headers].copy_from_slice(&self.packet[..self.headers]);
        out[self.headers..].copy_from_slice(part);
        let last = part.len() == payload.len();
        match self.cut {
            Cut::Whole(None) => {}
            Cut::Whole(Some((start, field))) => {
                let sum = Sum::new().bytes(&out[start..]).transport_checksum();
                put(out, field, &sum.to_be_bytes());
            }
            Cut::Tcp | Cut::Udp => self.mend(out, last),
        }
        self.at += part.len();
        self.index = self.index.wrapping_add(1);
        self.done = last;
        Some(len)
    }

    /// Makes the headers of a cut packet its own.
    fn mend(&self, out: &mut [u8], last: bool) {
        let word = |at: usize| u16::from_be_bytes([self.packet[at], self.packet[at + 1]]);
        // Lengths fit: no part is longer than the packet that it was cut from.
        put(out, 2, &(out.len() as u16).to_be_bytes());
        put(out, 4, &word(4).wrapping_add(self.index).to_be_bytes());
        put(out, 10, &[0, 0]);
        let sum = checksum::checksum(&out[..self.ip_header]);
        put(out, 10, &sum.to_be_bytes());

        let protocol = self.packet[9];
        let (addresses, len) = (Sum::new().bytes(&self.packet[12..20]), out.len() - self.ip_header);
        let pseudo = addresses.word(u16::from(protocol)).word(len as u16);
        let transport = &mut out[self.ip_header..];
        let field = if self.cut == Cut::Tcp {
            let sequence =
                u32::from(word(self.ip_header + 4)) << 16 | u32::from(word(self.ip_header + 6));
            put(transport, 4, &sequence.wrapping_add(self.at as u32).to_be_bytes());
            if !last {
                transport[13] &= !(TcpFlags::FIN | TcpFlags::PSH);
            }
            if self.at > 0 {
                transport[13] &= !TcpFlags::CWR;
            }
            16
        } else {
            put(transport, 4, &(len as u16).to_be_bytes());
            6
        };
        put(transport, field, &[0, 0]);
        let sum = pseudo.bytes(transport).transport_checksum();
        put(transport, field, &sum.to_be_bytes());
    }
}
