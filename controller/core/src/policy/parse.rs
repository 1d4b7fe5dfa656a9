//! From text to [`Policy`], with every problem on the way.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;
use ipnet::Ipv4Net;
use toml_edit::{Datetime, Item, Offset};

use super::{
    At, Expect, External, Infrastructure, MAX_POLICY_LEN, Match, Policy, Position, Rule, Segment,
    Service, Test,
};
use crate::problem::{Problems, did_you_mean};
use crate::reader::{Entry, Reader, cut};
use crate::service_catalog;
use crate::surface::{self, Stated};

/// Most entries of one section.
const MAX_ENTRIES: usize = 10_000;
/// The format that is read.
const FORMAT: i64 = 1;
const SECTIONS: [&str; 7] =
    ["format", "infrastructure", "external", "segment", "service", "rule", "test"];
/// Keys under which externals will be able to go by DNS name.
const RESERVED_FOR_DNS: [&str; 4] = ["names", "dns", "hosts", "fqdn"];

/// What can be read of `text`, and everything that is wrong with it.
pub(crate) fn parse_all(file: &str, text: &str) -> (Policy, Problems) {
    let mut reader = Reader::new(file, text);
    let mut policy = Policy::default();
    let Some(document) = reader.document(MAX_POLICY_LEN) else {
        return (policy, reader.problems);
    };
    let root = Entry {
        path: String::new(),
        position: Position { line: 1, column: 1 },
        table: document.as_table(),
    };
    reader.only(&root, &SECTIONS);
    format_number(&mut reader, &root);
    let section = |name: &str| document.as_table().get(name);
    if let Some(item) = section("infrastructure") {
        policy.infrastructure = each(&mut reader, "infrastructure", item, infrastructure);
    }
    if let Some(item) = section("external") {
        policy.externals = each(&mut reader, "external", item, external);
    }
    if let Some(item) = section("segment") {
        policy.segments = each(&mut reader, "segment", item, segment);
    }
    if let Some(item) = section("service") {
        policy.services = each(&mut reader, "service", item, service);
    }
    if let Some(item) = section("rule") {
        policy.rules = each(&mut reader, "rule", item, rule);
    }
    if let Some(item) = section("test") {
        policy.tests = each(&mut reader, "test", item, test);
    }
    super::check::check(&policy, &mut reader);
    (policy, reader.problems)
}

fn format_number(reader: &mut Reader<'_>, root: &Entry<'_>) {
    match root.table.get("format") {
        None => reader.problem(
            root.position,
            "format",
            format!("missing: begin the file with format = {FORMAT}"),
        ),
        Some(item) if item.as_integer() != Some(FORMAT) => {
            let position = reader.position(item.span());
            reader.problem(
                position,
                "format",
                format!("this program reads format = {FORMAT} and no other"),
            );
        }
        Some(_) => {}
    }
}

fn each<T>(
    reader: &mut Reader<'_>,
    section: &'static str,
    item: &Item,
    read: fn(&mut Reader<'_>, &Name, &Entry<'_>) -> Option<T>,
) -> BTreeMap<Name, T> {
    let entries = reader.entries(section, item, MAX_ENTRIES);
    entries
        .into_iter()
        .filter_map(|(name, entry)| read(reader, &name, &entry).map(|value| (name, value)))
        .collect()
}

