//! `device list`, and what other commands ask of devices and sightings.

mod row;
mod show;

use std::collections::{BTreeMap, BTreeSet};

use anteroom_controller_core::classify::Field;
use anteroom_controller_core::model::{Attachment, Device, Model};
use anteroom_controller_core::names::Names;
use anteroom_controller_core::problem::did_you_mean;
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::standing::Standing;
use anteroom_controller_core::surface::Surfaces;
use anteroom_proto::api::SightingRecord;
use anteroom_proto::id::GatewayId;

use super::cables::Ports;
use super::covered::{CoverageRow, judged};
use super::enrol;
use super::holdings::Holdings;
use crate::args::{Label, SurfaceArgs};
use crate::change;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::table;
use crate::output::time::{ago, now};
use crate::recognised::{is as has_field, rows as rows_of, short};
use crate::remote::Remote;

use row::{DeviceRow, State, called, confirmed_row, labels, new_row, notes, port, shown_addresses};
pub(super) use show::show;

/// Whether `record` is a sighting of `device` where it was confirmed.
pub(super) fn is_of(record: &SightingRecord, device: &Device) -> bool {
    let place = &device.attachment;
    record.gateway == place.gateway
        && record.sighting.mac == place.mac
        && record.sighting.vlan == place.vlan
}

/// Sightings that are no confirmed device's.
pub(super) fn unconfirmed<'a>(
    model: &Model,
    sightings: &'a [SightingRecord],
) -> Vec<&'a SightingRecord> {
    let places = model.devices.values().map(|device| &device.attachment);
    let known: BTreeSet<_> = places.map(|place| (place.gateway, place.mac, place.vlan)).collect();
    // What a gateway saw that was revoked since is nobody's to confirm.
    let new = |record: &&SightingRecord| {
        let place = (record.gateway, record.sighting.mac, record.sighting.vlan);
        !model.revoked.contains_key(&record.gateway) && !known.contains(&place)
    };
    sightings.iter().filter(new).collect()
}

/// Names of gateways, those that wait for approval included.
pub(super) struct GatewayNames {
    names: Names,
    pending: BTreeMap<GatewayId, String>,
}

impl GatewayNames {
    pub(super) fn load(model: &Model, remote: &mut Remote) -> Result<Self, Error> {
        let list = remote.pending()?;
        let pending = list
            .iter()
            .filter_map(|pending| enrol::check(remote.chain(), pending).ok())
            .map(|c| (c.invite.gateway, format!("{} (not approved)", c.invite.name)))
            .collect();
        Ok(Self { names: Names::of(model), pending })
    }

    pub(super) fn get(&self, id: GatewayId) -> String {
        self.pending.get(&id).cloned().unwrap_or_else(|| self.names.gateway(id))
    }
}

/// An address alone, without the /32 that says nothing to people.
pub(super) fn address(net: &ipnet::Ipv4Net) -> String {
    if net.prefix_len() == 32 { net.addr().to_string() } else { format!("within {net}") }
}

/// The protect surface of every device; what labels alone say where the policy has problems (`resolved` is none).
pub(super) fn surfaces(model: &Model, resolved: Option<&Resolved>) -> Surfaces {
    resolved.map_or_else(|| Surfaces::of_labels(model), Surfaces::of)
}

