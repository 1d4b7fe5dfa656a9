//! Watching: what devices are taken for, and who talks to whom.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::habits::{DAILY, Habits, ONCE, REPORTING, WORKDAYS};
use super::{DAYS, FALLEN, PATIENCE, Weeks, hours, quiet_days};
use crate::clinical::hl7;
use crate::hospital::{Hospital, Machine};
use crate::scan::{self, Findings, Leg};
use crate::story::{approve_all, refused, wait_for_inventory};
use crate::wait;

/// What an intruder finds who has got hold of a device, and uses its own interface.
pub(super) fn scan_from(hospital: &Hospital, device: &Machine) -> Result<Findings> {
    let leg =
        Leg { interface: "eth0".into(), address: device.address(), mac: device.host.mac("eth0")? };
    let others = hospital.machines().map(Machine::address);
    let targets: Vec<Ipv4Addr> = others.filter(|other| *other != device.address()).collect();
    scan::scan(&device.host, &[leg], &targets, None)
}

/// The devices of [`Hospital`] as `anteroom device list` has them, by name or, before they have one, by Ethernet address.
pub(super) fn listed(hospital: &Hospital) -> Result<BTreeMap<String, Value>> {
    let list = hospital.operator.json(&["device", "list"])?;
    let rows = list.as_array().context("no list")?.iter();
    Ok(rows
        .map(|row| {
            let name = row["name"].as_str().or_else(|| row["mac"].as_str()).unwrap_or_default();
            (name.to_owned(), row.clone())
        })
        .collect())
}

/// Waits until the gateways of both ends have told of `flows` flows of each of these, at least.
fn recorded(hospital: &Hospital, wanted: &[(&str, &str, u16)], flows: u64) -> Result<usize> {
    wait::until_ok(PATIENCE, "the traffic to be recorded", || {
        let rows = hospital.operator.json(&["flows"])?;
        let rows = rows.as_array().context("no list of flows")?;
        for (from, to, port) in wanted {
            let ends = [hospital.machine(from), hospital.machine(to)];
            let at = |row: &Value, end: &str, machine: &Machine| {
                row[end]["address"] == machine.address().to_string()
            };
            let of = |row: &&Value| {
                at(row, "from", ends[0]) && at(row, "to", ends[1]) && row["port"] == *port
            };
            let mut gateways: BTreeMap<String, u64> = BTreeMap::new();
            for row in rows.iter().filter(of) {
                *gateways.entry(row["gateway"].to_string()).or_default() +=
                    row["flows"].as_u64().unwrap_or_default();
            }
            let told = gateways.values().filter(|told| **told >= flows).count();
            if told != ends.iter().filter(|end| end.plan.is_device()).count() {
                bail!("{from} to {to} at {port}: {gateways:?} of {flows} flows");
            }
        }
        Ok(rows.len())
    })
}

