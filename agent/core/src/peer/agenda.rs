//! When which peer wants to be looked at again: as many peers as there are may wait, and looking costs as much as are
//! due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Times with the numbers of peers. A peer knows its own time; an entry with another is out of date.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    entries: BinaryHeap<Reverse<(Instant, u32)>>,
    /// How many entries there were when all were last looked at.
    checked: usize,
}

/// So many entries are never worth a look.
const FEW: usize = 64;

impl Agenda {
    /// Has a peer looked at then.
    pub(super) fn note(&mut self, number: u32, at: Instant) {
        self.entries.push(Reverse((at, number)));
    }

    /// The earliest time, which may be out of date.
    pub(super) fn next(&self) -> Option<Instant> {
        self.entries.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out peers whose time has come, each once, by their numbers. Beyond `most` they are left for the next time.
    pub(super) fn due(&mut self, now: Instant, most: usize) -> Vec<u32> {
        let mut due = Vec::new();
        while let Some(Reverse((_, number))) =
            self.entries.peek().filter(|Reverse((at, _))| *at <= now && due.len() < most).copied()
        {
            self.entries.pop();
            due.push(number);
        }
        due.sort_unstable();
        due.dedup();
        due
    }

    /// Forgets entries that are out of date: those at the front, and all of them where they have become many.
    /// `wanted` tells a peer's time.
    pub(super) fn tidy(&mut self, wanted: impl Fn(u32) -> Option<Instant>) {
        let stale = |Reverse((at, number)): &Reverse<(Instant, u32)>| wanted(*number) != Some(*at);
        while self.entries.peek().is_some_and(&stale) {
            self.entries.pop();
        }
        // Each time that a peer's time is brought forward leaves one.
        if self.entries.len() > self.checked.saturating_mul(2).max(FEW) {
            self.entries.retain(|entry| !stale(entry));
            self.checked = self.entries.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_comes_once_and_what_is_out_of_date_goes() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let at = |millis| now + Duration::from_millis(millis);
        let mut agenda = Agenda::default();
        for (number, millis) in [(7, 5), (3, 5), (7, 4), (9, 20)] {
            agenda.note(number, at(millis));
        }
        assert_eq!(agenda.due(at(3), 9), []);
        assert_eq!(agenda.due(at(5), 1), [7]);
        assert_eq!(agenda.due(at(5), 9), [3, 7]);
        assert_eq!(agenda.next(), Some(at(20)));
        agenda.tidy(|_| None);
        assert_eq!(agenda.next(), None);
        agenda.note(2, at(2_000_000));
        for round in 0..10_000 {
            let wanted = |number| if number == 2 { at(2_000_000) } else { at(1_000_000 - round) };
            agenda.note(1, wanted(1));
            agenda.tidy(|number| Some(wanted(number)));
            assert!(agenda.entries.len() <= 2 * FEW + 2, "{}", agenda.entries.len());
        }
    }
}
