//! Following a revision until the gateways have it in force.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anteroom_controller_core::model::Model;
use anteroom_controller_core::plan::Plan;
use anteroom_proto::api::{GatewayProgress, ModelAccepted};
use anteroom_proto::id::GatewayId;
use serde::Serialize;

use super::Request;
use crate::error::Error;
use crate::output::Output;
use crate::output::time::Moment;
use crate::remote::Remote;

/// How long to wait unless told.
const TIMEOUT: Duration = Duration::from_secs(10);
/// First pause between two looks; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two looks.
const LAST_PAUSE: Duration = Duration::from_millis(320);
/// Gateways that are offline get this long to come back: waiting for them longer tells nobody anything.
const OFFLINE_GRACE: Duration = Duration::from_secs(2);
/// When to say what is being waited for.
const QUIET: Duration = Duration::from_secs(1);

/// What became of a change at one gateway.
#[derive(Debug, Serialize)]
pub(super) struct GatewayOutcome {
    pub(super) name: String,
    pub(super) applied: bool,
    applied_at: Option<Moment>,
    online: bool,
    refused: Option<String>,
}

impl GatewayOutcome {
    /// Why the change isn't in force there yet.
    pub(super) fn why(&self) -> String {
        match &self.refused {
            Some(reason) => format!("it refused: {reason}"),
            None if self.online => "it is online but hasn't confirmed yet".into(),
            None => "it is offline".into(),
        }
    }
}

/// Waits until every affected gateway of `model` has the revision in force, or the time is up.
pub(super) fn wait(
    remote: &mut Remote,
    output: &mut Output<'_>,
    accepted: &ModelAccepted,
    plan: &Plan,
    model: &Model,
    request: &Request,
) -> Result<Vec<GatewayOutcome>, Error> {
    // What was computed here decides for whom to wait: a revoked gateway has nothing to confirm.
    let wanted: Vec<(GatewayId, &str)> = plan
        .affected
        .iter()
        .filter(|gateway| model.gateways.contains_key(&gateway.id))
        .filter(|gateway| request.unawaited.as_deref() != Some(gateway.name.as_str()))
        .map(|gateway| (gateway.id, gateway.name.as_str()))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let timeout = request.args.timeout.unwrap_or(TIMEOUT);
    let start = Instant::now();
    let (mut pause, mut said) = (FIRST_PAUSE, false);
    loop {
        let progress = remote.progress(accepted.number)?.gateways;
        let outcomes: Vec<GatewayOutcome> =
            wanted.iter().map(|(id, name)| outcome(*id, name, &progress)).collect();
        let passed = start.elapsed();
        let open = || outcomes.iter().filter(|outcome| !outcome.applied);
        let hopeless =
            open().all(|outcome| !outcome.online) && passed >= OFFLINE_GRACE.min(timeout);
        let refused = open().all(|outcome| outcome.refused.is_some());
        if open().next().is_none() || passed >= timeout || hopeless || refused {
            return Ok(outcomes);
        }
        if !said && passed >= QUIET && output.is_interactive() {
            let names: Vec<&str> = open().map(|outcome| outcome.name.as_str()).collect();
            output.note(format_args!("Waiting for {} …", names.join(", ")))?;
            said = true;
        }
        sleep(pause.min(timeout.saturating_sub(passed)));
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

fn outcome(id: GatewayId, name: &str, progress: &[GatewayProgress]) -> GatewayOutcome {
    let found = progress.iter().find(|progress| progress.gateway == id);
    GatewayOutcome {
        name: name.to_owned(),
        applied: found.is_some_and(|found| found.applied),
        applied_at: found.and_then(|found| found.applied_at).map(Moment),
        online: found.is_some_and(|found| found.online),
        refused: found.filter(|found| !found.applied).and_then(|found| found.refused.clone()),
    }
}
