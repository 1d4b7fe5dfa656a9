//! Recorded traffic that passes today and that the new model would drop.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anteroom_proto::api::Edge;
use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::WouldBreak;
use crate::decide::{End, Flow, Party, candidates, decide};
use crate::lint::{Finding, Severity};
use crate::names::Names;
use crate::parties::label;
use crate::resolve::Resolved;

pub(super) fn between(
    before: &Resolved,
    after: &Resolved,
    edges: &[Edge],
    now: UnixMillis,
) -> Vec<WouldBreak> {
    let (old, new) = (Names::of(&before.model), Names::of(&after.model));
    // Both gateways of a pair report the same flows: the larger count stands.
    let mut found: BTreeMap<(String, String, String), WouldBreak> = BTreeMap::new();
    for edge in edges.iter().filter(|edge| edge.verdict.passes()) {
        let Some(own) = own(edge, &new) else { continue };
        let was_dropped =
            self::own(edge, &old).is_some_and(|own| reason(before, edge, own, now).is_some());
        let Some((reason, from, to)) = reason(after, edge, own, now).filter(|_| !was_dropped)
        else {
            continue;
        };
        let service = new.service(edge.protocol, edge.port);
        let essential = essential(before, edge, &old, now);
        let key = (from.clone(), to.clone(), service.clone());
        let line = found.entry(key).or_insert(WouldBreak {
            from,
            to,
            service,
            reason,
            flows: 0,
            last: edge.last,
            essential: None,
        });
        line.essential = line.essential.take().or(essential);
        line.flows = line.flows.max(edge.flows);
        line.last = line.last.max(edge.last);
    }
    let mut found: Vec<WouldBreak> = found.into_values().collect();
    found.sort_by_key(|line| (line.essential.is_none(), std::cmp::Reverse(line.flows)));
    found
}

/// What stops a plan that breaks this, where it is essential.
pub(super) fn refusal(broken: &WouldBreak) -> Option<Finding> {
    let rule = broken.essential.as_ref()?;
    let WouldBreak { from, to, service, flows, reason, .. } = broken;
    Some(Finding {
        severity: Severity::Refusal,
        code: "breaks-essential".to_owned(),
        subject: format!("rule.{rule}"),
        message: format!(
            "It is essential, and {service} from {from} to {to}, of which {flows} flows were recorded, would be \
             dropped. {reason} Keep a rule for it, or go on all the same with --force --reason WHY."
        ),
    })
}

/// The essential rule that carries an edge, where one does.
fn essential(resolved: &Resolved, edge: &Edge, names: &Names, now: UnixMillis) -> Option<String> {
    let flow = flow(resolved, edge, own(edge, names)?)?;
    let mut found: Option<usize> = None;
    candidates(resolved, &flow, &mut |place, rule| {
        if rule.essential && !rule.expired(now) && found.is_none_or(|before| place < before) {
            found = Some(place);
        }
    });
    found.and_then(|place| resolved.rules.get(place)).map(|rule| rule.name.to_string())
}

/// What was opened, as a model knows its ends; none of what no rule can carry.
fn flow(resolved: &Resolved, edge: &Edge, own: MemberId) -> Option<Flow> {
    let protocol = match edge.protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        1 => Protocol::IcmpEcho,
        _ => return None,
    };
    let far = remote(resolved, edge, own)?;
    let near = Party::Member(own);
    let (from, to) = if edge.outbound { (near, far) } else { (far, near) };
    Some(Flow { from, to, protocol, port: edge.port })
}

/// The device on the reporting gateway's side.
fn own(edge: &Edge, names: &Names) -> Option<MemberId> {
    edge.member.or_else(|| names.member_of(edge.gateway, edge.mac))
}

/// The other end of an edge, as a model knows it.
pub(crate) fn remote(resolved: &Resolved, edge: &Edge, own: MemberId) -> Option<Party> {
    let IpAddr::V4(address) = edge.remote else { return None };
    let known = edge.remote_member.filter(|id| resolved.site_of(*id).is_some());
    let here = || resolved.site_of(own).and_then(|site| resolved.member_at(site, address));
    Some(known.or_else(here).map_or(Party::Address(address), Party::Member))
}

/// Why `resolved` drops the flows of an edge, in a sentence, with both ends in the order of opening.
fn reason(
    resolved: &Resolved,
    edge: &Edge,
    own: MemberId,
    now: UnixMillis,
) -> Option<(String, String, String)> {
    // Without an approved gateway there is nothing that could drop it.
    resolved.site_of(own)?;
    let device = resolved.model.devices.get(&own)?;
    let ordered = |far: String| {
        let near = device.name.to_string();
        if edge.outbound { (near, far) } else { (far, near) }
    };
    let uncarried = match (edge.remote, edge.protocol) {
        (IpAddr::V6(_), _) => Some(DropReason::Ipv6),
        (IpAddr::V4(address), _) if address.is_multicast() || address.is_broadcast() => {
            Some(DropReason::Broadcast)
        }
        (IpAddr::V4(_), 1 | 6 | 17) => None,
        (IpAddr::V4(_), _) => Some(DropReason::OtherProtocol),
    };
    if let Some(reason) = uncarried {
        // DHCP begins with a broadcast, which passes where the site names its servers.
        let site = resolved.site_of(own);
        let infrastructure = site.and_then(|site| resolved.policy.infrastructure.get(site));
        let dhcp = edge.protocol == 17
            && matches!(edge.port, 67 | 68)
            && infrastructure.is_some_and(|found| !found.dhcp.is_empty());
        if device.mode != Mode::Enforce || dhcp {
            return None;
        }
        let (from, to) = ordered(edge.remote.to_string());
        return Some((reason.explanation().to_owned(), from, to));
    }
    let flow = flow(resolved, edge, own)?;
    let decision = decide(resolved, &flow, now);
    let Verdict::Drop(reason) = decision.verdict else { return None };
    let (from, to) = (label(resolved, flow.from), label(resolved, flow.to));
    let at = match decision.dropped_at {
        Some(End::To) => &to,
        _ => &from,
    };
    Some((format!("Dropped in front of {at}: {}", reason.explanation()), from, to))
}
