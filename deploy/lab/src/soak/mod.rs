//! The soak: a hospital in enforce whose network, keys, programs and policy change at random for as long as one likes.
//!
//! What must hold all the time: connections that are allowed go on, the same ones from beginning to end; what
//! strangers send arrives nowhere; nothing of the devices can be read on the campus; a rule that closes cuts, and one
//! that opens opens. Which changes come in which order follows from a seed.

mod changes;
mod endless;
mod strangers;
mod tally;

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::clinical::hl7::{self, Count, Engine, Monitor};
use crate::figures::enforced_hospital;
use crate::hospital::{GATEWAYS, Hospital, address};
use crate::ping::Pinging;
use crate::programs::Programs;
use crate::story::{POLICY, Report};
use crate::wait;
use crate::wan::Attach;
use crate::wan::chance::Chance;
use crate::wan::conditions::Conditions;
use crate::wan::link::Link;

use changes::{Change, Underlay};
use endless::Endless;
use strangers::Strangers;
use tally::Tally;

/// Where the endless connection goes: a port of the DICOM service, which the lab's policy opens.
const ENDLESS: u16 = 11_112;
/// The port that revisions open and close, from the PACS to the CT.
const SIDE: u16 = 5_001;
/// The policy's words for it.
const SIDE_RULE: &str = r#"
[service.side]
ports = ["tcp/5001"]
[rule.side]
from = "pacs-1"
to = "ct-1"
services = ["side"]
"#;
/// Between two pings.
const BEAT: Duration = Duration::from_millis(10);
/// How long anything may take to go on after a change, on a machine with a lot else to do.
const PATIENCE: Duration = Duration::from_secs(90);
/// The exit code of a command that some gateways haven't followed yet.
const LAGS: i32 = 3;
/// What the endless connection carries at least, each way, before it counts as going on.
const PROGRESS: u64 = 32 << 10;

/// Who must go on talking all the time.
struct Allowed {
    endless: Endless,
    engine: Engine,
    monitor: Monitor,
    /// Listens on the port that revisions open and close, on the CT.
    side: TcpListener,
}

