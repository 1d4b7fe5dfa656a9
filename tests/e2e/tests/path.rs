//! The path that a hospital walks, and what happens on it when something fails.

use std::time::Duration;

use anteroom_e2e::{Stage, dicom_programs, fixture};
use anteroom_lab::capture::Capture;
use anteroom_lab::clinical::association::Association;
use anteroom_lab::clinical::dicom::{Archive, STORE_PORT};
use anteroom_lab::clinical::hl7::{self, Engine, Monitor};
use anteroom_lab::ping;
use anteroom_lab::scan;
use anteroom_lab::story::{
    POLICY, approve_all, confirm_all, device_names, open_tcp, restart_gateway, revoke,
    wait_for_inventory,
};
use anteroom_lab::wait;

const BEAT: Duration = Duration::from_millis(5);

#[test]
fn from_an_invite_to_enforce_no_message_is_lost() {
    let test = "from_an_invite_to_enforce_no_message_is_lost";
    let Some(fixture) = fixture(test, Stage::Wires) else { return };
    let hospital = &fixture.hospital;
    let (monitor_1, hl7_1) = (hospital.machine("monitor-1"), hospital.machine("hl7-1"));
    let engine = Engine::start(&hl7_1.host, hl7::PORT).unwrap();
    let monitor =
        Monitor::start(&monitor_1.host, hl7_1.at(hl7::PORT), Duration::from_millis(50)).unwrap();
    let more = |what: &str| {
        let before = monitor.count().acknowledged;
        wait::until(Duration::from_secs(60), &format!("messages {what}"), || {
            (monitor.count().acknowledged >= before + 5).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", monitor.count()));
    };
    let hvac = hospital.machine("hvac-1");
    let reaches = || {
        let series = ping::ping(&hvac.host, monitor_1.address(), 5, BEAT).unwrap();
        (series.received > 0, series)
    };
    let patient = vec![("the patient".to_owned(), b"PHANTOM^ANTEROOM".to_vec())];
    let readable = || {
        let capture = Capture::start(&hospital.campus, patient.clone()).unwrap();
        more("under a capture");
        let seen = capture.stop().unwrap();
        (!seen.secrets.is_empty(), seen)
    };

    more("through wires");
    for device in hospital.devices() {
        device.announce().unwrap();
    }
    approve_all(hospital).unwrap();
    wait_for_inventory(hospital).unwrap();
    confirm_all(hospital).unwrap();
    let file = hospital.operator.write_policy("policy.toml", POLICY).unwrap();
    hospital.operator.apply(&file, "first").unwrap();
    more("in observe");
    assert!(reaches().0, "in observe everything passes: {:?}", reaches().1);
    let (read, seen) = readable();
    assert!(read, "in observe a capture reads everything: {seen:?}");

    let names = device_names(hospital);
    hospital.operator.mode(&names, "protect", "pilot").unwrap();
    more("in protect");
    wait::until_ok(Duration::from_secs(60), "HL7 to go through the tunnel", || {
        let (read, seen) = readable();
        anyhow::ensure!(!read, "readable: {seen:?}");
        Ok(())
    })
    .unwrap();
    assert!(reaches().0, "in protect the rest still passes: {:?}", reaches().1);

    hospital.operator.mode(&names, "enforce", "go").unwrap();
    more("in enforce");
    let (reached, series) = reaches();
    assert!(!reached, "in enforce what isn't allowed is dropped: {series:?}");
    let (read, seen) = readable();
    assert!(!read, "{seen:?}");
    for device in hospital.devices() {
        let about = seen.about(device.address());
        assert!(about.is_empty(), "{} on the campus: {about:?}", device.plan.name);
    }
    let legs = hospital.intruder_legs().unwrap();
    let targets = hospital.device_addresses();
    let findings = scan::scan(&hospital.machine("intruder").host, &legs, &targets, None).unwrap();
    assert!(findings.of(&targets).is_empty(), "{findings:?}");

    // What one connection was used for from the beginning went through all of it.
    let count = monitor.finish(&engine, Duration::from_secs(60));
    assert_eq!((count.lost, count.reconnects), (0, 0), "{count:?}");
    assert!(count.sent >= 25, "five times five were waited for: {count:?}");
}

#[test]
fn one_dicom_association_stays_open_from_observe_to_enforce_and_back() {
    let test = "one_dicom_association_stays_open_from_observe_to_enforce_and_back";
    let Some(fixture) = fixture(test, Stage::Wires) else { return };
    let hospital = &fixture.hospital;
    if !dicom_programs(&hospital.programs, "no association across a change of path") {
        return;
    }
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
    let stored = fixture.directory().join("stored");
    let log = hospital.logs.join("storescp.log");
    let archive =
        Archive::start(&hospital.programs, &pacs.host, STORE_PORT, &stored, &log).unwrap();
    let every = Duration::from_millis(50);
    let association = Association::open(&ct.host, pacs.at(STORE_PORT), 1, every).unwrap();
    let more = |what: &str| {
        let before = association.progress().stored;
        wait::until_ok(Duration::from_secs(60), &format!("pictures {what}"), || {
            let progress = association.progress();
            anyhow::ensure!(progress.broken.is_none(), "{progress:?}");
            anyhow::ensure!(progress.stored >= before + 5, "{progress:?}");
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", archive.tail()));
    };
    let patient = vec![("the patient".to_owned(), b"PHANTOM^ANTEROOM".to_vec())];
    let readable = || {
        let capture = Capture::start(&hospital.campus, patient.clone()).unwrap();
        more("under a capture");
        !capture.stop().unwrap().secrets.is_empty()
    };
    let becomes = |what: &str, expected: bool| {
        wait::until_ok(Duration::from_secs(60), what, || {
            anyhow::ensure!(readable() == expected, "{:?}", association.progress());
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
    };

    more("through wires");
    for device in hospital.devices() {
        device.announce().unwrap();
    }
    approve_all(hospital).unwrap();
    wait_for_inventory(hospital).unwrap();
    confirm_all(hospital).unwrap();
    let file = hospital.operator.write_policy("policy.toml", POLICY).unwrap();
    hospital.operator.apply(&file, "first").unwrap();
    becomes("pictures in the clear", true);
    let names = device_names(hospital);
    hospital.operator.mode(&names, "protect", "pilot").unwrap();
    becomes("pictures in the tunnel in protect", false);
    hospital.operator.mode(&names, "enforce", "go").unwrap();
    becomes("pictures in the tunnel in enforce", false);
    hospital.operator.mode(&names, "observe", "back").unwrap();
    becomes("pictures in the clear again", true);
    more("in observe again");

    let progress = association.finish(&stored).unwrap();
    assert!(progress.stored >= 45, "nine times five were waited for: {progress:?}");
    println!(
        "{} pictures over one association, the slowest in {:?}",
        progress.stored, progress.slowest
    );
}

#[test]
fn without_a_controller_and_after_a_restart_what_is_allowed_goes_on() {
    let test = "without_a_controller_and_after_a_restart_what_is_allowed_goes_on";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &mut fixture.hospital;
    let engine = Engine::start(&hospital.machine("hl7-1").host, hl7::PORT).unwrap();
    hospital.controller.kill().unwrap();

    // A connection that nobody had opened before.
    let to = hospital.machine("hl7-1").address();
    open_tcp(&hospital.machine("monitor-1").host, (to, hl7::PORT), Duration::from_secs(20))
        .unwrap();

    // How long it may take at most is that function's; how long it took says more about the machine here.
    for (gateway, from) in [("servers", "ct-1"), ("imaging", "mri-1")] {
        let took = restart_gateway(hospital, gateway, from, "pacs-1").unwrap();
        println!("{gateway}: the first packet {took:?} after the agent's start");
    }
    open_tcp(&hospital.machine("monitor-1").host, (to, hl7::PORT), Duration::from_secs(20))
        .unwrap();
    drop(engine);

    // It enforces what it enforced before.
    let hvac = &hospital.machine("hvac-1").host;
    for device in hospital.devices() {
        let series = ping::ping(hvac, device.address(), 3, BEAT).unwrap();
        assert_eq!(series.received, 0, "{} answered", device.plan.name);
    }

    hospital.controller.start().unwrap();
    hospital.operator.ok(&["status", "--wait", "20"]).unwrap();

    // A revoked gateway is cut off; the others aren't.
    revoke(hospital, "imaging").unwrap();
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
    let series = ping::ping(&ct.host, pacs, 10, BEAT).unwrap();
    assert_eq!(series.received, 0, "{series:?}");
    let engine = Engine::start(&hospital.machine("hl7-1").host, hl7::PORT).unwrap();
    open_tcp(&hospital.machine("monitor-1").host, (to, hl7::PORT), Duration::from_secs(20))
        .unwrap();
    drop(engine);

    // Back to observe is back to a wire.
    hospital.operator.mode(&["pump-1"], "observe", "back").unwrap();
    let pump = hospital.machine("pump-1").address();
    let hvac = &hospital.machine("hvac-1").host;
    wait::until_ok(Duration::from_secs(60), "the pump to answer", || {
        let series = ping::ping(hvac, pump, 3, BEAT)?;
        anyhow::ensure!(series.received > 0, "{series:?}");
        Ok(())
    })
    .unwrap();
    hospital.operator.ok(&["audit", "verify"]).unwrap();
}
