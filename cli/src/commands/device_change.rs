//! `device confirm|label|quarantine|release|on-failure`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_controller_core::classify::{Claims, Field, SURE};
use anteroom_controller_core::model::{Attachment, Device, Model};
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::sighted::{Chosen, Sighted};
use anteroom_proto::api::SightingRecord;
use anteroom_proto::id::MemberId;
use anteroom_proto::intent::{OnFailure, Router};
use anteroom_proto::key::Hash;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::rollout::Rollout;
use ipnet::Ipv4Net;

use super::device::{GatewayNames, address, is_of};
use crate::args::{ChangeArgs, DeviceConfirm, FailureChoice, Label};
use crate::change::{self, Confirm, Request};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{facts, join};
use crate::output::time::{ago, now};
use crate::recognised::{Recognised, rows, short};
use crate::recorded::each;
use crate::remote::Remote;

/// `anteroom device confirm`.
pub(super) fn confirm(
    args: DeviceConfirm,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let change::Current { base, model, .. } = change::fetch(remote)?;
    let sightings = remote.sightings()?;
    let names = GatewayNames::load(&model, remote)?;
    let record = choose(&args, &model, &sightings, &names)?;
    let sighting = &record.sighting;
    let chosen = if args.addresses.is_empty() {
        addresses(remote, &model, &sightings, &[record])?.pop().unwrap_or_default()
    } else {
        Chosen::default()
    };
    let mut device = device_of(&args, record, &chosen);
    let beside = join_port(&mut device, &model)
        .map_err(|why| Error::Refused(format!("{why}. Nothing was changed.")))?;
    let recognised = Recognised::load(remote, None)?;
    let claims = recognised.stranger(&device.attachment);
    let proposed = proposals(&claims, &device);
    if args.recognised {
        device.labels.extend(proposed.iter().cloned());
    }
    let labels: Vec<String> =
        device.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let now = now();
    output.note(facts(&[
        ("Device", device.name.to_string()),
        ("MAC", sighting.mac.to_string()),
        ("Behind", format!("{} {}", names.get(record.gateway), sighting.port)),
        ("Seen using", join(&sighting.addresses)),
        ("Addresses", join(device.addresses.iter().map(address))),
        ("Mask", device.prefix_len.map(|n| format!("/{n}")).unwrap_or_default()),
        ("Router", device.router.map(|router| router.address.to_string()).unwrap_or_default()),
        ("Also sends", sighting.kinds.join(", ")),
        (
            "Mode",
            beside
                .map(|name| format!("{}, as {name} at the same port", device.mode))
                .unwrap_or_default(),
        ),
        ("Last seen", ago(sighting.last_seen, now)),
        ("Taken for", short(&rows(&claims))),
        ("Labels", labels.join(", ")),
    ]))?;
    if !args.recognised && !proposed.is_empty() {
        let labels = proposed.iter().map(|(key, value)| format!("{key}={value}"));
        output.note(format!("To take {} as labels: --recognised\n", join(labels)))?;
    }
    if !chosen.left.is_empty() {
        let left = chosen.left.iter().map(|(address, doubt)| format!("{address}: {doubt}\n"));
        output.warn(format!(
            "it was seen with addresses that aren't taken; if they are its own, --address takes them, all that it has:\n{}",
            left.collect::<String>()
        ))?;
    }
    if device.addresses.is_empty() && !chosen.left.is_empty() {
        return Err(Error::Usage(format!(
            "no address that {} was seen with is surely its own: give it with --address. Nothing was changed.",
            args.mac
        )));
    }
    if device.addresses.is_empty() {
        return Err(Error::Usage(format!(
            "no IPv4 address of {} was seen yet: give it with --address, or wait until it has sent something. Nothing was changed.",
            args.mac
        )));
    }
    let id = member_id(&base.hash, &device.attachment);
    let mut request = Request::new("device confirm", device.name.as_str(), args.change);
    request.force = args.force;
    request.reason_needed = args.force;
    change::make(remote, output, request, &|model, number| {
        let device = Device { mode_since: number, ..device.clone() };
        model.confirm_device(id, device).map(drop)
    })
}

