//! An engine and everything that can happen to it: frames on its ports and its uplink, datagrams, views, time.
//!
//! While all devices are in enforce, each frame that the engine sends is held against what the view allows, by rules
//! written down here once more and without the engine's help.

mod act;
mod allowed;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anteroom_agent_core::batch::{RxDatagram, RxFrame, VlanTag};
use anteroom_agent_core::config::{Config, PortConfig, TunnelIdentity};
use anteroom_agent_core::engine::Engine;
use anteroom_agent_core::limits::Limits;
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;
use anteroom_sim::plan::{Plan, Who, mac};
use arbitrary::Unstructured;

use crate::frames::start;
use crate::kept::Kept;

/// The wall clock at the beginning.
const EPOCH: u64 = 1_800_000_000_000;

/// Two gateways: one with three devices (two share a port), one with one device.
struct World {
    plan: Plan,
    engines: Vec<Engine>,
    now: Instant,
    passed: Duration,
    /// Datagrams that the first gateway's engine was sent, to be sent again.
    heard: Vec<(SocketAddr, Vec<u8>)>,
}

/// The devices of the plan by their places.
const DEVICES: usize = 4;

/// Takes `data` for a sequence of events.
///
/// # Panics
/// If an invariant doesn't hold.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(first) = input.arbitrary::<u8>() else { return };
    let mut world = World::new();
    world.modes(first);
    if first & 0x80 != 0 {
        world.settle();
    }
    for _ in 0..48 {
        if input.is_empty() || world.step(&mut input).is_err() {
            break;
        }
    }
    world.check_tables();
}

impl World {
    fn new() -> Self {
        let mut plan = Plan::new();
        let (here, there) = (plan.gateway(), plan.gateway());
        let ct = plan.device(here, "port1", [10, 20, 1, 10]);
        let mri = plan.device(here, "port2", [10, 20, 1, 11]);
        plan.device(here, "port2", [10, 20, 1, 12]);
        let pacs = plan.device(there, "port1", [10, 20, 4, 10]);
        assert_eq!((ct, pacs, plan.devices.len()), (0, 3, DEVICES));
        let campus = plan.external("campus", &["10.20.9.0/24", "10.20.1.200/32"]);
        plan.rule("scans", Who::Devices(vec![ct, mri]), Who::Device(pacs), &["tcp/104"]);
        plan.rule("fetch", Who::Device(pacs), Who::Device(ct), &["tcp/4006"]);
        plan.rule("ping", Who::Device(ct), Who::Device(pacs), &["icmp/echo"]).essential = true;
        plan.rule("local", Who::Device(ct), Who::Device(mri), &["udp/7000"]);
        plan.rule("archive", Who::Device(ct), Who::External(campus), &["tcp/104"]).clear = true;
        plan.rule("service", Who::External(campus), Who::Device(ct), &["tcp/4006"]).clear = true;
        plan.rule("unsaid", Who::Device(mri), Who::External(campus), &["tcp/104"]);
        plan.infrastructure.dhcp = vec!["10.20.0.2".parse().expect("an address")];
        plan.infrastructure.dns = vec!["10.20.0.53".parse().expect("an address")];
        plan.infrastructure.ntp = vec!["10.20.1.123".parse().expect("an address")];
        let now = start();
        let engines = (0..2).map(|at| engine(&plan, at, now)).collect();
        Self { plan, engines, now, passed: Duration::ZERO, heard: Vec::new() }
    }

    /// Sets modes, two bits a device: enforce, enforce, protect, observe.
    fn modes(&mut self, bits: u8) {
        for device in 0..DEVICES {
            let mode = match bits >> (2 * (device % 3)) & 3 {
                0 | 1 => Mode::Enforce,
                2 => Mode::Protect,
                _ => Mode::Observe,
            };
            self.plan.mode(device, mode);
        }
        self.apply();
    }

    fn apply(&mut self) {
        for at in 0..self.engines.len() {
            let view = self.plan.view(at);
            self.engines[at].apply(view, self.now);
        }
    }

    fn enforced(&self) -> bool {
        (0..DEVICES).all(|device| self.plan.member(device).mode == Mode::Enforce)
    }

    /// Lets the tunnel come up.
    fn settle(&mut self) {
        for _ in 0..8 {
            self.pass(Duration::from_millis(300), true);
        }
    }

    /// Lets time go by; `carry`: what gateways send each other arrives.
    fn pass(&mut self, time: Duration, carry: bool) {
        self.now += time;
        self.passed += time;
        for at in 0..self.engines.len() {
            let mut out = Kept::default();
            self.engines[at].handle_timeout(self.now, &mut out);
            let mut rounds = 0;
            while let Some((due, what)) = self.engines[at].poll_timeout() {
                if due > self.now {
                    break;
                }
                rounds += 1;
                assert!(rounds < 64, "{what} is due for ever");
                self.engines[at].handle_timeout(self.now, &mut out);
            }
            self.sent(at, out, From::Time, carry);
        }
    }

