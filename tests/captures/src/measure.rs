//! Judging what is made of captures.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_controller_core::classify::learnt::{Example, learn};
use anteroom_controller_core::classify::{Claims, Field, Rulebook};
use anteroom_proto::name::Name;

use crate::Session;
use crate::random::Random;
use crate::truth;

/// How many answers were of which sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// What it is.
    pub right: usize,
    /// Something else.
    pub wrong: usize,
    /// No answer.
    pub unknown: usize,
}

impl Tally {
    fn add(&mut self, found: Option<bool>) {
        match found {
            Some(true) => self.right += 1,
            Some(false) => self.wrong += 1,
            None => self.unknown += 1,
        }
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            right: self.right + other.right,
            wrong: self.wrong + other.wrong,
            unknown: self.unknown + other.unknown,
        }
    }

    /// How many there were.
    #[must_use]
    pub const fn all(self) -> usize {
        self.right + self.wrong + self.unknown
    }
}

/// Tallies by kind of device.
pub type Table = BTreeMap<String, Tally>;

/// The sum of a table.
#[must_use]
pub fn sum(table: &Table) -> Tally {
    table.values().fold(Tally::default(), |sum, tally| sum.and(*tally))
}

/// Halves the sessions of each device by a seed: to learn from, and to judge by.
#[must_use]
pub fn split(sessions: &[Session], seed: u64) -> (Vec<&Session>, Vec<&Session>) {
    let devices: BTreeSet<&str> = sessions.iter().map(|session| session.device.as_str()).collect();
    let mut random = Random::new(seed);
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for device in devices {
        let mut own: Vec<&Session> =
            sessions.iter().filter(|session| session.device == device).collect();
        random.shuffle(&mut own);
        let half = own.len() / 2;
        train.extend(own.iter().take(half));
        test.extend(own.iter().skip(half));
    }
    (train, test)
}

/// The shipped rules with what is learnt from sessions: each kind's name stands as the model.
#[must_use]
pub fn learnt(train: &[&Session], rules: &Rulebook) -> Rulebook {
    let examples: Vec<Example> = train
        .iter()
        .filter_map(|session| {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let name: Name = session.kind.to_lowercase().replace(|c| !fits(c), "-").parse().ok()?;
            let mut fields = BTreeMap::from([(Field::Model, session.kind.clone())]);
            if let Some((class, make, _)) = truth::of(&session.kind) {
                fields.insert(Field::Class, class.to_owned());
                fields.insert(Field::Make, make.to_owned());
            }
            Some(Example { name, fields, observation: session.observation.clone() })
        })
        .collect();
    let mut book = rules.clone();
    book.add_likes(learn(&examples));
    book
}

/// The kind that a session's device is taken for by what was learnt. The shipped rules may state a model in its maker's words; a kind that was learnt is
/// the answer wherever it is known and nothing that it was learnt as stands against it.
#[must_use]
pub fn kind(claims: &Claims) -> Option<&str> {
    let learnt = claims
        .of(Field::Model)
        .find(|claim| claim.evidence.iter().any(|evidence| evidence.source == "likeness"));
    learnt.map(|claim| claim.value.as_str())
}

/// Judges sessions by the kind that was learnt.
#[must_use]
pub fn kinds(book: &Rulebook, test: &[&Session]) -> Table {
    let mut table = Table::new();
    for session in test {
        let claims = book.classify(&session.observation);
        // A model that rules state in another spelling is the same claim.
        let found = kind(&claims).map(|kind| plain(kind) == plain(&session.kind));
        table.entry(session.kind.clone()).or_default().add(found);
    }
    table
}

/// Leaves each kind out of learning in turn, and judges its sessions: whatever it is taken for is wrong.
#[must_use]
pub fn strangers(sessions: &[Session], rules: &Rulebook) -> Table {
    let kinds_of_all: BTreeSet<&str> =
        sessions.iter().map(|session| session.kind.as_str()).collect();
    let mut table = Table::new();
    for left_out in kinds_of_all {
        let (test, train): (Vec<&Session>, Vec<&Session>) =
            sessions.iter().partition(|session| session.kind == left_out);
        table.extend(kinds(&learnt(&train, rules), &test));
    }
    table
}

/// Learns each kind of which there are two devices from one of them, and judges the other.
#[must_use]
pub fn twins(sessions: &[Session], rules: &Rulebook) -> Table {
    let mut devices: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for session in sessions {
        devices.entry(&session.kind).or_default().insert(&session.device);
    }
    let mut table = Table::new();
    for device in devices.values().filter(|devices| devices.len() > 1).flatten() {
        let (test, train): (Vec<&Session>, Vec<&Session>) =
            sessions.iter().partition(|session| session.device == *device);
        for (kind, tally) in kinds(&learnt(&train, rules), &test) {
            let sum = table.entry(kind).or_default();
            *sum = sum.and(tally);
        }
    }
    table
}

/// Letters and digits alone, in one case.
fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Judges a field by what the devices are in truth.
#[must_use]
pub fn field(book: &Rulebook, test: &[&Session], field: Field) -> Table {
    let mut table = Table::new();
    for session in test {
        let Some((class, make, model)) = truth::of(&session.kind) else { continue };
        let wanted = match field {
            Field::Class => class,
            Field::Make => make,
            _ => model,
        };
        if wanted.is_empty() {
            continue;
        }
        let claims = book.classify(&session.observation);
        let found = claims.known(field).map(|claim| {
            // A longer name of the same model is right: HS100(EU), DCS-930LB.
            let found = plain(&claim.value);
            found == plain(wanted) || (field == Field::Model && found.contains(&plain(wanted)))
        });
        table.entry(session.kind.clone()).or_default().add(found);
    }
    table
}
