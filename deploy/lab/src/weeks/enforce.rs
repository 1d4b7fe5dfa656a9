//! Enforcing one device at a time: on trial, from which a device goes back by itself.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::habits::{PRINT_PORT, REPORTING, ask};
use super::propose::{VITAL, rule};
use super::see::listed;
use super::{FALLEN, PATIENCE, Weeks};
use crate::anteroom::Outcome;
use crate::hospital::Hospital;
use crate::story::refused;
use crate::wait;

/// How long one attempt to connect lasts.
const ATTEMPT: Duration = Duration::from_secs(3);

/// What the operator answers to the question whether the scanner may print.
const PRINTING: &str = r#"
[external.printer]
prefixes = ["10.20.9.31/32"]

[rule.ct-prints]
from = "ct-1"
to = "printer"
services = ["jetdirect"]
clear = true # until the printer has a gateway
"#;

/// Enforces devices on trial.
fn on_trial(hospital: &Hospital, names: &[&str], weeks: bool) -> Result<Outcome> {
    let joined = names.join(",");
    let mut arguments = vec!["device", "mode"];
    arguments.extend(names);
    arguments.extend(["enforce", "--confirm-within", "15m", "--confirm", &joined]);
    arguments.extend(["--reason", "nothing would break", "--yes"]);
    if !weeks {
        arguments.push("--force");
    }
    hospital.operator.command(&arguments)
}

fn keep(hospital: &Hospital, names: &[&str]) -> Result<Outcome> {
    let mut arguments = vec!["device", "keep"];
    arguments.extend(names);
    arguments.extend(["--reason", "the ward has no complaints", "--yes"]);
    hospital.operator.ok(&arguments)
}

/// The scanner prints, or tries to.
fn print(hospital: &Hospital) -> Result<()> {
    ask(hospital.machine("ct-1"), hospital.machine("printer-1").at(PRINT_PORT), ATTEMPT)
}

fn mode_of(hospital: &Hospital, name: &str) -> Result<String> {
    let rows = listed(hospital)?;
    let row = rows.get(name).with_context(|| format!("{name} isn't listed"))?;
    Ok(row["mode"].as_str().context("it has no mode")?.to_owned())
}

/// The scanner, on trial, prints in vain, and is back in protect.
fn goes_back(hospital: &Hospital, weeks: bool) -> Result<String> {
    on_trial(hospital, &["ct-1"], weeks)?.ok()?;
    let begun = Instant::now();
    if print(hospital).is_ok() {
        bail!("it prints in enforce, though no rule says so");
    }
    wait::until_ok(PATIENCE, "the scanner to print again", || print(hospital))?;
    let took = begun.elapsed();
    let why = wait::until_ok(PATIENCE, "the reason to be known", || {
        let list = hospital.operator.ok(&["device", "list"])?.stdout;
        let said = list.lines().find_map(|line| line.split_once("BACK IN PROTECT: "));
        let (_, why) = said.with_context(|| list.clone())?;
        Ok(why.trim_end_matches(['|', ' ']).to_owned())
    })?;
    Ok(format!("it prints again after {:.1} s: {why}", took.as_secs_f64()))
}

