//! What the worker tells of itself: reports for the controller, and its status.

use std::time::Instant;

use anteroom_agent_core::report::EngineReport;
use anteroom_proto::verdict::DropReason;

use super::Worker;
use crate::dataplane::status::{InterfaceStatus, Offloads, Status, UnderlayStatus};
use crate::net::packet::PacketSocket;

/// The shell's own drops, as far as they went into a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Failures {
    queue_full: u64,
    egress_failed: u64,
    overflow: u64,
}

impl Worker {
    fn count_missed(&mut self) {
        self.outbox.underlay_counters.missed += self.outbox.underlay.take_missed();
        if let Some(socket) = &mut self.outbox.lanes {
            self.outbox.underlay_counters.missed += socket.take_missed();
        }
        for queue in &mut self.outbox.ports {
            if let Some(socket) = &queue.socket {
                queue.counters.missed += socket.take_missed();
            }
        }
    }

    /// Answers who asked for a report, once all that belongs to it is gathered.
    pub(super) fn answer_reports(&mut self, now: Instant) {
        if self.engine.is_gathering() {
            return;
        }
        for answer in std::mem::take(&mut self.reports) {
            // Who asked may have gone; what was taken out for it then is lost, as with any other.
            let _ = answer.send(self.report(now));
        }
    }

    fn report(&mut self, now: Instant) -> EngineReport {
        self.count_missed();
        let mut report = self.engine.report(now);
        let total = self.failures();
        let mut add = |reason: DropReason, count: u64| {
            if count > 0 {
                *report.drops.entry(reason.to_string()).or_default() += count;
            }
        };
        add(DropReason::QueueFull, total.queue_full - self.reported.queue_full);
        add(DropReason::EgressFailed, total.egress_failed - self.reported.egress_failed);
        if let Some(threads) = &mut self.outbox.threads {
            threads.take_drops(add);
        }
        report.overflow += total.overflow - self.reported.overflow;
        self.reported = total;
        report
    }

    fn failures(&self) -> Failures {
        let underlay = self.underlay_counters();
        let mut total = Failures {
            queue_full: underlay.queue_full,
            egress_failed: underlay.egress_failed + underlay.too_big + underlay.unreachable,
            overflow: underlay.missed + underlay.truncated + self.inlet.turned_away(),
        };
        for queue in &self.outbox.ports {
            let counters = queue.counters;
            total.queue_full += counters.queue_full;
            total.egress_failed += counters.egress_failed;
            total.overflow += counters.missed + counters.truncated + counters.unknown_gso;
        }
        total
    }

    pub(super) fn status(&mut self, now: Instant) -> Status {
        self.count_missed();
        let interfaces = self
            .interfaces
            .iter()
            .zip(&self.outbox.ports)
            .zip(&self.offloads)
            .filter(|(((name, _), _), _)| !name.is_empty())
            .map(|(((name, interface), queue), offloads)| InterfaceStatus {
                name: name.clone(),
                interface: interface.clone(),
                open: queue.socket.is_some(),
                offloads: Offloads {
                    super_frames: queue.socket.as_ref().is_some_and(PacketSocket::super_frames),
                    ..*offloads
                },
                counters: queue.counters,
            })
            .collect();
        let underlay = &self.outbox.underlay;
        Status {
            engine: self.engine.status(now),
            interfaces,
            underlays: None,
            sensor: None,
            outside_tunnel: None,
            host_problems: Vec::new(),
            underlay: UnderlayStatus {
                listen: underlay.local_address().map_or_else(|_| String::new(), |a| a.to_string()),
                receive_buffer: underlay.receive_buffer(),
                segmentation: underlay.segmentation().clone(),
                merging: underlay.merging().clone(),
                steering: self.steering.clone(),
                counters: self.underlay_counters(),
            },
            threads: self.threads_status(),
        }
    }
}
