//! Gateways, their devices, and a campus with one router, in virtual time.

mod campus;
mod nats;
mod relays;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent_core::batch::{RxDatagram, RxFrame, VlanTag};
use anteroom_agent_core::config::{Config, PortConfig, TunnelIdentity};
use anteroom_agent_core::engine::{Engine, Runner};
use anteroom_agent_core::gso::Packets;
use anteroom_agent_core::lane;
use anteroom_agent_core::limits::Limits;
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::sink::Sink;
use anteroom_agent_core::target::{Through, Whose};
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_agent_core::wire::arp::{self, Operation};
use anteroom_agent_core::wire::{ethernet, parse_ethernet, parse_ipv4};
use anteroom_proto::key::TunnelSecret;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::Unlisted;
use anteroom_proto::view::View;

use crate::host::Host;
use crate::packet;
use crate::plan::{Plan, mac};
use crate::random::Random;

/// One way over a cable, or through the underlay.
const HOP: Duration = Duration::from_micros(200);
/// More frames than this between two calls of [`World::clear_campus`] are a storm.
const STORM: usize = 20_000;
/// The campus router's Ethernet address at first.
pub const ROUTER: MacAddr = mac(0x01, 1);
/// The wall clock at the beginning.
pub const EPOCH: UnixMillis = UnixMillis(1_800_000_000_000);

/// Where a frame is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Host(usize),
    Gateway(usize, PortId),
    Campus(Cable),
}

/// What is plugged into the campus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cable {
    /// A gateway's uplink.
    Gateway(usize),
    /// A machine.
    Host(usize),
    /// The router's interface.
    Router,
}

#[derive(Debug)]
enum Event {
    Frame(To, Vec<u8>),
    Datagram {
        to: SocketAddr,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    /// On its way through a relay, to a gateway.
    Relayed {
        to: usize,
        from: Through,
        bytes: Vec<u8>,
    },
}

/// A frame on the campus: when, from what cable, and the frame.
#[derive(Debug, Clone)]
pub struct OnCampus {
    /// Where it came in.
    pub from: Cable,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// Where a machine is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plug {
    Port(usize, PortId),
    Subnet([u8; 3]),
}

/// A gateway that runs, or doesn't.
struct Gateway {
    engine: Option<Engine>,
    subnet: [u8; 3],
    ports: Vec<String>,
    boots: u8,
    /// What it holds on disk.
    view: Option<Arc<View>>,
}

/// What datagrams between gateways suffer, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Lost.
    pub loss: u64,
    /// Delivered twice.
    pub duplicates: u64,
    /// Delivered late.
    pub reordering: u64,
}

/// The whole of it.
pub struct World {
    /// The time.
    pub now: Instant,
    start: Instant,
    /// What operators decided.
    pub plan: Plan,
    gateways: Vec<Gateway>,
    /// All machines.
    pub hosts: Vec<Host>,
    plugs: Vec<Plug>,
    events: BinaryHeap<Reverse<(Instant, u64)>>,
    queue: HashMap<u64, Event>,
    number: u64,
    learnt: BTreeMap<([u8; 3], MacAddr), Cable>,
    /// The router's Ethernet address, the same in each subnet.
    pub router_mac: MacAddr,
    /// Whether the router hears and says nothing.
    pub router_is_down: bool,
    router_arp: BTreeMap<Ipv4Addr, MacAddr>,
    router_waits: Vec<(Ipv4Addr, Vec<u8>)>,
    /// Every frame that the campus carried since the last [`Self::clear_campus`].
    pub campus: Vec<OnCampus>,
    /// Relays, and gateways between which nothing gets through directly.
    pub relays: relays::Relays,
    /// Routers that translate in front of gateways.
    pub nats: nats::Nats,
    /// What datagrams suffer.
    pub weather: Weather,
    /// Largest packet of IP, in bytes, that the underlay carries. What is larger is lost without a word.
    pub carries: usize,
    /// Datagrams carried.
    pub datagrams: u64,
    /// How many gateways have sent to each address of the underlay.
    pub sent_to: BTreeMap<SocketAddr, u64>,
    /// Super-frames that gateways made of what came out of their tunnels.
    pub merged: usize,
    random: Random,
    trace: DefaultHasher,
}

#[derive(Default)]
pub(crate) struct Out {
    pub(crate) frames: Vec<(PortId, Vec<u8>)>,
    pub(crate) datagrams: Vec<(SocketAddr, Vec<u8>)>,
    pub(crate) relayed: Vec<(Through, Vec<u8>)>,
    merged: usize,
}

