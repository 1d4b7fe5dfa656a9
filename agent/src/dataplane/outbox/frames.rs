//! Frames on their way out of ports.

use anteroom_agent_core::batch::VlanTag;
use anteroom_agent_core::checksum;
use anteroom_agent_core::gso::Packets;
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_agent_core::wire::parse_ethernet;
use anteroom_proto::verdict::DropReason;
use zerocopy::IntoBytes;

use super::{PortQueue, RECORDS};
use crate::net::packet::{MAX_FRAME, MAX_PARTS, PacketSocket};
use crate::net::sys::{Sent, give_back};

/// Room for frames between two flushes, in bytes. A full room is flushed at once; nothing is lost for its size.
const ROOM: usize = 1 << 20;

/// Frames of at least this many bytes, in parts of at least so many on average, go to the kernel from where they are:
/// copying them together would cost more than a system call each.
const GATHERED: usize = 8 * 1024;
const GATHERED_PART: usize = 512;

/// What of the room stays when it is given back.
const KEPT: usize = 64 << 10;

const ETHERNET: usize = 14;
const ADDRESSES: usize = 12;
const TAG: usize = 4;

/// Frames between two flushes, of all ports.
pub(super) struct Frames {
    bytes: Vec<u8>,
    used: usize,
    records: Vec<Record>,
    /// A super-frame that is cut here, or has parts too small to be sent from where they are.
    whole: Vec<u8>,
}

struct Record {
    port: PortId,
    start: usize,
    end: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            bytes: vec![0; ROOM],
            used: 0,
            records: Vec::with_capacity(RECORDS),
            whole: Vec::new(),
        }
    }
}

impl Frames {
    /// Hands everything to the kernel.
    pub(super) fn flush(&mut self, ports: &mut [PortQueue]) {
        if self.records.is_empty() {
            return;
        }
        for (index, queue) in ports.iter_mut().enumerate() {
            if queue.pending == 0 {
                continue;
            }
            queue.pending = 0;
            let Some(socket) = &queue.socket else { continue };
            let mut outcome = Sent::default();
            let frames = self
                .records
                .iter()
                .filter(|record| record.port.index() == index)
                .map(|record| &self.bytes[record.start..record.end]);
            socket.send(frames, &mut outcome);
            queue.count(&outcome);
        }
        self.records.clear();
        self.used = 0;
    }

    /// Gives back the memory that a load made it touch. Nothing may be waiting.
    pub(super) fn shrink(&mut self) {
        give_back(self.bytes.get_mut(KEPT..).unwrap_or_default());
    }

