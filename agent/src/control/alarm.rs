//! What was refused though a controller, or whoever passes for one, wanted it: kept for people to find.

use std::time::{Duration, Instant};

use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{Applied, ToController};
use serde::{Deserialize, Serialize};

use super::Client;
use super::session::{End, Out};
use crate::plane::Plane;

/// Different alarms that are kept; the one that was quiet longest makes room.
const MOST: usize = 16;
/// What comes within this time wasn't held back: a dead connection takes a quarter of it to be known, and made anew.
const SOON: Duration = Duration::from_secs(60);
/// Least time between two words of which alarms there are: whoever has some raised and taken back in turns makes no load of it.
const APART: Duration = Duration::from_secs(5);
/// For how long an alarm is told to the controller, in milliseconds.
const TOLD: u64 = 24 * 60 * 60 * 1000;

/// Something that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// What, in a sentence.
    pub what: String,
    /// When it happened first, by this gateway's clock.
    pub first: UnixMillis,
    /// When it happened last.
    pub last: UnixMillis,
    /// How often.
    pub count: u64,
}

/// Notes that `what` happened. Gives whether it is new.
pub(super) fn raise(alarms: &mut Vec<Alarm>, what: &str, now: UnixMillis) -> bool {
    if let Some(alarm) = alarms.iter_mut().find(|alarm| alarm.what == what) {
        alarm.last = now;
        alarm.count = alarm.count.saturating_add(1);
        return false;
    }
    if alarms.len() >= MOST
        && let Some(oldest) = (0..alarms.len()).min_by_key(|at| alarms.get(*at).map(|a| a.last))
    {
        alarms.remove(oldest);
    }
    alarms.push(Alarm { what: what.to_owned(), first: now, last: now, count: 1 });
    true
}

/// Accusations that what comes soon refutes: who is slow, or out of reach for a moment, holds nothing back.
#[derive(Debug, Default)]
pub(super) struct Accusations {
    made: Vec<String>,
    since: Option<Instant>,
}

impl Accusations {
    /// One was made.
    pub(super) fn note(&mut self, what: &str, now: Instant) {
        self.since.get_or_insert(now);
        if self.made.len() < MOST && !self.made.iter().any(|made| made == what) {
            self.made.push(what.to_owned());
        }
    }

    /// What they were about has come. Gives those to take back: none if it took too long.
    pub(super) fn refuted(&mut self, now: Instant) -> Vec<String> {
        let made = std::mem::take(&mut self.made);
        let soon = self.since.take().is_some_and(|since| now.duration_since(since) < SOON);
        if soon { made } else { Vec::new() }
    }
}

/// What the controller was told, beside the view that is in force.
#[derive(Debug, Default)]
pub(super) struct Told {
    alarms: Vec<String>,
    hindrances: Vec<String>,
    at: Option<Instant>,
}

impl Told {
    /// Whether it is time to tell what there is now in its place.
    fn is_old(&self, alarms: &[Alarm], hindrances: &[String], now: Instant) -> bool {
        let due = self.at.is_none_or(|at| now.duration_since(at) >= APART);
        let same = self.alarms.iter().eq(alarms.iter().map(|alarm| &alarm.what));
        due && !(same && self.hindrances == hindrances)
    }
}

impl<P: Plane> Client<P> {
    /// Says, with what is in force, what stands in its way and what was refused lately: operators see that at the controller.
    pub(super) fn with_problems(&mut self, mut applied: Applied) -> Applied {
        let alarms = self.status.borrow().alarms.clone();
        let hindrances = self.hindrances.clone();
        applied.problems.extend(hindrances.iter().cloned());
        applied.problems.extend(told(&alarms, self.clock.now()));
        let alarms = alarms.into_iter().map(|alarm| alarm.what).collect();
        self.told = Told { alarms, hindrances, at: Some(Instant::now()) };
        applied
    }

    /// Tells what of that has changed while nothing was acknowledged.
    pub(super) async fn tell_problems(&mut self, out: &Out) -> Result<(), End> {
        self.hindrances = self.plane.hindrances().await;
        let old = {
            let alarms = &self.status.borrow().alarms;
            self.told.is_old(alarms, &self.hindrances, Instant::now())
        };
        if let Some(applied) = self.applied.clone().filter(|_| old) {
            out.send(ToController::Applied(self.with_problems(applied)))?;
        }
        Ok(())
    }
}

/// Takes alarms back that were none.
pub(super) fn withdraw(alarms: &mut Vec<Alarm>, these: &[String]) {
    alarms.retain(|alarm| !these.contains(&alarm.what));
}

/// What a controller is told, for operators to see: the alarms of the last day.
pub(super) fn told(alarms: &[Alarm], now: UnixMillis) -> impl Iterator<Item = String> {
    alarms.iter().filter(move |alarm| now.0.saturating_sub(alarm.last.0) < TOLD).map(move |alarm| {
        let minutes = now.0.saturating_sub(alarm.last.0) / 60_000;
        format!("alarm: {} ({} times, last {minutes} min ago)", alarm.what, alarm.count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_soon_refutes_accusations_and_what_comes_late_does_not() {
        let now = Instant::now();
        let mut accusations = Accusations::default();
        assert_eq!(accusations.refuted(now), Vec::<String>::new());
        for what in ["held back", "held back", "by that one too"] {
            accusations.note(what, now);
        }
        let these = accusations.refuted(now + SOON / 2);
        assert_eq!(these, ["held back", "by that one too"]);
        let mut alarms = Vec::new();
        for what in ["held back", "an old view"] {
            raise(&mut alarms, what, UnixMillis(1));
        }
        withdraw(&mut alarms, &these);
        assert_eq!(
            alarms.iter().map(|alarm| alarm.what.as_str()).collect::<Vec<_>>(),
            ["an old view"]
        );
        accusations.note("held back", now);
        accusations.note("held back", now + SOON);
        assert_eq!(accusations.refuted(now + SOON), Vec::<String>::new());
    }

    #[test]
    fn the_same_alarm_counts_and_many_make_room() {
        let mut alarms = Vec::new();
        assert!(raise(&mut alarms, "an old view", UnixMillis(1)));
        assert!(!raise(&mut alarms, "an old view", UnixMillis(5)));
        assert_eq!(
            (alarms[0].first, alarms[0].last, alarms[0].count),
            (UnixMillis(1), UnixMillis(5), 2)
        );
        for n in 0..100 {
            raise(&mut alarms, &format!("alarm {n}"), UnixMillis(10 + n));
        }
        assert_eq!(alarms.len(), MOST);
        assert_eq!(alarms.last().unwrap().what, "alarm 99");
        let now = UnixMillis(10 + 99 + TOLD);
        assert_eq!(told(&alarms, now).count(), 0);
        assert_eq!(told(&alarms, UnixMillis(now.0 - 1)).count(), 1);
    }
}
