//! A pump falls to an intruder, who reaches nothing but what the pump itself may, while its alarm still arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::habits::{REPORTING, WEB_PORT, ask};
use super::see::scan_from;
use super::{FALLEN, PATIENCE, Weeks};
use crate::clinical::hl7;
use crate::hospital::{Hospital, address};
use crate::scan::Way;
use crate::story::open_tcp;
use crate::wait;

/// What the pump may open: the central station, and the drug library, which has no gateway.
fn allowed(hospital: &Hospital) -> BTreeMap<Ipv4Addr, u16> {
    let at = |name: &str, port| (hospital.machine(name).address(), port);
    [at("central-1", hl7::PORT), at("drugs-1", WEB_PORT)].into()
}

/// Scans from the pump; an error if anything answers that it may not open.
fn scan(hospital: &Hospital) -> Result<String> {
    let findings = scan_from(hospital, hospital.machine(FALLEN))?;
    let allowed = allowed(hospital);
    // The gateway answers for the device's router, and nothing answers behind that.
    let router = address("ward", 1);
    for (found, ways) in &findings.found {
        let wanted = |way: &Way| match way {
            Way::Arp => *found == router,
            Way::Tcp(port) => allowed.get(found) == Some(port),
            Way::Nmap => allowed.contains_key(found),
            Way::Ping | Way::Udp(_) => false,
        };
        if !ways.iter().all(wanted) {
            bail!("{found} answered by {}", findings.ways(*found));
        }
    }
    for (wanted, port) in &allowed {
        open_tcp(&hospital.machine(FALLEN).host, (*wanted, *port), PATIENCE)
            .context("the pump may open it")?;
    }
    let machines = hospital.machines().count() - 1;
    Ok(format!(
        "{} of {machines} machines, at one port each: the central station and the drug library",
        allowed.len()
    ))
}

impl Weeks {
    pub(super) fn fall(&mut self) -> Option<()> {
        self.report.begin(self.act + 4, "A pump falls");
        let (hospital, report, habits) = (&self.hospital, &mut self.report, &mut self.habits);
        let operator = &hospital.operator;
        let place = REPORTING.iter().position(|name| *name == FALLEN)?;
        let before = habits.acknowledged();
        let seen = report.check(
            "fallen-scan",
            "the intruder on the pump scans all of the hospital: nothing answers but what the pump may open",
            || scan(hospital),
        )?;
        report.check(
            "fallen-alarms",
            "meanwhile its alarms arrive, and everybody else's reports",
            || {
                for place in 0..REPORTING.len() {
                    habits.one_more(place)?;
                }
                let after = habits.acknowledged();
                let fewest = after.iter().zip(&before).map(|(after, before)| after - before).min();
                Ok(format!("{} from each at least", fewest.unwrap_or_default()))
            },
        )?;
        report.check(
            "fallen-seen",
            "the attempts are listed as dropped, with the device's name",
            || {
                wait::until_ok(PATIENCE, "dropped attempts to be listed", || {
                    let flows = operator.json(&["flows", FALLEN, "--dropped"])?;
                    let tried: BTreeSet<&str> = flows
                        .as_array()
                        .context("no list")?
                        .iter()
                        .filter(|row| row["from"]["name"] == FALLEN)
                        .filter_map(|row| row["to"]["address"].as_str())
                        .collect();
                    let pacs = hospital.machine("pacs-1").address().to_string();
                    if !tried.contains(pacs.as_str()) || tried.len() < 5 {
                        bail!("{tried:?}");
                    }
                    Ok(format!("attempts at {} addresses", tried.len()))
                })
            },
        )?;
        report.check(
            "fallen-why",
            "`anteroom why` says why one of them came to nothing",
            || {
                let answer = operator.json(&["why", FALLEN, "pacs-1", "dicom"])?;
                let first: &Value = &answer["answers"][0];
                let verdict = first["verdict"].as_str().unwrap_or_default();
                if !verdict.starts_with("drop") {
                    bail!("{answer}");
                }
                let said = first["explanation"].as_str().context("no explanation")?;
                Ok(format!("{verdict}: {said}"))
            },
        )?;
        report.check(
            "weeks-quarantine",
            "quarantined, the pump has its alarms left, and the drug library no more",
            || {
                let why = ["--reason", "it scans", "--confirm", FALLEN, "--yes"];
                operator.ok(&[&["device", "quarantine", FALLEN][..], &why].concat())?;
                let library = hospital.machine("drugs-1").at(WEB_PORT);
                if ask(hospital.machine(FALLEN), library, Duration::from_secs(1)).is_ok() {
                    bail!("it still reaches the drug library");
                }
                let arrived = habits.one_more(place)?;
                Ok(format!(
                    "{arrived} of its alarms arrived by now; the drug library is out of reach"
                ))
            },
        )?;
        report.check("stale", "a review finds no rule that nothing used", || {
            let stale = operator.json(&["policy", "stale", "--over", "30d"])?;
            if stale["rules"].as_array().is_none_or(|rules| !rules.is_empty()) {
                bail!("{stale}");
            }
            Ok("each rule was used within 30 days".into())
        })?;
        report.check("export", "an auditor gets it all in one signed bundle", || {
            let file = operator.desk.join("audit.zip").display().to_string();
            operator.ok(&["export", "create", &file])?;
            let said = operator.ok(&["export", "verify", &file])?;
            Ok(said.stdout.lines().next().unwrap_or_default().to_owned())
        })?;
        let (sent, lost) = habits.finish();
        let seen_all = format!("{sent} sent, {lost} lost");
        report.check(
            "weeks-lost",
            "of all that monitors and pumps reported nothing is lost",
            || {
                if lost > 0 || sent == 0 {
                    bail!("{seen_all}");
                }
                Ok(seen_all.clone())
            },
        )?;
        report.end(&format!("The intruder found {seen}. Reports: {seen_all}."));
        Some(())
    }
}
