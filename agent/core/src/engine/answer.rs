//! Why: what would become of a flow, and what to do about it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::mode::PairPath;
use anteroom_proto::service::Protocol;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::Engine;
use crate::flow::Judgement;
use crate::policy::{Ask, End, Policy, Who};
use crate::report::{Explanation, FlowInfo, Party, Question};
use crate::station::{Share, StationId};
use crate::wire::FiveTuple;

/// A port that stands for "any" on the initiator's side.
const ANY_PORT: u16 = 49_152;
/// Most flows that are looked through for the one that is asked about: packets wait meanwhile.
const LOOKED_THROUGH: usize = 32_768;

impl Engine {
    /// What would become of a flow, and why.
    #[must_use]
    pub fn explain(&self, question: &Question, now: Instant) -> Explanation {
        let (from, to) = (self.end_at(question.from), self.end_at(question.to));
        let local = from.here.or(to.here);
        let judgement = match (&self.policy, local) {
            (Some(policy), Some(_)) => policy.judge(&Ask {
                initiator: from,
                responder: to,
                service: Some(question.service.protocol),
                port: question.service.first,
                from_port: ANY_PORT,
                // A client has no other way to ask.
                tunnelled: self.is_client(&from),
                peers: &self.peer_states,
                clock: &self.clock,
                now,
            }),
            (policy, _) => {
                let wire = policy.is_none();
                let verdict =
                    if wire { Verdict::Clear } else { Verdict::Drop(DropReason::NotVisible) };
                Judgement::of(verdict, None)
            }
        };
        let fits = |tuple: &FiveTuple| {
            let there = (tuple.source, tuple.destination) == (question.from, question.to);
            let back = (tuple.destination, tuple.source) == (question.from, question.to);
            tuple.protocol == question.service.protocol.number()
                && ((there && question_port(question, tuple.destination_port))
                    || (back && question_port(question, tuple.source_port)))
        };
        let last_drop =
            local.and_then(|station| self.recorder.last_drop(station, &self.clock, fits));
        let flow = self.fitting_flow(question, [&from, &to], now);
        let gateway = judgement.peer.or_else(|| self.gateway_of(&from).or(self.gateway_of(&to)));
        let tunnel = gateway
            .and_then(|gateway| self.tunnels(now).into_iter().find(|t| t.gateway == gateway));
        let (mut because, mut next_step) = self.sentences(&judgement, local);
        if self.is_bypassed(&from, &to) && judgement.verdict.passes() {
            "A rule allows it, and it goes in the clear: a gateway between them is bypassed."
                .clone_into(&mut because);
            "Put the gateway back or replace it, then: anteroom gateway bypass NAME --end."
                .clone_into(&mut next_step);
        }
        Explanation {
            question: question.clone(),
            from: self.party(&from),
            to: self.party(&to),
            verdict: judgement.verdict,
            rule: judgement.rule,
            path: self.path(&from, &to).to_owned(),
            tunnel,
            flow,
            last_drop,
            because,
            next_step,
        }
    }

    /// The end that an address stands for: a device here if it is one's own, or was seen as one's.
    fn end_at(&self, address: Ipv4Addr) -> End {
        let who = self.who(address);
        let confirmed = match (&self.policy, who) {
            (Some(policy), Who::Member(index)) => policy.member(index).and_then(|m| m.station),
            _ => None,
        };
        let is_member = matches!(who, Who::Member(_));
        let seen = || -> Option<StationId> {
            let mut stations = self.stations.iter();
            let sighted = stations.find(|(_, station)| {
                station.device.is_none()
                    && station.sights.iter().any(|sight| sight.addresses.contains(&address))
            });
            sighted.map(|(id, _)| id)
        };
        match confirmed.or_else(|| if is_member { None } else { seen() }) {
            Some(id) => self.end_here(id, address),
            None => End::elsewhere(address, who),
        }
    }

