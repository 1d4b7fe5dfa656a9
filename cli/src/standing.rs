//! The model as things are: devices that went back from a trial, or that their gateways hold back, in the modes that they are
//! in.

use anteroom_controller_core::model::Model;
use anteroom_controller_core::standing::Standing;
use anteroom_proto::mode::Mode;

use crate::change::{self, Current};
use crate::error::Error;
use crate::output::Output;
use crate::remote::Remote;

/// The newest model, with devices in the modes that they are in. Says of which that isn't what was ordered.
///
/// # Errors
/// As the controller or the way to it has it, or when what it serves isn't to be believed.
pub(crate) fn model_as_it_is(remote: &mut Remote, output: &mut Output<'_>) -> Result<Model, Error> {
    Ok(current_as_it_is(remote, output)?.model)
}

/// The newest revision, with devices in the modes that they are in. Says of which that isn't what was ordered.
///
/// # Errors
/// As [`model_as_it_is`].
pub(crate) fn current_as_it_is(
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Current, Error> {
    let current = change::fetch(remote)?;
    let standing = standing(&current.model, remote)?;
    say(&current.model, &standing, output)?;
    Ok(Current { model: standing.apply(&current.model), ..current })
}

/// The devices of `model` that aren't in the mode that it orders, by what their gateways tell.
///
/// # Errors
/// When the controller can't be reached.
pub(crate) fn standing(model: &Model, remote: &mut Remote) -> Result<Standing, Error> {
    // In any other mode nobody goes back, and nobody is held back.
    if model.devices.values().all(|device| device.mode != Mode::Enforce) {
        return Ok(Standing::default());
    }
    Ok(Standing::of(model, &remote.gateways()?))
}

/// Says which devices aren't in the mode that was ordered.
///
/// # Errors
/// When the output can't be written.
pub(crate) fn say(
    model: &Model,
    standing: &Standing,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    for (id, aside) in standing.iter() {
        let Some(device) = model.devices.get(&id) else { continue };
        let (mode, ordered) = (aside.mode, aside.ordered);
        let why = aside.words(model);
        output.note(format_args!(
            "{} is in {mode}, though {ordered} was ordered: {why}",
            device.name
        ))?;
    }
    Ok(())
}
