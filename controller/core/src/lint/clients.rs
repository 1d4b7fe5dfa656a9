//! Clients that rules open more to than can be carried.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;

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

/// Two devices that a client may reach and that have one address, as devices of two sites may.
fn ambiguous(resolved: &Resolved, client: MemberId, now: UnixMillis, findings: &mut Findings) {
    let mut holders: BTreeMap<Ipv4Addr, MemberId> = BTreeMap::new();
    for far in reach(resolved, client, now) {
        for id in far.devices {
            for net in reachable_at(resolved, id).iter().filter(|net| net.prefix_len() == 32) {
                let first = *holders.entry(net.addr()).or_insert(id);
                let elsewhere = resolved.site_of(first) != resolved.site_of(id);
                if elsewhere {
                    findings.add(
                        Severity::Error,
                        "ambiguous-address",
                        format!("client {}", member_label(resolved, client)),
                        format!(
                            "It shares rules with {} and with {} of another site, and {} could mean either: keep one \
                             of them out of its rules.",
                            member_label(resolved, first),
                            member_label(resolved, id),
                            net.addr()
                        ),
                    );
                }
            }
        }
    }
}
