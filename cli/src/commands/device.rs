//! `device list|show`.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_controller_core::blast::{BlastRadius, Radii, services};
use anteroom_controller_core::classify::Field;
use anteroom_controller_core::model::{Attachment, Device, Model};
use anteroom_controller_core::names::Names;
use anteroom_controller_core::problem::did_you_mean;
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::standing::Standing;
use anteroom_controller_core::surface::{
    CRITICALITY, KEYS, LOCATION, OWNER, SENSITIVITY, Surface, Surfaces,
};
use anteroom_proto::api::{EdgeQuery, GatewayStatus, SightingRecord};
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::inventory::Hint;
use anteroom_proto::rollout::TrialReport;
use serde::Serialize;

use super::cables::Ports;
use super::covered::{CoverageRow, judged};
use super::enrol;
use super::flows::{FlowRow, Known, render as render_flows};
use super::holdings::Holdings;
use super::rollout::{enforcing_words, trial_of};
use crate::args::{Label, SurfaceArgs};
use crate::change::{self, ChangeError};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{count, facts, join, table};
use crate::output::time::{Moment, ago, now};
use crate::recognised::{Rows, explained, is as has_field, rows as rows_of, short};
use crate::remote::Remote;

/// How many of a device's flows `show` prints.
const FLOWS: u32 = 20;

/// Whether a device is known, or only seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Confirmed and seen.
    Confirmed,
    /// Confirmed, and not seen by its gateway so far.
    NotSeen,
    /// Confirmed, behind a gateway that was revoked.
    Detached,
    /// Seen, and confirmed by nobody.
    New,
}

/// A device, or what may be one.
#[derive(Debug, Serialize)]
pub(super) struct DeviceRow {
    name: Option<String>,
    id: Option<String>,
    state: State,
    /// The mode that it is in.
    mode: Option<String>,
    /// The mode that was ordered, where that is another.
    ordered: Option<String>,
    mode_since: Option<u64>,
    quarantined: bool,
    gateway: String,
    site: Option<String>,
    port: String,
    vlan: Option<u16>,
    mac: String,
    addresses: Vec<String>,
    /// What it holds of its dynamic addresses, by its gateway's signed word.
    holds: Vec<String>,
    prefix_len: Option<u8>,
    router: Option<String>,
    labels: BTreeMap<String, String>,
    /// How much hangs on it, by its own labels or by its segments.
    surface: Surface,
    confirmed_at: Option<Moment>,
    first_seen: Option<Moment>,
    last_seen: Option<Moment>,
    held: bool,
    kinds: Vec<String>,
    /// Confirmed devices elsewhere with the same Ethernet address.
    same_mac_as: Vec<String>,
    /// Other devices of the site that have, or hold, one of its addresses.
    same_address_as: Vec<String>,
    /// Other confirmed devices on the same port, from which nothing keeps it.
    shares_port_with: Vec<String>,
    /// How much was seen of what is expected of it; none where that isn't known.
    coverage: Option<CoverageRow>,
    /// What it is taken for, field by field.
    claims: Rows,
    /// The trial that it is on, or was, as its gateway tells.
    trial: Option<TrialReport>,
    /// What is to be said of how it is enforced.
    #[serde(skip)]
    enforcing: Option<String>,
}

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

