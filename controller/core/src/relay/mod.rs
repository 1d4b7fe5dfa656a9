//! A relay's decisions: who may send to whom, whose turn it is, what finds no room.
//!
//! Pure: connections are numbers, packets are bytes, time comes in as an argument. The shell verifies signatures before
//! it calls, hands datagrams in with [`Relay::forward`], fetches what is to go out with [`Relay::next`], and tells
//! every connection in [`Relay::woken`] its [`Relay::news`].
//!
//! A packet passes only where both gateways are here, each pass names the other, and at least one of the two isn't
//! stale: a gateway that hasn't seen its controller for long is still vouched for by the fresh pass of its peer. One that has just
//! become stale counts for a moment longer: its newer one may be under way. [`Relay::turn`] ends that.

mod bucket;
mod count;
mod inbox;
mod limits;
mod session;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anteroom_proto::authority::Authority;
use anteroom_proto::cose::Verified;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_proto::relay::packet::{self, Datagram, PeerNumber};
use anteroom_proto::relay::pass::{PassNumber, RelayPass};
use anteroom_proto::relay::{PeerState, Refusal, RefusalCode};
use anteroom_proto::time::UnixMillis;

pub use bucket::Rate;
pub use count::{Counts, Dropped};
pub use limits::Limits;
pub use session::SessionId;

use inbox::cost;
use session::{Before, Session, Way};

/// A gateway that was let in.
#[derive(Debug, PartialEq, Eq)]
pub struct Entered {
    /// Its connection.
    pub session: SessionId,
    /// The gateway's connection before this one, to be [ended](Relay::leave) in a moment. What was waiting goes on by this one, and what
    /// comes by that until then is taken as if it came by this one.
    pub replaced: Option<SessionId>,
}

/// A relay.
#[derive(Debug)]
pub struct Relay {
    limits: Limits,
    controllers: Vec<PublicKey>,
    slots: Vec<Option<Session>>,
    free: Vec<u32>,
    generation: u64,
    here: BTreeMap<GatewayId, u32>,
    /// The newest pass of each gateway that was seen.
    newest: BTreeMap<GatewayId, PassNumber>,
    /// The newest pass of all that was seen, and when it was signed: all the relay knows of the time.
    clock: (PassNumber, UnixMillis),
    /// When a pass that has become stale stops counting, the first of them.
    due: Option<Instant>,
    barred: BTreeSet<GatewayId>,
    former: BTreeSet<PublicKey>,
    waiting: usize,
    woken: BTreeSet<SessionId>,
    counts: Counts,
}

