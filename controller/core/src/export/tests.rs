use anteroom_proto::inventory::HintKind;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;

use super::*;
use crate::classify::shown::{self, Rows};
use crate::classify::{Observation, Rulebook};
use crate::decide::{End, Party};
use crate::fixture::{HOUR, NOW, client, device, hospital, member_id, name, set_modes};
use crate::history::{Counts, Seen, Way};
use crate::model::Model;

fn stamp() -> Stamp {
    Stamp {
        organisation: "org".into(),
        made_at: moment(NOW),
        made_by: "ana".into(),
        revision: 7,
        history: None,
        turned_away: 0,
        audit: Some((3, "ab".into())),
    }
}

fn of(model: &Model) -> Content {
    let resolved = Resolved::new(model).unwrap();
    let mut history = History::new(100);
    let counts = Counts { flows: 3, packets: 9, packets_back: 9, bytes: 900, bytes_back: 900 };
    let seen = Seen {
        from: Party::Member(member_id(1)),
        to: Party::Member(member_id(5)),
        protocol: Protocol::Tcp,
        port: 104,
        way: Way::Clear,
        at: End::From,
        counts,
        first: UnixMillis(NOW.0 - HOUR),
        last: NOW,
    };
    history.add(&seen);
    content(&resolved, &history, &Observed::default(), stamp(), UnixMillis(0), NOW)
}

fn said(content: &Content, file: &str) -> String {
    String::from_utf8(files(content).unwrap().remove(file).unwrap()).unwrap()
}

fn rule<'a>(content: &'a Content, name: &str) -> &'a Opens {
    content
        .reach
        .rules
        .iter()
        .find(|rule| rule.rule == name)
        .unwrap_or_else(|| panic!("{name}: {:#?}", content.reach.rules))
}

#[test]
fn paths_follow_the_modes_and_externals_are_addresses() {
    let mut model = hospital();
    model.policy.push_str("[rule.x]\nfrom = \"ct-1\"\nto = \"pump-1\"\nservices = [\"vnc\"]\n[rule.self]\nfrom = \"pump-1\"\nto = \"pump-1\"\nservices = [\"vnc\"]\n");
    set_modes(&mut model, Mode::Observe, &["ct-1", "pump-1"]);
    assert_eq!(rule(&of(&model), "x").path, Path::Clear);
    set_modes(&mut model, Mode::Protect, &["ct-1", "pump-1"]);
    let content = of(&model);
    let found = rule(&content, "x");
    assert_eq!((found.path, found.tunnelled_pairs, found.clear_pairs), (Path::Tunnel, 1, 0));
    assert_eq!(rule(&content, "self").path, Path::Nobody, "nobody is a pair with themselves");
    let external = content.reach.groups.iter().find(|group| !group.externals.is_empty()).unwrap();
    let csv = said(&content, names::REACH_CSV);
    assert!(csv.contains("address, not an identity"), "{external:?} {csv}");
    let outside = content
        .reach
        .rules
        .iter()
        .find(|rule| rule.to == external.name || rule.from == external.name)
        .unwrap();
    assert_ne!(outside.path, Path::Tunnel, "{outside:?}");
    assert!(content.reach.unenforced.contains(&"ct-1".to_owned()));
    set_modes(&mut model, Mode::Enforce, &["ct-1"]);
    assert!(!of(&model).reach.unenforced.contains(&"ct-1".to_owned()));
}

