//! The reference decision: what a model does with a flow, judged at both ends.
//!
//! Each end judges by what its own gateway's view holds, as DESIGN's matrix of modes has it, and the stricter
//! verdict stands. This is what tests, plans and `why` rely on, and what the packet engine must agree with.

use std::net::Ipv4Addr;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mode::{Mode, PairPath};
use anteroom_proto::name::Name;
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::{DropReason, Verdict};

use crate::model::Device;
use crate::resolve::{Resolved, ResolvedRule};

#[cfg(test)]
mod tests;

/// One end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A member.
    Member(MemberId),
    /// An address that is no member's.
    Address(Ipv4Addr),
}

/// A flow to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Who opens it.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// The protocol.
    pub protocol: Protocol,
    /// The responder's port; 0 for ICMP echo.
    pub port: u16,
}

/// What becomes of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What happens: the stricter of what both ends do.
    pub verdict: Verdict,
    /// The rule that allows it, or would but for the reason in the verdict.
    pub rule: Option<Name>,
    /// Whether that rule is essential.
    pub essential: bool,
    /// The end that drops it, or would, where one does.
    pub dropped_at: Option<End>,
    /// Whether any gateway stands between the two at all: two devices on one port of a gateway, and two
    /// addresses without one, talk as they like.
    pub guarded: bool,
    /// Whether it passes as infrastructure of the site (DHCP, DNS, NTP), which needs no rule.
    pub infrastructure: bool,
}

/// An end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The end that opens.
    From,
    /// The end that answers.
    To,
}

/// What one end makes of a flow.
#[derive(Debug, Clone, Copy)]
struct Judgement<'a> {
    verdict: Verdict,
    /// The rule that lets it pass, or the one that comes nearest.
    rule: Option<&'a ResolvedRule>,
    /// Whether the rule lets it pass.
    opened: bool,
    infrastructure: bool,
}

/// Decides on `flow` at `now`, with every tunnel up and every gateway up to date.
#[must_use]
pub fn decide(resolved: &Resolved, flow: &Flow, now: UnixMillis) -> Decision {
    let from = attached(resolved, flow.from);
    let to = attached(resolved, flow.to);
    let neighbours = matches!((from, to), (Some((a, _)), Some((b, _))) if same_port(a, b));
    if neighbours || (from.is_none() && to.is_none()) {
        let verdict = Verdict::Clear;
        return Decision {
            verdict,
            rule: None,
            essential: false,
            dropped_at: None,
            guarded: false,
            infrastructure: false,
        };
    }
    let ends = [
        (
            End::From,
            from.map(|(own, gateway)| {
                judge(resolved, flow, End::From, (own, own.mode), gateway, now)
            }),
        ),
        (
            End::To,
            to.map(|(own, gateway)| judge(resolved, flow, End::To, (own, own.mode), gateway, now)),
        ),
    ];
    let present = ends.iter().filter_map(|(end, found)| found.map(|found| (*end, found)));
    let strictness = |judgement: &Judgement<'_>| match judgement.verdict {
        Verdict::Drop(_) => 3,
        Verdict::WouldDrop(_) => 2,
        Verdict::Clear | Verdict::ClearTunnelDown => 1,
        Verdict::Tunnel | Verdict::Local => 0,
    };
    // Of two that are equally strict the end that opens comes first: it drops before anything leaves.
    let strictest =
        present.clone().reduce(|a, b| if strictness(&b.1) > strictness(&a.1) { b } else { a });
    let (end, judgement) = strictest.unwrap_or((
        End::From,
        Judgement { verdict: Verdict::Clear, rule: None, opened: false, infrastructure: false },
    ));
    // An observed end lets pass what its rules don't; where the other end has a rule for it, that one is cited.
    let rule = present
        .clone()
        .filter(|(_, found)| found.opened && strictness(found) == strictness(&judgement))
        .find_map(|(_, found)| found.rule)
        .or(judgement.rule)
        .or_else(|| present.clone().find_map(|(_, found)| found.rule));
    Decision {
        verdict: judgement.verdict,
        rule: rule.map(|rule| rule.name.clone()),
        essential: rule.is_some_and(|rule| rule.essential),
        dropped_at: judgement.verdict.reason().map(|_| end),
        guarded: true,
        infrastructure: judgement.infrastructure,
    }
}

/// Why the gateway at `end` would record the flow as would-drop at `now`, were its device in protect, the others in the modes that
/// they are in; none where a rule allows it, where there is no gateway, or between two on one port.
#[must_use]
pub fn would_drop(
    resolved: &Resolved,
    flow: &Flow,
    end: End,
    now: UnixMillis,
) -> Option<DropReason> {
    let (near, far) = match end {
        End::From => (flow.from, flow.to),
        End::To => (flow.to, flow.from),
    };
    let (device, gateway) = attached(resolved, near)?;
    if attached(resolved, far).is_some_and(|(other, _)| same_port(device, other)) {
        return None;
    }
    judge(resolved, flow, end, (device, Mode::Protect), gateway, now).verdict.reason()
}

