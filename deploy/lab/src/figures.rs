//! Measured figures: how long things take, what they cost, what is lost meanwhile.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::hospital::Hospital;
use crate::ping::{self, Pinging};
use crate::process::Process;
use crate::programs::{self, Programs};
use crate::story::Report;
use crate::story::{self, POLICY};
use crate::topology::Host;
use crate::wait;

/// The beat of pings while things change.
const BEAT: Duration = Duration::from_millis(2);

/// A finer beat, for moments.
const FINE: Duration = Duration::from_millis(1);

/// The value below which `share` (0 to 1) of `sorted` lie; `None` of nothing.
#[must_use]
pub fn percentile(sorted: &[u64], share: f64) -> Option<u64> {
    let last = sorted.len().checked_sub(1)?;
    let rank = (share.clamp(0.0, 1.0) * last as f64).ceil();
    sorted.get(rank as usize).copied()
}

/// Median, 99th percentile and the worst of measured times.
fn spread(mut milliseconds: Vec<u64>) -> Value {
    milliseconds.sort_unstable();
    json!({
        "rounds": milliseconds.len(),
        "p50": percentile(&milliseconds, 0.5),
        "p99": percentile(&milliseconds, 0.99),
        "max": milliseconds.last(),
    })
}

/// Raises a hospital with every device in enforce, with its policy applied.
///
/// # Errors
/// What went wrong on the way.
pub fn enforced_hospital(programs: Programs, directory: &Path, logs: &Path) -> Result<Hospital> {
    let hospital = observed_hospital(programs, directory, logs)?;
    enforce(&hospital)?;
    Ok(hospital)
}

/// Raises a hospital with every device in observe.
///
/// # Errors
/// What went wrong on the way.
pub fn observed_hospital(programs: Programs, directory: &Path, logs: &Path) -> Result<Hospital> {
    let mut hospital = Hospital::build(programs, directory, logs)?;
    hospital.start_anteroom()?;
    for device in hospital.devices() {
        device.announce()?;
    }
    story::approve_all(&hospital)?;
    story::wait_for_inventory(&hospital)?;
    story::confirm_all(&hospital)?;
    Ok(hospital)
}

/// Applies the lab's policy and brings every device to enforce.
///
/// # Errors
/// What went wrong on the way.
pub fn enforce(hospital: &Hospital) -> Result<()> {
    let file = hospital.operator.write_policy("policy.toml", POLICY)?;
    hospital.operator.apply(&file, "first policy")?;
    let names = story::device_names(hospital);
    hospital.operator.mode(&names, "protect", "pilot")?;
    hospital.operator.mode(&names, "enforce", "measuring")?;
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
    wait::until_ok(Duration::from_secs(60), "the tunnel to carry a ping", || {
        let series = ping::ping(&ct.host, pacs, 3, BEAT)?;
        if series.received == 0 { bail!("{series:?}") } else { Ok(()) }
    })
}

/// When the controller took its newest revision over, in milliseconds since 1970.
fn newest_accepted(hospital: &Hospital) -> Result<u64> {
    let audit = hospital.operator.json(&["audit", "list", "--limit", "20"])?;
    let newest = audit
        .as_array()
        .context("the audit log is a list")?
        .iter()
        .filter(|entry| !entry["revision"].is_null())
        .max_by_key(|entry| entry["number"].as_u64())
        .with_context(|| format!("a revision in the audit log: {audit}"))?;
    moment(&newest["at"]).with_context(|| format!("no time in {newest}"))
}

/// A time as the command line writes it, in milliseconds since 1970.
fn moment(value: &Value) -> Option<u64> {
    let stamp: jiff::Timestamp = value.as_str()?.parse().ok()?;
    u64::try_from(stamp.as_millisecond()).ok()
}

fn since(accepted: u64, at: SystemTime) -> u64 {
    let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(at).unwrap_or(u64::MAX).saturating_sub(accepted)
}

/// Measures everything.
///
/// # Errors
/// If the hospital can't be raised; figures that can't be measured are in the report as checks that failed.
pub fn measure(
    programs: Programs,
    directory: &Path,
    logs: &Path,
    mut report: Report,
    rounds: u32,
    pings: u64,
) -> Result<Report> {
    report.begin(1, "Figures");
    let mut hospital = None;
    report.check("raise", "a hospital with every device in enforce", || {
        hospital = Some(enforced_hospital(programs, directory, logs)?);
        Ok("up".into())
    });
    let Some(mut hospital) = hospital else { return Ok(report) };
    sizes(&mut report, &hospital);
    apply_to_enforced(&mut report, &hospital, rounds);
    restarts(&mut report, &mut hospital, rounds);
    loss(&mut report, &mut hospital, pings);
    round_trip(&mut report, &hospital);
    memory(&mut report, &mut hospital);
    revocation(&mut report, &mut hospital, rounds.min(10));
    report.end("");
    Ok(report)
}

