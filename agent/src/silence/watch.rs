//! Counts questions and answers of a connection. No sockets, no clock.

use std::time::Duration;

use anteroom_transport::link::Traffic;
use tokio::time::Instant;

/// Between two looks while packets flow, while none do, and while an answer is missing.
const BUSY: Duration = Duration::from_millis(250);
const IDLE: Duration = Duration::from_secs(1);
pub(super) const ASK: Duration = Duration::from_millis(200);
/// Questions in a look that are more than what keeps a connection warm.
const FLOW: u64 = 4;
/// Looks with a question and without an answer, and the time since the first, after which TCP is tried: both, since time alone
/// says nothing on a machine that stood still, and questions alone nothing on a long way.
const DOUBTFUL: (u32, Duration) = (3, Duration::from_millis(400));
/// The same until it may take QUIC's place.
const SILENT: (u32, Duration) = (4, Duration::from_millis(600));
/// So many are asked at once one after the other. Then one each [`IDLE`].
const MANY: u32 = 6;

/// How it stands with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// What was asked was answered.
    Fine,
    /// An answer is missing.
    Asking,
    /// More than one is.
    Doubtful,
    /// Nothing gets through.
    Silent,
}

/// Questions without an answer.
#[derive(Debug, Clone, Copy)]
struct Unanswered {
    since: Instant,
    /// When something was last asked because of it.
    asked: Instant,
    /// Looks that found something sent since the one before, however much: what goes out together is lost together.
    questions: u32,
}

/// What was asked of a connection, and what came of it.
#[derive(Debug)]
pub(super) struct Watch {
    traffic: Traffic,
    unanswered: Option<Unanswered>,
    /// Questions since the look before.
    flow: u64,
}

impl Watch {
    pub(super) const fn new(traffic: Traffic) -> Self {
        Self { traffic, unanswered: None, flow: 0 }
    }

    /// Somebody asks for a reason of their own. It counts as a question once it has left.
    pub(super) fn note_asked(&mut self, now: Instant) {
        let first = Unanswered { since: now, asked: now, questions: 0 };
        self.unanswered.get_or_insert(first).asked = now;
    }

