//! Taking over what the controller sends: authority chains and views.

use std::sync::Arc;
use std::time::Instant;

use anteroom_agent_core::trial::{firm_ports, trial_of};
use anteroom_proto::authority::{Authority, AuthorityChain};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::RuleId;
use anteroom_proto::intent::Condition;
use anteroom_proto::key::Hash;
use anteroom_proto::mode::Mode;
use anteroom_proto::operation::ViewNumber;
use anteroom_proto::v1::Applied;
use anteroom_proto::view::{SignedView, View};
use tracing::{info, warn};

use super::Client;
use super::keep::Taken;
use crate::plane::{Plane, PlaneError};
use crate::state::enforces;

/// Most problems that are told of one view.
const MAX_PROBLEMS: usize = 32;

/// What is said of a view that is in force.
pub(crate) fn applied_of(view: &View, plane: &impl Plane) -> Applied {
    Applied {
        number: view.operation.number,
        revision: view.revision,
        intent_hash: view.intent_hash,
        refused: None,
        problems: problems(view, plane.shortcomings(view)),
    }
}

/// What in a good view this agent can't do.
fn problems(view: &View, shortcomings: Vec<String>) -> Vec<String> {
    let unknown = |rule: &anteroom_proto::intent::Rule| {
        rule.conditions.iter().any(|condition| matches!(condition, Condition::Unknown(_)))
    };
    let rules = view.intent.rules.iter().filter(|rule| unknown(rule)).map(|rule| {
        let id: RuleId = rule.id;
        format!("{id} has a condition that this agent doesn't know, so it never matches: update the agent")
    });
    let trials = view
        .intent
        .devices
        .iter()
        .filter(|device| device.rollout.trial.as_ref().is_some_and(|trial| !trial.is_known()));
    let trials = trials.map(|device| {
        let member = device.member.id;
        format!("{member} is to go back from its trial to a mode that this agent doesn't go back to, so it never does: update the agent")
    });
    let firm = firm_ports(&view.intent.devices);
    let stuck = view.intent.devices.iter().filter(|device| trial_of(device).is_some());
    let stuck = stuck.filter_map(|device| {
        let (member, other) = (device.member.id, firm.get(&device.port)?);
        Some(format!("{member} is on trial, and can't go back by itself: {other} at {} is enforced for good, and a port has one mode", device.port))
    });
    let devices = view.intent.devices.iter().map(|device| &device.member);
    let modes = devices.chain(&view.intent.members).filter(|member| member.mode == Mode::Unrecognised).map(
        |member| {
            format!("{} has a mode that this agent doesn't know, so no rule matches for it: update the agent", member.id)
        },
    );
    let held_back = view.upheld.held_back.iter().map(ToString::to_string);
    held_back
        .chain(shortcomings)
        .chain(view.left_out.iter().cloned())
        .chain(rules)
        .chain(modes)
        .chain(trials)
        .chain(stuck)
        .take(MAX_PROBLEMS)
        .collect()
}

impl<P: Plane> Client<P> {
    /// Takes over a newer authority chain. Gives whether it changed anything.
    pub(super) async fn take_authority(
        &mut self,
        documents: &[Signed<Authority>],
    ) -> Result<bool, String> {
        let newer = AuthorityChain::follow(self.enrolment.pin, documents)
            .map_err(|error| error.to_string())?;
        if newer.newest().organisation != self.enrolment.organisation {
            return Err("the chain of authority documents is another organisation's".into());
        }
        if let Some(held) = &self.chain {
            held.check_replacement(&newer).map_err(|error| error.to_string())?;
            if held.newest().number == newer.newest().number {
                return Ok(false);
            }
        }
        self.keeping.chain(newer.clone());
        let number = newer.newest().number;
        info!("authority document {number} is in force");
        self.chain = Some(newer);
        self.status.send_modify(|status| status.authority = number);
        Ok(true)
    }

    /// Verifies a view, puts it in force and has it written down, or gives the answer that says why not.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub(super) async fn take_view(
        &mut self,
        signed: SignedView,
    ) -> Result<Option<Applied>, PlaneError> {
        let began = Instant::now();
        let verified = match &self.chain {
            Some(chain) => {
                let (gateway, held) = (self.enrolment.gateway, self.view.as_deref());
                let demands = &self.demands;
                View::verify_next(&signed, gateway, chain, &self.floor, held, demands)
                    .map_err(|error| error.to_string())
            }
            None => Err("view refused: no chain of authority documents came before it".into()),
        };
        let view = match verified {
            Ok(mut view) => {
                for old in self.keys.hold(&mut view) {
                    self.alarm(&format!("the controller offers {old}"));
                }
                Arc::new(view)
            }
            Err(problem) => {
                warn!("{problem}");
                return Ok(Some(self.refused(problem)));
            }
        };
        let mut applied = applied_of(&view, &self.plane);
        applied.problems.extend(self.plane.apply(view.clone()).await?);
        self.hindrances = self.plane.hindrances().await;
        self.view = Some(view.clone());
        self.demands.clone_from(&view.upheld.demands);
        let identity = self.adopt(&view).await?;
        let issued = view.operation.issued_at;
        let anew = view.incarnation > self.floor.revision.0;
        self.floor = view.floor(&self.floor);
        if anew {
            self.clock.begin_anew(self.floor.time);
            self.keeping.time(self.clock);
        }
        if issued > self.clock.now() {
            self.confirm_time(issued).await?;
        }
        info!(
            revision = view.revision,
            number = %view.operation.number,
            milliseconds = began.elapsed().as_millis(),
            "view in force"
        );
        for problem in &applied.problems {
            warn!("view {}: {problem}", view.operation.number);
        }
        self.status.send_modify(|status| {
            status.applied = Some(applied.clone());
            status.approved = Some(true);
        });
        let (marks, floor) = (enforces(&view), self.floor);
        let (keys, demands) = (self.keys.clone(), self.demands.clone());
        self.keeping.view(Taken { signed, demands, marks, floor, keys, identity, applied });
        Ok(None)
    }

    /// What stays in force, and why the view isn't.
    fn refused(&self, problem: String) -> Applied {
        let nothing = Applied {
            number: ViewNumber::default(),
            revision: 0,
            intent_hash: Hash::ZERO,
            refused: None,
            problems: Vec::new(),
        };
        let in_force = self.applied.clone().unwrap_or(nothing);
        let answer = Applied { refused: Some(problem), ..in_force };
        self.status.send_modify(|status| status.applied = Some(answer.clone()));
        answer
    }

    /// Takes over a confirmed time.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub(super) async fn confirm_time(
        &mut self,
        time: anteroom_proto::time::UnixMillis,
    ) -> Result<(), PlaneError> {
        let now = self.clock.set(time, self.floor.time);
        self.keeping.time(self.clock);
        if let Some((ring, _)) = &mut self.writing {
            ring.settle(now);
        }
        if self.ring.settle(now) {
            // Peers hold on to the highest serial that they saw: the next start must not offer the lower one.
            self.keys_unwritten = true;
            self.bind();
        }
        self.plane.set_time(now, true).await
    }
}
