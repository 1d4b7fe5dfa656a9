//! Datagrams to a table of peers, in front of boringtun and through it.
//!
//! Two gateways with a live tunnel between them; the fuzzer holds the wire. Whatever comes, nothing panics, what wasn't
//! sent isn't delivered, nothing is delivered twice, and a stranger hears nothing.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anteroom_agent_core::peer::{Config, Local, Opened, PeerConfig, Peers, SCRATCH_LEN, Sent};
use anteroom_agent_core::size::CAPABILITY;
use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::TunnelSecret;
use arbitrary::Unstructured;

use crate::frames::start;
use crate::kept::Kept;

struct Side {
    number: u8,
    peers: Peers,
    sent: Kept,
    scratch: Vec<u8>,
}

impl Side {
    fn new(number: u8, now: Instant) -> Self {
        let config = Config {
            secret: TunnelSecret::from_bytes([number; 32]),
            boot: BootId::from_bytes([number; 16]),
            seed: [number ^ 0x55; 32],
            owner: number,
            capabilities: vec![CAPABILITY.to_owned()],
        };
        let mut peers = Peers::new(config, now);
        let local =
            Local { overlay: overlay(number), revision: 1, authority: 1, confirmed_time: None };
        peers.set_local(local, now);
        Self { number, peers, sent: Kept::default(), scratch: vec![0; SCRATCH_LEN] }
    }

    /// Takes a datagram; gives back the packet that was in it.
    fn open(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Option<Vec<u8>> {
        match self.peers.open(from, datagram, &mut self.scratch, now, &mut self.sent) {
            Opened::Packet { packet, .. } => Some(packet.to_vec()),
            Opened::Whole { packet, .. } => Some(packet),
            Opened::Handled | Opened::Dropped(_) => None,
        }
    }

    fn time(&mut self, now: Instant) {
        self.peers.handle_timeout(now, &mut self.sent);
        while self.peers.poll_event().is_some() {}
        self.peers.drain_drops(|_, _| {});
        if let Some((at, what)) = self.peers.poll_timeout() {
            assert!(at > now, "{what} is due for ever");
        }
    }
}

fn overlay(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, u16::from(number))
}

fn at(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51_820))
}

fn gateway(number: u8) -> GatewayId {
    GatewayId::from_bytes([number; 16])
}

/// The whole wire between two gateways.
struct Wire {
    sides: [Side; 2],
    now: Instant,
    /// Every datagram that either side ever sent: from whom, and what.
    heard: Vec<(usize, Vec<u8>)>,
    /// Packets that were given to be sent, by side.
    given: [BTreeSet<Vec<u8>>; 2],
    /// Packets that came out, by the side that sent them.
    delivered: [BTreeSet<Vec<u8>>; 2],
    packets: u16,
}

/// Takes `data` for what happens on the wire between two gateways.
///
/// # Panics
/// If an invariant doesn't hold.
pub fn run(data: &[u8]) {
    let mut wire = Wire::new();
    let mut input = Unstructured::new(data);
    for _ in 0..64 {
        if input.is_empty() || wire.step(&mut input).is_err() {
            break;
        }
    }
}

impl Wire {
    fn new() -> Self {
        let now = start();
        let mut sides = [Side::new(1, now), Side::new(2, now)];
        for at_side in 0..2 {
            let other = sides[1 - at_side].number;
            let config = PeerConfig {
                gateway: gateway(other),
                overlay: overlay(other),
                keys: vec![TunnelSecret::from_bytes([other; 32]).public()],
                endpoints: vec![at(other)],
                relation: 0,
                kems: Vec::new(),
                client: false,
            };
            sides[at_side].peers.set_peers(&[config], now);
        }
        let mut wire = Self {
            sides,
            now,
            heard: Vec::new(),
            given: Default::default(),
            delivered: Default::default(),
            packets: 0,
        };
        wire.pass(Duration::from_secs(1));
        wire
    }

