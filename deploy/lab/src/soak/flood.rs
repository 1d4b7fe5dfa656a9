//! A flood of WireGuard's initiations in others' names: made-up ones, and copies of one that was really sent.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::changes::{FAR, TUNNELS as PORT};
use super::paths::Paths;
use super::strangers::forged;
use crate::hospital::{Hospital, address};
use crate::packet::PacketSocket;
use crate::topology::Host;

/// A second. More would only keep other programs of this machine from running.
const RATE: u64 = 2_000;
/// An initiation: its length, and how it begins.
const LENGTH: usize = 148;
const KIND: [u8; 4] = [1, 0, 0, 0];
/// Senders, until they come again.
const SENDERS: u32 = 4_096;

type Recorded = Arc<Mutex<Option<Vec<u8>>>>;

/// Who records initiations, and sends floods of them.
#[derive(Debug)]
pub(super) struct Flooder {
    campus: Host,
    /// The gateway's, and its router's.
    macs: [[u8; 6]; 2],
    recorded: Recorded,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    under_way: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Flooder {
    /// Begins to record.
    pub(super) fn listen(hospital: &Hospital) -> Result<Self> {
        // What answers go to is nobody's.
        hospital.router.ip("route add blackhole 198.18.0.0/15")?;
        let socket = hospital.campus.enter(|| PacketSocket::open_on(Paths::door(), 0x0800))??;
        let (recorded, stop) = (Recorded::default(), Arc::new(AtomicBool::new(false)));
        let (held, ended) = (recorded.clone(), stop.clone());
        hospital.campus.thread(move || {
            let mut buffer = vec![0; 70_000];
            while !ended.load(Relaxed) {
                let heard = socket.receive(&mut buffer, Duration::from_millis(100));
                let Ok(length) = heard else { break };
                let frame = length.and_then(|length| buffer.get(..length));
                if let Some(initiation) = frame.and_then(initiation) {
                    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                    *held = Some(initiation.to_vec());
                }
            }
        })?;
        let gateway = hospital.gateways[FAR].host.mac("uplink")?;
        let router = crate::topology::Host::open("nat-1")?.mac("in")?;
        let macs = [gateway, router];
        let (campus, sent) = (hospital.campus.clone(), Arc::new(AtomicU64::new(0)));
        Ok(Self { campus, macs, recorded, sent, stop, under_way: None })
    }

    /// Begins a flood at the gateway whose addresses end so, if none is under way.
    pub(super) fn begin(&mut self, to: Ipv4Addr) -> Result<()> {
        if self.under_way.is_some() {
            return Ok(());
        }
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let frames = frames(self.macs, to, recorded.as_deref());
        let socket = self.campus.enter(|| PacketSocket::open_on(&format!("u-{FAR}"), 0))??;
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, count) = (stop.clone(), self.sent.clone());
        let thread = std::thread::Builder::new().name("flood".into()).spawn(move || {
            let (begun, mut sent) = (Instant::now(), 0);
            let mut next = frames.iter().cycle();
            while !ended.load(Relaxed) {
                let due = (begun.elapsed().as_secs_f64() * RATE as f64) as u64;
                // After a pause of the machine's the flood goes on; it doesn't come all at once.
                sent = sent.max(due.saturating_sub(RATE / 20));
                while sent < due {
                    let Some(frame) = next.next() else { return };
                    sent += 1;
                    count.fetch_add(u64::from(socket.send(frame).is_ok()), Relaxed);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        })?;
        self.under_way = Some((stop, thread));
        Ok(())
    }

    /// Ends it.
    pub(super) fn end(&mut self) {
        if let Some((stop, thread)) = self.under_way.take() {
            stop.store(true, Relaxed);
            thread.join().ok();
        }
    }

    /// Initiations that were sent in all floods.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl Drop for Flooder {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.end();
    }
}

/// The initiation in a frame to a gateway.
fn initiation(frame: &[u8]) -> Option<&[u8]> {
    let is_udp = frame.get(12..15)? == [0x08, 0x00, 0x45] && *frame.get(23)? == 17;
    let to = frame.get(36..38)?;
    let payload = frame.get(42..42 + LENGTH)?;
    let long = frame.get(38..40)? == u16::try_from(8 + LENGTH).ok()?.to_be_bytes();
    (is_udp && long && to == PORT.to_be_bytes() && payload.starts_with(&KIND)).then_some(payload)
}

/// Initiations from many senders, who are nobody; one in four in the name of a peer. Every second one is a copy, where
/// there is one to copy.
fn frames(macs: [[u8; 6]; 2], to: Ipv4Addr, recorded: Option<&[u8]>) -> Vec<Vec<u8>> {
    let mut strange = vec![0x5a; LENGTH];
    strange[..4].copy_from_slice(&KIND);
    (0..SENDERS)
        .map(|number| {
            let [_, a, b, c] = number.wrapping_mul(2_654_435_761).to_be_bytes();
            let from = match number % 4 {
                0 => (address("servers", 2), PORT),
                _ => {
                    (Ipv4Addr::new(198, 18 + (a & 1), b, c), 1_024 + u16::from_be_bytes([b, c]) / 2)
                }
            };
            let copied = recorded.filter(|_| number % 8 < 4);
            forged((macs[1], from), (macs[0], (to, PORT)), copied.unwrap_or(&strange))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initiation_is_known_and_copied() {
        let macs = [[2; 6], [4; 6]];
        let to = Ipv4Addr::new(10, 0, 0, 2);
        let made = frames(macs, to, None);
        assert_eq!(made.len(), SENDERS as usize);
        assert!(made.iter().all(|frame| initiation(frame).is_some()));
        let own: Vec<u8> = KIND.into_iter().chain((4..148).map(|byte| byte as u8)).collect();
        let copies = frames(macs, to, Some(&own));
        let copied = copies.iter().filter(|frame| initiation(frame) == Some(&own)).count();
        assert_eq!(copied, copies.len() / 2);
        assert_eq!(initiation(&made[0][..189]), None);
        let data = forged((macs[1], (to, PORT)), (macs[0], (to, PORT)), &[4; LENGTH]);
        assert_eq!(initiation(&data), None);
    }
}
