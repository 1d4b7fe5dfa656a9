//! `asset import`: what lists say of devices, taken over and signed.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_controller_core::assets::{Asset, Key, Matched, Sure, slug};
use anteroom_controller_core::edit::EditError;
use anteroom_controller_core::model::{Device, Model};
use anteroom_controller_core::names::Names;
use anteroom_controller_core::sighted::Chosen;
use anteroom_proto::api::SightingRecord;
use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;

use super::asset::Compared;
use super::device_change::{addresses, join_port, member_id, seen_device};
use crate::args::{AssetImport, SureChoice};
use crate::change::{self, Current, Request};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{count, table};
use crate::recognised::Recognised;
use crate::remote::Remote;

/// Most lines of what is taken that people get to see before the plan, which has them again.
const LINES: usize = 200;

/// What is to be taken over.
#[derive(Debug, Default)]
struct Takes {
    /// Labels of confirmed devices: name, label, what it was, what it will be.
    labels: Vec<(Name, Name, Option<String>, String)>,
    /// Names of confirmed devices: what it was, what it will be.
    names: Vec<(Name, Name)>,
    /// Devices to confirm.
    devices: Vec<(MemberId, Device)>,
    /// What isn't taken, and why.
    left: Vec<(String, String)>,
}

/// `anteroom asset import`.
pub(super) fn import(
    args: AssetImport,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let current = change::fetch(remote)?;
    let model = &current.model;
    let sighted = remote.sighted()?;
    let names = Names::of(model);
    sighted.warn_of_missing(|gateway| names.gateway(gateway), output)?;
    let sightings = sighted.records;
    let recognised = Recognised::load(remote, None)?;
    let compared = Compared::load(&args.lists, model, &sightings, &recognised)?;
    let takes = takes(&args, &compared, &current, &sightings, remote)?;
    let list = &compared.lists.list;
    if !list.problems.is_empty() {
        output.warn(format_args!(
            "{} in the lists can't be read and are left out: `anteroom asset compare` names them",
            count(list.problems.len() + list.more_problems, "value", "values")
        ))?;
    }
    told(&takes, output)?;
    let files: Vec<String> = args
        .lists
        .files
        .iter()
        .map(|path| {
            path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
        })
        .collect();
    let subject = format!(
        "{} by {}",
        count(takes.touched(), "device", "devices"),
        files.join(", ").chars().take(200).collect::<String>()
    );
    let mut request = Request::new("asset import", subject, args.change);
    request.force = args.force;
    request.reason_needed = args.force;
    change::make(remote, output, request, &|model, number| takes.apply(model, number))
}

fn told(takes: &Takes, output: &mut Output<'_>) -> Result<(), Error> {
    let none = || "-".to_owned();
    let labels = takes.labels.iter().map(|(device, label, before, after)| {
        vec![
            device.to_string(),
            label.to_string(),
            before.clone().unwrap_or_else(none),
            after.clone(),
        ]
    });
    let names = takes.names.iter().map(|(before, after)| {
        vec![before.to_string(), "name".into(), before.to_string(), after.to_string()]
    });
    let new = takes.devices.iter().map(|(_, device)| {
        vec![device.name.to_string(), "confirmed".into(), none(), device.attachment.mac.to_string()]
    });
    let mut lines: Vec<Vec<String>> = new.chain(names).chain(labels).collect();
    let more = lines.len().saturating_sub(LINES);
    lines.truncate(LINES);
    if !lines.is_empty() {
        output.note(table(&["DEVICE", "WHAT", "BEFORE", "AFTER"], lines))?;
    }
    if more > 0 {
        output.note(format_args!("and {more} more"))?;
    }
    let left = takes.left.iter().take(LINES).map(|(what, why)| vec![what.clone(), why.clone()]);
    if !takes.left.is_empty() {
        output.note(format_args!(
            "{} not taken:\n{}",
            takes.left.len(),
            table(&["WHAT", "WHY"], left)
        ))?;
    }
    Ok(())
}

/// What a row says of a field.
fn value<'a>(asset: &'a Asset, field: &Name) -> Option<&'a str> {
    match field.as_str() {
        "serial" => asset.serial.as_deref(),
        "hostname" => asset.hostname.as_deref(),
        _ => asset.attributes.get(field).map(String::as_str),
    }
}

