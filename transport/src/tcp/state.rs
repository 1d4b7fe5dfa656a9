//! What a connection's handles and its two tasks share.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anteroom_proto::key::PublicKey;
use anteroom_proto::tcp::PING_LEN;
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};

use super::{Ended, In, Out, PIECES, PIECES_IN, Queue, cut};
use crate::lost::Lost;
use crate::tls::Protocol;

/// Bytes of datagrams that wait for whoever reads them.
const DATAGRAMS_IN: usize = 256 * 1024;
/// Bytes of datagrams that wait for the kernel. Whoever sends many queues them where it can choose which to let go.
const DATAGRAMS_OUT: usize = 32 * 1024;

/// The two ends of a stream that its owner holds.
type Stream = (mpsc::Sender<Out>, mpsc::Receiver<In>);
/// The two that the tasks hold.
pub(super) type Inner = (mpsc::Receiver<Out>, mpsc::Sender<In>);

/// See the module.
pub(crate) struct Shared {
    pub(super) peer: PublicKey,
    pub(super) protocol: Protocol,
    pub(super) remote: SocketAddr,
    pub(super) state: Mutex<State>,
    /// There is something to write.
    pub(super) write: Notify,
    /// There is room for datagrams.
    pub(super) room: Notify,
    /// Datagrams have come.
    pub(super) arrived: Notify,
    /// Why it ended.
    pub(super) ended: watch::Sender<Option<Ended>>,
    /// How far its end has come.
    pub(super) left: watch::Sender<Left>,
}

/// How far a connection's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Left {
    /// It goes on, or has its last word to say.
    Here,
    /// Its last word is with the system, or never will be.
    Said,
    /// Its socket is closed.
    Gone,
}

/// What changes.
pub(super) struct State {
    /// Until it is opened.
    pub(super) stream: Option<Stream>,
    out: Queue,
    out_bytes: usize,
    incoming: Queue,
    incoming_bytes: usize,
    pub(super) lost: Lost,
    /// What is to be answered.
    pub(super) pong: Option<[u8; PING_LEN]>,
    /// The oldest sign of life that isn't answered: its number, and when it was sent.
    pub(super) ping: Option<(u64, Instant)>,
    pub(super) round_trip: Duration,
    measured: bool,
    /// The last word.
    pub(super) leaving: Option<(u32, Vec<u8>)>,
}

pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Queues and their counts change together; what a panicking holder left is at worst a wrong count.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub(super) fn space(&self) -> usize {
        DATAGRAMS_OUT.saturating_sub(self.out_bytes)
    }

    pub(super) fn push_out(&mut self, datagram: Bytes) {
        let bytes = &mut self.out_bytes;
        self.lost.unsent += push(&mut self.out, bytes, DATAGRAMS_OUT, datagram);
    }

    pub(super) fn push_in(&mut self, datagram: Bytes) {
        let bytes = &mut self.incoming_bytes;
        self.lost.unread += push(&mut self.incoming, bytes, DATAGRAMS_IN, datagram);
    }

    pub(super) fn pop_in(&mut self) -> Option<Bytes> {
        pop(&mut self.incoming, &mut self.incoming_bytes)
    }

    /// The next datagram to write.
    pub(super) fn pop_out(&mut self) -> Option<Bytes> {
        pop(&mut self.out, &mut self.out_bytes)
    }

    /// How long the oldest sign of life has waited for its answer.
    pub(super) fn unanswered(&self, now: Instant) -> Duration {
        self.ping.map_or(Duration::ZERO, |(_, sent)| now.saturating_duration_since(sent))
    }

    /// Nothing was read between these two: whoever reads the stream had enough.
    pub(super) fn looked_away(&mut self, since: Instant, until: Instant) {
        if let Some((_, sent)) = &mut self.ping {
            *sent = (*sent + until.saturating_duration_since(since)).min(until);
        }
    }

    /// A sign of life came back.
    pub(super) fn answered(&mut self, nonce: [u8; PING_LEN], now: Instant) {
        let number = u64::from_be_bytes(nonce);
        // The other end answers the newest of those that it has read, for all of them.
        let Some((_, sent)) = self.ping.filter(|(first, _)| *first <= number) else { return };
        self.ping = None;
        let took = now.saturating_duration_since(sent);
        self.round_trip = if self.measured { (self.round_trip * 3 + took) / 4 } else { took };
        self.measured = true;
    }
}

/// Appends `datagram` and throws the oldest away until there is room. Gives how many went.
fn push(queue: &mut Queue, bytes: &mut usize, most: usize, datagram: Bytes) -> u64 {
    *bytes += datagram.len();
    queue.push_back(datagram);
    let mut gone = 0;
    while *bytes > most && pop(queue, bytes).is_some() {
        gone += 1;
    }
    gone
}

fn pop(queue: &mut Queue, bytes: &mut usize) -> Option<Bytes> {
    let datagram = queue.pop_front()?;
    *bytes -= datagram.len();
    Some(datagram)
}

impl Shared {
    pub(super) fn new(
        (peer, protocol): (PublicKey, Protocol),
        remote: SocketAddr,
        round_trip: Duration,
    ) -> (Self, Inner) {
        let (pieces, out) = mpsc::channel(PIECES);
        let (brought, incoming) = mpsc::channel(PIECES_IN);
        let state = State {
            stream: Some((pieces, incoming)),
            out: Queue::new(),
            out_bytes: 0,
            incoming: Queue::new(),
            incoming_bytes: 0,
            lost: Lost::default(),
            pong: None,
            ping: None,
            round_trip,
            measured: false,
            leaving: None,
        };
        let shared = Self {
            peer,
            protocol,
            remote,
            state: Mutex::new(state),
            write: Notify::new(),
            room: Notify::new(),
            arrived: Notify::new(),
            ended: watch::Sender::new(None),
            left: watch::Sender::new(Left::Here),
        };
        (shared, (out, brought))
    }

    /// Ends the connection from this end.
    pub(super) fn leave(&self, code: u32, reason: &[u8]) {
        {
            let mut state = lock(&self.state);
            if self.ended.borrow().is_none() && state.leaving.is_none() {
                state.leaving = Some((code, cut(reason).to_vec()));
            }
        }
        self.end(Ended::Here);
        self.write.notify_one();
    }

    /// Notes why it ended, unless that is known. Gives whether it wasn't.
    pub(super) fn end(&self, why: Ended) -> bool {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(why);
            }
            first
        })
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ended::Reset),
            Err(_) => Ended::Reset,
        }
    }
}
