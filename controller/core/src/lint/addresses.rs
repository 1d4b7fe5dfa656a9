//! Addresses that two members have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use ipnet::Ipv4Net;

use super::policy::mode;
use super::{Findings, Severity};
use crate::parties::{member_label, some_of};
use crate::resolve::{Resolved, SideId};

pub(super) fn check(resolved: &Resolved, findings: &mut Findings) {
    let mut holders: BTreeMap<Ipv4Addr, BTreeMap<MemberId, Place<'_>>> = BTreeMap::new();
    for (id, device) in &resolved.model.devices {
        let Some(site) = resolved.site_of(*id) else { continue };
        for net in device.addresses.iter().filter(|net| net.prefix_len() == 32) {
            let place = Place { site, vlan: device.attachment.vlan };
            holders.entry(net.addr()).or_default().insert(*id, place);
        }
    }
    for (id, client) in &resolved.model.clients {
        let place = Place { site: &client.site, vlan: None };
        holders.entry(client.address).or_default().insert(*id, place);
    }
    for (address, holders) in holders.iter().filter(|(_, holders)| holders.len() > 1) {
        duplicates(resolved, *address, holders, findings);
        ambiguous(resolved, *address, holders, findings);
    }
    dynamic(resolved, findings);
    clients_within(resolved, findings);
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
        if !watched && are_a_cluster(resolved, &ids) {
            findings.add(
                Severity::Warning,
                "shared-address",
                format!("site {}", place.site),
                format!(
                    "{} share the address {address}: one of them has it at a time, and it follows whoever of them \
                     announces it.",
                    some_of(&names, 8)
                ),
            );
            continue;
        }
        findings.add(
            severity,
            "duplicate-address",
            format!("site {}", place.site),
            format!(
                "{} have the same address, {address}: give each its own before one leaves observe. To share one, as a \
                 cluster does, they must be behind one gateway, in one mode and named by the same rules.",
                some_of(&names, 8)
            ),
        );
    }
}

/// Whether devices may share an address: one gateway sees which of them has it, and whoever it is, the same is
/// allowed and goes the same way.
fn are_a_cluster(resolved: &Resolved, ids: &[MemberId]) -> bool {
    let alike = |id: &MemberId| {
        let device = resolved.model.devices.get(id)?;
        let place = &device.attachment;
        let sides: BTreeSet<SideId> = resolved.sides_of(*id).iter().copied().collect();
        Some((place.gateway, place.vlan, device.mode, device.quarantined, sides))
    };
    let first = ids.first().and_then(alike);
    first.is_some() && ids.iter().all(|id| alike(id) == first)
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
fn dynamic(resolved: &Resolved, findings: &mut Findings) {
    let devices = &resolved.model.devices;
    let is_dynamic = |id: &MemberId| {
        devices
            .get(id)
            .is_some_and(|device| device.addresses.iter().any(|net| net.prefix_len() < 32))
    };
    let attached = devices.keys().filter(|id| resolved.site_of(**id).is_some());
    let gateways: BTreeSet<GatewayId> =
        attached.filter(|id| is_dynamic(id)).flat_map(|id| viewers(resolved, *id)).collect();
    let mut own: BTreeMap<GatewayId, Vec<MemberId>> = BTreeMap::new();
    for (id, device) in devices {
        own.entry(device.attachment.gateway).or_default().push(*id);
    }
    let mut reported = BTreeSet::new();
    for gateway in gateways {
        let visible = visible(resolved, own.get(&gateway).map(Vec::as_slice).unwrap_or_default());
        let mut fixed: BTreeMap<Ipv4Addr, Vec<MemberId>> = BTreeMap::new();
        let mut within: Vec<(Ipv4Net, MemberId)> = Vec::new();
        for id in visible {
            if let Some(client) = resolved.model.clients.get(&id) {
                fixed.entry(client.address).or_default().push(id);
            }
            for net in devices.get(&id).into_iter().flat_map(|device| &device.addresses) {
                if net.prefix_len() == 32 {
                    fixed.entry(net.addr()).or_default().push(id);
                } else {
                    within.push((*net, id));
                }
            }
        }
        for (net, id) in within {
            let site = resolved.site_of(id);
            let mut held = fixed.range(net.network()..=net.broadcast()).flat_map(|(_, ids)| ids);
            if let Some(other) = held.find(|other| resolved.site_of(**other) != site)
                && reported.insert((id, *other))
            {
                report(resolved, gateway, &net.to_string(), id, *other, findings);
            }
        }
    }
}

/// Clients whose addresses lie within a prefix of a device of their site: whoever gives the device its address knows
/// nothing of clients.
fn clients_within(resolved: &Resolved, findings: &mut Findings) {
    let mut clients: BTreeMap<&Name, BTreeMap<Ipv4Addr, MemberId>> = BTreeMap::new();
    for (id, client) in &resolved.model.clients {
        clients.entry(&client.site).or_default().insert(client.address, *id);
    }
    for (id, device) in &resolved.model.devices {
        let Some((site, clients)) =
            resolved.site_of(*id).and_then(|site| clients.get_key_value(site))
        else {
            continue;
        };
        for net in device.addresses.iter().filter(|net| net.prefix_len() < 32) {
            let held = clients.range(net.network()..=net.broadcast());
            let names: Vec<String> = held.map(|(_, id)| member_label(resolved, *id)).collect();
            if names.is_empty() {
                continue;
            }
            let watched = mode(resolved, *id) == Some(Mode::Observe);
            findings.add(
                if watched { Severity::Warning } else { Severity::Error },
                "client-within-prefix",
                format!("site {site}"),
                format!(
                    "{net} of {} holds the address of {}, and an address in both could mean either: give the device a \
                     narrower prefix, or add the client anew with an address outside it.",
                    member_label(resolved, *id),
                    some_of(&names, 8)
                ),
            );
        }
    }
}

/// The members that a gateway's view holds, its own among them.
fn visible(resolved: &Resolved, own: &[MemberId]) -> BTreeSet<MemberId> {
    let near: BTreeSet<SideId> =
        own.iter().flat_map(|id| resolved.sides_of(*id)).copied().collect();
    let mut far = BTreeSet::new();
    for side in near.into_iter().map(|id| resolved.side(id)) {
        far.extend(side.from_rules.iter().map(|rule| resolved.rules[*rule].to));
        far.extend(side.to_rules.iter().map(|rule| resolved.rules[*rule].from));
    }
    let members = far.into_iter().flat_map(|side| &resolved.side(side).members);
    members.chain(own).copied().collect()
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
