//! A stream of numbered frames from one interface to another: what was lost, what came twice, and how long the longest
//! outage was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::packet::PacketSocket;
use crate::topology::Host;

/// Marks the frames of a stream, in front of its id and the frame's number.
const MAGIC: [u8; 8] = *b"anteroom";

/// How long after the last frame that came the next may be under way before it counts as lost.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// How long what lies in the socket at the end is read, while other streams go on.
const READ_OUT: Duration = Duration::from_secs(2);

/// Behind the headers: magic, the stream's id, the frame's number, and zeros up to the shortest frame of Ethernet.
const PAYLOAD: usize = 48;

/// What became of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Passage {
    /// Frames sent.
    pub sent: u64,
    /// Frames that came, each counted once.
    pub received: u64,
    /// Frames that came again.
    pub doubled: u64,
    /// Frames that came behind a later one.
    pub overtaken: u64,
    /// The longest time from the sending of a frame that came to the sending of the next that did, in microseconds;
    /// to the end of the stream, if none did.
    pub longest_outage_us: u64,
    /// The longest time from one sending to the next, in microseconds: how long the machine held up the sender itself.
    pub longest_pause_us: u64,
}

impl Passage {
    /// Frames that didn't come.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }

    /// The longest outage.
    #[must_use]
    pub fn longest_outage(&self) -> Duration {
        Duration::from_micros(self.longest_outage_us)
    }

    /// Whether the longest outage is shorter than `bound`, or than what may come of a machine that is so busy that it
    /// holds up the sender as it did: all others have to wait for it as long, one after the other. No machine excuses
    /// more than ten seconds.
    #[must_use]
    pub fn outage_within(&self, bound: Duration) -> bool {
        let excused = Duration::from_micros(self.longest_pause_us) * 20;
        self.longest_outage() < bound.max(excused.min(Duration::from_secs(10)))
    }
}

/// One direction of a stream under way.
#[derive(Debug)]
pub struct Stream {
    sender: JoinHandle<Result<std::io::Result<Vec<Instant>>>>,
    receiver: JoinHandle<Result<std::io::Result<Vec<u64>>>>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    heard_out: Arc<AtomicBool>,
}

impl Stream {
    /// Sends a frame each `every` out of one interface, and listens at another. The frames begin with `headers`.
    ///
    /// # Errors
    /// If a socket can't be opened or a thread can't be started.
    pub fn start(
        from: (&Host, &str),
        to: (&Host, &str),
        headers: &[u8],
        every: Duration,
    ) -> Result<Self> {
        Self::start_changed(from, to, headers, headers.len(), every)
    }

    /// As [`Stream::start`], where the headers have another length when the frame is received: a kernel takes the outer
    /// tag off, and a gateway may put one on.
    ///
    /// # Errors
    /// As [`Stream::start`].
    pub fn start_changed(
        from: (&Host, &str),
        to: (&Host, &str),
        headers: &[u8],
        received_len: usize,
        every: Duration,
    ) -> Result<Self> {
        static ID: AtomicU64 = AtomicU64::new(1);
        let id = ID.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let ears = to.0.enter(|| PacketSocket::open_on(to.1, 3))??;
        let mouth = from.0.enter(|| PacketSocket::open_on(from.1, 0))??;
        let [stop, heard_out] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let [sent, received] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let start = headers.len();
        let receiver = {
            let (ended, counter) = (heard_out.clone(), received.clone());
            to.0.thread(move || hear(&ears, received_len, id, &ended, &counter))?
        };
        let mut frame = headers.to_vec();
        frame.extend(MAGIC);
        frame.extend(id);
        frame.resize(start + PAYLOAD, 0);
        let sender = {
            let (ended, counter) = (stop.clone(), sent.clone());
            from.0.thread(move || speak(&mouth, frame, start, every, &ended, &counter))?
        };
        Ok(Self { sender, receiver, sent, received, stop, heard_out })
    }

    /// Frames that were sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Frames that have come so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Sends no more, waits for what is under way, and says what became of it all.
    ///
    /// # Errors
    /// If a socket failed.
    pub fn stop(self) -> Result<Passage> {
        self.stop.store(true, Ordering::Relaxed);
        self.silent()?.heard_out(Instant::now() + UNDER_WAY)
    }

    /// As [`Stream::stop`], for several at once: what is under way is waited for in all of them together.
    ///
    /// # Errors
    /// As [`Stream::stop`].
    pub fn stop_all(streams: Vec<Self>) -> Result<Vec<Passage>> {
        for stream in &streams {
            stream.stop.store(true, Ordering::Relaxed);
        }
        let silent = streams.into_iter().map(Self::silent).collect::<Result<Vec<_>>>()?;
        let deadline = Instant::now() + UNDER_WAY;
        silent.into_iter().map(|stream| stream.heard_out(deadline)).collect()
    }

    /// Waits for the sender's end, which was told to.
    fn silent(self) -> Result<Silent> {
        let Self { sender, receiver, received, heard_out, .. } = self;
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        Ok(Silent { sent, receiver, received, heard_out })
    }
}

/// A stream that sends no more.
struct Silent {
    sent: Vec<Instant>,
    receiver: JoinHandle<Result<std::io::Result<Vec<u64>>>>,
    received: Arc<AtomicU64>,
    heard_out: Arc<AtomicBool>,
}

