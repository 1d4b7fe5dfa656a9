//! Messages between gateways about sizes: parts of packets, probes, and their answers.
//!
//! They travel as all messages between gateways do, as UDP over IPv6 between overlay addresses inside the tunnel, to the
//! one reserved port. Their first byte is none of the versions that a [message](crate::peer::message) may have. They
//! bear no UDP checksum: the tunnel authenticates every byte (RFC 6935 has the case).

use std::net::Ipv6Addr;

use anteroom_proto::overlay::GATEWAY_PORT;
use anteroom_proto::verdict::DropReason;

use crate::wire::{array, be16, ipv4, ipv6, put, udp};

const PART: u8 = 0xf0;
const PROBE: u8 = 0xf1;
const ANSWER: u8 = 0xf2;

/// Length of what precedes a part's bytes or a probe's padding, without IPv6 and UDP headers.
const HEAD: usize = 12;
/// What cutting adds to each part: the IPv6 and UDP headers and the part's own.
pub const PART_OVERHEAD: usize = ipv6::HEADER_LEN + udp::HEADER_LEN + HEAD;
/// Shortest probe, and the length of every answer.
pub const LEAST_PROBE: usize = PART_OVERHEAD;
/// Bytes of the packet that a part must have room for: below that, a path carries nothing worth the name. Every path
/// that is used has more.
pub(super) const LEAST_ROOM: usize = 400;
/// Most parts of one packet.
pub const MAX_PARTS: usize = 192;

const _: () = assert!((u16::MAX as usize).div_ceil(LEAST_ROOM) <= MAX_PARTS);

/// One part of a packet that was cut. All parts but the last have the same length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// Tells the packets of one sender apart.
    pub id: u32,
    /// Length of the whole packet.
    pub total: u16,
    /// Length of each part but the last, which may be shorter.
    pub stride: u16,
    /// Which part it is.
    pub index: u16,
    /// Its bytes.
    pub bytes: &'a [u8],
}

impl Part<'_> {
    /// How many parts the packet has.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.total).div_ceil(usize::from(self.stride.max(1)))
    }

    /// Where it begins in the packet.
    #[must_use]
    pub fn offset(&self) -> usize {
        usize::from(self.index) * usize::from(self.stride)
    }

    /// Whether its numbers fit together and with its length as they do where a packet is cut: there are at least two
    /// parts and no more than the narrowest path asks for, all about equal, this is one of them, and it is as long as it
    /// has to be. So no part stands for a packet that is several hundred times as long.
    fn is_sound(&self) -> bool {
        let (total, stride, count) =
            (usize::from(self.total), usize::from(self.stride), self.count());
        stride > 0
            && (2..=total.div_ceil(LEAST_ROOM).max(2)).contains(&count)
            && stride == total.div_ceil(count)
            && usize::from(self.index) < count
            && self.bytes.len() == stride.min(total - self.offset())
    }
}

/// A message about sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeMessage<'a> {
    /// A part of a packet.
    Part(Part<'a>),
    /// Asks whether a packet of this one's size gets through.
    Probe {
        /// Chosen by who asks.
        nonce: u64,
    },
    /// It does.
    Answer {
        /// The probe's.
        nonce: u64,
    },
}