#[test]
fn the_page_is_whole_without_scripts_and_whatever_names_hold() {
    let mut model = hospital();
    let evil = "=cmd()\"><script>alert(1)</script>\u{202e}";
    // As labels may be from before what they hold was looked at.
    let labels = &mut model.devices.get_mut(&member_id(1)).unwrap().labels;
    for key in ["owner", "location", "vendor", "model", "criticality", "note"] {
        labels.insert(name(key), evil.into());
    }
    labels.insert(name("class"), format!("<b>ct</b>{evil}"));
    model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], evil)]);
    let quoted = evil.replace('"', "\\\"");
    let told = format!("[rule.ct-to-pacs]\nreason = \"{quoted}\"");
    model.policy = model.policy.replace("[rule.ct-to-pacs]", &told);
    let mut content = of(&model);
    content.stamp.made_by = evil.into();
    content.stamp.organisation = evil.into();
    content.inventory.unconfirmed.push(UnconfirmedRow {
        mac: evil.into(),
        gateway: evil.into(),
        port: evil.into(),
        addresses: vec![evil.into()],
        last_seen: evil.into(),
        claims: claimed(evil),
    });
    let before = Content { inventory: Inventory::default(), ..of(&model) };
    content.difference = Some(Difference::between(
        evil.into(),
        7,
        evil.into(),
        (&before.inventory, &before.reach, &before.review),
        (&content.inventory, &content.reach, &content.review),
    ));
    let page = said(&content, names::REPORT);
    for bad in [
        "<script",
        "<b>ct",
        "src=",
        "http-equiv=\"refresh\"",
        "javascript:",
        "@import",
        "url(",
        "\u{202e}",
    ] {
        assert!(!page.contains(bad), "{bad} in the page");
        let picture = said(&content, names::MAP_SVG);
        assert!(!picture.contains(bad), "{bad} in the picture");
    }
    assert!(page.matches("&lt;script").count() >= 12, "each of them is there, as text");
    for table in [names::INVENTORY_CSV, names::MAP_CSV, names::REACH_CSV, names::DIFFERENCE_CSV] {
        let table = said(&content, table);
        assert!(!table.contains("\"=cmd") && !table.contains('\u{202e}'), "{table}");
    }
    let links = page.matches("href=\"").count();
    assert_eq!(links, page.matches("href=\"#").count(), "nothing leads out");
    assert_eq!(page.matches("<table>").count(), page.matches("</table>").count());
    assert!(
        page.contains("laptop-1")
            && page.contains("revision 7")
            && page.contains("not enforced yet")
    );
    let csv = said(&content, names::INVENTORY_CSV);
    assert!(csv.contains("\"'=cmd()"), "{csv}");
    assert!(
        said(&content, names::MAP_CSV).contains("\"dicom\",\"clear\",\"yes\""),
        "{}",
        said(&content, names::MAP_CSV)
    );
    let json: Inventory = serde_json::from_str(&said(&content, names::INVENTORY)).unwrap();
    assert_eq!(json, content.inventory);
    let json: Reach = serde_json::from_str(&said(&content, names::REACH)).unwrap();
    assert_eq!(json, content.reach);
    assert!(said(&content, names::README).contains("export verify"));
    assert_eq!(files(&of(&model)).unwrap(), files(&of(&model)).unwrap(), "the same each time");
}

#[test]
fn what_differs_from_an_earlier_bundle_is_told() {
    let mut model = hospital();
    let before = of(&model);
    set_modes(&mut model, Mode::Enforce, &["ct-1"]);
    model.label_device("ct-1", &[(name("owner"), Some("Radiology".into()))]).unwrap();
    model.rename_device("mri-1", name("mri-9")).unwrap();
    model.policy.push_str("[rule.new]\nfrom = \"ct-1\"\nto = \"mri-9\"\nservices = [\"vnc\"]\n");
    let after = of(&model);
    fn parts(content: &Content) -> (&Inventory, &Reach, &Stale) {
        (&content.inventory, &content.reach, &content.review)
    }
    let found = Difference::between("then".into(), 7, "ab".into(), parts(&before), parts(&after));
    let lines: Vec<String> = found
        .changes
        .iter()
        .map(|one| {
            format!(
                "{} {} {}: {} -> {}",
                one.kind,
                one.name,
                one.field,
                one.before.as_deref().unwrap_or("-"),
                one.after.as_deref().unwrap_or("-")
            )
        })
        .collect();
    let has = |wanted: &str| {
        assert!(lines.iter().any(|line| line.contains(wanted)), "{wanted}: {lines:#?}");
    };
    has("device ct-1 mode: ");
    has("device ct-1 label owner: - -> Radiology");
    has("device mri-9 name: mri-1 -> mri-9");
    has("rule new : - -> ");
    has("stale rule.new : - -> ");
    assert!(!lines.iter().any(|line| line.contains("pacs-1")), "{lines:#?}");
    let same = Difference::between("then".into(), 7, "ab".into(), parts(&after), parts(&after));
    assert!(same.changes.is_empty(), "{same:?}");
    let told = Content { difference: Some(found), ..after };
    assert!(said(&told, names::REPORT).contains("What differs from the bundle of then"));
    assert!(
        said(&told, names::DIFFERENCE_CSV)
            .contains("\"changed\",\"device\",\"mri-9\",\"name\",\"mri-1\",\"mri-9\"")
    );
}

