//! Sealed packets between the worker and the connections to relays, by queues that never make either wait, and in which no
//! device and no peer takes another's place.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anteroom_agent_core::target::{RelayId, Through, Whose};
use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::packet::{HEADER_LEN, SEALED_LEN};
use bytes::{Bytes, BytesMut};
use nix::sys::eventfd::EventFd;
use tokio::sync::Notify;

use super::shares::Shares;

/// Packets that wait for one relay's connection: of those that keep tunnels up, of which one peer alone may have half, and of all
/// devices.
const URGENT: usize = 128;
const WAITING: usize = 1_024;
/// Packets of all relays that wait for the worker.
const INCOMING: usize = 4_096;
/// Packets that are handed over at once.
const AT_ONCE: usize = 64;
/// Bytes of packets that share a piece of memory. It lives for as long as one of them waits.
const PIECE: usize = 16 * 1024;

/// A sealed packet on its way to a relay.
#[derive(Debug)]
pub struct Packet {
    /// For whom it is.
    pub to: GatewayId,
    /// The packet, behind as many bytes of room as what stands in front of it takes.
    pub bytes: BytesMut,
}

/// What waits for one relay's connection.
#[derive(Debug)]
struct Waiting {
    urgent: Shares<GatewayId, Packet>,
    rest: Shares<Whose, Packet>,
    /// Whether the worker has no more.
    ended: bool,
}

impl Waiting {
    /// False where there is no room.
    fn push(&mut self, whose: Whose, packet: Packet) -> bool {
        let len = packet.bytes.len();
        match whose {
            Whose::Gateways => self.urgent.push(packet.to, packet, len),
            Whose::Device(_) => self.rest.push(whose, packet, len),
        }
    }

    fn pop(&mut self) -> Option<Packet> {
        self.urgent.pop().or_else(|| self.rest.pop())
    }
}

#[derive(Debug)]
struct Line {
    waiting: Mutex<Waiting>,
    news: Notify,
}

impl Line {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the worker has for one relay.
#[derive(Debug)]
pub struct Outgoing {
    line: Arc<Line>,
}

impl Outgoing {
    /// Waits for packets, and puts into `batch` as many as make up to `bytes`, one at least: what the connection takes in
    /// now, for the rest waits better here. False once the worker has no more. Dropping the future loses nothing.
    pub async fn take(&mut self, bytes: usize, batch: &mut Vec<Packet>) -> bool {
        loop {
            {
                let mut waiting = self.line.waiting();
                let mut taken = 0;
                while batch.len() < AT_ONCE
                    && (batch.is_empty() || taken < bytes)
                    && let Some(packet) = waiting.pop()
                {
                    taken += packet.bytes.len();
                    batch.push(packet);
                }
                if !batch.is_empty() {
                    return true;
                }
                if waiting.ended {
                    return false;
                }
            }
            self.line.news.notified().await;
        }
    }

    /// The next packet; none once the worker has no more. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Packet> {
        let mut one = Vec::with_capacity(1);
        self.take(0, &mut one).await;
        one.pop()
    }
}

/// The worker's side of [`Outgoing`].
#[derive(Debug)]
pub struct Queues {
    line: Arc<Line>,
    /// What is handed over next.
    filled: Vec<(Whose, Packet)>,
}

impl Queues {
    /// Hands over what was put here. Gives how many packets found no room.
    fn flush(&mut self) -> u64 {
        if self.filled.is_empty() {
            return 0;
        }
        let mut turned_away = 0;
        {
            let mut waiting = self.line.waiting();
            for (whose, packet) in self.filled.drain(..) {
                turned_away += u64::from(!waiting.push(whose, packet));
            }
        }
        self.line.news.notify_one();
        turned_away
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        self.flush();
        self.line.waiting().ended = true;
        self.line.news.notify_one();
    }
}

/// Queues for one relay.
#[must_use]
pub(crate) fn queues() -> (Queues, Outgoing) {
    let (urgent, rest) = (Shares::new(URGENT), Shares::new(WAITING));
    let waiting = Waiting { urgent, rest, ended: false };
    let line = Arc::new(Line { waiting: Mutex::new(waiting), news: Notify::new() });
    (Queues { line: line.clone(), filled: Vec::with_capacity(AT_ONCE) }, Outgoing { line })
}

#[cfg(test)]
impl Queues {
    /// Has a packet wait, as the worker does.
    pub(crate) fn put(&self, to: GatewayId, sealed: &[u8]) {
        let bytes = BytesMut::from(&[&[0; HEADER_LEN], sealed].concat()[..]);
        let device = Whose::Device(std::net::Ipv4Addr::LOCALHOST.into());
        assert!(self.line.waiting().push(device, Packet { to, bytes }), "there is room");
        self.line.news.notify_one();
    }
}

