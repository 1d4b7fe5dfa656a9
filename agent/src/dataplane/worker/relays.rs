//! Packets that relays brought.

use std::time::Instant;

use super::Worker;

/// Packets that are handled before frames get their turn again.
const A_TURN: usize = 256;

impl Worker {
    /// Handles what relays brought, some of it at a time.
    pub(super) fn receive_relayed(&mut self) {
        let mut packets = Vec::new();
        if self.brought.take(A_TURN, &mut packets) {
            let _ = self.wake.write(1);
        }
        if packets.is_empty() {
            return;
        }
        let packets = packets.iter().map(|packet| (packet.from, &packet.bytes[..]));
        self.engine.handle_relayed(packets, Instant::now(), &mut self.outbox);
    }
}
