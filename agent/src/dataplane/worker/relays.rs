//! Packets that relays brought.

use std::time::Instant;

use super::Worker;

/// Packets that are handled before frames get their turn again.
const A_TURN: usize = 256;

impl Worker {
    /// Handles what relays brought, some of it at a time.
    pub(super) fn receive_relayed(&mut self) {
        let mut packets = Vec::new();
        while packets.len() < A_TURN
            && let Ok(packet) = self.brought.try_recv()
        {
            packets.push(packet);
        }
        if packets.is_empty() {
            return;
        }
        if !self.brought.is_empty() {
            let _ = self.wake.write(1);
        }
        let packets = packets.iter().map(|packet| (packet.from, packet.bytes.as_slice()));
        self.engine.handle_relayed(packets, Instant::now(), &mut self.outbox);
    }
}