fn confirmed_row(
    id: MemberId,
    device: &Device,
    model: &Model,
    (ports, holdings): (&Ports<'_>, &Holdings<'_>),
    surfaces: &Surfaces,
    names: &GatewayNames,
) -> DeviceRow {
    let seen = holdings.newest(device);
    let gateway = model.gateways.get(&device.attachment.gateway);
    DeviceRow {
        name: Some(device.name.to_string()),
        id: Some(id.to_string()),
        state: match (gateway, seen) {
            (None, _) => State::Detached,
            (Some(_), None) => State::NotSeen,
            (Some(_), Some(_)) => State::Confirmed,
        },
        mode: Some(device.mode.to_string()),
        ordered: None,
        mode_since: Some(device.mode_since),
        quarantined: device.quarantined,
        gateway: names.get(device.attachment.gateway),
        site: gateway.map(|gateway| gateway.site.to_string()),
        port: device.attachment.port.to_string(),
        vlan: device.attachment.vlan,
        mac: device.attachment.mac.to_string(),
        addresses: device.addresses.iter().map(address).collect(),
        holds: holdings.of(id).iter().map(ToString::to_string).collect(),
        prefix_len: device.prefix_len,
        router: device.router.map(|router| router.address.to_string()),
        labels: device.labels.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
        surface: surfaces.member(id).clone(),
        confirmed_at: Some(Moment(device.confirmed_at)),
        first_seen: seen.map(|record| Moment(record.first_seen)),
        last_seen: seen.map(|record| Moment(record.sighting.last_seen)),
        held: seen.is_some_and(|record| record.sighting.held),
        kinds: seen.map(|record| record.sighting.kinds.clone()).unwrap_or_default(),
        same_mac_as: Vec::new(),
        same_address_as: holdings.others_with_an_address_of(id),
        shares_port_with: ports.neighbours(device),
        coverage: None,
        claims: BTreeMap::new(),
        trial: None,
        enforcing: None,
    }
}

fn new_row(record: &SightingRecord, model: &Model, names: &GatewayNames) -> DeviceRow {
    let sighting = &record.sighting;
    DeviceRow {
        name: None,
        id: None,
        state: State::New,
        mode: None,
        ordered: None,
        mode_since: None,
        quarantined: false,
        gateway: names.get(record.gateway),
        site: model.gateways.get(&record.gateway).map(|gateway| gateway.site.to_string()),
        port: sighting.port.to_string(),
        vlan: sighting.vlan,
        mac: sighting.mac.to_string(),
        addresses: sighting.addresses.iter().map(ToString::to_string).collect(),
        holds: Vec::new(),
        prefix_len: sighting.prefix_len,
        router: sighting.router.map(|(address, _)| address.to_string()),
        labels: BTreeMap::new(),
        surface: Surface::default(),
        confirmed_at: None,
        first_seen: Some(Moment(record.first_seen)),
        last_seen: Some(Moment(sighting.last_seen)),
        held: sighting.held,
        kinds: sighting.kinds.clone(),
        same_mac_as: model
            .devices
            .values()
            .filter(|device| device.attachment.mac == sighting.mac)
            .map(|device| device.name.to_string())
            .collect(),
        same_address_as: Vec::new(),
        shares_port_with: Vec::new(),
        coverage: None,
        claims: BTreeMap::new(),
        trial: None,
        enforcing: None,
    }
}

