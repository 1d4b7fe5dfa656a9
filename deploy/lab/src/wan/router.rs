//! A router in user space: it translates or filters as [`super::nat`] says, forwards, and answers ARP.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use anyhow::Result;

use super::ends::{self, Attach};
use super::ipv4::{self, End, Packet};
use super::mover::{Middle, Mover};
use super::nat::{Egress, Kind, Nat, Refused};
use crate::packet::{arp_reply, arp_request};
use crate::topology::Host;

/// Frames that wait for one neighbour's answer at most.
const WAITING: usize = 16;
/// Neighbours that are known, or asked for, at most.
const NEIGHBOURS: usize = 1024;

/// A side of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where those are whom it serves.
    Inside,
    /// Towards the world.
    Outside,
}

/// A router's place in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its own address there.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
}

impl Place {
    fn holds(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
        (u32::from(address) ^ u32::from(self.address)) & mask == 0
    }
}

/// What became of packets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Went on, by the side that they came in at: inside, outside.
    pub forwarded: [u64; 2],
    /// Were turned round to another inside host.
    pub hairpinned: u64,
    /// Were refused, by why.
    pub refused: HashMap<Refused, u64>,
    /// Were for an inside host by the outside address, where that isn't done.
    pub not_hairpinned: u64,
    /// Can't be translated: not IPv4, later fragments, other protocols; or had passed enough routers.
    pub other: u64,
    /// Waited in vain for a neighbour, or found no room to wait.
    pub no_neighbour: u64,
}

/// What a router does, without sockets or a clock.
#[derive(Debug)]
pub struct Router {
    macs: [[u8; 6]; 2],
    places: [Place; 2],
    gateway: Option<Ipv4Addr>,
    nat: Nat,
    known: HashMap<(Side, Ipv4Addr), [u8; 6]>,
    waiting: HashMap<(Side, Ipv4Addr), Vec<Vec<u8>>>,
    counters: Counters,
}

type Out = Vec<(usize, Vec<u8>)>;

impl Router {
    /// A router with these Ethernet addresses and places, inside first, and the next router outside if there is one.
    #[must_use]
    pub fn new(
        macs: [[u8; 6]; 2],
        places: [Place; 2],
        gateway: Option<Ipv4Addr>,
        kind: Kind,
        seed: u64,
    ) -> Self {
        Self {
            macs,
            nat: Nat::new(kind, places[1].address, seed),
            places,
            gateway,
            known: HashMap::new(),
            waiting: HashMap::new(),
            counters: Counters::default(),
        }
    }

    /// Takes a frame that came in at `side`, and adds to `out` what leaves (0: inside, 1: outside).
    pub fn take(&mut self, side: Side, frame: &[u8], now: Instant, out: &mut Out) {
        match frame.get(12..14) {
            Some([0x08, 0x06]) => self.take_arp(side, frame, out),
            Some([0x08, 0x00]) if frame.get(..6) == Some(&self.macs[index(side)][..]) => {
                let mut frame = frame.to_vec();
                match Packet::parse(&frame) {
                    Some(packet) if ipv4::pass(&mut frame) => {
                        frame.truncate(ipv4::ETHERNET + packet.total);
                        self.forward(side, frame, &packet, now, out);
                    }
                    _ => self.counters.other += 1,
                }
            }
            _ => {}
        }
    }

    fn forward(
        &mut self,
        side: Side,
        frame: Vec<u8>,
        packet: &Packet,
        now: Instant,
        out: &mut Out,
    ) {
        if packet.is_icmp_error() {
            return self.forward_error(side, frame, packet, now, out);
        }
        let ends = ipv4::endpoint(&frame, packet, End::Source).zip(ipv4::endpoint(
            &frame,
            packet,
            End::Destination,
        ));
        let Some((from, to)) = ends else {
            self.counters.other += 1;
            return;
        };
        let remote = if side == Side::Inside { to } else { from };
        let bytes = frame.len().saturating_sub(ipv4::ETHERNET);
        let egress = &self.nat.kind().egress;
        let passed = match side {
            _ if !egress.allows_length(packet.protocol, remote, bytes) => Err(Refused::Egress),
            Side::Inside => self.outward(frame, packet, (from, to), now, out),
            Side::Outside => self
                .nat
                .inbound(packet.protocol, to, from, now)
                .map(|inside| self.deliver(frame, packet, inside, out)),
        };
        match passed {
            Ok(()) => self.counters.forwarded[index(side)] += 1,
            Err(why) => *self.counters.refused.entry(why).or_default() += 1,
        }
    }

