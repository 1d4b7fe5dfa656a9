//! A list against what is known: what matches and how surely, what is missing, what nobody listed, what contradicts itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::Hash;
use std::net::Ipv4Addr;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use serde::Serialize;

use super::{Asset, AssetList};

/// A device that is known: confirmed, or only seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Known {
    /// Which one.
    pub key: Key,
    /// What operators call it; none where nobody has confirmed it.
    pub name: Option<Name>,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its addresses: pinned, held or used.
    pub addresses: Vec<Ipv4Addr>,
    /// Names that it goes by: by labels, or by what it lets be seen.
    pub hostnames: Vec<String>,
    /// Its serial number, where a label has it.
    pub serial: Option<String>,
    /// Labels that operators confirmed.
    pub labels: BTreeMap<Name, String>,
    /// When a gateway last saw it; none where none ever did.
    pub last_seen: Option<UnixMillis>,
}

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// A confirmed one.
    Member(MemberId),
    /// One that was seen behind a gateway, and confirmed by nobody.
    Seen(GatewayId, MacAddr),
}

/// By what a row and a device were found to be the same, surest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matched {
    /// The same Ethernet address.
    Mac,
    /// The same serial number.
    Serial,
    /// The same host name, or the name that operators gave it.
    Hostname,
    /// The same address, and nothing else: addresses are given out anew.
    Address,
}

/// How sure a match is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sure {
    /// By an address alone.
    Low,
    /// By a name.
    Medium,
    /// By the Ethernet address or serial number, while something else speaks against it.
    High,
    /// By the Ethernet address or serial number, and nothing that identifies speaks against it.
    Certain,
}

impl fmt::Display for Sure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Certain => "certain",
        })
    }
}

impl fmt::Display for Matched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Mac => "MAC",
            Self::Serial => "serial number",
            Self::Hostname => "host name",
            Self::Address => "address alone",
        })
    }
}

/// A row that is a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Match {
    /// The place of the row in the list.
    pub asset: usize,
    /// The place of the device among those known.
    pub known: usize,
    /// By what, surest first.
    pub by: Vec<Matched>,
    /// How sure that is.
    pub sure: Sure,
    /// Where list and model or traffic say different things.
    pub differences: Vec<Difference>,
}

/// What a list says otherwise than the model or the traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Of what: `address`, `hostname`, a label.
    pub field: String,
    /// What the list has.
    pub listed: String,
    /// What is known here.
    pub known: String,
}

/// Something that can't be right as it stands in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contradiction {
    /// Where: the rows.
    pub places: Vec<String>,
    /// What.
    pub problem: String,
}

/// What a comparison finds. Rows and devices are named by their places.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Rows that are a device, in the list's order.
    pub matches: Vec<Match>,
    /// Rows that no gateway has ever seen anything of.
    pub missing: Vec<usize>,
    /// Devices that were seen, or confirmed, and are in no row.
    pub unlisted: Vec<usize>,
    /// What contradicts itself.
    pub contradictions: Vec<Contradiction>,
}

/// Most contradictions that are kept.
const MAX_CONTRADICTIONS: usize = 10_000;

/// Devices by one of their marks; a mark that several have identifies none.
type Index<K> = BTreeMap<K, Vec<usize>>;

fn index<K: Ord>(marks: impl Iterator<Item = (K, usize)>) -> Index<K> {
    let mut index: Index<K> = BTreeMap::new();
    for (mark, place) in marks {
        let places = index.entry(mark).or_default();
        if !places.contains(&place) && places.len() < 16 {
            places.push(place);
        }
    }
    index
}

/// A serial number as it is compared: people write it with spaces, dashes and leading zeros, or without.
fn serial(text: &str) -> Option<String> {
    let text: String =
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_uppercase).collect();
    let text = text.trim_start_matches('0');
    (text.len() >= 2).then(|| text.to_owned())
}

/// A host name as it is compared: the first label, in small letters.
fn hostname(text: &str) -> Option<String> {
    let text = text.trim().to_lowercase();
    let first = text.split('.').next().unwrap_or_default().trim_end_matches('$');
    let plain = !first.is_empty() && !first.contains(char::is_whitespace) && first != "localhost";
    plain.then(|| first.to_owned())
}

struct Marks {
    macs: Index<MacAddr>,
    serials: Index<String>,
    names: Index<String>,
    addresses: Index<Ipv4Addr>,
}

