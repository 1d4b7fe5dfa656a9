//! One UDP port for QUIC and for tunnels, which have sockets of their own there.
//!
//! The kernel tells them apart by a bit of the first byte, and gives each socket its own. But it merges datagrams of one
//! sender by their lengths before, whatever is in them, and then goes by the first. So both sides look at each datagram, and
//! hand those that aren't their own over to the other: in bounded queues, which count what finds no room.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use anteroom_proto::relay::mirror::QUIC_BIT;
use quinn::AsyncUdpSocket;
use quinn::udp::RecvMeta;

use crate::sifted::{Sift, Sifted};

/// Datagrams that wait to be handed over in one direction, and their bytes: what a few merged ones hold.
const MOST: usize = 1_024;
const MOST_BYTES: usize = 1 << 20;

/// Whether a datagram is QUIC's: neither end of ours leaves the bit out, and no message of the tunnels has it.
#[must_use]
pub fn is_quic(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & QUIC_BIT != 0)
}

/// Moves the datagrams for which `keep` holds to the front of a buffer, in which all are `stride` bytes long but the
/// last, which may be shorter. Returns how many bytes they have. `keep` sees each once, in order.
pub fn retain(buffer: &mut [u8], stride: usize, mut keep: impl FnMut(&[u8]) -> bool) -> usize {
    let (stride, len) = (stride.max(1), buffer.len());
    let mut kept = 0;
    for start in (0..len).step_by(stride) {
        let end = (start + stride).min(len);
        let Some(datagram) = buffer.get(start..end) else { break };
        if keep(datagram) {
            if kept != start {
                buffer.copy_within(start..end, kept);
            }
            kept += end - start;
        }
    }
    kept
}

/// A datagram that came to the wrong socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Who sent it.
    pub from: SocketAddr,
    /// All of it.
    pub bytes: Box<[u8]>,
}

#[derive(Default)]
struct Waiting {
    strays: VecDeque<Stray>,
    bytes: usize,
    /// Who takes them.
    taker: Option<Waker>,
    passed: u64,
    turned_away: u64,
}

/// What waits to be handed over in one direction.
#[derive(Default)]
pub struct Strays(Mutex<Waiting>);

impl Strays {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a datagram over. One that finds no room is counted.
    pub fn put(&self, from: SocketAddr, bytes: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.strays.len() >= MOST || waiting.bytes + bytes.len() > MOST_BYTES {
            waiting.turned_away += 1;
            return;
        }
        waiting.bytes += bytes.len();
        waiting.passed += 1;
        waiting.strays.push_back(Stray { from, bytes: bytes.into() });
        let taker = waiting.taker.clone();
        drop(waiting);
        if let Some(taker) = taker {
            taker.wake();
        }
    }

    /// The one that came first.
    #[must_use]
    pub fn take(&self) -> Option<Stray> {
        let mut waiting = self.waiting();
        let stray = waiting.strays.pop_front()?;
        waiting.bytes -= stray.bytes.len();
        Some(stray)
    }

    /// Has this one woken, and nobody else, whenever there is something to take.
    pub fn wake(&self, taker: &Waker) {
        let mut waiting = self.waiting();
        if !waiting.taker.as_ref().is_some_and(|before| before.will_wake(taker)) {
            waiting.taker = Some(taker.clone());
        }
    }

    /// How many were handed over so far, and how many found no room.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let waiting = self.waiting();
        (waiting.passed, waiting.turned_away)
    }
}

impl fmt::Debug for Strays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Strays").field(&self.counts()).finish()
    }
}

/// What the two sides of one port hand over to each other.
#[derive(Debug, Default)]
pub struct Shared {
    /// QUIC's, that came to others.
    pub quic: Strays,
    /// Others', that came to QUIC.
    pub others: Strays,
}

/// QUIC's side of a port that it shares.
pub(super) struct OnePort {
    shared: Arc<Shared>,
    ipv6: bool,
}

impl OnePort {
    /// `socket`, with what is handed over to QUIC, and without what isn't QUIC's.
    ///
    /// # Errors
    /// When the socket doesn't say its address.
    pub(super) fn over(
        socket: Arc<dyn AsyncUdpSocket>,
        shared: Arc<Shared>,
    ) -> io::Result<Sifted<Self>> {
        let ipv6 = socket.local_addr()?.is_ipv6();
        Ok(Sifted::new(socket, Arc::new(Self { shared, ipv6 })))
    }

    /// As the socket itself would say it.
    fn named(&self, from: SocketAddr) -> SocketAddr {
        match from {
            SocketAddr::V4(v4) if self.ipv6 => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            other => other,
        }
    }

    /// Puts what was handed over into the buffers. Returns how many that were. The tunnels' socket doesn't say to which
    /// address they came, nor their ECN bits: where this end has more addresses, a connection that begins with one of them is
    /// answered from the one that routes choose.
    fn take_strays(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut filled = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta) {
            let Some(stray) = self.shared.quic.take() else { break };
            let len = stray.bytes.len();
            // Longer than QUIC takes it is nothing.
            let len = if len > buffer.len() { 0 } else { len };
            buffer[..len].copy_from_slice(&stray.bytes[..len]);
            let addr = self.named(stray.from);
            *meta = RecvMeta { addr, len, stride: len, ..RecvMeta::default() };
            filled += 1;
        }
        filled
    }
}

impl Sift for OnePort {
    /// Hands over what isn't QUIC's.
    fn sift(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let len = meta.len.min(buffer.len());
        let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
        meta.len = retain(&mut buffer[..len], meta.stride, |datagram| {
            let own = is_quic(datagram);
            if !own {
                self.shared.others.put(from, datagram);
            }
            own
        });
    }

    fn bring(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> usize {
        // Before it is looked, or what comes in between would wake nobody.
        self.shared.quic.wake(cx.waker());
        self.take_strays(bufs, meta)
    }
}

#[cfg(test)]
mod tests;
