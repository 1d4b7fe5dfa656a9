//! What gateways see on their cables, in sentences: alarms, ports that devices share, ports that let unlisted
//! addresses pass.

use std::collections::BTreeMap;

use anteroom_controller_core::model::{Device, Model};
use anteroom_proto::alarm::{Alarm, AlarmKind};
use anteroom_proto::api::GatewayStatus;
use anteroom_proto::id::GatewayId;
use anteroom_proto::name::Name;
use anteroom_proto::v1::Unlisted;
use serde::Serialize;

use crate::output::time::{Moment, ago, now};

/// An alarm, with names.
#[derive(Debug, Clone, Serialize)]
pub(super) struct AlarmRow {
    kind: &'static str,
    port: Option<String>,
    mac: String,
    address: Option<String>,
    device: Option<String>,
    count: u64,
    last: Moment,
    /// What it means, and what to do.
    pub(super) text: String,
}

/// The alarms of a gateway.
pub(super) fn alarms(model: &Model, gateway: GatewayId, alarms: &[Alarm]) -> Vec<AlarmRow> {
    alarms
        .iter()
        .map(|alarm| AlarmRow {
            kind: alarm.kind.as_str(),
            port: alarm.port.as_ref().map(ToString::to_string),
            mac: alarm.mac.to_string(),
            address: alarm.address.map(|address| address.to_string()),
            device: device(model, alarm).map(|device| device.name.to_string()),
            count: alarm.count,
            last: Moment(alarm.last),
            text: text(model, gateway, alarm, alarms),
        })
        .collect()
}

fn device<'a>(model: &'a Model, alarm: &Alarm) -> Option<&'a Device> {
    alarm.member.and_then(|member| model.devices.get(&member))
}

fn place(port: Option<&Name>) -> String {
    port.map_or_else(|| "the uplink's side".into(), ToString::to_string)
}

fn text(model: &Model, gateway: GatewayId, alarm: &Alarm, all: &[Alarm]) -> String {
    let (seen, device) = (place(alarm.port.as_ref()), device(model, alarm));
    let name = device.map_or("a confirmed device", |device| device.name.as_str());
    let what = match (alarm.kind, alarm.address) {
        (AlarmKind::Moved, _) => moved(model, gateway, alarm, all, (name, device)),
        (AlarmKind::Loop, _) => format!(
            "LOOP: what it sends out at {seen} comes back in there. A cable joins two of its ports, or a port and \
             the uplink: take it out"
        ),
        (AlarmKind::Conflict, Some(address)) => {
            let whose = match device {
                Some(_) => format!("{name}'s"),
                None => "somebody else's, a router's or the gateway's".into(),
            };
            format!("{} at {seen} uses the address {address}, which is {whose}", alarm.mac)
        }
        (AlarmKind::Conflict, None) => {
            format!("{} at {seen} passes for a router of the devices here", alarm.mac)
        }
    };
    format!("{what} (seen {} times, last {})", alarm.count, ago(alarm.last, now()))
}

fn moved(
    model: &Model,
    gateway: GatewayId,
    alarm: &Alarm,
    all: &[Alarm],
    (name, device): (&str, Option<&Device>),
) -> String {
    let seen = place(alarm.port.as_ref());
    let Some(own) = device.map(|device| &device.attachment) else {
        return format!("{} is confirmed elsewhere, and speaks at {seen}", alarm.mac);
    };
    let home = if own.gateway == gateway {
        own.port.to_string()
    } else {
        let there = model.gateways.get(&own.gateway);
        let there =
            there.map_or_else(|| "another gateway".into(), |g| format!("gateway {}", g.name));
        format!("{} of {there}", own.port)
    };
    let other = all.iter().filter(|other| other.kind == AlarmKind::Moved).find_map(|other| {
        let found = other.member.and_then(|member| model.devices.get(&member))?;
        let crossed = other.port.as_ref() == Some(&own.port)
            && alarm.port.as_ref() == Some(&found.attachment.port)
            && found.attachment.gateway == gateway;
        crossed.then_some(found)
    });
    match other {
        Some(other) => format!(
            "SWAPPED CABLES: {name} speaks at {seen} and {} at {}, each on the other's port: swap them back",
            other.name, own.port
        ),
        None => format!(
            "MOVED: {name} ({}) is confirmed at {home}, but speaks at {seen}, where it is let nowhere: put its cable \
             back, or confirm its new place",
            alarm.mac
        ),
    }
}

/// Ports on which devices can't be kept apart, and ports that let addresses pass that nobody confirmed: (gateway,
/// what is so).
pub(super) fn notices(model: &Model, statuses: &[GatewayStatus]) -> Vec<(String, String)> {
    let Ports(by_port) = Ports::of(model);
    let mut found = Vec::new();
    for ((id, port), devices) in &by_port {
        let Some(gateway) = model.gateways.get(id).filter(|_| devices.len() > 1) else { continue };
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        found.push((
            gateway.name.to_string(),
            format!(
                "{port} is shared by {}: they have one mode, and nothing keeps them from each other",
                names.join(", ")
            ),
        ));
    }
    for status in statuses {
        let Some(gateway) = model.gateways.get(&status.gateway) else { continue };
        for port in status.ports.iter().filter(|port| port.unlisted == Unlisted::Pass) {
            let names: Vec<&str> = by_port
                .get(&(status.gateway, &port.name))
                .map(|devices| devices.iter().map(|device| device.name.as_str()).collect())
                .unwrap_or_default();
            let listed = if names.is_empty() { "nobody".into() } else { names.join(", ") };
            found.push((
                gateway.name.to_string(),
                format!(
                    "{} LETS UNLISTED MACS PASS in the clear, by its agent's configuration; only {listed} there is \
                     protected",
                    port.name
                ),
            ));
        }
    }
    found
}

/// Who is on which port.
pub(super) struct Ports<'a>(BTreeMap<(GatewayId, &'a Name), Vec<&'a Device>>);

impl<'a> Ports<'a> {
    /// The ports of all devices.
    pub(super) fn of(model: &'a Model) -> Self {
        let mut by_port: BTreeMap<(GatewayId, &Name), Vec<&Device>> = BTreeMap::new();
        for device in model.devices.values() {
            let place = &device.attachment;
            by_port.entry((place.gateway, &place.port)).or_default().push(device);
        }
        Self(by_port)
    }

    /// Other devices on a device's port.
    pub(super) fn neighbours(&self, device: &Device) -> Vec<String> {
        let place = &device.attachment;
        let all = self.0.get(&(place.gateway, &place.port)).into_iter().flatten();
        all.filter(|other| other.attachment != *place).map(|other| other.name.to_string()).collect()
    }
}
