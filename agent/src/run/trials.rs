//! Keeps trials on disk as they begin and end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent_core::trial::{Standing, trial_of};
use anteroom_proto::view::View;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::gate::Gate;
use crate::bypass::Machine;
use crate::looks;
use crate::state::StateDir;
use crate::trial::Kept;

/// How often trials are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What was kept by an earlier run.
pub(super) fn load(state: &StateDir) -> Vec<Kept> {
    state.trials().unwrap_or_else(|problem| {
        error!("{problem}");
        Vec::new()
    })
}

/// Writes trials down as they begin and end, until `leaving` has no sender any more, and what came to be until then; has
/// ports be what they are to be in the mode that devices went back to.
pub(super) async fn keep(gate: Gate, state: Arc<StateDir>, mut leaving: watch::Receiver<()>) {
    let mut known: Vec<Standing> = Vec::new();
    let mut views = gate.views();
    let mut last = false;
    while !last {
        let ordered = views.borrow_and_update().as_deref().is_some_and(orders_trials);
        last = tokio::select! {
            () = looks::pause(LOOK), if ordered || !known.is_empty() => false,
            changed = views.changed() => changed.is_err(),
            _ = leaving.changed() => true,
        };
        let Ok(trials) = gate.trials().await else { continue };
        if trials == known {
            continue;
        }
        for trial in &trials {
            tell(
                trial,
                known.iter().find(|one| (one.member, one.since) == (trial.member, trial.since)),
            );
        }
        let machine = Machine::look();
        let kept: Vec<Kept> = trials.iter().map(|trial| Kept::of(trial, &machine)).collect();
        let disk = state.clone();
        match tokio::task::spawn_blocking(move || disk.write_trials(&kept)).await {
            Ok(Ok(())) => {}
            // At the next start it counts as over.
            Ok(Err(problem)) => error!("a trial isn't kept over a restart: {problem}"),
            Err(problem) => error!("a trial isn't kept over a restart: {problem}"),
        }
        for problem in gate.wire_again().await {
            warn!("{problem}");
        }
        known = trials;
    }
}

fn orders_trials(view: &View) -> bool {
    view.intent.devices.iter().any(|device| trial_of(device).is_some())
}

fn tell(trial: &Standing, before: Option<&Standing>) {
    let (member, revision) = (trial.member, trial.since.revision);
    match (&trial.over, before) {
        (Some(_), Some(Standing { over: Some(_), .. })) | (None, Some(_)) => {}
        (Some(over), _) => {
            warn!(%member, revision, "a trial is over, the device is back in protect: {}", over.why);
        }
        (None, None) => {
            let seconds = trial.ends.saturating_duration_since(Instant::now()).as_secs();
            info!(%member, revision, seconds, "a device is enforced on trial");
        }
    }
}