impl Weeks {
    pub(super) fn enforce(&mut self) -> Option<()> {
        self.report.begin(self.act + 3, "Enforce, one device at a time");
        let weeks = self.weeks_pass();
        let (hospital, report, habits) = (&self.hospital, &mut self.report, &mut self.habits);
        let operator = &hospital.operator;
        let all: Vec<&str> = hospital.devices().map(|device| device.plan.name).collect();
        report.check(
            "weeks-protect",
            "all devices go to protect: what is allowed is tunnelled",
            || {
                operator.mode(&all, "protect", "simulated over five weeks")?;
                for place in 0..REPORTING.len() {
                    habits.one_more(place)?;
                }
                habits.day(hospital)?;
                Ok("everybody works on".into())
            },
        )?;
        report.check(
            "life-support",
            "a pump is refused until somebody says what happens while its gateway's agent is dead",
            || {
                let said = refused(&on_trial(hospital, &["pump-1"], weeks)?, 4, &["on-failure"])?;
                for pump in all.iter().filter(|name| name.starts_with("pump")) {
                    let choose = ["device", "on-failure", pump, "closed"];
                    let why = ["--reason", "it alarms on the spot", "--yes"];
                    operator.ok(&[&choose[..], &why].concat())?;
                }
                Ok(said)
            },
        )?;
        report.check(
            "trial",
            "a pump is enforced on trial, its alarms arrive, and it is kept",
            || {
                on_trial(hospital, &["pump-1"], weeks)?.ok()?;
                let place = REPORTING.iter().position(|name| *name == "pump-1");
                habits.one_more(place.context("it doesn't report")?)?;
                keep(hospital, &["pump-1"])?;
                let mode = mode_of(hospital, "pump-1")?;
                if mode != "enforce" {
                    bail!("it is in {mode}");
                }
                Ok("15 minutes to confirm in; confirmed".into())
            },
        )?;
        let back = report.check(
            "goes-back",
            "a scanner on trial can't print any more: its gateway takes it back to protect by itself",
            || goes_back(hospital, weeks),
        )?;
        let draft = &self.policy;
        report.check("answered", "the operator says that scanners print: one more rule", || {
            let text = std::fs::read_to_string(draft)? + PRINTING;
            std::fs::write(draft, &text)?;
            operator.apply(draft, "radiology prints")?;
            on_trial(hospital, &["ct-1"], weeks)?.ok()?;
            wait::until_ok(PATIENCE, "the scanner to print", || print(hospital))?;
            Ok("on trial again, it prints".into())
        })?;
        report.check("all-enforced", "all others follow; everybody works on", || {
            let others: Vec<&str> =
                all.iter().copied().filter(|name| !["pump-1", "ct-1"].contains(name)).collect();
            on_trial(hospital, &others, weeks)?.ok()?;
            for place in 0..REPORTING.len() {
                habits.one_more(place)?;
            }
            habits.day(hospital)?;
            let on_trial: Vec<&str> =
                all.iter().copied().filter(|name| *name != "pump-1").collect();
            keep(hospital, &on_trial)?;
            for name in &all {
                let mode = mode_of(hospital, name)?;
                if mode != "enforce" {
                    bail!("{name} is in {mode}");
                }
            }
            Ok(format!("{} devices in enforce", all.len()))
        })?;
        report.check(
            "plan-essential",
            "a plan that would cut off the monitors is refused",
            || {
                let text = std::fs::read_to_string(draft)?;
                let without = text.replace(&rule(&text, VITAL)?, "");
                let without = operator.write_policy("without.toml", &without)?;
                let outcome = operator.command(&["policy", "plan", &without])?;
                refused(&outcome, 4, &["It is essential"])
            },
        )?;
        let mut took = None;
        report.check("back-at-once", "one command takes a pump back, in seconds", || {
            let page = hospital.machine(FALLEN).at(super::habits::WEB_PORT);
            let laptop = hospital.machine("ws-1");
            if ask(laptop, page, Duration::from_secs(1)).is_ok() {
                bail!("a laptop without a gateway reads the page of an enforced pump");
            }
            let begun = Instant::now();
            operator.ok(&["device", "back", FALLEN, "--reason", "to look at its page", "--yes"])?;
            wait::until_ok(PATIENCE, "the pump's page", || ask(laptop, page, ATTEMPT))?;
            let after = begun.elapsed();
            took = Some(after);
            on_trial(hospital, &[FALLEN], weeks)?.ok()?;
            keep(hospital, &[FALLEN])?;
            Ok(format!("{} ms from the command to its page; enforced again", after.as_millis()))
        })?;
        if let Some(took) = took {
            report.figure("back_typed_to_page_ms", took.as_secs_f64() * 1000.0);
        }
        report.end(&format!("A scanner that lost its printer went back by itself: {back}."));
        Some(())
    }
}
