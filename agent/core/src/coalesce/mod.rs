//! Merges packets of a flow that came out of a tunnel one behind the other into super-frames, so that verdict, port
//! and the device's side of the kernel deal with one frame in place of up to 64.
//!
//! What is merged must fall apart again into the very packets that came, whoever cuts it: the kernel, a network card
//! or [`crate::gso`]. So packets are merged only where all that isn't written anew by cutting is equal, lengths and
//! sequence numbers follow each other, and the checksum was right: a super-frame's is computed anew by whoever cuts
//! it, and a device must be able to find a packet that was broken on its way. One thing isn't kept: packets that say
//! "don't fragment" and all bear the same identification leave with counted ones, which mean nothing on packets that
//! are never fragmented (RFC 6864).
//!
//! Packets of a flow keep their order: whatever doesn't fit behind those that are held lets them go first.

mod segment;
#[cfg(test)]
mod tests;

use crate::checksum::{self, Sum};
use crate::peer::{PeerSlot, SCRATCH_LEN};
use crate::vnet::VnetHeader;
use crate::wire::tcp::TcpFlags;
use crate::wire::{FiveTuple, be16, be32, ipv4, put};

pub use segment::Segment;

/// Most packets in one super-frame.
pub const MAX_PACKETS: usize = 64;
/// Most flows of which packets are held at once.
const MAX_RUNS: usize = 16;
/// Longest IP packet.
const MAX_LEN: usize = 65_535;
/// Longest headers of what is merged: IPv4 without options, TCP with all it can have.
const MAX_HEADERS: usize = ipv4::MIN_HEADER_LEN + 60;
/// Room for opened packets: three datagram buffers full, and small enough to stay in a core's cache.
const ARENA: usize = 3 * SCRATCH_LEN;

/// Where an opened packet lies in [`Held`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: usize,
    len: usize,
}

impl Span {
    /// Only its first `len` bytes.
    #[must_use]
    pub fn shortened(self, len: usize) -> Self {
        Self { len: self.len.min(len), ..self }
    }
}

/// How the identifications of a run's packets follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// There is one packet only.
    One,
    /// Each is one higher than that before.
    Counted,
    /// All are the same, on packets that are never fragmented.
    Fixed,
}

/// Packets of one flow that one super-frame can stand for, or one packet.
#[derive(Debug)]
pub struct Run {
    peer: PeerSlot,
    first: Segment,
    parts: Vec<Span>,
    /// Payload in all.
    payload: usize,
    /// Length of all packets, headers included.
    bytes: usize,
    ids: Ids,
    /// Whether the first packet's checksum was found right.
    sound: bool,
    /// Whether more may follow.
    open: bool,
}

impl Run {
    /// The tunnel that it came through.
    #[must_use]
    pub fn peer(&self) -> PeerSlot {
        self.peer
    }

    /// How many packets it has.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.parts.len()
    }

    /// Their length in all, each with its headers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where its packets lie, in their order.
    #[must_use]
    pub fn parts(&self) -> &[Span] {
        &self.parts
    }

    /// How the next packet's identification would follow, if the packet belongs behind those held.
    fn takes(&self, arena: &[u8], next: &[u8], segment: &Segment) -> Option<Ids> {
        let fits = self.open
            && self.parts.len() < MAX_PACKETS
            && segment.headers == self.first.headers
            && segment.payload <= self.first.payload
            && self.first.headers + self.payload + segment.payload <= MAX_LEN;
        if !fits {
            return None;
        }
        let first = slice(arena, *self.parts.first()?);
        let same = |range: std::ops::Range<usize>| first.get(range.clone()) == next.get(range);
        // Type of service; flags; time to live. Protocol and addresses are the flow's.
        if !(same(1..2) && same(6..9)) {
            return None;
        }
        let (id, known) = (be16(next, 4)?, be16(first, 4)?);
        let whole = be16(first, 6)? & ipv4::DONT_FRAGMENT != 0;
        // There are at most 64 of them.
        let counted = id == known.wrapping_add(self.parts.len() as u16);
        let ids = match self.ids {
            Ids::One | Ids::Counted if counted => Ids::Counted,
            Ids::One | Ids::Fixed if whole && id == known => Ids::Fixed,
            _ => return None,
        };
        if segment.is_tcp() {
            let at = ipv4::MIN_HEADER_LEN;
            let sequence = be32(first, at + 4)?.wrapping_add(self.payload as u32);
            let push = TcpFlags::PSH;
            let follows = be32(next, at + 4)? == sequence
                // Acknowledgement and header length; window; urgent pointer and options.
                && same(at + 8..at + 13)
                && first.get(at + 13)? & !push == next.get(at + 13)? & !push
                && same(at + 14..at + 16)
                && same(at + 18..self.first.headers);
            if !follows {
                return None;
            }
        }
        Some(ids)
    }
}

