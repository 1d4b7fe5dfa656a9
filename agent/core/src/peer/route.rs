//! By which way packets go to one peer: straight through the underlay, or through a relay until a direct path is
//! proved.
//!
//! While no relay reaches the peer there is nothing to choose: packets go where it was last heard, as WireGuard has
//! it. With a relay at hand,
//!
//! - a direct path counts once a handshake went over it, both ways. The session that it makes carries packets from
//!   then on, so those still on their way through the relay belong to another one: none is too late for its window,
//!   however long the relay's way is. A handshake is tried as soon as a [knock] was answered that is as long as a packet,
//!   unless the path died of late soon after it was taken ([`trial`](super::trial)).
//! - it counts no more when several knocks in a row stay unanswered, which takes about a second, and nothing else of the
//!   peer keeps coming directly: there are firewalls that let through nothing but WireGuard, and full queues that
//!   lose knocks among much else. While packets flow
//!   it is knocked every quarter of a second; with the first packet after a pause at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::v1::telemetry::PathReason;

use super::allowance::Allowance;
use super::awaited::{Awaited, Knock};
use super::doubt::{Doubt, Sent};
use super::knock::{self, KnockKey, Knocker};
use super::nearer::Nearer;
use super::trial::Trial;
use crate::target::{RelayId, RelayPath, Target, Through};

/// Most relays of one peer that are kept.
const MAX_RELAYS: usize = 4;
/// Between two knocks on the direct path while packets flow on it, or while one is unanswered.
const BUSY: Duration = Duration::from_millis(250);
/// Between two knocks on it otherwise: as often as gateways ask each other how they are.
const IDLE: Duration = Duration::from_secs(2);
/// Knocks in a row that stay unanswered when a path counts as dead. Counting them, and not time alone, keeps a machine
/// that stood still for a moment from taking its own silence for the path's.
const UNANSWERED: u32 = 4;
/// How long answers must have been missing at least and at most, whatever the round trip.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(1000), Duration::from_millis(1250));
/// Questions by QUIC to the peer itself, and the time, after which it is left where it took a dead path's place: what killed that
/// one may have killed it, too. If it hasn't, it is taken again as soon as a handshake gets through.
const UNPROVED: (u32, Duration) = (2, Duration::from_millis(500));
/// Rounds of knocks at all addresses while packets take a relay: so many at the first pace, then at the second.
const EAGER_ROUNDS: u32 = 15;
const ROUND: Duration = Duration::from_secs(1);
const LATE_ROUND: Duration = Duration::from_secs(5);
/// Least time until new addresses of a peer have knocks begin anew once more: relays may tell it another with each answer.
const BEGIN_EVERY: Duration = Duration::from_secs(60);
/// Least time between two knocks where the peer was just heard to knock from. A new address with each of its knocks brings
/// no more of them.
const HINT_EVERY: Duration = Duration::from_millis(250);
/// Knocks of one peer that are answered at once, and gained each second: more than honest ones send.
const ANSWERS: u32 = 32;
const ANSWERS_PER_SECOND: u32 = 16;
/// Least time between two handshakes for the sake of a direct path.
const SHAKE_EVERY: Duration = Duration::from_secs(1);
/// Least time between two handshakes for the sake of QUIC to the peer itself.
const TRY_LINK_EVERY: Duration = Duration::from_secs(3);
/// How fresh the direct path's last answer is when a handshake through a relay doesn't count against it.
const FRESH: Duration = Duration::from_secs(1);
/// After so long without a sign of the peer while packets take a relay, the next one is tried.
const TRY_NEXT_AFTER: Duration = Duration::from_secs(3);
/// And after so long without a sign that it hears this gateway: three of its answers, which it may send another way.
const TRY_NEXT_UNHEARD: Duration = Duration::from_secs(7);
/// How long a direct packet shows that the peer still finds the direct path good: longer than between two hellos.
const LATELY: Duration = Duration::from_millis(2_500);
/// Least time that a datagram may have been under way.
const UNDER_WAY: Duration = Duration::from_millis(250);
/// Least room that counts: an honest relay's connections carry more, since QUIC demands 1,200 bytes of every path.
pub(super) const LEAST_ROOM: u16 = 1_100;