    fn outward(
        &mut self,
        mut frame: Vec<u8>,
        packet: &Packet,
        (from, to): (SocketAddrV4, SocketAddrV4),
        now: Instant,
        out: &mut Out,
    ) -> Result<(), Refused> {
        let round = self.nat.kind().translates && *to.ip() == self.nat.address();
        if round && !self.nat.kind().hairpins {
            self.counters.not_hairpinned += 1;
            return Ok(());
        }
        let outside = self.nat.outbound(packet.protocol, from, to, now)?;
        ipv4::rewrite(&mut frame, packet, End::Source, outside);
        if round {
            // As if it came from outside, in the name of its sender's outside address.
            let inside = self.nat.inbound(packet.protocol, to, outside, now)?;
            self.counters.hairpinned += 1;
            self.deliver(frame, packet, inside, out);
        } else {
            let next = if self.places[1].holds(*to.ip()) { Some(*to.ip()) } else { self.gateway };
            match next {
                Some(next) => self.send(Side::Outside, next, frame, out),
                None => self.counters.no_neighbour += 1,
            }
        }
        Ok(())
    }

    /// Sends a packet to somebody inside.
    fn deliver(&mut self, mut frame: Vec<u8>, packet: &Packet, to: SocketAddrV4, out: &mut Out) {
        ipv4::rewrite(&mut frame, packet, End::Destination, to);
        self.send(Side::Inside, *to.ip(), frame, out);
    }

    /// A report about a packet goes to whoever sent that one. From inside none is passed on.
    fn forward_error(
        &mut self,
        side: Side,
        mut frame: Vec<u8>,
        packet: &Packet,
        now: Instant,
        out: &mut Out,
    ) {
        let about = ipv4::quoted(&frame, packet).filter(|_| side == Side::Outside);
        match about.and_then(|(protocol, outside)| self.nat.owner(protocol, outside, now)) {
            Some(inside) => {
                ipv4::rewrite_quoted(&mut frame, packet, inside);
                self.counters.forwarded[index(side)] += 1;
                self.send(Side::Inside, *inside.ip(), frame, out);
            }
            None => self.counters.other += 1,
        }
    }

    /// Sends a packet to a neighbour, once their Ethernet address is known.
    fn send(&mut self, side: Side, to: Ipv4Addr, mut frame: Vec<u8>, out: &mut Out) {
        frame[6..12].copy_from_slice(&self.macs[index(side)]);
        if let Some(mac) = self.known.get(&(side, to)) {
            frame[..6].copy_from_slice(mac);
            out.push((index(side), frame));
            return;
        }
        let room = self.waiting.len() < NEIGHBOURS;
        match self.waiting.get_mut(&(side, to)) {
            Some(waiting) if waiting.len() < WAITING => waiting.push(frame),
            None if room => {
                self.waiting.insert((side, to), vec![frame]);
            }
            _ => self.counters.no_neighbour += 1,
        }
        let request = arp_request(self.macs[index(side)], self.places[index(side)].address, to);
        out.push((index(side), request.to_vec()));
    }

    fn take_arp(&mut self, side: Side, frame: &[u8], out: &mut Out) {
        if let Some((address, mac)) = arp_reply(frame) {
            self.learn(side, address, mac, out);
        } else if let Some((from, mac, target)) = asked(frame) {
            if self.places[index(side)].holds(from) {
                self.learn(side, from, mac, out);
            }
            if target == self.places[index(side)].address && from != target {
                let own = self.macs[index(side)];
                let mut reply = arp_request(own, target, from);
                reply[..6].copy_from_slice(&mac);
                reply[21] = 2;
                reply[32..38].copy_from_slice(&mac);
                out.push((index(side), reply.to_vec()));
            }
        }
    }

    fn learn(&mut self, side: Side, address: Ipv4Addr, mac: [u8; 6], out: &mut Out) {
        if self.known.len() >= NEIGHBOURS {
            self.known.clear();
        }
        self.known.insert((side, address), mac);
        for mut frame in self.waiting.remove(&(side, address)).unwrap_or_default() {
            frame[..6].copy_from_slice(&mac);
            out.push((index(side), frame));
        }
    }

