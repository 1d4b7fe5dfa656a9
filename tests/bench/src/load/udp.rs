//! Small UDP packets at a rate that is asked for, each sent and counted by itself.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::libc;

use crate::world::{Device, World};

/// Where packets go.
const PORT: u16 = 5_000;
/// Ports that flows of their own come from, from the first one on.
const FIRST_PORT: u32 = 5_001;
const PORTS: u32 = 60_000;
/// Bytes of IPv4 and UDP headers.
const HEADERS: usize = 28;
/// Packets that one system call sends or fetches at most.
const BATCH: usize = 64;
/// How long the sender sleeps between batches: the bursts are this long.
const PAUSE: Duration = Duration::from_micros(150);
/// Size of the receiver's buffer: what it loses isn't the tunnel's loss.
const BUFFER: libc::c_int = 32 << 20;
/// What arrives longer than this after the last packet was sent is lost: it lay in a queue that only grew while there was
/// more to send, so that the rate wasn't one that could have been kept up.
const LATE: Duration = Duration::from_millis(20);
/// How long nothing may come before the next packets may be sent.
const TAIL: Duration = Duration::from_millis(200);

/// What became of a burst of packets.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Packets that were sent.
    pub sent: u64,
    /// Packets that arrived, at most 20 ms after the last was sent.
    pub received: u64,
    /// How long they were being sent.
    pub time: Duration,
    /// How long those that arrived took to do so: from the first to the last.
    pub arriving: Duration,
}

impl Outcome {
    /// Share of the packets that were lost, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }

    /// Packets that arrived per second, of the time of sending or of arriving, whichever was longer.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.received as f64 / self.time.max(self.arriving).as_secs_f64()
    }

    /// Packets that were sent per second.
    #[must_use]
    pub fn offered(&self) -> f64 {
        self.sent as f64 / self.time.as_secs_f64()
    }
}

/// Packets that arrived, and when.
#[derive(Debug, Default)]
struct Arrivals {
    received: u64,
    /// When the first and the last of them came.
    span: Option<(Instant, Instant)>,
}

impl Arrivals {
    /// Counts packets that came now, unless the last of all was sent too long ago.
    fn note(&mut self, count: u64, now: Instant, last_sent: Option<Instant>) {
        let late = last_sent.is_some_and(|sent| now.saturating_duration_since(sent) > LATE);
        if count == 0 || late {
            return;
        }
        self.received += count;
        self.span = Some((self.span.map_or(now, |(first, _)| first), now));
    }

    fn arriving(&self) -> Duration {
        self.span.map_or(Duration::ZERO, |(first, last)| last.saturating_duration_since(first))
    }
}

/// Sends IP packets of `size` bytes for `time`, `rate` a second, each from another port, beginning with number `first` of those that
/// there are. Returns how many went out.
///
/// # Errors
/// If a socket can't be had.
pub fn send_from_new_ports(
    world: &World,
    (from, to): (Device, Device),
    (first, size): (u32, usize),
    rate: f64,
    time: Duration,
) -> Result<u64> {
    let address = SocketAddr::from((world.address(to), PORT));
    // Whoever listens answers nothing, nor does its kernel.
    let _receiver = world
        .device(to)
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?
        .with_context(|| format!("binding {address}"))?;
    let payload = vec![0x5a; size.saturating_sub(HEADERS)];
    world.device(from).enter(|| -> Result<u64> {
        let begun = Instant::now();
        let (mut tried, mut sent) = (0, 0);
        while begun.elapsed() < time {
            let due = (begun.elapsed().as_secs_f64() * rate) as u32;
            while tried < due {
                let port = FIRST_PORT + (first + tried) % PORTS;
                tried += 1;
                // A port that is taken is left out.
                let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port as u16)) else {
                    continue;
                };
                socket.send_to(&payload, address)?;
                sent += 1;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(sent)
    })?
}

