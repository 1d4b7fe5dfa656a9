//! What a packet, a flow and a peer cost the agent when there are many.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anteroom_agent_core::config::TunnelIdentity;
use anteroom_lab::process::Process;
use anteroom_lab::topology::{self, Host};
use anteroom_lab::wait;
use anyhow::{Context as _, Result, anyhow, bail};

use crate::load::crowd::{self, Crowd, Person};
use crate::load::{echo, flood};
use crate::organisation::{Attached, Opening, Organisation, gateway_id};
use crate::report::{Record, Row, short};
use crate::subject::anteroom::{TUNNEL_PORT, config};
use crate::usage::{Cpu, resident};
use crate::world::{Addressing, Card, Device, UNDERLAY, World, scratch};

/// Packets a second: all gateways here carry them.
const RATE: f64 = 20_000.0;
/// Flows of one device at most, so that no share of a table decides.
const FLOWS_PER_DEVICE: u32 = 8_192;
/// How long a gateway may take to come up with all that it knows.
const PATIENCE: Duration = Duration::from_secs(120);

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
    }
    let pids = stage.pids();
    let idle = {
        let begun = (Instant::now(), Cpu::of(&pids)?);
        std::thread::sleep(time);
        Cpu::of(&pids)?.since(&begun.1) / begun.0.elapsed().as_secs_f64()
    };
    figures.push(("idle cpu", idle * 100.0, "% of a core"));
    let (devices, to) = stage.ends();
    let from = stage.world.device(Device::A);
    // The sink stands in for the far device: its own stack would refuse every packet.
    let far = stage.world.device(Device::B);
    far.ip("address flush dev eth0")?;
    let sink = flood::Sink::start(far)?;
    let flows = size.flows;
    let begun = (Instant::now(), Cpu::of(&pids)?);
    let sent = flood::send(from, (&devices, to), flows, flows.into(), RATE)?;
    settle(&sink);
    let used = Cpu::of(&pids)?.since(&begun.1) - idle * begun.0.elapsed().as_secs_f64();
    let live = stage.live_flows()?;
    figures.push(("live flows", live as f64, "flows"));
    // Where the table took fewer, what follows says nothing about so many flows, and is called another name.
    let full = live < u64::from(flows);
    let name =
        |usual: &'static str, full_table: &'static str| if full { full_table } else { usual };
    let new = name("new flow", "new flow, table full");
    figures.push((new, used * 1e6 / sent.max(1) as f64, "us/flow"));
    sink.set_returning(false);
    let before = sink.received();
    let begun = (Instant::now(), Cpu::of(&pids)?);
    let count = (time.as_secs_f64() * RATE) as u64;
    flood::send(from, (&devices, to), flows, count, RATE)?;
    settle(&sink);
    let used = Cpu::of(&pids)?.since(&begun.1) - idle * begun.0.elapsed().as_secs_f64();
    let arrived = sink.received() - before;
    if arrived == 0 {
        bail!("none of {count} packets came through:\n{}", stage.tail());
    }
    let hit = name("hit", "hit, table full");
    figures.push((hit, used * 1e6 / arrived as f64, "us/packet"));
    figures.push(("lost", 100.0 * (1.0 - arrived as f64 / count.max(1) as f64), "%"));
    figures.push((name("memory", "memory, table full"), resident(&pids[..1])?, "MiB"));
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

/// A gateway with as much as it is to have, and those around it.
struct Stage {
    world: World,
    agent: PathBuf,
    configs: Vec<PathBuf>,
    logs: [PathBuf; 2],
    gateways: Vec<Process>,
    crowd: Option<Crowd>,
    devices: Vec<flood::End>,
    _state: tempfile::TempDir,
}

