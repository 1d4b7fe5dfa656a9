//! A controller out of an old backup, with another key, and in a thief's hands, before real gateways: they follow what
//! operators signed, and traffic never stops (statements 5, 6 and 10).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anteroom_e2e::{Fixture, Stage, fixture};
use anteroom_lab::anteroom::Outcome;
use anteroom_lab::clinical::hl7::{self, Engine};
use anteroom_lab::hospital::{Hospital, address};
use anteroom_lab::ping::{self, Pinging};
use anteroom_lab::story::{open_tcp, refused, revoke};
use anteroom_lab::topology::{self, Host};
use anteroom_lab::wait;
use anyhow::{Context as _, ensure};
use serde_json::Value;

const BEAT: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_secs(60);

/// Number of the view that a gateway holds: incarnation and sequence.
fn number(hospital: &Hospital, gateway: &str) -> anyhow::Result<(u64, u64)> {
    let status = hospital.gateways[gateway].status()?;
    let number = &status["data_plane"]["engine"]["view"]["number"];
    let part = |name: &str| number[name].as_u64().with_context(|| format!("{status}"));
    Ok((part("incarnation")?, part("sequence")?))
}

fn control(hospital: &Hospital, gateway: &str) -> anyhow::Result<Value> {
    Ok(hospital.gateways[gateway].status()?["control"].clone())
}

struct Stand {
    fixture: Fixture,
    changes: u32,
}

impl Stand {
    fn hospital(&mut self) -> &mut Hospital {
        &mut self.fixture.hospital
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.fixture.directory().join(name)
    }

    /// Runs `anteroom-controller`, which must succeed.
    fn controller(&self, words: &[&str]) -> Outcome {
        self.fixture.hospital.controller.command(words).unwrap().ok().unwrap()
    }

    /// A change that an operator makes now, which both gateways follow.
    fn change(&mut self, incarnation: u64) {
        self.changes += 1;
        let label = format!("round={}", self.changes);
        let hospital = &self.fixture.hospital;
        // It concerns the rules of both: a policy in which a port more is open, or less.
        let extra = format!(
            "{}\n[service.round]\nports = [\"tcp/{}\"]\n[rule.round]\nfrom = \"ct\"\nto = \"pacs\"\nservices = \
             [\"round\"]\n",
            anteroom_lab::story::POLICY,
            7_000 + self.changes
        );
        let file = hospital.operator.write_policy(&label, &extra).unwrap();
        let before = ["imaging", "servers"].map(|name| number(hospital, name).unwrap());
        hospital.operator.apply(&file, &label).unwrap();
        for (name, before) in ["imaging", "servers"].into_iter().zip(before) {
            let after = number(hospital, name).unwrap();
            assert!(after > before && after.0 == incarnation, "{name}: {before:?} {after:?}");
        }
        // And the change is what it says: the newest port is open, the one before it closed.
        let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
        for (round, opens) in [(self.changes, true), (self.changes - 1, false)] {
            let at = (pacs.address(), u16::try_from(7_000 + round).unwrap());
            let _listener = pacs.host.enter(|| std::net::TcpListener::bind(at)).unwrap().unwrap();
            let tries = |limit| open_tcp(&ct.host, at, limit).map(drop);
            if opens {
                wait::until_ok(SOON, "the port to be open", || tries(Duration::from_secs(2)))
                    .unwrap();
            } else {
                assert!(tries(Duration::from_millis(800)).is_err(), "port {} is open", at.1);
            }
        }
    }

    /// The ward's gateway was revoked, and stays so: no controller speaks with it, and nobody hears its devices.
    fn ward_is_out(&self) {
        let hospital = &self.fixture.hospital;
        let status = control(hospital, "ward").unwrap();
        assert!(status["connected"].is_null(), "{status}");
        let monitor = &hospital.machine("monitor-1").host;
        let hl7_1 = (hospital.machine("hl7-1").address(), hl7::PORT);
        assert!(open_tcp(monitor, hl7_1, Duration::from_millis(700)).is_err(), "the ward is back");
    }

    fn not_listed(&self) {
        let hospital = &self.fixture.hospital;
        let list = hospital.operator.json(&["gateway", "list"]).unwrap();
        let names: Vec<&Value> = list.as_array().unwrap().iter().map(|row| &row["name"]).collect();
        assert_eq!(names, ["imaging", "servers"], "{list}");
    }

