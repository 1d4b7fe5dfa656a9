//! Trials over a restart: a device that is enforced until somebody confirms it never gets more time by power off and
//! on.
//!
//! The engine counts by the monotonic clock; what is written down is the machine's uptime at which the trial ends. An
//! agent that is started again goes on counting. After a start of the machine nobody can tell how much time has gone
//! by, so a trial is over then, and so is one of which nothing is written ([`Why::Lost`]).

use std::borrow::Cow;
use std::time::Duration;

use anteroom_agent_core::trial::{TrialState, effective, trial_of};
use anteroom_proto::approval::Place;
use anteroom_proto::id::MemberId;
use anteroom_proto::rollout::{Over, Why};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::view::View;
use serde::{Deserialize, Serialize};

use crate::bypass::Machine;

/// A trial as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    member: MemberId,
    since: Place,
    /// The boot of the machine in which it began.
    boot: String,
    /// The uptime at which it ends at the latest, in milliseconds.
    ends_uptime: u64,
    over: Option<Over>,
}

impl Kept {
    pub(crate) fn of(state: &TrialState, machine: &Machine) -> Self {
        let left = state.ends.saturating_duration_since(machine.now).as_millis();
        let left = u64::try_from(left).unwrap_or(u64::MAX);
        Self {
            member: state.member,
            since: state.since,
            boot: machine.boot.clone(),
            ends_uptime: machine.uptime.saturating_add(left),
            over: state.over.clone(),
        }
    }

    fn state(self, machine: &Machine, wall: UnixMillis) -> TrialState {
        let left = Duration::from_millis(self.ends_uptime.saturating_sub(machine.uptime));
        let same_boot = !machine.boot.is_empty() && self.boot == machine.boot;
        let ends = if same_boot { machine.now.checked_add(left) } else { None };
        let over = self.over.or_else(|| match ends {
            Some(_) => None,
            // Without an id of this boot nobody knows whether it is another one.
            None if machine.boot.is_empty() || self.boot.is_empty() => Some(lost(wall)),
            None => Some(restarted(wall)),
        });
        TrialState {
            member: self.member,
            since: self.since,
            ends: ends.unwrap_or(machine.now),
            over,
        }
    }
}

const fn restarted(at: UnixMillis) -> Over {
    Over { why: Why::Restarted, at }
}

const fn lost(at: UnixMillis) -> Over {
    Over { why: Why::Lost, at }
}

/// `view` with its devices in the modes that they are in, by what was kept of trials.
pub(crate) fn as_it_is(view: &View, kept: Vec<Kept>) -> Cow<'_, View> {
    let trials = restore(kept, Some(view), &Machine::look(), UnixMillis(0));
    effective(view, &trials)
}

/// The trials of an earlier run, for the view that it left on disk.
pub(crate) fn restore(
    kept: Vec<Kept>,
    view: Option<&View>,
    machine: &Machine,
    wall: UnixMillis,
) -> Vec<TrialState> {
    let mut found: Vec<TrialState> =
        kept.into_iter().map(|kept| kept.state(machine, wall)).collect();
    for device in view.iter().flat_map(|view| &view.intent.devices) {
        let Some(trial) = trial_of(device) else { continue };
        let key = (device.member.id, trial.since);
        if !found.iter().any(|known| (known.member, known.since) == key) {
            let (member, since) = key;
            let over = Some(lost(wall));
            found.push(TrialState { member, since, ends: machine.now, over });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use anteroom_proto::mode::Mode;
    use anteroom_proto::rollout::{Rollout, Trial};

    use super::*;
    use crate::testkit::Organisation;

    const WALL: UnixMillis = UnixMillis(5_000);

    fn machine(boot: &str, uptime: u64) -> Machine {
        Machine { boot: boot.into(), uptime, now: Instant::now() }
    }

    fn view() -> View {
        let organisation = Organisation::new(&[]);
        let mut view = organisation.verified(&organisation.view(1, 1, Mode::Enforce));
        view.intent.devices[0].rollout = Rollout {
            trial: Some(Trial {
                since: Place::new(0, 7),
                within: 60_000,
                back_to: Mode::Protect,
                expects: Vec::new(),
            }),
            ..Rollout::default()
        };
        view
    }

    fn begun(machine: &Machine) -> TrialState {
        let ends = machine.now + Duration::from_secs(60);
        let member = view().intent.devices[0].member.id;
        TrialState { member, since: Place::new(0, 7), ends, over: None }
    }

    fn left(state: &TrialState, machine: &Machine) -> u64 {
        let left = state.ends.saturating_duration_since(machine.now);
        u64::try_from(left.as_millis()).unwrap()
    }

    #[test]
    fn an_agent_that_starts_again_goes_on_counting() {
        let first = machine("a", 100_000);
        let kept = Kept::of(&begun(&first), &first);
        for (uptime, expected) in [(120_000, 40_000), (160_000, 0), (500_000, 0)] {
            let later = machine("a", uptime);
            let found = restore(vec![kept.clone()], Some(&view()), &later, WALL);
            assert_eq!((left(&found[0], &later), &found[0].over), (expected, &None));
        }
    }

    #[test]
    fn a_start_of_the_machine_ends_it() {
        let first = machine("a", 100_000);
        let kept = Kept::of(&begun(&first), &first);
        for (boot, over) in [("b", restarted(WALL)), ("", lost(WALL))] {
            let found = restore(vec![kept.clone()], Some(&view()), &machine(boot, 5_000), WALL);
            assert_eq!(found[0].over, Some(over), "{boot:?}");
        }
        let unknown = machine("", 100_000);
        let kept = Kept::of(&begun(&unknown), &unknown);
        let found = restore(vec![kept], Some(&view()), &unknown, WALL);
        assert_eq!(found[0].over, Some(lost(WALL)), "nobody knows which boot");
    }

    #[test]
    fn a_trial_of_which_nothing_is_written_is_over() {
        let now = machine("a", 100_000);
        let found = restore(Vec::new(), Some(&view()), &now, WALL);
        assert_eq!(found[0].over, Some(lost(WALL)));
        assert_eq!(as_it_is(&view(), Vec::new()).intent.devices[0].member.mode, Mode::Protect);
        let mut other = Kept::of(&begun(&now), &now);
        other.since = Place::new(0, 6);
        let found = restore(vec![other], Some(&view()), &now, WALL);
        assert!(
            found.iter().any(|one| one.since == Place::new(0, 7) && one.over.is_some()),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_over_stays_so() {
        let first = machine("a", 100_000);
        let over = Some(Over { why: Why::Unconfirmed, at: UnixMillis(9) });
        let kept = Kept::of(&TrialState { over: over.clone(), ..begun(&first) }, &first);
        for boot in ["a", "b"] {
            let found = restore(vec![kept.clone()], Some(&view()), &machine(boot, 110_000), WALL);
            assert_eq!(found[0].over, over);
        }
    }
}
