//! Whether the direct path that packets take still carries more than short datagrams.
//!
//! There are networks that stop letting long ones through, or do so one way only, and go on answering knocks. So a gateway counts the
//! long datagrams that each peer's keys opened and that came directly, full knocks among them, and each answer to a knock says how
//! many these are by now (where the peer understands that), and how many of them are at least as long as what every host takes.
//! Datagrams travel in their order, so where one was sent before a knock, and its answer says that none such has come since the
//! answer before, that one got lost. Then the peer is asked by full knocks, of what every host takes, each with a short one behind
//! it. As soon as an answer says that any of that length has come all is well; where all of [`ASKED`] have got lost, and a short one
//! sent after them is answered, nothing but shorter ones gets through.
//!
//! It's not by chance that all get lost: where each of them does with a chance of one in six, whatever else is sent, that happens
//! once in 1.7 million times that the peer is asked. Answers that get lost say nothing.

use std::time::{Duration, Instant};

use super::front;

/// What a peer can do that says how many long datagrams have come, and understands who says so.
pub(super) const CAPABILITY: &str = "counts-long";
/// Longest datagram that isn't long: a handshake's first message.
pub(super) const SHORT: usize = front::INITIATION_LEN;
/// Least length of what every host takes, behind the longest headers of IP and UDP: no full knock is shorter.
pub(super) const FULL: usize = 576 - 48;
/// Full knocks that must all have got lost.
const ASKED: u32 = 8;
/// No more are sent where short ones aren't answered either, until one is.
const MAX_ASKED: u32 = 12;
/// Between two of them.
const EVERY: Duration = Duration::from_millis(100);

/// Long datagrams that came directly from a peer, less all wraps of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Came {
    /// Those that its keys opened.
    pub(super) sealed: u32,
    /// Those as long as what every host takes, full knocks among them.
    pub(super) full: u32,
}

/// What went directly between two short knocks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    /// Anything long.
    long: bool,
    /// Anything as long as what every host takes.
    full: bool,
}

/// What the peer says that it got.
#[derive(Debug, Clone, Copy)]
struct Said {
    came: Came,
    /// When the knock was sent that this answers.
    at: Instant,
}

/// Full knocks are sent, since the peer says that it got nothing long.
#[derive(Debug, Clone, Copy)]
struct Asking {
    /// How many full ones it said had come then.
    full: u32,
    next: Instant,
    count: u32,
    /// When there were enough of them.
    enough: Option<Instant>,
}

/// Long datagrams on the direct path to one peer.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// Those that came.
    came: Came,
    /// What was sent since the last knock.
    sent: Sent,
    said: Option<Said>,
    asking: Option<Asking>,
    /// When a full knock was last sent.
    asked: Option<Instant>,
    over: bool,
}

impl Doubt {
    /// A datagram of this length came directly, which the peer's keys opened.
    pub(super) const fn note_sealed(&mut self, len: usize) {
        if len > SHORT {
            self.came.sealed = self.came.sealed.wrapping_add(1);
        }
        self.note_full(len);
    }

    /// So did a knock of the peer, or a sealed datagram.
    pub(super) const fn note_full(&mut self, len: usize) {
        if len >= FULL {
            self.came.full = self.came.full.wrapping_add(1);
        }
    }

    /// How many came.
    pub(super) const fn came(&self) -> Came {
        self.came
    }

    /// A datagram of this length goes directly.
    pub(super) const fn note_sent(&mut self, len: usize) {
        self.sent.long |= len > SHORT;
        self.sent.full |= len >= FULL;
    }

    /// A short knock goes directly. Says what went since the one before.
    pub(super) const fn take_sent(&mut self) -> Sent {
        std::mem::replace(&mut self.sent, Sent { long: false, full: false })
    }

    /// An answer on the direct path says that so many came. It is to a knock that was sent at `at`, behind what was `sent` since the
    /// knock before. Returns whether more have come that the peer's keys opened.
    pub(super) fn note_said(
        &mut self,
        came: Came,
        (at, sent): (Instant, Sent),
        now: Instant,
    ) -> bool {
        let newer = |before: &Said| at >= before.at;
        if self.said.as_ref().is_some_and(|before| !newer(before)) {
            return false;
        }
        let before = self.said.replace(Said { came, at });
        let is_missing = |before: Came| {
            (sent.long && before.sealed == came.sealed) || (sent.full && before.full == came.full)
        };
        match &self.asking {
            Some(asking) if asking.full != came.full => self.asking = None,
            Some(asking) => self.over |= asking.enough.is_some_and(|enough| at >= enough),
            None if before.is_some_and(|before| is_missing(before.came)) => {
                let next = self.asked.map_or(now, |at| now.max(at + EVERY));
                self.asking = Some(Asking { full: came.full, next, count: 0, enough: None });
            }
            None => {}
        }
        before.is_some_and(|before| before.came.sealed != came.sealed)
    }