impl Relay {
    /// A relay that nobody has come to. It lets nobody in before [`Self::set_authority`].
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            controllers: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            generation: 0,
            here: BTreeMap::new(),
            newest: BTreeMap::new(),
            clock: (PassNumber::default(), UnixMillis(0)),
            due: None,
            barred: BTreeSet::new(),
            former: BTreeSet::new(),
            waiting: 0,
            woken: BTreeSet::new(),
            counts: Counts::default(),
        }
    }

    /// From now on these controllers sign passes. Who came with a pass of another stays, as if that had become stale.
    pub fn set_authority(&mut self, authority: &Authority, now: Instant) {
        self.controllers = authority.controller_keys();
        self.judge_all(now);
    }

    /// From now on these gateways are kept out: operators have taken them out. Gives the connections that are over.
    pub fn set_barred(&mut self, barred: BTreeSet<GatewayId>) -> Vec<SessionId> {
        self.barred = barred;
        let out: Vec<SessionId> =
            self.barred.iter().filter_map(|gateway| self.id_of(*self.here.get(gateway)?)).collect();
        for session in &out {
            self.leave(*session);
        }
        out
    }

    /// From now on nobody comes in with one of these identity keys: operators have replaced them. Gives the connections of
    /// those who are here with one, which stay until they are told to leave: the gateway itself may not have heard of
    /// its new key yet, and its connection by that takes the place of this one.
    pub fn set_former(&mut self, former: BTreeSet<PublicKey>) -> Vec<SessionId> {
        self.former = former;
        let slots = self.slots.iter().enumerate();
        slots
            .filter(|(_, session)| {
                session.as_ref().is_some_and(|session| self.former.contains(&session.pass.identity))
            })
            .filter_map(|(slot, _)| self.id_of(u32::try_from(slot).ok()?))
            .collect()
    }

    /// Lets in whoever shows `pass`, to whom sealed packets of up to `room` bytes can be handed.
    ///
    /// # Errors
    /// [`Refusal`], to be told to the gateway; it is counted.
    pub fn enter(
        &mut self,
        pass: &Verified<RelayPass>,
        room: u16,
        now: Instant,
    ) -> Result<Entered, Refusal> {
        if let Err(refusal) = self.admit(pass) {
            self.counts.refused += 1;
            return Err(refusal);
        }
        self.generation += 1;
        let mut session = Session::new(self.generation, pass, room, self.limits.rate, now);
        if !session.take(pass) {
            self.counts.refused += 1;
            return Err(Refusal::new(RefusalCode::Pass, "the pass names too many peers"));
        }
        let generation = session.generation;
        let here = self.here.get(&pass.gateway).copied();
        // What a stale pass still counts isn't had anew by connecting again.
        if let Some(before) = here.and_then(|slot| self.slots.get(slot as usize)?.as_ref()) {
            session.standing = before.standing;
        }
        session.review(self.clock.1, &self.controllers, now);
        let (slot, replaced) = match here {
            Some(slot) => (slot, self.replace(slot, session)),
            None => (self.place(session), None),
        };
        self.here.insert(pass.gateway, slot);
        self.remember(pass, now);
        self.judge(slot, now);
        Ok(Entered { session: SessionId { slot, generation }, replaced })
    }

    /// Gives a gateway that wasn't here a slot.
    fn place(&mut self, session: Session) -> u32 {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                // There are no more slots than gateways may be here.
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.slots[slot as usize] = Some(session);
        slot
    }

    /// Lets a gateway's newer connection take the place of the one in `slot`, which it gives. What waits for the gateway, and
    /// what it has waiting for others, stays, as far as the newer pass opens the same ways: a change of connections loses
    /// none of it.
    fn replace(&mut self, slot: u32, mut session: Session) -> Option<SessionId> {
        let generation = session.generation;
        let mut before = self.slots[slot as usize].take()?;
        session.inbox = std::mem::take(&mut before.inbox);
        (session.queued, session.bucket) = (before.queued, before.bucket.take());
        let called = before.routes.iter().map(|route| route.gateway).collect();
        session.before = Some(Before { generation: before.generation, called });
        self.slots[slot as usize] = Some(session);
        for route in before.routes {
            let Some(Way { slot: other, number: theirs }) = route.way else { continue };
            let way = self.way(slot, route.gateway);
            let mut back = None;
            if let Some(session) = self.slots[slot as usize].as_mut()
                && let (Some(way), Some(number)) = (way, session.numbers.get(&route.gateway))
                && let Some(route) = session.routes.get_mut(usize::from(number.get()))
            {
                // The newer connection has numbers of its own.
                session.inbox.renumber(other, *number);
                route.way = Some(way);
                session.news.insert(*number);
                back = Some(Way { slot, number: *number });
            }
            if back.is_none() {
                self.purge(other, slot);
                self.purge(slot, other);
            }
            if let Some(session) = self.slots[other as usize].as_mut() {
                if let Some(route) = session.routes.get_mut(usize::from(theirs.get())) {
                    route.way = back;
                }
                session.news.insert(theirs);
                self.woken.insert(SessionId { slot: other, generation: session.generation });
            }
        }
        self.woken.insert(SessionId { slot, generation });
        Some(SessionId { slot, generation: before.generation })
    }

    /// Takes a newer pass of a gateway that is here, in place of the one before.
    ///
    /// # Errors
    /// [`Refusal`], to be told to the gateway; it is counted, and the pass before goes on to count.
    pub fn renew(
        &mut self,
        id: SessionId,
        pass: &Verified<RelayPass>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let taken = self.try_renew(id, pass, now);
        if taken.is_err() {
            self.counts.refused += 1;
        }
        taken
    }

    fn try_renew(
        &mut self,
        id: SessionId,
        pass: &Verified<RelayPass>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let gone = || Refusal::new(RefusalCode::Replaced, "this connection is over");
        if self.session(id).ok_or_else(gone)?.gateway != pass.gateway {
            return Err(Refusal::new(RefusalCode::Pass, "the pass is for another gateway"));
        }
        self.check_number(pass)?;
        let full = || {
            let message = "this connection has met too many peers: connect again";
            Refusal::new(RefusalCode::Busy, message)
        };
        if !self.session_mut(id).ok_or_else(gone)?.take(pass) {
            return Err(full());
        }
        self.remember(pass, now);
        self.judge(id.slot, now);
        Ok(())
    }

    fn admit(&self, pass: &Verified<RelayPass>) -> Result<(), Refusal> {
        if self.barred.contains(&pass.gateway) {
            let message = "operators have taken this gateway out of the organisation";
            return Err(Refusal::new(RefusalCode::Revoked, message));
        }
        if self.former.contains(&pass.identity) {
            let message = "operators have replaced the identity key that the pass is for";
            return Err(Refusal::new(RefusalCode::Pass, message));
        }
        self.check_number(pass)?;
        let known = self.here.contains_key(&pass.gateway);
        if !known && self.here.len() >= self.limits.gateways {
            let message = format!("as many gateways are here as may be ({})", self.here.len());
            return Err(Refusal::new(RefusalCode::Busy, message));
        }
        Ok(())
    }

    fn check_number(&self, pass: &Verified<RelayPass>) -> Result<(), Refusal> {
        if !self.controllers.contains(&pass.signer()) {
            let message = "the pass was signed by a controller that operators have since replaced";
            return Err(Refusal::new(RefusalCode::Pass, message));
        }
        match self.newest.get(&pass.gateway) {
            Some(newest) if pass.number < *newest => Err(Refusal::new(
                RefusalCode::Superseded,
                format!("the pass is number {}, but {newest} has been shown here", pass.number),
            )),
            _ => Ok(()),
        }
    }

    fn remember(&mut self, pass: &Verified<RelayPass>, now: Instant) {
        self.newest.insert(pass.gateway, pass.number);
        if self.newest.len() > self.limits.remembered {
            let oldest = self
                .newest
                .iter()
                .filter(|(gateway, _)| !self.here.contains_key(gateway))
                .min_by_key(|(_, number)| **number)
                .map(|(gateway, _)| *gateway);
            if let Some(oldest) = oldest {
                self.newest.remove(&oldest);
            }
        }
        if pass.number > self.clock.0 {
            let before = self.clock.1;
            self.clock = (pass.number, pass.issued_at);
            if self.clock.1 != before {
                self.judge_all(now);
            }
        }
    }

    /// A gateway's connection has ended.
    pub fn leave(&mut self, id: SessionId) {
        if self.session(id).is_none() {
            if let Some(Some(newer)) = self.slots.get_mut(id.slot as usize) {
                newer.before.take_if(|before| before.generation == id.generation);
            }
            return;
        }
        let Some(mut session) = self.slots[id.slot as usize].take() else { return };
        self.here.remove(&session.gateway);
        self.free.push(id.slot);
        for (from, packets, bytes) in session.inbox.senders() {
            self.settle(from, packets, bytes);
        }
        // What it had sent goes with it, so that nobody else is taken for its sender.
        for route in &mut session.routes {
            let Some(way) = route.way.take() else { continue };
            self.purge(way.slot, id.slot);
            if let Some(other) = self.slots[way.slot as usize].as_mut() {
                if let Some(back) = other.routes.get_mut(usize::from(way.number.get())) {
                    back.way = None;
                }
                other.news.insert(way.number);
                self.woken.insert(SessionId { slot: way.slot, generation: other.generation });
            }
        }
    }

    /// Sealed packets of up to `room` bytes can be handed to the gateway from now on.
    pub fn set_room(&mut self, id: SessionId, room: u16) {
        let Some(session) = self.session_mut(id).filter(|session| session.room != room) else {
            return;
        };
        session.room = room;
        let ways: Vec<Way> = session.routes.iter().filter_map(|route| route.way).collect();
        for way in ways {
            if let Some(other) = self.slots[way.slot as usize].as_mut() {
                other.news.insert(way.number);
                self.woken.insert(SessionId { slot: way.slot, generation: other.generation });
            }
        }
    }

    /// Takes a datagram that came from a gateway, if it is a packet for another, and says for which: something can be
    /// fetched for it.
    ///
    /// # Errors
    /// [`Dropped`], which is counted.
    pub fn forward(
        &mut self,
        from: SessionId,
        datagram: Vec<u8>,
        now: Instant,
    ) -> Result<SessionId, Dropped> {
        let sent = self.try_forward(from, datagram, now);
        if let Err(reason) = &sent {
            self.counts.drop(*reason);
        }
        sent
    }

    fn try_forward(
        &mut self,
        from: SessionId,
        mut datagram: Vec<u8>,
        now: Instant,
    ) -> Result<SessionId, Dropped> {
        let Some(Datagram::Packet { peer, bulk, sealed }) = packet::parse(&datagram) else {
            return Err(Dropped::Malformed);
        };
        let len = sealed.len();
        let (from, peer) = self.newest(from, peer)?;
        let session = self.session_mut(from).ok_or(Dropped::Gone)?;
        if session.bucket.as_mut().is_some_and(|bucket| !bucket.take(datagram.len(), now)) {
            return Err(Dropped::Rate);
        }
        let route = session.routes.get(usize::from(peer.get())).ok_or(Dropped::Unknown)?;
        let (gateway, queued) = (route.gateway, session.queued);
        let Some(way) = route.way else {
            let here = self.here.contains_key(&gateway);
            return Err(if here { Dropped::NotShared } else { Dropped::Absent });
        };
        let to = self.slots[way.slot as usize].as_mut().ok_or(Dropped::Absent)?;
        if len > usize::from(to.room) {
            return Err(Dropped::TooLong);
        }
        let cost = cost(&datagram);
        let (limits, waiting) = (self.limits, self.waiting);
        // What its sender may have waiting: for all others together, and of the room that there is at all.
        let fits = |freed: usize| {
            let everywhere = limits.waiting.saturating_sub(waiting - freed);
            queued - freed + cost <= limits.outbox.min(everywhere)
        };
        let here =
            |inbox: &inbox::Inbox| inbox.share(from.slot) + cost <= inbox.allowance(limits.inbox);
        let mut freed = 0;
        while !here(&to.inbox) || !fits(freed) {
            let Some(shed) = to.inbox.shed(from.slot, bulk) else { break };
            freed += shed;
            self.counts.drop(Dropped::Full);
        }
        let added = if here(&to.inbox) && fits(freed) { cost } else { 0 };
        if added > 0 {
            let header = packet::header(way.number, bulk);
            datagram[..packet::HEADER_LEN].copy_from_slice(&header);
            to.inbox.push(from.slot, datagram, bulk, now);
        }
        let receiver = SessionId { slot: way.slot, generation: to.generation };
        self.waiting = waiting - freed + added;
        if let Some(session) = self.session_mut(from) {
            session.queued = queued - freed + added;
        }
        if added > 0 { Ok(receiver) } else { Err(Dropped::Full) }
    }

    /// The next datagram for this gateway.
    pub fn next(&mut self, to: SessionId, now: Instant) -> Option<Vec<u8>> {
        loop {
            let patience = self.limits.patience;
            let left = self.session_mut(to)?.inbox.pop(patience, now)?;
            self.waiting -= left.cost;
            if let Some(sender) = self.slots[left.from as usize].as_mut() {
                sender.queued -= left.cost;
            }
            match left.datagram {
                Some(datagram) => {
                    self.counts.hand_out(datagram.len());
                    return Some(datagram);
                }
                None => self.counts.drop(Dropped::Late),
            }
        }
    }

    /// What this gateway is to be told of its peers, at most `max` of them; empty when it knows all.
    pub fn news(&mut self, id: SessionId, max: usize) -> Vec<PeerState> {
        let Some(session) = self.session_mut(id) else { return Vec::new() };
        let mut told = Vec::new();
        while told.len() < max {
            let Some(number) = session.news.pop_first() else { break };
            let Some(route) = session.routes.get(usize::from(number.get())) else { continue };
            told.push((number, *route));
        }
        let state = |(number, route): (_, session::Route)| PeerState {
            gateway: route.gateway,
            number,
            room: route
                .way
                .and_then(|way| self.slots[way.slot as usize].as_ref())
                .map(|other| other.room),
        };
        told.into_iter().map(state).collect()
    }

    /// The connections for which there is something to tell since the last call.
    pub fn woken(&mut self) -> BTreeSet<SessionId> {
        std::mem::take(&mut self.woken)
    }

    /// How much it takes upon itself.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether the connection stands.
    #[must_use]
    pub fn is_here(&self, id: SessionId) -> bool {
        self.session(id).is_some()
    }

    /// Gateways that are here.
    #[must_use]
    pub fn gateways(&self) -> usize {
        self.here.len()
    }

    /// Bytes that wait, with what it costs to keep them.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Counts packets that were lost outside: before they were taken, or after they were handed out.
    pub const fn lost(&mut self, reason: Dropped, packets: u64) {
        self.counts.drop_many(reason, packets);
    }

    /// What was counted.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    fn session(&self, id: SessionId) -> Option<&Session> {
        let session = self.slots.get(id.slot as usize)?.as_ref()?;
        (session.generation == id.generation).then_some(session)
    }

    /// The connection that has the place of `id`, if not that itself, and what it calls whom that one calls `number`.
    fn newest(
        &self,
        id: SessionId,
        number: PeerNumber,
    ) -> Result<(SessionId, PeerNumber), Dropped> {
        if self.session(id).is_some() {
            return Ok((id, number));
        }
        let newer = self.slots.get(id.slot as usize).and_then(Option::as_ref);
        let newer = newer.ok_or(Dropped::Gone)?;
        let is_meant = |before: &&Before| before.generation == id.generation;
        let before = newer.before.as_ref().filter(is_meant).ok_or(Dropped::Gone)?;
        let meant = before.called.get(usize::from(number.get())).ok_or(Dropped::Unknown)?;
        let number = newer.numbers.get(meant).ok_or(Dropped::NotShared)?;
        Ok((SessionId { slot: id.slot, generation: newer.generation }, *number))
    }

    fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        let session = self.slots.get_mut(id.slot as usize)?.as_mut()?;
        (session.generation == id.generation).then_some(session)
    }

    fn id_of(&self, slot: u32) -> Option<SessionId> {
        let session = self.slots.get(slot as usize)?.as_ref()?;
        Some(SessionId { slot, generation: session.generation })
    }
}

#[cfg(test)]
mod tests;
