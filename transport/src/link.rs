//! A connection, whichever way it took: QUIC, or TLS over TCP where UDP doesn't get through.
//!
//! Both carry one stream of messages and datagrams, know the other end by its key and tell why they ended. What speaks
//! over them needn't know which it is; people want to.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anteroom_proto::key::PublicKey;
use anteroom_proto::relay::packet::{HEADER_LEN, SEALED_LEN};
use bytes::Bytes;
use quinn::{ConnectionError, Endpoint, VarInt};

use crate::answers;
use crate::endpoint;
use crate::lost::{Lost, Tallied};
use crate::tcp::{self, Tcp, TcpReceive, TcpSend};
use crate::tls::Protocol;

/// Every path of QUIC takes datagrams of so many bytes (RFC 9000, section 14).
const LEAST: u16 = 1_200;
/// How long a closing word may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// QUIC, over UDP.
    Quic,
    /// TLS, over TCP.
    Tcp,
}

impl Carrier {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Quic => Self::Tcp,
            Self::Tcp => Self::Quic,
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "QUIC",
            Self::Tcp => "TCP",
        })
    }
}

/// Why a connection has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// One over QUIC.
    #[error(transparent)]
    Quic(#[from] ConnectionError),
    /// One over TCP.
    #[error(transparent)]
    Tcp(#[from] tcp::Ended),
}

impl Closed {
    /// Whether the other end closed it, of its own will.
    #[must_use]
    pub const fn is_by_peer(&self) -> bool {
        matches!(
            self,
            Self::Quic(ConnectionError::ApplicationClosed(_))
                | Self::Tcp(tcp::Ended::ByPeer { .. })
        )
    }

    /// Whether nothing was heard of the other end any more.
    #[must_use]
    pub const fn is_silence(&self) -> bool {
        matches!(self, Self::Quic(ConnectionError::TimedOut) | Self::Tcp(tcp::Ended::TimedOut))
    }
}

/// What a connection has sent that wants an answer, and how many answers have come. Over TCP neither is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Frames that the other end has to acknowledge.
    pub questions: u64,
    /// How often the other end acknowledged something that it hadn't before. A network that lets only what comes through brings
    /// packets, old acknowledgements too, and none of these.
    pub answers: u64,
}

/// Why a datagram wasn't taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendDatagramError {
    /// Longer than the connection carries now.
    #[error("the datagram is longer than the connection carries")]
    TooLarge,
    /// The connection is gone, or carries no datagrams.
    #[error("the connection takes no datagrams")]
    Gone,
}

impl From<quinn::SendDatagramError> for SendDatagramError {
    fn from(error: quinn::SendDatagramError) -> Self {
        match error {
            quinn::SendDatagramError::TooLarge => Self::TooLarge,
            _ => Self::Gone,
        }
    }
}

/// A connection. Clones are the same one; it ends with the last of them and of its streams, or when one is told to
/// close it.
#[derive(Debug, Clone)]
pub enum Connection {
    /// Over QUIC.
    Quic(Tallied),
    /// Over TCP.
    Tcp(Tcp),
}

impl From<quinn::Connection> for Connection {
    fn from(connection: quinn::Connection) -> Self {
        Self::Quic(connection.into())
    }
}

impl Connection {
    /// What carries it.
    #[must_use]
    pub const fn carrier(&self) -> Carrier {
        match self {
            Self::Quic(_) => Carrier::Quic,
            Self::Tcp(_) => Carrier::Tcp,
        }
    }

    /// The key that the other end proved. There always is one once the handshake is through.
    #[must_use]
    pub fn peer_key(&self) -> Option<PublicKey> {
        match self {
            Self::Quic(connection) => endpoint::peer_key(connection),
            Self::Tcp(connection) => Some(connection.peer_key()),
        }
    }