    fn gateway_of(&self, end: &End) -> Option<anteroom_proto::id::GatewayId> {
        let Who::Member(index) = end.who else { return None };
        let member = self.policy.as_ref()?.member(index)?;
        (!member.is_here()).then_some(member.gateway)
    }

    /// The last used flow that a question is about, of those that its ends here and unconfirmed stations have.
    fn fitting_flow(&self, question: &Question, ends: [&End; 2], now: Instant) -> Option<FlowInfo> {
        let own = ends.into_iter().filter_map(|end| end.here).map(|id| self.stations.share(id));
        let unconfirmed = (0..).map(Share).take(self.stations.ports.len());
        let shares: BTreeSet<Share> = own.chain(unconfirmed).collect();
        let flow = shares
            .into_iter()
            .flat_map(|share| self.flows.of_share(share).map(|(_, flow)| flow))
            .take(LOOKED_THROUGH)
            .filter(|flow| {
                let tuple = flow.tuple();
                tuple.source == question.from
                    && tuple.destination == question.to
                    && tuple.protocol == question.service.protocol.number()
                    && question_port(question, tuple.destination_port)
            })
            .max_by_key(|flow| flow.last)?;
        self.flow_info(flow, now)
    }

    fn party(&self, end: &End) -> Party {
        let Some(policy) = &self.policy else { return Party::Unknown };
        let member = match end.who {
            Who::Member(index) => policy.member(index),
            Who::Address | Who::Impostor => None,
        };
        match (member, end.here) {
            (Some(member), Some(here)) => {
                let port = self.stations.get(here).and_then(|s| self.port_name(s.port));
                port.map_or(Party::Unknown, |port| Party::Device {
                    member: member.id,
                    port,
                    mode: member.mode,
                    quarantined: member.quarantined,
                })
            }
            (Some(member), None) => Party::Member {
                member: member.id,
                gateway: member.gateway,
                mode: member.mode,
                quarantined: member.quarantined,
            },
            (None, _) if policy.is_infrastructure(end.address) => Party::Infrastructure,
            (None, _) if policy.in_external(end.address) => Party::External,
            (None, _) => Party::Unknown,
        }
    }

    /// Whether the two meet in the clear because a gateway is out of the wire.
    fn is_bypassed(&self, from: &End, to: &End) -> bool {
        let Some(policy) = &self.policy else { return false };
        let member = |end: &End| match end.who {
            Who::Member(index) => policy.member(index),
            Who::Address | Who::Impostor => None,
        };
        let (near, far) = if from.here.is_some() { (from, to) } else { (to, from) };
        match (member(near), member(far)) {
            (Some(near), Some(far)) => policy.path(near, far).1,
            _ => false,
        }
    }

    fn is_client(&self, end: &End) -> bool {
        let (Some(policy), Who::Member(index)) = (&self.policy, end.who) else { return false };
        policy.member(index).is_some_and(|member| member.is_client)
    }

