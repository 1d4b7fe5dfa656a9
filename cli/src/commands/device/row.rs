//! A device, or what may be one, as `device list` and `device show` tell of it.

use std::collections::BTreeMap;

use anteroom_controller_core::model::{Device, Model};
use anteroom_controller_core::standing::Standing;
use anteroom_controller_core::surface::{
    CRITICALITY, LOCATION, OWNER, SENSITIVITY, Surface, Surfaces,
};
use anteroom_proto::api::{GatewayStatus, SightingRecord};
use anteroom_proto::id::MemberId;
use anteroom_proto::rollout::TrialReport;
use serde::Serialize;

use super::{GatewayNames, address};
use crate::commands::cables::Ports;
use crate::commands::covered::CoverageRow;
use crate::commands::holdings::Holdings;
use crate::commands::rollout::{enforcing_words, trial_of};
use crate::output::table::join;
use crate::output::time::Moment;
use crate::recognised::Rows;

/// Whether a device is known, or only seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// Confirmed and seen.
    Confirmed,
    /// Confirmed, and not seen by its gateway so far.
    NotSeen,
    /// Confirmed, behind a gateway that was revoked.
    Detached,
    /// A client with an agent of its own, which was revoked.
    Revoked,
    /// Seen, and confirmed by nobody.
    New,
}

/// A device, or what may be one.
#[derive(Debug, Serialize)]
pub(in crate::commands) struct DeviceRow {
    pub(super) name: Option<String>,
    pub(super) id: Option<String>,
    pub(super) state: State,
    /// The mode that it is in.
    pub(super) mode: Option<String>,
    /// The mode that was ordered, where that is another.
    pub(super) ordered: Option<String>,
    pub(super) mode_since: Option<u64>,
    pub(super) quarantined: bool,
    pub(super) gateway: String,
    pub(super) site: Option<String>,
    pub(super) port: String,
    pub(super) vlan: Option<u16>,
    pub(super) mac: String,
    pub(super) addresses: Vec<String>,
    /// What it holds of its dynamic addresses, by its gateway's signed word.
    pub(super) holds: Vec<String>,
    pub(super) prefix_len: Option<u8>,
    pub(super) router: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    /// How much hangs on it, by its own labels or by its segments.
    pub(super) surface: Surface,
    pub(super) confirmed_at: Option<Moment>,
    pub(super) first_seen: Option<Moment>,
    pub(super) last_seen: Option<Moment>,
    pub(super) held: bool,
    pub(super) kinds: Vec<String>,
    /// Confirmed devices elsewhere with the same Ethernet address.
    pub(super) same_mac_as: Vec<String>,
    /// Other devices of the site that have, or hold, one of its addresses.
    pub(super) same_address_as: Vec<String>,
    /// Other confirmed devices on the same port, from which nothing keeps it.
    pub(super) shares_port_with: Vec<String>,
    /// How much was seen of what is expected of it; none where that isn't known.
    pub(super) coverage: Option<CoverageRow>,
    /// What it is taken for, field by field.
    pub(super) claims: Rows,
    /// The trial that it is on, or was, as its gateway tells.
    pub(super) trial: Option<TrialReport>,
    /// What is to be said of how it is enforced.
    #[serde(skip)]
    pub(super) enforcing: Option<String>,
}

pub(super) fn confirmed_row(
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
            (None, _) if model.is_revoked_host(device) => State::Revoked,
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

pub(super) fn new_row(record: &SightingRecord, model: &Model, names: &GatewayNames) -> DeviceRow {
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
    pub(super) fn with_told(
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

/// Its name, or by what it is confirmed.
pub(super) fn called(row: &DeviceRow) -> String {
    row.name.clone().unwrap_or_else(|| row.mac.clone())
}

pub(super) fn port(row: &DeviceRow) -> String {
    row.vlan.map_or_else(|| row.port.clone(), |vlan| format!("{} vlan {vlan}", row.port))
}

/// Its labels but for its criticality, and what its segments say instead of them.
pub(super) fn labels(row: &DeviceRow) -> String {
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
pub(super) fn shown_addresses(row: &DeviceRow) -> String {
    if row.holds.is_empty() {
        join(&row.addresses)
    } else {
        format!("{} ({})", join(&row.holds), join(&row.addresses))
    }
}

pub(super) fn notes(row: &DeviceRow) -> String {
    let mut notes: Vec<String> = Vec::new();
    match row.state {
        State::Detached => notes.push("DETACHED: its gateway was revoked".into()),
        State::Revoked => notes.push("REVOKED: a client".into()),
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
