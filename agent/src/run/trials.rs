//! Keeps trials on disk as they begin and end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent_core::trial::{TrialState, trial_of};
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
    let mut noted = Noted::default();
    let mut views = gate.views();
    let mut last = false;
    while !last {
        let ordered = views.borrow_and_update().as_deref().is_some_and(orders_trials);
        last = tokio::select! {
            () = looks::pause(LOOK), if ordered || !noted.is_empty() => false,
            changed = views.changed() => changed.is_err(),
            _ = leaving.changed() => true,
        };
        let Ok(trials) = gate.trials().await else { continue };
        let news = noted.tell(&trials);
        noted.write(&trials, &state).await;
        if news {
            for problem in gate.wire_again().await {
                warn!("{problem}");
            }
        }
    }
}

/// What was told of trials, and what is on disk of them.
#[derive(Debug, Default)]
struct Noted {
    told: Vec<TrialState>,
    written: Vec<TrialState>,
    /// Why the newest isn't on disk.
    problem: Option<String>,
}

impl Noted {
    const fn is_empty(&self) -> bool {
        self.told.is_empty() && self.written.is_empty() && self.problem.is_none()
    }

    /// Tells what is new of them. Says whether anything is.
    fn tell(&mut self, trials: &[TrialState]) -> bool {
        if self.told == trials {
            return false;
        }
        for trial in trials {
            tell(trial, find(&self.told, trial));
        }
        self.told = trials.to_vec();
        true
    }

    /// Has the disk say what they are. What can't be written is tried again with the next look; until then the disk says nothing rather than
    /// that a trial goes on which is over: what it says nothing of is over at the next start.
    async fn write(&mut self, trials: &[TrialState], state: &Arc<StateDir>) {
        if self.written == trials && self.problem.is_none() {
            return;
        }
        let machine = Machine::look();
        let kept: Vec<Kept> = trials.iter().map(|trial| Kept::of(trial, &machine)).collect();
        let goes_on =
            |over: &TrialState| find(&self.written, over).is_none_or(|one| one.over.is_none());
        let untrue = trials.iter().any(|trial| trial.over.is_some() && goes_on(trial));
        let disk = state.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let Err(problem) = disk.write_trials(&kept) else { return Ok(()) };
            let forgotten = if untrue { disk.forget_trials().map(|()| true) } else { Ok(false) };
            Err((problem.to_string(), forgotten.map_err(|problem| problem.to_string())))
        });
        let problem = match writing.await {
            Ok(Ok(())) => {
                (self.written, self.problem) = (trials.to_vec(), None);
                return;
            }
            Ok(Err((problem, Ok(forgotten)))) => {
                if forgotten {
                    self.written.clear();
                }
                problem
            }
            Ok(Err((problem, Err(another)))) => format!("{problem}; {another}"),
            Err(problem) => problem.to_string(),
        };
        // It is tried again and again.
        if self.problem.as_ref() != Some(&problem) {
            error!("a trial isn't kept over a restart, and counts as over then: {problem}");
        }
        self.problem = Some(problem);
    }
}

fn find<'a>(trials: &'a [TrialState], like: &TrialState) -> Option<&'a TrialState> {
    trials.iter().find(|one| (one.member, one.since) == (like.member, like.since))
}

fn orders_trials(view: &View) -> bool {
    view.intent.devices.iter().any(|device| trial_of(device).is_some())
}

fn tell(trial: &TrialState, before: Option<&TrialState>) {
    let (member, revision) = (trial.member, trial.since.revision);
    match (&trial.over, before) {
        (Some(_), Some(TrialState { over: Some(_), .. })) | (None, Some(_)) => {}
        (Some(over), _) => {
            warn!(%member, revision, "a trial is over, the device is back in protect: {}", over.why);
        }
        (None, None) => {
            let seconds = trial.ends.saturating_duration_since(Instant::now()).as_secs();
            info!(%member, revision, seconds, "a device is enforced on trial");
        }
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::approval::Place;
    use anteroom_proto::id::MemberId;
    use anteroom_proto::rollout::{Over, Why};
    use anteroom_proto::time::UnixMillis;

    use super::*;
    use crate::state::tests::state;

    fn trial(number: u8, over: bool) -> TrialState {
        let over = over.then_some(Over { why: Why::Unconfirmed, at: UnixMillis(9) });
        let ends = Instant::now() + Duration::from_secs(600);
        TrialState {
            member: MemberId::from_bytes([number; 16]),
            since: Place::new(0, 7),
            ends,
            over,
        }
    }

    /// How many go on by what is on disk, and how many are over.
    fn on_disk(state: &StateDir) -> (usize, usize) {
        let found =
            crate::trial::restore(state.trials().unwrap(), None, &Machine::look(), UnixMillis(0));
        let over = found.iter().filter(|one| one.over.is_some()).count();
        (found.len() - over, over)
    }

    #[tokio::test]
    async fn an_end_that_could_not_be_written_is_forgotten_at_once_and_written_later() {
        let (_parent, state) = state();
        let state = Arc::new(state);
        let mut noted = Noted::default();
        let goes_on = trial(2, false);
        let begun = [trial(1, false), goes_on.clone()];
        noted.write(&begun, &state).await;
        assert_eq!(on_disk(&state), (2, 0));
        // Nothing can be written where the draft would be; what is there can be taken away.
        let draft = state.path().join(".trials.new");
        std::fs::create_dir(&draft).unwrap();
        let one_more = [begun[0].clone(), goes_on.clone(), trial(3, false)];
        noted.write(&one_more, &state).await;
        assert_eq!(on_disk(&state), (2, 0), "what is there of the others is true");
        assert!(noted.problem.is_some());
        let ended = [trial(1, true), goes_on];
        for _ in 0..2 {
            noted.write(&ended, &state).await;
            assert_eq!(on_disk(&state), (0, 0), "nothing says that it goes on");
            assert!(noted.problem.is_some());
        }
        std::fs::remove_dir(&draft).unwrap();
        noted.write(&ended, &state).await;
        assert_eq!(on_disk(&state), (1, 1));
        assert_eq!((noted.problem, noted.written), (None, ended.to_vec()));
    }
}
