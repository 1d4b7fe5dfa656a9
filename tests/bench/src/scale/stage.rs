//! The gateways that are measured, and those around them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anteroom_agent_core::config::TunnelIdentity;
use anteroom_lab::process::Process;
use anteroom_lab::topology::{self, Host};
use anteroom_lab::wait;
use anyhow::{Context as _, Result, anyhow};

use super::Size;
use crate::load::crowd::{self, Crowd, Person};
use crate::load::{echo, flood};
use crate::organisation::{Attached, Opening, Organisation, gateway_id};
use crate::subject::anteroom::{TUNNEL_PORT, config};
use crate::world::{Addressing, Card, Device, UNDERLAY, World, scratch};

/// Flows of one device at most, so that no share of a table decides.
const FLOWS_PER_DEVICE: u32 = 8_192;
/// How long a gateway may take to come up with all that it knows.
const PATIENCE: Duration = Duration::from_secs(120);

/// A gateway with as much as it is to have, and those around it.
pub(super) struct Stage {
    pub(super) world: World,
    agent: PathBuf,
    configs: Vec<PathBuf>,
    logs: [PathBuf; 2],
    gateways: Vec<Process>,
    crowd: Option<Crowd>,
    devices: Vec<flood::End>,
    _state: tempfile::TempDir,
}

impl Stage {
    pub(super) fn raise(agent: &Path, name: &str, size: Size, logs: &Path) -> Result<Self> {
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
    pub(super) fn restart(&mut self) -> Result<Duration> {
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

    pub(super) fn pids(&self) -> Vec<u32> {
        self.gateways.iter().map(Process::id).collect()
    }

    /// The devices that open flows, and the one that they go to.
    pub(super) fn ends(&self) -> (Vec<flood::End>, flood::End) {
        let to = flood::End { mac: Device::B.mac(), address: self.world.address(Device::B) };
        (self.devices.clone(), to)
    }

    /// Flows in the first gateway's table, by its own word.
    pub(super) fn live_flows(&self) -> Result<u64> {
        let config = self.configs[0].display().to_string();
        let mut command = self.world.gateways[0].command(&self.agent);
        // It fails with a status of its own while there is no controller, and still says everything.
        let output = command.args(["status", "--json", "--config", &config]).output()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let flows = find(&status, "tables").and_then(|tables| tables["flows"].as_u64());
        flows.with_context(|| format!("no size of the flow table in {status}"))
    }

    pub(super) fn tail(&self) -> String {
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