impl Silent {
    /// Waits until everything came, or for what is under way until `deadline`; longer while more comes.
    fn heard_out(self, deadline: Instant) -> Result<Passage> {
        let all = self.sent.len() as u64;
        let (mut deadline, mut before) = (deadline, self.received.load(Ordering::Relaxed));
        loop {
            let received = self.received.load(Ordering::Relaxed);
            if received > before {
                before = received;
                deadline = deadline.max(Instant::now() + UNDER_WAY);
            }
            if received >= all || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // What comes twice comes behind the last, too.
        std::thread::sleep(Duration::from_millis(20));
        self.heard_out.store(true, Ordering::Relaxed);
        let heard =
            self.receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        Ok(passage(&self.sent, &heard))
    }
}

fn speak(
    mouth: &PacketSocket,
    mut frame: Vec<u8>,
    start: usize,
    every: Duration,
    ended: &AtomicBool,
    counter: &AtomicU64,
) -> std::io::Result<Vec<Instant>> {
    let number = start + MAGIC.len() + 8..start + MAGIC.len() + 16;
    let mut sent = Vec::new();
    let mut due = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        frame[number.clone()].copy_from_slice(&(sent.len() as u64).to_be_bytes());
        let now = Instant::now();
        match mouth.send(&frame) {
            Ok(()) => {}
            // A dead cable loses the frame.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
            Err(error) => return Err(error),
        }
        sent.push(now);
        counter.fetch_add(1, Ordering::Relaxed);
        // A sender that was held up doesn't make up for it with a burst.
        due = (due + every).max(now);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(sent)
}

fn hear(
    ears: &PacketSocket,
    start: usize,
    id: [u8; 8],
    ended: &AtomicBool,
    counter: &AtomicU64,
) -> std::io::Result<Vec<u64>> {
    let mut heard = Vec::new();
    let mut buffer = vec![0; 70_000];
    let mut read_out = None;
    loop {
        // Not once it is silent: other streams may go on. What came in time is read, though, however busy the machine.
        let over = ended.load(Ordering::Relaxed);
        let limit = if over { Duration::ZERO } else { Duration::from_millis(10) };
        let length = match ears.receive(&mut buffer, limit) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => Some(0),
            Err(error) => return Err(error),
        };
        if over {
            let until = *read_out.get_or_insert_with(|| Instant::now() + READ_OUT);
            if length.is_none() || Instant::now() >= until {
                break;
            }
        }
        let frame = buffer.get(..length.unwrap_or(0)).unwrap_or_default();
        if let Some(number) = number(frame, start, id) {
            heard.push(number);
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(heard)
}

fn number(frame: &[u8], start: usize, id: [u8; 8]) -> Option<u64> {
    let payload = frame.get(start..start + 24)?;
    (payload[..8] == MAGIC && payload[8..16] == id)
        .then(|| payload[16..24].try_into().map(u64::from_be_bytes).ok())?
}

fn passage(sent: &[Instant], heard: &[u64]) -> Passage {
    let mut came = vec![false; sent.len()];
    let (mut doubled, mut overtaken, mut highest) = (0, 0, 0);
    for number in heard {
        let Some(came) = usize::try_from(*number).ok().and_then(|number| came.get_mut(number))
        else {
            continue;
        };
        doubled += u64::from(std::mem::replace(came, true));
        overtaken += u64::from(*number < highest);
        highest = highest.max(*number);
    }
    let mut longest = Duration::ZERO;
    let mut last = sent.first().copied();
    for (at, came) in sent.iter().zip(&came) {
        if *came {
            longest = longest.max(last.map_or(Duration::ZERO, |last| *at - last));
            last = Some(*at);
        }
    }
    if let (Some(last), Some(end)) = (last, sent.last()) {
        longest = longest.max(*end - last);
    }
    let pauses = sent.windows(2).map(|pair| pair[1] - pair[0]);
    let pause = pauses.max().unwrap_or_default();
    Passage {
        sent: sent.len() as u64,
        received: came.iter().filter(|came| **came).count() as u64,
        doubled,
        overtaken,
        longest_outage_us: u64::try_from(longest.as_micros()).unwrap_or(u64::MAX),
        longest_pause_us: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_doubles_and_outages_are_told() {
        let start = Instant::now();
        let sent: Vec<Instant> = (0..10).map(|ms| start + Duration::from_millis(ms)).collect();
        let told = passage(&sent, &[0, 1, 2, 6, 5, 6, 7]);
        let expected = Passage {
            sent: 10,
            received: 6,
            doubled: 1,
            overtaken: 1,
            longest_outage_us: 3000,
            longest_pause_us: 1000,
        };
        assert_eq!(told, expected);
        assert!(told.outage_within(Duration::from_millis(1)), "twenty times the sender's pause");
        assert!(told.outage_within(Duration::from_millis(30)));
        let cut = Passage { longest_outage_us: 20_001, ..told.clone() };
        assert!(!cut.outage_within(Duration::from_millis(1)));
        let endless =
            Passage { longest_outage_us: 10_000_001, longest_pause_us: 1_000_000, ..told.clone() };
        assert!(!endless.outage_within(Duration::from_millis(1)));
        assert_eq!(told.lost(), 4);
        assert_eq!(passage(&sent, &[]).longest_outage_us, 9000);
        assert_eq!(passage(&[], &[5]).sent, 0);
    }

    #[test]
    fn a_frame_is_told_by_magic_and_stream() {
        let frame = [&[0; 14][..], &MAGIC, &7_u64.to_be_bytes(), &9_u64.to_be_bytes()].concat();
        assert_eq!(number(&frame, 14, 7_u64.to_be_bytes()), Some(9));
        assert_eq!(number(&frame, 14, 8_u64.to_be_bytes()), None);
        assert_eq!(number(&frame[..37], 14, 7_u64.to_be_bytes()), None);
    }
}
