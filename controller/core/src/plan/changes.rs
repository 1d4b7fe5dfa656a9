//! What differs between two models, in people's words.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;

use super::Change;
use crate::baseline;
use crate::model::{Client, Device, Gateway, Model};
use crate::policy::{At, Expect, Policy};
use crate::resolve::Resolved;
use crate::standing::Standing;

pub(super) fn between(
    before: &Resolved,
    after: &Resolved,
    standing: &Standing,
    now: UnixMillis,
) -> Vec<Change> {
    let mut changes = Changes::default();
    gateways(&before.model, &after.model, &mut changes);
    devices(before, after, standing, now, &mut changes);
    clients(&before.model, &after.model, &mut changes);
    policy(&before.policy, &after.policy, &mut changes);
    let text = |resolved: &Resolved| resolved.model.policy.clone();
    let quiet = !changes.list.iter().any(|change| change.kind == "policy");
    if quiet && text(before) != text(after) {
        changes.list.push(Change {
            kind: "policy".into(),
            name: "text (comments, order or spacing only)".into(),
            before: None,
            after: None,
        });
    }
    changes.list
}

#[derive(Default)]
struct Changes {
    list: Vec<Change>,
}

impl Changes {
    fn add(&mut self, kind: &str, name: &str, before: Option<String>, after: Option<String>) {
        if before != after {
            self.list.push(Change { kind: kind.into(), name: name.to_owned(), before, after });
        }
    }
}

fn gateways(before: &Model, after: &Model, changes: &mut Changes) {
    let ids: BTreeSet<_> = before.gateways.keys().chain(after.gateways.keys()).collect();
    for id in ids {
        let (old, new) = (before.gateways.get(id), after.gateways.get(id));
        let Some(name) = new.or(old).map(|gateway| &gateway.name) else { continue };
        let describe = |gateway: &Gateway| format!("approved at site {}", gateway.site);
        let gone = after.revoked.contains_key(id).then(|| "revoked".to_owned());
        changes.add("gateway", name.as_str(), old.map(describe), new.map(describe).or(gone));
        if let (Some(old), Some(new)) = (old, new) {
            changes.add("gateway labels", name.as_str(), labels(&old.labels), labels(&new.labels));
        }
        if let (Some(old), Some(new)) = (old, new) {
            let key = |gateway: &Gateway| Some(gateway.identity.fingerprint().to_string());
            changes.add("identity key", name.as_str(), key(old), key(new));
        }
        let bypass = |model: &Model| {
            let until = model.gateways.get(id).and(model.bypasses.get(id))?.until?;
            Some(format!("in the clear until {}", crate::lint::moment(until)))
        };
        changes.add("bypass", name.as_str(), bypass(before), bypass(after));
    }
}

fn labels(labels: &BTreeMap<Name, String>) -> Option<String> {
    let all: Vec<String> = labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    (!all.is_empty()).then(|| all.join(" "))
}

fn devices(
    old: &Resolved,
    new: &Resolved,
    standing: &Standing,
    now: UnixMillis,
    changes: &mut Changes,
) {
    let (before, after) = (&old.model, &new.model);
    let measured = |resolved: &Resolved, id| {
        baseline::words(resolved, id, now).map(|by| format!("measured by {by}"))
    };
    let ids: BTreeSet<_> = before.devices.keys().chain(after.devices.keys()).collect();
    for id in ids {
        let trials = (measured(old, *id), measured(new, *id));
        let (old, new) = (before.devices.get(id), after.devices.get(id));
        let Some(name) = new.or(old).map(|device| &device.name) else { continue };
        let was = old.map(|device| place(before, device));
        let is = new.map(|device| place(after, device));
        changes.add("device", name.as_str(), was, is);
        if let (Some(old), Some(new)) = (old, new) {
            let called = |device: &Device| Some(device.name.to_string());
            changes.add("device name", name.as_str(), called(old), called(new));
        }
        if let Some(new) = new {
            let was = old.and_then(|device| labels(&device.labels));
            changes.add("device labels", name.as_str(), was, labels(&new.labels));
            let (was, is) = (old.map(Device::mode_words), new.mode_words());
            if was.as_ref() != Some(&is) {
                // A change is told from where the device is.
                let aside = standing.get(*id).map(|aside| aside.mode);
                let was = was.map(|was| match aside {
                    Some(mode) => format!("{was} (it is in {mode})"),
                    None => was,
                });
                changes.add("mode", name.as_str(), was, Some(is));
            }
            changes.add("trial", name.as_str(), trials.0, trials.1);
            let quarantined = |device: &Device| device.quarantined.then(|| "on".to_owned());
            changes.add("quarantine", name.as_str(), old.and_then(quarantined), quarantined(new));
        }
    }
}

fn clients(before: &Model, after: &Model, changes: &mut Changes) {
    let ids: BTreeSet<_> = before.clients.keys().chain(after.clients.keys()).collect();
    for id in ids {
        let (old, new) = (before.clients.get(id), after.clients.get(id));
        let Some(name) = new.or(old).map(|client| &client.name) else { continue };
        let describe = |client: &Client| {
            let Client { site, address, key, .. } = client;
            format!("{address} at site {site}, WireGuard key {}", key.to_wireguard())
        };
        let gone = after.former_clients.contains_key(id).then(|| "revoked".to_owned());
        changes.add("client", name.as_str(), old.map(describe), new.map(describe).or(gone));
        if let Some(new) = new {
            let was = old.and_then(|client| labels(&client.labels));
            changes.add("client labels", name.as_str(), was, labels(&new.labels));
        }
    }
}