impl Marks {
    fn of(known: &[Known]) -> Self {
        let all = || known.iter().enumerate();
        Self {
            macs: index(all().map(|(at, one)| (one.mac, at))),
            serials: index(
                all().filter_map(|(at, one)| Some((serial(one.serial.as_deref()?)?, at))),
            ),
            names: index(all().flat_map(|(at, one)| {
                let own = one.name.iter().map(Name::as_str);
                let names =
                    own.chain(one.hostnames.iter().map(String::as_str)).filter_map(hostname);
                names.map(move |name| (name, at)).collect::<Vec<_>>()
            })),
            addresses: index(
                all().flat_map(|(at, one)| one.addresses.iter().map(move |address| (*address, at))),
            ),
        }
    }

    /// The devices that a row's marks name, by each kind of mark.
    fn candidates(&self, asset: &Asset) -> BTreeMap<Matched, BTreeSet<usize>> {
        let mut found: BTreeMap<Matched, BTreeSet<usize>> = BTreeMap::new();
        let mut add = |by: Matched, places: Option<&Vec<usize>>| {
            if let Some(places) = places {
                found.entry(by).or_default().extend(places);
            }
        };
        asset.macs.iter().for_each(|mac| add(Matched::Mac, self.macs.get(mac)));
        asset
            .serial
            .as_deref()
            .and_then(serial)
            .iter()
            .for_each(|one| add(Matched::Serial, self.serials.get(one)));
        let names = asset.hostname.iter().chain(&asset.name);
        names
            .filter_map(|name| hostname(name))
            .for_each(|name| add(Matched::Hostname, self.names.get(&name)));
        asset
            .addresses
            .iter()
            .for_each(|address| add(Matched::Address, self.addresses.get(address)));
        found
    }
}

/// Compares a list with what is known. A row matches by its Ethernet address before all else, then by serial number, host name, and address; each device is at most
/// one row's, and the surer row has it.
#[must_use]
pub fn compare(list: &AssetList, known: &[Known]) -> Report {
    let marks = Marks::of(known);
    let candidates: Vec<_> = list.assets.iter().map(|asset| marks.candidates(asset)).collect();
    let mut report = Report::default();
    let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
    let mut found: BTreeMap<usize, (usize, Matched)> = BTreeMap::new();
    let mut doubts: BTreeMap<usize, String> = BTreeMap::new();
    for by in [Matched::Mac, Matched::Serial, Matched::Hostname, Matched::Address] {
        for (row, candidates) in candidates.iter().enumerate() {
            if found.contains_key(&row) {
                continue;
            }
            let Some(places) = candidates.get(&by) else { continue };
            let places: Vec<usize> = places.iter().copied().collect();
            match places.as_slice() {
                [] => {}
                [place] => {
                    if let Some(other) = taken.get(place) {
                        let other = &list.assets[*other].place;
                        doubts.entry(row).or_insert_with(|| {
                            format!(
                                "its {by} is {}'s, which {other} is already",
                                called(&known[*place])
                            )
                        });
                    } else {
                        taken.insert(*place, row);
                        found.insert(row, (*place, by));
                    }
                }
                // Nor is it the one that no other row is: lists name a device twice, and labels are wrong.
                several => {
                    let names: Vec<String> =
                        several.iter().take(4).map(|place| called(&known[*place])).collect();
                    doubts.entry(row).or_insert_with(|| {
                        format!("its {by} is that of several: {}", names.join(", "))
                    });
                }
            }
        }
    }
    for (row, asset) in list.assets.iter().enumerate() {
        let Some((place, by)) = found.get(&row).copied() else {
            report.missing.push(row);
            if let Some(problem) = doubts.remove(&row) {
                report.contradict(vec![asset.place.clone()], problem);
            }
            continue;
        };
        let matched = matched(row, asset, place, &known[place], by, &candidates[row]);
        for (by, places) in &candidates[row] {
            if !places.contains(&place) && *by != Matched::Address {
                let others: Vec<String> =
                    places.iter().take(4).map(|other| called(&known[*other])).collect();
                let own = called(&known[place]);
                let first = matched.by[0];
                report.contradict(
                    vec![asset.place.clone()],
                    format!("by its {first} it is {own}, by its {by} {}", others.join(", ")),
                );
            }
        }
        report.matches.push(matched);
    }
    report.unlisted = (0..known.len()).filter(|place| !taken.contains_key(place)).collect();
    twice(&list.assets, &mut report);
    report
}

fn called(known: &Known) -> String {
    known.name.as_ref().map_or_else(|| known.mac.to_string(), ToString::to_string)
}

