//! Counts questions and answers of a connection. No sockets, no clock.

use std::time::Duration;

use anteroom_transport::link::Traffic;
use tokio::time::Instant;

/// Between two looks while packets flow, while none do, and while an answer is missing.
const BUSY: Duration = Duration::from_millis(250);
pub(super) const IDLE: Duration = Duration::from_secs(1);
pub(super) const ASK: Duration = Duration::from_millis(200);
/// Questions in a look that are more than what keeps a connection warm.
const FLOW: u64 = 4;
/// What it takes until TCP is tried, and until it may take QUIC's place.
const DOUBTFUL: Enough =
    Enough { looks: 3, least: Duration::from_millis(400), round_trips: 2, probes: 2 };
const SILENT: Enough =
    Enough { looks: 4, least: Duration::from_millis(600), round_trips: 3, probes: 3 };
/// How long the other end may take to acknowledge what it has (RFC 9000, 18.2: `max_ack_delay`).
const ACK_DELAY: Duration = Duration::from_millis(25);
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

/// What says that answers are missing: looks and time both, since time alone says nothing on a machine that stood still, and
/// looks alone nothing on a long way.
struct Enough {
    /// Looks without an answer, the first included.
    looks: u32,
    /// The time since the first, and the same in round trips, where as many looks found that something had left.
    least: Duration,
    round_trips: u32,
    /// Where fewer did, what is on its way fills the congestion window, and only QUIC itself asks: so often at least, each time
    /// after twice as long (RFC 9002, 6.2).
    probes: u32,
}

impl Enough {
    fn is_there(&self, unanswered: &Unanswered, round_trip: Duration, now: Instant) -> bool {
        let Unanswered { since, looks, left, .. } = *unanswered;
        let way = if left >= self.looks {
            round_trip * self.round_trips
        } else {
            let probe = round_trip * 3 / 2 + ACK_DELAY;
            probe * ((1 << self.probes) - 1) + round_trip
        };
        let lasts = now.saturating_duration_since(since);
        looks >= self.looks && left > 0 && lasts >= self.least.max(way)
    }
}

/// Questions without an answer.
#[derive(Debug, Clone, Copy)]
struct Unanswered {
    since: Instant,
    /// When something was last asked because of it.
    asked: Instant,
    /// Looks that found no answer, and those of them that found that something had left since the one before, however much: what
    /// goes out together is lost together.
    looks: u32,
    left: u32,
}

impl Unanswered {
    const fn new(now: Instant) -> Self {
        Self { since: now, asked: now, looks: 0, left: 0 }
    }
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
        self.unanswered.get_or_insert(Unanswered::new(now)).asked = now;
    }

    /// Whether it is time to ask, where an answer is missing.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.unanswered.is_some_and(|Unanswered { asked, looks, .. }| {
            let pause = if looks < MANY { ASK } else { IDLE };
            now.saturating_duration_since(asked) >= pause
        })
    }

    /// Since when an answer is missing, where more than one look found none and that is longer than one usually takes.
    pub(super) fn waits(&self, round_trip: Duration, now: Instant) -> Option<Instant> {
        let Unanswered { since, looks, left, .. } = self.unanswered?;
        let lasts = now.saturating_duration_since(since);
        (looks > 1 && left > 0 && lasts >= round_trip.max(ASK)).then_some(since)
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
            self.unanswered.get_or_insert(Unanswered::new(now)).left += 1;
        }
        let Some(unanswered) = &mut self.unanswered else { return State::Fine };
        unanswered.looks = unanswered.looks.saturating_add(1);
        if SILENT.is_there(unanswered, round_trip, now) {
            State::Silent
        } else if DOUBTFUL.is_there(unanswered, round_trip, now) {
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
        /// When QUIC asks again, and how long it has waited for that.
        again: Option<(Instant, Duration)>,
        /// Whether what is on its way leaves no room for more than that.
        full: bool,
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
                again: None,
                full: false,
                lost,
                chance: 1,
                through: true,
            }
        }

        fn ask(&mut self) {
            if self.full && self.again.is_some_and(|(at, _)| at > self.now) {
                return;
            }
            let wait = self.round_trip * 3 / 2 + ACK_DELAY;
            self.again.get_or_insert((self.now + wait, wait));
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
                    self.again = self.again.filter(|_| !came);
                    !came
                });
                if let Some((at, wait)) = self.again
                    && at <= now
                {
                    self.ask();
                    self.again = Some((now + wait * 2, wait * 2));
                }
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
    fn where_only_quic_itself_can_ask_that_is_waited_for() {
        for (round_trip, probes, bound) in [(1, 4, 1_700), (50, 3, 1_900), (200, 3, 4_000)] {
            let mut one = Try::new(Duration::from_millis(round_trip), 0);
            (one.through, one.full) = (false, true);
            let every = Duration::from_millis(1);
            let took = one.run(HOUR, every, State::Silent).expect("nothing gets through");
            assert!(took <= Duration::from_millis(bound), "{took:?} at {round_trip} ms");
            let asked = one.traffic.questions - 1;
            assert!(asked >= probes, "{asked} probes in {took:?} at {round_trip} ms");
        }
    }

    #[test]
    fn an_answer_is_waited_for_after_two_looks_and_longer_than_a_round_trip() {
        for round_trip in [0, 50, 700].map(Duration::from_millis) {
            let begun = Instant::now();
            let mut watch = Watch::new(Traffic::default());
            let traffic = Traffic { questions: 1, answers: 0 };
            watch.look(traffic, round_trip, begun);
            assert_eq!(watch.waits(round_trip, begun + HOUR), None, "one look says nothing");
            let soon = begun + ASK.max(round_trip) - Duration::from_millis(1);
            watch.look(traffic, round_trip, soon);
            assert_eq!(watch.waits(round_trip, soon), None, "{round_trip:?}");
            let later = begun + ASK.max(round_trip);
            watch.look(traffic, round_trip, later);
            assert_eq!(watch.waits(round_trip, later), Some(begun), "{round_trip:?}");
            watch.look(Traffic { answers: 1, ..traffic }, round_trip, later);
            assert_eq!(watch.waits(round_trip, later), None, "it came");
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
            if watch.is_due(now) {
                watch.note_asked(now);
            }
        }
        // Where more has left, less time says as much.
        for (bursts, long) in [([1_000, 0, 1, 50, 1], false), ([1_000, 0, 0, 0, 1], true)] {
            let mut watch = Watch::new(traffic);
            let round_trip = Duration::from_millis(200);
            for (n, burst) in bursts.into_iter().enumerate() {
                traffic.questions += burst;
                now += ASK;
                let state = watch.look(traffic, round_trip, now);
                let wanted = if n == 4 && !long { State::Silent } else { State::Asking };
                assert!(state <= wanted.max(State::Doubtful) && (n > 2 || state == State::Asking));
                assert!(n < 4 || state == wanted, "{state:?} of {bursts:?}");
            }
        }
    }
}
