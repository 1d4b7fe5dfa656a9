//! Clients that rules open more to than can be carried.

use std::collections::BTreeSet;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;
use ipnet::Ipv4Net;

use super::policy::mode;
use super::{Findings, Severity};
use crate::parties::{member_label, some_of};
use crate::reach::{reach, reachable_at};
use crate::resolve::{Resolved, ResolvedRule, Side};

pub(super) fn check(resolved: &Resolved, now: UnixMillis, findings: &mut Findings) {
    if resolved.model.clients.is_empty() {
        return;
    }
    for rule in resolved.rules.iter().filter(|rule| !rule.expired(now)) {
        let (from, to) = (resolved.side(rule.from), resolved.side(rule.to));
        between(resolved, rule, from, to, findings);
        if rule.from != rule.to {
            between(resolved, rule, to, from, findings);
        }
    }
    for client in resolved.model.clients.keys() {
        ambiguous(resolved, *client, now, findings);
    }
}

fn names(resolved: &Resolved, members: &[MemberId]) -> String {
    let names: Vec<String> = members.iter().map(|id| member_label(resolved, *id)).collect();
    some_of(&names, 4)
}

/// What a rule opens between the clients at one of its ends and whoever is at the other.
fn between(
    resolved: &Resolved,
    rule: &ResolvedRule,
    near: &Side,
    far: &Side,
    findings: &mut Findings,
) {
    let is_client = |id: &&MemberId| resolved.model.clients.contains_key(id);
    let clients: Vec<MemberId> = near.members.iter().filter(is_client).copied().collect();
    if clients.is_empty() {
        return;
    }
    let clients = names(resolved, &clients);
    let subject = format!("rule.{}", rule.name);
    let mut add = |code, message: String| findings.add(Severity::Warning, code, &subject, message);
    let (others, devices): (Vec<MemberId>, Vec<MemberId>) =
        far.members.iter().copied().partition(|id| is_client(&id));
    if devices.is_empty() && (!others.is_empty() || !far.externals.is_empty()) {
        add(
            "client-without-device",
            format!(
                "A client reaches devices behind gateways and nothing else, so it opens nothing between {clients} and \
                 \"{}\".",
                far.name
            ),
        );
    }
    // That may not stop a device from going back to observe, so it is no refusal.
    let (observed, rest): (Vec<MemberId>, Vec<MemberId>) =
        devices.into_iter().partition(|id| mode(resolved, *id) == Some(Mode::Observe));
    if !observed.is_empty() {
        add(
            "client-of-observed",
            format!(
                "Nothing passes between {clients} and {}, because what is in observe uses no tunnel: `anteroom device \
                 mode NAME protect`.",
                names(resolved, &observed)
            ),
        );
    }
    let lost: Vec<MemberId> =
        rest.into_iter().filter(|id| reachable_at(resolved, *id).is_empty()).collect();
    if !lost.is_empty() {
        add(
            "client-of-dynamic",
            format!(
                "{clients} can't reach {}, whose addresses are dynamic: a client's configuration names fixed ones.",
                names(resolved, &lost)
            ),
        );
    }
}

/// Addresses of two gateways' devices that overlap: a client's configuration gives each to one of them only. Within a
/// site a fixed address comes before a network that holds it, at a client as at gateways, and one that two devices
/// have is told of once for all who meet them.
fn ambiguous(resolved: &Resolved, client: MemberId, now: UnixMillis, findings: &mut Findings) {
    let mut nets: Vec<(Ipv4Net, MemberId, GatewayId)> = Vec::new();
    for far in reach(resolved, client, now) {
        for id in &far.devices {
            let addresses = reachable_at(resolved, *id);
            nets.extend(addresses.iter().map(|net| (net.trunc(), *id, far.gateway)));
        }
    }
    nets.sort_by_key(|(net, id, _)| (net.network(), net.prefix_len(), *id));
    // Those around the one at hand, the widest first.
    let mut around: Vec<(Ipv4Net, MemberId, GatewayId)> = Vec::new();
    let mut reported = BTreeSet::new();
    for (net, id, gateway) in nets {
        while around.pop_if(|(outer, ..)| !outer.contains(&net)).is_some() {}
        let site = resolved.site_of(id);
        let clashes = |(_, other, theirs): &&(Ipv4Net, MemberId, GatewayId)| {
            *theirs != gateway && (net.prefix_len() < 32 || resolved.site_of(*other) != site)
        };
        if let Some((_, other, _)) = around.iter().rev().find(clashes)
            && reported.insert((*other, id))
        {
            let elsewhere = resolved.site_of(*other) != site;
            let of = if elsewhere { "of another site" } else { "behind another gateway" };
            let what =
                if net.prefix_len() == 32 { net.addr().to_string() } else { net.to_string() };
            findings.add(
                Severity::Error,
                "ambiguous-address",
                format!("client {}", member_label(resolved, client)),
                format!(
                    "It shares rules with {} and with {} {of}, and {what} could mean either: keep one of them out of \
                     its rules.",
                    member_label(resolved, *other),
                    member_label(resolved, id),
                ),
            );
        }
        if !around.iter().any(|(outer, _, theirs)| *outer == net && *theirs == gateway) {
            around.push((net, id, gateway));
        }
    }
}
