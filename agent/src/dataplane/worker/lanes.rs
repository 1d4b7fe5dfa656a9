//! The worker's part in lane threads: what goes to them, what comes back, and the order between lanes.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anteroom_agent_core::batch::RxDatagram;
use anteroom_transport::direct::shared::is_quic;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{LANE_THREADS, Worker};
use crate::dataplane::lanes::{Threads, worked};
use crate::dataplane::status::{ThreadsStatus, UnderlayCounters};

/// Hauls handled before ports and lane 0 get their turn again.
const HAULS_A_TURN: usize = 4;

impl Worker {
    /// Registers what lane threads wake the worker by.
    pub(super) fn watch_lane_threads(&self) -> io::Result<()> {
        if let Some(threads) = &self.outbox.threads {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, LANE_THREADS);
            self.epoll.add(&*threads.sleeper, event)?;
        }
        Ok(())
    }

    /// Sends what waits, with the engine's orders for whoever runs lanes.
    pub(super) fn flush(&mut self) {
        if let Some(threads) = &mut self.outbox.threads {
            while let Some((owner, order)) = self.engine.poll_lane_order() {
                threads.order(owner, order);
            }
        }
        self.outbox.flush();
    }

    /// Says that the worker is about to wait. False when it mustn't: something has come from a lane thread.
    pub(super) fn doze(&self) -> bool {
        let Some(threads) = &self.outbox.threads else { return true };
        threads.sleeper.doze();
        threads.waiting() == 0
    }

    /// Says that it has waited.
    pub(super) fn rouse(&self) {
        if let Some(threads) = &self.outbox.threads {
            threads.sleeper.rouse();
        }
    }

    /// What lane threads opened, and what else they have to tell. What came to lane 0's socket before that is handled
    /// first: a flow that has taken another lane has sent there before.
    pub(super) fn receive_hauls(&mut self) {
        let waiting = self.outbox.threads.as_mut().map_or(0, Threads::note_waiting);
        if waiting == 0 {
            return;
        }
        self.empty_lane_0();
        for _ in 0..waiting.min(HAULS_A_TURN) {
            let Some(threads) = &mut self.outbox.threads else { return };
            let Some((owner, mut haul)) = threads.haul() else { break };
            let now = Instant::now();
            for event in haul.events.drain(..) {
                self.engine.note_lane_event(event, now, &mut self.outbox);
            }
            for to in haul.too_big_to.drain(..) {
                self.engine.note_too_big(to, now);
            }
            let (engine, outbox) = (&mut self.engine, &mut self.outbox);
            let one_port = self.one_port.as_deref();
            haul.returned(|mut job| engine.take_back(&mut job, now, outbox));
            haul.strays(|from: SocketAddr, bytes| {
                if let Some(shared) = one_port
                    && is_quic(bytes)
                {
                    return shared.quic.put(from, bytes);
                }
                let segment = bytes.len();
                engine.handle_datagrams(&mut [RxDatagram { from, segment, bytes }], now, outbox);
            });
            if haul.has_packets() {
                engine.handle_opened(haul.packets(), now, outbox);
            }
            if let Some(threads) = &mut self.outbox.threads {
                threads.give_back(owner, haul);
            }
            self.flush();
        }
    }

    /// Whether lane threads were at work since the last call.
    pub(super) fn took_hauls(&mut self) -> bool {
        self.outbox.threads.as_mut().is_some_and(|threads| std::mem::take(&mut threads.worked))
    }

    /// The counters of all the underlay's sockets.
    pub(super) fn underlay_counters(&self) -> UnderlayCounters {
        let threads = self.outbox.threads.as_ref().map(Threads::counters);
        self.outbox.underlay_counters + threads.unwrap_or_default()
    }

    pub(super) fn threads_status(&self) -> ThreadsStatus {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        ThreadsStatus {
            packet_ms: worked(self.thread).map(millis),
            short_turns: self.short_turns.clone(),
            chosen: self.outbox.threads_chosen.clone(),
            lanes: self.outbox.threads.iter().flat_map(Threads::status).collect(),
        }
    }
}