impl Stage {
    fn raise(agent: &Path, name: &str, size: Size, logs: &Path) -> Result<Self> {
        let world = World::lay(name, Addressing::Flat, Card::Virtual)?;
        let state = scratch()?;
        let mut organisation = Organisation::new()?;
        for (gateway, address) in UNDERLAY.into_iter().enumerate() {
            organisation.enrol(
                state.path().join(format!("state-{gateway}")),
                (address, TUNNEL_PORT).into(),
            )?;
        }
        let opening = |from: Vec<usize>, to: usize| Opening { from, to: vec![to] };
        for device in Device::ALL {
            let (gateway, port, mac) = (device.gateway(), device.port(), device.mac());
            let address = world.address(device);
            organisation.devices.push(Attached { gateway, port, mac, address });
        }
        organisation.openings.push(opening(vec![Device::A as usize], Device::B as usize));
        let devices: Vec<flood::End> =
            (0..size.flows.div_ceil(FLOWS_PER_DEVICE)).map(flooder).collect();
        let first = organisation.devices.len();
        organisation.devices.extend(devices.iter().map(|end| Attached {
            gateway: 0,
            port: 0,
            mac: end.mac,
            address: end.address,
        }));
        let all = (first..organisation.devices.len()).collect();
        organisation.openings.push(opening(all, Device::B as usize));
        organisation.idle_rules = size.rules as usize;
        let crowd = crowd_of(&mut organisation, size.peers.saturating_sub(1))?;
        organisation.sign()?;
        // At the far end all flows are one device's.
        let most = size.flows.max(65_536);
        let bounds = format!("[flows]\nmost = {most}\nper-device = {most}\n");
        let configs = (0..2)
            .map(|gateway| {
                let path = config(state.path(), gateway)?;
                let text = std::fs::read_to_string(&path)? + &bounds;
                std::fs::write(&path, text)?;
                Ok(path)
            })
            .collect::<Result<Vec<PathBuf>>>()?;
        let logs = ["a", "b"].map(|gateway| logs.join(format!("scale-{name}-{gateway}.log")));
        let mut stage = Self {
            world,
            agent: agent.to_owned(),
            configs,
            logs,
            gateways: Vec::new(),
            crowd: None,
            devices,
            _state: state,
        };
        stage.crowd = stage.gather(name, crowd)?;
        for gateway in 0..2 {
            let process = stage.start(gateway)?;
            stage.gateways.push(process);
        }
        stage.wait_answered()?;
        stage.wait_shaken()?;
        Ok(stage)
    }

    /// Plugs the crowd into the first gateway.
    fn gather(&self, name: &str, people: Vec<Person>) -> Result<Option<Crowd>> {
        if people.is_empty() {
            return Ok(None);
        }
        let host = Host::create(&format!("{name}-crowd"))?;
        let gateway = &self.world.gateways[0];
        topology::cable((&host, "eth0", None), (gateway, "crowd0"))?;
        host.address("eth0", [172, 20, 0, 2].into(), 24)?;
        gateway.address("crowd0", [172, 20, 0, 1].into(), 24)?;
        host.ip(&format!("route add local {} dev lo", crowd::NETWORK))?;
        let network = crowd::NETWORK;
        gateway.ip(&format!("route add {network} via 172.20.0.2 src {}", UNDERLAY[0]))?;
        host.ip(&format!("route add {}/32 via 172.20.0.1", UNDERLAY[0]))?;
        Crowd::start(&host, TUNNEL_PORT, people).map(Some)
    }

    fn start(&self, gateway: usize) -> Result<Process> {
        let host = &self.world.gateways[gateway];
        let config = self.configs[gateway].display().to_string();
        host.run(&self.agent, &["ports", "isolate", "--config", &config])?;
        let mut command = host.command(&self.agent);
        command.args(["--log", "warn", "run", "--config", &config]);
        Process::spawn("anteroom-agent", &mut command, &self.logs[gateway])
    }

