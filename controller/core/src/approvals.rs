//! What two operators must approve of before a model may be signed. The command line and the controller ask this;
//! gateways ask the same of their own leaves, by [`anteroom_proto::approval::Demands`].

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::approval::{Approval, MAX_APPROVALS, Place, Step, Voters};
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::MemberId;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;

use crate::compile::Compiled;
use crate::edit::EditError;
use crate::model::{Device, Model};
use crate::resolve::Resolved;

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

/// What of `after`, which is to be the revision at `at`, two of the operators of `chain` must approve of and haven't.
///
/// It is the models that are compared, and not leaves: the demand is on a device wherever it is, attached or not, and a
/// device that takes the place of one that is detached, by its Ethernet address, is under the same.
#[must_use]
pub fn lacking(
    before: Option<&Compiled>,
    after: &Compiled,
    at: Place,
    chain: &AuthorityChain,
) -> Vec<Lacking> {
    let before = before.map(|before| &before.resolved);
    let after = &after.resolved;
    let voters = Voters { organisation: after.model.organisation, chain };
    let demanded = |resolved: &Resolved, id: MemberId| resolved.wants_two_persons(id);
    let was = |id: MemberId| before.filter(|before| demanded(before, id));
    let held: Vec<(MemberId, &Device)> = before
        .into_iter()
        .flat_map(|before| before.model.devices.iter().map(|(id, device)| (*id, device)))
        .filter(|(id, _)| was(*id).is_some())
        .collect();
    // Those that left: by their Ethernet addresses another may be in their place.
    let away: BTreeMap<MacAddr, MemberId> = held
        .iter()
        .filter(|(id, _)| {
            after.model.devices.get(id).is_none_or(|device| !after.model.is_attached(device))
        })
        .map(|(id, device)| (device.attachment.mac, *id))
        .collect();
    let held: BTreeMap<MemberId, &Device> = held.into_iter().collect();
    let mut found = Vec::new();
    for (id, device) in &after.model.devices {
        let before = held.get(id);
        let replaces = || !Model::is_host(device) && away.contains_key(&device.attachment.mac);
        let agreed = |step: Step| {
            voters.agree(*id, &device.rollout.approvals, step, |approved| approved == at)
        };
        let step = if !demanded(after, *id) {
            (before.is_some() || replaces()).then_some(Step::Waive {})
        } else if device.mode == Mode::Enforce {
            let stands = before.is_some_and(|before| stands(before, device));
            (!stands).then(|| step_of(device))
        } else {
            None
        };
        if let Some(step) = step.filter(|step| !agreed(*step)) {
            found.push(Lacking { member: *id, name: device.name.clone(), step });
        }
    }
    found.extend(by_way_of_a_port(after));
    let gone = held.iter().filter(|(id, _)| !after.model.devices.contains_key(id));
    found.extend(gone.map(|(id, device)| Lacking {
        member: *id,
        name: device.name.clone(),
        step: Step::Waive {},
    }));
    found
}

/// Devices that would enforce, since a port has the strictest mode of all that stand at it, one that two operators decide
/// on and that isn't to be enforced. No approval of theirs makes up for that.
fn by_way_of_a_port(after: &Resolved) -> Vec<Lacking> {
    let attached = || {
        let devices = after.model.devices.iter();
        devices.filter(|(_, device)| after.model.is_attached(device))
    };
    let port = |device: &Device| (device.attachment.gateway, device.attachment.port.clone());
    let spared: BTreeSet<_> = attached()
        .filter(|(id, device)| device.mode < Mode::Enforce && after.wants_two_persons(**id))
        .map(|(_, device)| port(device))
        .collect();
    attached()
        .filter(|(_, device)| device.mode >= Mode::Enforce && spared.contains(&port(device)))
        .map(|(id, device)| Lacking {
            member: *id,
            name: device.name.clone(),
            step: step_of(device),
        })
        .collect()
}

/// Whether a device goes on as two operators have approved of before. With an approval taken out, a gateway that sees it
/// for the first time couldn't tell.
fn stands(before: &Device, after: &Device) -> bool {
    let now = &after.rollout.approvals;
    before.mode == Mode::Enforce
        && before.rollout.trial == after.rollout.trial
        && before.rollout.approvals.iter().all(|approval| now.contains(approval))
}

fn step_of(device: &Device) -> Step {
    Step::enforce(device.rollout.trial.as_ref())
}

/// Whether a model asks for two persons at all, so that it is worth looking.
#[must_use]
pub fn may_be_wanted(model: &Model) -> bool {
    model.policy.contains("two_person")
}

/// The approvals that outlive a change of mode: those that dropped a demand, for gateways that hear of it late.
pub(crate) fn lasting(approvals: &[Signed<Approval>]) -> Vec<Signed<Approval>> {
    let waives = |one: &&Signed<Approval>| read(one).is_some_and(|(step, _)| is_waiver(step));
    approvals.iter().filter(waives).cloned().collect()
}