/// Sends IP packets of `size` bytes for `time`, `rate` a second of all `flows` together, and counts those that arrive.
///
/// # Errors
/// If a socket or a thread can't be had.
pub fn send(
    world: &World,
    (from, to): (Device, Device),
    (flows, size): (usize, usize),
    rate: f64,
    time: Duration,
) -> Result<Outcome> {
    let address = SocketAddr::from((world.address(to), PORT));
    let receiver = world
        .device(to)
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?
        .with_context(|| format!("binding {address}"))?;
    receiver.set_read_timeout(Some(Duration::from_millis(20)))?;
    grow_receive_buffer(&receiver);
    let sender = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(address)?;
        Ok(socket)
    };
    let senders = || (0..flows).map(|_| sender()).collect::<std::io::Result<Vec<_>>>();
    let senders = world.device(from).enter(senders)??;
    let Some(payload) = size.checked_sub(HEADERS) else {
        bail!("an IP packet with UDP in it has at least {HEADERS} bytes, not {size}");
    };
    // All that came, however late.
    let drained = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let last_sent = Arc::new(OnceLock::new());
    let (count, ended, sent_until) = (drained.clone(), stop.clone(), last_sent.clone());
    let thread = std::thread::Builder::new().name("udp-receive".into()).spawn(move || {
        let mut batch = Batch::new(payload);
        let mut arrivals = Arrivals::default();
        while !ended.load(Ordering::Relaxed) {
            batch.receive(&receiver, |got| {
                arrivals.note(got, Instant::now(), sent_until.get().copied());
                count.fetch_add(got, Ordering::Relaxed);
            });
            // Fetching many at once leaves the processors to the gateways.
            std::thread::sleep(PAUSE);
        }
        arrivals
    })?;
    let outcome = std::thread::scope(|scope| {
        let sending = std::thread::Builder::new().name("udp-send".into());
        let sending = sending.spawn_scoped(scope, || {
            let sent = paced(&senders, payload, rate, time);
            last_sent.set(Instant::now()).ok();
            sent
        })?;
        sending.join().map_err(|_| std::io::Error::other("the sender panicked"))
    });
    let wait = Instant::now();
    let mut last = 0;
    // Until nothing has come for a while.
    while wait.elapsed() < 5 * TAIL {
        std::thread::sleep(TAIL / 2);
        let now = drained.load(Ordering::Relaxed);
        if now == last && wait.elapsed() >= TAIL {
            break;
        }
        last = now;
    }
    stop.store(true, Ordering::Relaxed);
    let arrivals = thread.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    let (sent, time) = outcome?;
    let arriving = arrivals.arriving();
    Ok(Outcome { sent, received: arrivals.received, time, arriving })
}

/// Sends at a pace, out of one socket after the other. Returns how many went out and how long it took.
fn paced(sockets: &[UdpSocket], payload: usize, rate: f64, time: Duration) -> (u64, Duration) {
    // The kernel would add up to 50 us to each short sleep.
    nix::sys::prctl::set_timerslack(1).ok();
    let mut batch = Batch::new(payload);
    let begun = Instant::now();
    let mut sent = 0;
    let mut turns = sockets.iter().cycle();
    loop {
        let elapsed = begun.elapsed();
        if elapsed >= time {
            return (sent, elapsed);
        }
        // What a sleep that was too long left over isn't made good in one burst.
        let due = (elapsed.as_secs_f64() * rate) as u64;
        let most = ((PAUSE.as_secs_f64() * 20.0 * rate) as u64).max(BATCH as u64);
        let mut burst = due.saturating_sub(sent).min(most);
        while burst > 0 {
            let Some(socket) = turns.next() else { return (sent, begun.elapsed()) };
            let went = batch.send(socket, burst.min(BATCH as u64) as usize) as u64;
            if went == 0 {
                break;
            }
            sent += went;
            burst -= went;
        }
        std::thread::sleep(PAUSE);
    }
}

fn grow_receive_buffer(socket: &UdpSocket) {
    let size = BUFFER;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        // SAFETY: the value outlives the call and has the length that is given.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of_val(&size) as libc::socklen_t,
            )
        };
        if result == 0 {
            return;
        }
    }
}

/// Room for the packets of one system call.
struct Batch {
    bytes: Vec<u8>,
    payload: usize,
}

impl Batch {
    fn new(payload: usize) -> Self {
        Self { bytes: vec![0x5a; BATCH * payload.max(1)], payload: payload.max(1) }
    }

    /// Runs `call` with headers for this batch's packets. Returns how many the kernel took or gave.
    fn with(&mut self, call: impl FnOnce(*mut libc::mmsghdr) -> libc::c_int) -> usize {
        let base = self.bytes.as_mut_ptr();
        let payload = self.payload;
        let mut pieces: [libc::iovec; BATCH] = std::array::from_fn(|index| libc::iovec {
            iov_base: base.wrapping_add(index * payload).cast(),
            iov_len: payload,
        });
        let first = pieces.as_mut_ptr();
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|index| {
            // SAFETY: all of its fields may be zero: no address, no control data, no flags.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = first.wrapping_add(index);
            header.msg_hdr.msg_iovlen = 1;
            header
        });
        usize::try_from(call(headers.as_mut_ptr())).unwrap_or(0)
    }

    fn send(&mut self, socket: &UdpSocket, count: usize) -> usize {
        let count = count.min(BATCH) as libc::c_uint;
        // SAFETY: `count` headers are valid, and so are the buffers that they point to.
        self.with(|headers| unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count, 0) })
    }

    /// Waits for a packet, up to the socket's time limit, and takes what else has come. Tells `note` how many each call
    /// brought.
    fn receive(&mut self, socket: &UdpSocket, mut note: impl FnMut(u64)) {
        let mut first = true;
        loop {
            let flags = if first { libc::MSG_WAITFORONE } else { libc::MSG_DONTWAIT };
            let descriptor = socket.as_raw_fd();
            // SAFETY: as in `send`; the kernel writes no more than each buffer's length.
            let got = self.with(|headers| unsafe {
                libc::recvmmsg(
                    descriptor,
                    headers,
                    BATCH as libc::c_uint,
                    flags,
                    std::ptr::null_mut(),
                )
            });
            first = false;
            note(got as u64);
            if got < BATCH {
                return;
            }
        }
    }
}

