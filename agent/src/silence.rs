//! Whether a connection over QUIC still gets anything through, and one over TCP in its place where it doesn't.
//!
//! QUIC itself gives a connection up after ten seconds without a word. Long before that, questions without an answer
//! tell: TCP is tried beside QUIC, which stays as it is until TCP is there. Whichever speaks first then has it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_transport::endpoint::TransportError;
use anteroom_transport::link::{Carrier, Connection, Link, Traffic};
use anteroom_transport::tls::Protocol;
use anteroom_transport::{dial, egress};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

/// Between two looks while packets flow, while none do, and while an answer is missing.
const BUSY: Duration = Duration::from_millis(250);
const IDLE: Duration = Duration::from_secs(1);
const ASK: Duration = Duration::from_millis(200);
/// Questions in a look that are more than what keeps a connection warm.
const FLOW: u64 = 4;
/// Questions without an answer, and the time since the first, after which TCP is tried: both, since time alone says nothing on
/// a machine that stood still, and questions alone nothing on a long way.
const DOUBTFUL: (u32, Duration) = (3, Duration::from_millis(400));
/// The same until it may take QUIC's place.
const SILENT: (u32, Duration) = (4, Duration::from_millis(600));
/// Questions that go out at once one after the other. Then one goes out each [`IDLE`].
const MANY: u32 = 6;
/// Between two tries of TCP, and how long the first ones may take: what comes back answers at once, and a connection's own
/// second question would be late.
const AGAIN: Duration = Duration::from_millis(500);
const TRY: Duration = Duration::from_secs(2);
/// Tries that are [`AGAIN`] apart. Each one more waits twice as long as the one before, up to [`RAREST`], until QUIC was fine
/// for [`LASTS`]: a network, or a busy relay, that answers now and then has no TCP dialled for ever.
const QUICK: u32 = 4;
const RAREST: Duration = Duration::from_secs(60);
const LASTS: Duration = Duration::from_secs(60);
/// How long a connection over TCP is kept that came when QUIC answered again, and how long QUIC must have been fine before it
/// is said to owe nothing any more.
const KEPT: Duration = Duration::from_secs(3);
const STEADY: Duration = Duration::from_secs(2);
/// How soon TCP has to be there for its way to have been open all the time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How it stands with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
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
    last: Instant,
    questions: u32,
}

/// Counts questions and answers of a connection. No sockets, no clock.
#[derive(Debug)]
struct Watch {
    traffic: Traffic,
    unanswered: Option<Unanswered>,
    /// Questions since the look before.
    flow: u64,
}

impl Watch {
    const fn new(traffic: Traffic) -> Self {
        Self { traffic, unanswered: None, flow: 0 }
    }

    /// A question was sent.
    fn note_asked(&mut self, now: Instant) {
        let first = Unanswered { since: now, last: now, questions: 0 };
        let unanswered = self.unanswered.get_or_insert(first);
        unanswered.last = now;
        unanswered.questions += 1;
    }

    /// Whether it is time to ask, where an answer is missing.
    fn is_due(&self, now: Instant) -> bool {
        self.unanswered.is_some_and(|Unanswered { last, questions, .. }| {
            let pause = if questions < MANY { ASK } else { IDLE };
            now.saturating_duration_since(last) >= pause
        })
    }

    /// How long it may be until the next look.
    const fn pause(&self) -> Duration {
        match self.unanswered {
            Some(_) => ASK,
            None if self.flow > FLOW => BUSY,
            None => IDLE,
        }
    }

