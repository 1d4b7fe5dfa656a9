//! Enforcing a device on trial, and confirming it.

use anteroom_proto::approval::Place;
use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::rollout::{Expected, MAX_EXPECTED, Rollout, TRIAL_RANGE, Trial};

use super::EditError;
use crate::approvals::lasting;
use crate::model::Model;

impl Model {
    /// Enforces a device on trial: `within` milliseconds after its gateway has it in force it goes back to protect by
    /// itself, unless [`Model::keep`] came before that. `expects` are the connections that it is measured by.
    /// `at` is the revision being made.
    ///
    /// # Errors
    /// As [`Model::set_mode`]; when the device is enforced for good already, or the time can't be.
    pub fn enforce_on_trial(
        &mut self,
        name: &str,
        within: u64,
        mut expects: Vec<Expected>,
        at: Place,
    ) -> Result<MemberId, EditError> {
        let (_, device) = self.find_device(name)?;
        let invalid = |problem: String| EditError::Invalid {
            what: format!("a trial of device {name}"),
            problem,
        };
        if device.mode == Mode::Enforce && device.rollout.trial.is_none() {
            return Err(invalid(
                "it is enforced already, and not on trial: `anteroom device back` takes it back at any time".into(),
            ));
        }
        if Self::is_host(device) {
            return Err(invalid("it is a host, which is always enforced".into()));
        }
        if !(TRIAL_RANGE.0..=TRIAL_RANGE.1).contains(&within) {
            return Err(invalid("it lasts from 10 seconds to 7 days".into()));
        }
        let id = self.set_mode(name, Mode::Enforce, at.revision)?;
        expects.sort_unstable();
        expects.dedup();
        expects.truncate(MAX_EXPECTED);
        if let Some(device) = self.devices.get_mut(&id) {
            let trial = Trial { since: at, within, back_to: Mode::Protect, expects };
            device.rollout.trial = Some(trial);
        }
        Ok(id)
    }

    /// Confirms a trial: the device stays enforced.
    ///
    /// # Errors
    /// [`EditError::Unknown`], or when it isn't on trial.
    pub fn keep(&mut self, name: &str) -> Result<MemberId, EditError> {
        let (id, device) = self.find_device(name)?;
        if device.rollout.trial.is_none() {
            return Err(EditError::Invalid {
                what: format!("device {name}"),
                problem: format!("it isn't on trial, its mode is {}", device.mode),
            });
        }
        if let Some(device) = self.devices.get_mut(&id) {
            let approvals = lasting(&device.rollout.approvals);
            device.rollout = Rollout { trial: None, approvals };
        }
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn model() -> Model {
        let mut model = fixture::hospital();
        model.set_mode("ct-1", Mode::Protect, 3).unwrap();
        model
    }

    fn expected(port: u16) -> Expected {
        Expected { remote: [10, 0, 0, 1].into(), outbound: true, protocol: 6, port }
    }

    #[test]
    fn a_trial_is_kept_ended_or_begun_anew_by_operators() {
        let mut model = model();
        let id = model
            .enforce_on_trial("ct-1", 60_000, vec![expected(2), expected(1)], Place::new(0, 4))
            .unwrap();
        let device = model.devices[&id].clone();
        let trial = device.rollout.trial.clone().unwrap();
        assert_eq!((device.mode, device.mode_since), (Mode::Enforce, 4));
        assert_eq!((trial.since, trial.back_to), (Place::new(0, 4), Mode::Protect));
        assert_eq!(trial.expects, [expected(1), expected(2)]);
        // Another one, longer: it begins anew.
        model.enforce_on_trial("ct-1", 120_000, Vec::new(), Place::new(0, 5)).unwrap();
        let again = &model.devices[&id];
        assert_eq!(
            (again.mode_since, again.rollout.trial.as_ref().unwrap().since),
            (4, Place::new(0, 5))
        );
        model.keep("ct-1").unwrap();
        assert!(model.devices[&id].rollout.is_plain());
        assert_eq!(model.devices[&id].mode, Mode::Enforce);
        let error = model.keep("ct-1").unwrap_err().to_string();
        assert_eq!(error, "device ct-1: it isn't on trial, its mode is enforce");
        let error = model
            .enforce_on_trial("ct-1", 60_000, Vec::new(), Place::new(0, 6))
            .unwrap_err()
            .to_string();
        assert!(error.contains("it is enforced already"), "{error}");
    }

    #[test]
    fn whoever_sets_a_mode_ends_the_trial() {
        for mode in [Mode::Observe, Mode::Protect, Mode::Enforce] {
            let mut model = model();
            let id = model.enforce_on_trial("ct-1", 60_000, Vec::new(), Place::new(0, 4)).unwrap();
            model.set_mode("ct-1", mode, 5).unwrap();
            assert!(model.devices[&id].rollout.is_plain(), "{mode}");
        }
    }

    #[test]
    fn a_time_that_cannot_be_is_refused_and_changes_nothing() {
        for within in [0, 9_999, 604_800_001, u64::MAX] {
            let mut model = model();
            let before = model.clone();
            assert!(
                model.enforce_on_trial("ct-1", within, Vec::new(), Place::new(0, 4)).is_err(),
                "{within}"
            );
            assert_eq!(model, before);
        }
    }
}
