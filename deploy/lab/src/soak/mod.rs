//! The soak: a hospital in enforce whose network, keys, programs and policy change at random for as long as one likes.
//!
//! What must hold all the time: connections that are allowed go on, the same ones from beginning to end; what
//! strangers send arrives nowhere; nothing of the devices can be read on the campus; a rule that closes cuts, and one
//! that opens opens. Which changes come in which order follows from a seed.

mod carriers;
mod changes;
mod endless;
mod flood;
mod flows;
mod orders;
mod paths;
mod relays;
mod strangers;
mod tally;
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::clocks::Clocks;
use crate::figures::enforced_hospital;
use crate::hospital::Hospital;
use crate::ping::{Pinging, Series};
use crate::programs::Programs;
use crate::stall::Stalls;
use crate::story::Report;
use crate::wait;
use crate::wan::chance::Chance;

use carriers::Carriers;
use changes::{Burst, Change};
use flows::Flows;
use orders::Orders;
use strangers::Strangers;
use tally::{Cost, Tally};
use world::World;

/// Between two pings.
const BEAT: Duration = Duration::from_millis(10);
/// How long anything may take to go on after a change, on a machine with a lot else to do.
const PATIENCE: Duration = Duration::from_secs(90);

/// What happens, and how strictly it is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// By chance for so long, one burst of changes at least. What must cost nothing may lose no ping, and nothing may keep
    /// what is allowed from going on for longer than people would bear.
    Chance(Duration),
    /// A change of keys, of the path and of a program each, always the same. Nothing is judged by the clock.
    Short,
}

impl Course {
    /// What comes next, if anything does.
    fn next(self, done: usize, begun: Instant, chance: &mut Chance) -> Option<Burst> {
        match self {
            Self::Chance(time) if done > 0 && begun.elapsed() >= time => None,
            Self::Chance(_) => Some(Burst::draw(chance)),
            Self::Short => {
                let soon = Duration::from_millis(300);
                let all = [
                    Burst::of(Change::Rotate),
                    Burst(vec![(Duration::ZERO, Change::Block), (soon, Change::Revision)]),
                    Burst::of(Change::Kill("imaging")),
                    Burst::of(Change::Heal),
                ];
                all.get(done).cloned()
            }
        }
    }
}

/// Everything under way.
struct Soak {
    world: World,
    flows: Flows,
    strangers: Strangers,
    orders: Orders,
    stalls: Stalls,
    tally: Tally,
    strict: bool,
}

/// Soaks; `seed` says what happens by chance.
///
/// # Errors
/// If the hospital can't be raised. What didn't hold is in the report as a check that failed.
pub fn measure(
    programs: Programs,
    directory: &Path,
    logs: &Path,
    mut report: Report,
    course: Course,
    seed: u64,
) -> Result<Report> {
    report.begin(1, "Soak");
    report.line(&format!("Again with these changes: cargo lab soak --seed {seed}"));
    let mut soak = None;
    report.check("raise", "a hospital in enforce, its flows and strangers at work", || {
        let (clocks, programs) = match Clocks::lie_to(programs.clone(), &directory.join("clocks"))?
        {
            Some((clocks, programs)) => (Some(clocks), programs),
            None => (None, programs),
        };
        let seen = match clocks {
            Some(_) => "up",
            None => "up; without libfaketime clocks stay right: agents are killed only",
        };
        let hospital = enforced_hospital(programs, directory, logs)?;
        soak = Some(Soak::start(hospital, clocks, seed, course != Course::Short)?);
        Ok(seen.into())
    });
    let Some(mut soak) = soak else { return Ok(report) };
    let (begun, mut chance, mut bursts) = (Instant::now(), Chance::new(seed), 0);
    let went_on = report.check("changes", "after each change all that is allowed goes on", || {
        while let Some(burst) = course.next(bursts, begun, &mut chance) {
            bursts += 1;
            soak.suffer(&burst).map_err(|error| {
                error.context(format!("after {bursts}: {burst}\n{}", soak.world.state()))
            })?;
        }
        Ok(format!("{} changes, {bursts} times", soak.tally.changes()))
    });
    report.figure("soak_seed", seed);
    report.figure("soak_changes", soak.tally.changes() as u64);
    let table = soak.tally.table();
    let summary = soak.finish(&mut report, went_on.is_some(), begun.elapsed());
    report.end("");
    report.line(&format!("{table}\n\n{summary}\n"));
    Ok(report)
}

impl Soak {
    fn start(hospital: Hospital, clocks: Option<Clocks>, seed: u64, strict: bool) -> Result<Self> {
        let world = World::prepare(hospital, clocks, seed)?;
        let orders = Orders::begin(&world)?;
        let flows = Flows::start(&world.hospital)?;
        let strangers = Strangers::start(&world.hospital)?;
        let stalls = Stalls::watch()?;
        let soak =
            Self { world, flows, strangers, orders, stalls, tally: Tally::default(), strict };
        soak.flows.go_on()?;
        Ok(soak)
    }