    /// Lets time go by with a wire that carries everything.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..200 {
            while self.carry() {}
            let due = self
                .sides
                .iter()
                .filter_map(|side| side.peers.poll_timeout())
                .map(|(at, _)| at)
                .min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            let now = self.now;
            for side in &mut self.sides {
                side.time(now);
            }
        }
        self.now = end;
        let now = self.now;
        for side in &mut self.sides {
            side.time(now);
        }
    }

    /// Carries what waits to the other side; says whether there was any.
    fn carry(&mut self) -> bool {
        let mut any = false;
        for from in 0..2 {
            for (_, datagram) in std::mem::take(&mut self.sides[from].sent.datagrams) {
                any = true;
                self.deliver(from, from, &datagram);
                if self.heard.len() < 64 {
                    self.heard.push((from, datagram));
                }
            }
        }
        any
    }

    /// Gives a datagram to the side that isn't `from`; what comes out must have been sent, and is new.
    fn deliver(&mut self, from: usize, seems: usize, datagram: &[u8]) {
        let address = at(self.sides[seems].number);
        if let Some(packet) = self.sides[1 - from].open(address, datagram, self.now) {
            assert!(self.given[from].contains(&packet), "nobody sent {packet:02x?}");
            assert!(self.delivered[from].insert(packet.clone()), "twice: {packet:02x?}");
        }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let (kind, side) = (input.int_in_range(0..=7)?, usize::from(input.arbitrary::<bool>()?));
        match kind {
            // A packet, with its own number so that none is like another.
            0 | 1 => {
                self.packets += 1;
                let len = usize::from(input.arbitrary::<u16>()? % 3_000).max(28);
                let mut packet = vec![0; len];
                packet[0] = if kind == 0 { 0x45 } else { input.arbitrary()? };
                packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                packet[4..6].copy_from_slice(&self.packets.to_be_bytes());
                let other = gateway(self.sides[1 - side].number);
                let own = &mut self.sides[side];
                if let Some(slot) = own.peers.slot(other) {
                    let sent = if len > own.peers.limit(slot) && own.peers.takes_parts(slot) {
                        let (now, out) = (self.now, &mut own.sent);
                        let each = |peers: &mut Peers, _, part: &mut [u8]| {
                            peers.send(slot, part, now, out)
                        };
                        own.peers.send_parts(slot, &packet, each)
                    } else {
                        own.peers.send(slot, &packet, self.now, &mut own.sent)
                    };
                    if !matches!(sent, Sent::Dropped(_)) {
                        self.given[side].insert(packet);
                    }
                }
                if input.arbitrary()? {
                    self.carry();
                }
            }
            // Any bytes, from anyone.
            2 => {
                let len = usize::from(input.arbitrary::<u16>()?);
                let bytes = input.bytes(len.min(input.len()))?.to_vec();
                self.say(side, &bytes, input.arbitrary()?);
            }
            // Bytes with a WireGuard header that fits.
            3 => {
                let (message, len) =
                    [(1, 148), (2, 92), (3, 64), (4, 80)][input.choose_index(4)?];
                let mut bytes = vec![input.arbitrary()?; len];
                bytes[..4].copy_from_slice(&[message, 0, 0, 0]);
                let head = input.bytes(12.min(input.len()))?;
                bytes[4..4 + head.len()].copy_from_slice(head);
                self.say(side, &bytes, input.arbitrary()?);
            }
            // One that was heard, again, with a byte changed, cut or longer.
            4 | 5 if !self.heard.is_empty() => {
                let (from, mut bytes) = self.heard[input.choose_index(self.heard.len())?].clone();
                let change: u8 = input.arbitrary()?;
                let place = usize::from(input.arbitrary::<u16>()?) % bytes.len();
                match change & 3 {
                    0 => {}
                    1 => bytes[place] ^= change | 1,
                    2 => bytes.truncate(place),
                    _ => bytes.extend([change; 16]),
                }
                let back = input.arbitrary::<bool>()?;
                let seems = if input.arbitrary()? { from } else { 1 - from };
                self.deliver(if back { 1 - from } else { from }, seems, &bytes);
            }
            6 => {
                // What is under way is lost.
                self.sides[side].sent.datagrams.clear();
            }
            _ => {
                let time = Duration::from_millis(u64::from(input.arbitrary::<u8>()?) * 40);
                self.pass(time);
            }
        }
        Ok(())
    }

    /// Bytes that neither side sent, to one of them.
    fn say(&mut self, to: usize, bytes: &[u8], as_the_peer: bool) {
        let from = if as_the_peer { at(self.sides[1 - to].number) } else { at(99) };
        let before = self.sides[to].sent.datagrams.len();
        let opened = self.sides[to].open(from, bytes, self.now);
        assert_eq!(opened, None, "a stranger's bytes were delivered: {bytes:02x?}");
        let answers = &self.sides[to].sent.datagrams[before..];
        assert!(answers.is_empty(), "a stranger was answered: {bytes:02x?} with {answers:02x?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_that_fuzzing_begins_with_carries_packets() {
        let mut wire = Wire::new();
        let none = [0; 16];
        wire.step(&mut Unstructured::new(&none)).unwrap();
        wire.carry();
        assert_eq!(wire.given[0].len(), 1);
        assert_eq!(wire.delivered[0], wire.given[0]);
    }
}