    /// The path of a device here and a client, if the other is one.
    fn client_path(&self, from: &End, to: &End) -> Option<&'static str> {
        let policy = self.policy.as_ref()?;
        let (near, far) = if from.here.is_some() { (from, to) } else { (to, from) };
        let (Who::Member(near), Who::Member(far)) = (near.who, far.who) else { return None };
        let (near, far) = (policy.member(near)?, policy.member(far)?);
        let tunnel = policy.path(near, far).0 == PairPath::Tunnel;
        far.is_client.then_some(if tunnel { "tunnel" } else { "none" })
    }

    fn path(&self, from: &End, to: &End) -> &'static str {
        let mode = |policy: &Policy, end: &End| match end.who {
            Who::Member(index) => policy.member(index).map(|member| member.mode),
            Who::Address | Who::Impostor => None,
        };
        match (&self.policy, from.here, to.here) {
            (_, Some(_), Some(_)) => "local",
            (None, ..) => "clear",
            (Some(_), None, None) => "none",
            (Some(policy), ..) => {
                use anteroom_proto::mode::Mode::Observe;
                if self.is_bypassed(from, to) {
                    return "clear-by-bypass";
                }
                if let Some(path) = self.client_path(from, to) {
                    return path;
                }
                let a = mode(policy, from).unwrap_or(Observe);
                let b = mode(policy, to).unwrap_or(Observe);
                match PairPath::of(a, b) {
                    PairPath::Clear => "clear",
                    PairPath::ClearIfRuleSays => "clear-if-rule-says",
                    PairPath::Tunnel => "tunnel",
                    PairPath::None => "none",
                }
            }
        }
    }

    fn sentences(&self, judgement: &Judgement, local: Option<StationId>) -> (String, String) {
        let nothing = || "Nothing needs to be done.".to_owned();
        if self.policy.is_none() {
            let because = "This gateway has no approved view yet: it is a wire.".to_owned();
            let step = "Approve it: anteroom gateway pending, then anteroom gateway approve.";
            return (because, step.to_owned());
        }
        if local.is_none() {
            let because = "Neither address is a device of this gateway.".to_owned();
            return (because, "Ask at the gateway of one of the two.".to_owned());
        }
        let rule = judgement.rule.map_or_else(String::new, |rule| format!(" ({rule})"));
        match judgement.verdict {
            Verdict::Tunnel => (format!("A rule allows it{rule}, and the tunnel is up."), nothing()),
            Verdict::Local if judgement.rule.is_some() => {
                (format!("A rule allows it{rule}, and both are on ports of this gateway."), nothing())
            }
            Verdict::Clear if judgement.peer.is_some() => (
                format!(
                    "A rule allows it{rule}; it goes in the clear until both gateways have taken over the revision that opens the tunnel."
                ),
                "Wait for the other gateway, or see anteroom status.".to_owned(),
            ),
            Verdict::Clear | Verdict::Local if judgement.rule.is_none() => (
                "The device is observed, or the other end is infrastructure: it passes in the clear."
                    .to_owned(),
                nothing(),
            ),
            Verdict::Clear | Verdict::Local => {
                (format!("A rule allows it{rule}, and its path is in the clear."), nothing())
            }
            Verdict::ClearTunnelDown => (
                format!(
                    "A rule allows it{rule}; the tunnel is down, and a protected device goes on in the clear."
                ),
                "Find out why the other gateway isn't reachable: anteroom status.".to_owned(),
            ),
            Verdict::WouldDrop(reason) => (
                format!("{} It passes only because the device isn't enforced.", reason.explanation()),
                next_step(reason).to_owned(),
            ),
            Verdict::Drop(reason) => {
                (format!("{}{rule}", reason.explanation()), next_step(reason).to_owned())
            }
        }
    }
}

fn question_port(question: &Question, port: u16) -> bool {
    question.service.protocol == Protocol::IcmpEcho
        || (question.service.first..=question.service.last).contains(&port)
}

/// What a person can do about a drop.
const fn next_step(reason: DropReason) -> &'static str {
    match reason {
        DropReason::NoRule | DropReason::NotVisible => {
            "If it should be allowed, add a rule to the policy: anteroom policy plan, then apply."
        }
        DropReason::ClearNotAllowed => {
            "Put the other end behind a gateway, or say clear = true in the rule."
        }
        DropReason::Quarantined => "Release the device, or mark the rule essential.",
        DropReason::Expired => "Give the rule a later end, and apply the policy.",
        DropReason::TimeUnknown => {
            "Let the gateway reach its controller or a peer, which tells it the time."
        }
        DropReason::ClientOfObserved => "Take the device to protect: anteroom device mode.",
        DropReason::UnknownCondition | DropReason::UnknownMode => "Update this gateway's agent.",
        DropReason::TunnelDown => {
            "Find out why the other gateway isn't reachable: anteroom status, and the underlay's firewalls."
        }
        DropReason::TunnelNotReady => {
            "Wait until the other gateway has taken over the revision: anteroom status."
        }
        _ => "See anteroom flows --dropped for what was dropped beside it.",
    }
}
