//! What a connection to a relay carries, both ways, and how it makes way for a better one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anteroom_agent_core::target::{RelayId, Through};
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_proto::relay::PeerState;
use anteroom_proto::relay::packet::{self, Datagram, HEADER_LEN};
use anteroom_transport::datagrams;
use anteroom_transport::link::{Connection, SendDatagramError};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;

use super::peers::Peers;
use crate::dataplane::relayed::{Inlet, Outgoing, Packet};

/// How long what was sent may take to arrive before a better connection is taken.
pub(super) const BARRIER: Duration = Duration::from_millis(500);
/// How long the relay may take to say what peers are called before packets are taken all the same.
const WORD: Duration = Duration::from_secs(1);
/// Packets that a connection took and may not have sent: its buffer holds fewer.
const MOST_GIVEN: usize = 1_024;
/// Packets of a relay that are handed to the worker at once.
const BATCH: usize = 64;

/// What the tasks of one connection share.
pub(super) struct Shared {
    pub(super) connection: Connection,
    /// This gateway's identity key that the relay knows it by.
    pub(super) identity: PublicKey,
    /// Number of the authority document that the hello named.
    pub(super) told: u64,
    peers: Mutex<Peers>,
    /// How often the relay has said how it stands with peers.
    heard: watch::Sender<u64>,
    barrier: Barrier,
    /// How far the change to a better connection has come.
    pub(super) change: watch::Sender<Change>,
    /// Whether it has met as many peers as the relay lets a connection meet.
    pub(super) worn: watch::Sender<bool>,
    pub(super) dropped: AtomicU64,
    /// Datagrams that the connection took.
    given: AtomicU64,
}

/// Marks that are sent behind all that has to arrive first, and come back. Each change has one of its own: the answer to an earlier one that
/// comes late says nothing of what was sent since.
#[derive(Debug, Default)]
struct Barrier {
    /// The last mark that was sent.
    sent: AtomicU64,
    /// The last that came back.
    back: watch::Sender<u64>,
}

impl Barrier {
    /// The next mark.
    fn mark(&self) -> u64 {
        self.sent.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A mark came back, or whatever a relay makes up, which knows those that were sent.
    fn hear(&self, mark: u64) {
        let sent = self.sent.load(Ordering::Relaxed);
        self.back.send_if_modified(|back| {
            let news = *back < mark && mark <= sent;
            if news {
                *back = mark;
            }
            news
        });
    }

    /// Waits until a mark has come back.
    async fn passed(&self, mark: u64) {
        // It is told from here, so that there is always somebody who tells.
        let _ = self.back.subscribe().wait_for(|back| *back >= mark).await;
    }
}

/// How far the change to a better connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// There is none. Packets go by the connection so far.
    None,
    /// There is one to be greeted, once the relay has all that was sent.
    Asked,
    /// The relay has all that was sent. More waits.
    Ready,
    /// The relay takes its time. Packets go by the connection so far again.
    Slow,
}

impl Shared {
    pub(super) fn new(connection: Connection, identity: PublicKey, told: u64) -> Self {
        Self {
            connection,
            identity,
            told,
            peers: Mutex::default(),
            heard: watch::Sender::new(0),
            barrier: Barrier::default(),
            change: watch::Sender::new(Change::None),
            worn: watch::Sender::new(false),
            dropped: AtomicU64::new(0),
            given: AtomicU64::new(0),
        }
    }

    /// Waits until the change to a better connection has come so far.
    pub(super) async fn reach(&self, far: impl Fn(Change) -> bool) {
        // It is told from here, so that there is always somebody who tells.
        let _ = self.change.subscribe().wait_for(|change| far(*change)).await;
    }

    /// Waits until the relay has all that was sent, for a moment at most.
    async fn all_sent(&self) {
        let sent = async {
            let mark = self.barrier.mark();
            if self.send(packet::probe(mark.to_be_bytes()).into()).await.is_ok() {
                self.barrier.passed(mark).await;
            }
        };
        let _ = timeout(BARRIER, sent).await;
    }

    /// Takes over what the relay says of those whom this gateway's pass `names`.
    pub(super) fn hear(&self, states: Vec<PeerState>, names: impl Fn(&GatewayId) -> bool) {
        self.peers().hear(states, names);
        self.heard.send_modify(|heard| *heard += 1);
    }