    /// Makes changes, waits until all goes on, and notes what they cost.
    fn suffer(&mut self, burst: &Burst) -> Result<()> {
        let (good, over_tcp) = (self.world.is_good(), self.world.is_over_tcp());
        if good {
            self.world.all_is_direct(PATIENCE)?;
        }
        if burst.alone().is_some_and(Change::is_by_operator) {
            // What was away for the change before has come back, or the command would be right to complain.
            self.world.settle()?;
        }
        // Why a connection was left can be said where nothing else happened to it.
        let blocked = good && burst.alone() == Some(Change::TcpOnly);
        let carriers = blocked.then(|| Carriers::read(&self.world.hospital)).transpose()?;
        let _ = self.stalls.worst();
        let hospital = &self.world.hospital;
        let pairs = [("ct-1", "pacs-1"), ("monitor-1", "hl7-1")];
        let mut pinging = Vec::new();
        for (from, to) in pairs {
            let (from, to) = (&hospital.machine(from).host, hospital.machine(to).address());
            pinging.push(Pinging::start(from, to, u64::MAX, BEAT)?);
        }
        let some = |when: &str| {
            let before: Vec<u64> = pinging.iter().map(Pinging::received).collect();
            wait::until(PATIENCE, &format!("pings {when}"), || {
                let more = |(now, before): (&Pinging, &u64)| now.received() >= before + 20;
                pinging.iter().zip(&before).all(more).then_some(())
            })
            .map_err(anyhow::Error::from)
        };
        let after = some("before it").and_then(|()| self.happen(burst)).and_then(|()| {
            some("after it")?;
            self.flows.go_on()?;
            if !self.orders.open() {
                // Closing goes at once wherever the revision has come.
                self.world.settle()?;
            }
            self.flows.side_is(&self.world.hospital, self.orders.open())?;
            self.strangers.found_nothing()
        });
        let series: Vec<Series> = pinging.into_iter().map(Pinging::stop).collect::<Result<_>>()?;
        let cost = Cost::of(&series, BEAT, self.stalls.worst());
        self.tally.note(burst, good, cost);
        after?;
        let given_up = match carriers {
            Some(before) => Some(Carriers::read(&self.world.hospital)?.given_up(&before)),
            None => None,
        };
        if self.strict {
            judge(burst, good, waits_for_quic(burst, over_tcp, given_up.as_deref()), cost)
                .with_context(|| format!("given up by QUIC: {given_up:?}"))?;
        }
        Ok(())
    }

    /// Has all of a burst begin and end when it is to.
    fn happen(&mut self, burst: &Burst) -> Result<()> {
        let mut order = None;
        let mut ends: Vec<(Instant, Change)> = Vec::new();
        let mut next = Instant::now();
        for (pause, change) in &burst.0 {
            next = next.max(Instant::now()) + *pause;
            self.end_until(&mut ends, Some(next))?;
            sleep_until(next);
            if change.is_by_operator() {
                order = Some(self.orders.give(&mut self.world, *change)?);
            } else {
                self.world.begin(*change)?;
            }
            if let Some(time) = change.lasts() {
                ends.push((Instant::now() + time, *change));
            }
        }
        self.end_until(&mut ends, None)?;
        match order {
            Some(order) => self.orders.follow(&mut self.world, order, burst),
            None => Ok(()),
        }
    }

    /// Ends what ends before this time, when it does; all of it, if none is given.
    fn end_until(
        &mut self,
        ends: &mut Vec<(Instant, Change)>,
        until: Option<Instant>,
    ) -> Result<()> {
        ends.sort_by_key(|(at, _)| *at);
        while let Some((at, change)) = ends.first().copied() {
            if until.is_some_and(|until| at > until) {
                break;
            }
            sleep_until(at);
            ends.remove(0);
            self.world.end(change)?;
        }
        Ok(())
    }

