//! Many flows: UDP frames with made-up ports, by raw sockets, and somebody who takes or returns them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anteroom_lab::packet::PacketSocket;
use anteroom_lab::topology::Host;
use anyhow::{Context as _, Result};

/// Bytes of an IP packet: as the tests of small packets have it.
const PACKET: usize = 128;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const UDP_PROTOCOL: u8 = 17;
/// Frames that are made and sent together.
const BATCH: usize = 64;
/// How long the sender sleeps between batches.
const PAUSE: Duration = Duration::from_micros(500);
/// The first port of either end; below are services of one's own.
const FIRST_PORT: u32 = 2_000;
/// Source ports of one device to one destination port.
const PORTS: u32 = 60_000;

/// One end of flows.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its address.
    pub address: Ipv4Addr,
}

/// Writes the frame of flow `number`: of one of the devices in `from`, in turn.
fn write(frame: &mut [u8], from: &[End], to: End, number: u32) {
    let devices = from.len().max(1) as u32;
    let source = from[(number % devices) as usize];
    let (port, beyond) = ((number / devices) % PORTS, (number / devices) / PORTS);
    frame.fill(0);
    frame[..6].copy_from_slice(&to.mac);
    frame[6..12].copy_from_slice(&source.mac);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut frame[ETHERNET..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(PACKET as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = UDP_PROTOCOL;
    ip[12..16].copy_from_slice(&source.address.octets());
    ip[16..20].copy_from_slice(&to.address.octets());
    let sum = ip[..IPV4].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = sum.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(folded + (folded >> 16)) as u16).to_be_bytes());
    let udp = &mut ip[IPV4..];
    udp[..2].copy_from_slice(&((FIRST_PORT + port) as u16).to_be_bytes());
    udp[2..4].copy_from_slice(&((FIRST_PORT + beyond) as u16).to_be_bytes());
    // A sum of zero says that there is none.
    udp[4..6].copy_from_slice(&((PACKET - IPV4) as u16).to_be_bytes());
}

/// Flows, by their numbers, and the order in which their packets come: each has its turn before any comes again.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    first: u32,
    flows: u64,
    step: u64,
}

impl Turns {
    /// So many flows from this number on, one after the other.
    #[must_use]
    pub fn in_order(first: u32, flows: u32) -> Self {
        Self { first, flows: u64::from(flows.max(1)), step: 1 }
    }

    /// The flows up to this number. Those that follow each other have nothing to do with each other if they were opened in
    /// order: nothing of one was fetched into the processor's caches for the other's sake.
    #[must_use]
    pub fn scattered(flows: u32) -> Self {
        let flows = u64::from(flows.max(1));
        let far = flows * 618 / 1_000;
        let step = (1..=far).rev().find(|step| common_factor(*step, flows) == 1).unwrap_or(1);
        Self { first: 0, flows, step }
    }

    /// Whose turn it is.
    const fn flow(&self, packet: u64) -> u32 {
        self.first + (packet % self.flows * self.step % self.flows) as u32
    }
}

