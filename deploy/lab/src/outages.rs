//! How long traffic stops when something fails: a table, measured with the real programs.
//!
//! An observed device exchanges a numbered frame a millisecond with a machine on its network, both ways. An enforced
//! one pings another through the tunnel once a millisecond.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use comfy_table::{Table, presets};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::figures::{enforce, observed_hospital, percentile};
use crate::hospital::Hospital;
use crate::ping::Pinging;
use crate::programs::{self, Programs};
use crate::story::{POLICY, Report};
use crate::stream::{Passage, Stream};
use crate::wait;

/// The beat of streams and pings.
const EVERY: Duration = Duration::from_millis(1);

/// More frames than can be under way at this beat.
const SOME: u64 = 100;

/// How soon a service manager starts a dead agent anew (`RestartSec` of its unit).
const RESTART: Duration = Duration::from_millis(100);

/// How long anything may take to work again before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// The gateway that fails, the device behind it, and its port.
const GATEWAY: &str = "imaging";
const DEVICE: &str = "ct-1";

/// A row of the table, as it grows.
#[derive(Debug, Default)]
struct Row {
    what: String,
    /// Longest outages, out and in, in milliseconds.
    outages: [Vec<u64>; 2],
    lost: u64,
    doubled: u64,
}

/// All rows.
#[derive(Debug, Default)]
pub struct Outages {
    rows: Vec<Row>,
}

impl Outages {
    fn note(&mut self, what: &str, outages: [u64; 2], lost: u64, doubled: u64) {
        let row = match self.rows.iter_mut().position(|row| row.what == what) {
            Some(place) => &mut self.rows[place],
            None => {
                self.rows.push(Row { what: what.into(), ..Row::default() });
                let last = self.rows.len() - 1;
                &mut self.rows[last]
            }
        };
        for (all, one) in row.outages.iter_mut().zip(outages) {
            all.push(one);
            all.sort_unstable();
        }
        row.lost += lost;
        row.doubled += doubled;
    }

    /// The table as Markdown.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "what",
            "out: median, worst ms",
            "in: median, worst ms",
            "lost",
            "doubled",
        ]);
        for row in &self.rows {
            let spread = |times: &Vec<u64>| {
                let at = |share| percentile(times, share).unwrap_or(0);
                format!("{}, {}", at(0.5), at(1.0))
            };
            let [out, back] = &row.outages;
            let counts = [row.lost.to_string(), row.doubled.to_string()];
            let [lost, doubled] = counts;
            table.add_row([row.what.clone(), spread(out), spread(back), lost, doubled]);
        }
        table.to_string()
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({ "what": row.what, "out_ms": row.outages[0], "in_ms": row.outages[1],
                    "lost": row.lost, "doubled": row.doubled })
        });
        Value::Array(rows.collect())
    }
}

/// Measures everything.
///
/// # Errors
/// If the hospital can't be raised; what can't be measured is in the report as a check that failed.
pub fn measure(
    programs: Programs,
    directory: &Path,
    logs: &Path,
    mut report: Report,
    rounds: u32,
) -> Result<Report> {
    let mut outages = Outages::default();
    report.begin(1, "Outages on a wire");
    let mut hospital = None;
    report.check("raise", "a hospital with every device in observe", || {
        hospital = Some(observed_hospital(programs, directory, logs)?);
        Ok("up".into())
    });
    let Some(mut hospital) = hospital else { return Ok(report) };
    for (id, expected, limit, work) in WIRE {
        measured(&mut report, &mut outages, id, expected, *limit, rounds, &mut || {
            set_running(&mut hospital, *id != STARTED)?;
            on_a_wire(&mut hospital, *work)
        });
    }
    report.end("");
    report.begin(2, "Outages in enforce");
    set_running(&mut hospital, true)?;
    hospital.operator.ok(&["status", "--wait", "20"])?;
    let enforced = report.check("enforce", "every device in enforce", || {
        enforce(&hospital)?;
        Ok("enforced".into())
    });
    if enforced.is_some() {
        for (id, expected, limit, work) in ENFORCED {
            measured(&mut report, &mut outages, id, expected, *limit, rounds, &mut || {
                set_running(&mut hospital, true)?;
                through_the_tunnel(&mut hospital, *work)
            });
        }
        report.check(
            "closed",
            "while the agent is dead not one frame passes a closed port",
            || closed(&mut hospital),
        );
    }
    report.end("");
    report.line(&outages.table());
    report.figure("outages", outages.json());
    Ok(report)
}

/// Something that fails, or is changed, in a hospital. It is over on return.
type Work = fn(&mut Hospital) -> Result<()>;

/// Word, description, longest bearable outage in milliseconds, and what is done. The limits are generous, for machines
/// that do other things too: the table has what was measured.
type Case = (&'static str, &'static str, u64, Work);

/// The case that begins with a dead agent.
const STARTED: &str = "wire-started";

