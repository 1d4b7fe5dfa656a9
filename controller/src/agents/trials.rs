//! What gateways report of devices that are enforced on trial.

use anteroom_controller_core::model::Model;
use anteroom_controller_core::standing::why_words;
use anteroom_proto::id::GatewayId;
use anteroom_proto::rollout::{Over, TrialReport};

use crate::clock;
use crate::store::NewAudit;

/// Leaves of `told` what the newest model knows of: trials of this gateway's own devices. What was over once stays so, for as
/// long as the model orders that trial, told again or not: so none is in the log twice. Gives an audit entry for each that
/// is over since then.
pub(super) fn taken(
    gateway: GatewayId,
    told: &mut Vec<TrialReport>,
    before: &[TrialReport],
    model: &Model,
) -> Vec<NewAudit> {
    let mut entries = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let ordered = |trial: &TrialReport| {
        model.devices.get(&trial.member).filter(|device| {
            let since = device.rollout.trial.as_ref().map(|trial| trial.since);
            device.attachment.gateway == gateway && since == Some(trial.since)
        })
    };
    told.retain_mut(|trial| {
        let Some(device) = ordered(trial).filter(|_| seen.insert(trial.member) && trial.is_sound())
        else {
            return false;
        };
        let same =
            |known: &&TrialReport| (known.member, known.since) == (trial.member, trial.since);
        let known: Option<&Over> = before.iter().find(same).and_then(|known| known.over.as_ref());
        match (known, &trial.over) {
            (Some(known), _) => (trial.over, trial.left) = (Some(known.clone()), 0),
            (None, Some(over)) => {
                let back_to =
                    device.rollout.trial.as_ref().map(|trial| trial.back_to).unwrap_or(device.mode);
                entries.push(NewAudit {
                    at: clock::now(),
                    actor: gateway.to_string(),
                    action: "device went back".into(),
                    subject: device.name.to_string(),
                    reason: Some(why_words(&over.why, model)),
                    before: Some(format!(
                        "mode {}, on trial since revision {}",
                        device.mode, trial.since.revision
                    )),
                    after: Some(format!(
                        "mode {back_to}, as revision {} has it",
                        trial.since.revision
                    )),
                    ..NewAudit::default()
                });
            }
            (None, None) => {}
        }
        true
    });
    let kept = before.iter().filter(|known| known.over.is_some() && ordered(known).is_some());
    told.extend(kept.filter(|known| seen.insert(known.member)).cloned());
    entries
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use anteroom_controller_core::model::{Attachment, Device};
    use anteroom_proto::approval::Place;
    use anteroom_proto::id::{MemberId, OrganisationId};
    use anteroom_proto::intent::OnFailure;
    use anteroom_proto::mac::MacAddr;
    use anteroom_proto::mode::Mode;
    use anteroom_proto::rollout::{Expected, Failing, Rollout, Trial, Why};
    use anteroom_proto::time::UnixMillis;

    use super::*;

    const OWN: GatewayId = GatewayId::from_bytes([1; 16]);
    const DEVICE: MemberId = MemberId::from_bytes([2; 16]);

    fn model() -> Model {
        let mut model = Model::new(OrganisationId::from_bytes([9; 16]));
        let trial = Trial {
            since: Place::new(0, 7),
            within: 60_000,
            back_to: Mode::Protect,
            expects: Vec::new(),
        };
        let device = Device {
            name: "ct-1".parse().unwrap(),
            attachment: Attachment {
                gateway: OWN,
                port: "port1".parse().unwrap(),
                vlan: None,
                mac: MacAddr([0, 0x1b, 0, 0, 0, 1]),
            },
            addresses: Vec::new(),
            prefix_len: None,
            router: None,
            labels: BTreeMap::new(),
            mode: Mode::Enforce,
            mode_since: 7,
            confirmed_at: UnixMillis(1),
            quarantined: false,
            on_failure: OnFailure::Default,
            rollout: Rollout { trial: Some(trial), ..Rollout::default() },
        };
        model.devices.insert(DEVICE, device);
        model
    }

    fn told(since: u64, why: Option<Why>) -> TrialReport {
        let over = why.map(|why| Over { why, at: UnixMillis(5) });
        TrialReport {
            member: DEVICE,
            since: Place::new(0, since),
            left: if over.is_some() { 0 } else { 1_000 },
            over,
        }
    }

    #[test]
    fn that_a_device_went_back_is_told_once_and_stays_so() {
        let over = told(7, Some(Why::Unconfirmed));
        let mut report = vec![over.clone()];
        let entries = taken(OWN, &mut report, &[told(7, None)], &model());
        let [entry] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!((entry.action.as_str(), entry.subject.as_str()), ("device went back", "ct-1"));
        assert_eq!(entry.actor, OWN.to_string());
        assert_eq!(entry.reason.as_deref(), Some("nobody confirmed in time"));
        assert_eq!(entry.before.as_deref(), Some("mode enforce, on trial since revision 7"));
        assert_eq!(entry.after.as_deref(), Some("mode protect, as revision 7 has it"));
        // A gateway that says otherwise later, and again, fills no log.
        for next in [told(7, None), told(7, Some(Why::Restarted)), over.clone()] {
            let mut report = vec![next];
            assert!(taken(OWN, &mut report, std::slice::from_ref(&over), &model()).is_empty());
            assert_eq!(report, std::slice::from_ref(&over));
        }
        // Nor one that says nothing in between.
        let mut stored = vec![over.clone()];
        for next in [vec![], vec![over.clone()], vec![told(6, None)], vec![], vec![over.clone()]] {
            let mut report = next;
            assert!(taken(OWN, &mut report, &stored, &model()).is_empty());
            stored = report;
            assert_eq!(stored, std::slice::from_ref(&over));
        }
        // It is forgotten with the trial.
        let mut later = model();
        later.devices.get_mut(&DEVICE).unwrap().rollout = Rollout::default();
        let mut report = Vec::new();
        assert!(taken(OWN, &mut report, &stored, &later).is_empty() && report.is_empty());
    }

    #[test]
    fn of_others_and_of_what_nobody_ordered_nothing_is_taken() {
        let over = told(7, Some(Why::Unconfirmed));
        let what = Expected { remote: [1; 4].into(), outbound: true, protocol: 6, port: 1 };
        let long = Failing { what, reason: Some("x".repeat(100)), attempts: 3 };
        for (gateway, told) in [
            (GatewayId::from_bytes([3; 16]), over.clone()),
            (OWN, told(6, Some(Why::Unconfirmed))),
            (OWN, told(7, Some(Why::Failing(long)))),
            (OWN, TrialReport { member: MemberId::from_bytes([4; 16]), ..over.clone() }),
        ] {
            let mut report = vec![told];
            assert!(taken(gateway, &mut report, &[], &model()).is_empty());
            assert!(report.is_empty(), "{report:?}");
        }
        let mut twice = vec![over.clone(), over];
        assert_eq!(taken(OWN, &mut twice, &[], &model()).len(), 1);
    }
}