fn read(approval: &Signed<Approval>) -> Option<(Step, Place)> {
    approval.verify_self_named().ok().map(|approval| (approval.step, approval.at))
}

const fn is_waiver(step: Step) -> bool {
    matches!(step, Step::Waive {})
}

impl Model {
    /// Adds an approval to the device that it is for. Those of the same step for other revisions make room for it, as do
    /// those of steps that the device isn't at any more.
    ///
    /// # Errors
    /// When it is nobody's signature, for no device of this model, or for a step that the device isn't at.
    pub fn approve(&mut self, approval: Signed<Approval>) -> Result<MemberId, EditError> {
        let invalid = |problem: String| EditError::Invalid { what: "an approval".into(), problem };
        let new = approval.verify_self_named().map_err(|error| invalid(error.to_string()))?;
        let device = self.devices.get_mut(&new.member);
        let device =
            device.ok_or_else(|| invalid(format!("no device has the id {}", new.member)))?;
        let current = (device.mode == Mode::Enforce).then(|| step_of(device));
        if !is_waiver(new.step) && current != Some(new.step) {
            let problem = format!("it is to {}, and {} isn't to be", new.step, device.name);
            return Err(invalid(problem));
        }
        let kept = &mut device.rollout.approvals;
        kept.retain(|one| {
            let fits = |(step, at)| match step == new.step {
                true => at == new.at,
                false => is_waiver(step) || current == Some(step),
            };
            *one != approval && read(one).is_some_and(fits)
        });
        if kept.len() >= MAX_APPROVALS {
            kept.remove(0);
        }
        kept.push(approval);
        Ok(new.member)
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::authority::{Authority, Controller, Operator};
    use anteroom_proto::key::{Hash, IdentityKey};
    use anteroom_proto::time::UnixMillis;

    use super::*;
    use crate::compile::compile;
    use crate::fixture;

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    /// One document: 1 and 2 are operators.
    fn chain() -> AuthorityChain {
        let operator = |seed| Operator {
            name: format!("operator-{seed}").parse().unwrap(),
            key: key(seed).public(),
        };
        let document = Authority {
            organisation: fixture::hospital().organisation,
            number: 1,
            previous: Hash::ZERO,
            operators: [1, 2].map(operator).into(),
            threshold: 1,
            controllers: vec![Controller {
                key: key(99).public(),
                addresses: vec!["10.0.0.1:8443".into()],
            }],
            relays: Vec::new(),
            recovery: key(98).public(),
            incarnation: 0,
            root: None,
        };
        AuthorityChain::follow_unpinned(&[Signed::sign(&document, &key(1))]).unwrap()
    }

    /// The hospital, where two persons enforce CT scanners.
    fn hospital() -> Model {
        let mut model = fixture::hospital();
        let text = model.policy.replace("[segment.ct]\n", "[segment.ct]\ntwo_person = true\n");
        assert_ne!(text, model.policy);
        model.set_policy("policy.toml", &text).unwrap();
        model
    }

    fn sign(model: &Model, lacking: &Lacking, number: u64, seed: u8) -> Signed<Approval> {
        let approval = Approval {
            organisation: model.organisation,
            member: lacking.member,
            step: lacking.step,
            at: Place::new(0, number),
            signed_at: UnixMillis(1),
        };
        Signed::sign(&approval, &key(seed))
    }

    fn missing(before: &Model, after: &Model, number: u64) -> Vec<Lacking> {
        let (before, after) = (compile(before).unwrap(), compile(after).unwrap());
        lacking(Some(&before), &after, Place::new(0, number), &chain())
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
        after.approve(sign(&after, one, 8, 1)).unwrap();
        after.approve(sign(&after, one, 8, 1)).unwrap();
        assert_eq!(missing(&before, &after, 8).len(), 1, "one person twice");
        after.approve(sign(&after, one, 8, 2)).unwrap();
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
        // Not with the approvals of then, whatever the model says of when its mode changed.
        let (id, _) = later.device_named("ct-1").unwrap();
        later.devices.insert(id, after.devices[&id].clone());
        assert_eq!(missing(&back, &later, 11).len(), 1, "replayed");
        for seed in [1, 2] {
            later.approve(sign(&later, one, 11, seed)).unwrap();
        }
        assert!(missing(&back, &later, 11).is_empty());
        assert_eq!(later.devices[&id].rollout.approvals.len(), 2, "the old ones made room");
    }

    #[test]
    fn nothing_is_enforced_by_way_of_its_neighbour_on_the_port() {
        let mut before = hospital();
        let place = before.device_named("ct-1").unwrap().1.attachment.clone();
        let (id, mut other) = fixture::device(80, "toy-1", 1, "port1", [10, 20, 1, 80], "toy");
        other.attachment.gateway = place.gateway;
        other.attachment.port = place.port;
        before.devices.insert(id, other);
        let mut after = before.clone();
        after.set_mode("toy-1", Mode::Enforce, 8).unwrap();
        let found = missing(&before, &after, 8);
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((one.member, one.step), (id, Step::Enforce { trial: None }));
        // Approvals of the neighbour are none of the one that it would take along.
        for seed in [1, 2] {
            after.approve(sign(&after, one, 8, seed)).unwrap();
        }
        assert_eq!(missing(&before, &after, 8).len(), 1);
        after.set_mode("ct-1", Mode::Enforce, 8).unwrap();
        let found = missing(&before, &after, 8);
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(one.name.as_str(), "ct-1");
        let mut elsewhere = before.clone();
        elsewhere.set_mode("toy-1", Mode::Enforce, 8).unwrap();
        elsewhere.devices.get_mut(&id).unwrap().attachment.port = fixture::name("port9");
        assert!(missing(&before, &elsewhere, 8).is_empty());
    }

    #[test]
    fn an_approval_of_another_step_is_no_approval_of_this_one() {
        let before = hospital();
        let mut model = before.clone();
        model.set_mode("ct-1", Mode::Enforce, 8).unwrap();
        let one = &missing(&before, &model, 8)[0];
        model.approve(sign(&model, one, 8, 1)).unwrap();
        let kept = model.clone();
        let trial = Lacking { step: Step::Enforce { trial: Some(Hash::ZERO) }, ..one.clone() };
        let error = model.approve(sign(&model, &trial, 8, 2)).unwrap_err().to_string();
        assert!(error.contains("ct-1 isn't to be"), "{error}");
        assert_eq!(model, kept, "it cost the one that was there");
    }

    #[test]
    fn a_demand_stays_with_a_device_whose_gateway_is_revoked() {
        let mut before = hospital();
        let gateway = {
            let (_, device) = before.device_named("ct-1").unwrap();
            before.gateways[&device.attachment.gateway].name.clone()
        };
        let mut after = before.clone();
        after.revoke_gateway(gateway.as_str()).unwrap();
        assert!(missing(&before, &after, 8).is_empty(), "that wants nobody else");
        before = after.clone();
        // Neither its label nor the policy changes while it is nowhere.
        after.label_device("ct-1", &[(fixture::name("class"), Some("toy".into()))]).unwrap();
        assert_eq!(missing(&before, &after, 9)[0].step, Step::Waive {});
        let mut after = before.clone();
        after.policy = fixture::hospital().policy;
        assert_eq!(missing(&before, &after, 9)[0].name.as_str(), "ct-1");
        // It comes back behind another gateway without its label, or somebody else with its address does.
        let (id, device) = before.device_named("ct-1").unwrap();
        let mut back = device.clone();
        let (elsewhere, _) = before.gateways.iter().next().unwrap();
        back.attachment.gateway = *elsewhere;
        back.labels.clear();
        let mut after = before.clone();
        after.devices.insert(id, back.clone());
        assert_eq!(missing(&before, &after, 9)[0].step, Step::Waive {});
        let mut after = before.clone();
        let other = MemberId::from_bytes([0xee; 16]);
        back.name = fixture::name("ct-9");
        after.devices.insert(other, back);
        let found = missing(&before, &after, 9);
        assert_eq!((found[0].member, found[0].step), (other, Step::Waive {}));
        for seed in [1, 2] {
            after.approve(sign(&after, &found[0], 9, seed)).unwrap();
        }
        assert!(missing(&before, &after, 9).is_empty());
        // Nor does it vanish.
        let mut after = before.clone();
        after.devices.remove(&id);
        assert_eq!(missing(&before, &after, 9)[0].step, Step::Waive {});
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
        assert_eq!(found[0].step, Step::Waive {});
        for seed in [1, 2] {
            after.approve(sign(&after, &found[0], 8, seed)).unwrap();
        }
        assert!(missing(&before, &after, 8).is_empty());
        // It goes along for gateways that hear of it late, and is spent by the next demand.
        let waived = after.clone();
        after.set_mode("ct-1", Mode::Enforce, 9).unwrap();
        assert!(missing(&waived, &after, 9).is_empty());
        let (id, _) = after.device_named("ct-1").unwrap();
        assert_eq!(after.devices[&id].rollout.approvals.len(), 2);
        after.label_device("ct-1", &[(fixture::name("class"), Some("ct".into()))]).unwrap();
        let demanded = after.clone();
        after.label_device("ct-1", &[(fixture::name("class"), Some("toy".into()))]).unwrap();
        assert_eq!(missing(&demanded, &after, 11)[0].step, Step::Waive {});
    }

    #[test]
    fn approvals_do_not_pile_up() {
        let mut model = hospital();
        for number in 1..40 {
            model.set_mode("ct-1", Mode::Protect, number).unwrap();
            let (member, device) = model.device_named("ct-1").unwrap();
            let lacking = Lacking { member, name: device.name.clone(), step: Step::Waive {} };
            for seed in [1, 2] {
                model.approve(sign(&model, &lacking, number, seed)).unwrap();
            }
        }
        let (_, device) = model.device_named("ct-1").unwrap();
        assert_eq!(device.rollout.approvals.len(), 2);
    }
}