    /// Takes in what was asked and answered so far. `round_trip` is the usual one.
    fn look(&mut self, traffic: Traffic, round_trip: Duration, now: Instant) -> State {
        let before = std::mem::replace(&mut self.traffic, traffic);
        self.flow = traffic.questions.saturating_sub(before.questions);
        if traffic.answers != before.answers {
            self.unanswered = None;
        } else if self.unanswered.is_none() && self.flow > 0 {
            self.note_asked(now);
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

/// When TCP may be tried, from one doubt to the next. No clock.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    /// Tries since QUIC was last fine for [`LASTS`].
    tries: u32,
    next: Option<Instant>,
    /// Since when QUIC answers.
    fine: Option<Instant>,
}

impl Pace {
    fn may_try(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// It is tried. What is between this and the next differs by `who` tries, so that gateways of one network part.
    fn note_try(&mut self, who: PublicKey, now: Instant) {
        let doublings = self.tries.saturating_sub(QUICK - 1).min(16);
        let pause = (AGAIN * (1 << doublings)).min(RAREST);
        let bytes = who.as_bytes();
        let share = bytes.get(self.tries as usize % bytes.len()).copied().unwrap_or_default();
        self.next = Some(now + pause + pause * u32::from(share) / 1_024);
        self.tries = self.tries.saturating_add(1);
    }

    fn note_failed(&mut self, now: Instant) {
        self.next = self.next.max(Some(now + AGAIN));
    }

    /// How long QUIC has been fine, as of now.
    fn note(&mut self, fine: bool, now: Instant) -> Duration {
        if !fine {
            self.fine = None;
            return Duration::ZERO;
        }
        let lasts = now.saturating_duration_since(*self.fine.get_or_insert(now));
        if lasts >= LASTS {
            (self.tries, self.next) = (0, None);
        }
        lasts
    }
}

/// What is told of a connection's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// Answers begin to be missing.
    Owes,
    /// They come again, or nobody looks any more.
    OwesNothing,
    /// One came that was waited for.
    Answered,
}

/// Tells of answers that are missing, and that they are no more, also when it goes: nobody would say so later.
pub(crate) struct Owing<T: Fn(Word)> {
    tell: T,
    owes: bool,
}

impl<T: Fn(Word)> Owing<T> {
    fn set(&mut self, owes: bool) {
        if std::mem::replace(&mut self.owes, owes) != owes {
            (self.tell)(if owes { Word::Owes } else { Word::OwesNothing });
        }
    }
}

impl<T: Fn(Word)> Drop for Owing<T> {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// A connection over TCP that may take the place of one over QUIC.
pub(crate) struct Fallen<T: Fn(Word)> {
    pub(crate) link: Link,
    pub(crate) address: SocketAddr,
    /// Whether TCP got through as soon as it was tried, so that the network wasn't gone.
    pub(crate) at_once: bool,
    /// As long as it is held the one over QUIC is said to owe answers.
    pub(crate) owing: Owing<T>,
}

/// A connection over TCP, once it is there.
struct Made {
    link: Link,
    at: Instant,
    at_once: bool,
}

type Dialing<'a> = Pin<Box<dyn Future<Output = Result<Link, TransportError>> + Send + 'a>>;

/// A connection over TCP to where `held` leads over QUIC, once nothing gets through that and TCP does. Never, where `held` is over
/// TCP already. `ask` sends something that wants an answer. `tell` is told when answers begin to be missing, and when they
/// come again. `pace` is for all that is done of this kind for one connection.
pub(crate) async fn over_tcp<T: Fn(Word)>(
    held: &Connection,
    identity: &IdentityKey,
    protocol: Protocol,
    pace: &mut Pace,
    ask: impl Fn(),
    tell: T,
) -> Fallen<T> {
    let (Carrier::Quic, Some(key)) = (held.carrier(), held.peer_key()) else {
        return std::future::pending().await;
    };
    let (address, keys) = (held.remote_address(), [key]);
    let mut owing = Owing { tell, owes: false };
    let mut watch = Watch::new(held.traffic());
    let (mut doubts, mut state) = (egress::doubts(), State::Fine);
    let mut dialing: Option<Dialing<'_>> = None;
    let mut made: Option<Made> = None;
    // When TCP was first tried in this doubt, and how often it has failed since.
    let (mut tried, mut failures) = (None::<Instant>, 0_u32);
    loop {
        tokio::select! {
            () = sleep(watch.pause()) => {}
            changed = doubts.changed(), if state == State::Fine => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
                // What was answered before this question says nothing of it.
                let now = Instant::now();
                watch.look(held.traffic(), held.rtt(), now);
                ask();
                watch.note_asked(now);
            }
            dialed = of(&mut dialing) => {
                dialing = None;
                let at = Instant::now();
                match dialed {
                    Ok(link) => {
                        let at_once = tried.is_some_and(|tried| at - tried <= AT_ONCE + held.rtt() * 3);
                        made = Some(Made { link, at, at_once: at_once && failures == 0 });
                    }
                    Err(error) => {
                        debug!("QUIC is silent, and TCP doesn't get through either: {error}");
                        failures += 1;
                        pace.note_failed(at);
                    }
                }
            }
        }
        let now = Instant::now();
        let before = std::mem::replace(&mut state, watch.look(held.traffic(), held.rtt(), now));
        let doubtful = state >= State::Doubtful;
        let fine = pace.note(!doubtful, now);
        if doubtful {
            owing.set(true);
        } else if fine >= STEADY {
            owing.set(false);
        }
        if before != State::Fine && state == State::Fine {
            (owing.tell)(Word::Answered);
        }
        let useless = |made: &mut Made| {
            made.link.connection().close_reason().is_some() || (!doubtful && now - made.at >= KEPT)
        };
        if let Some(made) = made.take_if(useless) {
            tokio::spawn(made.link.close(""));
        }
        if !doubtful {
            (dialing, tried, failures) = (None, None, 0);
        } else if dialing.is_none() && made.is_none() && pace.may_try(now) {
            pace.note_try(identity.public(), now);
            tried.get_or_insert(now);
            let patience = if failures < 2 { TRY } else { dial::ANSWER };
            dialing = Some(Box::pin(async move {
                let tcp = dial::over(Carrier::Tcp, address, identity, &keys, protocol);
                let silent = || Err(TransportError::Silent { address, carrier: Carrier::Tcp });
                timeout(patience, tcp).await.unwrap_or_else(|_| silent())
            }));
        }
        if watch.is_due(now) {
            ask();
            watch.note_asked(now);
        }
        if state == State::Silent
            && let Some(Made { link, at_once, .. }) = made.take()
        {
            return Fallen { link, address, at_once, owing };
        }
    }
}

/// What becomes of it, where there is one.
async fn of(dialing: &mut Option<Dialing<'_>>) -> Result<Link, TransportError> {
    match dialing {
        Some(dialing) => dialing.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use anteroom_transport::endpoint;
    use anteroom_transport::tcp::Acceptor;
    use proptest::prelude::*;

    use super::*;
    use crate::testkit::Front;

    /// A connection over a network of a kind, looked at as [`over_tcp`] does it.
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

    /// A connection over QUIC that is cut, and TCP beside it that answers.
    struct Cut {
        front: Front,
        server: IdentityKey,
        identity: IdentityKey,
        held: Link,
        _endpoint: quinn::Endpoint,
        _theirs: quinn::Connection,
        words: Mutex<Vec<Word>>,
    }

    impl Cut {
        async fn new() -> Self {
            let [server, identity] = [50, 51].map(|seed| IdentityKey::from_seed(&[seed; 32]));
            let any = "127.0.0.1:0".parse().unwrap();
            let endpoint = endpoint::listen_for(any, &server, &[Protocol::Relay]).unwrap();
            let front = Front::new(endpoint.local_addr().unwrap());
            let keys = [server.public()];
            let (held, theirs) = tokio::join!(
                dial::over(Carrier::Quic, front.address, &identity, &keys, Protocol::Relay),
                async { endpoint.accept().await.unwrap().await.unwrap() }
            );
            let held = held.unwrap();
            Self {
                front,
                server,
                identity,
                held,
                _endpoint: endpoint,
                _theirs: theirs,
                words: Mutex::default(),
            }
        }

        async fn until_owing(&self) {
            while !self.words.lock().unwrap().contains(&Word::Owes) {
                sleep(Duration::from_millis(10)).await;
            }
        }

        fn last(&self) -> Option<Word> {
            self.words.lock().unwrap().last().copied()
        }
    }

    #[tokio::test]
    async fn who_looks_no_more_says_that_nothing_is_owed() {
        let cut = Cut::new().await;
        let held = cut.held.connection();
        // QUIC may have given it up, where the machine is slow: that answers nothing either.
        let ask = || {
            let _ = held.send_datagram(vec![0; 8].into());
        };
        let tell = |word| cut.words.lock().unwrap().push(word);
        let mut pace = Pace::default();
        cut.front.cut();
        {
            // Nobody accepts over TCP, so that this goes on until it is dropped.
            let looking = over_tcp(held, &cut.identity, Protocol::Relay, &mut pace, ask, tell);
            tokio::select! {
                _ = looking => panic!("TCP got through"),
                () = cut.until_owing() => {}
            }
        }
        assert_eq!(cut.last(), Some(Word::OwesNothing));
        assert!(pace.tries >= 1, "{pace:?}");

        cut.words.lock().unwrap().clear();
        let acceptor = Acceptor::new(&cut.server, &[Protocol::Relay]).unwrap();
        let accepting = async {
            let mut accepted = Vec::new();
            loop {
                let (stream, _) = cut.front.listener.accept().await.unwrap();
                accepted.push(acceptor.accept(stream).await);
            }
        };
        let looking = over_tcp(held, &cut.identity, Protocol::Relay, &mut pace, ask, tell);
        let fallen = tokio::select! {
            fallen = looking => fallen,
            () = accepting => unreachable!(),
        };
        assert_eq!(cut.last(), Some(Word::Owes), "until it is seen whether TCP is greeted");
        drop(fallen);
        assert_eq!(cut.last(), Some(Word::OwesNothing));
    }

    proptest! {
        #[test]
        fn tcp_is_dialled_a_few_hundred_times_an_hour_at_most_however_answers_come(
            pattern in prop::collection::vec((1_u64..80_000, 1_u64..20_000, any::<bool>()), 1..8),
            seed: u8,
        ) {
            let who = IdentityKey::from_seed(&[seed; 32]).public();
            let (begun, mut pace, mut tries) = (Instant::now(), Pace::default(), 0);
            let mut now = begun;
            'hour: loop {
                for (fine, doubtful, refused) in &pattern {
                    for (is_fine, millis) in [(true, fine), (false, doubtful)] {
                        let until = now + Duration::from_millis(*millis);
                        while now < until {
                            pace.note(is_fine, now);
                            if !is_fine && pace.may_try(now) {
                                pace.note_try(who, now);
                                tries += 1;
                                if *refused {
                                    pace.note_failed(now);
                                }
                            }
                            now += ASK.min(until - now);
                        }
                    }
                    if now - begun >= HOUR {
                        break 'hour;
                    }
                }
            }
            prop_assert!(tries <= 480, "{tries}");
        }
    }

    #[test]
    fn the_first_doubt_after_a_good_minute_has_tcp_tried_at_once() {
        let who = IdentityKey::from_seed(&[1; 32]).public();
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..20 {
            assert!(pace.may_try(now));
            pace.note_try(who, now);
            now = pace.next.unwrap();
        }
        pace.note(true, now);
        pace.note_try(who, now);
        assert!(!pace.may_try(now + RAREST - AGAIN), "{pace:?}");
        pace.note(true, now + LASTS);
        assert!(pace.may_try(now + LASTS));
        pace.note_try(who, now + LASTS);
        assert!(pace.may_try(now + LASTS + 2 * AGAIN));
    }
}