    /// What both ends agreed to speak. There always is something once the handshake is through.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        match self {
            Self::Quic(connection) => endpoint::protocol(connection),
            Self::Tcp(connection) => Some(connection.protocol()),
        }
    }

    /// Where the other end is now.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(connection) => connection.remote_address(),
            Self::Tcp(connection) => connection.remote_address(),
        }
    }

    /// Opens the one stream: for the end that connected.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), Closed> {
        match self {
            Self::Quic(connection) => {
                let (send, receive) = connection.open_bi().await?;
                Ok((send.into(), receive.into()))
            }
            Self::Tcp(connection) => connection.stream(),
        }
    }

    /// Waits for the one stream: for the end that listens.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Closed> {
        match self {
            Self::Quic(connection) => {
                let (send, receive) = connection.accept_bi().await?;
                Ok((send.into(), receive.into()))
            }
            Self::Tcp(connection) => connection.stream(),
        }
    }

    /// Closes it, with a word of why. What was written and not sent may be lost.
    pub fn close(&self, code: VarInt, reason: &[u8]) {
        match self {
            Self::Quic(connection) => connection.close(code, reason),
            Self::Tcp(connection) => {
                connection.close(u32::try_from(code.into_inner()).unwrap_or(u32::MAX), reason);
            }
        }
    }

    /// Waits until it has ended, and says why.
    pub async fn closed(&self) -> Closed {
        match self {
            Self::Quic(connection) => connection.closed().await.into(),
            Self::Tcp(connection) => connection.closed().await.into(),
        }
    }

    /// Why it has ended, if it has.
    #[must_use]
    pub fn close_reason(&self) -> Option<Closed> {
        match self {
            Self::Quic(connection) => connection.close_reason().map(Closed::Quic),
            Self::Tcp(connection) => connection.close_reason().map(Closed::Tcp),
        }
    }

    /// Round trip, as far as it is known.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        match self {
            Self::Quic(connection) => connection.rtt(),
            Self::Tcp(connection) => connection.rtt(),
        }
    }

    /// What was asked and answered so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        match self {
            Self::Quic(connection) => {
                let sent = connection.stats().frame_tx;
                Traffic {
                    questions: sent.datagram + sent.stream + sent.ping + sent.max_data,
                    answers: answers::of(connection),
                }
            }
            Self::Tcp(_) => Traffic::default(),
        }
    }

    /// Sends something that wants an answer, and that nothing else waits for. Over TCP, and by the end that listens, nothing is
    /// sent. [`traffic`](Self::traffic) tells what has really left.
    pub fn ask(&self) {
        match self {
            Self::Quic(connection) => answers::ask(connection),
            Self::Tcp(_) => {}
        }
    }

    /// How many datagrams have left. The others that it took wait in its buffer. Over TCP it isn't known.
    #[must_use]
    pub fn datagrams_sent(&self) -> Option<u64> {
        match self {
            Self::Quic(connection) => Some(connection.stats().frame_tx.datagram),
            Self::Tcp(_) => None,
        }
    }

    /// The longest datagram that it carries now. None where it carries none.
    #[must_use]
    pub fn max_datagram_size(&self) -> Option<usize> {
        match self {
            Self::Quic(connection) => connection.max_datagram_size(),
            Self::Tcp(connection) => connection.max_datagram_size(),
        }
    }

    /// Whether it sends packets that an interface which takes `mtu` bytes of IP doesn't take in one piece. One over QUIC whose way
    /// has changed would find that out by what it loses. One over TCP ends where its way changes.
    #[must_use]
    pub fn is_too_long_for(&self, mtu: u16) -> bool {
        let Self::Quic(connection) = self else { return false };
        let longest = connection.stats().path.current_mtu;
        let headers = match connection.remote_address().ip().to_canonical() {
            IpAddr::V4(_) => 20 + 8,
            IpAddr::V6(_) => 40 + 8,
        };
        longest > LEAST && usize::from(longest) + headers > usize::from(mtu)
    }

    /// The longest sealed packet that it carries now, behind its header; 0 where it carries none.
    #[must_use]
    pub fn sealed_room(&self) -> u16 {
        let longest = self.max_datagram_size().unwrap_or(0).saturating_sub(HEADER_LEN);
        u16::try_from(longest.min(*SEALED_LEN.end())).unwrap_or(u16::MAX)
    }

    /// How many bytes of datagrams it takes before older ones have to wait or go.
    #[must_use]
    pub fn datagram_send_buffer_space(&self) -> usize {
        match self {
            Self::Quic(connection) => connection.datagram_send_buffer_space(),
            Self::Tcp(connection) => connection.datagram_send_buffer_space(),
        }
    }

    /// Sends a datagram; where there is no room the oldest that waits is thrown away for it.
    ///
    /// # Errors
    /// [`SendDatagramError`].
    pub fn send_datagram(&self, datagram: Bytes) -> Result<(), SendDatagramError> {
        match self {
            Self::Quic(connection) => Ok(connection.send_datagram(datagram)?),
            Self::Tcp(connection) => connection.send_datagram(datagram),
        }
    }

    /// Sends a datagram, once there is room for it.
    ///
    /// # Errors
    /// [`SendDatagramError`].
    pub async fn send_datagram_wait(&self, datagram: Bytes) -> Result<(), SendDatagramError> {
        match self {
            Self::Quic(connection) => Ok(connection.send_datagram_wait(datagram).await?),
            Self::Tcp(connection) => connection.send_datagram_wait(datagram).await,
        }
    }

    /// The next datagram. Dropping the future loses none.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn read_datagram(&self) -> Result<Bytes, Closed> {
        match self {
            Self::Quic(connection) => Ok(connection.read_datagram().await?),
            Self::Tcp(connection) => Ok(connection.read_datagram().await?),
        }
    }

    /// Datagrams that its queues have thrown away so far, as far as it is known: of those that came, once all that was left has
    /// been read by [`crate::datagrams`].
    #[must_use]
    pub fn lost(&self) -> Lost {
        match self {
            Self::Quic(connection) => connection.lost(),
            Self::Tcp(connection) => connection.lost(),
        }
    }
}