const fn common_factor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Sends `count` packets, `rate` a second. Returns how many went out.
///
/// # Errors
/// If the interface can't be opened.
pub fn send(
    host: &Host,
    (from, to): (&[End], End),
    turns: Turns,
    count: u64,
    rate: f64,
) -> Result<u64> {
    let socket = host.enter(|| PacketSocket::open_on("eth0", 0))?.context("a raw socket")?;
    let mut frames = vec![vec![0; ETHERNET + PACKET]; BATCH];
    let begun = Instant::now();
    let (mut offered, mut sent) = (0, 0);
    while offered < count {
        let due = ((begun.elapsed().as_secs_f64() * rate) as u64).min(count);
        // No more in a burst than a few batches, however late this thread comes.
        let mut burst = due.saturating_sub(offered).min(4 * BATCH as u64);
        while burst > 0 {
            let now = burst.min(BATCH as u64);
            for (index, frame) in frames.iter_mut().take(now as usize).enumerate() {
                write(frame, from, to, turns.flow(offered + index as u64));
            }
            sent += socket.send_many(&frames[..now as usize])? as u64;
            offered += now;
            burst -= now;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(sent)
}

/// Takes the frames at the far end, whose own network stack must not have their address, until it is dropped.
#[derive(Debug)]
pub struct Sink {
    received: Arc<AtomicU64>,
    returns: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Begins to take frames, and to return each to its sender.
    ///
    /// # Errors
    /// If the interface can't be opened.
    pub fn start(host: &Host) -> Result<Self> {
        let socket =
            host.enter(|| PacketSocket::open_on("eth0", 0x0800))?.context("a raw socket")?;
        let received = Arc::new(AtomicU64::new(0));
        let returns = Arc::new(AtomicBool::new(true));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, answering, ended) = (received.clone(), returns.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("sink".into()).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let Ok(Some(mut frame)) = socket.receive_whole(Duration::from_millis(20)) else {
                    continue;
                };
                if !turn(&mut frame) {
                    continue;
                }
                count.fetch_add(1, Ordering::Relaxed);
                if answering.load(Ordering::Relaxed) {
                    // One that isn't returned leaves its flow unanswered.
                    socket.send(&frame).ok();
                }
            }
        })?;
        Ok(Self { received, returns, stop, thread: Some(thread) })
    }

    /// Frames taken so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether frames are returned from now on.
    pub fn set_returning(&self, returning: bool) {
        self.returns.store(returning, Ordering::Relaxed);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Turns a frame round to its sender. No for what isn't one of ours.
fn turn(frame: &mut [u8]) -> bool {
    let ours = frame.len() >= ETHERNET + IPV4 + UDP
        && frame[12..15] == [0x08, 0x00, 0x45]
        && frame[ETHERNET + 9] == UDP_PROTOCOL;
    if ours {
        let mut swap = |first: usize, length: usize| {
            for index in first..first + length {
                frame.swap(index, index + length);
            }
        };
        swap(0, 6);
        swap(ETHERNET + 12, 4);
        swap(ETHERNET + IPV4, 2);
    }
    ours
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn end(number: u8) -> End {
        End { mac: [0, 0, 0x5e, 0, 0x53, number], address: Ipv4Addr::new(10, 0, 0, number) }
    }

    #[test]
    fn every_number_is_a_flow_of_its_own_and_its_header_sums_up() {
        let mut seen = BTreeSet::new();
        let mut frame = vec![0; ETHERNET + PACKET];
        for number in (0..200_000).chain([999_999]) {
            write(&mut frame, &[end(1), end(2), end(3)], end(9), number);
            let ip = &frame[ETHERNET..];
            assert!(seen.insert((ip[12..16].to_vec(), ip[20..24].to_vec())), "{number}");
            let words = ip[..IPV4].chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]])));
            let sum: u32 = words.sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{number}");
            assert_eq!(ip.len(), PACKET);
        }
    }

    #[test]
    fn packets_come_by_every_flow_once_before_any_comes_again() {
        for flows in [1, 2, 3, 10, 1_000, 1_001, 60_000] {
            let scattered = Turns::scattered(flows);
            let order: Vec<u32> = (0..flows.into()).map(|packet| scattered.flow(packet)).collect();
            let all: BTreeSet<u32> = order.iter().copied().collect();
            assert_eq!(all, (0..flows).collect(), "{flows}");
            assert_eq!(scattered.flow(flows.into()), scattered.flow(0));
            let near = order.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < flows / 4);
            assert_eq!(near.count(), 0, "{flows}");
        }
        let in_order = Turns::in_order(7, 3);
        assert_eq!([0, 1, 2, 3].map(|packet| in_order.flow(packet)), [7, 8, 9, 7]);
    }

    #[test]
    fn a_frame_goes_back_the_way_it_came() {
        let mut frame = vec![0; ETHERNET + PACKET];
        write(&mut frame, &[end(1)], end(9), 60_005);
        let original = frame.clone();
        assert!(turn(&mut frame));
        assert_eq!(frame[..6], end(1).mac);
        assert_eq!(frame[ETHERNET + 16..ETHERNET + 20], end(1).address.octets());
        assert_eq!(frame[34..38], [0x07, 0xd1, 0x07, 0xd5], "ports, the other way round");
        assert!(turn(&mut frame));
        assert_eq!(frame, original);
        assert!(!turn(&mut [0; 60]) && !turn(&mut []));
    }
}
