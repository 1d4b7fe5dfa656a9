//! One gateway's connection to the relay, from its welcome to its end.
//!
//! Three tasks: one reads, one writes packets, one writes messages. So a gateway that doesn't read its messages, or
//! whose path takes no packets, holds up neither the other nor anybody else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anteroom_controller_core::relay::{Dropped, SessionId};
use anteroom_proto::cose::{Signed, Verified};
use anteroom_proto::key::PublicKey;
use anteroom_proto::relay::packet::{self, Datagram};
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::relay::{FromRelay, MAX_STATES, Refusal, RefusalCode, ToRelay, Welcome};
use anteroom_transport::datagrams;
use anteroom_transport::link::{Connection, SendDatagramError};
use anteroom_transport::lost::Lost;
use anteroom_transport::message::MessageError;
use anteroom_transport::mirror;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep_until, timeout};

use super::{Reader, Service, Writer, close_code, linger, protocol, say_last};
use crate::agents::admission::Permit;
use crate::online::CloseCode;

/// Packets that are taken in one go.
const BATCH: usize = 64;
/// Answers that wait for one gateway.
const QUEUE: usize = 8;
/// What who doesn't read is told.
const NO_MESSAGES: &[u8] = b"this gateway takes no messages";
/// How long one message may take to be taken in.
const WRITE: Duration = Duration::from_secs(30);
/// Passes that a gateway may show at once, and how often after that.
const BURST: u32 = 16;
const EVERY: Duration = Duration::from_millis(500);
/// Probes that are answered at once, and how often after that.
const PROBE_BURST: u32 = 32;
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// How often it is looked what fits the path: often while QUIC still finds out, seldom later. Where it has become
/// less, sending tells.
const ROOM_EARLY: (u32, Duration) = (8, Duration::from_millis(250));
const ROOM_LATE: Duration = Duration::from_secs(5);

/// What others need to reach a connection's tasks.
#[derive(Debug)]
pub(super) struct Live {
    /// There may be packets to fetch.
    pub(super) packets: Notify,
    /// There may be something to tell.
    pub(super) news: Notify,
    /// It is to end.
    ends: Notify,
    last: Mutex<Option<Refusal>>,
    /// What of the connection's losses is counted.
    lost: Mutex<Lost>,
}

impl Live {
    fn new() -> Self {
        Self {
            packets: Notify::new(),
            news: Notify::new(),
            ends: Notify::new(),
            last: Mutex::default(),
            lost: Mutex::default(),
        }
    }

    /// Counts what the connection's own queues have thrown away since the last time.
    fn count_lost(&self, service: &Service, connection: &Connection) {
        let mut counted = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = connection.lost();
        if lost == *counted {
            return;
        }
        let mut core = service.core();
        core.lost(Dropped::Unread, lost.unread.saturating_sub(counted.unread));
        // Only a path that has become too small makes it throw away what it has taken.
        core.lost(Dropped::TooLong, lost.unsent.saturating_sub(counted.unsent));
        *counted = lost;
    }

    /// Ends the connection with a word of why.
    pub(super) fn end(&self, why: Refusal) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.ends.notify_one();
    }

    fn last(&self) -> Option<Refusal> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until the connection is to end, and says why.
    async fn ended(&self) -> Refusal {
        loop {
            if let Some(last) = self.last() {
                return last;
            }
            self.ends.notified().await;
        }
    }
}

/// So many at once, then one in each interval.
struct Pace {
    every: Duration,
    burst: Duration,
    due: Instant,
}

impl Pace {
    fn new(burst: u32, every: Duration) -> Self {
        let burst = every * burst;
        Self { every, burst, due: Instant::now() - burst.min(Duration::from_secs(1)) }
    }

    /// How long to wait before the next; it counts as had.
    fn next(&mut self, now: Instant) -> Duration {
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        self.due = self.due.max(earliest) + self.every;
        self.due.saturating_duration_since(now)
    }

    /// Whether the next may be had now; it counts if so.
    fn allows(&mut self, now: Instant) -> bool {
        let before = self.due;
        let allowed = self.next(now).is_zero();
        if !allowed {
            self.due = before;
        }
        allowed
    }
}

