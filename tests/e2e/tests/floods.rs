//! One device that uses up all that it can, in a real gateway, beside a neighbour whose traffic goes on (statement 5).

#[path = "floods/turns.rs"]
mod turns;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anteroom_agent::state::{Held, StateDir};
use anteroom_e2e::attack::{self, Mac};
use anteroom_e2e::queue::{Queue, overrun};
use anteroom_e2e::{Fixture, Stage, drops, fixture, fixture_with, talk};
use anteroom_lab::anteroom::Gateway;
use anteroom_lab::hospital::{Hospital, address};
use anteroom_lab::packet::PacketSocket;
use anteroom_lab::ping::{Pinging, Series};
use anteroom_lab::programs::Programs;
use anteroom_lab::story::{POLICY, open_tcp};
use anteroom_lab::topology::Host;
use anteroom_lab::wait;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use serde_json::Value;

const BEAT: Duration = Duration::from_millis(5);

/// Frames that are handed to the kernel at once.
const BURST: u32 = 256;

/// What a flood may cost a gateway's agent in memory, in kB, however long it is: its tables are bounded.
const MEMORY: u64 = 16 * 1024;

/// What it may cost the controller, which hears of it in reports.
const CONTROLLER_MEMORY: u64 = 32 * 1024;

/// Opens to the MRI what a million flows need: any port of many addresses, in the clear, and nobody answers.
const WIDE: &str = r#"
[external.far-away]
prefixes = ["198.51.100.0/24"]
[segment.mri]
match = { label.class = "mri" }
[segment.far]
externals = ["far-away"]
[service.any-tcp]
ports = ["tcp/1-65535"]
[rule.mri-to-far]
from = "mri"
to = "far"
services = ["any-tcp"]
clear = true
"#;

struct Stand {
    fixture: Fixture,
    mri: (Mac, Ipv4Addr),
    router: Mac,
    pacs: Ipv4Addr,
    ct: (Mac, Ipv4Addr),
    mouths: [PacketSocket; 2],
}

/// Where a flood comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// At the MRI's port.
    Device,
    /// At the uplink.
    Campus,
}

/// What was seen while a flood went on.
struct Seen {
    pings: Series,
    connections: u32,
    agent: u64,
    controller: u64,
    took: Duration,
    before: Value,
    after: Value,
}

impl Stand {
    fn new(test: &str) -> Option<Self> {
        let fixture = fixture(test, Stage::Enforced)?;
        let hospital = &fixture.hospital;
        // So that the MRI may go back to observe.
        let narrow = "services = [\"dicom\", \"ping\"]";
        let policy = POLICY.replace(narrow, &format!("{narrow}\nclear = true")) + WIDE;
        let file = hospital.operator.write_policy("wide.toml", &policy).unwrap();
        hospital.operator.apply(&file, "for the flood").unwrap();
        hospital.router.ip("route add blackhole 198.51.100.0/24").unwrap();
        // A switch with a million addresses in its own table would be what is measured.
        hospital.campus.ip("link set u-imaging type bridge_slave learning off").unwrap();
        let machine = hospital.machine("mri-1");
        let mri = (machine.host.mac("eth0").unwrap(), machine.address());
        let router = hospital.router.mac("imaging").unwrap();
        let pacs = hospital.machine("pacs-1").address();
        let neighbour = hospital.machine("ct-1");
        let ct = (neighbour.host.mac("eth0").unwrap(), neighbour.address());
        let mouths = [(&machine.host, "eth0"), (&hospital.campus, "u-imaging")]
            .map(|(host, at)| host.enter(|| PacketSocket::open_on(at, 0)).unwrap().unwrap());
        // Takes the neighbour's connections, for as long as the test lasts.
        let listener = hospital
            .machine("pacs-1")
            .host
            .enter(|| std::net::TcpListener::bind((pacs, 104)))
            .unwrap()
            .unwrap();
        std::thread::spawn(move || listener.incoming().take_while(Result::is_ok).count());
        let stand = Self { fixture, mri, router, pacs, ct, mouths };
        // The gateway has learnt the way to the router before the flood, as in any working day.
        open_tcp(
            &stand.hospital().machine("mri-1").host,
            (Ipv4Addr::new(198, 51, 100, 1), 80),
            Duration::from_millis(300),
        )
        .unwrap_err();
        Some(stand)
    }