const WIRE: &[Case] = &[
    ("wire-killed", "agent killed (kill -9), on_failure = wire", 2_000, |hospital| {
        hospital.gateway(GATEWAY).kill()
    }),
    (STARTED, "agent started again: takes over from the kernel", 1_000, start),
    ("wire-hung", "agent hung (SIGSTOP) until the kernel forwards, and awake again", 2_000, hang),
    ("wire-upgraded", "agent upgraded in place (systemctl restart)", 1_000, upgrade),
    ("wire-supervised", "agent killed, and started anew after 100 ms", 2_000, supervised),
    ("wire-flushed", "`nft flush ruleset` on the gateway", 1_000, flush),
    ("wire-controller", "controller killed and started", 1_000, controller),
    ("wire-uplink", "uplink without a cable for 300 ms", 4_000, uplink),
];

const ENFORCED: &[Case] = &[
    ("enforced-applied", "a view applied", 1_000, |hospital| {
        let other =
            POLICY.replace("services = [\"ct-listen\"]", "services = [\"ct-listen\", \"ping\"]");
        for (name, text) in [("other.toml", other.as_str()), ("back.toml", POLICY)] {
            let file = hospital.operator.write_policy(name, text)?;
            hospital.operator.apply(&file, "measuring")?;
        }
        Ok(())
    }),
    ("enforced-controller", "controller killed and started", 1_000, controller),
    ("enforced-flushed", "`nft flush ruleset` on the gateway", 1_000, flush),
    (
        "enforced-supervised",
        "agent killed, and started anew after 100 ms: closed meanwhile",
        5_000,
        supervised,
    ),
    ("enforced-upgraded", "agent upgraded in place: closed meanwhile", 5_000, upgrade),
    (
        "enforced-far",
        "the other gateway's agent killed, and started anew after 100 ms",
        5_000,
        |hospital| restart(hospital, "servers"),
    ),
    ("enforced-uplink", "uplink without a cable for 300 ms", 4_000, uplink),
];

fn measured(
    report: &mut Report,
    outages: &mut Outages,
    id: &str,
    expected: &str,
    limit: u64,
    rounds: u32,
    work: &mut dyn FnMut() -> Result<([u64; 2], u64, u64)>,
) {
    let mode = if id.starts_with("wire") { "observe" } else { "enforce" };
    report.check(id, expected, || {
        let mut worst = 0;
        for _ in 0..rounds {
            let (times, lost, doubled) = work()?;
            outages.note(&format!("{mode}: {expected}"), times, lost, doubled);
            worst = worst.max(times[0]).max(times[1]);
            if doubled > 0 {
                bail!("{doubled} frames passed twice");
            }
        }
        if worst > limit {
            bail!("{worst} ms, more than {limit} ms")
        } else {
            Ok(format!("{worst} ms at most"))
        }
    });
}

/// Has the gateway's agent run, or be dead.
fn set_running(hospital: &mut Hospital, running: bool) -> Result<()> {
    let runs = hospital.gateway(GATEWAY).process().is_ok_and(|process| process.ended().is_none());
    match (runs, running) {
        (false, true) => start(hospital),
        (true, false) => hospital.gateway(GATEWAY).kill(),
        _ => Ok(()),
    }
}

/// Streams between the device and a machine on its network, both ways.
fn streams(hospital: &Hospital) -> Result<[Stream; 2]> {
    let device = (&hospital.machine(DEVICE).host, "eth0");
    let other = (&hospital.machine("intruder").host, GATEWAY);
    let macs = [device.0.mac(device.1)?, other.0.mac(other.1)?];
    let headers = |from: [u8; 6], to: [u8; 6]| [&to[..], &from, &[0x88, 0xb5]].concat();
    Ok([
        Stream::start(device, other, &headers(macs[0], macs[1]), EVERY)?,
        Stream::start(other, device, &headers(macs[1], macs[0]), EVERY)?,
    ])
}

fn more(stream: &Stream) -> Result<()> {
    let before = stream.received();
    wait::until(PATIENCE, "frames to pass", || (stream.received() >= before + SOME).then_some(()))
        .map_err(Into::into)
}

fn on_a_wire(hospital: &mut Hospital, work: Work) -> Result<([u64; 2], u64, u64)> {
    // What failed before is over when the count begins.
    let before = streams(hospital)?;
    before.iter().try_for_each(more)?;
    for stream in before {
        stream.stop()?;
    }
    let streams = streams(hospital)?;
    streams.iter().try_for_each(more)?;
    work(hospital)?;
    streams.iter().try_for_each(more)?;
    let [out, back]: [Result<Passage>; 2] = streams.map(Stream::stop);
    let (out, back) = (out?, back?);
    let millis = |passage: &Passage| passage.longest_outage_us / 1000;
    let times = [millis(&out), millis(&back)];
    Ok((times, out.lost() + back.lost(), out.doubled + back.doubled))
}