/// Serves a gateway that has said who it is.
pub(super) async fn run(
    service: &Arc<Service>,
    connection: Connection,
    key: PublicKey,
    pass: &Verified<RelayPass>,
    version: u16,
    (reader, mut writer): (Reader, Writer),
    permit: &mut Permit,
) {
    let (gateway, from) = (pass.gateway, connection.remote_address());
    let mut expected = mirror::expect(from.ip());
    if connection.max_datagram_size().is_none() {
        let refusal =
            protocol("the gateway takes no QUIC datagrams, so nothing can be handed to it");
        return say_last(&connection, writer, refusal).await;
    }
    let live = Arc::new(Live::new());
    let entered = {
        // Whoever is told of the newcomer must find it.
        let mut all = service.live.write().unwrap_or_else(PoisonError::into_inner);
        let entered = service.core().enter(pass, connection.sealed_room(), Instant::now());
        if let Ok(entered) = &entered {
            all.insert(entered.session, live.clone());
        }
        entered
    };
    let entered = match entered {
        Ok(entered) => entered,
        Err(refusal) => {
            tracing::info!(%gateway, %from, message = %refusal.message, "not relayed");
            return say_last(&connection, writer, refusal).await;
        }
    };
    if let Some(before) = entered.replaced {
        let message = "the gateway has a newer connection to this relay";
        service.end(before, Refusal::new(RefusalCode::Replaced, message));
    }
    service.wake();
    tracing::debug!(%gateway, %from, number = %pass.number, "relayed");
    let id = entered.session;
    let welcome = FromRelay::Welcome(Welcome {
        version,
        authority: service.authority(),
        observed: from,
        rate: service.rate(),
    });
    let (answers, queue) = mpsc::channel(QUEUE);
    // Whoever is slow to take it in must not stay for longer than others let it.
    let welcomed = tokio::select! {
        welcomed = timeout(WRITE, writer.send(&welcome)) => matches!(welcomed, Ok(Ok(()))),
        last = live.ended() => {
            connection.close(close_code(&last).into(), b"");
            false
        }
    };
    if welcomed {
        let packets = tokio::spawn(hand_out(service.clone(), live.clone(), connection.clone(), id));
        let messages = Messages {
            service: service.clone(),
            live: live.clone(),
            connection: connection.clone(),
            id,
        };
        let mut messages = tokio::spawn(messages.run(writer, queue));
        let reading = Reading { service, connection: &connection, key, id, answers };
        let over = tokio::select! {
            over = reading.run(reader) => Some(over),
            // Whoever takes no messages couldn't be sent away.
            _ = &mut messages => None,
            never = permit.follow(&connection, |address| expected.follow(address)) => match never {},
        };
        match over {
            Some(over) => {
                if let Err(refusal) = over {
                    tracing::info!(%gateway, message = %refusal.message, "no longer relayed");
                    service.end(id, refusal);
                } else {
                    connection.close(CloseCode::Done.into(), b"");
                }
                // It ends with the connection, and that ends with the last word at the latest.
                let _ = messages.await;
            }
            None => connection.close(CloseCode::TooSlow.into(), NO_MESSAGES),
        }
        packets.abort();
    }
    live.count_lost(service, &connection);
    connection.close(CloseCode::Done.into(), b"");
    service.core().leave(id);
    service.live.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    service.wake();
    tracing::debug!(%gateway, reason = ?connection.close_reason(), "left the relay");
}

/// Fetches packets for one gateway and sends them, no faster than its path takes them: what has to wait waits where
/// it can be chosen what to let go.
async fn hand_out(service: Arc<Service>, live: Arc<Live>, connection: Connection, id: SessionId) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let mut space = connection.datagram_send_buffer_space();
        {
            let (mut core, now) = (service.core(), Instant::now());
            while batch.len() < BATCH && (batch.is_empty() || space > 0) {
                let Some(datagram) = core.next(id, now) else { break };
                space = space.saturating_sub(datagram.len());
                batch.push(datagram);
            }
        }
        if batch.is_empty() {
            live.packets.notified().await;
            continue;
        }
        for datagram in batch.drain(..) {
            match connection.send_datagram_wait(datagram.into()).await {
                Ok(()) => {}
                // The path has become smaller: its peers must hear of it.
                Err(SendDatagramError::TooLarge) => {
                    service.core().lost(Dropped::TooLong, 1);
                    live.news.notify_one();
                }
                Err(_) => return,
            }
        }
    }
}

/// Writes messages to one gateway.
struct Messages {
    service: Arc<Service>,
    live: Arc<Live>,
    connection: Connection,
    id: SessionId,
}

impl Messages {
    async fn run(self, mut writer: Writer, mut queue: mpsc::Receiver<FromRelay>) {
        let mut looks = 0;
        loop {
            let pause = if looks < ROOM_EARLY.0 { ROOM_EARLY.1 } else { ROOM_LATE };
            let answer = tokio::select! {
                last = self.live.ended() => return say_last(&self.connection, writer, last).await,
                () = self.live.news.notified() => None,
                Some(answer) = queue.recv() => Some(answer),
                () = tokio::time::sleep(pause) => {
                    looks = (looks + 1).min(ROOM_EARLY.0);
                    None
                }
                _ = self.connection.closed() => return,
            };
            self.live.count_lost(&self.service, &self.connection);
            self.service.core().set_room(self.id, self.connection.sealed_room());
            self.service.wake();
            let mut next = answer;
            loop {
                let message = match next.take() {
                    Some(message) => message,
                    None => match self.service.core().news(self.id, MAX_STATES) {
                        news if news.is_empty() => break,
                        news => FromRelay::Peers(news),
                    },
                };
                let sent = tokio::select! {
                    sent = timeout(WRITE, writer.send(&message)) => sent,
                    // Half a message stands before whatever could still be said.
                    last = self.live.ended() => {
                        let code = close_code(&last);
                        linger(&self.connection, code).await;
                        return self.connection.close(code.into(), b"");
                    }
                };
                match sent {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) => {
                        return self.connection.close(CloseCode::TooSlow.into(), NO_MESSAGES);
                    }
                }
            }
        }
    }
}

