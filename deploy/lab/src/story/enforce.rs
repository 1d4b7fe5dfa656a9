//! Act 3: what isn't allowed is dropped, and the devices can't be found any more.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::protect::device_names;
use super::today::scan_devices;
use super::{Returning, Story, open_tcp, refused};
use crate::capture::Capture;
use crate::clinical::hl7::Monitor;
use crate::clinical::study::Study;
use crate::clinical::{dicom, hl7};
use crate::hospital::{Hospital, Machine};
use crate::ping;
use crate::topology::Host;
use crate::wait;

impl Story {
    pub(super) fn enforce(&mut self) {
        self.report.begin(3, "The hospital protected");
        let hospital = &self.hospital;
        let names = device_names(hospital);
        self.report.check(
            "enforce-too-soon",
            "enforce is refused while too little was watched, with the reasons",
            || {
                let mut arguments = vec!["device", "mode"];
                arguments.extend(&names);
                let joined = names.join(",");
                arguments.extend(["enforce", "--reason", "hurry", "--yes", "--confirm", &joined]);
                refused(&hospital.operator.command(&arguments)?, 4, &["of the 14"])
            },
        );
        self.report.check(
            "mode-enforce",
            "all devices go to enforce, with --force and a reason",
            || {
                hospital.operator.mode(&names, "enforce", "the lab's day is short")?;
                Ok("acknowledged by every gateway".into())
            },
        );
        let first_scan = &self.first_scan;
        self.report.check(
            "scan-enforced",
            "the same scan finds no device, though the intruder remembers their Ethernet addresses",
            || {
                let findings = scan_devices(hospital, Some(first_scan))?;
                let found: Vec<String> = hospital
                    .devices()
                    .filter(|device| findings.found.contains_key(&device.address()))
                    .map(|device| {
                        format!("{} by {}", device.plan.name, findings.ways(device.address()))
                    })
                    .collect();
                if !found.is_empty() {
                    bail!("found: {}", found.join("; "));
                }
                Ok("0 of 6 devices: no ARP, ping, TCP, UDP".into())
            },
        );
        self.report.check(
            "infection-enforced",
            "the infected air-handling controller reaches no device",
            || {
                let hvac = &hospital.machine("hvac-1").host;
                std::thread::scope(|scope| {
                    let attempts: Vec<_> = hospital
                        .devices()
                        .map(|device| scope.spawn(move || silent_to(hvac, device)))
                        .collect();
                    attempts.into_iter().try_for_each(|attempt| match attempt.join() {
                        Ok(result) => result,
                        Err(panic) => std::panic::resume_unwind(panic),
                    })
                })?;
                Ok("6 devices silent to ping and TCP".into())
            },
        );
        self.study_through_the_tunnel("study-enforced");
        self.back_to_the_ct();
        self.reach_the_archive();
        self.nothing_in_the_clear();
        let hospital = &self.hospital;
        self.report.check("why", "`anteroom why` explains a drop, with the next step", || {
            let source = hospital.machine("hvac-1").address().to_string();
            wait::until_ok(Duration::from_secs(60), "the drop to be known", || {
                let answer = hospital.operator.json(&["why", &source, "pacs-1", "dicom"])?;
                let text = answer.to_string();
                if !text.contains("drop(") {
                    bail!("no drop in {text}");
                }
                let first = &answer["answers"][0];
                let said = first["explanation"].as_str().context("no explanation")?;
                Ok(format!("{}: {said}", first["verdict"].as_str().unwrap_or_default()))
            })
        });
        self.end_act("The same scan", "scan-enforced");
    }