/// The way to one peer.
#[derive(Debug)]
pub(super) struct Route {
    /// Relays that reach the peer now, nearest first.
    relays: Vec<RelayPath>,
    /// The relay that packets take.
    via: Option<RelayId>,
    why: PathReason,
    /// When that came to be.
    since: Instant,
    /// Whether it was taken because another way had died, and not because it was seen to work.
    leapt: bool,
    /// What the peer gave to knock with.
    pub(super) theirs: Option<Knocker>,
    /// The key that the peer was given, and its token.
    pub(super) ours: Option<(KnockKey, u64)>,
    next: Instant,
    /// Knocks that weren't answered yet.
    knocks: Awaited,
    /// When the last was sent, answered or not.
    knocked: Option<Instant>,
    /// Since when no knock on the direct path was answered, and how many weren't.
    silent: Option<(Instant, u32)>,
    /// When the direct path last showed that it works.
    proved: Option<Instant>,
    /// When something authentic came directly; none once something came through a relay.
    direct: Option<Instant>,
    /// Whether a knock was ever answered on the direct path, since packets take it or before they did.
    echoes: bool,
    /// When one last was on the path that packets take.
    echoed: Option<Instant>,
    used: Option<Instant>,
    rounds: u32,
    /// When they last began anew for the sake of new addresses.
    anew: Option<Instant>,
    /// When a handshake was last tried for the sake of a direct path.
    shaken: Option<Instant>,
    /// When QUIC to the peer itself was last tried in a relay's place.
    tried: Option<Instant>,
    /// Highest nonce of the peer's knocks in its run.
    newest: u64,
    /// Which of the 64 up to that have come.
    seen: u64,
    /// How many runs of the peer came before: each is given a key of its own.
    runs: u32,
    /// Where the peer knocked from.
    hint: Option<SocketAddr>,
    /// When it is to be knocked there, if it wasn't yet, and when it last was.
    hint_due: Option<Instant>,
    hint_knocked: Option<Instant>,
    /// How many of its knocks are answered.
    answers: Allowance,
    /// Whether a direct path that answers is taken.
    pub(super) trial: Trial,
    /// Whether one that packets take still carries them.
    pub(super) doubt: Doubt,
    /// Whether another relay is.
    pub(super) nearer: Nearer,
}

/// Where it is time to knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nowhere.
    Nowhere,
    /// Where the peer was just heard to knock from.
    Hint(SocketAddr),
    /// At every address, or at the one in use.
    All,
}

/// For how long something may have been under way.
fn under_way(round_trip: Option<Duration>) -> Duration {
    (round_trip.unwrap_or_default() * 2).max(UNDER_WAY)
}