/// Reads what one gateway sends.
struct Reading<'a> {
    service: &'a Arc<Service>,
    connection: &'a Connection,
    key: PublicKey,
    id: SessionId,
    answers: mpsc::Sender<FromRelay>,
}

impl Reading<'_> {
    async fn run(self, mut reader: Reader) -> Result<(), Refusal> {
        let mut passes = Pace::new(BURST, EVERY);
        let mut probes = Pace::new(PROBE_BURST, PROBE_EVERY);
        let mut batch = Vec::with_capacity(BATCH);
        // A pass whose time hasn't come, and room for the answer to it. Packets go on meanwhile: those that nobody read
        // would hold on to memory.
        let mut shown: Option<(Box<Signed<RelayPass>>, tokio::time::Instant)> = None;
        let mut room = None;
        loop {
            let due = shown.as_ref().map_or_else(tokio::time::Instant::now, |(_, due)| *due);
            tokio::select! {
                free = self.answers.reserve(), if room.is_none() => match free {
                    Ok(free) => room = Some(free),
                    Err(_) => {
                        // The writer has gone.
                        self.connection.close(CloseCode::TooSlow.into(), NO_MESSAGES);
                        return Ok(());
                    }
                },
                () = sleep_until(due), if shown.is_some() && room.is_some() => {
                    if let (Some((pass, _)), Some(room)) = (shown.take(), room.take()) {
                        room.send(self.renew(&pass));
                    }
                }
                message = reader.next(), if shown.is_none() => match message {
                    Ok(Some(ToRelay::Pass(pass))) => {
                        // Whoever shows more than this waits.
                        let pause = passes.next(Instant::now());
                        shown = Some((pass, tokio::time::Instant::now() + pause));
                    }
                    Ok(Some(_)) => return Err(protocol("that was not asked for")),
                    Err(MessageError::Malformed(error)) => return Err(protocol(error.to_string())),
                    Ok(None) | Err(_) => return Ok(()),
                },
                datagram = self.connection.read_datagram() => {
                    let Ok(datagram) = datagram else { return Ok(()) };
                    batch.push(datagram);
                    datagrams::read_more(self.connection, BATCH, &mut batch);
                    self.take(&mut batch, &mut probes);
                }
            }
        }
    }

    fn take(&self, batch: &mut Vec<bytes::Bytes>, probes: &mut Pace) {
        let now = Instant::now();
        // Copied before anyone has to wait: what is kept must not hold on to the whole of what the socket gave.
        let mut packets = Vec::with_capacity(batch.len());
        for datagram in batch.drain(..) {
            if let Some(Datagram::Probe(nonce)) = packet::parse(&datagram) {
                let answer = packet::answer(nonce);
                let space = self.connection.datagram_send_buffer_space() > answer.len();
                if space && probes.allows(now) {
                    // An answer that can't be sent is an answer as well.
                    let _ = self.connection.send_datagram(answer.into());
                }
            } else {
                packets.push(datagram.to_vec());
            }
        }
        let mut receivers: Vec<SessionId> = Vec::new();
        {
            let mut core = self.service.core();
            for packet in packets {
                if let Ok(receiver) = core.forward(self.id, packet, now)
                    && !receivers.contains(&receiver)
                {
                    receivers.push(receiver);
                }
            }
        }
        for receiver in receivers {
            if let Some(live) = self.service.live(receiver) {
                live.packets.notify_one();
            }
        }
    }

    fn renew(&self, pass: &Signed<RelayPass>) -> FromRelay {
        let Some(chain) = self.service.chain.load_full() else {
            return FromRelay::PassRefused(protocol("there is no authority document here"));
        };
        let renewed = RelayPass::verify(pass, chain.newest(), self.key)
            .map_err(|error| Refusal::new(RefusalCode::Pass, error.to_string()))
            .and_then(|pass| {
                self.service.core().renew(self.id, &pass, Instant::now())?;
                Ok(pass.number)
            });
        self.service.wake();
        match renewed {
            Ok(number) => FromRelay::PassTaken(number),
            Err(refusal) => FromRelay::PassRefused(refusal),
        }
    }
}