/// The id of a device that is confirmed at this place, on top of the revision with this hash.
pub(super) fn member_id(base: &Hash, place: &Attachment) -> MemberId {
    let vlan = place.vlan.map_or(u32::MAX, u32::from).to_be_bytes();
    let (gateway, port) = (place.gateway.as_bytes(), place.port.as_str().as_bytes());
    change::drawn(
        "anteroom device",
        base,
        &[gateway.as_slice(), &place.mac.0, vlan.as_slice(), port],
    )
}

/// Gives a device the mode of its port, which has one mode, and gives whose that is; nobody's where it is the only one there, or
/// nobody there has left observe.
///
/// # Errors
/// Why it can't, when that device is on trial: all at a port go back together.
pub(super) fn join_port(device: &mut Device, model: &Model) -> Result<Option<Name>, String> {
    let beside = model.neighbour_at(&device.attachment);
    let Some(beside) = beside.filter(|beside| beside.mode != Mode::Observe) else {
        return Ok(None);
    };
    if beside.rollout.trial.is_some() {
        return Err(format!(
            "{} is enforced on trial at {}, and devices at one port go back together: `anteroom device keep {}` or `anteroom device back {}`, then confirm {}",
            beside.name, device.attachment.port, beside.name, beside.name, device.name
        ));
    }
    device.mode = beside.mode;
    Ok(Some(beside.name.clone()))
}

/// Labels that can be taken from what a device is taken for, and that nothing was said of.
fn proposals(claims: &Claims, device: &Device) -> Vec<(Name, String)> {
    let sure = [Field::Class, Field::Make, Field::Model].into_iter().filter_map(|field| {
        let claim = claims.known(field).filter(|claim| claim.confidence >= SURE)?;
        Some((field.word().parse().ok()?, claim.value.clone()))
    });
    sure.filter(|(key, _)| !device.labels.contains_key(key)).collect()
}

fn device_of(args: &DeviceConfirm, record: &SightingRecord, chosen: &Chosen) -> Device {
    let labels: BTreeMap<_, _> =
        args.labels.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect();
    let mut device = seen_device(args.name.clone(), record, chosen.address, labels);
    if !args.addresses.is_empty() {
        device.addresses.clone_from(&args.addresses);
    }
    device.prefix_len = args.prefix_len.or(device.prefix_len);
    let router = args.router.or(device.router.map(|router| router.address));
    device.router = router.map(|address| Router { address, mac: args.router_mac });
    device.on_failure = args.on_failure.map_or(OnFailure::Default, FailureChoice::on_failure);
    device
}

/// Which address is taken of each, by what was recorded and what else there is.
///
/// # Errors
/// When what was recorded can't be read.
pub(super) fn addresses(
    remote: &mut Remote,
    model: &Model,
    sightings: &[SightingRecord],
    asked: &[&SightingRecord],
) -> Result<Vec<Chosen>, Error> {
    // What doesn't resolve is told by the plan.
    let resolved = Resolved::new(model).ok();
    let policy = resolved.as_ref().map(|resolved| &resolved.policy);
    let mut sighted = Sighted::new(model, policy, sightings, asked.iter().copied(), now());
    if !asked.is_empty() {
        each(remote, &mut |edge| sighted.take(&edge))?;
    }
    Ok(asked.iter().map(|record| sighted.choose(record)).collect())
}

/// A device as its gateway saw it, with the address that is taken, to be observed.
pub(super) fn seen_device(
    name: Name,
    record: &SightingRecord,
    address: Option<Ipv4Addr>,
    labels: BTreeMap<Name, String>,
) -> Device {
    let sighting = &record.sighting;
    Device {
        name,
        attachment: Attachment {
            gateway: record.gateway,
            port: sighting.port.clone(),
            vlan: sighting.vlan,
            mac: sighting.mac,
        },
        addresses: address.map(Ipv4Net::from).into_iter().collect(),
        prefix_len: sighting.prefix_len,
        // Unpinned, the gateway learns the router's Ethernet address, so that a router may be replaced.
        router: sighting.router.map(|(address, _)| Router { address, mac: None }),
        labels,
        mode: Mode::Observe,
        mode_since: 0,
        confirmed_at: now(),
        quarantined: false,
        on_failure: OnFailure::Default,
        rollout: Rollout::default(),
    }
}