fn matched(
    row: usize,
    asset: &Asset,
    place: usize,
    known: &Known,
    by: Matched,
    candidates: &BTreeMap<Matched, BTreeSet<usize>>,
) -> Match {
    let all: Vec<Matched> = candidates
        .iter()
        .filter(|(_, places)| places.contains(&place))
        .map(|(by, _)| *by)
        .collect();
    // Of several interfaces that a list names, a gateway sees one.
    let against_mac = !asset.macs.is_empty() && !asset.macs.contains(&known.mac);
    let own = asset.serial.as_deref().and_then(serial);
    let theirs = known.serial.as_deref().and_then(serial);
    let against_serial = matches!((&own, &theirs), (Some(a), Some(b)) if a != b);
    let against = against_mac || against_serial;
    let sure = match by {
        Matched::Mac | Matched::Serial if against => Sure::High,
        Matched::Mac | Matched::Serial => Sure::Certain,
        Matched::Hostname if against => Sure::Low,
        Matched::Hostname => Sure::Medium,
        Matched::Address => Sure::Low,
    };
    let mut differences = Vec::new();
    let mut differ = |field: &str, listed: String, known: String| {
        differences.push(Difference { field: field.to_owned(), listed, known });
    };
    let join =
        |list: &[Ipv4Addr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if against_mac {
        let listed: Vec<String> = asset.macs.iter().map(ToString::to_string).collect();
        differ("mac", listed.join(", "), known.mac.to_string());
    }
    if against_serial {
        differ(
            "serial",
            asset.serial.clone().unwrap_or_default(),
            known.serial.clone().unwrap_or_default(),
        );
    }
    let shares = asset.addresses.iter().any(|address| known.addresses.contains(address));
    if !asset.addresses.is_empty() && !known.addresses.is_empty() && !shares {
        differ("address", join(&asset.addresses), join(&known.addresses));
    }
    if let Some(listed) = &asset.hostname
        && let Some(wanted) = hostname(listed)
        && !known.hostnames.is_empty()
        && !known.hostnames.iter().filter_map(|name| hostname(name)).any(|name| name == wanted)
    {
        differ("hostname", listed.clone(), known.hostnames.join(", "));
    }
    for (label, listed) in &asset.attributes {
        if let Some(value) = known.labels.get(label)
            && !value.eq_ignore_ascii_case(listed)
        {
            differ(label.as_str(), listed.clone(), value.clone());
        }
    }
    Match { asset: row, known: place, by: all, sure, differences }
}

/// Marks that two rows have.
fn twice(assets: &[Asset], report: &mut Report) {
    fn of<K: Ord + Hash + fmt::Display>(
        what: &str,
        marks: impl Iterator<Item = (K, usize)>,
        assets: &[Asset],
        report: &mut Report,
    ) {
        for (mark, rows) in index(marks).into_iter().filter(|(_, rows)| rows.len() > 1) {
            let places = rows.iter().map(|row| assets[*row].place.clone()).collect();
            report.contradict(places, format!("{} rows have the same {what} {mark}", rows.len()));
        }
    }
    let all = || assets.iter().enumerate();
    of(
        "Ethernet address",
        all().flat_map(|(at, one)| one.macs.iter().map(move |mac| (*mac, at))),
        assets,
        report,
    );
    of(
        "serial number",
        all().filter_map(|(at, one)| Some((serial(one.serial.as_deref()?)?, at))),
        assets,
        report,
    );
    of(
        "address",
        all().flat_map(|(at, one)| one.addresses.iter().map(move |address| (*address, at))),
        assets,
        report,
    );
}

impl Report {
    fn contradict(&mut self, places: Vec<String>, problem: String) {
        if self.contradictions.len() < MAX_CONTRADICTIONS {
            self.contradictions.push(Contradiction { places, problem });
        }
    }

    /// Matches of devices that are confirmed and were never seen.
    pub fn unseen<'a>(&'a self, known: &'a [Known]) -> impl Iterator<Item = &'a Match> {
        self.matches
            .iter()
            .filter(|found| known.get(found.known).is_some_and(|known| known.last_seen.is_none()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assets::read_csv;
    use crate::fixture::{gateway_id, mac, member_id, name};

    fn known(number: u32, called: &str, labels: &[(&str, &str)]) -> Known {
        Known {
            key: Key::Member(member_id(number)),
            name: Some(name(called)),
            mac: mac(number),
            addresses: vec![[10, 20, 1, number as u8].into()],
            hostnames: vec![],
            serial: labels
                .iter()
                .find(|(key, _)| *key == "serial")
                .map(|(_, value)| (*value).to_owned()),
            labels: labels.iter().map(|(key, value)| (name(key), (*value).to_owned())).collect(),
            last_seen: Some(UnixMillis(1)),
        }
    }

    fn found(text: &str, known: &[Known]) -> (AssetList, Report) {
        let list = read_csv("a.csv", text.as_bytes(), &BTreeMap::new()).unwrap();
        let report = compare(&list, known);
        (list, report)
    }

    #[test]
    fn rows_and_devices_find_each_other_by_what_is_surest() {
        let seen =
            Known { key: Key::Seen(gateway_id(1), mac(9)), name: None, ..known(9, "x", &[]) };
        let gone = Known { last_seen: None, ..known(5, "us-1", &[]) };
        let all = [
            known(1, "ct-1", &[("serial", "00-12 AB"), ("owner", "Radiology")]),
            known(2, "ct-2", &[("serial", "77")]),
            Known { hostnames: vec!["Pump3.ward.example".into()], ..known(3, "pump-3", &[]) },
            known(4, "mri-1", &[]),
            gone,
            seen,
        ];
        let text = format!(
            "asset,mac,serial,hostname,ip,owner\n\
             A1,{},12ab,,10.20.1.99,Surgery\n\
             A2,,77,,,\n\
             A3,,,PUMP3,,\n\
             A4,,,,10.20.1.4,\n\
             A5,00:1b:21:ff:ff:ff,,,,\n\
             us-1,,,,,\n",
            mac(1)
        );
        let (_, report) = found(&text, &all);
        let matches: Vec<_> =
            report.matches.iter().map(|m| (m.asset, m.known, m.sure, m.by[0])).collect();
        assert_eq!(
            matches,
            [
                (0, 0, Sure::Certain, Matched::Mac),
                (1, 1, Sure::Certain, Matched::Serial),
                (2, 2, Sure::Medium, Matched::Hostname),
                (3, 3, Sure::Low, Matched::Address),
                (5, 4, Sure::Medium, Matched::Hostname),
            ]
        );
        assert_eq!(report.matches[0].by, [Matched::Mac, Matched::Serial]);
        let fields: Vec<&str> =
            report.matches[0].differences.iter().map(|one| one.field.as_str()).collect();
        assert_eq!(fields, ["address", "owner"]);
        assert_eq!((report.missing.as_slice(), report.unlisted.as_slice()), (&[4][..], &[5][..]));
        assert_eq!(report.unseen(&all).map(|one| one.known).collect::<Vec<_>>(), [4]);
        assert!(report.contradictions.is_empty(), "{:?}", report.contradictions);
    }

    #[test]
    fn contradictions_are_told_and_nothing_is_guessed() {
        let all = [known(1, "ct-1", &[("serial", "12ab")]), known(2, "ct-2", &[("serial", "77")])];
        let text = format!(
            "asset,mac,serial,ip\nA1,{},77,\nA2,{0},,\nA3,,,10.20.1.2\nA4,,,10.20.1.2\n",
            mac(1)
        );
        let (_, report) = found(&text, &all);
        assert_eq!(report.matches.len(), 2, "{report:?}");
        assert_eq!(report.matches[0].sure, Sure::High, "the serial number speaks against it");
        let told: Vec<String> = report
            .contradictions
            .iter()
            .map(|one| format!("{}: {}", one.places.join(" "), one.problem))
            .collect();
        assert!(
            told.iter()
                .any(|one| one == "a.csv:2: by its MAC it is ct-1, by its serial number ct-2"),
            "{told:#?}"
        );
        assert!(
            told.iter()
                .any(|one| one.starts_with("a.csv:3: its MAC is ct-1's, which a.csv:2 is already")),
            "{told:#?}"
        );
        assert!(
            told.iter().any(
                |one| one.starts_with("a.csv:2 a.csv:3: 2 rows have the same Ethernet address")
            ),
            "{told:#?}"
        );
        assert!(
            told.iter()
                .any(|one| one
                    .starts_with("a.csv:4 a.csv:5: 2 rows have the same address 10.20.1.2")),
            "{told:#?}"
        );
        assert_eq!(report.missing, [1, 3]);
        let twins = [known(1, "ct-1", &[("serial", "77")]), known(2, "ct-2", &[("serial", "77")])];
        let (_, report) = found("asset,serial\nA,77\n", &twins);
        assert!(
            report.matches.is_empty()
                && report.contradictions[0].problem.contains("that of several: ct-1, ct-2"),
            "{report:?}"
        );
        // Nor is it the one that is left once another row has matched the other.
        let twice = format!("asset,mac,serial\nA,{},77\nA again,,77\n", mac(1));
        let (_, report) = found(&twice, &twins);
        assert_eq!((report.matches.len(), &report.missing[..]), (1, &[1][..]), "{report:?}");
    }

    #[test]
    fn a_large_hospital_is_compared_at_once() {
        let text: String = (0..50_000).map(|n| format!("A{n},S{n}\n")).collect();
        let devices: Vec<Known> = (0..20_000)
            .map(|n| Known { serial: Some(format!("S{n}")), ..known(n % 200, "x", &[]) })
            .collect();
        let (_, report) = found(&format!("asset,serial\n{text}"), &devices);
        assert_eq!((report.matches.len(), report.missing.len()), (20_000, 30_000));
    }
}
