//! A gateway burns out at night: its cables are patched through, the study arrives, a spare takes its place.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anteroom_e2e::{Fixture, Stage, dicom_programs, fixture};
use anteroom_lab::capture::{Capture, Seen};
use anteroom_lab::clinical::dicom::{self, Archive, STORE_PORT};
use anteroom_lab::clinical::study::Study;
use anteroom_lab::hospital::Hospital;
use anteroom_lab::story::{open_tcp, refused};
use anteroom_lab::wait;
use anyhow::{Context as _, Result, ensure};

const WHY: [&str; 3] = ["--reason", "power supply burnt", "--yes"];
const SOON: Duration = Duration::from_secs(60);

/// How long each step took the machines; a person's walking and typing comes on top.
struct Clock {
    last: Instant,
    lines: Vec<String>,
}

impl Clock {
    fn start() -> Self {
        Self { last: Instant::now(), lines: Vec::new() }
    }

    fn step(&mut self, what: &str) {
        self.lines.push(format!("{:7.2} s  {what}", self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }

    /// Work of the test's own doesn't count.
    fn skip(&mut self) {
        self.last = Instant::now();
    }

    fn print(&self, title: &str) {
        println!("{title}\n{}", self.lines.join("\n"));
    }
}

/// The archive that takes studies: dicom-rs' where it is installed, else one that takes the same files as bytes.
enum Pacs {
    Dicom(Archive),
    Bytes(PathBuf),
}

impl Pacs {
    fn start(fixture: &Fixture) -> Self {
        let hospital = &fixture.hospital;
        let host = &hospital.machine("pacs-1").host;
        let directory = fixture.directory().join("pacs");
        if dicom_programs(&hospital.programs, "the study goes as plain bytes") {
            let log = hospital.logs.join("pacs.log");
            let pacs = Archive::start(&hospital.programs, host, STORE_PORT, &directory, &log);
            return Self::Dicom(pacs.unwrap());
        }
        std::fs::create_dir_all(&directory).unwrap();
        let listener = host.enter(|| TcpListener::bind(("0.0.0.0", STORE_PORT))).unwrap().unwrap();
        let folder = directory.clone();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let (mut stream, mut bytes) = (stream, Vec::new());
                if stream.read_to_end(&mut bytes).is_ok() && !bytes.is_empty() {
                    std::fs::write(folder.join(format!("{number}.dcm")), bytes).ok();
                }
            }
        });
        Self::Bytes(directory)
    }

    /// Sends a study from the CT and waits until it has arrived byte-identical.
    fn take(&self, hospital: &Hospital, study: &Study) -> Result<()> {
        let (ct, to) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
        match self {
            Self::Dicom(archive) => {
                let target = (to, STORE_PORT);
                dicom::store(&hospital.programs, &ct.host, target, study, &archive.directory)?;
            }
            Self::Bytes(directory) => {
                for file in &study.files {
                    let mut stream = open_tcp(&ct.host, (to, STORE_PORT), Duration::from_secs(20))?;
                    stream.write_all(&std::fs::read(file)?)?;
                }
                wait::until_ok(Duration::from_secs(60), "the study", || {
                    ensure!(study.arrived(directory)? == study.files.len(), "not whole");
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}

/// A night in the hospital.
struct Night {
    fixture: Fixture,
    pacs: Pacs,
    studies: u32,
}

impl Night {
    fn begin(test: &str) -> Option<Self> {
        let fixture = fixture(test, Stage::Enforced)?;
        let pacs = Pacs::start(&fixture);
        Some(Self { fixture, pacs, studies: 0 })
    }

    fn hospital(&self) -> &Hospital {
        &self.fixture.hospital
    }

    fn operator(&self, words: &[&str]) -> anteroom_lab::anteroom::Outcome {
        let words = [words, &WHY].concat();
        self.hospital().operator.ok(&words).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// A new study arrives; gives what a capture of the whole campus saw of it.
    fn study(&mut self) -> Result<Seen> {
        self.studies += 1;
        let outbox = self.fixture.directory().join(format!("study-{}", self.studies));
        let study = Study::write(&outbox, self.studies, 3)?;
        let capture = Capture::start(&self.hospital().campus, study.secrets()?)?;
        let arrived = self.pacs.take(self.hospital(), &study);
        let seen = capture.stop()?;
        arrived.with_context(|| format!("study {}", self.studies))?;
        Ok(seen)
    }

    fn study_through_the_tunnel(&mut self) {
        let seen = self.study().unwrap();
        assert!(seen.secrets.is_empty(), "readable on the campus: {seen:?}");
        // The campus' router may still ask for an address that it has spoken to while that was in the clear.
        let between = seen.between(self.address("ct-1"), self.address("pacs-1"));
        assert!(between.is_empty(), "the CT on the campus: {between:?}");
    }

    fn study_in_the_clear(&mut self) {
        let seen = self.study().unwrap();
        assert!(!seen.secrets.is_empty(), "patched through, it can't be hidden: {seen:?}");
    }

    fn reaches(&self, from: &str, to: Ipv4Addr, port: u16) -> bool {
        let host = &self.hospital().machine(from).host;
        open_tcp(host, (to, port), Duration::from_secs(1)).is_ok()
    }

    fn address(&self, name: &str) -> Ipv4Addr {
        self.hospital().machine(name).address()
    }

    fn wait_reaches(&self, what: &str) {
        wait::until_ok(SOON, what, || {
            ensure!(self.reaches("ct-1", self.address("pacs-1"), STORE_PORT), "not yet");
            Ok(())
        })
        .unwrap_or_else(|error| {
            let servers = self.hospital().gateways["servers"].status();
            panic!("{error:#}: {servers:#?}")
        });
    }

    /// What no rule opens stays shut at the enforced end, and nobody gets more than before.
    fn nothing_else_opens(&self) {
        let pacs = self.address("pacs-1");
        // Something listens there, as a probe from the machine itself shows.
        let host = &self.hospital().machine("pacs-1").host;
        let _listener = host.enter(|| TcpListener::bind(("0.0.0.0", 2022))).unwrap().unwrap();
        assert!(self.reaches("pacs-1", pacs, 2022));
        assert!(!self.reaches("ct-1", pacs, 2022), "no rule opens this");
        assert!(!self.reaches("ws-1", pacs, STORE_PORT), "a workstation is nobody's CT");
        assert!(!self.reaches("ct-1", self.address("monitor-1"), 22), "another gateway's device");
    }

    fn pull(&mut self) {
        self.fixture.hospital.pull("imaging").unwrap();
    }

    fn patch_through(&self) {
        for device in ["ct-1", "mri-1"] {
            self.hospital().patch_through(device).unwrap();
        }
    }
}

#[test]
fn a_gateway_is_bypassed_and_replaced_and_care_goes_on() {
    let test = "a_gateway_is_bypassed_and_replaced_and_care_goes_on";
    let Some(mut night) = Night::begin(test) else { return };
    night.study_through_the_tunnel();
    night.pull();
    night.patch_through();
    assert!(!night.reaches("ct-1", night.address("pacs-1"), STORE_PORT), "nobody ordered it yet");
    let mut clock = Clock::start();
    night.operator(&["gateway", "bypass", "imaging", "--for", "4h"]);
    clock.step("anteroom gateway bypass imaging --for 4h");
    night.wait_reaches("the PACS in the clear");
    clock.step("until the CT reaches the PACS");
    night.study_in_the_clear();
    night.nothing_else_opens();
    let status = night.hospital().operator.command(&["status"]).unwrap();
    refused(&status, 2, &["BYPASSED until"]).unwrap();
    let servers = night.hospital().gateways["servers"].command(&["status"]).unwrap();
    assert!(servers.stdout.contains("BYPASSED"), "{servers}");
    let why = night.hospital().operator.ok(&["why", "ct-1", "pacs-1", "dicom"]).unwrap();
    assert!(why.stdout.contains("is bypassed until"), "{why}");

    clock.skip();
    let invite = night.hospital().operator.invite("imaging-b", "north").unwrap();
    clock.step("anteroom gateway invite imaging-b");
    night.fixture.hospital.add_spare("imaging-b", "imaging", 3).unwrap();
    clock.skip();
    let spare = night.fixture.hospital.gateway("imaging-b");
    spare.enroll(&invite).unwrap();
    let fingerprint = spare.fingerprint().unwrap();
    spare.start().unwrap();
    spare.wait_running().unwrap();
    clock.step("anteroom-agent enroll, and the agent's start");
    night.study_in_the_clear();
    clock.skip();
    for device in ["ct-1", "mri-1"] {
        night.hospital().plug_into(device, "imaging-b").unwrap();
    }
    // A spare that nobody approved is a wire: the bypass carries on through it.
    night.wait_reaches("the PACS through the spare as a wire");
    clock.step("until the CT reaches the PACS through the spare as a wire");
    night.study_in_the_clear();
    wait::until_ok(SOON, "the spare's ports", || {
        let pending = night.hospital().operator.ok(&["gateway", "pending"])?;
        ensure!(pending.stdout.contains(&fingerprint), "{pending}");
        Ok(())
    })
    .unwrap();
    clock.skip();
    let replace = ["gateway", "replace", "imaging", "imaging-b", "--fingerprint", &fingerprint];
    night.operator(&[&replace[..], &["--confirm", "imaging"]].concat());
    clock.step("anteroom gateway replace imaging imaging-b");
    night.wait_reaches("the PACS while the bypass goes on");
    night.study().unwrap();
    let live = || {
        let status = night.hospital().gateways["imaging-b"].status()?;
        let peers = status["data_plane"]["engine"]["peers"].clone();
        let peers = peers.as_array().context("no peers")?;
        ensure!(!peers.is_empty() && peers.iter().all(|peer| peer["live"] == true), "{peers:?}");
        Ok(())
    };
    wait::until_ok(SOON, "the spare's tunnels", live).unwrap();
    clock.skip();
    night.operator(&["gateway", "bypass", "imaging-b", "--end"]);
    clock.step("anteroom gateway bypass imaging-b --end");
    night.wait_reaches("the PACS through the tunnel");
    clock.step("until the CT reaches the PACS through the tunnel");
    night.study_through_the_tunnel();
    night.nothing_else_opens();
    let modes = night.hospital().operator.json(&["device", "list"]).unwrap().to_string();
    assert!(!modes.contains("\"observe\""), "still enforced, and no watch began anew: {modes}");
    let audit = night.hospital().operator.json(&["audit", "list"]).unwrap().to_string();
    for word in ["gateway bypass", "gateway replace", "bypassed until", "revoked gateway imaging"] {
        assert!(audit.contains(word), "{word}: {audit}");
    }
    night.hospital().operator.ok(&["audit", "verify"]).unwrap();
    clock.print("With the controller:");
}

#[test]
fn with_the_controller_dead_an_order_is_carried_by_hand() {
    let test = "with_the_controller_dead_an_order_is_carried_by_hand";
    let Some(mut night) = Night::begin(test) else { return };
    night.study_through_the_tunnel();
    night.fixture.hospital.controller.kill().unwrap();
    night.pull();
    night.patch_through();
    let file = night.fixture.directory().join("bypass.txt").display().to_string();
    let end = night.fixture.directory().join("end.txt").display().to_string();
    let online = ["gateway", "bypass", "imaging", "--for", "4h"];
    let dead = night.hospital().operator.command(&[&online[..], &WHY].concat()).unwrap();
    assert_eq!(dead.code, 1, "{dead}");
    let mut clock = Clock::start();
    night.operator(&[&online[..], &["--offline", "--out", &file]].concat());
    clock.step("anteroom gateway bypass imaging --for 4h --offline --out FILE");
    let servers = &night.hospital().gateways["servers"];
    let loaded = servers.command(&["bypass", &file]).unwrap().ok().unwrap();
    clock.step("anteroom-agent bypass FILE at servers");
    assert!(loaded.stdout.contains("BYPASSED"), "{loaded}");
    night.wait_reaches("the PACS in the clear");
    clock.step("until the CT reaches the PACS");
    night.study_in_the_clear();
    night.nothing_else_opens();
    // The ward's gateway shares no rule with the CT.
    let ward = night.hospital().gateways["ward"].command(&["bypass", &file]).unwrap();
    refused(&ward, 1, &["with whose devices nothing here shares a rule"]).unwrap();

    // It outlives the agent: killed, it comes back with no controller in sight.
    let servers = night.fixture.hospital.gateway("servers");
    servers.kill().unwrap();
    servers.start().unwrap();
    servers.wait_running().unwrap();
    night.wait_reaches("the PACS after the agent's death");
    night.study_in_the_clear();

    night.operator(&["gateway", "bypass", "imaging", "--end", "--offline", "--out", &end]);
    let servers = &night.hospital().gateways["servers"];
    servers.command(&["bypass", &end]).unwrap().ok().unwrap();
    assert!(!night.reaches("ct-1", night.address("pacs-1"), STORE_PORT), "it is ended");
    let replayed = servers.command(&["bypass", &file]).unwrap();
    refused(&replayed, 1, &["a newer order for"]).unwrap();
    std::fs::write(&file, "anteroom-bypass-1.AAAA").unwrap();
    let damaged = servers.command(&["bypass", &file]).unwrap();
    refused(&damaged, 1, &["not copied whole"]).unwrap();
    assert!(!night.reaches("ct-1", night.address("pacs-1"), STORE_PORT), "still ended");

    night.fixture.hospital.controller.start().unwrap();
    night.hospital().operator.ok(&["gateway", "list"]).unwrap();
    let audit = night.hospital().operator.json(&["audit", "list"]).unwrap().to_string();
    for word in ["a file, signed", "power supply burnt", "not bypassed"] {
        assert!(audit.contains(word), "{word}: {audit}");
    }
    night.hospital().operator.ok(&["audit", "verify"]).unwrap();
    clock.print("Without the controller:");
}
