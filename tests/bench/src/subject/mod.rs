//! What is measured: ways to carry packets between two gateways.

pub(crate) mod anteroom;
mod nebula;
mod relay;
mod wireguard;

use std::path::{Path, PathBuf};

use anteroom_agent::config::MAX_LANE_THREADS;
use anteroom_lab::process::Process;
use anteroom_lab::topology::Host;
use anyhow::{Result, bail};

use crate::load::echo;
use crate::tools::Tools;
use crate::world::{Addressing, Card, Device, World, scratch};

/// How long a tunnel may take to come up.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A way to carry packets, by its name on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The kernel forwards in the clear: the ceiling.
    Routing,
    /// This workspace's agent.
    Anteroom,
    /// The same with its sensor switched off.
    NoSensor,
    /// The same as `anteroom` with a relay between the gateways: all goes through it.
    Relay,
    /// Another build of the agent: `NAME=PATH`.
    Other(String, PathBuf),
    /// This workspace's agent with so many lane threads at both ends, `lanes-2`, or at the one and the other, `lanes-0-2`.
    Lanes(String, [u8; 2]),
    /// boringtun-cli with one thread.
    BoringtunOne,
    /// boringtun-cli as it comes.
    Boringtun,
    /// wireguard-go as it comes.
    WireguardGo,
    /// Nebula as it comes.
    Nebula,
    /// No tunnel at all: sealing and opening the same bytes in memory, the floor of a tunnel's cost.
    Aead,
}

impl Kind {
    /// All that have a name of their own.
    pub const ALL: [Self; 9] = [
        Self::Routing,
        Self::Anteroom,
        Self::NoSensor,
        Self::Relay,
        Self::BoringtunOne,
        Self::Boringtun,
        Self::WireguardGo,
        Self::Nebula,
        Self::Aead,
    ];

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Routing => "routing",
            Self::Anteroom => "anteroom",
            Self::NoSensor => "no-sensor",
            Self::Relay => "relay",
            Self::Other(name, _) | Self::Lanes(name, _) => name,
            Self::BoringtunOne => "boringtun-1",
            Self::Boringtun => "boringtun",
            Self::WireguardGo => "wireguard-go",
            Self::Nebula => "nebula",
            Self::Aead => "aead",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(kind) = Self::ALL.into_iter().find(|kind| kind.name() == text) {
            return Ok(kind);
        }
        let threads = text.strip_prefix("lanes-").and_then(|counts| {
            let (near, far) = counts.split_once('-').unwrap_or((counts, counts));
            Some([near.parse().ok()?, far.parse().ok()?])
        });
        if let Some(threads) = threads.filter(|both| both.iter().all(|n| *n <= MAX_LANE_THREADS)) {
            return Ok(Self::Lanes(text.into(), threads));
        }
        // Part of host names, which the kernel bounds, and of the report's columns.
        let fits = |name: &str| {
            (1..=20).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !Self::ALL.iter().any(|kind| kind.name() == name)
        };
        match text.split_once('=') {
            Some((name, path)) if fits(name) && !path.is_empty() => {
                Ok(Self::Other(name.into(), path.into()))
            }
            _ => {
                let known: Vec<String> = Self::ALL.iter().map(|k| k.name().to_owned()).collect();
                Err(format!(
                    "no such subject; there are {}, lanes-N for anteroom with N lane threads, lanes-N-M with \
                     other ones at the far end, and NAME=PATH for another build of anteroom-agent",
                    known.join(", ")
                ))
            }
        }
    }
}

/// Something that carries packets, up and running.
#[derive(Debug)]
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Its hosts. None for what carries no packets.
    pub world: Option<World>,
    processes: Vec<Process>,
    /// Where the relay runs, if there is one.
    _between: Option<Host>,
    _state: Option<tempfile::TempDir>,
}

