//! What gateways in use take while nothing is under way: two of the three of the lab's hospital, enrolled by its operator's own
//! commands, with a live connection to the controller, direct paths, and devices in enforce that keep silent.

use std::path::Path;
use std::time::{Duration, Instant};

use anteroom_lab::figures::enforced_hospital;
use anteroom_lab::hospital::Hospital;
use anteroom_lab::programs::Programs;
use anteroom_lab::relay::Relay;
use anteroom_lab::wait;
use anyhow::{Context as _, Result, ensure};

use crate::report::{Record, Row, short};
use crate::usage::{Cpu, Wakes, resident};
use crate::world::scratch;

/// The gateways that are measured: each has a tunnel to the other, and to the third.
const GATEWAYS: [&str; 2] = ["imaging", "servers"];
/// Names of relays, and the machines that they stand on.
const RELAYS: [(&str, &str); 2] = [("east", "ws-1"), ("west", "hvac-1")];
/// Most of them.
pub const MOST: u8 = RELAYS.len() as u8;
/// Where relays listen.
const PORT: u16 = 4_500;
/// How long gateways may take to be connected everywhere, and then to take direct paths.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long all is left alone before anything is counted, for what the start itself has set going.
const SETTLING: Duration = Duration::from_secs(15);

/// How much is measured, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// With how many relays of their own beside the controller.
    pub relays: Vec<u8>,
    /// How often.
    pub rounds: u32,
    /// How long each time.
    pub time: Duration,
}

/// Runs the plan, adds what it finds to `record`, and says it on standard error.
///
/// # Errors
/// If the hospital doesn't come up, a program ends, or the record can't be written.
pub fn run(plan: &Plan, programs: Programs, logs: &Path, record: &mut Record) -> Result<()> {
    let directory = scratch()?;
    let mut hospital = enforced_hospital(programs, directory.path(), logs)?;
    let mut counts = plan.relays.clone();
    counts.sort_unstable();
    let mut relays = Vec::new();
    for count in counts {
        for (name, machine) in RELAYS.into_iter().take(count.into()).skip(relays.len()) {
            let mut relay = Relay::make(&hospital, name, machine, PORT)?;
            relay.start()?;
            let words = ["relay", "add", name, "--code", &relay.code];
            let why = ["--reason", "measuring", "--yes"];
            hospital.operator.ok(&[&words[..], &why].concat())?;
            relays.push(relay);
        }
        for gateway in GATEWAYS {
            wait::until_ok(PATIENCE, "gateways to be connected, with direct paths", || {
                at_rest(&hospital, gateway, relays.len())
            })?;
        }
        std::thread::sleep(SETTLING);
        for round in 1..=plan.rounds {
            let figures = measure(&mut hospital, plan.time)?;
            let label = match count {
                0 => "controller".to_owned(),
                1 => "and a relay".to_owned(),
                more => format!("and {more} relays"),
            };
            let said: Vec<String> = figures
                .iter()
                .map(|(what, value, unit)| format!("{what} {} {unit}", short(*value)))
                .collect();
            eprintln!("round {round}: {label}: {}", said.join(", "));
            for (what, value, unit) in figures {
                let (subject, test) = ("anteroom".to_owned(), format!("{label}: {what}"));
                record.push(Row { subject, test, value, unit: unit.into(), round })?;
            }
        }
    }
    Ok(())
}

/// An error unless a gateway is connected to the controller and all relays (the controller is one, too), and needs none of them.
fn at_rest(hospital: &Hospital, gateway: &str, relays: usize) -> Result<()> {
    let status = hospital.gateways[gateway].status()?;
    ensure!(!status["control"]["connected"].is_null(), "{gateway}: {}", status["control"]);
    let at = status["relays"].as_array().context("no relays in the status")?;
    let all = at.len() == relays + 1 && at.iter().all(|relay| relay["connected"] == true);
    ensure!(all, "{gateway}: {at:?}");
    let peers = status["data_plane"]["engine"]["peers"].as_array().context("no peers")?;
    let direct = !peers.is_empty() && peers.iter().all(|peer| peer["relay"].is_null());
    ensure!(direct, "{gateway}: {peers:?}");
    Ok(())
}

fn measure(hospital: &mut Hospital, time: Duration) -> Result<Vec<(String, f64, &'static str)>> {
    let pids = GATEWAYS.map(|name| hospital.gateway(name).process().map(|process| process.id()));
    let pids: Vec<u32> = pids.into_iter().collect::<Result<_>>()?;
    let begun = (Instant::now(), Cpu::of(&pids)?, Wakes::of(&pids)?);
    std::thread::sleep(time);
    let seconds = begun.0.elapsed().as_secs_f64();
    let used = Cpu::of(&pids)?.since(&begun.1) / seconds;
    let woken = Wakes::of(&pids)?.since(&begun.2);
    let all = woken.values().sum::<u64>() as f64;
    let mut figures = vec![
        ("cpu".to_owned(), used * 100.0, "% of a core"),
        ("memory".to_owned(), resident(&pids)?, "MiB"),
        ("wake-ups".to_owned(), all / seconds, "/s"),
    ];
    let of_threads = woken.into_iter().filter(|(_, count)| *count > 0);
    figures.extend(
        of_threads.map(|(name, count)| (format!("wake-ups: {name}"), count as f64 / seconds, "/s")),
    );
    Ok(figures)
}
