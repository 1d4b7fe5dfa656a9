//! One peer: where it is, whether it lives, what it says about itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::TunnelPublicKey;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::TunnelState;

use super::allowance::Allowance;
use super::doubt;
use super::message::Hello;
use super::outside::{MAX_PLACES, Outside};
use super::queue::Queue;
use super::random::Random;
use super::route::Route;
use super::secret::{self, Secrecy};
use super::table::{Calls, Knows};
use super::trial;
use super::{ANSWER_WITHIN, CLIENT_LIVE_FOR, LIVE_FOR, PeerConfig, PeerEvent, inner_mtu};
use crate::lane::CAPABILITY;
use crate::size::path::{Bounds, PathMtu};
use crate::target::Target;

/// Probes follow each other about every two seconds.
const PROBE: (Duration, Duration) = (Duration::from_millis(1800), Duration::from_millis(2200));
/// Probes whose answers are waited for.
const PROBES_IN_FLIGHT: usize = 16;
/// Between two while packets take a relay, or could and the peer never said a word, and the last one isn't answered, so many in a
/// row: as between knocks on a direct path. On QUIC to the peer itself also while packets flow.
const SOON_PROBE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(300));
const SOON: u32 = 8;
/// Time between two probes while packets wait for a pre-shared key, and haven't for long.
const HASTY_PROBE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(300));
/// Most changes of what a peer says it holds that are taken within [`CHANGES_IN`]. More are looked at afterwards, when
/// it says so again.
const MAX_CHANGES: u32 = 16;
const CHANGES_IN: Duration = Duration::from_secs(10);
/// When a peer is looked at that has nothing to come again for.
pub(super) const NEVER: Duration = Duration::from_secs(3600);
/// How often a client is called where it was before this start, without need.
const RECALLS: u8 = 3;
/// Messages of one peer that are read at once, and gained each second: more than an honest one sends, whatever it has to tell. Parts
/// of packets aren't among them.
const READ: (u32, u32) = (512, 256);
/// Hellos of one peer that are answered at once, and gained each second, and probes of sizes.
const ANSWERED: (u32, u32) = (32, 16);
const SIZES_ANSWERED: (u32, u32) = (64, 32);
/// Most addresses of one peer that are tried.
const MAX_ENDPOINTS: usize = 8;
/// Most that are knocked at in one round: with where it was heard and knocked from, and how it looks from outside.
const MAX_KNOCKED: usize = MAX_ENDPOINTS + 2 + MAX_PLACES;

/// One peer.
#[derive(Debug)]
pub struct Peer {
    pub(super) gateway: GatewayId,
    pub(super) generation: u32,
    /// Whether it speaks WireGuard and nothing else.
    pub(super) client: bool,
    /// How often it is still to be called though nothing waits for it: its own session is one that was lost here.
    recalls: u8,
    /// What it is still to be told, if it is a client and this gateway has moved.
    pub(super) calls: Option<Calls>,
    pub(super) overlay: Ipv6Addr,
    /// The digest of what this gateway holds in common with it.
    pub(super) relation: u64,
    /// Its keys, best first.
    pub(super) keys: Vec<TunnelPublicKey>,
    /// Numbers of its tunnels, best first.
    pub(super) tunnels: Vec<u32>,
    /// The tunnel that packets take: the best with a session.
    pub(super) sending: Option<u32>,
    pub(super) queue: Queue,
    /// Its pre-shared keys, and whether packets go without one.
    pub(super) secrecy: Secrecy,
    /// What gets through to it in one piece.
    pub(super) path: PathMtu,
    /// Which way packets go.
    pub(super) route: Route,
    pub(super) next_probe: Instant,
    /// Probes since the last answer, and when the first of them was sent.
    unanswered: u32,
    asked: Option<Instant>,
    /// When this wants to be looked at again.
    pub(super) wake_at: Instant,
    candidates: Vec<SocketAddr>,
    endpoint: Option<SocketAddr>,
    heard: Option<Instant>,
    /// When it last showed that it hears this gateway: by an answer, or a session that came up.
    answered: Option<Instant>,
    probes: Vec<(u64, Instant)>,
    round_trip: Option<Duration>,
    said: Option<Hello>,
    /// How it looks from outside, as it says.
    outside: Outside,
    /// What it knows of relays that were taken out.
    pub(super) knows: Knows,
    /// Whether it was left where it was found when a relay was taken out, since no other one reached it.
    pub(super) left_there: bool,
    /// Whether it says that it answers full knocks.
    pub(super) answers_full: bool,
    /// Whether it says that it understands answers that tell how many long datagrams came.
    pub(super) counts_long: bool,
    /// Whether it says that it can use lanes: asked for every packet of bulk.
    lanes: bool,
    live: bool,
    told: Told,
    changes: Changes,
    /// How much of what it says is read, and how many of its questions are answered.
    pub(super) read: Allowance,
    pub(super) answers: Allowance,
    pub(super) sizes: Allowance,
    /// Whether it stands in the list of peers with events.
    pub(super) listed: bool,
    /// Whether it is watched for the sake of its lanes, and then whether it stands in the list of those to look at.
    pub(super) watched: Option<bool>,
}

