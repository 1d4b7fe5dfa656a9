//! This gateway is elsewhere: who is told, and how often.

use std::time::{Duration, Instant};

use super::{CONTROL, Peers};
use crate::peer::state::Peer;
use crate::peer::tunnel::sealed_room;
use crate::sink::Sink;

/// How far apart peers hear of a move, and within what all of them do: so many words at once would be a burst.
const APART: Duration = Duration::from_millis(1);
const SPREAD: Duration = Duration::from_millis(500);
/// How often a client is told, which answers nothing, and the first pause. Each of the others is twice as long.
const CALLS: u8 = 4;
const PAUSE: Duration = Duration::from_secs(1);

/// What a client is still to be told of a move.
#[derive(Debug, Clone, Copy)]
pub(in crate::peer) struct Calls {
    told: u8,
    next: Instant,
}

impl Peers {
    /// This gateway has other addresses than before: whatever relays said of it is asked for anew, and peers hear from it
    /// at once where it is. So do clients: one sends to wherever its gateway was last heard, and knows one address beside that.
    pub fn note_moved(&mut self, now: Instant) {
        self.mirrors.forget(now);
        self.hearing.note_moved();
        let numbers = self.peers.numbers();
        let count = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        let apart = SPREAD.checked_div(count).unwrap_or_default().min(APART);
        let mut at = now;
        for number in numbers {
            if let Some(peer) = self.peers.get_mut(number) {
                peer.next_probe = at;
                peer.route.trial.forget();
                peer.route.nearer.forget();
                if peer.client && peer.sending.is_some() {
                    peer.calls = Some(Calls { told: 0, next: at });
                } else if peer.client {
                    peer.recall();
                }
            }
            self.wake(number, at);
            at += apart;
        }
    }

    /// Tells a client where this gateway is, if that is due: by an empty packet of its session.
    pub(super) fn call(&mut self, index: u32, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let Some(calls) = peer.calls.filter(|calls| calls.next <= now) else { return };
        let told = calls.told + 1;
        let next = now + PAUSE * (1 << calls.told);
        peer.calls = (told < CALLS).then_some(Calls { told, next });
        let tunnel = peer.sending.and_then(|number| self.tunnels.get_mut(number));
        let (Some(tunnel), Some(to)) = (tunnel, peer.way()) else { return };
        to.put(out, CONTROL, sealed_room(0), |buffer| tunnel.seal(&[], buffer));
    }
}

impl Peer {
    /// When a client is told next of a move.
    pub(super) fn calls_due(&self) -> Option<Instant> {
        self.calls.map(|calls| calls.next)
    }
}