    pub(super) fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a datagram once there is room for it. Dropping the future sends nothing.
    async fn send(&self, datagram: Bytes) -> Result<(), SendDatagramError> {
        self.connection.send_datagram_wait(datagram).await?;
        self.given.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// How many datagrams the connection took and hasn't sent.
    pub(super) fn unsent(&self) -> usize {
        let given = self.given.load(Ordering::Relaxed);
        let unsent = self.connection.datagrams_sent().map_or(0, |sent| given.saturating_sub(sent));
        usize::try_from(unsent).unwrap_or(usize::MAX)
    }

    /// Writes in front of those `packets` for whom they are; those for nobody who is here are dropped.
    fn address(&self, packets: impl IntoIterator<Item = Packet>) -> Vec<(GatewayId, Bytes)> {
        let peers = self.peers();
        let mut numbers = Runs::default();
        let addressed = packets.into_iter().filter_map(|Packet { to, mut bytes }| {
            let number = numbers.of(to, || peers.numbers.get(&to).map(|state| state.number));
            let (Some(number), Some(head)) = (number, bytes.get_mut(..HEADER_LEN)) else {
                self.drop_some(1);
                return None;
            };
            head.copy_from_slice(&packet::header(number, false));
            Some((to, bytes.freeze()))
        });
        addressed.collect()
    }

    fn drop_some(&self, packets: u64) {
        self.dropped.fetch_add(packets, Ordering::Relaxed);
    }

    /// The longest sealed packet that this end can send now.
    pub(super) fn room(&self) -> u16 {
        self.connection.sealed_room()
    }
}

/// Who was looked up last: packets mostly come in runs of one peer's.
struct Runs<K, V>(Option<(K, V)>);

impl<K, V> Default for Runs<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Copy + Eq, V: Copy> Runs<K, V> {
    fn of(&mut self, key: K, look_up: impl FnOnce() -> V) -> V {
        match self.0 {
            Some((last, value)) if last == key => value,
            _ => self.0.insert((key, look_up())).1,
        }
    }
}

/// Packets that were taken from the data plane. They outlive the connection that they were taken for: what that hasn't sent, the
/// one that has its place sends.
#[derive(Debug, Default)]
pub(super) struct InHand {
    /// Not given to the connection yet.
    waiting: VecDeque<(GatewayId, Bytes)>,
    /// Those that it took last and may not have sent: [`MOST_GIVEN`] at most.
    given: VecDeque<(GatewayId, Bytes)>,
}

impl InHand {
    /// The connection took the first that waits.
    fn give(&mut self) {
        self.given.extend(self.waiting.pop_front());
        self.keep(MOST_GIVEN);
    }

    /// Forgets what the connection took, but for the last `unsent`.
    fn keep(&mut self, unsent: usize) {
        self.given.drain(..self.given.len().saturating_sub(unsent));
    }

    /// Another connection has the place of the one so far. The last `unsent` that this one took wait again.
    pub(super) fn renew(&mut self, unsent: usize) {
        self.keep(unsent);
        self.given.append(&mut self.waiting);
        std::mem::swap(&mut self.given, &mut self.waiting);
    }

    /// Addresses what waits as `shared` has it.
    fn address(&mut self, shared: &Shared) {
        let waiting = self.waiting.drain(..);
        let waiting = waiting.map(|(to, bytes)| Packet { to, bytes: bytes.into() });
        self.waiting = shared.address(waiting.collect::<Vec<_>>()).into();
    }
}

/// Takes what the data plane has for the relay, until the connection ends. While the relay is asked to take a better one,
/// packets wait for that, for a moment: those sent by this one behind the question would be lost.
pub(super) async fn take_packets(shared: &Shared, outgoing: &mut Outgoing, hand: &mut InHand) {
    let mut batch = Vec::new();
    // Until the relay has said what peers are called, nothing can be sent. What was taken before would be lost.
    let _ = timeout(WORD, shared.heard.subscribe().wait_for(|heard| *heard > 0)).await;
    hand.address(shared);
    'connection: loop {
        let space = shared.connection.datagram_send_buffer_space();
        let more = tokio::select! {
            biased;
            () = shared.reach(|change| change == Change::Ready) => {
                shared.reach(|change| matches!(change, Change::None | Change::Slow)).await;
                continue;
            }
            () = shared.reach(|change| change == Change::Asked) => {
                shared.all_sent().await;
                shared.change.send_if_modified(|change| {
                    let asked = *change == Change::Asked;
                    if asked {
                        *change = Change::Ready;
                    }
                    asked
                });
                shared.reach(|change| matches!(change, Change::None | Change::Slow)).await;
                continue;
            }
            () = std::future::ready(()), if !hand.waiting.is_empty() => true,
            more = outgoing.take(space, &mut batch) => more,
        };
        if !more {
            break;
        }
        hand.keep(shared.unsent());
        hand.waiting.extend(shared.address(batch.drain(..)));
        while let Some((_, packet)) = hand.waiting.front() {
            let sent = tokio::select! {
                biased;
                sent = shared.send(packet.clone()) => sent,
                // Where there is no room any more, it waits for the other as well.
                () = shared.reach(|change| change == Change::Ready) => continue 'connection,
            };
            match sent {
                Ok(()) => hand.give(),
                Err(SendDatagramError::TooLarge) => {
                    hand.waiting.pop_front();
                    shared.drop_some(1);
                }
                Err(SendDatagramError::Gone) => break 'connection,
            }
        }
    }
    shared.connection.closed().await;
}

