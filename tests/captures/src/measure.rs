//! Judging what is made of captures.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_controller_core::classify::learnt::{Example, learn};
use anteroom_controller_core::classify::{Field, KNOWN, Rulebook};
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

/// The shipped rules with what is learnt from sessions. Models are called as an operator who confirms them would: in the words that the rules
/// recognise, where they do.
#[must_use]
pub fn learnt(train: &[&Session], rules: &Rulebook) -> Rulebook {
    let mut models: BTreeMap<&str, String> = BTreeMap::new();
    for session in train {
        let claims = rules.classify(&session.observation);
        let recognised = claims.known(Field::Model).map(|claim| &claim.value);
        if let Some(value) = recognised.filter(|value| is_model(value, &session.kind)) {
            models.entry(&session.kind).or_insert_with(|| value.clone());
        }
    }
    let examples: Vec<Example> = train
        .iter()
        .filter_map(|session| {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let name: Name = session.kind.to_lowercase().replace(|c| !fits(c), "-").parse().ok()?;
            let called = models.get(session.kind.as_str()).map(String::as_str);
            let model = called.unwrap_or_else(|| truth::model(&session.kind)).to_owned();
            let mut fields = BTreeMap::from([(Field::Model, model)]);
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

/// Whether a model is a kind's, which may be written at greater length: HS100(EU), DCS-930LB.
fn is_model(value: &str, kind: &str) -> bool {
    plain(value).contains(&plain(truth::model(kind)))
}

/// Judges what sessions' devices are shown as by their models. Claims that are less sure than `least` percent count for none.
#[must_use]
pub fn models(book: &Rulebook, test: &[&Session], least: u8) -> Table {
    let mut table = Table::new();
    for session in test {
        let claims = book.classify(&session.observation);
        let claim = claims.known(Field::Model).filter(|claim| claim.confidence >= least);
        let found = claim.map(|claim| is_model(&claim.value, &session.kind));
        table.entry(session.kind.clone()).or_default().add(found);
    }
    table
}

/// Leaves each kind out of learning in turn, and judges its sessions: what is learnt of others is wrong of their models.
#[must_use]
pub fn strangers(
    sessions: &[Session],
    rules: &Rulebook,
    judge: impl Fn(&Rulebook, &[&Session]) -> Table,
) -> Table {
    let kinds_of_all: BTreeSet<&str> =
        sessions.iter().map(|session| session.kind.as_str()).collect();
    let mut table = Table::new();
    for left_out in kinds_of_all {
        let (test, train): (Vec<&Session>, Vec<&Session>) =
            sessions.iter().partition(|session| session.kind == left_out);
        table.extend(judge(&learnt(&train, rules), &test));
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
        for (kind, tally) in models(&learnt(&train, rules), &test, KNOWN) {
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
        let found = claims.known(field).map(|claim| match field {
            Field::Model => is_model(&claim.value, &session.kind),
            _ => plain(&claim.value) == plain(wanted),
        });
        table.entry(session.kind.clone()).or_default().add(found);
    }
    table
}
