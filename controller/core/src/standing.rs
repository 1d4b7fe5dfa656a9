//! How things are, where that isn't how they were ordered: devices whose trial is over are in the mode that they went back
//! to, until an operator orders something else.

use std::collections::BTreeMap;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::rollout::TrialReport;

use crate::model::Model;

/// The devices that went back from the trial that the model orders; `told` is what gateways report.
#[must_use]
pub fn gone_back<'a>(
    model: &Model,
    told: impl IntoIterator<Item = (GatewayId, &'a TrialReport)>,
) -> BTreeMap<MemberId, &'a TrialReport> {
    let over = told.into_iter().filter(|(gateway, told)| {
        let device = model.devices.get(&told.member);
        let device = device.filter(|device| device.attachment.gateway == *gateway);
        let trial = device.and_then(|device| device.rollout.trial.as_ref());
        told.over.is_some() && trial.is_some_and(|trial| trial.since == told.since)
    });
    over.map(|(_, told)| (told.member, told)).collect()
}

/// The model with these devices in the modes that they went back to.
#[must_use]
pub fn as_it_is(model: &Model, gone_back: impl IntoIterator<Item = MemberId>) -> Model {
    let mut now = model.clone();
    for id in gone_back {
        let Some(device) = now.devices.get_mut(&id) else { continue };
        if let Some(trial) = device.rollout.trial.take() {
            device.mode = trial.back_to;
        }
    }
    now
}

#[cfg(test)]
mod tests {
    use anteroom_proto::mode::Mode;
    use anteroom_proto::rollout::{Over, Why};
    use anteroom_proto::time::UnixMillis;

    use super::*;
    use crate::fixture;

    #[test]
    fn a_device_that_went_back_is_where_it_is_and_no_other() {
        let mut model = fixture::hospital();
        model.set_mode("ct-1", Mode::Protect, 2).unwrap();
        model.enforce_on_trial("ct-1", 60_000, Vec::new(), 3).unwrap();
        let (id, device) = model.device_named("ct-1").unwrap();
        let gateway = device.attachment.gateway;
        let mode = |gateway: GatewayId, since: u64, over: Option<Why>| {
            let over = over.map(|why| Over { why, at: UnixMillis(1) });
            let told = TrialReport { member: id, since, left: 0, over };
            let gone = gone_back(&model, [(gateway, &told)]);
            as_it_is(&model, gone.into_keys()).devices[&id].mode
        };
        let over = || Some(Why::Unconfirmed);
        assert_eq!(mode(gateway, 3, over()), Mode::Protect);
        assert_eq!(mode(gateway, 3, None), Mode::Enforce, "it goes on");
        assert_eq!(mode(gateway, 2, over()), Mode::Enforce, "an earlier one");
        let other = GatewayId::from_bytes([0xee; 16]);
        assert_eq!(mode(other, 3, over()), Mode::Enforce, "another gateway's word");
    }
}
