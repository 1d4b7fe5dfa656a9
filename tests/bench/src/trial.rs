//! The tests: each does something to one subject for some seconds and says what came of it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::aead;
use crate::instructions::Counter;
use crate::load::tcp::{self, Direction};
use crate::load::{echo, udp};
use crate::subject::Subject;
use crate::usage::{Cpu, resident};
use crate::world::{Device, World};

/// How long TCP has to find its pace before anything is counted.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the first answer after a pause may take, handshake included.
const AWAKE: Duration = Duration::from_secs(30);
/// Bytes of a small packet, its IP header included: about a vital sign.
const SMALL: usize = 128;
/// Packets a second of the test at a fixed rate: one that every subject carries.
const STEADY: f64 = 20_000.0;
/// Flows of the test with several, and their packets a second.
const SEVERAL: (usize, f64) = (8, 60_000.0);
/// New flows a second of the test with many short ones: fewer than a device may have open, over all rounds.
const NEW: f64 = 1_500.0;
/// Where the search for the highest rate begins.
const START: f64 = 10_000.0;
/// How often the search halves what is left between what passes and what doesn't.
const STEPS: u32 = 5;
/// How long each rate is tried at least, so that no queue on the way holds much of what is sent.
const TRIAL: Duration = Duration::from_secs(1);
/// Bytes of a round-trip probe.
const PROBE: usize = 64;
/// Bytes of an alarm, and how often there is one.
const ALARM: (usize, Duration) = (200, Duration::from_millis(10));
/// Who talks.
const MAIN: (Device, Device) = (Device::A, Device::B);
/// Who else talks, through the same two gateways.
const OTHER: (Device, Device) = (Device::C, Device::D);

/// A test, by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Test {
    /// TCP, one stream
    #[value(name = "tcp-1")]
    Tcp1,
    /// TCP, four streams
    #[value(name = "tcp-4")]
    Tcp4,
    /// TCP, one stream, towards who opened it
    TcpReverse,
    /// TCP, one stream with data both ways at once
    TcpBoth,
    /// 128-byte UDP packets: the highest rate with less than 1 % loss
    #[value(name = "udp-128")]
    Udp128,
    /// 128-byte UDP packets, 20,000 a second
    UdpSteady,
    /// 128-byte UDP packets, 60,000 a second of eight flows
    UdpFlows,
    /// 1,500 new flows a second, each of one 128-byte UDP packet
    NewFlows,
    /// Round trips of 64 bytes, nothing else under way
    Ping,
    /// Round trips of 64 bytes while one TCP stream takes all it can
    PingLoaded,
    /// A 200-byte message each 10 ms of one device, while another one fills the tunnel, and without that
    Fairness,
    /// Nothing under way since the start: processor time and memory, once
    Idle,
}

impl Test {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Idle,
        Self::Ping,
        Self::Tcp1,
        Self::Tcp4,
        Self::TcpReverse,
        Self::TcpBoth,
        Self::Udp128,
        Self::UdpSteady,
        Self::UdpFlows,
        Self::NewFlows,
        Self::PingLoaded,
        Self::Fairness,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp-1",
            Self::Tcp4 => "tcp-4",
            Self::TcpReverse => "tcp-reverse",
            Self::TcpBoth => "tcp-both",
            Self::Udp128 => "udp-128",
            Self::UdpSteady => "udp-steady",
            Self::UdpFlows => "udp-flows",
            Self::NewFlows => "new-flows",
            Self::Ping => "ping",
            Self::PingLoaded => "ping-loaded",
            Self::Fairness => "fairness",
            Self::Idle => "idle",
        }
    }

    /// Streams and their direction, if it is a test of TCP's throughput.
    const fn tcp(self) -> Option<(u16, Direction)> {
        match self {
            Self::Tcp1 => Some((1, Direction::Forward)),
            Self::Tcp4 => Some((4, Direction::Forward)),
            Self::TcpReverse => Some((1, Direction::Reverse)),
            Self::TcpBoth => Some((1, Direction::Both)),
            _ => None,
        }
    }
}

/// Something that was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What of the test: `cpu`, `p99`.
    pub what: &'static str,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

fn figure(what: &'static str, value: f64, unit: &'static str) -> Figure {
    Figure { what, value, unit }
}

