//! What differs from an earlier bundle.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::tables::path;
use super::{Inventory, Reach};
use crate::stale::Stale;

/// Most lines that are kept of one difference; the rest is counted.
const MAX_LINES: usize = 20_000;
/// Most names that one line has.
const NAMES: usize = 20;

/// What differs from an earlier bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Difference {
    /// When the earlier one was made.
    pub since: String,
    /// The revision that it was of.
    pub revision: u64,
    /// SHA-256 of its signed manifest, in hexadecimal digits.
    pub manifest: String,
    /// What differs.
    pub changes: Vec<Change>,
    /// How many lines more there were.
    pub left_out: usize,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Change {
    /// Of what kind: `device`, `client`, `gateway`, `unconfirmed`, `rule`, `group`, `infrastructure`, `stale`.
    pub kind: String,
    /// Which one.
    pub name: String,
    /// What of it: `mode`, `mac`, a label; empty where the whole thing came or went.
    pub field: String,
    /// What it was; none where it wasn't.
    pub before: Option<String>,
    /// What it is; none where it isn't any more.
    pub after: Option<String>,
}

/// A thing by its fields.
type Fields = BTreeMap<String, String>;

impl Difference {
    /// What differs between `before` and `after`: inventory, who can reach what, and review.
    #[must_use]
    pub fn between(
        since: String,
        revision: u64,
        manifest: String,
        before: (&Inventory, &Reach, &Stale),
        after: (&Inventory, &Reach, &Stale),
    ) -> Self {
        let mut found = Self { since, revision, manifest, ..Self::default() };
        for (kind, name, old, new) in things(before, after) {
            match (&old, &new) {
                (Some(old), Some(new)) => {
                    let fields: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                    for field in
                        fields.into_iter().filter(|field| old.get(*field) != new.get(*field))
                    {
                        found.add(
                            kind,
                            &name,
                            field,
                            old.get(field).cloned(),
                            new.get(field).cloned(),
                        );
                    }
                }
                (old, new) => {
                    found.add(kind, &name, "", old.as_ref().map(whole), new.as_ref().map(whole));
                }
            }
        }
        found
    }

    fn add(
        &mut self,
        kind: &str,
        name: &str,
        field: &str,
        before: Option<String>,
        after: Option<String>,
    ) {
        if self.changes.len() >= MAX_LINES {
            self.left_out += 1;
            return;
        }
        let (kind, name, field) = (kind.to_owned(), name.to_owned(), field.to_owned());
        self.changes.push(Change { kind, name, field, before, after });
    }
}

fn whole(fields: &Fields) -> String {
    fields.iter().map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join(", ")
}

