//! The sensor's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anteroom_proto::time::UnixMillis;
use anteroom_sensor::{Sensor, Sights};

use super::Shared;
use super::tap::Copied;
use crate::slice;

/// How long frames are let come together before the rings are emptied.
const TURN: Duration = Duration::from_millis(250);
/// What reading one port's frames may take of a second. Further ones are passed over.
const MOST_WORK: Duration = Duration::from_millis(50);
/// A station is believed to have moved to another port once it was silent at the first for so long, in milliseconds.
const MOVES: u64 = 600_000;

/// What reads one port's frames.
#[derive(Debug, Default)]
struct Reader {
    sensor: Sensor,
    /// What it has worked in this second.
    worked: Duration,
    /// What its sensors before this one pushed out.
    pushed_out: u64,
}

/// Starts it. It ends once the other ends of the rings, one for each port, are gone.
pub(super) fn spawn(
    rings: Vec<rtrb::Consumer<Copied>>,
    shared: Arc<Shared>,
) -> std::io::Result<()> {
    std::thread::Builder::new().name("sensor".into()).spawn(move || run(rings, &shared))?;
    Ok(())
}

/// Takes turns until the other ends of the rings are gone.
pub(super) fn run(rings: Vec<rtrb::Consumer<Copied>>, shared: &Shared) {
    shared.turns.begin();
    take_turns(rings, shared);
    shared.turns.end();
}

fn take_turns(mut rings: Vec<rtrb::Consumer<Copied>>, shared: &Shared) {
    if let Err(error) = slice::stand_back() {
        tracing::debug!("the sensor's thread keeps its priority: {error}");
    }
    let mut readers: Vec<Reader> = rings.iter().map(|_| Reader::default()).collect();
    let mut sights = Sights::default();
    let mut second = Instant::now();
    loop {
        let ended = rings.iter().all(rtrb::Consumer::is_abandoned);
        let waiting = shared.turns.take_waiting();
        if second.elapsed() >= Duration::from_secs(1) {
            second = Instant::now();
            readers.iter_mut().for_each(|reader| reader.worked = Duration::ZERO);
        }
        for (port, (ring, reader)) in rings.iter_mut().zip(&mut readers).enumerate() {
            empty(ring, port, reader, &mut sights, shared);
        }
        let pushed_out =
            readers.iter().map(|reader| reader.pushed_out + reader.sensor.pushed_out()).sum();
        shared.pushed_out.store(pushed_out, Ordering::Relaxed);
        let worked_ms = worked().and_then(|worked| u64::try_from(worked.as_millis()).ok());
        shared.worked_ms.store(worked_ms.unwrap_or(u64::MAX), Ordering::Relaxed);
        for answer in waiting {
            // Who asked may have gone.
            let _ = answer.send(());
        }
        if ended {
            return;
        }
        let is_there = || {
            rings.iter().any(|ring| !ring.is_empty())
                || rings.iter().all(rtrb::Consumer::is_abandoned)
        };
        shared.turns.wait(TURN, is_there);
    }
}

/// Reads the frames that one port's ring has now, as far as its time goes.
fn empty(
    ring: &mut rtrb::Consumer<Copied>,
    port: usize,
    reader: &mut Reader,
    sights: &mut Sights,
    shared: &Shared,
) {
    // What comes meanwhile is the next turn's, so that no port keeps others waiting.
    for _ in 0..ring.slots() {
        let Ok(copied) = ring.pop() else { return };
        if reader.worked >= MOST_WORK {
            shared.passed_over.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let before = worked();
        let read = catch_unwind(AssertUnwindSafe(|| {
            read(&copied, port, &mut reader.sensor, sights, shared);
        }));
        shared.read.fetch_add(1, Ordering::Relaxed);
        if read.is_err() {
            shared.failed.fetch_add(1, Ordering::Relaxed);
            reader.pushed_out += reader.sensor.pushed_out();
            (reader.sensor, *sights) = (Sensor::new(), Sights::default());
        }
        if let (Some(before), Some(after)) = (before, worked()) {
            reader.worked += after.saturating_sub(before);
        }
    }
}

/// Reads one frame. Only what concerns stations at its own port counts: beyond others stand switches and routers.
fn read(copied: &Copied, at: usize, sensor: &mut Sensor, sights: &mut Sights, shared: &Shared) {
    sensor.frame(copied.bytes(), copied.vlan, copied.look, sights);
    let now = wall();
    let mut known = shared.known.lock().unwrap_or_else(PoisonError::into_inner);
    if copied.arrived
        && let Some(sender) = anteroom_sensor::sender(copied.bytes(), copied.vlan)
    {
        // Somebody elsewhere who uses another's address isn't believed.
        let is_elsewhere = known.ports.iter().enumerate().any(|(port, collector)| {
            let heard = collector.last_heard(sender);
            port != at && heard.is_some_and(|at| now.0.saturating_sub(at.0) < MOVES)
        });
        if !is_elsewhere && let Some(collector) = known.ports.get_mut(at) {
            collector.heard(sender, anteroom_sensor::source(copied.bytes()), now);
        }
    }
    for sight in sights.drain() {
        if let Some(collector) = known.ports.get_mut(at) {
            collector.note(sight, now);
        }
    }
}

fn wall() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// How long this thread has worked.
fn worked() -> Option<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).ok()?;
    Some(Duration::from(time))
}
