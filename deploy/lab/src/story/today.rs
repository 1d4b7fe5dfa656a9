//! Act 1: everything passes, and everything can be read and found.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Story, open_tcp};
use crate::capture::Capture;
use crate::clinical::{dicom, hl7};
use crate::hospital::Hospital;
use crate::scan::{self, Findings, Way};
use crate::wait;

/// The ways in which each device must be found.
const WAYS: [(&str, IsWay); 4] = [
    ("ARP", |way| *way == Way::Arp),
    ("ping", |way| *way == Way::Ping),
    ("TCP", |way| matches!(way, Way::Tcp(_))),
    ("UDP", |way| matches!(way, Way::Udp(_))),
];

type IsWay = fn(&Way) -> bool;

impl Story {
    pub(super) fn today(&mut self) {
        let hospital = &self.hospital;
        self.report.check("switched-on", "every device announces itself", || {
            for device in hospital.devices() {
                device.announce()?;
            }
            Ok("6 devices".into())
        });
        let started = self.start_monitor();
        let monitor = self.monitor.as_ref();
        self.report.check("hl7-today", "the monitor's HL7 messages are acknowledged", || {
            started?;
            let monitor = monitor.context("no monitor")?;
            wait::until(Duration::from_secs(60), "the first acknowledgement", || {
                (monitor.count().acknowledged > 0).then_some(())
            })?;
            Ok("acknowledged, one a second from now on".into())
        });
        let study = self.new_study(5);
        let (hospital, pacs) = (&self.hospital, &self.pacs);
        self.report.check(
            "study-today",
            "the CT stores a study on the PACS; on the campus anyone can read it",
            || {
                let study = study?;
                let capture = Capture::start(&hospital.campus, study.secrets()?)?;
                let (ct, to) = (&hospital.machine("ct-1").host, hospital.machine("pacs-1"));
                let to = (to.address(), dicom::STORE_PORT);
                let arrived = dicom::store(&hospital.programs, ct, to, &study, &pacs.directory);
                let seen = capture.stop()?;
                let arrived = arrived?;
                let readable = seen.secrets.len();
                if readable != study.files.len() + 2 {
                    bail!("the capture can't read all of it: {:?}", seen.secrets);
                }
                Ok(format!(
                    "{arrived} slices, {} kB, byte-identical; patient, UIDs and pictures readable",
                    study.size()? / 1000
                ))
            },
        );
        let engine = &self.engine;
        if crate::programs::find("mllp_send").is_some() {
            self.report.check("python-hl7-today", "python-hl7's mllp_send is heard too", || {
                let (pump, to) = (&hospital.machine("pump-1").host, hospital.machine("hl7-1"));
                hl7::send_with_python(pump, to.at(hl7::PORT), engine, "PYTHON-1")?;
                Ok("arrived".into())
            });
        }
        let mut first_scan = Findings::default();
        self.report.check(
            "scan-today",
            "an intruder's scan finds every device: by ARP, ping, TCP and UDP",
            || {
                let findings = scan_devices(hospital, None)?;
                for device in hospital.devices() {
                    let (address, name) = (device.address(), device.plan.name);
                    for (what, matches) in WAYS {
                        if !findings.by(address, matches) {
                            bail!("{name} not found by {what}: {}", findings.ways(address));
                        }
                    }
                }
                let devices = hospital.device_addresses().len();
                first_scan = findings;
                Ok(format!("{devices} of {devices} devices, each in every way"))
            },
        );
        self.first_scan = first_scan;
        let hospital = &self.hospital;
        self.report.check(
            "infection-today",
            "the infected air-handling controller reaches the PACS",
            || {
                let hvac = &hospital.machine("hvac-1").host;
                let to = (hospital.machine("pacs-1").address(), dicom::STORE_PORT);
                open_tcp(hvac, to, Duration::from_secs(15))?;
                Ok("connection open".into())
            },
        );
        self.end_act("The intruder's scan", "scan-today");
    }
}

/// The intruder's scan of all devices.
pub(super) fn scan_devices(hospital: &Hospital, known: Option<&Findings>) -> Result<Findings> {
    let legs = hospital.intruder_legs()?;
    let targets: Vec<Ipv4Addr> = hospital.device_addresses();
    scan::scan(&hospital.machine("intruder").host, &legs, &targets, known)
}
