//! The verdict on a flow.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::mode::{Mode, PairPath};
use anteroom_proto::service::Protocol;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::rules::Needs;
use super::{MemberEntry, Policy, Refused, Who};
use crate::clock::Clock;
use crate::device::StationId;
use crate::flow::Judgement;
use crate::infrastructure;
use crate::table::Map;

/// How long a tunnel must be down before new flows of protected devices go in the clear for it.
const TUNNEL_DOWN: Duration = Duration::from_secs(5);

/// How long the tunnel still delivers for a pair that went back to the clear.
const OLD_PATH_OPEN: Duration = Duration::from_secs(10);

/// What policy must know of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerState {
    pub(crate) live: bool,
    /// When it became live, or stopped being it.
    pub(crate) since: Instant,
    /// The revision that it says it has in force.
    pub(crate) revision: Option<u64>,
}

/// The peers by gateway.
pub(crate) type Peers = Map<GatewayId, PeerState>;

/// One end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) address: Ipv4Addr,
    pub(crate) who: Who,
    /// The station, where the end is on a port of this gateway.
    pub(crate) here: Option<StationId>,
    /// How the station is treated; observe for what isn't here.
    pub(crate) stance: Mode,
    /// The strictest mode on the station's port; observe for what isn't here.
    pub(crate) shared: Mode,
}

impl End {
    /// Somebody who isn't on a port of this gateway.
    pub(crate) const fn elsewhere(address: Ipv4Addr, who: Who) -> Self {
        Self { address, who, here: None, stance: Mode::Observe, shared: Mode::Observe }
    }
}

/// What becomes of traffic that nothing allows, by how strictly a device is treated.
pub(crate) const fn refuse(stance: Mode, reason: DropReason, otherwise: Verdict) -> Verdict {
    match stance {
        Mode::Observe => otherwise,
        Mode::Protect => Verdict::WouldDrop(reason),
        Mode::Enforce => Verdict::Drop(reason),
        Mode::Unrecognised => Verdict::Drop(DropReason::UnknownMode),
    }
}

/// A flow to be judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) initiator: End,
    pub(crate) responder: End,
    /// None: a protocol that no rule can open.
    pub(crate) service: Option<Protocol>,
    /// The responder's port.
    pub(crate) port: u16,
    /// The initiator's port.
    pub(crate) from_port: u16,
    /// Whether the flow rides the tunnel already, or a packet of it came out of the tunnel just now.
    pub(crate) tunnelled: bool,
    pub(crate) peers: &'a Peers,
    pub(crate) clock: &'a Clock,
    pub(crate) now: Instant,
}

impl Policy {
    /// What becomes of a flow, at least one of whose ends is here.
    pub(crate) fn judge(&self, ask: &Ask<'_>) -> Judgement {
        match (ask.initiator.here, ask.responder.here) {
            (Some(_), Some(_)) => self.judge_local(ask),
            (_, None) => self.judge_remote(ask, &ask.initiator, &ask.responder),
            (None, _) => self.judge_remote(ask, &ask.responder, &ask.initiator),
        }
    }

    fn entry(&self, end: &End) -> Option<&MemberEntry> {
        match end.who {
            Who::Member(index) => self.member(index),
            Who::Address | Who::Impostor => None,
        }
    }

    /// Between two ports of this gateway.
    fn judge_local(&self, ask: &Ask<'_>) -> Judgement {
        let strictest = ask.initiator.stance.max(ask.responder.stance);
        let mode = |end: &End| self.entry(end).map_or(Mode::Observe, |member| member.mode);
        let path = PairPath::of(mode(&ask.initiator), mode(&ask.responder));
        let found = match path {
            PairPath::None => Err(Refused::because(DropReason::UnknownMode)),
            path => self.rule(ask, path == PairPath::ClearIfRuleSays),
        };
        let verdict = match found {
            Ok(_) if strictest == Mode::Unrecognised => Verdict::Drop(DropReason::UnknownMode),
            Ok(_) => Verdict::Local,
            Err(refused) => {
                let shared = ask.initiator.shared.max(ask.responder.shared);
                self.obstacle(ask, refused.reason, (strictest, shared), Verdict::Local)
            }
        };
        let remote = self.entry(&ask.responder).map(|member| member.id);
        Judgement { verdict, rule: id_of(found), peer: None, remote, old_path: None }
    }

