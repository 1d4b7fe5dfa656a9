//! The model as things are: what a trial is over for is told in the mode that it went back to, and said.

use anteroom_controller_core::model::Model;
use anteroom_controller_core::standing::{self, gone_back};
use anteroom_proto::api::GatewayStatus;
use anteroom_proto::id::GatewayId;
use anteroom_proto::rollout::TrialReport;

use crate::change;
use crate::error::Error;
use crate::output::Output;
use crate::remote::Remote;

/// The newest model, with devices that went back from a trial in the modes that they are in. Says which those are.
///
/// # Errors
/// As the controller or the way to it has it, or when what it serves isn't to be believed.
pub(crate) fn model_as_it_is(remote: &mut Remote, output: &mut Output<'_>) -> Result<Model, Error> {
    let model = change::fetch(remote)?.model;
    if model.devices.values().all(|device| device.rollout.trial.is_none()) {
        return Ok(model);
    }
    let statuses = remote.gateways()?;
    let gone = gone_back(&model, told(&statuses));
    for (id, trial) in &gone {
        let (Some(device), Some(over)) = (model.devices.get(id), &trial.over) else { continue };
        let back_to = device.rollout.trial.as_ref().map_or(device.mode, |trial| trial.back_to);
        output.note(format_args!(
            "{} is in {back_to}, though {} was ordered: its trial is over ({})",
            device.name, device.mode, over.why
        ))?;
    }
    Ok(standing::as_it_is(&model, gone.into_keys()))
}

/// The model with devices in the modes that they are in, by what gateways tell.
pub(crate) fn as_it_is(model: &Model, statuses: &[GatewayStatus]) -> Model {
    standing::as_it_is(model, gone_back(model, told(statuses)).into_keys())
}

fn told(statuses: &[GatewayStatus]) -> impl Iterator<Item = (GatewayId, &TrialReport)> {
    statuses
        .iter()
        .flat_map(|status| status.trials.iter().map(move |trial| (status.gateway, trial)))
}
