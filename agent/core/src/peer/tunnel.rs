//! One WireGuard tunnel: a pair of keys. Everything that boringtun keeps per peer is behind this.
//!
//! boringtun reads its own clock. It decides when a session is too old to be used; when to shake hands is decided
//! here, by the engine's clock and a little earlier than boringtun would, so that a simulation needs no other clock
//! and retries carry jitter.

use std::time::{Duration, Instant};

use anteroom_proto::key::TunnelPublicKey;
use anteroom_proto::verdict::DropReason;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use std::sync::Arc;
use zeroize::Zeroizing;

use super::front::{INITIATION_LEN, MAX_DATAGRAM_LEN};
use super::random::Random;
use super::{LIVE_FOR, OVERHEAD};
use crate::target::RelayId;

/// Longest packet that can be sealed into one datagram.
pub const MAX_PACKET_LEN: usize = MAX_DATAGRAM_LEN - OVERHEAD;
/// Room that anything boringtun writes by itself takes.
pub(super) const SMALL: usize = 256;

/// How often boringtun looks at its clock while a handshake is under way, and otherwise.
const UPDATE_BUSY: Duration = Duration::from_millis(250);
const UPDATE_IDLE: Duration = Duration::from_secs(1);
/// The same for a client without a session. boringtun dates a handshake by its last look at the clock.
const UPDATE_AWAY: Duration = Duration::from_secs(10);
/// First retries follow each other quickly, each after twice the time until that is a second: a datagram was lost, or the peer is
/// about to be there. The answers to the last two initiations count, so that a path on which an answer takes longer than the
/// first pauses is found, too.
const QUICK_RETRIES: u32 = 6;
const QUICK_RETRY: (Duration, Duration) = (Duration::from_millis(180), Duration::from_millis(220));
const QUICK_RETRY_AT_LAST: (Duration, Duration) =
    (Duration::from_millis(900), Duration::from_millis(1100));
/// How long one of two ways to the peer is ahead of the other. Not both at once: boringtun forgets the older of two
/// initiations when the peer's own crosses them.
const OTHER_WAY: Duration = Duration::from_millis(250);
/// How long an initiation is left alone by one of the peer's that crosses it, at the end that leads: boringtun forgets the older of
/// two initiations when the peer's own crosses them, so two that begin at once, and again before an answer can be there, would go
/// on so on a long path. Only the first ones are: perhaps nothing gets through from here.
const LEFT_ALONE: Duration = Duration::from_millis(250);
const LEFT_ALONE_ONES: u32 = 2;
/// How much time the other end leaves the peer, whose initiation it answered, to show that it got that.
const AFTER_ANSWER: Duration = Duration::from_millis(500);
/// Later ones. boringtun itself would retry after five seconds, without jitter.
const SLOW_RETRY: (Duration, Duration) = (Duration::from_millis(4500), Duration::from_millis(4950));
/// Those of a better tunnel, while packets take a worse one: the peer comes by itself once it has heard of the keys.
const PATIENT_RETRY: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(30));
/// So many are made before that.
const PATIENT_AFTER: u32 = 3;
/// Age at which the end that began a session renews it; boringtun itself would at 120 s.
const RENEW: (Duration, Duration) = (Duration::from_secs(108), Duration::from_secs(118));
/// Age at which the other end does, if the first didn't manage to. Sessions end at 180 s.
const RENEW_FOR_OTHER: (Duration, Duration) = (Duration::from_secs(140), Duration::from_secs(150));
/// Initiations with an old timestamp make us initiate at most this often.
const HEAL_EVERY: Duration = Duration::from_secs(5);

/// Room that sealing a packet of `len` bytes wants.
pub(super) const fn sealed_room(len: usize) -> usize {
    let sealed = len + OVERHEAD;
    if sealed < INITIATION_LEN { INITIATION_LEN } else { sealed }
}

