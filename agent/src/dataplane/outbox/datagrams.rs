//! Datagrams on their way to peers.

use std::net::SocketAddr;

use anteroom_agent_core::lane;

use crate::dataplane::status::UnderlayCounters;
use crate::net::sys::{Sent, give_back};
use crate::net::udp::{MAX_RUN, MAX_SEGMENTS, Run, UdpSocket};

/// Room for datagrams between two flushes, in bytes.
pub(super) const ROOM: usize = 512 << 10;

/// What of the room stays when it is given back.
const KEPT: usize = 64 << 10;

/// Runs between two flushes.
const RUNS: usize = 256;

/// Datagrams between two flushes, one behind the other.
pub(in crate::dataplane) struct Datagrams {
    bytes: Vec<u8>,
    used: usize,
    runs: Vec<Record>,
}

/// A run in the making: datagrams that go out with one message.
#[derive(Debug, Clone, Copy)]
struct Record {
    to: SocketAddr,
    tos: u8,
    /// Whose they are at the far end, which steers a whole run by its first.
    owner: u8,
    /// Length of all but the last.
    segment: usize,
    start: usize,
    end: usize,
    /// How many more it may have. None behind a shorter one.
    room: usize,
}

impl Record {
    /// Takes what was written behind its end, if it fits the run.
    fn extend(&mut self, (to, tos, owner): (SocketAddr, u8, u8), written: usize) -> bool {
        let whole = self.end - self.start + written;
        let fits = self.room > 0
            && written <= self.segment
            && whole <= MAX_RUN
            && (self.tos, self.owner, self.to) == (tos, owner, to);
        if fits {
            self.end += written;
            self.room = if written < self.segment { 0 } else { self.room - 1 };
        }
        fits
    }
}

impl Default for Datagrams {
    fn default() -> Self {
        Self { bytes: vec![0; ROOM], used: 0, runs: Vec::with_capacity(RUNS) }
    }
}

impl Datagrams {
    /// Hands everything to the kernel.
    pub(in crate::dataplane) fn flush(
        &mut self,
        socket: &mut UdpSocket,
        counters: &mut UnderlayCounters,
    ) {
        if self.runs.is_empty() {
            return;
        }
        let mut outcome = Sent::default();
        let bytes = &self.bytes;
        let runs = self.runs.iter().map(|run| Run {
            to: run.to,
            tos: run.tos,
            segment: run.segment,
            bytes: &bytes[run.start..run.end],
        });
        socket.send(runs, &mut outcome);
        counters.sent += outcome.sent;
        counters.queue_full += outcome.queue_full;
        counters.too_big += outcome.too_big;
        counters.unreachable += outcome.unreachable;
        counters.egress_failed += outcome.failed;
        self.runs.clear();
        self.used = 0;
    }

    /// Gives back the memory that a load made it touch. Nothing may be waiting.
    pub(in crate::dataplane) fn shrink(&mut self) {
        give_back(self.bytes.get_mut(KEPT..).unwrap_or_default());
    }

    /// Whether a datagram is taken without handing those before it to the kernel.
    pub(super) fn has_room(&self, capacity: usize) -> bool {
        self.used + capacity <= ROOM && self.runs.len() < RUNS
    }

    /// Takes a datagram that `write` writes.
    pub(in crate::dataplane) fn put(
        &mut self,
        (socket, counters): (&mut UdpSocket, &mut UnderlayCounters),
        to: SocketAddr,
        tos: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        if capacity > ROOM {
            counters.too_big += 1;
            return;
        }
        if !self.has_room(capacity) {
            self.flush(socket, counters);
        }
        let start = self.used;
        let written = write(&mut self.bytes[start..start + capacity]).min(capacity);
        if written == 0 {
            return;
        }
        let end = start + written;
        self.used = end;
        let owner = lane::owner_of(&self.bytes[start..end]).unwrap_or(0);
        if self.runs.last_mut().is_none_or(|run| !run.extend((to, tos, owner), written)) {
            let room = MAX_SEGMENTS - 1;
            self.runs.push(Record { to, tos, owner, segment: written, start, end, room });
        }
    }
}

#[cfg(test)]
mod tests;
