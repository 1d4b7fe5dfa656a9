//! `gateway ports`: the ports as the gateway reported them, and what its switch must be told.

use std::fmt::Write as _;

use anteroom_controller_core::model::Model;
use anteroom_proto::id::GatewayId;
use anteroom_proto::mac::MacAddr;
use serde::Serialize;

use crate::args::SwitchKind;
use crate::change::ChangeError;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{join, table};
use crate::remote::Remote;
use crate::standing::model_as_it_is;

#[derive(Debug, Serialize)]
struct PortRow {
    name: String,
    mac: Option<String>,
    up: Option<bool>,
    devices: Vec<String>,
    modes: Vec<String>,
}

/// `anteroom gateway ports`.
pub(super) fn ports(
    name: &str,
    switch: Option<SwitchKind>,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = model_as_it_is(remote, output)?;
    let (id, _) = model.find_gateway(name).map_err(ChangeError::from)?;
    if switch == Some(SwitchKind::Cisco) {
        let lines = cisco(&model, name, id);
        output
            .data(&serde_json::json!({ "gateway": name, "lines": lines }), |_| lines.join("\n"))?;
        return Ok(Exit::Ok);
    }
    let status = remote.gateways()?.into_iter().find(|status| status.gateway == id);
    let rows = rows(&model, id, &status.map(|status| status.ports).unwrap_or_default());
    output.data(&rows, |rows| {
        if rows.is_empty() {
            return format!("{name} has told no ports yet, and no device is attached to it.");
        }
        let lines = rows.iter().map(|row| {
            vec![
                row.name.clone(),
                row.mac.clone().unwrap_or_else(|| "NOT REPORTED".into()),
                match row.up {
                    Some(true) => "up".into(),
                    Some(false) => "down".into(),
                    None => "-".into(),
                },
                join(&row.devices),
                join(&row.modes),
            ]
        });
        table(&["PORT", "OWN MAC", "LINK", "DEVICES", "MODE"], lines)
    })?;
    Ok(Exit::Ok)
}

fn rows(model: &Model, id: GatewayId, reported: &[anteroom_proto::v1::PortInfo]) -> Vec<PortRow> {
    let here = || model.devices.values().filter(|device| device.attachment.gateway == id);
    let mut names: Vec<String> = reported.iter().map(|port| port.name.to_string()).collect();
    names.extend(here().map(|device| device.attachment.port.to_string()));
    names.sort();
    names.dedup();
    names
        .into_iter()
        .map(|name| {
            let port = reported.iter().find(|port| port.name.as_str() == name);
            let on_it = || here().filter(|device| device.attachment.port.as_str() == name);
            let mut modes: Vec<String> = on_it().map(|device| device.mode.to_string()).collect();
            modes.dedup();
            PortRow {
                mac: port.map(|port| port.mac.to_string()),
                up: port.map(|port| port.up),
                devices: on_it().map(|device| device.name.to_string()).collect(),
                modes,
                name,
            }
        })
        .collect()
}

/// Lines for the switch port that the gateway's uplink is plugged into. Behind it the switch sees each device's
/// address and the gateway's own: a port that allows one address only shuts down at the second.
fn cisco(model: &Model, name: &str, id: GatewayId) -> Vec<String> {
    let devices: Vec<_> =
        model.devices.values().filter(|device| device.attachment.gateway == id).collect();
    let mut lines = vec![
        format!("! uplink of gateway {name}: its devices, and the gateway itself"),
        "interface INTERFACE".into(),
        format!(" description anteroom {name}"),
        " switchport mode access".into(),
        " spanning-tree portfast".into(),
        format!(" switchport port-security maximum {}", devices.len() + 1),
    ];
    for device in &devices {
        lines.push(format!(
            " switchport port-security mac-address {}",
            dotted(device.attachment.mac)
        ));
    }
    lines.push(" switchport port-security violation restrict".into());
    lines.push(" switchport port-security".into());
    lines.push(
        " ! where the port authenticates by 802.1X or MAC address, each of them for itself:".into(),
    );
    lines.push(" authentication host-mode multi-auth".into());
    lines.push(
        "! One such port a gateway. A device's own port on the switch stays as it was, for a bypass."
            .into(),
    );
    lines
}

fn dotted(mac: MacAddr) -> String {
    let mut text = String::new();
    for (at, byte) in mac.0.iter().enumerate() {
        if at > 0 && at % 2 == 0 {
            text.push('.');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}