    fn hospital(&self) -> &Hospital {
        &self.fixture.hospital
    }

    /// A SYN that belongs to no flow before it: most go to addresses far away, one in eight through the tunnel that
    /// the neighbour uses, one in eight where no rule leads.
    fn half_open(&self, number: u32) -> Vec<u8> {
        let [_, a, b, c] = number.to_be_bytes();
        let (near, far) = (1_024 + u16::from_be_bytes([a, b]) % 60_000, u16::from(c) * 250 + 7);
        let to = match number % 8 {
            0 => (self.pacs, 104),
            1 => (address("building", 21), far),
            _ => (Ipv4Addr::new(198, 51, 100, c), 1 + far),
        };
        // Each of these has a source port of its own.
        let [_, _, high, low] = (number / 8).to_be_bytes();
        let near = if number.is_multiple_of(8) { u16::from_be_bytes([high, low]) } else { near };
        let packet = attack::tcp(((self.mri.1, near), to), 0x02);
        attack::frame(self.router, self.mri.0, 0x0800, &packet)
    }

    /// A frame from an Ethernet address that nobody has heard of: a SYN, a datagram, an ARP request or a fragment.
    fn stranger(&self, number: u32) -> Vec<u8> {
        let [a, b, c, d] = number.to_be_bytes();
        let (own, from) = ([0x02, 9, a, b, c, d], Ipv4Addr::new(10, 30 + b, c, d));
        let far = Ipv4Addr::new(198, 51, 100, d);
        let (kind, packet) = match number % 4 {
            0 => (0x0800, attack::tcp(((from, 4_000), (far, 104)), 0x02)),
            1 => (0x0800, attack::udp(((from, 4_000), (far, 104)), b"")),
            2 => (0x0806, attack::arp(1, (own, from), ([0; 6], address("imaging", c)))),
            _ => (0x0800, attack::ip(from, self.pacs, 17, 0x2000, &[7; 64])),
        };
        attack::frame(self.router, own, kind, &packet)
    }

    /// What a machine on the campus sends to the neighbour, each time as somebody else: what its rule for the archive
    /// lets in (an ACK from the service's port), and what nothing does.
    fn at_the_neighbour(&self, number: u32) -> Vec<u8> {
        let [a, b, c, d] = number.to_be_bytes();
        let from = [0x02, 8, a, b, c, d];
        let port = u16::from_be_bytes([b, c]) | 1_024;
        let far = Ipv4Addr::new(198, 51, 100, d);
        let (to, target) = self.ct;
        let (kind, packet) = match number % 4 {
            0 => {
                let archive = (address("servers", 21), 104);
                let port = u16::from_be_bytes([c, d]) | 1_024;
                return attack::frame(
                    to,
                    self.router,
                    0x0800,
                    &attack::tcp((archive, (target, port)), 0x10),
                );
            }
            1 => (0x0800, attack::tcp(((far, port), (target, 104)), 0x02)),
            2 => (0x0800, attack::udp(((far, port), (target, 104)), b"")),
            _ => (0x0806, attack::arp(1, (from, far), ([0; 6], target))),
        };
        attack::frame(if kind == 0x0806 { attack::BROADCAST } else { to }, from, kind, &packet)
    }

    fn status(&self) -> Value {
        self.hospital().gateways["imaging"].status().unwrap()
    }

