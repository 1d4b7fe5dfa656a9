//! The two tasks of a connection: one reads, one writes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anteroom_proto::key::PublicKey;
use anteroom_proto::tcp::{Frame, read, write};
use bytes::{Buf as _, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsStream;

use super::state::{Inner, Left, Shared, lock};
use super::{Ended, Handle, In, LINGER, Out, Tcp};
use crate::endpoint::{IDLE_TIMEOUT, KEEP_ALIVE};
use crate::tls::Protocol;

/// How much is handed to TLS in one go, but for the last frame of it. What is in there can't be thrown away any more.
const BATCH: usize = 16 * 1024;
/// How much room there is for what comes: a batch where packets are carried, a few messages otherwise.
const ROOM_PACKETS: usize = 32 * 1024;
const ROOM_MESSAGES: usize = 4 * 1024;
/// How long the last word may take to leave, and the other end to go.
const GRACE: Duration = Duration::from_secs(1);
/// How long all of that may take, from when the connection has ended. Then its socket is closed.
const LEAVE: Duration = Duration::from_secs(2);
/// What a connection is closed with that broke the protocol.
const BROKEN: u32 = 3;

/// Carries a connection over `stream`, with the other end as TLS has proved it.
pub(crate) fn carry(
    stream: impl Into<TlsStream<TcpStream>>,
    who: (PublicKey, Protocol),
    remote: SocketAddr,
    round_trip: Duration,
) -> Tcp {
    let (shared, inner) = Shared::new(who, remote, round_trip);
    let shared = Arc::new(shared);
    tokio::spawn(run(shared.clone(), stream.into(), inner));
    Tcp(Arc::new(Handle { shared }))
}

async fn run(shared: Arc<Shared>, stream: TlsStream<TcpStream>, inner: Inner) {
    let (mut from, mut to) = tokio::io::split(stream);
    let overdue = async {
        shared.ended().await;
        sleep(LEAVE).await;
    };
    // Whoever is at the other end has no say in how long this takes: neither by reading nothing, nor by going on
    // talking.
    let in_order = tokio::select! {
        in_order = both(&shared, &mut from, &mut to, inner) => in_order,
        () = overdue => false,
    };
    let stream = from.unsplit(to);
    if !in_order {
        // What the other end hasn't taken goes with the socket.
        let _ = SockRef::from(stream.get_ref().0).set_linger(Some(Duration::ZERO));
    }
    drop(stream);
    shared.left.send_replace(Left::Gone);
    shared.arrived.notify_one();
}

/// Reads and writes until the connection has ended. Gives whether its last word is with the system.
async fn both(
    shared: &Shared,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    (out, brought): Inner,
) -> bool {
    let mut reading = std::pin::pin!(read_frames(shared, from, brought));
    let mut writing = std::pin::pin!(write_frames(shared, to, out));
    tokio::select! {
        why = &mut reading => {
            if let Ended::Broken(error) = &why {
                let reason = error.to_string().into_bytes();
                lock(&shared.state).leaving.get_or_insert((BROKEN, reason));
            }
            shared.end(why);
            shared.write.notify_one();
            matches!(timeout(GRACE, writing).await, Ok(Ok(())))
        }
        written = &mut writing => {
            shared.left.send_replace(Left::Said);
            let said = written.is_ok();
            // The other end reads the last word and goes. Where it has gone already, its own last word may still be
            // on the way. A connection that is closed before all is read could take both with it.
            let read = timeout(GRACE, reading).await;
            shared.end(read.unwrap_or(written.err().unwrap_or(Ended::Reset)));
            said
        }
    }
}

fn failed(error: &io::Error) -> Ended {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => Ended::Reset,
        io::ErrorKind::TimedOut => Ended::TimedOut,
        _ => Ended::Failed(error.to_string()),
    }
}

