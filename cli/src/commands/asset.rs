//! `asset compare`; what takes something over is in [`super::asset_import`].

use std::collections::BTreeMap;

use anteroom_controller_core::assets::{
    Asset, Contradiction, Difference, Key, Known, Match, Matched, Mds2, Problem, Report, Sure,
    compare,
};
use anteroom_controller_core::model::Model;
use anteroom_controller_core::names::Names;
use anteroom_controller_core::spreadsheet;
use anteroom_proto::api::SightingRecord;
use anteroom_proto::name::Name;
use serde::Serialize;

use super::device::{place_of, unconfirmed};
use super::holdings::Holdings;
use crate::args::{AssetCommand, ListArgs};
use crate::change;
use crate::error::{Error, Exit};
use crate::lists::{self, Lists};
use crate::output::Output;
use crate::output::table::{count, join, table};
use crate::output::time::{Moment, ago, now};
use crate::recognised::Recognised;
use crate::remote::Remote;

/// Most lines of one table that people get to see; JSON and CSV have all.
const LINES: usize = 200;

/// Does what `command` says.
pub(super) fn run(
    command: AssetCommand,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    match command {
        AssetCommand::Compare { lists, csv } => show(&lists, csv, remote, output),
        AssetCommand::Import(args) => super::asset_import::import(*args, remote, output),
    }
}

/// Lists, what they were compared with, and what came out.
pub(super) struct Compared {
    pub(super) lists: Lists,
    pub(super) known: Vec<Known>,
    pub(super) report: Report,
}

impl Compared {
    pub(super) fn load(
        args: &ListArgs,
        model: &Model,
        sightings: &[SightingRecord],
        recognised: &Recognised,
    ) -> Result<Self, Error> {
        let columns: BTreeMap<String, String> = args.columns.iter().cloned().collect();
        let lists = lists::read(&args.files, &columns)?;
        if let Some(site) = &args.site
            && !model.gateways.values().any(|gateway| gateway.site == *site)
        {
            return Err(Error::Usage(format!(
                "no gateway stands in a site \"{site}\": `anteroom gateway list` shows them"
            )));
        }
        let known = known(model, sightings, recognised, args.site.as_ref());
        let report = compare(&lists.list, &known);
        Ok(Self { lists, known, report })
    }
}

/// Everything that is confirmed or was seen, in one site or in all.
pub(super) fn known(
    model: &Model,
    sightings: &[SightingRecord],
    recognised: &Recognised,
    site: Option<&Name>,
) -> Vec<Known> {
    let here = |gateway| {
        let found = model.gateways.get(&gateway).map(|gateway| &gateway.site);
        site.is_none() || found == site
    };
    let holdings = Holdings::new(model, sightings);
    let mut newest: BTreeMap<_, &SightingRecord> = BTreeMap::new();
    for record in sightings {
        let place = (record.gateway, record.sighting.mac, record.sighting.vlan);
        let kept = newest.entry(place).or_insert(record);
        if kept.sighting.last_seen < record.sighting.last_seen {
            *kept = record;
        }
    }
    let mut all: Vec<Known> = Vec::new();
    for (id, device) in model.devices.iter().filter(|(_, device)| here(device.attachment.gateway)) {
        let place = &device.attachment;
        let seen = newest.get(&(place.gateway, place.mac, place.vlan));
        let label = |name: &str| device.labels.get(name).cloned();
        let fixed =
            device.addresses.iter().filter(|net| net.prefix_len() == 32).map(ipnet::Ipv4Net::addr);
        all.push(Known {
            key: Key::Member(*id),
            name: Some(device.name.clone()),
            mac: place.mac,
            addresses: fixed.chain(holdings.of(*id).iter().copied()).collect(),
            hostnames: label("hostname")
                .into_iter()
                .chain(recognised.host_names(place, Some(*id)))
                .collect(),
            serial: label("serial"),
            labels: device.labels.clone(),
            last_seen: seen.map(|record| record.sighting.last_seen),
        });
    }
    let new = unconfirmed(model, sightings).into_iter().filter(|record| here(record.gateway));
    all.extend(new.map(|record| Known {
        key: Key::Seen(record.gateway, record.sighting.mac),
        name: None,
        mac: record.sighting.mac,
        addresses: record.sighting.addresses.clone(),
        hostnames: recognised.host_names(&place_of(record), None),
        serial: None,
        labels: BTreeMap::new(),
        last_seen: Some(record.sighting.last_seen),
    }));
    all
}

#[derive(Debug, Serialize)]
struct Shown {
    matches: Vec<MatchRow>,
    /// Rows that no gateway has seen anything of.
    missing: Vec<Asset>,
    /// Devices that are in no list.
    unlisted: Vec<KnownRow>,
    contradictions: Vec<Contradiction>,
    problems: Vec<Problem>,
    more_problems: usize,
    unused_columns: Vec<String>,
    forms: Vec<FormRow>,
}