fn sizes(report: &mut Report, hospital: &Hospital) {
    let programs = &hospital.programs;
    for (name, file) in [
        ("anteroom_agent", &programs.agent),
        ("anteroom_controller", &programs.controller),
        ("anteroom", &programs.cli),
    ] {
        if let Ok(metadata) = std::fs::metadata(file) {
            report.figure(&format!("size_of_{name}_bytes"), metadata.len());
        }
    }
}

/// Closes and opens a rule again and again, with pings that it allows: from the controller's taking over of the revision to
/// the last ping that passed, or the first.
fn apply_to_enforced(report: &mut Report, hospital: &Hospital, rounds: u32) {
    let (mut closing, mut opening) = (Vec::new(), Vec::new());
    let expected = "apply to enforced: p99 under 250 ms, as pings see it";
    report.check("apply-to-enforced", expected, || {
        let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
        let closed = POLICY.replace("services = [\"dicom\", \"ping\"]", "services = [\"dicom\"]");
        if closed == POLICY {
            bail!("the policy has no ping to take away");
        }
        let closed = hospital.operator.write_policy("closed.toml", &closed)?;
        let open = hospital.operator.write_policy("open.toml", POLICY)?;
        for _ in 0..rounds {
            let pinging = Pinging::start(&ct.host, pacs, 1_000_000, FINE)?;
            wait::until(Duration::from_secs(60), "a ping to pass", || {
                (pinging.received() > 0).then_some(())
            })?;
            hospital.operator.apply(&closed, "measuring")?;
            let series = pinging.stop()?;
            closing.push(since(newest_accepted(hospital)?, series.last_reply_at.context("none")?));
            let pinging = Pinging::start(&ct.host, pacs, 1_000_000, FINE)?;
            hospital.operator.apply(&open, "measuring")?;
            wait::until(Duration::from_secs(60), "a ping to pass again", || {
                (pinging.received() > 0).then_some(())
            })?;
            let series = pinging.stop()?;
            opening.push(since(newest_accepted(hospital)?, series.first_reply_at.context("none")?));
        }
        let mut all = [closing.clone(), opening.clone()].concat();
        all.sort_unstable();
        let p99 = percentile(&all, 0.99).context("no rounds")?;
        let seen = format!("p50 {} ms, p99 {p99} ms", percentile(&all, 0.5).unwrap_or(0));
        if p99 >= 250 { bail!("{seen}") } else { Ok(seen) }
    });
    report.figure("apply_to_closed_ms", spread(closing));
    report.figure("apply_to_open_ms", spread(opening));
}