/// Runs a test for about `time`. No figures: the test has no meaning for this subject.
///
/// # Errors
/// If the traffic can't be made, or nothing comes through.
pub fn run(test: Test, subject: &Subject, time: Duration) -> Result<Vec<Figure>> {
    let Some(world) = &subject.world else {
        return match test.tcp() {
            Some(_) => {
                let time = time.min(Duration::from_secs(1));
                Ok(vec![figure("cpu", aead::seconds_per_gigabyte(time)?, "s/GB")])
            }
            None => Ok(Vec::new()),
        };
    };
    let pids = subject.pids();
    if test != Test::Idle {
        // Tunnels end their sessions in pauses: a new handshake is no part of any figure.
        [MAIN, OTHER].into_iter().try_for_each(|pair| echo::wait_answered(world, pair, AWAKE))?;
    }
    match test {
        Test::Tcp1 | Test::Tcp4 | Test::TcpReverse | Test::TcpBoth => {
            let (streams, direction) = test.tcp().context("a test of TCP")?;
            throughput(world, &pids, streams, direction, time)
        }
        Test::Udp128 => highest_rate(world, &pids, time),
        Test::UdpSteady => steady(world, &pids, (1, STEADY), time),
        Test::UdpFlows => steady(world, &pids, SEVERAL, time),
        Test::NewFlows => new_flows(world, &pids, time),
        Test::Ping => {
            let _responder = echo::Responder::start(world, MAIN.1)?;
            round_trips(world, MAIN, PROBE, Duration::from_millis(1), time)
        }
        Test::PingLoaded => {
            let _responder = echo::Responder::start(world, MAIN.1)?;
            let _load = tcp::Load::start(world, MAIN, 1, Direction::Forward)?;
            std::thread::sleep(WARM_UP);
            round_trips(world, MAIN, PROBE, Duration::from_millis(1), time)
        }
        Test::Fairness => fairness(world, time),
        Test::Idle => {
            let begun = (Instant::now(), Cpu::of(&pids)?);
            std::thread::sleep(time);
            let used = Cpu::of(&pids)?.since(&begun.1) / begun.0.elapsed().as_secs_f64();
            Ok(if pids.is_empty() {
                Vec::new()
            } else {
                vec![
                    figure("cpu", used * 100.0, "% of a core"),
                    figure("memory", resident(&pids)?, "MiB"),
                ]
            })
        }
    }
}

fn throughput(
    world: &World,
    pids: &[u32],
    streams: u16,
    direction: Direction,
    time: Duration,
) -> Result<Vec<Figure>> {
    let load = tcp::Load::start(world, MAIN, streams, direction)?;
    std::thread::sleep(WARM_UP);
    let counter = Counter::start(pids).ok();
    let begun = (Instant::now(), load.received(), Cpu::of(pids)?);
    std::thread::sleep(time);
    let instructions = counter.and_then(|counter| counter.read().ok());
    let bytes = (load.received() - begun.1) as f64;
    let seconds = begun.0.elapsed().as_secs_f64();
    let used = Cpu::of(pids)?;
    let cpu = used.since(&begun.2);
    anyhow::ensure!(bytes > 0.0, "nothing came through in {seconds:.1} s");
    let mut figures = vec![figure("rate", bytes * 8.0 / seconds / 1e9, "Gb/s")];
    if !pids.is_empty() {
        figures.push(figure("cpu", cpu * 1e9 / bytes, "s/GB"));
        let busiest = used.busiest_since(&begun.2);
        figures.extend(busiest.map(|cpu| figure("busiest", cpu * 1e9 / bytes, "s/GB")));
        figures.extend(sensors(&used, &begun.2));
        figures.push(figure("memory", resident(pids)?, "MiB"));
        let per_byte = instructions.map(|count| count as f64 / bytes);
        figures.extend(per_byte.map(|count| figure("instructions", count, "/byte")));
    }
    Ok(figures)
}

fn highest_rate(world: &World, pids: &[u32], time: Duration) -> Result<Vec<Figure>> {
    let ceiling = udp::ceiling(START, STEPS, |rate| {
        let before = Cpu::of(pids)?;
        let outcome = udp::send(world, MAIN, (1, SMALL), rate, (time / 3).max(TRIAL))?;
        Ok((outcome, Cpu::of(pids)?.since(&before)))
    })?;
    let ceiling = ceiling.context("more than 1 % was lost at every rate")?;
    let mut figures = vec![figure("rate", ceiling.rate, "packets/s")];
    if !pids.is_empty() {
        figures.push(figure("cpu", ceiling.cost * 1e6, "us/packet"));
    }
    Ok(figures)
}

