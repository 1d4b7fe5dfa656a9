//! One gateway's connection to a relay, as far as who may send what to whom goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anteroom_proto::cose::Verified;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_proto::relay::packet::PeerNumber;
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::time::UnixMillis;

use super::bucket::{Bucket, Rate};
use super::inbox::Inbox;

/// For how long a pass that has just become stale goes on to count. Where a controller's clock was set, all passes but the first of the new
/// time are stale until the relay has been shown theirs, which a controller sends at once. So it is longer than it takes for that to
/// reach any number of gateways on slow lines, or connections that have to be made anew.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// What a pass is worth beside the newest one known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Fresh,
    /// Stale since then, and counts as if it weren't for as long as a newer one may be under way.
    Doubted(Instant),
    /// It lets nobody in who couldn't show a fresher one.
    Stale,
}

/// Where a connection stands in the relay. It never means another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    pub(super) slot: u32,
    pub(super) generation: u64,
}

/// A way from one gateway to another that both passes allow now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    /// The other's slot.
    pub(super) slot: u32,
    /// What the other calls this gateway.
    pub(super) number: PeerNumber,
}

/// What this connection calls a gateway, and whether there is a way to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) gateway: GatewayId,
    pub(super) way: Option<Way>,
}

/// A gateway's connection before this one. What it sent before it knew of this one comes yet, and is as good.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) generation: u64,
    /// Whom it called by which number.
    pub(super) called: Vec<GatewayId>,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) generation: u64,
    pub(super) gateway: GatewayId,
    pub(super) pass: RelayPass,
    pub(super) signer: PublicKey,
    pub(super) standing: Standing,
    pub(super) routes: Vec<Route>,
    pub(super) numbers: BTreeMap<GatewayId, PeerNumber>,
    /// The longest sealed packet that can be handed to the gateway.
    pub(super) room: u16,
    pub(super) bucket: Option<Bucket>,
    pub(super) inbox: Inbox,
    /// What it has waiting in others' inboxes, in bytes.
    pub(super) queued: usize,
    /// Numbers whose state it hasn't been told.
    pub(super) news: BTreeSet<PeerNumber>,
    /// The one whose place it took, until that has ended.
    pub(super) before: Option<Before>,
}

impl Session {
    pub(super) fn new(
        generation: u64,
        pass: &Verified<RelayPass>,
        room: u16,
        rate: Option<Rate>,
        now: Instant,
    ) -> Self {
        Self {
            generation,
            gateway: pass.gateway,
            signer: pass.signer(),
            pass: RelayPass::clone(pass),
            standing: Standing::Stale,
            routes: Vec::new(),
            numbers: BTreeMap::new(),
            room,
            bucket: rate.map(|rate| Bucket::new(rate, now)),
            inbox: Inbox::default(),
            queued: 0,
            news: BTreeSet::new(),
            before: None,
        }
    }

    /// Takes a pass in place of the one before. False, and no change, where the connection has no numbers left for
    /// peers that it hasn't met.
    pub(super) fn take(&mut self, pass: &Verified<RelayPass>) -> bool {
        let new: Vec<GatewayId> =
            pass.peers.iter().copied().filter(|peer| !self.numbers.contains_key(peer)).collect();
        if self.routes.len() + new.len() > usize::from(PeerNumber::COUNT) {
            return false;
        }
        for gateway in new {
            let number = u16::try_from(self.routes.len()).ok().and_then(PeerNumber::new);
            let Some(number) = number else { return false };
            self.numbers.insert(gateway, number);
            self.routes.push(Route { gateway, way: None });
        }
        self.pass = RelayPass::clone(pass);
        self.signer = pass.signer();
        true
    }

    /// Looks again at what the pass is worth, if the newest one known was signed at `signed` and these are the controllers. Says whether
    /// it counts for something else than before.
    pub(super) fn review(
        &mut self,
        signed: UnixMillis,
        controllers: &[PublicKey],
        now: Instant,
    ) -> bool {
        let was = self.is_stale();
        let stale = signed >= self.pass.stale_at() || !controllers.contains(&self.signer);
        self.standing = match self.standing {
            _ if !stale => Standing::Fresh,
            Standing::Fresh => Standing::Doubted(now),
            Standing::Doubted(_) if self.due().is_some_and(|due| due <= now) => Standing::Stale,
            standing => standing,
        };
        self.is_stale() != was
    }

    pub(super) fn is_stale(&self) -> bool {
        self.standing == Standing::Stale
    }

    /// When the pass stops counting, if nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.standing {
            Standing::Doubted(since) => Some(since + GRACE),
            Standing::Fresh | Standing::Stale => None,
        }
    }
}