/// `anteroom device list`.
pub(super) fn list(
    new: bool,
    wide: bool,
    is: &[Label],
    wanted: &SurfaceArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let fields = Field::ALL.map(Field::word);
    if let Some((key, _)) = is.iter().find(|(key, _)| !fields.contains(&key.as_str())) {
        return Err(Error::Usage(format!(
            "devices have no field {key}{}: {} are",
            did_you_mean(key.as_str(), fields),
            fields.join(", ")
        )));
    }
    let model = change::fetch(remote)?.model;
    let sighted = remote.sighted()?;
    let names = GatewayNames::load(&model, remote)?;
    sighted.warn_of_missing(|gateway| names.get(gateway), output)?;
    let sightings = sighted.records;
    let resolved = Resolved::new(&model).ok();
    let (coverages, recognised) = judged(resolved.as_ref(), remote)?;
    let stranger = |record: &SightingRecord| DeviceRow {
        claims: rows_of(&recognised.stranger(&place_of(record))),
        ..new_row(record, &model, &names)
    };
    let mut rows: Vec<DeviceRow> =
        unconfirmed(&model, &sightings).into_iter().map(stranger).collect();
    let holdings = Holdings::new(&model, &sightings);
    if !new {
        let ports = Ports::of(&model);
        let surfaces = surfaces(&model, resolved.as_ref());
        let statuses = remote.gateways()?;
        let standing = Standing::of(&model, &statuses);
        let confirmed =
            model.devices.iter().map(|(id, device)| DeviceRow {
                coverage: coverages.get(id).map(CoverageRow::new),
                claims: rows_of(&recognised.device(*id, device)),
                ..confirmed_row(*id, device, &model, (&ports, &holdings), &surfaces, &names)
                    .with_told((*id, device), &model, &statuses, &standing)
            });
        rows.extend(confirmed);
    }
    rows.retain(|row| is.iter().all(|wanted| has_field(&row.claims, wanted)));
    rows.sort_by(|a, b| {
        (a.name.is_none(), &a.name, &a.mac).cmp(&(b.name.is_none(), &b.name, &b.mac))
    });
    rows.retain(|row| wanted.fits(&row.surface));
    wanted.sort(&mut rows, |row| [&row.surface, &row.surface]);
    if rows.is_empty() && wanted.chooses() {
        output.data(&rows, |_| "No device fits.".to_owned())?;
        return Ok(Exit::Ok);
    }
    output.data(&rows, |rows| render(rows, new, wide, !is.is_empty()))?;
    Ok(Exit::Ok)
}

/// What a column says of a device.
type Cell<'a> = Box<dyn Fn(&DeviceRow) -> String + 'a>;

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn render(rows: &[DeviceRow], only_new: bool, wide: bool, filtered: bool) -> String {
    if rows.is_empty() && filtered {
        return "No device is taken for that. `anteroom device list` shows them all.".into();
    }
    if rows.is_empty() {
        return if only_new {
            "Nothing new: every device that gateways see is confirmed.".into()
        } else {
            "No devices yet. They appear by themselves as soon as they send something through a gateway.".into()
        };
    }
    let now = now();
    let any_critical = rows.iter().any(|row| row.surface.criticality.is_some());
    let mut columns: Vec<(&str, Cell<'_>)> = vec![("DEVICE", Box::new(called))];
    if !only_new {
        columns.push(("MODE", Box::new(|row| row.mode.clone().unwrap_or_else(|| "-".into()))));
    }
    if wide || only_new {
        columns.push(("GATEWAY", Box::new(|row| row.gateway.clone())));
        columns.push(("PORT", Box::new(port)));
    }
    if wide {
        columns.push(("MAC", Box::new(|row| row.mac.clone())));
    }
    columns.push(("ADDRESSES", Box::new(shown_addresses)));
    if wide || any_critical {
        columns.push(("CRITICALITY", Box::new(|row| or_dash(row.surface.criticality.as_ref()))));
    }
    if wide {
        columns.push(("LABELS", Box::new(labels)));
    }
    columns.push(("TAKEN FOR", Box::new(|row| short(&row.claims))));
    if wide || only_new {
        let seen = move |row: &DeviceRow| row.last_seen.map_or("never".into(), |at| ago(at.0, now));
        columns.push(("LAST SEEN", Box::new(seen)));
    }
    if !only_new {
        let coverage = |row: &DeviceRow| or_dash(row.coverage.as_ref().map(CoverageRow::short));
        columns.push(("COVERAGE", Box::new(coverage)));
    }
    columns.push(("NOTES", Box::new(notes)));
    let headers: Vec<&str> = columns.iter().map(|(header, _)| *header).collect();
    let lines = rows.iter().map(|row| columns.iter().map(|(_, cell)| cell(row)).collect());
    let mut text = table(&headers, lines);
    if rows.iter().any(|row| row.state == State::New) {
        text.push_str("\nTo take a new one in: anteroom device confirm MAC --name NAME");
    }
    text
}

/// Where whatever was sighted is.
pub(super) fn place_of(record: &SightingRecord) -> Attachment {
    let sighting = &record.sighting;
    Attachment {
        gateway: record.gateway,
        port: sighting.port.clone(),
        vlan: sighting.vlan,
        mac: sighting.mac,
    }
}
