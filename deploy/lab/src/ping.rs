//! Pings from a host, many and fast, with what came back.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde::Serialize;

use crate::packet::IcmpSocket;
use crate::topology::Host;

/// How long after the last request or reply the next reply may come before it counts as lost.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// How many of those that were lost are named.
const MISSING: usize = 16;

/// How many requests that are late go at once, where the thread that sends them had no processor for a while. More would
/// come faster than the socket buffers of an unprivileged gateway hold them, and what they lose isn't the gateway's doing.
const CATCH_UP: u32 = 16;

/// What a series of pings came to.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// Requests sent.
    pub sent: u64,
    /// Replies that came.
    pub received: u64,
    /// Round-trip times in microseconds, sorted.
    #[serde(skip)]
    pub times: Vec<u64>,
    /// The first of those without a reply, by number, with when they were sent.
    #[serde(skip)]
    pub missing: Vec<(u64, SystemTime)>,
    /// Requests that the sender's own kernel didn't take. They count as lost.
    pub untaken: u64,
    /// The longest run of requests without a reply.
    pub longest_gap: u64,
    /// When the first reply came.
    #[serde(skip)]
    pub first_reply_at: Option<SystemTime>,
    /// When the last reply came.
    #[serde(skip)]
    pub last_reply_at: Option<SystemTime>,
}

impl Series {
    /// Requests without a reply.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }

    /// The round-trip time in microseconds below which `share` (0 to 1) of the replies came.
    #[must_use]
    pub fn percentile(&self, share: f64) -> Option<u64> {
        crate::figures::percentile(&self.times, share)
    }
}

/// A series of pings under way.
#[derive(Debug)]
pub struct Pinging {
    thread: std::thread::JoinHandle<Result<std::io::Result<Series>>>,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Pinging {
    /// Starts `count` pings, one each `every`; those that were due while the sender stood still go later, a few at once.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(host: &Host, to: Ipv4Addr, count: u64, every: Duration) -> Result<Self> {
        Self::start_within(host, to, count, every, usize::MAX)
    }

