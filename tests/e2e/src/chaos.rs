//! Bad luck: programs die at random moments, under traffic and changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anteroom_agent::state::{Held, StateDir};
use anteroom_lab::anteroom::Gateway;
use anteroom_lab::hospital::{GATEWAYS, Hospital};
use anteroom_lab::{ping, wait};
use anyhow::{Context as _, Result, bail, ensure};

/// How long anything may take to be well again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Kills in every run.
pub const LEAST_KILLS: u64 = 3;

/// How much longer than asked a run may take on a machine so busy that until then nothing was killed or changed.
const AT_MOST: Duration = Duration::from_secs(120);

/// What a run of bad luck came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Programs killed.
    pub kills: u64,
    /// Of which the controller.
    pub controllers: u64,
    /// Changes that operators made meanwhile.
    pub changes: u64,
    /// Changes that failed, with nothing worse than an error.
    pub refused: u64,
}

/// A small generator: the same seed gives the same moments.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Kills gateways and the controller at random moments for `time`, and until there were [`LEAST_KILLS`] and a change, while an operator changes labels. After each kill every
/// saved file must hold, nothing may be older than it was, and after each restart of the controller its audit log must
/// verify.
///
/// # Errors
/// What didn't hold, and after which kill.
pub fn run(hospital: &mut Hospital, time: Duration, seed: u64) -> Result<Tally> {
    let mut random = Random(seed | 1);
    let mut tally = Tally::default();
    let stop = Arc::new(AtomicBool::new(false));
    let (made, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let home = hospital.operator.home.clone();
    let operator = hospital.operator.with_home(&home);
    let result = std::thread::scope(|scope| {
        let changing = scope.spawn(|| -> Result<()> {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let label = format!("round={number}");
                let outcome = operator
                    .command(&["device", "label", "ct-1", &label, "--reason", "chaos", "--yes"])?;
                let said = format!("{}{}", outcome.stdout, outcome.stderr);
                ensure!(!said.contains("panicked"), "a panic: {outcome}");
                let count = if outcome.code == 0 { &made } else { &refused };
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let mut newest = [0; GATEWAYS.len()];
        let end = Instant::now() + time;
        let mut round = || -> Result<()> {
            let enough =
                |tally: &Tally| tally.kills >= LEAST_KILLS && made.load(Ordering::Relaxed) > 0;
            while Instant::now() < end || (!enough(&tally) && Instant::now() < end + AT_MOST) {
                std::thread::sleep(Duration::from_millis(random.below(700)));
                let victim = usize::try_from(random.below(4))?;
                tally.kills += 1;
                if let Some(name) = GATEWAYS.get(victim) {
                    one_gateway(hospital.gateway(name), &mut newest[victim])
                        .with_context(|| format!("kill {} of {name}, seed {seed}", tally.kills))?;
                } else {
                    tally.controllers += 1;
                    one_controller(hospital).with_context(|| {
                        format!("kill {} of the controller, seed {seed}", tally.kills)
                    })?;
                }
            }
            Ok(())
        };
        let result = round();
        stop.store(true, Ordering::Relaxed);
        let changed = changing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and(changed)
    });
    result?;
    tally.changes = made.load(Ordering::Relaxed);
    tally.refused = refused.load(Ordering::Relaxed);
    all_is_well(hospital)?;
    Ok(tally)
}

/// Kills a gateway, looks at what it left, and starts it again.
fn one_gateway(gateway: &mut Gateway, newest: &mut u64) -> Result<()> {
    gateway.kill()?;
    let held = Held::load(&StateDir::open(&gateway.state)?)?;
    ensure!(held.problems.is_empty(), "saved files don't hold: {:?}", held.problems);
    ensure!(!held.closed, "it forgot its view");
    let enrolled = held.enrolled.context("it forgot who it is")?;
    ensure!(enrolled.chain.is_some(), "it forgot the authority");
    let view = enrolled.view.context("it forgot its view")?;
    ensure!(view.revision >= *newest, "revision {} after {newest}", view.revision);
    ensure!(enrolled.floor.revision.1 >= view.revision, "its floor is below its view");
    *newest = view.revision;
    gateway.start()?;
    gateway.wait_running()?;
    let status = gateway.status()?;
    let problems = &status["problems"];
    ensure!(problems.as_array().is_some_and(Vec::is_empty), "it complains: {problems}");
    Ok(())
}

/// Kills the controller, starts it again, and has its log verified.
fn one_controller(hospital: &mut Hospital) -> Result<()> {
    hospital.controller.kill()?;
    hospital.controller.start()?;
    let outcome = hospital.operator.command(&["audit", "verify"])?;
    ensure!(outcome.code == 0, "{outcome}");
    Ok(())
}

/// Everything is as it should be, in the end.
fn all_is_well(hospital: &Hospital) -> Result<()> {
    hospital.operator.ok(&["status", "--wait", "30"])?;
    hospital.operator.ok(&["audit", "verify"])?;
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
    wait::until_ok(PATIENCE, "a ping through the tunnel", || {
        let series = ping::ping(&ct.host, pacs, 5, Duration::from_millis(5))?;
        if series.lost() > 0 { bail!("{series:?}") } else { Ok(()) }
    })?;
    let hvac = &hospital.machine("hvac-1").host;
    for device in hospital.devices() {
        let series = ping::ping(hvac, device.address(), 3, Duration::from_millis(5))?;
        ensure!(series.received == 0, "{} answers strangers", device.plan.name);
    }
    Ok(())
}
