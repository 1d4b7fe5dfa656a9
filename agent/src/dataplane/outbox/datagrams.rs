//! Datagrams on their way to peers.

use std::net::SocketAddr;

use super::RECORDS;
use crate::dataplane::status::UnderlayCounters;
use crate::net::sys::Sent;
use crate::net::udp::UdpSocket;

/// Room for datagrams between two flushes, in bytes.
pub(super) const ROOM: usize = 512 << 10;

/// Datagrams between two flushes, one behind the other.
pub(super) struct Datagrams {
    bytes: Vec<u8>,
    used: usize,
    records: Vec<Record>,
}

struct Record {
    to: SocketAddr,
    tos: u8,
    start: usize,
    end: usize,
}

impl Default for Datagrams {
    fn default() -> Self {
        Self { bytes: vec![0; ROOM], used: 0, records: Vec::with_capacity(RECORDS) }
    }
}

impl Datagrams {
    /// Hands everything to the kernel.
    pub(super) fn flush(&mut self, socket: &UdpSocket, counters: &mut UnderlayCounters) {
        if self.records.is_empty() {
            return;
        }
        let mut outcome = Sent::default();
        let datagrams = self
            .records
            .iter()
            .map(|record| (record.to, record.tos, &self.bytes[record.start..record.end]));
        socket.send(datagrams, &mut outcome);
        counters.sent += outcome.sent;
        counters.queue_full += outcome.queue_full;
        counters.too_big += outcome.too_big;
        counters.unreachable += outcome.unreachable;
        counters.egress_failed += outcome.failed;
        self.records.clear();
        self.used = 0;
    }

    /// Takes a datagram that `write` writes.
    pub(super) fn put(
        &mut self,
        (socket, counters): (&UdpSocket, &mut UnderlayCounters),
        to: SocketAddr,
        tos: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        if capacity > ROOM {
            counters.too_big += 1;
            return;
        }
        if self.used + capacity > ROOM || self.records.len() == RECORDS {
            self.flush(socket, counters);
        }
        let start = self.used;
        let written = write(&mut self.bytes[start..start + capacity]).min(capacity);
        if written > 0 {
            let end = start + written;
            self.records.push(Record { to, tos, start, end });
            self.used = end;
        }
    }
}