    /// Between a device here and somebody elsewhere.
    fn judge_remote(&self, ask: &Ask<'_>, local: &End, remote: &End) -> Judgement {
        let far = self.entry(remote);
        let judgement = |verdict, rule, peer| Judgement {
            verdict,
            rule,
            peer,
            remote: far.map(|member| member.id),
            old_path: None,
        };
        let refuse = |reason| refuse(local.stance, reason, Verdict::Clear);
        let Some(near) = self.entry(local) else {
            // An unconfirmed station, or an address that isn't the device's.
            return judgement(refuse(DropReason::NotVisible), None, None);
        };
        if local.stance == Mode::Unrecognised {
            return judgement(Verdict::Drop(DropReason::UnknownMode), None, None);
        }
        if far.is_none() && self.is_infrastructure_flow(ask, local, remote) {
            return judgement(Verdict::Clear, None, None);
        }
        let (path, bypassed) = match far {
            Some(far) => self.path(near, far),
            None => (PairPath::with_external(near.mode), false),
        };
        if far.is_some_and(MemberEntry::is_here) && path == PairPath::Tunnel {
            return judgement(refuse(DropReason::LocalSourceFromUplink), None, None);
        }
        let must_say_so = match path {
            PairPath::ClearIfRuleSays => true,
            PairPath::Clear => near.shared >= Mode::Enforce && !bypassed,
            PairPath::Tunnel | PairPath::None => false,
        };
        let found = match (path, far) {
            (PairPath::None, _) => Err(Refused::because(DropReason::UnknownMode)),
            (_, Some(far)) if far.suspended => Err(Refused::because(DropReason::TunnelDown)),
            _ => self.rule(ask, must_say_so),
        };
        let peer = far.filter(|far| !far.is_here()).map(|far| far.gateway);
        let rule = match found {
            Ok(rule) => rule,
            Err(refused) => {
                let reason = match refused.reason {
                    DropReason::NoRule if far.is_none() && !self.in_external(remote.address) => {
                        DropReason::NotVisible
                    }
                    reason => reason,
                };
                let stances = (local.stance, near.shared);
                let verdict = self.obstacle(ask, reason, stances, Verdict::Clear);
                return judgement(verdict, refused.rule, None);
            }
        };
        let (Some(far), Some(gateway)) = (far, peer) else {
            return judgement(Verdict::Clear, Some(rule), None);
        };
        let state = ask.peers.get(&gateway);
        if path == PairPath::Tunnel {
            let verdict = self.tunnel(ask, near, far, state);
            return judgement(verdict, Some(rule), Some(gateway));
        }
        if bypassed {
            // What its gateway still sends through the tunnel is as good as ever.
            let clear = judgement(Verdict::Clear, Some(rule), None);
            return Judgement { old_path: Some(gateway), ..clear };
        }
        // The pair went back to the clear. Until the other end knows that, what rides the tunnel stays there.
        let newest = near.mode_since.max(far.mode_since);
        let lags = state.is_some_and(|s| s.live && s.revision.is_none_or(|held| held < newest));
        let pair = [near, far];
        let before = pair.iter().all(|m| m.left_tunnel.is_some() || m.tunnel_since.is_some());
        if lags && before && ask.tunnelled {
            return judgement(Verdict::Tunnel, Some(rule), Some(gateway));
        }
        // The other end may have sealed a packet just before it heard that this end has changed, too.
        let lately = pair
            .iter()
            .filter_map(|m| m.left_tunnel)
            .any(|at| ask.now.saturating_duration_since(at) < OLD_PATH_OPEN);
        if before && lately {
            let clear = judgement(Verdict::Clear, Some(rule), None);
            return Judgement { old_path: Some(gateway), ..clear };
        }
        judgement(Verdict::Clear, Some(rule), None)
    }