    /// Whether it is time to ask, where an answer is missing.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.unanswered.is_some_and(|Unanswered { asked, questions, .. }| {
            let pause = if questions < MANY { ASK } else { IDLE };
            now.saturating_duration_since(asked) >= pause
        })
    }

    /// How long it may be until the next look.
    pub(super) const fn pause(&self) -> Duration {
        match self.unanswered {
            Some(_) => ASK,
            None if self.flow > FLOW => BUSY,
            None => IDLE,
        }
    }

    /// Takes in what has left and what was answered so far. `round_trip` is the usual one.
    pub(super) fn look(&mut self, traffic: Traffic, round_trip: Duration, now: Instant) -> State {
        let before = std::mem::replace(&mut self.traffic, traffic);
        self.flow = traffic.questions.saturating_sub(before.questions);
        if traffic.answers != before.answers {
            self.unanswered = None;
        } else if self.flow > 0 {
            let first = Unanswered { since: now, asked: now, questions: 0 };
            self.unanswered.get_or_insert(first).questions += 1;
        }
        let Some(Unanswered { since, questions, .. }) = self.unanswered else { return State::Fine };
        let lasts = now.saturating_duration_since(since);
        let is_over = |(many, least): (u32, Duration), trips: u32| {
            questions >= many && lasts >= least.max(round_trip * trips)
        };
        if is_over(SILENT, 3) {
            State::Silent
        } else if is_over(DOUBTFUL, 2) {
            State::Doubtful
        } else {
            State::Asking
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection over a network of a kind, looked at as [`over_tcp`](super::super::over_tcp) does it.
    struct Try {
        watch: Watch,
        traffic: Traffic,
        now: Instant,
        round_trip: Duration,
        /// Answers that are on their way.
        coming: Vec<Instant>,
        /// One in so many is lost, there and back together; what chance says next.
        lost: u64,
        chance: u64,
        through: bool,
    }

    impl Try {
        fn new(round_trip: Duration, lost: u64) -> Self {
            Self {
                watch: Watch::new(Traffic::default()),
                traffic: Traffic::default(),
                now: Instant::now(),
                round_trip,
                coming: Vec::new(),
                lost,
                chance: 1,
                through: true,
            }
        }

        fn ask(&mut self) {
            self.traffic.questions += 1;
            self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let lost = self.lost > 0 && (self.chance >> 33).is_multiple_of(self.lost);
            if self.through && !lost {
                self.coming.push(self.now + self.round_trip);
            }
        }

        /// Lets time pass until `wanted`, or as long as is given. Something else than this asks once in `every`.
        fn run(&mut self, time: Duration, every: Duration, wanted: State) -> Option<Duration> {
            let begun = self.now;
            let mut next = (self.now, self.now);
            while self.now - begun < time {
                self.now += Duration::from_millis(10);
                let now = self.now;
                self.coming.retain(|at| {
                    let came = *at <= now;
                    self.traffic.answers += u64::from(came);
                    !came
                });
                if now >= next.0 {
                    next.0 = now + every;
                    self.ask();
                }
                if now >= next.1 {
                    let state = self.watch.look(self.traffic, self.round_trip, now);
                    if self.watch.is_due(now) {
                        self.ask();
                        self.watch.note_asked(now);
                    }
                    next.1 = now + self.watch.pause();
                    if state == wanted {
                        return Some(now - begun);
                    }
                }
            }
            None
        }
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn silence_shows_in_about_a_second_while_packets_flow_and_later_where_none_do() {
        for (round_trip, every, bound) in
            [(1, 5, 1_400), (50, 5, 1_400), (200, 5, 1_900), (1, 2_000, 4_500)]
        {
            let every = Duration::from_millis(every);
            let mut one = Try::new(Duration::from_millis(round_trip), 0);
            assert_eq!(one.run(Duration::from_secs(60), every, State::Doubtful), None);
            one.through = false;
            let took = one.run(HOUR, every, State::Silent).expect("nothing gets through");
            assert!(took <= Duration::from_millis(bound), "{took:?} at {round_trip} ms");
            one.through = true;
            assert!(one.run(Duration::from_secs(9), every, State::Fine).is_some());
        }
    }

    #[test]
    fn lost_questions_and_long_ways_are_no_silence() {
        for round_trip in [1, 30, 200, 700] {
            for every in [20, 500, 2_000] {
                let mut one = Try::new(Duration::from_millis(round_trip), 10);
                let every = Duration::from_millis(every);
                let silent = one.run(HOUR, every, State::Silent);
                assert_eq!(silent, None, "{round_trip} ms, asked each {every:?}");
            }
        }
    }

    #[test]
    fn a_machine_that_stood_still_takes_its_own_silence_for_nobodys() {
        let mut watch = Watch::new(Traffic::default());
        let (mut now, mut traffic) = (Instant::now(), Traffic::default());
        for _ in 0..2 {
            // What was sent before is answered, but nobody has read that yet.
            now += Duration::from_secs(30);
            traffic.questions += 1;
            assert_eq!(watch.look(traffic, Duration::ZERO, now), State::Asking);
            watch.note_asked(now);
        }
        traffic.answers += 1;
        assert_eq!(watch.look(traffic, Duration::ZERO, now), State::Fine);
    }

    #[test]
    fn where_nobody_asks_nothing_is_missing() {
        let mut watch = Watch::new(Traffic::default());
        let now = Instant::now();
        for seconds in 0..100 {
            let at = now + Duration::from_secs(seconds);
            assert_eq!(watch.look(Traffic::default(), Duration::ZERO, at), State::Fine);
            assert!(!watch.is_due(at) && watch.pause() == IDLE);
        }
    }

    #[test]
    fn what_was_to_be_asked_and_never_left_says_nothing_and_a_burst_counts_once() {
        let mut watch = Watch::new(Traffic::default());
        let (mut now, mut traffic) = (Instant::now(), Traffic::default());
        watch.note_asked(now);
        for _ in 0..100 {
            now += ASK;
            assert_eq!(watch.look(traffic, Duration::ZERO, now), State::Asking);
            assert!(watch.is_due(now), "asked until it leaves");
            watch.note_asked(now);
        }
        for (burst, state) in [
            (1_000, State::Asking),
            (0, State::Asking),
            (1, State::Asking),
            (50, State::Doubtful),
            (0, State::Doubtful),
            (1, State::Silent),
        ] {
            traffic.questions += burst;
            now += ASK;
            assert_eq!(watch.look(traffic, Duration::ZERO, now), state);
        }
    }
}