    fn frame(&mut self, port: PortId, mut bytes: Vec<u8>, vnet: VnetHeader, vlan: Option<VlanTag>) {
        let mut out = Kept::default();
        let mut frames = [RxFrame { vnet, vlan, bytes: &mut bytes }];
        self.engines[0].handle_frames(port, &mut frames, self.now, &mut out);
        let from = if port.is_uplink() { From::Uplink } else { From::Port };
        self.sent(0, out, from, true);
    }

    fn datagram(&mut self, at: usize, from: SocketAddr, mut bytes: Vec<u8>, segment: usize) {
        let mut out = Kept::default();
        let segment = segment.clamp(1, bytes.len().max(1));
        let mut batch = [RxDatagram { from, segment, bytes: &mut bytes }];
        self.engines[at].handle_datagrams(&mut batch, self.now, &mut out);
        self.sent(at, out, From::Tunnel, true);
    }

    /// Checks what an engine sent, and carries datagrams to the other one.
    fn sent(&mut self, at: usize, out: Kept, from: From, carry: bool) {
        if self.enforced() {
            for frame in &out.frames {
                if let Err(why) = allowed::check(&self.plan, at, from, frame) {
                    panic!("gateway {at}, after {from:?}: {why}: {frame:02x?}");
                }
            }
        }
        for (to, bytes) in out.datagrams {
            let other = self.plan.gateways.iter().position(|gateway| gateway.endpoint == to);
            let Some(other) = other.filter(|other| *other != at) else {
                panic!("gateway {at} sends to {to}, where no peer is");
            };
            let from = self.plan.gateways[at].endpoint;
            if other == 0 && self.heard.len() < 32 {
                self.heard.push((from, bytes.clone()));
            }
            if carry {
                let len = bytes.len();
                self.datagram(other, from, bytes, len);
            }
        }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        match input.int_in_range(0..=15)? {
            0..=5 => {
                let frame = act::ipv4(input)?;
                let port = PortId::device(u16::from(input.arbitrary::<bool>()?));
                let port = if input.int_in_range(0..=3)? == 0 { PortId::UPLINK } else { port };
                let (vnet, vlan) = (act::vnet(input, frame.len())?, act::vlan(input)?);
                self.frame(port, frame, vnet, vlan);
            }
            6 | 7 => {
                let frame = act::arp(input)?;
                let port = act::port(input)?;
                self.frame(port, frame, VnetHeader::default(), None);
            }
            8 => {
                let frame = act::other(input)?;
                let (port, vlan) = (act::port(input)?, act::vlan(input)?);
                self.frame(port, frame, VnetHeader::default(), vlan);
            }
            9 => {
                let frame = act::dhcp(input)?;
                let port = act::port(input)?;
                self.frame(port, frame, VnetHeader::default(), None);
            }
            10 => {
                let len = usize::from(input.arbitrary::<u16>()?).min(input.len());
                let bytes = input.bytes(len)?.to_vec();
                let from = self.plan.gateways[1].endpoint;
                let from = if input.arbitrary()? { from } else { act::stranger() };
                let segment = usize::from(input.arbitrary::<u16>()?);
                self.datagram(0, from, bytes, segment);
            }
            11 if !self.heard.is_empty() => {
                let (from, mut bytes) = self.heard[input.choose_index(self.heard.len())?].clone();
                let change: u16 = input.arbitrary()?;
                let place = usize::from(change) % bytes.len();
                bytes[place] ^= (change >> 12) as u8;
                let len = bytes.len();
                self.datagram(0, from, bytes, len);
            }
            12 => {
                let seconds = [0, 1, 5, 31, 200, 3_600, 86_400, 600_000][input.choose_index(8)?];
                let millis = u64::from(input.arbitrary::<u16>()?);
                let carry = input.arbitrary()?;
                self.pass(Duration::from_millis(seconds * 1_000 + millis), carry);
            }
            13 => {
                let bits = input.arbitrary()?;
                self.modes(bits);
            }
            14 => self.decide(input)?,
            _ => self.ask(input)?,
        }
        Ok(())
    }

