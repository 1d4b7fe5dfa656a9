//! From bad luck: programs killed at random moments, disks that are full or can't be written.

use std::path::Path;
use std::time::Duration;

use anteroom_e2e::{Stage, chaos, fixture, own_programs};
use anteroom_lab::clinical::hl7::{self, Engine, Monitor};
use anteroom_lab::hospital::SITE;
use anteroom_lab::story::Report;
use anteroom_lab::{namespace, soak, wait};

/// The environment's word for the seed of the random moments, to have a run's again.
const SEED: &str = "ANTEROOM_CHAOS_SEED";

fn seed() -> u64 {
    match std::env::var(SEED) {
        Ok(given) => given.parse().unwrap_or_else(|error| panic!("{SEED}={given:?}: {error}")),
        Err(_) => std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(1, |now| u64::try_from(now.as_nanos() & 0xffff_ffff).unwrap_or(1)),
    }
}

/// Programs die for `time` while a monitor sends; nothing that was acknowledged is lost, and nothing saved breaks.
fn kill_for(test: &str, time: Duration) {
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &mut fixture.hospital;
    let engine = Engine::start(&hospital.machine("hl7-1").host, hl7::PORT).unwrap();
    let to = hospital.machine("hl7-1").at(hl7::PORT);
    let monitor =
        Monitor::start(&hospital.machine("monitor-1").host, to, Duration::from_millis(50)).unwrap();
    let seed = seed();
    println!("again with these moments: {SEED}={seed}");
    let tally = chaos::run(hospital, time, seed).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{tally:?}");
    assert!(tally.kills >= chaos::LEAST_KILLS && tally.changes > 0, "{tally:?}");
    let count = monitor.finish(&engine, Duration::from_secs(30));
    assert!(count.lost == 0 && count.acknowledged > 0, "{count:?}");
}

#[test]
fn programs_that_die_at_random_lose_nothing_that_was_saved() {
    kill_for("programs_that_die_at_random_lose_nothing_that_was_saved", Duration::from_secs(20));
}

/// The long run: `cargo test -p anteroom-e2e --test chaos -- --ignored`.
#[test]
#[ignore = "takes ten minutes"]
fn ten_minutes_of_programs_that_die_at_random_lose_nothing_that_was_saved() {
    let test = "ten_minutes_of_programs_that_die_at_random_lose_nothing_that_was_saved";
    kill_for(test, Duration::from_secs(600));
}

#[test]
fn a_short_soak_breaks_nothing_that_is_allowed_and_lets_nothing_else_through() {
    let test = "a_short_soak_breaks_nothing_that_is_allowed_and_lets_nothing_else_through";
    let Some(programs) = own_programs() else { return };
    if !namespace::in_private_network(test) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let logs = directory.path().join("logs");
    let (report, course) = (Report::new(true), soak::Course::Short);
    let report = soak::measure(programs, directory.path(), &logs, report, course, 1).unwrap();
    assert!(report.ok(), "{}", report.table());
}

/// Mounts a file system of this many KiB, or mounts it anew with other options.
fn mount(directory: &Path, options: &str) {
    let status = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "none"])
        .arg(directory)
        .status()
        .unwrap();
    assert!(status.success(), "mounting at {}", directory.display());
}

#[test]
fn a_full_disk_and_a_read_only_disk_cost_the_controller_nothing_that_was_saved() {
    let test = "a_full_disk_and_a_read_only_disk_cost_the_controller_nothing_that_was_saved";
    let Some(mut fixture) = fixture(test, Stage::Built) else { return };
    let hospital = &mut fixture.hospital;
    let directory = hospital.controller.directory.clone();
    std::fs::create_dir_all(&directory).unwrap();
    mount(&directory, "size=4096k,mode=0700");
    hospital.start_controller().unwrap();
    hospital.operator.invite("imaging", SITE).unwrap();
    let audit = |hospital: &anteroom_lab::hospital::Hospital| {
        hospital.operator.ok(&["audit", "verify"]).unwrap();
        hospital
            .operator
            .json(&["audit", "list", "--limit", "100"])
            .unwrap()
            .as_array()
            .unwrap()
            .len()
    };
    let before = audit(hospital);

    // Full to the last byte. What needs room is refused in words; what is there can be read.
    let filler = directory.join("filler");
    let fill = || {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&filler).unwrap();
        let mut size = 65_536;
        while size > 0 {
            if std::io::Write::write_all(&mut file, &vec![0x55; size]).is_err() {
                size /= 2;
            }
        }
    };
    fill();
    let mut refused = 0;
    for number in 0..12 {
        let name = format!("gateway-{number}");
        let outcome =
            hospital.operator.command(&["gateway", "invite", &name, "--site", SITE]).unwrap();
        assert!(!format!("{outcome}").contains("panicked"), "{outcome}");
        if outcome.code != 0 {
            refused += 1;
            let said = outcome.stderr.to_lowercase();
            assert!(
                said.contains("disk") || said.contains("full") || said.contains("store"),
                "{outcome}"
            );
        }
        fill();
    }
    assert!(refused > 0, "a full disk took 12 invites");
    let listed = hospital.operator.command(&["audit", "list"]).unwrap();
    assert_eq!(listed.code, 0, "what was saved can't be read: {listed}");
    hospital.controller.process().unwrap().must_run().unwrap();

    // Killed and started on the full disk, it either serves or says why; with room again, nothing is lost.
    hospital.controller.kill().unwrap();
    let started = hospital.controller.start();
    if let Err(error) = &started {
        let said = format!("{error:#}");
        assert!(!said.contains("panicked") && said.contains("full"), "{said}");
    }
    std::fs::remove_file(&filler).unwrap();
    if started.is_err() {
        hospital.controller.start().unwrap();
    }
    assert!(audit(hospital) >= before);
    wait::until_ok(Duration::from_secs(60), "an invite to be taken again", || {
        hospital.operator.invite("ward", SITE)
    })
    .unwrap();
    let before = audit(hospital);

    // Read-only: the same.
    let remount = |how: &str| {
        let status = std::process::Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(&directory)
            .status()
            .unwrap();
        status.success()
    };
    hospital.controller.kill().unwrap();
    assert!(remount("ro"), "the disk can't be made read-only");
    let error =
        hospital.controller.start().map_or_else(|error| format!("{error:#}"), |()| String::new());
    assert!(!error.contains("panicked"), "{error}");
    if error.is_empty() {
        let outcome =
            hospital.operator.command(&["gateway", "invite", "late", "--site", SITE]).unwrap();
        assert!(outcome.code != 0 && !format!("{outcome}").contains("panicked"), "{outcome}");
        hospital.controller.kill().unwrap();
    } else {
        let said = error.to_lowercase();
        assert!(said.contains("read-only") || said.contains("readonly"), "{error}");
    }
    assert!(remount("rw"));
    hospital.controller.start().unwrap();
    assert!(audit(hospital) >= before);
    hospital.operator.invite("servers", SITE).unwrap();
    assert!(audit(hospital) > before);
}