/// Brings the data plane what the relay has for it, until the connection ends.
pub(super) async fn bring_packets(shared: &Shared, relay: RelayId, inlet: &Inlet) {
    let (mut batch, mut heard) = (Vec::new(), shared.heard.subscribe());
    loop {
        tokio::select! {
            read = datagrams::read(&shared.connection, BATCH, &mut batch) => if read.is_err() { return },
            // It is told from here, so that there is always somebody who tells.
            _ = heard.changed() => {}
        }
        let now = Instant::now();
        let mut peers = shared.peers();
        let waited = peers.named(now);
        shared.drop_some(waited.late);
        inlet.bring(waited.named.iter().filter_map(|(peer, datagram)| {
            let Some(Datagram::Packet { sealed, .. }) = packet::parse(datagram) else {
                return None;
            };
            Some((Through { relay, peer: *peer }, sealed))
        }));
        let mut names = Runs::default();
        inlet.bring(batch.iter().filter_map(|datagram| match packet::parse(datagram) {
            Some(Datagram::Packet { peer: number, sealed, .. }) => {
                let peer = names.of(number, || peers.names.get(&number).copied());
                if peer.is_none() && !peers.wait(number, datagram, now) {
                    shared.drop_some(1);
                }
                Some((Through { relay, peer: peer? }, sealed))
            }
            Some(Datagram::Answer(mark)) => {
                shared.barrier.hear(u64::from_be_bytes(mark));
                None
            }
            // The connection measures the round trip by itself.
            Some(Datagram::Probe(_)) => None,
            None => {
                shared.drop_some(1);
                None
            }
        }));
        drop(peers);
        batch.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_comes_back_late_says_nothing_of_what_was_sent_since() {
        use futures_util::FutureExt;
        let barrier = Barrier::default();
        barrier.hear(1);
        let first = barrier.mark();
        assert_eq!(barrier.passed(first).now_or_never(), None, "nothing was sent when that came");
        // Nobody waits any more when it comes.
        barrier.hear(first);
        let second = barrier.mark();
        assert_eq!(barrier.passed(second).now_or_never(), None);
        for made_up in [0, first, u64::MAX, second + 1] {
            barrier.hear(made_up);
            assert_eq!(barrier.passed(second).now_or_never(), None, "{made_up}");
        }
        barrier.hear(second);
        assert_eq!(barrier.passed(second).now_or_never(), Some(()));
    }

    #[test]
    fn the_next_connection_sends_what_the_one_before_took_and_never_sent_and_then_the_rest() {
        let to = GatewayId::from_bytes([1; 16]);
        let packet = |n: u8| (to, Bytes::from(vec![n]));
        let mut hand = InHand::default();
        hand.waiting.extend((0..6).map(packet));
        (0..4).for_each(|_| hand.give());
        hand.renew(2);
        assert!(hand.waiting.iter().eq([2, 3, 4, 5].map(packet).iter()), "{hand:?}");
        hand.give();
        hand.renew(0);
        assert!(hand.waiting.iter().eq([3, 4, 5].map(packet).iter()), "{hand:?}");
        assert!(hand.given.is_empty());
        hand.waiting.extend((0..200).map(packet).cycle().take(2 * MOST_GIVEN));
        (0..2 * MOST_GIVEN).for_each(|_| hand.give());
        assert_eq!(hand.given.len(), MOST_GIVEN);
    }
}