/// Reads until there is no more, and says why.
async fn read_frames(
    shared: &Shared,
    from: &mut (impl AsyncRead + Unpin),
    brought: mpsc::Sender<In>,
) -> Ended {
    let packets = shared.protocol == Protocol::Relay;
    let room = if packets { ROOM_PACKETS } else { ROOM_MESSAGES };
    let mut brought = Some(brought);
    let mut buffer = BytesMut::new();
    loop {
        loop {
            let (frame, taken) = match read(&buffer) {
                Ok(Some(read)) => read,
                Ok(None) => break,
                Err(error) => return Ended::Broken(error),
            };
            let mut bring = None;
            match frame {
                Frame::Piece(piece) => bring = Some(In::Piece(Bytes::copy_from_slice(piece))),
                Frame::Finish => bring = Some(In::Finish),
                Frame::Datagram(datagram) if packets => {
                    lock(&shared.state).push_in(Bytes::copy_from_slice(datagram));
                    shared.arrived.notify_one();
                }
                Frame::Datagram(_) => {}
                Frame::Ping(nonce) => {
                    lock(&shared.state).pong = Some(nonce);
                    shared.write.notify_one();
                }
                Frame::Pong(nonce) => {
                    lock(&shared.state).answered(nonce, std::time::Instant::now());
                }
                Frame::Close { code, reason } => {
                    let reason = String::from_utf8_lossy(reason).into_owned();
                    return Ended::ByPeer { code, reason };
                }
            }
            buffer.advance(taken);
            if let Some(item) = bring {
                let last = matches!(item, In::Finish);
                // Whoever doesn't read holds the other end up, as far as TCP goes.
                let since = std::time::Instant::now();
                let held = match &brought {
                    None => false,
                    Some(brought) => tokio::select! {
                        sent = brought.send(item) => sent.is_ok(),
                        _ = shared.ended() => false,
                    },
                };
                // What came meanwhile wasn't looked at: that is no silence of the other end.
                lock(&shared.state).looked_away(since, std::time::Instant::now());
                if last || !held {
                    brought = None;
                }
            }
        }
        if lock(&shared.state).unanswered(std::time::Instant::now()) > LINGER {
            return Ended::TimedOut;
        }
        buffer.reserve(room);
        match timeout(IDLE_TIMEOUT, from.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return Ended::Reset,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return failed(&error),
            Err(_) => return Ended::TimedOut,
        }
    }
}

/// What is to be written next.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Who waits until it is with the system.
    told: Option<oneshot::Sender<()>>,
}

impl Batch {
    fn add(&mut self, frame: &Frame<'_>) {
        // All that comes here was cut to what a frame may hold.
        let written = write(frame, &mut self.bytes);
        debug_assert_eq!(written, Ok(()));
    }

    fn add_out(&mut self, out: Out) {
        match out {
            Out::Piece(piece) => self.add(&Frame::Piece(&piece)),
            Out::Finish(told) => {
                self.add(&Frame::Finish);
                self.told = Some(told);
            }
        }
    }

    /// Within the time that the system would wait for an end that takes nothing at all.
    async fn send(&mut self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let written = async {
            to.write_all(&self.bytes).await?;
            to.flush().await
        };
        timeout(LINGER, written).await.map_err(|_| io::ErrorKind::TimedOut)??;
        self.bytes.clear();
        if let Some(told) = self.told.take() {
            let _ = told.send(());
        }
        Ok(())
    }
}

/// Writes until the connection has ended, and then its last word.
async fn write_frames(
    shared: &Shared,
    to: &mut (impl AsyncWrite + Unpin),
    mut out: mpsc::Receiver<Out>,
) -> Result<(), Ended> {
    let mut batch = Batch::default();
    let mut next_ping = Instant::now();
    let mut number = 0_u64;
    let mut open = true;
    loop {
        if shared.ended.borrow().is_some() {
            let leaving = lock(&shared.state).leaving.take();
            if let Some((code, reason)) = leaving {
                batch.add(&Frame::Close { code, reason: &reason });
            }
            batch.send(to).await.map_err(|error| failed(&error))?;
            return to.shutdown().await.map_err(|error| failed(&error));
        }
        let pong = lock(&shared.state).pong.take();
        if let Some(nonce) = pong {
            batch.add(&Frame::Pong(nonce));
        }
        if next_ping <= Instant::now() {
            next_ping = Instant::now() + KEEP_ALIVE;
            number += 1;
            batch.add(&Frame::Ping(number.to_be_bytes()));
            lock(&shared.state).ping.get_or_insert((number, std::time::Instant::now()));
        }
        while batch.bytes.len() < BATCH {
            match out.try_recv() {
                Ok(item) => batch.add_out(item),
                Err(_) => break,
            }
        }
        let mut room = false;
        while batch.bytes.len() < BATCH {
            let Some(datagram) = lock(&shared.state).pop_out() else { break };
            batch.add(&Frame::Datagram(&datagram));
            room = true;
        }
        if room {
            shared.room.notify_waiters();
        }
        if batch.bytes.is_empty() {
            tokio::select! {
                item = out.recv(), if open => match item {
                    Some(item) => batch.add_out(item),
                    None => open = false,
                },
                () = shared.write.notified() => {}
                () = sleep_until(next_ping) => {}
            }
            continue;
        }
        batch.send(to).await.map_err(|error| failed(&error))?;
    }
}