/// What the engine was told.
#[derive(Debug, Default)]
struct Told {
    live: bool,
    /// Revision and relation.
    holds: Option<(u64, Option<u64>)>,
    /// Still to be told.
    time: Option<UnixMillis>,
}

/// How often a peer lately said that it holds something else.
#[derive(Debug)]
struct Changes {
    since: Instant,
    count: u32,
}

impl Changes {
    /// Whether one more is taken now. Each has the verdict on every flow found again.
    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= CHANGES_IN {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= MAX_CHANGES
    }
}

impl Peer {
    pub(super) fn new(config: &PeerConfig, generation: u32, now: Instant) -> Self {
        let mut peer = Self {
            gateway: config.gateway,
            generation,
            client: config.client,
            recalls: if config.client && !config.endpoints.is_empty() { RECALLS } else { 0 },
            calls: None,
            overlay: config.overlay,
            relation: config.relation,
            keys: Vec::new(),
            tunnels: Vec::new(),
            sending: None,
            queue: Queue::default(),
            secrecy: Secrecy::default(),
            path: PathMtu::new(Bounds::default(), now),
            route: Route::new(now),
            next_probe: now,
            unanswered: 0,
            asked: None,
            wake_at: now + NEVER,
            candidates: Vec::new(),
            endpoint: None,
            heard: None,
            answered: None,
            probes: Vec::new(),
            round_trip: None,
            said: None,
            outside: Outside::default(),
            knows: Knows::default(),
            left_there: false,
            answers_full: false,
            counts_long: false,
            lanes: false,
            live: false,
            told: Told::default(),
            changes: Changes { since: now, count: 0 },
            read: Allowance::new(READ.0, READ.1, now),
            answers: Allowance::new(ANSWERED.0, ANSWERED.1, now),
            sizes: Allowance::new(SIZES_ANSWERED.0, SIZES_ANSWERED.1, now),
            listed: false,
            watched: None,
        };
        peer.configure(config, now);
        peer
    }

    /// Takes over addresses, and what it is told. Where it was last heard stays until it is heard elsewhere.
    pub(super) fn configure(&mut self, config: &PeerConfig, now: Instant) {
        let usable = |endpoint: &&SocketAddr| {
            let ip = endpoint.ip();
            endpoint.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
        };
        self.overlay = config.overlay;
        self.client = config.client;
        self.relate(config.relation, now);
        self.candidates =
            config.endpoints.iter().filter(usable).take(MAX_ENDPOINTS).copied().collect();
    }

    /// Takes over what it is told of what is held in common. It is told soon, if that changed.
    pub(super) fn relate(&mut self, relation: u64, now: Instant) {
        if std::mem::replace(&mut self.relation, relation) != relation {
            self.next_probe = now;
        }
    }

    /// Which gateway.
    #[must_use]
    pub const fn gateway(&self) -> GatewayId {
        self.gateway
    }

    /// Whether it is a client. Its member id stands in a gateway's place then.
    #[must_use]
    pub const fn is_client(&self) -> bool {
        self.client
    }

    /// Its overlay address.
    #[must_use]
    pub const fn overlay(&self) -> Ipv6Addr {
        self.overlay
    }