/// Opened packets of one batch, and the runs that they make.
#[derive(Debug, Default)]
pub struct Held {
    arena: Vec<u8>,
    used: usize,
    /// In the order in which they began.
    runs: Vec<Run>,
    /// Lists to be used again.
    spare: Vec<Vec<Span>>,
}

/// IP and transport header of a super-frame, and what the kernel is told about it.
#[derive(Debug, Clone, Copy)]
pub struct Merged {
    bytes: [u8; MAX_HEADERS],
    len: usize,
    /// For a frame whose Ethernet header has 14 bytes.
    pub vnet: VnetHeader,
}

impl Merged {
    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Held {
    /// Room for a packet of up to `wanted` bytes, or more. `None` when what is held has to go first.
    pub fn room(&mut self, wanted: usize) -> Option<&mut [u8]> {
        if self.arena.is_empty() {
            self.arena.resize(ARENA, 0);
        }
        self.arena.get_mut(self.used..).filter(|room| room.len() >= wanted)
    }

    /// Takes note of a packet that was written to the beginning of [`Self::room`]. It stays until [`Self::clear`].
    pub fn keep(&mut self, len: usize) -> Span {
        let span = Span { start: self.used, len };
        self.used = self.used.saturating_add(len).min(self.arena.len());
        span
    }

    /// A packet.
    #[must_use]
    pub fn packet(&self, span: Span) -> &[u8] {
        slice(&self.arena, span)
    }

    /// A packet, to be changed.
    pub fn packet_mut(&mut self, span: Span) -> &mut [u8] {
        self.arena.get_mut(span.start..span.start + span.len).unwrap_or_default()
    }

    /// Holds a packet back: behind others of its flow, or as the first of a new run. Gives back what has to go at
    /// once: an older run.
    pub fn hold(&mut self, peer: PeerSlot, span: Span, segment: &Segment) -> Option<Run> {
        let Self { arena, runs, .. } = self;
        let next = slice(arena, span);
        let found = runs.iter().rposition(|run| run.is(peer, &segment.tuple));
        let mut sound = false;
        if let Some(run) = found.and_then(|at| runs.get_mut(at))
            && let Some(ids) = run.takes(arena, next, segment)
        {
            let first = run.parts.first().map(|first| slice(arena, *first)).unwrap_or_default();
            run.sound = run.sound || segment::is_sound(first, &segment.tuple);
            sound = segment::is_sound(next, &segment.tuple);
            if run.sound && sound {
                run.parts.push(span);
                run.payload += segment.payload;
                run.bytes += span.len;
                run.ids = ids;
                run.open = !segment.last && segment.payload == run.first.payload;
                return None;
            }
        }
        let gone = found.or((runs.len() >= MAX_RUNS).then_some(0)).map(|at| runs.remove(at));
        let mut parts = self.spare.pop().unwrap_or_default();
        parts.push(span);
        self.runs.push(Run {
            peer,
            first: *segment,
            parts,
            payload: segment.payload,
            bytes: span.len,
            ids: Ids::One,
            sound,
            open: !segment.last,
        });
        gone
    }

    /// Takes out what is held of a flow, because a packet of it goes by itself. One that has no ports may belong to
    /// any flow between its ends.
    pub fn take_before(
        &mut self,
        peer: PeerSlot,
        tuple: &FiveTuple,
        has_ports: bool,
    ) -> Option<Run> {
        let before = |run: &Run| {
            let held = &run.first.tuple;
            let ends = (held.source, held.destination) == (tuple.source, tuple.destination);
            run.peer == peer && ends && (!has_ports || held == tuple)
        };
        let at = self.runs.iter().position(before)?;
        Some(self.runs.remove(at))
    }

    /// Takes out the oldest run.
    pub fn take(&mut self) -> Option<Run> {
        (!self.runs.is_empty()).then(|| self.runs.remove(0))
    }

    /// Gives a run's room back. Its packets stay until [`Self::clear`].
    pub fn forget(&mut self, run: Run) {
        let mut parts = run.parts;
        parts.clear();
        if self.spare.len() < MAX_RUNS {
            self.spare.push(parts);
        }
    }

    /// Forgets all packets. Runs that weren't taken out are lost.
    pub fn clear(&mut self) {
        self.used = 0;
        while let Some(run) = self.runs.pop() {
            self.forget(run);
        }
    }

    /// The headers of the super-frame that stands for a run of more than one packet.
    #[must_use]
    pub fn merge(&self, run: &Run) -> Option<Merged> {
        let first = self.packet(*run.parts.first()?);
        let last = self.packet(*run.parts.last()?);
        let (len, at) = (run.first.headers, ipv4::MIN_HEADER_LEN);
        let mut bytes = [0; MAX_HEADERS];
        bytes.get_mut(..len)?.copy_from_slice(first.get(..len)?);
        let whole = u16::try_from(len + run.payload).ok()?;
        put(&mut bytes, 2, &whole.to_be_bytes());
        put(&mut bytes, 10, &[0, 0]);
        let sum = checksum::checksum(bytes.get(..at)?);
        put(&mut bytes, 10, &sum.to_be_bytes());

        let FiveTuple { source, destination, protocol, .. } = run.first.tuple;
        let transport = whole - at as u16;
        let (kind, field) = if run.first.is_tcp() {
            bytes[at + 13] |= last.get(at + 13)? & TcpFlags::PSH;
            (VnetHeader::GSO_TCPV4, 16)
        } else {
            put(&mut bytes, at + 4, &transport.to_be_bytes());
            (VnetHeader::GSO_UDP_L4, 6)
        };
        let pseudo = Sum::pseudo_ipv4(source, destination, protocol, transport).fold();
        put(&mut bytes, at + field, &pseudo.to_be_bytes());
        let vnet = VnetHeader {
            flags: VnetHeader::FLAG_NEEDS_CSUM,
            gso_type: kind,
            hdr_len: (ETHERNET + len) as u16,
            gso_size: u16::try_from(run.first.payload).ok()?,
            csum_start: (ETHERNET + at) as u16,
            csum_offset: field as u16,
        };
        Some(Merged { bytes, len, vnet })
    }

    /// The payload of a run's packet.
    #[must_use]
    pub fn payload(&self, run: &Run, part: Span) -> &[u8] {
        self.packet(part).get(run.first.headers..).unwrap_or_default()
    }
}

impl Run {
    fn is(&self, peer: PeerSlot, tuple: &FiveTuple) -> bool {
        self.peer == peer && self.first.tuple == *tuple
    }
}

/// Length of an Ethernet header without tags.
const ETHERNET: usize = 14;

fn slice(arena: &[u8], span: Span) -> &[u8] {
    arena.get(span.start..span.start + span.len).unwrap_or_default()
}
