//! Rules that match nobody or have ended, externals that want a look, names of sites that aren't there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;

use super::{Findings, Severity};
use crate::parties::member_label;
use crate::problem::did_you_mean;
use crate::resolve::{Resolved, ResolvedRule, Side};

pub(super) fn check(resolved: &Resolved, now: UnixMillis, findings: &mut Findings) {
    for rule in &resolved.rules {
        rule_ends(resolved, rule, now, findings);
    }
    externals(resolved, now, findings);
    sites(resolved, findings);
    detached(resolved, findings);
}

fn rule_ends(resolved: &Resolved, rule: &ResolvedRule, now: UnixMillis, findings: &mut Findings) {
    let subject = format!("rule.{}", rule.name);
    let (from, to) = (resolved.side(rule.from), resolved.side(rule.to));
    let empty = |side: &Side| side.members.is_empty() && side.externals.is_empty();
    for side in [from, to] {
        if empty(side) {
            findings.add(
                Severity::Warning,
                "rule-matches-nobody",
                &subject,
                format!(
                    "It opens nothing, because nobody is in \"{}\": label devices or list them.",
                    side.name
                ),
            );
        }
    }
    if !empty(from) && !empty(to) && from.members.is_empty() && to.members.is_empty() {
        findings.add(
            Severity::Warning,
            "rule-without-device",
            &subject,
            "Both of its ends are externals, so no gateway stands between them and the rule does nothing.",
        );
    }
    if let Some(end) = rule.expires.filter(|end| *end <= now) {
        findings.add(
            Severity::Warning,
            "rule-expired",
            &subject,
            format!(
                "It ended at {} and opens nothing: remove it, or give it a new end.",
                moment(end)
            ),
        );
    }
    // Where a device is in enforce already, `modes` refuses; here is the warning before it comes to that.
    if !rule.clear && !rule.expired(now) {
        for (near, far) in [(from, to), (to, from)] {
            let enforced = near.members.iter().any(|id| mode(resolved, *id) == Some(Mode::Enforce));
            let any_device = near.members.iter().any(|id| mode(resolved, *id).is_some());
            if any_device && !far.externals.is_empty() && !enforced {
                findings.add(
                    Severity::Warning,
                    "external-without-clear",
                    &subject,
                    format!(
                        "Traffic with an external is in the clear. Devices in \"{}\" lose it once they go to \
                         enforce, unless the rule says clear = true.",
                        near.name
                    ),
                );
            }
        }
    }
}

pub(super) fn mode(resolved: &Resolved, id: MemberId) -> Option<Mode> {
    resolved.model.devices.get(&id).map(|device| device.mode)
}

/// A moment for people: to the second, in UTC.
#[must_use]
pub fn moment(at: UnixMillis) -> String {
    i64::try_from(at.as_secs())
        .ok()
        .and_then(|secs| jiff::Timestamp::from_second(secs).ok())
        .map_or_else(|| format!("{} ms after 1970", at.0), |timestamp| timestamp.to_string())
}

/// A day for people, in UTC.
pub(crate) fn day(at: UnixMillis) -> String {
    let moment = moment(at);
    moment.split_once('T').map_or(moment.clone(), |(day, _)| day.to_owned())
}

fn externals(resolved: &Resolved, now: UnixMillis, findings: &mut Findings) {
    let mut fixed: BTreeMap<Ipv4Addr, MemberId> = BTreeMap::new();
    for (id, device) in &resolved.model.devices {
        let attached = resolved.model.is_attached(device);
        let addresses = device.addresses.iter().filter(|net| attached && net.prefix_len() == 32);
        fixed.extend(addresses.map(|net| (net.addr(), *id)));
    }
    fixed.extend(resolved.model.clients.iter().map(|(id, client)| (client.address, *id)));
    for (name, external) in &resolved.policy.externals {
        let subject = format!("external.{name}");
        if let Some(review) = external.review.filter(|review| *review <= now) {
            findings.add(
                Severity::Warning,
                "external-review",
                &subject,
                format!(
                    "It was to be looked at by {}: is it still there, and does it have a gateway by now? Then \
                     set a new day.",
                    day(review)
                ),
            );
        }
        for prefix in &external.prefixes {
            if let Some((address, id)) = fixed.range(prefix.network()..=prefix.broadcast()).next() {
                findings.add(
                    Severity::Warning,
                    "external-holds-device",
                    &subject,
                    format!(
                        "{prefix} holds {address}, which is {}'s: gateways that know the device take it for the \
                         device, others for the external. Take it out of the external.",
                        member_label(resolved, *id)
                    ),
                );
            }
        }
    }
}

fn sites(resolved: &Resolved, findings: &mut Findings) {
    let known = resolved.sites();
    let mut unknown = |subject: String, site: &Name| {
        if !known.contains(&site) {
            let hint = did_you_mean(site.as_str(), known.iter().map(|name| name.as_str()));
            let message = format!("No gateway stands in a site \"{site}\"{hint}");
            let end = if hint.is_empty() { " yet." } else { "" };
            findings.add(Severity::Warning, "unknown-site", subject, format!("{message}{end}"));
        }
    };
    for site in resolved.policy.infrastructure.keys() {
        unknown(format!("infrastructure.{site}"), site);
    }
    for (name, segment) in &resolved.policy.segments {
        if let Some(site) = segment.matches.as_ref().and_then(|matches| matches.site.as_ref()) {
            unknown(format!("segment.{name}"), &site.value);
        }
    }
}

/// Devices that the policy names but that no approved gateway stands in front of, and clients that were revoked.
fn detached(resolved: &Resolved, findings: &mut Findings) {
    let model = &resolved.model;
    let gone = |name: &Name| {
        resolved.detached.get(name).and_then(|id| model.devices.get(id)).map(|device| {
            let gateway = model.revoked.get(&device.attachment.gateway);
            gateway.map_or_else(
                || "its gateway isn't approved".to_owned(),
                |gateway| format!("its gateway {} was revoked", gateway.name),
            )
        })
    };
    let former: BTreeSet<&Name> = model
        .former_clients
        .values()
        .map(|client| &client.name)
        .filter(|name| model.member_named(name.as_str()).is_none())
        .collect();
    let revoked_host = |name: &Name| {
        let device = resolved.detached.get(name).and_then(|id| model.devices.get(id));
        device.is_some_and(|device| model.is_revoked_host(device))
    };
    let mut add = |subject: String, name: &Name| {
        if former.contains(name) || revoked_host(name) {
            findings.add(
                Severity::Warning,
                "revoked-client",
                &subject,
                format!("\"{name}\" is named here, a client that was revoked: take it out."),
            );
        }
        if let Some(why) = gone(name).filter(|_| !revoked_host(name)) {
            findings.add(
                Severity::Warning,
                "detached-device",
                subject,
                format!(
                    "\"{name}\" is named here, but {why}, so nothing opens for it: confirm it behind another \
                     gateway, or take it out."
                ),
            );
        }
    };
    for (name, segment) in &resolved.policy.segments {
        segment.members.iter().for_each(|member| add(format!("segment.{name}"), &member.value));
    }
    for (name, rule) in &resolved.policy.rules {
        [&rule.from, &rule.to].into_iter().for_each(|end| add(format!("rule.{name}"), &end.value));
    }
}
