//! `device mode|keep|back`: one device at a time, and back in seconds.

use std::collections::BTreeMap;

use anteroom_controller_core::baseline::{LOOK_BACK, baseline};
use anteroom_controller_core::edit::EditError;
use anteroom_controller_core::model::{Device, Model};
use anteroom_controller_core::names::Names;
use anteroom_controller_core::plan::breaks;
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::standing::{Aside, Because, why_words};
use anteroom_proto::api::{Edge, EdgeQuery, GatewayStatus};
use anteroom_proto::approval::Place;
use anteroom_proto::id::MemberId;
use anteroom_proto::mode::{Mode, ParseModeError};
use anteroom_proto::rollout::TrialReport;

use crate::args::{ChangeArgs, DeviceMode};
use crate::change::{self, ChangeError, Confirm, Request, fetch_revision};
use crate::error::{Error, Exit};
use crate::home::Home;
use crate::output::Output;
use crate::output::time::now;
use crate::remote::Remote;

/// Most recorded edges of a device by which its trial is measured.
const MOST: u32 = 10_000;

/// `anteroom device mode`.
pub(super) fn mode(args: DeviceMode, home: &Home, output: &mut Output<'_>) -> Result<Exit, Error> {
    let Some((mode, names)) = args.words.split_last() else {
        return Err(Error::Usage("name a device and a mode".into()));
    };
    let mode: Mode = mode.parse().map_err(|error: ParseModeError| {
        Error::Usage(format!(
            "{error}. The mode comes last: anteroom device mode ct-1 pacs-1 protect"
        ))
    })?;
    let mut request =
        Request::new("device mode", format!("{} {mode}", names.join(" ")), args.change);
    request.force = args.force;
    request.reason_needed = args.force;
    if mode == Mode::Enforce {
        request.confirm = Confirm::Names(names.to_vec());
    }
    let mut remote = Remote::open(home)?;
    let Some(within) = args.confirm_within else {
        return change::make(&mut remote, output, request, &|model, number| {
            names.iter().try_for_each(|name| model.set_mode(name, mode, number).map(drop))
        });
    };
    if mode != Mode::Enforce {
        return Err(Error::Usage(format!(
            "--confirm-within is for enforce: {mode} cuts nothing off, and `anteroom device back` takes it back. Nothing was changed."
        )));
    }
    let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    let edges = recorded(names, &mut remote, output)?;
    let incarnation = remote.chain().newest().incarnation;
    change::make(&mut remote, output, request, &|model, number| {
        let at = Place::new(incarnation, number);
        try_out(model, at, (names, within), &edges, args.accept_breaks)
    })
}

