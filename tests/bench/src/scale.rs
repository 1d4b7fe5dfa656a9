//! What a packet, a flow and a peer cost the agent when there are many.

mod stage;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::instructions::Counter;
use crate::load::flood::{self, Turns};
use crate::report::{Record, Row, short};
use crate::usage::{Cpu, resident};
use crate::world::Device;
use stage::Stage;

/// Packets a second of what is measured: all gateways here carry them.
const RATE: f64 = 20_000.0;
/// Flows a second that are opened unmeasured. Some are lost where the machine is busy, and are opened again.
const HASTE: f64 = 40_000.0;
/// So many flows are opened at [`RATE`], and measured.
const NEW_FLOWS: u32 = 20_000;
/// After a restart gateways get to know each other again: how long nothing else is measured.
const CALM: Duration = Duration::from_secs(2);
/// How often flows that didn't come through are opened again.
const ATTEMPTS: u32 = 4;
/// The first flows, which come with what a gateway needs for any: memory of a flow is counted from here on.
const FIRST: u32 = 1_000;
/// From so many flows on, their memory shows beside everything else.
const MANY: u32 = 10_000;

/// How much is measured, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What grows.
    pub sweeps: Vec<Sweep>,
    /// Sizes from here…
    pub least: u32,
    /// … to here.
    pub most: u32,
    /// How often.
    pub rounds: u32,
    /// How long each time.
    pub time: Duration,
}

/// What grows, by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sweep {
    /// Gateways that this one has tunnels to; with the time until all have shaken hands after a restart
    Peers,
    /// Rules
    Rules,
    /// Live flows
    Flows,
}

impl Sweep {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Rules => "rules",
            Self::Flows => "flows",
        }
    }

    /// What its sizes count.
    #[must_use]
    pub const fn axis(self) -> &'static str {
        match self {
            Self::Peers => "peers (with 10 rules, 1,000 flows)",
            Self::Rules => "rules (with 1 peer, 1,000 flows)",
            Self::Flows => "live flows (with 1 peer, 10 rules)",
        }
    }

    /// The sizes that are measured.
    #[must_use]
    pub const fn sizes(self) -> &'static [u32] {
        match self {
            Self::Peers => &[1, 10, 100, 1_000, 3_000],
            Self::Rules => &[10, 100, 1_000, 10_000, 100_000],
            Self::Flows => &[1_000, 10_000, 100_000, 1_000_000],
        }
    }
}

/// How much of everything there is.
#[derive(Debug, Clone, Copy)]
struct Size {
    peers: u32,
    rules: u32,
    flows: u32,
}

impl Size {
    fn of(sweep: Sweep, size: u32) -> Self {
        let usual = Self { peers: 1, rules: 10, flows: 1_000 };
        match sweep {
            Sweep::Peers => Self { peers: size, ..usual },
            Sweep::Rules => Self { rules: size, ..usual },
            Sweep::Flows => Self { flows: size, ..usual },
        }
    }
}

/// Measures the agent, adds what it finds to `record`, and says it on standard error. A size that can't be measured is left
/// out with a word why, and counted.
///
/// # Errors
/// If the record can't be written.
pub fn run(plan: &Plan, agent: &Path, logs: &Path, record: &mut Record) -> Result<()> {
    let Plan { sweeps, least, most, rounds, time } = plan;
    for round in 1..=*rounds {
        for sweep in sweeps {
            for size in sweep.sizes().iter().copied().filter(|size| (least..=most).contains(&size))
            {
                let label = format!("{} {size}", sweep.name());
                let name = format!("{}-{size}-{round}", sweep.name());
                match measure(agent, &name, Size::of(*sweep, size), *time, logs) {
                    Ok(figures) => {
                        let said: Vec<String> = figures
                            .iter()
                            .map(|(what, value, unit)| format!("{what} {} {unit}", short(*value)))
                            .collect();
                        eprintln!("round {round}: {label}: {}", said.join(", "));
                        for (what, value, unit) in figures {
                            record.push(Row {
                                subject: "anteroom".into(),
                                test: format!("{label}: {what}"),
                                value,
                                unit: unit.into(),
                                round,
                            })?;
                        }
                    }
                    Err(error) => {
                        record.failed += 1;
                        eprintln!("round {round}: {label}: left out: {error:#}");
                    }
                }
            }
        }
    }
    Ok(())
}

type Figures = Vec<(&'static str, f64, &'static str)>;