/// Something else of the same kind.
fn other(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::{Value, json};
    match value {
        Value::Null => json!("else"),
        Value::Bool(yes) => json!(!yes),
        Value::Number(number) => json!(number.as_u64().unwrap_or_default() + 1),
        Value::String(_) => json!("else"),
        Value::Array(list) => {
            json!(list.iter().cloned().chain([json!("else")]).collect::<Vec<_>>())
        }
        Value::Object(fields) => {
            let mut fields = fields.clone();
            let like = match fields.values().next() {
                Some(Value::Array(_)) => json!(["else"]),
                Some(Value::Object(_)) => json!({}),
                _ => json!("else"),
            };
            fields.insert("else".into(), like);
            Value::Object(fields)
        }
    }
}

#[test]
fn nothing_that_a_bundle_says_changes_in_silence() {
    let mut model = hospital();
    model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "ct")]);
    let mut content = of(&model);
    content.inventory.unconfirmed.push(UnconfirmedRow {
        mac: "00:1b:00:00:00:09".into(),
        gateway: "gw".into(),
        port: "p1".into(),
        addresses: vec!["10.20.1.9".into()],
        last_seen: "now".into(),
        claims: Rows::new(),
    });
    content.inventory.devices[0].vlan = Some(7);
    let whole = serde_json::json!({ "inventory": content.inventory, "reach": content.reach });
    let parse = |json: &serde_json::Value| -> (Inventory, Reach) {
        let inventory = serde_json::from_value(json["inventory"].clone()).unwrap();
        (inventory, serde_json::from_value(json["reach"].clone()).unwrap())
    };
    // What comes and goes by itself, or follows from what is told.
    let by_itself = [
        "/inventory/services",
        "/reach/enforced",
        "/reach/unenforced",
        "mode_since",
        "holds",
        "first_seen",
        "last_seen",
        "coverage",
        "claims",
        "reaches",
        "reaches_enforced",
        "devices",
        "tunnelled_pairs",
        "clear_pairs",
        "last_used",
    ];
    let mut places = vec!["/inventory/services".to_owned()];
    for list in [
        "/inventory/devices",
        "/inventory/clients",
        "/inventory/gateways",
        "/inventory/unconfirmed",
        "/reach/rules",
        "/reach/groups",
    ] {
        let row = &whole.pointer(list).unwrap()[0];
        places.extend(row.as_object().unwrap().keys().map(|key| format!("{list}/0/{key}")));
    }
    let top = whole["reach"].as_object().unwrap().keys().map(|key| format!("/reach/{key}"));
    places.extend(top.filter(|place| !["/reach/rules", "/reach/groups"].contains(&&**place)));
    for kind in whole["reach"]["infrastructure"]["north"].as_object().unwrap().keys() {
        places.push(format!("/reach/infrastructure/north/{kind}"));
    }
    assert!(places.len() > 50, "{places:?}");
    let before = parse(&whole);
    for place in places {
        let last = place.rsplit('/').next().unwrap();
        if by_itself.iter().any(|own| *own == place || *own == last) {
            continue;
        }
        let mut changed = whole.clone();
        let value = changed.pointer_mut(&place).unwrap();
        *value = match last {
            "path" => "both".into(),
            "externals" => serde_json::json!({ "else": ["192.0.2.7/32"] }),
            _ => other(value),
        };
        let after = parse(&changed);
        let found = Difference::between(
            "then".into(),
            7,
            "ab".into(),
            (&before.0, &before.1, &content.review),
            (&after.0, &after.1, &content.review),
        );
        assert!(!found.changes.is_empty(), "{place} changed in silence");
    }
    // A bundle from before it was told whether a rule may go in the clear is none where each rule differs.
    let mut earlier = before.1.clone();
    earlier.rules.iter_mut().for_each(|rule| rule.clear = None);
    let found = Difference::between(
        "then".into(),
        7,
        "ab".into(),
        (&before.0, &earlier, &content.review),
        (&before.0, &before.1, &content.review),
    );
    assert_eq!(found.changes, []);
}

