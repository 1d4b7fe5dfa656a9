//! Round trips of small packets: a prober, and somebody who answers it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

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

/// Sends a probe of `length` bytes each `every`, for `time`, and waits for the answer of each before the next.
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
    let mut packet = vec![0_u8; length.max(8)];
    let mut answer = vec![0_u8; packet.len()];
    let mut times = Times::default();
    let begun = Instant::now();
    let mut number = 0_u64;
    while begun.elapsed() < time {
        number += 1;
        packet[..8].copy_from_slice(&number.to_be_bytes());
        let sent = Instant::now();
        socket.send(&packet).ok();
        match answered(&socket, &mut answer, number, sent) {
            true => times.sorted.push(sent.elapsed()),
            false => times.lost += 1,
        }
        std::thread::sleep(every.saturating_sub(sent.elapsed()));
    }
    times.sorted.sort_unstable();
    Ok(times)
}

/// Waits for the answer to probe `number`, passing over late answers to earlier ones.
fn answered(socket: &UdpSocket, answer: &mut [u8], number: u64, sent: Instant) -> bool {
    while sent.elapsed() < LOST {
        match socket.recv(answer) {
            Ok(8..) if answer[..8] == number.to_be_bytes() => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            _ => {}
        }
    }
    false
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
}
