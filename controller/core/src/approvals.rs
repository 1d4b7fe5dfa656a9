//! What two operators must approve of before a model may be signed. The command line and the controller ask this;
//! gateways ask the same of their own leaves, by [`anteroom_proto::approval`].

use std::collections::BTreeMap;

use anteroom_proto::approval::{self, Approval, MAX_APPROVALS, Step};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::MemberId;
use anteroom_proto::intent::Device;
use anteroom_proto::key::PublicKey;
use anteroom_proto::name::Name;

use crate::compile::Compiled;
use crate::edit::EditError;
use crate::model::Model;

/// Something that two operators must approve of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// The device.
    pub member: MemberId,
    /// What operators call it.
    pub name: Name,
    /// What is to be done to it.
    pub step: Step,
}

/// What of `after`, which is to be revision `number`, two of `operators` must approve of and haven't.
#[must_use]
pub fn lacking(
    before: Option<&Compiled>,
    after: &Compiled,
    number: u64,
    operators: &[PublicKey],
) -> Vec<Lacking> {
    let held: BTreeMap<MemberId, &Device> =
        before.into_iter().flat_map(devices).map(|device| (device.member.id, device)).collect();
    let organisation = after.resolved.model.organisation;
    let found = devices(after).filter_map(|device| {
        let member = device.member.id;
        let before = held.get(&member).copied();
        let step = approval::lacking(organisation, device, number, operators, before)?;
        let name = after.resolved.model.devices.get(&member)?.name.clone();
        Some(Lacking { member, name, step })
    });
    found.collect()
}

fn devices(compiled: &Compiled) -> impl Iterator<Item = &Device> {
    compiled.leaves.values().flat_map(|leaf| &leaf.intent.devices)
}

/// Whether a model asks for two persons at all, so that it is worth looking.
#[must_use]
pub fn may_be_wanted(model: &Model) -> bool {
    model.policy.contains("two_person")
}

/// The approvals that outlive a change of mode: those that dropped a demand, for gateways that hear of it late.
pub(crate) fn lasting(approvals: &[Signed<Approval>]) -> Vec<Signed<Approval>> {
    approvals.iter().filter(|one| step(one).is_some_and(is_waiver)).cloned().collect()
}

fn step(approval: &Signed<Approval>) -> Option<Step> {
    approval.verify_self_named().ok().map(|approval| approval.step)
}

const fn is_waiver(step: Step) -> bool {
    matches!(step, Step::Waive { .. })
}

