//! The shell's sink: takes what the engine sends, and hands it to the kernel in batches that never wait.

use std::net::SocketAddr;

use anteroom_agent_core::batch::VlanTag;
use anteroom_agent_core::checksum;
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::sink::Sink;
use anteroom_agent_core::vnet::VnetHeader;
use zerocopy::IntoBytes;

use crate::dataplane::status::{InterfaceCounters, UnderlayCounters};
use crate::net::packet::{MAX_FRAME, PacketSocket};
use crate::net::sys::Sent;
use crate::net::udp::UdpSocket;

/// Room for frames between two flushes, in bytes. A full room is flushed at once; nothing is lost for its size.
const FRAMES: usize = 1 << 20;

/// Room for datagrams between two flushes, in bytes.
const DATAGRAMS: usize = 512 << 10;

/// Frames or datagrams between two flushes.
const RECORDS: usize = 256;

const ETHERNET: usize = 14;
const ADDRESSES: usize = 12;
const TAG: usize = 4;

/// Send queues of all sockets, and the sockets themselves.
pub(super) struct Outbox {
    pub(super) ports: Vec<PortQueue>,
    pub(super) underlay: UdpSocket,
    pub(super) underlay_counters: UnderlayCounters,
    frames: Vec<u8>,
    frames_used: usize,
    frame_records: Vec<FrameRecord>,
    datagrams: Vec<u8>,
    datagrams_used: usize,
    datagram_records: Vec<DatagramRecord>,
}

/// The uplink or a device port.
#[derive(Debug, Default)]
pub(super) struct PortQueue {
    /// None while the interface is gone.
    pub(super) socket: Option<PacketSocket>,
    pub(super) counters: InterfaceCounters,
    /// A send found the interface down or gone.
    pub(super) lost: bool,
    pending: u32,
}

struct FrameRecord {
    port: PortId,
    start: usize,
    end: usize,
}

struct DatagramRecord {
    to: SocketAddr,
    tos: u8,
    start: usize,
    end: usize,
}

impl Outbox {
    pub(super) fn new(sockets: Vec<Option<PacketSocket>>, underlay: UdpSocket) -> Self {
        let ports = sockets
            .into_iter()
            .map(|socket| PortQueue { socket, ..PortQueue::default() })
            .collect();
        Self {
            ports,
            underlay,
            underlay_counters: UnderlayCounters::default(),
            frames: vec![0; FRAMES],
            frames_used: 0,
            frame_records: Vec::with_capacity(RECORDS),
            datagrams: vec![0; DATAGRAMS],
            datagrams_used: 0,
            datagram_records: Vec::with_capacity(RECORDS),
        }
    }

    /// Hands everything to the kernel.
    pub(super) fn flush(&mut self) {
        if !self.frame_records.is_empty() {
            self.flush_frames();
        }
        if !self.datagram_records.is_empty() {
            self.flush_datagrams();
        }
    }

    fn flush_frames(&mut self) {
        for (index, queue) in self.ports.iter_mut().enumerate() {
            if queue.pending == 0 {
                continue;
            }
            queue.pending = 0;
            let Some(socket) = &queue.socket else { continue };
            let mut outcome = Sent::default();
            let frames = self
                .frame_records
                .iter()
                .filter(|record| record.port.index() == index)
                .map(|record| &self.frames[record.start..record.end]);
            socket.send(frames, &mut outcome);
            queue.counters.sent += outcome.sent;
            queue.counters.queue_full += outcome.queue_full;
            queue.counters.egress_failed += outcome.failed + outcome.too_big + outcome.unreachable;
            queue.lost |= outcome.lost;
        }
        self.frame_records.clear();
        self.frames_used = 0;
    }

    fn flush_datagrams(&mut self) {
        let mut outcome = Sent::default();
        let datagrams = self
            .datagram_records
            .iter()
            .map(|record| (record.to, record.tos, &self.datagrams[record.start..record.end]));
        self.underlay.send(datagrams, &mut outcome);
        let counters = &mut self.underlay_counters;
        counters.sent += outcome.sent;
        counters.queue_full += outcome.queue_full;
        counters.too_big += outcome.too_big;
        counters.unreachable += outcome.unreachable;
        counters.egress_failed += outcome.failed;
        self.datagram_records.clear();
        self.datagrams_used = 0;
    }
}

impl Sink for Outbox {
    fn frame(
        &mut self,
        port: PortId,
        mut vnet: VnetHeader,
        vlan: Option<VlanTag>,
        parts: &[&[u8]],
    ) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let whole = VnetHeader::LEN + TAG + length;
        if self.frames_used + whole > FRAMES || self.frame_records.len() == RECORDS {
            self.flush_frames();
        }
        let Some(queue) = self.ports.get_mut(port.index()) else { return };
        let Some(socket) = &queue.socket else {
            queue.counters.egress_failed += 1;
            return;
        };
        let headed = socket.super_frames();
        if !(ETHERNET..=MAX_FRAME).contains(&length) || (vnet.is_super_frame() && !headed) {
            queue.counters.egress_failed += 1;
            return;
        }

        let start = self.frames_used;
        let frame = start + if headed { VnetHeader::LEN } else { 0 };
        let mut end = frame + if vlan.is_some() { TAG } else { 0 };
        for part in parts {
            self.frames[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        if let Some(tag) = vlan {
            self.frames.copy_within(frame + TAG..frame + TAG + ADDRESSES, frame);
            let at = frame + ADDRESSES;
            self.frames[at..at + 2].copy_from_slice(&tag.protocol.to_be_bytes());
            self.frames[at + 2..at + TAG].copy_from_slice(&tag.control.to_be_bytes());
            if vnet.flags & VnetHeader::FLAG_NEEDS_CSUM != 0 {
                vnet.csum_start = vnet.csum_start.saturating_add(TAG as u16);
            }
        }
        let bytes = &mut self.frames[frame..end];
        if headed {
            vnet.hdr_len = header_length(&vnet, bytes);
            self.frames[start..frame].copy_from_slice(vnet.as_bytes());
        } else if checksum::complete(bytes, &vnet).is_err() {
            queue.counters.egress_failed += 1;
            return;
        }
        self.frame_records.push(FrameRecord { port, start, end });
        self.frames_used = end;
        queue.pending += 1;
    }

    fn datagram(
        &mut self,
        to: SocketAddr,
        dscp_ecn: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        if capacity > DATAGRAMS {
            self.underlay_counters.too_big += 1;
            return;
        }
        if self.datagrams_used + capacity > DATAGRAMS || self.datagram_records.len() == RECORDS {
            self.flush_datagrams();
        }
        let start = self.datagrams_used;
        let written = write(&mut self.datagrams[start..start + capacity]).min(capacity);
        if written > 0 {
            let end = start + written;
            self.datagram_records.push(DatagramRecord { to, tos: dscp_ecn, start, end });
            self.datagrams_used = end;
        }
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

#[cfg(test)]
mod tests;