    /// Whether packets can be sealed for it, something authentic came from it within [`LIVE_FOR`], and it showed
    /// within [`ANSWER_WITHIN`] that it hears this gateway as well. Of a client [`CLIENT_LIVE_FOR`] counts.
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        let time = if self.client { CLIENT_LIVE_FOR } else { LIVE_FOR };
        let recent = |heard| now.saturating_duration_since(heard) <= time;
        self.sending.is_some() && self.heard.is_some_and(recent) && self.hears_us(now)
    }

    /// Whether it answers. Unknown, and taken as a yes, of one that never said a word.
    pub(super) fn hears_us(&self, now: Instant) -> bool {
        let recent = |answered| now.saturating_duration_since(answered) <= ANSWER_WITHIN;
        self.said.is_none() || self.answered.is_none_or(recent)
    }

    /// The revision that it says it has in force.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.said.as_ref().map(|said| said.revision)
    }

    /// The newest authority document that it says it holds.
    #[must_use]
    pub fn authority(&self) -> Option<u64> {
        self.said.as_ref().map(|said| said.authority)
    }

    /// What it says it can do beyond the basics.
    #[must_use]
    pub fn capabilities(&self) -> &[String] {
        self.said.as_ref().map(|said| said.capabilities.as_slice()).unwrap_or_default()
    }

    /// Whether it says that it can use lanes.
    #[must_use]
    pub const fn can_use_lanes(&self) -> bool {
        self.lanes && !self.secrecy.hides_lanes
    }

    /// This run of the peer's agent.
    #[must_use]
    pub fn boot(&self) -> Option<BootId> {
        self.said.as_ref().map(|said| said.boot)
    }

    /// Round trip, smoothed.
    #[must_use]
    pub const fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Where its packets come from and go to: where it was last heard, or else the best address known.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint.or_else(|| self.candidates.first().copied())
    }

    /// Where it was last heard, if anywhere.
    pub(super) const fn heard_at(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// Whether the view, or what stands for it, has it at this address, at whatever port.
    pub(super) fn is_placed_at(&self, ip: IpAddr) -> bool {
        self.candidates.iter().any(|place| place.ip().to_canonical() == ip.to_canonical())
    }

    /// Where it was heard, and where it says that it is seen, may be a relay's doing: it is found anew; `keep` has it stay where
    /// it was heard. Says whether packets went somewhere that is forgotten. What it says stays if it holds the document of this
    /// number: then that relay has no part in it.
    pub(super) fn forget_places(&mut self, document: u64, keep: bool) -> bool {
        if self.authority().is_none_or(|held| held < document) {
            self.outside = Outside::default();
        }
        self.route.forget_knocks();
        let lost = self.endpoint.filter(|at| !keep && !self.is_placed_at(at.ip()));
        if lost.is_some() {
            self.endpoint = None;
        }
        lost.is_some() && self.route.via().is_none()
    }

    /// Where packets go now.
    pub(super) fn way(&self) -> Option<Target> {
        self.route.target(self.gateway, self.endpoint())
    }

    /// How it looks from outside, as it says.
    pub(super) const fn outside(&self) -> &Outside {
        &self.outside
    }

    /// All addresses where it may be reached directly.
    pub(super) fn places(&self) -> Vec<SocketAddr> {
        let mut places: Vec<SocketAddr> = Vec::with_capacity(MAX_KNOCKED);
        let outside = self.outside.places.iter();
        let known = outside.chain(&self.endpoint).chain(&self.candidates).copied();
        for place in self.route.hint().into_iter().chain(known) {
            if !places.contains(&place) && places.len() < MAX_KNOCKED {
                places.push(place);
            }
        }
        places
    }

    /// When something authentic last came from it.
    pub(super) const fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// When it last showed that it hears this gateway.
    pub(super) const fn answered(&self) -> Option<Instant> {
        self.answered
    }

    /// It is reached another way: the round trip is to be measured anew.
    pub(super) fn forget_round_trip(&mut self) {
        self.round_trip = None;
        self.probes.clear();
    }

    /// The round trip was measured once more.
    pub(super) fn note_round_trip(&mut self, sample: Duration) {
        self.round_trip = Some(self.round_trip.map_or(sample, |old| (old * 7 + sample) / 8));
    }

    /// Packets that wait for a handshake.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Its tunnel as telemetry has it.
    #[must_use]
    pub fn state(&self, now: Instant) -> TunnelState {
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        TunnelState {
            gateway: self.gateway,
            client: self.client,
            live: self.is_live(now),
            round_trip: self.round_trip.map(micros),
            revision: self.revision(),
            authority: self.authority(),
            endpoint: self.endpoint,
            path_mtu: self.path_mtu(),
            relay: self.route.via().map(|relay| relay.0),
            path: self.route.has_relay().then(|| self.route.why()),
            shut_off: false,
            secrecy: (!self.client && self.sending.is_some()).then_some(self.secrecy.state),
        }
    }

    /// Where an attempt goes: first where it was last heard, then its other addresses in turn. A client has no others: it
    /// isn't any more where it was before it was heard somewhere else.
    pub(super) fn target(&self, attempt: u32) -> Option<SocketAddr> {
        let left = |one: &SocketAddr| match self.endpoint {
            Some(heard) => self.client || *one == heard,
            None => false,
        };
        let others = self.candidates.iter().filter(|one| !left(one));
        let all: Vec<SocketAddr> = self.endpoint.iter().chain(others).copied().collect();
        let place = (attempt as usize).checked_rem(all.len())?;
        all.get(place).copied()
    }

    /// Something authentic came from `from`, which says where the peer is if it may be `at_home` there. Says whether its packets
    /// went elsewhere until now, and go there now: which relay they take, and whether they take one, is the route's to say.
    pub(super) fn note_heard(&mut self, from: Target, at_home: bool, now: Instant) -> bool {
        self.heard = Some(now);
        let Target::Udp(from) = from else { return false };
        if !at_home {
            return false;
        }
        let moved = self.endpoint() != Some(from);
        self.endpoint = Some(from);
        moved && self.route.via().is_none()
    }

    /// Whether a client is to be called now, as long as there is no session with it.
    pub(super) fn is_wanted(&self) -> bool {
        (self.waiting() > 0 || self.recalls > 0) && self.endpoint().is_some()
    }

    /// It is to be called a few times though nothing waits for it, if there is no session with it.
    pub(super) const fn recall(&mut self) {
        self.recalls = RECALLS;
    }

    /// It was called.
    pub(super) const fn note_called(&mut self) {
        self.recalls = self.recalls.saturating_sub(1);
    }

    /// A session with it came up.
    pub(super) fn note_session(&mut self, now: Instant) {
        self.recalls = 0;
        self.note_hears(now);
    }

    /// How many probes were sent since it last showed that it hears this gateway, and the usual round trip.
    pub(super) const fn unanswered(&self) -> (u32, Option<Duration>) {
        (self.unanswered, self.round_trip)
    }

    /// Whether a direct path to `at`, which died of late, isn't taken again yet. Where it isn't reached any other way, it is.
    pub(super) fn holds(&self, at: SocketAddr, now: Instant) -> bool {
        self.route.trial.is_held(at.ip(), now) && self.is_live(now)
    }

    /// Whether a full knock at `at` has to be answered still, before packets go there.
    pub(super) fn wants_proof(&self, at: SocketAddr, now: Instant) -> bool {
        let trial = &self.route.trial;
        self.answers_full && trial.is_doubted(at) && !trial.has_passed(at, now)
    }

    /// Since when how many probes in a row stay unanswered, if any do, and whether it ever said a word.
    pub(super) fn questions(&self) -> Option<(Instant, u32, bool)> {
        self.asked.map(|since| (since, self.unanswered, self.said.is_some()))
    }

    /// Packets go another way: what was asked before says nothing of that.
    pub(super) const fn forget_questions(&mut self) {
        (self.unanswered, self.asked) = (0, None);
    }

    /// It showed that it hears this gateway. After a silence the path to it may be another.
    pub(super) fn note_hears(&mut self, now: Instant) {
        let last = self.answered.replace(now);
        self.forget_questions();
        let silence = last.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if silence > LIVE_FOR && self.path.is_on() {
            self.path.start(now);
        }
    }

    /// Largest packet of IP that gets through the underlay to it, as far as was found out. None while packets take a
    /// relay, which isn't the underlay's way.
    #[must_use]
    pub fn path_mtu(&self) -> Option<u16> {
        if self.route.via().is_some() {
            return None;
        }
        let overhead = u16::MAX - inner_mtu(u16::MAX, &self.endpoint()?);
        self.path.is_known().then(|| self.path.limit().saturating_add(overhead))
    }

    /// Looks whether it lives. Returns whether that changed.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        // A client is spoken to wherever it was last heard: a handshake is begun when there is something to say.
        let live = if self.client { self.endpoint().is_some() } else { self.is_live(now) };
        std::mem::replace(&mut self.live, live) != live
    }

    /// When [`Self::look`] may find that it no longer lives.
    pub(super) fn silent_at(&self) -> Option<Instant> {
        let heard = self.heard.filter(|_| self.live && !self.client)? + LIVE_FOR;
        let answered = self.answered.filter(|_| self.said.is_some());
        let end = answered.map_or(heard, |answered| heard.min(answered + ANSWER_WITHIN));
        Some(end + Duration::from_millis(1))
    }

    /// A nonce for a probe that is sent now.
    pub(super) fn probe(&mut self, random: &mut Random, now: Instant) -> u64 {
        let nonce = random.next();
        if self.probes.len() >= PROBES_IN_FLIGHT {
            self.probes.remove(0);
        }
        self.probes.push((nonce, now));
        // Packets wait for the answer.
        let choice = self.route.via().is_some() || self.route.has_relay() && self.said.is_none();
        let soon = choice && self.unanswered < SOON;
        let (least, most) = match (self.secrecy.is_urgent(now), soon) {
            (true, _) => HASTY_PROBE,
            (false, true) => {
                let twice = self.round_trip.unwrap_or_default() * 2;
                (SOON_PROBE.0.max(twice).min(PROBE.0), SOON_PROBE.1.max(twice).min(PROBE.1))
            }
            (false, false) => PROBE,
        };
        self.unanswered = self.unanswered.saturating_add(1);
        self.asked.get_or_insert(now);
        self.next_probe = now + random.between(least, most);
        nonce
    }

    /// The answer to a probe came.
    pub(super) fn note_answer(&mut self, nonce: u64, now: Instant) {
        let Some(place) = self.probes.iter().position(|probe| probe.0 == nonce) else { return };
        let (_, sent) = self.probes.remove(place);
        self.note_hears(now);
        let busy = self.route.is_on_link() && self.route.is_used(now);
        if self.route.via().is_some() && !busy && !self.secrecy.is_urgent(now) {
            self.next_probe = now + PROBE.0;
        }
        if let Some(via) = self.route.via() {
            self.route.nearer.note_round_trip(via, self.route.since(), sent, now);
        }
        self.note_round_trip(now.saturating_duration_since(sent));
    }

    /// Takes over what it says about itself, unless it was overtaken, or says something else all the time. Returns
    /// whether there is something to tell.
    pub(super) fn note_said(&mut self, hello: Hello, want_time: bool, now: Instant) -> bool {
        let known = self.said.as_ref().filter(|said| said.boot == hello.boot);
        let restarted = known.is_none() && self.said.is_some();
        if known.is_some_and(|said| said.sequence >= hello.sequence) {
            return false;
        }
        let holds = (hello.revision, hello.relation);
        let changed = self.said.as_ref().is_none_or(|said| (said.revision, said.relation) != holds);
        if changed && !self.changes.take(now) {
            return false;
        }
        // Only with what is taken: who is refused would be another run with each hello, and begin anew each time.
        if restarted {
            self.route.note_restart();
        }
        self.told.time = hello.time.filter(|_| want_time).or(self.told.time);
        self.lanes = hello.capabilities.iter().any(|one| one == CAPABILITY);
        self.secrecy.can = Some(hello.capabilities.iter().any(|one| one == secret::CAPABILITY));
        self.route.theirs = hello.knocker;
        self.answers_full = hello.capabilities.iter().any(|one| one == trial::CAPABILITY);
        self.counts_long = hello.capabilities.iter().any(|one| one == doubt::CAPABILITY);
        let outside = hello.outside.clone().unwrap_or_default().believed();
        if outside.places.iter().any(|place| !self.outside.places.contains(place)) {
            self.route.note_places(now);
        }
        self.outside = outside;
        self.said = Some(hello);
        self.told.time.is_some() || self.told.holds != Some(holds)
    }

    /// The next thing that the engine wasn't told.
    pub(super) fn next_event(&mut self) -> Option<PeerEvent> {
        let gateway = self.gateway;
        if self.told.live != self.live {
            self.told.live = self.live;
            return Some(PeerEvent::Live { gateway, live: self.live });
        }
        let holds = self.said.as_ref().map(|said| (said.revision, said.relation));
        if let Some((revision, relation)) = holds.filter(|holds| self.told.holds != Some(*holds)) {
            self.told.holds = holds;
            return Some(PeerEvent::Holds { gateway, revision, relation });
        }
        let time = self.told.time.take()?;
        Some(PeerEvent::Time { gateway, time })
    }
}
