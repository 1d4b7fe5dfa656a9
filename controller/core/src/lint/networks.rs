//! Prefixes of devices that others' prefixes take something away from.

use std::collections::BTreeMap;

use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use ipnet::Ipv4Net;

use super::policy::mode;
use super::{Findings, Severity};
use crate::model::Device;
use crate::parties::{member_label, some_of};
use crate::resolve::Resolved;

pub(super) fn check(resolved: &Resolved, findings: &mut Findings) {
    nested(resolved, findings);
    covered(resolved, findings);
}

/// Whether a device's addresses change: it has prefixes alone. Beside a fixed address a prefix is a network behind it.
fn is_dynamic(device: &Device) -> bool {
    device.addresses.iter().all(|net| net.prefix_len() < 32)
}

fn prefixes(device: &Device) -> impl Iterator<Item = Ipv4Net> {
    device.addresses.iter().copied().filter(|net| net.prefix_len() < 32)
}

/// Nothing is steered by the addresses of devices that are only observed.
fn severity(resolved: &Resolved, ids: &[MemberId]) -> Severity {
    let watched = ids.iter().all(|id| mode(resolved, *id) == Some(Mode::Observe));
    if watched { Severity::Warning } else { Severity::Error }
}

/// Networks behind two devices of a site, one within the other.
fn nested(resolved: &Resolved, findings: &mut Findings) {
    let mut by_site: BTreeMap<&Name, Vec<(Ipv4Net, MemberId)>> = BTreeMap::new();
    for (id, device) in resolved.model.devices.iter().filter(|(_, device)| !is_dynamic(device)) {
        let Some(site) = resolved.site_of(*id) else { continue };
        by_site.entry(site).or_default().extend(prefixes(device).map(|net| (net.trunc(), *id)));
    }
    for (site, mut networks) in by_site {
        networks.sort_by_key(|(net, id)| (net.network(), net.prefix_len(), *id));
        // Those around the one at hand, the widest first.
        let mut around: Vec<(Ipv4Net, MemberId)> = Vec::new();
        for (net, id) in networks {
            while around.pop_if(|(outer, _)| !outer.contains(&net)).is_some() {}
            if let Some((outer, other)) = around.iter().rev().find(|(_, other)| *other != id) {
                findings.add(
                    severity(resolved, &[id, *other]),
                    "overlapping-networks",
                    format!("site {site}"),
                    format!(
                        "{net} behind {} lies within {outer} behind {}: an address in both could mean either. Give \
                         each device the part that is its alone.",
                        member_label(resolved, id),
                        member_label(resolved, *other)
                    ),
                );
            }
            if around.last().is_none_or(|last| *last != (net, id)) {
                around.push((net, id));
            }
        }
    }
}

/// Externals that hold all addresses that a device may come to have.
fn covered(resolved: &Resolved, findings: &mut Findings) {
    let mut dynamic: BTreeMap<Ipv4Net, Vec<MemberId>> = BTreeMap::new();
    for (id, device) in resolved.model.devices.iter().filter(|(_, device)| is_dynamic(device)) {
        if resolved.site_of(*id).is_some() {
            prefixes(device).for_each(|net| dynamic.entry(net.trunc()).or_default().push(*id));
        }
    }
    for (name, external) in &resolved.policy.externals {
        for prefix in &external.prefixes {
            let first = Ipv4Net::new_assert(prefix.network(), 0);
            let within = dynamic
                .range(first..)
                .take_while(|(net, _)| net.network() <= prefix.broadcast())
                .filter(|(net, _)| prefix.contains(*net));
            for (net, ids) in within {
                let names: Vec<String> = ids.iter().map(|id| member_label(resolved, *id)).collect();
                let (names, subject) = (some_of(&names, 8), format!("external.{name}"));
                if net == prefix {
                    findings.add(
                        severity(resolved, ids),
                        "external-covers-prefix",
                        subject,
                        format!(
                            "{prefix} is also the prefix within which {names} may have any address: an address of an \
                             external is nobody's to claim, so they would have none. List in the external the \
                             addresses that it has, or give the devices a narrower prefix."
                        ),
                    );
                } else {
                    findings.add(
                        Severity::Warning,
                        "external-holds-prefix",
                        subject,
                        format!(
                            "{prefix} holds {net}, within which {names} may have any address: whichever they have is \
                             taken for the device, not for the external. List in the external the addresses that it \
                             has."
                        ),
                    );
                }
            }
        }
    }
}