/// The queues of all relays that the worker knows.
#[derive(Debug, Default)]
pub(super) struct Relays {
    queues: HashMap<RelayId, Queues>,
    piece: BytesMut,
    /// Packets that aren't handed over yet.
    filled: usize,
    /// Packets that found no room, as far as that wasn't told.
    turned_away: u64,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// It waits for the next flush.
    Waits,
    /// There is no such relay any more.
    Gone,
    TooBig,
    /// Nothing was written.
    Nothing,
}

impl Relays {
    pub(super) fn open(&mut self, relay: RelayId, queues: Queues) {
        self.close(relay);
        self.queues.insert(relay, queues);
    }

    pub(super) fn close(&mut self, relay: RelayId) {
        self.turned_away += self.flush();
        self.queues.remove(&relay);
    }

    /// Takes a packet that `write` writes.
    pub(super) fn put(
        &mut self,
        to: Through,
        whose: Whose,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> Put {
        let room = HEADER_LEN + capacity;
        if self.piece.capacity() < room {
            self.piece = BytesMut::with_capacity(PIECE.max(room));
        }
        self.piece.resize(room, 0);
        let len = write(&mut self.piece[HEADER_LEN..]).min(capacity);
        let Some(queues) = self.queues.get_mut(&to.relay) else { return Put::Gone };
        if len == 0 {
            return Put::Nothing;
        }
        if len > *SEALED_LEN.end() {
            return Put::TooBig;
        }
        self.piece.truncate(HEADER_LEN + len);
        let bytes = self.piece.split();
        queues.filled.push((whose, Packet { to: to.peer, bytes }));
        self.filled += 1;
        if queues.filled.len() >= AT_ONCE {
            self.turned_away += queues.flush();
        }
        Put::Waits
    }

    /// Hands everything to the connections. Gives how many packets found no room since the last time.
    pub(super) fn flush(&mut self) -> u64 {
        if self.filled > 0 {
            self.filled = 0;
            self.turned_away += self.queues.values_mut().map(Queues::flush).sum::<u64>();
        }
        std::mem::take(&mut self.turned_away)
    }
}

/// A sealed packet that a relay brought.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) from: Through,
    pub(super) bytes: Bytes,
}

type Incoming = Shares<Through, Brought>;

/// Takes packets from relays to the worker. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inlet {
    incoming: Arc<Mutex<Incoming>>,
    wake: Arc<EventFd>,
    /// Packets that found no room.
    turned_away: Arc<AtomicU64>,
}

/// The worker's side of [`Inlet`].
#[derive(Debug)]
pub(super) struct Delivery {
    incoming: Arc<Mutex<Incoming>>,
}

fn lock(incoming: &Mutex<Incoming>) -> MutexGuard<'_, Incoming> {
    incoming.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Delivery {
    /// Puts up to `most` packets into `batch`, and says whether there are more.
    pub(super) fn take(&self, most: usize, batch: &mut Vec<Brought>) -> bool {
        let mut incoming = lock(&self.incoming);
        while batch.len() < most
            && let Some(packet) = incoming.pop()
        {
            batch.push(packet);
        }
        !incoming.is_empty()
    }
}

impl Inlet {
    pub(super) fn new(wake: Arc<EventFd>) -> (Self, Delivery) {
        let incoming = Arc::new(Mutex::new(Shares::new(INCOMING)));
        let delivery = Delivery { incoming: incoming.clone() };
        (Self { incoming, wake, turned_away: Arc::default() }, delivery)
    }

    /// Hands packets to the worker; those of a peer, at a relay, that has too many waiting are counted and let go.
    pub fn bring<'a>(&self, packets: impl IntoIterator<Item = (Through, &'a [u8])>) {
        let mut piece = BytesMut::new();
        let packets: Vec<Brought> = packets
            .into_iter()
            .map(|(from, sealed)| {
                // Copied: what waits must not hold on to the whole of what the socket gave.
                if piece.capacity() < sealed.len() {
                    piece = BytesMut::with_capacity(PIECE.max(sealed.len()));
                }
                piece.extend_from_slice(sealed);
                Brought { from, bytes: piece.split().freeze() }
            })
            .collect();
        if packets.is_empty() {
            return;
        }
        let mut turned_away = 0;
        let mut incoming = lock(&self.incoming);
        let was_empty = incoming.is_empty();
        for packet in packets {
            let len = packet.bytes.len();
            turned_away += u64::from(!incoming.push(packet.from, packet, len));
        }
        drop(incoming);
        if turned_away > 0 {
            self.turned_away.fetch_add(turned_away, Ordering::Relaxed);
        }
        if was_empty {
            // Where some are waiting the worker knows of them. A full counter (EAGAIN) wakes it just as well.
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
mod tests;