#[test]
fn what_each_device_of_a_site_may_reach_is_in_the_table() {
    let content = of(&hospital());
    let table = said(&content, names::REACH_CSV);
    let mut reader = ::csv::Reader::from_reader(table.as_bytes());
    let rows: Vec<::csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let dns = rows.iter().find(|row| &row[0] == "infrastructure" && &row[3] == "dns").unwrap();
    assert_eq!((&dns[1], &dns[5], &dns[14]), ("north", "tcp/53 udp/53", "10.20.0.53"));
    assert!(rows.iter().any(|row| &row[0] == "rule" && row[9] == *"yes"), "{table}");
}

#[test]
fn a_bundle_of_twenty_thousand_devices_stays_small() {
    let mut model = hospital();
    for number in 100..20_100_u32 {
        let [_, high, low, last] = number.to_be_bytes();
        let class = format!("class-{}", number % 12);
        let called = format!("dev-{number}");
        model.devices.extend([device(
            number,
            &called,
            1 + number % 3,
            "port9",
            [10, 32 + high, low, last],
            &class,
        )]);
    }
    for from in 0..12 {
        use std::fmt::Write as _;
        let _ = write!(
            model.policy,
            "[segment.s{from}]\nmatch = {{ label.class = \"class-{from}\" }}\n"
        );
    }
    for from in 0..12 {
        for to in 0..12 {
            use std::fmt::Write as _;
            let _ = write!(
                model.policy,
                "[rule.r{from}-{to}]\nfrom = \"s{from}\"\nto = \"s{to}\"\nservices = [\"dicom\"]\n"
            );
        }
    }
    let content = of(&model);
    let pairs: u64 = content.reach.rules.iter().map(|rule| rule.clear_pairs).sum();
    assert!(pairs > 300_000_000, "{pairs}");
    let files = files(&content).unwrap();
    let most = [
        (names::REACH, 2_000_000),
        (names::REACH_CSV, 2_000_000),
        (names::REPORT, 2_000_000),
        (names::INVENTORY_CSV, 10_000_000),
    ];
    for (name, most) in most {
        assert!(files[name].len() < most, "{name} has {} bytes", files[name].len());
    }
    assert!(
        String::from_utf8_lossy(&files[names::REPORT]).contains("more rows are in inventory.csv")
    );
}

/// What a device is taken for, for this reason among others.
fn claimed(why: &str) -> Rows {
    let mut seen = Observation::default();
    seen.add(HintKind::DhcpHostname, "DCS-935L");
    let mut rows = shown::known(&Rulebook::shipped().classify(&seen));
    for row in rows.values_mut() {
        row.why.push(why.to_owned());
    }
    rows
}

