//! Which path a pair takes, and how it changes from one to the other without losing a packet.
//!
//! Two gateways tell each other, inside the tunnel, a digest of what they hold in common (see
//! [`super::relation`]). While the digests differ one of them is behind; what it makes of a flow is taken to be what
//! both last agreed on. So nobody sends by a path that the other end doesn't take yet, and whoever is ahead takes
//! both paths until the other has followed. What rides the tunnel is taken whenever a rule allows it, since it is
//! authentic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mode::{Mode, PairPath};
use anteroom_proto::verdict::{DropReason, Verdict};

use super::rules::Needs;
use super::{Ask, MemberEntry, Policy, Who};
use crate::table::Map;

/// How long a tunnel must be down before new flows of protected devices go in the clear for it.
const TUNNEL_DOWN: Duration = Duration::from_secs(5);
/// How long an enforced device still takes clear packets of a pair that came from the clear, while the other end
/// hasn't followed. Where a rule says `clear = true` and the other end says that it is behind, it is as long as that
/// takes.
const FOLLOW: Duration = Duration::from_secs(60);
/// How long it takes them once the other end has followed: it may not know yet that this end has changed, too, and
/// packets may be under way.
const SETTLE: Duration = Duration::from_secs(5);

/// What policy must know of a peer.
#[derive(Debug, Clone)]
pub(crate) struct PeerState {
    pub(crate) live: bool,
    /// When it became live, or stopped being it.
    pub(crate) since: Instant,
    /// The revision that it says it has in force.
    pub(crate) revision: Option<u64>,
    /// The digest that it says it has of what is held in common.
    pub(crate) relation: Option<u64>,
    /// What was last agreed on, while what is in force here isn't, and a while longer.
    pub(crate) past: Option<Past>,
}

impl PeerState {
    /// A peer that wasn't heard of yet.
    pub(crate) const fn new(now: Instant) -> Self {
        Self { live: false, since: now, revision: None, relation: None, past: None }
    }
}

/// What a gateway and its peer agreed on until one of them took another view.
#[derive(Debug, Clone)]
pub(crate) struct Past {
    pub(crate) policy: Arc<Policy>,
    /// When this gateway left it.
    pub(crate) left: Instant,
    /// When the peer had followed.
    pub(crate) followed: Option<Instant>,
}

impl Past {
    /// When nothing is to be looked up here any more, if that is known.
    pub(crate) fn over(&self) -> Option<Instant> {
        self.followed.map(|at| at + SETTLE)
    }

    /// When time alone changes no verdict any more.
    pub(crate) fn settled(&self) -> Instant {
        self.over().unwrap_or(self.left + FOLLOW)
    }
}

/// The peers by gateway.
pub(crate) type Peers = Map<GatewayId, PeerState>;

/// What the other end makes of a flow, as far as this one knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belief {
    Tunnel,
    Clear,
    /// No rule of what was agreed on lets it pass.
    Closed,
}

/// Two members with a rule between them: one of this gateway, one of another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) near: &'a MemberEntry,
    pub(super) far: &'a MemberEntry,
    /// The path that the view in force has for them.
    pub(super) path: PairPath,
}

/// How a flow of a pair goes, and what is taken of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) verdict: Verdict,
    /// Whether clear packets are taken although the device is enforced and the pair has a tunnel.
    pub(super) clear_taken: bool,
}

impl Policy {
    /// The digest of what this view holds in common with a peer.
    pub(crate) fn relation(&self, gateway: GatewayId) -> Option<u64> {
        self.relations.get(&gateway).copied()
    }

