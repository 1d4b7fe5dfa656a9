//! Addresses that two devices have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;

use super::policy::mode;
use super::{Findings, Severity};
use crate::parties::{member_label, some_of};
use crate::resolve::Resolved;

pub(super) fn check(resolved: &Resolved, findings: &mut Findings) {
    let mut holders: BTreeMap<Ipv4Addr, BTreeMap<MemberId, Place<'_>>> = BTreeMap::new();
    for (id, device) in &resolved.model.devices {
        let Some(site) = resolved.site_of(*id) else { continue };
        for net in device.addresses.iter().filter(|net| net.prefix_len() == 32) {
            let place = Place { site, vlan: device.attachment.vlan };
            holders.entry(net.addr()).or_default().insert(*id, place);
        }
    }
    for (address, holders) in holders.iter().filter(|(_, holders)| holders.len() > 1) {
        duplicates(resolved, *address, holders, findings);
        ambiguous(resolved, *address, holders, findings);
    }
    dynamic(resolved, &holders, findings);
}

/// Where an address is unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place<'a> {
    site: &'a Name,
    vlan: Option<u16>,
}

fn duplicates(
    resolved: &Resolved,
    address: Ipv4Addr,
    holders: &BTreeMap<MemberId, Place<'_>>,
    findings: &mut Findings,
) {
    let mut by_place: BTreeMap<Place<'_>, Vec<MemberId>> = BTreeMap::new();
    for (id, place) in holders {
        by_place.entry(*place).or_default().push(*id);
    }
    for (place, ids) in by_place.into_iter().filter(|(_, ids)| ids.len() > 1) {
        // Factory addresses do no harm as long as nothing is steered by them.
        let watched = ids.iter().all(|id| mode(resolved, *id) == Some(Mode::Observe));
        let severity = if watched { Severity::Warning } else { Severity::Error };
        let names: Vec<String> = ids.iter().map(|id| member_label(resolved, *id)).collect();
        findings.add(
            severity,
            "duplicate-address",
            format!("site {}", place.site),
            format!(
                "{} all have {address}: give each an address of its own before one leaves observe.",
                some_of(&names, 8)
            ),
        );
    }
}

/// Gateways whose views hold a member.
fn viewers(resolved: &Resolved, member: MemberId) -> BTreeSet<GatewayId> {
    let own = resolved.model.devices.get(&member).map(|device| device.attachment.gateway);
    let mut viewers: BTreeSet<GatewayId> = own.into_iter().collect();
    for side in resolved.sides_of(member).iter().map(|id| resolved.side(*id)) {
        let to = side.from_rules.iter().map(|rule| resolved.rules[*rule].to);
        let from = side.to_rules.iter().map(|rule| resolved.rules[*rule].from);
        to.chain(from).for_each(|far| viewers.extend(&resolved.side(far).gateways));
    }
    viewers
}

/// Two members of different sites or VLANs with one address, which one gateway would have to tell apart.
fn ambiguous(
    resolved: &Resolved,
    address: Ipv4Addr,
    holders: &BTreeMap<MemberId, Place<'_>>,
    findings: &mut Findings,
) {
    let mut seen: BTreeMap<GatewayId, (MemberId, Place<'_>)> = BTreeMap::new();
    let mut reported = BTreeSet::new();
    for (id, place) in holders {
        for gateway in viewers(resolved, *id) {
            let (first, known) = *seen.entry(gateway).or_insert((*id, *place));
            if known != *place && reported.insert((first, *id)) {
                report(resolved, gateway, &address.to_string(), first, *id, findings);
            }
        }
    }
}

/// A dynamic prefix that holds an address of another site, both visible at one gateway.
fn dynamic(
    resolved: &Resolved,
    holders: &BTreeMap<Ipv4Addr, BTreeMap<MemberId, Place<'_>>>,
    findings: &mut Findings,
) {
    for (id, device) in &resolved.model.devices {
        let Some(site) = resolved.site_of(*id) else { continue };
        for net in device.addresses.iter().filter(|net| net.prefix_len() < 32) {
            let within = holders.range(net.network()..=net.broadcast());
            let elsewhere = within
                .flat_map(|(_, holders)| holders)
                .find(|(_, place)| place.site != site)
                .map(|(other, _)| *other);
            let Some(other) = elsewhere else { continue };
            let theirs = viewers(resolved, other);
            if let Some(gateway) = viewers(resolved, *id).into_iter().find(|id| theirs.contains(id))
            {
                report(resolved, gateway, &net.to_string(), *id, other, findings);
            }
        }
    }
}

fn report(
    resolved: &Resolved,
    gateway: GatewayId,
    address: &str,
    a: MemberId,
    b: MemberId,
    findings: &mut Findings,
) {
    let name = resolved.model.gateways.get(&gateway).map(|gateway| gateway.name.to_string());
    let site = |id| resolved.site_of(id).map(ToString::to_string).unwrap_or_default();
    findings.add(
        Severity::Error,
        "ambiguous-address",
        format!("gateway {}", name.unwrap_or_else(|| gateway.to_string())),
        format!(
            "Its devices share rules with {} (site {}) and with {} (site {}), and {address} could mean either: \
             translated addresses aren't there yet, so keep one of them out of its rules.",
            member_label(resolved, a),
            site(a),
            member_label(resolved, b),
            site(b)
        ),
    );
}