/// What was recorded of each device, by name.
fn recorded(
    names: &[String],
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<BTreeMap<String, Vec<Edge>>, Error> {
    let model = change::fetch(remote)?.model;
    let mut found = BTreeMap::new();
    for name in names {
        let (id, _) = model.find_device(name).map_err(ChangeError::from)?;
        let query = EdgeQuery {
            member: Some(id),
            since: Some(now().0.saturating_sub(LOOK_BACK)),
            limit: Some(MOST),
            ..EdgeQuery::default()
        };
        let edges = remote.edges(&query)?;
        if edges.len() >= MOST as usize {
            output.warn(format_args!(
                "{name} has more than {MOST} recorded connections: its trial is measured by some of those"
            ))?;
        }
        found.insert(name.clone(), edges);
    }
    Ok(found)
}

fn try_out(
    model: &mut Model,
    at: Place,
    (names, within): (&[String], u64),
    edges: &BTreeMap<String, Vec<Edge>>,
    accept_breaks: bool,
) -> Result<(), EditError> {
    for name in names {
        model.enforce_on_trial(name, within, Vec::new(), at)?;
    }
    // What would break is a matter of all of them together.
    let after = Resolved::new(model)?;
    let known = Names::of(&after.model);
    for name in names {
        let (id, _) = model.find_device(name)?;
        let given_up = |edge: &Edge| accept_breaks && breaks(&after, &known, edge, now());
        let recorded = edges.get(name).map(Vec::as_slice).unwrap_or_default();
        let expects = baseline(&after, &known, id, recorded, given_up, now());
        model.enforce_on_trial(name, within, expects, at)?;
    }
    Ok(())
}

/// `anteroom device keep`.
pub(super) fn keep(
    names: &[String],
    args: ChangeArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let statuses = remote.gateways()?;
    for name in names {
        model.find_device(name).map_err(ChangeError::from)?;
        if let Some(over) = model
            .device_named(name)
            .and_then(|(id, device)| trial_of(id, device, &statuses))
            .and_then(|trial| trial.over)
        {
            return Err(Error::Refused(format!(
                "{name} is back in protect, its trial is over: {}. Order another with `anteroom device mode {name} enforce --confirm-within TIME`. Nothing was changed",
                why_words(&over.why, &model)
            )));
        }
    }
    let request = Request::new("device keep", names.join(" "), args);
    change::make(remote, output, request, &|model, _| {
        names.iter().try_for_each(|name| model.keep(name).map(drop))
    })
}

/// What its gateway tells of the trial that a device is on.
pub(super) fn trial_of(
    id: MemberId,
    device: &Device,
    statuses: &[GatewayStatus],
) -> Option<TrialReport> {
    let since = device.rollout.trial.as_ref()?.since;
    let status = statuses.iter().find(|status| status.gateway == device.attachment.gateway)?;
    status.trials.iter().find(|trial| (trial.member, trial.since) == (id, since)).cloned()
}

/// A trial, as it stands, for people.
pub(super) fn trial_words(trial: &TrialReport, model: &Model) -> String {
    let seconds = trial.left.div_ceil(1000);
    match &trial.over {
        Some(over) => format!("BACK IN PROTECT: {}", why_words(&over.why, model)),
        None if seconds > 120 => format!("on trial, protect in {} min", seconds.div_ceil(60)),
        None => format!("on trial, protect in {seconds} s"),
    }
}

/// What is to be said of how a device is enforced: that it is held back, or how its trial stands.
pub(super) fn enforcing_words(
    aside: Option<&Aside>,
    trial: Option<&TrialReport>,
    model: &Model,
) -> Option<String> {
    match aside.filter(|aside| aside.because == Because::HeldBack) {
        Some(aside) => Some(format!(
            "NOT ENFORCED, IN {}: {}",
            aside.mode.to_string().to_uppercase(),
            aside.words(model)
        )),
        None => trial.map(|trial| trial_words(trial, model)),
    }
}

/// `anteroom device back`.
pub(super) fn back(
    names: &[String],
    force: bool,
    args: ChangeArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let mut modes: BTreeMap<&str, Mode> = BTreeMap::new();
    for name in names {
        modes.insert(name, mode_before(&model, name, remote)?);
    }
    let words: Vec<String> = modes.iter().map(|(name, mode)| format!("{name} {mode}")).collect();
    let mut request = Request::new("device back", words.join(", "), args);
    request.force = force;
    request.reason_needed = true;
    if modes.values().any(|mode| *mode == Mode::Enforce) {
        request.confirm = Confirm::Names(names.to_vec());
    }
    change::make(remote, output, request, &|model, number| {
        modes.iter().try_for_each(|(name, mode)| model.set_mode(name, *mode, number).map(drop))
    })
}

/// The mode that a device was in before the one that it is in.
fn mode_before(model: &Model, name: &str, remote: &mut Remote) -> Result<Mode, Error> {
    let (id, device) = model.find_device(name).map_err(ChangeError::from)?;
    if let Some(trial) = &device.rollout.trial {
        return Ok(trial.back_to);
    }
    let none = || {
        Error::Other(format!(
            "{name} was never in another mode than {}. Nothing was changed",
            device.mode
        ))
    };
    let number = device.mode_since.checked_sub(1).filter(|number| *number > 0).ok_or_else(none)?;
    let (_, before) = fetch_revision(remote, number)?;
    let was = before.devices.get(&id).map(|device| device.mode);
    was.filter(|was| *was != device.mode).ok_or_else(none)
}