fn measure(agent: &Path, name: &str, size: Size, time: Duration, logs: &Path) -> Result<Figures> {
    let mut stage = Stage::raise(agent, name, size, logs)?;
    let mut figures = Figures::new();
    if size.peers > 1 {
        figures.push(("restart", stage.restart()?.as_secs_f64(), "s"));
        std::thread::sleep(CALM);
    }
    let pids = stage.pids();
    let (devices, to) = stage.ends();
    let from = stage.world.device(Device::A);
    // The sink stands in for the far device: its own stack would refuse every packet.
    let far = stage.world.device(Device::B);
    far.ip("address flush dev eth0")?;
    let sink = flood::Sink::start(far)?;
    let flows = size.flows;
    // Of a large table's flows the last ones are measured; a small one is measured at its size first, then gets more.
    let measured = if flows > NEW_FLOWS { NEW_FLOWS } else { 0 };
    let hastily = flows - measured;
    let first = hastily.min(FIRST);
    flood::send(from, (&devices, to), Turns::in_order(0, first), first.into(), HASTE)?;
    settle(&sink);
    let few = resident(&pids[..1])?;
    let more = hastily - first;
    flood::send(from, (&devices, to), Turns::in_order(first, more), more.into(), HASTE)?;
    settle(&sink);
    let open = |first: u32| {
        let begun = (Instant::now(), Cpu::of(&pids)?);
        let turns = Turns::in_order(first, NEW_FLOWS);
        let sent = flood::send(from, (&devices, to), turns, NEW_FLOWS.into(), RATE)?;
        settle(&sink);
        let used = Cpu::of(&pids)?.since(&begun.1);
        anyhow::Ok((used, begun.0.elapsed(), sent.max(1) as f64))
    };
    let opened_before = if measured > 0 { Some(open(hastily)?) } else { None };
    let all = Turns::scattered(flows);
    for _ in 0..ATTEMPTS {
        if stage.live_flows()? >= u64::from(flows) {
            break;
        }
        flood::send(from, (&devices, to), all, flows.into(), HASTE)?;
        settle(&sink);
    }
    let full = resident(&pids[..1])?;
    sink.set_returning(false);

    let begun = (Instant::now(), Cpu::of(&pids)?);
    std::thread::sleep(time);
    let idle = Cpu::of(&pids)?.since(&begun.1) / begun.0.elapsed().as_secs_f64();

    let before = sink.received();
    let counter = Counter::start(&pids).ok();
    let begun = (Instant::now(), Cpu::of(&pids)?);
    let count = (time.as_secs_f64() * RATE) as u64;
    flood::send(from, (&devices, to), all, count, RATE)?;
    settle(&sink);
    let used = Cpu::of(&pids)?.since(&begun.1) - idle * begun.0.elapsed().as_secs_f64();
    let instructions = counter.and_then(|counter| counter.read().ok());
    let arrived = sink.received() - before;
    if arrived == 0 {
        bail!("none of {count} packets came through:\n{}", stage.tail());
    }

    let live = stage.live_flows()?;
    figures.push(("live flows", live as f64, "flows"));
    // Where the table holds fewer, what follows says nothing about so many flows, and is called another name.
    let short = live < u64::from(flows);
    let name = |usual: &'static str, otherwise: &'static str| if short { otherwise } else { usual };
    figures.push((name("hit", "hit, fewer flows"), used * 1e6 / arrived as f64, "us/packet"));
    if let Some(instructions) = instructions {
        let each = instructions as f64 / arrived as f64;
        figures.push((name("instructions", "instructions, fewer flows"), each, "/packet"));
    }
    let (used, took, opened) = match opened_before {
        Some(opened) => opened,
        None => {
            sink.set_returning(true);
            open(flows)?
        }
    };
    let each = (used - idle * took.as_secs_f64()) * 1e6 / opened;
    figures.push((name("new flow", "new flow, fewer flows"), each, "us/flow"));
    figures.push(("lost", 100.0 * (1.0 - arrived as f64 / count.max(1) as f64), "%"));
    figures.push((name("memory", "memory, fewer flows"), full, "MiB"));
    if more > MANY {
        let each = (full - few) * 1024.0 * 1024.0 / f64::from(flows - first);
        figures.push((name("memory a flow", "memory a flow, fewer flows"), each, "bytes"));
    }
    figures.push(("idle cpu", idle * 100.0, "% of a core"));
    Ok(figures)
}

/// Waits until no more packets come.
fn settle(sink: &flood::Sink) {
    let mut last = sink.received();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        let now = sink.received();
        if now == last {
            return;
        }
        last = now;
    }
}