    /// The PACS opens a connection to the CT.
    fn back_to_the_ct(&mut self) {
        let study = self.new_study(3);
        let hospital = &self.hospital;
        let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
        if let Returning::Move(orthanc) = &self.returning {
            self.report.check(
                "back-to-ct",
                "the CT asks for a study (C-MOVE), and the PACS opens a connection back to it",
                || {
                    let study = study?;
                    let to = (pacs.address(), dicom::ORTHANC_PORT);
                    dicom::send(&hospital.programs, &ct.host, to, &study)
                        .with_context(|| orthanc.tail())?;
                    let folder = hospital.directory.join("ct-retrieved");
                    let came = dicom::retrieve(&ct.host, pacs.address(), &study, &folder)?;
                    let came = came.context("movescu was there a moment ago")?;
                    Ok(format!("{came} slices came back from Orthanc, byte-identical"))
                },
            );
        } else if let Returning::Store(inbox) = &self.returning {
            self.report.check(
                "back-to-ct",
                "the PACS opens a connection back to the CT (C-STORE)",
                || {
                    let study = study?;
                    let to = (ct.address(), dicom::RETRIEVE_PORT);
                    let came =
                        dicom::store(&hospital.programs, &pacs.host, to, &study, &inbox.directory)?;
                    Ok(format!("{came} slices came back, byte-identical"))
                },
            );
        }
    }

    /// The CT reaches the archive that has no gateway.
    fn reach_the_archive(&mut self) {
        let study = self.new_study(2);
        let (hospital, archive) = (&self.hospital, &self.archive);
        self.report.check(
            "external",
            "the CT still reaches the archive without a gateway, shown as in the clear",
            || {
                let study = study?;
                let (ct, to) = (hospital.machine("ct-1"), hospital.machine("archive-1"));
                let capture = Capture::start(&hospital.campus, study.secrets()?)?;
                let target = (to.address(), dicom::STORE_PORT);
                let sent =
                    dicom::store(&hospital.programs, &ct.host, target, &study, &archive.directory);
                let seen = capture.stop()?;
                let arrived = sent?;
                if !seen.between(ct.address(), to.address()).contains_key("tcp") {
                    bail!("it wasn't in the clear: {:?}", seen.kinds);
                }
                wait::until_ok(Duration::from_secs(60), "the flow to be listed", || {
                    let flows = hospital.operator.json(&["flows", "ct-1", "--clear"])?.to_string();
                    let address = format!("\"{}\"", to.address());
                    if !flows.contains(&address) {
                        bail!("no {address} in {flows}");
                    }
                    Ok(format!("{arrived} slices; listed under `flows --clear`"))
                })
            },
        );
    }

    /// While a study and messages go on, no IP packet of a device is on the campus.
    fn nothing_in_the_clear(&mut self) {
        let study = self.new_study(2);
        let (hospital, pacs, monitor) = (&self.hospital, &self.pacs, self.monitor.as_ref());
        self.report.check(
            "nothing-in-the-clear",
            "with studies and messages under way, no device's packet is on the campus",
            || {
                let study = study?;
                let capture = Capture::start(&hospital.campus, study.secrets()?)?;
                let result = traffic(hospital, monitor, &study, &pacs.directory);
                let seen = capture.stop()?;
                result?;
                for device in hospital.devices() {
                    let about = seen.about(device.address());
                    if !about.is_empty() {
                        bail!("{} was seen on the campus: {about:?}", device.plan.name);
                    }
                }
                if !seen.secrets.is_empty() {
                    bail!("readable: {:?}", seen.secrets);
                }
                Ok(format!("{} frames: {:?}", seen.frames, seen.kinds))
            },
        );
    }
}

/// An error if a device answers a host's pings or takes its connections.
fn silent_to(host: &Host, device: &Machine) -> Result<()> {
    let series = ping::ping(host, device.address(), 2, Duration::from_millis(50))?;
    if series.received > 0 {
        bail!("{} answered its ping", device.plan.name);
    }
    for port in [dicom::STORE_PORT, hl7::PORT, dicom::RETRIEVE_PORT] {
        if open_tcp(host, (device.address(), port), Duration::from_millis(300)).is_ok() {
            bail!("it opened {}:{port}", device.plan.name);
        }
    }
    Ok(())
}

/// A study and at least one more HL7 message.
fn traffic(
    hospital: &Hospital,
    monitor: Option<&Monitor>,
    study: &Study,
    directory: &Path,
) -> Result<()> {
    let (ct, to) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
    let acknowledged = || monitor.map_or(0, |monitor| monitor.count().acknowledged);
    let before = acknowledged();
    let target = (to.address(), dicom::STORE_PORT);
    dicom::store(&hospital.programs, &ct.host, target, study, directory)?;
    wait::until(Duration::from_secs(60), "another HL7 message", || {
        (acknowledged() > before).then_some(())
    })?;
    Ok(())
}