impl Weeks {
    pub(super) fn see(&mut self) -> Option<()> {
        let hospital = &mut self.hospital;
        self.report.check("flat", "today, whoever gets hold of a pump finds everybody", || {
            hospital.start_wires()?;
            let findings = scan_from(hospital, hospital.machine(FALLEN))?;
            let others = || hospital.machines().filter(|machine| machine.plan.name != FALLEN);
            for machine in others() {
                if !findings.found.contains_key(&machine.address()) {
                    bail!("{} wasn't found: {findings:?}", machine.plan.name);
                }
            }
            Ok(format!("{0} of {0} machines", others().count()))
        })?;
        self.report.check(
            "weeks-begin",
            "the gateways enrol, and are approved by their fingerprints; they watch",
            || {
                begin(hospital)?;
                approve_all(hospital)?;
                for device in hospital.devices() {
                    device.announce()?;
                }
                wait_for_inventory(hospital)
            },
        )?;
        let (hospital, habits) = (&self.hospital, &mut self.habits);
        self.report.check("first-day", "the hospital works, and is recorded", || {
            habits.day(hospital)?;
            let edges = recorded(hospital, &DAILY, 1)?;
            Ok(format!("{edges} edges after the first day"))
        })?;
        self.report.check(
            "recognised",
            "devices are recognised by what they let be seen of themselves; nobody probes them",
            || recognised(hospital),
        )?;
        let report = &mut self.report;
        report.check(
            "weeks-confirm",
            "the operator names them; what they were recognised as is taken as their labels",
            || confirm(hospital),
        )?;
        report.check(
            "enforce-unwatched",
            "enforce is refused for what was watched for a day",
            || {
                let enforce = ["device", "mode", "pump-1", "enforce", "--confirm", "pump-1"];
                let why = ["--reason", "hurry", "--yes"];
                let outcome = hospital.operator.command(&[&enforce[..], &why].concat())?;
                refused(&outcome, 4, &["of the 14"])
            },
        )?;
        if self.weeks_pass() {
            self.days_pass()?;
        } else {
            let (hospital, habits) = (&self.hospital, &mut self.habits);
            self.report.check("second-day", "the hospital works on", || {
                habits.day(hospital)?;
                recorded(hospital, &DAILY, 2).map(|edges| format!("{edges} edges"))
            })?;
        }
        let hospital = &self.hospital;
        let report = &mut self.report;
        report.check(
            "once",
            "on the last day a scanner prints, and a technician looks at a pump's page",
            || {
                Habits::once(hospital)?;
                recorded(hospital, &ONCE, 1).map(|edges| format!("{edges} edges"))
            },
        )?;
        let map = report.check(
            "map",
            "the map shows who talks to whom, patient data in the clear",
            || {
                let draw = ["map", "--over", "60d"];
                let map = hospital.operator.ok(&draw)?.stdout;
                let picture = hospital.logs.join("map.svg").display().to_string();
                let drawn = ["--format", "svg", "--out", &picture];
                hospital.operator.ok(&[&draw[..], &drawn].concat())?;
                for words in ["patient-monitor", "infusion-pump", "patient data in the clear"] {
                    if !map.contains(words) {
                        bail!("nothing of {words:?} in {map}");
                    }
                }
                Ok(map)
            },
        )?;
        report.line(&format!(
            "     $ anteroom map\n       {}\n     The same as a picture: {}",
            map.trim_end().replace('\n', "\n       "),
            hospital.logs.join("map.svg").display()
        ));
        let weeks = self.weeks_pass();
        let covered = self.report.check(
            "coverage",
            "how much was seen of what is expected of each device: enough, of two weeks and more in five",
            || coverage(&self.hospital, weeks),
        )?;
        let recognised = self.report.seen("recognised").unwrap_or_default();
        self.report.end(&format!("Recognised: {recognised}. Seen of what is expected: {covered}."));
        Some(())
    }

    /// The other days.
    fn days_pass(&mut self) -> Option<()> {
        let mut done = 1;
        for (day, days) in DAYS.iter().enumerate() {
            let begun = Instant::now();
            let result = self.day_passes(day, &mut done);
            let id = format!("day-{}", DAYS[0].abs_diff(*days) + 1);
            let expected =
                "monitors and pumps report around the clock, people work; all of it is recorded";
            self.report.record(&id, expected, result, begun.elapsed())?;
        }
        Some(())
    }

    /// Plays one of [`DAYS`]; what is daily is done at its end, for the `done`th time.
    fn day_passes(&mut self, day: usize, done: &mut u64) -> Result<String> {
        let before: u64 = self.habits.acknowledged().iter().sum();
        for quiet in quiet_days(day, Timestamp::now().to_zoned(TimeZone::UTC).date()) {
            self.pass_to(quiet * 24)?;
        }
        // The first hour of all is over.
        for hour in hours(day).skip(usize::from(day == 0)) {
            self.pass_to(hour)?;
        }
        if WORKDAYS.contains(&day) {
            *done += 1;
            self.habits.day(&self.hospital)?;
            recorded(&self.hospital, &DAILY, *done)?;
        }
        let after: u64 = self.habits.acknowledged().iter().sum();
        Ok(format!("{} reports of monitors and pumps arrived", after - before))
    }

    /// Lets time pass up to another hour, at which monitors and pumps report.
    fn pass_to(&mut self, hour: i64) -> Result<()> {
        let then = Timestamp::now() + SignedDuration::from_hours(hour);
        self.set_clocks(hour)?;
        // Gateways go by the controller's clock.
        self.hospital.controller.stop()?;
        self.hospital.controller.start()?;
        let (operator, central) = (&self.hospital.operator, self.hospital.machine("central-1"));
        let address = central.address().to_string();
        let what = format!("all reports of {then} to be recorded");
        wait::until_ok(PATIENCE, &what, || {
            let rows = operator.json(&["flows"])?;
            let rows = rows.as_array().context("no list of flows")?.iter();
            let of = |row: &&Value| row["to"]["address"] == address && row["port"] == hl7::PORT;
            let mut recent = 0;
            for row in rows.filter(of) {
                let last: Timestamp = row["last_seen"].as_str().unwrap_or_default().parse()?;
                recent += usize::from(last >= then);
            }
            // Both ends' gateways tell.
            if recent < 2 * REPORTING.len() {
                bail!("{recent} of {}", 2 * REPORTING.len());
            }
            Ok(())
        })
    }
}

