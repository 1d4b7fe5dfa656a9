//! The inventory as a bundle has it.

use std::collections::BTreeMap;

use anteroom_proto::id::MemberId;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::{Observed, moment};
use crate::blast::{BlastRadius, Radii, enforced, services};
use crate::classify::shown::Rows;
use crate::model::{Device, Model};
use crate::policy::POLICY_FILE;
use crate::resolve::Resolved;
use crate::surface::{self, Surfaces};

/// Devices, clients and gateways.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Inventory {
    /// Confirmed devices, by name.
    pub devices: Vec<DeviceRow>,
    /// Machines that speak WireGuard themselves.
    pub clients: Vec<ClientRow>,
    /// Approved gateways.
    pub gateways: Vec<GatewayRow>,
    /// What was seen and is confirmed by nobody.
    pub unconfirmed: Vec<UnconfirmedRow>,
    /// Services that rules name: whom nothing holds a device back from counts with each of them in how far that one reaches.
    #[serde(default)]
    pub services: usize,
}

/// A confirmed device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// Its lasting id: names change.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What operators confirmed of it: class, vendor, owner and so on.
    pub labels: BTreeMap<String, String>,
    /// Criticality, sensitivity, owner and location as they hold for it: by its own labels, or by its segments.
    pub surface: BTreeMap<String, String>,
    /// Its mode.
    pub mode: String,
    /// The revision in which the mode became what it is.
    pub mode_since: u64,
    /// Whether only essential rules remain.
    pub quarantined: bool,
    /// The site, where its gateway is approved.
    pub site: Option<String>,
    /// Its gateway.
    pub gateway: String,
    /// The gateway's port.
    pub port: String,
    /// Its VLAN, or none.
    pub vlan: Option<u16>,
    /// Its Ethernet address.
    pub mac: String,
    /// Its addresses; a prefix stands for "dynamic within".
    pub addresses: Vec<String>,
    /// What it holds of its dynamic addresses.
    pub holds: Vec<String>,
    /// Segments that it is in.
    pub segments: Vec<String>,
    /// When an operator confirmed it.
    pub confirmed_at: String,
    /// When a gateway saw it first in its run.
    pub first_seen: Option<String>,
    /// When a gateway saw it last.
    pub last_seen: Option<String>,
    /// How much was seen of what is expected of it, in percent.
    pub coverage: Option<u8>,
    /// How far it could reach if it fell, in the modes that devices have now; none where nobody knows where it is.
    #[serde(default)]
    pub reaches: Option<BlastRadius>,
    /// The same were all devices in enforce.
    #[serde(default)]
    pub reaches_enforced: Option<BlastRadius>,
    /// What it is taken for, and why, by field; fields of which nothing is known are left out.
    #[serde(default)]
    pub claims: Rows,
}

/// A client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRow {
    /// Its lasting id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its site.
    pub site: String,
    /// Its address.
    pub address: String,
    /// Labels that operators set.
    pub labels: BTreeMap<String, String>,
    /// Segments that it is in.
    pub segments: Vec<String>,
}

/// A gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayRow {
    /// Its name.
    pub name: String,
    /// Its site.
    pub site: String,
    /// The fingerprint of its identity key.
    pub identity: String,
    /// How many devices stand behind it.
    pub devices: usize,
}

/// Something that was seen and is confirmed by nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnconfirmedRow {
    /// Its Ethernet address.
    pub mac: String,
    /// The gateway that saw it.
    pub gateway: String,
    /// On which port.
    pub port: String,
    /// Addresses that it used.
    pub addresses: Vec<String>,
    /// When it was seen last.
    pub last_seen: String,
    /// What it is taken for, and why, by field; fields of which nothing is known are left out.
    #[serde(default)]
    pub claims: Rows,
}

impl DeviceRow {
    /// What a label says, or its segments where they may say it; nothing where it isn't set.
    #[must_use]
    pub fn said(&self, name: &str) -> &str {
        self.surface.get(name).or_else(|| self.labels.get(name)).map_or("", String::as_str)
    }
}