/// Reads a message about sizes out of an IPv6 packet between two gateways, `source` and `destination`. `Ok(None)`: it
/// is about something else.
///
/// # Errors
/// [`DropReason::Malformed`] when it is one, but its numbers don't fit together.
pub fn read(
    packet: &[u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> Result<Option<SizeMessage<'_>>, DropReason> {
    let malformed = DropReason::Malformed;
    let packet = ipv6::parse_ipv6(packet)?;
    if (packet.source, packet.destination) != (source, destination)
        || packet.next_header != ipv4::UDP
    {
        return Ok(None);
    }
    let header = udp::parse_udp(packet.payload)?;
    let Some(body) = packet.payload.get(udp::HEADER_LEN..) else { return Err(malformed) };
    let ours = (header.source_port, header.destination_port) == (GATEWAY_PORT, GATEWAY_PORT);
    let kind = body.first().copied().filter(|kind| matches!(*kind, PART | PROBE | ANSWER));
    let Some(kind) = kind.filter(|_| ours) else { return Ok(None) };
    let whole = usize::from(header.len) == packet.payload.len();
    if !whole || header.checksum != 0 || body.get(1) != Some(&0) {
        return Err(malformed);
    }
    let nonce = || array(body, 4).map(u64::from_be_bytes).ok_or(malformed);
    Ok(Some(match kind {
        PART => {
            let word = |at| be16(body, at).ok_or(malformed);
            let part = Part {
                index: word(2)?,
                total: word(4)?,
                stride: word(6)?,
                id: array(body, 8).map(u32::from_be_bytes).ok_or(malformed)?,
                bytes: body.get(HEAD..).ok_or(malformed)?,
            };
            if !part.is_sound() {
                return Err(malformed);
            }
            SizeMessage::Part(part)
        }
        PROBE => SizeMessage::Probe { nonce: nonce()? },
        _ => SizeMessage::Answer { nonce: nonce()? },
    }))
}

/// Writes IPv6 and UDP headers for a message of `len` bytes in all, headers included, and its first bytes. `class` is
/// the traffic class: DSCP and ECN.
fn headers(out: &mut [u8], len: usize, (source, destination): (Ipv6Addr, Ipv6Addr), class: u8) {
    // No message is longer than a packet.
    let payload = (len.saturating_sub(ipv6::HEADER_LEN) as u16).to_be_bytes();
    put(out, 0, &[0x60 | class >> 4, class << 4, 0, 0]);
    put(out, 4, &payload);
    put(out, 6, &[ipv4::UDP, 64]);
    put(out, 8, &source.octets());
    put(out, 24, &destination.octets());
    let at = ipv6::HEADER_LEN;
    put(out, at, &GATEWAY_PORT.to_be_bytes());
    put(out, at + 2, &GATEWAY_PORT.to_be_bytes());
    put(out, at + 4, &payload);
    put(out, at + 6, &[0, 0]);
}

/// A probe of `len` bytes in all (at least [`LEAST_PROBE`]), from one overlay address to another.
#[must_use]
pub fn probe(ends: (Ipv6Addr, Ipv6Addr), nonce: u64, len: usize) -> Vec<u8> {
    with_nonce(ends, PROBE, nonce, len.clamp(LEAST_PROBE, usize::from(u16::MAX)))
}

/// The answer to a probe.
#[must_use]
pub fn answer(ends: (Ipv6Addr, Ipv6Addr), nonce: u64) -> Vec<u8> {
    with_nonce(ends, ANSWER, nonce, LEAST_PROBE)
}

fn with_nonce(ends: (Ipv6Addr, Ipv6Addr), kind: u8, nonce: u64, len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    headers(&mut packet, len, ends, 0);
    let at = ipv6::HEADER_LEN + udp::HEADER_LEN;
    put(&mut packet, at, &[kind, 0, 0, 0]);
    put(&mut packet, at + 4, &nonce.to_be_bytes());
    packet
}

/// Writes a part with all its headers into `out`, which has [`PART_OVERHEAD`] more bytes than the part, or more.
/// Returns the length.
pub(super) fn write_part(
    out: &mut [u8],
    ends: (Ipv6Addr, Ipv6Addr),
    class: u8,
    part: &Part<'_>,
) -> usize {
    let len = PART_OVERHEAD + part.bytes.len();
    headers(out, len, ends, class);
    let at = ipv6::HEADER_LEN + udp::HEADER_LEN;
    put(out, at, &[PART, 0]);
    put(out, at + 2, &part.index.to_be_bytes());
    put(out, at + 4, &part.total.to_be_bytes());
    put(out, at + 6, &part.stride.to_be_bytes());
    put(out, at + 8, &part.id.to_be_bytes());
    put(out, at + HEAD, part.bytes);
    len
}