    /// Waits until every peer has shaken hands.
    fn wait_shaken(&self) -> Result<()> {
        let Some(crowd) = &self.crowd else { return Ok(()) };
        wait::until(PATIENCE, "all peers to shake hands", || crowd.all_shaken().then_some(()))
            .map_err(|late| anyhow!("{late}: {} have\n{}", crowd.shaken(), self.tail()))
    }

    /// Waits until the gateways carry packets.
    fn wait_answered(&self) -> Result<()> {
        echo::wait_answered(&self.world, (Device::A, Device::B), PATIENCE)
            .map_err(|error| anyhow!("{error:#}\n{}", self.tail()))
    }

    /// Kills the first gateway and starts it again. Returns how long it then took until every peer had shaken hands.
    fn restart(&mut self) -> Result<Duration> {
        self.gateways[0].kill()?;
        if let Some(crowd) = &self.crowd {
            crowd.begin_anew();
        }
        let begun = Instant::now();
        self.gateways[0] = self.start(0)?;
        self.wait_shaken()?;
        let took = begun.elapsed();
        self.wait_answered()?;
        Ok(took)
    }

    fn pids(&self) -> Vec<u32> {
        self.gateways.iter().map(Process::id).collect()
    }

    /// The devices that open flows, and the one that they go to.
    fn ends(&self) -> (Vec<flood::End>, flood::End) {
        let to = flood::End { mac: Device::B.mac(), address: self.world.address(Device::B) };
        (self.devices.clone(), to)
    }

    /// Flows in the first gateway's table, by its own word.
    fn live_flows(&self) -> Result<u64> {
        let config = self.configs[0].display().to_string();
        let mut command = self.world.gateways[0].command(&self.agent);
        // It fails with a status of its own while there is no controller, and still says everything.
        let output = command.args(["status", "--json", "--config", &config]).output()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let flows = find(&status, "tables").and_then(|tables| tables["flows"].as_u64());
        flows.with_context(|| format!("no size of the flow table in {status}"))
    }

    fn tail(&self) -> String {
        self.gateways.iter().map(Process::tail).collect::<Vec<_>>().join("\n--\n")
    }
}

/// Looks for a key, however deep.
fn find<'a>(value: &'a serde_json::Value, key: &str) -> Option<&'a serde_json::Value> {
    match value {
        serde_json::Value::Object(map) => {
            map.get(key).or_else(|| map.values().find_map(|value| find(value, key)))
        }
        _ => None,
    }
}

/// A device that opens flows, beside the first one.
fn flooder(number: u32) -> flood::End {
    let [.., high, low] = number.to_be_bytes();
    flood::End { mac: [0x00, 0x00, 0x5e, 0x01, high, low], address: [10, 0, 1 + high, low].into() }
}

/// Adds peers, each with a device that may talk to the first one here.
fn crowd_of(organisation: &mut Organisation, count: u32) -> Result<Vec<Person>> {
    let mut keys = Vec::new();
    let mut opening = Opening { from: Vec::new(), to: vec![Device::A as usize] };
    for number in 0..count {
        let gateway = organisation.gateways.len();
        let at = crowd::address(number as usize);
        keys.push((gateway, organisation.pretend((at, TUNNEL_PORT).into())));
        opening.from.push(organisation.devices.len());
        let [.., high, low] = number.to_be_bytes();
        organisation.devices.push(Attached {
            gateway,
            port: 0,
            mac: [0x00, 0x00, 0x5e, 0x02, high, low],
            address: [10, 8, high, low].into(),
        });
    }
    if count > 0 {
        organisation.openings.push(opening);
    }
    let person = |(place, (identity, secret)): (usize, _)| {
        let gateway = gateway_id(place);
        let seed = (place as u64).to_be_bytes().repeat(4);
        let seed = seed.try_into().map_err(|_| anyhow::anyhow!("a seed has 32 bytes"))?;
        let identity = TunnelIdentity { gateway, secret, identity, seed };
        Ok(Person { identity, view: organisation.view(place)? })
    };
    keys.into_iter().map(person).collect()
}