    /// As [`start`](Self::start), with no more than `window` pings of the last second under way: after a moment in which the machine stood
    /// still they don't come faster than anybody's buffers hold them, and what is lost isn't the machine's doing.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start_within(
        host: &Host,
        to: Ipv4Addr,
        count: u64,
        every: Duration,
        window: usize,
    ) -> Result<Self> {
        let received = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (counting, ended) = (received.clone(), stop.clone());
        let thread = host.thread(move || series(to, count, (every, window), &counting, &ended))?;
        Ok(Self { thread, received, stop })
    }

    /// Replies so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Sends no more and waits for what is under way.
    ///
    /// # Errors
    /// If the sockets failed.
    pub fn stop(self) -> Result<Series> {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits for the end of the series.
    ///
    /// # Errors
    /// If the sockets failed.
    pub fn finish(self) -> Result<Series> {
        match self.thread.join() {
            Ok(series) => Ok(series??),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Pings a few times, and waits for the answers.
///
/// # Errors
/// If the sockets failed.
pub fn ping(host: &Host, to: Ipv4Addr, count: u64, every: Duration) -> Result<Series> {
    Pinging::start(host, to, count, every)?.finish()
}

fn series(
    to: Ipv4Addr,
    count: u64,
    (every, window): (Duration, usize),
    received: &AtomicU64,
    stop: &AtomicBool,
) -> std::io::Result<Series> {
    static IDENTIFIER: AtomicU64 = AtomicU64::new(1);
    let next = IDENTIFIER.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id()) * 64;
    let identifier = u16::try_from(next & 0xffff).unwrap_or(0);
    let socket = IcmpSocket::open()?;
    let begun = Instant::now();
    let mut due = begun;
    let mut under_way: BTreeMap<u16, (u64, Instant)> = BTreeMap::new();
    let (mut answered, mut missing, mut untaken) = (Vec::new(), BTreeMap::new(), 0);
    let mut times = Vec::new();
    let mut first_reply_at = None;
    let mut last_reply_at = None;
    let mut sent = 0_u64;
    let mut progress = begun;
    loop {
        let now = Instant::now();
        let mut last_look = false;
        due = due.max(now.checked_sub(every * CATCH_UP).unwrap_or(begun));
        let mut wait = due.saturating_duration_since(now).min(Duration::from_millis(20));
        if sent < count && !stop.load(Ordering::Relaxed) {
            if under_way.len() >= window && recent(&under_way, now) >= window {
                wait = Duration::from_millis(20);
            } else if now >= due {
                let sequence = u16::try_from(sent & 0xffff).unwrap_or(0);
                under_way.insert(sequence, (sent, now));
                missing.insert(sent, SystemTime::now());
                // A neighbour that isn't there is a lost ping, not a broken socket.
                untaken += u64::from(socket.echo(to, identifier, sequence).is_err());
                answered.push(false);
                sent += 1;
                due += every;
                progress = now;
            }
        } else if under_way.is_empty() {
            break;
        } else {
            wait = Duration::from_millis(20);
            // A reply that lies in the socket while this thread had no processor isn't lost.
            last_look = now >= progress + UNDER_WAY;
        }
        // Everything that has come is read before the next request, so that its time is true.
        while let Some((from, sequence)) = socket.reply(identifier, wait)? {
            wait = Duration::ZERO;
            if from != to {
                continue;
            }
            let Some((number, at)) = under_way.remove(&sequence) else { continue };
            missing.remove(&number);
            let now = SystemTime::now();
            first_reply_at.get_or_insert(now);
            last_reply_at = Some(now);
            progress = Instant::now();
            times.push(u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX));
            if let Some(flag) = usize::try_from(number).ok().and_then(|n| answered.get_mut(n)) {
                *flag = true;
            }
            received.fetch_add(1, Ordering::Relaxed);
        }
        if last_look {
            break;
        }
    }
    times.sort_unstable();
    let longest = answered.split(|answered| *answered).map(<[bool]>::len).max().unwrap_or(0);
    Ok(Series {
        sent,
        received: u64::try_from(times.len()).unwrap_or(u64::MAX),
        times,
        missing: missing.into_iter().take(MISSING).collect(),
        untaken,
        longest_gap: u64::try_from(longest).unwrap_or(u64::MAX),
        first_reply_at,
        last_reply_at,
    })
}

/// Requests that a reply may still come to: those that were lost keep nobody from going on.
fn recent(under_way: &BTreeMap<u16, (u64, Instant)>, now: Instant) -> usize {
    under_way.values().filter(|(_, at)| now.saturating_duration_since(*at) < UNDER_WAY).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_answered_by_who_is_there_and_lost_where_nobody_is() {
        let test = "ping::tests::pings_are_answered_by_who_is_there_and_lost_where_nobody_is";
        if !crate::namespace::in_private_network(test) {
            return;
        }
        let here = Host::create("here").unwrap();
        let there = Host::create("there").unwrap();
        crate::topology::cable((&here, "eth0", None), (&there, "eth0")).unwrap();
        here.address("eth0", Ipv4Addr::new(10, 0, 0, 1), 24).unwrap();
        there.address("eth0", Ipv4Addr::new(10, 0, 0, 2), 24).unwrap();
        let every = Duration::from_millis(2);
        let series = ping(&here, Ipv4Addr::new(10, 0, 0, 2), 100, every).unwrap();
        assert_eq!((series.sent, series.lost(), series.longest_gap), (100, 0, 0), "{series:?}");
        assert!(series.percentile(0.5).unwrap() < 100_000, "{series:?}");
        let series = ping(&here, Ipv4Addr::new(10, 0, 0, 3), 10, every).unwrap();
        assert_eq!((series.received, series.longest_gap), (0, 10), "{series:?}");
        // A window full of lost pings isn't full for good.
        let nobody = Ipv4Addr::new(10, 0, 0, 3);
        let series = Pinging::start_within(&here, nobody, 10, every, 4).unwrap().finish().unwrap();
        assert_eq!((series.sent, series.received), (10, 0), "{series:?}");
    }
}