fn steady(
    world: &World,
    pids: &[u32],
    (flows, rate): (usize, f64),
    time: Duration,
) -> Result<Vec<Figure>> {
    let counter = Counter::start(pids).ok();
    let before = Cpu::of(pids)?;
    let outcome = udp::send(world, MAIN, (flows, SMALL), rate, time)?;
    let used = Cpu::of(pids)?;
    let cpu = used.since(&before);
    let instructions = counter.and_then(|counter| counter.read().ok());
    anyhow::ensure!(outcome.received > 0, "nothing came through");
    let mut figures = vec![figure("lost", outcome.loss() * 100.0, "%")];
    if !pids.is_empty() {
        let packets = outcome.received as f64;
        figures.push(figure("cpu", cpu * 1e6 / packets, "us/packet"));
        let busiest = used.busiest_since(&before);
        figures.extend(busiest.map(|cpu| figure("busiest", cpu * 1e6 / packets, "us/packet")));
        let per_packet = instructions.map(|count| count as f64 / packets);
        figures.extend(per_packet.map(|count| figure("instructions", count, "/packet")));
    }
    Ok(figures)
}

/// What of the processor's time the sensors' threads took.
fn sensors(used: &Cpu, before: &Cpu) -> Option<Figure> {
    let all = used.since(before);
    let share = used.sensors_since(before).filter(|_| all > 0.0)? / all;
    Some(figure("sensor", share * 100.0, "% of cpu"))
}

/// Flows that nobody has seen before, which is the most work for whoever looks at the beginnings of flows.
fn new_flows(world: &World, pids: &[u32], time: Duration) -> Result<Vec<Figure>> {
    /// The next port that no flow came from.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = (NEW * time.as_secs_f64()) as u32;
    let before = Cpu::of(pids)?;
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    let sent = udp::send_from_new_ports(world, MAIN, (first, SMALL), NEW, time)?;
    let used = Cpu::of(pids)?;
    anyhow::ensure!(sent > 0, "nothing was sent");
    let mut figures = Vec::new();
    if !pids.is_empty() {
        figures.push(figure("cpu", used.since(&before) * 1e6 / sent as f64, "us/flow"));
        figures.extend(sensors(&used, &before));
    }
    Ok(figures)
}

fn round_trips(
    world: &World,
    pair: (Device, Device),
    size: usize,
    every: Duration,
    time: Duration,
) -> Result<Vec<Figure>> {
    let times = echo::probe(world, pair, size, every, time)?;
    let percentile = |share| times.percentile(share).context("no probe was answered");
    Ok(vec![
        figure("p50", percentile(0.5)?, "ms"),
        figure("p99", percentile(0.99)?, "ms"),
        figure("max", percentile(1.0)?, "ms"),
        figure("lost", times.lost as f64, "probes"),
    ])
}

/// How long alarms take while another device fills the tunnel, and how long without that.
fn fairness(world: &World, time: Duration) -> Result<Vec<Figure>> {
    let _responder = echo::Responder::start(world, OTHER.1)?;
    let (size, every) = ALARM;
    let idle = echo::probe(world, OTHER, size, every, time)?;
    let load = tcp::Load::start(world, MAIN, 1, Direction::Forward)?;
    std::thread::sleep(WARM_UP);
    let filled = echo::probe(world, OTHER, size, every, time)?;
    drop(load);
    let p99 = |times: &echo::Times| times.percentile(0.99).context("no message was answered");
    Ok(vec![
        figure("p99 idle", p99(&idle)?, "ms"),
        figure("p99 filled", p99(&filled)?, "ms"),
        figure("p99 added", p99(&filled)? - p99(&idle)?, "ms"),
        figure("lost", filled.lost as f64, "messages"),
    ])
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn tests_go_by_one_name() {
        assert_eq!(Test::ALL.len(), Test::value_variants().len());
        for test in Test::ALL {
            assert_eq!(Test::from_str(test.name(), false), Ok(test));
        }
    }
}
