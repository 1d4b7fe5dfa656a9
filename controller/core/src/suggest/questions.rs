//! Which questions stand in the file, and in how few lines.
//!
//! Whoever answers every port, or is answered at every one, makes a question of each. So that one such device hides nobody
//! else's questions, many ports between two are one line, and where lines are more than a file has, devices take turns.

use std::collections::BTreeMap;

use super::{Doubt, Question};
use crate::decide::Party;

/// More ports than this between two parties are one line.
const APART: usize = 8;

/// One line: a question, or all those of one doubt that two parties have over one protocol.
pub(super) struct Line<'a> {
    /// Never empty.
    pub(super) questions: Vec<&'a Question>,
}

/// The lines for up to `most` of these questions, in their order.
pub(super) fn lines(questions: &[Question], most: usize) -> Vec<Line<'_>> {
    let mut shown: Vec<(usize, Line<'_>)> =
        by_turns(fold(questions)).into_iter().take(most).collect();
    shown.sort_unstable_by_key(|(place, _)| *place);
    shown.into_iter().map(|(_, line)| line).collect()
}

/// What a rule once opened is asked for port by port: each line names its rule.
fn fold(questions: &[Question]) -> Vec<Line<'_>> {
    let mut kinds: BTreeMap<_, Vec<&Question>> = BTreeMap::new();
    for question in questions {
        let Question { from, to, service, doubt, .. } = *question;
        kinds.entry((from, to, service.protocol, doubt)).or_default().push(question);
    }
    let mut lines: Vec<Line<'_>> = Vec::new();
    for questions in kinds.into_values() {
        if questions[0].doubt == Doubt::RanOut || questions.len() <= APART {
            lines.extend(questions.into_iter().map(|question| Line { questions: vec![question] }));
        } else {
            lines.push(Line { questions });
        }
    }
    lines.sort_unstable_by_key(|line| line.questions[0]);
    lines
}

/// The lines with their places, such that each device's first comes before any device's second, and of one device's the first with each
/// other party before the second with any; what wasn't seen for long comes last.
fn by_turns(lines: Vec<Line<'_>>) -> Vec<(usize, Line<'_>)> {
    let mut pairs: BTreeMap<(Party, Party), usize> = BTreeMap::new();
    let mut of_device: BTreeMap<Party, Vec<(usize, usize, Line<'_>)>> = BTreeMap::new();
    for (place, line) in lines.into_iter().enumerate() {
        let Question { from, to, .. } = *line.questions[0];
        let rank = pairs.entry((from, to)).or_default();
        of_device.entry(device(from, to)).or_default().push((*rank, place, line));
        *rank += 1;
    }
    let mut turns: Vec<((bool, usize), usize, Line<'_>)> = Vec::new();
    for mut own in of_device.into_values() {
        own.sort_unstable_by_key(|(rank, place, _)| (*rank, *place));
        let own = own.into_iter().enumerate();
        // What may be over comes after all that isn't.
        turns.extend(own.map(|(turn, (_, place, line))| {
            ((line.questions[0].doubt == Doubt::LongAgo, turn), place, line)
        }));
    }
    turns.sort_unstable_by_key(|(turn, place, _)| (*turn, *place));
    turns.into_iter().map(|(_, place, line)| (place, line)).collect()
}

/// Whose line it is: outside addresses can be made up by the thousand, so the one that they met stands for them.
const fn device(from: Party, to: Party) -> Party {
    match (from, to) {
        (Party::Address(_), Party::Member(_)) => to,
        _ => from,
    }
}