impl DeviceRow {
    /// With what its gateway tells of how it is enforced.
    fn with_told(
        self,
        (id, device): (MemberId, &Device),
        model: &Model,
        statuses: &[GatewayStatus],
        standing: &Standing,
    ) -> Self {
        let (trial, aside) = (trial_of(id, device, statuses), standing.get(id));
        Self {
            mode: aside.map(|aside| aside.mode.to_string()).or(self.mode),
            ordered: aside.map(|aside| aside.ordered.to_string()),
            enforcing: enforcing_words(aside, trial.as_ref(), model),
            trial,
            ..self
        }
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
    let sightings = remote.sightings()?;
    let names = GatewayNames::load(&model, remote)?;
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

/// Its name, or by what it is confirmed.
fn called(row: &DeviceRow) -> String {
    row.name.clone().unwrap_or_else(|| row.mac.clone())
}

fn port(row: &DeviceRow) -> String {
    row.vlan.map_or_else(|| row.port.clone(), |vlan| format!("{} vlan {vlan}", row.port))
}

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

/// Its labels but for its criticality, and what its segments say instead of them.
fn labels(row: &DeviceRow) -> String {
    let surface = &row.surface;
    let sensitivity = surface.sensitivity.as_ref().map(ToString::to_string);
    let of_segments = [
        (SENSITIVITY, sensitivity),
        (OWNER, surface.owner.as_ref().map(ToString::to_string)),
        (LOCATION, surface.location.as_ref().map(ToString::to_string)),
    ];
    let own = row.labels.iter().filter(|(key, _)| *key != CRITICALITY);
    let own = own.map(|(key, value)| format!("{key}={value}"));
    let more = of_segments.into_iter().filter(|(key, _)| !row.labels.contains_key(*key));
    join(own.chain(more.filter_map(|(key, said)| Some(format!("{key}={}", said?)))))
}

/// The addresses that a device has now, and within what it may have others.
fn shown_addresses(row: &DeviceRow) -> String {
    if row.holds.is_empty() {
        join(&row.addresses)
    } else {
        format!("{} ({})", join(&row.holds), join(&row.addresses))
    }
}

fn notes(row: &DeviceRow) -> String {
    let mut notes: Vec<String> = Vec::new();
    match row.state {
        State::Detached => notes.push("DETACHED: its gateway was revoked".into()),
        State::NotSeen => notes.push("not seen by its gateway".into()),
        State::New => notes.push("new".into()),
        State::Confirmed => {}
    }
    if row.held {
        notes.push("HELD until it is confirmed".into());
    }
    if row.quarantined {
        notes.push("QUARANTINED".into());
    }
    notes.extend(row.enforcing.clone());
    if !row.kinds.is_empty() {
        notes.push(format!("also sends {}", row.kinds.join(", ")));
    }
    if !row.same_mac_as.is_empty() {
        notes.push(format!("same MAC as {}", row.same_mac_as.join(", ")));
    }
    if !row.same_address_as.is_empty() {
        notes.push(format!("CONFLICT: same address as {}", row.same_address_as.join(", ")));
    }
    if !row.shares_port_with.is_empty() {
        notes.push(format!("shares its port with {}", row.shares_port_with.join(", ")));
    }
    if notes.is_empty() { "-".into() } else { notes.join("; ") }
}

#[derive(Debug, Serialize)]
struct DeviceDetail {
    #[serde(flatten)]
    row: DeviceRow,
    /// How far it could reach if it were compromised; nothing where the policy has problems, or it stands behind no approved gateway.
    blast_radius: Option<BlastRadius>,
    /// What it let be seen of itself.
    hints: Vec<HintRow>,
    /// Where it says that its maker's description of it is (RFC 8520).
    mud_urls: Vec<String>,
    flows: Vec<FlowRow>,
}

/// One thing that a device let be seen of itself.
#[derive(Debug, Serialize)]
struct HintRow {
    kind: &'static str,
    value: String,
    first_seen: Moment,
    last_seen: Moment,
}

impl HintRow {
    fn new(hint: &Hint) -> Self {
        Self {
            kind: hint.kind.word(),
            value: hint.value.clone(),
            first_seen: Moment(hint.first),
            last_seen: Moment(hint.last),
        }
    }
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

/// `anteroom device show`.
pub(super) fn show(
    name: &str,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let (id, device) = model.find_device(name).map_err(ChangeError::from)?;
    let sightings = remote.sightings()?;
    let holdings = Holdings::new(&model, &sightings);
    let names = GatewayNames::load(&model, remote)?;
    let query = EdgeQuery { member: Some(id), limit: Some(FLOWS), ..EdgeQuery::default() };
    let edges = remote.edges(&query)?;
    let known = Known::of(model.clone());
    let (coverages, recognised) = judged(known.resolved(), remote)?;
    let coverage = coverages.get(&id).map(CoverageRow::new);
    let claims = rows_of(&recognised.device(id, device));
    let seen = (&Ports::of(&model), &holdings);
    let statuses = remote.gateways()?;
    let standing = Standing::of(&model, &statuses);
    let row = confirmed_row(id, device, &model, seen, known.surfaces(), &names);
    let row = row.with_told((id, device), &model, &statuses, &standing);
    let there = Resolved::new(&standing.apply(&model)).ok();
    let blast_radius = there.as_ref().and_then(|resolved| {
        Radii::one(resolved, known.surfaces(), services(&[resolved]), now(), id)
    });
    let detail = DeviceDetail {
        row: DeviceRow { coverage, claims, ..row },
        hints: recognised.hints(&device.attachment, Some(id)).iter().map(HintRow::new).collect(),
        mud_urls: recognised.mud_urls(&device.attachment, Some(id)),
        blast_radius,
        flows: edges.iter().map(|edge| FlowRow::new(edge, &known)).collect(),
    };
    output.data(&detail, render_detail)?;
    Ok(Exit::Ok)
}

fn render_detail(detail: &DeviceDetail) -> String {
    let (row, now) = (&detail.row, now());
    let maybe = |text: &Option<String>| text.clone().unwrap_or_default();
    let mode = match (&row.mode, &row.ordered, row.mode_since) {
        (Some(mode), Some(ordered), Some(since)) => {
            format!("{mode}, though revision {since} orders {ordered}")
        }
        (Some(mode), None, Some(since)) => format!("{mode}, since revision {since}"),
        _ => String::new(),
    };
    let port = port(row);
    let reach = detail.blast_radius.as_ref().map(|blast| {
        format!(
            "{} of members, {} of externals; {} on any port{}{}",
            count(blast.pairs, "service", "services"),
            blast.external_pairs,
            count(blast.unguarded, "member", "members"),
            match blast.neighbours {
                0 => String::new(),
                n => format!(", {n} of them because they share its port"),
            },
            match blast.life_support {
                0 => String::new(),
                1 => "; 1 of all members is life support".to_owned(),
                n => format!("; {n} of all members are life support"),
            }
        )
    });
    let mud = match detail.mud_urls.as_slice() {
        [] => String::new(),
        urls => {
            format!("{}; get it, look who signed it, and see `anteroom mud import`", join(urls))
        }
    };
    let said = &row.surface;
    let text = facts(&[
        ("Device", maybe(&row.name)),
        ("Id", maybe(&row.id)),
        ("Mode", mode),
        ("Behind", format!("{} {port}", row.gateway)),
        ("Site", maybe(&row.site)),
        ("MAC", row.mac.clone()),
        ("Addresses", shown_addresses(row)),
        ("Mask", row.prefix_len.map(|n| format!("/{n}")).unwrap_or_default()),
        ("Router", maybe(&row.router)),
        ("Criticality", maybe(&said.criticality.as_ref().map(ToString::to_string))),
        ("Sensitivity", maybe(&said.sensitivity.as_ref().map(ToString::to_string))),
        ("Owner", maybe(&said.owner.as_ref().map(ToString::to_string))),
        ("Location", maybe(&said.location.as_ref().map(ToString::to_string))),
        (
            "Labels",
            join(
                row.labels
                    .iter()
                    .filter(|(key, _)| !KEYS.contains(&key.as_str()))
                    .map(|(key, value)| format!("{key}={value}")),
            ),
        ),
        ("Confirmed", row.confirmed_at.map(|at| at.to_string()).unwrap_or_default()),
        ("Last seen", row.last_seen.map_or_else(|| "never".into(), |at| ago(at.0, now))),
        ("Coverage", row.coverage.as_ref().map(CoverageRow::long).unwrap_or_default()),
        ("Notes", notes(row)),
        ("If compromised, reaches", reach.unwrap_or_default()),
        ("Its maker's file, it says", mud),
    ]);
    let mut text = format!("{text}\n{}", explained(&row.claims));
    if !detail.hints.is_empty() {
        let lines = detail
            .hints
            .iter()
            .map(|hint| vec![hint.kind.to_owned(), hint.value.clone(), ago(hint.last_seen.0, now)]);
        text = format!("{text}\n{}\n", table(&["HINT", "VALUE", "LAST SEEN"], lines));
    }
    if detail.flows.is_empty() {
        format!("{text}\nNo traffic recorded.")
    } else {
        format!("{text}\n{}", render_flows(&detail.flows))
    }
}
