//! What devices let be seen of themselves, read beside the data plane.
//!
//! The worker copies the beginnings of frames that the gate ([`anteroom_sensor::Gate`]) finds worth a look into a bounded ring and
//! goes on; it never waits. A thread of low priority sleeps until a frame is there, lets more come together and empties the rings,
//! four times a second at most; the first frame after a while wakes it. Where it lags, frames are passed over and counted; where a
//! parser panics, the sensor of that port begins anew, and is counted. Nothing of a frame is kept but hints. Every port has a ring,
//! tables and time of its own, so that whoever floods one hides nobody at another.

mod tap;
mod thread;
mod turns;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anteroom_proto::inventory::Hint;
use anteroom_proto::mac::MacAddr;
use anteroom_sensor::Collector;
use serde::{Deserialize, Serialize};

pub(super) use tap::Tap;
use turns::Turns;

/// Most devices of one port that hints are kept of.
const MOST_DEVICES: usize = 256;
/// Frames that wait for the thread at most, shared out among the ports; and the least that a port has of them.
const QUEUE: usize = 1024;
const LEAST_QUEUE: usize = 256;

/// How the sensor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SensorStatus {
    /// Frames that were read.
    pub read: u64,
    /// Frames that weren't, for want of room or time or since too many came in a second.
    pub passed_over: u64,
    /// Hints that found no room.
    pub turned_away: u64,
    /// Flows that were forgotten before their time, to make room for others.
    pub pushed_out: u64,
    /// Times that it failed and began anew.
    pub failed: u64,
    /// How long it has worked, in milliseconds; None where the kernel doesn't tell.
    pub worked_ms: Option<u64>,
}

/// What a device let be seen since the last time it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Number of its port, among the device ports.
    pub port: usize,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its VLAN, or none.
    pub vlan: Option<u16>,
    /// What is new, or was last told a day ago.
    pub hints: Vec<Hint>,
}

/// What tap, thread and whoever reports have in common.
#[derive(Debug)]
struct Shared {
    known: Mutex<Known>,
    read: AtomicU64,
    passed_over: AtomicU64,
    pushed_out: AtomicU64,
    failed: AtomicU64,
    worked_ms: AtomicU64,
    turns: Turns,
}

/// Hints of the devices at each port.
#[derive(Debug)]
struct Known {
    ports: Vec<Collector>,
    told_away: u64,
}

impl Known {
    fn new(ports: usize) -> Self {
        Self { ports: (0..ports).map(|_| Collector::new(MOST_DEVICES)).collect(), told_away: 0 }
    }

    fn turned_away(&self) -> u64 {
        self.ports.iter().map(Collector::turned_away).sum()
    }
}

/// Reads what the thread has found.
#[derive(Debug, Clone)]
pub(super) struct Findings(Arc<Shared>);

impl Findings {
    /// What is to be reported of some `most` devices, of each port its share, and how many hints found no room since the last time.
    pub(super) fn take(&self, most: usize) -> (Vec<Seen>, u64) {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let most = (most / known.ports.len().max(1)).max(1);
        let mut seen = Vec::new();
        for (port, collector) in known.ports.iter_mut().enumerate() {
            let news = collector.take_news(most).into_iter();
            seen.extend(news.map(|(who, hints)| Seen {
                port,
                mac: who.mac,
                vlan: who.vlan,
                hints,
            }));
        }
        let away = known.turned_away();
        let before = std::mem::replace(&mut known.told_away, away);
        (seen, away - before)
    }

    /// Waits until all that was copied so far is read, though not for longer than `patience`.
    pub(super) async fn settled(&self, patience: Duration) {
        if let Some(read) = self.0.turns.ask() {
            // Where the thread has ended meanwhile, it has read all there was.
            let _ = tokio::time::timeout(patience, read).await;
        }
    }

    /// How it is doing.
    pub(super) fn status(&self) -> SensorStatus {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let turned_away = self.0.known.lock().unwrap_or_else(PoisonError::into_inner).turned_away();
        let worked = count(&self.0.worked_ms);
        SensorStatus {
            read: count(&self.0.read),
            passed_over: count(&self.0.passed_over),
            turned_away,
            pushed_out: count(&self.0.pushed_out),
            failed: count(&self.0.failed),
            worked_ms: (worked != u64::MAX).then_some(worked),
        }
    }
}

impl Shared {
    fn new(ports: usize) -> Self {
        Self {
            known: Mutex::new(Known::new(ports)),
            read: AtomicU64::new(0),
            passed_over: AtomicU64::new(0),
            pushed_out: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            worked_ms: AtomicU64::new(u64::MAX),
            turns: Turns::default(),
        }
    }
}

/// Starts the thread, with a tap for the worker, for so many device ports. It ends with the tap.
///
/// # Errors
/// Where the system gives no thread.
pub(super) fn start(ports: usize, seed: u64) -> std::io::Result<(Tap, Findings)> {
    let room = (QUEUE / ports.max(1)).max(LEAST_QUEUE);
    let (producers, consumers) = (0..ports).map(|_| rtrb::RingBuffer::new(room)).unzip();
    let shared = Arc::new(Shared::new(ports));
    thread::spawn(consumers, shared.clone())?;
    Ok((Tap::new(seed, producers, shared.clone()), Findings(shared)))
}

#[cfg(test)]
mod tests;
