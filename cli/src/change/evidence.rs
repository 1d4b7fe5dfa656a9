//! What was seen on the network, for a plan to be judged by.

use std::collections::BTreeSet;

use anteroom_controller_core::coverage::{Wanted, coverage};
use anteroom_controller_core::lint::Evidence;
use anteroom_controller_core::model::Model;
use anteroom_controller_core::plan::Judge;
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::api::{Edge, EdgeQuery};
use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;

use crate::error::Error;
use crate::output::time::now;
use crate::recorded::{Reader, each};
use crate::remote::Remote;
use crate::standing::standing;

/// The newest edges, by which a change is judged that touches no device and no policy.
const NEWEST: u32 = 10_000;
/// Most edges that a plan holds against a change, and most essential ones beyond these. All are judged, and those that it wouldn't break
/// aren't kept.
const MOST: usize = 500_000;

/// What was seen lately.
///
/// # Errors
/// When it can't be fetched.
pub fn evidence(remote: &mut Remote) -> Result<Evidence, Error> {
    let query = EdgeQuery { limit: Some(NEWEST), ..EdgeQuery::default() };
    let (edges, sightings) = (remote.edges(&query)?, remote.sightings()?);
    Ok(Evidence { edges, sightings, ..Evidence::default() })
}

/// What was seen, for the change from `before` to `after`: all that was recorded where it may break something, and how much was seen
/// of each device that is to be enforced.
pub(super) fn of_change(
    remote: &mut Remote,
    before: &Model,
    after: &Model,
) -> Result<Evidence, Error> {
    if before.policy == after.policy && before.devices == after.devices {
        return evidence(remote);
    }
    let standing = standing(before, remote)?;
    let (before, after) = (&standing.apply(before), &standing.apply(after));
    let newest =
        |remote: &mut Remote| Ok(Evidence { standing: standing.clone(), ..evidence(remote)? });
    // What doesn't resolve is told by the plan itself.
    let Ok(resolved) = Resolved::new(after) else { return newest(remote) };
    let enforced: BTreeSet<MemberId> = after
        .devices
        .iter()
        .filter(|(_, device)| device.mode == Mode::Enforce)
        .filter(|(id, _)| before.devices.get(*id).is_none_or(|was| was.mode != Mode::Enforce))
        .map(|(id, _)| *id)
        .collect();
    let old = Resolved::new(before);
    let judge = old.as_ref().ok().map(|old| Judge::new(old, &resolved, now()));
    let mut found = Evidence::default();
    let mut reader = (!enforced.is_empty()).then(|| Reader::new(&resolved));
    let mut visit = |edge: Edge| {
        let kept = found.edges.len();
        // However much is broken, what is essential refuses the plan.
        let has_room = |judge: &Judge<'_>| kept < MOST || judge.is_essential(&edge);
        let counts = |judge: &Judge<'_>| judge.breaks(&edge) && has_room(judge);
        if kept < 2 * MOST && judge.as_ref().map_or(kept < MOST, counts) {
            found.edges.push(edge);
        }
    };
    let told = match &mut reader {
        Some(reader) => reader.read(remote, &mut visit)?,
        None => each(remote, &mut visit)?,
    };
    let Some(told) = told else { return newest(remote) };
    if !enforced.is_empty() {
        found.turned_away = told.turned_away;
    }
    if let Some(reader) = reader {
        found.coverage = coverage(&resolved, &reader.history, &Wanted::default(), now());
        found.coverage.retain(|id, _| enforced.contains(id));
    }
    found.sightings = remote.sightings()?;
    found.standing = standing;
    Ok(found)
}