    /// When a full knock is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.asking.filter(|asking| asking.count < MAX_ASKED).map(|asking| asking.next)
    }

    /// Whether one is due now; finds out when the next is.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        if self.due().is_none_or(|at| at > now) {
            return false;
        }
        if let Some(asking) = &mut self.asking {
            (asking.count, asking.next) = (asking.count + 1, now + EVERY);
            if asking.count == ASKED {
                asking.enough = Some(now);
            }
        }
        self.asked = Some(now);
        true
    }

    /// Nobody may be asked there.
    pub(super) const fn end(&mut self) {
        self.asking = None;
    }

    /// Whether nothing but short datagrams gets through.
    pub(super) const fn is_over(&self) -> bool {
        self.over
    }

    /// Packets take another path, or the peer counts anew. What came from it goes on being counted.
    pub(super) fn begin(&mut self) {
        *self = Self { came: self.came, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A path in virtual time, in steps of a millisecond: a long packet each 50 ms, a knock each quarter of a second.
    struct Path {
        here: Doubt,
        there: Doubt,
        /// How long a datagram is under way, in milliseconds.
        delay: u64,
        /// How many of 600 get lost.
        lost: u64,
        random: u64,
        /// What is under way: when it arrives.
        there_at: Vec<(u64, Datagram)>,
        here_at: Vec<(u64, Answer)>,
        start: Instant,
        ms: u64,
        full: u64,
    }

    enum Datagram {
        Packet,
        Knock { full: bool, at: u64, long: Sent },
    }

    struct Answer {
        came: Came,
        at: u64,
        long: Sent,
    }

    impl Path {
        fn new(delay: u64, lost: u64, seed: u64) -> Self {
            #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
            let start = Instant::now();
            Self {
                here: Doubt::default(),
                there: Doubt::default(),
                delay,
                lost,
                random: seed,
                there_at: Vec::new(),
                here_at: Vec::new(),
                start,
                ms: 0,
                full: 0,
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn is_lost(&mut self) -> bool {
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.random >> 33) % 600 < self.lost
        }

        fn send(&mut self, datagram: Datagram, short_only: bool) {
            let long = !matches!(datagram, Datagram::Knock { full: false, .. });
            let stopped = long && short_only;
            if !self.is_lost() && !stopped {
                self.there_at.push((self.ms + self.delay, datagram));
            }
        }

        fn knock(&mut self, full: bool, short_only: bool) {
            let long = if full { Sent::default() } else { self.here.take_sent() };
            self.full += u64::from(full);
            self.send(Datagram::Knock { full, at: self.ms, long }, short_only);
        }

        /// Lets so many milliseconds pass, or fewer if the path is over. Says how many did.
        fn run(&mut self, time: u64, short_only: bool) -> u64 {
            let begin = self.ms;
            while self.ms < begin + time && !self.here.is_over() {
                let ms = self.ms;
                let come = self.there_at.extract_if(.., |one| one.0 <= ms);
                for (_, datagram) in come.collect::<Vec<_>>() {
                    let knock = match datagram {
                        Datagram::Packet => {
                            self.there.note_sealed(1_132);
                            None
                        }
                        Datagram::Knock { full, at, long } => {
                            if full {
                                self.there.note_full(548);
                            }
                            Some((at, long))
                        }
                    };
                    if let Some((at, long)) = knock.filter(|_| !self.is_lost()) {
                        let came = self.there.came();
                        self.here_at.push((ms + self.delay, Answer { came, at, long }));
                    }
                }
                for (_, answer) in self.here_at.extract_if(.., |one| one.0 <= ms) {
                    let sent = (self.start + Duration::from_millis(answer.at), answer.long);
                    let now = self.start + Duration::from_millis(ms);
                    self.here.note_said(answer.came, sent, now);
                }
                if ms.is_multiple_of(50) {
                    self.here.note_sent(1_100);
                    self.send(Datagram::Packet, short_only);
                }
                if ms.is_multiple_of(250) {
                    self.knock(false, short_only);
                }
                while self.here.take_due(self.at(ms)) {
                    self.knock(true, short_only);
                    self.knock(false, short_only);
                }
                self.ms += 1;
            }
            self.ms - begin
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_path_that_loses_a_sixth_each_way_is_kept(
            delay in 0_u64..300,
            lost in 0_u64..=100,
            seed in any::<u64>(),
        ) {
            let mut path = Path::new(delay, lost, seed);
            prop_assert_eq!(path.run(300_000, false), 300_000);
            // One that loses nothing isn't asked at all.
            prop_assert!(lost > 0 || path.full == 0, "{} full knocks", path.full);
            prop_assert!(path.full < 300 * 4, "{} full knocks in 300 s", path.full);
        }

        #[test]
        fn one_that_carries_nothing_long_any_more_is_over_within_two_seconds(
            delay in 0_u64..=100,
            lost in prop_oneof![Just(0_u64), 0_u64..=30],
            seed in any::<u64>(),
            before in 5_000_u64..6_000,
        ) {
            let mut path = Path::new(delay, lost, seed);
            prop_assert_eq!(path.run(before, false), before);
            let time = path.run(10_000, true);
            // Where answers get lost as well, it may take longer.
            prop_assert!(time < if lost == 0 { 2_000 } else { 4_000 }, "{time} ms");
        }
    }

    #[test]
    fn a_peer_that_says_less_than_before_or_late_is_believed_as_it_is() {
        let mut path = Path::new(20, 0, 1);
        path.run(2_000, false);
        // The peer counts anew.
        path.there = Doubt::default();
        assert_eq!(path.run(5_000, false), 5_000);
        assert!(path.here.asking.is_none());
        // An answer that was overtaken.
        let (at, now) = (path.at(path.ms - 3_000), path.at(path.ms));
        for _ in 0..3 {
            path.here.note_said(Came::default(), (at, Sent { long: true, full: true }), now);
        }
        assert!(path.here.asking.is_none());
    }

    #[test]
    fn where_short_ones_get_lost_as_well_it_asks_no_more_than_twelve_times() {
        let mut path = Path::new(20, 0, 1);
        path.run(2_000, false);
        path.run(400, true);
        path.lost = 600;
        let before = path.full;
        assert_eq!(path.run(60_000, true), 60_000);
        assert!(path.full - before <= u64::from(MAX_ASKED), "{} full knocks", path.full - before);
    }
}