    /// Another address outside, as by DHCP, which neighbours are told.
    fn set_address(&mut self, place: Place, gateway: Option<Ipv4Addr>) -> Vec<u8> {
        self.places[1] = place;
        self.gateway = gateway;
        self.nat.set_address(place.address);
        self.known.retain(|(side, _), _| *side == Side::Inside);
        self.waiting.retain(|(side, _), _| *side == Side::Inside);
        arp_request(self.macs[1], place.address, place.address).to_vec()
    }
}

const fn index(side: Side) -> usize {
    match side {
        Side::Inside => 0,
        Side::Outside => 1,
    }
}

/// Who asks in an ARP request, and for which address.
fn asked(frame: &[u8]) -> Option<(Ipv4Addr, [u8; 6], Ipv4Addr)> {
    if frame.get(20..22)? != [0, 1] {
        return None;
    }
    let mac: [u8; 6] = frame.get(22..28)?.try_into().ok()?;
    let from: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
    let target: [u8; 4] = frame.get(38..42)?.try_into().ok()?;
    Some((from.into(), mac, target.into()))
}

/// A router that runs, until this value ends.
#[derive(Debug)]
pub struct NatRouter {
    mover: Mover<Running>,
}

/// The router, and what it says by itself.
#[derive(Debug)]
struct Running {
    router: Router,
    says: Vec<Vec<u8>>,
}

impl NatRouter {
    /// Sets a router up between two networks. `name` is a new host's, of up to 10 bytes; `gateway` is the next router
    /// outside, if there is one; what chance decides follows from `seed`. Hosts inside have it as their router by
    /// themselves (see [`Host::default_route`]).
    ///
    /// # Errors
    /// If the kernel or `ip` refuses.
    pub fn set_up(
        name: &str,
        inside: (Attach<'_>, Place),
        outside: (Attach<'_>, Place),
        gateway: Option<Ipv4Addr>,
        kind: Kind,
        seed: u64,
    ) -> Result<Self> {
        let host = Host::create(name)?;
        ends::attach(&host, "in", inside.0)?;
        ends::attach(&host, "out", outside.0)?;
        let macs = [host.mac("in")?, host.mac("out")?];
        let router = Router::new(macs, [inside.1, outside.1], gateway, kind, seed);
        let running = Running { router, says: Vec::new() };
        Ok(Self { mover: Mover::start(&host, ["in", "out"], running)? })
    }

    /// Treats what passes in another way from now on. Mappings are forgotten, as at a restart of the router.
    pub fn set_kind(&self, kind: Kind) {
        self.mover.with(|running| running.router.nat.set_kind(kind));
    }

    /// Treats what passes in another way from now on, and forgets mappings only where it treats addresses otherwise: what
    /// may leave at all is no matter of them.
    pub fn treat(&self, kind: Kind) {
        self.mover.with(|running| {
            let nat = &mut running.router.nat;
            let same = Kind { egress: kind.egress.clone(), ..nat.kind().clone() } == kind;
            if same { nat.set_egress(kind.egress) } else { nat.set_kind(kind) }
        });
    }

    /// What may leave from now on.
    pub fn set_egress(&self, egress: Egress) {
        self.mover.with(|running| running.router.nat.set_egress(egress));
    }

    /// Another outside address, as by DHCP. Mappings are forgotten.
    pub fn set_address(&self, place: Place, gateway: Option<Ipv4Addr>) {
        self.mover.with(|running| {
            let announcement = running.router.set_address(place, gateway);
            running.says.push(announcement);
        });
    }

    /// Forgets all mappings, as a restart does.
    pub fn forget(&self) {
        self.mover.with(|running| running.router.nat.forget());
    }

    /// What became of packets.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.mover.with(|running| running.router.counters.clone())
    }
}

impl Middle for Running {
    fn take(&mut self, end: usize, frame: &[u8], now: Instant, out: &mut Out) {
        let side = if end == 0 { Side::Inside } else { Side::Outside };
        self.router.take(side, frame, now, out);
    }

    fn due(&mut self, _now: Instant, out: &mut Out) {
        out.extend(self.says.drain(..).map(|frame| (1, frame)));
    }

    fn next(&self) -> Option<Instant> {
        None
    }
}
