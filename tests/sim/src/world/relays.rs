//! Relays, and gateways that datagrams don't get between directly.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::net::SocketAddr;
use std::time::Duration;

use anteroom_agent_core::target::{RelayId, RelayPath, Through};
use anteroom_proto::relay::mirror as question;

use super::{Event, Out, World};

/// Longest sealed datagram that a relay takes.
const ROOM: u16 = 1_160;

/// A relay.
#[derive(Debug)]
struct Relay {
    /// How long a datagram takes through it.
    latency: Duration,
    up: bool,
    /// How far it is from gateways that are another distance away than that: both ways, from these.
    near: BTreeMap<usize, Duration>,
}

impl Relay {
    /// How long a datagram takes between two gateways through it.
    fn takes(&self, from: usize, to: usize) -> Duration {
        (self.round_trip(from) + self.round_trip(to)) / 2
    }

    /// The round trip to it from a gateway.
    fn round_trip(&self, from: usize) -> Duration {
        self.near.get(&from).copied().unwrap_or(self.latency)
    }
}

/// All relays, which all gateways know.
#[derive(Debug, Default)]
pub struct Relays {
    relays: Vec<Relay>,
    /// From whom to whom nothing gets through directly.
    blocked: BTreeSet<(usize, usize)>,
    /// Datagrams carried.
    pub carried: u64,
    /// How often one was asked how a gateway looks from outside.
    pub asked: u64,
    /// What all of them answer in place of the truth.
    pub lie: Option<SocketAddr>,
    /// Whether each of these answers names another port there.
    pub restless: bool,
}

/// Where a relay is asked how a gateway looks from outside.
fn mirror(relay: u16) -> SocketAddr {
    let [high, low] = relay.to_be_bytes();
    SocketAddr::from(([198, 51, 100 + high, 1 + low], 4_433))
}

impl Relays {
    pub(super) fn is_blocked(&self, from: usize, to: Option<usize>) -> bool {
        to.is_some_and(|to| self.blocked.contains(&(from, to)))
    }
}

impl World {
    /// Adds a relay through which a datagram takes so long. Each gateway is connected to it.
    pub fn relay(&mut self, latency: Duration) -> RelayId {
        self.relays.relays.push(Relay { latency, up: true, near: BTreeMap::new() });
        self.tell_relays();
        RelayId(u16::try_from(self.relays.relays.len() - 1).unwrap_or(u16::MAX))
    }

    /// A relay goes away, or is back.
    pub fn set_relay(&mut self, relay: RelayId, up: bool) {
        self.relays.relays[usize::from(relay.0)].up = up;
        self.tell_relays();
    }

    /// A relay is so far from one gateway: the round trip, which is the relay's latency where nothing else is said.
    pub fn set_round_trip(&mut self, relay: RelayId, gateway: usize, round_trip: Duration) {
        self.relays.relays[usize::from(relay.0)].near.insert(gateway, round_trip);
        self.tell_relays();
    }

    /// Whether datagrams get through between two gateways directly.
    pub fn set_direct(&mut self, a: usize, b: usize, open: bool) {
        for pair in [(a, b), (b, a)] {
            if open {
                self.relays.blocked.remove(&pair);
            } else {
                self.relays.blocked.insert(pair);
            }
        }
    }

    /// Tells all gateways that run which relays there are, nearest first.
    pub fn tell_relays(&mut self) {
        let paths = |from: usize| {
            let up = (0..).zip(&self.relays.relays).filter(|(_, relay)| relay.up);
            let mut paths: Vec<RelayPath> = up
                .map(|(at, relay)| {
                    let round_trip = relay.round_trip(from);
                    RelayPath { relay: RelayId(at), room: ROOM, round_trip }
                })
                .collect();
            paths.sort_by_key(|path| (path.round_trip, path.relay));
            paths
        };
        let paths: Vec<Vec<RelayPath>> = (0..self.gateways.len()).map(paths).collect();
        for (at, paths) in paths.iter().enumerate() {
            for other in (0..self.gateways.len()).filter(|other| *other != at) {
                let (id, now) = (self.plan.gateways[other].id, self.now);
                let Some(engine) = self.gateways[at].engine.as_mut() else { continue };
                let mut out = Out::default();
                engine.set_relays(id, paths, now, &mut out);
                self.send(at, out);
            }
            let now = self.now;
            let Some(engine) = self.gateways[at].engine.as_mut() else { continue };
            for (relay, known) in (0..).zip(&self.relays.relays) {
                engine.set_mirror(RelayId(relay), known.up.then(|| mirror(relay)), now);
            }
        }
    }

    /// What a relay says to a datagram that comes to where it may be asked; whether this was one.
    pub(super) fn mirror_takes(&mut self, to: SocketAddr, from: SocketAddr, bytes: &[u8]) -> bool {
        let place = (0..).zip(&self.relays.relays).find(|(relay, _)| mirror(*relay) == to);
        let Some((_, relay)) = place else { return false };
        if let Some(nonce) = question::parse_question(bytes).filter(|_| relay.up) {
            self.relays.asked += 1;
            let mut seen = self.relays.lie.unwrap_or(from);
            if self.relays.lie.is_some() && self.relays.restless {
                seen.set_port(1_024 + u16::try_from(self.relays.asked % 60_000).unwrap_or(0));
            }
            let bytes = question::answer(nonce, seen).to_vec();
            let latency = relay.latency;
            self.push(latency, Event::Datagram { to: from, from: to, bytes });
        }
        true
    }

    pub(super) fn give_to_relays(&mut self, from: usize, datagrams: Vec<(Through, Vec<u8>)>) {
        for (to, bytes) in datagrams {
            let Some(relay) = self.relays.relays.get(usize::from(to.relay.0)) else { continue };
            let at = self.plan.gateways.iter().position(|gateway| gateway.id == to.peer);
            let Some(at) = at.filter(|_| relay.up && bytes.len() <= usize::from(ROOM)) else {
                continue;
            };
            let (latency, from) = (relay.takes(from, at), self.plan.gateways[from].id);
            self.relays.carried += 1;
            let from = Through { relay: to.relay, peer: from };
            self.push(latency, Event::Relayed { to: at, from, bytes });
        }
    }

    pub(super) fn relay_brings(&mut self, to: usize, from: Through, bytes: &[u8]) {
        (self.now - self.start, to, from.relay.0, bytes.len()).hash(&mut self.trace);
        let now = self.now;
        let Some(engine) = self.gateways[to].engine.as_mut() else { return };
        let mut out = Out::default();
        engine.handle_relayed([(from, bytes)], now, &mut out);
        self.merged += out.merged;
        self.send(to, out);
    }
}
