//! A bundle's tables as CSV.

use super::{Difference, Inventory, Path, Reach};
use crate::classify::Field;
use crate::classify::shown::{self, Rows};
use crate::map::Map;
use crate::spreadsheet::csv;

pub(super) fn inventory(inventory: &Inventory) -> String {
    let headers = [
        "NAME",
        "STATE",
        "CLASS",
        "VENDOR",
        "MODEL",
        "SERIAL",
        "OWNER",
        "LOCATION",
        "CRITICALITY",
        "SENSITIVITY",
        "MODE",
        "QUARANTINED",
        "SITE",
        "GATEWAY",
        "PORT",
        "VLAN",
        "MAC",
        "ADDRESSES",
        "HOLDS",
        "SEGMENTS",
        "LABELS",
        "CONFIRMED",
        "FIRST SEEN",
        "LAST SEEN",
        "COVERAGE %",
        "ID",
        "REACHES TODAY",
        "REACHES ENFORCED",
        "LIFE SUPPORT WITHIN REACH",
        "TAKEN FOR",
        "ROLE",
        "OS",
        "HOSTNAME",
        "BECAUSE OF",
    ];
    let told = |claims: &Rows| {
        let fields =
            [Field::Role, Field::Os, Field::Hostname].map(|field| shown::sure(claims, field));
        let [role, os, hostname] = fields;
        [shown::short(claims), role, os, hostname, shown::evidence(claims)]
    };
    let maybe = |text: &Option<String>| text.clone().unwrap_or_default();
    let known =
        ["class", "vendor", "model", "serial", "owner", "location", "criticality", "sensitivity"];
    let devices = inventory.devices.iter().map(|device| {
        let mut row = vec![device.name.clone(), "confirmed".to_owned()];
        row.extend(known.iter().map(|label| device.said(label).to_owned()));
        let others = device.labels.iter().filter(|(key, _)| !known.contains(&key.as_str()));
        let others: Vec<String> = others.map(|(key, value)| format!("{key}={value}")).collect();
        row.extend([
            device.mode.clone(),
            if device.quarantined { "yes".into() } else { String::new() },
            maybe(&device.site),
            device.gateway.clone(),
            device.port.clone(),
            device.vlan.map(|vlan| vlan.to_string()).unwrap_or_default(),
            device.mac.clone(),
            device.addresses.join(" "),
            device.holds.join(" "),
            device.segments.join(" "),
            others.join("; "),
            device.confirmed_at.clone(),
            maybe(&device.first_seen),
            maybe(&device.last_seen),
            device.coverage.map(|percent| percent.to_string()).unwrap_or_default(),
            device.id.clone(),
        ]);
        let radii = [device.reaches, device.reaches_enforced];
        row.extend(
            radii.map(|radius| radius.map_or_else(String::new, |one| one.reached.to_string())),
        );
        row.push(device.reaches.map_or_else(String::new, |one| one.life_support.to_string()));
        row.extend(told(&device.claims));
        row
    });
    let columns = headers.len();
    let clients = inventory.clients.iter().map(|client| {
        let mut row = vec![String::new(); columns];
        row[0].clone_from(&client.name);
        row[1] = "client".into();
        row[12].clone_from(&client.site);
        row[17].clone_from(&client.address);
        row[19] = client.segments.join(" ");
        row[25].clone_from(&client.id);
        row
    });
    let unconfirmed = inventory.unconfirmed.iter().map(|one| {
        let mut row = vec![String::new(); columns];
        row[1] = "not confirmed".into();
        row[13].clone_from(&one.gateway);
        row[14].clone_from(&one.port);
        row[16].clone_from(&one.mac);
        row[17] = one.addresses.join(" ");
        row[23].clone_from(&one.last_seen);
        let told = told(&one.claims);
        row.truncate(columns - told.len());
        row.extend(told);
        row
    });
    csv(&headers, devices.chain(clients).chain(unconfirmed))
}

