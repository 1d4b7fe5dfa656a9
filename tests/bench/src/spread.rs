//! One gateway that talks to many at once: what its threads share of the work.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anteroom_lab::process::Process;
use anteroom_lab::topology::{self, Host};
use anyhow::{Context as _, Result, anyhow, ensure};

use crate::load::echo;
use crate::load::tcp::{Direction, Load};
use crate::organisation::{Attached, Opening, Organisation};
use crate::report::{Record, Row, short};
use crate::subject::Kind;
use crate::subject::anteroom::{TUNNEL_PORT, config};
use crate::tools::Tools;
use crate::usage::{Cpu, resident};
use crate::world::{Addressing, Card, Device, PREFIX, UNDERLAY, World, scratch, text};

/// How long a gateway may take to come up and shake hands.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long TCP has to find its pace.
const WARM_UP: Duration = Duration::from_millis(500);
/// More far ends than this find no address here.
pub const MOST: u8 = 64;

/// How much is measured, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom: the agent as it comes, with lane threads, or another build.
    pub subjects: Vec<Kind>,
    /// To how many gateways at once.
    pub far: Vec<u8>,
    /// How often.
    pub rounds: u32,
    /// How long each time.
    pub time: Duration,
}

/// Runs the plan, adds what it finds to `record`, and says it on standard error. What can't be measured is left out with
/// a word why, and counted.
///
/// # Errors
/// If the record can't be written.
pub fn run(plan: &Plan, tools: &Tools, logs: &Path, record: &mut Record) -> Result<()> {
    for round in 1..=plan.rounds {
        for far in &plan.far {
            for index in 0..plan.subjects.len() {
                // Whoever comes first does so in one round of several only.
                let kind = &plan.subjects[(index + round as usize) % plan.subjects.len()];
                let label = format!("{far} peers");
                let figures = match measure(kind, *far, plan.time, tools, logs) {
                    Ok(figures) => figures,
                    Err(error) => {
                        record.failed += 1;
                        eprintln!("round {round}: {label}: {}: left out: {error:#}", kind.name());
                        continue;
                    }
                };
                let said: Vec<String> = figures
                    .iter()
                    .map(|(what, value, unit)| format!("{what} {} {unit}", short(*value)))
                    .collect();
                eprintln!("round {round}: {label}: {}: {}", kind.name(), said.join(", "));
                for (what, value, unit) in figures {
                    record.push(Row {
                        subject: kind.name().to_owned(),
                        test: format!("{label} {what}"),
                        value,
                        unit: unit.into(),
                        round,
                    })?;
                }
            }
        }
    }
    let place = |row: &Row| plan.subjects.iter().position(|kind| kind.name() == row.subject);
    record.rows.sort_by_cached_key(place);
    Ok(())
}