fn takes(
    args: &AssetImport,
    compared: &Compared,
    current: &Current,
    sightings: &[SightingRecord],
    remote: &mut Remote,
) -> Result<Takes, Error> {
    let model = &current.model;
    let least = match args.sure {
        SureChoice::Certain => Sure::Certain,
        SureChoice::High => Sure::High,
        SureChoice::Medium => Sure::Medium,
        SureChoice::Low => Sure::Low,
    };
    let mut takes = Takes::default();
    let mut seen = Vec::new();
    let (rename, fields): (Vec<&Name>, Vec<&Name>) =
        args.take.iter().partition(|field| field.as_str() == "name");
    let mut taken: BTreeSet<Name> =
        model.devices.values().map(|device| device.name.clone()).collect();
    for found in &compared.report.matches {
        let (asset, known) =
            (&compared.lists.list.assets[found.asset], &compared.known[found.known]);
        let called = known.name.as_ref().map_or_else(|| known.mac.to_string(), ToString::to_string);
        if found.sure < least {
            takes.left.push((
                format!("{} ({called})", asset.place),
                format!("the match is no surer than {}", found.sure),
            ));
            continue;
        }
        let wanted = asset.name.as_deref().or(asset.hostname.as_deref()).and_then(slug);
        match (known.key, &known.name) {
            (Key::Member(_), Some(name)) => {
                for field in &fields {
                    let Some(listed) = value(asset, field) else { continue };
                    match known.labels.get(*field) {
                        Some(own) if own == listed => {}
                        Some(own) if !args.overwrite => {
                            let why = format!(
                                "an operator has set \"{own}\": --overwrite replaces it by \"{listed}\""
                            );
                            takes.left.push((format!("{name} {field}"), why));
                        }
                        own => takes.labels.push((
                            name.clone(),
                            (*field).clone(),
                            own.cloned(),
                            listed.to_owned(),
                        )),
                    }
                }
                let listed = asset.name.as_deref().and_then(slug);
                if let Some(listed) = listed.filter(|listed| !rename.is_empty() && listed != name) {
                    if taken.insert(listed.clone()) {
                        takes.names.push((name.clone(), listed));
                    } else {
                        takes
                            .left
                            .push((format!("{name} name"), format!("the name {listed} is taken")));
                    }
                }
            }
            (Key::Seen(gateway, mac), _) if args.new => {
                let what = format!("{} ({mac})", asset.place);
                let record = sightings
                    .iter()
                    .find(|record| record.gateway == gateway && record.sighting.mac == mac);
                let (Some(record), true) = (record, found.by.first() == Some(&Matched::Mac)) else {
                    takes.left.push((
                        what,
                        "only an Ethernet address is enough to confirm a device".into(),
                    ));
                    continue;
                };
                let Some(name) = wanted else {
                    takes.left.push((what, "the list has no name for it".into()));
                    continue;
                };
                if !taken.insert(name.clone()) {
                    takes.left.push((what, format!("the name {name} is taken")));
                    continue;
                }
                let labels: BTreeMap<Name, String> = fields
                    .iter()
                    .filter_map(|field| Some(((*field).clone(), value(asset, field)?.to_owned())))
                    .collect();
                seen.push((what, name, record, labels));
            }
            _ => takes.left.push((
                format!("{} ({called})", asset.place),
                "nobody has confirmed it: --new does".into(),
            )),
        }
    }
    let records: Vec<&SightingRecord> = seen.iter().map(|(_, _, record, _)| *record).collect();
    let chosen = addresses(remote, model, sightings, &records)?;
    for ((what, name, record, labels), chosen) in seen.into_iter().zip(chosen) {
        let device = seen_device(name, record, chosen.address, labels);
        takes.confirm(what, device, &chosen, current);
    }
    Ok(takes)
}

impl Takes {
    /// Takes a device that nobody has confirmed, if it is sure which address is its own.
    fn confirm(
        &mut self,
        what: String,
        mut device: Device,
        chosen: &Chosen,
        Current { base, model, .. }: &Current,
    ) {
        if let Some((address, doubt)) = chosen.foreign().next() {
            let why = format!(
                "it was seen with {address}, and {doubt}: `anteroom device confirm {} --address` takes the address \
                 that it has",
                device.attachment.mac
            );
            self.left.push((what, why));
            return;
        }
        if device.addresses.is_empty() {
            self.left.push((what, "no IPv4 address of it was seen yet".into()));
            return;
        }
        for (address, doubt) in &chosen.left {
            self.left.push((format!("{} {address}", device.name), doubt.to_string()));
        }
        if let Err(why) = join_port(&mut device, model) {
            self.left.push((what, why));
            return;
        }
        self.devices.push((member_id(&base.hash, &device.attachment), device));
    }

    fn touched(&self) -> usize {
        let labels = self.labels.iter().map(|(name, ..)| name);
        let names = self.names.iter().map(|(name, _)| name);
        let new = self.devices.iter().map(|(_, device)| &device.name);
        labels.chain(names).chain(new).collect::<BTreeSet<_>>().len()
    }

    fn apply(&self, model: &mut Model, number: u64) -> Result<(), EditError> {
        let mut labels: BTreeMap<&Name, Vec<(Name, Option<String>)>> = BTreeMap::new();
        for (device, label, _, after) in &self.labels {
            labels.entry(device).or_default().push((label.clone(), Some(after.clone())));
        }
        for (device, labels) in labels {
            model.label_device(device.as_str(), &labels)?;
        }
        model.confirm_devices(
            self.devices
                .iter()
                .map(|(id, device)| (*id, Device { mode_since: number, ..device.clone() })),
        )?;
        model.rename_devices(
            self.names.iter().map(|(before, after)| (before.as_str(), after.clone())),
        )
    }
}