/// The first rule that allows the flow at `now`, whatever the modes: what policy means by "allowed".
#[must_use]
pub fn permits<'a>(
    resolved: &'a Resolved,
    flow: &Flow,
    now: UnixMillis,
) -> Option<&'a ResolvedRule> {
    let mut best: Option<usize> = None;
    candidates(resolved, flow, &mut |place, rule| {
        if !rule.expired(now) && best.is_none_or(|found| place < found) {
            best = Some(place);
        }
    });
    best.map(|place| &resolved.rules[place])
}

/// The first rule marked essential, of those in force, that carries a flow.
pub(crate) fn essential<'a>(
    resolved: &'a Resolved,
    flow: &Flow,
    now: UnixMillis,
) -> Option<&'a ResolvedRule> {
    let mut first: Option<usize> = None;
    candidates(resolved, flow, &mut |place, rule| {
        if rule.essential && !rule.expired(now) && first.is_none_or(|before| place < before) {
            first = Some(place);
        }
    });
    resolved.rules.get(first?)
}

/// Calls `found` with each rule that matches both ends and the port, in no order, some more than once.
pub(crate) fn candidates<'a>(
    resolved: &'a Resolved,
    flow: &Flow,
    found: &mut dyn FnMut(usize, &'a ResolvedRule),
) {
    let mut consider = |place: usize, far_is_to: bool, far: Party| {
        let rule = &resolved.rules[place];
        let side = if far_is_to { rule.to } else { rule.from };
        let holds = match far {
            Party::Member(id) => resolved.side(side).members.binary_search(&id).is_ok(),
            Party::Address(address) => resolved.external_holds(side, address),
        };
        if holds && rule.opens(flow.protocol, flow.port) {
            found(place, rule);
        }
    };
    match (flow.from, flow.to) {
        (Party::Member(own), far) => {
            for side in resolved.sides_of(own) {
                for place in &resolved.side(*side).from_rules {
                    consider(*place, true, far);
                }
            }
        }
        (far, Party::Member(own)) => {
            for side in resolved.sides_of(own) {
                for place in &resolved.side(*side).to_rules {
                    consider(*place, false, far);
                }
            }
        }
        (Party::Address(_), Party::Address(_)) => {}
    }
}

/// A device with its gateway, where the party is one that an approved gateway stands in front of.
fn attached(resolved: &Resolved, party: Party) -> Option<(&Device, GatewayId)> {
    let Party::Member(id) = party else { return None };
    let device = resolved.model.devices.get(&id)?;
    let gateway = device.attachment.gateway;
    resolved.model.gateways.contains_key(&gateway).then_some((device, gateway))
}

fn same_port(a: &Device, b: &Device) -> bool {
    a.attachment.gateway == b.attachment.gateway && a.attachment.port == b.attachment.port
}

/// The address by which a gateway that doesn't know a member would see it.
fn address_of(device: &Device) -> Option<Ipv4Addr> {
    let fixed = device.addresses.iter().find(|net| net.prefix_len() == 32);
    fixed.or(device.addresses.first()).map(ipnet::Ipv4Net::addr)
}

/// What the gateway in front of one end makes of the flow, were its device in `mode`.
fn judge<'a>(
    resolved: &'a Resolved,
    flow: &Flow,
    end: End,
    (own, mode): (&Device, Mode),
    gateway: GatewayId,
    now: UnixMillis,
) -> Judgement<'a> {
    let far = match end {
        End::From => flow.to,
        End::To => flow.from,
    };
    // What the view holds decides: a member that shares no rule is just an address from here.
    let client = match far {
        Party::Member(id) => {
            resolved.model.clients.get(&id).map(|client| (client, resolved.sees(gateway, id)))
        }
        Party::Address(_) => None,
    };
    let shares_a_rule = client.is_some_and(|(_, shares_a_rule)| shares_a_rule);
    let known = match far {
        Party::Member(id) => resolved
            .model
            .devices
            .get(&id)
            .filter(|far| far.attachment.gateway == gateway || resolved.sees(gateway, id)),
        Party::Address(_) => None,
    };
    let far = match (far, known) {
        (far, None) if shares_a_rule => far,
        (_, None) if client.is_some() => {
            client.map_or(far, |(client, _)| Party::Address(client.address))
        }
        (Party::Member(id), None) => match resolved.model.devices.get(&id).and_then(address_of) {
            Some(address) => Party::Address(address),
            None => Party::Member(id),
        },
        (far, _) => far,
    };
    let seen = match end {
        End::From => Flow { to: far, ..*flow },
        End::To => Flow { from: far, ..*flow },
    };
    let stranger = known.is_none() && !shares_a_rule;
    if end == End::From && stranger && is_infrastructure(resolved, gateway, &seen) {
        return Judgement {
            verdict: Verdict::Clear,
            rule: None,
            opened: false,
            infrastructure: true,
        };
    }
    let without_gateway =
        if shares_a_rule { PairPath::with_client(mode) } else { PairPath::with_external(mode) };
    let view = View {
        own: mode,
        path: known.map_or(without_gateway, |far| {
            let is_out =
                |device: &Device| resolved.model.bypassed(device.attachment.gateway, now).is_some();
            match PairPath::of(mode, far.mode) {
                PairPath::Tunnel if is_out(own) || is_out(far) => PairPath::Clear,
                path => path,
            }
        }),
        local: known.is_some_and(|far| far.attachment.gateway == gateway),
        quarantined: own.quarantined || known.is_some_and(|far| far.quarantined),
        stranger,
        client: shares_a_rule,
        // A client has no way to a device but through its gateway's tunnel: what isn't allowed there goes nowhere.
        tunnel_only: end == End::To && client.is_some(),
    };
    view.judge(resolved, &seen, now)
}