/// What a datagram that belongs to a tunnel turned out to be.
#[derive(Debug)]
pub(super) enum Received<'a> {
    /// A handshake message; this is to be sent back.
    Handshake(&'a mut [u8]),
    /// Nothing inside: a keepalive or a cookie.
    Nothing,
    Ipv4(&'a mut [u8]),
    Ipv6(&'a mut [u8]),
    /// An initiation that is the peer's, but not newer than one before.
    Stale,
    /// Authentic, but neither IPv4 nor IPv6.
    Nonsense,
    Refused(DropReason),
}

/// What keeping time made a tunnel write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Update {
    Nothing,
    /// An initiation of this length.
    Initiation(usize),
    /// Something else of this length.
    Other(usize),
    /// A client was gone for so long that the tunnel takes part in nothing any more.
    Expired,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    next: Instant,
    count: u32,
    last: Option<Instant>,
}

impl Attempt {
    const fn at(next: Instant) -> Self {
        Self { next, count: 0, last: None }
    }
}

/// Sessions that boringtun keeps for one tunnel.
const SESSIONS: usize = 8;

/// A session, by this end's index: by which way its handshake went.
#[derive(Debug, Clone, Copy)]
struct Agreed {
    index: u32,
    /// Its place among the tunnel's handshakes.
    order: u64,
    /// None is the direct way.
    via: Option<RelayId>,
}

/// What a [`Tunn`] is made of.
struct Making {
    secret: StaticSecret,
    psk: Option<Zeroizing<[u8; 32]>>,
    index: u32,
    limiter: Arc<RateLimiter>,
}

pub(super) struct Tunnel {
    /// Made when it is needed first: that takes a multiplication on the curve, and there may be thousands at once.
    tunn: Option<Box<Tunn>>,
    making: Making,
    /// Number of the peer that it leads to.
    pub(super) peer: u32,
    /// Number of the own key.
    pub(super) own: u32,
    /// The peer's key.
    pub(super) key: TunnelPublicKey,
    /// Whether it leads to a client: handshakes are begun when there is something to send, and nowhere but there.
    on_demand: bool,
    /// Whether something can be sealed. Only boringtun's update ends a session.
    session: bool,
    /// Whether there ever was a handshake.
    begun: bool,
    /// Whether the peer ever showed that it has the keys of a session here.
    proved: bool,
    /// When the newest handshake ended, and when it is to be renewed.
    since: Instant,
    renew_at: Instant,
    /// When something authentic last came.
    heard: Instant,
    attempt: Option<Attempt>,
    healed: Option<Instant>,
    update_at: Instant,
    /// Sessions that the peer hasn't shown to have yet.
    unconfirmed: [Option<Agreed>; SESSIONS],
    /// How many handshakes ended.
    handshakes: u64,
    /// By which way the newest session went that the peer showed to have, and when it did.
    agreed: Option<(Option<RelayId>, Instant)>,
}

impl Tunnel {
    /// `index` is what receiver indices carry: its low 24 bits count.
    pub(super) fn new(
        secret: &StaticSecret,
        (peer, key, on_demand): (u32, TunnelPublicKey, bool),
        index: u32,
        limiter: Arc<RateLimiter>,
        (now, first_attempt): (Instant, Option<Instant>),
    ) -> Self {
        Self {
            tunn: None,
            making: Making { secret: secret.clone(), psk: None, index, limiter },
            peer,
            own: 0,
            key,
            on_demand,
            session: false,
            begun: false,
            proved: false,
            since: now,
            renew_at: now,
            heard: now,
            attempt: first_attempt.map(Attempt::at),
            healed: None,
            update_at: now,
            unconfirmed: [None; SESSIONS],
            handshakes: 0,
            agreed: None,
        }
    }

    /// The same, of the own key with this number.
    pub(super) const fn of(mut self, own: u32) -> Self {
        self.own = own;
        self
    }

    /// The same, with a pre-shared key in its handshakes.
    pub(super) fn under(mut self, psk: Zeroizing<[u8; 32]>) -> Self {
        self.making.psk = Some(psk);
        self
    }

    /// Whether its handshakes have a pre-shared key in them.
    pub(super) const fn has_psk(&self) -> bool {
        self.making.psk.is_some()
    }

    /// How many initiations in a row weren't answered.
    pub(super) fn attempts(&self) -> u32 {
        self.attempt.map_or(0, |attempt| attempt.count)
    }

    fn tunn(&mut self) -> &mut Tunn {
        let (making, key) = (&self.making, &self.key);
        self.tunn.get_or_insert_with(|| {
            let (secret, public) = (making.secret.clone(), PublicKey::from(*key.as_bytes()));
            let limiter = Some(Arc::clone(&making.limiter));
            let psk = making.psk.as_ref().map(|psk| **psk);
            Box::new(Tunn::new(secret, public, psk, None, making.index, limiter))
        })
    }

    /// Whether there was a need for it yet.
    #[cfg(test)]
    pub(super) const fn is_made(&self) -> bool {
        self.tunn.is_some()
    }

    /// Whether a handshake ever ended here.
    pub(super) const fn is_begun(&self) -> bool {
        self.begun
    }

    /// Whether the peer ever showed that it has the keys of a session here.
    pub(super) const fn is_proved(&self) -> bool {
        self.proved
    }

    /// When something authentic last came through it, or a handshake ended. Before any, when it was made.
    pub(super) fn last_heard(&self) -> Instant {
        self.heard.max(self.since)
    }

    pub(super) const fn has_session(&self) -> bool {
        self.session
    }

    /// Seals a packet into `out`. Returns how long the datagram is; 0 when it can't be.
    pub(super) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> usize {
        let bounded = packet.len() <= MAX_PACKET_LEN && out.len() >= sealed_room(packet.len());
        if !self.session || !bounded {
            return 0;
        }
        written(self.tunn().encapsulate(packet, out))
    }

    /// Opens a datagram of a [`Kind`](super::front::Kind), which bounds its length from below. `room` has
    /// [`super::open_room`] bytes.
    pub(super) fn open<'a>(&mut self, datagram: &[u8], room: &'a mut [u8]) -> Received<'a> {
        if datagram.is_empty() || room.len() < super::open_room(datagram.len()) {
            return Received::Refused(DropReason::TooBig);
        }
        match self.tunn().decapsulate(None, datagram, room) {
            TunnResult::Done => Received::Nothing,
            TunnResult::WriteToNetwork(reply) => Received::Handshake(reply),
            TunnResult::WriteToTunnelV4(packet, _) => Received::Ipv4(packet),
            TunnResult::WriteToTunnelV6(packet, _) => Received::Ipv6(packet),
            TunnResult::Err(error) => match error {
                WireGuardError::WrongTai64nTimestamp => Received::Stale,
                WireGuardError::InvalidPacket => Received::Nonsense,
                WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => {
                    Received::Refused(DropReason::PeerUnknown)
                }
                _ => Received::Refused(DropReason::PeerUnauthenticated),
            },
        }
    }

    /// Something authentic came. `confirms`: it shows that the peer has the keys of the newest session, which
    /// an initiation doesn't. Says whether that made the first session, or one after a break.
    pub(super) fn note_heard(&mut self, confirms: bool, now: Instant) -> bool {
        self.heard = now;
        self.proved |= confirms;
        if self.session || !confirms {
            return false;
        }
        self.refresh();
        if self.session {
            self.attempt = None;
        }
        self.session
    }

    /// A handshake ended, begun by us or by the peer.
    pub(super) fn note_handshake(&mut self, initiator: bool, random: &mut Random, now: Instant) {
        let (low, high) = if initiator { RENEW } else { RENEW_FOR_OTHER };
        (self.begun, self.since) = (true, now);
        self.renew_at = now + random.between(low, high);
        if initiator {
            self.attempt = None;
        }
    }

    /// Whether an initiation is under way, lately begun, whose answer one of the peer's might have forgotten.
    pub(super) fn is_calling(&self, now: Instant) -> bool {
        let fresh = |sent| now.saturating_duration_since(sent) < LEFT_ALONE;
        self.attempt.is_some_and(|attempt| {
            attempt.count <= LEFT_ALONE_ONES && attempt.last.is_some_and(fresh)
        })
    }

    /// Leaves the peer time to show that it got the answer to its initiation.
    pub(super) fn give_way(&mut self, now: Instant) {
        if let Some(attempt) = &mut self.attempt {
            attempt.next = attempt.next.max(now + AFTER_ANSWER);
        }
    }

    /// A handshake ended here that the peer began; it came over `via`, and so does the answer. The session has this
    /// index here.
    pub(super) fn note_answered(&mut self, index: u32, via: Option<RelayId>) {
        self.handshakes += 1;
        let order = self.handshakes;
        if let Some(place) = self.unconfirmed.get_mut(index as usize % SESSIONS) {
            *place = Some(Agreed { index, order, via });
        }
    }

    /// The answer to a handshake that was begun here came: nothing newer is to be confirmed any more.
    pub(super) fn note_established(&mut self) {
        self.handshakes += 1;
        self.unconfirmed = [None; SESSIONS];
    }

    /// Notes by which way a session came to be that the peer has as well.
    pub(super) const fn note_agreed(&mut self, via: Option<RelayId>, now: Instant) {
        self.agreed = Some((via, now));
    }

    /// By which way the newest session came to be, if that was just now.
    pub(super) fn lately_agreed(&self, now: Instant) -> Option<Option<RelayId>> {
        let (via, at) = self.agreed?;
        (now.saturating_duration_since(at) < LIVE_FOR).then_some(via)
    }

    /// Something authentic came through the session with this index. If that shows that the peer got the answer to the
    /// newest handshake, says which way that went.
    pub(super) fn confirm(&mut self, index: u32) -> Option<Option<RelayId>> {
        let place = self.unconfirmed.get_mut(index as usize % SESSIONS)?;
        let agreed = place.filter(|agreed| agreed.index == index)?;
        *place = None;
        (agreed.order == self.handshakes).then_some(agreed.via)
    }

    /// Retries soon: the peer gave us a cookie to come again with.
    pub(super) fn note_cookie(&mut self, now: Instant) {
        if let Some(attempt) = &mut self.attempt {
            attempt.next = attempt.next.min(now + Duration::from_millis(50));
        }
    }

    /// Whether an initiation with an old timestamp is to be answered with one of ours.
    pub(super) fn may_heal(&mut self, now: Instant) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) < HEAL_EVERY;
        // A copy of the initiation that was just answered has an old timestamp, too.
        if self.on_demand || self.healed.is_some_and(recent) || (self.session && recent(self.since))
        {
            return false;
        }
        self.healed = Some(now);
        true
    }

    /// Writes an initiation. Returns its length, or 0 when `out` is too short.
    pub(super) fn initiate(&mut self, out: &mut [u8]) -> usize {
        if out.len() < INITIATION_LEN {
            return 0;
        }
        written(self.tunn().format_handshake_initiation(out, true))
    }

    /// Lets boringtun look at its clock, if it is time to.
    pub(super) fn update(&mut self, out: &mut [u8; SMALL], now: Instant) -> Update {
        if now < self.update_at {
            return Update::Nothing;
        }
        let pause = match (self.attempt.is_some(), self.on_demand && !self.session) {
            (true, _) => UPDATE_BUSY,
            (false, true) => UPDATE_AWAY,
            (false, false) => UPDATE_IDLE,
        };
        self.update_at = now + pause;
        let Some(tunn) = &mut self.tunn else { return Update::Nothing };
        let result = tunn.update_timers(out);
        // After its end a tunnel reports that it expired for ever; the next attempt begins anew.
        let update = match result {
            TunnResult::WriteToNetwork(message) => match (message.first(), message.len()) {
                (Some(1), len) => Update::Initiation(len),
                (_, len) => Update::Other(len),
            },
            TunnResult::Err(WireGuardError::ConnectionExpired) if self.on_demand => Update::Expired,
            _ => Update::Nothing,
        };
        if self.session {
            self.refresh();
        }
        update
    }

    /// Begins anew after [`Update::Expired`]: boringtun would keep no more time for this client, even once it is back.
    /// That it forgets the timestamp of the client's last initiation lets a copy of that be answered once, to no
    /// effect: where the client is, only data tells.
    pub(super) fn begin_anew(&mut self) {
        self.tunn = None;
        self.unconfirmed = [None; SESSIONS];
        self.attempt = None;
    }

    /// Writes the next message that boringtun kept for after the handshake, which is nothing but keepalives:
    /// packets wait elsewhere. 0 when there is no more.
    pub(super) fn drain(&mut self, scratch: &mut [u8]) -> usize {
        if scratch.len() < super::SCRATCH_LEN {
            return 0;
        }
        self.tunn.as_mut().map_or(0, |tunn| written(tunn.decapsulate(None, &[], scratch)))
    }

    /// Whether a handshake is to be begun or tried again now. `watch` is given for the tunnel that packets take:
    /// whether the peer answers there. One that is silent or doesn't is perhaps another run, or elsewhere.
    pub(super) fn due(&mut self, watch: Option<bool>, now: Instant) -> bool {
        let heard = self.last_heard();
        let silent = watch
            .is_some_and(|answers| !answers || now.saturating_duration_since(heard) > LIVE_FOR);
        if self.session && !silent && now < self.renew_at {
            self.attempt = None;
            return false;
        }
        self.attempt.get_or_insert(Attempt::at(now)).next <= now
    }

    /// The same for a client, to which something waits to be sent or not.
    pub(super) fn due_on_demand(&mut self, wanted: bool, now: Instant) -> bool {
        if self.session || !wanted {
            self.attempt = None;
            return false;
        }
        self.attempt.get_or_insert(Attempt::at(now)).next <= now
    }

    /// The next attempt isn't put off any longer than that.
    pub(super) fn hurry(&mut self, at: Instant) {
        if let Some(attempt) = &mut self.attempt {
            attempt.next = attempt.next.min(at);
        }
    }

    /// When the newest handshake ended; when it was made, where there was none.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    /// The other way is tried soon, too: an initiation went one of two.
    pub(super) fn try_other_way(&mut self, now: Instant) {
        if let Some(attempt) = &mut self.attempt {
            attempt.next = attempt.next.min(now + OTHER_WAY);
        }
    }

    /// An initiation was sent. Returns its place among the attempts, from 0.
    pub(super) fn note_attempt(&mut self, random: &mut Random, now: Instant) -> u32 {
        let attempt = self.attempt.get_or_insert(Attempt::at(now));
        let count = attempt.count;
        let (low, high) = if count < QUICK_RETRIES {
            let last = QUICK_RETRY_AT_LAST;
            ((QUICK_RETRY.0 * (1 << count)).min(last.0), (QUICK_RETRY.1 * (1 << count)).min(last.1))
        } else {
            SLOW_RETRY
        };
        (attempt.count, attempt.last) = (count.saturating_add(1), Some(now));
        attempt.next = now + random.between(low, high);
        count
    }

    /// The next attempt has time: packets have another way.
    pub(super) fn be_patient(&mut self, random: &mut Random, now: Instant) {
        if let Some(attempt) = &mut self.attempt
            && attempt.count > PATIENT_AFTER
        {
            attempt.next = now + random.between(PATIENT_RETRY.0, PATIENT_RETRY.1);
        }
    }

    /// Packets have no other way any more.
    pub(super) fn lose_patience(&mut self, now: Instant) {
        if let Some(attempt) = &mut self.attempt
            && attempt.count > PATIENT_AFTER
            && attempt.next > now + SLOW_RETRY.1
        {
            attempt.next = now;
        }
    }

    /// When this wants to be looked at again.
    pub(super) fn wake_at(&self) -> Instant {
        self.attempt.map_or(self.update_at, |attempt| attempt.next.min(self.update_at))
    }

    fn refresh(&mut self) {
        let since = self.tunn.as_ref().and_then(|tunn| tunn.time_since_last_handshake());
        self.session = since.is_some();
    }
}

/// Length of what boringtun wrote at the beginning of its buffer.
fn written(result: TunnResult<'_>) -> usize {
    match result {
        TunnResult::WriteToNetwork(message) => message.len(),
        _ => 0,
    }
}
