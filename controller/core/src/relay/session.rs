//! One gateway's connection to a relay, as far as who may send what to whom goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anteroom_proto::cose::Verified;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_proto::relay::packet::PeerNumber;
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::time::UnixMillis;

use super::bucket::{Bucket, Rate};
use super::inbox::Inbox;

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

#[derive(Debug)]
pub(super) struct Session {
    pub(super) generation: u64,
    pub(super) gateway: GatewayId,
    pub(super) pass: RelayPass,
    pub(super) signer: PublicKey,
    /// Whether the pass lets nobody in who couldn't show a fresher one.
    pub(super) stale: bool,
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
            stale: false,
            routes: Vec::new(),
            numbers: BTreeMap::new(),
            room,
            bucket: rate.map(|rate| Bucket::new(rate, now)),
            inbox: Inbox::default(),
            queued: 0,
            news: BTreeSet::new(),
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

    /// Whether the pass is stale, if the newest pass known was signed at `signed` and these are the controllers.
    pub(super) fn is_stale(&self, signed: UnixMillis, controllers: &[PublicKey]) -> bool {
        signed >= self.pass.stale_at() || !controllers.contains(&self.signer)
    }
}