/// Whether a device opens the flow to a server of its site's infrastructure. Quarantine leaves that open: it is
/// part of keeping an address and the time.
pub(crate) fn is_infrastructure(resolved: &Resolved, gateway: GatewayId, flow: &Flow) -> bool {
    let Party::Address(server) = flow.to else { return false };
    let site = resolved.model.gateways.get(&gateway).map(|gateway| &gateway.site);
    let Some(found) = site.and_then(|site| resolved.policy.infrastructure.get(site)) else {
        return false;
    };
    match (flow.protocol, flow.port) {
        (Protocol::Udp, 67) => found.dhcp.contains(&server),
        (Protocol::Udp | Protocol::Tcp, 53) => found.dns.contains(&server),
        (Protocol::Udp, 123) => found.ntp.contains(&server),
        _ => false,
    }
}

/// What one end knows of a flow's pair.
#[derive(Debug, Clone, Copy)]
struct View {
    own: Mode,
    path: PairPath,
    local: bool,
    quarantined: bool,
    stranger: bool,
    /// The far end is a client that the gateway knows.
    client: bool,
    /// The far end opens, and can't do so in the clear.
    tunnel_only: bool,
}

impl View {
    fn judge<'a>(self, resolved: &'a Resolved, flow: &Flow, now: UnixMillis) -> Judgement<'a> {
        // The first rule that lets it pass is cited; failing that, the one that comes nearest.
        let mut best: Option<(Option<DropReason>, usize)> = None;
        candidates(resolved, flow, &mut |place, rule| {
            let found = (self.obstacle(rule, now), place);
            if best.is_none_or(|best| (nearness(found.0), found.1) < (nearness(best.0), best.1)) {
                best = Some(found);
            }
        });
        let rule = best.map(|(_, place)| &resolved.rules[place]);
        let obstacle = match best {
            Some((obstacle, _)) => obstacle,
            None if self.path == PairPath::None && !self.client => Some(DropReason::UnknownMode),
            None if self.quarantined => Some(DropReason::Quarantined),
            None if self.stranger => Some(DropReason::NotVisible),
            None => Some(DropReason::NoRule),
        };
        let opened = rule.is_some() && obstacle.is_none();
        Judgement { verdict: self.verdict(obstacle), rule, opened, infrastructure: false }
    }

    /// Why a matching rule doesn't let the flow pass after all.
    fn obstacle(self, rule: &ResolvedRule, now: UnixMillis) -> Option<DropReason> {
        let observed = self.client && self.own == Mode::Observe;
        if self.path == PairPath::None && !observed {
            Some(DropReason::UnknownMode)
        } else if self.quarantined && !rule.essential {
            Some(DropReason::Quarantined)
        } else if rule.expired(now) {
            Some(DropReason::Expired)
        } else if observed {
            Some(DropReason::ClientOfObserved)
        } else if self.path == PairPath::ClearIfRuleSays && !rule.clear {
            Some(DropReason::ClearNotAllowed)
        } else {
            None
        }
    }

    fn verdict(self, obstacle: Option<DropReason>) -> Verdict {
        match (obstacle, self.own) {
            (None, _) if self.local => Verdict::Local,
            (None, _) if self.path == PairPath::Tunnel => Verdict::Tunnel,
            (None, _) => Verdict::Clear,
            (Some(reason @ DropReason::UnknownMode), _) => Verdict::Drop(reason),
            (Some(reason), _) if self.tunnel_only => Verdict::Drop(reason),
            // In quarantine nothing passes for want of a rule. A rule that isn't for the clear is still a rule: it is
            // the enforced end that drops then.
            (Some(reason), _) if self.quarantined && reason != DropReason::ClearNotAllowed => {
                Verdict::Drop(reason)
            }
            (Some(_), Mode::Observe) if self.local => Verdict::Local,
            (Some(_), Mode::Observe) => Verdict::Clear,
            (Some(reason), Mode::Protect) => Verdict::WouldDrop(reason),
            (Some(reason), Mode::Enforce | Mode::Unrecognised) => Verdict::Drop(reason),
        }
    }
}

/// How near a rule came to letting a flow pass: the smaller the nearer.
fn nearness(obstacle: Option<DropReason>) -> u8 {
    match obstacle {
        None => 0,
        Some(DropReason::ClearNotAllowed | DropReason::ClientOfObserved) => 1,
        Some(DropReason::Quarantined) => 2,
        Some(DropReason::Expired) => 3,
        Some(_) => 4,
    }
}