    /// Sends frames, each with a number of its own, as fast as the cable takes them, until the gateway has taken
    /// `count` from the port, while the CT pings the PACS and opens one connection after another.
    fn flood(&mut self, count: u32, side: Side, make: impl Fn(&Self, u32) -> Vec<u8>) -> Seen {
        let before = self.status();
        let floor = received(&before, side);
        let (ct, pacs) = (self.hospital().machine("ct-1").host.clone(), self.pacs);
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), ct.clone());
        let ended = stop.clone();
        let connecting = std::thread::spawn(move || {
            let mut connections = 0;
            while !ended.load(Relaxed) {
                open_tcp(&opened, (pacs, 104), Duration::from_secs(10)).unwrap();
                connections += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            connections
        });
        let pings = Pinging::start(&ct, self.pacs, 100_000_000, BEAT).unwrap();
        let start = Instant::now();
        let memory = |stand: &mut Self| {
            let hospital = &mut stand.fixture.hospital;
            let agent = hospital.gateway("imaging").process().unwrap().resident().unwrap();
            (agent, hospital.controller.process().unwrap().resident().unwrap())
        };
        let (agent, controller) = memory(self);
        let (mut most, mut number) = ((0, 0), 0);
        loop {
            for _ in 0..16 {
                let burst: Vec<Vec<u8>> =
                    (number..number + BURST).map(|number| make(self, number)).collect();
                self.mouths[side as usize].send_many(&burst).unwrap();
                number += BURST;
            }
            let now = memory(self);
            most = (now.0.max(most.0), now.1.max(most.1));
            if number >= count && received(&self.status(), side) - floor >= u64::from(count) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(600), "{number} sent: {}", self.status());
        }
        let took = start.elapsed();
        // The gateway reports it, and takes up nothing more when that is done.
        wait::until(Duration::from_secs(60), "answers under the flood", || {
            (pings.received() > 200).then_some(())
        })
        .unwrap();
        let now = memory(self);
        let seen = Seen {
            pings: pings.stop().unwrap(),
            agent: now.0.max(most.0).saturating_sub(agent),
            controller: now.1.max(most.1).saturating_sub(controller),
            took,
            before,
            after: self.status(),
            connections: {
                stop.store(true, Relaxed);
                connecting.join().unwrap()
            },
        };
        println!(
            "{count} of {number} frames taken in {:.1} s; {} of {} pings lost, longest gap {}; {} connections; agent \
             +{} kB, controller +{} kB",
            took.as_secs_f64(),
            seen.pings.lost(),
            seen.pings.sent,
            seen.pings.longest_gap,
            seen.connections,
            seen.agent,
            seen.controller
        );
        seen
    }

    /// The neighbour lost nothing, and memory stayed within bounds.
    fn holds(&self, what: &str, seen: &Seen) {
        let state = || {
            let sockets =
                ["imaging", "servers"].map(|name| overrun(&self.hospital().gateways[name].host));
            format!(
                "{what}: datagrams that found no room in the gateways' sockets: {sockets:?}; before {:#}\nafter {:#}",
                seen.before, seen.after
            )
        };
        assert_eq!(seen.pings.lost(), 0, "{:?} {}", (seen.pings.sent, seen.took), state());
        assert!(seen.connections > 3, "{} connections; {}", seen.connections, state());
        assert!(seen.agent < MEMORY, "the agent grew by {} kB; {}", seen.agent, state());
        assert!(
            seen.controller < CONTROLLER_MEMORY,
            "the controller grew by {} kB",
            seen.controller
        );
        let tables = &seen.after["data_plane"]["engine"]["tables"];
        // Each device's share, and whoever isn't one has a share together.
        assert!(tables["flows"].as_u64().unwrap() < 3 * 16_500, "{}", state());
    }
}

/// Frames that the agent took from that side.
fn received(status: &Value, side: Side) -> u64 {
    let name = if side == Side::Device { "port2" } else { "uplink" };
    let interfaces = status["data_plane"]["interfaces"].as_array().unwrap();
    let port = interfaces.iter().find(|interface| interface["name"] == name);
    port.and_then(|port| port["counters"]["received"].as_u64())
        .unwrap_or_else(|| panic!("{status}"))
}

/// Frames that the agent sent out of its uplink.
fn sent(status: &Value) -> u64 {
    status["data_plane"]["interfaces"][0]["counters"]["sent"].as_u64().unwrap()
}

