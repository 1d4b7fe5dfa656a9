//! Approvals by two persons: a device that operators want handled so isn't enforced unless two of them have signed it.
//!
//! The demand and the approvals stand in the leaf of the device's own gateway, under the operator's signature. So no
//! controller drops the demand or makes an approval up, and a gateway that comes late, or lost what it held, can check
//! for itself. What was approved stays so when one of the two leaves: a gateway takes what it holds already.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cbor;
use crate::cose::Document;
use crate::id::{MemberId, OrganisationId};
use crate::intent::{Device, Intent};
use crate::key::{Hash, PublicKey};
use crate::mode::Mode;
use crate::rollout::Trial;
use crate::time::UnixMillis;

/// How many operators must have signed.
pub const PERSONS: usize = 2;
/// Most approvals that a device bears.
pub const MAX_APPROVALS: usize = 8;

/// What an operator approves of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The device.
    pub member: MemberId,
    /// What is to be done to it.
    pub step: Step,
    /// When the operator signed, by their clock.
    pub signed_at: UnixMillis,
}

impl Document for Approval {
    const TYPE: &'static str = "anteroom/approval";
    const MAX_LEN: usize = 1024;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// What two operators must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The device is enforced.
    Enforce {
        /// The revision in which its mode becomes that.
        since: u64,
        /// Digest of the trial's terms; none: for good.
        trial: Option<Hash>,
    },
    /// One operator is enough for the device from now on.
    Waive {
        /// The revision that drops the demand.
        since: u64,
    },
}

impl Step {
    /// The step that has a device enforced as a leaf has it.
    fn enforce(device: &Device) -> Self {
        let digest = |trial: &Trial| Hash::of("anteroom trial", &[&cbor::encode(trial)]);
        Self::Enforce {
            since: device.member.mode_since,
            trial: device.rollout.trial.as_ref().map(digest),
        }
    }

    /// Whether what was approved of covers this. A waiver does, whatever revision it was for.
    fn is_covered_by(self, approved: Self) -> bool {
        match (self, approved) {
            (Self::Waive { .. }, Self::Waive { .. }) => true,
            (wanted, approved) => wanted == approved,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce { trial: None, .. } => "enforce it",
            Self::Enforce { trial: Some(_), .. } => "enforce it on trial",
            Self::Waive { .. } => "let one operator decide on it from now on",
        })
    }
}

/// Who of `operators` has approved `step` for a device.
#[must_use]
pub fn approvers(
    organisation: OrganisationId,
    device: &Device,
    step: Step,
    operators: &[PublicKey],
) -> BTreeSet<PublicKey> {
    let approvals = device.rollout.approvals.iter().take(MAX_APPROVALS);
    let valid = approvals.filter_map(|approval| approval.verify(organisation, operators).ok());
    valid
        .filter(|approval| approval.member == device.member.id && step.is_covered_by(approval.step))
        .map(|approval| approval.signer())
        .collect()
}

/// What two of `operators` must have approved of and haven't: a device that is enforced, and a demand that is dropped.
/// `held` is what stood before, and was checked then: who approved of that may have left.
#[must_use]
pub fn lacking(
    organisation: OrganisationId,
    device: &Device,
    revision: u64,
    operators: &[PublicKey],
    held: Option<&Device>,
) -> Option<Step> {
    let held = held.filter(|held| held.two_person);
    let step = match (device.two_person, held) {
        (true, held) if device.member.mode == Mode::Enforce => {
            let step = Step::enforce(device);
            // With an approval taken out, what is taken now couldn't be taken again from disk.
            let kept = |held: &Device| {
                let now = &device.rollout.approvals;
                held.rollout.approvals.iter().all(|approval| now.contains(approval))
            };
            let stands = held.is_some_and(|held| {
                held.member.mode == Mode::Enforce && Step::enforce(held) == step && kept(held)
            });
            if stands {
                return None;
            }
            step
        }
        (false, Some(_)) => Step::Waive { since: revision },
        _ => return None,
    };
    (approvers(organisation, device, step, operators).len() < PERSONS).then_some(step)
}