    /// The route of a flow that a rule allows.
    pub(super) fn route(&self, ask: &Ask<'_>, pair: Pair<'_>) -> Route {
        let Pair { near, far, path } = pair;
        let state = ask.peers.get(&far.gateway);
        let live = state.is_some_and(|state| state.live);
        if far.is_client {
            // It holds no view that could differ, and has no other path.
            let verdict =
                if live { Verdict::Tunnel } else { Verdict::Drop(DropReason::TunnelDown) };
            return Route { verdict, clear_taken: false };
        }
        let told = state.and_then(|state| state.relation);
        let agrees = told.map(|told| self.relation(far.gateway) == Some(told));
        let past = state.and_then(|state| state.past.as_ref());
        let before = past.map(|past| past.policy.believes(ask, near.id, far));
        // Once it has followed, the other end is ahead if it differs, and holds at least what is in force here.
        let belief = before.filter(|_| past.is_some_and(|past| past.followed.is_none()));
        if path != PairPath::Tunnel {
            // Whoever sends by the tunnel still takes what comes back by it.
            let stays = ask.tunnelled || belief == Some(Belief::Tunnel);
            let tunnel = live && agrees == Some(false) && stays;
            let verdict = if tunnel { Verdict::Tunnel } else { Verdict::Clear };
            return Route { verdict, clear_taken: true };
        }
        let ready = match (agrees, belief) {
            // It is ahead, or this gateway started anew and knows nothing of before: what it takes for certain is
            // what is authentic and allowed.
            (Some(true), _) | (Some(false), Some(Belief::Tunnel) | None) => true,
            (Some(false), Some(_)) => false,
            (None, _) => {
                let held = state.and_then(|state| state.revision);
                held.is_some_and(|held| held >= near.mode_since.max(far.mode_since))
            }
        };
        let enforced = near.mode >= Mode::Enforce || near.shared >= Mode::Enforce;
        let verdict = if ask.tunnelled || (live && ready) {
            Verdict::Tunnel
        } else if !enforced {
            let down = state.is_none_or(|state| {
                !live && ask.now.saturating_duration_since(state.since) >= TUNNEL_DOWN
            });
            if down { Verdict::ClearTunnelDown } else { Verdict::Clear }
        } else if !live {
            Verdict::Drop(DropReason::TunnelDown)
        } else if agrees == Some(false) && belief == Some(Belief::Closed) {
            // The rule opens at the other end first.
            Verdict::Drop(DropReason::TunnelNotReady)
        } else {
            // The other end takes what is authentic and allowed, whichever path it uses itself.
            Verdict::Tunnel
        };
        let clear_taken = before == Some(Belief::Clear)
            && past.is_some_and(|past| match past.followed {
                Some(at) => ask.now.saturating_duration_since(at) < SETTLE,
                None => {
                    // Beyond that it must say itself that it is behind: a tunnel can be blocked by anybody.
                    let behind = live && agrees == Some(false);
                    ask.now.saturating_duration_since(past.left) < FOLLOW
                        || (behind && self.rule(ask, true).is_ok())
                }
            });
        Route { verdict, clear_taken }
    }

    /// What a gateway with this policy makes of a flow between two members, whom another policy knows as well.
    fn believes(&self, ask: &Ask<'_>, near: MemberId, far: &MemberEntry) -> Belief {
        let entry = |id| {
            let index = self.find(id)?;
            Some((index, self.member(index)?))
        };
        let (Some(near), Some(other)) = (entry(near), entry(far.id)) else { return Belief::Closed };
        if other.1.gateway != far.gateway {
            return Belief::Closed;
        }
        let path = PairPath::of(near.1.mode, other.1.mode);
        let (from, to) = if ask.initiator.here.is_some() { (near, other) } else { (other, near) };
        let Some(protocol) = ask.service else { return Belief::Closed };
        let found = self.rules.find(
            (Who::Member(from.0), ask.initiator.address),
            (Who::Member(to.0), ask.responder.address),
            (protocol, ask.port),
            Needs {
                clear: path == PairPath::ClearIfRuleSays,
                essential: near.1.quarantined || other.1.quarantined,
            },
            Self::now(ask.clock, ask.now),
        );
        match (found, path) {
            (Err(_), _) | (_, PairPath::None) => Belief::Closed,
            (Ok(_), PairPath::Tunnel) => Belief::Tunnel,
            (Ok(_), PairPath::Clear | PairPath::ClearIfRuleSays) => Belief::Clear,
        }
    }
}