fn choose<'a>(
    args: &DeviceConfirm,
    model: &Model,
    sightings: &'a [SightingRecord],
    names: &GatewayNames,
) -> Result<&'a SightingRecord, Error> {
    let of_mac: Vec<&SightingRecord> = sightings
        .iter()
        .filter(|record| record.sighting.mac == args.mac)
        .filter(|record| !model.revoked.contains_key(&record.gateway))
        .collect();
    let place =
        |record: &SightingRecord| format!("{} {}", names.get(record.gateway), record.sighting.port);
    let wanted = |record: &&SightingRecord| {
        args.gateway.as_deref().is_none_or(|name| names.get(record.gateway) == name)
    };
    let candidates: Vec<&SightingRecord> = of_mac.iter().copied().filter(wanted).collect();
    let approved = |record: &&SightingRecord| model.gateways.contains_key(&record.gateway);
    let (candidates, waiting): (Vec<_>, Vec<_>) = candidates.into_iter().partition(approved);
    let taken = candidates.iter().find_map(|record| {
        model
            .devices
            .values()
            .find(|device| is_of(record, device) && device.name != args.name)
            .map(|device| (record, device))
    });
    if let Some((record, device)) = taken {
        return Err(Error::Other(format!(
            "{} at {} is confirmed already, as {}. Nothing was changed",
            args.mac,
            place(record),
            device.name
        )));
    }
    let mut gateways: Vec<_> = candidates.iter().map(|record| record.gateway).collect();
    gateways.sort_unstable();
    gateways.dedup();
    let newest = candidates.iter().copied().max_by_key(|record| record.sighting.last_seen);
    match (newest, gateways.as_slice()) {
        (Some(record), [_]) => Ok(record),
        (Some(_), _) => Err(Error::Usage(format!(
            "{} was seen at several gateways: {}. Say behind which one it stands with --gateway NAME. Nothing was changed.",
            args.mac,
            join(candidates.iter().map(|record| place(record)))
        ))),
        (None, _) if !waiting.is_empty() => Err(Error::Other(format!(
            "{} was seen at {} only: approve that gateway first. Nothing was changed",
            args.mac,
            join(waiting.iter().map(|record| place(record)))
        ))),
        (None, _) => Err(Error::Other(match (&args.gateway, of_mac.is_empty()) {
            (Some(gateway), false) => format!(
                "gateway {gateway} hasn't seen {}; it was seen at {}. Nothing was changed",
                args.mac,
                join(of_mac.iter().map(|record| place(record)))
            ),
            _ => format!(
                "no gateway has seen {} yet: `anteroom device list --new` shows what they have seen. Nothing was changed",
                args.mac
            ),
        })),
    }
}

/// `anteroom device label`.
pub(super) fn label(
    name: &str,
    labels: &[Label],
    args: ChangeArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let request = Request::new("device label", name, args);
    change::make(remote, output, request, &|model, _| model.label_device(name, labels).map(drop))
}

/// `anteroom device quarantine` and `anteroom device release`.
pub(super) fn quarantine(
    names: &[String],
    quarantined: bool,
    args: ChangeArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let action = if quarantined { "device quarantine" } else { "device release" };
    let mut request = Request::new(action, names.join(" "), args);
    request.reason_needed = true;
    if quarantined {
        request.confirm = Confirm::Names(names.to_vec());
    }
    change::make(remote, output, request, &|model, _| {
        names.iter().try_for_each(|name| model.set_quarantine(name, quarantined).map(drop))
    })
}

/// `anteroom device on-failure`.
pub(super) fn on_failure(
    name: &str,
    choice: FailureChoice,
    args: ChangeArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let request = Request::new("device on-failure", format!("{name} {}", choice.word()), args);
    change::make(remote, output, request, &|model, _| {
        model.set_on_failure(name, choice.on_failure()).map(drop)
    })
}