/// Why nothing can be read from a stream or written to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Reading, over QUIC.
    #[error(transparent)]
    Read(#[from] quinn::ReadError),
    /// Writing, over QUIC.
    #[error(transparent)]
    Write(#[from] quinn::WriteError),
    /// Either, over TCP.
    #[error(transparent)]
    Tcp(#[from] tcp::Ended),
}

/// The end of a stream that is written to.
#[derive(Debug)]
pub enum SendStream {
    /// Over QUIC.
    Quic(quinn::SendStream),
    /// Over TCP.
    Tcp(TcpSend),
}

impl From<quinn::SendStream> for SendStream {
    fn from(stream: quinn::SendStream) -> Self {
        Self::Quic(stream)
    }
}

impl SendStream {
    /// Writes all of `bytes`, as far as the other end lets go of what went before. A future that is dropped half-way
    /// has written some of them.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        match self {
            Self::Quic(stream) => Ok(stream.write_all(bytes).await?),
            Self::Tcp(stream) => Ok(stream.write_all(bytes).await?),
        }
    }

    /// Says that nothing follows, and waits until the other end has all of it, as far as this one can know, or goes
    /// away.
    pub async fn finish(&mut self) {
        match self {
            Self::Quic(stream) => {
                if stream.finish().is_ok() {
                    let _ = stream.stopped().await;
                }
            }
            Self::Tcp(stream) => stream.finish().await,
        }
    }
}

/// The end of a stream that is read from.
#[derive(Debug)]
pub enum RecvStream {
    /// Over QUIC.
    Quic(quinn::RecvStream),
    /// Over TCP.
    Tcp(TcpReceive),
}

impl From<quinn::RecvStream> for RecvStream {
    fn from(stream: quinn::RecvStream) -> Self {
        Self::Quic(stream)
    }
}

impl RecvStream {
    /// The next bytes, `max` at most; none when the other end has finished. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        match self {
            Self::Quic(stream) => Ok(stream.read_chunk(max, true).await?.map(|chunk| chunk.bytes)),
            Self::Tcp(stream) => Ok(stream.read_chunk(max).await?),
        }
    }
}

/// A connection that this end made.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    /// What it was made by, over QUIC.
    endpoint: Option<Endpoint>,
    /// What has its socket leave by the way that is good.
    _follows: Option<Arc<UdpSocket>>,
}

impl Link {
    pub(crate) fn over_quic(
        connection: quinn::Connection,
        endpoint: Endpoint,
        follows: Arc<UdpSocket>,
    ) -> Self {
        Self { connection: connection.into(), endpoint: Some(endpoint), _follows: Some(follows) }
    }

    pub(crate) const fn over_tcp(connection: Tcp) -> Self {
        Self { connection: Connection::Tcp(connection), endpoint: None, _follows: None }
    }

    /// The connection: open its one stream with `open_bi`.
    #[must_use]
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Says goodbye and waits, for half a second at most, until that is on its way.
    pub async fn close(self, reason: &str) {
        self.connection.close(VarInt::from_u32(0), reason.as_bytes());
        let gone = async {
            match &self.endpoint {
                Some(endpoint) => endpoint.wait_idle().await,
                None => {
                    if let Connection::Tcp(connection) = &self.connection {
                        connection.said().await;
                    }
                }
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, gone).await;
    }
}
