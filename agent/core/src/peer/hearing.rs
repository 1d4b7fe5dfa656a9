//! Whether anything comes back at all, from whomever: what tells an underlay that died from a peer that did.

use std::time::{Duration, Instant};

/// Questions closer together than this count as one: many peers are asked at once, and lose it all at once.
const APART: Duration = Duration::from_millis(100);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    heard: Option<Instant>,
    /// When the first question went out since, the last one, and how many did.
    asked: Option<(Instant, Instant, u32)>,
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
}

impl Hearing {
    /// Something authentic came.
    pub(super) const fn note_heard(&mut self, now: Instant) {
        self.heard = Some(now);
        self.asked = None;
    }

    /// Something was sent that wants an answer.
    pub(super) fn note_asked(&mut self, now: Instant) {
        let (_, last, count) = self.asked.get_or_insert((now, now, 1));
        if now.saturating_duration_since(*last) >= APART {
            (*last, *count) = (now, count.saturating_add(1));
        }
    }

    /// For how long nothing has come back.
    pub(super) fn silence(&self, now: Instant) -> Silence {
        let (first, _, questions) = self.asked.unwrap_or((now, now, 0));
        Silence { heard: self.heard, lasts: now.saturating_duration_since(first), questions }
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
            hearing.note_asked(at(millis));
        }
        let silence = hearing.silence(at(500));
        assert_eq!((silence.lasts, silence.questions), (Duration::from_millis(500), 3));
        hearing.note_heard(at(600));
        let heard = Silence { heard: Some(at(600)), ..Silence::default() };
        assert_eq!(hearing.silence(at(5_000)), heard);
    }
}
