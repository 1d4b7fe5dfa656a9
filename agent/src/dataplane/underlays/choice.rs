//! Which of two underlays is used. No sockets, no clock.

use std::time::{Duration, Instant};

/// After how long without anything coming back, though questions went out, an underlay that worked counts as dead.
const SILENT: Duration = Duration::from_millis(800);
/// Questions without an answer that it takes as well: time alone says nothing on a machine that stood still.
const QUESTIONS: u32 = 4;
/// The same where something comes, but no answers: nothing gets through from here. Others lose some answers under load.
const UNANSWERED: (Duration, u32) = (Duration::from_secs(2), 6);
/// How long one that nothing has come through yet is given, at first and at most. Where both are dead this doubles.
const TRIAL: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(12));
/// How long the first has to be good until it is taken again. Each time that it was silent within ten times this long after it
/// was, this doubles, up to [`STEADIEST`]: a first uplink that comes and goes costs a second of traffic each time that it is
/// believed, and a second one may be narrow, so that nobody wants it for long once the first is good.
const STEADY: Duration = Duration::from_secs(10);
const STEADIEST: Duration = Duration::from_secs(120);

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    First,
    Second,
}

impl Which {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// Why it is the one that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It is the first, and nothing was ever wrong.
    First,
    /// The other one has no carrier or no address.
    Down,
    /// Nothing came back through the other one.
    Silent,
    /// It is the first, and has been good for a while.
    Back,
}

/// What is seen of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// Whether each is switched on, has carrier and an address.
    pub(super) usable: [bool; 2],
    /// When something authentic last came.
    pub(super) heard: Option<Instant>,
    /// For how long nothing has, since something was asked, and how many questions that were.
    pub(super) silence: (Duration, u32),
    /// When an answer last came, for how long none has, and how many questions wait for one.
    pub(super) answered: Option<Instant>,
    pub(super) unanswered: (Duration, u32),
    /// Whether relays answer through the first while the second is used; none where there is nobody to ask.
    pub(super) answers: Option<bool>,
}

/// The choice.
#[derive(Debug)]
pub(super) struct Choice {
    using: Which,
    since: Instant,
    why: Why,
    trial: Duration,
    steady: Duration,
    /// Since when the first has been good, while the second is used.
    good: Option<Instant>,
}

