//! What is allowed, and must go on all the time.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::PATIENCE;
use super::endless::Endless;
use crate::clinical::hl7::{self, Count, Engine, Monitor};
use crate::hospital::Hospital;
use crate::wait;

/// Where the endless connection goes: a port of the DICOM service, which the lab's policy opens.
const ENDLESS: u16 = 11_112;
/// The port that revisions open and close, from the PACS to the CT.
const SIDE: u16 = 5_001;
/// What the endless connection carries at least, each way, before it counts as going on.
const PROGRESS: u64 = 32 << 10;

/// Lets the monitor ping whom it sends to.
pub(super) const PING_RULE: &str = r#"
[rule.soak-pings]
from = "monitors"
to = "interface-engine"
services = ["ping"]
"#;
/// The policy's words for the port that opens and closes.
pub(super) const SIDE_RULE: &str = r#"
[service.side]
ports = ["tcp/5001"]
[rule.side]
from = "pacs-1"
to = "ct-1"
services = ["side"]
"#;

/// Who must go on talking.
#[derive(Debug)]
pub(super) struct Flows {
    endless: Endless,
    engine: Engine,
    monitor: Monitor,
    /// Listens on the port that revisions open and close, on the CT.
    side: TcpListener,
}

impl Flows {
    pub(super) fn start(hospital: &Hospital) -> Result<Self> {
        let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
        let endless = Endless::open(&ct.host, &pacs.host, pacs.at(ENDLESS))?;
        let (sender, receiver) = (hospital.machine("monitor-1"), hospital.machine("hl7-1"));
        let engine = Engine::start(&receiver.host, hl7::PORT)?;
        let monitor =
            Monitor::start(&sender.host, receiver.at(hl7::PORT), Duration::from_millis(100))?;
        let side = ct.host.enter(|| TcpListener::bind(ct.at(SIDE)))?.context("the side port")?;
        Ok(Self { endless, engine, monitor, side })
    }

    /// Waits until all of it has gone on.
    pub(super) fn go_on(&self) -> Result<()> {
        let (before, heard) = (self.endless.carried()?, self.monitor.count().acknowledged);
        wait::until_ok(PATIENCE, "what is allowed to go on", || {
            let now = self.endless.carried()?;
            let more = [now[0] - before[0], now[1] - before[1]];
            ensure!(
                more.iter().all(|more| *more > PROGRESS),
                "the connection carried {more:?} bytes"
            );
            let messages = self.monitor.count().acknowledged - heard;
            ensure!(messages > 1, "{messages} messages of the monitor were acknowledged");
            Ok(())
        })
    }

    /// The side port can be reached just while the policy says so, where all gateways have it.
    pub(super) fn side_is(&self, hospital: &Hospital, open: bool) -> Result<()> {
        let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
        let try_it =
            || crate::story::open_tcp(&pacs.host, (ct.address(), SIDE), Duration::from_secs(2));
        if open {
            wait::until_ok(PATIENCE, "a new connection by the rule that opened", || {
                try_it().map(drop)
            })?;
            let taken = self.side.accept();
            ensure!(taken.is_ok(), "the connection wasn't accepted: {taken:?}");
        } else {
            ensure!(try_it().is_err(), "a connection opened that no rule names");
        }
        Ok(())
    }

    /// Ends all, and says how many bytes the connection carried, and what became of messages.
    pub(super) fn end(self) -> Result<(u64, Count)> {
        let carried = self.endless.end()?;
        let count = self.monitor.finish(&self.engine, Duration::from_secs(30));
        Ok((carried, count))
    }
}
