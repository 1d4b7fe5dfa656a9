//! Clocks that jump by years in both directions, under the real programs. Needs libfaketime (Debian's package of that name).

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use anteroom_e2e::{Fixture, Stage, drops, fixture_with, none_lost};
use anteroom_lab::clocks::Clocks;
use anteroom_lab::hospital::Hospital;
use anteroom_lab::ping::{self, Pinging};
use anteroom_lab::stall::Stalls;
use anteroom_lab::story::{
    POLICY, approve_all, confirm_all, open_tcp, refused, wait_for_inventory,
};
use anteroom_lab::wait;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// How long anything may take on a machine that has a lot else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A hospital in which clocks can be wrong, by so many days on these machines. None where nothing lies about the
/// time, which is said.
fn fixture(test: &str, stage: Stage, wrong: &[(&str, i64)]) -> Option<(Fixture, Clocks)> {
    fixture_of(test, stage, |clocks| {
        for (machine, days) in wrong {
            clocks.set(machine, *days).unwrap();
        }
    })
}

/// The same, with clocks that something else was done to before any program ran.
fn fixture_of(test: &str, stage: Stage, wrong: impl FnOnce(&Clocks)) -> Option<(Fixture, Clocks)> {
    if !Clocks::can_be_wrong() {
        eprintln!("skipped {test}: libfaketime isn't installed");
        return None;
    }
    let mut clocks = None;
    let fixture = fixture_with(test, stage, |programs, directory| {
        let lied_to = Clocks::lie_to(programs, &directory.join("clocks")).unwrap();
        let (made, programs) = lied_to.unwrap();
        wrong(&made);
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
    let Some((fixture, _clocks)) = fixture(test, Stage::Enforced, &wrong) else { return };
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
    // The keys that such clocks made change as any others, at once where that is wanted.
    let rotate = ["gateway", "rotate", "--all", "--now", "--yes", "--timeout", "180s"];
    hospital.operator.ok(&[&rotate[..], &["--reason", "drill"]].concat()).unwrap();
    let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap();
    for name in ["imaging", "servers"] {
        wait::until_ok(PATIENCE, "one key of now, and the old ones void", || {
            let keys = hospital.gateways[name].status()?["control"]["keys"].clone();
            let keys: Vec<_> = keys.as_array().into_iter().flatten().collect();
            let for_gateways = keys.iter().filter(|key| key["serves"] != "clients").count();
            let made = keys.first().and_then(|key| key["made"].as_u64()).unwrap_or_default();
            let is_new = made.abs_diff(now) < 3_600_000;
            anyhow::ensure!(for_gateways == 1 && is_new, "at {name}: {keys:?}");
            Ok(())
        })
        .unwrap();
    }
    all_is_well(hospital, "after their keys were changed");
}

/// Waits until nobody lags. Where gateways were told a later time before, they say so, and nothing else.
fn nobody_lags(hospital: &Hospital, was_ahead: bool) {
    const ALARM: &str = "ahead of this controller's clock";
    let status = hospital.operator.command(&["status", "--wait", "30", "--json"]).unwrap();
    let problems = status.json().unwrap()["problems"].as_array().cloned().unwrap_or_default();
    let is_that = |problem: &serde_json::Value| {
        problem["problem"].as_str().is_some_and(|said| said.contains(ALARM))
    };
    assert!(problems.iter().all(|problem| was_ahead && is_that(problem)), "{status}");
    if was_ahead {
        wait::until_ok(PATIENCE, "an alarm about the time", || {
            let status = hospital.gateways["imaging"].status()?;
            let alarms = status["control"]["alarms"].to_string();
            anyhow::ensure!(alarms.contains(ALARM), "{alarms}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn clocks_that_jump_by_years_change_nothing_that_is_allowed_or_saved() {
    let test = "clocks_that_jump_by_years_change_nothing_that_is_allowed_or_saved";
    let Some((mut fixture, clocks)) = fixture(test, Stage::Enforced, &[]) else { return };
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
        nobody_lags(hospital, round > 0);
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

/// What opens a port of the PACS to the CT for a year, and for good.
fn opened(until: i16) -> String {
    let rule = |name: &str, port: u16, more: &str| {
        format!(
            "[service.{name}]\nports = [\"tcp/{port}\"]\n[rule.{name}]\nfrom = \"ct-1\"\nto = \"pacs-1\"\nservices = [\"{name}\"]\n{more}"
        )
    };
    let timed = rule("timed", TIMED, &format!("expires = {until}-01-01T00:00:00Z\n"));
    format!("{POLICY}{timed}{}", rule("lasting", LASTING, ""))
}

const TIMED: u16 = 6_001;
const LASTING: u16 = 6_002;

/// Whether the CT can open this port of the PACS, where somebody listens.
fn opens(hospital: &Hospital, port: u16) -> bool {
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
    open_tcp(&ct.host, (pacs.address(), port), Duration::from_secs(2)).is_ok()
}

/// Waits until what is timed is refused since its rule is over, and not for want of a path.
fn is_over(hospital: &Hospital, when: &str) {
    let refused =
        || drops(&hospital.gateways["imaging"]).map(|drops| drops.get("expired").copied());
    wait::until_ok(PATIENCE, &format!("what is timed to be over {when}"), || {
        let before = refused()?;
        anyhow::ensure!(!opens(hospital, TIMED), "it is open");
        let after = refused()?;
        anyhow::ensure!(after > before, "refused for something else: {before:?}, {after:?}");
        anyhow::ensure!(opens(hospital, LASTING), "what lasts isn't open");
        Ok(())
    })
    .unwrap();
}

/// Waits until packets between the two gateways take a relay, and pings come through.
fn by_a_relay(hospital: &Hospital, when: &str) {
    for name in ["imaging", "servers"] {
        wait::until_ok(PATIENCE, &format!("packets to take a relay {when}"), || {
            let status = hospital.gateways[name].status()?;
            let peers = status["data_plane"]["engine"]["peers"].as_array().cloned();
            let peers = peers.unwrap_or_default();
            let so = |peer: &serde_json::Value| peer["live"] == true && peer["relay"].is_u64();
            anyhow::ensure!(
                !peers.is_empty() && peers.iter().all(so),
                "{name}: {peers:?}, {}, {}",
                status["relays"],
                status["control"]
            );
            Ok(())
        })
        .unwrap();
    }
    all_is_well(hospital, when);
}

#[test]
fn a_controllers_clock_that_jumps_while_it_runs_costs_no_pair_its_relay() {
    let test = "a_controllers_clock_that_jumps_while_it_runs_costs_no_pair_its_relay";
    let steps = |clocks: &Clocks| clocks.step("controller", 0).unwrap();
    let Some((mut fixture, clocks)) = fixture_of(test, Stage::Enforced, steps) else { return };
    let hospital = &mut fixture.hospital;
    let file = hospital.operator.write_policy("timed.toml", &opened(year_in(700))).unwrap();
    hospital.operator.apply(&file, "for two years").unwrap();
    hospital.router.ip("rule add pref 10 ipproto udp dport 51820 blackhole").unwrap();
    by_a_relay(hospital, "before the clock jumps");
    let pacs = hospital.machine("pacs-1").clone();
    let _listeners = [TIMED, LASTING]
        .map(|port| pacs.host.enter(|| TcpListener::bind(pacs.at(port))).unwrap().unwrap());
    for port in [TIMED, LASTING] {
        wait::until(PATIENCE, "an open port", || opens(hospital, port).then_some(())).unwrap();
    }

    let mut was_ahead = false;
    for (round, days) in [4_000, 0, -9_000, 0].into_iter().enumerate() {
        let when = format!("with a controller at {days:+} days, in round {round}");
        let ct = &hospital.machine("ct-1").host;
        let (beat, window) = (Duration::from_millis(5), 32);
        let stalls = Stalls::watch().unwrap();
        let pinging = Pinging::start_within(ct, pacs.address(), u64::MAX, beat, window).unwrap();
        clocks.step("controller", days).unwrap();
        // It says so itself.
        wait::until_ok(PATIENCE, &format!("the clock to jump {when}"), || {
            let label = format!("at={round}-{}", pinging.received());
            let change = ["device", "label", "ct-1", &label, "--reason", "clocks", "--yes"];
            let years = year_in(days);
            hospital.operator.ok(&change)?;
            let years = [years, year_in(days)];
            let audit = hospital.operator.json(&["audit", "list", "--limit", "1"])?.to_string();
            let jumped = years.iter().any(|year| audit.contains(&format!("\"{year}-")));
            anyhow::ensure!(jumped, "{years:?} isn't in {audit}");
            Ok(())
        })
        .unwrap();
        let before = pinging.received();
        wait::until(PATIENCE, &format!("pings {when}"), || {
            (pinging.received() > before + 400).then_some(())
        })
        .unwrap();
        let series = pinging.stop().unwrap();
        none_lost(&series, beat, stalls.worst(), &format!("the clock jumps: {when}"));

        // Whoever starts now shows its pass anew, and hears that time.
        for name in ["servers", "imaging"] {
            let gateway = hospital.gateway(name);
            gateway.kill().unwrap();
            gateway.start().unwrap();
            gateway.wait_running().unwrap();
            let hospital = &*hospital;
            wait::until_ok(PATIENCE, &format!("{name} to be at the controller {when}"), || {
                let control = hospital.gateways[name].status()?["control"].clone();
                anyhow::ensure!(!control["connected"].is_null(), "{control}");
                Ok(())
            })
            .unwrap();
        }
        by_a_relay(hospital, &when);
        was_ahead |= days > 0;
        wait::until(PATIENCE, &format!("what lasts to be open {when}"), || {
            opens(hospital, LASTING).then_some(())
        })
        .unwrap();
        // What has once counted as over stays so until operators begin anew.
        if was_ahead {
            for _ in 0..2 {
                is_over(hospital, &when);
            }
        } else {
            wait::until(PATIENCE, &format!("what is timed to be open {when}"), || {
                opens(hospital, TIMED).then_some(())
            })
            .unwrap();
        }
        nobody_lags(hospital, was_ahead && days <= 0);
    }
    // All keys change at once, as after a theft.
    let keys = |hospital: &Hospital| {
        let of = |name| {
            let keys = hospital.gateways[name].status().unwrap()["control"]["keys"].clone();
            let keys = keys.as_array().cloned().unwrap_or_default();
            keys.into_iter().find(|key| key["serves"] != "clients").unwrap()["key"].to_string()
        };
        ["imaging", "servers"].map(of)
    };
    let old = keys(hospital);
    let rotate = ["gateway", "rotate", "--all", "--now", "--yes", "--timeout", "180s"];
    hospital.operator.ok(&[&rotate[..], &["--reason", "drill"]].concat()).unwrap();
    wait::until_ok(PATIENCE, "other keys", || {
        let now = keys(hospital);
        anyhow::ensure!(now.iter().zip(&old).all(|(now, old)| now != old), "{now:?}, {old:?}");
        Ok(())
    })
    .unwrap();
    by_a_relay(hospital, "after keys were changed");
}

/// Who opens what to whom in the weeks that are watched.
const DAILY: [(&str, &str, u16); 3] =
    [("ct-1", "pacs-1", 104), ("pacs-1", "ct-1", 4006), ("monitor-1", "hl7-1", 2575)];

/// A connection that is answered.
fn exchange(hospital: &Hospital, (from, to, port): (&str, &str, u16)) -> anyhow::Result<()> {
    let (from, to) = (hospital.machine(from), hospital.machine(to));
    let listener = to.host.enter(|| TcpListener::bind(to.at(port)))??;
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut [0; 4])?;
        stream.write_all(b"pong")
    });
    let mut stream = open_tcp(&from.host, (to.address(), port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])?;
    server.join().map_err(|_| anyhow::anyhow!("the one who answers panicked"))??;
    Ok(())
}

/// Waits until the gateways of both ends have told of at least `flows` flows of each.
fn recorded(hospital: &Hospital, flows: u64) {
    wait::until_ok(PATIENCE, "the traffic to be recorded", || {
        let rows = hospital.operator.json(&["flows"])?;
        for (from, to, port) in DAILY {
            let of = |row: &&serde_json::Value| {
                row["from"]["name"] == from && row["to"]["name"] == to && row["port"] == port
            };
            let mut gateways: BTreeMap<String, u64> = BTreeMap::new();
            for row in rows.as_array().into_iter().flatten().filter(of) {
                *gateways.entry(row["gateway"].to_string()).or_default() +=
                    row["flows"].as_u64().unwrap_or_default();
            }
            let told = gateways.values().filter(|told| **told >= flows).count();
            anyhow::ensure!(told == 2, "{from} to {to} at {port}: {gateways:?}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_was_watched_for_weeks_becomes_a_policy_that_is_simulated_and_enforced() {
    let test = "what_was_watched_for_weeks_becomes_a_policy_that_is_simulated_and_enforced";
    // They watch at three moments, weeks apart. Gateways go by the controller's clock, and never by one before what was signed.
    let moments = [0, 20, 40];
    let Some((mut fixture, clocks)) = fixture(test, Stage::Wires, &[]) else { return };
    let hospital = &mut fixture.hospital;
    for device in hospital.devices() {
        device.announce().unwrap();
    }
    approve_all(hospital).unwrap();
    wait_for_inventory(hospital).unwrap();
    confirm_all(hospital).unwrap();
    let watched = ["ct-1", "pacs-1", "monitor-1", "hl7-1"];
    let joined = watched.join(",");
    let enforce: Vec<&str> = ["device", "mode"]
        .into_iter()
        .chain(watched)
        .chain(["enforce", "--confirm", joined.as_str(), "--reason", "go", "--yes"])
        .collect();
    for (round, days) in moments.into_iter().enumerate() {
        if round > 0 {
            clocks.set("operator", days).unwrap();
            clocks.set("controller", days).unwrap();
            hospital.controller.kill().unwrap();
            hospital.controller.start().unwrap();
            for name in ["imaging", "ward", "servers"] {
                clocks.set(&format!("gw-{name}"), days).unwrap();
                let gateway = hospital.gateway(name);
                gateway.kill().unwrap();
                gateway.start().unwrap();
                gateway.wait_running().unwrap();
            }
        }
        for one in DAILY {
            wait::until_ok(PATIENCE, "what is watched to pass", || exchange(hospital, one))
                .unwrap();
        }
        recorded(hospital, round as u64 + 1);
        if round == 0 {
            refused(&hospital.operator.command(&enforce).unwrap(), 4, &["of the 14"]).unwrap();
        }
    }
    // Something that nobody does day by day.
    exchange(hospital, ("ct-1", "hl7-1", 8080)).unwrap();
    let operator = &hospital.operator;
    let file = operator.write_policy("suggested.toml", "format = 1\n").unwrap();
    let suggest = ["policy", "suggest", "--extend", &file, "--out", &file];
    wait::until_ok(PATIENCE, "the odd one to be recorded", || {
        let suggested = operator.json(&suggest)?;
        let questions = suggested["questions"].as_array().into_iter().flatten();
        let odd = questions.filter(|question| question["service"] == "tcp/8080").count();
        anyhow::ensure!(odd == 1, "{suggested}");
        Ok(())
    })
    .unwrap();
    operator.ok(&["policy", "check", &file]).unwrap();
    // Of all that was recorded it would break just that.
    let simulated = operator.command(&["policy", "simulate", &file, "--over", "60d", "--json"]);
    let simulated = simulated.unwrap();
    assert_eq!(simulated.code, 4, "{simulated}");
    let broken = simulated.json().unwrap()["broken"].clone();
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(broken.as_array().map(Vec::len), Some(1), "{broken} under {text}");
    assert_eq!(broken[0]["to"], "hl7-1", "{broken}");
    let drawn = operator.ok(&["map", "--each", "--over", "60d"]).unwrap().stdout;
    assert!(drawn.contains("-> pacs-1: dicom (clear, "), "{drawn}");

    operator.apply(&file, "learnt").unwrap();
    operator.mode(&watched, "protect", "pilot").unwrap();
    // On three days of weeks anybody looked: what was between them may have held anything.
    let words = ["of the 14 that are asked for (its gateway told nothing on "];
    refused(&operator.command(&enforce).unwrap(), 4, &words).unwrap();
    let list = operator.json(&["device", "list"]).unwrap();
    let list = list.as_array().unwrap();
    let seldom = |row: &&serde_json::Value| {
        let days = |word: &str| row["coverage"][word].as_u64().unwrap_or_default();
        row["coverage"]["enough"] == false && days("watched_days") < 14 && days("silent_days") > 30
    };
    assert_eq!(list.iter().filter(seldom).count(), watched.len(), "{list:?}");
    operator.ok(&[&enforce[..], &["--force"]].concat()).unwrap();
    for one in DAILY {
        wait::until_ok(PATIENCE, "what was learnt to pass", || exchange(hospital, one)).unwrap();
    }
    let (ct, hl7) = (hospital.machine("ct-1"), hospital.machine("hl7-1"));
    let listener = hl7.host.enter(|| TcpListener::bind(hl7.at(8080))).unwrap().unwrap();
    let odd = open_tcp(&ct.host, (hl7.address(), 8080), Duration::from_secs(3));
    assert!(odd.is_err(), "what was seen once still passes: {listener:?}");
}