/// The same for a whole leaf: the first device that lacks something.
#[must_use]
pub fn lacking_in(
    intent: &Intent,
    revision: u64,
    operators: &[PublicKey],
    held: Option<&Intent>,
) -> Option<(MemberId, Step)> {
    intent.devices.iter().find_map(|device| {
        let id = device.member.id;
        let before = held.and_then(|held| held.devices.iter().find(|one| one.member.id == id));
        let step = lacking(intent.organisation, device, revision, operators, before)?;
        Some((id, step))
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::cose::Signed;
    use crate::id::{GatewayId, SiteId};
    use crate::intent::{Member, OnFailure};
    use crate::key::IdentityKey;
    use crate::mac::MacAddr;
    use crate::rollout::Rollout;

    const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    fn operators() -> Vec<PublicKey> {
        [1, 2, 3].map(|seed| key(seed).public()).into()
    }

    fn device(mode: Mode, since: u64) -> Device {
        Device {
            member: Member {
                id: MemberId::from_bytes([5; 16]),
                gateway: GatewayId::from_bytes([6; 16]),
                overlay: Ipv6Addr::LOCALHOST,
                site: SiteId::of("north"),
                vlan: None,
                mac: MacAddr([0; 6]),
                addresses: Vec::new(),
                mode,
                mode_since: since,
                quarantined: false,
            },
            port: "port1".parse().unwrap(),
            prefix_len: None,
            router: None,
            on_failure: OnFailure::Default,
            rollout: Rollout::default(),
            two_person: true,
        }
    }

    fn approved(mut device: Device, step: Step, seeds: &[u8]) -> Device {
        let member = device.member.id;
        let approval =
            Approval { organisation: ORGANISATION, member, step, signed_at: UnixMillis(1) };
        let signed = seeds.iter().map(|seed| Signed::sign(&approval, &key(*seed)));
        device.rollout.approvals.extend(signed);
        device
    }

    fn lacks(device: &Device, held: Option<&Device>) -> bool {
        lacking(ORGANISATION, device, 9, &operators(), held).is_some()
    }

    fn trial(since: u64) -> Trial {
        Trial { since, within: 60_000, back_to: Mode::Protect, expects: Vec::new() }
    }

    const STEP: Step = Step::Enforce { since: 7, trial: None };

    #[test]
    fn approvals_that_are_taken_out_of_what_is_held_are_missed() {
        let held = approved(device(Mode::Enforce, 7), STEP, &[1, 2]);
        assert!(!lacks(&held, Some(&held)));
        assert!(lacks(&device(Mode::Enforce, 7), Some(&held)), "it couldn't be taken from disk");
        let one_left = approved(device(Mode::Enforce, 7), STEP, &[1]);
        assert!(lacks(&one_left, Some(&held)));
        assert!(!lacks(&approved(held.clone(), STEP, &[3]), Some(&held)), "a third one");
    }

    #[test]
    fn two_distinct_operators_are_wanted() {
        let bare = device(Mode::Enforce, 7);
        assert!(lacks(&bare, None), "nobody");
        assert!(lacks(&approved(bare.clone(), STEP, &[1]), None), "one");
        assert!(lacks(&approved(bare.clone(), STEP, &[1, 1, 1]), None), "one, three times");
        assert!(lacks(&approved(bare.clone(), STEP, &[1, 9]), None), "a stranger");
        assert!(!lacks(&approved(bare.clone(), STEP, &[1, 2]), None));
        assert!(!lacks(&approved(bare.clone(), STEP, &[9, 3, 2]), None));
        for mode in [Mode::Observe, Mode::Protect] {
            assert!(!lacks(&device(mode, 7), None), "{mode} cuts nothing off");
        }
        let free = Device { two_person: false, ..bare };
        assert!(!lacks(&free, None));
    }

    #[test]
    fn an_approval_is_for_one_device_one_step_and_one_organisation() {
        let other = Step::Enforce { since: 6, trial: None };
        assert!(lacks(&approved(device(Mode::Enforce, 7), other, &[1, 2]), None), "an earlier one");
        assert!(lacks(
            &approved(device(Mode::Enforce, 7), Step::Waive { since: 7 }, &[1, 2]),
            None
        ));
        let mut elsewhere = approved(device(Mode::Enforce, 7), STEP, &[1, 2]);
        elsewhere.member.id = MemberId::from_bytes([8; 16]);
        assert!(lacks(&elsewhere, None), "another device's");
        let found = lacking(
            OrganisationId::from_bytes([2; 16]),
            &approved(device(Mode::Enforce, 7), STEP, &[1, 2]),
            9,
            &operators(),
            None,
        );
        assert!(found.is_some(), "another organisation's");
    }

    #[test]
    fn a_trial_is_approved_with_its_terms_and_so_is_its_end() {
        let mut on_trial = device(Mode::Enforce, 7);
        on_trial.rollout.trial = Some(trial(7));
        let step = Step::enforce(&on_trial);
        let on_trial = approved(on_trial, step, &[1, 2]);
        assert!(!lacks(&on_trial, None));
        let mut longer = on_trial.clone();
        longer.rollout.trial.as_mut().unwrap().within = 3_600_000;
        assert!(lacks(&longer, Some(&on_trial)));
        let mut kept = on_trial.clone();
        kept.rollout.trial = None;
        assert!(lacks(&kept, Some(&on_trial)), "for good is more than for a while");
        assert!(!lacks(&approved(kept, STEP, &[3, 2]), Some(&on_trial)));
    }

    #[test]
    fn what_was_approved_stands_though_an_operator_left() {
        let held = approved(device(Mode::Enforce, 7), STEP, &[1, 2]);
        let left = [key(2).public(), key(3).public()];
        let lacks = |device: &Device, held: Option<&Device>| {
            lacking(ORGANISATION, device, 9, &left, held).is_some()
        };
        assert!(lacks(&held, None), "to whoever has never seen it");
        assert!(!lacks(&held, Some(&held)));
        let again = device(Mode::Enforce, 9);
        assert!(lacks(&again, Some(&held)), "another time");
        let unasked = Device { two_person: false, ..held.clone() };
        assert!(lacks(&held, Some(&unasked)), "nobody checked it before");
    }

    #[test]
    fn one_operator_alone_drops_no_demand() {
        let held = device(Mode::Protect, 7);
        for mode in [Mode::Protect, Mode::Enforce] {
            let dropped = Device { two_person: false, ..device(mode, 8) };
            assert!(lacks(&dropped, Some(&held)), "{mode}");
            let waived = |seeds: &[u8]| approved(dropped.clone(), Step::Waive { since: 8 }, seeds);
            assert!(lacks(&waived(&[1]), Some(&held)));
            assert!(!lacks(&waived(&[1, 3]), Some(&held)));
        }
    }
}
