//! Between whom packets pass: ways open and close as passes come, go and become stale.

use std::time::Instant;

use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::packet;

use super::session::Way;
use super::{Dropped, Relay, SessionId};

impl Relay {
    /// Closes what was open for a moment longer, and that is over now. To be called when [`Self::due`] has come.
    pub fn turn(&mut self, now: Instant) {
        if self.due.is_some_and(|due| due <= now) {
            self.judge_all(now);
        }
    }

    /// When to call [`Self::turn`], if nothing else happens before.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Looks again at who is stale, after the newest signed time or the controllers have changed, or time has gone by.
    pub(super) fn judge_all(&mut self, now: Instant) {
        self.due = None;
        let mut changed = Vec::new();
        for (slot, session) in (0u32..).zip(&mut self.slots) {
            let Some(session) = session else { continue };
            if session.review(self.clock.1, &self.controllers, now) {
                changed.push(slot);
            }
            self.due = earlier(self.due, session.due());
        }
        for slot in changed {
            self.judge(slot, now);
        }
    }

    /// Opens and closes the ways between this gateway and all that it has ever named.
    pub(super) fn judge(&mut self, slot: u32, now: Instant) {
        let Some(session) = self.slots[slot as usize].as_mut() else { return };
        session.review(self.clock.1, &self.controllers, now);
        self.due = earlier(self.due, session.due());
        // Lent out, so that it can be looked at beside the others.
        let mut routes = std::mem::take(&mut session.routes);
        let own = SessionId { slot, generation: session.generation };
        for (number, route) in (0u16..).zip(&mut routes) {
            let Some(number) = packet::PeerNumber::new(number) else { break };
            let way = self.way(slot, route.gateway);
            if way == route.way {
                continue;
            }
            let before = std::mem::replace(&mut route.way, way);
            if let Some(session) = self.slots[slot as usize].as_mut() {
                session.news.insert(number);
                self.woken.insert(own);
            }
            let Some(Way { slot: other, number: theirs }) = way.or(before) else { continue };
            if way.is_none() {
                self.purge(other, slot);
                self.purge(slot, other);
            }
            let Some(session) = self.slots[other as usize].as_mut() else { continue };
            if let Some(back) = session.routes.get_mut(usize::from(theirs.get())) {
                back.way = way.map(|_| Way { slot, number });
                session.news.insert(theirs);
                self.woken.insert(SessionId { slot: other, generation: session.generation });
            }
        }
        if let Some(session) = self.slots[slot as usize].as_mut() {
            session.routes = routes;
        }
    }

    /// The way from the gateway in `slot` to `gateway`, if both passes allow it and it is here.
    pub(super) fn way(&self, slot: u32, gateway: GatewayId) -> Option<Way> {
        let from = self.slots.get(slot as usize)?.as_ref()?;
        let other = *self.here.get(&gateway)?;
        let to = self.slots.get(other as usize)?.as_ref()?;
        let named = from.pass.names(gateway) && to.pass.names(from.gateway);
        let fresh = !from.is_stale() || !to.is_stale();
        let number = *to.numbers.get(&from.gateway)?;
        (named && fresh).then_some(Way { slot: other, number })
    }

    /// Throws away what the gateway in slot `from` has waiting for the one in slot `to`.
    pub(super) fn purge(&mut self, to: u32, from: u32) {
        let Some(session) = self.slots[to as usize].as_mut() else { return };
        let (packets, bytes) = session.inbox.purge(from);
        self.settle(from, packets, bytes);
    }

    /// Packets of the gateway in slot `from` were thrown away with the way that they were to take.
    pub(super) fn settle(&mut self, from: u32, packets: usize, bytes: usize) {
        self.waiting -= bytes;
        if let Some(sender) = self.slots.get_mut(from as usize).and_then(Option::as_mut) {
            sender.queued -= bytes;
        }
        for _ in 0..packets {
            self.counts.drop(Dropped::Gone);
        }
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}