    /// Takes a frame for `port`, which `parts` make. A large one goes to the kernel at once, behind those that wait;
    /// a super-frame that the port can't take goes out as the packets that it stands for.
    pub(super) fn put(
        &mut self,
        ports: &mut [PortQueue],
        port: PortId,
        vnet: VnetHeader,
        vlan: Option<VlanTag>,
        parts: &[&[u8]],
    ) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let Some(queue) = ports.get_mut(port.index()) else { return };
        let headed = queue.socket.as_ref().is_none_or(PacketSocket::super_frames);
        let udp = vnet.gso_type == VnetHeader::GSO_UDP_L4;
        if vnet.is_super_frame() && length <= MAX_FRAME && (!headed || (udp && queue.cuts_udp)) {
            return self.cut(ports, port, vnet, vlan, parts);
        }
        let large = length >= GATHERED && length >= parts.len() * GATHERED_PART;
        let whole = vlan.is_none() && parts.len() <= MAX_PARTS && length <= MAX_FRAME;
        if headed && whole && (udp || large) && queue.socket.is_some() {
            return self.gather(ports, port, vnet, parts);
        }
        self.queue(ports, port, vnet, vlan, (parts, length));
    }

    /// Sends a frame from where its parts are.
    fn gather(
        &mut self,
        ports: &mut [PortQueue],
        port: PortId,
        mut vnet: VnetHeader,
        parts: &[&[u8]],
    ) {
        self.flush(ports);
        let Some(queue) = ports.get_mut(port.index()) else { return };
        let Some(socket) = &queue.socket else { return };
        vnet.hdr_len = header_length(&vnet, parts);
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut outcome = Sent::default();
        if length < parts.len() * GATHERED_PART {
            self.whole.clear();
            parts.iter().for_each(|part| self.whole.extend_from_slice(part));
            socket.send_parts(&vnet, &[&self.whole], &mut outcome);
        } else {
            socket.send_parts(&vnet, parts, &mut outcome);
        }
        let refused = outcome.failed > 0 && !outcome.lost;
        if refused && vnet.gso_type == VnetHeader::GSO_UDP_L4 {
            tracing::info!(%port, "the interface takes no UDP super-frames; they are cut here");
            queue.cuts_udp = true;
            return self.cut(ports, port, vnet, None, parts);
        }
        outcome.refusals_stand_for(packets(&vnet, length));
        queue.count(&outcome);
    }

    /// Sends the packets of a super-frame one by one.
    fn cut(
        &mut self,
        ports: &mut [PortQueue],
        port: PortId,
        vnet: VnetHeader,
        vlan: Option<VlanTag>,
        parts: &[&[u8]],
    ) {
        let mut whole = std::mem::take(&mut self.whole);
        whole.clear();
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        let at = parse_ethernet(&whole, None).map(|frame| frame.payload_offset);
        let cut = at.and_then(|at| {
            let (header, packet) = whole.split_at_mut_checked(at).ok_or(DropReason::Malformed)?;
            Ok((header, Packets::new(packet, at, &vnet, MAX_FRAME)?))
        });
        if let Ok((header, mut packets)) = cut {
            while let Some(packet) = packets.next() {
                let frame = ([&*header, &*packet], header.len() + packet.len());
                self.queue(ports, port, VnetHeader::default(), vlan, (&frame.0, frame.1));
            }
        } else if let Some(queue) = ports.get_mut(port.index()) {
            queue.counters.egress_failed += 1;
        }
        self.whole = whole;
    }

    /// Keeps a frame for the next flush.
    fn queue(
        &mut self,
        ports: &mut [PortQueue],
        port: PortId,
        mut vnet: VnetHeader,
        vlan: Option<VlanTag>,
        (parts, length): (&[&[u8]], usize),
    ) {
        let whole = VnetHeader::LEN + TAG + length;
        if self.used + whole > ROOM || self.records.len() == RECORDS {
            self.flush(ports);
        }
        let Some(queue) = ports.get_mut(port.index()) else { return };
        let Some(socket) = &queue.socket else {
            queue.counters.egress_failed += 1;
            return;
        };
        let headed = socket.super_frames();
        if !(ETHERNET..=MAX_FRAME).contains(&length) || (vnet.is_super_frame() && !headed) {
            queue.counters.egress_failed += 1;
            return;
        }

        let start = self.used;
        let frame = start + if headed { VnetHeader::LEN } else { 0 };
        let mut end = frame + if vlan.is_some() { TAG } else { 0 };
        for part in parts {
            self.bytes[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        if let Some(tag) = vlan {
            self.bytes.copy_within(frame + TAG..frame + TAG + ADDRESSES, frame);
            let at = frame + ADDRESSES;
            self.bytes[at..at + 2].copy_from_slice(&tag.protocol.to_be_bytes());
            self.bytes[at + 2..at + TAG].copy_from_slice(&tag.control.to_be_bytes());
            if vnet.flags & VnetHeader::FLAG_NEEDS_CSUM != 0 {
                vnet.csum_start = vnet.csum_start.saturating_add(TAG as u16);
            }
        }
        let bytes = &mut self.bytes[frame..end];
        if headed {
            vnet.hdr_len = header_length(&vnet, &[bytes]);
            self.bytes[start..frame].copy_from_slice(vnet.as_bytes());
        } else if checksum::complete(bytes, &vnet).is_err() {
            queue.counters.egress_failed += 1;
            return;
        }
        self.records.push(Record { port, start, end });
        self.used = end;
        queue.pending += 1;
    }
}

/// How much of a frame the kernel is to keep in one piece: the headers of a super-frame. What it said on receipt is
/// the piece that it had then, which can be the whole frame.
fn header_length(vnet: &VnetHeader, parts: &[&[u8]]) -> u16 {
    if !vnet.is_super_frame() {
        return 0;
    }
    let transport = usize::from(vnet.csum_start);
    let length = match vnet.gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_UDP_L4 => 8,
        _ => byte(parts, transport + 12).map_or(20, |byte| usize::from(byte >> 4) * 4),
    };
    let whole = parts.iter().map(|part| part.len()).sum();
    u16::try_from((transport + length).min(whole)).unwrap_or(u16::MAX)
}

/// How many packets a frame of so many bytes stands for. Its `hdr_len` is that of [`header_length`].
fn packets(vnet: &VnetHeader, length: usize) -> u64 {
    if !vnet.is_super_frame() {
        return 1;
    }
    let payload = length.saturating_sub(usize::from(vnet.hdr_len));
    payload.div_ceil(usize::from(vnet.gso_size.max(1))).max(1) as u64
}

/// The byte at a place in what parts make.
fn byte(parts: &[&[u8]], mut at: usize) -> Option<u8> {
    for part in parts {
        if let Some(byte) = part.get(at) {
            return Some(*byte);
        }
        at -= part.len();
    }
    None
}

impl PortQueue {
    fn count(&mut self, outcome: &Sent) {
        self.counters.sent += outcome.sent;
        self.counters.queue_full += outcome.queue_full;
        self.counters.egress_failed += outcome.failed + outcome.too_big + outcome.unreachable;
        self.lost |= outcome.lost;
    }
}