/// The highest rate at which fewer than 1 % are lost.
#[derive(Debug, Clone, Copy)]
pub struct Ceiling {
    /// Packets per second that arrived.
    pub rate: f64,
    /// Seconds of processor time per packet that arrived, as `cost` had it.
    pub cost: f64,
}

/// Most packets that may be lost, as a share.
const TOLERATED: f64 = 0.01;

/// Looks for the highest rate with less than 1 % loss: doubles from `start` until more is lost, then halves the gap
/// `steps` times. A rate has two chances, since whatever else the machine does can spoil one. `trial` sends at a rate and says what came of it, with the processor time that it took.
///
/// # Errors
/// What `trial` returns.
pub fn ceiling(
    start: f64,
    steps: u32,
    mut trial: impl FnMut(f64) -> Result<(Outcome, f64)>,
) -> Result<Option<Ceiling>> {
    let mut best: Option<Ceiling> = None;
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut left = steps;
    let mut rate = start;
    // Fifty doublings or halvings are more than any machine has in it.
    for _ in 0..50 {
        let (mut outcome, mut cpu) = trial(rate)?;
        if outcome.loss() >= TOLERATED {
            (outcome, cpu) = trial(rate)?;
        }
        if outcome.loss() < TOLERATED {
            low = rate;
            if best.is_none_or(|best| best.rate < outcome.rate()) {
                let cost = cpu / outcome.received.max(1) as f64;
                best = Some(Ceiling { rate: outcome.rate(), cost });
            }
            // The sender itself can't do more: asking for more says nothing.
            if outcome.offered() < 0.9 * rate {
                break;
            }
        } else {
            high = rate;
        }
        rate = if high.is_infinite() {
            2.0 * rate
        } else if low == 0.0 && rate > 100.0 {
            rate / 2.0
        } else {
            if left == 0 {
                break;
            }
            left -= 1;
            f64::midpoint(low, high)
        };
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tunnel that carries `limit` packets a second and loses the rest.
    fn tunnel(limit: f64, sender: f64) -> impl FnMut(f64) -> Result<(Outcome, f64)> {
        move |rate| {
            let sent = rate.min(sender);
            let received = sent.min(limit);
            let time = Duration::from_secs(1);
            let (sent, received) = (sent as u64, received as u64);
            let outcome = Outcome { sent, received, time, arriving: time };
            Ok((outcome, outcome.received as f64 * 5e-6))
        }
    }

    #[test]
    fn the_ceiling_is_found_from_below_and_from_above() {
        for limit in [3_000.0, 19_000.0, 20_000.0, 123_456.0, 2_000_000.0] {
            let found = ceiling(20_000.0, 6, tunnel(limit, 1e9)).unwrap().unwrap();
            assert!((0.95..=1.0).contains(&(found.rate / limit)), "{limit}: {found:?}");
            assert!((found.cost - 5e-6).abs() < 1e-8, "{found:?}");
        }
    }

    #[test]
    fn a_sender_that_can_do_no_more_ends_the_search() {
        let found = ceiling(20_000.0, 6, tunnel(1e9, 300_000.0)).unwrap().unwrap();
        assert!((found.rate - 300_000.0).abs() < 1.0, "{found:?}");
    }

    #[test]
    fn one_spoilt_trial_decides_nothing() {
        let (mut count, mut carry) = (0, tunnel(100_000.0, 1e9));
        let found = ceiling(20_000.0, 6, |rate| {
            count += 1;
            carry(if count == 2 { 1e6 } else { rate })
        });
        assert!(found.unwrap().unwrap().rate > 95_000.0);
    }

    #[test]
    fn a_tunnel_that_carries_nothing_has_no_ceiling() {
        assert!(ceiling(20_000.0, 6, tunnel(0.0, 1e9)).unwrap().is_none());
    }

    #[test]
    fn what_lay_in_a_queue_until_sending_ended_is_no_rate() {
        let begun = Instant::now();
        let (at, second) = (|ms| begun + Duration::from_millis(ms), Duration::from_secs(1));
        // 1,000 packets a second are sent, 700 carried; the rest comes when no more are sent.
        let mut arrivals = Arrivals::default();
        for ms in 0..1_000 {
            arrivals.note(u64::from(ms % 10 < 7), at(ms), None);
        }
        for ms in 1_000..1_300 {
            arrivals.note(1, at(ms), Some(at(1_000)));
        }
        let (received, arriving) = (arrivals.received, arrivals.arriving());
        let outcome = Outcome { sent: 1_000, received, time: second, arriving };
        assert_eq!(outcome.received, 721, "{arrivals:?}");
        assert!(outcome.loss() > 0.25, "{outcome:?}");
        assert!((700.0..710.0).contains(&outcome.rate()), "{outcome:?}");
    }

    #[test]
    fn what_is_sent_on_loopback_arrives() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let mut batch = Batch::new(100);
        assert_eq!(batch.send(&sender, 50), 50);
        let mut got = 0;
        let begun = Instant::now();
        while got < 50 && begun.elapsed() < Duration::from_secs(5) {
            batch.receive(&receiver, |count| got += count);
        }
        assert_eq!(got, 50);
    }
}