/// Kills and starts a gateway's agent with no controller.
fn restarts(report: &mut Report, hospital: &mut Hospital, rounds: u32) {
    let mut times = Vec::new();
    let expected = "agent start to first forwarded packet, with no controller";
    report.check("agent-start", expected, || {
        hospital.controller.kill()?;
        for _ in 0..rounds.min(10) {
            let took = story::restart_gateway(hospital, "servers", "ct-1", "pacs-1")?;
            times.push(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        }
        hospital.controller.start()?;
        hospital.operator.ok(&["status", "--wait", "20"])?;
        let worst = times.iter().max().copied().unwrap_or(0);
        let seen = format!("at most {worst} ms, {times:?}");
        if u128::from(worst) > story::BACK_WITHIN.as_millis() { bail!("{seen}") } else { Ok(seen) }
    });
    report.figure("agent_start_to_first_packet_ms", spread(times));
}

/// Pings while a revision is applied and the controller restarts.
fn loss(report: &mut Report, hospital: &mut Hospital, pings: u64) {
    let mut figure = Value::Null;
    let expected = "no ping is lost while a revision is applied and while the controller restarts";
    report.check("ping-loss", expected, || {
        let series = pings_through_changes(hospital, pings)?;
        figure = serde_json::to_value(&series)?;
        if series.lost() > 0 {
            bail!("{} of {} lost: {series:?}", series.lost(), series.sent);
        }
        Ok(format!("0 of {} lost", series.sent))
    });
    report.figure("pings_through_changes", figure);
}

/// Sends pings from the CT to the PACS, one each 2 ms, and meanwhile applies two revisions and restarts the controller.
///
/// # Errors
/// If one of those fails.
pub fn pings_through_changes(hospital: &mut Hospital, pings: u64) -> Result<ping::Series> {
    let ct = hospital.machine("ct-1").host.clone();
    let pacs = hospital.machine("pacs-1").address();
    // Allowed before, meanwhile and after: only something else changes.
    let other =
        POLICY.replace("services = [\"ct-listen\"]", "services = [\"ct-listen\", \"ping\"]");
    let other = hospital.operator.write_policy("other.toml", &other)?;
    let back = hospital.operator.write_policy("back.toml", POLICY)?;
    let pinging = Pinging::start(&ct, pacs, pings, BEAT)?;
    let changed = (|| {
        hospital.operator.apply(&other, "while pings go on")?;
        hospital.controller.kill()?;
        hospital.controller.start()?;
        hospital.operator.ok(&["status", "--wait", "20"])?;
        hospital.operator.apply(&back, "while pings go on")
    })();
    let series = pinging.finish()?;
    changed?;
    Ok(series)
}

/// What two gateways add to a round trip: through the tunnel, and between two machines beside the gateways.
fn round_trip(report: &mut Report, hospital: &Hospital) {
    let mut figure = Value::Null;
    report.check("round-trip", "what two gateways add at low load", || {
        let every = Duration::from_millis(5);
        let ct = &hospital.machine("ct-1").host;
        let through = ping::ping(ct, hospital.machine("pacs-1").address(), 400, every)?;
        let intruder = &hospital.machine("intruder").host;
        // Routed like the tunnel's packets are: from the building's network into the servers'.
        let ws = &hospital.machine("ws-1").host;
        let beside = ping::ping(ws, hospital.machine("archive-1").address(), 400, every)?;
        let flat = ping::ping(intruder, hospital.machine("archive-1").address(), 400, every)?;
        let median = |series: &ping::Series| series.percentile(0.5).context("no answers");
        let (through_p50, beside_p50) = (median(&through)?, median(&beside)?);
        figure = json!({
            "through_two_gateways_p50_us": through_p50,
            "through_two_gateways_p99_us": through.percentile(0.99),
            "routed_without_gateways_p50_us": beside_p50,
            "switched_without_gateways_p50_us": median(&flat)?,
            "added_p50_us": through_p50.saturating_sub(beside_p50),
        });
        Ok(format!("{} µs more at the median", through_p50.saturating_sub(beside_p50)))
    });
    report.figure("round_trip", figure);
}

fn memory(report: &mut Report, hospital: &mut Hospital) {
    let mut figures = Vec::new();
    report.check("memory", "agent and controller, idle and under one iperf3 stream", || {
        let controller = hospital.controller.process()?.resident()?;
        let agent = hospital.gateway("imaging").process()?.resident()?;
        figures.push(("controller_idle_rss_kb", json!(controller)));
        figures.push(("agent_idle_rss_kb", json!(agent)));
        let mut seen = format!("idle: agent {agent} kB, controller {controller} kB");
        if let Some(iperf3) = programs::find("iperf3") {
            let (rate, loaded) = stream(hospital, &iperf3)?;
            let busy = hospital.controller.process()?.resident()?;
            figures.push(("controller_loaded_rss_kb", json!(busy)));
            figures.push(("agent_loaded_rss_kb", json!(loaded)));
            figures.push(("iperf3_through_tunnel_mbit_per_s", json!(rate)));
            seen.push_str(&format!("; loaded: agent {loaded} kB at {rate} Mbit/s"));
        }
        Ok(seen)
    });
    for (name, value) in figures {
        report.figure(name, value);
    }
}

/// One TCP stream from the CT to the PACS, on DICOM's port: what it carries, and the agent's memory towards its end.
fn stream(hospital: &mut Hospital, iperf3: &Path) -> Result<(u64, u64)> {
    let (ct, pacs) = (hospital.machine("ct-1").host.clone(), hospital.machine("pacs-1"));
    let (server, address): (&Host, Ipv4Addr) = (&pacs.host, pacs.address());
    let port = crate::clinical::dicom::ORTHANC_PORT.to_string();
    let mut serve = server.command(iperf3);
    serve.args(["--server", "--one-off", "--port", &port]);
    let log = hospital.logs.join("iperf3.log");
    let mut serving = Process::spawn("iperf3", &mut serve, &log)?;
    crate::process::wait_listening(server, 104, &mut serving, Duration::from_secs(60))?;
    let log = hospital.logs.join("iperf3-client.log");
    let mut send = ct.command(iperf3);
    send.args(["--client", &address.to_string(), "--port", &port, "--time", "5", "--json"]);
    let mut sending = Process::spawn("iperf3", &mut send, &log)?;
    let agent = hospital.gateway("imaging").process()?;
    let mut highest = 0;
    let status = wait::until(Duration::from_secs(60), "iperf3 to end", || {
        highest = highest.max(agent.resident().unwrap_or(0));
        sending.ended()
    })?;
    if !status.success() {
        bail!("iperf3 ended with {status}: {}", sending.tail());
    }
    let result: Value = serde_json::from_str(&sending.output())?;
    let rate = result["end"]["sum_received"]["bits_per_second"].as_f64().context("no rate")?;
    Ok(((rate / 1e6) as u64, highest))
}

/// Revokes a gateway again and again, enrolling it anew in between: from the controller's taking over of the revision to the
/// last ping that passed.
fn revocation(report: &mut Report, hospital: &mut Hospital, rounds: u32) {
    let mut times = Vec::new();
    let expected = "revocation to cut off: p99 under 250 ms, as pings see it";
    report.check("revocation", expected, || {
        let pacs = hospital.machine("pacs-1").address();
        let mut name = "imaging".to_owned();
        for round in 1..=rounds {
            let ct = hospital.machine("ct-1").host.clone();
            let pinging = Pinging::start(&ct, pacs, 1_000_000, FINE)?;
            wait::until(Duration::from_secs(60), "a ping to pass", || {
                (pinging.received() > 0).then_some(())
            })?;
            story::revoke(hospital, &name)?;
            let series = pinging.stop()?;
            times.push(since(newest_accepted(hospital)?, series.last_reply_at.context("none")?));
            if round < rounds {
                name = format!("imaging-{round}");
                enrol_anew(hospital, &name)?;
            }
        }
        times.sort_unstable();
        let p99 = percentile(&times, 0.99).context("no rounds")?;
        let seen = format!("p50 {} ms, p99 {p99} ms", percentile(&times, 0.5).unwrap_or(0));
        if p99 >= 250 { bail!("{seen}: {times:?}") } else { Ok(seen) }
    });
    report.figure("revoke_to_cut_off_ms", spread(times));
}

/// Puts a new gateway in the place of the imaging one, and its devices behind it.
fn enrol_anew(hospital: &mut Hospital, name: &str) -> Result<()> {
    let invite = hospital.operator.invite(name, crate::hospital::SITE)?;
    let gateway = hospital.gateway("imaging");
    gateway.kill()?;
    gateway.forget()?;
    gateway.enroll(&invite)?;
    gateway.start()?;
    gateway.wait_running()?;
    let why = "taking the place of a revoked one";
    hospital.operator.ok(&["gateway", "approve", name, "--reason", why, "--yes"])?;
    let behind = ["ct-1", "mri-1"];
    for device in behind {
        hospital.machine(device).announce()?;
    }
    wait::until_ok(Duration::from_secs(60), "the devices to be seen behind it", || {
        // What revoked gateways saw of them is still listed.
        let new = hospital.operator.json(&["device", "list", "--new"])?;
        let rows = new.as_array().context("a list of devices")?;
        for device in behind {
            let mac = hospital.machine(device).plan.mac();
            if !rows.iter().any(|row| row["mac"] == mac && row["gateway"] == name) {
                bail!("no {mac} behind {name} in {new}");
            }
        }
        Ok(())
    })?;
    // They are in enforce, and watched by this gateway for a moment only.
    for device in behind {
        story::confirm(hospital, device, &["--force"])?;
    }
    wait::until_ok(Duration::from_secs(60), "the tunnel to carry a ping", || {
        let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
        let series = ping::ping(&ct.host, pacs, 3, BEAT)?;
        if series.received == 0 { bail!("{series:?}") } else { Ok(()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_values_are_values() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[7], 0.99), Some(7));
        assert_eq!(percentile(&[1, 2, 3, 4, 5], 0.5), Some(3));
        assert_eq!(percentile(&[1, 2, 3, 4, 5], 0.99), Some(5));
        assert_eq!(spread(vec![3, 1, 2])["max"], 3);
    }

    #[test]
    fn the_command_lines_times_are_read() {
        assert_eq!(moment(&json!("1970-01-01T00:00:01.250Z")), Some(1_250));
        assert_eq!(moment(&json!("yesterday")), None);
    }
}