fn through_the_tunnel(hospital: &mut Hospital, work: Work) -> Result<([u64; 2], u64, u64)> {
    let from = hospital.machine(DEVICE).host.clone();
    let to = hospital.machine("pacs-1").address();
    let pinging = Pinging::start(&from, to, 1_000_000, EVERY)?;
    let more = |pinging: &Pinging| {
        let before = pinging.received();
        wait::until(PATIENCE, "pings to pass", || {
            (pinging.received() >= before + SOME).then_some(())
        })
    };
    more(&pinging)?;
    work(hospital)?;
    more(&pinging)?;
    let series = pinging.stop()?;
    // The end of the series isn't an outage: what was still under way is lost to nobody.
    let gap = series.longest_gap;
    Ok(([gap, gap], series.lost(), 0))
}

fn start(hospital: &mut Hospital) -> Result<()> {
    let gateway = hospital.gateway(GATEWAY);
    gateway.start()?;
    gateway.wait_running()
}

fn hang(hospital: &mut Hospital) -> Result<()> {
    let watch = streams(hospital)?;
    let result = hospital.gateway(GATEWAY).process()?.signal(Signal::SIGSTOP);
    let passed = watch.iter().try_for_each(more);
    hospital.gateway(GATEWAY).process()?.signal(Signal::SIGCONT)?;
    for stream in watch {
        stream.stop()?;
    }
    result.and(passed)
}

fn upgrade(hospital: &mut Hospital) -> Result<()> {
    let gateway = hospital.gateway(GATEWAY);
    gateway.stop()?;
    gateway.start()?;
    gateway.wait_running()
}

fn supervised(hospital: &mut Hospital) -> Result<()> {
    restart(hospital, GATEWAY)
}

fn restart(hospital: &mut Hospital, name: &str) -> Result<()> {
    let gateway = hospital.gateway(name);
    gateway.kill()?;
    std::thread::sleep(RESTART);
    gateway.start()?;
    gateway.wait_running()
}

fn flush(hospital: &mut Hospital) -> Result<()> {
    let nft = programs::find("nft").context("`nft` isn't installed")?;
    let host = &hospital.gateway(GATEWAY).host;
    host.run(&nft, &["flush", "ruleset"])?;
    wait::until(PATIENCE, "the tables to be back", || {
        let tables = host.run(&nft, &["list", "tables"]).ok()?;
        (tables.contains("anteroom_guard") && tables.contains("netdev anteroom")).then_some(())
    })
    .map_err(Into::into)
}

fn controller(hospital: &mut Hospital) -> Result<()> {
    hospital.controller.kill()?;
    hospital.controller.start()?;
    hospital.operator.ok(&["status", "--wait", "20"]).map(drop)
}

fn uplink(hospital: &mut Hospital) -> Result<()> {
    let socket = format!("u-{GATEWAY}");
    hospital.campus.ip(&format!("link set {socket} down"))?;
    std::thread::sleep(Duration::from_millis(300));
    hospital.campus.ip(&format!("link set {socket} up")).map(drop)
}

/// Kills the agent of an enforced device and sends every kind of frame at its port, both ways.
fn closed(hospital: &mut Hospital) -> Result<String> {
    hospital.gateway(GATEWAY).kill()?;
    let device = hospital.machine(DEVICE).host.clone();
    let other = hospital.machine("intruder").host.clone();
    let macs = [device.mac("eth0")?, other.mac(GATEWAY)?];
    let kinds: [([u8; 6], u16); 5] = [
        ([0x01, 0x80, 0xc2, 0, 0, 3], 0x888e),
        ([0x01, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc),
        ([0xff; 6], 0x0806),
        ([0xff; 6], 0x0800),
        ([0x33, 0x33, 0, 0, 0, 1], 0x86dd),
    ];
    let mut streams = Vec::new();
    for (to, kind) in kinds {
        let headers = |from: [u8; 6]| [&to[..], &from, &kind.to_be_bytes()].concat();
        let ends = [(&device, "eth0"), (&other, GATEWAY)];
        streams.push(Stream::start(ends[0], ends[1], &headers(macs[0]), EVERY)?);
        streams.push(Stream::start(ends[1], ends[0], &headers(macs[1]), EVERY)?);
    }
    for stream in &streams {
        wait::until(PATIENCE, "frames to be sent", || (stream.sent() >= 5 * SOME).then_some(()))?;
    }
    let (mut sent, mut received) = (0, 0);
    for stream in streams {
        let passage = stream.stop()?;
        sent += passage.sent;
        received += passage.received;
    }
    start(hospital)?;
    if received > 0 {
        bail!("{received} of {sent} frames passed")
    } else {
        Ok(format!("0 of {sent}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_case_with_its_worst() {
        let mut outages = Outages::default();
        outages.note("killed", [200, 210], 400, 0);
        outages.note("killed", [230, 190], 410, 0);
        outages.note("flushed", [0, 0], 0, 0);
        let table = outages.table();
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(table.contains("230, 230") && table.contains("210, 210"), "{table}");
        assert!(table.contains(" 810 "), "{table}");
        assert_eq!(outages.json()[0]["lost"], 810);
    }
}