impl Model {
    /// Adds an approval to the device that it is for. Those of other steps, which are void, make room for it.
    ///
    /// # Errors
    /// When it is nobody's signature, or for no device of this model.
    pub fn approve(&mut self, approval: Signed<Approval>) -> Result<MemberId, EditError> {
        let invalid = |problem: String| EditError::Invalid { what: "an approval".into(), problem };
        let read = approval.verify_self_named().map_err(|error| invalid(error.to_string()))?;
        let device = self.devices.get_mut(&read.member);
        let device =
            device.ok_or_else(|| invalid(format!("no device has the id {}", read.member)))?;
        let kept = &mut device.rollout.approvals;
        kept.retain(|one| {
            *one != approval && step(one).is_some_and(|step| is_waiver(step) || step == read.step)
        });
        if kept.len() >= MAX_APPROVALS {
            kept.remove(0);
        }
        kept.push(approval);
        Ok(read.member)
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::key::IdentityKey;
    use anteroom_proto::mode::Mode;
    use anteroom_proto::time::UnixMillis;

    use super::*;
    use crate::compile::compile;
    use crate::fixture;

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    fn operators() -> Vec<PublicKey> {
        [1, 2].map(|seed| key(seed).public()).into()
    }

    /// The hospital, where two persons enforce CT scanners.
    fn hospital() -> Model {
        let mut model = fixture::hospital();
        let text = model.policy.replace("[segment.ct]\n", "[segment.ct]\ntwo_person = true\n");
        assert_ne!(text, model.policy);
        model.set_policy("policy.toml", &text).unwrap();
        model
    }

    fn sign(model: &Model, lacking: &Lacking, seed: u8) -> Signed<Approval> {
        let approval = Approval {
            organisation: model.organisation,
            member: lacking.member,
            step: lacking.step,
            signed_at: UnixMillis(1),
        };
        Signed::sign(&approval, &key(seed))
    }

    fn missing(before: &Model, after: &Model, number: u64) -> Vec<Lacking> {
        let (before, after) = (compile(before).unwrap(), compile(after).unwrap());
        lacking(Some(&before), &after, number, &operators())
    }

    #[test]
    fn only_what_the_policy_names_wants_two_and_gets_by_with_them() {
        let before = hospital();
        assert!(may_be_wanted(&before) && !may_be_wanted(&fixture::hospital()));
        let mut after = before.clone();
        after.set_mode("ct-1", Mode::Enforce, 8).unwrap();
        after.set_mode("pacs-1", Mode::Enforce, 8).unwrap();
        let found = missing(&before, &after, 8);
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(one.name.as_str(), "ct-1");
        after.approve(sign(&after, one, 1)).unwrap();
        after.approve(sign(&after, one, 1)).unwrap();
        assert_eq!(missing(&before, &after, 8).len(), 1, "one person twice");
        after.approve(sign(&after, one, 2)).unwrap();
        assert!(missing(&before, &after, 8).is_empty());
        // Ordering once more what stands changes nothing: the approvals least of all.
        let mut later = after.clone();
        later.set_mode("ct-1", Mode::Enforce, 9).unwrap();
        assert_eq!(later, after);
        // Later changes of other things carry it on.
        later.set_mode("pacs-1", Mode::Protect, 9).unwrap();
        assert!(missing(&after, &later, 9).is_empty());
        // Back is one person's, and there again is two's.
        later.set_mode("ct-1", Mode::Protect, 10).unwrap();
        assert!(missing(&after, &later, 10).is_empty());
        assert!(later.device_named("ct-1").unwrap().1.rollout.approvals.is_empty());
        let back = later.clone();
        later.set_mode("ct-1", Mode::Enforce, 11).unwrap();
        assert_eq!(missing(&back, &later, 11).len(), 1);
    }

    #[test]
    fn a_demand_on_what_is_enforced_already_wants_two_as_does_dropping_one() {
        let mut before = fixture::hospital();
        before.set_mode("ct-1", Mode::Enforce, 7).unwrap();
        let mut after = before.clone();
        after.policy = hospital().policy;
        assert_eq!(missing(&before, &after, 8).len(), 1);

        let before = hospital();
        let mut after = before.clone();
        after.label_device("ct-1", &[(fixture::name("class"), Some("toy".into()))]).unwrap();
        let found = missing(&before, &after, 8);
        assert_eq!(found[0].step, Step::Waive { since: 8 });
        for seed in [1, 2] {
            after.approve(sign(&after, &found[0], seed)).unwrap();
        }
        assert!(missing(&before, &after, 8).is_empty());
        // A gateway that was away may see a later revision first.
        after.set_mode("ct-1", Mode::Enforce, 9).unwrap();
        assert!(missing(&before, &after, 9).is_empty());
    }

    #[test]
    fn approvals_do_not_pile_up() {
        let mut model = hospital();
        for number in 1..40 {
            model.set_mode("ct-1", Mode::Protect, number).unwrap();
            let (member, device) = model.device_named("ct-1").unwrap();
            let lacking =
                Lacking { member, name: device.name.clone(), step: Step::Waive { since: number } };
            for seed in [1, 2] {
                model.approve(sign(&model, &lacking, seed)).unwrap();
            }
        }
        let (_, device) = model.device_named("ct-1").unwrap();
        assert_eq!(device.rollout.approvals.len(), MAX_APPROVALS);
    }
}