/// Makes the controller, and has every gateway enrol. What gateways see is told four times a second.
fn begin(hospital: &mut Hospital) -> Result<()> {
    let code = hospital.controller.init()?;
    let file = hospital.controller.directory.join("controller.toml");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let often = text.replace("# report_every_ms = 2000", "report_every_ms = 250");
    if often == text {
        bail!("nothing about reports in {}", file.display());
    }
    std::fs::write(&file, often)?;
    hospital.controller.start()?;
    hospital.operator.claim(&code)?;
    hospital.enrol_gateways()
}

/// Waits until what says what it is, is recognised: pumps and monitors, by their names. The scanners here send images and take some, as an
/// archive does, and ask for no worklist: nothing tells which they are.
fn recognised(hospital: &Hospital) -> Result<String> {
    wait::until_ok(PATIENCE, "the devices to be recognised", || {
        let rows = listed(hospital)?;
        let mut seen = BTreeMap::new();
        let known = ["infusion-pump", "patient-monitor"];
        for device in hospital.devices().filter(|device| known.contains(&device.plan.class)) {
            let row = rows.get(&device.plan.mac()).context("a device isn't listed")?;
            let class = &row["claims"]["class"];
            if class["value"] != device.plan.class {
                bail!("{} is taken for {class}", device.plan.name);
            }
            let sure = class["confidence"].as_u64().context("how sure isn't said")?;
            let (count, least) = seen.entry(device.plan.class).or_insert((0_u32, 100));
            *count += 1;
            *least = sure.min(*least);
        }
        let words =
            seen.iter().map(|(class, (count, sure))| format!("{count} × {class}, {sure} % sure"));
        Ok(words.collect::<Vec<_>>().join("; "))
    })
}

/// Names all devices.
fn confirm(hospital: &Hospital) -> Result<String> {
    for device in hospital.devices() {
        let plan = device.plan;
        let (mac, class) = (plan.mac(), format!("class={}", plan.class));
        let address = device.address().to_string();
        let router = crate::hospital::address(plan.subnet, 1).to_string();
        let mut arguments = vec!["device", "confirm", &mac, "--name", plan.name];
        arguments.extend(["--address", &address, "--prefix-len", "24", "--router", &router]);
        if super::machines::calls_itself(plan.name).is_some() {
            arguments.push("--recognised");
        } else {
            arguments.extend(["--label", &class]);
        }
        arguments.extend(["--reason", "read off the rating plate", "--yes"]);
        hospital.operator.ok(&arguments)?;
    }
    let names: Vec<&str> = hospital.devices().map(|device| device.plan.name).collect();
    let pumps: Vec<&str> = names.iter().copied().filter(|name| name.starts_with("pump")).collect();
    let surface = ["criticality=life-support", "owner=Ward 3"];
    for pump in &pumps {
        let label = ["device", "label", pump, surface[0], surface[1]];
        hospital.operator.ok(&[&label[..], &["--reason", "inventory", "--yes"]].concat())?;
    }
    let rows = listed(hospital)?;
    for device in hospital.devices() {
        let label =
            &rows.get(device.plan.name).context("a device isn't listed")?["labels"]["class"];
        if label != device.plan.class {
            bail!("{} has the class {label}", device.plan.name);
        }
    }
    Ok(format!("{} devices; {} are life support", names.len(), pumps.len()))
}

/// How much was seen of what is expected of each device: enough of all, where weeks have passed.
fn coverage(hospital: &Hospital, weeks: bool) -> Result<String> {
    let rows = listed(hospital)?;
    let mut least = 100;
    for device in hospital.devices() {
        let coverage = &rows.get(device.plan.name).context("a device isn't listed")?["coverage"];
        if coverage["enough"] != weeks {
            bail!("{}: {coverage}", device.plan.name);
        }
        least = coverage["percent"].as_u64().context("no percentage")?.min(least);
    }
    Ok(format!("of each of {} devices {least} % at least", hospital.devices().count()))
}