impl Subject {
    /// Sets it up and waits until it carries packets. Its programs print into files in `logs`.
    ///
    /// # Errors
    /// If something can't be started, or carries nothing.
    pub fn start(kind: &Kind, card: Card, tools: &Tools, logs: &Path) -> Result<Self> {
        let name = kind.name().to_owned();
        let mut subject =
            Self { name, world: None, processes: Vec::new(), _between: None, _state: None };
        let addressing = match kind {
            Kind::Aead => return Ok(subject),
            Kind::Anteroom | Kind::NoSensor | Kind::Relay | Kind::Lanes(..) | Kind::Other(..) => {
                Addressing::Flat
            }
            _ => Addressing::Routed,
        };
        let prefix = match card {
            Card::Virtual => subject.name.clone(),
            Card::Plain => format!("{}-plain", subject.name),
        };
        let world = World::lay(&prefix, addressing, card)?;
        let spawn = |gateway: usize, mut command: std::process::Command| {
            let log = logs.join(format!("{prefix}-{}.log", ["a", "b", "between"][gateway]));
            Process::spawn(&prefix, &mut command, &log)
        };
        match kind {
            Kind::Aead => {}
            Kind::Routing => {
                for gateway in 0..2 {
                    let (network, length) = World::behind(1 - gateway);
                    let via = crate::world::UNDERLAY[1 - gateway];
                    world.gateways[gateway]
                        .ip(&format!("route add {network}/{length} via {via}"))?;
                }
            }
            Kind::Anteroom | Kind::NoSensor | Kind::Relay | Kind::Lanes(..) | Kind::Other(..) => {
                let agent = match kind {
                    Kind::Other(_, path) => path.as_path(),
                    _ => &tools.agent,
                };
                let state = scratch()?;
                let threads = match kind {
                    Kind::Lanes(_, threads) => Some(*threads),
                    _ => None,
                };
                let configs = if *kind == Kind::Relay {
                    let between = relay::prepare(&world, &prefix, &tools.controller, state.path())?;
                    subject._between = Some(between.host);
                    subject.processes.push(spawn(2, between.relay)?);
                    between.configs
                } else {
                    anteroom::prepare(&world, state.path(), threads)?
                };
                if *kind == Kind::NoSensor {
                    anteroom::blind(&configs)?;
                }
                subject._state = Some(state);
                for (gateway, config) in configs.iter().enumerate() {
                    let host = &world.gateways[gateway];
                    host.run(
                        agent,
                        &["ports", "isolate", "--config", &config.display().to_string()],
                    )?;
                    let mut command = host.command(agent);
                    command.args(["--log", "warn", "run", "--config"]).arg(config);
                    subject.processes.push(spawn(gateway, command)?);
                }
            }
            Kind::BoringtunOne | Kind::Boringtun | Kind::WireguardGo => {
                let short = match kind {
                    Kind::BoringtunOne => "bto",
                    Kind::Boringtun => "btn",
                    _ => "wgo",
                };
                let short = format!("{short}{}", if card == Card::Plain { "p" } else { "" });
                let names = [format!("{short}-a"), format!("{short}-b")];
                for (gateway, interface) in names.iter().enumerate() {
                    let host = &world.gateways[gateway];
                    let command = wireguard::command(kind, tools, host, interface)?;
                    subject.processes.push(spawn(gateway, command)?);
                }
                wireguard::configure(&world, &names, &mut subject.processes)?;
            }
            Kind::Nebula => {
                let state = scratch()?;
                let configs = nebula::prepare(tools, state.path())?;
                subject._state = Some(state);
                for (gateway, config) in configs.iter().enumerate() {
                    let mut command = world.gateways[gateway].command(tools.nebula()?);
                    command.arg("-config").arg(config);
                    subject.processes.push(spawn(gateway, command)?);
                }
            }
        }
        let answered = [(Device::A, Device::B), (Device::C, Device::D)]
            .into_iter()
            .try_for_each(|pair| echo::wait_answered(&world, pair, PATIENCE));
        if let Err(error) = answered {
            let said: Vec<String> = subject.processes.iter().map(Process::tail).collect();
            bail!("{error:#}\n{}", said.join("\n--\n"));
        }
        subject.world = Some(world);
        Ok(subject)
    }

    /// The processes of both gateways, and of the relay between them; none where the kernel does the work.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    /// An error with what it printed last, if one of its programs has ended.
    ///
    /// # Errors
    /// If one has.
    pub fn must_run(&mut self) -> Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.ended() {
                bail!("{} ended with {status}:\n{}", self.name, process.tail());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_go_by_name() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse::<Kind>(), Ok(kind.clone()));
        }
        let before: Kind = "before=/x/anteroom-agent".parse().unwrap();
        assert_eq!(before, Kind::Other("before".into(), "/x/anteroom-agent".into()));
        assert_eq!("lanes-15".parse(), Ok(Kind::Lanes("lanes-15".into(), [15, 15])));
        assert_eq!("lanes-0-2".parse(), Ok(Kind::Lanes("lanes-0-2".into(), [0, 2])));
        assert!(
            "lanes-16".parse::<Kind>().is_err()
                && "lanes-2-".parse::<Kind>().is_err()
                && "lanes-".parse::<Kind>().is_err()
        );
        for bad in ["", "openvpn", "=", "a b=/x", "anteroom=/x", "before="] {
            let error = bad.parse::<Kind>().unwrap_err();
            assert!(error.contains("boringtun-1"), "{bad:?}: {error}");
        }
    }
}
