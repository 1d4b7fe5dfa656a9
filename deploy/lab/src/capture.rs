//! A capture on the campus switch: what kinds of traffic cross it, and whether given bytes can be read there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use memchr::memmem::Finder;

use crate::packet::PacketSocket;
use crate::topology::Host;

/// What a capture saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Frames.
    pub frames: u64,
    /// Frames by their kind.
    pub kinds: BTreeMap<String, u64>,
    /// Frames by source and destination address and kind.
    pub pairs: BTreeMap<(Ipv4Addr, Ipv4Addr), BTreeMap<String, u64>>,
    /// Which of the secrets could be read.
    pub secrets: BTreeSet<String>,
}

impl Seen {
    /// The kinds of IPv4 traffic between two addresses, in either direction.
    #[must_use]
    pub fn between(&self, a: Ipv4Addr, b: Ipv4Addr) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for pair in [(a, b), (b, a)] {
            for (kind, count) in self.pairs.get(&pair).into_iter().flatten() {
                *sum.entry(kind.clone()).or_default() += count;
            }
        }
        sum
    }

    /// The kinds of traffic to or from an address, with the other end.
    #[must_use]
    pub fn about(&self, address: Ipv4Addr) -> BTreeMap<(Ipv4Addr, String), u64> {
        let mut sum = BTreeMap::new();
        for ((from, to), kinds) in &self.pairs {
            let other = if *from == address {
                *to
            } else if *to == address {
                *from
            } else {
                continue;
            };
            for (kind, count) in kinds {
                *sum.entry((other, kind.clone())).or_default() += count;
            }
        }
        sum
    }
}

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Result<Seen>>>,
}

impl Capture {
    /// Starts capturing every frame that enters any interface of a host, searching each for `secrets`.
    ///
    /// # Errors
    /// If the socket can't be opened.
    pub fn start(host: &Host, secrets: Vec<(String, Vec<u8>)>) -> Result<Self> {
        let socket = host.enter(|| PacketSocket::open(0, 3))?.context("opening the capture")?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let thread = host.thread(move || {
            let finders: Vec<(String, Finder<'_>)> =
                secrets.iter().map(|(name, bytes)| (name.clone(), Finder::new(bytes))).collect();
            let mut seen = Seen::default();
            let mut buffer = vec![0; 70_000];
            loop {
                match socket.receive(&mut buffer, Duration::from_millis(20))? {
                    Some(length) => look(&mut seen, &buffer[..length.min(70_000)], &finders),
                    None if ended.load(Ordering::Relaxed) => break,
                    None => {}
                }
            }
            match socket.missed()? {
                0 => Ok(seen),
                missed => bail!("the capture missed {missed} frames"),
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends the capture, once the switch has been quiet for 20 ms or so.
    ///
    /// # Errors
    /// If the socket failed, or frames were missed.
    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(seen) => seen?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn look(seen: &mut Seen, frame: &[u8], secrets: &[(String, Finder<'_>)]) {
    seen.frames += 1;
    let (kind, addresses) = kind(frame);
    if let Some(pair) = addresses {
        *seen.pairs.entry(pair).or_default().entry(kind.clone()).or_default() += 1;
    }
    *seen.kinds.entry(kind).or_default() += 1;
    for (name, finder) in secrets {
        if !seen.secrets.contains(name) && finder.find(frame).is_some() {
            seen.secrets.insert(name.clone());
        }
    }
}

/// What a frame carries, in a word, and between which IPv4 addresses.
fn kind(frame: &[u8]) -> (String, Option<(Ipv4Addr, Ipv4Addr)>) {
    let Some(ether_type) = frame.get(12..14) else { return ("runt".into(), None) };
    match ether_type {
        [0x08, 0x06] => return ("arp".into(), None),
        [0x08, 0x00] => {}
        [0x86, 0xdd] => return ("ipv6".into(), None),
        [high, low] => return (format!("ethertype-{high:02x}{low:02x}"), None),
        _ => return ("runt".into(), None),
    }
    let packet = &frame[14..];
    let address = |at: usize| -> Option<Ipv4Addr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(octets.into())
    };
    let (Some(from), Some(to)) = (address(12), address(16)) else {
        return ("runt".into(), None);
    };
    let header = usize::from(packet[0] & 0x0f) * 4;
    let payload = packet.get(header..).unwrap_or_default();
    let word = match packet[9] {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => udp_kind(payload).into(),
        other => format!("protocol-{other}"),
    };
    (word, Some((from, to)))
}

/// WireGuard's packets begin with their type and three zeros, and have lengths that fit it.
fn udp_kind(udp: &[u8]) -> &'static str {
    let Some(data) = udp.get(8..) else { return "udp" };
    match (data, data.len()) {
        ([1, 0, 0, 0, ..], 148) | ([2, 0, 0, 0, ..], 92) | ([3, 0, 0, 0, ..], 64) => "wireguard",
        ([4, 0, 0, 0, ..], length) if length >= 32 => "wireguard",
        ([first, ..], length) if first & 0xc0 == 0xc0 && length >= 1200 => "quic",
        _ => "udp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&[0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn frames_are_told_apart() {
        let word = |frame: &[u8]| kind(frame).0;
        assert_eq!(word(&[0; 10]), "runt");
        assert_eq!(word(&ipv4(6, b"x")), "tcp");
        assert_eq!(word(&ipv4(17, &[0; 4])), "udp");
        let mut data = vec![0; 8];
        data.extend_from_slice(&[4, 0, 0, 0]);
        data.resize(8 + 32, 9);
        assert_eq!(word(&ipv4(17, &data)), "wireguard");
        data[9] = 1;
        assert_eq!(word(&ipv4(17, &data)), "udp");
        for cut in 0..34 {
            kind(&ipv4(17, &data)[..cut]);
        }
    }

    #[test]
    fn a_capture_reads_what_is_readable_and_only_that() {
        let test = "capture::tests::a_capture_reads_what_is_readable_and_only_that";
        if !crate::namespace::in_private_network(test) {
            return;
        }
        let (a, b) = (Host::create("a").unwrap(), Host::create("b").unwrap());
        crate::topology::cable((&a, "eth0", None), (&b, "eth0")).unwrap();
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        a.address("eth0", from, 24).unwrap();
        b.address("eth0", to, 24).unwrap();
        let secrets = vec![
            ("name".to_owned(), b"PHANTOM^ANTEROOM".to_vec()),
            ("other".to_owned(), b"NOBODY^ELSE".to_vec()),
        ];
        let capture = Capture::start(&b, secrets).unwrap();
        a.enter(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"..PHANTOM^ANTEROOM..", (to, 9)).unwrap();
        })
        .unwrap();
        let seen = capture.stop().unwrap();
        assert_eq!(seen.secrets.iter().collect::<Vec<_>>(), ["name"], "{seen:?}");
        assert_eq!(seen.between(to, from).get("udp"), Some(&1), "{seen:?}");
        assert_eq!(seen.about(from).len(), 1, "{seen:?}");
    }
}
