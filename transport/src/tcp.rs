//! TLS over TCP: the same keys, protocols and messages as over QUIC, for networks where UDP doesn't get through.
//!
//! [`connect()`] and [`Acceptor`] make a [`Tcp`]; two tasks then carry it (`carry`), one for each direction, with what
//! [`anteroom_proto::tcp`] says on the wire. All that waits is bounded, and nothing waits long: signs of life go first,
//! then messages, then datagrams, of which the kernel is given no more than it can send soon.

mod accept;
mod carry;
mod connect;
mod state;

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anteroom_proto::key::PublicKey;
use anteroom_proto::tcp::{MAX_DATAGRAM, MAX_PIECE, MAX_REASON};
use bytes::Bytes;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::endpoint::{IDLE_TIMEOUT, KEEP_ALIVE};
use crate::link::{RecvStream, SendDatagramError, SendStream};
use crate::lost::Lost;
use crate::tls::Protocol;
pub use accept::{AcceptError, Acceptor, offers_ours};
pub(crate) use carry::carry;
pub use connect::connect;
use state::{Left, Shared, lock};

/// How long the system may try to bring what was sent last to an end that is gone. That such an end is gone is noticed
/// sooner, by its silence.
const LINGER: Duration = Duration::from_secs(30);
/// Bytes that the kernel may hold beyond what is under way: what is in there can't be thrown away any more.
const UNSENT: u32 = 16 * 1024;
/// Pieces of the stream that wait to be sent.
const PIECES: usize = 4;
/// Pieces that came and wait to be read: more than the longest message has, so that one that has to wait for its time holds up
/// no datagram, sign of life or last word behind it.
const PIECES_IN: usize = 40;

/// How a connection over TCP ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// This end closed it.
    #[error("closed")]
    Here,
    /// The other end closed it.
    #[error("closed by peer: {reason} (code {code})")]
    ByPeer {
        /// Its code.
        code: u32,
        /// Its reason.
        reason: String,
    },
    /// The other end went without a word.
    #[error("reset by peer")]
    Reset,
    /// Nothing was heard of the other end for [`IDLE_TIMEOUT`], or it took and answered nothing for longer.
    #[error("timed out")]
    TimedOut,
    /// What came can't be.
    #[error("the other end broke the protocol: {0}")]
    Broken(anteroom_proto::tcp::FrameError),
    /// TLS or the system.
    #[error("{0}")]
    Failed(String),
    /// The stream was opened before: there is one.
    #[error("the connection has one stream, and that is open")]
    Opened,
}

/// The longest segment, in bytes: what every path of 1,280 carries by IPv6. TLS's first word is longer than most paths'
/// packets, and where a router drops those and tells nobody, the kernel would repeat it for ever.
const SEGMENT: u32 = 1_220;

/// Has both ends of a connection that is about to be made send no longer segments than every path carries.
fn narrow(socket: &TcpSocket) {
    let _ = SockRef::from(socket).set_tcp_mss(SEGMENT);
}

/// Sets what keeps a connection lively: nothing waits to be sent together with more, little waits in the kernel, and
/// an end that is gone shows.
fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let alive = TcpKeepalive::new().with_time(IDLE_TIMEOUT).with_interval(KEEP_ALIVE);
    // Each works without the other.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_notsent_lowat(UNSENT);
    let _ = socket.set_tcp_user_timeout(Some(LINGER));
    let _ = socket.set_tcp_keepalive(&alive);
}

/// A connection over TCP. Clones are the same one.
#[derive(Clone)]
pub struct Tcp(Arc<Handle>);

/// The last one to go closes the connection.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.leave(0, b"");
    }
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tcp")
            .field("remote", &self.0.shared.remote)
            .field("ended", &self.close_reason())
            .finish_non_exhaustive()
    }
}

impl Tcp {
    /// The key that the other end proved.
    #[must_use]
    pub fn peer_key(&self) -> PublicKey {
        self.0.shared.peer
    }