    /// The end: what came of it all, and that in few words.
    fn finish(self, report: &mut Report, sound: bool, time: Duration) -> String {
        let Self { world, flows, strangers, tally, .. } = self;
        let mut lines = vec![format!(
            "{:.1} minutes, {} changes; no thread of this machine's was kept waiting for longer than {:?}",
            time.as_secs_f64() / 60.0,
            tally.changes(),
            tally.stall()
        )];
        if sound {
            let seen = report.check(
                "flows",
                "the connection of the beginning lives; no message is lost",
                || {
                    let (carried, count) = flows.end()?;
                    if count.lost > 0 {
                        bail!("{count:?}");
                    }
                    Ok(format!(
                        "1 of 1 connection lives, {} MiB over it; {} messages sent, {} acknowledged, 0 lost, {} reconnects, slowest {} ms",
                        carried >> 20,
                        count.sent,
                        count.acknowledged,
                        count.reconnects,
                        count.slowest_ms
                    ))
                },
            );
            lines.push(seen.unwrap_or_else(|| "NOT all that is allowed went on".into()));
        }
        let floods = world.flooder.sent();
        let seen = report.check(
            "strangers",
            "nothing of strangers arrives, nothing of devices is readable",
            || Ok(format!("{}; {floods} initiations in floods", strangers.end()?)),
        );
        lines.push(seen.unwrap_or_else(|| "NOT all that is forbidden was kept out".into()));
        report.check("audit", "the audit log verifies, all gateways are in step", || {
            world.settle()?;
            let verified = world.hospital.operator.ok(&["audit", "verify"])?;
            Ok(verified.stdout.trim().into())
        });
        report.figure("soak", tally.json());
        lines.join("\n")
    }
}

/// Whether connections may have had to wait until QUIC gave them up, or had no answer: only TCP passed before, or does since, and
/// not all that took QUIC were left because they were silent. `given_up` are those that weren't, where that can be said.
fn waits_for_quic(burst: &Burst, over_tcp: bool, given_up: Option<&[String]>) -> bool {
    let tcp_alone = burst.changes().any(|change| change == Change::TcpOnly);
    over_tcp || given_up.map_or(tcp_alone, |given_up| !given_up.is_empty())
}

/// An error if changes cost more than they may. `until_tcp`: as [`Burst::bound`] has it.
fn judge(burst: &Burst, good: bool, until_tcp: bool, cost: Cost) -> Result<()> {
    let lossless = good && burst.alone().is_some_and(Change::is_lossless);
    ensure!(
        cost.lost == 0 || !lossless,
        "{} of {} pings were lost, none answered for {:?}; this machine kept a thread waiting for {:?}",
        cost.lost,
        cost.sent,
        cost.gap,
        cost.stall
    );
    let bound = burst.bound(until_tcp) + 2 * cost.stall;
    ensure!(
        cost.gap <= bound,
        "no ping was answered for {:?}, and {bound:?} is the most that may be; this machine kept a thread waiting for {:?}",
        cost.gap,
        cost.stall
    );
    Ok(())
}

fn sleep_until(time: Instant) {
    std::thread::sleep(time.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_cost_nothing_may_lose_no_ping_on_good_paths_and_nothing_may_last() {
        let secs = Duration::from_secs;
        let cost = |lost, gap| Cost { gap, lost, sent: 1_000, stall: Duration::ZERO };
        let (rotation, kill) = (Burst::of(Change::Rotate), Burst::of(Change::Kill("ward")));
        assert!(judge(&rotation, true, false, cost(0, secs(0))).is_ok());
        assert!(judge(&rotation, true, false, cost(1, secs(0))).is_err());
        assert!(judge(&rotation, false, false, cost(1, secs(0))).is_ok());
        assert!(judge(&kill, true, false, cost(99, secs(9))).is_ok());
        assert!(judge(&kill, true, false, cost(99, secs(11))).is_err());
        let stalled = Cost { stall: secs(1), ..cost(99, secs(11)) };
        assert!(judge(&kill, true, false, stalled).is_ok());
        assert!(judge(&kill, true, true, cost(99, secs(11))).is_ok());
        let cut = Burst(vec![(secs(0), Change::Cut(secs(4))), (secs(1), Change::Rotate)]);
        assert!(judge(&cut, true, false, cost(99, secs(14))).is_ok());
    }

    #[test]
    fn quic_is_waited_for_only_where_it_had_to_give_a_connection_up() {
        let (blocked, kill) = (Burst::of(Change::TcpOnly), Burst::of(Change::Kill("ward")));
        let late = ["ward, controller".to_owned()];
        assert!(
            !waits_for_quic(&blocked, false, Some(&[])),
            "all were left because they were silent"
        );
        assert!(waits_for_quic(&blocked, false, Some(&late)));
        assert!(waits_for_quic(&blocked, false, None), "nobody knows");
        assert!(waits_for_quic(&kill, true, None) && !waits_for_quic(&kill, false, None));
    }

    #[test]
    fn a_short_course_ends_and_one_by_chance_goes_on_for_its_time() {
        let (begun, mut chance) = (Instant::now(), Chance::new(1));
        let mut next = |course: Course, done| course.next(done, begun, &mut chance);
        assert_eq!((0..9).filter_map(|done| next(Course::Short, done)).count(), 4);
        assert!(next(Course::Chance(Duration::ZERO), 0).is_some());
        assert!(next(Course::Chance(Duration::ZERO), 1).is_none());
        assert!(next(Course::Chance(Duration::from_secs(3_600)), 9).is_some());
    }
}
