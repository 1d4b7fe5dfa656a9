//! The hospital that things happen to, and how they do.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::changes::{Change, TWICE};
use super::flood::Flooder;
use super::paths::{BEHIND, Passage, Paths};
use super::relays::Relays;
use crate::anteroom::Gateway;
use crate::clocks::Clocks;
use crate::hospital::{GATEWAYS, Hospital};
use crate::wait;

/// How soon a service manager starts a dead agent anew.
const RESTART: Duration = Duration::from_millis(100);

/// How many milliseconds a first uplink has to be good until it is taken again, where it didn't fail often.
const FIRST_BACK: u64 = 10_000;
/// How many milliseconds later than said it may be taken, on a machine with a lot else to do.
const LATE: u64 = 5_000;

/// The hospital, what is around it, and what is wrong now.
#[derive(Debug)]
pub(super) struct World {
    pub(super) hospital: Hospital,
    pub(super) paths: Paths,
    pub(super) relays: Relays,
    pub(super) flooder: Flooder,
    /// None where nothing lies about the time.
    clocks: Option<Clocks>,
    controller_up: bool,
}

impl World {
    /// Prepares a hospital in enforce for all that may happen to it.
    pub(super) fn prepare(
        mut hospital: Hospital,
        clocks: Option<Clocks>,
        seed: u64,
    ) -> Result<Self> {
        let paths = Paths::lay(&mut hospital, seed)?;
        let relays = Relays::start(&hospital)?;
        let flooder = Flooder::listen(&hospital)?;
        Ok(Self { hospital, paths, relays, flooder, clocks, controller_up: true })
    }

    /// In which company a change comes.
    pub(super) fn is_good(&self) -> bool {
        self.paths.are_good() && self.controller_up
    }

    /// Whether nothing but TCP passes.
    pub(super) fn is_over_tcp(&self) -> bool {
        self.paths.passage() == Passage::TcpOnly
    }

    /// Makes a change, or begins one that [lasts](Change::lasts). What operators do isn't done here.
    pub(super) fn begin(&mut self, change: Change) -> Result<()> {
        let hospital = &mut self.hospital;
        match change {
            Change::Cut(_) => self.paths.cut(true),
            Change::Block => self.paths.limit(Passage::NoTunnels),
            Change::HalfDead => self.paths.limit(Passage::ShortAlone),
            Change::TcpOnly => self.paths.limit(Passage::TcpOnly),
            Change::Worsen(how) => self.paths.worsen(how),
            Change::Nat(nats) => self.paths.translate(nats),
            Change::Outside => self.paths.move_router(hospital)?,
            Change::Heal => self.paths.heal(),
            Change::Readdress => self.paths.move_gateway(hospital)?,
            Change::Unplug(gateway, _) => plug(hospital, gateway, "down")?,
            Change::Silence(_) => self.paths.silence(hospital, true)?,
            Change::Second(_) => self.paths.kill_second(hospital, true)?,
            Change::Restart(gateway) => restart(hospital.gateway(gateway))?,
            Change::Quic(port) => {
                for name in BEHIND.map(|(name, _)| name) {
                    let gateway = hospital.gateway(name);
                    take_quic(gateway, port)?;
                    restart(gateway)?;
                }
            }
            Change::Kill(gateway) => kill(hospital, gateway)?,
            Change::Clock(gateway, days) => {
                if let Some(clocks) = &self.clocks {
                    clocks.set(hospital.gateways[gateway].host.name(), days)?;
                }
                kill(hospital, gateway)?;
            }
            Change::Controller(_) => {
                if std::mem::take(&mut self.controller_up) {
                    hospital.controller.kill()?;
                }
            }
            Change::Relay(which, _) => self.relays.kill(which)?,
            Change::Flood(_) => self.flooder.begin(self.paths.gateway())?,
            Change::ReplaceRelay(_)
            | Change::Rotate
            | Change::RotateNow(_)
            | Change::Rekey(_)
            | Change::Revision
            | Change::Label => {}
        }
        Ok(())
    }

