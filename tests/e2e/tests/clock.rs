//! Clocks that jump by years in both directions, under the real programs. Needs libfaketime (Debian's package of that name).

use std::time::Duration;

use anteroom_e2e::{Fixture, Stage, fixture_with};
use anteroom_lab::clocks::Clocks;
use anteroom_lab::hospital::Hospital;
use anteroom_lab::ping;
use anteroom_lab::wait;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A hospital in enforce in which clocks can be wrong, by so many days on these machines. None where nothing lies about the
/// time, which is said.
fn fixture(test: &str, wrong: &[(&str, i64)]) -> Option<(Fixture, Clocks)> {
    if !Clocks::can_be_wrong() {
        eprintln!("skipped {test}: libfaketime isn't installed");
        return None;
    }
    let mut clocks = None;
    let fixture = fixture_with(test, Stage::Enforced, |programs, directory| {
        let lied_to = Clocks::lie_to(programs, &directory.join("clocks")).unwrap();
        let (made, programs) = lied_to.unwrap();
        for (machine, days) in wrong {
            made.set(machine, *days).unwrap();
        }
        clocks = Some(made);
        programs
    })?;
    Some((fixture, clocks?))
}

/// The year now, this many days from here.
fn year_in(days: i64) -> i16 {
    let then = Timestamp::now() + SignedDuration::from_hours(24 * days);
    then.to_zoned(TimeZone::UTC).year()
}

/// What is allowed passes, and strangers find nobody.
fn all_is_well(hospital: &Hospital, when: &str) {
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
    wait::until_ok(Duration::from_secs(30), &format!("a ping through the tunnel {when}"), || {
        let series = ping::ping(&ct.host, pacs, 5, Duration::from_millis(5))?;
        anyhow::ensure!(series.lost() == 0, "{series:?}");
        Ok(())
    })
    .unwrap();
    let hvac = &hospital.machine("hvac-1").host;
    for device in hospital.devices() {
        let series = ping::ping(hvac, device.address(), 2, Duration::from_millis(5)).unwrap();
        assert_eq!(series.received, 0, "{} answers a stranger {when}", device.plan.name);
    }
}

#[test]
fn gateways_whose_clocks_are_wrong_by_years_enrol_and_carry_what_is_allowed() {
    let test = "gateways_whose_clocks_are_wrong_by_years_enrol_and_carry_what_is_allowed";
    // A clock without a battery begins at about 1970.
    let wrong = [("gw-imaging", -20_400), ("gw-servers", 4_000)];
    let Some((fixture, _clocks)) = fixture(test, &wrong) else { return };
    let hospital = &fixture.hospital;
    for (machine, days) in wrong {
        // What the agent itself says about the time.
        let log = std::fs::read_to_string(hospital.logs.join(format!("{machine}.log"))).unwrap();
        let years = [days - 1, days, days + 1].map(|days| format!("{}-", year_in(days)));
        assert!(
            years.iter().any(|year| log.contains(year)),
            "no clock is wrong: {years:?} in {log}"
        );
    }
    all_is_well(hospital, "between gateways of 1971 and 2037");
    hospital.operator.ok(&["status", "--wait", "30"]).unwrap();
}

#[test]
fn clocks_that_jump_by_years_change_nothing_that_is_allowed_or_saved() {
    let test = "clocks_that_jump_by_years_change_nothing_that_is_allowed_or_saved";
    let Some((mut fixture, clocks)) = fixture(test, &[]) else { return };
    let hospital = &mut fixture.hospital;
    for (round, days) in [4_000, -9_000, 0].into_iter().enumerate() {
        let offset = &format!("{days:+}d");
        // A gateway alone, then the controller as well.
        clocks.set("gw-imaging", days).unwrap();
        let gateway = hospital.gateway("imaging");
        gateway.kill().unwrap();
        gateway.start().unwrap();
        gateway.wait_running().unwrap();
        all_is_well(hospital, &format!("with a gateway at {offset}"));
        clocks.set("controller", days).unwrap();
        hospital.controller.kill().unwrap();
        hospital.controller.start().unwrap();
        hospital.operator.ok(&["audit", "verify"]).unwrap();
        hospital.operator.ok(&["status", "--wait", "30"]).unwrap();
        let label = format!("round={round}");
        let change = ["device", "label", "ct-1", &label, "--reason", "clocks", "--yes"];
        let years = year_in(days);
        hospital.operator.ok(&change).unwrap();
        let years = [years, year_in(days)];
        all_is_well(hospital, &format!("with a controller at {offset}"));
        let audit = hospital.operator.json(&["audit", "list", "--limit", "100"]).unwrap();
        let audit = audit.to_string();
        assert!(
            years.iter().any(|year| audit.contains(&format!("\"{year}-"))),
            "no clock jumped to {years:?}: {audit}"
        );
    }
    hospital.operator.ok(&["audit", "verify"]).unwrap();
}
