//! Proposing a policy from what was seen, and proving it against that.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::habits::{DAILY, ONCE, REPORTING};
use super::{FALLEN, PATIENCE, Weeks};
use crate::clinical::hl7;
use crate::hospital::{Hospital, SITE};
use crate::story::refused;
use crate::wait;

/// What is demanded of every policy of this hospital. The operator writes it behind what was suggested.
const TESTS: &str = r#"
[test.pumps-kept-from-the-pacs]
from = "pump-3"
to = "pacs-1"
services = ["dicom"]
expect = "deny"

[test.alarms-arrive]
from = "pump-3"
to = "central-1"
services = ["hl7"]
expect = "allow"
"#;

/// How the name of the rule begins by which monitors reach the central station, as it is suggested.
pub(super) const VITAL: &str = "patient-monitor";
/// The line of rules that let alarms pass.
const ALARMS: &str = "services = [\"hl7\"]\n";

/// Who opened what to whom, as a command tells it. The other end's name is a machine's, also where it has no gateway.
fn talks(hospital: &Hospital, rows: &Value) -> Result<BTreeSet<(String, String, u16)>> {
    let word = |row: &Value, key: &str| row[key].as_str().map(str::to_owned);
    let name = |end: String| {
        let machine = hospital.machines().find(|machine| machine.address().to_string() == end);
        machine.map_or(end, |machine| machine.plan.name.to_owned())
    };
    let talk = |row: &Value| {
        // As "tcp/80" or "http (tcp/80)".
        let service = word(row, "service")?;
        let port = service.split("tcp/").nth(1)?.trim_end_matches(')').parse().ok()?;
        Some((name(word(row, "from")?), name(word(row, "to")?), port))
    };
    let rows = rows.as_array().context("no list")?;
    rows.iter().map(|row| talk(row).with_context(|| format!("what is {row}?"))).collect()
}

fn once() -> BTreeSet<(String, String, u16)> {
    ONCE.map(|(from, to, port)| (from.to_owned(), to.to_owned(), port)).into()
}

/// The part of a policy that is the first rule whose name begins so.
pub(super) fn rule(text: &str, name: &str) -> Result<String> {
    let from = text.find(&format!("[rule.{name}")).with_context(|| format!("no {name}: {text}"))?;
    let rest = &text[from..];
    Ok(rest[..rest.find("\n\n").map_or(rest.len(), |end| end + 1)].to_owned())
}

/// Suggests a policy and judges it.
fn suggested(hospital: &Hospital, file: &str, weeks: bool) -> Result<String> {
    let said = hospital.operator.json(&["policy", "suggest", "--out", file])?;
    let text = std::fs::read_to_string(file)?;
    // A single day makes neither rules of their own nor infrastructure.
    if weeks {
        let questions = talks(hospital, &said["questions"])?;
        if questions != once() {
            bail!("asked about {questions:?} in {text}");
        }
        let clock = hospital.machine("clock-1").address().to_string();
        let servers = &said["infrastructure"];
        let is_clock = |row: &Value| row["kind"] == "ntp" && row["address"] == *clock;
        if !servers.as_array().is_some_and(|rows| rows.len() == 1 && is_clock(&rows[0])) {
            bail!("the infrastructure is {servers}, and not the time server {clock}, in {text}");
        }
    }
    let rules = said["rules"].as_array().context("no rules")?;
    let essential: BTreeSet<&str> = rules
        .iter()
        .filter(|rule| rule["essential"] == true)
        .filter_map(|rule| rule["name"].as_str())
        .collect();
    if weeks
        && essential
            != BTreeSet::from(["infusion-pump-to-central-1", "patient-monitor-to-central-1"])
    {
        bail!("essential are {essential:?} in {text}");
    }
    // The same history gives the same file.
    let again = hospital.operator.json(&["policy", "suggest"])?;
    if again["policy"] != text {
        bail!("{} the second time, and first {text}", again["policy"]);
    }
    if !weeks {
        // Nobody saw on a second day who gives the time, so the operator says it.
        let clock = hospital.machine("clock-1").address();
        std::fs::write(file, format!("{text}\n[infrastructure.{SITE}]\nntp = [\"{clock}\"]\n"))?;
    }
    Ok(format!(
        "{} rules out of {} edges, {} of them essential; {} questions",
        rules.len(),
        said["edges"],
        essential.len(),
        said["questions"].as_array().map_or(0, Vec::len)
    ))
}