fn floods(test: &str, count: u32) {
    let Some(mut stand) = Stand::new(test) else { return };
    let seen = stand.flood(count, Side::Device, Stand::half_open);
    stand.holds("half-open flows", &seen);
    let of_mri = seen.after["data_plane"]["engine"]["devices"].as_array().unwrap().iter();
    let of_mri = of_mri.filter(|device| device["port"] == "port2").map(|device| &device["flows"]);
    assert!(of_mri.clone().all(|flows| flows.as_u64() > Some(10_000)), "{:?}", seen.after);

    let seen = stand.flood(count, Side::Device, Stand::stranger);
    stand.holds("Ethernet addresses beside a device in enforce", &seen);
    let seen = stand.flood(count, Side::Campus, Stand::at_the_neighbour);
    stand.holds("strangers who write to the neighbour itself", &seen);

    // Observed, the device's port lets strangers pass: all of them reach the campus, and the neighbour.
    stand.hospital().operator.mode(&["mri-1"], "observe", "for the flood").unwrap();
    let seen = stand.flood(count, Side::Device, Stand::stranger);
    let passed = sent(&seen.after) - sent(&seen.before);
    assert!(passed > u64::from(count) / 2, "{passed} passed: {}", seen.after);
    stand.holds("Ethernet addresses beside a device in observe", &seen);
    // What operators see of it is bounded too.
    let new = stand.hospital().operator.json(&["device", "list", "--new"]).unwrap();
    let rows = new.as_array().unwrap().len();
    assert!(rows < 1_000, "{rows} strangers are listed");
    println!("{rows} strangers are listed");
}

#[test]
fn floods_of_flows_and_of_ethernet_addresses_cost_a_neighbour_nothing() {
    let test = "floods_of_flows_and_of_ethernet_addresses_cost_a_neighbour_nothing";
    floods(test, 40_000);
}

#[test]
#[ignore = "takes minutes"]
fn a_million_flows_and_a_million_ethernet_addresses_cost_a_neighbour_nothing() {
    let test = "a_million_flows_and_a_million_ethernet_addresses_cost_a_neighbour_nothing";
    floods(test, 1_000_000);
}

/// How much may wait in a queue when more is sent: less than any socket's buffer holds.
const WAITING: u64 = 64 * 1024;

/// Sends frames at a rate, over and over, until it is dropped; no faster than a queue is emptied, where there is one to look at.
struct Paced {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<(u64, Duration)>>,
}

