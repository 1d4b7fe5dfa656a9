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
