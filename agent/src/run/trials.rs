//! Keeps trials on disk as they begin and end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent_core::trial::Standing;
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

/// Writes trials down as they begin and end, for as long as it is polled, and has ports be what they are to be in the
/// mode that devices went back to.
pub(super) async fn keep(gate: Gate, state: Arc<StateDir>, mut known: Vec<Standing>) {
    loop {
        looks::pause(LOOK).await;
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

fn tell(trial: &Standing, before: Option<&Standing>) {
    let (member, revision) = (trial.member, trial.since);
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