    /// Both gateways are connected to the controller that operators speak with, and up to date.
    fn followed(&self, what: &str) {
        let hospital = &self.fixture.hospital;
        wait::until_ok(SOON, what, || {
            let list = hospital.operator.json(&["gateway", "list"])?;
            let rows = list.as_array().context("a list")?;
            for row in rows.iter().filter(|row| row["name"] != "ward") {
                ensure!(row["online"] == true && row["state"] == "ok", "{row}");
            }
            Ok(())
        })
        .unwrap_or_else(|error| {
            let said = ["imaging", "servers"].map(|name| control(hospital, name));
            panic!("{error:#}: {said:#?}")
        });
    }

    /// Waits until the ward's gateway is there as well: so it knows by which key and where to find the controller.
    fn all_online(&self, what: &str) {
        let online = || {
            let list = self.fixture.hospital.operator.json(&["gateway", "list"])?;
            let rows = list.as_array().context("a list")?;
            ensure!(rows.len() == 3 && rows.iter().all(|row| row["online"] == true), "{list}");
            Ok(())
        };
        wait::until_ok(SOON, what, online).unwrap();
    }

    fn alarms(&self, gateway: &str) -> String {
        control(&self.fixture.hospital, gateway).unwrap()["alarms"].to_string()
    }
}

#[test]
fn gateways_follow_a_restored_controller_and_another_key_and_traffic_never_stops() {
    let test = "gateways_follow_a_restored_controller_and_another_key_and_traffic_never_stops";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let mut stand = Stand { fixture, changes: 0 };
    let hospital = stand.hospital();
    let _engine = Engine::start(&hospital.machine("hl7-1").host, hl7::PORT).unwrap();
    let (ct, pacs) = (hospital.machine("ct-1").host.clone(), hospital.machine("pacs-1").address());
    let home = hospital.controller.directory.display().to_string();
    let (backup, stolen) = (stand.directory("backup"), stand.directory("stolen"));
    let [backup, stolen] = [backup, stolen].map(|path| path.display().to_string());
    let pinging = Pinging::start(&ct, pacs, 10_000_000, BEAT).unwrap();

    // A backup of the running controller. Since then: a change, and the ward's gateway is revoked.
    stand.controller(&["backup", "--dir", &home, "--to", &backup]);
    stand.controller(&["backup", "--dir", &home, "--to", &stolen]);
    stand.change(1);
    revoke(stand.hospital(), "ward").unwrap();
    wait::until_ok(SOON, "the revocation to be in force", || {
        let control = control(stand.hospital(), "ward")?;
        ensure!(control["last_error"].to_string().contains("revoked"), "{control}");
        Ok(())
    })
    .unwrap();
    stand.ward_is_out();

    // The disk is lost. Out of the backup the controller serves nobody: it would bring the ward back.
    stand.hospital().controller.kill().unwrap();
    std::fs::remove_dir_all(&home).unwrap();
    let before = ["imaging", "servers"].map(|name| number(stand.hospital(), name).unwrap());
    stand.controller(&["restore", "--from", &backup, "--dir", &home]);
    stand.hospital().controller.start().unwrap();
    let words = ["gateway", "label", "imaging", "floor=2", "--reason", "too early", "--yes"];
    let early = stand.hospital().operator.command(&words).unwrap();
    assert_ne!(early.code, 0, "{early}");
    wait::until_ok(SOON, "gateways to have knocked", || {
        for name in ["imaging", "ward"] {
            let control = control(stand.hospital(), name)?;
            ensure!(control["connected"].is_null(), "{name}: {control}");
            ensure!(control["last_error"].is_string(), "{name}: {control}");
        }
        Ok(())
    })
    .unwrap();
    let now = ["imaging", "servers"].map(|name| number(stand.hospital(), name).unwrap());
    assert_eq!(now, before, "a controller that nobody signed back in moved somebody");
    stand.ward_is_out();

    // An operator signs it back in, with what their machine has kept: gateways follow, the ward isn't brought back.
    let words = ["controller", "restored", "--reason", "disk failure", "--yes"];
    stand.hospital().operator.ok(&words).unwrap();
    stand.followed("gateways to follow the restored controller");
    stand.change(2);
    stand.ward_is_out();
    stand.not_listed();

    // Another key, since the old one may be in other hands.
    stand.hospital().controller.kill().unwrap();
    let outcome = stand.controller(&["new-key", "--dir", &home]);
    let code = outcome
        .stdout
        .split_whitespace()
        .find(|word| word.starts_with("anteroom-controller-1."))
        .unwrap_or_else(|| panic!("no code: {outcome}"))
        .to_owned();
    stand.hospital().controller.start().unwrap();
    let words = ["controller", "replace", &code, "--reason", "stolen", "--yes"];
    stand.hospital().operator.ok(&words).unwrap();
    stand.followed("gateways to follow the controller with another key");
    let incarnation = number(stand.hospital(), "imaging").unwrap().0;
    stand.change(incarnation.max(3));
    stand.ward_is_out();
    stand.not_listed();

    // The thief starts the stolen copy, old key and all, where gateways look for theirs: nobody follows, each says so.
    stand.hospital().controller.kill().unwrap();
    let held = ["imaging", "servers"].map(|name| number(stand.hospital(), name).unwrap());
    let quiet = stand.alarms("imaging");
    stand.hospital().controller.directory = PathBuf::from(&stolen);
    stand.hospital().controller.start().unwrap();
    wait::until_ok(SOON, "gateways to have met the thief", || {
        for name in ["imaging", "servers"] {
            let control = control(stand.hospital(), name)?;
            ensure!(control["connected"].is_null(), "{name}: {control}");
            let alarms = control["alarms"].as_array().context("alarms")?;
            ensure!(!alarms.is_empty(), "{name}: {control}");
        }
        Ok(())
    })
    .unwrap();
    let fooled = stand.hospital().operator.command(&["status"]).unwrap();
    refused(&fooled, 1, &[]).unwrap();
    let now = ["imaging", "servers"].map(|name| number(stand.hospital(), name).unwrap());
    assert_eq!(now, held, "the thief moved somebody");
    stand.ward_is_out();
    let alarms = stand.alarms("imaging");
    assert_ne!(alarms, quiet, "nothing was said of the thief");
    println!("alarms: {alarms}");

    // Gone again, the right one is found, and operators see what was tried.
    stand.hospital().controller.kill().unwrap();
    stand.hospital().controller.directory = PathBuf::from(&home);
    stand.hospital().controller.start().unwrap();
    stand.followed("gateways to find theirs again");
    stand.change(incarnation.max(3));
    stand.ward_is_out();
    let series = pinging.stop().unwrap();
    assert!(series.sent > 500 && series.lost() == 0, "{} of {}", series.lost(), series.sent);
    assert_eq!(ping::ping(&ct, pacs, 10, BEAT).unwrap().lost(), 0);
    let status = stand.hospital().operator.command(&["status"]).unwrap();
    assert!(status.stdout.to_lowercase().contains("alarm"), "{status}");
    println!("{} pings, none lost", series.sent);
}