    /// The verdict on an allowed flow whose path is the tunnel.
    fn tunnel(
        &self,
        ask: &Ask<'_>,
        near: &MemberEntry,
        far: &MemberEntry,
        state: Option<&PeerState>,
    ) -> Verdict {
        let live = state.is_some_and(|state| state.live);
        if ask.tunnelled || (live && self.is_ready(near, far, state)) {
            return Verdict::Tunnel;
        }
        if near.mode >= Mode::Enforce || near.shared >= Mode::Enforce {
            let reason = if live { DropReason::TunnelNotReady } else { DropReason::TunnelDown };
            return Verdict::Drop(reason);
        }
        let down = state.is_none_or(|state| {
            !state.live && ask.now.saturating_duration_since(state.since) >= TUNNEL_DOWN
        });
        if down { Verdict::ClearTunnelDown } else { Verdict::Clear }
    }

    /// What becomes of a flow that no rule lets pass. `stances`: with quarantine, and without.
    fn obstacle(
        &self,
        ask: &Ask<'_>,
        reason: DropReason,
        (stance, shared): (Mode, Mode),
        otherwise: Verdict,
    ) -> Verdict {
        match reason {
            DropReason::UnknownMode => Verdict::Drop(reason),
            // A rule that isn't for the clear is still a rule: it is the enforced end that drops then.
            DropReason::ClearNotAllowed => refuse(shared, reason, otherwise),
            // In quarantine nothing passes for want of a rule, whatever the mode.
            DropReason::NoRule | DropReason::NotVisible if self.is_quarantined(ask) => {
                Verdict::Drop(DropReason::Quarantined)
            }
            _ if self.is_quarantined(ask) => Verdict::Drop(reason),
            _ => refuse(stance, reason, otherwise),
        }
    }

    fn is_quarantined(&self, ask: &Ask<'_>) -> bool {
        [&ask.initiator, &ask.responder]
            .into_iter()
            .any(|end| self.entry(end).is_some_and(|member| member.quarantined))
    }

    /// Whether the other end has taken over the revision that opens the tunnel to the pair.
    fn is_ready(&self, near: &MemberEntry, far: &MemberEntry, state: Option<&PeerState>) -> bool {
        let (Some(a), Some(b)) = (near.tunnel_since, far.tunnel_since) else { return false };
        let held = state.and_then(|state| state.revision);
        held.is_some_and(|held| held >= a.max(b))
    }

    fn rule(&self, ask: &Ask<'_>, clear: bool) -> Result<anteroom_proto::id::RuleId, Refused> {
        let Some(protocol) = ask.service else {
            return Err(Refused::because(DropReason::OtherProtocol));
        };
        let essential = self.is_quarantined(ask);
        self.rules.find(
            (ask.initiator.who, ask.initiator.address),
            (ask.responder.who, ask.responder.address),
            (protocol, ask.port),
            Needs { clear, essential },
            Self::now(ask.clock, ask.now),
        )
    }

    /// Whether a device asks one of the site's servers. Servers don't ask devices.
    fn is_infrastructure_flow(&self, ask: &Ask<'_>, local: &End, remote: &End) -> bool {
        let asks = ask.initiator == *local;
        asks && ask.service.is_some_and(|protocol| {
            infrastructure::covers(
                self.infrastructure(),
                protocol,
                ask.from_port,
                remote.address,
                ask.port,
            )
        })
    }
}

fn id_of(found: Result<anteroom_proto::id::RuleId, Refused>) -> Option<anteroom_proto::id::RuleId> {
    found.map_or_else(|refused| refused.rule, Some)
}