impl Paced {
    fn start(
        host: &Host,
        at: &str,
        frames: Arc<Vec<Vec<u8>>>,
        per_second: u64,
        mut queue: Option<Queue>,
    ) -> Self {
        let mouth = host.enter(|| PacketSocket::open_on(at, 0)).unwrap().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let thread = std::thread::spawn(move || {
            let (begun, mut sent) = (Instant::now(), 0);
            while !ended.load(Relaxed) {
                let due = (begun.elapsed().as_secs_f64() * per_second as f64) as u64;
                while sent < due && !ended.load(Relaxed) {
                    let waits = queue.as_mut().map_or(0, |queue| queue.waiting().unwrap());
                    if waits > WAITING {
                        std::thread::sleep(Duration::from_micros(500));
                        continue;
                    }
                    let at = sent as usize % frames.len();
                    let burst = &frames[at..frames.len().min(at + 64)];
                    sent += mouth.send_many(burst).unwrap() as u64;
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            (sent, begun.elapsed())
        });
        Self { stop, thread: Some(thread) }
    }

    /// Frames a second.
    fn stop(mut self) -> f64 {
        self.stop.store(true, Relaxed);
        let (sent, took) = self.thread.take().unwrap().join().unwrap();
        sent as f64 / took.as_secs_f64()
    }
}

/// `datagram` at `port` of the gateway `name`, from as many sources as there are frames.
fn initiations(hospital: &Hospital, name: &str, port: u16, datagram: &[u8]) -> Vec<Vec<u8>> {
    let to = hospital.gateways[name].host.mac("uplink").unwrap();
    let from = hospital.router.mac(name).unwrap();
    (0..32_768_u32)
        .map(|number| {
            let [_, a, b, c] = number.wrapping_mul(2_654_435_761).to_be_bytes();
            let source =
                (Ipv4Addr::new(198, 18 + (a & 1), b, c), 1_024 + u16::from_be_bytes([b, c]) / 2);
            let target = (address(name, 2), port);
            attack::frame(to, from, 0x0800, &attack::plain_udp((source, target), datagram))
        })
        .collect()
}

/// An initiation by nobody whom the gateway knows, made by whoever knows its public key.
fn initiation(gateway: &Gateway) -> Vec<u8> {
    let held = Held::load(&StateDir::open(&gateway.state).unwrap()).unwrap();
    let public = held.enrolled.unwrap().ring.newest().secret.public();
    let secret = StaticSecret::from([7; 32]);
    let public = PublicKey::from(*public.as_bytes());
    let mut tunnel = Tunn::new(secret, public, None, None, 0, None);
    let mut buffer = [0; 256];
    match tunnel.format_handshake_initiation(&mut buffer, true) {
        TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// How often a gateway dropped something, by reason, in `after` beyond `before`.
fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let more = |(reason, count): (&String, &u64)| {
        let more = count - before.get(reason).unwrap_or(&0);
        (more > 0).then(|| (reason.clone(), more))
    };
    after.iter().filter_map(more).collect()
}

/// No gate for handshakes stands in the way of a tunnel in little use. Where the machine gives the gateway no processor for long, the flood
/// waits: what finds a socket's buffer full never came to the gateway, and a round in which some did and pings are lost says nothing.
#[test]
fn an_idle_tunnel_loses_no_packet_beside_ten_thousand_initiations_a_second() {
    /// Initiations a second, and how many the gateway has to have turned away.
    const RATE: u64 = 10_000;
    const TURNED_AWAY: u64 = 20_000;
    const PINGS: u64 = 200;
    /// What initiations are dropped for, and what packets of a tunnel could be.
    const OF_FLOOD: [&str; 2] = ["handshake-limit", "peer-unknown"];
    const OF_TUNNEL: [&str; 7] = [
        "malformed",
        "peer-unauthenticated",
        "peer-source",
        "peer-destination",
        "queue-full",
        "tunnel-down",
        "too-big",
    ];
    /// Floods at most until one says something.
    const ROUNDS: usize = 5;
    const PATIENCE: Duration = Duration::from_secs(120);
    let test = "an_idle_tunnel_loses_no_packet_beside_ten_thousand_initiations_a_second";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    // Where answers to them go.
    hospital.router.ip("route add blackhole 198.18.0.0/15").unwrap();
    let flooded = &hospital.gateways["imaging"];
    let frames = Arc::new(initiations(hospital, "imaging", 51_820, &initiation(flooded)));
    let (ct, pacs) = (hospital.machine("ct-1").host.clone(), hospital.machine("pacs-1").address());
    let counted = || ["imaging", "servers"].map(|name| drops(&hospital.gateways[name]).unwrap());
    let overruns = || -> u64 {
        ["imaging", "servers"]
            .map(|name| overrun(&hospital.gateways[name].host).unwrap())
            .iter()
            .sum()
    };
    for _ in 0..ROUNDS {
        let pings = Pinging::start(&ct, pacs, u64::MAX, 4 * BEAT).unwrap();
        let pinged = |what: &str, more: u64| {
            let before = pings.received();
            wait::until(PATIENCE, what, || (pings.received() >= before + more).then_some(()))
        };
        pinged("pings before the flood", 10).unwrap();
        let (before, full) = (counted(), overruns());
        let queue = Some(Queue::at(&flooded.host, 51_820).unwrap());
        let flood = Paced::start(&hospital.campus, "u-imaging", frames.clone(), RATE, queue);
        wait::until_ok(PATIENCE, "the gateway to have turned the flood away", || {
            let grown = grown(&before[0], &drops(flooded)?);
            let limited = grown.get("handshake-limit").copied().unwrap_or_default();
            anyhow::ensure!(limited >= TURNED_AWAY, "{grown:?}");
            Ok(())
        })
        .unwrap();
        pinged("pings beside the flood", PINGS).unwrap();
        let rate = flood.stop();
        // What is still missing when these are back is lost.
        pinged("pings after the flood", 50).unwrap();
        let series = pings.stop().unwrap();
        let (after, full) = (counted(), overruns() - full);
        let [here, there] = [0, 1].map(|at| grown(&before[at], &after[at]));
        println!(
            "{rate:.0} initiations a second: {} of {} pings lost, p99 {:?} us; dropped here {here:?}, there {there:?}; {full} \
             datagrams found a socket full",
            series.lost(),
            series.sent,
            series.percentile(0.99),
        );
        let state =
            || format!("{series:?} here {here:?} there {there:?} {full} found a socket full");
        let dropped = |of: &BTreeMap<String, u64>, reasons: &[&str]| {
            reasons.iter().filter_map(|reason| of.get(*reason)).sum::<u64>()
        };
        assert_eq!(dropped(&here, &OF_TUNNEL), 0, "{}", state());
        assert_eq!(dropped(&there, &OF_TUNNEL) + dropped(&there, &OF_FLOOD), 0, "{}", state());
        if series.lost() == 0 {
            return;
        }
        assert!(full > 0, "pings are lost: {}", state());
    }
    panic!("in each of {ROUNDS} floods pings were lost and sockets were full: nothing is shown");
}

/// What a transfer beside a flood of initiations carries.
const PART: u32 = 512 << 20;

/// Floods of initiations, by what they are.
struct Kinds([(&'static str, Arc<Vec<Vec<u8>>>); 3]);

/// A hospital whose CT and PACS talk, and floods at the CT's gateway. The first says what the machine has to give for one,
/// sender included, where no gateway has. `ANTEROOM_AGENT` names another build of the agent.
fn flooded(test: &str) -> Option<(Fixture, Kinds)> {
    let fixture = fixture_with(test, Stage::Enforced, |programs, _| {
        let agent = std::env::var_os("ANTEROOM_AGENT").map(Into::into);
        Programs { agent: agent.unwrap_or(programs.agent.clone()), ..programs }
    })?;
    let hospital = &fixture.hospital;
    talk::allow(hospital);
    hospital.router.ip("route add blackhole 198.18.0.0/15").unwrap();
    let known = initiation(&hospital.gateways["imaging"]);
    let mut strange = known.clone();
    strange[116..].fill(0x5a);
    let kinds = [
        ("at a port that is shut", 9, strange.clone()),
        ("without the gateway's key", 51_820, strange),
        ("with the gateway's key", 51_820, known),
    ];
    let kinds = kinds.map(|(what, port, datagram)| {
        (what, Arc::new(initiations(hospital, "imaging", port, &datagram)))
    });
    Some((fixture, Kinds(kinds)))
}

/// What a flood of initiations costs: `cargo test -p anteroom-e2e --test floods -- --ignored --nocapture initiations`.
/// `ANTEROOM_AGENT` names another build of the agent. Processor time is what counts, for everything shares this machine.
#[test]
#[ignore = "measures"]
fn what_a_hundred_thousand_initiations_a_second_cost() {
    let test = "what_a_hundred_thousand_initiations_a_second_cost";
    let Some((mut fixture, Kinds(kinds))) = flooded(test) else { return };
    let hospital = &mut fixture.hospital;
    let kinds = kinds.into_iter().map(|(what, frames)| (what, Some(frames)));
    let kinds: Vec<_> = std::iter::once(("none", None)).chain(kinds).collect();
    let campus = hospital.campus.clone();
    for round in 0..6 {
        for (what, frames) in &kinds {
            let (ct, pacs) = (hospital.machine("ct-1").clone(), hospital.machine("pacs-1").clone());
            let overruns = overrun(&hospital.gateways["imaging"].host).unwrap();
            let flood = frames
                .clone()
                .map(|frames| Paced::start(&campus, "u-imaging", frames, 100_000, None));
            let used = |hospital: &mut Hospital| {
                hospital.gateway("imaging").process().unwrap().processor_time().unwrap()
            };
            let (before, begun) = (used(hospital), Instant::now());
            let pings = anteroom_lab::ping::ping(&ct.host, pacs.address(), 250, 4 * BEAT).unwrap();
            let idle = (used(hospital) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
            let before = used(hospital);
            let took = talk::transfer(&ct, &pacs, PART as usize);
            let busy = used(hospital) - before;
            let rate = flood.map_or(0.0, Paced::stop);
            let lost = overrun(&hospital.gateways["imaging"].host).unwrap() - overruns;
            println!(
                "{round} {what}: {rate:.0} initiations a second; idle: {} of {} pings lost, p99 {:?} us, {:.1} % of a \
                 core; a transfer: {:.0} Mbit/s, {:.2} s of processor time a GB, {:.1} % of a core; {lost} datagrams \
                 found the socket full",
                pings.lost(),
                pings.sent,
                pings.percentile(0.99),
                idle * 100.0,
                f64::from(PART) * 8e-6 / took.as_secs_f64(),
                busy.as_secs_f64() / f64::from(PART) * 1e9,
                busy.as_secs_f64() / took.as_secs_f64() * 100.0,
            );
            assert_eq!(pings.lost(), 0, "of the idle tunnel, beside: {what}");
        }
    }
}
