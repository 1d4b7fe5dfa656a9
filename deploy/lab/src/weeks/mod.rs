//! Five weeks of a hospital in a few minutes: who talks to whom is watched, a policy is proposed from it, proved against what was
//! recorded, and enforced one device at a time; then a pump falls to an intruder.
//!
//! Time passes by the clocks of the controller, the gateways and the operator: what monitors and pumps report goes on meanwhile,
//! what people do is done on some days. Where libfaketime isn't installed all of it happens on one day, and what demands
//! weeks is forced.

mod enforce;
mod fallen;
mod habits;
mod machines;
mod propose;
mod see;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Span;
use jiff::civil::Date;

use crate::clocks::Clocks;
use crate::hospital::{GATEWAYS, Hospital};
use crate::programs::Programs;
use crate::story::Report;
use habits::Habits;

/// How long anything may take on a machine that has a lot else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pump that falls to an intruder.
const FALLEN: &str = "pump-3";

/// The days that are played, counted from today: there is a month's end between them whatever today is.
const DAYS: [i64; 5] = [-34, -25, -16, -7, 0];

/// So many days before the last one nothing is left out.
const LAST_DAYS: i64 = 10;

/// The days right before the `day`th of [`DAYS`] on which machines report while nobody works: two weeks have to be watched day by day, with a
/// weekend and with the last two days of a month and the first of the next. The one of [`DAYS`] before is among them, since shortly
/// after midnight all of its [`hours`] are of the day before it.
fn quiet_days(day: usize, today: Date) -> impl Iterator<Item = i64> {
    let end = DAYS.get(day).copied().unwrap_or_default();
    let begin = day.checked_sub(1).and_then(|before| DAYS.get(before)).copied().unwrap_or(end);
    let ends_a_month = move |offset: i64| {
        let is_first = |more| {
            let day = today.checked_add(Span::new().days(offset + more));
            day.is_ok_and(|day| day.day() == 1)
        };
        (0..3).any(is_first)
    };
    (begin..end).filter(move |offset| *offset >= -LAST_DAYS || ends_a_month(*offset))
}

/// The hours of the `day`th of [`DAYS`] that are played, counted from now. All of them together go around the clock.
fn hours(day: usize) -> impl Iterator<Item = i64> {
    let (last, shift) = (DAYS.len() - 1, (DAYS.len() - 1).saturating_sub(day) as i64);
    let most = if day == last { 5 } else { 4 };
    let at = DAYS.get(day).copied().unwrap_or_default() * 24 - shift;
    (0..most).rev().map(move |part| at - 5 * part)
}

/// The hospital, and what was seen of it.
pub struct Weeks {
    /// What was checked.
    pub report: Report,
    /// The hospital.
    pub hospital: Hospital,
    habits: Habits,
    /// None where nothing lies about the time.
    clocks: Option<Clocks>,
    /// The number of the first act.
    act: u8,
    /// Where the suggested policy is.
    policy: String,
}

impl Weeks {
    /// Raises the hospital, with its gateways enrolled and approved.
    ///
    /// # Errors
    /// If something doesn't come up: then there is nothing to watch.
    pub fn raise(
        programs: Programs,
        directory: &Path,
        logs: &Path,
        mut report: Report,
        act: u8,
    ) -> Result<Self> {
        report.begin(act, "See");
        let clocks = Clocks::lie_to(programs.clone(), &directory.join("clocks"))?;
        let (clocks, programs) = match clocks {
            Some((clocks, programs)) => (Some(clocks), programs),
            None => (None, programs),
        };
        let hospital = Hospital::build_of(&machines::MACHINES, programs, directory, logs)
            .context("raising the hospital")?;
        let habits = Habits::start(&hospital, directory, logs)?;
        let weeks = Self { report, hospital, habits, clocks, act, policy: String::new() };
        weeks.set_clocks(hours(0).next().unwrap_or_default())?;
        Ok(weeks)
    }

    /// Plays all acts. What isn't as expected is in the report.
    pub fn play(&mut self) {
        let acts = [Self::see, Self::propose, Self::prove, Self::enforce, Self::fall];
        for act in acts {
            // What comes next would only fail likewise.
            if act(self).is_none() {
                return;
            }
        }
    }

    /// Lets monitors and pumps report again, for those who look around.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn keep_alive(&mut self) -> Result<()> {
        self.habits.report(&self.hospital)
    }

    /// Whether weeks pass here.
    const fn weeks_pass(&self) -> bool {
        self.clocks.is_some()
    }

    /// Has the controller, the gateways and the operator go wrong by so many hours, once they are started anew.
    fn set_clocks(&self, hours: i64) -> Result<()> {
        let Some(clocks) = &self.clocks else { return Ok(()) };
        for machine in ["controller".to_owned(), "operator".to_owned()]
            .into_iter()
            .chain(GATEWAYS.map(|name| format!("gw-{name}")))
        {
            clocks.set_hours(&machine, hours)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::Weekday;
    use std::collections::BTreeSet;

    /// All hours that are played, counted from now.
    fn played(today: Date) -> Vec<i64> {
        let of = |day| quiet_days(day, today).map(|quiet| quiet * 24).chain(hours(day));
        (0..DAYS.len()).flat_map(of).collect()
    }

    #[test]
    fn two_weeks_with_a_weekend_and_a_months_end_are_watched_whenever_it_is_played() {
        let begin: Date = "2026-01-01".parse().unwrap();
        for hour in 0..800 * 24 {
            let now = begin.at(0, 30, 0, 0) + Span::new().hours(hour);
            let all = played(now.date());
            assert!(all.is_sorted(), "time only goes on: {all:?}");
            let date = |hours: i64| (now + Span::new().hours(hours)).date();
            let watched: BTreeSet<Date> = all.into_iter().map(date).collect();
            let next = |day: &Date, more: i64| watched.contains(&(*day + Span::new().days(more)));
            assert!(watched.len() >= 14, "{now}: {watched:?}");
            let weekend = |day: &&Date| day.weekday() == Weekday::Saturday && next(day, 1);
            assert!(watched.iter().any(|day| weekend(&day)), "{now}: {watched:?}");
            let month_end = |day: &&Date| day.day() == 1 && next(day, -1) && next(day, -2);
            assert!(watched.iter().any(|day| month_end(&day)), "{now}: {watched:?}");
        }
    }

    #[test]
    fn what_is_played_goes_around_the_clock_and_ends_now() {
        let all: Vec<i64> = (0..DAYS.len()).flat_map(hours).collect();
        assert!(all.is_sorted() && all.last() == Some(&0), "{all:?}");
        let around: BTreeSet<i64> = all.iter().map(|hour| hour.rem_euclid(24)).collect();
        assert!(around.len() >= 20, "{around:?}");
    }
}