fn infrastructure(reader: &mut Reader<'_>, _: &Name, entry: &Entry<'_>) -> Option<Infrastructure> {
    reader.only(entry, &["dhcp", "dns", "ntp", "routers"]);
    let mut servers = |key: &str| {
        let texts = reader.texts(entry, key, "[\"10.20.0.2\"]");
        let mut addresses: Vec<Ipv4Addr> =
            texts.into_iter().filter_map(|text| server(reader, entry, &text)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    };
    let (dhcp, dns, ntp) = (servers("dhcp"), servers("dns"), servers("ntp"));
    let routers = servers("routers");
    Some(Infrastructure { position: entry.position, dhcp, dns, ntp, routers })
}

fn server(reader: &mut Reader<'_>, entry: &Entry<'_>, text: &At<String>) -> Option<Ipv4Addr> {
    let address = text.value.parse::<Ipv4Addr>().ok().filter(|address| {
        !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast()
    });
    if address.is_none() {
        let message = format!("\"{}\" is not the IPv4 address of a server", cut(&text.value));
        reader.problem(text.position, &entry.path, message);
    }
    address
}

fn external(reader: &mut Reader<'_>, _: &Name, entry: &Entry<'_>) -> Option<External> {
    let mut known = vec!["prefixes", "review"];
    let reserved = RESERVED_FOR_DNS.into_iter().filter(|key| entry.table.contains_key(key));
    for key in reserved {
        known.push(key);
        let position = reader.position(entry.table.get(key).and_then(Item::span));
        reader.problem(position, &entry.path, DNS);
    }
    reader.only(entry, &known);
    let texts = if known.len() > 2 {
        reader.texts(entry, "prefixes", PREFIXES)
    } else {
        reader.some_texts(entry, "prefixes", PREFIXES)
    };
    let mut prefixes: Vec<Ipv4Net> =
        texts.into_iter().filter_map(|text| prefix(reader, entry, &text)).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    let review = reader
        .datetime(entry, "review", "2027-03-01")
        .and_then(|date| review(reader, entry, &date));
    Some(External { position: entry.position, prefixes, review })
}

const PREFIXES: &str = "[\"10.20.4.11/32\"]";
const DNS: &str = "externals can't go by DNS name yet, because whoever answers the name could open \
                   the rule: write the addresses in \"prefixes\"";

fn prefix(reader: &mut Reader<'_>, entry: &Entry<'_>, text: &At<String>) -> Option<Ipv4Net> {
    let value = text.value.as_str();
    let prefix = match (value.parse::<Ipv4Net>(), value.parse::<Ipv4Addr>()) {
        (Ok(prefix), _) => Ok(prefix),
        (_, Ok(address)) => Ok(Ipv4Net::from(address)),
        _ if value.contains(':') => Err("IPv6 isn't carried yet: write IPv4 prefixes".to_owned()),
        _ if value.contains(|c: char| c.is_ascii_alphabetic()) => {
            Err(format!("\"{}\": {DNS}", cut(value)))
        }
        _ => Err(format!(
            "\"{}\" is not an IPv4 prefix: write it as 10.20.4.0/24 or 10.20.4.11/32",
            cut(value)
        )),
    };
    let prefix = prefix.and_then(|prefix| {
        if prefix.trunc() != prefix {
            let whole = prefix.trunc();
            Err(format!("{prefix} has bits behind its length; did you mean \"{whole}\"?"))
        } else if prefix.addr().is_multicast() {
            Err(format!("{prefix} is multicast, which no rule can open"))
        } else {
            Ok(prefix)
        }
    });
    prefix.map_err(|message| reader.problem(text.position, &entry.path, message)).ok()
}

fn segment(reader: &mut Reader<'_>, _: &Name, entry: &Entry<'_>) -> Option<Segment> {
    let mut known = vec!["members", "externals", "match", "two_person"];
    known.extend(surface::KEYS);
    reader.only(entry, &known);
    let members = reader.texts(entry, "members", "[\"pacs-1\"]");
    let members = reader.names(&entry.path, &members);
    let externals = reader.texts(entry, "externals", "[\"pacs-vip\"]");
    let externals = reader.names(&entry.path, &externals);
    let matches = entry.table.get("match").and_then(|item| matching(reader, entry, item));
    let surface = stated(reader, entry);
    let two_person = reader.truth(entry, "two_person");
    Some(Segment { position: entry.position, members, externals, matches, surface, two_person })
}

/// What a segment says of its members' protect surface.
fn stated(reader: &mut Reader<'_>, entry: &Entry<'_>) -> Stated {
    let mut said = |key: &str, example: &str| {
        let text = reader.text(entry, key, example)?;
        if let Some(message) = surface::problem(key, &text.value) {
            reader.problem(text.position, &entry.path, format!("\"{key}\": {message}"));
            return None;
        }
        Some(text.value)
    };
    Stated {
        criticality: said(surface::CRITICALITY, "\"life-support\"")
            .and_then(|word| word.parse().ok()),
        sensitivity: said(surface::SENSITIVITY, "\"patient-data\"")
            .and_then(|word| word.parse().ok()),
        owner: said(surface::OWNER, "\"Radiology\""),
        location: said(surface::LOCATION, "\"Building 2, floor 1\""),
    }
}

const MATCH: &str = "match = { site = \"north\", label.class = \"ct\" }";

fn matching(reader: &mut Reader<'_>, entry: &Entry<'_>, item: &Item) -> Option<Match> {
    let position = reader.position(item.span());
    let Some(table) = item.as_table_like() else {
        reader.problem(position, &entry.path, format!("\"match\" must be a table: write {MATCH}"));
        return None;
    };
    let inner = Entry { path: format!("{}.match", entry.path), position, table };
    reader.only(&inner, &["site", "label"]);
    let site = reader
        .text(&inner, "site", "\"north\"")
        .and_then(|text| reader.read_name(&inner.path, &text));
    let mut labels = BTreeMap::new();
    if let Some(item) = table.get("label") {
        let position = reader.position(item.span());
        match item.as_table_like() {
            Some(table) => {
                let path = format!("{}.label", inner.path);
                labels = read_labels(reader, &Entry { path, position, table });
            }
            None => reader.problem(
                position,
                &inner.path,
                "\"label\" needs the label's name: write label.class = \"ct\"",
            ),
        }
    }
    if table.is_empty() {
        let message = format!("an empty match would hold every device: write {MATCH}");
        reader.problem(position, &inner.path, message);
    }
    Some(Match { site, labels })
}

fn read_labels(reader: &mut Reader<'_>, entry: &Entry<'_>) -> BTreeMap<Name, String> {
    let mut labels = BTreeMap::new();
    for (key, item) in entry.table.iter() {
        let position = reader.position(item.span());
        let text = At { value: key.to_owned(), position };
        let Some(name) = reader.read_name(&entry.path, &text) else { continue };
        if let Some(value) = reader.text(entry, key, "\"ct\"") {
            labels.insert(name.value, value.value);
        }
    }
    labels
}

fn service(reader: &mut Reader<'_>, name: &Name, entry: &Entry<'_>) -> Option<Service> {
    reader.only(entry, &["ports", "patient_data", "maintenance"]);
    if let Some(built_in) = service_catalog::find(name.as_str()) {
        let message = format!(
            "\"{name}\" is built in ({}) and can't be defined again: choose another name",
            built_in.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        );
        reader.problem(entry.position, &entry.path, message);
    }
    let mut ports: Vec<PortMatch> = Vec::new();
    for text in reader.some_texts(entry, "ports", "[\"tcp/4006\"]") {
        match text.value.parse() {
            Ok(port) => ports.push(port),
            Err(error) => {
                let error: anteroom_proto::service::ParsePortMatchError = error;
                reader.problem(text.position, &entry.path, error.to_string());
            }
        }
    }
    ports.sort_unstable();
    ports.dedup();
    let mut said = |key| entry.table.contains_key(key).then(|| reader.truth(entry, key));
    let (patient_data, maintenance) = (said("patient_data"), said("maintenance"));
    Some(Service { position: entry.position, ports, patient_data, maintenance })
}

fn rule(reader: &mut Reader<'_>, _: &Name, entry: &Entry<'_>) -> Option<Rule> {
    let known = ["from", "to", "services", "clear", "essential", "expires", "reason"];
    reader.only(entry, &known);
    let (from, to, services) = ends(reader, entry);
    let (clear, essential) = (reader.truth(entry, "clear"), reader.truth(entry, "essential"));
    let expires =
        reader.datetime(entry, "expires", MOMENT).and_then(|moment| expiry(reader, entry, &moment));
    let reason = reader.text(entry, "reason", "\"PM ticket 4711\"").map(|text| text.value);
    Some(Rule {
        position: entry.position,
        from: from?,
        to: to?,
        services,
        clear,
        essential,
        expires,
        reason,
    })
}

fn test(reader: &mut Reader<'_>, _: &Name, entry: &Entry<'_>) -> Option<Test> {
    reader.only(entry, &["from", "to", "services", "expect"]);
    let (from, to, services) = ends(reader, entry);
    let expect =
        reader.name(entry, "expect", "\"deny\"").and_then(|word| match word.value.as_str() {
            "allow" => Some(Expect::Allow),
            "deny" => Some(Expect::Deny),
            other => {
                let hint = did_you_mean(other, ["allow", "deny"]);
                let message = format!("\"expect\" is \"allow\" or \"deny\", not \"{other}\"{hint}");
                reader.problem(word.position, &entry.path, message);
                None
            }
        });
    Some(Test { position: entry.position, from: from?, to: to?, services, expect: expect? })
}

type Ends = (Option<At<Name>>, Option<At<Name>>, Vec<At<Name>>);

fn ends(reader: &mut Reader<'_>, entry: &Entry<'_>) -> Ends {
    let from = reader.name(entry, "from", "\"ct\"");
    let to = reader.name(entry, "to", "\"pacs\"");
    let mut services = Vec::new();
    for text in reader.some_texts(entry, "services", "[\"dicom\"]") {
        if text.value.contains('/') {
            let port = cut(&text.value);
            let message = format!(
                "services go by name: add [service.NAME] with ports = [\"{port}\"] and write NAME here"
            );
            reader.problem(text.position, &entry.path, message);
        } else {
            let service = reader.read_name(&entry.path, &text);
            reader.services.extend(service.clone().map(|name| (entry.path.clone(), name)));
            // One that is named twice is named once.
            let known =
                |name: &At<Name>| services.iter().any(|at: &At<Name>| at.value == name.value);
            services.extend(service.filter(|name| !known(name)));
        }
    }
    (from, to, services)
}

const MOMENT: &str = "2026-12-01T18:00:00+01:00";

fn expiry(reader: &mut Reader<'_>, entry: &Entry<'_>, moment: &At<Datetime>) -> Option<UnixMillis> {
    let Datetime { date: Some(date), time: Some(time), offset: Some(offset) } = moment.value else {
        let message =
            format!("\"expires\" needs a date, a time and a zone: write expires = {MOMENT}");
        reader.problem(moment.position, &entry.path, message);
        return None;
    };
    let minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => minutes,
    };
    let millis = (|| {
        let second = i8::try_from(time.second.unwrap_or(0)).ok()?;
        let nanosecond = i32::try_from(time.nanosecond.unwrap_or(0)).ok()?;
        let (hour, minute) = (i8::try_from(time.hour).ok()?, i8::try_from(time.minute).ok()?);
        let time = jiff::civil::Time::new(hour, minute, second, nanosecond).ok()?;
        let offset = jiff::tz::Offset::from_seconds(i32::from(minutes) * 60).ok()?;
        offset.to_timestamp(day(&date)?.to_datetime(time)).ok()
    })()
    .and_then(|timestamp| u64::try_from(timestamp.as_millisecond()).ok());
    if millis.is_none() {
        let message = format!("\"expires\" is no moment after 1970: write expires = {MOMENT}");
        reader.problem(moment.position, &entry.path, message);
    }
    millis.map(UnixMillis)
}

fn review(reader: &mut Reader<'_>, entry: &Entry<'_>, moment: &At<Datetime>) -> Option<UnixMillis> {
    let midnight = match moment.value {
        Datetime { date: Some(date), time: None, offset: None } => day(&date)
            .and_then(|day| {
                jiff::tz::Offset::UTC
                    .to_timestamp(day.to_datetime(jiff::civil::Time::midnight()))
                    .ok()
            })
            .and_then(|timestamp| u64::try_from(timestamp.as_millisecond()).ok()),
        _ => None,
    };
    if midnight.is_none() {
        let message = "\"review\" is a day after 1970: write review = 2027-03-01";
        reader.problem(moment.position, &entry.path, message);
    }
    midnight.map(UnixMillis)
}

fn day(date: &toml_edit::Date) -> Option<jiff::civil::Date> {
    let (month, day) = (i8::try_from(date.month).ok()?, i8::try_from(date.day).ok()?);
    jiff::civil::Date::new(i16::try_from(date.year).ok()?, month, day).ok()
}