/// Where a device is, and what it has for an address.
fn place(model: &Model, device: &Device) -> String {
    let attachment = &device.attachment;
    let (approved, revoked) =
        (model.gateways.get(&attachment.gateway), model.revoked.get(&attachment.gateway));
    let gateway = match (approved, revoked) {
        (Some(gateway), _) => gateway.name.to_string(),
        (None, Some(gateway)) => format!("{} (revoked)", gateway.name),
        (None, None) => attachment.gateway.to_string(),
    };
    let vlan = attachment.vlan.map(|vlan| format!(" VLAN {vlan}")).unwrap_or_default();
    let addresses: Vec<String> = device
        .addresses
        .iter()
        .map(|net| match net.prefix_len() {
            32 => net.addr().to_string(),
            _ => format!("dynamic within {net}"),
        })
        .collect();
    let prefix = device.prefix_len.map(|len| format!(" on-link /{len}")).unwrap_or_default();
    let router =
        device.router.map(|router| format!(" router {}", router.address)).unwrap_or_default();
    let failure = match device.on_failure {
        anteroom_proto::intent::OnFailure::Default => "",
        anteroom_proto::intent::OnFailure::Wire => " on failure wire",
        anteroom_proto::intent::OnFailure::Closed => " on failure closed",
    };
    format!(
        "{} at {} of {gateway}{vlan}, {}{prefix}{router}{failure}",
        attachment.mac,
        attachment.port,
        if addresses.is_empty() { "no address".to_owned() } else { addresses.join(" ") }
    )
}

fn policy(before: &Policy, after: &Policy, changes: &mut Changes) {
    section(changes, "infrastructure", &before.infrastructure, &after.infrastructure, |entry| {
        let list = |what: &str, servers: &[std::net::Ipv4Addr]| {
            let all: Vec<String> = servers.iter().map(ToString::to_string).collect();
            (!all.is_empty()).then(|| format!("{what} {}", all.join(" ")))
        };
        let lists = [
            list("dhcp", &entry.dhcp),
            list("dns", &entry.dns),
            list("ntp", &entry.ntp),
            list("routers", &entry.routers),
        ];
        words(lists.into_iter().flatten())
    });
    section(changes, "external", &before.externals, &after.externals, |entry| {
        let prefixes = entry.prefixes.iter().map(ToString::to_string);
        let review = entry.review.map(|day| format!("review {}", crate::lint::day(day)));
        words(prefixes.chain(review))
    });
    section(changes, "segment", &before.segments, &after.segments, |entry| {
        let site = entry.matches.iter().flat_map(|matches| &matches.site);
        let site = site.map(|site| format!("site={}", site.value));
        let matched = entry.matches.iter().filter_map(|matches| labels(&matches.labels));
        let listed = names(&entry.members).into_iter().chain(names(&entry.externals));
        let two = entry.two_person.then(|| "two persons enforce".to_owned());
        words(listed.chain(site).chain(matched).chain(entry.surface.words()).chain(two))
    });
    section(changes, "service", &before.services, &after.services, |entry| {
        let patients = entry.patient_data.map(|said| format!("patient_data={said}"));
        let maintenance = entry.maintenance.map(|said| format!("maintenance={said}"));
        let said = patients.into_iter().chain(maintenance);
        words(entry.ports.iter().map(ToString::to_string).chain(said))
    });
    section(changes, "rule", &before.rules, &after.rules, |entry| {
        let services = names(&entry.services).join(" ");
        let flags = [(entry.clear, "clear"), (entry.essential, "essential")];
        let flags = flags.into_iter().filter(|(set, _)| *set).map(|(_, word)| word.to_owned());
        let expires = entry.expires.map(|end| format!("until {}", crate::lint::moment(end)));
        let reason = entry.reason.as_ref().map(|reason| format!("({reason})"));
        let head = format!("{} -> {}: {services}", entry.from.value, entry.to.value);
        words(std::iter::once(head).chain(flags).chain(expires).chain(reason))
    });
    section(changes, "test", &before.tests, &after.tests, |entry| {
        let expect = match entry.expect {
            Expect::Allow => "allow",
            Expect::Deny => "deny",
        };
        let services = names(&entry.services).join(" ");
        format!("{expect} {} -> {}: {services}", entry.from.value, entry.to.value)
    });
}

fn words(words: impl IntoIterator<Item = String>) -> String {
    words.into_iter().collect::<Vec<_>>().join(" ")
}

fn names(names: &[At<Name>]) -> Vec<String> {
    names.iter().map(|name| name.value.to_string()).collect()
}

fn section<T>(
    changes: &mut Changes,
    kind: &str,
    before: &BTreeMap<Name, T>,
    after: &BTreeMap<Name, T>,
    describe: impl Fn(&T) -> String,
) {
    let all: BTreeSet<&Name> = before.keys().chain(after.keys()).collect();
    for name in all {
        let (old, new) = (before.get(name).map(&describe), after.get(name).map(&describe));
        changes.add("policy", &format!("{kind}.{name}"), old, new);
    }
}