impl Allowed {
    fn start(hospital: &Hospital) -> Result<Self> {
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
    fn go_on(&self) -> Result<()> {
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

    fn end(self) -> Result<(u64, Count)> {
        let carried = self.endless.end()?;
        let count = self.monitor.finish(&self.engine, Duration::from_secs(30));
        Ok((carried, count))
    }
}

/// Everything under way.
struct Soak {
    hospital: Hospital,
    underlay: Underlay,
    allowed: Allowed,
    strangers: Strangers,
    /// Whether the side rule is in the policy that was applied last.
    side: bool,
    /// How many labels were given.
    labels: u64,
    chance: Chance,
    tally: Tally,
}

/// Soaks for `time`; `seed` says what happens. One change at least is made.
///
/// # Errors
/// If the hospital can't be raised. What didn't hold is in the report as a check that failed.
pub fn measure(
    programs: Programs,
    directory: &Path,
    logs: &Path,
    mut report: Report,
    time: Duration,
    seed: u64,
) -> Result<Report> {
    report.begin(1, "Soak");
    report.line(&format!("Again with these changes: cargo lab soak --seed {seed}"));
    let mut soak = None;
    report.check("raise", "a hospital in enforce, its flows and strangers at work", || {
        soak = Some(Soak::start(enforced_hospital(programs, directory, logs)?, seed)?);
        Ok("up".into())
    });
    let Some(mut soak) = soak else { return Ok(report) };
    let end = Instant::now() + time;
    let mut changes = 0_u64;
    let went_on = report.check("changes", "after each change all that is allowed goes on", || {
        while changes == 0 || Instant::now() < end {
            changes += 1;
            let change = Change::draw(&mut soak.chance);
            // Troubles seldom come alone.
            let within = (change.lasts() && soak.chance.happens(0.5))
                .then(|| Change::draw(&mut soak.chance))
                .filter(|within| !within.lasts());
            soak.suffer(change, within).map_err(|error| {
                let within =
                    within.map(|within| format!(", within it {within}")).unwrap_or_default();
                error.context(format!("change {changes}, {change}{within}\n{}", soak.state()))
            })?;
        }
        Ok(format!("{changes} changes"))
    });
    let table = soak.tally.table();
    soak.finish(&mut report, went_on.is_some());
    report.end("");
    report.line(&table);
    report.figure("soak_seed", seed);
    report.figure("soak_changes", changes);
    Ok(report)
}

impl Soak {
    fn start(hospital: Hospital, seed: u64) -> Result<Self> {
        let link = lay_link(&hospital, seed)?;
        let underlay = Underlay::new(link);
        underlay.settle(&hospital)?;
        // The policy without the side rule is there already.
        let allowed = Allowed::start(&hospital)?;
        let strangers = Strangers::start(&hospital)?;
        let soak = Self {
            hospital,
            underlay,
            allowed,
            strangers,
            side: false,
            labels: 0,
            chance: Chance::new(seed),
            tally: Tally::default(),
        };
        soak.allowed.go_on()?;
        Ok(soak)
    }

    /// Makes a change, another one within it perhaps, waits until all goes on, and notes what it cost.
    fn suffer(&mut self, change: Change, within: Option<Change>) -> Result<()> {
        let company = self.underlay.is();
        let ct = self.hospital.machine("ct-1").host.clone();
        let pacs = self.hospital.machine("pacs-1").address();
        let pinging = Pinging::start(&ct, pacs, u64::MAX, BEAT)?;
        let some = |pinging: &Pinging, when: &str| {
            let before = pinging.received();
            wait::until(PATIENCE, &format!("pings {when}"), || {
                (pinging.received() >= before + 20).then_some(())
            })
        };
        let made = some(&pinging, "before it")
            .map_err(Into::into)
            .and_then(|()| self.make(change, within));
        let after = made.and_then(|()| {
            some(&pinging, "after it")?;
            self.allowed.go_on()?;
            self.side_is_as_signed()?;
            self.strangers.found_nothing()
        });
        let series = pinging.stop()?;
        let kind = within.map_or_else(
            || change.name().to_owned(),
            |within| format!("{}: {}", change.name(), within.name()),
        );
        self.tally.note(format!("{kind}{company}"), &series, BEAT);
        after?;
        let alone = within.is_none() && company.is_empty();
        ensure!(
            series.lost() == 0 || !alone || !change.is_lossless(),
            "{} of {} pings were lost, {} in a row",
            series.lost(),
            series.sent,
            series.longest_gap
        );
        Ok(())
    }

    fn make(&mut self, change: Change, within: Option<Change>) -> Result<()> {
        if change.is_by_operator() {
            // What was away for the change before has come back, or the command would be right to complain.
            self.hospital.operator.ok(&["status", "--wait", "60"])?;
            return self.operate(change, true);
        }
        self.underlay.begin(&mut self.hospital, change)?;
        match within {
            // Nobody is there who could take it.
            Some(within) if within.is_by_operator() && matches!(change, Change::Controller(_)) => {}
            Some(within) if within.is_by_operator() => self.operate(within, false)?,
            Some(within) => self.underlay.begin(&mut self.hospital, within)?,
            None => {}
        }
        self.underlay.end(&mut self.hospital, change)
    }

    /// An operator's command; `all_there` says whether every gateway is.
    fn operate(&mut self, change: Change, all_there: bool) -> Result<()> {
        let operator = &self.hospital.operator;
        let reason = ["--reason", "soak", "--yes"];
        let outcome = match change {
            Change::Rotate => {
                operator.command(&[&["gateway", "rotate", "--all"], &reason[..]].concat())
            }
            Change::RotateNow(gateway) => {
                operator.command(&[&["gateway", "rotate", gateway, "--now"], &reason[..]].concat())
            }
            Change::Label => {
                self.labels += 1;
                let label = format!("round={}", self.labels);
                operator.command(&[&["device", "label", "ct-1", &label], &reason[..]].concat())
            }
            Change::Revision => {
                self.side = !self.side;
                let text = format!("{POLICY}{}", if self.side { SIDE_RULE } else { "" });
                let file = operator.write_policy("soak.toml", &text)?;
                let plan = format!("{file}.plan");
                operator.ok(&["policy", "plan", &file, "--out", &plan])?;
                operator.command(&[&["policy", "apply", &plan], &reason[..]].concat())
            }
            _ => return Ok(()),
        }?;
        match outcome.code {
            // Some gateways lag, as they must.
            LAGS if !all_there => Ok(()),
            _ => outcome.ok().map(drop),
        }
    }

    /// The side port can be reached just while the policy says so.
    fn side_is_as_signed(&self) -> Result<()> {
        let (ct, pacs) = (self.hospital.machine("ct-1"), self.hospital.machine("pacs-1"));
        let open =
            || crate::story::open_tcp(&pacs.host, (ct.address(), SIDE), Duration::from_secs(2));
        if self.side {
            wait::until_ok(PATIENCE, "a new connection by the rule that opened", || {
                open().map(drop)
            })?;
            let taken = self.allowed.side.accept();
            ensure!(taken.is_ok(), "the connection wasn't accepted: {taken:?}");
        } else {
            // Closing goes at once wherever the revision has come.
            self.hospital.operator.ok(&["status", "--wait", "60"])?;
            ensure!(open().is_err(), "a connection opened that no rule names");
        }
        Ok(())
    }

    /// What explains a failure.
    fn state(&self) -> String {
        let mut text = String::new();
        for name in GATEWAYS {
            let status = self.hospital.gateways[name].status();
            text += &match status {
                Ok(status) => format!("{name}: {status}\n"),
                Err(error) => format!("{name}: {error:#}\n"),
            };
        }
        text
    }

    /// The end: what came of it all.
    fn finish(self, report: &mut Report, sound: bool) {
        let Self { hospital, allowed, strangers, tally, .. } = self;
        if sound {
            report.check("flows", "the connection of the beginning lives; no message is lost", || {
                let (carried, count) = allowed.end()?;
                if count.lost > 0 {
                    bail!("{count:?}");
                }
                Ok(format!(
                    "{} MiB over one connection; {} messages, 0 lost, {} reconnects, slowest {} ms",
                    carried >> 20,
                    count.acknowledged,
                    count.reconnects,
                    count.slowest_ms
                ))
            });
        }
        report.check(
            "strangers",
            "nothing of strangers arrives, nothing of devices is readable",
            || strangers.end(),
        );
        report.check("audit", "the audit log verifies, all gateways are in step", || {
            hospital.operator.ok(&["status", "--wait", "60"])?;
            hospital.operator.ok(&["audit", "verify"]).map(|outcome| outcome.stdout.trim().into())
        });
        report.figure("soak", tally.json());
    }
}

/// Puts a link that can misbehave between the router and the network of the CT's gateway.
fn lay_link(hospital: &Hospital, seed: u64) -> Result<Link> {
    let mac = hospital.router.mac("imaging")?.map(|byte| format!("{byte:02x}")).join(":");
    hospital.router.ip("link delete imaging")?;
    let campus = Attach::Switch(&hospital.campus, "br-imaging");
    let link = Link::lay("wan", Attach::Host(&hospital.router, "imaging"), campus, seed)?;
    hospital.router.ip(&format!("link set imaging address {mac}"))?;
    hospital.router.address("imaging", address("imaging", 1), 24)?;
    link.set_both(&Conditions::default());
    Ok(link)
}