#[derive(Debug, Serialize)]
struct MatchRow {
    place: String,
    listed: Option<String>,
    #[serde(flatten)]
    device: KnownRow,
    by: Vec<Matched>,
    sure: Sure,
    differences: Vec<Difference>,
}

#[derive(Debug, Clone, Serialize)]
struct KnownRow {
    /// None where nobody has confirmed it.
    device: Option<Name>,
    mac: String,
    addresses: Vec<String>,
    last_seen: Option<Moment>,
}

#[derive(Debug, Serialize)]
struct FormRow {
    #[serde(flatten)]
    form: Mds2,
    /// Devices of this model, by their labels or by the lists.
    devices: Vec<String>,
}

impl KnownRow {
    fn new(known: &Known) -> Self {
        Self {
            device: known.name.clone(),
            mac: known.mac.to_string(),
            addresses: known.addresses.iter().map(ToString::to_string).collect(),
            last_seen: known.last_seen.map(Moment),
        }
    }

    fn called(&self) -> String {
        self.device.as_ref().map_or_else(|| "not confirmed".to_owned(), ToString::to_string)
    }
}

fn show(
    args: &ListArgs,
    csv: bool,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let sighted = remote.sighted()?;
    let names = Names::of(&model);
    sighted.warn_of_missing(|gateway| names.gateway(gateway), output)?;
    let sightings = sighted.records;
    let recognised = Recognised::load(remote, None)?;
    let Compared { lists, known, report } = Compared::load(args, &model, &sightings, &recognised)?;
    let forms = lists
        .forms
        .iter()
        .map(|form| FormRow { form: form.clone(), devices: about(form, &lists, &known, &report) });
    let matches = report.matches.iter().map(|found| {
        let Match { asset, known: at, by, sure, differences } = found.clone();
        let row = &lists.list.assets[asset];
        MatchRow {
            place: row.place.clone(),
            listed: row.name.clone(),
            device: KnownRow::new(&known[at]),
            by,
            sure,
            differences,
        }
    });
    let shown = Shown {
        matches: matches.collect(),
        missing: report.missing.iter().map(|row| lists.list.assets[*row].clone()).collect(),
        unlisted: report.unlisted.iter().map(|at| KnownRow::new(&known[*at])).collect(),
        contradictions: report.contradictions.clone(),
        forms: forms.collect(),
        problems: lists.list.problems,
        more_problems: lists.list.more_problems,
        unused_columns: lists.list.unused,
    };
    if csv && !output.is_json() {
        // The terminal's lines end as its own do.
        output.data(&shown, |shown| as_csv(shown).replace("\r\n", "\n"))?;
    } else {
        output.data(&shown, render)?;
    }
    Ok(Exit::Ok)
}

/// Devices of the model that a form is about.
fn about(form: &Mds2, lists: &Lists, known: &[Known], report: &Report) -> Vec<String> {
    let label = |labels: &BTreeMap<Name, String>, name: &str| labels.get(name).cloned();
    let fits = |labels: &BTreeMap<Name, String>| {
        let model = label(labels, "model");
        model.is_some_and(|model| form.is_about(label(labels, "vendor").as_deref(), &model))
    };
    let listed =
        report.matches.iter().filter(|found| fits(&lists.list.assets[found.asset].attributes));
    let by_label = (0..known.len()).filter(|at| fits(&known[*at].labels));
    let mut places: Vec<usize> = listed.map(|found| found.known).chain(by_label).collect();
    places.sort_unstable();
    places.dedup();
    let called = |at: usize| {
        known[at].name.as_ref().map_or_else(|| known[at].mac.to_string(), ToString::to_string)
    };
    places.into_iter().map(called).collect()
}

fn differences(list: &[Difference]) -> String {
    join(
        list.iter().map(|one| {
            format!("{}: list has \"{}\", here \"{}\"", one.field, one.listed, one.known)
        }),
    )
}

fn as_csv(shown: &Shown) -> String {
    let row = |result: &str, place: &str, listed: &str, device: &KnownRow, rest: [String; 3]| {
        let seen = device.last_seen.map(|at| at.to_string()).unwrap_or_default();
        let cells = [result, place, listed].map(str::to_owned).into_iter();
        let own = [
            device.device.as_ref().map(ToString::to_string).unwrap_or_default(),
            device.mac.clone(),
            device.addresses.join(" "),
            seen,
        ];
        cells.chain(own).chain(rest).collect::<Vec<String>>()
    };
    let none =
        KnownRow { device: None, mac: String::new(), addresses: Vec::new(), last_seen: None };
    let mut rows = Vec::new();
    for found in &shown.matches {
        let rest = [
            found.sure.to_string(),
            join(&found.by),
            if found.differences.is_empty() {
                String::new()
            } else {
                differences(&found.differences)
            },
        ];
        rows.push(row(
            "match",
            &found.place,
            found.listed.as_deref().unwrap_or_default(),
            &found.device,
            rest,
        ));
    }
    for asset in &shown.missing {
        rows.push(row(
            "missing",
            &asset.place,
            asset.name.as_deref().unwrap_or_default(),
            &none,
            [const { String::new() }; 3],
        ));
    }
    for device in &shown.unlisted {
        rows.push(row("unlisted", "", "", device, [const { String::new() }; 3]));
    }
    for one in &shown.contradictions {
        rows.push(row(
            "contradiction",
            &one.places.join(" "),
            "",
            &none,
            [String::new(), String::new(), one.problem.clone()],
        ));
    }
    for one in &shown.problems {
        rows.push(row(
            "unreadable",
            &one.place,
            "",
            &none,
            [String::new(), String::new(), one.problem.clone()],
        ));
    }
    spreadsheet::csv(
        &[
            "RESULT",
            "PLACE",
            "LISTED AS",
            "DEVICE",
            "MAC",
            "ADDRESSES",
            "LAST SEEN",
            "SURE",
            "BY",
            "REMARKS",
        ],
        rows,
    )
}

