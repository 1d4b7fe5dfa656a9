//! A day in the hospital, in five acts: today's network, what would break, the hospital protected, failures and the way
//! back, and the table of all checks.

mod enforce;
mod failures;
mod protect;
pub mod report;
mod today;

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::anteroom::Outcome;
use crate::clinical::dicom::{Archive, Orthanc, RETRIEVE_PORT, STORE_PORT};
use crate::clinical::hl7::{self, Engine, Monitor};
use crate::clinical::study::Study;
use crate::hospital::Hospital;
use crate::programs::Programs;
use crate::scan::Findings;

pub use failures::{BACK_WITHIN, restart_gateway, revoke};
pub use protect::{
    approve_all, confirm, confirm_all, device_names, only_ciphertext, wait_for_inventory,
};
pub use report::Report;

/// The policy that the lab's operator applies.
pub const POLICY: &str = include_str!("policy.toml");

/// How the PACS opens connections back to the CT.
enum Returning {
    /// Orthanc does, asked by DCMTK's movescu.
    Move(Orthanc),
    /// dicom-rs does; the CT listens.
    Store(Archive),
}

/// Everything that the acts share.
pub struct Story {
    /// The hospital.
    pub hospital: Hospital,
    /// What was checked.
    pub report: Report,
    engine: Engine,
    monitor: Option<Monitor>,
    pacs: Archive,
    archive: Archive,
    returning: Returning,
    /// What the intruder found in the first act.
    first_scan: Findings,
    studies: u32,
}

impl Story {
    /// Raises the hospital: machines, clinical programs, and the gateways as wires.
    ///
    /// # Errors
    /// If something doesn't come up: then there is no story to tell.
    pub fn raise(
        programs: Programs,
        directory: &Path,
        logs: &Path,
        mut report: Report,
    ) -> Result<Self> {
        report.begin(1, "Today's hospital");
        let mut hospital =
            Hospital::build(programs, directory, logs).context("raising the hospital")?;
        let programs = hospital.programs.clone();
        let store = |name: &str, port, folder: &str| {
            Archive::start(
                &programs,
                &hospital.machine(name).host,
                port,
                &directory.join(folder),
                &logs.join(format!("{folder}.log")),
            )
        };
        let pacs = store("pacs-1", STORE_PORT, "pacs")?;
        let archive = store("archive-1", STORE_PORT, "archive")?;
        let orthanc = match crate::programs::find("movescu") {
            Some(_) => Orthanc::start(
                &hospital.machine("pacs-1").host,
                hospital.machine("ct-1").address(),
                &directory.join("orthanc"),
                &logs.join("orthanc.log"),
            )?,
            None => None,
        };
        let returning = match orthanc {
            Some(orthanc) => Returning::Move(orthanc),
            None => Returning::Store(store("ct-1", RETRIEVE_PORT, "ct-inbox")?),
        };
        let engine = Engine::start(&hospital.machine("hl7-1").host, hl7::PORT)?;
        let begun = report.check(
            "gateways-in-the-wire",
            "three gateways stand in the wire; they know no controller and are wires",
            || {
                hospital.start_wires()?;
                Ok("3 agents running, none enrolled".into())
            },
        );
        if begun.is_none() {
            bail!("the gateways didn't start, so there is no story to tell");
        }
        Ok(Self {
            hospital,
            report,
            engine,
            monitor: None,
            pacs,
            archive,
            returning,
            first_scan: Findings::default(),
            studies: 0,
        })
    }

    /// Plays all acts. What isn't as expected is in the report.
    pub fn play(&mut self) {
        self.today();
        self.protect();
        self.enforce();
        self.failures();
        self.last_act();
    }

    /// Ends the count of clinical messages.
    fn last_act(&mut self) {
        self.report.begin(5, "The count");
        let Some(monitor) = self.monitor.take() else { return };
        let start = std::time::Instant::now();
        let count = monitor.finish(&self.engine, Duration::from_secs(60));
        let seen = format!(
            "{} sent, {} acknowledged, {} lost; {} sent again, {} reconnections, slowest {} ms",
            count.sent,
            count.acknowledged,
            count.lost,
            count.repeated,
            count.reconnects,
            count.slowest_ms
        );
        self.report.figure("hl7", serde_json::to_value(&count).unwrap_or_default());
        let good = count.lost == 0 && count.sent > 0;
        let result = if good { Ok(seen.clone()) } else { Err(anyhow::anyhow!(seen.clone())) };
        let expected = "the monitor sent HL7 once a second through all of it; 0 messages lost";
        self.report.record("messages-lost", expected, result, start.elapsed());
        self.report.end(&format!("HL7: {seen}"));
    }

    /// Ends all programs, and gives back what was checked.
    #[must_use]
    pub fn end(self) -> Report {
        self.report
    }

    fn start_monitor(&mut self) -> Result<()> {
        let to = self.hospital.machine("hl7-1").at(hl7::PORT);
        let from = &self.hospital.machine("monitor-1").host;
        self.monitor = Some(Monitor::start(from, to, Duration::from_secs(1))?);
        Ok(())
    }

    /// A new study, whose files lie in the CT's outbox.
    fn new_study(&mut self, slices: u16) -> Result<Study> {
        self.studies += 1;
        let outbox = self.hospital.directory.join(format!("ct-outbox/{}", self.studies));
        Study::write(&outbox, self.studies, slices)
    }

    /// Ends an act with what one of its checks saw, and the count of messages.
    fn end_act(&self, what: &str, check: &str) {
        let count = self.monitor.as_ref().map(Monitor::count).unwrap_or_default();
        let seen = self.report.seen(check).unwrap_or("nothing was seen");
        self.report.end(&format!(
            "{what}: {seen}. HL7 so far: {} sent, {} acknowledged.",
            count.sent, count.acknowledged
        ));
    }
}

/// Opens a TCP connection from a host, as a program there would.
///
/// # Errors
/// If it can't be opened within `limit`.
pub fn open_tcp(
    host: &crate::topology::Host,
    to: (Ipv4Addr, u16),
    limit: Duration,
) -> Result<TcpStream> {
    let address = std::net::SocketAddr::from(to);
    host.enter(|| TcpStream::connect_timeout(&address, limit))?
        .with_context(|| format!("{} connecting to {address}", host.name()))
}

/// An error unless `outcome` failed with this exit code and said something that contains each of `words`, without a panic.
///
/// # Errors
/// What was otherwise.
pub fn refused(outcome: &Outcome, code: i32, words: &[&str]) -> Result<String> {
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    if said.contains("panicked at") {
        bail!("a panic: {outcome}");
    }
    if outcome.code != code {
        bail!("exit code {} instead of {code}: {outcome}", outcome.code);
    }
    for word in words {
        if !said.contains(word) {
            bail!("nothing about {word:?}: {outcome}");
        }
    }
    let telling = |line: &&str| words.first().is_none_or(|word| line.contains(word));
    let line = said.lines().find(telling).or_else(|| said.lines().next());
    Ok(line.unwrap_or_default().trim().to_owned())
}