    /// Ends a change that [lasts](Change::lasts).
    pub(super) fn end(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Cut(_) => self.paths.cut(false),
            Change::Unplug(gateway, _) => plug(&self.hospital, gateway, "up")?,
            Change::Silence(_) => self.paths.silence(&self.hospital, false)?,
            Change::Second(_) => self.paths.kill_second(&self.hospital, false)?,
            Change::Controller(_) if !self.controller_up => {
                self.hospital.controller.start()?;
                self.controller_up = true;
            }
            Change::Relay(which, _) => self.relays.restart(which)?,
            Change::Flood(_) => self.flooder.end(),
            _ => {}
        }
        Ok(())
    }

    /// Waits until all gateways have what operators signed, and nothing is left to do.
    pub(super) fn settle(&self) -> Result<()> {
        wait::until_ok(Duration::from_secs(60), "gateways to be in step", || {
            self.hospital.operator.ok(&["status", "--wait", "45"]).map(drop)
        })
    }

    /// Waits until every tunnel takes the direct path, as it must where paths are good: over the first of two uplinks, or over
    /// the second while the gateway says that the first, which failed often, is good and has to be so for longer.
    pub(super) fn all_is_direct(&self, patience: Duration) -> Result<()> {
        for name in GATEWAYS {
            wait::until_ok(patience, &format!("direct paths from {name}"), || {
                let status = self.hospital.gateways[name].status()?;
                let peers = &status["data_plane"]["engine"]["peers"];
                let peers = peers.as_array().context("no peers")?;
                let direct = |peer: &serde_json::Value| {
                    peer["client"] == true || peer["path"] == "proved" && peer["relay"].is_null()
                };
                ensure!(!peers.is_empty() && peers.iter().all(direct), "{peers:?}");
                let underlays = &status["data_plane"]["underlays"];
                ensure!(name != TWICE || uses_what_it_should(underlays), "{underlays}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// What explains a failure.
    pub(super) fn state(&self) -> String {
        let mut text = format!("{}\n", self.paths.state());
        for name in GATEWAYS {
            text += &match self.hospital.gateways[name].status() {
                Ok(status) => format!("{name}: {status}\n"),
                Err(error) => format!("{name}: {error:#}\n"),
            };
        }
        text
    }
}

/// Whether a gateway with two good uplinks uses the first, or says why it doesn't yet.
fn uses_what_it_should(underlays: &serde_json::Value) -> bool {
    let back = (underlays["back_after_ms"].as_u64(), underlays["good_ms"].as_u64());
    match back {
        (Some(after), Some(good)) => after > FIRST_BACK && good < after + LATE,
        _ => underlays["using"] == "uplink",
    }
}

fn plug(hospital: &Hospital, gateway: &str, state: &str) -> Result<()> {
    hospital.campus.ip(&format!("link set u-{gateway} {state}")).map(drop)
}

fn restart(gateway: &mut Gateway) -> Result<()> {
    gateway.stop()?;
    gateway.start()?;
    gateway.wait_running()
}

/// Has a gateway take QUIC of its peers at this port from its next start on.
fn take_quic(gateway: &Gateway, port: Option<u16>) -> Result<()> {
    let text = std::fs::read_to_string(&gateway.config)?;
    let mut lines: Vec<String> =
        text.lines().filter(|line| !line.starts_with("quic = ")).map(str::to_owned).collect();
    let table = lines.iter().position(|line| line == "[underlay]").context("no [underlay]")?;
    if let Some(port) = port {
        lines.insert(table + 1, format!("quic = {port}"));
    }
    std::fs::write(&gateway.config, lines.join("\n") + "\n").context("writing agent.toml")
}

fn kill(hospital: &mut Hospital, gateway: &str) -> Result<()> {
    let gateway = hospital.gateway(gateway);
    gateway.kill()?;
    std::thread::sleep(RESTART);
    gateway.start()?;
    gateway.wait_running()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_second_uplink_is_right_only_while_a_first_that_failed_often_is_watched() {
        let second = |after: u64, good: Option<u64>| json!({"using": "backup", "back_after_ms": after, "good_ms": good});
        assert!(uses_what_it_should(&json!({"using": "uplink", "back_after_ms": null})));
        assert!(uses_what_it_should(&second(20_000, Some(3_000))));
        for wrong in [
            json!({"using": "backup"}),
            second(10_000, Some(3_000)),
            second(20_000, None),
            second(20_000, Some(30_000)),
        ] {
            assert!(!uses_what_it_should(&wrong), "{wrong}");
        }
    }
}
