//! The verdict on a flow.

use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::mode::{Mode, PairPath};
use anteroom_proto::service::Protocol;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::path::{Pair, Peers};
use super::rules::Needs;
use super::{MemberEntry, Policy, Refused, Who};
use crate::clock::Clock;
use crate::flow::Judgement;
use crate::infrastructure;
use crate::station::StationId;

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
        Judgement { remote, ..Judgement::of(verdict, id_of(found)) }
    }

    /// Between a device here and somebody elsewhere.
    fn judge_remote(&self, ask: &Ask<'_>, local: &End, remote: &End) -> Judgement {
        let far = self.entry(remote);
        let judgement = |verdict, rule, peer| Judgement {
            verdict,
            rule,
            peer,
            remote: far.map(|member| member.id),
            owner: None,
            clear_taken: false,
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
            (PairPath::None, Some(far)) if far.is_client && near.mode == Mode::Observe => {
                let reason = DropReason::ClientOfObserved;
                self.rule(ask, false).and_then(|rule| Err(Refused { reason, rule: Some(rule) }))
            }
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
                // What a gateway's tunnel brings could come in the clear as well; a client's has no other way.
                let is_client = far.is_some_and(|far| far.is_client);
                let owner = peer.filter(|_| !is_client);
                let verdict = match verdict {
                    Verdict::Drop(_) => verdict,
                    _ if is_client && ask.tunnelled => Verdict::Drop(reason),
                    _ => verdict,
                };
                return Judgement { owner, ..judgement(verdict, refused.rule, None) };
            }
        };
        let (Some(far), Some(gateway)) = (far, peer) else {
            return judgement(Verdict::Clear, Some(rule), None);
        };
        if bypassed {
            // What its gateway still sends through the tunnel is as good as ever.
            let clear = judgement(Verdict::Clear, Some(rule), None);
            return Judgement { owner: Some(gateway), ..clear };
        }
        let route = self.route(ask, Pair { near, far, path });
        let tunnels = path == PairPath::Tunnel || route.verdict == Verdict::Tunnel;
        Judgement {
            owner: Some(gateway),
            clear_taken: route.clear_taken,
            ..judgement(route.verdict, Some(rule), tunnels.then_some(gateway))
        }
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

    /// The rule that allows a flow. `clear`: it must say `clear = true`.
    pub(super) fn rule(
        &self,
        ask: &Ask<'_>,
        clear: bool,
    ) -> Result<anteroom_proto::id::RuleId, Refused> {
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