/// How far a device reaches today, and under a draft: pairs of a member and a service.
fn reach(hospital: &Hospital, device: &str, draft: &str) -> Result<(u64, u64)> {
    let blast = hospital.operator.json(&["blast", device, "--policy", draft])?;
    let radius = &blast["devices"][0]["radius"];
    let reached = |place: usize| radius[place]["reached"].as_u64();
    let (today, then) = reached(0).zip(reached(2)).with_context(|| blast.to_string())?;
    Ok((today, then))
}

impl Weeks {
    pub(super) fn propose(&mut self) -> Option<()> {
        self.report.begin(self.act + 1, "Propose");
        let weeks = self.weeks_pass();
        let (hospital, report) = (&self.hospital, &mut self.report);
        let draft = hospital.operator.desk.join("suggested.toml").display().to_string();
        let seen = report.check(
            "suggest",
            "a policy is suggested: what reports around the clock is essential, the time server is found, what was seen once is a question",
            || suggested(hospital, &draft, weeks),
        )?;
        let mut radius = None;
        report.check(
            "blast",
            "under the suggestion a pump reaches its central station alone",
            || {
                let (today, then) = reach(hospital, FALLEN, &draft)?;
                radius = Some((today, then));
                if then != 1 || today < 20 {
                    bail!("{today} pairs today, {then} then");
                }
                Ok(format!("{today} pairs of a device and a service today, {then} then"))
            },
        )?;
        if let Some((today, then)) = radius {
            report.figure("pump_reaches_pairs_today", today);
            report.figure("pump_reaches_pairs_under_the_policy", then);
        }
        report.end(&format!("{seen}. A pump reaches 1 pair instead of {}.", radius?.0));
        self.policy = draft;
        Some(())
    }

    pub(super) fn prove(&mut self) -> Option<()> {
        self.report.begin(self.act + 2, "Prove");
        let weeks = self.weeks_pass();
        let (hospital, report, draft) = (&self.hospital, &mut self.report, &self.policy);
        let operator = &hospital.operator;
        let seen = report.check(
            "simulate",
            "of all that was recorded it would break what was seen once, and nothing that is essential",
            || {
                let simulate = ["--json", "policy", "simulate", draft, "--over", "60d"];
                let outcome = operator.command(&simulate)?;
                let said = outcome.json()?;
                let broken = talks(hospital, &said["broken"])?;
                if outcome.code != 4 || broken != once() {
                    bail!("{outcome}");
                }
                Ok(format!("2 of {} edges", said["edges"]))
            },
        )?;
        report.check("tests", "the operator writes tests behind it, which each plan does", || {
            let mut text = std::fs::read_to_string(draft)?;
            if !weeks {
                // Nobody saw what goes on around the clock, so the operator says it.
                text = text.replace(ALARMS, &format!("{ALARMS}essential = true\n"));
            }
            text.push_str(TESTS);
            std::fs::write(draft, &text)?;
            operator.ok(&["policy", "check", draft])?;
            let open = text + "\n[rule.too-much]\nfrom = \"pump-3\"\nto = \"pacs-1\"\nservices = [\"dicom\"]\n";
            let open = operator.write_policy("too-much.toml", &open)?;
            let outcome = operator.command(&["policy", "plan", &open])?;
            refused(&outcome, 4, &["It expects deny", "pumps-kept-from-the-pacs"])
        })?;
        report.check(
            "apply",
            "it is planned and applied; all devices are observed still",
            || {
                operator.apply(draft, "learnt from five weeks")?;
                Ok("in force at every gateway".into())
            },
        )?;
        report.check("would-drop-live", "what the policy in force would drop is listed", || {
            wait::until_ok(PATIENCE, "both to be listed", || {
                let flows = operator.json(&["flows", "--would-drop"])?;
                let listed = |(from, to, port): (&str, &str, u16)| {
                    let ends = [from, to].map(|end| hospital.machine(end).address().to_string());
                    flows.as_array().into_iter().flatten().any(|row| {
                        row["from"]["address"] == ends[0]
                            && row["to"]["address"] == ends[1]
                            && row["port"] == port
                    })
                };
                let reports = REPORTING.map(|name| (name, "central-1", hl7::PORT));
                let wanted = DAILY.into_iter().chain(reports).filter(|talk| listed(*talk));
                let wanted: Vec<_> = wanted.collect();
                if !wanted.is_empty() || !ONCE.into_iter().all(listed) {
                    bail!("{wanted:?} are among {flows}");
                }
                Ok(format!("{} edges, none of what is daily", ONCE.len()))
            })
        })?;
        report.end(&format!("It would break {seen}: each was seen once, none is essential."));
        Some(())
    }
}