pub(super) fn map(map: &Map) -> String {
    let name =
        |place: usize| map.nodes.get(place).map(|node| node.name.clone()).unwrap_or_default();
    let outside = |place: usize| {
        if map.nodes.get(place).is_some_and(|node| node.outside) { "address" } else { "member" }
    };
    let rows = map.lines.iter().map(|line| {
        vec![
            name(line.from),
            outside(line.from).into(),
            name(line.to),
            outside(line.to).into(),
            line.service.clone(),
            line.ways(),
            if line.patient_data { "yes".into() } else { String::new() },
            line.guarded.to_string(),
            line.clear.to_string(),
            line.dropped.to_string(),
            line.bytes.to_string(),
            super::moment(line.last),
        ]
    });
    csv(
        &[
            "FROM",
            "FROM IS",
            "TO",
            "TO IS",
            "SERVICE",
            "PATH",
            "PATIENT DATA",
            "FLOWS TUNNELLED",
            "FLOWS CLEAR",
            "FLOWS DROPPED",
            "BYTES",
            "LAST SEEN",
        ],
        rows,
    )
}

/// How a path is called.
pub(super) const fn path(path: Path) -> &'static str {
    match path {
        Path::Tunnel => "tunnel",
        Path::Clear => "clear",
        Path::Both => "tunnel and clear",
        Path::Nobody => "nobody there",
    }
}

pub(super) fn reach(reach: &Reach) -> String {
    let groups: std::collections::BTreeMap<&str, String> = reach
        .groups
        .iter()
        .map(|group| {
            let externals = group.externals.iter().map(|(name, nets)| {
                format!("{name} (address, not an identity: {})", nets.join(" "))
            });
            let all: Vec<String> = group.members.iter().cloned().chain(externals).collect();
            (group.name.as_str(), all.join(" "))
        })
        .collect();
    // Members stand once, behind the rules: a segment of thousands is in many of them.
    let rules = reach.rules.iter().map(|rule| {
        vec![
            "rule".to_owned(),
            rule.rule.clone(),
            rule.from.clone(),
            rule.to.clone(),
            rule.services.join(" "),
            rule.ports.join(" "),
            path(rule.path).into(),
            rule.tunnelled_pairs.to_string(),
            rule.clear_pairs.to_string(),
            if rule.clear == Some(true) { "yes".into() } else { String::new() },
            if rule.essential { "yes".into() } else { String::new() },
            match (&rule.expires, rule.expired) {
                (Some(at), true) => format!("{at} (over)"),
                (Some(at), false) => at.clone(),
                (None, _) => String::new(),
            },
            rule.last_used.clone().unwrap_or_else(|| "never".into()),
            rule.reason.clone().unwrap_or_default(),
            String::new(),
        ]
    });
    let infrastructure = reach.infrastructure.iter().flat_map(|(site, lists)| {
        lists.iter().map(move |(kind, servers)| {
            let opens = match kind.as_str() {
                "dhcp" => "udp/67",
                "dns" => "tcp/53 udp/53",
                "ntp" => "udp/123",
                _ => "",
            };
            let mut row = vec!["infrastructure".to_owned(), site.clone()];
            row.extend(["each device of the site", kind, kind, opens, "clear"].map(str::to_owned));
            row.resize(14, String::new());
            row.push(servers.join(" "));
            row
        })
    });
    let groups = reach.groups.iter().map(|group| {
        let mut row = vec![group.kind.clone(), group.name.clone()];
        row.resize(14, String::new());
        row.push(groups.get(group.name.as_str()).cloned().unwrap_or_default());
        row
    });
    csv(
        &[
            "WHAT",
            "NAME",
            "FROM",
            "TO",
            "SERVICES",
            "PORTS",
            "PATH",
            "PAIRS TUNNELLED",
            "PAIRS CLEAR",
            "MAY BE CLEAR",
            "ESSENTIAL",
            "EXPIRES",
            "LAST USED",
            "REASON",
            "MEMBERS",
        ],
        rules.chain(infrastructure).chain(groups),
    )
}

pub(super) fn difference(difference: &Difference) -> String {
    let rows = difference.changes.iter().map(|change| {
        let maybe = |text: &Option<String>| text.clone().unwrap_or_default();
        let what = match (&change.before, &change.after) {
            (None, Some(_)) => "new",
            (Some(_), None) => "gone",
            _ => "changed",
        };
        vec![
            what.into(),
            change.kind.clone(),
            change.name.clone(),
            change.field.clone(),
            maybe(&change.before),
            maybe(&change.after),
        ]
    });
    csv(&["WHAT", "KIND", "NAME", "FIELD", "BEFORE", "AFTER"], rows)
}
