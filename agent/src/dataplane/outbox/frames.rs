//! Frames on their way out of ports.

use anteroom_agent_core::batch::VlanTag;
use anteroom_agent_core::checksum;
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::vnet::VnetHeader;
use zerocopy::IntoBytes;

use super::{PortQueue, RECORDS};
use crate::net::packet::MAX_FRAME;
use crate::net::sys::Sent;

/// Room for frames between two flushes, in bytes. A full room is flushed at once; nothing is lost for its size.
const ROOM: usize = 1 << 20;

const ETHERNET: usize = 14;
const ADDRESSES: usize = 12;
const TAG: usize = 4;

/// Frames between two flushes, of all ports.
pub(super) struct Frames {
    bytes: Vec<u8>,
    used: usize,
    records: Vec<Record>,
}

struct Record {
    port: PortId,
    start: usize,
    end: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { bytes: vec![0; ROOM], used: 0, records: Vec::with_capacity(RECORDS) }
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
            queue.counters.sent += outcome.sent;
            queue.counters.queue_full += outcome.queue_full;
            queue.counters.egress_failed += outcome.failed + outcome.too_big + outcome.unreachable;
            queue.lost |= outcome.lost;
        }
        self.records.clear();
        self.used = 0;
    }

    /// Takes a frame for `port`, which `parts` make.
    pub(super) fn put(
        &mut self,
        ports: &mut [PortQueue],
        port: PortId,
        mut vnet: VnetHeader,
        vlan: Option<VlanTag>,
        parts: &[&[u8]],
    ) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
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
            vnet.hdr_len = header_length(&vnet, bytes);
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
fn header_length(vnet: &VnetHeader, bytes: &[u8]) -> u16 {
    if !vnet.is_super_frame() {
        return 0;
    }
    let transport = usize::from(vnet.csum_start);
    let length = match vnet.gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_UDP_L4 => 8,
        _ => bytes.get(transport + 12).map_or(20, |byte| usize::from(byte >> 4) * 4),
    };
    u16::try_from((transport + length).min(bytes.len())).unwrap_or(u16::MAX)
}