/// The frames that a network card makes of one: of a super-frame one for each packet.
fn cut(bytes: &[u8], vnet: &VnetHeader) -> Vec<Vec<u8>> {
    if !vnet.is_super_frame() {
        return vec![bytes.to_vec()];
    }
    let at = parse_ethernet(bytes, None).expect("an Ethernet header").payload_offset;
    let mut packet = bytes[at..].to_vec();
    let mut packets = Packets::new(&mut packet, at, vnet, usize::from(u16::MAX))
        .expect("a super-frame's header fits it");
    let mut frames = Vec::new();
    while let Some(packet) = packets.next() {
        frames.push([&bytes[..at], &*packet].concat());
    }
    frames
}

impl Sink for Out {
    fn frame(&mut self, port: PortId, vnet: VnetHeader, vlan: Option<VlanTag>, parts: &[&[u8]]) {
        for mut bytes in cut(&parts.concat(), &vnet) {
            if let Some(tag) = vlan {
                let tag = [tag.protocol.to_be_bytes(), tag.control.to_be_bytes()].concat();
                bytes.splice(12..12, tag);
            }
            self.frames.push((port, bytes));
        }
        self.merged += usize::from(vnet.is_super_frame());
    }

    fn datagram(
        &mut self,
        to: SocketAddr,
        _: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let mut bytes = vec![0; capacity];
        let len = write(&mut bytes);
        if len > 0 {
            bytes.truncate(len);
            self.datagrams.push((to, bytes));
        }
    }

    fn relayed(
        &mut self,
        to: Through,
        _: Whose,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let mut bytes = vec![0; capacity];
        let len = write(&mut bytes);
        if len > 0 {
            bytes.truncate(len);
            self.relayed.push((to, bytes));
        }
    }
}