pub(super) fn inventory(
    resolved: &Resolved,
    surfaces: &Surfaces,
    observed: &Observed,
    now: UnixMillis,
) -> Inventory {
    let services = services(&[resolved]);
    let radii = Radii::of(resolved, surfaces, services, now);
    // The same policy with other modes has no other problems than it had.
    let enforced = enforced(resolved, POLICY_FILE, &resolved.model.policy)
        .map_or_else(|_| Radii::default(), |all| Radii::of(&all, surfaces, services, now));
    let model = &resolved.model;
    let mut behind: BTreeMap<_, usize> = BTreeMap::new();
    for device in model.devices.values() {
        *behind.entry(device.attachment.gateway).or_default() += 1;
    }
    let devices = model.devices.iter();
    let mut devices: Vec<DeviceRow> = devices
        .map(|(id, device)| DeviceRow {
            reaches: radii.get(*id),
            reaches_enforced: enforced.get(*id),
            ..row(resolved, surfaces, *id, device, observed)
        })
        .collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    let clients = model.clients.iter().map(|(id, client)| ClientRow {
        id: id.to_string(),
        name: client.name.to_string(),
        site: client.site.to_string(),
        address: client.address.to_string(),
        labels: labels(&client.labels),
        segments: segments(resolved, *id),
    });
    let mut clients: Vec<ClientRow> = clients.collect();
    clients.sort_by(|a, b| a.name.cmp(&b.name));
    let gateways = model.gateways.iter().map(|(id, gateway)| GatewayRow {
        name: gateway.name.to_string(),
        site: gateway.site.to_string(),
        identity: gateway.identity.fingerprint().to_string(),
        devices: behind.get(id).copied().unwrap_or_default(),
    });
    let mut gateways: Vec<GatewayRow> = gateways.collect();
    gateways.sort_by(|a, b| a.name.cmp(&b.name));
    let mut unconfirmed = observed.unconfirmed.clone();
    unconfirmed.sort_by(|a, b| (&a.gateway, &a.mac).cmp(&(&b.gateway, &b.mac)));
    Inventory { devices, clients, gateways, unconfirmed, services }
}

fn labels(labels: &BTreeMap<anteroom_proto::name::Name, String>) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_string(), value.clone())).collect()
}

/// The policy's segments that hold a member.
fn segments(resolved: &Resolved, id: MemberId) -> Vec<String> {
    let sides = resolved.sides_of(id).iter().map(|id| resolved.side(*id));
    let segments = sides.filter(|side| resolved.policy.segments.contains_key(&side.name));
    segments.map(|side| side.name.to_string()).collect()
}

fn gateway_name(model: &Model, device: &Device) -> String {
    let id = device.attachment.gateway;
    match (model.gateways.get(&id), model.revoked.get(&id)) {
        (Some(gateway), _) => gateway.name.to_string(),
        (None, Some(gateway)) => format!("{} (revoked)", gateway.name),
        (None, None) => id.to_string(),
    }
}

fn row(
    resolved: &Resolved,
    surfaces: &Surfaces,
    id: MemberId,
    device: &Device,
    observed: &Observed,
) -> DeviceRow {
    let said = surfaces.member(id);
    let surface = [
        (surface::CRITICALITY, said.criticality().map(|word| word.to_string())),
        (surface::SENSITIVITY, said.sensitivity().map(|word| word.to_string())),
        (surface::OWNER, said.owner.as_ref().map(|said| said.value.clone())),
        (surface::LOCATION, said.location.as_ref().map(|said| said.value.clone())),
    ];
    let surface = surface.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let sight = observed.devices.get(&id).cloned().unwrap_or_default();
    let address = |net: &ipnet::Ipv4Net| match net.prefix_len() {
        32 => net.addr().to_string(),
        _ => net.to_string(),
    };
    DeviceRow {
        id: id.to_string(),
        name: device.name.to_string(),
        labels: labels(&device.labels),
        surface: surface.collect(),
        mode: device.mode.to_string(),
        mode_since: device.mode_since,
        quarantined: device.quarantined,
        site: resolved.site_of(id).map(ToString::to_string),
        gateway: gateway_name(&resolved.model, device),
        port: device.attachment.port.to_string(),
        vlan: device.attachment.vlan,
        mac: device.attachment.mac.to_string(),
        addresses: device.addresses.iter().map(address).collect(),
        holds: sight.holds.iter().map(ToString::to_string).collect(),
        segments: segments(resolved, id),
        confirmed_at: moment(device.confirmed_at),
        first_seen: sight.first.map(moment),
        last_seen: sight.last.map(moment),
        coverage: observed.coverage.get(&id).map(crate::coverage::Coverage::percent),
        reaches: None,
        reaches_enforced: None,
        claims: observed.claims.get(&id).cloned().unwrap_or_default(),
    }
}
