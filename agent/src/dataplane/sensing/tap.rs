//! The worker's side: what is worth a look is copied into the ring.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anteroom_agent_core::batch::VlanTag;
use anteroom_sensor::{Gate, Look, Way};

use super::Shared;

/// As much of a frame as is looked at: a hello with post-quantum keys fits. Of a super-frame this is its first part.
pub(super) const SNAP: usize = 2048;

/// The beginning of a frame.
pub(super) struct Copied {
    /// Whether it came from the port; else it went there.
    pub(super) arrived: bool,
    pub(super) vlan: Option<u16>,
    pub(super) look: Look,
    length: usize,
    bytes: [u8; SNAP],
}

impl Copied {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Copies frames, where there is room. Nothing of it ever waits.
pub(crate) struct Tap {
    gate: Gate,
    /// Of each port.
    rings: Vec<rtrb::Producer<Copied>>,
    shared: Arc<Shared>,
    start: Instant,
    millis: u32,
    told_over: u64,
}

impl Tap {
    pub(super) fn new(seed: u64, rings: Vec<rtrb::Producer<Copied>>, shared: Arc<Shared>) -> Self {
        let start = Instant::now();
        Self { gate: Gate::new(seed), rings, shared, start, millis: 0, told_over: 0 }
    }

    /// Tells the time, once for each turn of the worker.
    pub(in crate::dataplane) fn tick(&mut self, now: Instant) {
        let millis = now.saturating_duration_since(self.start).as_millis();
        // It may run over, after 49 days.
        #[expect(clippy::cast_possible_truncation, reason = "the gate's clock may run over")]
        let millis = millis as u32;
        self.millis = millis;
        let over = self.gate.passed_over();
        let more = over - std::mem::replace(&mut self.told_over, over);
        if more > 0 {
            self.shared.passed_over.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// A frame that came from a device port, or goes to one.
    #[inline]
    pub(in crate::dataplane) fn frame(&mut self, way: Way, vlan: Option<VlanTag>, parts: &[&[u8]]) {
        // A frame in several parts has its headers in the first two.
        let mut head = [0; 128];
        let begun = match parts {
            [whole] => *whole,
            parts => {
                let length = fill(&mut head, parts);
                &head[..length]
            }
        };
        let Some(look) = self.gate.look(begun, way, self.millis) else { return };
        let Some(ring) = self.rings.get_mut(way.port) else { return };
        if ring.is_full() {
            self.shared.passed_over.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut bytes = [0; SNAP];
        let length = fill(&mut bytes, parts);
        let vlan = vlan.map(VlanTag::id).filter(|id| *id != 0);
        // There is room, and nobody else puts anything in.
        let _ = ring.push(Copied { arrived: way.arrived, vlan, look, length, bytes });
        self.shared.turns.brought();
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // The thread ends with its rings, and has to see that.
        self.rings.clear();
        self.shared.turns.wake();
    }
}

/// Copies what fits. Gives how much that was.
fn fill(room: &mut [u8], parts: &[&[u8]]) -> usize {
    let mut filled = 0;
    for part in parts {
        let free = &mut room[filled..];
        let length = part.len().min(free.len());
        free[..length].copy_from_slice(&part[..length]);
        filled += length;
    }
    filled
}
