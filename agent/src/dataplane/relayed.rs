//! Sealed packets between the worker and the connections to relays, by queues that never make either wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anteroom_agent_core::target::{RelayId, Through};
use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::packet::{HEADER_LEN, SEALED_LEN};
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc;

/// Packets that wait for one relay's connection: of those that keep tunnels up, and of all others.
const URGENT: usize = 64;
const WAITING: usize = 512;
/// Packets of all relays that wait for the worker.
const INCOMING: usize = 2_048;
/// DSCP of what keeps tunnels up (CS6). It goes first.
const CONTROL: u8 = 0xc0;

/// A sealed packet on its way to a relay.
#[derive(Debug)]
pub struct Packet {
    /// For whom it is.
    pub to: GatewayId,
    /// The packet, behind as many bytes of room as what stands in front of it takes.
    pub bytes: Vec<u8>,
}

/// What the worker has for one relay.
#[derive(Debug)]
pub struct Outgoing {
    urgent: mpsc::Receiver<Packet>,
    rest: mpsc::Receiver<Packet>,
}

impl Outgoing {
    /// The next packet; none once the worker has no more. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Packet> {
        tokio::select! {
            biased;
            Some(packet) = self.urgent.recv() => Some(packet),
            packet = self.rest.recv() => packet,
        }
    }
}

/// The worker's side of [`Outgoing`].
#[derive(Debug)]
pub struct Queues {
    urgent: mpsc::Sender<Packet>,
    rest: mpsc::Sender<Packet>,
}

/// Queues for one relay.
#[must_use]
pub(crate) fn queues() -> (Queues, Outgoing) {
    let ((urgent, urgent_out), (rest, rest_out)) = (mpsc::channel(URGENT), mpsc::channel(WAITING));
    (Queues { urgent, rest }, Outgoing { urgent: urgent_out, rest: rest_out })
}

#[cfg(test)]
impl Queues {
    /// Has a packet wait, as the worker does.
    pub(crate) fn put(&self, to: GatewayId, sealed: &[u8]) {
        let bytes = [&[0; HEADER_LEN], sealed].concat();
        self.rest.try_send(Packet { to, bytes }).expect("there is room");
    }
}

/// The queues of all relays that the worker knows.
#[derive(Debug, Default)]
pub(super) struct Relays {
    queues: HashMap<RelayId, Queues>,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    Waits,
    /// The queue was full, or there is no such relay any more.
    Full,
    TooBig,
    /// Nothing was written.
    Nothing,
}

impl Relays {
    pub(super) fn open(&mut self, relay: RelayId, queues: Queues) {
        self.queues.insert(relay, queues);
    }

    pub(super) fn close(&mut self, relay: RelayId) {
        self.queues.remove(&relay);
    }

    /// Takes a packet that `write` writes.
    pub(super) fn put(
        &mut self,
        to: Through,
        dscp_ecn: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> Put {
        let mut bytes = vec![0; HEADER_LEN + capacity];
        let len = write(&mut bytes[HEADER_LEN..]).min(capacity);
        if len == 0 {
            return Put::Nothing;
        }
        if len > *SEALED_LEN.end() {
            return Put::TooBig;
        }
        bytes.truncate(HEADER_LEN + len);
        let Some(queues) = self.queues.get(&to.relay) else { return Put::Full };
        let queue = if dscp_ecn & 0xfc == CONTROL { &queues.urgent } else { &queues.rest };
        match queue.try_send(Packet { to: to.peer, bytes }) {
            Ok(()) => Put::Waits,
            Err(_) => Put::Full,
        }
    }
}

/// A sealed packet that a relay brought.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) from: Through,
    pub(super) bytes: Vec<u8>,
}

/// Takes packets from relays to the worker. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inlet {
    queue: mpsc::Sender<Brought>,
    wake: Arc<EventFd>,
    /// Packets that found the queue full.
    turned_away: Arc<AtomicU64>,
}

impl Inlet {
    pub(super) fn new(wake: Arc<EventFd>) -> (Self, mpsc::Receiver<Brought>) {
        let (queue, brought) = mpsc::channel(INCOMING);
        (Self { queue, wake, turned_away: Arc::default() }, brought)
    }

    /// Hands a packet to the worker; where too many wait it is counted and let go.
    pub fn bring(&self, from: Through, sealed: &[u8]) {
        if self.queue.try_send(Brought { from, bytes: sealed.to_vec() }).is_err() {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
        } else {
            // Each time: whether the worker has just emptied the queue, nobody but it knows. A full counter (EAGAIN)
            // wakes it just as well.
            let _ = self.wake.write(1);
        }
    }

    /// Packets that were let go.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: Through = Through { relay: RelayId(3), peer: GatewayId::from_bytes([9; 16]) };

    fn fill(len: usize) -> impl FnOnce(&mut [u8]) -> usize {
        move |buffer| {
            buffer[..len].fill(4);
            len
        }
    }

    #[tokio::test]
    async fn a_full_queue_turns_packets_away_and_keeps_what_is_urgent_apart() {
        let mut relays = Relays::default();
        assert_eq!(relays.put(TO, 0, 100, fill(100)), Put::Full, "no such relay");
        let (queues, mut outgoing) = queues();
        relays.open(TO.relay, queues);
        for _ in 0..WAITING {
            assert_eq!(relays.put(TO, 0, 100, fill(90)), Put::Waits);
        }
        assert_eq!(relays.put(TO, 0, 100, fill(90)), Put::Full);
        assert_eq!(relays.put(TO, CONTROL, 100, fill(40)), Put::Waits);
        assert_eq!(relays.put(TO, CONTROL, 100, fill(0)), Put::Nothing);
        let long = *SEALED_LEN.end() + 1;
        assert_eq!(relays.put(TO, CONTROL, long, fill(long)), Put::TooBig);
        let first = outgoing.next().await.expect("what is urgent");
        assert_eq!((first.to, first.bytes.len()), (TO.peer, HEADER_LEN + 40));
        for _ in 0..WAITING {
            assert_eq!(outgoing.next().await.expect("the rest").bytes.len(), HEADER_LEN + 90);
        }
        relays.close(TO.relay);
        assert!(outgoing.next().await.is_none());
    }

    #[test]
    fn the_worker_is_woken_and_what_is_too_much_is_counted() {
        let wake =
            Arc::new(EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK).unwrap());
        let (inlet, mut brought) = Inlet::new(wake.clone());
        for _ in 0..INCOMING + 5 {
            inlet.bring(TO, &[1; 50]);
        }
        assert_eq!(inlet.turned_away(), 5);
        assert_eq!(wake.read(), Ok(INCOMING as u64));
        let first = brought.try_recv().expect("the first");
        assert_eq!((first.from, first.bytes.len()), (TO, 50));
    }
}