/// By kind and key: what a thing is called, what it was, what it is.
type Things = BTreeMap<(&'static str, String), (String, Option<Fields>, Option<Fields>)>;
type Thing = (&'static str, String, Option<Fields>, Option<Fields>);

/// Everything that is on either side, by its kind and what identifies it.
fn things(
    (inventory, reach, stale): (&Inventory, &Reach, &Stale),
    (new_inventory, new_reach, new_stale): (&Inventory, &Reach, &Stale),
) -> Vec<Thing> {
    let mut all = Things::new();
    let mut put = |newer: bool, kind: &'static str, key: String, name: String, fields: Fields| {
        let entry = all.entry((kind, key)).or_insert_with(|| (name.clone(), None, None));
        if newer {
            // What it is called now.
            entry.0 = name;
            entry.2 = Some(fields);
        } else {
            entry.1 = Some(fields);
        }
    };
    for (newer, inventory) in [(false, inventory), (true, new_inventory)] {
        for device in &inventory.devices {
            put(newer, "device", device.id.clone(), device.name.clone(), of_device(device));
        }
        for client in &inventory.clients {
            let mut fields = of_labels(&client.labels);
            fields.extend(some([
                ("name", &client.name),
                ("site", &client.site),
                ("address", &client.address),
                ("segments", &client.segments.join(" ")),
            ]));
            put(newer, "client", client.id.clone(), client.name.clone(), fields);
        }
        for gateway in &inventory.gateways {
            let fields = some([("site", &gateway.site), ("identity key", &gateway.identity)]);
            put(newer, "gateway", gateway.name.clone(), gateway.name.clone(), fields);
        }
        for one in &inventory.unconfirmed {
            let fields = some([
                ("gateway", &one.gateway),
                ("port", &one.port),
                ("addresses", &one.addresses.join(" ")),
            ]);
            put(
                newer,
                "unconfirmed",
                format!("{} {}", one.gateway, one.mac),
                one.mac.clone(),
                fields,
            );
        }
    }
    // An earlier version's bundle doesn't say it, which is no difference.
    let tells_clear = |reach: &Reach| reach.rules.iter().all(|rule| rule.clear.is_some());
    let clear = tells_clear(reach) && tells_clear(new_reach);
    for (newer, reach) in [(false, reach), (true, new_reach)] {
        for rule in &reach.rules {
            put(newer, "rule", rule.rule.clone(), rule.rule.clone(), of_rule(rule, clear));
        }
        for group in &reach.groups {
            let externals: Vec<String> = group
                .externals
                .iter()
                .map(|(name, nets)| format!("{name} ({})", nets.join(" ")))
                .collect();
            let fields = some([("kind", &group.kind), ("externals", &externals.join(", "))]);
            put(newer, "group", group.name.clone(), group.name.clone(), fields);
        }
        for (site, lists) in &reach.infrastructure {
            let lists = lists.iter().map(|(kind, servers)| (kind.clone(), servers.join(" ")));
            put(newer, "infrastructure", site.clone(), site.clone(), lists.collect());
        }
    }
    for (newer, stale) in [(false, stale), (true, new_stale)] {
        for line in stale.lines() {
            put(newer, "stale", line.clone(), line, Fields::new());
        }
    }
    members(reach, new_reach, &mut all);
    all.into_iter().map(|((kind, _), (name, old, new))| (kind, name, old, new)).collect()
}

/// Of groups with many members only those who came and went are told.
fn members(reach: &Reach, new_reach: &Reach, all: &mut Things) {
    let by_name = |reach: &Reach| -> BTreeMap<String, BTreeSet<String>> {
        reach
            .groups
            .iter()
            .map(|group| (group.name.clone(), group.members.iter().cloned().collect()))
            .collect()
    };
    let (before, after) = (by_name(reach), by_name(new_reach));
    for ((kind, key), (_, old, new)) in all.iter_mut() {
        let (Some(was), Some(is)) = (before.get(key), after.get(key)) else { continue };
        let (Some(old), Some(new), "group") = (old.as_mut(), new.as_mut(), *kind) else { continue };
        let list = |names: Vec<&String>| {
            let shown: Vec<&str> = names.iter().take(NAMES).map(|name| name.as_str()).collect();
            let more = names.len().saturating_sub(NAMES);
            if more > 0 { format!("{} and {more} more", shown.join(" ")) } else { shown.join(" ") }
        };
        let (gone, come): (Vec<_>, Vec<_>) =
            (was.difference(is).collect(), is.difference(was).collect());
        if !gone.is_empty() {
            old.insert("members that left".into(), list(gone));
        }
        if !come.is_empty() {
            new.insert("members that came".into(), list(come));
        }
    }
}

fn of_labels(labels: &BTreeMap<String, String>) -> Fields {
    labels.iter().map(|(key, value)| (format!("label {key}"), value.clone())).collect()
}

/// Criticality and the like as a device has them by its segments, with no such label of its own.
fn of_segments(device: &super::DeviceRow) -> Fields {
    let inherited =
        device.surface.iter().filter(|(key, value)| device.labels.get(*key) != Some(value));
    inherited.map(|(key, value)| (format!("{key} by segment"), value.clone())).collect()
}

fn of_rule(rule: &super::Opens, clear: bool) -> Fields {
    let yes = |yes: bool| if yes { "yes".to_owned() } else { "no".to_owned() };
    let expired = if rule.expired { "yes".to_owned() } else { String::new() };
    some([
        ("from", &rule.from),
        ("to", &rule.to),
        ("services", &rule.services.join(" ")),
        ("ports", &rule.ports.join(" ")),
        ("path", &path(rule.path).to_owned()),
        ("clear", &rule.clear.filter(|_| clear).map(yes).unwrap_or_default()),
        ("essential", &yes(rule.essential)),
        ("expires", rule.expires.as_ref().unwrap_or(&String::new())),
        ("expired", &expired),
        ("reason", rule.reason.as_ref().unwrap_or(&String::new())),
    ])
}

/// Those of the fields that say something.
fn some<const N: usize>(fields: [(&str, &String); N]) -> Fields {
    let said = fields.into_iter().filter(|(_, value)| !value.is_empty());
    said.map(|(key, value)| (key.to_owned(), value.clone())).collect()
}

fn of_device(device: &super::DeviceRow) -> Fields {
    let mut fields = of_labels(&device.labels);
    fields.extend(of_segments(device));
    let vlan = device.vlan.map(|vlan| vlan.to_string()).unwrap_or_default();
    let quarantined = if device.quarantined { "yes".to_owned() } else { String::new() };
    fields.extend(some([
        ("name", &device.name),
        ("mode", &device.mode),
        ("quarantined", &quarantined),
        ("site", device.site.as_ref().unwrap_or(&String::new())),
        ("gateway", &device.gateway),
        ("port", &device.port),
        ("vlan", &vlan),
        ("mac", &device.mac),
        ("addresses", &device.addresses.join(" ")),
        ("segments", &device.segments.join(" ")),
        ("confirmed", &device.confirmed_at),
    ]));
    fields
}