impl Choice {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            using: Which::First,
            since: now,
            why: Why::First,
            trial: TRIAL.0,
            steady: STEADY,
            good: None,
        }
    }

    pub(super) const fn using(&self) -> Which {
        self.using
    }

    pub(super) const fn why(&self) -> Why {
        self.why
    }

    /// Since when it is used.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    /// While the second is used: how long the first has to be good until it is taken again, and since when it is.
    pub(super) fn way_back(&self) -> Option<(Duration, Option<Instant>)> {
        (self.using == Which::Second).then_some((self.steady, self.good))
    }

    /// Looks whether the other one is to be used. Says whether it is from now on.
    pub(super) fn look(&mut self, seen: &Seen, now: Instant) -> bool {
        let Seen { usable: [first, second], heard, silence, answered, unanswered, answers } = *seen;
        let (own, other) = match self.using {
            Which::First => (first, second),
            Which::Second => (second, first),
        };
        let worked = heard.is_some_and(|heard| heard > self.since);
        let passed = now.saturating_duration_since(self.since);
        if worked && passed >= STEADY {
            self.trial = TRIAL.0;
        }
        if !other {
            self.good = None;
            return false;
        }
        if !own {
            self.turn(Why::Down, now);
            return true;
        }
        let is_over = |(lasts, questions): (Duration, u32), (least, many): (Duration, u32)| {
            lasts >= least && questions >= many
        };
        let given = passed >= self.trial;
        let silent = is_over(silence, (SILENT, QUESTIONS)) && (worked || given);
        let in_vain = is_over(unanswered, UNANSWERED)
            && (answered.is_some_and(|at| at > self.since) || given);
        if silent || in_vain {
            if !worked {
                self.trial = (self.trial * 2).min(TRIAL.1);
            }
            self.turn(Why::Silent, now);
            return true;
        }
        if self.using == Which::First {
            return false;
        }
        // Where there is nobody to ask, carrier and address are all that is known.
        if !answers.unwrap_or(self.why == Why::Down) {
            self.good = None;
            return false;
        }
        let good = *self.good.get_or_insert(now);
        let steady = now.saturating_duration_since(good) >= self.steady;
        if steady {
            self.turn(Why::Back, now);
        }
        steady
    }

    fn turn(&mut self, why: Why, now: Instant) {
        if self.using == Which::First {
            let lasted = now.saturating_duration_since(self.since);
            let again = self.why == Why::Back && why == Why::Silent && lasted < self.steady * 10;
            self.steady = if again { (self.steady * 2).min(STEADIEST) } else { STEADY };
        }
        (self.using, self.since, self.why, self.good) = (self.using.other(), now, why, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two underlays, each of which works or not.
    struct Try {
        choice: Choice,
        now: Instant,
        usable: [bool; 2],
        works: [bool; 2],
        /// Whether there are relays to ask.
        relays: bool,
        heard: Option<Instant>,
        /// Whether what others send comes, whatever becomes of what is sent to them.
        comes: bool,
        answered: Option<Instant>,
    }

    impl Try {
        fn new() -> Self {
            let now = Instant::now();
            let choice = Choice::new(now);
            Self {
                choice,
                now,
                usable: [true; 2],
                works: [true; 2],
                relays: true,
                heard: None,
                comes: false,
                answered: None,
            }
        }

        /// Lets time pass, and gives how often another one was taken.
        fn run(&mut self, time: Duration) -> u32 {
            let end = self.now + time;
            let mut turns = 0;
            while self.now < end {
                self.now += Duration::from_millis(100);
                let at = self.choice.using() as usize;
                if self.works[at] && self.usable[at] {
                    (self.heard, self.answered) = (Some(self.now), Some(self.now));
                }
                if self.comes {
                    self.heard = Some(self.now);
                }
                let silence = |since: Option<Instant>| {
                    let lasts = since.map_or(Duration::from_secs(99), |at| self.now - at);
                    (lasts, u32::try_from(lasts.as_millis() / 200).unwrap())
                };
                let seen = Seen {
                    usable: self.usable,
                    heard: self.heard,
                    silence: silence(self.heard),
                    answered: self.answered,
                    unanswered: silence(self.answered),
                    answers: self.relays.then_some(self.works[0] && self.usable[0]),
                };
                turns += u32::from(self.choice.look(&seen, self.now));
            }
            turns
        }

        fn is(&self, using: Which, why: Why) {
            assert_eq!((self.choice.using(), self.choice.why()), (using, why));
        }
    }

    #[test]
    fn the_second_is_taken_at_once_without_carrier_and_within_a_second_of_silence() {
        let mut one = Try::new();
        assert_eq!(one.run(Duration::from_secs(60)), 0);
        one.usable[0] = false;
        one.run(Duration::from_millis(100));
        one.is(Which::Second, Why::Down);
        let mut one = Try::new();
        one.run(Duration::from_secs(5));
        one.works[0] = false;
        one.run(Duration::from_secs(1));
        one.is(Which::Second, Why::Silent);
    }

    #[test]
    fn an_underlay_by_which_nothing_gets_there_is_left_though_something_comes() {
        let mut one = Try::new();
        one.run(Duration::from_secs(60));
        (one.works[0], one.comes) = (false, true);
        assert_eq!(one.run(Duration::from_millis(1_500)), 0, "answers are lost now and then");
        assert_eq!(one.run(Duration::from_secs(60)), 1);
        one.is(Which::Second, Why::Silent);
        one.works[0] = true;
        one.run(STEADY + Duration::from_secs(1));
        one.is(Which::First, Why::Back);
    }

    #[test]
    fn one_that_comes_and_goes_is_taken_again_more_and_more_seldom() {
        let mut one = Try::new();
        let mut turns = 0;
        for _ in 0..400 {
            one.works[0] = true;
            turns += one.run(Duration::from_secs(11));
            one.works[0] = false;
            turns += one.run(Duration::from_secs(2));
        }
        assert!(turns <= 4, "{turns} times in {} minutes", 400 * 13 / 60);
        // Where it is good for longer than it has to be, it is believed, and costs a turn, more and more seldom.
        let (mut one, mut took) = (Try::new(), Vec::new());
        for _ in 0..12 {
            one.works[0] = false;
            one.run(Duration::from_secs(5));
            one.is(Which::Second, Why::Silent);
            one.works[0] = true;
            let begun = one.now;
            while one.choice.using() == Which::Second {
                let (needs, good) = one.choice.way_back().expect("the second is used");
                assert!(needs <= STEADIEST && good.is_none_or(|good| good >= begun));
                one.run(Duration::from_millis(100));
            }
            assert_eq!(one.choice.way_back(), None);
            took.push((one.now - begun).as_secs());
        }
        assert_eq!(took, [10, 20, 40, 80, 120, 120, 120, 120, 120, 120, 120, 120]);
        // After an hour in which it was good all is forgotten.
        one.works[0] = true;
        one.run(Duration::from_secs(3_600));
        one.is(Which::First, Why::Back);
        one.works[0] = false;
        one.run(Duration::from_secs(2));
        one.works[0] = true;
        one.run(STEADY + Duration::from_secs(1));
        one.is(Which::First, Why::Back);
    }

    #[test]
    fn the_first_is_taken_again_once_it_was_good_for_a_while() {
        for by_silence in [false, true] {
            let mut one = Try::new();
            one.run(Duration::from_secs(5));
            let set = |one: &mut Try, good| {
                if by_silence {
                    one.works[0] = good;
                } else {
                    one.usable[0] = good;
                }
            };
            set(&mut one, false);
            assert_eq!(one.run(Duration::from_secs(60)), 1, "and it stays there");
            // One that comes and goes isn't.
            for _ in 0..20 {
                set(&mut one, true);
                assert_eq!(one.run(STEADY / 2), 0);
                set(&mut one, false);
                assert_eq!(one.run(Duration::from_secs(1)), 0);
            }
            set(&mut one, true);
            assert_eq!(one.run(STEADY + Duration::from_secs(1)), 1);
            one.is(Which::First, Why::Back);
            assert_eq!(one.run(Duration::from_secs(60)), 0);
        }
    }

    #[test]
    fn without_relays_carrier_and_address_bring_the_first_back_and_silence_doesnt() {
        let mut one = Try::new();
        one.relays = false;
        one.run(Duration::from_secs(5));
        one.usable[0] = false;
        one.run(Duration::from_secs(5));
        one.usable[0] = true;
        one.run(STEADY + Duration::from_secs(1));
        one.is(Which::First, Why::Back);
        one.works[0] = false;
        assert_eq!(one.run(Duration::from_secs(600)), 1, "nobody can say that it is good");
        one.is(Which::Second, Why::Silent);
        one.works = [true, false];
        one.run(Duration::from_secs(2));
        one.is(Which::First, Why::Silent);
    }

    #[test]
    fn with_both_dead_each_is_tried_in_turn_and_seldom() {
        let mut one = Try::new();
        one.run(Duration::from_secs(5));
        one.works = [false; 2];
        let turns = one.run(Duration::from_secs(600));
        assert!((40..=60).contains(&turns), "{turns} times in ten minutes");
        one.works[1] = true;
        one.run(TRIAL.1 + Duration::from_secs(1));
        assert_eq!(one.choice.using(), Which::Second);
        // Where there is no other, nothing is to be chosen.
        one.usable = [false, true];
        one.works = [false; 2];
        assert_eq!(one.run(Duration::from_secs(60)), 0);
    }

    #[test]
    fn an_underlay_on_which_nobody_ever_answered_is_left_too() {
        let mut one = Try::new();
        one.works[0] = false;
        one.run(TRIAL.0 + Duration::from_millis(200));
        one.is(Which::Second, Why::Silent);
    }
}