    /// Other decisions of operators, and of the controller.
    fn decide(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let device = input.choose_index(DEVICES)?;
        self.plan.revise();
        match input.int_in_range(0..=4)? {
            0 => {
                let member = &mut self.plan.devices[device].device.member;
                member.quarantined = !member.quarantined;
            }
            1 => self.plan.gateways[1].revoked = input.arbitrary()?,
            2 => {
                let wall = UnixMillis(u64::from(input.arbitrary::<u32>()?) * 1_000);
                let confirmed = input.arbitrary()?;
                self.engines[0].set_time(wall, confirmed, self.now);
            }
            3 => {
                let rule = input.choose_index(self.plan.rules.len())?;
                let wall = EPOCH + u64::from(input.arbitrary::<u16>()?) * 1_000;
                let until = anteroom_proto::intent::KnownCondition::NotAfter(UnixMillis(wall));
                self.plan.rules[rule].conditions =
                    vec![anteroom_proto::intent::Condition::Known(until)];
            }
            // A start with nothing but the view.
            _ => {
                self.engines[0] = engine(&self.plan, 0, self.now);
            }
        }
        self.apply();
        Ok(())
    }

    fn ask(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let (from, to) = (act::address(input)?, act::address(input)?);
        let service = ["tcp/104", "udp/5000-5010", "icmp/echo"][input.choose_index(3)?];
        let service = service.parse().expect("a service");
        let question = anteroom_agent_core::report::Question { from, to, service };
        let engine = &mut self.engines[0];
        let _ = engine.explain(&question, self.now);
        let _ = engine.status(self.now);
        let _ = engine.flows(self.now, 100);
        let _ = engine.wants_gro();
        engine.report(self.now);
        let learned = engine.learned();
        engine.restore(learned);
        Ok(())
    }

    /// No table holds more than it may.
    fn check_tables(&mut self) {
        let limits = limits();
        for engine in &mut self.engines {
            let tables = engine.status(self.now).tables;
            let stations = limits.unknown_per_port * 2 + DEVICES;
            assert!(tables.flows <= limits.flows, "{tables:?}");
            assert!(tables.edges <= limits.edges, "{tables:?}");
            assert!(tables.bridge <= limits.bridge_entries, "{tables:?}");
            assert!(tables.stations <= stations, "{tables:?}");
        }
    }
}

/// What an engine was doing when it sent something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Port,
    Uplink,
    Tunnel,
    Time,
}

/// Small tables, so that they fill up.
fn limits() -> Limits {
    Limits {
        flows: 24,
        flows_per_device: 8,
        unknown_per_port: 3,
        bridge_entries: 6,
        edges: 8,
        next_hops_per_device: 2,
        recent_drops_per_device: 3,
        ..Limits::default()
    }
}

fn engine(plan: &Plan, at: usize, now: Instant) -> Engine {
    let number = u8::try_from(at + 1).unwrap_or(u8::MAX);
    let port = |name: &str, port| PortConfig {
        name: name.parse().expect("a name"),
        mac: mac(0x90 + number, port),
        unlisted: anteroom_proto::v1::Unlisted::Hold,
    };
    let config = Config {
        gateway_macs: vec![mac(0xb0, number)],
        own_addresses: vec![plan.gateways[at].endpoint.ip()],
        ports: vec![port("port1", 0), port("port2", 1)],
        uplink_mac: mac(0xa0, number),
        limits: limits(),
    };
    let identity = TunnelIdentity {
        gateway: plan.gateways[at].id,
        secret: plan.gateways[at].secret.clone(),
        identity: plan.gateways[at].identity.clone(),
        seed: [number; 32],
    };
    let mut engine = Engine::new(config, identity, now);
    engine.set_time(UnixMillis(EPOCH), true, now);
    engine
}

#[cfg(test)]
mod tests {
    use super::*;
    use anteroom_sim::packet;

    /// A frame of the first device to somewhere.
    fn syn(world: &mut World, to: &str, port: u16) {
        let own = "10.20.1.10".parse().expect("an address");
        let segment = packet::tcp(
            (own, 40_000),
            (to.parse().expect("an address"), port),
            packet::TcpFlags::SYN,
            &[],
        );
        let source = world.plan.member(0).mac;
        let frame = packet::frame(mac(1, 1), source, 0x0800, &segment);
        world.frame(PortId::device(0), frame, VnetHeader::default(), None);
    }

    #[test]
    fn the_tunnel_that_fuzzing_begins_with_comes_up() {
        let mut world = World::new();
        world.modes(0);
        world.settle();
        let peers = world.engines[0].status(world.now).peers;
        assert!(peers.iter().all(|peer| peer.live) && peers.len() == 1, "{peers:?}");
        // A SYN that a rule allows comes out at the other end, where it is checked again.
        syn(&mut world, "10.20.4.10", 104);
        let flows = world.engines[1].flows(world.now, 10);
        assert_eq!(flows.len(), 1, "{flows:?}");
    }

    #[test]
    #[should_panic(expected = "leaves")]
    fn a_leak_is_noticed() {
        let mut world = World::new();
        // The engines observe; the check believes that they enforce.
        world.modes(0xff);
        for device in 0..DEVICES {
            world.plan.devices[device].device.member.mode = Mode::Enforce;
        }
        syn(&mut world, "10.20.4.99", 104);
    }
}