type Figures = Vec<(String, f64, &'static str)>;

fn measure(kind: &Kind, far: u8, time: Duration, tools: &Tools, logs: &Path) -> Result<Figures> {
    let stage = Stage::raise(kind, far, tools, logs)?;
    let mut figures = Figures::new();
    for (way, direction) in [("to", Direction::Forward), ("from", Direction::Reverse)] {
        let beside = stage.beside(direction, time)?;
        figures.extend(beside.into_iter().map(|(what, value, unit)| {
            let what = if what.is_empty() { way.to_owned() } else { format!("{way}: {what}") };
            (what, value, unit)
        }));
    }
    figures.push(("memory".to_owned(), resident(&[stage.near()?])?, "MiB"));
    Ok(figures)
}

/// A gateway and its device beyond the two that every subject has.
#[derive(Debug)]
struct Far {
    gateway: Host,
    device: Host,
    underlay: Ipv4Addr,
    address: Ipv4Addr,
    mac: [u8; 6],
}

impl Far {
    /// Plugs a gateway into the first one of `world`, and a device into it.
    fn plug(name: &str, number: u8, world: &World) -> Result<Self> {
        let host = |role: &str| Host::create(&format!("{name}-{role}-{number}"));
        let far = Self {
            gateway: host("gw")?,
            device: host("dev")?,
            underlay: [172, 22, number, 2].into(),
            address: [10, 0, 0, 100 + number].into(),
            mac: [0x00, 0x00, 0x5e, 0x03, 0x00, number],
        };
        let near = &world.gateways[0];
        let interface = format!("far{number}");
        topology::cable((&far.gateway, "up0", None), (near, &interface))?;
        topology::cable((&far.device, "eth0", Some(&text(far.mac))), (&far.gateway, "port0"))?;
        far.gateway.address("up0", far.underlay, PREFIX)?;
        near.address(&interface, [172, 22, number, 1].into(), PREFIX)?;
        let (network, own) = (format!("172.22.{number}.0/{PREFIX}"), UNDERLAY[0]);
        near.ip(&format!("route replace {network} dev {interface} src {own}"))?;
        far.gateway.ip(&format!("route add {own}/32 via 172.22.{number}.1"))?;
        far.device.address("eth0", far.address, PREFIX)?;
        Ok(far)
    }
}

/// All gateways, with every device's tunnels up.
struct Stage {
    world: World,
    far: Vec<Far>,
    gateways: Vec<Process>,
    _state: tempfile::TempDir,
}

impl Stage {
    fn raise(kind: &Kind, count: u8, tools: &Tools, logs: &Path) -> Result<Self> {
        let (agent, threads) = match kind {
            Kind::Anteroom => (tools.agent.as_path(), None),
            Kind::Lanes(_, [threads, _]) => (tools.agent.as_path(), Some(*threads)),
            Kind::Other(_, path) => (path.as_path(), None),
            other => return Err(anyhow!("{} isn't Anteroom", other.name())),
        };
        let name = format!("{}-{count}", kind.name());
        let world = World::lay(&name, Addressing::Flat, Card::Virtual)?;
        // The second gateway of the world is the first of them.
        let far = (1..count).map(|number| Far::plug(&name, number, &world));
        let far = far.collect::<Result<Vec<_>>>()?;
        let state = scratch()?;
        let mut organisation = Organisation::new()?;
        let underlays = UNDERLAY.into_iter().chain(far.iter().map(|far| far.underlay));
        for (gateway, address) in underlays.enumerate() {
            let directory = state.path().join(format!("state-{gateway}"));
            organisation.enrol(directory, SocketAddr::from((address, TUNNEL_PORT)))?;
        }
        for device in Device::ALL {
            let (gateway, port, mac) = (device.gateway(), device.port(), device.mac());
            let address = world.address(device);
            organisation.devices.push(Attached { gateway, port, mac, address });
        }
        let mut to = vec![Device::B as usize];
        for (number, far) in far.iter().enumerate() {
            to.push(organisation.devices.len());
            let (mac, address) = (far.mac, far.address);
            organisation.devices.push(Attached { gateway: 2 + number, port: 0, mac, address });
        }
        organisation.openings.push(Opening { from: vec![Device::A as usize], to });
        let other = Opening { from: vec![Device::C as usize], to: vec![Device::D as usize] };
        organisation.openings.push(other);
        organisation.sign()?;
        let mut stage = Self { world, far, gateways: Vec::new(), _state: state };
        for gateway in 0..organisation.gateways.len() {
            let directory = stage._state.path().to_owned();
            // Lanes need both ends; threads of its own has the one that all others talk to.
            let threads = threads.map(|threads| if gateway == 0 { threads } else { 0 });
            let config = configure(&directory, gateway, threads)?;
            let log = logs.join(format!("spread-{name}-{gateway}.log"));
            let process = stage.start(agent, gateway, &config, &log)?;
            stage.gateways.push(process);
        }
        stage.wait_answered()?;
        Ok(stage)
    }

    fn start(&self, agent: &Path, gateway: usize, config: &Path, log: &Path) -> Result<Process> {
        let host = match gateway.checked_sub(UNDERLAY.len()) {
            None => &self.world.gateways[gateway],
            Some(number) => &self.far[number].gateway,
        };
        let config = config.display().to_string();
        host.run(agent, &["ports", "isolate", "--config", &config])?;
        let mut command = host.command(agent);
        command.args(["--log", "warn", "run", "--config", &config]);
        Process::spawn("anteroom-agent", &mut command, log)
    }

    /// Waits until each pair of devices is connected.
    fn wait_answered(&self) -> Result<()> {
        let told = |error: anyhow::Error| {
            let said: Vec<String> = self.gateways.iter().map(Process::tail).collect();
            anyhow!("{error:#}\n{}", said.join("\n--\n"))
        };
        for pair in [(Device::A, Device::B), (Device::C, Device::D)] {
            echo::wait_answered(&self.world, pair, PATIENCE).map_err(told)?;
        }
        for far in &self.far {
            let begun = Instant::now();
            let ends = (self.world.device(Device::A), (&far.device, far.address));
            // Refused as long as nothing gets through, or lost.
            while Load::between(&[ends], 1, Direction::Forward).is_err() {
                let late = begun.elapsed() > PATIENCE;
                ensure!(!late, told(anyhow!("{} can't be reached", far.address)));
            }
        }
        Ok(())
    }

    /// The process of the gateway that all others talk to.
    fn near(&self) -> Result<u32> {
        self.gateways.first().map(Process::id).context("there is a gateway")
    }

    /// One stream with each peer, and round trips of another device beside them.
    fn beside(
        &self,
        direction: Direction,
        time: Duration,
    ) -> Result<Vec<(&str, f64, &'static str)>> {
        let first = (self.world.device(Device::B), self.world.address(Device::B));
        let others = self.far.iter().map(|far| (&far.device, far.address));
        let from = self.world.device(Device::A);
        let ends: Vec<_> = std::iter::once(first).chain(others).map(|to| (from, to)).collect();
        let load = Load::between(&ends, 1, direction)?;
        std::thread::sleep(WARM_UP);
        let near = [self.near()?];
        let begun = (Instant::now(), load.received(), Cpu::of(&near)?);
        let _responder = echo::Responder::start(&self.world, Device::D)?;
        let every = Duration::from_millis(1);
        let times = echo::probe(&self.world, (Device::C, Device::D), 64, every, time)?;
        let used = Cpu::of(&near)?;
        let bytes = (load.received() - begun.1) as f64;
        let seconds = begun.0.elapsed().as_secs_f64();
        drop(load);
        ensure!(bytes > 0.0, "nothing came through in {seconds:.1} s");
        let mut figures = vec![
            ("", bytes * 8.0 / seconds / 1e9, "Gb/s"),
            ("cpu of the one", used.since(&begun.2) * 1e9 / bytes, "s/GB"),
        ];
        let busiest = used.busiest_since(&begun.2);
        figures
            .extend(busiest.map(|busiest| ("its busiest thread", busiest * 1e9 / bytes, "s/GB")));
        let percentile = |share| times.percentile(share).context("no probe was answered");
        figures.push(("ping p50", percentile(0.5)?, "ms"));
        figures.push(("ping p99", percentile(0.99)?, "ms"));
        Ok(figures)
    }
}

/// Writes one gateway's configuration.
fn configure(directory: &Path, gateway: usize, threads: Option<u8>) -> Result<PathBuf> {
    let path = if gateway < UNDERLAY.len() {
        config(directory, gateway)?
    } else {
        let [state, run] = ["state", "run"].map(|kind| directory.join(format!("{kind}-{gateway}")));
        let text = format!(
            "state = {state:?}\nrun = {run:?}\n[uplink]\ninterface = \"up0\"\n\
             [underlay]\nlisten = \"0.0.0.0:{TUNNEL_PORT}\"\n\
             [[port]]\nname = \"port1\"\ninterface = \"port0\"\n",
        );
        let path = directory.join(format!("agent-{gateway}.toml"));
        std::fs::write(&path, text)?;
        path
    };
    if let Some(threads) = threads {
        let lanes = format!("[offloads]\nlanes = true\n[cores]\nlane_threads = {threads}\n");
        std::fs::write(&path, std::fs::read_to_string(&path)? + &lanes)?;
    }
    Ok(path)
}