    /// What both ends agreed to speak.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.0.shared.protocol
    }

    /// Where the other end is.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.0.shared.remote
    }

    /// The one stream, once.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn stream(&self) -> Result<(SendStream, RecvStream), crate::link::Closed> {
        if let Some(ended) = self.close_reason() {
            return Err(ended.into());
        }
        let (pieces, incoming) = lock(&self.0.shared.state).stream.take().ok_or(Ended::Opened)?;
        let send = TcpSend { pieces, connection: self.clone() };
        let receive =
            TcpReceive { incoming, rest: Bytes::new(), finished: false, connection: self.clone() };
        Ok((SendStream::Tcp(send), RecvStream::Tcp(receive)))
    }

    /// Closes it, with a word of why.
    pub fn close(&self, code: u32, reason: &[u8]) {
        self.0.shared.leave(code, reason);
    }

    /// Waits until it has ended, and says why.
    pub async fn closed(&self) -> Ended {
        self.0.shared.ended().await
    }

    /// Why it has ended, if it has.
    #[must_use]
    pub fn close_reason(&self) -> Option<Ended> {
        self.0.shared.ended.borrow().clone()
    }

    /// Waits until the last word is on its way.
    pub(crate) async fn said(&self) {
        self.left(Left::Said).await;
    }

    /// Waits until nothing is left of it but these handles: no task, no buffer, no socket. A connection that has ended
    /// comes to that within a few seconds, whatever the other end does.
    pub async fn gone(&self) {
        self.left(Left::Gone).await;
    }

    async fn left(&self, far: Left) {
        let mut left = self.0.shared.left.subscribe();
        let _ = left.wait_for(|left| *left >= far).await;
    }

    /// Round trip through all that waits on the way; that of TCP itself until there is one.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        lock(&self.0.shared.state).round_trip
    }

    /// The longest datagram.
    #[must_use]
    pub fn max_datagram_size(&self) -> Option<usize> {
        (self.protocol() == Protocol::Relay).then_some(MAX_DATAGRAM)
    }

    /// How many bytes of datagrams can be taken now.
    #[must_use]
    pub fn datagram_send_buffer_space(&self) -> usize {
        lock(&self.0.shared.state).space()
    }

    fn check(&self, datagram: &Bytes) -> Result<(), SendDatagramError> {
        if self.close_reason().is_some() {
            return Err(SendDatagramError::Gone);
        }
        match self.max_datagram_size() {
            None => Err(SendDatagramError::Gone),
            Some(max) if datagram.is_empty() || datagram.len() > max => {
                Err(SendDatagramError::TooLarge)
            }
            Some(_) => Ok(()),
        }
    }

    /// Sends a datagram in place of the oldest ones, if it has to be.
    ///
    /// # Errors
    /// [`SendDatagramError`].
    pub fn send_datagram(&self, datagram: Bytes) -> Result<(), SendDatagramError> {
        self.check(&datagram)?;
        let shared = &self.0.shared;
        lock(&shared.state).push_out(datagram);
        shared.write.notify_one();
        Ok(())
    }

    /// Sends a datagram, once there is room for it.
    ///
    /// # Errors
    /// [`SendDatagramError`].
    pub async fn send_datagram_wait(&self, datagram: Bytes) -> Result<(), SendDatagramError> {
        let shared = &self.0.shared;
        loop {
            self.check(&datagram)?;
            let mut room = std::pin::pin!(shared.room.notified());
            room.as_mut().enable();
            {
                let mut state = lock(&shared.state);
                if state.space() >= datagram.len() {
                    state.push_out(datagram);
                    drop(state);
                    shared.write.notify_one();
                    return Ok(());
                }
            }
            tokio::select! {
                () = room => {}
                _ = shared.ended() => return Err(SendDatagramError::Gone),
            }
        }
    }

    /// The next datagram.
    ///
    /// # Errors
    /// [`Ended`], once there are no more.
    pub async fn read_datagram(&self) -> Result<Bytes, Ended> {
        let shared = &self.0.shared;
        loop {
            let mut arrived = std::pin::pin!(shared.arrived.notified());
            arrived.as_mut().enable();
            if let Some(datagram) = lock(&shared.state).pop_in() {
                return Ok(datagram);
            }
            if let Some(ended) = self.close_reason() {
                return Err(ended);
            }
            tokio::select! {
                () = arrived => {}
                _ = shared.ended() => {}
            }
        }
    }

    /// Datagrams that were thrown away for want of room.
    #[must_use]
    pub fn lost(&self) -> Lost {
        lock(&self.0.shared.state).lost
    }
}

/// What goes out on the stream.
#[derive(Debug)]
pub(crate) enum Out {
    Piece(Bytes),
    /// The end of it; told once it is with the system.
    Finish(oneshot::Sender<()>),
}

/// What comes in on the stream.
#[derive(Debug)]
pub(crate) enum In {
    Piece(Bytes),
    Finish,
}

/// The end of the stream that is written to.
#[derive(Debug)]
pub struct TcpSend {
    pieces: mpsc::Sender<Out>,
    connection: Tcp,
}

impl TcpSend {
    fn ended(&self) -> Ended {
        self.connection.close_reason().unwrap_or(Ended::Reset)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        for piece in bytes.chunks(MAX_PIECE) {
            let piece = Out::Piece(Bytes::copy_from_slice(piece));
            tokio::select! {
                sent = self.pieces.send(piece) => sent.map_err(|_| self.ended())?,
                ended = self.connection.closed() => return Err(ended),
            }
        }
        Ok(())
    }

    /// Says that nothing follows, and waits until that is with the system.
    pub async fn finish(&mut self) {
        let (told, done) = oneshot::channel();
        tokio::select! {
            sent = self.pieces.send(Out::Finish(told)) => if sent.is_ok() {
                let _ = done.await;
            },
            _ = self.connection.closed() => {}
        }
    }
}

/// The end of the stream that is read from.
#[derive(Debug)]
pub struct TcpReceive {
    incoming: mpsc::Receiver<In>,
    rest: Bytes,
    finished: bool,
    connection: Tcp,
}

impl TcpReceive {
    /// The next bytes, `max` at most.
    ///
    /// # Errors
    /// [`Ended`], once all that came before is read.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, Ended> {
        while self.rest.is_empty() {
            if self.finished {
                return Ok(None);
            }
            match self.incoming.recv().await {
                Some(In::Piece(piece)) => self.rest = piece,
                Some(In::Finish) => self.finished = true,
                None => return Err(self.connection.closed().await),
            }
        }
        let len = max.min(self.rest.len());
        Ok(Some(self.rest.split_to(len)))
    }
}

/// `reason`, as long as it may be.
fn cut(reason: &[u8]) -> &[u8] {
    reason.get(..MAX_REASON).unwrap_or(reason)
}

/// Datagrams that wait.
type Queue = VecDeque<Bytes>;

#[cfg(test)]
mod tests;
