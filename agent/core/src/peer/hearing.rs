//! Whether anything comes back at all, from whomever: what tells an underlay that died from a peer that did.

use std::time::{Duration, Instant};

/// Questions closer together than this count as one: many peers are asked at once, and lose it all at once.
const APART: Duration = Duration::from_millis(100);

/// Questions that wait: when the first went out, the last one, and how many did.
#[derive(Debug, Clone, Copy)]
struct Asked {
    first: Instant,
    last: Instant,
    count: u32,
}

impl Asked {
    fn add(asked: &mut Option<Self>, now: Instant) {
        let asked = asked.get_or_insert(Self { first: now, last: now, count: 1 });
        if now.saturating_duration_since(asked.last) >= APART {
            (asked.last, asked.count) = (now, asked.count.saturating_add(1));
        }
    }

    fn so_far(asked: Option<Self>, now: Instant) -> (Duration, u32) {
        let passed = |asked: Self| now.saturating_duration_since(asked.first);
        asked.map_or((Duration::ZERO, 0), |asked| (passed(asked), asked.count))
    }
}

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    heard: Option<Instant>,
    asked: Option<Asked>,
    answered: Option<Instant>,
    /// Questions to who should answer, since one last did.
    expected: Option<Asked>,
}

/// For how long nothing has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Silence {
    /// When something authentic last came, from any peer or relay.
    pub heard: Option<Instant>,
    /// How long ago the first question was asked that nothing has come since.
    pub lasts: Duration,
    /// How many were, those at once counted as one.
    pub questions: u32,
    /// When something last came that shows that this gateway was heard.
    pub answered: Option<Instant>,
    /// How long ago somebody who should answer was first asked, since one last did, and how often that was.
    pub unanswered: (Duration, u32),
}

impl Hearing {
    /// Something authentic came.
    pub(super) const fn note_heard(&mut self, now: Instant) {
        self.heard = Some(now);
        self.asked = None;
    }

    /// Something came that shows that this gateway was heard.
    pub(super) const fn note_answered(&mut self, now: Instant) {
        self.note_heard(now);
        self.answered = Some(now);
        self.expected = None;
    }

    /// Something was sent that wants an answer. `expected` where one should come: that way was good a moment ago.
    pub(super) fn note_asked(&mut self, expected: bool, now: Instant) {
        Asked::add(&mut self.asked, now);
        if expected {
            Asked::add(&mut self.expected, now);
        }
    }

    /// Something else than what is counted here has waited for an answer since `since`. Where nothing came afterwards, that was the
    /// first question.
    pub(super) fn note_owing(&mut self, since: Instant, now: Instant) {
        if self.heard.is_none_or(|heard| heard < since) {
            let asked = self.asked.get_or_insert(Asked { first: since, last: now, count: 1 });
            asked.first = asked.first.min(since);
        }
    }

    /// Packets leave another way from now on: what was asked before says nothing of that.
    pub(super) const fn note_moved(&mut self) {
        (self.asked, self.expected) = (None, None);
    }

    /// For how long nothing has come back.
    pub(super) fn silence(&self, now: Instant) -> Silence {
        let (lasts, questions) = Asked::so_far(self.asked, now);
        let unanswered = Asked::so_far(self.expected, now);
        Silence { heard: self.heard, lasts, questions, answered: self.answered, unanswered }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_else_waits_for_an_answer_counts_from_its_beginning_and_only_where_nothing_came_since() {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let mut hearing = Hearing::default();
        hearing.note_heard(at(100));
        hearing.note_owing(at(200), at(400));
        let so_far = |hearing: &Hearing, now| {
            let Silence { lasts, questions, .. } = hearing.silence(at(now));
            (lasts, questions)
        };
        assert_eq!(so_far(&hearing, 400), (Duration::from_millis(200), 1));
        hearing.note_asked(false, at(500));
        // However often that is said, it is one question.
        hearing.note_owing(at(200), at(600));
        assert_eq!(so_far(&hearing, 700), (Duration::from_millis(500), 2));
        hearing.note_heard(at(800));
        hearing.note_owing(at(200), at(1_000));
        assert_eq!(so_far(&hearing, 2_000), (Duration::ZERO, 0), "somebody answered since");
        hearing.note_asked(false, at(1_300));
        hearing.note_owing(at(900), at(1_400));
        assert_eq!(so_far(&hearing, 1_900), (Duration::from_millis(1_000), 1));
    }

    #[test]
    fn silence_begins_with_a_question_and_ends_with_any_answer() {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut hearing = Hearing::default();
        assert_eq!(hearing.silence(at(9_000)), Silence::default(), "nobody was asked");
        for millis in [0, 1, 2, 50, 150, 160, 400] {
            hearing.note_asked(false, at(millis));
        }
        let silence = hearing.silence(at(500));
        assert_eq!((silence.lasts, silence.questions), (Duration::from_millis(500), 3));
        hearing.note_heard(at(600));
        let heard = Silence { heard: Some(at(600)), ..Silence::default() };
        assert_eq!(hearing.silence(at(5_000)), heard);
    }

    #[test]
    fn what_comes_by_itself_is_no_answer() {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut hearing = Hearing::default();
        for millis in (0..2_000).step_by(250) {
            hearing.note_asked(true, at(millis));
            hearing.note_asked(false, at(millis + 110));
            hearing.note_heard(at(millis + 120));
        }
        let silence = hearing.silence(at(2_000));
        assert_eq!((silence.lasts, silence.questions), (Duration::ZERO, 0));
        assert_eq!((silence.answered, silence.unanswered), (None, (Duration::from_secs(2), 8)));
        hearing.note_answered(at(2_100));
        let silence = hearing.silence(at(2_200));
        assert_eq!((silence.answered, silence.unanswered.1), (Some(at(2_100)), 0));
    }
}
