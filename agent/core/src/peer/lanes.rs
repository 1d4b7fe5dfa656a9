//! What runs lanes: seals, opens, shakes hands. See [`crate::lane`].

mod open;
mod retired;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_proto::key::TunnelPublicKey;
use anteroom_proto::verdict::DropReason;
use boringtun::x25519::StaticSecret;

use open::{ANSWERS_WITHIN, Lane, PURSUED_FOR};

use super::agenda::Agenda;
use super::doorman::{Checks, Guests, OwnLaneKey};
use super::front::{self, Admission, Gates, Kind};
use super::random::Random;
use super::slots::Slots;
use super::table::{CONTROL, OWNER_SHIFT, dscp};
use super::tunnel::{Received, SMALL, Tunnel, Update, sealed_room};
use super::{PeerSlot, SCRATCH_LEN, open_room};
use crate::gso::Packets;
use crate::lane::{self, Event, Job, LaneId, Order, Taken};
use crate::sink::Sink;
use crate::vnet::VnetHeader;

/// How long a peer may be silent on a lane that is used until it is asked to shake hands again. It answers data within
/// ten seconds, as WireGuard has it.
const SILENT: Duration = Duration::from_secs(13);
/// How often it is told at most of a lane that its peer is elsewhere.
const STRAYS_AGAIN: Duration = Duration::from_secs(1);
/// How long handshakes make lanes after the peer said that it opens some. Longer than it pursues that.
const EXPECTED_FOR: Duration = Duration::from_secs(40);
/// Most messages that are fetched from boringtun's own queue after one handshake.
const MAX_DRAIN: usize = 300;

/// How many lanes of one owner can be told apart by their indices, beside the number of the lane.
const PLACES: u32 = 16;

/// What a [`Lanes`] is made from.
#[derive(Debug, Clone)]
pub struct LanesConfig {
    /// Which owner of lanes it is, from 1 on: see [`lane::owner`].
    pub owner: u8,
    /// 32 unpredictable bytes: jitter grows from them.
    pub seed: [u8; 32],
    /// Most lanes that are open at once, of all peers. Each takes some 11 KB.
    pub most: usize,
}

/// What a datagram of a lane was.
#[derive(Debug, PartialEq, Eq)]
pub enum OpenedInLane<'a> {
    /// A member's IPv4 packet, authentic as its peer's word. Whether the peer may say it is the caller's to check. It
    /// stands at the beginning of the room that was given.
    Packet {
        /// The peer that sent it, and the lane.
        at: LaneId,
        /// The packet, from the IP header on.
        packet: &'a mut [u8],
    },
    /// A part of a packet, for [`super::Peers::join`].
    Part {
        /// The peer that sent it, and the lane.
        at: LaneId,
        /// The IPv6 packet that it is in.
        packet: &'a mut [u8],
    },
    /// The lane's own: a handshake, a keepalive. It was dealt with.
    Handled,
    /// It goes no further.
    Dropped(DropReason),
}

/// A peer whose lane key is known.
struct Known {
    key: TunnelPublicKey,
    /// This gateway's key for it.
    secret: StaticSecret,
    checks: Checks,
    term: u32,
    lanes: u8,
    to: SocketAddr,
    /// Until when handshakes that it begins make lanes.
    expected_until: Instant,
    /// Numbers of its tunnels, by lane. Few peers have any.
    tunnels: Vec<(u8, u32)>,
}

impl Known {
    fn tunnel(&self, lane: u8) -> Option<u32> {
        self.tunnels.iter().find(|(other, _)| *other == lane).map(|(_, number)| *number)
    }
}

/// All lanes that one thread runs.
pub struct Lanes {
    owner: u8,
    random: Random,
    gates: Gates,
    peers: Guests<Known>,
    lanes: Slots<Lane>,
    open: usize,
    /// Numbers of lanes through which nothing is sent any more, oldest first: at most as many as may be open.
    retired: Vec<u32>,
    most: usize,
    events: VecDeque<Event>,
    agenda: Agenda,
    scratch: Box<[u8]>,
}

impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes")
            .field("owner", &self.owner)
            .field("peers", &self.peers.len())
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Lanes {
    /// No lanes to anybody yet.
    #[must_use]
    pub fn new(config: &LanesConfig, now: Instant) -> Self {
        let mut random = Random::new(&config.seed);
        Self {
            gates: Gates::new(&mut random, now),
            owner: config.owner & lane::MAX,
            random,
            peers: Guests::new(),
            lanes: Slots::new(1 << PLACES),
            open: 0,
            retired: Vec::new(),
            most: config.most,
            events: VecDeque::new(),
            agenda: Agenda::default(),
            scratch: vec![0; SCRATCH_LEN].into_boxed_slice(),
        }
    }

    /// Lanes that are open: with a session, or on the way to one.
    #[must_use]
    pub const fn open_lanes(&self) -> usize {
        self.open
    }

    /// Carries out what the engine decided.
    pub fn carry_out(&mut self, order: Order, now: Instant, out: &mut impl Sink) {
        match order {
            Order::Know { peer, own, key, term, lanes, to } => {
                self.know(peer, &own, (key, term), (lanes, to), now);
            }
            Order::Expect { peer } => {
                if let Some(known) = self.peers.get_mut(peer) {
                    known.expected_until = now + EXPECTED_FOR;
                }
            }
            Order::Open(at) => self.open(at, now, out),
            Order::Move { peer, to } => self.move_to(peer, to),
            Order::Forget { peer } => self.forget(peer),
        }
    }

    fn know(
        &mut self,
        peer: PeerSlot,
        own: &OwnLaneKey,
        (key, term): (TunnelPublicKey, u32),
        (lanes, to): (u8, SocketAddr),
        now: Instant,
    ) {
        let expected_until = now + EXPECTED_FOR;
        let known = self.peers.get_mut(peer);
        if let Some(known) = known.filter(|known| (known.key, known.term) == (key, term)) {
            (known.lanes, known.expected_until) = (lanes, expected_until);
            return self.move_to(peer, to);
        }
        if let Some(before) = self.peers.remove(peer) {
            self.retire(before, now);
        }
        let gone = self.peers.remove_number(peer.index);
        self.close(gone, |other| other.index == peer.index && other != peer);
        let secret = StaticSecret::from(*own.secret().as_bytes());
        let checks = Checks::new(own.public());
        let tunnels = Vec::new();
        let known = Known { key, secret, checks, term, lanes, to, expected_until, tunnels };
        self.peers.put(peer, to, known);
    }

    fn move_to(&mut self, peer: PeerSlot, to: SocketAddr) {
        self.peers.move_to(peer, to);
        let Some(known) = self.peers.get_mut(peer) else { return };
        known.to = to;
        for (_, number) in &known.tunnels {
            if let Some(lane) = self.lanes.get_mut(*number) {
                lane.to = to;
            }
        }
    }

    fn forget(&mut self, peer: PeerSlot) {
        if let Some(gone) = self.peers.remove(peer) {
            self.close(Some(gone), |other| other == peer);
        }
    }

    fn open(&mut self, at: LaneId, now: Instant, out: &mut impl Sink) {
        let Some(number) = self.place(at, now) else {
            // An order for a peer that isn't known, or a lane that there isn't any more, is out of date.
            return self.events.extend((self.open >= self.most).then_some(Event::Full(at)));
        };
        if let Some(lane) = self.lanes.get_mut(number) {
            lane.wanted_until = Some(now + PURSUED_FOR);
            (lane.used, lane.ours) = (now, true);
        }
        self.tend(number, now, out);
    }

    /// Finds or makes the tunnel of a lane.
    fn place(&mut self, at: LaneId, now: Instant) -> Option<u32> {
        let known = self.peers.get_mut(at.peer)?;
        if !(1..=known.lanes).contains(&at.lane) {
            return None;
        }
        if let Some(number) = known.tunnel(at.lane) {
            return Some(number);
        }
        if self.open >= self.most {
            let spare = self.lanes.iter().filter(|(_, lane)| lane.is_open() && lane.is_spare(now));
            let (number, _) = spare.min_by_key(|(_, lane)| lane.used)?;
            self.remove(number);
        }
        let known = self.peers.get_mut(at.peer)?;
        let (secret, limiter) = (&known.secret, Arc::clone(&known.checks.calm));
        let (key, term, to) = (known.key, known.term, known.to);
        let owner = u32::from(self.owner) << OWNER_SHIFT;
        let number = self.lanes.insert(|number| {
            let place = u32::from(at.lane) << PLACES | number;
            let index = owner | place;
            let who = (at.peer.index, key, true);
            Lane {
                tunnel: Tunnel::new(secret, who, index, limiter, (now, None)),
                at,
                term,
                to,
                used: now,
                sealed: None,
                heard: None,
                wanted_until: None,
                strayed: None,
                ours: false,
                ready: false,
                retired: None,
                wake_at: now,
            }
        })?;
        known.tunnels.push((at.lane, number));
        self.open += 1;
        self.agenda.note(number, now);
        Some(number)
    }

    /// The same for a handshake that the peer begins: where it may.
    fn place_for_peer(&mut self, at: LaneId, now: Instant) -> Option<u32> {
        let known = self.peers.get(at.peer)?;
        if let Some(number) = known.tunnel(at.lane) {
            return Some(number);
        }
        let (mut unproven, mut theirs) = (0, 0);
        for (_, lane) in self.lanes.iter().filter(|(_, lane)| lane.is_open()) {
            unproven += usize::from(lane.is_unproven());
            // One that is as good as gone keeps nobody away.
            theirs += usize::from(!lane.ours && !lane.is_spare(now));
        }
        let part = (self.most / 4).max(1);
        let few = unproven < part && theirs < self.most.saturating_sub(part).max(1);
        if known.expected_until > now && few { self.place(at, now) } else { None }
    }

    fn remove(&mut self, number: u32) {
        let Some(lane) = self.lanes.remove(number) else { return };
        self.open -= usize::from(lane.is_open());
        self.retired.retain(|other| *other != number);
        if let Some(known) = self.peers.get_mut(lane.at.peer) {
            known.tunnels.retain(|(_, other)| *other != number);
        }
        // Of others the engine knows nothing.
        if lane.ready || lane.ours {
            self.events.push_back(Event::Closed { at: lane.at, term: lane.term });
        }
    }

    /// Seals a packet, or the packets of a super-frame. The DSCP of each goes to its outer header as well.
    ///
    /// # Errors
    /// Why it can't be cut. It is dropped then.
    pub fn seal(
        &mut self,
        job: &mut Job<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<Taken, DropReason> {
        // A peer that isn't known was forgotten by order: whoever gave it knows.
        let Some(known) = self.peers.get(job.at.peer) else { return Ok(Taken::NoSession) };
        let (term, number) = (known.term, known.tunnel(job.at.lane));
        let lane = number.and_then(|number| self.lanes.get_mut(number));
        let Some(lane) = lane.filter(|lane| lane.tunnel.has_session()) else {
            self.miss(job.at, term);
            return Ok(Taken::NoSession);
        };
        (lane.used, lane.sealed) = (now, Some(now));
        let (tunnel, to) = (&mut lane.tunnel, lane.to);
        let partial = job.vnet.flags & VnetHeader::FLAG_NEEDS_CSUM != 0;
        if !partial && !job.vnet.is_super_frame() {
            seal(tunnel, (self.owner, to), job.packet, out);
            return Ok(Taken::Yes);
        }
        let mut packets = Packets::new(job.packet, job.network, &job.vnet, job.limit)?;
        while let Some(packet) = packets.next() {
            seal(tunnel, (self.owner, to), packet, out);
        }
        Ok(Taken::Yes)
    }

    /// Tells that a lane can't be used that somebody thought could be.
    fn miss(&mut self, at: LaneId, term: u32) {
        let number = self.peers.get(at.peer).and_then(|known| known.tunnel(at.lane));
        if let Some(lane) = number.and_then(|number| self.lanes.get_mut(number)) {
            lane.ready = false;
        }
        let gone = Event::Gone { at, term };
        if self.events.back() != Some(&gone) {
            self.events.push_back(gone);
        }
    }

    /// Opens one datagram that is this owner's. Initiations are taken only from the [`Doorman`](super::doorman::Doorman),
    /// who lets in no more than there may be. A packet that was in it is written to the beginning of `room`, which must have
    /// [`open_room`] bytes.
    pub fn open_datagram<'a>(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        room: &'a mut [u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> OpenedInLane<'a> {
        if room.len() < open_room(datagram.len()) {
            return OpenedInLane::Dropped(DropReason::TooBig);
        }
        let (kind, number) = match self.route(from, datagram, now, out) {
            Ok(found) => found,
            Err(reason) => return OpenedInLane::Dropped(reason),
        };
        let Some(lane) = self.lanes.get_mut(number) else {
            return OpenedInLane::Dropped(DropReason::PeerUnknown);
        };
        let at = lane.at;
        let opened = match lane.tunnel.open(datagram, room) {
            Received::Refused(reason) => {
                // It was made for this, perhaps.
                if lane.is_unproven() && !lane.tunnel.is_begun() {
                    self.remove(number);
                }
                return OpenedInLane::Dropped(reason);
            }
            Received::Stale => {
                // Copied, or the peer's clock was set back. For a lane that is as good as gone that is no matter: what it
                // sends next begins one that knows no earlier time.
                if lane.is_spare(now) {
                    self.remove(number);
                }
                return OpenedInLane::Dropped(DropReason::PeerUnauthenticated);
            }
            Received::Nothing if matches!(kind, Kind::Cookie { .. }) => {
                lane.tunnel.note_cookie(now);
                self.wake(number, now);
                return OpenedInLane::Handled;
            }
            Received::Handshake(reply) => {
                let initiator = matches!(kind, Kind::Response { .. });
                lane.tunnel.note_handshake(initiator, &mut self.random, now);
                write(out, self.owner, from, reply);
                if !initiator {
                    lane.tunnel.note_heard(false, now);
                    // The peer is about to use it.
                    lane.used = now;
                    self.wake(number, now);
                    return OpenedInLane::Handled;
                }
                OpenedInLane::Handled
            }
            Received::Nothing => OpenedInLane::Handled,
            Received::Nonsense => OpenedInLane::Dropped(DropReason::Malformed),
            Received::Ipv4(packet) => {
                lane.used = now;
                OpenedInLane::Packet { at, packet }
            }
            Received::Ipv6(packet) => {
                lane.used = now;
                OpenedInLane::Part { at, packet }
            }
        };
        // It has the keys of a session: what it sent or answered shows that.
        lane.tunnel.note_heard(true, now);
        lane.heard = Some(now);
        let again = |at: Instant| now.saturating_duration_since(at) >= STRAYS_AGAIN;
        if from != lane.to && lane.strayed.is_none_or(again) {
            lane.strayed = Some(now);
            self.events.push_back(Event::Elsewhere { peer: at.peer, from });
        }
        if matches!(kind, Kind::Response { .. }) {
            self.drain(number, out);
        }
        self.judge(number, now);
        opened
    }

    /// Sends what boringtun kept for after the handshake: keepalives at most.
    fn drain(&mut self, number: u32, out: &mut impl Sink) {
        let Some(lane) = self.lanes.get_mut(number) else { return };
        for _ in 0..MAX_DRAIN {
            let len = lane.tunnel.drain(&mut self.scratch);
            if len == 0 {
                break;
            }
            write(out, self.owner, lane.to, &mut self.scratch[..len]);
        }
    }

    /// Finds out whether a lane can be used, and tells when that changed.
    fn judge(&mut self, number: u32, now: Instant) {
        let Some(lane) = self.lanes.get_mut(number).filter(|lane| lane.is_open()) else { return };
        let good = lane.is_good(now);
        if good {
            lane.wanted_until = None;
        }
        if std::mem::replace(&mut lane.ready, good) != good {
            let (at, term) = (lane.at, lane.term);
            let event = if good { Event::Ready { at, term } } else { Event::Gone { at, term } };
            self.events.push_back(event);
            self.wake(number, now);
        }
    }

    /// Finds the tunnel that a datagram is for.
    fn route(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(Kind, u32), DropReason> {
        let unknown = DropReason::PeerUnknown;
        let kind = front::classify(datagram)?;
        let receiver = match kind {
            Kind::Initiation => {
                let found = self.peers.lane(from, datagram, |known| &known.checks);
                let (at, _) = found.ok_or(DropReason::PeerUnauthenticated)?;
                let number = self.place_for_peer(at, now).ok_or(DropReason::HandshakeLimit)?;
                return Ok((kind, number));
            }
            Kind::Response { receiver } | Kind::Cookie { receiver } | Kind::Data { receiver } => {
                receiver
            }
        };
        let index = receiver >> 8;
        let number = index & ((1 << PLACES) - 1);
        let at = self.lanes.get(number).ok_or(unknown)?.at;
        let place = u32::from(self.owner) << (OWNER_SHIFT - PLACES) | u32::from(at.lane);
        if index >> PLACES != place {
            return Err(unknown);
        }
        if matches!(kind, Kind::Response { .. }) {
            let loaded = &self.peers.get(at.peer).ok_or(unknown)?.checks.loaded;
            match self.gates.admit(loaded, from.ip(), datagram, now) {
                Admission::Admitted => {}
                Admission::Refused(reason) => return Err(reason),
                Admission::Cookie(mut cookie) => {
                    write(out, self.owner, from, &mut cookie);
                    return Err(DropReason::HandshakeLimit);
                }
            }
        }
        Ok((kind, number))
    }

    /// Does what is due: handshakes, expiry.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Sink) {
        for number in self.agenda.due(now, self.most) {
            if self.lanes.get(number).is_some_and(|lane| lane.wake_at <= now) {
                self.tend(number, now, out);
            }
        }
        let lanes = &self.lanes;
        self.agenda.tidy(|number| lanes.get(number).map(|lane| lane.wake_at));
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.agenda.next()
    }

    /// The next thing that the engine is to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Does what is due for one lane.
    fn tend(&mut self, number: u32, now: Instant, out: &mut impl Sink) {
        let mut buffer = [0; SMALL];
        let Some(lane) = self.lanes.get_mut(number) else { return };
        if let Some(ends) = lane.retired_until() {
            return if ends <= now { self.remove(number) } else { self.wake_by(number, ends) };
        }
        let idle = now.saturating_duration_since(lane.used) >= lane.stays();
        let (mut len, mut gone) = (0, idle);
        match lane.tunnel.update(&mut buffer, now) {
            Update::Nothing => {}
            Update::Expired => gone = true,
            Update::Initiation(written) => {
                lane.tunnel.note_attempt(&mut self.random, now);
                len = written;
            }
            Update::Other(written) => len = written,
        }
        if gone {
            return self.remove(number);
        }
        if let Some(message) = buffer.get_mut(..len).filter(|message| !message.is_empty()) {
            write(out, self.owner, lane.to, message);
        }
        self.judge(number, now);
        let Some(lane) = self.lanes.get_mut(number) else { return };
        lane.wanted_until = lane.wanted_until.filter(|until| *until > now);
        let lately = |at: Instant| now.saturating_duration_since(at) <= ANSWERS_WITHIN;
        let in_use = lane.sealed.is_some_and(lately);
        let silent = lane.silence(now).is_none_or(|time| time > SILENT);
        let due = if lane.wanted_until.is_some() || in_use {
            lane.tunnel.due(silent.then_some(false), now)
        } else {
            lane.tunnel.due_on_demand(false, now)
        };
        if due {
            lane.tunnel.note_attempt(&mut self.random, now);
            let (to, tunnel) = (lane.to, &mut lane.tunnel);
            let room = front::INITIATION_LEN;
            out.lane_datagram(self.owner, to, CONTROL, room, |buffer| tunnel.initiate(buffer));
        }
        let ends = lane.used + lane.stays();
        let wake_at = lane.tunnel.wake_at().min(ends).max(now + Duration::from_millis(1));
        self.wake_by(number, wake_at);
    }

    /// Has a lane looked at then, and not before.
    fn wake_by(&mut self, number: u32, at: Instant) {
        if let Some(lane) = self.lanes.get_mut(number) {
            lane.wake_at = at;
            self.agenda.note(number, at);
        }
    }

    /// Has a lane looked at then, if not earlier.
    fn wake(&mut self, number: u32, at: Instant) {
        let Some(lane) = self.lanes.get_mut(number).filter(|lane| lane.wake_at > at) else {
            return;
        };
        lane.wake_at = at;
        self.agenda.note(number, at);
    }
}

/// Seals a packet for `to`.
fn seal(tunnel: &mut Tunnel, (owner, to): (u8, SocketAddr), packet: &[u8], out: &mut impl Sink) {
    let room = sealed_room(packet.len());
    out.lane_datagram(owner, to, dscp(packet), room, |buffer| tunnel.seal(packet, buffer));
}

/// Sends a message that is written already.
fn write(out: &mut impl Sink, owner: u8, to: SocketAddr, message: &mut [u8]) {
    out.lane_datagram(owner, to, CONTROL, message.len(), |buffer| {
        match buffer.get_mut(..message.len()) {
            Some(room) => {
                room.copy_from_slice(message);
                message.len()
            }
            None => 0,
        }
    });
}

#[cfg(test)]
mod tests;
