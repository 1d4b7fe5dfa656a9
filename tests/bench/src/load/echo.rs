//! Round trips of small packets: a prober, and somebody who answers it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anteroom_agent::net::offload::Offload;
use anteroom_agent::slice;
use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::world::{Device, World};

/// Where probes are answered.
const PORT: u16 = 7;
/// An answer that takes longer is lost.
const LOST: Duration = Duration::from_secs(1);

/// Round-trip times.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// Those of answered probes, sorted.
    sorted: Vec<Duration>,
    /// Probes that weren't answered within a second.
    pub lost: u64,
}

impl Times {
    /// The time in milliseconds within which `share` (0 to 1) of the answers came.
    #[must_use]
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let last = self.sorted.len().checked_sub(1)?;
        let index = (last as f64 * share).round() as usize;
        Some(self.sorted.get(index)?.as_secs_f64() * 1e3)
    }
}

/// Answers probes at a device until it is dropped.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Begins to answer.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn start(world: &World, at: Device) -> Result<Self> {
        let socket = world
            .device(at)
            .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?
            .context("binding the responder's socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let thread = std::thread::Builder::new().name("responder".into()).spawn(move || {
            own_processor();
            let mut packet = [0; 2_048];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut packet) {
                    // A probe that isn't answered counts as lost.
                    socket.send_to(&packet[..length], from).ok();
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Sends a probe of `length` bytes each `every`, for `time`, whether or not the one before was answered: a tunnel that
/// stands still delays every probe that falls into that time, not just one.
///
/// # Errors
/// If the socket fails.
pub fn probe(
    world: &World,
    (from, to): (Device, Device),
    length: usize,
    every: Duration,
    time: Duration,
) -> Result<Times> {
    let socket = prober(world, from, to)?;
    socket.set_nonblocking(true)?;
    let prober = std::thread::Builder::new().name("prober".into());
    let prober = prober.spawn(move || {
        own_processor();
        probes(&socket, length.max(8), every, time)
    })?;
    prober.join().map_err(|_| anyhow::anyhow!("the prober panicked"))?
}

/// A real device has a processor of its own and is awake when something comes. Here it shares cores with the gateways and
/// with whoever makes load, so that the wait for a turn would be measured with them. Short turns lessen it, alike for
/// every subject; a kernel that knows none leaves it as it is.
fn own_processor() {
    if let Offload::Off(reason) = slice::ask() {
        static SAID: Once = Once::new();
        SAID.call_once(|| eprintln!("Probes have no short turns on the processor: {reason}"));
    }
}

fn probes(socket: &UdpSocket, length: usize, every: Duration, time: Duration) -> Result<Times> {
    // The kernel would add up to 50 us to each short sleep.
    nix::sys::prctl::set_timerslack(1).ok();
    let mut packet = vec![0_u8; length];
    let mut times = Times::default();
    // When each probe was sent, until it is answered.
    let mut sent: Vec<Option<Instant>> = Vec::new();
    let begun = Instant::now();
    let mut next = begun;
    let end = begun + time;
    loop {
        let now = Instant::now();
        if next < end && now >= next {
            packet[..8].copy_from_slice(&sent.len().to_be_bytes());
            sent.push(Some(Instant::now()));
            // One that can't be sent isn't answered, and counts as lost.
            socket.send(&packet).ok();
            next += every;
        }
        while let Ok(8..) = socket.recv(&mut packet) {
            let number =
                packet.first_chunk().map_or(usize::MAX, |bytes| usize::from_be_bytes(*bytes));
            if let Some(at) = sent.get_mut(number).and_then(Option::take) {
                times.sorted.push(at.elapsed());
            }
        }
        let under_way = sent.iter().rev().take(LOST.div_duration_f64(every) as usize + 1);
        let done = next >= end && under_way.flatten().next().is_none();
        if done || now >= end + LOST {
            break;
        }
        let until = if next < end { next } else { end + LOST };
        let wait = until.saturating_duration_since(Instant::now());
        let mut events = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        ppoll(&mut events, Some(TimeSpec::from_duration(wait)), None)?;
    }
    times.lost = sent.iter().flatten().count() as u64;
    times.sorted.sort_unstable();
    Ok(times)
}

/// Waits until probes between these devices are answered.
///
/// # Errors
/// If none is within `limit`.
pub fn wait_answered(world: &World, (from, to): (Device, Device), limit: Duration) -> Result<()> {
    let _responder = Responder::start(world, to)?;
    let socket = prober(world, from, to)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let begun = Instant::now();
    let mut packet = [0; 8];
    while begun.elapsed() < limit {
        let sent = Instant::now();
        // What can't be sent yet is sent again.
        socket.send(&packet).ok();
        if socket.recv(&mut packet).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50).saturating_sub(sent.elapsed()));
    }
    bail!(
        "nothing from {} was answered by {} within {limit:?}",
        world.address(from),
        world.address(to)
    )
}

fn prober(world: &World, from: Device, to: Device) -> Result<UdpSocket> {
    let address = SocketAddr::from((world.address(to), PORT));
    let socket = world.device(from).enter(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(address)?;
        Ok(socket)
    })??;
    socket.set_read_timeout(Some(LOST))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_answered() {
        assert_eq!(Times::default().percentile(0.5), None);
        let sorted = (1..=101).map(Duration::from_millis).collect();
        let times = Times { sorted, lost: 3 };
        assert_eq!(times.percentile(0.5), Some(51.0));
        assert_eq!(times.percentile(0.99), Some(100.0));
        assert_eq!(times.percentile(1.0), Some(101.0));
    }

    #[test]
    fn an_answer_that_is_held_up_delays_all_probes_of_that_time_and_a_missing_one_is_lost() {
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        near.connect(far.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let answering = std::thread::spawn(move || {
            let mut packet = [0; 64];
            for number in 0..10 {
                let (length, from) = far.recv_from(&mut packet).unwrap();
                if number == 2 {
                    std::thread::sleep(Duration::from_millis(60));
                }
                if number != 5 {
                    far.send_to(&packet[..length], from).unwrap();
                }
            }
        });
        let every = Duration::from_millis(10);
        let times = probes(&near, 64, every, 10 * every).unwrap();
        answering.join().unwrap();
        assert_eq!((times.sorted.len(), times.lost), (9, 1), "{times:?}");
        assert!(times.percentile(1.0).unwrap() >= 60.0, "{times:?}");
        let held_up = times.sorted.iter().filter(|time| **time > 2 * every).count();
        assert!(held_up >= 3, "{times:?}");
    }
}
