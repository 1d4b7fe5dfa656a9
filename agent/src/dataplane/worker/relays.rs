//! Packets that relays brought, and those of the tunnels that came to peers' QUIC, where that shares the port.

use std::time::Instant;

use anteroom_agent_core::batch::RxDatagram;

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

    /// Handles what QUIC handed over, some of it at a time.
    pub(super) fn receive_strays(&mut self) {
        let Some(shared) = &self.one_port else { return };
        let now = Instant::now();
        for _ in 0..A_TURN {
            let Some(mut stray) = shared.others.take() else { return };
            let (from, segment) = (stray.from, stray.bytes.len());
            let message = RxDatagram { from, segment, bytes: &mut stray.bytes };
            self.outbox.underlay_counters.received += 1;
            self.engine.handle_datagrams(&mut [message], now, &mut self.outbox);
        }
        let _ = self.wake.write(1);
    }
}
