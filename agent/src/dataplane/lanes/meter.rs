//! What a lane thread counts, readable while it runs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anteroom_proto::verdict::DropReason;

use crate::dataplane::status::UnderlayCounters;
use crate::net::offload::Offload;
use crate::slice;

/// Counters of one lane thread. That thread alone writes.
#[derive(Debug)]
pub(in crate::dataplane) struct Meter {
    /// The thread's number in the kernel. 0 before it runs.
    thread: AtomicU32,
    /// Whether the kernel gives it short turns. Unset before it runs.
    short_turns: OnceLock<Offload>,
    received: AtomicU64,
    sent: AtomicU64,
    missed: AtomicU64,
    truncated: AtomicU64,
    too_big: AtomicU64,
    queue_full: AtomicU64,
    unreachable: AtomicU64,
    egress_failed: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            thread: AtomicU32::new(0),
            short_turns: OnceLock::new(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            truncated: AtomicU64::new(0),
            too_big: AtomicU64::new(0),
            queue_full: AtomicU64::new(0),
            unreachable: AtomicU64::new(0),
            egress_failed: AtomicU64::new(0),
            drops: [const { AtomicU64::new(0) }; DropReason::ALL.len()],
        }
    }
}

impl Meter {
    /// Takes note of which thread it is, the calling one, and asks for short turns for it.
    pub(super) fn begin(&self) {
        self.short_turns.get_or_init(slice::ask);
        let id = nix::unistd::gettid().as_raw();
        self.thread.store(u32::try_from(id).unwrap_or(0), Ordering::Relaxed);
    }

    /// Takes over what the thread has counted at its socket.
    pub(super) fn show(&self, counters: &UnderlayCounters) {
        let UnderlayCounters {
            received,
            sent,
            missed,
            truncated,
            too_big,
            queue_full,
            unreachable,
            egress_failed,
        } = *counters;
        for (shown, counted) in [
            (&self.received, received),
            (&self.sent, sent),
            (&self.missed, missed),
            (&self.truncated, truncated),
            (&self.too_big, too_big),
            (&self.queue_full, queue_full),
            (&self.unreachable, unreachable),
            (&self.egress_failed, egress_failed),
        ] {
            shown.store(counted, Ordering::Relaxed);
        }
    }

    /// Counts drops.
    pub(super) fn count(&self, reason: DropReason, times: u64) {
        if let Some(counted) = self.drops.get(reason.index()) {
            // Nobody else writes.
            counted.store(counted.load(Ordering::Relaxed) + times, Ordering::Relaxed);
        }
    }

    /// The socket's counters.
    pub(in crate::dataplane) fn counters(&self) -> UnderlayCounters {
        let read = |counted: &AtomicU64| counted.load(Ordering::Relaxed);
        UnderlayCounters {
            received: read(&self.received),
            sent: read(&self.sent),
            missed: read(&self.missed),
            truncated: read(&self.truncated),
            too_big: read(&self.too_big),
            queue_full: read(&self.queue_full),
            unreachable: read(&self.unreachable),
            egress_failed: read(&self.egress_failed),
        }
    }

    /// How much was dropped for a reason.
    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.index()).map_or(0, |counted| counted.load(Ordering::Relaxed))
    }

    /// Whether the kernel gives the thread short turns, once that is known.
    pub(super) fn short_turns(&self) -> Option<Offload> {
        self.short_turns.get().cloned()
    }

    /// How long the thread has worked, as far as the kernel tells.
    pub(in crate::dataplane) fn worked(&self) -> Option<Duration> {
        worked(self.thread.load(Ordering::Relaxed))
    }
}

/// How long a thread of this process has worked, by its number in the kernel.
pub(in crate::dataplane) fn worked(thread: u32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}