impl Route {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            relays: Vec::new(),
            via: None,
            why: PathReason::NoRelay,
            since: now,
            leapt: false,
            theirs: None,
            ours: None,
            next: now,
            knocks: Awaited::default(),
            knocked: None,
            silent: None,
            proved: None,
            direct: None,
            echoes: false,
            echoed: None,
            used: None,
            rounds: 0,
            anew: None,
            shaken: None,
            tried: None,
            newest: 0,
            seen: 0,
            runs: 0,
            hint: None,
            hint_due: None,
            hint_knocked: None,
            answers: Allowance::new(ANSWERS, ANSWERS_PER_SECOND, now),
            trial: Trial::default(),
            doubt: Doubt::default(),
            nearer: Nearer::default(),
        }
    }

    /// The relay that packets take, if they take one.
    pub(super) const fn via(&self) -> Option<RelayId> {
        self.via
    }

    /// Why packets go as they do.
    pub(super) const fn why(&self) -> PathReason {
        self.why
    }

    /// Whether a relay reaches the peer.
    pub(super) fn has_relay(&self) -> bool {
        !self.relays.is_empty()
    }

    /// The relay for an attempt at a handshake: the one in use, or else each in turn.
    pub(super) fn relay_for(&self, attempt: u32) -> Option<RelayId> {
        let place = (attempt as usize).checked_rem(self.relays.len())?;
        self.via.or_else(|| self.relays.get(place).map(|path| path.relay))
    }

    /// The best relay.
    pub(super) fn nearest(&self) -> Option<RelayId> {
        self.relays.first().map(|path| path.relay)
    }

    /// Whether this relay reaches the peer.
    pub(super) fn knows(&self, relay: RelayId) -> bool {
        self.relays.iter().any(|path| path.relay == relay)
    }

    /// The longest sealed datagram that the relay in use takes.
    pub(super) fn room(&self) -> Option<u16> {
        let via = self.via?;
        self.relays.iter().find(|path| path.relay == via).map(|path| path.room)
    }

    /// Where packets go. `direct` is the address that they take without a relay.
    pub(super) fn target(&self, peer: GatewayId, direct: Option<SocketAddr>) -> Option<Target> {
        match self.via {
            Some(relay) => Some(Target::Relay(Through { relay, peer })),
            None => direct.map(Target::Udp),
        }
    }

    /// Takes over which relays reach the peer, nearest first.
    pub(super) fn set_relays(&mut self, relays: &[RelayPath], now: Instant) {
        let before = self.has_relay();
        let link = self.link();
        self.relays = relays.iter().take(MAX_RELAYS).copied().collect();
        if self.link().is_some() && self.link() != link {
            (self.tried, self.next) = (None, now);
        }
        self.nearer.look(&self.relays, self.via, now);
        if before != self.has_relay() {
            self.begin(now);
            if self.via.is_none() {
                let live = self.proved.is_some();
                self.why = match (self.has_relay(), live) {
                    (false, _) => PathReason::NoRelay,
                    (true, true) => PathReason::Proved,
                    (true, false) => PathReason::Untried,
                };
            }
        }
    }

    /// QUIC to the peer itself, if it is connected.
    fn link(&self) -> Option<RelayId> {
        self.nearest().filter(|nearest| nearest.is_direct())
    }

    /// QUIC to the peer itself, if packets take a relay all the same and it is time to try; or else a relay that is clearly nearer.
    pub(super) fn better(&mut self, now: Instant) -> Option<RelayId> {
        self.via.filter(|via| !via.is_direct())?;
        let Some(link) = self.link() else {
            self.nearer.look(&self.relays, self.via, now);
            return self.nearer.take(now);
        };
        let recent = |at: Instant| now.saturating_duration_since(at) < TRY_LINK_EVERY;
        if self.tried.is_some_and(recent) {
            return None;
        }
        self.tried = Some(now);
        Some(link)
    }

    /// Packets go another way from now on.
    pub(super) fn turn(&mut self, via: Option<RelayId>, why: PathReason, now: Instant) {
        self.via = via;
        self.why = why;
        self.since = now;
        self.leapt = false;
        // Where the answer to a knock led to a direct path, knocks are answered there.
        self.echoes &= via.is_none();
        self.proved = if why == PathReason::Proved { Some(now) } else { None };
        self.nearer.look(&self.relays, via, now);
        self.begin(now);
    }

    /// The way that packets take was taken unseen, in the place of the direct one to `from`, which died. Before that, packets
    /// went directly for so long.
    pub(super) fn note_leap(&mut self, from: Option<SocketAddr>, lasted: Duration) {
        self.leapt = true;
        if let Some(from) = from {
            self.trial.note_death(from.ip(), lasted, self.since);
        }
    }

    /// Since when packets take the way that they take.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    /// Knocks begin anew.
    fn begin(&mut self, now: Instant) {
        self.doubt.begin();
        self.silent = None;
        self.rounds = 0;
        self.next = now;
    }

    /// The direct path showed that it works, both ways.
    pub(super) const fn note_proof(&mut self, now: Instant) {
        self.proved = Some(now);
        self.silent = None;
    }

    /// Something authentic came, directly or through a relay.
    pub(super) fn note_heard(&mut self, directly: bool, now: Instant) {
        self.direct = directly.then_some(now);
    }

    /// Whether the peer's packets kept coming directly after `since`, those that were under way then aside. Where no knock
    /// was ever answered, that none is says nothing, and the last that came directly counts whenever it was.
    fn comes_directly(&self, since: Instant, round_trip: Option<Duration>, now: Instant) -> bool {
        self.direct.is_some_and(|at| {
            (!self.echoes || at.saturating_duration_since(since) > under_way(round_trip))
                && now.saturating_duration_since(at) <= LATELY
        })
    }

    /// Whether the direct path showed a moment ago that it works.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.proved.is_some_and(|at| now.saturating_duration_since(at) <= FRESH)
    }

    /// Packets are sent, of up to `len` bytes when they are sealed. Says whether a knock is due earlier than was thought.
    pub(super) fn note_use(&mut self, len: usize, now: Instant) -> bool {
        if self.is_on_link() {
            let paused = !self.is_used(now);
            self.used = Some(now);
            return paused;
        }
        if self.relays.is_empty() || self.via.is_some() {
            return false;
        }
        self.used = Some(now);
        self.doubt.note_sent(len);
        let due = self.knocked.map_or(now, |at| now.max(at + BUSY));
        let sooner = due < self.next && self.theirs.is_some();
        if sooner {
            self.next = due;
        }
        sooner
    }

    /// Whether packets go by QUIC to the peer itself.
    pub(super) fn is_on_link(&self) -> bool {
        self.via.is_some_and(RelayId::is_direct)
    }

    /// Whether packets flow.
    pub(super) fn is_used(&self, now: Instant) -> bool {
        self.used.is_some_and(|at| now.saturating_duration_since(at) <= BUSY * 4)
    }

    /// When it is to be looked at again, given that there is a session.
    pub(super) fn due(&self) -> Option<Instant> {
        let others = [self.hint_due, self.doubt.due()];
        let next = others.into_iter().flatten().fold(self.next, Instant::min);
        (self.has_relay() && self.theirs.is_some()).then_some(next)
    }

    /// Whether the direct path has died. `round_trip` is the usual one. `hellos` says since when how many hellos stay unanswered,
    /// and whether the peer ever said a word. They are longer than knocks: where these go on being answered, nothing else gets
    /// through. Where they aren't either, the peer may just be starting anew.
    pub(super) fn has_died(
        &self,
        round_trip: Option<Duration>,
        hellos: Option<(Instant, u32, bool)>,
        now: Instant,
    ) -> bool {
        let usual = round_trip.map_or(PATIENCE.0, |time| time * 3);
        let patience = usual.clamp(PATIENCE.0, PATIENCE.1);
        let is_over = |(since, count): (Instant, u32)| {
            count >= UNANSWERED && now.saturating_duration_since(since) >= patience
        };
        let silent = |silent: &(Instant, u32)| {
            is_over(*silent) && !self.comes_directly(silent.0, round_trip, now)
        };
        self.via.is_none()
            && self.has_relay()
            && (self.silent.as_ref().is_some_and(silent)
                || self.doubt.is_over()
                || hellos.is_some_and(|(since, count, said)| {
                    let on_its_way = under_way(round_trip).max(PATIENCE.0);
                    let knocks = self.echoed.is_some_and(|at| at > since + on_its_way);
                    is_over((since, count)) && (knocks || !said)
                }))
    }

    /// Whether it is time to knock; finds out when it is again.
    pub(super) fn take_due(&mut self, now: Instant) -> Due {
        if self.due().is_none_or(|at| at > now) {
            return Due::Nowhere;
        }
        if self.hint_due.take_if(|at| *at <= now).is_some() {
            self.hint_knocked = Some(now);
            if let Some(hint) = self.hint.filter(|_| self.next > now && self.via.is_some()) {
                return Due::Hint(hint);
            }
        }
        if self.next > now {
            return Due::Nowhere;
        }
        let recent = |at: Instant| now.saturating_duration_since(at) <= BUSY * 4;
        let pause = match self.via {
            Some(_) if self.rounds < EAGER_ROUNDS => ROUND,
            Some(_) => LATE_ROUND,
            None if self.silent.is_some() || self.used.is_some_and(recent) => BUSY,
            None => IDLE,
        };
        self.rounds = self.rounds.saturating_add(1);
        self.next = now + pause;
        Due::All
    }

    /// A knock is sent to `to`, whose answer is awaited. `full`: as long as a packet.
    pub(super) fn await_answer(&mut self, nonce: u64, to: SocketAddr, full: bool, now: Instant) {
        let directly = !full && self.via.is_none();
        let sent = if directly { self.doubt.take_sent() } else { Sent::default() };
        self.knocks.add(Knock { nonce, to, at: now, full, sent });
    }

    /// A knock is sent to `to`, and that it is answered is what counts.
    pub(super) fn note_knock(&mut self, nonce: u64, to: SocketAddr, now: Instant) {
        self.await_answer(nonce, to, false, now);
        self.knocked = Some(now);
        if self.via.is_none() {
            let (since, count) = self.silent.unwrap_or((now, 0));
            self.silent = Some((since, count.saturating_add(1)));
            // Unanswered so far: the next comes soon, unless an answer does.
            self.next = self.next.min(now + BUSY);
        }
    }

    /// Knocks come soon: the peer seems to be reached directly.
    pub(super) fn hurry(&mut self, now: Instant) {
        let due = self.knocked.map_or(now, |at| now.max(at + HINT_EVERY));
        self.next = self.next.min(due);
    }

    /// Whether the answer to this knock is still taken.
    pub(super) fn awaits(&self, nonce: u64) -> bool {
        self.knocks.has(nonce)
    }

    /// Takes a knock out that was answered.
    pub(super) fn take_knock(&mut self, nonce: u64) -> Option<Knock> {
        self.knocks.take(nonce)
    }

    /// A knock was answered while packets take a relay.
    pub(super) const fn note_echo(&mut self) {
        self.echoes = true;
    }

    /// A knock on the direct path was answered.
    pub(super) fn note_answer(&mut self, now: Instant) {
        self.note_proof(now);
        if self.via.is_none() {
            (self.echoes, self.echoed) = (true, Some(now));
            let recent = |at: Instant| now.saturating_duration_since(at) <= BUSY * 4;
            let pause = if self.used.is_some_and(recent) { BUSY } else { IDLE };
            self.next = now + pause;
            self.why = if self.has_relay() { PathReason::Proved } else { PathReason::NoRelay };
        }
    }

    /// Whether a handshake may be tried for the sake of a direct path.
    pub(super) fn may_shake(&mut self, now: Instant) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) < SHAKE_EVERY;
        if self.via.is_none() || self.shaken.is_some_and(recent) {
            return false;
        }
        self.shaken = Some(now);
        true
    }

    /// Whether a knock comes for the first time. One that is played back gets no answer.
    pub(super) fn is_first(&mut self, nonce: u64) -> bool {
        let nonce = knock::count(nonce);
        if nonce > self.newest {
            let ahead = u32::try_from(nonce - self.newest).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.newest = nonce;
            return true;
        }
        let bit = u32::try_from(self.newest - nonce).ok().and_then(|back| 1_u64.checked_shl(back));
        let Some(bit) = bit.filter(|bit| self.seen & bit == 0) else { return false };
        self.seen |= bit;
        true
    }

    /// Whether one more of the peer's knocks is answered: whoever knocks much, in others' names, has them answered little.
    pub(super) fn may_answer(&mut self, now: Instant) -> bool {
        self.answers.take(now)
    }

    /// The peer is told to be where it wasn't before: all its addresses are knocked at soon, as at first, unless they just
    /// were for that.
    pub(super) fn note_places(&mut self, now: Instant) {
        let recent = |at: Instant| now.saturating_duration_since(at) < BEGIN_EVERY;
        if self.via.is_some() && !self.anew.is_some_and(recent) {
            self.anew = Some(now);
            self.rounds = 0;
            let due = self.knocked.map_or(now, |at| now.max(at + ROUND));
            self.next = self.next.min(due);
        }
    }

    /// The peer knocked from `from`, for the [first](Self::is_first) time. Says whether that is news, so that it is worth
    /// knocking there soon.
    pub(super) fn note_knocked(&mut self, nonce: u64, from: SocketAddr, now: Instant) -> bool {
        // One that was held up says nothing of where the peer is now.
        if knock::count(nonce) < self.newest {
            return false;
        }
        let news = self.hint.replace(from) != Some(from);
        if news && self.via.is_some() {
            let pause = self.hint_knocked.map_or(now, |at| now.max(at + HINT_EVERY));
            self.hint_due = Some(pause);
        }
        news
    }

    /// Another run of the peer: it counts anew, and gives another key.
    pub(super) fn note_restart(&mut self) {
        (self.newest, self.seen) = (0, 0);
        self.trial.forget();
        self.doubt.begin();
        self.nearer.forget();
        self.runs = self.runs.wrapping_add(1);
        self.ours = None;
    }

    /// What was found out by knocks is worth nothing any more, on either side: the peer is given another key.
    pub(super) fn forget_knocks(&mut self) {
        self.note_restart();
        self.knocks = Awaited::default();
        (self.hint, self.hint_due) = (None, None);
    }

    /// How many runs of the peer came before this one.
    pub(super) const fn runs(&self) -> u32 {
        self.runs
    }

    /// Where the peer knocked from last.
    pub(super) const fn hint(&self) -> Option<SocketAddr> {
        self.hint
    }

    /// The relay to be tried in place of the one in use: nothing was heard of the peer since `heard`, or no sign since
    /// `answered` that it hears this gateway. The peer's own packets may come by another relay, so they prove nothing of
    /// the one in use. QUIC to the peer itself is left as soon as a direct path is: when so many questions in a row stay
    /// `unanswered`, given the usual round trip; sooner where it came in a dead path's place and never answered.
    pub(super) fn next_relay(
        &self,
        heard: Option<Instant>,
        answered: Option<Instant>,
        unanswered: (u32, Option<Duration>),
        now: Instant,
    ) -> Option<RelayId> {
        let via = self.via?;
        let silence = |sign: Option<Instant>| {
            now.saturating_duration_since(sign.map_or(self.since, |at| at.max(self.since)))
        };
        let (questions, round_trip) = unanswered;
        let patience = round_trip.map_or(PATIENCE.0, |time| time * 3);
        let answers = answered.is_some_and(|at| at > self.since);
        let link_died = via.is_direct()
            && if answers {
                questions >= UNANSWERED
                    && silence(answered) >= patience.clamp(PATIENCE.0, TRY_NEXT_AFTER)
            } else {
                self.leapt && questions > UNPROVED.0 && silence(answered) >= UNPROVED.1
            };
        if !link_died && silence(heard) < TRY_NEXT_AFTER && silence(answered) < TRY_NEXT_UNHEARD {
            return None;
        }
        let place = self.relays.iter().position(|path| path.relay == via);
        let next = place.map_or(0, |place| (place + 1) % self.relays.len().max(1));
        self.relays.get(next).map(|path| path.relay).filter(|relay| *relay != via)
    }
}
