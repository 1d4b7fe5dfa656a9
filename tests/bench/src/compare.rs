//! A run: subjects, tests and rounds.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::report::{Record, Row, short};
use crate::subject::{Kind, Subject};
use crate::tools::Tools;
use crate::trial::{self, Test};
use crate::world::Card;

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom.
    pub subjects: Vec<Kind>,
    /// What.
    pub tests: Vec<Test>,
    /// With which network cards.
    pub cards: Vec<Card>,
    /// How often.
    pub rounds: u32,
    /// How long each time.
    pub time: Duration,
}

/// Runs the plan, and adds what it finds to `record`. Says on standard error what it is at; what can't be measured is said
/// there and counted.
///
/// # Errors
/// If nothing at all could be set up, or the record can't be written.
pub fn run(plan: &Plan, tools: &Tools, logs: &Path, record: &mut Record) -> Result<()> {
    for card in &plan.cards {
        let mut subjects = Vec::new();
        for kind in &plan.subjects {
            match Subject::start(kind, *card, tools, logs) {
                Ok(subject) => subjects.push(subject),
                Err(error) => {
                    record.failed += 1;
                    eprintln!("{}: left out: {error:#}", kind.name());
                }
            }
        }
        anyhow::ensure!(!subjects.is_empty(), "there is nothing to measure");
        // Once only: a program keeps memory that a load made it take, and then isn't idle as it was.
        if plan.tests.contains(&Test::Idle) {
            for subject in &mut subjects {
                attempt(Test::Idle, *card, subject, (1, plan.time), record)?;
            }
        }
        for round in 1..=plan.rounds {
            for test in plan.tests.iter().filter(|test| **test != Test::Idle) {
                for index in 0..subjects.len() {
                    // Whoever comes first does so in one round of several only.
                    let place = (index + round as usize) % subjects.len();
                    let subject = &mut subjects[place];
                    attempt(*test, *card, subject, (round, plan.time), record)?;
                }
            }
        }
    }
    let place = |row: &Row| plan.subjects.iter().position(|kind| kind.name() == row.subject);
    record.rows.sort_by_cached_key(place);
    Ok(())
}

/// Measures once, and notes what came of it.
fn attempt(
    test: Test,
    card: Card,
    subject: &mut Subject,
    (round, time): (u32, Duration),
    record: &mut Record,
) -> Result<()> {
    let label = label(test, card);
    match measure(test, subject, time) {
        Ok(figures) => note(record, &label, subject, round, figures),
        Err(error) => {
            record.failed += 1;
            eprintln!("{}: {label}: round {round}: {error:#}", subject.name);
            Ok(())
        }
    }
}

fn measure(test: Test, subject: &mut Subject, time: Duration) -> Result<Vec<trial::Figure>> {
    subject.must_run()?;
    let figures = trial::run(test, subject, time)?;
    subject.must_run()?;
    Ok(figures)
}

/// A test's name, with the card where it isn't the usual one.
fn label(test: Test, card: Card) -> String {
    match card {
        Card::Virtual => test.name().to_owned(),
        Card::Plain => format!("{}/plain", test.name()),
    }
}

fn note(
    record: &mut Record,
    label: &str,
    subject: &Subject,
    round: u32,
    figures: Vec<trial::Figure>,
) -> Result<()> {
    if figures.is_empty() {
        return Ok(());
    }
    let said: Vec<String> =
        figures.iter().map(|f| format!("{} {} {}", f.what, short(f.value), f.unit)).collect();
    eprintln!("round {round}: {label}: {}: {}", subject.name, said.join(", "));
    figures.into_iter().try_for_each(|figure| {
        record.push(Row {
            subject: subject.name.clone(),
            test: format!("{label} {}", figure.what),
            value: figure.value,
            unit: figure.unit.into(),
            round,
        })
    })
}
