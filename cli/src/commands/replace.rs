//! `gateway replace` and `device bind`: other hardware in the same place.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_controller_core::edit::Move;
use anteroom_controller_core::model::{Gateway, Model};
use anteroom_proto::id::GatewayId;
use anteroom_proto::name::Name;

use super::enrol;
use crate::args::{DeviceBind, GatewayReplace};
use crate::change::{self, ChangeError, Confirm, Request};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::time::{Moment, now};
use crate::remote::Remote;

/// `anteroom gateway replace`.
pub(super) fn replace(
    args: GatewayReplace,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let (old_id, _) = model.find_gateway(&args.old).map_err(ChangeError::from)?;
    let approved = model.gateway_named(&args.new).map(|(id, _)| id);
    let (spare, ports): (Option<(GatewayId, Gateway)>, Vec<Name>) = match approved {
        Some(id) => {
            if args.fingerprint.is_some() {
                return Err(Error::Usage(format!(
                    "{} is approved already, so there is no fingerprint to compare. Nothing was changed.",
                    args.new
                )));
            }
            let status = remote.gateways()?.into_iter().find(|status| status.gateway == id);
            let ports = status.map(|status| status.ports).unwrap_or_default();
            (None, ports.into_iter().map(|port| port.name).collect())
        }
        None => {
            let candidate =
                enrol::candidate(&args.new, args.fingerprint.as_deref(), remote, output)?;
            let ports = candidate.ports.iter().map(|port| port.name.clone()).collect();
            (Some((candidate.invite.gateway, candidate.gateway())), ports)
        }
    };
    check_ports(&model, old_id, &args, &ports)?;
    let bypassed = model.bypassed(old_id, now());
    let mut request =
        Request::new("gateway replace", format!("{} by {}", args.old, args.new), args.change);
    request.reason_needed = true;
    request.confirm = Confirm::Names(vec![args.old.clone()]);
    let exit = change::make(remote, output, request, &|model, revision| {
        if let Some((id, gateway)) = &spare {
            model.approve_gateway(*id, gateway.clone())?;
        }
        model.replace_gateway(&args.old, &args.new, revision).map(drop)
    })?;
    if let Some(until) = bypassed {
        output.warn(format_args!(
            "the bypass goes on for {} until {}. As soon as its tunnels are up: anteroom gateway bypass {} --end",
            args.new,
            Moment(until),
            args.new
        ))?;
    }
    Ok(exit)
}

/// The spare must have the ports that the devices are attached to.
fn check_ports(
    model: &Model,
    old: GatewayId,
    args: &GatewayReplace,
    ports: &[Name],
) -> Result<(), Error> {
    let mut needed: BTreeMap<&Name, BTreeSet<&str>> = BTreeMap::new();
    for device in model.devices.values().filter(|device| device.attachment.gateway == old) {
        needed.entry(&device.attachment.port).or_default().insert(device.name.as_str());
    }
    let missing: Vec<String> = needed
        .iter()
        .filter(|(port, _)| !ports.contains(port))
        .map(|(port, devices)| {
            format!("{port} ({})", devices.iter().copied().collect::<Vec<_>>().join(", "))
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if ports.is_empty() {
        return Err(Error::Refused(format!(
            "{} hasn't told its ports yet, and the devices of {} need {}: connect it, then try again. Nothing was changed",
            args.new,
            args.old,
            missing.join(", ")
        )));
    }
    let names: Vec<&str> = ports.iter().map(Name::as_str).collect();
    Err(Error::Refused(format!(
        "{} has no port {}: it has {}. Name its ports in its agent.toml as those of {} were, or move the devices first with `anteroom device bind`. Nothing was changed",
        args.new,
        missing.join(" and no port "),
        names.join(", "),
        args.old
    )))
}

/// `anteroom device bind`.
pub(super) fn bind(
    args: DeviceBind,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    if args.gateway.is_none() && args.port.is_none() && args.mac.is_none() {
        return Err(Error::Usage(
            "say what is new of it: --mac, --port or --gateway. Nothing was changed.".into(),
        ));
    }
    if let Some(port) = &args.port {
        let model = change::fetch(remote)?.model;
        let (_, device) = model.find_device(&args.name).map_err(ChangeError::from)?;
        let id = match &args.gateway {
            Some(gateway) => model.find_gateway(gateway).map_err(ChangeError::from)?.0,
            None => device.attachment.gateway,
        };
        let status = remote.gateways()?.into_iter().find(|status| status.gateway == id);
        let ports = status.map(|status| status.ports).unwrap_or_default();
        if !ports.is_empty() && !ports.iter().any(|known| known.name == *port) {
            let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
            return Err(Error::Refused(format!(
                "that gateway has no port {port}: it has {}. Nothing was changed",
                names.join(", ")
            )));
        }
    }
    let to = Move { gateway: args.gateway, port: args.port, mac: args.mac };
    let mut request = Request::new("device bind", args.name.as_str(), args.change);
    request.reason_needed = true;
    change::make(remote, output, request, &|model, _| model.bind_device(&args.name, &to).map(drop))
}