impl World {
    /// A world with nothing in it.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            now,
            start: now,
            plan: Plan::new(),
            gateways: Vec::new(),
            hosts: Vec::new(),
            plugs: Vec::new(),
            events: BinaryHeap::new(),
            queue: HashMap::new(),
            number: 0,
            learnt: BTreeMap::new(),
            router_mac: ROUTER,
            router_is_down: false,
            router_arp: BTreeMap::new(),
            router_waits: Vec::new(),
            campus: Vec::new(),
            relays: relays::Relays::default(),
            nats: nats::Nats::default(),
            weather: Weather::default(),
            carries: usize::MAX,
            datagrams: 0,
            sent_to: BTreeMap::new(),
            merged: 0,
            random: Random::new(seed),
            trace: DefaultHasher::new(),
        }
    }

    /// Adds a gateway with ports, in a subnet, as a wire; returns its place.
    pub fn gateway(&mut self, subnet: [u8; 3], ports: &[&str]) -> usize {
        let at = self.plan.gateway();
        let ports = ports.iter().map(|name| (*name).to_owned()).collect();
        self.gateways.push(Gateway { engine: None, subnet, ports, boots: 0, view: None });
        self.boot(at);
        at
    }

    /// Adds a device behind a gateway's port; returns its place among devices and hosts, which is the same.
    pub fn device(&mut self, name: &'static str, gateway: usize, port: usize, last: u8) -> usize {
        let [a, b, c] = self.gateways[gateway].subnet;
        let port_name = self.gateways[gateway].ports[port].clone();
        let device = self.plan.device(gateway, &port_name, [a, b, c, last]);
        assert_eq!(device, self.hosts.len(), "devices come before plain machines");
        let address = Ipv4Addr::new(a, b, c, last);
        let router = Ipv4Addr::new(a, b, c, 1);
        let mac = self.plan.member(device).mac;
        self.hosts.push(Host::new(name, mac, address, router));
        let port = PortId::device(u16::try_from(port).unwrap_or(0));
        self.plugs.push(Plug::Port(gateway, port));
        device
    }

    /// Adds a machine without a gateway; returns its place among hosts.
    pub fn plain(&mut self, name: &'static str, address: [u8; 4]) -> usize {
        let number = u8::try_from(self.hosts.len() + 1).unwrap_or(u8::MAX);
        let [a, b, c, _] = address;
        let router = Ipv4Addr::new(a, b, c, 1);
        self.hosts.push(Host::new(name, mac(0xcc, number), Ipv4Addr::from(address), router));
        self.plugs.push(Plug::Subnet([a, b, c]));
        self.hosts.len() - 1
    }

    /// The engine of a gateway that runs.
    pub fn engine(&mut self, gateway: usize) -> &mut Engine {
        let engine = self.gateways[gateway].engine.as_mut();
        engine.unwrap_or_else(|| panic!("gateway {gateway} doesn't run"))
    }

    /// Whether a gateway runs.
    #[must_use]
    pub fn runs(&self, gateway: usize) -> bool {
        self.gateways[gateway].engine.is_some()
    }

    /// Starts a gateway's engine anew, as a wire: whatever it knew is lost.
    pub fn boot(&mut self, at: usize) {
        self.boot_unsure(at);
        let (wall, now) = (self.wall(), self.now);
        self.engine(at).set_time(wall, true, now);
    }

    /// As [`Self::boot`], with a clock that nobody has confirmed.
    pub fn boot_unsure(&mut self, at: usize) {
        let wall = self.wall();
        let gateway = &mut self.gateways[at];
        gateway.boots += 1;
        let number = u8::try_from(at + 1).unwrap_or(u8::MAX);
        let ports = gateway
            .ports
            .iter()
            .zip(0..)
            .map(|(name, port)| PortConfig {
                name: name.parse().unwrap_or_else(|error| panic!("{error}")),
                mac: mac(0x90 + number, port),
                unlisted: Unlisted::Hold,
            })
            .collect();
        let config = Config {
            gateway_macs: vec![mac(0xb0, number)],
            own_addresses: vec![self.plan.gateways[at].endpoint.ip()],
            ports,
            uplink_mac: mac(0xa0, number),
            limits: Limits::default(),
        };
        let identity = TunnelIdentity {
            gateway: self.plan.gateways[at].id,
            secret: self.plan.gateways[at].secret.clone(),
            identity: self.plan.gateways[at].identity.clone(),
            seed: [number ^ (gateway.boots << 4); 32],
        };
        let lanes = TunnelSecret::from_bytes([number ^ (gateway.boots << 4) ^ 0x5a; 32]);
        let mut engine = Engine::new(config, identity, self.now);
        engine.use_lanes(&lanes, lane::USUAL, Runner::Engine, self.now);
        engine.set_time(wall, false, self.now);
        gateway.engine = Some(engine);
    }

    /// Stops a gateway's engine. Nothing passes it.
    pub fn stop(&mut self, at: usize) {
        self.gateways[at].engine = None;
    }

    /// How much time has passed since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// The wall clock.
    #[must_use]
    pub fn wall(&self) -> UnixMillis {
        let passed = (self.now - self.start).as_millis();
        EPOCH.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// Applies the plan's newest revision at one gateway.
    pub fn apply(&mut self, gateway: usize) {
        let view = self.plan.view(gateway);
        let now = self.now;
        if self.gateways[gateway].engine.is_some() {
            self.gateways[gateway].view = Some(Arc::clone(&view));
            self.engine(gateway).apply(view, now);
        }
    }

    /// Starts a gateway anew with the view that it had, and with what is kept over a restart, as its agent does.
    pub fn restart(&mut self, gateway: usize) {
        let learned = self.gateways[gateway].engine.as_ref().map(Engine::learned);
        self.boot(gateway);
        let now = self.now;
        if let Some(learned) = learned {
            self.engine(gateway).restore(learned);
        }
        if let Some(view) = self.gateways[gateway].view.clone() {
            self.engine(gateway).apply(view, now);
        }
    }

    /// Applies the plan's newest revision everywhere, and waits until all is quiet.
    pub fn apply_all(&mut self) {
        for gateway in 0..self.gateways.len() {
            self.apply(gateway);
        }
        self.run(Duration::from_millis(1_500));
    }

    /// Forgets what the campus carried, and what hosts got.
    pub fn clear_campus(&mut self) {
        self.campus.clear();
        for host in &mut self.hosts {
            host.inbox.clear();
            host.seen.clear();
        }
    }

    /// Takes a host's cable out of its gateway and puts it where the gateway's uplink is.
    pub fn patch_through(&mut self, host: usize) {
        if let Plug::Port(gateway, _) = self.plugs[host] {
            self.plugs[host] = Plug::Subnet(self.gateways[gateway].subnet);
        }
    }

    /// Puts a host's cable into a port of a gateway.
    pub fn plug_in(&mut self, host: usize, gateway: usize, port: u16) {
        self.plugs[host] = Plug::Port(gateway, PortId::device(port));
    }

    /// Has a host do something that sends frames.
    pub fn act(&mut self, host: usize, action: impl FnOnce(&mut Host, &mut Vec<Vec<u8>>)) {
        let mut frames = Vec::new();
        action(&mut self.hosts[host], &mut frames);
        for frame in frames {
            self.put(host, frame);
        }
    }

    /// Puts a frame on a host's cable, whatever it is.
    pub fn put(&mut self, host: usize, frame: Vec<u8>) {
        let to = match self.plugs[host] {
            Plug::Port(gateway, port) => To::Gateway(gateway, port),
            Plug::Subnet(_) => To::Campus(Cable::Host(host)),
        };
        self.push(HOP, Event::Frame(to, frame));
    }

    /// A digest of everything that happened.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.trace.finish()
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.number += 1;
        self.events.push(Reverse((self.now + after, self.number)));
        self.queue.insert(self.number, event);
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = self
                .gateways
                .iter()
                .enumerate()
                .filter_map(|(at, gateway)| Some((gateway.engine.as_ref()?.poll_timeout()?.0, at)))
                .min();
            let next = self.events.peek().map(|Reverse((at, number))| (*at, *number));
            let timeout = due.filter(|(at, _)| next.is_none_or(|(event, _)| *at <= event));
            if let Some((at, gateway)) = timeout.filter(|(at, _)| *at <= end) {
                self.now = self.now.max(at);
                let now = self.now;
                let mut out = Out::default();
                self.engine(gateway).handle_timeout(now, &mut out);
                self.send(gateway, out);
                continue;
            }
            let Some((at, number)) = next.filter(|(at, _)| *at <= end) else { break };
            self.events.pop();
            self.now = self.now.max(at);
            if let Some(event) = self.queue.remove(&number) {
                self.handle(event);
            }
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Frame(to, bytes) => {
                (self.now - self.start, bytes.len(), &bytes).hash(&mut self.trace);
                match to {
                    To::Host(host) => {
                        let mut out = Vec::new();
                        self.hosts[host].receive(&bytes, &mut out);
                        for frame in out {
                            self.put(host, frame);
                        }
                    }
                    To::Gateway(gateway, port) => self.gateway_takes(gateway, port, bytes),
                    To::Campus(cable) => self.switch(cable, bytes),
                }
            }
            Event::Relayed { to, from, bytes } => self.relay_brings(to, from, &bytes),
            Event::Datagram { to, from, mut bytes } => {
                (self.now - self.start, to, from, bytes.len()).hash(&mut self.trace);
                if self.mirror_takes(to, from, &bytes) {
                    return;
                }
                let at = self.arrives_at(to, from);
                let Some(at) = at.filter(|at| self.gateways[*at].engine.is_some()) else { return };
                let now = self.now;
                let mut others = self.datagrams_beside(to);
                let segment = bytes.len();
                let mut batch = vec![RxDatagram { from, segment, bytes: &mut bytes }];
                batch.extend(others.iter_mut().map(|(from, bytes)| RxDatagram {
                    from: *from,
                    segment: bytes.len(),
                    bytes,
                }));
                let mut out = Out::default();
                self.engine(at).handle_datagrams(&mut batch, now, &mut out);
                self.merged += out.merged;
                self.send(at, out);
            }
        }
    }

    fn gateway_at(&self, endpoint: SocketAddr) -> Option<usize> {
        self.plan.gateways.iter().position(|gateway| gateway.endpoint == endpoint)
    }

    /// Takes the datagrams that come to an endpoint at the same moment: a socket hands them over in one batch.
    fn datagrams_beside(&mut self, endpoint: SocketAddr) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut beside = Vec::new();
        while let Some(Reverse((at, number))) = self.events.peek().copied()
            && at == self.now
            && let Some(Event::Datagram { to, .. }) = self.queue.get(&number)
            && *to == endpoint
            && self.gateway_at(endpoint).is_some()
        {
            self.events.pop();
            if let Some(Event::Datagram { to, from, bytes }) = self.queue.remove(&number) {
                (self.now - self.start, to, from, bytes.len()).hash(&mut self.trace);
                beside.push((from, bytes));
            }
        }
        beside
    }

    fn gateway_takes(&mut self, gateway: usize, port: PortId, mut bytes: Vec<u8>) {
        if self.gateways[gateway].engine.is_none() {
            return;
        }
        let now = self.now;
        let mut out = Out::default();
        let mut batch = [RxFrame { vnet: VnetHeader::default(), vlan: None, bytes: &mut bytes }];
        self.engine(gateway).handle_frames(port, &mut batch, now, &mut out);
        self.send(gateway, out);
    }

    fn send(&mut self, gateway: usize, out: Out) {
        for (port, bytes) in out.frames {
            if port.is_uplink() {
                self.push(HOP, Event::Frame(To::Campus(Cable::Gateway(gateway)), bytes));
                continue;
            }
            let plugged: Vec<usize> = (0..self.hosts.len())
                .filter(|host| self.plugs[*host] == Plug::Port(gateway, port))
                .collect();
            for host in plugged {
                self.push(HOP, Event::Frame(To::Host(host), bytes.clone()));
            }
        }
        self.give_to_relays(gateway, out.relayed);
        for (to, bytes) in out.datagrams {
            self.datagrams += 1;
            *self.sent_to.entry(to).or_default() += 1;
            let Some(from) = self.leaves_as(gateway, to) else { continue };
            let blocked = self.relays.is_blocked(gateway, self.gateway_at(to));
            if blocked || bytes.len() + 28 > self.carries || self.random.chance(self.weather.loss) {
                continue;
            }
            let copies = if self.random.chance(self.weather.duplicates) { 2 } else { 1 };
            for _ in 0..copies {
                let late = self.random.chance(self.weather.reordering);
                let after = if late { HOP * 20 } else { HOP };
                self.push(after, Event::Datagram { to, from, bytes: bytes.clone() });
            }
        }
    }
}