/// Words of a controller's configuration, changed while it doesn't run.
fn reconfigure(home: &Path, change: impl Fn(&str) -> String) {
    let file = home.join("controller.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let changed = change(&text);
    assert_ne!(changed, text, "nothing to change");
    std::fs::write(&file, changed).unwrap();
}

/// The code in what a controller printed.
fn controller_code(outcome: &Outcome) -> String {
    let word = outcome.stdout.split_whitespace().find(|word| word.starts_with(CODE));
    word.unwrap_or_else(|| panic!("no code: {outcome}")).to_owned()
}

const CODE: &str = "anteroom-controller-1.";

#[test]
fn a_new_machine_takes_over_from_an_old_backup_and_traffic_never_stops() {
    let test = "a_new_machine_takes_over_from_an_old_backup_and_traffic_never_stops";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let mut stand = Stand { fixture, changes: 0 };
    let home = stand.hospital().controller.directory.clone();
    let (dir, backup) = (home.display().to_string(), stand.directory("backup"));
    let backup = backup.display().to_string();

    // Gateways look for their controller by its name, too: so it can be found elsewhere one day.
    stand.hospital().controller.kill().unwrap();
    reconfigure(&home, |text| {
        text.replace("\"10.20.0.10:4433\"", "\"10.20.0.10:4433\", \"controller:4433\"")
    });
    let code = controller_code(&stand.controller(&["new-key", "--dir", &dir]));
    stand.hospital().controller.start().unwrap();
    let replace = |code: &str| {
        ["controller", "replace", code, "--reason", "moved", "--yes"].map(str::to_owned)
    };
    let run = |stand: &mut Stand, words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        stand.hospital().operator.ok(&words).unwrap();
    };
    run(&mut stand, &replace(&code));
    stand.followed("gateways to follow the key");
    stand.all_online("the ward's gateway to follow the key");
    let (ct, pacs) = {
        let hospital = stand.hospital();
        (hospital.machine("ct-1").host.clone(), hospital.machine("pacs-1").address())
    };
    let pinging = Pinging::start(&ct, pacs, 10_000_000, BEAT).unwrap();

    // The backup is taken while keys are being changed: the ward's gateway is away, and still has to.
    stand.hospital().gateway("ward").stop().unwrap();
    let asked = stand.hospital().operator.command(&["gateway", "rotate", "--all"]).unwrap();
    assert_eq!(asked.code, 3, "the ward is away: {asked}");
    // Of the others' keys no old one is left that peers give up behind the backup's back: shown again, it is an alarm.
    wait::until_ok(SOON, "the old key of the imaging gateway to go", || {
        let list = stand.fixture.hospital.operator.json(&["gateway", "list"])?;
        let mut rows = list.as_array().context("a list")?.iter();
        let imaging = rows.find(|row| row["name"] == "imaging").context("imaging")?;
        ensure!(imaging["tunnel_key"]["older"] == 0, "{imaging}");
        Ok(())
    })
    .unwrap();
    stand.controller(&["backup", "--dir", &dir, "--to", &backup]);
    // And what it doesn't know: newer keys, and a policy.
    stand.hospital().operator.ok(&["gateway", "rotate", "servers"]).unwrap();
    let incarnation = number(stand.hospital(), "imaging").unwrap().0;
    stand.change(incarnation);

    // The machine is gone. A new one, at another address, gets the backup, keys of its own, and the name.
    stand.hospital().controller.kill().unwrap();
    stand.hospital().controller.host.ip("link set eth0 down").unwrap();
    let host = Host::create("controller-2").unwrap();
    let hospital = stand.hospital();
    topology::plug(&host, "eth0", None, &hospital.campus, "br-mgmt", "p-controller-2").unwrap();
    let new = address("mgmt", 11);
    host.address("eth0", new, 24).unwrap();
    host.default_route(address("mgmt", 1)).unwrap();
    hospital.controller.host = host;
    hospital.controller.address = new;
    let moved = stand.directory("moved");
    stand.hospital().controller.directory.clone_from(&moved);
    let to = moved.display().to_string();
    stand.controller(&["restore", "--from", &backup, "--dir", &to, "--new-key"]);
    reconfigure(&moved, |text| text.replace("10.20.0.10", "10.20.0.11"));
    let code = controller_code(&stand.controller(&["code", "--dir", &to]));
    stand.hospital().controller.start().unwrap();
    topology::names(&[("controller".into(), new)]).unwrap();
    run(&mut stand, &replace(&code));
    stand.followed("gateways to find the new machine");
    stand.change(incarnation + 1);

    // Keys go on from where they are, not from where the backup was; the ward does what it was asked before.
    stand.hospital().gateway("ward").start().unwrap();
    stand.hospital().gateway("ward").wait_running().unwrap();
    stand.all_online("the ward's gateway to be back");
    let words = ["gateway", "rotate", "--all", "--timeout", "60s"];
    stand.fixture.hospital.operator.ok(&words).unwrap();
    for gateway in ["imaging", "servers", "ward"] {
        let alarms = stand.alarms(gateway);
        assert!(!alarms.contains("tunnel key"), "{gateway}: {alarms}");
    }
    let series = pinging.stop().unwrap();
    assert!(series.sent > 500 && series.lost() == 0, "{} of {}", series.lost(), series.sent);
    println!("{} pings, none lost", series.sent);

    // And it relays: its passes are taken though the backup counted less of them.
    let hospital = stand.hospital();
    hospital.router.ip("rule add pref 10 ipproto udp dport 51820 blackhole").unwrap();
    wait::until_ok(SOON, "pings by the new controller's relay", || {
        let series = ping::ping(&ct, pacs, 20, BEAT)?;
        ensure!(
            series.lost() == 0,
            "{series:?}, {}",
            hospital.gateways["imaging"].status()?["relays"]
        );
        Ok(())
    })
    .unwrap();
    assert_eq!(stand.hospital().operator.command(&["audit", "verify"]).unwrap().code, 0);
}