#[test]
fn what_devices_are_taken_for_is_told_with_the_reason() {
    let model = hospital();
    let resolved = Resolved::new(&model).unwrap();
    let rows = claimed("by its name");
    let observed = Observed {
        claims: [(member_id(1), rows.clone())].into(),
        unconfirmed: vec![UnconfirmedRow {
            mac: "02:00:00:00:00:07".into(),
            gateway: "ward".into(),
            port: "port9".into(),
            addresses: Vec::new(),
            last_seen: moment(NOW),
            claims: rows.clone(),
        }],
        ..Observed::default()
    };
    let content = content(&resolved, &History::new(1), &observed, stamp(), UnixMillis(0), NOW);
    let table = said(&content, names::INVENTORY_CSV);
    let mut reader = ::csv::Reader::from_reader(table.as_bytes());
    let headers = reader.headers().unwrap().clone();
    let column = |name: &str| headers.iter().position(|header| header == name).unwrap();
    let lines: Vec<::csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let told = |place: &str, of: &str| {
        let row = lines.iter().find(|row| &row[column(place)] == of).unwrap();
        [&row[column("TAKEN FOR")], &row[column("BECAUSE OF")]].map(str::to_owned)
    };
    for found in [told("NAME", "ct-1"), told("MAC", "02:00:00:00:00:07")] {
        assert_eq!(found[0], "camera, D-Link DCS-935L (88 %)");
        assert!(found[1].contains("class: dhcp.hostname = \"DCS-935L\""), "{found:?}");
    }
    assert_eq!(told("NAME", "pacs-1"), ["unknown", ""]);
    let page = said(&content, names::REPORT);
    assert_eq!(page.matches("camera, D-Link DCS-935L (88 %)").count(), 2, "{page}");
    let json: serde_json::Value = serde_json::from_str(&said(&content, names::INVENTORY)).unwrap();
    assert_eq!(json["unconfirmed"][0]["claims"]["model"]["value"], "DCS-935L");
    let scanner = json["devices"].as_array().unwrap().iter().find(|row| row["name"] == "ct-1");
    assert_eq!(scanner.unwrap()["claims"]["class"]["confirmed"], false);
    // A bundle from before this was told is read all the same.
    let mut json = json;
    for kind in ["devices", "unconfirmed"] {
        for row in json[kind].as_array_mut().unwrap() {
            row.as_object_mut().unwrap().remove("claims").unwrap();
        }
    }
    let read: Inventory = serde_json::from_value(json).unwrap();
    assert!(read.devices.iter().all(|device| device.claims.is_empty()));
}

#[test]
fn how_far_each_device_reaches_is_told() {
    let mut model = hospital();
    set_modes(&mut model, Mode::Enforce, &["pacs-1"]);
    let gone = model.devices.get_mut(&member_id(6)).unwrap();
    gone.attachment.gateway = crate::fixture::gateway_id(9);
    let content = of(&model);
    let found =
        |name: &str| content.inventory.devices.iter().find(|device| device.name == name).unwrap();
    let scanner = found("ct-1");
    let (today, enforced) = (scanner.reaches.unwrap(), scanner.reaches_enforced.unwrap());
    assert_eq!((today.unguarded, enforced.unguarded), (3, 0), "{today:?} {enforced:?}");
    assert_eq!(today.reached, 3 * content.inventory.services + 2);
    assert_eq!(enforced.reached, 2, "DICOM has two ports");
    assert_eq!((found("hl7-1").reaches, found("hl7-1").reaches_enforced), (None, None));
    let table = said(&content, names::INVENTORY_CSV);
    let mut reader = ::csv::Reader::from_reader(table.as_bytes());
    let headers = reader.headers().unwrap().clone();
    let column = headers.iter().position(|header| header == "REACHES TODAY").unwrap();
    let rows: Vec<::csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let of = |name: &str| rows.iter().find(|row| &row[0] == name).unwrap()[column].to_owned();
    assert_eq!(of("ct-1"), today.reached.to_string());
    assert_eq!(of("hl7-1"), "", "nobody knows where it is");
    // A bundle from before this was told is read all the same.
    let mut json: serde_json::Value =
        serde_json::from_str(&said(&content, names::INVENTORY)).unwrap();
    json.as_object_mut().unwrap().remove("services");
    for device in json["devices"].as_array_mut().unwrap() {
        device.as_object_mut().unwrap().retain(|key, _| !key.starts_with("reaches"));
    }
    let read: Inventory = serde_json::from_value(json).unwrap();
    assert_eq!(read.devices.len(), content.inventory.devices.len());
}