fn cut<T>(lines: &mut Vec<T>) -> String {
    let more = lines.len().saturating_sub(LINES);
    lines.truncate(LINES);
    if more > 0 { format!("\nand {more} more: --csv and --json have them") } else { String::new() }
}

fn render(shown: &Shown) -> String {
    let now = now();
    let seen = |at: Option<Moment>| at.map_or_else(|| "NEVER".to_owned(), |at| ago(at.0, now));
    let mut text = String::new();
    let mut section = |title: String, headers: &[&str], mut lines: Vec<Vec<String>>| {
        if !lines.is_empty() {
            let more = cut(&mut lines);
            text.push_str(&format!("{title}:\n{}{more}\n\n", table(headers, lines)));
        }
    };
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let lines = shown.matches.iter().map(|found| {
        vec![
            found.place.clone(),
            dash(&found.listed),
            found.device.called(),
            found.device.mac.clone(),
            found.sure.to_string(),
            join(&found.by),
            seen(found.device.last_seen),
            if found.differences.is_empty() { "-".into() } else { differences(&found.differences) },
        ]
    });
    section(
        format!("{} a device", count(shown.matches.len(), "row is", "rows are each")),
        &["PLACE", "LISTED AS", "DEVICE", "MAC", "SURE", "BY", "LAST SEEN", "DIFFERS IN"],
        lines.collect(),
    );
    let lines = shown.missing.iter().map(|asset| {
        vec![
            asset.place.clone(),
            dash(&asset.name),
            join(&asset.macs),
            join(&asset.addresses),
            dash(&asset.serial),
        ]
    });
    section(
        format!("{} listed, and never seen by a gateway", shown.missing.len()),
        &["PLACE", "LISTED AS", "MAC", "ADDRESSES", "SERIAL NUMBER"],
        lines.collect(),
    );
    let lines = shown.unlisted.iter().map(|device| {
        vec![device.called(), device.mac.clone(), join(&device.addresses), seen(device.last_seen)]
    });
    section(
        format!("{} seen or confirmed, and in no list", shown.unlisted.len()),
        &["DEVICE", "MAC", "ADDRESSES", "LAST SEEN"],
        lines.collect(),
    );
    let lines =
        shown.contradictions.iter().map(|one| vec![one.places.join(" "), one.problem.clone()]);
    section("Contradictions".into(), &["PLACE", "WHAT"], lines.collect());
    let lines = shown.problems.iter().map(|one| vec![one.place.clone(), one.problem.clone()]);
    let more = if shown.more_problems > 0 {
        format!(", and {} more", shown.more_problems)
    } else {
        String::new()
    };
    section(format!("Not read{more}"), &["PLACE", "WHY"], lines.collect());
    for FormRow { form, devices } in &shown.forms {
        let answers = form.telling().map(|answer| {
            let note = answer.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
            vec![
                answer.id.clone(),
                answer.question.chars().take(90).collect(),
                format!("{}{note}", answer.answer),
            ]
        });
        text.push_str(&format!(
            "MDS2 of {} {} (HN 1-{}, {}): {}\n{}\n\n",
            form.manufacturer,
            form.model,
            form.edition,
            form.place,
            if devices.is_empty() {
                "no device has this model by its labels or a list".to_owned()
            } else {
                join(devices)
            },
            table(&["QUESTION", "", "ANSWER"], answers)
        ));
    }
    if !shown.unused_columns.is_empty() {
        text.push_str(&format!(
            "Nothing was taken from the columns {}.\n",
            join(&shown.unused_columns)
        ));
    }
    let unseen = shown.matches.iter().filter(|found| found.device.last_seen.is_none()).count();
    let sure = shown.matches.iter().filter(|found| found.sure >= Sure::High).count();
    text.push_str(&format!(
        "{} matched ({sure} by Ethernet address or serial number, {unseen} of them never seen), {} missing, {} unlisted, {}.",
        count(shown.matches.len(), "row", "rows"),
        shown.missing.len(),
        shown.unlisted.len(),
        count(shown.contradictions.len(), "contradiction", "contradictions"),
    ));
    text
}
